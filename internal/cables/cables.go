// Package cables holds the decisions about cables that more than one daemon must take alike: which gateways there are,
// which of the prefixes that other clusters claim are believed, and which device of a gateway node leads where. The
// gateway makes its devices and their allowed addresses from the answer, every node's route agent its routes; both see
// the same Endpoints in their own cluster, so both come to the same answer without talking to each other.
//
// Every gateway carries. A WireGuard device gives a prefix to one peer, and takes packets with a source in it from that
// peer alone; so a gateway has one device for each gateway of other clusters, and all prefixes of that cluster lie behind
// each of its gateways:
//
//	              cluster c1                                     cluster c2
//	          +----------------+  fastnet-wXXXXXX (to c2.a)  +----------------+
//	nodes of  | gateway c1.x   |=============================| gateway c2.a   |
//	c1 ------>|                |--.                       .--|                |
//	          +----------------+   \                     /   +----------------+
//	          +----------------+    `-- (to c2.b) ---.  /    +----------------+
//	          | gateway c1.y   |------ (to c2.a) ------'     | gateway c2.b   |
//	          |                |=============================|                |
//	          +----------------+         (to c2.b)           +----------------+
//
// Who sends chooses the path: a node among the gateways of its cluster, a gateway among its devices to the cluster. Both
// choose by what they measure, and that is no part of this package.
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
	// Node that decides. Drivers are those of its gateway, the preferred first; none on a node that is no gateway, which makes
	// no cable and so has no devices to know.
	Node    string
	Drivers []string
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
	// Locals are the gateways of this cluster, sorted by Endpoint name.
	Locals []Local
	// Clusters are the others, sorted by ID. One with no believed prefix or no usable gateway is listed all the same.
	Clusters []Cluster
	// Problems in words, sorted: what was refused, and whose fault it is.
	Problems []string
	// NoCommonDriver has those of the problems that say that this gateway and one of another cluster have no driver in common.
	NoCommonDriver []string
}

// Local is a gateway of this cluster.
type Local struct {
	// Name of its Endpoint.
	Name, Node string
	// ProbeKey by which nodes know it, see package nodeprobe.
	ProbeKey string
}

// Cluster is another cluster of the clusterset.
type Cluster struct {
	ID string
	// Prefixes that are believed, of all its Endpoints. They lie behind each of its gateways. Disjoint among all clusters,
	// sorted.
	Prefixes []netip.Prefix
	// Gateways, sorted by Endpoint name.
	Gateways []Remote
}

// Remote is one gateway of another cluster.
type Remote struct {
	// Name of its Endpoint.
	Name, ClusterID, Node string
	// Driver that this node and it meet on, "" where there is none; Link and Via are then empty too.
	Driver string
	// PublicKey in the driver's form; DriverPort is the driver's own port, 0 where it has none.
	PublicKey  string
	DriverPort uint16
	// Addresses to try, the preferred first.
	Addresses []netip.Addr
	// Ports at which it awaits other gateways, by their Endpoints' names. One that is not here has to wait.
	Ports map[string]uint16
	// Link is the device on this node that leads to it; "" where another Endpoint has the name.
	Link string
	// Via is the next hop in that device; invalid where the device leads to nobody else anyway.
	Via netip.Addr
}

// Prefixes of all other clusters, sorted.
func (p Plan) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, cluster := range p.Clusters {
		all = append(all, cluster.Prefixes...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// Local is the gateway on a node of this cluster, nil where there is none.
func (p Plan) Local(node string) *Local {
	if i := slices.IndexFunc(p.Locals, func(l Local) bool { return l.Node == node }); i >= 0 {
		return &p.Locals[i]
	}
	return nil
}

// claim is a prefix that a cluster says is its own.
type claim struct {
	prefix            netip.Prefix
	cluster, endpoint string
	since             int64 // Unix seconds of the first Endpoint of the cluster, as this cluster's mirror has it
}

// Decide is the rule. Of the prefixes that the Endpoints of a cluster claim these are refused:
//   - what is no pod or service range: a default route, loopback, link-local and multicast addresses;
//   - what overlaps this cluster's prefixes or covers one of its nodes;
//   - what overlaps another cluster's claim that is here for longer, or just as long (then neither has it). The age is
//     that of this cluster's own mirror of the Endpoint, so no other cluster can make itself older than it is.
//
// A peer address inside any believed prefix is refused too: the tunnel's packets would enter the tunnel. Of two Endpoints
// with one link name the older has it.
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
	for _, own := range byCluster[in.ClusterID] {
		plan.Locals = append(plan.Locals, Local{Name: own.Name, Node: own.Spec.Node, ProbeKey: own.Spec.ProbeKey})
	}
	delete(byCluster, in.ClusterID)

	var claims []claim
	for id, endpoints := range byCluster {
		if other := twin(endpoints); other != "" {
			plan.Problems = append(plan.Problems, fmt.Sprintf("cluster %s: Endpoints %s and %s come from two clusters with one ID: both refused",
				id, endpoints[0].Name, other))
			delete(byCluster, id)
			continue
		}
		since := endpoints[0].CreationTimestamp.Unix()
		for _, endpoint := range endpoints {
			since = min(since, endpoint.CreationTimestamp.Unix())
		}
		own, problems := fitting(endpoints, in)
		plan.Problems = append(plan.Problems, problems...)
		for _, claim := range own {
			claim.since = since
			claims = append(claims, claim)
		}
	}
	believed := map[string][]netip.Prefix{}
	for _, c := range claims {
		if rivals := rivals(c, claims); rivals != "" {
			plan.Problems = append(plan.Problems, refused(c.cluster, c.endpoint, c.prefix, rivals))
			continue
		}
		believed[c.cluster] = append(believed[c.cluster], c.prefix)
	}
	inside := slices.Clone(in.Prefixes)
	for _, prefixes := range believed {
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		inside = append(inside, prefixes...)
	}
	owners, problems := owners(byCluster)
	plan.Problems = append(plan.Problems, problems...)
	drivers := in.drivers()
	for id, endpoints := range byCluster {
		cluster := Cluster{ID: id, Prefixes: believed[id]}
		for _, endpoint := range endpoints {
			remote := Remote{
				Name: endpoint.Name, ClusterID: id, Node: endpoint.Spec.Node,
			}
			var problems []string
			if len(drivers) > 0 {
				if problem := remote.meet(in.ClusterID, drivers, endpoint.Spec.Drivers, owners[endpoint.Name]); problem != "" {
					plan.NoCommonDriver = append(plan.NoCommonDriver, problem)
				}
			}
			remote.Addresses, problems = peerAddresses(endpoint, inside)
			plan.Problems = append(plan.Problems, problems...)
			remote.Ports, problems = ports(endpoint)
			plan.Problems = append(plan.Problems, problems...)
			cluster.Gateways = append(cluster.Gateways, remote)
		}
		plan.Clusters = append(plan.Clusters, cluster)
	}
	slices.SortFunc(plan.Clusters, func(a, b Cluster) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(plan.NoCommonDriver)
	plan.Problems = append(plan.Problems, plan.NoCommonDriver...)
	slices.Sort(plan.Problems)
	return plan
}

// owners says of every Endpoint of other clusters whether the devices named after it are its own.
func owners(byCluster map[string][]v1alpha1.Endpoint) (owners map[string]bool, problems []string) {
	var all []v1alpha1.Endpoint
	for _, endpoints := range byCluster {
		all = append(all, endpoints...)
	}
	slices.SortFunc(all, func(a, b v1alpha1.Endpoint) int {
		return cmp.Or(cmp.Compare(a.CreationTimestamp.Unix(), b.CreationTimestamp.Unix()), cmp.Compare(a.Name, b.Name))
	})
	owners = map[string]bool{}
	byName := map[string]string{}
	for _, endpoint := range all {
		name := linkHash(endpoint.Name)
		if owner := byName[name]; owner != "" {
			problems = append(problems, fmt.Sprintf("cluster %s: Endpoint %s would have the link name of %s, which is older: no cable, give its node another name",
				endpoint.Spec.ClusterID, endpoint.Name, owner))
			continue
		}
		byName[name], owners[endpoint.Name] = endpoint.Name, true
	}
	return owners, problems
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

// fitting reads the prefixes of a cluster's Endpoints and refuses, before they can stand in anybody's way, those that no
// cluster could have; of two that overlap it keeps the wider.
func fitting(endpoints []v1alpha1.Endpoint, in Input) (disjoint []claim, problems []string) {
	var claims []claim
	for _, endpoint := range endpoints {
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
			claims = append(claims, claim{prefix: prefix.Masked(), cluster: endpoint.Spec.ClusterID, endpoint: endpoint.Name})
		}
	}
	// Stable: of one prefix in several Endpoints the first Endpoint is named.
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), a.prefix.Compare(b.prefix))
	})
	for _, c := range claims {
		if !slices.ContainsFunc(disjoint, func(wider claim) bool { return wider.prefix.Overlaps(c.prefix) }) {
			disjoint = append(disjoint, c)
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
	case prefix.Overlaps(Inner()):
		return "overlaps " + Inner().String() + ", which gateways use among themselves"
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

func peerAddresses(endpoint v1alpha1.Endpoint, inside []netip.Prefix) (addresses []netip.Addr, problems []string) {
	name := fmt.Sprintf("cluster %s: Endpoint %s", endpoint.Spec.ClusterID, endpoint.Name)
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
		addresses = append(addresses, addr)
	}
	return addresses, problems
}

func ports(endpoint v1alpha1.Endpoint) (ports map[string]uint16, problems []string) {
	for peer, port := range endpoint.Spec.Ports {
		if port < 1 || port > 65535 {
			problems = append(problems, fmt.Sprintf("cluster %s: Endpoint %s: %d, for %s, is no port", endpoint.Spec.ClusterID, endpoint.Name, port, peer))
			continue
		}
		if ports == nil {
			ports = map[string]uint16{}
		}
		ports[peer] = uint16(port)
	}
	return ports, problems
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
