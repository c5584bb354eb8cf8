package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// The ways from the first cluster to the second. Ours and the bare ones lie between the same nodes, over the same links.
const (
	gwGw          = "gateway to gateway"
	workerWorker  = "worker to worker"
	bareWireGuard = "wireguard-go"
	bareVXLAN     = "VXLAN"
	vethGateways  = "veth, gateways"
	vethWorkers   = "veth, workers"
)

// way is one way to get bytes from the first cluster to the second.
type way struct {
	source, sink *traffic.Process
	to           []netip.Addr // of the sink, IPv4 first
}

func wayNames() []string {
	return []string{vethGateways, bareVXLAN, bareWireGuard, gwGw, vethWorkers, workerWorker}
}

// openWays makes the bare devices and starts sources and sinks.
//
//	worker to worker      pod on c1/worker3 - a gateway - WAN - a gateway - pod on c2/worker3
//	gateway to gateway    c1/worker1 - WAN - c2/worker1, from and to the nodes themselves
//	wireguard-go, VXLAN   the same, over devices that the benchmark makes there
//	veth                  the same, and between the two worker3, over the nodes' own addresses
func (b *bench) openWays() error {
	b.ways = map[string]*way{}
	var ends [2]struct {
		gateway, worker *traffic.Process
		pods            []*traffic.Process
	}
	for i, role := range []string{"bulk-source", "bulk-sink"} {
		s := b.Sides[i]
		var errs [3]error
		ends[i].gateway, errs[0] = b.OnNode(b.ctx, s.Gateways[0], nil, role)
		ends[i].worker, errs[1] = b.OnNode(b.ctx, s.Plain, nil, role)
		for _, pod := range s.Pods {
			process, err := b.InPod(b.ctx, pod, nil, role)
			ends[i].pods, errs[2] = append(ends[i].pods, process), errors.Join(errs[2], err)
		}
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
	}
	far := b.Sides[1]
	gateways := func(to []netip.Addr) *way { return &way{source: ends[0].gateway, sink: ends[1].gateway, to: to} }
	b.ways[vethGateways] = gateways(far.Gateways[0].Addrs())
	b.ways[vethWorkers] = &way{source: ends[0].worker, sink: ends[1].worker, to: far.Plain.Addrs()}
	for i, pod := range far.Pods {
		b.pods = append(b.pods, &way{source: ends[0].pods[i], sink: ends[1].pods[i], to: pod.Addrs})
	}
	b.ways[workerWorker] = b.pods[0]
	vxlan, err := b.openVXLAN()
	if err != nil {
		return fmt.Errorf("VXLAN: %w", err)
	}
	b.ways[bareVXLAN] = gateways(vxlan)
	bare, err := b.openWireGuard()
	if err != nil {
		return fmt.Errorf("wireguard-go: %w", err)
	}
	b.ways[bareWireGuard] = gateways(bare)
	among, err := b.amongPods(far.Gateways[0])
	if err != nil {
		return err
	}
	b.ways[gwGw] = gateways(among)
	return nil
}

// amongPods is the node's own addresses in the range of its pods: those of the links to them.
func (b *bench) amongPods(n *lab.Node) ([]netip.Addr, error) {
	out, err := n.Command(b.ctx, "sh", "-c", "ip -o addr show scope global | awk '{print $4}'").Output()
	if err != nil {
		return nil, err
	}
	var found []netip.Addr
	for text := range strings.FieldsSeq(string(out)) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(found, prefix.Addr()) && slices.ContainsFunc(n.Pods(), func(p netip.Prefix) bool { return p.Contains(prefix.Addr()) }) {
			found = append(found, prefix.Addr())
		}
	}
	slices.SortFunc(found, netip.Addr.Compare)
	if len(found) != 2 {
		return nil, fmt.Errorf("%s has the addresses %v among its pods, want one of each family", n.Name(), found)
	}
	return found, nil
}

// ranges of the bare devices: the source's addresses end in 1, the sink's in 2.
var (
	vxlanRange     = []string{"198.18.1.%d/24", "fd7b:1::%d/64"}
	wireguardRange = []string{"198.18.2.%d/24", "fd7b:2::%d/64"}
)

func addresses(ranges []string, host int) (prefixes []string, addrs []netip.Addr) {
	for _, format := range ranges {
		prefix := netip.MustParsePrefix(fmt.Sprintf(format, host))
		prefixes, addrs = append(prefixes, prefix.String()), append(addrs, prefix.Addr())
	}
	return prefixes, addrs
}

func (b *bench) sh(n *lab.Node, script string) error {
	if out, err := n.Command(b.ctx, "sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %s: %w: %s", n.Name(), script, err, out)
	}
	return nil
}

// The devices have no name of ours, or they would be swept.
const (
	vxlanLink     = "bench-vx"
	wireguardLink = "bench-wg"
)

// addressed is a script that gives a link its addresses and takes it up.
func addressed(link string, prefixes []string) string {
	script := ""
	for _, prefix := range prefixes {
		script += fmt.Sprintf("ip addr add %s dev %s nodad\n", prefix, link)
	}
	return script + "ip link set " + link + " up\n"
}

func (b *bench) openVXLAN() ([]netip.Addr, error) {
	for i, s := range b.Sides {
		here, there := s.Gateways[0], b.Sides[1-i].Gateways[0]
		prefixes, _ := addresses(vxlanRange, i+1)
		err := b.sh(here, fmt.Sprintf("ip link del %[1]s 2>/dev/null || true\nip link add %[1]s type vxlan id 77 dstport 4799 local %[2]s remote %[3]s dev eth0\n",
			vxlanLink, here.Addrs()[0], there.Addrs()[0])+addressed(vxlanLink, prefixes))
		if err != nil {
			return nil, err
		}
	}
	_, sink := addresses(vxlanRange, 2)
	return sink, nil
}

// wireguardPort is that of the bare pair.
const wireguardPort = 51999

// likeTheGateway has a command run in the control group of the node's gateway, so that both have the same share of the processors.
const likeTheGateway = `pid=$(pgrep -o fastnet-gateway)
if [ -d /sys/fs/cgroup/cpu ]
then echo 0 > /sys/fs/cgroup/cpu$(sed -n 's/^[0-9]*:[^:]*\bcpu\b[^:]*://p' /proc/$pid/cgroup)/cgroup.procs
else echo 0 > /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)/cgroup.procs
fi
exec "$@"`

// openWireGuard makes a pair of wireguard-go, with the MTU that ours has, in processes of their own.
func (b *bench) openWireGuard() ([]netip.Addr, error) {
	var keys [2]wgtypes.Key
	for i := range keys {
		var err error
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			return nil, err
		}
	}
	for i, s := range b.Sides {
		here, there := s.Gateways[0], b.Sides[1-i].Gateways[0]
		prefixes, _ := addresses(wireguardRange, i+1)
		if err := b.sh(here, "ip link del "+wireguardLink+" 2>/dev/null || true"); err != nil {
			return nil, err
		}
		_, err := b.OnNode(b.ctx, here, []string{"sh", "-ec", likeTheGateway, "sh"}, "wireguard", fmt.Sprintf("%x", keys[i][:]), fmt.Sprintf("%x", publicKey(keys[1-i])),
			netip.AddrPortFrom(there.Addrs()[0], wireguardPort).String())
		if err != nil {
			return nil, err
		}
		if err := b.sh(here, addressed(wireguardLink, prefixes)); err != nil {
			return nil, err
		}
	}
	_, sink := addresses(wireguardRange, 2)
	return sink, nil
}

func publicKey(private wgtypes.Key) []byte {
	key := private.PublicKey()
	return key[:]
}

// next is the source port of a new flow.
func (b *bench) next() uint16 {
	if b.port++; b.port == 60000 {
		b.port = 20000
	}
	return b.port
}
