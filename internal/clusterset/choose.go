package clusterset

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/sets"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Slice is one record of backends as an importing cluster sees it: with the ports of the merged service.
type Slice struct {
	Cluster string
	// Record is the name of the ExportedEndpoints it was made from.
	Record string
	// Family is IPv4 or IPv6.
	Family string
	// Ports are those of the merged service that this cluster exposes, under the merged service's names.
	Ports    []v1alpha1.BackendPort
	Backends []v1alpha1.Backend
	// Changed is that of the record.
	Changed string
}

// Slices are the backends of all contributions, sorted by cluster and record. A backend's port belongs to the merged
// service's port of the same protocol and service port number, whatever name its own cluster gives it; where there is
// none, another cluster's port took its name, and nothing that is sent to the merged service is meant for it.
func (s Service) Slices(contributions []Contribution) []Slice {
	var all []Slice
	names := PortNames(s.Spec)
	for _, c := range contributions {
		for _, b := range c.Backends {
			slice := Slice{Cluster: c.Cluster, Record: b.Record, Family: b.Spec.IPFamily, Backends: b.Spec.Backends, Changed: b.Changed}
			for _, port := range b.Spec.Ports {
				own := slices.IndexFunc(c.Export.Ports, func(p v1alpha1.ServicePort) bool {
					return p.Name == port.Name && p.Protocol == port.Protocol
				})
				if own < 0 {
					continue
				}
				merged := slices.IndexFunc(s.Spec.Ports, func(p mcsv1beta1.ServicePort) bool {
					return string(p.Protocol) == port.Protocol && p.Port == c.Export.Ports[own].Port
				})
				if merged < 0 {
					continue
				}
				port.Name = names[merged]
				slice.Ports = append(slice.Ports, port)
			}
			all = append(all, slice)
		}
	}
	slices.SortFunc(all, func(a, b Slice) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Record, b.Record))
	})
	return all
}

// PortNames are the names of an import's ports on its derived Service and in its slices. They are the import's own, but
// for one case: an unnamed port beside others, which the import may hold (one cluster's only port, unnamed, and another
// cluster's) and a Service may not.
func PortNames(spec mcsv1beta1.ServiceImportSpec) []string {
	taken := sets.New[string]()
	for _, p := range spec.Ports {
		taken.Insert(p.Name)
	}
	names := make([]string, len(spec.Ports))
	for i, p := range spec.Ports {
		names[i] = p.Name
		if p.Name == "" && spec.Type == mcsv1beta1.ClusterSetIP && len(spec.Ports) > 1 {
			names[i] = "unnamed"
			for n := 2; taken.Has(names[i]); n++ {
				names[i] = fmt.Sprintf("unnamed-%d", n)
			}
		}
	}
	return names
}

// Reach is whether packets get to a cluster.
type Reach int

const (
	// Unreachable: there is no way to it.
	Unreachable Reach = iota
	// Returning: it was lost, and has not been back for long enough to be relied on. It serves where nobody else does.
	Returning
	// Reachable: it serves.
	Reachable
)

// rank orders the clusters that could serve. The lowest one does, and with it all of the same rank.
type rank struct {
	last      bool // returning, while another is not
	weightNil bool // of weight 0, while another has more
	far       int  // by affinity: 0 the near ones, 1 the others
	turn      int  // place in the list of preferred clusters
}

func (r rank) compare(other rank) int {
	number := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(number(r.last), number(other.last)), cmp.Compare(number(r.weightNil), number(other.weightNil)),
		cmp.Compare(r.far, other.far), cmp.Compare(r.turn, other.turn))
}

// rank is a cluster's place, by everything but its backends.
func (p Policy) rank(cluster, local string, reach Reach) rank {
	own := cluster == local
	if own && p.Affinity == v1alpha1.AffinityLocal {
		return rank{turn: -1} // before all others, and not weighed with them
	}
	r := rank{last: !own && reach == Returning, turn: len(p.Prefer)}
	if weight, ok := p.Weights[cluster]; ok && weight == 0 {
		r.weightNil = true
	}
	if own && p.Affinity == v1alpha1.AffinityRemote {
		r.far = 1
	}
	if i := slices.Index(p.Prefer, cluster); i >= 0 {
		r.turn = i
	}
	return r
}

// Choose says, for each of a service's slices, which of its ports serve behind the clusterset IP in the local cluster.
//
// The choice is made for each port and family by itself, between clusters that have a ready backend for it, and are local or
// within reach:
//
//   - affinity local: the local cluster while it has a ready backend, else the remote ones; with fewer of its backends ready
//     than MinLocalPercent, both;
//   - affinity none: all alike;
//   - affinity remote: the remote ones, and the local cluster where there are none.
//
// Among remote clusters, or among all with affinity none, the first of Prefer serves alone, and those that are not in Prefer
// together after it. A cluster of weight 0 is out while one of more is left. What is still returning to reach serves only
// where nothing else can. Other weights have no say here: kube-proxy sends each backend the same share.
//
// Of a cluster that serves, all backends stand there, the unready ones too: so one that gets ready is one change, and not two.
// Where nobody has a ready backend, everything within reach stands there: those that terminate while still serving are
// kube-proxy's last resort.
func Choose(local string, policy Policy, reach func(cluster string) Reach, all []Slice) [][]v1alpha1.BackendPort {
	type way struct{ family, port string }
	type state struct {
		best        rank
		served      bool // some cluster has a ready backend; best is the lowest rank of those
		bestRemote  rank
		remote      bool
		ready, have int64 // local backends; those that are on their way out do not count
	}
	reaches := map[string]Reach{local: Reachable}
	ranks := map[string]rank{}
	for _, s := range all {
		if _, ok := ranks[s.Cluster]; !ok {
			if s.Cluster != local {
				reaches[s.Cluster] = reach(s.Cluster)
			}
			ranks[s.Cluster] = policy.rank(s.Cluster, local, reaches[s.Cluster])
		}
	}
	ways := map[way]*state{}
	for _, s := range all {
		ready, have := health(s.Backends)
		for _, port := range s.Ports {
			w := ways[way{s.Family, port.Name}]
			if w == nil {
				w = &state{}
				ways[way{s.Family, port.Name}] = w
			}
			if s.Cluster == local {
				w.ready += ready
				w.have += have
			}
			if ready == 0 || reaches[s.Cluster] == Unreachable {
				continue
			}
			r := ranks[s.Cluster]
			if !w.served || r.compare(w.best) < 0 {
				w.best, w.served = r, true
			}
			if s.Cluster != local && (!w.remote || r.compare(w.bestRemote) < 0) {
				w.bestRemote, w.remote = r, true
			}
		}
	}
	chosen := make([][]v1alpha1.BackendPort, len(all))
	for i, s := range all {
		for _, port := range s.Ports {
			w := ways[way{s.Family, port.Name}]
			r := ranks[s.Cluster]
			serves := !w.served || r == w.best
			if policy.Affinity == v1alpha1.AffinityLocal && w.ready*100 < w.have*int64(policy.MinLocalPercent) {
				serves = serves || w.remote && r == w.bestRemote && !r.spare()
			}
			if serves && reaches[s.Cluster] != Unreachable {
				chosen[i] = append(chosen[i], port)
			}
		}
	}
	return chosen
}

// spare says that a cluster does not help out while another serves.
func (r rank) spare() bool { return r.last || r.weightNil }

// health counts the backends that are ready, and those that are there to stay.
func health(backends []v1alpha1.Backend) (ready, have int64) {
	for _, b := range backends {
		is := b.Ready == nil || *b.Ready
		if is {
			ready++
		}
		if is || b.Terminating == nil || !*b.Terminating {
			have++
		}
	}
	return ready, have
}

// AnyReady says whether any of the backends is ready. Unknown counts as ready, as in EndpointSlices.
func AnyReady(backends []v1alpha1.Backend) bool {
	return slices.ContainsFunc(backends, func(b v1alpha1.Backend) bool { return b.Ready == nil || *b.Ready })
}
