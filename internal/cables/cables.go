// Package cables holds the decisions about cables that more than one daemon must take alike: which gateway of each
// cluster carries its traffic, and which of the prefixes that other clusters claim are believed. The gateway makes its
// allowed addresses from the answer, every node's route agent its routes; both see the same Endpoints in their own
// cluster, so both come to the same answer without talking to each other.
package cables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Input is what the decisions depend on.
type Input struct {
	// ClusterID of this cluster.
	ClusterID string
	// Prefixes of this cluster: pods and services, both families.
	Prefixes []netip.Prefix
	// Nodes are addresses of this cluster's own nodes, as far as known. A remote prefix that covered one would draw the
	// node's own traffic into a tunnel.
	Nodes []netip.Addr
	// Endpoints, this cluster's own and the mirrored ones of others.
	Endpoints []v1alpha1.Endpoint
}

// Plan is the answer.
type Plan struct {
	// Local is the Endpoint of this cluster that carries, "" while there is none; LocalNode is its node.
	Local, LocalNode string
	// Remotes are the gateways of other clusters, sorted by name.
	Remotes []Remote
	// Problems in words, sorted: what was refused, and whose fault it is.
	Problems []string
}

// Remote is one gateway of another cluster.
type Remote struct {
	// Name of its Endpoint.
	Name      string
	ClusterID string
	Driver    string
	PublicKey string
	// Addresses to try, with the port, the preferred first.
	Addresses []netip.AddrPort
	// Prefixes that lie behind this gateway: those of its cluster that are believed, where it is the one that carries,
	// else none. Disjoint and sorted.
	Prefixes []netip.Prefix
}

// Prefixes of all remotes, sorted.
func (p Plan) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, remote := range p.Remotes {
		all = append(all, remote.Prefixes...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// claim is a prefix that a cluster says is its own.
type claim struct {
	prefix            netip.Prefix
	cluster, endpoint string
	since             int64 // Unix seconds of the first Endpoint of the cluster, as this cluster's mirror has it
}

// Decide is the rule. The carrying gateway of a cluster is the one with the lowest Endpoint name: every reader finds the
// same one, and no word of an API server or a lease is needed. Of the prefixes it claims these are refused:
//   - what is no pod or service range: a default route, loopback, link-local and multicast addresses;
//   - what overlaps this cluster's prefixes or covers one of its nodes;
//   - what overlaps another cluster's claim that is here for longer, or just as long (then neither has it). The age is
//     that of this cluster's own mirror of the Endpoint, so no other cluster can make itself older than it is.
//
// A peer address inside any believed prefix is refused too: the tunnel's packets would enter the tunnel.
func Decide(in Input) Plan {
	var plan Plan
	byCluster := map[string][]v1alpha1.Endpoint{}
	for _, endpoint := range in.Endpoints {
		if endpoint.DeletionTimestamp == nil {
			byCluster[endpoint.Spec.ClusterID] = append(byCluster[endpoint.Spec.ClusterID], endpoint)
		}
	}
	for _, endpoints := range byCluster {
		slices.SortFunc(endpoints, func(a, b v1alpha1.Endpoint) int { return cmp.Compare(a.Name, b.Name) })
	}
	if own := byCluster[in.ClusterID]; len(own) > 0 {
		plan.Local, plan.LocalNode = own[0].Name, own[0].Spec.Node
	}
	delete(byCluster, in.ClusterID)

	var claims []claim
	for id, endpoints := range byCluster {
		if other := twin(endpoints); other != "" {
			plan.Problems = append(plan.Problems, fmt.Sprintf("cluster %s: Endpoints %s and %s come from two clusters with one ID: both refused",
				id, endpoints[0].Name, other))
			continue
		}
		since := endpoints[0].CreationTimestamp.Unix()
		for _, endpoint := range endpoints {
			since = min(since, endpoint.CreationTimestamp.Unix())
		}
		prefixes, problems := fitting(endpoints[0], in)
		plan.Problems = append(plan.Problems, problems...)
		for _, prefix := range prefixes {
			claims = append(claims, claim{prefix: prefix, cluster: id, endpoint: endpoints[0].Name, since: since})
		}
		for _, endpoint := range endpoints {
			plan.Remotes = append(plan.Remotes, Remote{
				Name: endpoint.Name, ClusterID: id, Driver: endpoint.Spec.Driver, PublicKey: endpoint.Spec.PublicKey,
			})
		}
	}
	slices.SortFunc(plan.Remotes, func(a, b Remote) int { return cmp.Compare(a.Name, b.Name) })

	believed := map[string][]netip.Prefix{}
	for _, c := range claims {
		if rivals := rivals(c, claims); rivals != "" {
			plan.Problems = append(plan.Problems, refused(c.cluster, c.endpoint, c.prefix, rivals))
			continue
		}
		believed[c.endpoint] = append(believed[c.endpoint], c.prefix)
	}
	for i := range plan.Remotes {
		remote := &plan.Remotes[i]
		remote.Prefixes = believed[remote.Name]
		slices.SortFunc(remote.Prefixes, netip.Prefix.Compare)
	}
	inside := append(plan.Prefixes(), in.Prefixes...)
	for i := range plan.Remotes {
		remote := &plan.Remotes[i]
		for _, endpoint := range byCluster[remote.ClusterID] {
			if endpoint.Name != remote.Name {
				continue
			}
			var problems []string
			remote.Addresses, problems = peerAddresses(endpoint, inside)
			plan.Problems = append(plan.Problems, problems...)
		}
	}
	slices.Sort(plan.Problems)
	return plan
}

// twin names an Endpoint that comes from another cluster than the first one, "" when there is none.
func twin(endpoints []v1alpha1.Endpoint) string {
	first := endpoints[0].Spec.ClusterUID
	for _, endpoint := range endpoints[1:] {
		if first != "" && endpoint.Spec.ClusterUID != "" && endpoint.Spec.ClusterUID != first {
			return endpoint.Name
		}
	}
	return ""
}

// fitting reads an Endpoint's prefixes and refuses, before they can stand in anybody's way, those that no cluster could
// have; of two that overlap it keeps the wider.
func fitting(endpoint v1alpha1.Endpoint, in Input) (disjoint []netip.Prefix, problems []string) {
	var prefixes []netip.Prefix
	for _, text := range endpoint.Spec.Prefixes {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			problems = append(problems, fmt.Sprintf("cluster %s: Endpoint %s: %q is no CIDR", endpoint.Spec.ClusterID, endpoint.Name, text))
			continue
		}
		if why := unfit(prefix.Masked(), in); why != "" {
			problems = append(problems, refused(endpoint.Spec.ClusterID, endpoint.Name, prefix.Masked(), why))
			continue
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Compare(b)) })
	for _, prefix := range prefixes {
		if !slices.ContainsFunc(disjoint, prefix.Overlaps) {
			disjoint = append(disjoint, prefix)
		}
	}
	return disjoint, problems
}

func refused(cluster, endpoint string, prefix netip.Prefix, why string) string {
	return fmt.Sprintf("cluster %s: CIDR %s of Endpoint %s %s: refused", cluster, prefix, endpoint, why)
}

// unfit says why no other cluster can have a prefix, "" when one can.
func unfit(prefix netip.Prefix, in Input) string {
	addr := prefix.Addr()
	switch {
	case prefix.Bits() == 0:
		return "is a default route"
	case addr.IsLoopback(), addr.IsLinkLocalUnicast(), addr.IsMulticast(), addr.IsUnspecified(), addr.Is4In6():
		return "is no range for pods or services"
	}
	for _, own := range in.Prefixes {
		if prefix.Overlaps(own) {
			return fmt.Sprintf("overlaps this cluster's %s", own)
		}
	}
	for _, node := range in.Nodes {
		if prefix.Contains(node) {
			return fmt.Sprintf("covers this cluster's node address %s", node)
		}
	}
	return ""
}

// rivals names the claims of other clusters that a claim does not stand up to, "" when it does to all.
func rivals(c claim, claims []claim) string {
	var rivals []string
	for _, other := range claims {
		if other.cluster != c.cluster && other.prefix.Overlaps(c.prefix) && other.since <= c.since {
			rivals = append(rivals, fmt.Sprintf("overlaps %s of cluster %s", other.prefix, other.cluster))
		}
	}
	slices.Sort(rivals)
	return strings.Join(rivals, ", ")
}

func peerAddresses(endpoint v1alpha1.Endpoint, inside []netip.Prefix) (addresses []netip.AddrPort, problems []string) {
	name := fmt.Sprintf("cluster %s: Endpoint %s", endpoint.Spec.ClusterID, endpoint.Name)
	if endpoint.Spec.Port < 1 || endpoint.Spec.Port > 65535 {
		return nil, []string{fmt.Sprintf("%s: %d is no port", name, endpoint.Spec.Port)}
	}
	for _, text := range endpoint.Spec.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.Is4In6() || addr.Zone() != "" {
			problems = append(problems, fmt.Sprintf("%s: %q is no peer address", name, text))
			continue
		}
		if i := slices.IndexFunc(inside, func(p netip.Prefix) bool { return p.Contains(addr) }); i >= 0 {
			problems = append(problems, fmt.Sprintf("%s: peer address %s lies in %s, behind the tunnel: refused", name, addr, inside[i]))
			continue
		}
		addresses = append(addresses, netip.AddrPortFrom(addr, uint16(endpoint.Spec.Port)))
	}
	return addresses, problems
}

// ParsePrefixes reads CIDRs as flags give them. It reports every bad one, and those that overlap, which a cluster's own
// ranges never do.
func ParsePrefixes(texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%q is no CIDR", text)
		}
		if prefix != prefix.Masked() {
			return nil, fmt.Errorf("%s has bits set beyond its length; want %s", prefix, prefix.Masked())
		}
		for _, other := range prefixes {
			if prefix.Overlaps(other) {
				return nil, fmt.Errorf("%s overlaps %s", prefix, other)
			}
		}
		prefixes = append(prefixes, prefix)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, nil
}

// WireGuardLink is the name of the wireguard driver's device. The gateway makes it; the route agent of the same node
// routes into it. (Prefix "fastnet-": every device of ours.)
const WireGuardLink = "fastnet-wg"
