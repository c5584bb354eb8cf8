package nodeprobe

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/test/netns"
)

// The whole of it over real sockets: IPv4, IPv6, and a link-local address as in a tunnel; each is answered from the
// address that was asked, also where that is not the one the kernel would choose.
func TestProberAndServer(t *testing.T) {
	netns.RequireRoot(t)
	netns.Sh(t, `sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; ip link set lo up
		ip link add d0 type bridge; ip link set d0 up; ip addr add 192.0.2.1/24 dev d0; ip addr add 192.0.2.2/24 dev d0
		ip addr add fd31::1/64 dev d0 nodad; ip addr add fd31::2/64 dev d0 nodad; ip addr add fe80::77/64 dev d0 nodad`)
	t.Cleanup(func() { netns.Sh(t, "ip link delete d0") })
	key := newKey(t)
	log := slog.New(slog.DiscardHandler)
	server, err := NewServer(key.Bytes(), DefaultPort, log)
	if err != nil {
		t.Fatal(err)
	}
	server.Set(up)
	run := func(what func(context.Context) error) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- what(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	link, err := net.InterfaceByName("d0")
	if err != nil {
		t.Fatal(err)
	}
	public := base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
	targets := map[Target]Ask{}
	for _, addr := range []string{"192.0.2.2", "fd31::2", "fe80::77"} {
		target := Target{Gateway: "c1.gw", PublicKey: public, Addr: netip.MustParseAddr(addr)}
		if target.Addr.IsLinkLocalUnicast() {
			target.Link = uint32(link.Index)
		}
		targets[target] = Ask{}
	}
	changed := make(chan struct{}, 1)
	prober := NewProber(DefaultPort, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}, log)
	wait := func(what string, all func(Health) bool) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		for {
			met := true
			for _, health := range prober.Health() {
				met = met && all(health)
			}
			if met {
				return
			}
			select {
			case <-changed:
			case <-timeout:
				t.Fatalf("not %s: %+v", what, prober.Health())
			}
		}
	}
	stopServer := run(server.Run)
	if err := prober.Set(map[Target]Ask{{Gateway: "c1.gw", PublicKey: "nonsense"}: {}}); err == nil {
		t.Error("a nonsensical key is taken")
	}
	if err := prober.Set(targets); err != nil {
		t.Fatal(err)
	}
	defer run(prober.Run)()
	wait("up", func(h Health) bool { return h.State == liveness.Up && h.Seen.Equal(SeenOf(up)) })
	server.Set(View{Draining: true, Cables: up.Cables})
	wait("draining", func(h Health) bool { return h.Seen.Draining && h.Seen.Up("c2.a") })
	stopServer()
	wait("down", func(h Health) bool { return h.State == liveness.Down })
	again, err := NewServer(key.Bytes(), DefaultPort, log)
	if err != nil {
		t.Fatal(err)
	}
	defer run(again.Run)()
	wait("up again, with a new view", func(h Health) bool { return h.State == liveness.Up && !h.Seen.Draining && !h.Seen.Up("c2.a") })
	if len(prober.Health()) != len(targets) {
		t.Errorf("%d paths, want %d", len(prober.Health()), len(targets))
	}
}
