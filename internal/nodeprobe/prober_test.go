package nodeprobe

import (
	"context"
	"encoding/base64"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
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
	// A gateway that says that it goes, and goes, is taken back as soon as it answers, however often it does.
	for range 3 {
		server.Set(View{Draining: true, Cables: up.Cables})
		wait("draining", func(h Health) bool { return h.Seen.Draining })
		stopServer()
		wait("down", func(h Health) bool { return h.State == liveness.Down })
		if server, err = NewServer(key.Bytes(), DefaultPort, log); err != nil {
			t.Fatal(err)
		}
		stopServer = run(server.Run)
		wait("up again, with a new view", func(h Health) bool {
			if h.State == liveness.Recovering {
				t.Error("it has to answer for longer")
			}
			return h.State == liveness.Up && !h.Seen.Draining && !h.Seen.Up("c2.a")
		})
	}
	defer stopServer()
	if len(prober.Health()) != len(targets) {
		t.Errorf("%d paths, want %d", len(prober.Health()), len(targets))
	}
}

// TestSeldomUntilThePathBesideMissesAnAnswer: a path that is asked seldom is known to be dead as soon as one that is asked all the time.
func TestSeldomUntilThePathBesideMissesAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := base64.StdEncoding.EncodeToString(newKey(t).PublicKey().Bytes())
		often, seldom := Target{Gateway: "c1.gw", PublicKey: key, Addr: netip.MustParseAddr("192.0.2.2")}, Target{Gateway: "c1.gw", PublicKey: key, Addr: netip.MustParseAddr("fd31::2")}
		p := NewProber(DefaultPort, func() {}, slog.New(slog.DiscardHandler))
		if err := p.Set(map[Target]Ask{often: {}, seldom: {Seldom: true, Beside: often}}); err != nil {
			t.Fatal(err)
		}
		asked := map[Target]uint64{}
		// run for a while: what is asked is answered after 2 ms by the paths that live.
		run := func(d time.Duration, lives ...Target) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				next := p.ask()
				for _, target := range lives {
					if path := p.talks[target].path; p.talks[target].asked > asked[target] {
						time.Sleep(2 * time.Millisecond)
						asked[target] = p.talks[target].asked
						path.Answer(asked[target], time.Now())
						next = 0
					}
				}
				time.Sleep(next)
			}
		}
		run(10*time.Second, often, seldom)
		before := maps.Clone(asked)
		run(10*time.Second, often, seldom)
		if n := asked[seldom] - before[seldom]; n < 19 || n > 24 {
			t.Errorf("%d questions in 10 s, want two a second", n)
		}
		if n := asked[often] - before[often]; n < 105 || n > 125 {
			t.Errorf("%d questions in 10 s, want one each %s", n, liveness.Pace)
		}
		start := time.Now()
		for p.talks[seldom].path.State() == liveness.Up && time.Since(start) < time.Second {
			run(time.Millisecond)
		}
		if took := time.Since(start); took > 320*time.Millisecond {
			t.Errorf("it takes %s until it is known that both are dead", took)
		}
		run(20*time.Second, often, seldom)
		start = time.Now()
		for p.talks[seldom].path.State() == liveness.Up && time.Since(start) < time.Second {
			run(time.Millisecond, often)
		}
		if took := time.Since(start); took > liveness.SeldomPace+250*time.Millisecond || p.talks[often].path.State() != liveness.Up {
			t.Errorf("it takes %s until the seldom one is known to be dead; the other is %s", took, p.talks[often].path.State())
		}
	})
}
