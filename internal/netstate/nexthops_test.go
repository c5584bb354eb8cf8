package netstate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/test/netns"
)

// spread is a state with a group of n members for each family.
func spread(members ...int) State {
	s := State{Rules: []Rule{{Priority: 900}, {IPv6: true, Priority: 900}}}
	for _, v6 := range []bool{false, true} {
		name, dst := "c2/ipv4", netip.MustParsePrefix("10.9.0.0/16")
		if v6 {
			name, dst = "c2/ipv6", netip.MustParsePrefix("fd00:9::/32")
		}
		g := Group{Name: name, Buckets: 128, Idle: time.Second}
		for n := range 4 {
			hop := Nexthop{Via: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + n)}), Dev: "br0"}
			if v6 {
				hop = Nexthop{IPv6: true, Via: netip.MustParseAddr(fmt.Sprintf("fd31::%d", 10+n)), Dev: "br0"}
			}
			g.Candidates = append(g.Candidates, hop)
			if slices.Contains(members, n) {
				g.Members = append(g.Members, hop)
			}
		}
		if len(g.Members) > 0 {
			s.Groups = append(s.Groups, g)
			s.Routes = append(s.Routes, Route{Dst: dst, Group: name, Metric: 50})
		}
		s.Routes = append(s.Routes, Route{Dst: dst, Blackhole: true, Metric: 4096})
	}
	return s
}

func bridge(t *testing.T) {
	t.Helper()
	netns.Sh(t, `ip link set lo up; ip link add br0 type bridge; ip link set br0 up; ip addr add 192.0.2.1/24 dev br0; ip addr add fd31::1/64 dev br0 nodad`)
	t.Cleanup(func() { netns.Sh(t, "ip link delete br0") })
}

func TestNexthopText(t *testing.T) {
	s := spread(0, 2)
	straight := []Nexthop{{Dev: "fastnet-a"}, {IPv6: true, Dev: "fastnet-a"}}
	s.Groups = append(s.Groups, Group{Name: "straight", Members: straight, Candidates: straight})
	if err := s.Validate(scope); err != nil {
		t.Error(err)
	}
	text := s.Text(scope)
	for _, want := range []string{
		" via 192.0.2.10 dev br0 proto 251\n", " dev fastnet-a proto 251\n", " type resilient buckets 128 idle_timer 1 proto 251 # c2/ipv4\n",
		"10.9.0.0/16 group c2/ipv4 metric 50\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	broken := spread(0)
	broken.Routes = append(broken.Routes, Route{Dst: netip.MustParsePrefix("fd00:8::/32"), Group: "c2/ipv4", Metric: 1},
		Route{Dst: netip.MustParsePrefix("10.8.0.0/16"), Group: "nosuch", Metric: 1})
	broken.Groups = append(broken.Groups, Group{Name: "c2/ipv6"}, Group{Name: "stray", Members: []Nexthop{{Dev: "nosuch0"}}})
	err := broken.Validate(scope)
	for _, want := range []string{"c2/ipv6 is there twice", "stray", "group nosuch", "fd00:8::/32 group c2/ipv4"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not speak of %q", err, want)
		}
	}
}

// Whatever the order, the same things get the same IDs; no two of them share one, also where their hashes do.
func TestIDsAreDealtAlikeAndOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var keys []string
	for n := range 3000 { // of 32,768: many hashes meet
		keys = append(keys, fmt.Sprintf("key %d", n))
	}
	ids := deal(firstNexthop, idsOfAKind, slices.Clone(keys))
	random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	if diff := cmp.Diff(ids, deal(firstNexthop, idsOfAKind, slices.Clone(keys))); diff != "" {
		t.Error(diff)
	}
	owner := map[uint32]string{}
	for key, id := range ids {
		if owner[id] != "" || id < firstNexthop || id >= firstGroup {
			t.Errorf("%s and %q have ID %x", key, owner[id], id)
		}
		owner[id] = key
	}
	if len(ids) != 3000 {
		t.Errorf("%d IDs for 3000 keys", len(ids))
	}
}

func TestGroupsFromAnyMembersToAnyOther(t *testing.T) {
	for name, plain := range map[string]bool{"resilient": false, "plain": true} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			k.plain = plain
			bridge(t)
			netns.Sh(t, `ip nexthop add id 77 via 192.0.2.9 dev br0; ip nexthop add id 78 group 77; ip route add 10.77.0.0/16 nhid 78 table 4711
				ip nexthop add id 79 via 192.0.2.9 dev br0 protocol 251`)
			t.Cleanup(func() { netns.Sh(t, "ip nexthop delete id 79; ip nexthop delete id 78; ip nexthop delete id 77") })
			random := rand.New(rand.NewPCG(5, 6))
			for step := range 40 {
				members := random.Perm(4)[:random.IntN(5)]
				want := spread(members...)
				if _, err := k.Apply(t.Context(), want); err != nil {
					t.Fatalf("step %d, %v: %v", step, members, err)
				}
				if again, err := k.Apply(t.Context(), want); err != nil || len(again) > 0 {
					t.Fatalf("step %d, %v again: %v, changes\n%s", step, members, err, strings.Join(again, "\n"))
				}
				for v, command := range []string{"ip", "ip -6"} {
					routes := netns.Sh(t, command+" route show table 4711 proto 251")
					for n := range 4 {
						hop := []string{fmt.Sprintf("via 192.0.2.%d dev br0", 10+n), fmt.Sprintf("via fd31::%d dev br0", 10+n)}[v]
						if has := strings.Contains(routes, hop); has != slices.Contains(members, n) {
							t.Errorf("step %d, members %v: %s is there: %t\n%s", step, members, hop, has, routes)
						}
					}
					if !strings.Contains(routes, "blackhole") || plain == strings.Contains(netns.Sh(t, "ip nexthop"), "resilient") && len(members) > 0 {
						t.Errorf("step %d: no blackhole, or not the kind of group that should be\n%s", step, routes)
					}
				}
			}
			if _, err := k.Apply(t.Context(), State{}); err != nil {
				t.Fatal(err)
			}
			if left := strings.TrimSpace(netns.Sh(t, "ip -br nexthop | cut -d' ' -f1,2")); left != "id 77\nid 78\nid 79" {
				t.Errorf("after the empty state, and of others:\n%s", left)
			}
		})
	}
}

// Exchanging members is one step: in every dump of the kernel's the route is there, with one member or the other.
func TestRegroupIsOneStep(t *testing.T) {
	k := newKernel(t)
	bridge(t)
	if _, err := k.Apply(t.Context(), spread(0)); err != nil {
		t.Fatal(err)
	}
	before := netns.Sh(t, "ip route show table 4711 | head -1; ip rule")
	done := make(chan error, 1)
	go func() {
		for i := 1; i < 400; i++ {
			changes, err := k.Regroup(t.Context(), spread(i%2))
			if err == nil && len(changes) != 8 {
				err = fmt.Errorf("changes are %v", changes)
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	watcher := New(scope, nil)
	for looks := 0; ; looks++ {
		select {
		case err := <-done:
			if err != nil || looks == 0 {
				t.Errorf("%v, %d looks", err, looks)
			}
			if _, err := k.Regroup(t.Context(), spread(0)); err != nil {
				t.Error(err)
			}
			if after := netns.Sh(t, "ip route show table 4711 | head -1; ip rule"); after != before {
				t.Errorf("the routes have changed from\n%s to\n%s", before, after)
			}
			return
		default:
		}
		_, groups := spread(0).ids()
		routes, err := watcher.ownRoutes(groups)
		if err != nil {
			t.Fatal(err)
		}
		has, err := watcher.ownPaths()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"c2/ipv4", "c2/ipv6"} {
			if !slices.ContainsFunc(routes, func(r kernelRoute) bool { return r.Group == name }) || len(has.groups[groups[name]].members) != 1 {
				t.Fatalf("look %d: routes %v, group %s has members %v", looks, routes, name, has.groups[groups[name]].members)
			}
		}
	}
}

// What the debug page shows, and what a process that starts finds in use.
func TestObserve(t *testing.T) {
	k := newKernel(t)
	bridge(t)
	want := spread(0, 2)
	straight := Route{Dst: netip.MustParsePrefix("10.10.0.0/16"), Via: want.Groups[0].Candidates[1].Via, Dev: "br0", Metric: 50}
	want.Routes = append(want.Routes, straight)
	if _, err := k.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	seen, err := k.Observe(want)
	if err != nil {
		t.Fatal(err)
	}
	text := want.Text(scope)
	for _, line := range seen.Lines {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
	if len(seen.Lines) != 2*2+len(want.Groups)+len(want.Routes) {
		t.Errorf("observed:\n%s", strings.Join(seen.Lines, "\n"))
	}
	inUse := map[netip.Prefix][]Nexthop{straight.Dst: {want.Groups[0].Candidates[1]}, want.Routes[0].Dst: want.Groups[0].Members, want.Routes[2].Dst: want.Groups[1].Members}
	for dst, hops := range inUse {
		slices.SortFunc(hops, func(a, b Nexthop) int { return strings.Compare(a.String(), b.String()) })
		slices.SortFunc(seen.InUse[dst], func(a, b Nexthop) int { return strings.Compare(a.String(), b.String()) })
	}
	if fmt.Sprint(seen.InUse) != fmt.Sprint(inUse) {
		t.Errorf("in use %v, want %v", seen.InUse, inUse)
	}
}

// Flows of a resilient group stay where they are when another member goes, and only those of the one that went move.
func TestOnlyTheBucketsOfTheMemberThatWentMove(t *testing.T) {
	k := newKernel(t)
	bridge(t)
	buckets := func() map[string]string {
		t.Helper()
		by := map[string]string{}
		for _, line := range strings.Split(netns.Sh(t, "ip nexthop bucket"), "\n") {
			var id, index, idle, hop string
			if _, err := fmt.Sscanf(line, "id %s index %s idle_time %s nhid %s", &id, &index, &idle, &hop); err == nil {
				by[id+"/"+index] = hop
			}
		}
		return by
	}
	if _, err := k.Apply(t.Context(), spread(0, 1, 2)); err != nil {
		t.Fatal(err)
	}
	before := buckets()
	if len(before) != 2*128 {
		t.Fatalf("%d buckets", len(before))
	}
	if _, err := k.Regroup(t.Context(), spread(0, 2)); err != nil {
		t.Fatal(err)
	}
	nexthops, _ := spread(1).ids()
	went := map[string]bool{}
	for _, hop := range spread(1).Groups {
		went[fmt.Sprint(nexthops[hop.Members[0].in(hop.Name)])] = true
	}
	moved := 0
	for bucket, hop := range buckets() {
		switch was := before[bucket]; {
		case went[hop]:
			t.Errorf("bucket %s still leads to %s", bucket, hop)
		case went[was]:
			moved++
		case was != hop:
			t.Errorf("bucket %s moved from %s to %s, though its member stayed", bucket, was, hop)
		}
	}
	if moved < 2*40 || moved > 2*46 {
		t.Errorf("%d buckets moved, want a third of 256", moved)
	}
}

// A device that goes takes its next hops out of all groups; what is left is in use at once, and what it was in alone ends
// at the blackhole. When it is back, the next call makes it as before.
func TestDeviceGoesAndComesBack(t *testing.T) {
	k := newKernel(t)
	netns.Sh(t, `ip link set lo up; for n in a b; do ip link add fastnet-u$n type veth peer name peer-$n; ip link set fastnet-u$n up; ip link set peer-$n up; done`)
	t.Cleanup(func() { netns.Sh(t, "ip link delete fastnet-ua; ip link delete fastnet-ub") })
	a, b := Nexthop{Dev: "fastnet-ua"}, Nexthop{Dev: "fastnet-ub"}
	dst := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("10.10.0.0/16")}
	want := State{Groups: []Group{
		{Name: "both", Members: []Nexthop{a, b}, Candidates: []Nexthop{a, b}, Buckets: 128, Idle: time.Second},
		{Name: "one", Members: []Nexthop{a}, Candidates: []Nexthop{a}, Buckets: 128, Idle: time.Second}},
		Routes: []Route{{Dst: dst[0], Group: "both", Metric: 50}, {Dst: dst[0], Blackhole: true, Metric: 60},
			{Dst: dst[1], Group: "one", Metric: 50}, {Dst: dst[1], Blackhole: true, Metric: 60}}}
	scope := Scope{Table: scope.Table, Protocol: scope.Protocol, ChainPrefix: scope.ChainPrefix}
	k.scope = scope
	if _, err := k.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	table := "ip route show table 4711"
	before := netns.Sh(t, table)
	netns.Sh(t, "ip link set peer-a down") // and so fastnet-ua has no carrier
	now := netns.Sh(t, table)
	if strings.Contains(now, "fastnet-ua") || !strings.Contains(now, "fastnet-ub") || strings.Count(now, "blackhole") != 2 {
		t.Errorf("without the device:\n%s", now)
	}
	for range 2 { // it is no error that it cannot be now
		if _, err := k.Apply(t.Context(), want); err != nil {
			t.Error(err)
		}
	}
	netns.Sh(t, "ip link set peer-a up")
	if _, err := k.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, netns.Sh(t, table)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}

// An ID of our range that somebody else has taken is left to them, and said.
func TestForeignNexthopIsNotReplaced(t *testing.T) {
	k := newKernel(t)
	bridge(t)
	want := spread(0)
	nexthops, _ := want.ids()
	id := nexthops[want.Groups[0].Members[0].in("c2/ipv4")]
	netns.Sh(t, fmt.Sprintf("ip nexthop add id %d via 192.0.2.99 dev br0", id))
	t.Cleanup(func() { netns.Sh(t, fmt.Sprintf("ip nexthop delete id %d", id)) })
	if _, err := k.Apply(t.Context(), want); err == nil || !strings.Contains(err.Error(), "file exists") {
		t.Errorf("error is %v", err)
	}
	if !strings.Contains(netns.Sh(t, "ip nexthop"), "192.0.2.99") {
		t.Error("the other's nexthop is gone")
	}
}
