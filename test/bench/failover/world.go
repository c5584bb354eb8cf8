package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// world is the lab with streams between the pods.
type world struct {
	*clusters.Pair
	ctx   context.Context
	sides []*side
	// resolvers ask each cluster's DNS, once they were started.
	resolvers []*traffic.Process
	// port is the next flow's. No two flows of a run have the same, so a port alone says which flow a packet is of.
	port uint16
}

// side is one of the two clusters.
type side struct {
	*clusters.Side
	ends []*end
}

// end is a pod, with what sends and receives there.
type end struct {
	clusters.Pod
	sink, source *traffic.Process
	out          []traffic.Flow // that the source sends
	in           []traffic.Flow // that the sink receives
}

// What measures goes before others: what is measured is the network, not this machine's processors.
func first() []string { return []string{"nice", "-n", "-10"} }

func newWorld(ctx context.Context, pair *clusters.Pair, interval time.Duration) (*world, error) {
	w := &world{Pair: pair, ctx: ctx, port: 20000}
	for _, s := range pair.Sides {
		side := &side{Side: s}
		for _, pod := range s.Pods {
			sink, err := pair.InPod(ctx, pod, first(), "sink")
			if err != nil {
				return nil, err
			}
			source, err := pair.InPod(ctx, pod, first(), "source", interval.String())
			if err != nil {
				return nil, err
			}
			side.ends = append(side.ends, &end{Pod: pod, sink: sink, source: source})
		}
		w.sides = append(w.sides, side)
	}
	return w, nil
}

// everyEnd calls it for all ends, and joins the errors.
func (w *world) everyEnd(do func(*end) error) error {
	var errs []error
	for _, s := range w.sides {
		for _, e := range s.ends {
			errs = append(errs, do(e))
		}
	}
	return errors.Join(errs...)
}

// renew has the sources send new flows, as many UDP flows in each direction of each family and half as many TCP flows, one at least, and waits
// until they arrive. Each is between another pair of pods, as long
// as there are any, and any pair may be taken.
func (w *world) renew(flows int) error {
	w.assign(flows)
	return errors.Join(w.send(), w.window(), w.awaitFlow(nil))
}

// assign gives all ends their flows.
func (w *world) assign(flows int) {
	w.forget()
	for i, s := range w.sides {
		other := w.sides[1-i]
		for family := range 2 {
			pairs := rand.Perm(len(s.ends) * len(other.ends))
			for n := range flows + (flows+1)/2 {
				pair := pairs[n%len(pairs)]
				from, to := s.ends[pair%len(s.ends)], other.ends[pair/len(s.ends)]
				flow := traffic.Flow{Port: w.port, TCP: n >= flows, To: to.Addrs[family]}
				from.out, to.in = append(from.out, flow), append(to.in, flow)
				if w.port++; w.port == 60000 {
					w.port = 20000 // those from the beginning are long gone
				}
			}
		}
	}
}

func (w *world) forget() {
	for _, s := range w.sides {
		for _, e := range s.ends {
			e.in, e.out = nil, nil
		}
	}
}

func (w *world) send() error { return w.everyEnd(func(e *end) error { return e.source.Send(e.out) }) }

// silence stops all flows.
func (w *world) silence() error {
	w.forget()
	return w.send()
}

// window begins a new window everywhere.
func (w *world) window() error {
	return w.everyEnd(func(e *end) error { return e.sink.Window(append([]traffic.Flow{}, e.in...)) })
}

// accounts of all flows. One that never arrived has an empty account.
func (w *world) accounts() (map[traffic.Flow]traffic.Account, error) {
	all := map[traffic.Flow]traffic.Account{}
	err := w.everyEnd(func(e *end) error {
		accounts, err := e.sink.Accounts()
		for _, flow := range e.in {
			all[flow] = accounts[flow.Port]
		}
		return err
	})
	return all, err
}

// errBroken is what flows that are not whole are.
var errBroken = errors.New("streams are broken")

// whole says whether every flow is: 200 packets or 20 records came without a gap, all of them after the accounts before.
func whole(before, now map[traffic.Flow]traffic.Account) error {
	var broken []string
	for flow, account := range now {
		enough := uint64(200)
		if flow.TCP {
			enough = 20
		}
		if account.Run < enough || account.Received < before[flow].Received+enough {
			broken = append(broken, fmt.Sprint(flow.Port))
		}
	}
	if len(broken) > 0 {
		slices.Sort(broken)
		return fmt.Errorf("%w: %d of %d (%s)", errBroken, len(broken), len(now), strings.Join(broken, " "))
	}
	return nil
}

// awaitFlow waits until all flows are whole, with what arrived after the accounts before.
func (w *world) awaitFlow(before map[traffic.Flow]traffic.Account) error {
	return w.awaitFlowFor(clusters.Settle, before)
}

func (w *world) awaitFlowFor(patience time.Duration, before map[traffic.Flow]traffic.Account) error {
	return traffic.AwaitEvery(w.ctx, 100*time.Millisecond, patience, "all streams are whole", func() error {
		now, err := w.accounts()
		if err != nil {
			return err
		}
		return whole(before, now)
	})
}

// paths gives the gateways that carry each flow now.
func (w *world) paths() (map[uint16][]*lab.Node, error) {
	var ports []uint16
	for _, s := range w.sides {
		for _, e := range s.ends {
			for _, flow := range e.in {
				ports = append(ports, flow.Port)
			}
		}
	}
	return w.Paths(w.ctx, ports)
}
