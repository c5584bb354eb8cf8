// Package vxlan is the cable driver for plain VXLAN, which encrypts nothing and proves nothing: who can send packets to a
// gateway can send them into the cable, and who sees them pass can read them. It is for networks that are trusted or
// encrypted already.
//
// Each peer has a device of its own, as with WireGuard, with a UDP port and a network identifier of its own. To the kernel
// the device is a segment with two stations; addresses on it are link-local and come from the names of the Endpoints, and
// everything about the other end is written into it: it neither learns nor asks. The devices are the kernel's, so they carry
// on while the gateway restarts.
//
// What has a source that does not lie behind the peer is dropped by a chain of our own, which stands before the devices are
// made and goes after them.
package vxlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/netstate"
)

// Overhead of VXLAN in bytes on the way to an address: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14. Where the
// address is not known yet it is the greater.
func Overhead(peer netip.Addr) int {
	if peer.Is4() {
		return 50
	}
	return 70
}

// trust is for how long the guard's chains are taken to be as they were found: to look starts some ten processes, and the gateway does so each
// time that a cable goes or comes. It is less than the 10 s after which a gateway looks at everything without a reason.
const trust = 9 * time.Second

// Config of the driver.
type Config struct {
	// LinkPrefix begins the names of all devices, ChainPrefix those of all iptables chains, and of nobody else's.
	LinkPrefix, ChainPrefix string
	Log                     *slog.Logger
}

// Driver is a cable.Driver. Make it with New.
type Driver struct{ segments *Segments }

var _ cable.Driver = (*Driver)(nil)

// New makes a driver that does nothing yet.
func New(c Config) *Driver { return &Driver{NewSegments(c)} }

// PublicKey is none.
func (*Driver) PublicKey() (string, error) { return "", nil }

// Apply makes the devices as the configuration says. A peer that has told no port yet gets none.
func (d *Driver) Apply(ctx context.Context, c cable.Config) error {
	var problems []error
	var segments []Segment
	for _, peer := range c.Peers {
		if !peer.Address.IsValid() {
			continue
		}
		local, err := source(peer.Address.Addr())
		if err != nil {
			problems = append(problems, fmt.Errorf("no way to %s of %s: %w", peer.Address.Addr(), peer.Endpoint, err))
			continue
		}
		segments = append(segments, Segment{Peer: peer, Local: local})
	}
	return errors.Join(append(problems, d.segments.Apply(ctx, c.Self, segments))...)
}

// source is this node's address on the way to a peer.
func source(peer netip.Addr) (netip.Addr, error) {
	routes, err := netlink.RouteGet(peer.AsSlice())
	if err != nil {
		return netip.Addr{}, err
	}
	for _, route := range routes {
		if addr, ok := netip.AddrFromSlice(route.Src); ok {
			return addr.Unmap(), nil
		}
	}
	return netip.Addr{}, errors.New("the kernel names no source address")
}

// Report asks the kernel.
func (d *Driver) Report(context.Context) (cable.Report, error) {
	all, err := d.segments.Report()
	return cable.Report{Driver: cables.VXLAN, Cables: all}, err
}

// Remove takes the devices and the chains away.
func (d *Driver) Remove(ctx context.Context) error { return d.segments.Remove(ctx) }

// Close has nothing to do.
func (*Driver) Close() error { return nil }

// Segment is the device of a cable.
type Segment struct {
	cable.Peer
	// Local is this end's outer address.
	Local netip.Addr
	// From is the only device that packets for the port may come from, with "+" at its end for any that begins so; "" is any.
	From string
}

// Segments keeps the devices of a driver whose cables are VXLAN segments, whatever lies under them.
type Segments struct {
	config       Config
	links, guard *netstate.Kernel

	mu   sync.Mutex
	self string
	have []Segment // of the last configuration
}

// NewSegments does nothing yet.
func NewSegments(c Config) *Segments {
	return &Segments{config: c, links: netstate.New(netstate.Scope{LinkPrefix: c.LinkPrefix}, nil)}
}

// Apply makes the devices that are given, and no others.
func (s *Segments) Apply(ctx context.Context, self string, segments []Segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self, s.have = self, segments
	if len(segments) > 0 && !hasIPv6() {
		return errors.New("the cables' segments need IPv6 in the kernel, if only for its link-local addresses")
	}
	guard, err := s.tables()
	if err != nil {
		return err
	}
	want := plan(s.config, self, segments)
	// The guard first, and last where all go: no packet comes in unguarded.
	if len(segments) > 0 {
		if _, err := guard.Apply(ctx, netstate.State{Chains: want.Chains, Jumps: want.Jumps}); err != nil {
			return err
		}
	}
	changes, err := s.links.Apply(ctx, netstate.State{Links: want.Links, Neighbours: want.Neighbours, Forwarding: want.Forwarding})
	if len(changes) > 0 {
		s.config.Log.Info("devices changed", "changes", changes)
	}
	if len(segments) == 0 {
		_, guardErr := guard.Apply(ctx, netstate.State{})
		err = errors.Join(err, guardErr)
	}
	return err
}

// tables are looked for when they are needed first.
func (s *Segments) tables() (*netstate.Kernel, error) {
	if s.guard == nil {
		tables, err := netstate.NewTables(netstate.Detect(), s.config.ChainPrefix)
		if err != nil {
			return nil, err
		}
		tables.Trust = trust
		s.guard = netstate.New(netstate.Scope{ChainPrefix: s.config.ChainPrefix}, tables)
	}
	return s.guard, nil
}

// plan is all that the kernel should hold.
func plan(c Config, self string, segments []Segment) (want netstate.State) {
	if len(segments) == 0 {
		return want
	}
	own := cables.EndOf(self)
	rules := map[bool][]string{}
	for _, segment := range segments {
		peer := cables.EndOf(segment.Endpoint)
		want.Links = append(want.Links, netstate.Link{
			Name: segment.Link, Kind: netstate.KindVXLAN, MTU: segment.MTU, MAC: own.MAC,
			Addresses: []netip.Prefix{cables.Anchor, netip.PrefixFrom(own.Addr, 64)},
			VXLAN:     netstate.VXLAN{ID: cables.SegmentID(self, segment.Endpoint), Port: int(segment.Port), Local: segment.Local},
		})
		want.Neighbours = append(want.Neighbours, netstate.Neighbour{Link: segment.Link, Addr: peer.Addr, MAC: peer.MAC})
		want.Forwarding = append(want.Forwarding, netstate.Forwarding{
			Link: segment.Link, MAC: peer.MAC, Dst: segment.Address.Addr(), Port: int(segment.Address.Port()),
		})
		if segment.From != "" {
			// The socket takes what comes for the port from anywhere, so what did not come through the tunnel, or came
			// through it from another peer, has to end here. Its family is that of the outer address.
			v6 := segment.Local.Is6()
			port := fmt.Sprintf("-p udp -m udp --dport %d -j", segment.Port)
			rules[v6] = append(rules[v6],
				fmt.Sprintf("-s %s -d %s -i %s %s RETURN", host(segment.Address.Addr()), host(segment.Local), segment.From, port), port+" DROP")
		}
	}
	for _, v6 := range []bool{false, true} {
		rules[v6] = append(rules[v6], fmt.Sprintf("! -i %s+ -j RETURN", c.LinkPrefix))
		for _, segment := range segments {
			for _, prefix := range append([]netip.Prefix{host(cables.EndOf(segment.Endpoint).Addr)}, segment.Prefixes...) {
				if prefix.Addr().Is6() == v6 {
					rules[v6] = append(rules[v6], fmt.Sprintf("-s %s -i %s -j RETURN", prefix, segment.Link))
				}
			}
		}
		chain := c.ChainPrefix + "SOURCE"
		// Also what comes by a device that nobody knows, of an earlier configuration, which is about to go.
		want.Chains = append(want.Chains, netstate.Chain{IPv6: v6, Table: "mangle", Name: chain, Rules: append(rules[v6], "-j DROP")})
		want.Jumps = append(want.Jumps, netstate.Jump{IPv6: v6, Table: "mangle", Builtin: "PREROUTING", Chain: chain})
	}
	return want
}

func host(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// Report is what exists. A device that is missing is a cable that does not exist, which is no error; one that cannot be looked at may be there.
func (s *Segments) Report() (all []cable.Cable, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, segment := range s.have {
		link, err := netlink.LinkByName(segment.Link)
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", segment.Link, err)
		}
		c := cable.Cable{
			Endpoint: segment.Endpoint, ClusterID: segment.ClusterID, PeerAddress: segment.Address,
			Local: cables.EndOf(s.self).Addr.WithZone(segment.Link), Probe: cables.EndOf(segment.Endpoint).Addr.WithZone(segment.Link),
		}
		if counts := link.Attrs().Statistics; counts != nil {
			c.Sent, c.Received, c.Packets = int64(counts.TxBytes), int64(counts.RxBytes), counts.RxPackets+counts.TxPackets
		}
		all = append(all, c)
	}
	return all, nil
}

// Remove takes everything away, also what a process before this one has made.
func (s *Segments) Remove(ctx context.Context) error {
	err := s.Apply(ctx, "", nil)
	tables, tablesErr := netstate.NewTables(netstate.Detect(), s.config.ChainPrefix)
	if tablesErr == nil {
		if other := tables.Other(); other != nil {
			_, tablesErr = other.Sweep(ctx)
		}
	}
	return errors.Join(err, tablesErr)
}

func hasIPv6() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}
