package main

import (
	"context"
	"errors"
	"fmt"
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
	sink, source *traffic.Process
	flows        []traffic.Flow // that the source sends
}

// What measures goes before others: what is measured is the network, not this machine's processors.
func first() []string { return []string{"nice", "-n", "-10"} }

func newWorld(ctx context.Context, pair *clusters.Pair) (*world, error) {
	w := &world{Pair: pair, ctx: ctx, port: 20000}
	for _, s := range pair.Sides {
		sink, err := pair.InPod(ctx, s, first(), "sink")
		if err != nil {
			return nil, err
		}
		source, err := pair.InPod(ctx, s, first(), "source")
		if err != nil {
			return nil, err
		}
		w.sides = append(w.sides, &side{Side: s, sink: sink, source: source})
	}
	return w, nil
}

// renew has all sources send new flows, and waits until they arrive.
func (w *world) renew(flows int) error {
	for i, s := range w.sides {
		other := w.sides[1-i]
		s.flows = nil
		for _, to := range other.Pod {
			for n := range flows + flows/2 {
				s.flows = append(s.flows, traffic.Flow{Port: w.port, TCP: n >= flows, To: to})
				if w.port++; w.port == 60000 {
					w.port = 20000 // those from the beginning are long gone
				}
			}
		}
	}
	return errors.Join(w.send(), w.window(), w.awaitFlow(nil))
}

func (w *world) send() error {
	var errs []error
	for _, s := range w.sides {
		errs = append(errs, s.source.Send(s.flows))
	}
	return errors.Join(errs...)
}

// silence stops all flows.
func (w *world) silence() error {
	for _, s := range w.sides {
		s.flows = nil
	}
	return w.send()
}

// window begins a new window everywhere.
func (w *world) window() error {
	var errs []error
	for i, s := range w.sides {
		errs = append(errs, s.sink.Window(append([]traffic.Flow{}, w.sides[1-i].flows...)))
	}
	return errors.Join(errs...)
}

// accounts of all flows. One that never arrived has an empty account.
func (w *world) accounts() (map[traffic.Flow]traffic.Account, error) {
	all := map[traffic.Flow]traffic.Account{}
	for i, s := range w.sides {
		accounts, err := s.sink.Accounts()
		if err != nil {
			return nil, err
		}
		for _, flow := range w.sides[1-i].flows {
			all[flow] = accounts[flow.Port]
		}
	}
	return all, nil
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
	return traffic.Await(w.ctx, patience, "all streams are whole", func() error {
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
		for _, flow := range s.flows {
			ports = append(ports, flow.Port)
		}
	}
	return w.Paths(w.ctx, ports)
}
