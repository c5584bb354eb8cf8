package routeagent

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/netstate"
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
		Spec: v1alpha1.EndpointSpec{ClusterID: cluster, Node: node, Driver: "wireguard", Addresses: []string{address}, Port: 51820,
			PublicKey: "key of " + node, Prefixes: cidrs},
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
			{Name: "cni0", Kind: "bridge", MTU: 1500, Addresses: prefixes("10.8.1.1/24", "fd00:8:1::1/64")},
			{Name: "eth0", Kind: "veth", MTU: 1500, Addresses: prefixes("172.18.0.2/24", "fd18::2/64")},
		},
	}
}

// asGateway makes n1 the gateway that carries.
func asGateway(s *Snapshot) {
	s.Endpoints[0] = endpoint("c1", "n1", "172.18.0.2", "10.8.0.0/16", "fd00:8::/32")
	s.Links = append(s.Links, Link{Name: cables.LinkName("c2.gw"), Kind: "tuntap", MTU: 1420})
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
	add("gateway-that-does-not-carry", func(s *Snapshot) {
		s.Endpoints = append(s.Endpoints, endpoint("c1", "n1", "172.18.0.2", "10.8.0.0/16"))
		s.Links = append(s.Links, Link{Name: cables.LinkName("c2.gw"), Kind: "tuntap", MTU: 1420})
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
	add("refused-cidrs", func(s *Snapshot) {
		s.Endpoints[1].Spec.Prefixes = []string{"0.0.0.0/0", "10.8.7.0/24", "172.18.0.0/24", "fe80::/64", "::/0", "fd00:9::/32", "nonsense"}
	})
	return all
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
				if route.Dst.Overlaps(own) {
					t.Errorf("%s: route %s covers our own %s", name, route, own)
				}
			}
		}
	}
}

// The gateway asks of every node what every node asks of the gateway: where one end has the device, so has the other.
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
		gateway.Links = []Link{{Name: "eth0", Kind: "veth", MTU: 1500, Addresses: own}, {Name: cables.LinkName("c2.gw"), Kind: "tuntap"}}
		if w, g := len(Plan(worker).State.Links), len(Plan(gateway).State.Links); w > g {
			t.Errorf("%s: the worker has %d VXLAN devices, its gateway %d", name, w, g)
		}
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	err := Config{Prefixes: []string{"10.8.0.1/16"}, Mode: "teleport"}.Validate()
	for _, want := range []string{"--cluster-id", "--node", "10.8.0.0/16", "teleport", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
