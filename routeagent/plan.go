package routeagent

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/netstate"
)

// The way of a packet from pod A (10.8.1.5, on a worker of c1) to pod B (10.9.1.7, on a worker of c2), and the places
// where this package has a hand in it:
//
//	 worker of c1                     gateway of c1                  gateway of c2        worker of c2
//	+---------------------------+   +--------------------------+   +----------------+   +-----------+
//	| A -> clusterset IP        |   |                          |   |                |   |           |
//	|   nat PREROUTING:         |   |                          |   |                |   |           |
//	|   kube-proxy makes it B   |   |                          |   |                |   |           |
//	|   rule 900, table 64087:  |   | rule 900, table 64087:   |   | main table:    |   |           |
//	|   10.9.0.0/16 via gateway |   | 10.9.0.0/16              |   | the CNI's      |   |           |
//	|   (1) eth0, or            |   |   dev fastnet-wXXXXXX    |   | route to B     |   |           |
//	|   (2) fastnet-vx          |   | mangle FASTNET-FORWARD:  |   |                |   |           |
//	|   nat FASTNET-POSTROUTING:|   |   clamp the MSS          |   |                |   |           |
//	|   ACCEPT: A stays A       |   | nat: ACCEPT              |   | nat: ACCEPT    |   |           |
//	+-----------|---------------+   +---^------------|---------+   +---^-------|----+   +--^--------+
//	            |  node network         |            |   WireGuard     |       | node      |
//	            +-----------------------+            +-----------------+       +-----------+ -> B
//
//	(1) direct: the gateway's address is on a segment of ours
//	(2) tunnel: VXLAN to the gateway's address
//
// The answer takes the same way back through c2's gateway to c1's, and from there the CNI's own route to A: that every
// node reaches every pod is what Kubernetes asks of a CNI. A client in a worker's host network has no pod address; it
// gets that of the CNI's bridge on its node (SNAT in FASTNET-POSTROUTING), so that its answers find back the same way.
//
// Behind every route stands a blackhole: while the gateway's device is away, or no gateway is known, packets for other
// clusters are dropped here and never follow the default route into a network that must not see them.
const (
	// Table of our routes. 64087 is 0xFA57, "fast"; above 255, where distributions name their own, and away from those
	// of Cilium (200 to 2005), Submariner (149, 150), Tailscale (52) and AWS's CNI (1 up, by device number).
	Table = 64087
	// Protocol (rtm_protocol) marks our routes and rules. 250 is 0xFA; iproute2's rt_protos stops at 192.
	Protocol = 250
	// RulePriority: the table holds remote prefixes only, so it may come early; and it must come before rules that send
	// all of a pod's packets elsewhere (AWS's CNI: 1536, Tailscale: 5210). Cilium's proxy rules (9 to 111) stay before.
	RulePriority = 900
	// RouteMetric and BlackholeMetric: the lower one is taken. Room between them for paths of second choice.
	RouteMetric     = 50
	BlackholeMetric = 4096

	// ChainPrefix begins the names of our chains.
	ChainPrefix = "FASTNET-"
	chainNAT    = ChainPrefix + "POSTROUTING"
	chainMangle = ChainPrefix + "MSS"
	chainFilter = ChainPrefix + "FORWARD"

	// LinkVXLAN is the device between the nodes of a cluster.
	LinkVXLAN = "fastnet-vx"
	// VXLANID is the table's number again: away from flannel's 1 and Calico's 4096.
	VXLANID = Table
	// VXLANPort: not 4789 (the standard's, Calico) nor 8472 (the kernel's old one, flannel, Cilium), whose devices would
	// not let another one listen, nor 4800 (Submariner).
	VXLANPort = 4801
	// anchor is the one IPv4 address of the VXLAN device, the same on every node and never in a packet: on a device without
	// any, the kernel's reverse path filter is strict even where it is set to loose. 250.87 is 0xFA57 once more.
	anchor = "169.254.250.87/32"
	// What VXLAN adds: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14.
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
)

// Scope is what this daemon owns in the kernel.
var Scope = netstate.Scope{LinkPrefix: LinkVXLAN, Table: Table, Protocol: Protocol, ChainPrefix: ChainPrefix}

// Mode says how packets get from a node to the gateway.
type Mode string

// The modes. Auto is direct where the gateway's address lies on a segment of this node, else tunnel, one family at a
// time.
const (
	ModeAuto   Mode = "auto"
	ModeDirect Mode = "direct"
	ModeTunnel Mode = "tunnel"
)

// Desired is what a node should have.
type Desired struct {
	State netstate.State
	// Problems that keep remote prefixes from being reached, in words, sorted.
	Problems []string
}

// Plan is the whole decision of the route agent: from what is known to what the kernel should hold.
func Plan(s Snapshot) Desired {
	p := planner{Snapshot: s, cables: cables.Decide(cables.Input{
		ClusterID: s.ClusterID, Prefixes: s.Prefixes, Nodes: s.nodeAddresses(), Endpoints: s.Endpoints,
	})}
	p.remote = p.cables.Prefixes()
	p.problems = p.cables.Problems
	if len(p.remote) > 0 {
		p.rules()
		p.routes()
		p.chains()
		p.sysctls()
		p.checkForwarding()
	}
	slices.Sort(p.problems)
	return Desired{State: p.state, Problems: slices.Compact(p.problems)}
}

type planner struct {
	Snapshot
	cables   cables.Plan
	remote   []netip.Prefix
	state    netstate.State
	problems []string
	tunnels  bool // some path of this node goes through the VXLAN device
}

func (p *planner) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

// carries: this node is the gateway that carries.
func (p *planner) carries() bool { return p.carrier() == p.Node }

// carrier is the node of the gateway that carries, the one with the lowest Endpoint name; "" while there is none.
func (p *planner) carrier() string {
	if len(p.cables.Locals) == 0 {
		return ""
	}
	return p.cables.Locals[0].Node
}

func (p *planner) rules() {
	for _, v6 := range p.families() {
		p.state.Rules = append(p.state.Rules, netstate.Rule{IPv6: v6, Priority: RulePriority})
	}
}

// families of the remote prefixes, IPv4 first.
func (p *planner) families() (families []bool) {
	for _, v6 := range []bool{false, true} {
		if slices.ContainsFunc(p.remote, func(r netip.Prefix) bool { return r.Addr().Is6() == v6 }) {
			families = append(families, v6)
		}
	}
	return families
}

func (p *planner) routes() {
	path := p.path()
	if p.needVXLAN() {
		p.device()
	}
	for _, cluster := range p.cables.Clusters {
		for _, prefix := range cluster.Prefixes {
			p.state.Routes = append(p.state.Routes, netstate.Route{Dst: prefix, Blackhole: true, Metric: BlackholeMetric})
			if hop := path(cluster, prefix.Addr().Is6()); hop.dev != "" {
				p.state.Routes = append(p.state.Routes, netstate.Route{Dst: prefix, Via: hop.via, Dev: hop.dev, Metric: RouteMetric})
			}
		}
	}
}

type hop struct {
	via netip.Addr
	dev string // "": none
}

// path is the next hop towards the prefixes of a cluster, of a family.
func (p *planner) path() func(cluster cables.Cluster, v6 bool) hop {
	nowhere := func(cables.Cluster, bool) hop { return hop{} }
	if p.carrier() == "" {
		p.problem("no gateway in this cluster yet: packets for other clusters are dropped")
		return nowhere
	}
	if p.carries() {
		devices := map[string]string{}
		for _, cluster := range p.cables.Clusters {
			first := cluster.Gateways[0]
			if p.link(first.Link) == nil {
				p.problem("link %s to %s is not there: is the gateway running on this node?", first.Link, first.Name)
				continue
			}
			devices[cluster.ID] = first.Link
		}
		return func(cluster cables.Cluster, _ bool) hop { return hop{dev: devices[cluster.ID]} }
	}
	gateway := p.node(p.carrier())
	if gateway == nil {
		p.problem("gateway node %s is no node of this cluster: packets for other clusters are dropped", p.carrier())
		return nowhere
	}
	hops := map[bool]hop{}
	for _, v6 := range p.families() {
		via, dev := p.onLink(*gateway, v6)
		switch {
		case p.Mode != ModeTunnel && dev != "":
			hops[v6] = hop{via: via, dev: dev}
		case p.Mode == ModeDirect:
			p.problem("gateway node %s has no %s address on a segment of this node, and the mode is direct", gateway.Name, familyName(v6))
		case p.tunnelTo(*gateway):
			hops[v6] = hop{via: tunnelAddr(gateway.Name), dev: LinkVXLAN}
		}
	}
	return func(_ cables.Cluster, v6 bool) hop { return hops[v6] }
}

// tunnelTo adds the entries for a gateway node behind the VXLAN device, once, and says whether it can be reached so.
func (p *planner) tunnelTo(gateway Node) bool {
	local, _ := p.underlay()
	i := slices.IndexFunc(gateway.Addresses, func(a netip.Addr) bool { return local.IsValid() && a.Is6() == local.Is6() })
	switch {
	case !p.IPv6:
		p.problem("no path to gateway node %s: the VXLAN device needs IPv6 in the kernel, if only for its link-local addresses", gateway.Name)
		return false
	case !local.IsValid():
		p.problem("no path to gateway node %s: none of this node's addresses is on a link", gateway.Name)
		return false
	case i < 0:
		p.problem("no path to gateway node %s: it has no %s address, which this node's VXLAN device uses", gateway.Name, familyName(local.Is6()))
		return false
	}
	if !p.tunnels {
		p.tunnels = true
		mac := tunnelMAC(gateway.Name)
		p.state.Neighbours = append(p.state.Neighbours, netstate.Neighbour{Link: LinkVXLAN, Addr: tunnelAddr(gateway.Name), MAC: mac})
		p.state.Forwarding = append(p.state.Forwarding, netstate.Forwarding{Link: LinkVXLAN, MAC: mac, Dst: gateway.Addresses[i]})
	}
	return true
}

// needVXLAN: this node sends into the device, or, as the gateway that carries, some node may send to it. The gateway
// asks the very questions that the others ask about it, of every node.
func (p *planner) needVXLAN() bool {
	switch {
	case p.Mode == ModeDirect || !p.IPv6:
		return false
	case p.tunnels:
		return true
	case !p.carries():
		return false
	case p.Mode == ModeTunnel:
		return len(p.Nodes) > 1
	}
	self := p.node(p.Node)
	for _, node := range p.Nodes {
		for _, v6 := range p.families() {
			if _, dev := p.onLink(node, v6); node.Name != p.Node && (dev == "" || self == nil || !self.has(v6)) {
				return true
			}
		}
	}
	return false
}

// device is this node's end of the VXLAN. Its link-local address and MAC are made from the node's name: 64 and 46 bits
// of a hash. Only those of the gateway that carries are ever written down elsewhere, one at a time, so even two nodes
// with one hash would not disturb each other. The gateway never sends through it: answers take the CNI's way.
func (p *planner) device() {
	local, link := p.underlay()
	if !local.IsValid() {
		p.problem("none of this node's addresses is on a link: no VXLAN device")
		return
	}
	overhead := vxlanOverhead4
	if local.Is6() {
		overhead = vxlanOverhead6
	}
	p.state.Links = append(p.state.Links, netstate.Link{
		Name: LinkVXLAN, Kind: netstate.KindVXLAN, MTU: link.MTU - overhead, MAC: tunnelMAC(p.Node),
		Addresses: []netip.Prefix{netip.MustParsePrefix(anchor), netip.PrefixFrom(tunnelAddr(p.Node), 64)},
		VXLAN:     netstate.VXLAN{ID: VXLANID, Port: VXLANPort, Local: local},
	})
}

// underlay is the first of this node's addresses that a link has.
func (p *planner) underlay() (netip.Addr, Link) {
	if self := p.node(p.Node); self != nil {
		for _, addr := range self.Addresses {
			for _, link := range p.Links {
				if slices.ContainsFunc(link.Addresses, func(a netip.Prefix) bool { return a.Addr() == addr }) {
					return addr, link
				}
			}
		}
	}
	return netip.Addr{}, Link{}
}

// onLink finds an address of the node, of a family, on a segment of ours.
func (p *planner) onLink(node Node, v6 bool) (netip.Addr, string) {
	for _, addr := range node.Addresses {
		for _, link := range p.Links {
			for _, prefix := range link.Addresses {
				if addr.Is6() == v6 && prefix.Contains(addr) && prefix.Addr() != addr && !strings.HasPrefix(link.Name, "fastnet-") {
					return addr, link.Name
				}
			}
		}
	}
	return netip.Addr{}, ""
}

// chains keep addresses as they are, make TCP segments fit, and let our packets through where the rest is closed. They
// are written in the very form that iptables prints, so that they can be compared.
func (p *planner) chains() {
	for _, v6 := range p.families() {
		var nat, filter []string
		for _, local := range p.Prefixes {
			for _, remote := range p.remote {
				if local.Addr().Is6() != v6 || remote.Addr().Is6() != v6 {
					continue
				}
				// ACCEPT ends nat POSTROUTING: neither kube-proxy's nor the CNI's masquerading comes to its turn. Both
				// ways: seen from kube-proxy, a client in another cluster is as foreign as one on the internet.
				nat = append(nat, fmt.Sprintf("-s %s -d %s -j ACCEPT", local, remote), fmt.Sprintf("-s %s -d %s -j ACCEPT", remote, local))
				filter = append(filter, fmt.Sprintf("-s %s -d %s -j ACCEPT", local, remote), fmt.Sprintf("-s %s -d %s -j ACCEPT", remote, local))
			}
		}
		podAddr := p.podAddress(v6)
		var mss []string
		for _, remote := range p.remote {
			if remote.Addr().Is6() != v6 {
				continue
			}
			if podAddr.IsValid() {
				nat = append(nat, fmt.Sprintf("-d %s -m addrtype --src-type LOCAL -j SNAT --to-source %s", remote, podAddr))
			}
			// The clamp takes the smaller of the routes both ways, so either direction of a connection that passes
			// here gets it. iptables leaves a smaller value as it is.
			for _, way := range []string{"-s", "-d"} {
				mss = append(mss, fmt.Sprintf("%s %s -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", way, remote))
			}
		}
		if !podAddr.IsValid() {
			p.problem("no address of this node lies in the cluster's %s pod CIDR: clients in its host network cannot reach other clusters", familyName(v6))
		}
		p.state.Chains = append(p.state.Chains,
			netstate.Chain{IPv6: v6, Table: "nat", Name: chainNAT, Rules: nat},
			netstate.Chain{IPv6: v6, Table: "mangle", Name: chainMangle, Rules: mss},
			netstate.Chain{IPv6: v6, Table: "filter", Name: chainFilter, Rules: filter})
		p.state.Jumps = append(p.state.Jumps,
			netstate.Jump{IPv6: v6, Table: "nat", Builtin: "POSTROUTING", Chain: chainNAT},
			netstate.Jump{IPv6: v6, Table: "mangle", Builtin: "FORWARD", Chain: chainMangle},
			// Last: a network policy that says no has said so by then. We only stand in for a policy of DROP.
			netstate.Jump{IPv6: v6, Table: "filter", Builtin: "FORWARD", Chain: chainFilter, Last: true})
	}
}

// podAddress is this node's own address among the pods', as the CNI gave it: that of its bridge or its overlay device.
// The node's own pod CIDR, where its Node object has one, is looked into first; kube-proxy's IPVS device holds service
// addresses and is left out.
func (p *planner) podAddress(v6 bool) netip.Addr {
	var candidates [][]netip.Prefix
	if self := p.node(p.Node); self != nil {
		candidates = append(candidates, self.PodPrefixes)
	}
	for _, prefixes := range append(candidates, p.Prefixes) {
		for _, link := range p.Links {
			for _, address := range link.Addresses {
				inside := func(prefix netip.Prefix) bool { return prefix.Contains(address.Addr()) }
				if address.Addr().Is6() == v6 && link.Kind != "dummy" && slices.ContainsFunc(prefixes, inside) {
					return address.Addr()
				}
			}
		}
	}
	return netip.Addr{}
}

// sysctls loosen the reverse path filter where a packet may come in by another device than an answer to it would take,
// and only where it is strict now:
//   - on the carrying gateway, the VXLAN device: a worker's packet comes in there, the answer takes the CNI's way;
//   - elsewhere, an overlay device of the CNI's: the gateway's packets for pods come in there, while the answers go to
//     the gateway directly or through our VXLAN device; with the latter, the node's own network too.
func (p *planner) sysctls() {
	underlay := func(link Link) bool {
		self := p.node(p.Node)
		return self != nil && slices.ContainsFunc(link.Addresses, func(a netip.Prefix) bool { return slices.Contains(self.Addresses, a.Addr()) })
	}
	for _, link := range p.Links {
		var wanted bool
		switch {
		case link.Name == LinkVXLAN:
			wanted = p.carries() && len(p.state.Links) > 0
		case p.carries() || strings.HasPrefix(link.Name, "fastnet-"):
		case slices.Contains([]string{"vxlan", "geneve", "ipip", "ip6tnl", "sit", "gre", "wireguard", "tuntap"}, link.Kind):
			wanted = true
		default:
			wanted = p.tunnels && underlay(link)
		}
		// The kernel takes the higher of "all" and the link's own. What we have loosened before stays in the plan: it
		// is the record of it (loosened) that tells it from what was loose without us.
		if wanted && (link.Loosened || max(link.RPFilter, p.RPFilterAll) == 1) {
			p.state.Sysctls = append(p.state.Sysctls, netstate.Sysctl{Link: link.Name, RPFilter: 2})
		}
	}
}

func (p *planner) checkForwarding() {
	for _, v6 := range p.families() {
		if (v6 && !p.ForwardIPv6) || (!v6 && !p.ForwardIPv4) {
			p.problem("the kernel of this node does not forward %s: the CNI should have switched that on", familyName(v6))
		}
	}
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// tunnelAddr is the link-local address of a node's VXLAN device.
func tunnelAddr(node string) netip.Addr {
	sum := sha256.Sum256([]byte("fastnet vxlan " + node))
	addr := [16]byte{0: 0xfe, 1: 0x80}
	copy(addr[8:], sum[:8])
	return netip.AddrFrom16(addr)
}

// tunnelMAC is the MAC of a node's VXLAN device: locally administered, no group.
func tunnelMAC(node string) string {
	sum := sha256.Sum256([]byte("fastnet vxlan " + node))
	mac := net.HardwareAddr(sum[8:14])
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}
