package gateway

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func endpoint(cluster, node string, addresses []string, cidrs ...string) v1alpha1.Endpoint {
	return v1alpha1.Endpoint{
		ObjectMeta: metav1.ObjectMeta{Name: cluster + "." + node},
		Spec: v1alpha1.EndpointSpec{ClusterID: cluster, ClusterUID: "uid-" + cluster, Node: node, Addresses: addresses, Port: 51820,
			Drivers: names("wireguard", "key-of-"+node), Prefixes: cidrs, Ports: map[string]int32{"c1.gw": 51820, "c9.other": 51821}},
	}
}

func names(name, key string) []v1alpha1.EndpointDriver {
	return []v1alpha1.EndpointDriver{{Name: name, PublicKey: key}}
}

func base() Snapshot {
	return Snapshot{
		ClusterID: "c1", ClusterUID: "uid-c1", Node: "gw", BasePort: 51820, Drivers: names("wireguard", "key-of-gw"), ProbeKey: "probe-key",
		UnderlayMTU: map[string]int{"c2.a": 1500, "c2.b": 1400, "c3.x": 1500}, Now: time.Unix(1000000, 0),
		Prefixes:  []netip.Prefix{netip.MustParsePrefix("10.8.0.0/16"), netip.MustParsePrefix("fd00:8::/32")},
		Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.3"), netip.MustParseAddr("fd18::3")},
		Endpoints: []v1alpha1.Endpoint{
			endpoint("c2", "a", []string{"192.0.2.9", "2001:db8::9"}, "10.9.0.0/16", "fd00:9::/32"),
			endpoint("c2", "b", []string{"192.0.2.10"}, "10.9.0.0/16", "fd00:9::/32"),
			endpoint("c3", "x", []string{"2001:db8:3::1"}, "10.7.0.0/16"),
		},
		Attempts: map[string]int{},
	}
}

func TestPlan(t *testing.T) {
	for name, change := range map[string]func(*Snapshot){
		"three-peers": func(*Snapshot) {},
		"alone":       func(s *Snapshot) { s.Endpoints = nil },
		"not-one-of-several-here": func(s *Snapshot) {
			s.Endpoints = append(s.Endpoints, endpoint("c1", "early", []string{"172.18.0.2"}))
		},
		"not-awaited-yet": func(s *Snapshot) { s.Endpoints[0].Spec.Ports = nil },
		"kept-ports": func(s *Snapshot) {
			yesterday := s.Now.Add(-portKept - time.Second)
			recently := s.Now.Add(-time.Hour)
			s.Ports = Ports{"c2.b": {Port: 51820}, "c4.gone": {Port: 51821, Gone: &recently}, "c5.long-gone": {Port: 51822, Gone: &yesterday}}
		},
		"no-port-left": func(s *Snapshot) { s.BasePort = 65534 },
		"own-endpoint-is-old": func(s *Snapshot) {
			s.Endpoints = append(s.Endpoints, endpoint("c1", "gw", []string{"172.18.9.9"}, "10.66.0.0/16"))
		},
		"one-leaves":    func(s *Snapshot) { s.Leaving = map[string]bool{"c2.a": true} },
		"third-attempt": func(s *Snapshot) { s.Attempts["c2.a"], s.Attempts["c2.b"] = 3, 3 },
		"no-route": func(s *Snapshot) { // to one address of a peer, and to all of another
			s.NoRoute = map[netip.Addr]bool{netip.MustParseAddr("192.0.2.9"): true, netip.MustParseAddr("192.0.2.10"): true}
		},
		"several-drivers": func(s *Snapshot) {
			s.Drivers = append(s.Drivers, names("vxlan", "")...)
			s.Endpoints[0].Spec.Drivers = append(names("vxlan", ""), names("wireguard", "key-of-a")...) // c1's order counts
			s.Endpoints[1].Spec.Drivers = names("vxlan", "")
			s.Endpoints[2].Spec.Drivers = names("vxlan", "")
		},
		"other-driver": func(s *Snapshot) { s.Endpoints[2].Spec.Drivers = names("vxlan", "") },
		"small-mtu-no-address": func(s *Snapshot) {
			s.UnderlayMTU["c2.b"], s.Addresses = 1300, nil
		},
		"refused": func(s *Snapshot) {
			s.Endpoints[0].Spec.Prefixes = []string{"0.0.0.0/0", "10.8.1.0/24", "172.18.0.0/16", "fd00:9::/32"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := base()
			change(&s)
			got := Plan(s).String()
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
		})
	}
}

// Both ends of every cable plan alike: each sends to the port at which the other awaits it, what one allows from the other
// is what the other's cluster sends, and no device or port is used twice on a node.
func TestBothEndsAgree(t *testing.T) {
	all := []v1alpha1.Endpoint{
		endpoint("c1", "a", []string{"192.0.2.1"}, "10.1.0.0/16"), endpoint("c1", "b", []string{"192.0.2.2"}, "10.1.0.0/16"),
		endpoint("c2", "a", []string{"192.0.2.3"}, "10.2.0.0/16"), endpoint("c2", "b", []string{"192.0.2.4"}, "10.2.0.0/16"),
		endpoint("c3", "a", []string{"192.0.2.5"}, "10.3.0.0/16"),
	}
	plan := func() map[string]Desired {
		plans := map[string]Desired{}
		for _, self := range all {
			plans[self.Name] = Plan(Snapshot{ClusterID: self.Spec.ClusterID, Node: self.Spec.Node, BasePort: 51820, Drivers: self.Spec.Drivers,
				Prefixes: []netip.Prefix{netip.MustParsePrefix(self.Spec.Prefixes[0])}, Addresses: []netip.Addr{netip.MustParseAddr(self.Spec.Addresses[0])}, Endpoints: all})
		}
		return plans
	}
	for i, desired := range plan() { // what each tells the others
		at := slices.IndexFunc(all, func(e v1alpha1.Endpoint) bool { return e.Name == i })
		all[at].Spec.Ports = desired.Endpoint.Ports
	}
	plans := plan()
	for _, a := range all {
		links, ports := map[string]bool{}, map[uint16]bool{}
		peers := map[string]cable.Peer{}
		for _, peer := range plans[a.Name].Cables.Peers {
			if links[peer.Link] || ports[peer.Port] {
				t.Errorf("%s uses %s or port %d twice", a.Name, peer.Link, peer.Port)
			}
			links[peer.Link], ports[peer.Port], peers[peer.Endpoint] = true, true, peer
		}
		for _, b := range all {
			peer, ok := peers[b.Name]
			if ok != (a.Spec.ClusterID != b.Spec.ClusterID) {
				t.Errorf("%s has a cable to %s: %t", a.Name, b.Name, ok)
			}
			if !ok {
				continue
			}
			want := netip.AddrPortFrom(netip.MustParseAddr(b.Spec.Addresses[0]), uint16(plans[b.Name].Endpoint.Ports[a.Name]))
			if peer.Address != want || peer.Address.Port() == 0 {
				t.Errorf("%s calls %s at %s, which awaits it at %s", a.Name, b.Name, peer.Address, want)
			}
			if got := texts(peer.Prefixes); !slices.Equal(got, b.Spec.Prefixes) {
				t.Errorf("%s allows %v from %s", a.Name, got, b.Name)
			}
		}
	}
}

// Whatever comes and goes: who is here has a port, no two have the same, and who was here within a day has the old one.
func TestPortsStay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(1000000, 0)
	ports := Ports{}
	last := map[string]uint16{}
	seen := map[string]time.Time{}
	for range 2000 {
		now = now.Add(time.Duration(random.Int64N(int64(3 * time.Hour))))
		var peers []string
		for i := range 30 {
			if random.IntN(3) == 0 {
				peers = append(peers, fmt.Sprintf("c%d.gw", i))
			}
		}
		before := maps.Clone(ports)
		ports = allocate(before, peers, 51820, now)
		used := map[uint16]string{}
		for name, port := range ports {
			if other := used[port.Port]; other != "" || port.Port < 51820 || port.Port >= 51820+30 {
				t.Fatalf("%s has port %d, and so has %q", name, port.Port, other)
			}
			used[port.Port] = name
		}
		for _, name := range peers {
			port := ports[name].Port
			if at, ok := seen[name]; port == 0 || ok && now.Sub(at) < portKept && last[name] != port {
				t.Fatalf("%s has port %d, had %d %s ago", name, port, last[name], now.Sub(at))
			}
			last[name], seen[name] = port, now
		}
		if again := allocate(ports, peers, 51820, now); !reflect.DeepEqual(again, ports) {
			t.Fatalf("asked twice: %v, then %v", ports, again)
		}
	}
}

func TestPortsAreKeptInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ports.json")
	if ports, err := loadPorts(path); err != nil || len(ports) != 0 {
		t.Errorf("without a file: %v, %v", ports, err)
	}
	gone := time.Unix(1000000, 0).UTC()
	want := Ports{"c2.a": {Port: 51820}, "c2.b": {Port: 51821, Gone: &gone}}
	for range 2 {
		if err := savePorts(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := loadPorts(path)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("kept %v, want %v (%v)", got, want, err)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ports, err := loadPorts(path); err == nil || len(ports) != 0 {
		t.Errorf("a damaged file gives %v, and no error", ports)
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	err := Config{Prefixes: []string{"10.8.0.1/16"}, Drivers: []string{"pigeon"}, Addresses: []string{"here"}}.Validate()
	for _, want := range []string{"--cluster-id", "--node", "10.8.0.0/16", "pigeon", "--port", "--state-dir", "here", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
