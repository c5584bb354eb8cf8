package main

import (
	"errors"
	"fmt"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// drainPackets is how many packets have to be sent, at least, for a drain to count as one that loses none.
const drainPackets = 100_000

// way is one to take a gateway out of service on purpose. begin returns when traffic may be taken for gone.
type way struct {
	name       string
	begin, end func(*bench, *lab.Node) error
}

var podStop = way{"pod stop",
	func(b *bench, n *lab.Node) error {
		return b.kubectl(n, "-n fastnet-system delete pod --field-selector spec.nodeName="+n.Name()+" -l app.kubernetes.io/name=fastnet-gateway")
	},
	func(*bench, *lab.Node) error { return nil }}

var ways = []way{
	{"drain-gateway",
		func(b *bench, n *lab.Node) error { return b.fastnet(n, "drain-gateway "+n.Name()) },
		func(b *bench, n *lab.Node) error { return b.fastnet(n, "drain-gateway --undo "+n.Name()) }},
	{"cordon",
		func(b *bench, n *lab.Node) error { return b.kubectl(n, "cordon "+n.Name()) },
		func(b *bench, n *lab.Node) error { return b.kubectl(n, "uncordon "+n.Name()) }},
	podStop,
	// The cluster's other gateway goes as soon as the first is ready again, as in every upgrade.
	{"rollout",
		func(b *bench, n *lab.Node) error {
			if err := b.kubectl(n, "-n fastnet-system rollout restart daemonset/fastnet-gateway"); err != nil {
				return err
			}
			return b.kubectl(n, "-n fastnet-system rollout status daemonset/fastnet-gateway --timeout=2m")
		},
		func(*bench, *lab.Node) error { return nil }},
}

// kubectl has the context last: a plugin's name comes before any flag.
func (b *bench) kubectl(n *lab.Node, line string) error {
	_, err := b.Teller.Output(b.ctx, "kubectl "+line+" --context "+clusters.ClusterOf(n))
	return err
}

func (b *bench) fastnet(n *lab.Node, line string) error { return b.kubectl(n, "fastnet "+line) }

// drain takes gateways out of service in all ways, in turns, and counts what the streams lose from before until all is as it was.
func (b *bench) drain() error {
	if _, err := b.Teller.Output(b.ctx, "kubectl fastnet drain-gateway --help"); err != nil {
		return errors.New("this kubectl-fastnet cannot drain a gateway")
	}
	var lost, sent uint64
	drains := 0
	for n := 0; n < b.options.trials || sent < drainPackets && !b.check; n++ {
		gateway, way := b.turn(n), ways[(n+n/len(ways))%len(ways)] // each way meets each gateway
		if hit, err := b.spread(gateway); err != nil {
			return err
		} else if hit == 0 {
			return fmt.Errorf("%s carries nothing", gateway.Name())
		}
		gone, accounts, err := b.drainOnce(gateway, way)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", way.name, gateway.Name(), err)
		}
		var lostNow, sentNow uint64
		where := ""
		for flow, account := range accounts {
			if flow.TCP {
				continue
			}
			lostNow, sentNow = lostNow+account.Lost, sentNow+account.Lost+account.Received
			if account.Lost > 0 {
				where += fmt.Sprintf("; to %s: %d while it went, %d when it came back, longest gap %s", flow.To, gone[flow].Lost, account.Lost-min(account.Lost, gone[flow].Lost), rounded(account.Gap))
			}
		}
		fmt.Printf("  %-13s %s: %d of %d packets lost; longest gap %s%s\n", way.name, gateway.Name(), lostNow, sentNow, rounded(longest(accounts, false)), where)
		lost, sent, drains = lost+lostNow, sent+sentNow, drains+1
	}
	if lost > 0 {
		b.wrong = append(b.wrong, fmt.Errorf("drain: %d of %d packets were lost", lost, sent))
	}
	b.report.Set("drain-lost", float64(lost), "of %d packets, during %d drains by command, cordon, stop of the pod and rollout", sent, drains)
	return nil
}

// drainOnce gives what became of the flows until the gateway was gone, and until it was back.
func (b *bench) drainOnce(gateway *lab.Node, way way) (gone, back map[traffic.Flow]traffic.Account, err error) {
	if err := errors.Join(b.awaitFlow(nil), b.window()); err != nil {
		return nil, nil, err
	}
	before, err := b.accounts()
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(way.begin(b, gateway), b.awaitFlow(before)); err != nil {
		return nil, nil, err
	}
	if gone, err = b.accounts(); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(way.end(b, gateway), b.recover(false), b.awaitFlow(gone)); err != nil {
		return nil, nil, err
	}
	back, err = b.accounts()
	return gone, back, err
}
