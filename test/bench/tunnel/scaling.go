package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
)

// linkRate is what the gateways' links are held to, so that they are the limit and not the processors: flows that meet a slow link send
// packet by packet, and of those two processors take no more than 60 Mbit/s through four gateways. The queue before it holds 48 ms.
const (
	linkRate     = "20mbit"
	scalingLasts = 5 * time.Second
	scalingFills = 2 // megabytes in each pod, by when flows have found their pace
)

// scaling has many TCP flows between the pods, with one gateway in each cluster and with both, whose links are slow.
func (b *bench) scaling() (err error) {
	for _, s := range b.Sides {
		for _, gateway := range s.Gateways {
			err := b.sh(gateway, "tc qdisc del dev eth0 root 2>/dev/null || true\ntc qdisc add dev eth0 root handle 1: htb default 1\n"+
				"tc class add dev eth0 parent 1: classid 1:1 htb rate "+linkRate+" burst 64k\ntc qdisc add dev eth0 parent 1:1 bfifo limit 120k")
			if err != nil {
				return err
			}
			defer func() {
				out, failed := gateway.Command(context.WithoutCancel(b.ctx), "tc", "qdisc", "del", "dev", "eth0", "root").CombinedOutput()
				if failed != nil {
					err = errors.Join(err, fmt.Errorf("%s: tc: %w: %s", gateway.Name(), failed, out))
				}
			}()
		}
	}
	const one, both = "one gateway", "both gateways"
	turn := map[string]int{}
	flows := 0
	results, err := report.Rounds(b.rounds, []string{one, both}, func(name string) (rate float64, err error) {
		if err := b.oneGateway(name == one); err != nil {
			return 0, err
		}
		family := turn[name] % 2
		turn[name]++
		all := b.flows(family)
		var errs []error
		flows = 0
		for _, flow := range all {
			flows += len(flow.bulk.Ports)
			errs = append(errs, flow.start(flow.bulk))
			defer func() { err = errors.Join(err, flow.stop()) }()
		}
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		for _, w := range b.pods {
			errs = append(errs, b.awaitMegabytes(w, scalingFills))
		}
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		rate, err = b.sum()
		var texts []string
		for _, s := range b.Sides {
			for _, gateway := range s.Gateways {
				n, failed := b.carried(gateway, all, 10) // more than connecting takes, or acknowledgements would
				err = errors.Join(err, failed)
				texts = append(texts, fmt.Sprintf("%s %d", gateway.Name(), n))
			}
		}
		fmt.Printf("  IPv%d  %-14s %6.1f Mbit/s  (%s)\n", 4+2*family, name, rate, strings.Join(texts, ", "))
		return rate, err
	})
	if err != nil {
		return err
	}
	ratio := report.Sample(results[both]).Over(results[one])
	b.report.Set("two-gateways.scaling", ratio.Median(), "%s with %d TCP flows between %d pods and %[4]d, links of the gateways held to %[5]s; Mbit/s: %[6]s", ratio,
		flows, len(b.pods), len(b.pods), linkRate, report.Figures(map[string]report.Sample{one: results[one], both: results[both]}))
	return nil
}

// sum gives the Mbit/s that arrive in all pods for a while.
func (b *bench) sum() (float64, error) {
	total := func() (sum traffic.Bytes, err error) {
		for _, w := range b.pods {
			bytes, failed := w.sink.Bytes()
			sum.TCP, sum.At, err = sum.TCP+bytes.TCP, bytes.At, errors.Join(err, failed)
		}
		return sum, err
	}
	before, err := total()
	if err != nil {
		return 0, err
	}
	select {
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	case <-time.After(scalingLasts): // the time is what is measured
	}
	after, err := total()
	if err != nil {
		return 0, err
	}
	bits, err := traffic.Rate(before.TCP, after.TCP, after.At.Sub(before.At))
	return bits / 1e6, err
}
