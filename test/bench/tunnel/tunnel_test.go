package main

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) {
	traffic.Role(traffic.Roles{"wireguard": wireguard})
	os.Exit(m.Run())
}

func start(t *testing.T, n *netns.Namespace, role string, args ...string) *traffic.Process {
	t.Helper()
	line, err := traffic.Args(role, args...)
	if err != nil {
		t.Fatal(err)
	}
	p, err := traffic.Start(n.Command(line...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

// TestBareWireGuard: the pair that ours is measured against carries both families, as fast as the bench can tell.
func TestBareWireGuard(t *testing.T) {
	netns.RequireRoot(t)
	nodes := []*netns.Namespace{netns.New(t, "a"), netns.New(t, "b")}
	netns.Join(t, nodes[0], "eth0", nodes[1], "eth0")
	var keys [2]wgtypes.Key
	for i, n := range nodes {
		n.Sh(t, fmt.Sprintf("ip addr add 172.31.0.%d/24 dev eth0", i+1))
		var err error
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range nodes {
		start(t, n, "wireguard", fmt.Sprintf("%x", keys[i][:]), fmt.Sprintf("%x", publicKey(keys[1-i])), fmt.Sprintf("172.31.0.%d:%d", 2-i, wireguardPort))
		prefixes, _ := addresses(wireguardRange, i+1)
		n.Sh(t, addressed(wireguardLink, prefixes))
	}
	_, to := addresses(wireguardRange, 2)
	w := &way{source: start(t, nodes[0], "bulk-source"), sink: start(t, nodes[1], "bulk-sink"), to: to}
	b := &bench{ctx: t.Context(), slice: 100 * time.Millisecond, port: 20000}
	// Both ends have something to say as soon as their devices are up, and of two first handshakes at once none may come through: the
	// next attempts are 5 s later.
	for _, addr := range to {
		netns.Eventually(t, time.Minute, "the pair has shaken hands", func() error {
			if times, err := w.source.Ping(traffic.Bulk{To: []netip.Addr{addr}, Ports: []uint16{b.next()}, Pings: 1, Size: 64}); err != nil || len(times) == 0 {
				return fmt.Errorf("no answer from %s: %v", addr, err)
			}
			return nil
		})
	}
	for family, addr := range to {
		for _, tcp := range []bool{true, false} {
			rate, err := b.rate(w, traffic.Bulk{To: []netip.Addr{addr}, TCP: tcp, Ports: []uint16{b.next()}, Size: packetSize})
			if err != nil || rate <= 0 {
				t.Errorf("IPv%d: %v Mbit/s, %v", 4+2*family, rate, err)
			}
		}
		if times, err := w.source.Ping(traffic.Bulk{To: []netip.Addr{addr}, Ports: []uint16{b.next()}, Pings: 10, Size: 64}); err != nil || len(times) < 5 {
			t.Errorf("IPv%d: pings took %v, %v", 4+2*family, times, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	prefixes, addrs := addresses(vxlanRange, 2)
	if fmt.Sprint(prefixes) != "[198.18.1.2/24 fd7b:1::2/64]" || addrs[1] != netip.MustParseAddr("fd7b:1::2") {
		t.Errorf("got %v %v", prefixes, addrs)
	}
}
