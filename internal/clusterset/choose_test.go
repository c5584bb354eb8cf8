package clusterset

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// shown is the choice in words: "c1:http,admin c2:admin".
func shown(all []Slice, chosen [][]v1alpha1.BackendPort) string {
	var words []string
	for i, ports := range chosen {
		var names []string
		for _, p := range ports {
			names = append(names, p.Name)
		}
		if names != nil {
			words = append(words, all[i].Record+":"+strings.Join(names, ","))
		}
	}
	return strings.Join(words, " ")
}

func TestChoose(t *testing.T) {
	slice := func(cluster, family string, ready bool, ports ...string) Slice {
		s := Slice{Cluster: cluster, Record: cluster, Family: family, Backends: []v1alpha1.Backend{{Addresses: []string{"x"}, Ready: &ready}}}
		for _, p := range ports {
			s.Ports = append(s.Ports, v1alpha1.BackendPort{Name: p})
		}
		return s
	}
	reach := func(clusters ...string) func(string) bool {
		return func(c string) bool { return slices.Contains(clusters, c) }
	}
	for _, test := range []struct {
		name      string
		reachable func(string) bool
		slices    []Slice
		want      string
	}{
		{"local while ready", reach("c2"), []Slice{slice("c1", "IPv4", true, "http"), slice("c2", "IPv4", true, "http")}, "c1:http"},
		{"remote when no local one is ready", reach("c2", "c3"), []Slice{slice("c1", "IPv4", false, "http"), slice("c2", "IPv4", true, "http"), slice("c3", "IPv4", true, "http")}, "c2:http c3:http"},
		{"remote when there is no local one", reach("c2"), []Slice{slice("c2", "IPv4", true, "http")}, "c2:http"},
		{"only reachable remotes", reach("c3"), []Slice{slice("c2", "IPv4", true, "http"), slice("c3", "IPv4", true, "http")}, "c3:http"},
		{"port by port", reach("c2"), []Slice{slice("c1", "IPv4", true, "http"), slice("c2", "IPv4", true, "http", "admin")}, "c1:http c2:admin"},
		{"family by family", reach("c2"), []Slice{slice("c1", "IPv4", true, "http"), slice("c2", "IPv4", true, "http"), slice("c2", "IPv6", true, "http")}, "c1:http c2:http"},
		{"nobody ready: what there is", reach("c2"), []Slice{slice("c1", "IPv4", false, "http"), slice("c2", "IPv4", false, "http")}, "c1:http c2:http"},
		{"a ready remote out of reach is none", reach(), []Slice{slice("c1", "IPv4", false, "http"), slice("c2", "IPv4", true, "http")}, "c1:http"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := shown(test.slices, Choose("c1", test.reachable, test.slices)); got != test.want {
				t.Errorf("chosen %q, want %q", got, test.want)
			}
		})
	}
}

func TestChoiceOfRandomBackends(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		contributions := random(r)
		all := merged(t, contributions...).Slices(contributions)
		up := map[string]bool{}
		for i := range 5 {
			up[fmt.Sprintf("c%d", i)] = r.IntN(3) > 0
		}
		const local = "c1"
		reachable := func(c string) bool { return up[c] }
		chosen := Choose(local, reachable, all)

		type way struct{ family, port string }
		ready, served, localServes, remoteServes, localReady := map[way]bool{}, map[way]bool{}, map[way]bool{}, map[way]bool{}, map[way]bool{}
		for i, s := range all {
			for _, port := range s.Ports {
				w := way{s.Family, port.Name}
				ok := AnyReady(s.Backends)
				ready[w] = ready[w] || ok && (s.Cluster == local || up[s.Cluster])
				localReady[w] = localReady[w] || ok && s.Cluster == local
				if !slices.Contains(chosen[i], port) {
					continue
				}
				served[w] = served[w] || ok
				localServes[w] = localServes[w] || s.Cluster == local
				remoteServes[w] = remoteServes[w] || s.Cluster != local
				if s.Cluster != local && !up[s.Cluster] {
					t.Fatalf("seed %d: unreachable %s serves %v", seed, s.Cluster, w)
				}
			}
			for _, port := range chosen[i] {
				if !slices.Contains(s.Ports, port) {
					t.Fatalf("seed %d: %s serves port %v, which it does not have", seed, s.Record, port)
				}
			}
		}
		for w := range ready {
			if ready[w] && !served[w] {
				t.Fatalf("seed %d: %v has ready backends in reach and none serves", seed, w)
			}
			if localReady[w] && (remoteServes[w] || !localServes[w]) {
				t.Fatalf("seed %d: %v has ready local backends; local serves %t, remote %t", seed, w, localServes[w], remoteServes[w])
			}
		}
	}
}
