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
}

// Slices are the backends of all contributions, sorted by cluster and record. A backend's port belongs to the merged
// service's port of the same protocol and service port number, whatever name its own cluster gives it; where there is
// none, another cluster's port took its name, and nothing that is sent to the merged service is meant for it.
func (s Service) Slices(contributions []Contribution) []Slice {
	var all []Slice
	names := PortNames(s.Spec)
	for _, c := range contributions {
		for _, b := range c.Backends {
			slice := Slice{Cluster: c.Cluster, Record: b.Record, Family: b.Spec.IPFamily, Backends: b.Spec.Backends}
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

// Choose says, for each of a service's slices, which of its ports serve behind the clusterset IP in the local cluster.
//
// The choice is made for each port and family by itself. The local backends serve while any of them is ready, else those
// of every reachable remote cluster. Where nobody has a ready backend, the local ones stay beside the remote ones: those
// that terminate while still serving are kube-proxy's last resort.
func Choose(local string, reachable func(cluster string) bool, all []Slice) [][]v1alpha1.BackendPort {
	type way struct{ family, port string }
	localReady, remoteReady := sets.New[way](), sets.New[way]()
	for _, s := range all {
		if !AnyReady(s.Backends) || s.Cluster != local && !reachable(s.Cluster) {
			continue
		}
		for _, port := range s.Ports {
			if s.Cluster == local {
				localReady.Insert(way{s.Family, port.Name})
			} else {
				remoteReady.Insert(way{s.Family, port.Name})
			}
		}
	}
	chosen := make([][]v1alpha1.BackendPort, len(all))
	for i, s := range all {
		for _, port := range s.Ports {
			w := way{s.Family, port.Name}
			serves := !localReady.Has(w) && reachable(s.Cluster)
			if s.Cluster == local {
				serves = localReady.Has(w) || !remoteReady.Has(w)
			}
			if serves {
				chosen[i] = append(chosen[i], port)
			}
		}
	}
	return chosen
}

// AnyReady says whether any of the backends is ready. Unknown counts as ready, as in EndpointSlices.
func AnyReady(backends []v1alpha1.Backend) bool {
	return slices.ContainsFunc(backends, func(b v1alpha1.Backend) bool { return b.Ready == nil || *b.Ready })
}
