package main

import (
	"errors"
	"fmt"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// oneGateway drains the second gateways, or ends that, and waits until flows over all pairs of pods go as they should.
func (b *bench) oneGateway(yes bool) error {
	carry := map[bool]int{true: 1, false: 2}[yes]
	if b.carry == carry {
		return nil
	}
	undo := map[bool]string{false: "--undo "}[yes]
	for _, s := range b.Sides {
		n := s.Gateways[1]
		if _, err := b.Teller.Output(b.ctx, "kubectl fastnet drain-gateway "+undo+n.Name()+" --context "+s.Cluster); err != nil {
			return err
		}
	}
	b.carry = carry
	return traffic.Await(b.ctx, clusters.Settle, map[bool]string{true: "all flows go over one gateway", false: "flows go over both gateways"}[yes], func() error {
		for family := range 2 {
			all := b.flows(family)
			for _, flow := range all {
				if err := errors.Join(flow.start(flow.bulk), flow.stop()); err != nil {
					return err
				}
			}
			for _, s := range b.Sides {
				var carried [2]int
				for i, gateway := range s.Gateways {
					var err error
					if carried[i], err = b.carried(gateway, all, 1); err != nil {
						return err
					}
				}
				if carried[0] == 0 || (carried[1] == 0) != yes {
					return fmt.Errorf("of the flows of IPv%d %s carries %d, %s %d", 4+2*family, s.Gateways[0].Name(), carried[0], s.Gateways[1].Name(), carried[1])
				}
			}
		}
		return nil
	})
}

// flowsOf is what the source in one pod sends, flowsOfPair to each pod of the other cluster.
type flowsOf struct {
	*way
	bulk traffic.Bulk
}

// flowsOfPair are enough to fill a slow link.
const flowsOfPair = 2

// flows are new ones between all pairs of pods: the kernel spreads flows over gateways by their addresses.
func (b *bench) flows(family int) []flowsOf {
	var all []flowsOf
	for _, w := range b.pods {
		bulk := traffic.Bulk{TCP: true}
		for _, pod := range b.Sides[1].Pods {
			bulk.To = append(bulk.To, pod.Addrs[family])
		}
		for range flowsOfPair * len(bulk.To) {
			bulk.Ports = append(bulk.Ports, b.next())
		}
		all = append(all, flowsOf{w, bulk})
	}
	return all
}

// carried counts the flows of which a gateway has forwarded so many packets.
func (b *bench) carried(gateway *lab.Node, all []flowsOf, packets uint64) (int, error) {
	forwarded, err := clusters.Seen(b.ctx, gateway)
	flows := 0
	for _, flow := range all {
		for _, port := range flow.bulk.Ports {
			if forwarded[port] >= packets {
				flows++
			}
		}
	}
	return flows, err
}
