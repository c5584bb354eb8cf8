// Package wireguard is the cable driver for WireGuard: the kernel's device where the kernel has one, else wireguard-go
// inside this process, on a TUN device. wgctrl configures both in the same way, over netlink or over the socket
// /var/run/wireguard/DEVICE.sock.
//
// Each peer has a device of its own: WireGuard gives a prefix to one peer of a device, and takes packets with a source in
// it from that peer alone, while the prefixes of a cluster lie behind all its gateways. All devices have the one private
// key of this gateway, and each a UDP port of its own.
//
// The TUN device is persistent: when this process ends, however it ends, the device and the routes into it stay, and
// packets for other clusters wait or are dropped there instead of leaving in clear by another way. The next process
// takes the device over.
package wireguard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/gateway/keyfile"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/netstate"
)

// Overhead of WireGuard in bytes: outer IPv6 40, UDP 8, WireGuard 32. Over IPv4 it is 60, but a peer may have both.
const Overhead = 80

// keepalive holds the mappings of address translators open on the way to a peer.
const keepalive = 25 * time.Second

// patience with a peer that is silent at least, and three times as long at most; then it is made anew, at random moments of each side's own.
//
// With a first handshake: two peers whose initiations cross answer each other and can use neither answer, as each has given up its own for
// the other's. WireGuard tries again after 5 s (Rekey-Timeout, section 6.1 of its paper), and as packets wait on both sides at any time they
// do so at the same moment, and may cross again.
//
// With a session: one that the peer, which has begun anew, knows nothing of. It calls; but where we are behind an address translator
// it cannot, and WireGuard gives a session up after 15 s (Keepalive-Timeout and Rekey-Timeout, section 6.5). Probes and the answers to them go through
// every cable several times a second, so where nothing has been received for as long as silence there is nothing to lose. It is longer than any
// round trip: the first packet in a new session is that far away.
const (
	patience = time.Second
	silence  = 2 * time.Second
)

// late is by how much a process that stands still is late.
const late = 200 * time.Millisecond

// Config of the driver.
type Config struct {
	// LinkPrefix begins the names of all devices, and of no other link.
	LinkPrefix string
	// KeyFile holds the private key; it is made where there is none.
	KeyFile string
	// InProcess uses wireguard-go even where the kernel has WireGuard.
	InProcess bool
	Log       *slog.Logger
}

// Driver is a cable.Driver. Make it with New.
type Driver struct {
	config Config
	kernel *netstate.Kernel

	mu        sync.Mutex
	kind      string                    // netstate.KindWireGuard or KindTUN, "" until known
	processes map[string]*process       // in-process devices that run, by link
	applied   map[string]netip.AddrPort // peers' addresses that were set, by link, so that a roaming peer is not called back
	heard     map[string]heard          // by link
	peers     []peer                    // of the last configuration
	retry     *time.Timer               // to look for silent peers
}

// heard is how much a peer had sent when it was last looked at, and since when it has sent no more.
type heard struct {
	bytes int64
	at    time.Time
}

// peer with its key read.
type peer struct {
	cable.Peer
	key wgtypes.Key
}

var _ cable.Driver = (*Driver)(nil)

// New makes a driver that does nothing yet.
func New(c Config) *Driver {
	return &Driver{
		config: c, kernel: netstate.New(netstate.Scope{LinkPrefix: c.LinkPrefix}, nil),
		processes: map[string]*process{}, applied: map[string]netip.AddrPort{}, heard: map[string]heard{},
	}
}

// PublicKey is the key in base64.
func (d *Driver) PublicKey() (string, error) {
	key, err := loadKey(d.config.KeyFile)
	if err != nil {
		return "", err
	}
	return key.PublicKey().String(), nil
}

// ProbeAddress is the address inside the cable of the gateway with this key: link-local, from a hash of the key. Nobody
// plans such addresses, they cannot be another cluster's, and WireGuard lets only the holder of the key use it.
func ProbeAddress(key wgtypes.Key) netip.Addr {
	sum := sha256.Sum256(append([]byte("fastnet wireguard "), key[:]...))
	addr := [16]byte{0: 0xfe, 1: 0x80}
	copy(addr[8:], sum[:8])
	return netip.AddrFrom16(addr)
}

// Apply makes the devices as the configuration says. What is wrong with one is no reason not to make the others.
func (d *Driver) Apply(ctx context.Context, c cable.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	private, err := loadKey(d.config.KeyFile)
	if err != nil {
		return err
	}
	if err := d.decideKind(); err != nil {
		return err
	}
	var problems []error
	d.peers, problems = readKeys(c.Peers, private.PublicKey())
	var desired netstate.State
	for _, peer := range d.peers {
		link := netstate.Link{Name: peer.Link, Kind: d.kind, MTU: peer.MTU, Addresses: []netip.Prefix{cables.Anchor}}
		if hasIPv6() {
			link.Addresses = append(link.Addresses, netip.PrefixFrom(ProbeAddress(private.PublicKey()), 64))
		}
		desired.Links = append(desired.Links, link)
	}
	for link, process := range d.processes {
		if !slices.ContainsFunc(d.peers, func(p peer) bool { return p.Link == link }) {
			problems = append(problems, process.close())
			delete(d.processes, link)
		}
	}
	changes, err := d.kernel.Apply(ctx, desired)
	if len(changes) > 0 {
		d.config.Log.Info("devices changed", "changes", changes)
	}
	if err != nil {
		problems = append(problems, err)
	}
	control, err := wgctrl.New()
	if err != nil {
		return errors.Join(append(problems, fmt.Errorf("configure devices: %w", err))...)
	}
	defer control.Close()
	for _, peer := range d.peers {
		if d.kind == netstate.KindTUN {
			if err := d.ensureProcess(peer.Link, peer.MTU); err != nil {
				problems = append(problems, err)
				continue
			}
		}
		if err := d.configure(control, private, peer, false); err != nil {
			problems = append(problems, fmt.Errorf("configure %s for %s: %w", peer.Link, peer.Endpoint, err))
		}
	}
	d.await(private)
	return errors.Join(problems...)
}

// await has peers that are silent made anew, now and then.
func (d *Driver) await(private wgtypes.Key) {
	if d.retry != nil {
		return
	}
	wait := patience + rand.N(2*patience)
	due := time.Now().Add(wait)
	d.retry = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.retry == nil {
			return // closed meanwhile
		}
		d.retry = nil
		if time.Since(due) > late { // we stood still: what has come meanwhile is not read yet
			clear(d.heard)
		}
		control, err := wgctrl.New()
		if err != nil {
			return // Apply tells of it
		}
		defer control.Close()
		for _, peer := range d.peers {
			_ = d.configure(control, private, peer, true) // Apply does and tells what fails here
		}
		d.await(private)
	})
}

// readKeys leaves out peers that can have no cable, and says why.
func readKeys(all []cable.Peer, own wgtypes.Key) (peers []peer, problems []error) {
	byKey := map[wgtypes.Key]string{own: "this gateway"}
	for _, p := range all {
		key, err := wgtypes.ParseKey(p.PublicKey)
		if err != nil {
			problems = append(problems, fmt.Errorf("peer %s: its public key is none: %w", p.Endpoint, err))
			continue
		}
		if other := byKey[key]; other != "" {
			problems = append(problems, fmt.Errorf("peer %s has the key of %s: no cable", p.Endpoint, other))
			continue
		}
		byKey[key] = p.Endpoint
		peers = append(peers, peer{p, key})
	}
	return peers, problems
}

// decideKind finds out once whether the kernel has WireGuard: by making a device, the only way that is always right (it
// may load the module). A device that is there already is replaced by Apply where it is of the other kind.
func (d *Driver) decideKind() error {
	if d.kind != "" {
		return nil
	}
	if d.config.InProcess {
		d.kind = netstate.KindTUN
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = d.config.LinkPrefix + "-try" // our prefix: if we are killed here, the next Apply sweeps it
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case err == nil || errors.Is(err, unix.EEXIST):
		link, err := netlink.LinkByName(attrs.Name)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			return fmt.Errorf("try the kernel's WireGuard: %w", err)
		}
		d.kind = netstate.KindWireGuard
	case errors.Is(err, unix.EOPNOTSUPP):
		d.kind = netstate.KindTUN
	default:
		return fmt.Errorf("try the kernel's WireGuard: %w", err)
	}
	return nil
}

// silent says of a peer that can be called whether there was no handshake, or, where there are probes, nothing has come for as long as silence.
func (d *Driver) silent(link string, is wgtypes.Peer) bool {
	if last, known := d.heard[link]; !known || last.bytes != is.ReceiveBytes {
		d.heard[link] = heard{is.ReceiveBytes, time.Now()}
	}
	return is.Endpoint != nil && (is.LastHandshakeTime.Unix() <= 0 || hasIPv6() && time.Since(d.heard[link].at) >= silence)
}

// configure makes a device have one peer. What is right already is not touched, but for a silent peer where such are to be made anew.
func (d *Driver) configure(control *wgctrl.Client, private wgtypes.Key, peer peer, anew bool) error {
	have, err := control.Device(peer.Link)
	if err != nil {
		delete(d.applied, peer.Link)
		return err
	}
	config := wgtypes.Config{}
	if have.PrivateKey != private {
		config.PrivateKey = &private
	}
	if port := int(peer.Port); have.ListenPort != port {
		config.ListenPort = &port
	}
	allowed := []net.IPNet{toIPNet(netip.PrefixFrom(ProbeAddress(peer.key), 128))}
	for _, prefix := range peer.Prefixes {
		allowed = append(allowed, toIPNet(prefix))
	}
	// Without an address there is nobody to keep alive, and a handshake that cannot be sent is not tried again for 5 s, when the
	// address may have come.
	var interval time.Duration
	if peer.Address.IsValid() {
		interval = keepalive
	}
	update := wgtypes.PeerConfig{PublicKey: peer.key}
	changed := true
	var is wgtypes.Peer
	for _, other := range have.Peers {
		ours := other.PublicKey == peer.key
		silent := ours && d.silent(peer.Link, other)
		if ours && !(anew && silent) {
			is, changed, update.UpdateOnly = other, false, true
		} else {
			config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: other.PublicKey, Remove: true})
			delete(d.applied, peer.Link)
		}
	}
	if !update.UpdateOnly || !sameNets(is.AllowedIPs, allowed) {
		update.ReplaceAllowedIPs, update.AllowedIPs, changed = true, allowed, true
	}
	if is.PersistentKeepaliveInterval != interval {
		update.PersistentKeepaliveInterval, changed = &interval, true
	}
	if peer.Address.IsValid() && (is.Endpoint == nil || d.applied[peer.Link] != peer.Address) {
		update.Endpoint, changed = net.UDPAddrFromAddrPort(peer.Address), true
	}
	if changed {
		config.Peers = append(config.Peers, update)
	}
	if config.PrivateKey != nil || config.ListenPort != nil || len(config.Peers) > 0 {
		if err := control.ConfigureDevice(peer.Link, config); err != nil {
			delete(d.applied, peer.Link)
			return err
		}
	}
	if update.Endpoint != nil {
		d.applied[peer.Link] = peer.Address
	}
	return nil
}

// Report asks the devices. One that is missing is a cable that does not exist, which is no error.
func (d *Driver) Report(context.Context) (cable.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	report := cable.Report{Driver: "wireguard"}
	if d.kind == netstate.KindTUN {
		report.Driver = "wireguard (in-process)"
	}
	control, err := wgctrl.New()
	if err != nil {
		return report, fmt.Errorf("read devices: %w", err)
	}
	defer control.Close()
	var problems []error
	for _, peer := range d.peers {
		have, err := control.Device(peer.Link)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				problems = append(problems, fmt.Errorf("read %s: %w", peer.Link, err))
			}
			continue
		}
		i := slices.IndexFunc(have.Peers, func(is wgtypes.Peer) bool { return is.PublicKey == peer.key })
		if i < 0 {
			continue
		}
		is := have.Peers[i]
		c := cable.Cable{Endpoint: peer.Endpoint, ClusterID: peer.ClusterID, Sent: is.TransmitBytes, Received: is.ReceiveBytes}
		if link, err := netlink.LinkByName(peer.Link); err == nil && link.Attrs().Statistics != nil {
			c.Packets = link.Attrs().Statistics.RxPackets + link.Attrs().Statistics.TxPackets
		}
		if hasIPv6() {
			c.Local, c.Probe = ProbeAddress(have.PublicKey).WithZone(peer.Link), ProbeAddress(peer.key).WithZone(peer.Link)
		}
		if is.LastHandshakeTime.Unix() > 0 {
			c.LastHandshake = is.LastHandshakeTime
		}
		if is.Endpoint != nil {
			address := is.Endpoint.AddrPort()
			c.PeerAddress = netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
		}
		report.Cables = append(report.Cables, c)
	}
	return report, errors.Join(problems...)
}

// Remove takes the devices and the key away.
func (d *Driver) Remove(ctx context.Context) error {
	err := d.Close()
	_, linkErr := d.kernel.Apply(ctx, netstate.State{})
	return errors.Join(err, linkErr, keyfile.Remove(d.config.KeyFile))
}

// Close ends the in-process devices; the TUN devices and their routes stay. Kernel devices work on by themselves.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.retry != nil {
		d.retry.Stop()
		d.retry = nil
	}
	var problems []error
	for _, process := range d.processes {
		problems = append(problems, process.close())
	}
	clear(d.processes)
	return errors.Join(problems...)
}

// process is wireguard-go in this process.
type process struct {
	device *device.Device
	socket net.Listener
	index  int
}

// ensureProcess attaches wireguard-go to a TUN device, unless it is attached already to this very one.
func (d *Driver) ensureProcess(name string, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("in-process WireGuard: %w", err)
	}
	if running := d.processes[name]; running != nil {
		select {
		case <-running.device.Wait():
		default:
			if running.index == link.Attrs().Index {
				return nil
			}
		}
		d.config.Log.Warn("in-process WireGuard lost its device: starting anew", "link", name, "error", running.close())
		delete(d.processes, name)
	}
	delete(d.applied, name)
	process, err := start(name, mtu, d.config.Log)
	if err != nil {
		return fmt.Errorf("in-process WireGuard: %w", err)
	}
	process.index = link.Attrs().Index
	d.processes[name] = process
	d.config.Log.Info("in-process WireGuard runs: this kernel has none", "link", name)
	return nil
}

func start(name string, mtu int, log *slog.Logger) (*process, error) {
	tunnel, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("attach to %s through /dev/net/tun: %w", name, err)
	}
	logger := &device.Logger{
		Verbosef: func(format string, args ...any) { log.Debug("wireguard-go: " + fmt.Sprintf(format, args...)) },
		Errorf:   func(format string, args ...any) { log.Warn("wireguard-go: " + fmt.Sprintf(format, args...)) },
	}
	dev := device.NewDevice(checksummed{tunnel}, conn.NewDefaultBind(), logger)
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("socket in /var/run/wireguard (it must be writable): %w", err)
	}
	socket, err := ipc.UAPIListen(name, file)
	if err = errors.Join(err, file.Close()); err != nil {
		dev.Close()
		return nil, fmt.Errorf("socket in /var/run/wireguard: %w", err)
	}
	go func() {
		for {
			connection, err := socket.Accept()
			if err != nil {
				return
			}
			go dev.IpcHandle(connection)
		}
	}()
	if err := dev.Up(); err != nil {
		return nil, errors.Join(fmt.Errorf("set %s up: %w", name, err), (&process{device: dev, socket: socket}).close())
	}
	return &process{device: dev, socket: socket}, nil
}

func (p *process) close() error {
	err := p.socket.Close()
	p.device.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func hasIPv6() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}

func toIPNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func sameNets(a, b []net.IPNet) bool {
	text := func(nets []net.IPNet) []string {
		var out []string
		for _, n := range nets {
			out = append(out, n.String())
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(text(a), text(b))
}
