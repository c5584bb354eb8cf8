package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/netns"
)

func TestValidate(t *testing.T) {
	err := options{only: []string{"hang", "explode"}, trials: 0, flows: 1, interval: time.Millisecond}.validate()
	if err == nil || !strings.Contains(err.Error(), `no part "explode"`) || !strings.Contains(err.Error(), "at least one trial") {
		t.Errorf("got %v", err)
	}
	if err := (options{only: []string{"hang"}, trials: 1, flows: 1, interval: time.Millisecond}).validate(); err != nil {
		t.Error(err)
	}
}

func TestWhole(t *testing.T) {
	udp, tcp := traffic.Flow{Port: 1}, traffic.Flow{Port: 2, TCP: true}
	type accounts = map[traffic.Flow]traffic.Account
	for name, c := range map[string]struct {
		before, now accounts
		broken      string
	}{
		"whole":                    {nil, accounts{udp: {Received: 200, Run: 200}, tcp: {Received: 20, Run: 20}}, ""},
		"never arrived":            {nil, accounts{udp: {}, tcp: {Received: 20, Run: 20}}, "1 of 2 (1)"},
		"a gap a moment ago":       {nil, accounts{udp: {Received: 999, Run: 199}, tcp: {Received: 20, Run: 20}}, "1 of 2 (1)"},
		"nothing since the fault":  {accounts{udp: {Received: 300}}, accounts{udp: {Received: 499, Run: 499}}, "1 of 1 (1)"},
		"whole again":              {accounts{udp: {Received: 300}}, accounts{udp: {Received: 500, Run: 200}}, ""},
		"a connection that stalls": {nil, accounts{tcp: {Received: 19, Run: 500}}, "1 of 1 (2)"},
	} {
		err := whole(c.before, c.now)
		if (err == nil) != (c.broken == "") || err != nil && (!errors.Is(err, errBroken) || !strings.HasSuffix(err.Error(), c.broken)) {
			t.Errorf("%s: got %v, want %q", name, err, c.broken)
		}
	}
}

func TestAnswer(t *testing.T) {
	one := &side{Side: &clusters.Side{Pods: []clusters.Pod{{Addrs: []netip.Addr{netip.MustParseAddr("10.9.3.5"), netip.MustParseAddr("fd00:9::5")}}}}}
	two := &side{Side: &clusters.Side{Pods: []clusters.Pod{{Addrs: []netip.Addr{netip.MustParseAddr("10.8.3.5"), netip.MustParseAddr("fd00:8::5")}}}}}
	if got, want := answer(one, two), "10.8.3.5,10.9.3.5,fd00:8::5,fd00:9::5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMonitor(t *testing.T) {
	command := exec.CommandContext(t.Context(), "sh", "-c", "printf '10.9.0.0/16 proto 250\\ndefault proto kernel\\nid 7 group 8/9 proto 250\\n'; exec cat")
	in, err := command.StdinPipe() // it goes on until it is stopped
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	m, err := startMonitor(command, ours)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	netns.Eventually(t, 30*time.Second, "two lines are kept", func() error {
		if lines = append(lines, m.take()...); len(lines) != 2 {
			return fmt.Errorf("%q", lines)
		}
		return nil
	})
	m.stop()
}

// TestLossRules: the kernel takes them, and every tenth packet that is forwarded is lost.
func TestLossRules(t *testing.T) {
	netns.RequireRoot(t)
	a, router, b := netns.New(t, "a"), netns.New(t, "router"), netns.New(t, "b")
	netns.Join(t, a, "eth0", router, "to-a")
	netns.Join(t, router, "to-b", b, "eth0")
	a.Sh(t, "ip addr add 10.0.1.2/24 dev eth0; ip route add default via 10.0.1.1")
	b.Sh(t, "ip addr add 10.0.2.2/24 dev eth0; ip route add default via 10.0.2.1")
	router.Sh(t, "ip addr add 10.0.1.1/24 dev to-a; ip addr add 10.0.2.1/24 dev to-b")
	command := router.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(lossRules)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	flows := []traffic.Flow{{Port: 20001, To: netip.MustParseAddr("10.0.2.2")}}
	sink, source := start(t, b, "sink"), start(t, a, "source")
	if err := source.Send(flows); err != nil {
		t.Fatal(err)
	}
	var account traffic.Account
	netns.Eventually(t, 30*time.Second, "2000 packets are sent", func() error {
		accounts, err := sink.Accounts()
		if account = accounts[20001]; err == nil && account.Received+account.Lost < 2000 {
			err = errors.New("fewer are")
		}
		return err
	})
	if lost := float64(account.Lost) / float64(account.Received+account.Lost); lost < 0.07 || lost > 0.13 {
		t.Errorf("%.3f of the packets are lost, want 0.1", lost) // 0.03 is more than four standard deviations
	}
}

func TestMain(m *testing.M) {
	traffic.Role(nil)
	os.Exit(m.Run())
}

func start(t *testing.T, n *netns.Namespace, role string) *traffic.Process {
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

// TestRows: the figure of a trial is its longest gap, and the others' losses are summed up.
func TestRows(t *testing.T) {
	b := &bench{options: options{patience: time.Second}, report: report.New("failover", parts[0].row)}
	b.account("power-off", []trial{
		{gap: 250 * time.Millisecond, back: 2 * time.Millisecond, hit: 3, others: 5, othersReceived: 100},
		{gap: 3 * time.Millisecond, back: 350 * time.Millisecond, hit: 2, others: 6, othersReceived: 100, othersLost: 1, broken: 1, endless: true},
	}, 1)
	rows := b.report.Rows()
	if rows[0].Value != 349 { // between the two, near the greater
		t.Errorf("p99 is %v", rows[0].Value)
	}
	for _, part := range []string{"max 350 ms over 2 faults", "1 were not over", "1 more of gateways that carried nothing"} {
		if !strings.Contains(rows[0].Detail, part) {
			t.Errorf("no %q in %q", part, rows[0].Detail)
		}
	}
	if diff := cmp.Diff(othersLoss{faults: 2, flows: 11, lost: 1, received: 200}, b.others, cmp.AllowUnexported(othersLoss{})); diff != "" {
		t.Error(diff)
	}
}

// TestTurns: all four gateways, the clusters in turns.
func TestTurns(t *testing.T) {
	nodes := make([]*lab.Node, 4)
	for i := range nodes {
		nodes[i] = &lab.Node{}
	}
	w := &world{sides: []*side{{Side: &clusters.Side{Gateways: nodes[:2]}}, {Side: &clusters.Side{Gateways: nodes[2:]}}}}
	for n, want := range []int{0, 2, 1, 3, 0} {
		if w.turn(n) != nodes[want] {
			t.Errorf("turn %d is not node %d's", n, want)
		}
	}
}

// TestAssign: flows go both ways in both families, each has a port of its own, and in time every pair of pods has had one.
func TestAssign(t *testing.T) {
	w := &world{port: 59990}
	for i := range 2 {
		s := &side{Side: &clusters.Side{}}
		for n := range 4 {
			s.ends = append(s.ends, &end{Pod: clusters.Pod{Addrs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, byte(8 + i), 3, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", 8+i, n))}}})
		}
		w.sides = append(w.sides, s)
	}
	type pair struct{ from, to netip.Addr }
	pairs := map[pair]bool{}
	for n := range 60 {
		flows := 1 + n%3
		w.assign(flows)
		ports := map[uint16]int{}
		tcp := 0
		for i, s := range w.sides {
			for _, from := range s.ends {
				for _, flow := range from.out {
					pairs[pair{from.Addrs[0], flow.To}] = true
					if ports[flow.Port]++; flow.TCP {
						tcp++
					}
					if flow.Port < 20000 || flow.Port >= 60000 {
						t.Errorf("port %d", flow.Port)
					}
				}
			}
			for _, to := range w.sides[1-i].ends {
				for _, flow := range to.in {
					if !slices.Contains(to.Addrs, flow.To) {
						t.Errorf("flow to %s is awaited at %v", flow.To, to.Addrs)
					}
				}
			}
		}
		if want := []int{1: 4, 2: 4, 3: 8}[flows]; tcp != want || len(ports) != 4*flows+want {
			t.Fatalf("%d flows: %d ports and %d TCP flows, want %d and %d", flows, len(ports), tcp, 4*flows+want, want)
		}
	}
	if len(pairs) != 2*2*16 {
		t.Errorf("%d pairs, want 64", len(pairs))
	}
}
