package clusters

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// Which gateways a flow goes over is what the gateways' kernels saw: a table of the benchmark's own counts what is forwarded
// there, by the flow's port; both ways, which need not be the same, where something comes back.
const (
	watchTable = "bench_flows"
	watchRules = `table inet ` + watchTable + ` {
	set seen { type inet_service; size 65535; flags dynamic; counter; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		meta l4proto { tcp, udp } th dport 5300-5302 update @seen { th sport }
		meta l4proto { tcp, udp } th sport 5300-5302 update @seen { th dport }
	}
}
`
)

func watchFlows(ctx context.Context, gateway *lab.Node) error {
	script := fmt.Sprintf("nft delete table inet %s 2>/dev/null; nft -f - <<'EOF'\n%sEOF", watchTable, watchRules)
	if out, err := gateway.Command(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// Seen is the number of packets that a gateway has forwarded so far, by the flow's port.
func Seen(ctx context.Context, gateway *lab.Node) (map[uint16]uint64, error) {
	out, err := gateway.Command(ctx, "nft", "-j", "list", "set", "inet", watchTable, "seen").Output()
	if err != nil {
		return nil, fmt.Errorf("%s: nft: %w", gateway.Name(), err)
	}
	return parseSeen(out)
}

func parseSeen(text []byte) (map[uint16]uint64, error) {
	var listing struct {
		Nftables []struct {
			Set *struct {
				Elem []struct {
					Elem struct {
						Val     uint16
						Counter struct{ Packets uint64 }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(text, &listing); err != nil {
		return nil, fmt.Errorf("nft's JSON: %w", err)
	}
	counts := map[uint16]uint64{}
	for _, item := range listing.Nftables {
		if item.Set != nil {
			for _, e := range item.Set.Elem {
				counts[e.Elem.Val] = e.Elem.Counter.Packets
			}
		}
	}
	return counts, nil
}

// Paths gives the gateways that carry each of these flows now, by port; all of them have to send.
func (p *Pair) Paths(ctx context.Context, ports []uint16) (map[uint16][]*lab.Node, error) {
	for _, s := range p.Sides {
		for _, gateway := range s.Gateways {
			if out, err := gateway.Command(ctx, "nft", "flush", "set", "inet", watchTable, "seen").CombinedOutput(); err != nil {
				return nil, fmt.Errorf("%s: nft: %w: %s", gateway.Name(), err, out)
			}
		}
	}
	var paths map[uint16][]*lab.Node
	err := traffic.Await(ctx, Settle, "every flow was seen in both clusters", func() error {
		paths = map[uint16][]*lab.Node{}
		for _, s := range p.Sides {
			here := map[uint16]bool{}
			for _, gateway := range s.Gateways {
				counts, err := Seen(ctx, gateway)
				if err != nil {
					return err
				}
				for port, packets := range counts {
					if packets >= 5 && slices.Contains(ports, port) { // less is a flow that has just moved
						paths[port] = append(paths[port], gateway)
						here[port] = true
					}
				}
			}
			if len(here) < len(ports) {
				return fmt.Errorf("%d of %d flows were seen in %s", len(here), len(ports), s.Cluster)
			}
		}
		return nil
	})
	return paths, err
}

// Over counts the flows that go over a gateway, and the others.
func Over(paths map[uint16][]*lab.Node, gateway *lab.Node) (over, others int) {
	for _, gateways := range paths {
		if slices.Contains(gateways, gateway) {
			over++
		} else {
			others++
		}
	}
	return over, others
}
