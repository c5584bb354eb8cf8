package gateway

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func endpoint(cluster, node string, addresses []string, cidrs ...string) v1alpha1.Endpoint {
	return v1alpha1.Endpoint{
		ObjectMeta: metav1.ObjectMeta{Name: cluster + "." + node},
		Spec: v1alpha1.EndpointSpec{ClusterID: cluster, ClusterUID: "uid-" + cluster, Node: node, Driver: "wireguard", Addresses: addresses, Port: 51820,
			PublicKey: "key-of-" + node, Prefixes: cidrs},
	}
}

func base() Snapshot {
	return Snapshot{
		ClusterID: "c1", ClusterUID: "uid-c1", Node: "gw", Port: 51820, Driver: "wireguard", PublicKey: "key-of-gw", UnderlayMTU: 1500, Overhead: 80,
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
		"carries":             func(*Snapshot) {},
		"alone":               func(s *Snapshot) { s.Endpoints = nil },
		"another-one-carries": func(s *Snapshot) { s.Endpoints = append(s.Endpoints, endpoint("c1", "early", []string{"172.18.0.2"})) },
		"own-endpoint-is-old": func(s *Snapshot) {
			s.Endpoints = append(s.Endpoints, endpoint("c1", "gw", []string{"172.18.9.9"}, "10.66.0.0/16"))
		},
		"third-attempt": func(s *Snapshot) { s.Attempts["c2.a"], s.Attempts["c2.b"] = 3, 3 },
		"other-driver":  func(s *Snapshot) { s.Endpoints[2].Spec.Driver = "ipsec" },
		"small-mtu-no-address": func(s *Snapshot) {
			s.UnderlayMTU, s.Addresses = 1300, nil
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

// Both ends of every cable plan alike: what one allows from the other is what the other sends, and no prefix has two peers.
func TestBothEndsAgree(t *testing.T) {
	all := []v1alpha1.Endpoint{
		endpoint("c1", "a", []string{"192.0.2.1"}, "10.1.0.0/16"), endpoint("c1", "b", []string{"192.0.2.2"}, "10.1.0.0/16"),
		endpoint("c2", "a", []string{"192.0.2.3"}, "10.2.0.0/16"), endpoint("c2", "b", []string{"192.0.2.4"}, "10.2.0.0/16"),
		endpoint("c3", "a", []string{"192.0.2.5"}, "10.3.0.0/16"),
	}
	allowed := map[string]map[string][]netip.Prefix{} // by gateway, by peer
	for _, self := range all {
		s := Snapshot{ClusterID: self.Spec.ClusterID, Node: self.Spec.Node, Port: 51820, Driver: "wireguard", UnderlayMTU: 1500, Overhead: 80,
			Prefixes: []netip.Prefix{netip.MustParsePrefix(self.Spec.Prefixes[0])}, Addresses: []netip.Addr{netip.MustParseAddr(self.Spec.Addresses[0])}, Endpoints: all}
		allowed[self.Name] = map[string][]netip.Prefix{}
		seen := map[netip.Prefix]bool{}
		for _, peer := range Plan(s).Cables.Peers {
			allowed[self.Name][peer.Endpoint] = peer.Prefixes
			for _, prefix := range peer.Prefixes {
				if seen[prefix] {
					t.Errorf("%s has two peers for %s", self.Name, prefix)
				}
				seen[prefix] = true
			}
		}
	}
	for _, a := range all {
		for _, b := range all {
			if a.Spec.ClusterID == b.Spec.ClusterID {
				continue
			}
			there, back := allowed[a.Name][b.Name], allowed[b.Name][a.Name]
			if (len(there) == 0) != (len(back) == 0) {
				t.Errorf("%s and %s: one end carries, the other does not: %v and %v", a.Name, b.Name, there, back)
			}
		}
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	err := Config{Prefixes: []string{"10.8.0.1/16"}, Driver: "pigeon", Addresses: []string{"here"}}.Validate()
	for _, want := range []string{"--cluster-id", "--node", "10.8.0.0/16", "pigeon", "--port", "--state-dir", "here", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
