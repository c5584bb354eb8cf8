package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
)

// start has the way's source send, which it goes on to do.
func (w *way) start(bulk traffic.Bulk) error { return w.source.Bulk(bulk) }

func (w *way) stop() error { return w.source.Bulk(traffic.Bulk{}) }

func (b *bench) awaitMegabytes(w *way, n uint64) error {
	before, err := w.sink.Bytes()
	if err != nil {
		return err
	}
	return traffic.Await(b.ctx, clusters.Settle, "bytes arrive", func() error {
		now, err := w.sink.Bytes()
		if err == nil && now.TCP-before.TCP < n<<20 && now.UDP-before.UDP < n<<20 {
			err = fmt.Errorf("%d of TCP, %d of UDP have", now.TCP-before.TCP, now.UDP-before.UDP)
		}
		return err
	})
}

// packetSize is that of a UDP packet that every way takes whole, without its headers.
const packetSize = 1300

// rate gives the Mbit/s that arrive for a while, once some have.
func (b *bench) rate(w *way, bulk traffic.Bulk) (rate float64, err error) {
	if err := w.start(bulk); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	if err := b.awaitMegabytes(w, 1); err != nil {
		return 0, err
	}
	before, err := w.sink.Bytes()
	if err != nil {
		return 0, err
	}
	select {
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	case <-time.After(b.slice): // the time is what is measured
	}
	after, err := w.sink.Bytes()
	if err != nil {
		return 0, err
	}
	count := func(bytes traffic.Bytes) uint64 {
		if bulk.TCP {
			return bytes.TCP
		}
		return bytes.UDP
	}
	bits, err := traffic.Rate(count(before), count(after), after.At.Sub(before.At))
	return bits / 1e6, err
}

// throughput has one flow run each way in turns, TCP and then UDP, IPv4 and IPv6 in alternate rounds.
func (b *bench) throughput() error {
	if err := b.oneGateway(true); err != nil {
		return err
	}
	for _, tcp := range []bool{true, false} {
		kind := map[bool]string{true: "TCP", false: "UDP"}[tcp]
		turn := map[string]int{}
		results, err := report.Rounds(b.rounds, wayNames(), func(name string) (float64, error) {
			w, family := b.ways[name], turn[name]%2
			turn[name]++
			bulk := traffic.Bulk{To: w.to[family : family+1], TCP: tcp, Ports: []uint16{b.next()}, Size: packetSize}
			rate, err := b.rate(w, bulk)
			fmt.Printf("  %s IPv%d  %-20s %8.0f Mbit/s\n", kind, 4+2*family, name, rate)
			return rate, err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		rates := map[string]report.Sample{}
		for name, result := range results {
			rates[name] = result
		}
		set := func(row, ours, peer string) {
			ratio := rates[ours].Over(rates[peer])
			detail := fmt.Sprintf("%s %s; Mbit/s: %s", kind, ratio, report.Figures(map[string]report.Sample{ours: rates[ours], peer: rates[peer]}))
			if tcp {
				b.report.Set(row, ratio.Median(), "%s", detail)
				return
			}
			b.report.Add(report.Row{Name: "udp." + row, Value: ratio.Median(), Unit: "x", Better: report.Higher, Peer: peer, Detail: detail})
		}
		set("gw-gw.vs-wireguard-go", gwGw, bareWireGuard)
		set("worker-worker.vs-gw-gw", workerWorker, gwGw)
		set("worker-worker.vs-veth", workerWorker, vethWorkers)
		ratio := rates[gwGw].Over(rates[bareVXLAN])
		b.report.Add(report.Row{Name: map[bool]string{true: "", false: "udp."}[tcp] + "gw-gw.vs-vxlan", Value: ratio.Median(), Unit: "x", Better: report.Higher,
			Peer: bareVXLAN, Detail: fmt.Sprintf("%s %s; Mbit/s: %s", kind, ratio, report.Figures(map[string]report.Sample{
				gwGw: rates[gwGw], bareVXLAN: rates[bareVXLAN], vethGateways: rates[vethGateways]}))})
	}
	return nil
}

// pings in one round.
const pings = 500

// rtt measures round trips of small packets, while nothing else is sent.
func (b *bench) rtt() error {
	if err := b.oneGateway(true); err != nil {
		return err
	}
	turn := map[string]int{}
	results, err := report.Rounds(b.rounds, wayNames(), func(name string) (float64, error) {
		w, family := b.ways[name], turn[name]%2
		turn[name]++
		times, err := w.source.Ping(traffic.Bulk{To: w.to[family : family+1], Ports: []uint16{b.next()}, Pings: pings, Size: 64})
		if err == nil && len(times) < pings/2 {
			err = fmt.Errorf("%d of %d pings came back", len(times), pings)
		}
		if err != nil {
			return 0, err
		}
		median := float64(times[len(times)/2]) / float64(time.Microsecond)
		fmt.Printf("  RTT IPv%d  %-20s %8.1f us\n", 4+2*family, name, median)
		return median, nil
	})
	if err != nil {
		return err
	}
	samples := map[string]report.Sample{}
	for name, result := range results {
		samples[name] = result
	}
	var added report.Sample
	for i := range samples[workerWorker] {
		added = append(added, samples[workerWorker][i]-samples[vethWorkers][i])
	}
	b.report.Set("rtt-added-us", added.Median(), "%s us between pods, of medians of %d; us: %s", added, pings, report.Figures(samples))
	return nil
}
