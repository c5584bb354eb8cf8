package clusters

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/netns"
)

// TestWatchRules: the kernel takes the rules that watch flows, and its account of them is read right.
func TestWatchRules(t *testing.T) {
	netns.RequireRoot(t)
	a, gateway, b := netns.New(t, "a"), netns.New(t, "gw"), netns.New(t, "b")
	netns.Join(t, a, "eth0", gateway, "to-a")
	netns.Join(t, gateway, "to-b", b, "eth0")
	a.Sh(t, "ip addr add 10.0.1.2/24 dev eth0; ip route add default via 10.0.1.1; ip addr add fd00:1::2/64 dev eth0 nodad; ip -6 route add default via fd00:1::1")
	b.Sh(t, "ip addr add 10.0.2.2/24 dev eth0; ip route add default via 10.0.2.1; ip addr add fd00:2::2/64 dev eth0 nodad; ip -6 route add default via fd00:2::1")
	gateway.Sh(t, `ip addr add 10.0.1.1/24 dev to-a; ip addr add 10.0.2.1/24 dev to-b
		ip addr add fd00:1::1/64 dev to-a nodad; ip addr add fd00:2::1/64 dev to-b nodad`)
	command := gateway.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(watchRules)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	flows := []traffic.Flow{
		{Port: 20001, To: netip.MustParseAddr("10.0.2.2")}, {Port: 20002, To: netip.MustParseAddr("fd00:2::2")},
		{Port: 20003, TCP: true, To: netip.MustParseAddr("10.0.2.2")}, {Port: 20004, TCP: true, To: netip.MustParseAddr("fd00:2::2")},
	}
	sink, source := role(t, b, "sink"), role(t, a, "source")
	if err := errors.Join(source.Send(flows), sink.Window(flows)); err != nil {
		t.Fatal(err)
	}
	netns.Eventually(t, 30*time.Second, "every flow is seen", func() error {
		out, err := gateway.Command("nft", "-j", "list", "set", "inet", watchTable, "seen").Output()
		if err != nil {
			return err
		}
		counts, err := parseSeen(out)
		for _, flow := range flows {
			if counts[flow.Port] < 10 {
				err = errors.Join(err, errors.New("not seen"))
			}
		}
		if len(counts) > len(flows) {
			t.Fatalf("ports %v were seen", counts)
		}
		return err
	})
}
func TestMain(m *testing.M) {
	traffic.Role(nil)
	os.Exit(m.Run())
}

func role(t *testing.T, n *netns.Namespace, role string) *traffic.Process {
	t.Helper()
	line, err := traffic.Args(role)
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

func TestCountUp(t *testing.T) {
	const metrics = `# HELP fastnet_gateway_cable_up 1 while the cable is up, else 0.
# TYPE fastnet_gateway_cable_up gauge
fastnet_gateway_cable_up{endpoint="c2.c2-worker1",remote_cluster="c2"} 1
fastnet_gateway_cable_up{endpoint="c2.c2-worker2",remote_cluster="c2"} 0
fastnet_gateway_problems 1
`
	if up := countUp(metrics); up != 1 {
		t.Errorf("%d are up, want 1", up)
	}
}

func TestOver(t *testing.T) {
	a, b := &lab.Node{}, &lab.Node{}
	over, others := Over(map[uint16][]*lab.Node{1: {a}, 2: {a, b}, 3: {b}}, b)
	if over != 2 || others != 1 {
		t.Errorf("%d over it and %d others, want 2 and 1", over, others)
	}
}
