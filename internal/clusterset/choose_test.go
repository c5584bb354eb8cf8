package clusterset

import (
	"fmt"
	"maps"
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

// described makes slices of words, "c1:3/4:http,admin" or "c1/IPv6:0/1:http": cluster, ready backends of all, ports.
func described(t *testing.T, text string) []Slice {
	t.Helper()
	var all []Slice
	for word := range strings.FieldsSeq(text) {
		parts := strings.Split(word, ":")
		s := Slice{Record: parts[0], Family: "IPv4"}
		cluster, family, ok := strings.Cut(parts[0], "/")
		if s.Cluster = cluster; ok {
			s.Family = family
		}
		var ready, have int
		if _, err := fmt.Sscanf(parts[1], "%d/%d", &ready, &have); err != nil {
			t.Fatal(word, err)
		}
		for i := range have {
			s.Backends = append(s.Backends, v1alpha1.Backend{Addresses: []string{"x"}, Ready: ptr(i < ready)})
		}
		for name := range strings.SplitSeq(parts[2], ",") {
			s.Ports = append(s.Ports, v1alpha1.BackendPort{Name: name})
		}
		all = append(all, s)
	}
	return all
}

// TestChoose has a case for each rule. The local cluster is c1; the policy is in annotations, as users write it, with the
// weights of other clusters as "weight c2"; clusters are reachable but for those named.
func TestChoose(t *testing.T) {
	type says = map[string]string
	for _, test := range []struct {
		name   string
		policy says
		down   string // unreachable, and returning after a "~"
		slices string
		want   string
	}{
		{"local while ready", nil, "", "c1:1/1:http c2:1/1:http", "c1:http"},
		{"remote when no local one is ready", nil, "", "c1:0/1:http c2:1/1:http c3:1/1:http", "c2:http c3:http"},
		{"remote when there is no local one", nil, "", "c2:1/1:http", "c2:http"},
		{"only reachable remotes", nil, "c2", "c2:1/1:http c3:1/1:http", "c3:http"},
		{"port by port", nil, "", "c1:1/1:http c2:1/1:http,admin", "c1:http c2:admin"},
		{"family by family", nil, "", "c1:1/1:http c2:1/1:http c2/IPv6:1/1:http", "c1:http c2/IPv6:http"},
		{"nobody ready: what there is", nil, "", "c1:0/1:http c2:0/1:http", "c1:http c2:http"},
		{"a ready remote out of reach is none", nil, "c2", "c1:0/1:http c2:1/1:http", "c1:http"},

		{"none: all alike", says{"affinity": "none"}, "", "c1:1/1:http c2:1/1:http c3:1/1:http", "c1:http c2:http c3:http"},
		{"none: but for those out of reach", says{"affinity": "none"}, "c3", "c1:1/1:http c2:1/1:http c3:1/1:http", "c1:http c2:http"},
		{"remote: not the local one", says{"affinity": "remote"}, "", "c1:1/1:http c2:1/1:http", "c2:http"},
		{"remote: the local one when no remote one is ready", says{"affinity": "remote"}, "", "c1:1/1:http c2:0/1:http", "c1:http"},
		{"remote: the local one when none is in reach", says{"affinity": "remote"}, "c2", "c1:1/1:http c2:1/1:http", "c1:http"},

		{"prefer: the first", says{"prefer": "c3, c2", "affinity": "none"}, "", "c1:1/1:http c2:1/1:http c3:1/1:http", "c3:http"},
		{"prefer: the next", says{"prefer": "c3,c2", "affinity": "none"}, "", "c1:1/1:http c2:1/1:http c3:0/1:http", "c2:http"},
		{"prefer: the first may be the local one", says{"prefer": "c1,c2", "affinity": "none"}, "", "c1:1/1:http c2:1/1:http", "c1:http"},
		{"prefer: the rest", says{"prefer": "c3", "affinity": "none"}, "c3", "c1:1/1:http c2:1/1:http c3:1/1:http", "c1:http c2:http"},
		{"prefer alone: an order among the others", says{"prefer": "c3,c2"}, "", "c1:1/1:http c2:1/1:http c3:1/1:http", "c1:http"},
		{"prefer alone: taken over in that order", says{"prefer": "c3,c2"}, "", "c1:0/1:http c2:1/1:http c3:1/1:http", "c3:http"},
		{"prefer and remote: the local one last", says{"prefer": "c1", "affinity": "remote"}, "", "c1:1/1:http c2:1/1:http", "c2:http"},

		{"percent met", says{"min-local-percent": "50"}, "", "c1:1/2:http c2:1/1:http", "c1:http"},
		{"percent missed", says{"min-local-percent": "51"}, "", "c1:1/2:http c2:1/1:http", "c1:http c2:http"},
		{"percent over several slices", says{"min-local-percent": "50"}, "", "c1:0/2:http c1:2/2:http c2:1/1:http", "c1:http c1:http"},
		{"percent of the port's own backends", says{"min-local-percent": "50"}, "", "c1:1/1:http c1:0/2:admin,http c2:1/1:http,admin", "c1:http c1:http c2:http,admin"},
		{"percent: the preferred one joins in", says{"min-local-percent": "100", "prefer": "c3"}, "", "c1:1/2:http c2:1/1:http c3:1/1:http", "c1:http c3:http"},
		{"percent: nobody there to join in", says{"min-local-percent": "100"}, "c2", "c1:1/2:http c2:1/1:http", "c1:http"},
		{"percent: none is ready", says{"min-local-percent": "100"}, "", "c1:0/2:http c2:1/1:http", "c2:http"},
		{"percent: a cluster of weight 0 does not join in", says{"min-local-percent": "100", "weight c2": "0"}, "", "c1:1/2:http c2:1/1:http", "c1:http"},
		{"percent: nor one that is returning", says{"min-local-percent": "100"}, "~c2", "c1:1/2:http c2:1/1:http", "c1:http"},

		{"weight 0 is out", says{"weight c2": "0"}, "", "c2:1/1:http c3:1/1:http", "c3:http"},
		{"weight 0 while another is left", says{"weight c2": "0"}, "", "c2:1/1:http c3:0/1:http", "c2:http"},
		{"all of weight 0", says{"weight c2": "0", "weight c3": "0"}, "", "c2:1/1:http c3:1/1:http", "c2:http c3:http"},
		{"weight 0 and preferred", says{"weight c2": "0", "prefer": "c2"}, "", "c2:1/1:http c3:1/1:http", "c3:http"},
		{"local first whatever its weight", says{"weight c1": "0"}, "", "c1:1/1:http c2:1/1:http", "c1:http"},
		{"weight 0 of the local one, all alike", says{"weight c1": "0", "affinity": "none"}, "", "c1:1/1:http c2:1/1:http", "c2:http"},
		{"other weights have no say", says{"weight c2": "3", "weight c3": "1"}, "", "c2:1/1:http c3:1/1:http", "c2:http c3:http"},

		{"returning is out", nil, "~c2", "c2:1/1:http c3:1/1:http", "c3:http"},
		{"returning while another is left", nil, "c3 ~c2", "c1:0/1:http c2:1/1:http c3:1/1:http", "c2:http"},
		{"returning comes after weight 0", says{"weight c3": "0"}, "~c2", "c2:1/1:http c3:1/1:http", "c3:http"},
	} {
		t.Run(test.name, func(t *testing.T) {
			annotations := map[string]string{}
			weights := map[string]int32{}
			for key, value := range test.policy {
				if cluster, ok := strings.CutPrefix(key, "weight "); ok {
					var e v1alpha1.ExportedServiceSpec
					ReadPolicy(map[string]string{v1alpha1.AnnotationWeight: value}, &e)
					weights[cluster] = *e.Weight
					continue
				}
				annotations["fastnet.dev/"+key] = value
			}
			policy := knownPolicy(annotations)
			policy.Weights = weights
			reach := func(cluster string) Reach {
				switch words := strings.Fields(test.down); {
				case slices.Contains(words, cluster):
					return Unreachable
				case slices.Contains(words, "~"+cluster):
					return Returning
				}
				return Reachable
			}
			all := described(t, test.slices)
			if got := shown(all, Choose("c1", policy, reach, all)); got != test.want {
				t.Errorf("chosen %q, want %q", got, test.want)
			}
		})
	}
}

// way is what is chosen for by itself.
type way struct{ family, port string }

// serving are the clusters that serve, way by way, and those of them that have a ready backend there.
func serving(all []Slice, chosen [][]v1alpha1.BackendPort) (serve, ready map[way]map[string]bool) {
	serve, ready = map[way]map[string]bool{}, map[way]map[string]bool{}
	put := func(in map[way]map[string]bool, w way, cluster string) {
		if in[w] == nil {
			in[w] = map[string]bool{}
		}
		in[w][cluster] = true
	}
	for i, s := range all {
		for _, port := range chosen[i] {
			put(serve, way{s.Family, port.Name}, s.Cluster)
			if AnyReady(s.Backends) {
				put(ready, way{s.Family, port.Name}, s.Cluster)
			}
		}
	}
	return serve, ready
}

// randomPolicy is a policy of the clusters that random makes, and their reach.
func randomPolicy(r *rand.Rand) (Policy, map[string]Reach) {
	p := Policy{Affinity: []string{"local", "none", "remote"}[r.IntN(3)], Weights: map[string]int32{}}
	if r.IntN(2) == 0 {
		p.MinLocalPercent = int32(r.IntN(101))
	}
	reach := map[string]Reach{}
	for _, i := range r.Perm(5) {
		cluster := fmt.Sprintf("c%d", i)
		if r.IntN(4) == 0 {
			p.Prefer = append(p.Prefer, cluster)
		}
		if r.IntN(2) == 0 {
			p.Weights[cluster] = int32(r.IntN(3))
		}
		reach[cluster] = []Reach{Unreachable, Returning, Reachable, Reachable}[r.IntN(4)]
	}
	return p, reach
}

// TestChoiceOfRandomBackends: what holds of every choice, and of every choice beside the one of a neighbouring world.
func TestChoiceOfRandomBackends(t *testing.T) {
	const local = "c1"
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 2))
		contributions := random(r)
		all := merged(t, contributions...).Slices(contributions)
		policy, reaches := randomPolicy(r)
		reach := func(c string) Reach { return reaches[c] }
		choose := func(policy Policy, all []Slice) map[way]map[string]bool {
			serve, _ := serving(all, Choose(local, policy, reach, all))
			return serve
		}
		chosen := Choose(local, policy, reach, all)
		serve, servesReady := serving(all, chosen)

		candidates := map[way]map[string]bool{} // with a ready backend, within reach
		counts := map[way][2]int64{}            // local backends: ready, all
		for _, s := range all {
			ready, have := health(s.Backends)
			for _, port := range s.Ports {
				w := way{s.Family, port.Name}
				if ready > 0 && (s.Cluster == local || reaches[s.Cluster] != Unreachable) {
					if candidates[w] == nil {
						candidates[w] = map[string]bool{}
					}
					candidates[w][s.Cluster] = true
				}
				if s.Cluster == local {
					counts[w] = [2]int64{counts[w][0] + ready, counts[w][1] + have}
				}
			}
		}
		for i, s := range all {
			for _, port := range chosen[i] {
				if !slices.Contains(s.Ports, port) {
					t.Fatalf("seed %d: %s serves port %v, which it does not have", seed, s.Record, port)
				}
			}
		}
		for w, clusters := range serve {
			for c := range clusters {
				if c != local && reaches[c] == Unreachable {
					t.Fatalf("seed %d: unreachable %s serves %v", seed, c, w)
				}
				better := func(other string) bool {
					return other == local || reaches[other] == Reachable && (policy.Weights[other] > 0 || !has(policy.Weights, other))
				}
				spare := c != local && (reaches[c] == Returning || has(policy.Weights, c) && policy.Weights[c] == 0)
				if policy.Affinity != "local" && has(policy.Weights, local) && policy.Weights[local] == 0 {
					continue // the local one is no better then
				}
				for other := range candidates[w] {
					if spare && better(other) && candidates[w][c] {
						t.Fatalf("seed %d: %s serves %v, though %s could", seed, c, w, other)
					}
				}
			}
		}
		for w, could := range candidates {
			if len(servesReady[w]) == 0 {
				t.Fatalf("seed %d: %v has ready backends within reach at %v and none serves", seed, w, could)
			}
			share := counts[w][0]*100 >= counts[w][1]*int64(policy.MinLocalPercent)
			if policy.Affinity == "local" && could[local] && (!serve[w][local] || share && len(serve[w]) > 1) {
				t.Fatalf("seed %d: %v has %d of %d local backends, %d percent asked: %v serve", seed, w, counts[w][0], counts[w][1], policy.MinLocalPercent, serve[w])
			}
			if policy.Affinity == "remote" && serve[w][local] {
				for other := range could {
					if other != local && reaches[other] == Reachable && (!has(policy.Weights, other) || policy.Weights[other] > 0) {
						t.Fatalf("seed %d: %v is served by the local cluster, though %s could, under affinity remote", seed, w, other)
					}
				}
			}
		}

		// The order of the slices has no say.
		order := r.Perm(len(all))
		shuffled := make([]Slice, len(all))
		for i, j := range order {
			shuffled[i] = all[j]
		}
		for i, ports := range Choose(local, policy, reach, shuffled) {
			if !slices.Equal(ports, chosen[order[i]]) {
				t.Fatalf("seed %d: the order of arrival shows at %s: %v, %v", seed, shuffled[i].Record, ports, chosen[order[i]])
			}
		}

		// One more ready backend at a cluster that serves keeps it there.
		if i := r.IntN(max(len(all), 1)); len(all) > 0 {
			more := slices.Clone(all)
			more[i].Backends = append(slices.Clone(more[i].Backends), v1alpha1.Backend{Addresses: []string{"x"}})
			for _, port := range chosen[i] {
				w := way{all[i].Family, port.Name}
				if candidates[w][all[i].Cluster] && !choose(policy, more)[w][all[i].Cluster] {
					t.Fatalf("seed %d: %s served %v until one more of its backends was ready", seed, all[i].Cluster, w)
				}
			}
		}
		// Who does not serve can go, and nothing changes for the others.
		if len(all) > 0 {
			gone := all[r.IntN(len(all))].Cluster
			without := choose(policy, slices.DeleteFunc(slices.Clone(all), func(s Slice) bool { return s.Cluster == gone }))
			for w := range candidates {
				if !serve[w][gone] && gone != local && fmt.Sprint(without[w]) != fmt.Sprint(serve[w]) {
					t.Fatalf("seed %d: %v was served by %v, without the idle %s by %v", seed, w, serve[w], gone, without[w])
				}
			}
		}
		// A larger share asked for takes nobody out.
		stricter := policy
		stricter.MinLocalPercent = policy.MinLocalPercent + int32(r.IntN(int(101-policy.MinLocalPercent)))
		for w, clusters := range choose(stricter, all) {
			for c := range serve[w] {
				if !clusters[c] {
					t.Fatalf("seed %d: %s no longer serves %v when %d percent are asked for and not %d", seed, c, w, stricter.MinLocalPercent, policy.MinLocalPercent)
				}
			}
		}
		// More weight takes nobody out that it is given to.
		for c := range reaches {
			heavier := policy
			heavier.Weights = maps.Clone(policy.Weights)
			heavier.Weights[c] = policy.Weights[c] + 5
			with := choose(heavier, all)
			for w := range candidates {
				if serve[w][c] && candidates[w][c] && !with[w][c] {
					t.Fatalf("seed %d: %s served %v until its weight was raised", seed, c, w)
				}
			}
		}
	}
}

func has(weights map[string]int32, cluster string) bool { _, ok := weights[cluster]; return ok }
