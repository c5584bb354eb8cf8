// Package ipsec is the cable driver for IPsec: strongSwan's IKE daemon, charon, as a child of this process, and VXLAN segments
// (package vxlan) inside the tunnels that it makes.
//
// IPsec has one table of policies for a whole node, and the prefixes of a cluster lie behind all its gateways, so policies
// by prefix would collide where there are two of them. So the tunnels know nothing of prefixes. Each gateway has an address of
// its own inside, a hash of its public key, and each tunnel leads from one such address to one other. What is inside is the
// segment of a cable:
//
//	pod's packet | Ethernet | VXLAN | UDP | fd46:4153:544e::a > fd46:4153:544e::b | ESP | UDP 4500 | the gateways' addresses
//
// Behind the tunnels stands a blackhole for all those addresses: without a tunnel nothing leaves this node, in clear least of
// all. And what comes for a segment's port by another way than its tunnel is dropped by the guard of the segments.
//
// ESP is the kernel's where it has all that is needed, else charon's own (esp.go). Either way there is a device to which the inner
// addresses are routed, and from which alone segments take packets: an XFRM device of the kernel's, or charon's TUN device. So a packet
// never depends on policies alone. They would let it pass in clear where there is none; the device drops it.
//
// IKEv2 with raw Ed25519 keys, each pinned to its peer; no certificate, no shared secret. Where the connections should be is
// text for swanctl, loaded whole on every change; who should initiate and has not is done here, see tend.
package ipsec

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/gateway/keyfile"
	"github.com/fastnet-io/fastnet/gateway/vxlan"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/netstate"
)

// DefaultPort (UDP) of IKE and of ESP in UDP: the standard's for both behind address translators. There is no other one: the
// first packet goes to it already.
const DefaultPort = 4500

// Overhead in bytes on the way to an address: outer IP 20 or 40, UDP 8, ESP 8, IV 8, the segment over IPv6 70, padding and
// trailer 6 at most, checksum 16. Where the address is not known yet it is the greater.
func Overhead(peer netip.Addr) int {
	if peer.Is4() {
		return 136
	}
	return 156
}

const (
	// tunMTU is that of charon's own TUN device, and segmentHeader what a segment takes of a packet.
	tunMTU, segmentHeader = 1400, 70
	// tunnels begin the names of charon's TUN devices.
	tunnels = "ipsec"
	// inner is the device that has this gateway's address inside the tunnels. With ESP in the kernel it is the XFRM device that leads into
	// them, else nothing goes through it. Its name does not begin as those of the segments do: they have an owner of their own.
	inner = "fastnet-esp"
	// table and protocol of the one route: the main table, since it is for what this node itself sends; and 249 (0xF9) beside
	// the route agent's 250, which sweeps what has its own mark.
	table, protocol = 254, 249
	// blackholeMetric is higher than that of charon's routes, and of the one to the XFRM device.
	routeMetric, blackholeMetric = 1024, 4096
)

// Config of the driver.
type Config struct {
	// LinkPrefix begins the names of the segments' devices, ChainPrefix those of their iptables chains.
	LinkPrefix, ChainPrefix string
	// KeyFile holds the private key; it is made where there is none.
	KeyFile string
	// RunDir is a directory of this driver's alone, for what charon and swanctl read. It is gone after Close.
	RunDir string
	// Port (UDP) of IKE.
	Port uint16
	// Userspace has charon encrypt even where the kernel has ESP.
	Userspace bool
	Log       *slog.Logger
}

// Driver is a cable.Driver. Make it with New.
type Driver struct {
	config   Config
	segments *vxlan.Segments
	kernel   *netstate.Kernel

	mu     sync.Mutex
	esp    esp     // unknownESP until the first Apply
	tender *tender // nil while there is no peer
}

var _ cable.Driver = (*Driver)(nil)

// New makes a driver that does nothing yet.
func New(c Config) *Driver {
	return &Driver{
		config:   c,
		segments: vxlan.NewSegments(vxlan.Config{LinkPrefix: c.LinkPrefix, ChainPrefix: c.ChainPrefix, Log: c.Log}),
		kernel:   netstate.New(netstate.Scope{LinkPrefix: inner, Table: table, Protocol: protocol}, nil),
	}
}

func (d *Driver) loadKey() (ed25519.PrivateKey, error) {
	return keyfile.Kind[ed25519.PrivateKey]{
		Make: func() (string, error) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return "", err
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), err
		},
		Parse: func(text string) (ed25519.PrivateKey, error) {
			block, _ := pem.Decode([]byte(text))
			if block == nil {
				return nil, errors.New("no PEM")
			}
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			if key, ok := key.(ed25519.PrivateKey); ok {
				return key, nil
			}
			return nil, errors.New("no Ed25519 key")
		},
	}.Load(d.config.KeyFile)
}

func public(key ed25519.PrivateKey) ed25519.PublicKey {
	public, _ := key.Public().(ed25519.PublicKey) // it is nothing else
	return public
}

// PublicKey is the Ed25519 key in base64.
func (d *Driver) PublicKey() (string, error) {
	key, err := d.loadKey()
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(public(key)), nil
}

// Address inside the tunnels of the gateway with this key. No cluster may have it among its prefixes, see package cables.
func Address(key ed25519.PublicKey) netip.Addr {
	sum := sha256.Sum256(append([]byte("fastnet ipsec "), key...))
	addr := cables.Inner().Addr().As16()
	copy(addr[6:], sum[:10])
	return netip.AddrFrom16(addr)
}

// peer with its key read.
type peer struct {
	cable.Peer
	key   ed25519.PublicKey
	inner netip.Addr
}

// readKeys leaves out peers that can have no cable, and says why.
func readKeys(all []cable.Peer, own ed25519.PublicKey) (peers []peer, problems []error) {
	byKey := map[string]string{string(own): "this gateway"}
	for _, p := range all {
		key, err := base64.StdEncoding.DecodeString(p.PublicKey)
		if err != nil || len(key) != ed25519.PublicKeySize {
			problems = append(problems, fmt.Errorf("peer %s: its public key is none", p.Endpoint))
			continue
		}
		if other := byKey[string(key)]; other != "" {
			problems = append(problems, fmt.Errorf("peer %s has the key of %s: no cable", p.Endpoint, other))
			continue
		}
		byKey[string(key)] = p.Endpoint
		peers = append(peers, peer{p, key, Address(key)})
	}
	return peers, problems
}

// decideESP finds out once who encrypts.
func (d *Driver) decideESP() error {
	if d.esp != unknownESP {
		return nil
	}
	if d.config.Userspace {
		d.esp = userspaceESP
		return nil
	}
	is, lacks, err := detectESP(inner + "-try") // our prefix: if we are killed here, the next Apply sweeps it
	if err != nil {
		return err
	}
	d.esp = is
	d.config.Log.Info("who encrypts", "driver", string(is), "kernel-lacks", lacks)
	return nil
}

// plan is the kernel's side: the device with this gateway's inner address, the way to all others, and the segments.
func plan(e esp, own netip.Addr, peers []peer) (netstate.State, []vxlan.Segment) {
	device := netstate.Link{Name: inner, Kind: netstate.KindTUN, MTU: tunMTU, Addresses: []netip.Prefix{netip.PrefixFrom(own, 128)}}
	// The blackhole stands before the first tunnel.
	routes := []netstate.Route{{Dst: cables.Inner(), Blackhole: true, Metric: blackholeMetric}}
	from := tunnels + "+"
	if e == kernelESP {
		device.Kind, device.IfID, from = netstate.KindXFRM, ifID, inner
		routes = append(routes, netstate.Route{Dst: cables.Inner(), Dev: inner, Metric: routeMetric})
	}
	var segments []vxlan.Segment
	for _, peer := range peers {
		if !peer.Address.IsValid() {
			continue
		}
		segment := vxlan.Segment{Peer: peer.Peer, Local: own, From: from}
		segment.Address = netip.AddrPortFrom(peer.inner, peer.Address.Port())
		if e == kernelESP { // whatever a segment sends fits. It is never less than IPv6 must have, or the kernel takes the address away
			device.MTU = max(device.MTU, segment.MTU+segmentHeader)
		} else {
			segment.MTU = min(segment.MTU, tunMTU-segmentHeader)
		}
		segments = append(segments, segment)
	}
	return netstate.State{Links: []netstate.Link{device}, Routes: routes}, segments
}

// Apply makes the kernel's side and tells charon's tender. What is wrong with one peer is no reason not to serve the others.
func (d *Driver) Apply(ctx context.Context, c cable.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	key, err := d.loadKey()
	if err != nil {
		return err
	}
	if err := d.decideESP(); err != nil {
		return err
	}
	peers, problems := readKeys(c.Peers, public(key))
	want, segments := plan(d.esp, Address(public(key)), peers)
	changes, err := d.kernel.Apply(ctx, want)
	if len(changes) > 0 {
		d.config.Log.Info("tunnels' own address and routes", "changes", changes)
	}
	if err != nil {
		return errors.Join(append(problems, err)...)
	}
	problems = append(problems, d.segments.Apply(ctx, c.Self, segments))
	switch {
	case len(peers) > 0 && d.tender == nil:
		d.tender = newTender(d.config, d.esp, key)
		d.tender.set(c.Self, peers)
		d.tender.start()
	case len(peers) > 0:
		d.tender.set(c.Self, peers)
	default:
		problems = append(problems, d.endTender(), sweepESP())
	}
	if d.tender != nil {
		problems = append(problems, d.tender.problem())
	}
	return errors.Join(problems...)
}

// Report joins what the kernel has with what charon says.
func (d *Driver) Report(context.Context) (cable.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	report := cable.Report{Driver: cmp.Or(string(d.esp), cables.IPsec)}
	if d.tender == nil {
		return report, nil
	}
	segments, err := d.segments.Report()
	tunnels := d.tender.tunnels()
	for _, c := range segments {
		tunnel, ok := tunnels[c.Endpoint]
		if !ok {
			continue
		}
		c.PeerAddress, c.LastHandshake = tunnel.remote, tunnel.since
		report.Cables = append(report.Cables, c)
	}
	return report, err
}

// Remove takes everything away, also what a process before this one has made.
func (d *Driver) Remove(ctx context.Context) error {
	err := d.Close()
	segmentsErr := d.segments.Remove(ctx)
	_, kernelErr := d.kernel.Apply(ctx, netstate.State{}) // after the segments: what they still send is dropped in the tunnels' device
	return errors.Join(err, segmentsErr, sweepESP(), kernelErr, keyfile.Remove(d.config.KeyFile))
}

// Close ends charon, which tells its peers. Segments and blackhole stay.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endTender()
}

func (d *Driver) endTender() error {
	if d.tender == nil {
		return nil
	}
	err := d.tender.stop()
	d.tender = nil
	return err
}

// tunnel is what charon says of the way to a peer; while it has none, where we look for the peer.
type tunnel struct {
	remote netip.AddrPort
	since  time.Time
}

// remote is where a peer's charon is, as its Endpoint says.
func (p peer) remote() netip.AddrPort {
	port := p.DriverPort
	if port == 0 {
		port = DefaultPort
	}
	return netip.AddrPortFrom(p.Address.Addr(), port)
}

// initiator says whether of two gateways it is we who initiate. If both did at once, each would replace the other's tunnel.
func initiator(self, peer string) bool { return cmp.Compare(self, peer) < 0 }

func sorted(peers []peer) []peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b peer) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
}
