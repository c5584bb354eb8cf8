package netstate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/test/netns"
)

// fork is a state whose one group, of a family, has three next hops to choose from.
func fork(v6 bool, members ...int) State {
	dst := netip.MustParsePrefix("10.9.0.0/16")
	if v6 {
		dst = netip.MustParsePrefix("fd00:9::/32")
	}
	g := Group{Name: "g", Buckets: 128, Idle: time.Second}
	for n := range 3 {
		g.Candidates = append(g.Candidates, Nexthop{IPv6: v6, Dev: fmt.Sprintf("d%d", n)})
	}
	for _, n := range members {
		g.Members = append(g.Members, g.Candidates[n])
	}
	return State{Groups: []Group{g}, Routes: []Route{{Dst: dst, Group: "g", Metric: 50}, {Dst: dst, Blackhole: true, Metric: 4096}},
		Rules: []Rule{{IPv6: v6, Priority: 900}}}
}

// newFork makes what a fork leads to. out tells how many packets of a flood have left.
func newFork(t *testing.T) (k *Kernel, out func() int) {
	t.Helper()
	k = New(Scope{Table: scope.Table, Protocol: scope.Protocol}, nil)
	netns.Sh(t, `ip link set lo up; for n in 0 1 2; do ip link add d$n type veth peer name e$n; ip link set d$n up; ip link set e$n up
		for a in 10.9.0.5 fd00:9::5; do ip neigh add $a lladdr 02:00:00:00:00:0$n dev d$n; done; done
		ip addr add 192.0.2.1/24 dev d0; ip addr add fd31::1/64 dev d0 nodad
		nft add table inet flood; nft add chain inet flood out '{ type filter hook postrouting priority 0; }'; nft add rule inet flood out udp dport 9 counter`)
	t.Cleanup(func() {
		if _, err := k.Apply(context.Background(), State{}); err != nil {
			t.Error(err)
		}
		netns.Sh(t, `nft delete table inet flood; for n in 0 1 2; do ip link delete d$n; done`)
		if left := netns.Sh(t, "ip nexthop; (ip route show table all; ip -6 route show table all; ip rule; ip -6 rule) | grep 4711 || true"); left != "" {
			t.Errorf("left behind:\n%s", left)
		}
	})
	return k, func() int {
		_, text, _ := strings.Cut(netns.Sh(t, "nft list chain inet flood out"), "counter packets ")
		n, err := strconv.Atoi(strings.Fields(text + " none")[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// flood sends packets to the fork, as fast as it can, until it is stopped, which tells how many.
func flood(t *testing.T, v6 bool) (stop func() (sent int)) {
	t.Helper()
	domain, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 9, 0, 5}})
	if v6 {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Port: 9, Addr: netip.MustParseAddr("fd00:9::5").As16()}
	}
	socket, err := unix.Socket(domain, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			_ = unix.Sendto(socket, []byte("x"), 0, to) // what cannot be sent does not leave
		}
		_ = unix.Close(socket)
		sent <- n
	}()
	return func() int {
		cancel()
		return <-sent
	}
}

// However members come and go, and whoever looks at the routes meanwhile, not one packet is lost.
func TestRegroupLosesNothing(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv6=%t", v6), func(t *testing.T) {
			k, out := newFork(t)
			if _, err := k.Apply(t.Context(), fork(v6, 0)); err != nil {
				t.Fatal(err)
			}
			before := out()
			stop := flood(t, v6)
			rounds := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { // as an owner's round does beside failovers, with what it wanted before
				err := error(nil)
				for ctx.Err() == nil && err == nil {
					_, err = k.ApplyRest(context.WithoutCancel(ctx), fork(v6, 0))
				}
				rounds <- err
			}()
			random := rand.New(rand.NewPCG(7, 8))
			members := []int{0}
			for range 2000 {
				members = random.Perm(3)[:1+random.IntN(3)]
				if _, err := k.Regroup(t.Context(), fork(v6, members...)); err != nil {
					t.Fatal(err)
				}
			}
			cancel()
			if err := <-rounds; err != nil {
				t.Error(err)
			}
			sent := stop()
			left := out() - before
			t.Logf("%d packets sent", sent)
			if left != sent || sent < 10_000 {
				t.Errorf("%d packets of %d left", left, sent)
			}
			if changes, err := k.Apply(t.Context(), fork(v6, members...)); err != nil || len(changes) > 0 {
				t.Errorf("something was left to do: %v, %v", changes, err)
			}
		})
	}
}

// A process that was killed in the middle of a detour leaves routes to the copies. What it leaves is in use, and the next puts it right.
func TestDetourThatWasCutShort(t *testing.T) {
	for _, stay := range [][]int{{0}, {0, 1}} {
		t.Run(fmt.Sprint(len(stay)), func(t *testing.T) {
			k, out := newFork(t)
			want := fork(true, stay...)
			if _, err := k.Apply(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			// What detour does first.
			var copies []uint32
			for n, hop := range want.Groups[0].Members {
				copies = append(copies, firstCopy+uint32(n))
				if err := k.setNexthop(copies[n], hop, false); err != nil {
					t.Fatal(err)
				}
			}
			through := copies[0]
			if len(copies) > 1 {
				through = groupOfThem
				if err := k.setGroup(through, kernelGroup{members: copies}, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := k.leadRoute(want.Routes[0], through); err != nil {
				t.Fatal(err)
			}
			// Another group wants one as well, and before it is this one's turn.
			more := fork(true, stay...)
			more.Groups[0].Name, more.Routes = "a", nil
			more.Groups[0].Members = more.Groups[0].Candidates[:1]
			if _, err := k.Regroup(t.Context(), more); err != nil {
				t.Fatal(err)
			}
			more.Groups[0].Members = more.Groups[0].Candidates[:2]
			more.Routes = append(want.Routes, Route{Dst: netip.MustParsePrefix("fd00:10::/32"), Group: "a", Metric: 50})
			if err := k.setRoute(more.Routes[2], map[string]uint32{"a": deal(firstGroup, idsOfAKind, []string{"a", "g"})["a"]}); err != nil {
				t.Fatal(err)
			}
			more.Groups = append(more.Groups, want.Groups...)
			next := New(k.scope, nil)
			seen, err := next.Observe(want)
			if err != nil || len(seen.InUse[want.Routes[0].Dst]) != len(stay) {
				t.Errorf("in use %v, %v; want %v", seen.InUse, err, want.Groups[0].Members)
			}
			before := out()
			stop := flood(t, true)
			if _, err := next.Regroup(t.Context(), more); err != nil {
				t.Error(err)
			}
			if _, err := next.Apply(t.Context(), want); err != nil {
				t.Error(err)
			}
			if sent, left := stop(), out()-before; left != sent {
				t.Errorf("%d packets of %d left", left, sent)
			}
			if changes, err := next.Apply(t.Context(), want); err != nil || len(changes) > 0 {
				t.Errorf("something was left to do: %v, %v", changes, err)
			}
			if text := netns.Sh(t, "ip nexthop; ip -6 route show table 4711"); strings.Contains(text, fmt.Sprint(uint32(firstCopy))) {
				t.Errorf("copies are left:\n%s", text)
			}
		})
	}
}
