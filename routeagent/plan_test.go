package routeagent

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func endpoint(cluster, node, address string, cidrs ...string) v1alpha1.Endpoint {
	return v1alpha1.Endpoint{
		ObjectMeta: metav1.ObjectMeta{Name: cluster + "." + node},
		Spec: v1alpha1.EndpointSpec{ClusterID: cluster, Node: node, Drivers: []v1alpha1.EndpointDriver{{Name: "wireguard"}}, Addresses: []string{address}, Port: 51820,
			ProbeKey: "key of " + node, Prefixes: cidrs},
	}
}

// base is node n1 of c1, a plain node of a dual-stack cluster, on a segment with its gateway gw; c2 is remote.
func base() Snapshot {
	return Snapshot{
		ClusterID: "c1", Node: "n1", Mode: ModeAuto, IPv6: true, ForwardIPv4: true, ForwardIPv6: true,
		Prefixes: prefixes("10.8.0.0/16", "10.88.0.0/16", "fd00:8::/32", "fd00:88::/108"),
		Endpoints: []v1alpha1.Endpoint{
			endpoint("c1", "gw", "172.18.0.3", "10.8.0.0/16", "10.88.0.0/16", "fd00:8::/32", "fd00:88::/108"),
			endpoint("c2", "gw", "192.0.2.9", "10.9.0.0/16", "10.99.0.0/16", "fd00:9::/32"),
		},
		Nodes: []Node{
			{Name: "gw", Addresses: addrs("172.18.0.3", "fd18::3")},
			{Name: "n1", Addresses: addrs("172.18.0.2", "fd18::2"), PodPrefixes: prefixes("10.8.1.0/24", "fd00:8:1::/64")},
		},
		Links: []Link{
			{Name: "cni0", Kind: "bridge", Up: true, MTU: 1500, Addresses: prefixes("10.8.1.1/24", "fd00:8:1::1/64")},
			{Name: "eth0", Kind: "veth", Index: 2, Up: true, MTU: 1500, Addresses: prefixes("172.18.0.2/24", "fd18::2/64")},
		},
	}
}

// asGateway makes n1 the gateway.
func asGateway(s *Snapshot) {
	s.Endpoints[0] = endpoint("c1", "n1", "172.18.0.2", "10.8.0.0/16", "fd00:8::/32")
	s.Links = append(s.Links, cableTo("c2.gw"))
}

func cableTo(endpoint string) Link {
	return Link{Name: cables.LinkName(cables.WireGuard, endpoint), Kind: "tuntap", Up: true, MTU: 1420}
}

// twoGateways adds a gateway to both clusters: here gw2, on the segment of n1.
func twoGateways(s *Snapshot) {
	s.Endpoints = append(s.Endpoints, endpoint("c1", "gw2", "172.18.0.4", "10.8.0.0/16"), endpoint("c2", "gw2", "192.0.2.10", "10.9.0.0/16"))
	s.Nodes = append(s.Nodes, Node{Name: "gw2", Addresses: addrs("172.18.0.4", "fd18::4")})
}

// amongGateways makes n1 one of two gateways, with cables to both of the other cluster.
func amongGateways(s *Snapshot) {
	twoGateways(s)
	s.Endpoints[2] = endpoint("c1", "n1", "172.18.0.2", "10.8.0.0/16")
	s.Links = append(s.Links, cableTo("c2.gw"), cableTo("c2.gw2"))
}

// withoutBridge is n1 before its first pod, where another node's pods are routed by its pod CIDRs.
func withoutBridge(s *Snapshot) {
	s.Links = s.Links[1:]
	s.Nodes[0].PodPrefixes = prefixes("10.8.0.0/24", "fd00:8::/64")
	s.MainRoutes = s.Nodes[0].PodPrefixes
}

// probed lets all paths to a gateway have that state, and the gateway that view.
func probed(gateway string, state liveness.State, view *nodeprobe.View) func(*Snapshot) {
	return func(s *Snapshot) {
		if s.Paths == nil {
			s.Paths = map[nodeprobe.Target]nodeprobe.Health{}
		}
		health := nodeprobe.Health{State: state, SeenAt: s.Now.Add(-time.Hour)}
		if view != nil {
			health.Seen = nodeprobe.SeenOf(*view)
		}
		for target := range Plan(*s).Targets {
			if target.Gateway == gateway {
				s.Paths[target] = health
			}
		}
	}
}

// proven says of the paths to gw, in both families, long ago: by this node's own packets, by those that look like pods', and through the tunnel.
func proven(own, foreign, tunnel liveness.State) func(*Snapshot) {
	return func(s *Snapshot) {
		s.Now = time.Unix(1_000_000, 0)
		s.Links = append(s.Links, Link{Name: LinkVXLAN, Kind: "vxlan", Index: 9, Up: true, MTU: 1450})
		s.Paths = map[nodeprobe.Target]nodeprobe.Health{}
		for range 2 { // with the first, the plan asks for the tunnel
			for target := range Plan(*s).Targets {
				state := own
				switch {
				case target.Source.IsValid():
					state = foreign
				case target.Addr.IsLinkLocalUnicast():
					state = tunnel
				}
				s.Paths[target] = nodeprobe.Health{State: state, Since: s.Now.Add(-time.Hour), Seen: nodeprobe.SeenOf(*up("c2.gw"))}
			}
		}
	}
}

// up is a view with cables up to these Endpoints.
func up(endpoints ...string) *nodeprobe.View {
	var v nodeprobe.View
	for _, endpoint := range endpoints {
		v.Cables = append(v.Cables, nodeprobe.Cable{Endpoint: endpoint, ClusterID: "c2", Up: true})
	}
	return &v
}

func draining(v *nodeprobe.View) *nodeprobe.View {
	v.Draining = true
	return v
}

// peersDrain: those of the cables that are up lead to gateways that want to go.
func peersDrain(v *nodeprobe.View) *nodeprobe.View {
	for i := range v.Cables {
		v.Cables[i].Up, v.Cables[i].Draining = false, v.Cables[i].Up
	}
	return v
}

// farGateway puts the gateway on another segment.
func farGateway(s *Snapshot) { s.Nodes[0].Addresses = addrs("172.18.7.3", "fd18:7::3") }

// cases are snapshots by name; each has a golden file of that name.
func cases() map[string]Snapshot {
	all := map[string]Snapshot{}
	add := func(name string, changes ...func(*Snapshot)) {
		s := base()
		for _, change := range changes {
			change(&s)
		}
		all[name] = s
	}
	add("worker-same-segment")
	add("worker-other-segment", farGateway)
	add("worker-other-segment-strict-filter", farGateway, func(s *Snapshot) {
		s.RPFilterAll = 1
		s.Links = append(s.Links, Link{Name: "flannel.1", Kind: "vxlan", MTU: 1450, Addresses: prefixes("10.8.1.0/32")})
	})
	add("worker-no-gateway-yet", func(s *Snapshot) { s.Endpoints = s.Endpoints[1:] })
	add("worker-gateway-node-unknown", func(s *Snapshot) { s.Nodes = s.Nodes[1:] })
	add("no-remote-cluster", func(s *Snapshot) { s.Endpoints = s.Endpoints[:1] })
	add("gateway", asGateway)
	add("gateway-device-away", asGateway, func(s *Snapshot) { s.Links = s.Links[:2] })
	add("gateway-with-worker-on-other-segment", asGateway, farGateway, func(s *Snapshot) {
		s.RPFilterAll = 1
		s.Links = append(s.Links, Link{Name: LinkVXLAN, Kind: "vxlan", MTU: 1450})
	})
	add("gateway-device-without-carrier", asGateway, func(s *Snapshot) { s.Links[2].Up = false })
	both := up("c2.gw", "c2.gw2")
	add("two-gateways-not-probed-yet", twoGateways)
	add("two-gateways", twoGateways, probed("c1.gw", liveness.Up, both), probed("c1.gw2", liveness.Up, both))
	add("two-gateways-one-far", twoGateways, farGateway, func(s *Snapshot) {
		s.Links = append(s.Links, Link{Name: LinkVXLAN, Kind: "vxlan", Index: 9, Up: true, MTU: 1450})
	}, probed("c1.gw", liveness.Up, both), probed("c1.gw2", liveness.Up, both))
	add("two-gateways-one-down", twoGateways, probed("c1.gw", liveness.Down, both), probed("c1.gw2", liveness.Up, both))
	add("two-gateways-one-without-cables", twoGateways, probed("c1.gw", liveness.Up, both), probed("c1.gw2", liveness.Up, up()))
	add("two-gateways-one-draining", twoGateways, probed("c1.gw", liveness.Up, draining(up("c2.gw"))), probed("c1.gw2", liveness.Up, both))
	add("two-gateways-only-the-draining-one-lives", twoGateways, probed("c1.gw", liveness.Up, draining(up("c2.gw"))), probed("c1.gw2", liveness.Down, both))
	add("two-gateways-all-down-keeps-what-is-in-use", twoGateways, probed("c1.gw", liveness.Down, both), probed("c1.gw2", liveness.Down, both), func(s *Snapshot) {
		s.InUse = map[netip.Prefix][]netstate.Nexthop{
			prefixes("10.9.0.0/16")[0]: {{Via: addrs("172.18.0.4")[0], Dev: "eth0"}},
			prefixes("fd00:9::/32")[0]: {{IPv6: true, Via: addrs("fd18::4")[0], Dev: "eth0"}, {IPv6: true, Via: addrs("fd18::77")[0], Dev: "eth0"}},
		}
	})
	add("two-gateways-one-down-and-one-just-back", twoGateways, probed("c1.gw", liveness.Down, both), probed("c1.gw2", liveness.Recovering, both), func(s *Snapshot) {
		s.InUse = map[netip.Prefix][]netstate.Nexthop{
			prefixes("10.9.0.0/16")[0]: {{Via: addrs("172.18.0.4")[0], Dev: "eth0"}},
			prefixes("fd00:9::/32")[0]: {{IPv6: true, Via: addrs("fd18::4")[0], Dev: "eth0"}},
		}
	})
	add("among-gateways", amongGateways, probed("c1.n1", liveness.Up, both), probed("c1.gw", liveness.Up, both))
	add("among-gateways-strict-filter", amongGateways, func(s *Snapshot) { s.RPFilterAll = 1 }, probed("c1.n1", liveness.Up, up("c2.gw2")), probed("c1.gw", liveness.Up, both))
	add("among-gateways-own-cables-down", amongGateways, probed("c1.n1", liveness.Up, up()), probed("c1.gw", liveness.Up, both))
	add("among-gateways-own-draining", amongGateways, probed("c1.n1", liveness.Up, draining(up("c2.gw"))), probed("c1.gw", liveness.Up, both))
	for name, gateway := range map[string]string{"among-gateways-own-draining-since-a-moment": "c1.n1", "among-gateways-own-draining-and-other-up-since-a-moment": "c1.gw"} {
		add(name, amongGateways, probed("c1.n1", liveness.Up, draining(up("c2.gw"))), probed("c1.gw", liveness.Up, both), func(s *Snapshot) {
			for target, health := range s.Paths {
				if target.Gateway == gateway {
					health.SeenAt = s.Now.Add(1 - hold)
					s.Paths[target] = health
				}
			}
		})
	}
	add("among-gateways-one-peer-drains-since-a-moment", amongGateways, probed("c1.n1", liveness.Up, &nodeprobe.View{Cables: append(peersDrain(up("c2.gw")).Cables, up("c2.gw2").Cables...)}),
		probed("c1.gw", liveness.Up, both), func(s *Snapshot) {
			for target, health := range s.Paths {
				health.SeenAt = s.Now
				s.Paths[target] = health
			}
		})
	add("among-gateways-peers-drain", amongGateways, probed("c1.n1", liveness.Up, peersDrain(up("c2.gw"))), probed("c1.gw", liveness.Up, peersDrain(up("c2.gw"))))
	add("among-gateways-peer-drains-and-other-reaches-another", amongGateways, probed("c1.n1", liveness.Up, peersDrain(up("c2.gw"))), probed("c1.gw", liveness.Up, both))
	add("two-gateways-peers-drain", twoGateways, probed("c1.gw", liveness.Up, peersDrain(up("c2.gw"))), probed("c1.gw2", liveness.Up, up()))
	add("among-gateways-all-down-and-the-other-in-use", amongGateways, probed("c1.n1", liveness.Up, up()), probed("c1.gw", liveness.Up, up()), func(s *Snapshot) {
		s.InUse = map[netip.Prefix][]netstate.Nexthop{
			prefixes("10.9.0.0/16")[0]: {{Via: addrs("172.18.0.3")[0], Dev: "eth0"}},
			prefixes("fd00:9::/32")[0]: {{IPv6: true, Via: addrs("fd18::3")[0], Dev: "eth0"}},
		}
	})
	add("among-gateways-all-just-back", amongGateways, probed("c1.n1", liveness.Recovering, both), probed("c1.gw", liveness.Recovering, both))
	add("among-gateways-all-down", amongGateways, probed("c1.n1", liveness.Down, nil), probed("c1.gw", liveness.Down, nil))
	add("segment-proven", proven(liveness.Up, liveness.Up, liveness.Up))
	add("segment-drops-pods", proven(liveness.Up, liveness.Down, liveness.Up))
	add("segment-drops-pods-tunnel-not-proven", proven(liveness.Up, liveness.Down, liveness.Unknown))
	add("segment-never-proven-and-no-tunnel", proven(liveness.Up, liveness.Unknown, liveness.Unknown))
	add("segment-drops-pods-since-a-moment", proven(liveness.Up, liveness.Down, liveness.Up), func(s *Snapshot) { s.Now = s.Now.Add(proofTime - time.Hour - 1) })
	add("segment-just-back", proven(liveness.Recovering, liveness.Recovering, liveness.Up))
	add("segment-dead", proven(liveness.Down, liveness.Down, liveness.Up))
	add("segment-dropped-pods-and-is-not-proven-yet", proven(liveness.Up, liveness.Unknown, liveness.Up), func(s *Snapshot) {
		s.Now = s.Now.Add(-time.Hour) // we have just begun, and the process before took the tunnel
		s.InUse = map[netip.Prefix][]netstate.Nexthop{prefixes("10.9.0.0/16")[0]: {{IPv6: true, Via: hashEnd("gw").addr, Dev: LinkVXLAN}}}
	})
	add("mode-tunnel-same-segment", func(s *Snapshot) { s.Mode = ModeTunnel })
	add("mode-direct-other-segment", farGateway, func(s *Snapshot) { s.Mode = ModeDirect })
	add("gateway-node-without-ipv6-address", func(s *Snapshot) { s.Nodes[0].Addresses = addrs("172.18.0.3") })
	add("nodes-have-ipv6-only", farGateway, func(s *Snapshot) {
		s.Nodes[0].Addresses, s.Nodes[1].Addresses = addrs("fd18:7::3"), addrs("fd18::2")
	})
	add("ipv4-only-cluster", func(s *Snapshot) {
		s.Prefixes = prefixes("10.8.0.0/16")
		s.IPv6 = false
	})
	add("no-pod-address-no-forwarding", func(s *Snapshot) {
		s.Links = s.Links[1:]
		s.ForwardIPv4, s.ForwardIPv6 = false, false
	})
	add("no-pod-yet", withoutBridge)
	add("no-pod-yet-on-gateway", asGateway, withoutBridge)
	add("no-pod-yet-first-address-is-a-pods", withoutBridge, func(s *Snapshot) {
		s.MainRoutes = append(s.MainRoutes, prefixes("10.8.1.1/32", "fd00:8:1::1/128")...)
	})
	add("no-pod-yet-pods-elsewhere", withoutBridge, func(s *Snapshot) { s.MainRoutes = nil })
	add("refused-cidrs", func(s *Snapshot) {
		s.Endpoints[1].Spec.Prefixes = []string{"0.0.0.0/0", "10.8.7.0/24", "172.18.0.0/24", "fe80::/64", "::/0", "fd00:9::/32", "nonsense"}
	})
	return all
}

// probes in words, sorted.
func probes(targets map[nodeprobe.Target]nodeprobe.Ask) string {
	at := func(t nodeprobe.Target) string {
		if t.Source.IsValid() {
			return fmt.Sprintf("%s, as from %s to %s", t.Addr, t.Source, t.Dest)
		}
		return t.Addr.String()
	}
	var lines []string
	for target, ask := range targets {
		line := fmt.Sprintf("probe %s at %s", target.Gateway, at(target))
		if ask.Own {
			line += ", on this node"
		}
		if ask.Seldom {
			line += ", seldom"
		}
		if ask.Beside != (nodeprobe.Target{}) {
			line += " beside " + at(ask.Beside)
		}
		lines = append(lines, line+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func TestPlan(t *testing.T) {
	seen := map[string]bool{}
	for name, snapshot := range cases() {
		t.Run(name, func(t *testing.T) {
			desired := Plan(snapshot)
			got := desired.State.Text(Scope)
			for _, problem := range desired.Problems {
				got += "problem: " + problem + "\n"
			}
			for _, way := range desired.Ways {
				got += fmt.Sprintf("way to %s, %s: by %s%s, %s %s, mtu %d, %s, live %t, draining %t, used %t\n", way.ClusterID, way.Family, way.Gateway,
					strings.TrimSuffix(" to "+way.Endpoint, " to "), way.Path, way.Hop, way.MTU, way.State, way.Live, way.Draining, way.Used)
			}
			got += probes(desired.Targets)
			path := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if err := desired.State.Validate(Scope); err != nil {
				t.Error(err)
			}
		})
		seen[name+".txt"] = true
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !seen[file.Name()] {
			t.Errorf("testdata/%s belongs to no case", file.Name())
		}
	}
}

// Whatever happens, a remote prefix has its blackhole: without it a packet could follow the default route.
func TestEveryRemotePrefixHasABlackhole(t *testing.T) {
	for name, snapshot := range cases() {
		desired := Plan(snapshot)
		for _, route := range desired.State.Routes {
			if !route.Blackhole && !slices.ContainsFunc(desired.State.Routes, func(r netstate.Route) bool {
				return r.Blackhole && r.Dst == route.Dst && r.Metric > route.Metric
			}) {
				t.Errorf("%s: no blackhole behind %s", name, route)
			}
			for _, own := range snapshot.Prefixes {
				// Of our own there is at most the one address of a node without pods.
				if route.Dst.Overlaps(own) && !(route.Blackhole && route.Dst.IsSingleIP() && strings.HasPrefix(name, "no-pod-yet")) {
					t.Errorf("%s: route %s covers our own %s", name, route, own)
				}
			}
		}
	}
}

// The gateway asks of every node what every node asks of the gateway: where one end has the device, so has the other, and
// each has written down where the other is, under the name that the other gives itself.
func TestBothEndsAgreeOnTheVXLANDevice(t *testing.T) {
	for name, change := range map[string]func(*Snapshot){
		"one segment": func(*Snapshot) {}, "two segments": farGateway,
		"gateway without IPv6": func(s *Snapshot) { s.Nodes[0].Addresses = addrs("172.18.0.3") },
		"worker without IPv6":  func(s *Snapshot) { s.Nodes[1].Addresses = addrs("172.18.0.2") },
		"mode tunnel":          func(s *Snapshot) { s.Mode = ModeTunnel },
		"mode direct":          func(s *Snapshot) { s.Mode = ModeDirect },
	} {
		worker := base()
		change(&worker)
		gateway := worker
		gateway.Node = "gw"
		var own []netip.Prefix
		for _, addr := range worker.Nodes[0].Addresses {
			bits := 24
			if addr.Is6() {
				bits = 64
			}
			own = append(own, netip.PrefixFrom(addr, bits))
		}
		gateway.Links = []Link{{Name: "eth0", Kind: "veth", MTU: 1500, Addresses: own}, cableTo("c2.gw")}
		w, g := Plan(worker).State, Plan(gateway).State
		if len(w.Links) > len(g.Links) {
			t.Errorf("%s: the worker has %d VXLAN devices, its gateway %d", name, len(w.Links), len(g.Links))
		}
		if len(w.Links) == 0 {
			continue
		}
		for _, ends := range [][2]netstate.State{{w, g}, {g, w}} {
			self, other := ends[0], ends[1]
			if len(self.Neighbours) != 1 || self.Neighbours[0].MAC != other.Links[0].MAC || self.Forwarding[0].MAC != other.Links[0].MAC ||
				self.Forwarding[0].Dst != other.Links[0].VXLAN.Local || !slices.Contains(other.Links[0].Addresses, netip.PrefixFrom(self.Neighbours[0].Addr, 64)) {
				t.Errorf("%s: one end has %v %v, the other is %v", name, self.Neighbours, self.Forwarding, other.Links)
			}
		}
	}
}

// Two nodes whose names have one hash get two addresses all the same, and every node deals them alike.
func TestTunnelEndsDoNotCollide(t *testing.T) {
	var nodes []Node
	for n := range 300 {
		nodes = append(nodes, Node{Name: fmt.Sprintf("n%03d", n)})
	}
	narrow := func(name string) tunnelEnd { // of nine bits
		end := hashEnd(name)
		b := end.addr.As16()
		return tunnelEnd{addr: netip.AddrFrom16([16]byte{14: b[14] & 1, 15: b[15]}), mac: end.mac}
	}
	addresses, macs := map[netip.Addr]bool{}, map[string]bool{}
	for _, end := range tunnelEnds(nodes, narrow) {
		addresses[end.addr], macs[end.mac] = true, true
	}
	if len(addresses) != 300 || len(macs) != 300 {
		t.Errorf("%d addresses and %d MACs for 300 nodes", len(addresses), len(macs))
	}
	if got, want := tunnelEnds(nodes, hashEnd)["n007"], hashEnd("n007"); got != want {
		t.Errorf("without a collision n007 is %v, want %v", got, want)
	}
}

// Whatever is known of the paths, and whatever is in use, a cluster that some next hop leads to has members in its group;
// they are among the candidates; what is known to be dead is no member where something lives; and a failover changes
// nothing but groups.
func TestHealthMovesMembersOnly(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	for _, build := range []func(*Snapshot){twoGateways, amongGateways} {
		s := base()
		build(&s)
		first := Plan(s)
		targets := slices.Collect(maps.Keys(first.Targets))
		views := []*nodeprobe.View{nil, up(), up("c2.gw"), up("c2.gw2"), up("c2.gw", "c2.gw2"), draining(up("c2.gw"))}
		for range 500 {
			s.Paths = map[nodeprobe.Target]nodeprobe.Health{}
			at := map[netip.Addr]nodeprobe.Health{} // a node's own packets and those as of pods fare alike
			for _, target := range targets {
				if health, ok := at[target.Addr]; ok {
					s.Paths[target] = health
					continue
				}
				health := nodeprobe.Health{State: []liveness.State{liveness.Up, liveness.Down, liveness.Unknown, liveness.Recovering}[random.IntN(4)]}
				view := views[random.IntN(len(views))]
				if view == nil && (health.State == liveness.Up || health.State == liveness.Recovering) {
					view = up() // an answer brought it there, with a view; what counts as up from the start is in another test
				}
				if view != nil {
					health.Seen = nodeprobe.SeenOf(*view)
				}
				s.Paths[target], at[target.Addr] = health, health
			}
			desired := Plan(s)
			if err := desired.State.Validate(Scope); err != nil {
				t.Fatal(err)
			}
			if len(desired.State.Groups) != len(first.State.Groups) {
				t.Fatalf("%d groups, want %d, with %v", len(desired.State.Groups), len(first.State.Groups), s.Paths)
			}
			for _, group := range desired.State.Groups {
				dead, live := 0, 0
				for _, hop := range group.Members {
					for target, health := range s.Paths {
						switch {
						case target.Addr != hop.Via:
						case health.State == liveness.Down:
							dead++
						case health.State == liveness.Up && health.Seen != nil && (health.Seen.Up("c2.gw") || health.Seen.Up("c2.gw2")):
							live++
						}
					}
				}
				if dead > 0 && live > 0 {
					t.Errorf("group %s has members %v, with %v", group.Name, group.Members, s.Paths)
				}
			}
			// The next plan sees what this one has made, and stays with it.
			s.InUse = desired.inUse()
			if again := Plan(s); again.State.Text(Scope) != desired.State.Text(Scope) {
				t.Fatalf("not settled:\n%s", cmp.Diff(desired.State.Text(Scope), again.State.Text(Scope)))
			}
			desired.State.Groups = first.State.Groups
			if diff := cmp.Diff(first.State.Text(Scope), desired.State.Text(Scope)); diff != "" {
				t.Fatalf("more than groups has changed:\n%s", diff)
			}
		}
	}
}

// A path that was in use when the process began counts for what it was used for, until its gateway tells more.
func TestBeginningMovesNothing(t *testing.T) {
	s := base()
	amongGateways(&s)
	only := []netstate.Nexthop{{Dev: cables.LinkName(cables.WireGuard, "c2.gw2")}}
	s.InUse = map[netip.Prefix][]netstate.Nexthop{prefixes("10.9.0.0/16")[0]: only}
	probed("c1.n1", liveness.Up, nil)(&s)
	probed("c1.gw", liveness.Unknown, nil)(&s)
	for target, ask := range Plan(s).Targets {
		if ask.InUse != (target.Gateway == "c1.n1") {
			t.Errorf("target %v: %+v", target, ask)
		}
	}
	if got := Plan(s).State.Groups[0].Members; !slices.Equal(got, only) {
		t.Errorf("members %v, want %v", got, only)
	}
	probed("c1.n1", liveness.Up, up("c2.gw", "c2.gw2"))(&s)
	if got := Plan(s).State.Groups[0].Members; len(got) != 2 {
		t.Errorf("members %v, want both cables", got)
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	err := Config{Prefixes: []string{"10.8.0.1/16"}, Mode: "teleport"}.Validate()
	for _, want := range []string{"--cluster-id", "--node is", "--node-probe-port", "10.8.0.0/16", "teleport", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
