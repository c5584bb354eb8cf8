package routeagent

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
	"github.com/fastnet-io/fastnet/internal/routeview"
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
//	|   10.9.0.0/16 to a group: |   | 10.9.0.0/16 to a group:  |   | the CNI's      |   |           |
//	|   gateways of c1 that live|   | cables to c2 that live,  |   | route to B     |   |           |
//	|   (1) eth0, or            |   | dev fastnet-wXXXXXX      |   |                |   |           |
//	|   (2) fastnet-vx          |   | mangle FASTNET-MSS:      |   |                |   |           |
//	|   nat FASTNET-POSTROUTING:|   |   clamp the MSS          |   |                |   |           |
//	|   ACCEPT: A stays A       |   | nat: ACCEPT              |   | nat: ACCEPT    |   |           |
//	+-----------|---------------+   +---^------------|---------+   +---^-------|----+   +--^--------+
//	            |  node network         |            |   WireGuard     |       | node      |
//	            +-----------------------+            +-----------------+       +-----------+ -> B
//
//	(1) direct: the gateway's address is on a segment of ours
//	(2) tunnel: VXLAN to the gateway's address
//
// The answer goes by some gateway of c2 to some gateway of c1, each chosen by its sender, and from there by the CNI's own
// route to A: that every node reaches every pod is what Kubernetes asks of a CNI. A client in a worker's host network has no pod address; it
// gets that of the CNI's bridge on its node, or that it will have (SNAT in FASTNET-POSTROUTING), so that its answers find back the same way.
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
	chainAsym   = ChainPrefix + "INVALID"

	// Buckets of a group: with two members each flow goes to one of 64 places of either, with five members shares differ by
	// 4 %. A power of two, and small enough that 100 clusters cost the kernel a few hundred kilobytes.
	Buckets = 128
	// BucketIdle: a bucket over its member's share, as all are when a gateway comes back, is handed on when no packet has
	// used it for so long. A flow that pauses that long cannot be reordered by the move; one that does not pause stays.
	BucketIdle = time.Second

	// LinkVXLAN is the device between the nodes of a cluster.
	LinkVXLAN = "fastnet-vx"
	// VXLANID is the table's number again: away from flannel's 1 and Calico's 4096.
	VXLANID = Table
	// VXLANPort: not 4789 (the standard's, Calico) nor 8472 (the kernel's old one, flannel, Cilium), whose devices would
	// not let another one listen, nor 4800 (Submariner).
	VXLANPort = 4801
	// proofTime is what a proof may take, from when the gateway is reached by packets in this node's own name: those of the proof need
	// the gateway's MAC address, and a second is what liveness takes to call a path up again.
	proofTime = 1500 * time.Millisecond

	// hold is how long a gateway's node stays with cables of its own that are to go, from the latest news on: they carry packets still, and what
	// is known of the other gateway may be from before it heard the same, or known here before it is there. Two gateways that send packets to
	// each other lose them.
	hold = 300 * time.Millisecond

	// What VXLAN adds: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14.
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
)

// Scope is what this daemon owns in the kernel.
var Scope = netstate.Scope{LinkPrefix: LinkVXLAN, Table: Table, Protocol: Protocol, ChainPrefix: ChainPrefix}

// Mode says how packets get from a node to the gateway.
type Mode string

// The modes. Auto is direct where the gateway's address lies on a segment of this node, and a packet that looks like traffic has proven
// that the segment carries such; else tunnel. One family at a time.
const (
	ModeAuto   Mode = "auto"
	ModeDirect Mode = "direct"
	ModeTunnel Mode = "tunnel"
)

// Desired is what a node should have.
type Desired struct {
	State netstate.State
	// Targets to probe, and how.
	Targets map[nodeprobe.Target]nodeprobe.Ask
	// Problems that keep remote prefixes from being reached, in words, sorted.
	Problems []string
	// Ways that there are, for those who want to know; nothing is made of them.
	Ways []routeview.Way
	// Again is when time alone will change the plan, zero where it will not.
	Again time.Time
}

// inUse is what will be in use when this has been applied.
func (d Desired) inUse() map[netip.Prefix][]netstate.Nexthop {
	members := map[string][]netstate.Nexthop{}
	for _, group := range d.State.Groups {
		members[group.Name] = group.Members
	}
	hops := map[netip.Prefix][]netstate.Nexthop{}
	for _, route := range d.State.Routes {
		if route.Group != "" {
			hops[route.Dst] = members[route.Group]
		}
	}
	return hops
}

// Plan is the whole decision of the route agent: from what is known to what the kernel should hold. A failover is the
// same decision with another health of the paths, of which only the members of groups are then applied.
func Plan(s Snapshot) Desired {
	p := planner{Snapshot: s, cables: cables.Decide(cables.Input{
		ClusterID: s.ClusterID, Node: s.Node, Prefixes: s.Prefixes, Nodes: s.nodeAddresses(), Endpoints: s.Endpoints,
	}), targets: map[nodeprobe.Target]nodeprobe.Ask{}}
	p.remote = p.cables.Prefixes()
	p.problems = p.cables.Problems
	if len(p.remote) > 0 {
		p.own = p.cables.Local(p.Node)
		p.rules()
		p.routes()
		p.tunnel()
		p.chains()
		p.sysctls()
		p.checkForwarding()
	}
	slices.Sort(p.problems)
	return Desired{State: p.state, Targets: p.targets, Problems: slices.Compact(p.problems), Ways: p.seen, Again: p.again}
}

type planner struct {
	Snapshot
	cables   cables.Plan
	own      *cables.Local // the gateway on this node, nil where there is none
	remote   []netip.Prefix
	state    netstate.State
	targets  map[nodeprobe.Target]nodeprobe.Ask
	problems []string
	seen     []routeview.Way
	again    time.Time
	first    map[segment]nodeprobe.Target
	tunnels  map[string]bool // nodes at the other ends of our VXLAN device
	sends    bool            // some path of this node goes through it
	ends     map[string]tunnelEnd
}

func (p *planner) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
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
	ways := map[bool][]way{}
	for _, v6 := range p.families() {
		ways[v6] = p.ways(v6)
		if addr := p.returnAddress(v6); addr != p.podAddress(v6) {
			// What comes late, when connection tracking has forgotten whose answer it is, would take the default route.
			p.state.Routes = append(p.state.Routes, netstate.Route{Dst: netip.PrefixFrom(addr, addr.BitLen()), Blackhole: true, Metric: BlackholeMetric})
		}
	}
	if len(p.cables.Locals) == 0 {
		p.problem("no gateway in this cluster yet: packets for other clusters are dropped")
	}
	for _, cluster := range p.cables.Clusters {
		for _, v6 := range []bool{false, true} {
			prefixes := slices.DeleteFunc(slices.Clone(cluster.Prefixes), func(prefix netip.Prefix) bool { return prefix.Addr().Is6() != v6 })
			if len(prefixes) == 0 {
				continue
			}
			group := netstate.Group{Name: cluster.ID + "/" + strings.ToLower(familyName(v6)), Buckets: Buckets, Idle: BucketIdle}
			inUse := p.inUse(prefixes)
			all := p.candidates(cluster, ways[v6], v6, inUse)
			for _, c := range all {
				group.Candidates = append(group.Candidates, c.hop)
			}
			group.Members = p.members(cluster, all, inUse)
			p.show(cluster, v6, all, group.Members)
			if len(group.Members) > 0 {
				p.state.Groups = append(p.state.Groups, group)
			}
			for _, prefix := range prefixes {
				p.state.Routes = append(p.state.Routes, netstate.Route{Dst: prefix, Blackhole: true, Metric: BlackholeMetric})
				if len(group.Members) > 0 {
					p.state.Routes = append(p.state.Routes, netstate.Route{Dst: prefix, Group: group.Name, Metric: RouteMetric})
				}
			}
		}
	}
}

// way from this node to a gateway of its cluster.
type way struct {
	gateway cables.Local
	hop     netstate.Nexthop // none on the gateway's own node, where the devices of its cables take its place
	health  nodeprobe.Health // of the path
}

// ways to all gateways of the cluster, for a family, and the probes that go with them.
func (p *planner) ways(v6 bool) (ways []way) {
	for _, gateway := range p.cables.Locals {
		w := way{gateway: gateway}
		node := p.node(gateway.Node)
		target := nodeprobe.Target{Gateway: gateway.Name, PublicKey: gateway.ProbeKey}
		switch {
		case node == nil:
			p.problem("gateway node %s is no node of this cluster", gateway.Node)
			continue
		case gateway.Node == p.Node:
			if len(node.Addresses) > 0 {
				target.Addr = node.Addresses[0]
			}
		default:
			via, dev := p.onLink(*node, v6)
			switch {
			case p.Mode != ModeTunnel && dev != "":
				w.hop = netstate.Nexthop{IPv6: v6, Via: via, Dev: dev}
				target.Addr = via
				if p.Mode == ModeAuto {
					w, target = p.prove(w, target, *node, v6)
				}
			case p.Mode == ModeDirect:
				p.problem("gateway node %s has no %s address on a segment of this node, and the mode is direct", node.Name, familyName(v6))
				continue
			case !p.tunnelTo(*node):
				continue
			default:
				w.hop, target = p.throughTunnel(*node, target)
			}
		}
		w.health = p.probe(target, w.hop)
		p.pace(target, w)
		ways = append(ways, w)
	}
	return ways
}

// probe a path, and say what is known of it. One whose hop is in use counts as up from the start.
func (p *planner) probe(target nodeprobe.Target, hop netstate.Nexthop) nodeprobe.Health {
	if target.Addr.IsValid() {
		ask := p.targets[target]
		ask.Own = hop.Dev == ""
		ask.InUse = ask.InUse || p.uses(hop, false) || p.uses(hop, true)
		p.targets[target] = ask
	}
	return p.Paths[target]
}

// segment is what the paths of both families to a gateway have in common.
type segment struct{ gateway, link string }

// pace: what kills a path to a gateway kills that of the other family through the same link too, nearly always. So one of them is asked all
// the time, the other one seldom, until the first misses an answer: a gateway has all nodes of its cluster to answer.
func (p *planner) pace(target nodeprobe.Target, w way) {
	if p.first == nil {
		p.first = map[segment]nodeprobe.Target{}
	}
	at := segment{gateway: target.Gateway, link: w.hop.Dev}
	first, there := p.first[at]
	if !there {
		p.first[at] = target
	}
	if ask, asked := p.targets[target]; asked && there && first != target {
		ask.Seldom, ask.Beside = true, first
		p.targets[target] = ask
	}
}

// uses says whether a next hop is in use by routes of a family; no hop means any cable of this node's.
func (p *planner) uses(hop netstate.Nexthop, v6 bool) bool {
	for prefix, hops := range p.InUse {
		if prefix.Addr().Is6() == v6 && slices.ContainsFunc(hops, func(is netstate.Nexthop) bool {
			return is == hop || hop.Dev == "" && cables.IsLink(is.Dev)
		}) {
			return true
		}
	}
	return false
}

func (p *planner) throughTunnel(node Node, target nodeprobe.Target) (netstate.Nexthop, nodeprobe.Target) {
	hop := netstate.Nexthop{IPv6: true, Via: p.tunnelEnd(node.Name).addr, Dev: LinkVXLAN}
	target.Addr, target.Link = netip.Addr{}, 0
	if link := p.link(LinkVXLAN); link != nil {
		target.Addr, target.Link = hop.Via, link.Index
	}
	return hop, target
}

// prove that the segment carries packets of pods: it may be one that drops what has an address that it has not given out. The proof is
// asked for all the time, so that it is also the probe of the path. Where the gateway can be reached by this node's own packets and not
// by those, the tunnel is the way; but only once it is proven itself.
func (p *planner) prove(direct way, target nodeprobe.Target, node Node, v6 bool) (way, nodeprobe.Target) {
	proof := target
	proof.Source, proof.Dest = p.podAddress(v6), p.foreign(v6)
	link := p.link(direct.hop.Dev)
	if link == nil || !proof.Source.IsValid() || !proof.Dest.IsValid() {
		return direct, target // nothing to prove it with: the segment has to do
	}
	proof.Link = link.Index
	plain, foreign := p.probe(target, direct.hop), p.probe(proof, direct.hop)
	tunnel := way{gateway: direct.gateway}
	through := target
	tunnel.hop, through = p.throughTunnel(node, target)
	if foreign.State == liveness.Up || foreign.State == liveness.Recovering {
		// The other one is only of interest once the proof is missing.
		ask := p.targets[target]
		ask.Seldom = true
		p.targets[target] = ask
		return direct, proof
	}
	// A gateway from before there were proofs never gives one: as long as the tunnel is no better, the segment has to do.
	best := proof
	if foreign.State == liveness.Unknown {
		best = target
	}
	due := foreign.Since
	if plain.Since.After(due) {
		due = plain.Since
	}
	due = due.Add(proofTime)
	switch {
	case p.uses(tunnel.hop, v6): // since some time, or since before this process began
	case plain.State != liveness.Up:
		return direct, best // neither: that is not the segment's fault
	case p.Now.Before(due):
		p.wait(due)
		return direct, best
	}
	if p.tunnelTo(node) && (p.probe(through, tunnel.hop).State == liveness.Up || p.uses(tunnel.hop, v6)) {
		p.problem("the segment to gateway node %s carries this node's own %s packets, and none of pods: they take the tunnel", node.Name, familyName(v6))
		return tunnel, through
	}
	return direct, best
}

// wait has the plan made again at that time, if nothing else has it made before.
func (p *planner) wait(due time.Time) {
	if p.again.IsZero() || due.Before(p.again) {
		p.again = due
	}
}

// foreign is an address among the first other cluster's of a family.
func (p *planner) foreign(v6 bool) netip.Addr {
	for _, prefix := range p.remote {
		if prefix.Addr().Is6() == v6 {
			return prefix.Addr()
		}
	}
	return netip.Addr{}
}

// candidate is a next hop that may lead to a cluster.
type candidate struct {
	hop netstate.Nexthop
	// own: a cable of this very node's.
	own bool
	// live: the path to the gateway is up, and so is a cable of it to the cluster. back: it would be, but has gone too often to be taken
	// for up so soon. draining: live, but use another one: the gateway goes, or who is at the other end of its cables.
	live, back, draining bool
	// gateway's node, and the other end of the cable where it begins here; what probes say of the path.
	gateway, endpoint string
	health            nodeprobe.Health
}

// show what there is to choose from, and what was chosen.
func (p *planner) show(cluster cables.Cluster, v6 bool, all []candidate, members []netstate.Nexthop) {
	for _, c := range all {
		w := routeview.Way{
			ClusterID: cluster.ID, Family: familyName(v6), Gateway: c.gateway, Endpoint: c.endpoint, Path: routeview.Direct, Hop: c.hop.String(),
			Used: slices.Contains(members, c.hop), State: string(c.health.State), Since: c.health.Since, RTT: c.health.RTT.Seconds(), Live: c.live, Draining: c.draining,
		}
		switch {
		case c.own:
			w.Path = routeview.Cable
		case c.hop.Dev == LinkVXLAN:
			w.Path = routeview.Tunnel
		}
		if link := p.link(c.hop.Dev); link != nil {
			w.MTU = link.MTU
		}
		if w.State == "" {
			w.State = string(liveness.Unknown)
		}
		p.seen = append(p.seen, w)
	}
}

func (p *planner) candidates(cluster cables.Cluster, ways []way, v6 bool, inUse []netstate.Nexthop) (all []candidate) {
	for _, w := range ways {
		if w.gateway.Node != p.Node {
			all = append(all, judge(w, w.hop, inUse, cluster.Gateways...))
			continue
		}
		for _, remote := range cluster.Gateways {
			if remote.Link == "" {
				continue // a problem that is named already
			}
			// Without a carrier (nobody reads a TUN device) the kernel would not take it.
			if link := p.link(remote.Link); link == nil || !link.Up {
				p.problem("the device of the cable to %s is not there or has no carrier: is the gateway running on this node?", remote.Name)
				continue
			}
			c := judge(w, netstate.Nexthop{IPv6: v6 || remote.Via.IsValid(), Via: remote.Via, Dev: remote.Link}, inUse, remote)
			c.own, c.endpoint = true, remote.Name
			all = append(all, c)
		}
	}
	p.hold(all)
	return all
}

// hold on to cables of this node's that are to go, for a moment, where none is to stay.
func (p *planner) hold(all []candidate) {
	if slices.ContainsFunc(all, func(c candidate) bool { return c.own && c.live && !c.draining }) {
		return
	}
	for i, c := range all {
		latest := slices.MaxFunc(all, func(a, b candidate) int { return a.health.SeenAt.Compare(b.health.SeenAt) })
		if due := latest.health.SeenAt.Add(hold); c.own && c.live && p.Now.Before(due) {
			all[i].draining = false
			p.wait(due)
		}
	}
}

// judge a next hop that leads to a gateway, and through its cables, or the one of them that it is.
func judge(w way, hop netstate.Nexthop, inUse []netstate.Nexthop, through ...cables.Remote) candidate {
	seen := w.health.Seen
	c := candidate{hop: hop, gateway: w.gateway.Node, health: w.health}
	// A path that was in use before this process counts as up before its gateway has told us anything.
	up, draining := seen == nil && slices.Contains(inUse, hop), false
	if seen != nil {
		up = slices.ContainsFunc(through, func(r cables.Remote) bool { return seen.Up(r.Name) })
		draining = slices.ContainsFunc(through, func(r cables.Remote) bool { return seen.CableDraining(r.Name) })
		c.draining = seen.Draining || draining && !up
	}
	c.live = w.health.State == liveness.Up && (up || draining)
	c.back = w.health.State == liveness.Recovering && (up || draining)
	return c
}

// members of a group are the best of the candidates, all of one kind:
//  1. a gateway's own cables that live,
//  2. other gateways that live and have a cable that does,
//  3. and 4. the same, of gateways that want to go, or whose cables lead to such,
//  5. and 6. the same, of gateways that have just come back, and have gone too often to be trusted before anything else. A gateway's own
//     cables first here too, or two gateways could send packets to each other;
//  7. where nothing is known to live, on a gateway its own cables, those in use first: the other gateway may lead its packets here;
//  8. what is in use: whether we have just begun or all is lost, nothing gets better by a change;
//  9. all there are.
func (p *planner) members(cluster cables.Cluster, all []candidate, inUse []netstate.Nexthop) (members []netstate.Nexthop) {
	kinds := []func(candidate) bool{
		func(c candidate) bool { return c.live && !c.draining && c.own },
		func(c candidate) bool { return c.live && !c.draining },
		func(c candidate) bool { return c.live && c.own },
		func(c candidate) bool { return c.live },
		func(c candidate) bool { return c.back && c.own },
		func(c candidate) bool { return c.back },
		func(c candidate) bool { return slices.Contains(inUse, c.hop) && c.own },
		func(c candidate) bool { return c.own },
		func(c candidate) bool { return slices.Contains(inUse, c.hop) },
		func(candidate) bool { return true },
	}
	for i, kind := range kinds {
		for _, c := range all {
			if kind(c) {
				members = append(members, c.hop)
			}
		}
		if len(members) > 0 {
			if i > 5 {
				p.problem("cluster %s: no path to it is known to live", cluster.ID)
			}
			return members
		}
	}
	return nil
}

func (p *planner) inUse(prefixes []netip.Prefix) (hops []netstate.Nexthop) {
	for _, prefix := range prefixes {
		hops = append(hops, p.InUse[prefix]...)
	}
	return hops
}

// tunnelTo makes a gateway node an end of our VXLAN device, and says whether it can be reached so.
func (p *planner) tunnelTo(gateway Node) bool {
	local, _ := p.underlay()
	switch {
	case !p.IPv6:
		p.problem("no path to gateway node %s: the VXLAN device needs IPv6 in the kernel, if only for its link-local addresses", gateway.Name)
		return false
	case !local.IsValid():
		p.problem("no path to gateway node %s: none of this node's addresses is on a link", gateway.Name)
		return false
	case !gateway.has(local.Is6()):
		p.problem("no path to gateway node %s: it has no %s address, which this node's VXLAN device uses", gateway.Name, familyName(local.Is6()))
		return false
	}
	p.sends = true
	p.addTunnel(gateway.Name)
	return true
}

func (p *planner) addTunnel(node string) {
	if p.tunnels == nil {
		p.tunnels = map[string]bool{}
	}
	p.tunnels[node] = true
}

// tunnel is the VXLAN device and what is at its other ends: the gateways to which this node sends through it, and, on a
// gateway, all nodes, since any may find that its segment does not do; their probes are answered that way. (Packets for pods take
// the CNI's way.)
func (p *planner) tunnel() {
	if p.own != nil && p.Mode != ModeDirect && p.IPv6 {
		for _, node := range p.Nodes {
			if node.Name != p.Node {
				p.addTunnel(node.Name)
			}
		}
	}
	if len(p.tunnels) == 0 {
		return
	}
	local, link := p.underlay()
	if !local.IsValid() {
		p.problem("none of this node's addresses is on a link: no VXLAN device")
		return
	}
	overhead := vxlanOverhead4
	if local.Is6() {
		overhead = vxlanOverhead6
	}
	end := p.tunnelEnd(p.Node)
	p.state.Links = append(p.state.Links, netstate.Link{
		Name: LinkVXLAN, Kind: netstate.KindVXLAN, MTU: link.MTU - overhead, MAC: end.mac,
		Addresses: []netip.Prefix{cables.Anchor, netip.PrefixFrom(end.addr, 64)},
		VXLAN:     netstate.VXLAN{ID: VXLANID, Port: VXLANPort, Local: local},
	})
	for _, node := range p.Nodes {
		i := slices.IndexFunc(node.Addresses, func(a netip.Addr) bool { return a.Is6() == local.Is6() })
		if !p.tunnels[node.Name] || i < 0 {
			continue
		}
		other := p.tunnelEnd(node.Name)
		p.state.Neighbours = append(p.state.Neighbours, netstate.Neighbour{Link: LinkVXLAN, Addr: other.addr, MAC: other.mac})
		p.state.Forwarding = append(p.state.Forwarding, netstate.Forwarding{Link: LinkVXLAN, MAC: other.mac, Dst: node.Addresses[i]})
	}
}

// tunnelEnd is what a node's VXLAN device has: 64 bits of a hash of its name in a link-local address, 46 in a MAC. Should
// two nodes of the cluster come to the same, the later by name takes the next hash, on every node alike.
func (p *planner) tunnelEnd(name string) tunnelEnd {
	if p.ends == nil {
		p.ends = tunnelEnds(p.Nodes, hashEnd)
	}
	return p.ends[name]
}

type tunnelEnd struct {
	addr netip.Addr
	mac  string
}

func tunnelEnds(nodes []Node, hash func(name string) tunnelEnd) map[string]tunnelEnd {
	ends := map[string]tunnelEnd{}
	addrs, macs := map[netip.Addr]bool{}, map[string]bool{}
	for _, node := range nodes {
		end := hash(node.Name)
		for again := 1; addrs[end.addr] || macs[end.mac]; again++ {
			end = hash(fmt.Sprintf("%s %d", node.Name, again)) // no node's name has a space
		}
		addrs[end.addr], macs[end.mac], ends[node.Name] = true, true, end
	}
	return ends
}

func hashEnd(name string) tunnelEnd {
	sum := sha256.Sum256([]byte("fastnet vxlan " + name))
	addr := [16]byte{0: 0xfe, 1: 0x80}
	copy(addr[8:], sum[:8])
	mac := net.HardwareAddr(sum[8:14])
	mac[0] = mac[0]&^1 | 2 // locally administered, no group
	return tunnelEnd{addr: netip.AddrFrom16(addr), mac: mac.String()}
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
	// Where there are several gateways, the packets of one connection may pass one of them on the way out and another on
	// the way back.
	passed := p.own != nil && len(p.cables.Locals) > 1
	for _, v6 := range p.families() {
		podAddr := p.returnAddress(v6)
		var nat, filter, translated []string
		asym := []string{"-m conntrack ! --ctstate INVALID -j RETURN"}
		if self := p.node(p.Node); self != nil {
			// This node sees both ways of its own pods' connections: for them INVALID is what it says.
			for _, pods := range self.PodPrefixes {
				if pods.Addr().Is6() == v6 {
					asym = append(asym, fmt.Sprintf("-s %s -j RETURN", pods), fmt.Sprintf("-d %s -j RETURN", pods))
				}
			}
		}
		for _, local := range p.Prefixes {
			for _, remote := range p.remote {
				if local.Addr().Is6() != v6 || remote.Addr().Is6() != v6 {
					continue
				}
				// ACCEPT ends nat POSTROUTING: neither kube-proxy's nor the CNI's masquerading comes to its turn. Both
				// ways: seen from kube-proxy, a client in another cluster is as foreign as one on the internet.
				nat = append(nat, fmt.Sprintf("-s %s -d %s -j ACCEPT", local, remote), fmt.Sprintf("-s %s -d %s -j ACCEPT", remote, local))
				filter = append(filter, fmt.Sprintf("-s %s -d %s -j ACCEPT", local, remote), fmt.Sprintf("-s %s -d %s -j ACCEPT", remote, local))
				asym = append(asym, fmt.Sprintf("-s %s -d %s -j ACCEPT", local, remote), fmt.Sprintf("-s %s -d %s -j ACCEPT", remote, local))
				if passed && podAddr.IsValid() {
					// A client in another cluster that asks for a service address of ours: kube-proxy chooses the pod here,
					// so the answer has to come back here.
					translated = append(translated, fmt.Sprintf("-s %s -d %s -m conntrack --ctstate DNAT -j SNAT --to-source %s", remote, local, podAddr))
				}
			}
		}
		nat = append(translated, nat...)
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
			p.problem("no address of this node lies in the cluster's %s pod CIDR, and none can be taken from the node's own: clients in its host network cannot reach other clusters", familyName(v6))
		}
		p.state.Chains = append(p.state.Chains,
			netstate.Chain{IPv6: v6, Table: "nat", Name: chainNAT, Rules: nat},
			netstate.Chain{IPv6: v6, Table: "mangle", Name: chainMangle, Rules: mss},
			netstate.Chain{IPv6: v6, Table: "filter", Name: chainFilter, Rules: filter})
		if passed {
			// Before the rest: kube-proxy (iptables) drops what connection tracking calls INVALID, and that is how packets
			// look whose other half passes another gateway. New connections are not let through here: they are not INVALID.
			p.state.Chains = append(p.state.Chains, netstate.Chain{IPv6: v6, Table: "filter", Name: chainAsym, Rules: asym})
			p.state.Jumps = append(p.state.Jumps, netstate.Jump{IPv6: v6, Table: "filter", Builtin: "FORWARD", Chain: chainAsym})
		}
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

// returnAddress is what packets of this node's own get as their source, so that answers find back to it. A bridge comes with the
// node's first pod, so a node without pods has no address among them yet. It then has the one that the bridge will have: the
// first of the node's own pod CIDR, which host-local keeps for it. No link needs to have it: the other nodes' routes bring the
// answers here, and connection tracking gives them back their address before it is looked at. But a CNI may hand out pods'
// addresses in ways of its own, and then this one may be a pod's; so it is taken only where this node routes another node's pod CIDR as it
// is, and has no route to that very address.
func (p *planner) returnAddress(v6 bool) netip.Addr {
	self := p.node(p.Node)
	if addr := p.podAddress(v6); addr.IsValid() || self == nil {
		return addr
	}
	ofNode := slices.IndexFunc(self.PodPrefixes, func(prefix netip.Prefix) bool { return prefix.Addr().Is6() == v6 })
	asAssigned := slices.ContainsFunc(p.Nodes, func(node Node) bool {
		return node.Name != p.Node && slices.ContainsFunc(node.PodPrefixes, func(prefix netip.Prefix) bool {
			return prefix.Addr().Is6() == v6 && slices.Contains(p.MainRoutes, prefix)
		})
	})
	if ofNode < 0 || !asAssigned {
		return netip.Addr{}
	}
	addr := self.PodPrefixes[ofNode].Masked().Addr().Next()
	if slices.Contains(p.MainRoutes, netip.PrefixFrom(addr, addr.BitLen())) {
		return netip.Addr{}
	}
	return addr
}

// sysctls loosen the reverse path filter where a packet may come in by another device than an answer to it would take,
// and only where it is strict now:
//   - on a gateway, the devices of its cables, since an answer may leave by another one of them, or by another gateway; the
//     VXLAN device, since a worker's packet comes in there, while the answer takes the CNI's way; and where there are more
//     gateways, the node's own network and the CNI's overlay, by which packets that came in at another gateway get here;
//   - elsewhere, an overlay device of the CNI's: the gateway's packets for pods come in there, while the answers go to
//     the gateway directly or through our VXLAN device; with the latter, the node's own network too.
func (p *planner) sysctls() {
	underlay := func(link Link) bool {
		self := p.node(p.Node)
		return self != nil && slices.ContainsFunc(link.Addresses, func(a netip.Prefix) bool { return slices.Contains(self.Addresses, a.Addr()) })
	}
	among := p.own != nil && len(p.cables.Locals) > 1
	for _, link := range p.Links {
		var wanted bool
		switch {
		case link.Name == LinkVXLAN:
			wanted = p.own != nil && len(p.state.Links) > 0
		case cables.IsLink(link.Name):
			wanted = p.own != nil
		case strings.HasPrefix(link.Name, "fastnet-"):
		case slices.Contains([]string{"vxlan", "geneve", "ipip", "ip6tnl", "sit", "gre", "wireguard", "tuntap"}, link.Kind):
			wanted = p.own == nil || among
		default:
			wanted = (p.sends || among) && underlay(link)
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
