package netstate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

var scope = Scope{LinkPrefix: "fastnet-t", Table: 4711, Protocol: 251, ChainPrefix: "FNTEST-"}

func newKernel(t *testing.T) *Kernel {
	t.Helper()
	netns.RequireRoot(t)
	tables, err := NewTables(NFT, scope.ChainPrefix)
	if err != nil {
		t.Fatal(err)
	}
	k := New(scope, tables)
	t.Cleanup(func() {
		if _, err := k.Apply(context.Background(), State{}); err != nil { // the test's own context has ended by now
			t.Error(err)
		}
	})
	return k
}

func TestEditsLeadFromAnyListToAnyOther(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	list := func() []string {
		all := []string{"a", "b", "c", "d", "e", "f"}
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return slices.Clone(all[:random.IntN(len(all)+1)])
	}
	for range 2000 {
		have, want := list(), list()
		is := slices.Clone(have)
		steps := edits(have, want)
		for _, step := range steps {
			if step.insert {
				is = slices.Insert(is, step.position-1, step.rule)
			} else {
				is = slices.Delete(is, step.position-1, step.position)
			}
		}
		if !slices.Equal(is, want) {
			t.Fatalf("from %v to %v: %+v lead to %v", have, want, steps, is)
		}
	}
	// What is in both lists, in the same order, stays.
	for _, step := range edits([]string{"a", "b", "c"}, []string{"a", "x", "c"}) {
		if step.rule == "a" || step.rule == "c" {
			t.Errorf("step %+v touches a rule that stays", step)
		}
	}
}

func TestText(t *testing.T) {
	state := State{
		Links: []Link{{Name: "fastnet-t", Kind: KindVXLAN, MTU: 1450, MAC: "02:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("fe80::1/64")},
			VXLAN: VXLAN{ID: 7, Port: 4801, Local: netip.MustParseAddr("192.0.2.1")}}},
		Neighbours: []Neighbour{{Link: "fastnet-t", Addr: netip.MustParseAddr("fe80::2"), MAC: "02:00:00:00:00:02"}},
		Forwarding: []Forwarding{{Link: "fastnet-t", MAC: "02:00:00:00:00:02", Dst: netip.MustParseAddr("192.0.2.2")}},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("fd00:9::/32"), Dev: "fastnet-t", Metric: 50},
			{Dst: netip.MustParsePrefix("10.9.0.0/16"), Blackhole: true, Metric: 4096},
			{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("fe80::2"), Dev: "fastnet-t", Metric: 50},
		},
		Rules:   []Rule{{Priority: 900}, {IPv6: true, Priority: 900}},
		Chains:  []Chain{{Table: "nat", Name: "FNTEST-X", Rules: []string{"-d 10.9.0.0/16 -j ACCEPT"}}},
		Jumps:   []Jump{{Table: "nat", Builtin: "POSTROUTING", Chain: "FNTEST-X"}},
		Sysctls: []Sysctl{{Link: "eth0", RPFilter: 2}},
	}
	want := `# ip -d addr
fastnet-t: mtu 1450 vxlan id 7 local 192.0.2.1 dstport 4801 nolearning link/ether 02:00:00:00:00:01 inet6 fe80::1/64
# ip neigh
fe80::2 dev fastnet-t lladdr 02:00:00:00:00:02 PERMANENT
# bridge fdb
02:00:00:00:00:02 dev fastnet-t dst 192.0.2.2 self permanent
# ip rule
900: from all lookup 4711 proto 251
# ip -6 rule
900: from all lookup 4711 proto 251
# ip route show table 4711
10.9.0.0/16 via inet6 fe80::2 dev fastnet-t metric 50
blackhole 10.9.0.0/16 metric 4096
# ip -6 route show table 4711
fd00:9::/32 dev fastnet-t metric 50
# iptables-save
*nat
:FNTEST-X - [0:0]
-A POSTROUTING -j FNTEST-X
-A FNTEST-X -d 10.9.0.0/16 -j ACCEPT
# sysctl
net.ipv4.conf.eth0.rp_filter = 2
`
	if diff := cmp.Diff(want, state.Text(scope)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := state.Validate(scope); err != nil {
		t.Error(err)
	}
	if err := state.Validate(Scope{}); err == nil {
		t.Error("a state is valid in a scope that owns nothing")
	}
}

// What a process left that was killed, in whatever form, is swept by its marks; what is not marked stays.
func TestOrphansAreSweptAndForeignStateStays(t *testing.T) {
	k := newKernel(t)
	netns.Sh(t, `ip link set lo up; ip link add eth0 type bridge; ip link set eth0 up; ip addr add 192.0.2.1/24 dev eth0
		ip link add fastnet-told type bridge; ip link add fastnet-other type bridge
		ip route add 10.1.0.0/16 dev lo table 4711 proto 251 metric 7; ip route add 10.2.0.0/16 dev lo table 4711 proto static
		ip route add 10.3.0.0/16 dev lo table 4712 proto 251
		ip rule add priority 5 lookup 4711 protocol 251; ip rule add priority 6 lookup 4711; ip -6 rule add priority 7 lookup 4711 protocol 251
		for ipt in iptables-nft ip6tables-nft; do
			$ipt -t nat -N FNTEST-OLD; $ipt -t nat -A FNTEST-OLD -j ACCEPT; $ipt -t nat -A OUTPUT -j FNTEST-OLD; $ipt -t nat -N FNTESTLING
			$ipt -N FNTEST-A; $ipt -N FNTEST-B; $ipt -A FORWARD -j FNTEST-A; $ipt -A FORWARD -j FNTESTLING 2>/dev/null || true; done`)
	t.Cleanup(func() {
		netns.Sh(t, `for link in eth0 fastnet-other; do ip link delete $link; done; ip rule delete priority 6; ip route flush table 4711; ip route flush table 4712`)
	})
	if _, err := k.Apply(t.Context(), State{}); err != nil {
		t.Fatal(err)
	}
	state := netns.Sh(t, `ip -br link; ip rule; ip -6 rule; ip route show table 4711; ip route show table 4712; iptables-nft-save; ip6tables-nft-save`)
	for _, gone := range []string{"fastnet-told", "proto 251 metric 7", "\n5:\t", "\n7:\t", "FNTEST-"} {
		if strings.Contains(state, gone) {
			t.Errorf("%q is still there:\n%s", gone, state)
		}
	}
	for _, stays := range []string{"fastnet-other", "10.2.0.0/16", "10.3.0.0/16", "6:\tfrom all lookup 4711", "FNTESTLING"} {
		if !strings.Contains(state, stays) {
			t.Errorf("%q is gone:\n%s", stays, state)
		}
	}
}

// Chains that were seen to be right are not looked at for a while, other ones at once.
func TestChainsAreTrustedForAWhile(t *testing.T) {
	k := newKernel(t)
	k.tables.Trust = time.Hour
	chain := func(v6 bool) State {
		return State{Chains: []Chain{{IPv6: v6, Table: "nat", Name: "FNTEST-NAT", Rules: []string{"-j ACCEPT"}}},
			Jumps: []Jump{{IPv6: v6, Table: "nat", Builtin: "POSTROUTING", Chain: "FNTEST-NAT"}}}
	}
	apply := func(want State, changes int) {
		t.Helper()
		if done, err := k.Apply(t.Context(), want); err != nil || len(done) != changes {
			t.Errorf("changes %v (%v), want %d", done, err, changes)
		}
	}
	apply(chain(false), 3)
	netns.Sh(t, "iptables-nft -t nat -F POSTROUTING")
	apply(chain(false), 0)
	apply(chain(true), 4) // the other family's are made, and these, which nobody jumps to, removed
	apply(chain(true), 0)
	netns.Sh(t, "ip6tables-nft -t nat -F POSTROUTING")
	k.tables.Trust = 0
	apply(chain(true), 1)
	k.tables.Trust = time.Hour
	if state := netns.Sh(t, "ip6tables-nft-save; iptables-nft-save"); strings.Count(state, "FNTEST-NAT") != 3 {
		t.Errorf("the chain, its rule and the jump to it:\n%s", state)
	}
}

func TestSysctlIsPutBackAlsoAfterACrash(t *testing.T) {
	k := newKernel(t)
	netns.Sh(t, `ip link add eth0 type bridge; echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter; ip link add eth1 type bridge; echo 1 >/proc/sys/net/ipv4/conf/eth1/rp_filter`)
	t.Cleanup(func() { netns.Sh(t, "ip link delete eth0") })
	want := State{Sysctls: []Sysctl{{Link: "eth0", RPFilter: 2}, {Link: "eth1", RPFilter: 2}, {Link: "nosuch0", RPFilter: 2}}}
	if _, err := k.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if now, err := RPFilter("eth0"); err != nil || now != 2 {
		t.Fatalf("rp_filter is %d (%v), want 2", now, err)
	}
	// A process that knows nothing of the first one, and a link that has gone meanwhile.
	netns.Sh(t, "ip link delete eth1")
	if _, err := newKernel(t).Apply(t.Context(), State{}); err != nil {
		t.Fatal(err)
	}
	if now, err := RPFilter("eth0"); err != nil || now != 1 {
		t.Errorf("rp_filter is %d (%v), want 1 as before", now, err)
	}
	if left, err := k.tables.Remembered(); err != nil || len(left) > 0 {
		t.Errorf("%v is still remembered (%v)", left, err)
	}
}

// A packet to a remote prefix never finds only the default route: while one path is exchanged for another, some route or
// the blackhole is there in every dump that the kernel gives.
func TestRoutesAreExchangedInOneStep(t *testing.T) {
	k := newKernel(t)
	netns.Sh(t, `ip link set lo up; for n in 0 1; do ip link add br$n type bridge; ip link set br$n up; ip addr add 192.0.$n.1/24 dev br$n; ip addr add fd31:$n::1/64 dev br$n nodad; done`)
	t.Cleanup(func() { netns.Sh(t, "ip link delete br0; ip link delete br1") })
	dsts := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd00:9::/32")}
	state := func(n int) State {
		via := []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.%d.2", n)), netip.MustParseAddr(fmt.Sprintf("fd31:%d::2", n))}
		s := State{Rules: []Rule{{Priority: 900}, {IPv6: true, Priority: 900}}}
		for i, dst := range dsts {
			s.Routes = append(s.Routes, Route{Dst: dst, Via: via[i], Dev: fmt.Sprintf("br%d", n), Metric: 50}, Route{Dst: dst, Blackhole: true, Metric: 4096})
		}
		return s
	}
	if _, err := k.Apply(t.Context(), state(0)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 1; i < 40 && err == nil; i++ {
			_, err = k.Apply(t.Context(), state(i%2))
		}
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
		routes, err := k.ownRoutes(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, dst := range dsts {
			paths := 0
			for _, route := range routes {
				if route.Dst == dst && !route.Blackhole {
					paths++
				}
			}
			if paths != 1 {
				t.Fatalf("%d paths to %s: %v", paths, dst, routes)
			}
		}
	}
}

func TestWatchPokes(t *testing.T) {
	netns.RequireRoot(t)
	poked := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- Watch(t.Context(), "fastnet-", 4711, func() {
			select {
			case poked <- struct{}{}:
			default:
			}
		})
	}()
	// Until the watch has begun a change is not seen, so it is made again and again.
	pokes := func(change string) {
		t.Helper()
		for made := false; !made; {
			netns.Sh(t, change)
			select {
			case <-poked:
				made = true
			case err := <-watching:
				t.Fatal(err)
			default:
			}
		}
	}
	pokes("ip link add fastnet-w type bridge; ip link delete fastnet-w")
	netns.Sh(t, "ip link add other0 type bridge; ip addr add 192.0.2.1/24 dev other0")
	t.Cleanup(func() { netns.Sh(t, "ip link delete other0") })
	pokes("ip link set other0 up; ip link set other0 down")
}

// Packets for a remote prefix take the default route no longer once the first part is done: chains, in the second, take their time.
func TestBlackholesComeFirst(t *testing.T) {
	k := newKernel(t)
	t.Cleanup(func() {
		if _, err := k.Apply(context.WithoutCancel(t.Context()), State{}); err != nil {
			t.Error(err)
		}
	})
	want := State{Rules: []Rule{{Priority: 900}, {IPv6: true, Priority: 900}}}
	for _, prefix := range []string{"10.9.0.0/16", "fd00:9::/32"} {
		want.Routes = append(want.Routes, Route{Dst: netip.MustParsePrefix(prefix), Blackhole: true, Metric: 4096},
			Route{Dst: netip.MustParsePrefix(prefix), Dev: "lo", Metric: 50})
	}
	if changes, err := k.ApplyPaths(t.Context(), want); err != nil || len(changes) != 4 {
		t.Errorf("changes %v (%v), want two blackholes and two rules", changes, err)
	}
	state := netns.Sh(t, `for f in -4 -6; do ip $f rule; ip $f route show table 4711; done`)
	if strings.Count(state, "from all lookup 4711") != 2 || strings.Count(state, "blackhole") != 2 || strings.Contains(state, "metric 50") {
		t.Errorf("want two blackholes, two rules, and no route yet:\n%s", state)
	}
	if changes, err := k.ApplyRest(t.Context(), want); err != nil || len(changes) != 2 {
		t.Errorf("changes %v (%v), want two routes", changes, err)
	}
}
