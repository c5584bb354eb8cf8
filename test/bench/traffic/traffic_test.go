package traffic_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) {
	traffic.Role(nil)
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
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	})
	return p
}

// TestStreams: two flows of each kind and family; one of each is cut off and comes back, and only its account tells of it.
func TestStreams(t *testing.T) {
	netns.RequireRoot(t)
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.Join(t, a, "eth0", b, "eth0")
	a.Sh(t, "ip addr add 10.0.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad")
	b.Sh(t, "ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad")
	var flows []traffic.Flow
	for n, to := range []string{"10.0.0.2", "10.0.0.2", "fd00::2", "fd00::2"} {
		for _, tcp := range []bool{false, true} {
			flow := traffic.Flow{Port: uint16(21000 + 10*n), TCP: tcp, To: netip.MustParseAddr(to)}
			if tcp {
				flow.Port++
			}
			flows = append(flows, flow)
		}
	}
	cut := map[uint16]bool{21000: true, 21001: true, 21020: true, 21021: true}

	sink, source := start(t, b, "sink"), start(t, a, "source")
	if err := source.Send(flows); err != nil {
		t.Fatal(err)
	}
	await := func(what string, holds func(traffic.Flow, traffic.Account) bool) map[uint16]traffic.Account {
		t.Helper()
		var accounts map[uint16]traffic.Account
		err := traffic.Await(t.Context(), 30*time.Second, what, func() (err error) {
			if accounts, err = sink.Accounts(); err != nil {
				return err
			}
			for _, flow := range flows {
				if account, ok := accounts[flow.Port]; !ok || !holds(flow, account) {
					err = errors.Join(err, fmt.Errorf("flow %d: %+v", flow.Port, account))
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return accounts
	}
	flowing := func(_ traffic.Flow, a traffic.Account) bool { return a.Run >= 20 }

	await("all flow", flowing)
	if err := sink.Window(flows); err != nil {
		t.Fatal(err)
	}
	const rules = `for ipt in iptables-nft ip6tables-nft; do for p in udp tcp; do
		$ipt -%s INPUT -p $p -m multiport --sports 21000,21001,21020,21021 -j DROP; done; done`
	b.Sh(t, fmt.Sprintf(rules, "A"))
	await("those that are cut are silent", func(f traffic.Flow, a traffic.Account) bool {
		return cut[f.Port] == (a.Silent > 300*time.Millisecond)
	})
	b.Sh(t, fmt.Sprintf(rules, "D"))
	for port, account := range await("all flow again", flowing) {
		tcp := port%10 == 1
		if cut[port] && !tcp && (account.Gap < 300*time.Millisecond || account.Lost == 0) || tcp && account.Lost > 0 {
			t.Errorf("flow %d was cut: %+v", port, account)
		}
		if !cut[port] && account.Lost != 0 {
			t.Errorf("flow %d was not cut: %+v", port, account)
		}
		if tcp && account.Connections != 1 {
			t.Errorf("flow %d had %d connections", port, account.Connections)
		}
	}

	// Other flows take their place, and a new window knows these alone.
	flows = []traffic.Flow{{Port: 21100, To: netip.MustParseAddr("10.0.0.2")}, {Port: 21101, TCP: true, To: netip.MustParseAddr("fd00::2")}}
	if err := source.Send(flows); err != nil {
		t.Fatal(err)
	}
	await("the new flows flow", flowing)
	if err := sink.Window(flows); err != nil {
		t.Fatal(err)
	}
	if accounts, err := sink.Accounts(); err != nil || len(accounts) != len(flows) {
		t.Errorf("accounts of %d flows, want %d: %v", len(accounts), len(flows), err)
	}

	// A connection that is broken is counted, and another takes its place.
	b.Sh(t, "iptables-nft -A INPUT -p tcp --sport 21101 -j DROP; ip6tables-nft -A INPUT -p tcp --sport 21101 -j REJECT --reject-with tcp-reset")
	await("the connection broke", func(f traffic.Flow, a traffic.Account) bool { return !f.TCP || a.Silent > 100*time.Millisecond })
	b.Sh(t, "ip6tables-nft -F INPUT")
	await("there is another", func(f traffic.Flow, a traffic.Account) bool { return !f.TCP || a.Connections == 2 && a.Run >= 10 })
}

// TestBulk: what is sent arrives and is counted by kind, it ends when it is told to, and pings come back.
func TestBulk(t *testing.T) {
	netns.RequireRoot(t)
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.Join(t, a, "eth0", b, "eth0")
	a.Sh(t, "ip addr add 10.0.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad")
	b.Sh(t, "ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad")
	sink, source := start(t, b, "bulk-sink"), start(t, a, "bulk-source")
	for n, to := range []string{"10.0.0.2", "fd00::2"} {
		for _, tcp := range []bool{true, false} {
			bulk := traffic.Bulk{To: []netip.Addr{netip.MustParseAddr(to)}, TCP: tcp, Ports: []uint16{uint16(22000 + 10*n), uint16(22001 + 10*n)}, Size: 1200}
			before, err := sink.Bytes()
			if err := errors.Join(err, source.Bulk(bulk)); err != nil {
				t.Fatal(err)
			}
			kind := func(b traffic.Bytes) uint64 { return map[bool]uint64{true: b.TCP, false: b.UDP}[tcp] }
			var now traffic.Bytes
			netns.Eventually(t, 30*time.Second, "a megabyte arrives", func() error {
				if now, err = sink.Bytes(); err == nil && kind(now) < kind(before)+1<<20 {
					err = errors.New("less has")
				}
				return err
			})
			if err := source.Bulk(traffic.Bulk{}); err != nil {
				t.Fatal(err)
			}
			netns.Eventually(t, 30*time.Second, "it ends", func() error {
				last := now
				if now, err = sink.Bytes(); err == nil && kind(now) != kind(last) {
					err = errors.New("it goes on")
				}
				return err
			})
			if rate, err := traffic.Rate(kind(before), kind(now), now.At.Sub(before.At)); err != nil || rate <= 0 {
				t.Errorf("rate %v: %v", rate, err)
			}
		}
		times, err := source.Ping(traffic.Bulk{To: []netip.Addr{netip.MustParseAddr(to)}, Ports: []uint16{22100}, Pings: 20, Size: 100})
		if err != nil || len(times) < 10 || times[0] <= 0 || times[0] > time.Second {
			t.Errorf("pings to %s: %v %v", to, times, err)
		}
	}
}
