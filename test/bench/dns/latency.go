package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// latency is what one server's clients waited in one round, in order. Who got no answer waited unanswered.
type latency []time.Duration

const (
	unanswered = time.Second
	// short is one round: long enough for thousands of queries, so that the slowest hundredth of them is not a matter of chance.
	short = time.Second / 4
	// pairsARound of those that others measure as one.
	pairsARound = 24
)

// at gives how long the share q of the queries waited at most.
func (l latency) at(q float64) time.Duration { return l[int(math.Ceil(q*float64(len(l))))-1] }

func (l latency) lost() int {
	first, _ := slices.BinarySearch(l, unanswered)
	return len(l) - first
}

func millis(d time.Duration) float64 { return d.Seconds() * 1e3 }

// tails measures latencies at half of the load that the slower of ours and the static peer can carry, which are the loads
// that wire has found.
func (b *bench) tails() error {
	if err := confine(b.processors[1:]); err != nil {
		return err
	}
	defer confine(b.processors)
	c := caseNamed("clusterip-a")
	if len(b.knee) == 0 { // wire was not asked for
		if err := b.findKnees(c, ours, static, multicluster); err != nil {
			return err
		}
	}
	servers, able, stop, err := b.startAll([]string{ours, static, multicluster, bare}, c)
	if err != nil {
		return err
	}
	defer stop()
	half := min(b.knee[ours].Median(), b.knee[static].Median()) / 2
	rate := func(name string) float64 {
		if knee := b.knee[name]; len(knee) > 0 {
			return min(half, knee.Median()/2) // who carries less than that is asked at half of its own
		}
		return half
	}
	queries := map[string][][]byte{}
	for _, name := range able {
		for _, q := range servers[name].questions(b.world, c) {
			packed, err := q.message(c.edns).Pack()
			if err != nil {
				return err
			}
			queries[name] = append(queries[name], packed)
		}
	}
	measure := func(rounds int, names ...string) (map[string][]latency, error) {
		return report.Rounds(rounds, names, func(name string) (latency, error) {
			return openLoop(servers[name].site, queries[name], rate(name), short)
		})
	}
	// The two that are compared take turns alone, so that the two rounds of each pair lie side by side in time. A machine that others
	// use costs some pairs milliseconds; of so many, the median does not see those.
	pairs := pairsARound * b.rounds
	done := ground.Progress("latencies at %.0f queries a second, %d pairs of rounds of %s", half, pairs, short)
	defer done()
	if _, err := measure(b.rounds, ours, static); err != nil { // warms up
		return err
	}
	results, err := measure(pairs, ours, static)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(slices.Clone(able), func(name string) bool { return name == ours || name == static })
	more, err := measure(2*b.rounds, others...)
	if err != nil {
		return err
	}
	maps.Copy(results, more)
	detail, p99 := "", map[string]report.Sample{}
	for _, name := range able {
		p99[name] = report.Pick(results[name], func(l latency) float64 { return millis(l.at(0.99)) })
		var all latency
		lost := 0
		for _, l := range results[name] {
			all, lost = append(all, l...), lost+l.lost()
		}
		slices.Sort(all)
		detail += fmt.Sprintf("; %s at %.0f/s: p99 of a round %s ms; of all queries together p50 %.3g ms, p99 %.3g ms, p99.9 %.3g ms, %d of %d lost",
			name, rate(name), p99[name], millis(all.at(0.5)), millis(all.at(0.99)), millis(all.at(0.999)), lost, len(all))
	}
	over := p99[ours].Over(p99[static])
	low, high := over.Interval()
	b.report.Set("udp-p99.vs-static", over.Median(), "median of the ratios of %d pairs of rounds, with 95 %% confidence between %.3g and %.3g%s",
		len(over), low, high, detail)
	return nil
}

// findKnees measures the queries a second that servers carry.
func (b *bench) findKnees(c queryCase, names ...string) error {
	loads, err := b.compare(c, names...)
	for name, some := range loads {
		b.knee[name] = report.Pick(some, func(l load) float64 { return l.qps })
	}
	return err
}

// openLoop sends queries at a fixed rate, whatever comes back, and measures each from the moment it should have been sent: a
// server that stalls for a while is charged with all that had to wait. One thread does both, without sleeping, so that the
// client adds microseconds at most.
func openLoop(s site, queries [][]byte, rate float64, d time.Duration) (latency, error) {
	socket, err := dialRaw(s)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	// Twice that many are never on their way at once: a query ID stands for one query.
	const ids = 1 << 16
	var intended [ids]time.Duration // since start; 0 is none
	total := int(rate * d.Seconds())
	latencies := make(latency, 0, total)
	interval := float64(time.Second) / rate
	reply := make([]byte, 65536)
	start := time.Now()
	for sent := 0; ; {
		now := time.Since(start)
		due := time.Duration(float64(sent+1) * interval)
		switch {
		case sent < total && due <= now:
			id := uint16(sent)
			query := queries[sent%len(queries)]
			binary.BigEndian.PutUint16(query, id)
			intended[id] = due
			if _, err := unix.Write(socket, query); err != nil && !errors.Is(err, unix.EAGAIN) {
				return nil, fmt.Errorf("send: %w", err)
			}
			sent++
		case len(latencies) == total || now > d+unanswered:
			for len(latencies) < total {
				latencies = append(latencies, unanswered)
			}
			slices.Sort(latencies)
			return latencies, nil
		}
		for {
			n, err := unix.Read(socket, reply)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("receive: %w", err)
			}
			const headerSize, rcodeMask = 12, 0x0f
			if n < headerSize || reply[3]&rcodeMask != 0 {
				return nil, fmt.Errorf("a reply of %d bytes, or an error code", n)
			}
			if id := binary.BigEndian.Uint16(reply); intended[id] != 0 {
				latencies = append(latencies, min(time.Since(start)-intended[id], unanswered-1))
				intended[id] = 0
			}
		}
	}
}

// dialRaw gives a UDP socket to a server that never blocks.
func dialRaw(s site) (int, error) {
	address, err := netip.ParseAddrPort(s.ip + ":" + s.port)
	if err != nil {
		return 0, err
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(socket, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}); err != nil {
		unix.Close(socket)
		return 0, fmt.Errorf("connect: %w", err)
	}
	return socket, nil
}
