// Package wireguard is the cable driver for WireGuard: the kernel's device where the kernel has one, else wireguard-go
// inside this process, on a TUN device. wgctrl configures both in the same way, over netlink or over the socket
// /var/run/wireguard/DEVICE.sock.
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
	"github.com/fastnet-io/fastnet/internal/netstate"
)

// Overhead of WireGuard in bytes: outer IPv6 40, UDP 8, WireGuard 32. Over IPv4 it is 60, but a peer may have both.
const Overhead = 80

// keepalive holds the mappings of address translators open on the way to a peer.
const keepalive = 25 * time.Second

// Config of the driver.
type Config struct {
	// Link is the device's name. No other link may begin with it.
	Link string
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

	mu      sync.Mutex
	process *process                       // in-process device, nil when none runs
	kind    string                         // netstate.KindWireGuard or KindTUN, "" until known
	applied map[wgtypes.Key]netip.AddrPort // addresses that were set, so that a roaming peer is not called back
	byKey   map[wgtypes.Key]cable.Peer     // of the last configuration
}

var _ cable.Driver = (*Driver)(nil)

// New makes a driver that does nothing yet.
func New(c Config) *Driver {
	return &Driver{
		config: c, kernel: netstate.New(netstate.Scope{LinkPrefix: c.Link}, nil),
		applied: map[wgtypes.Key]netip.AddrPort{}, byKey: map[wgtypes.Key]cable.Peer{},
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

// Apply makes the device and its peers as the configuration says.
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
	link := netstate.Link{Name: d.config.Link, Kind: d.kind, MTU: c.MTU}
	if hasIPv6() {
		link.Addresses = []netip.Prefix{netip.PrefixFrom(ProbeAddress(private.PublicKey()), 64)}
	}
	changes, err := d.kernel.Apply(ctx, netstate.State{Links: []netstate.Link{link}})
	if len(changes) > 0 {
		d.config.Log.Info("device changed", "changes", changes)
	}
	if err != nil {
		return err
	}
	if d.kind == netstate.KindTUN {
		if err := d.ensureProcess(c.MTU); err != nil {
			return err
		}
	}
	return d.configure(private, c)
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
	attrs.Name = d.config.Link + "0" // begins with our prefix: if we are killed here, the next Apply sweeps it
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

func (d *Driver) configure(private wgtypes.Key, c cable.Config) error {
	control, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("configure %s: %w", d.config.Link, err)
	}
	defer control.Close()
	have, err := control.Device(d.config.Link)
	if err != nil {
		return fmt.Errorf("configure %s: %w", d.config.Link, err)
	}
	port := int(c.Port)
	config := wgtypes.Config{}
	if have.PrivateKey != private {
		config.PrivateKey = &private
	}
	if have.ListenPort != port {
		config.ListenPort = &port
	}
	byKey := map[wgtypes.Key]cable.Peer{}
	var problems []error
	for _, peer := range c.Peers {
		key, err := wgtypes.ParseKey(peer.PublicKey)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("peer %s: its public key is none: %w", peer.Endpoint, err))
			continue
		case key == private.PublicKey():
			problems = append(problems, fmt.Errorf("peer %s has our own key", peer.Endpoint))
			continue
		case byKey[key].Endpoint != "":
			problems = append(problems, fmt.Errorf("peers %s and %s have one key: only the first is used", byKey[key].Endpoint, peer.Endpoint))
			continue
		}
		byKey[key] = peer
	}
	existing := map[wgtypes.Key]wgtypes.Peer{}
	for _, peer := range have.Peers {
		existing[peer.PublicKey] = peer
		if _, ok := byKey[peer.PublicKey]; !ok {
			config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: peer.PublicKey, Remove: true})
			delete(d.applied, peer.PublicKey)
		}
	}
	for key, peer := range byKey {
		allowed := []net.IPNet{toIPNet(netip.PrefixFrom(ProbeAddress(key), 128))}
		for _, prefix := range peer.Prefixes {
			allowed = append(allowed, toIPNet(prefix))
		}
		interval := keepalive
		is, known := existing[key]
		update := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: known}
		changed := !known
		if !known || !sameNets(is.AllowedIPs, allowed) {
			update.ReplaceAllowedIPs, update.AllowedIPs = true, allowed
			changed = true
		}
		if is.PersistentKeepaliveInterval != interval {
			update.PersistentKeepaliveInterval = &interval
			changed = true
		}
		if peer.Address.IsValid() && (!known || is.Endpoint == nil || d.applied[key] != peer.Address) {
			update.Endpoint = net.UDPAddrFromAddrPort(peer.Address)
			d.applied[key] = peer.Address
			changed = true
		}
		if changed {
			config.Peers = append(config.Peers, update)
		}
	}
	// Removals first, so that a prefix that moves from one peer to another is free by then.
	slices.SortStableFunc(config.Peers, func(a, b wgtypes.PeerConfig) int {
		switch {
		case a.Remove == b.Remove:
			return strings.Compare(a.PublicKey.String(), b.PublicKey.String())
		case a.Remove:
			return -1
		default:
			return 1
		}
	})
	d.byKey = byKey
	if config.PrivateKey == nil && config.ListenPort == nil && len(config.Peers) == 0 {
		return errors.Join(problems...)
	}
	if err := control.ConfigureDevice(d.config.Link, config); err != nil {
		d.applied = map[wgtypes.Key]netip.AddrPort{}
		problems = append(problems, fmt.Errorf("configure %s: %w", d.config.Link, err))
	}
	return errors.Join(problems...)
}

// Report asks the device. Without one there are no cables, which is no error.
func (d *Driver) Report(context.Context) (cable.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	report := cable.Report{Driver: "wireguard"}
	if d.kind == netstate.KindTUN {
		report.Driver = "wireguard (in-process)"
	}
	control, err := wgctrl.New()
	if err != nil {
		return report, fmt.Errorf("read %s: %w", d.config.Link, err)
	}
	defer control.Close()
	have, err := control.Device(d.config.Link)
	if errors.Is(err, os.ErrNotExist) {
		return report, nil
	}
	if err != nil {
		return report, fmt.Errorf("read %s: %w", d.config.Link, err)
	}
	zone := func(key wgtypes.Key) netip.Addr {
		if !hasIPv6() {
			return netip.Addr{}
		}
		return ProbeAddress(key).WithZone(d.config.Link)
	}
	report.Probe = zone(have.PublicKey)
	for _, peer := range have.Peers {
		c := cable.Cable{
			Endpoint: d.byKey[peer.PublicKey].Endpoint, Probe: zone(peer.PublicKey),
			LastHandshake: peer.LastHandshakeTime, Sent: peer.TransmitBytes, Received: peer.ReceiveBytes,
		}
		if c.Endpoint == "" {
			continue // of a configuration before ours
		}
		if peer.LastHandshakeTime.Unix() <= 0 {
			c.LastHandshake = time.Time{}
		}
		if peer.Endpoint != nil {
			address := peer.Endpoint.AddrPort()
			c.PeerAddress = netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
		}
		report.Cables = append(report.Cables, c)
	}
	slices.SortFunc(report.Cables, func(a, b cable.Cable) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	return report, nil
}

// Remove takes the device and the key away.
func (d *Driver) Remove(ctx context.Context) error {
	err := d.Close()
	_, linkErr := d.kernel.Apply(ctx, netstate.State{})
	keyErr := os.Remove(d.config.KeyFile)
	if errors.Is(keyErr, os.ErrNotExist) {
		keyErr = nil
	}
	return errors.Join(err, linkErr, keyErr)
}

// Close ends the in-process device; the TUN and its routes stay. A kernel device works on by itself.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process == nil {
		return nil
	}
	err := d.process.close()
	d.process = nil
	return err
}

// process is wireguard-go in this process.
type process struct {
	device *device.Device
	socket net.Listener
	index  int
}

// ensureProcess attaches wireguard-go to the TUN device, unless it is attached already to this very one.
func (d *Driver) ensureProcess(mtu int) error {
	link, err := netlink.LinkByName(d.config.Link)
	if err != nil {
		return fmt.Errorf("in-process WireGuard: %w", err)
	}
	if d.process != nil {
		select {
		case <-d.process.device.Wait():
		default:
			if d.process.index == link.Attrs().Index {
				return nil
			}
		}
		d.config.Log.Warn("in-process WireGuard lost its device: starting anew", "error", d.process.close())
		d.process = nil
	}
	d.applied = map[wgtypes.Key]netip.AddrPort{}
	device, err := start(d.config.Link, mtu, d.config.Log)
	if err != nil {
		return fmt.Errorf("in-process WireGuard: %w", err)
	}
	device.index = link.Attrs().Index
	d.process = device
	d.config.Log.Info("in-process WireGuard runs: this kernel has none", "link", d.config.Link)
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
	dev := device.NewDevice(tunnel, conn.NewDefaultBind(), logger)
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
