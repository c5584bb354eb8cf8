package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
)

// How cables are probed.
const (
	// ProbePort (UDP), on addresses inside the cables only; beside the ports of the debug pages.
	ProbePort = 9473
	// probeInterval between two probes of a cable.
	probeInterval = 500 * time.Millisecond
	// downAfter this many probes in a row without an answer a cable is down; upAfter this many answers in a row one that
	// was down is up again. One answer is enough for the first time.
	downAfter = 5
	upAfter   = 2
	// attemptAfter this many probes without an answer the next address of the peer is tried.
	attemptAfter = 10
	// handshakeLife is how long after a handshake a cable counts as up where probes are not possible: WireGuard renews
	// it after 120 s of traffic, and a keepalive every 25 s is traffic.
	handshakeLife = 180 * time.Second
)

// A probe is 24 bytes, and so is the answer, which is the same with another kind:
//
//	 0      4      5        8          16           24
//	| FNp1 | kind | zeroes | sequence | start       |
//
// "start" tells the processes of one gateway apart: an answer to a probe of the one before is none of ours. WireGuard
// has proved who the sender is before a probe arrives, and strangers never get to see one.
const (
	probeSize    = 24
	probeMagic   = "FNp1"
	kindQuestion = 1
	kindAnswer   = 2
)

// Health is what is known of a cable.
type Health struct {
	State v1alpha1.CableState
	Since time.Time
	// RTT is the smoothed round-trip time, 0 before the first answer.
	RTT time.Duration
	// Attempts in a row, of attemptAfter probes each, that brought no answer.
	Attempts int
}

// track is the health of one cable as probes and answers make it. It does no I/O and has no clock.
type track struct {
	health    Health
	unsettled int // probes without an answer since the last answer
	answers   int // answers in a row
}

func newTrack(now time.Time) *track {
	return &track{health: Health{State: v1alpha1.CableConnecting, Since: now}}
}

// probed notes a probe that goes out now; every one counts as unanswered until an answer comes. It reports whether
// somebody should look: the state or the number of attempts has changed.
func (t *track) probed(now time.Time) (changed bool) {
	if t.unsettled++; t.unsettled > 1 {
		t.answers = 0
	}
	if t.unsettled > downAfter && t.health.State == v1alpha1.CableUp {
		t.set(v1alpha1.CableDown, now)
		changed = true
	}
	if t.unsettled > attemptAfter {
		t.unsettled = downAfter + 1
		t.health.Attempts++
		changed = true
	}
	return changed
}

// answered notes an answer to the probe that was sent then, and reports whether somebody should look: the state has changed, or the RTT is known for the
// first time. Probes that went out before the cable was up have waited for its handshake: their time is no RTT.
func (t *track) answered(now, sent time.Time) (changed bool) {
	t.unsettled = 0
	t.answers++
	if rtt := now.Sub(sent); t.health.State == v1alpha1.CableUp && !sent.Before(t.health.Since) {
		if t.health.RTT == 0 {
			t.health.RTT, changed = rtt, true
		}
		t.health.RTT += (rtt - t.health.RTT) / 8
	}
	if t.health.State == v1alpha1.CableConnecting || t.health.State == v1alpha1.CableDown && t.answers >= upAfter {
		t.set(v1alpha1.CableUp, now)
		t.health.RTT = 0
		changed = true
	}
	return changed
}

// handshake stands in for probes where there can be none.
func (t *track) handshake(now, last time.Time) (changed bool) {
	fresh := !last.IsZero() && now.Sub(last) < handshakeLife
	switch {
	case fresh && t.health.State != v1alpha1.CableUp:
		t.set(v1alpha1.CableUp, now)
		return true
	case !fresh && t.health.State == v1alpha1.CableUp:
		t.set(v1alpha1.CableDown, now)
		return true
	}
	return false
}

func (t *track) set(state v1alpha1.CableState, now time.Time) {
	t.health.State, t.health.Since = state, now
}

// prober sends probes through all cables and answers those of the peers.
type prober struct {
	poke func()
	log  *slog.Logger
	mark uint64 // this process, see "start" above

	mu       sync.Mutex
	local    netip.Addr
	cables   map[string]cable.Cable
	tracks   map[string]*track
	pending  map[uint64]question
	sequence uint64
	changed  chan struct{} // the addresses have changed
}

type question struct {
	endpoint string
	to       netip.Addr
	sent     time.Time
}

func newProber(poke func(), log *slog.Logger) *prober {
	return &prober{
		poke: poke, log: log, mark: uint64(time.Now().UnixNano()),
		cables: map[string]cable.Cable{}, tracks: map[string]*track{}, pending: map[uint64]question{}, changed: make(chan struct{}, 1),
	}
}

// seed takes over what the process before has reported, so that a restart is no change of state: a cable that was up
// stays so unless its probes fail.
func (p *prober) seed(cables []v1alpha1.Cable) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cables {
		if c.State != v1alpha1.CableUp {
			continue
		}
		t := &track{health: Health{State: c.State, Since: c.Since.Time}}
		if ms, err := strconv.ParseFloat(c.RTTMilliseconds, 64); err == nil {
			t.health.RTT = time.Duration(ms * float64(time.Millisecond))
		}
		p.tracks[c.Endpoint] = t
	}
}

// set takes the cables that exist.
func (p *prober) set(report cable.Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cables = map[string]cable.Cable{}
	now := time.Now()
	moved := false
	for _, c := range report.Cables {
		p.cables[c.Endpoint] = c
		if p.tracks[c.Endpoint] == nil {
			p.tracks[c.Endpoint] = newTrack(now)
		}
		if !c.Probe.IsValid() {
			moved = p.tracks[c.Endpoint].handshake(now, c.LastHandshake) || moved
		}
	}
	for endpoint := range p.tracks {
		if _, ok := p.cables[endpoint]; !ok {
			delete(p.tracks, endpoint)
		}
	}
	if p.local != report.Probe {
		p.local = report.Probe
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	if moved {
		p.poke()
	}
}

// health of every cable.
func (p *prober) health() map[string]Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]Health{}
	for endpoint, t := range p.tracks {
		all[endpoint] = t.health
	}
	return all
}

// run probes until the context ends. A socket lives as long as the device and address it is bound to.
func (p *prober) run(ctx context.Context) {
	for ctx.Err() == nil {
		p.mu.Lock()
		local := p.local
		p.mu.Unlock()
		if !local.IsValid() {
			p.wait(ctx, probeInterval)
			continue
		}
		if err := p.serve(ctx, local); err != nil && ctx.Err() == nil {
			p.log.Warn("cannot probe", "address", local, "error", err)
			p.wait(ctx, probeInterval)
		}
	}
}

func (p *prober) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-p.changed:
	case <-timer.C:
	}
}

var errDeviceChanged = errors.New("the device is another one now")

func (p *prober) serve(ctx context.Context, local netip.Addr) error {
	device, err := net.InterfaceByName(local.Zone())
	if err != nil {
		return err
	}
	socket, err := listen(ctx, local)
	if err != nil {
		return err
	}
	reading := make(chan error, 1)
	go func() { reading <- p.read(socket) }()
	err = p.ask(ctx, socket, local, device.Index, reading)
	return errors.Join(err, socket.Close())
}

// listen on an address of a device. Zones are left out wherever package net would look their names up: it remembers a
// device's number for a minute, also when there is a new device of the same name.
func listen(ctx context.Context, local netip.Addr) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var bindErr error
		err := raw.Control(func(fd uintptr) { bindErr = unix.BindToDevice(int(fd), local.Zone()) })
		return errors.Join(err, bindErr)
	}}
	socket, err := config.ListenPacket(ctx, "udp6", netip.AddrPortFrom(local.WithZone(""), ProbePort).String())
	if err != nil {
		return nil, err
	}
	udp, ok := socket.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("no UDP socket"), socket.Close())
	}
	return udp, nil
}

func (p *prober) ask(ctx context.Context, socket *net.UDPConn, local netip.Addr, index int, reading <-chan error) error {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		device, err := net.InterfaceByName(local.Zone())
		if err != nil {
			return err
		}
		if device.Index != index {
			return errDeviceChanged
		}
		for to, packet := range p.questions() {
			// An error (no key yet, no carrier) is a probe without an answer.
			_, _ = socket.WriteToUDPAddrPort(packet, netip.AddrPortFrom(to.WithZone(""), ProbePort))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
			return nil
		case err := <-reading:
			return err
		case <-ticker.C:
		}
	}
}

// questions are the probes that go out now.
func (p *prober) questions() map[netip.Addr][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for sequence, q := range p.pending {
		if now.Sub(q.sent) > downAfter*probeInterval {
			delete(p.pending, sequence) // too late to count
		}
	}
	packets := map[netip.Addr][]byte{}
	changed := false
	for endpoint, c := range p.cables {
		if !c.Probe.IsValid() {
			continue
		}
		p.sequence++
		p.pending[p.sequence] = question{endpoint: endpoint, to: c.Probe, sent: now}
		packet := append(make([]byte, 0, probeSize), probeMagic...)
		packet = append(packet, kindQuestion, 0, 0, 0)
		packet = binary.BigEndian.AppendUint64(packet, p.sequence)
		packets[c.Probe] = binary.BigEndian.AppendUint64(packet, p.mark)
		changed = p.tracks[endpoint].probed(now) || changed
	}
	if changed {
		p.poke()
	}
	return packets
}

func (p *prober) read(socket *net.UDPConn) error {
	buffer := make([]byte, 2*probeSize)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		packet := buffer[:n]
		if n != probeSize || string(packet[:4]) != probeMagic || !from.Addr().IsLinkLocalUnicast() {
			continue
		}
		switch packet[4] {
		case kindQuestion:
			packet[4] = kindAnswer
			_, _ = socket.WriteToUDPAddrPort(packet, netip.AddrPortFrom(from.Addr().WithZone(""), from.Port())) // lost answers are what probes are for
		case kindAnswer:
			if binary.BigEndian.Uint64(packet[16:]) == p.mark {
				p.answer(binary.BigEndian.Uint64(packet[8:]), from.Addr(), time.Now())
			}
		}
	}
}

func (p *prober) answer(sequence uint64, from netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.pending[sequence]
	if !ok || q.to.WithZone("") != from.WithZone("") {
		return
	}
	delete(p.pending, sequence)
	if t := p.tracks[q.endpoint]; t != nil && t.answered(now, q.sent) {
		p.poke()
	}
}
