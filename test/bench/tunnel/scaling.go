package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// linkRate is what the gateways' links are held to, so that they are the limit and not the processors.
const (
	linkRate     = "50mbit"
	scalingFlows = 16
)

// scaling has many TCP flows between the pods, with one gateway in each cluster and with both, whose links are slow.
func (b *bench) scaling() (err error) {
	var seconds []*lab.Node
	for _, s := range b.Sides {
		seconds = append(seconds, s.Gateways[1])
		for _, gateway := range s.Gateways {
			err := b.sh(gateway, "tc qdisc del dev eth0 root 2>/dev/null || true\ntc qdisc add dev eth0 root handle 1: htb default 1\n"+
				"tc class add dev eth0 parent 1: classid 1:1 htb rate "+linkRate+" burst 64k")
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
	each := func(change func(*lab.Lab, context.Context, ...string) error) error {
		var errs []error
		for _, n := range seconds {
			errs = append(errs, change(b.Lab, context.WithoutCancel(b.ctx), clusters.Target(n)))
		}
		return errors.Join(errs...)
	}
	defer func() { err = errors.Join(err, each((*lab.Lab).Heal)) }()
	const one, both = "one gateway", "both gateways"
	turn := map[string]int{}
	results, err := report.Rounds(max(2, b.rounds/2), []string{one, both}, func(name string) (float64, error) {
		family := turn[name] % 2
		turn[name]++
		if name == one {
			if err := each((*lab.Lab).Cut); err != nil {
				return 0, err
			}
		} else if err := errors.Join(each((*lab.Lab).Heal), b.AwaitCables(b.ctx)); err != nil {
			return 0, err
		}
		w := b.ways[workerWorker]
		bulk, err := b.connectAll(w, family)
		if err != nil {
			return 0, err
		}
		rate, err := b.rate(w, bulk)
		carried, failed := b.carried(bulk.Ports)
		fmt.Printf("  IPv%d  %-14s %6.1f Mbit/s  (%s)\n", 4+2*family, name, rate, carried)
		return rate, errors.Join(err, failed)
	})
	if err != nil {
		return err
	}
	ratio := report.Sample(results[both]).Over(results[one])
	b.report.Set("two-gateways.scaling", ratio.Median(), "%s with %d TCP flows between two pods, links of the gateways held to %s; Mbit/s: %s", ratio,
		scalingFlows, linkRate, report.Figures(map[string]report.Sample{one: results[one], both: results[both]}))
	return nil
}

// connectAll gives flows that all reach the other end: after a cut routes need their time.
func (b *bench) connectAll(w *way, family int) (bulk traffic.Bulk, err error) {
	err = traffic.Await(b.ctx, clusters.Settle, "all flows connect", func() error {
		bulk = traffic.Bulk{To: w.to[family], TCP: true}
		for range scalingFlows {
			bulk.Ports = append(bulk.Ports, b.next())
		}
		return errors.Join(w.start(bulk), w.stop())
	})
	return bulk, err
}

// carried says how many of the flows went over each gateway.
func (b *bench) carried(ports []uint16) (string, error) {
	var texts []string
	for _, s := range b.Sides {
		for _, gateway := range s.Gateways {
			flows := 0
			for _, port := range ports {
				packets, err := clusters.Forwarded(b.ctx, gateway, port)
				if err != nil {
					return "", err
				}
				if packets > 10 { // more than connecting takes, or acknowledgements would
					flows++
				}
			}
			texts = append(texts, fmt.Sprintf("%s %d", gateway.Name(), flows))
		}
	}
	return strings.Join(texts, ", "), nil
}
