package vxlan

import (
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/test/netns"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

func config() Config {
	return Config{LinkPrefix: "fastnet-u", ChainPrefix: "FNVXLAN-", Log: slog.New(slog.DiscardHandler)}
}

func segments() []Segment {
	prefixes := func(texts ...string) (prefixes []netip.Prefix) {
		for _, text := range texts {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		return prefixes
	}
	return []Segment{
		{Peer: cable.Peer{Endpoint: "c2.a", ClusterID: "c2", Link: "fastnet-uaaaaaa", Port: 51820, MTU: 1450, Address: netip.MustParseAddrPort("192.0.2.9:51823"),
			Prefixes: prefixes("10.9.0.0/16", "fd00:9::/32")}, Local: netip.MustParseAddr("192.0.2.1")},
		{Peer: cable.Peer{Endpoint: "c3.b", ClusterID: "c3", Link: "fastnet-ubbbbbb", Port: 51821, MTU: 1330, Address: netip.MustParseAddrPort("[fd57::b]:51821"),
			Prefixes: prefixes("10.7.0.0/16")}, Local: netip.MustParseAddr("fd57::1"), From: "ipsec+"},
	}
}

func TestPlan(t *testing.T) {
	got := plan(config(), "c1.gw", segments()).Text(netstate.Scope{LinkPrefix: "fastnet-u", ChainPrefix: "FNVXLAN-"})
	path := filepath.Join("testdata", "two-peers.txt")
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
}

// What the kernel has is what was planned, a second time changes nothing, a peer at another address keeps its device, and in
// the end nothing is left.
func TestKernelHasThePlan(t *testing.T) {
	netns.RequireRoot(t)
	netns.Sh(t, "ip link set lo up; iptables-nft -t mangle -N OTHERS; ip link add fastnet-uold000 type bridge")
	const state = `ip -d link | sed 's/ [a-z_]*_timer *[^ ]*//g'; bridge fdb; ip neigh; iptables-nft -t mangle -S; ip6tables-nft -t mangle -S; true`
	before := netns.Sh(t, "ip link delete fastnet-uold000; "+state+"; ip link add fastnet-uold000 type bridge")
	s := NewSegments(config())
	apply := func(segments []Segment) {
		t.Helper()
		if err := s.Apply(t.Context(), "c1.gw", segments); err != nil {
			t.Fatal(err)
		}
		want := plan(config(), "c1.gw", segments)
		again, err := s.links.Apply(t.Context(), netstate.State{Links: want.Links, Neighbours: want.Neighbours, Forwarding: want.Forwarding})
		more, guardErr := s.guard.Apply(t.Context(), netstate.State{Chains: want.Chains, Jumps: want.Jumps})
		if err != nil || guardErr != nil || len(again)+len(more) > 0 {
			t.Errorf("applied twice: %v %v (%v, %v)", again, more, err, guardErr)
		}
	}
	segments := segments()
	apply(segments)
	if all, err := s.Report(); err != nil || len(all) != 2 {
		t.Errorf("%d cables, want 2 (%v)", len(all), err)
	}
	index := netns.Sh(t, "cat /proc/net/dev_snmp6/fastnet-uaaaaaa | head -1")
	segments[0].Address = netip.MustParseAddrPort("192.0.2.10:51820") // the port is the device's own now
	segments[0].Prefixes = segments[0].Prefixes[:1]
	apply(segments)
	if now := netns.Sh(t, "cat /proc/net/dev_snmp6/fastnet-uaaaaaa | head -1"); now != index {
		t.Errorf("the device was made anew: %s, then %s", index, now)
	}
	apply(segments[1:])
	if err := NewSegments(config()).Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, netns.Sh(t, state)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}
