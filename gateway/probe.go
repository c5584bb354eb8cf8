package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

// How cables are probed; the pace is that of package liveness.
const (
	// ProbePort (UDP), on addresses inside the cables only; beside the ports of the debug pages.
	ProbePort = 9473
	// attemptAfter this long without an answer the next address of the peer is tried: WireGuard repeats a handshake after
	// 5 s and up to a third, so each address gets one or two.
	attemptAfter = 7 * time.Second
	// reopenEvery is how often a socket is tried again that cannot be had: its device is being made.
	reopenEvery = 200 * time.Millisecond
	// handshakeLife is how long after a handshake a cable counts as up where probes are not possible: WireGuard renews
	// it after 120 s of traffic, and a keepalive every 25 s is traffic.
	handshakeLife = 180 * time.Second
)

// A probe is 24 bytes, and so is the answer, which is the same with another kind and the answerer's flags:
//
//	 0      4      5       6        8          16      24
//	| FNp1 | kind | flags | zeroes | sequence | start |
//
// "start" tells the processes of one gateway apart: an answer to a probe of the one before is none of ours. WireGuard
// has proved who the sender is before a probe arrives, and strangers never get to see one.
const (
	probeSize    = 24
	probeMagic   = "FNp1"
	kindQuestion = 1
	kindAnswer   = 2
	// flagDraining: the sender is about to go and wants no more traffic. flagDeaf: nothing has come to it from us
	// for deafAfter and two round-trip times, since probes go out no faster than they come back. flagTranslated: the sender sees us
	// somewhere else than where our Endpoint says, behind an address translator, and cannot call us.
	flagDraining   = 1
	flagDeaf       = 2
	flagTranslated = 4
)

// Answers are not the only proof of life. In a link that is full, or a process that has more to do than it can, probes are lost or late among
// the rest, in numbers that would mean death elsewhere; to give up a cable that carries all it can makes it worse for the others.
// So a cable that misses probes is looked at. It lives while the peer's own probes come, which say whether the peer hears us; or while the
// device receives more than these, and the peer's last word was that it does. A peer hears by what its device receives, too. Where
// only one direction has died the peer is deaf in deafAfter.
const (
	deafAfter = 300 * time.Millisecond
	// lookEvery is how often a device is looked at, and dataLasts for how long what it has received counts.
	lookEvery, dataLasts = 30 * time.Millisecond, 150 * time.Millisecond
	// probeTakes is how many bytes a device counts for a probe, at most, and leastData how many more must come between two looks: more than
	// probes that have arrived and that we have not read.
	probeTakes, leastData = 128, 512
	// wordLasts is how long what a peer said last counts by itself, and a round-trip time more; wordOfData is for how long with data.
	wordLasts, wordOfData = 150 * time.Millisecond, 3 * time.Second
)

// Health is what is known of a cable.
type Health struct {
	// ClusterID of the peer.
	ClusterID string
	State     v1alpha1.CableState
	Since     time.Time
	// RTT is the smoothed round-trip time, 0 while it is not known.
	RTT time.Duration
	// Loss is the share of the last probes that had no answer, 0 to 1.
	Loss float64
	// Silent is for how long there has been no answer.
	Silent time.Duration
	// Recovering: the cable is down, as it was too often, but answers again.
	Recovering bool
	// Draining: the peer wants no more traffic.
	Draining bool
	// Translated: the peer sees us behind an address translator, and cannot call us.
	Translated bool
	// Inherited: that it is up is what the process before has said; nothing has come through it since.
	Inherited bool
	// Failures is how many times this process has seen the cable go down.
	Failures int
	// Attempts in a row, of attemptAfter each, that brought no answer.
	Attempts int
}

// prober sends probes through all cables and answers those of the peers.
type prober struct {
	// poke is called when the health of a cable has changed, with the mutex held: it must not block, nor ask.
	poke func()
	// received gives the bytes that a device has received so far.
	received func(link string) (uint64, error)
	log      *slog.Logger
	mark     uint64 // this process, see "start" above

	mu       sync.Mutex
	draining bool             // we say
	lines    map[string]*line // by Endpoint
	changed  chan struct{}    // there may be something to do at once
}

// line is the probing of one cable. The prober's mutex guards it.
type line struct {
	cable      cable.Cable
	path       *liveness.Path
	draining   bool      // says the peer
	deaf       bool      // it says, too
	translated bool      // and this
	heard      time.Time // when the last probe of the peer came
	probes     uint64    // of the peer that came
	look       look
	packets    uint64 // probes that went through the cable, all kinds, either way
	failures   int
	attempts   int
	attemptAt  time.Time
	// standIn is the state by handshakes, where there can be no probes.
	standIn Health

	socket *net.UDPConn // nil while there is none
	openAt time.Time    // when to try to have one
}

// look is what a device had received when it was last looked at.
type look struct {
	at     time.Time
	bytes  uint64
	probes uint64    // that we had read by then
	data   time.Time // when more than probes had come
}

func newProber(poke func(), log *slog.Logger) *prober {
	return &prober{poke: poke, received: receivedBy, log: log, mark: uint64(time.Now().UnixNano()), lines: map[string]*line{}, changed: make(chan struct{}, 1)}
}

func newLine(path *liveness.Path, now time.Time) *line {
	return &line{path: path, attemptAt: now, standIn: Health{State: v1alpha1.CableConnecting, Since: now}}
}

// seed takes over what the process before has reported, so that a restart is no change of state: a cable that was up
// stays so unless its probes fail.
func (p *prober) seed(cables []v1alpha1.Cable) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, c := range cables {
		if c.State != v1alpha1.CableUp || p.lines[c.Endpoint] != nil {
			continue
		}
		rtt := time.Duration(0)
		if ms, err := strconv.ParseFloat(c.RTTMilliseconds, 64); err == nil {
			rtt = time.Duration(ms * float64(time.Millisecond))
		}
		p.lines[c.Endpoint] = newLine(liveness.Resume(c.Since.Time, now, rtt), now)
		p.lines[c.Endpoint].standIn = Health{State: c.State, Since: c.Since.Time}
	}
}

// set takes the cables that exist.
func (p *prober) set(report cable.Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	exists := map[string]bool{}
	moved := false
	for _, c := range report.Cables {
		exists[c.Endpoint] = true
		l := p.lines[c.Endpoint]
		if l == nil {
			l = newLine(liveness.New(now), now)
			p.lines[c.Endpoint] = l
		}
		if l.cable.Local != c.Local {
			l.close()
		}
		l.cable = c
		moved = l.handshake(now) || moved
	}
	for endpoint, l := range p.lines {
		if !exists[endpoint] {
			l.close()
			delete(p.lines, endpoint)
		}
	}
	p.wake()
	if moved {
		p.poke()
	}
}

func (p *prober) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// drain tells the peers that this gateway wants no more traffic, or that it does again: with the next probe, which is soon.
func (p *prober) drain(draining bool) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = p.draining != draining
	p.draining = draining
	return changed
}

// probes that have gone through each cable, by Endpoint.
func (p *prober) probes() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]uint64{}
	for endpoint, l := range p.lines {
		all[endpoint] = l.packets
	}
	return all
}

// health of every cable.
func (p *prober) health() map[string]Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	all := map[string]Health{}
	for endpoint, l := range p.lines {
		all[endpoint] = l.health(now)
	}
	return all
}

func (l *line) health(now time.Time) Health {
	if l.cable.Endpoint != "" && !l.cable.Probe.IsValid() {
		h := l.standIn
		h.ClusterID = l.cable.ClusterID
		return h
	}
	h := Health{
		ClusterID: l.cable.ClusterID, State: v1alpha1.CableConnecting, Since: l.path.Since(), RTT: l.path.RTT(), Loss: l.path.Loss(now), Silent: now.Sub(l.path.Answered()), Draining: l.draining,
		Translated: l.translated, Inherited: l.path.Inherited(), Failures: l.failures, Attempts: l.attempts,
	}
	switch l.path.State() {
	case liveness.Up:
		h.State = v1alpha1.CableUp
	case liveness.Down, liveness.Recovering:
		h.State, h.Recovering = v1alpha1.CableDown, l.path.State() == liveness.Recovering
	case liveness.Unknown:
	}
	return h
}

// handshake stands in for probes where there can be none.
func (l *line) handshake(now time.Time) (changed bool) {
	fresh := !l.cable.LastHandshake.IsZero() && now.Sub(l.cable.LastHandshake) < handshakeLife
	switch {
	case l.cable.Probe.IsValid():
	case fresh && l.standIn.State != v1alpha1.CableUp:
		l.standIn = Health{State: v1alpha1.CableUp, Since: now}
		return true
	case !fresh && l.standIn.State == v1alpha1.CableUp:
		l.standIn = Health{State: v1alpha1.CableDown, Since: now}
		return true
	}
	return false
}

func (l *line) close() {
	if l.socket != nil {
		_ = l.socket.Close() // its reader ends
		l.socket = nil
	}
}

// run probes until the context ends.
func (p *prober) run(ctx context.Context) {
	var readers sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-p.changed:
		case <-timer.C:
		}
		timer.Reset(time.Until(p.turn(ctx, time.Now(), &readers)))
	}
	p.mu.Lock()
	for _, l := range p.lines {
		l.close()
	}
	p.mu.Unlock()
	readers.Wait()
}

// turn does what is due, and says when there is something to do again.
func (p *prober) turn(ctx context.Context, now time.Time, readers *sync.WaitGroup) (next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next = now.Add(time.Second)
	look := false
	for _, l := range p.lines {
		if !l.cable.Probe.IsValid() {
			continue
		}
		if !l.cable.PeerAddress.IsValid() {
			l.attemptAt = now // the peer has not said yet where it awaits us: nothing is tried
			continue
		}
		if l.socket == nil && !now.Before(l.openAt) {
			p.open(ctx, now, l, readers)
		}
		if l.path.Due(now) {
			look = p.ask(now, l) || look
		}
		if l.path.Next().Before(next) {
			next = l.path.Next()
		}
	}
	if look {
		p.poke()
	}
	return next
}

// ask sends a probe, and reports whether somebody should look: the state or the number of attempts has changed.
func (p *prober) ask(now time.Time, l *line) (look bool) {
	missed := l.path.Missed(now)
	if missed >= liveness.DownAfter/2 {
		p.see(now, l)
	}
	if missed >= liveness.DownAfter-1 && l.lives(now) { // not before: a word from before its death would win a cable time
		l.path.Vouch(now)
	}
	before, silent := l.path.State(), now.Sub(l.path.Answered())
	sequence, look := l.path.Probe(now)
	if look && before == liveness.Up {
		l.failures++ // a probe changes the state to down alone
		p.log.Info("cable does not answer", "endpoint", l.cable.Endpoint, "unanswered", missed, "silent", silent, "rtt", l.path.RTT(), "heard", l.heard, "deaf", l.deaf)
	}
	if l.socket != nil {
		packet := append(make([]byte, 0, probeSize), probeMagic...)
		packet = append(packet, kindQuestion, p.flags(now, l), 0, 0)
		packet = binary.BigEndian.AppendUint64(packet, sequence)
		packet = binary.BigEndian.AppendUint64(packet, p.mark)
		// Whatever the error is: the device may be another one of the same name now.
		if _, err := l.socket.WriteToUDPAddrPort(packet, netip.AddrPortFrom(l.cable.Probe.WithZone(""), ProbePort)); err != nil {
			l.close()
			l.openAt = now.Add(reopenEvery)
		} else {
			l.packets++
		}
	}
	silentSince := l.path.Answered()
	if l.attemptAt.After(silentSince) {
		silentSince = l.attemptAt
	}
	if now.Sub(silentSince) >= attemptAfter {
		l.attempts++
		l.attemptAt, look = now, true
	}
	return look
}

// flags that a probe, or an answer, bears.
func (p *prober) flags(now time.Time, l *line) (flags byte) {
	if p.draining {
		flags |= flagDraining
	}
	if patience := deafAfter + 2*l.path.RTT(); now.Sub(l.heard) > patience && now.Sub(l.look.data) > patience {
		flags |= flagDeaf
	}
	if l.cable.Translated {
		flags |= flagTranslated
	}
	return flags
}

// see looks at what came through a cable.
func (p *prober) see(now time.Time, l *line) {
	if now.Sub(l.look.at) < lookEvery {
		return
	}
	bytes, err := p.received(l.cable.Local.Zone())
	if err != nil {
		p.log.Debug("cannot tell what came through a cable", "endpoint", l.cable.Endpoint, "error", err)
		l.look.at = time.Time{} // the next look is a first one again
		return
	}
	last := l.look
	l.look.at, l.look.bytes, l.look.probes = now, bytes, l.probes
	if now.Sub(last.at) <= dataLasts && bytes >= last.bytes+leastData+probeTakes*(l.probes-last.probes) {
		l.look.data = now
	}
}

// lives says whether a cable that misses probes is known to live all the same.
func (l *line) lives(now time.Time) bool {
	word := now.Sub(l.heard)
	return !l.deaf && (word <= wordLasts+l.path.RTT() || word <= wordOfData && now.Sub(l.look.data) <= dataLasts)
}

func receivedBy(link string) (uint64, error) {
	device, err := netlink.LinkByName(link)
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", link, err)
	}
	if device.Attrs().Statistics == nil {
		return 0, fmt.Errorf("%s has no statistics", link)
	}
	return device.Attrs().Statistics.RxBytes, nil
}

func (p *prober) open(ctx context.Context, now time.Time, l *line, readers *sync.WaitGroup) {
	socket, err := listen(ctx, l.cable.Local)
	if err != nil {
		l.openAt = now.Add(reopenEvery)
		p.log.Debug("cannot probe", "address", l.cable.Local, "error", err)
		return
	}
	l.socket = socket
	readers.Go(func() { p.read(socket, l) })
}

// listen on an address of a device. Zones are left out wherever package net would look their names up: it remembers a
// device's number for a minute, also when there is a new device of the same name.
func listen(ctx context.Context, local netip.Addr) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var bindErr error
		err := raw.Control(func(fd uintptr) {
			bindErr = errors.Join(unix.BindToDevice(int(fd), local.Zone()), nodeprobe.First(int(fd), true))
		})
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

// read until the socket is closed.
func (p *prober) read(socket *net.UDPConn, l *line) {
	buffer := make([]byte, 2*probeSize)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what an ICMP message says of an earlier packet; it is told once
		}
		if answer := p.take(buffer[:n], from.Addr(), l, time.Now()); answer != nil {
			_, _ = socket.WriteToUDPAddrPort(answer, netip.AddrPortFrom(from.Addr().WithZone(""), from.Port())) // lost answers are what probes are for
		}
	}
}

// take a packet that came through a cable, and give the answer to it, nil where it gets none.
func (p *prober) take(packet []byte, from netip.Addr, l *line, now time.Time) (answer []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(packet) != probeSize || string(packet[:4]) != probeMagic || from.WithZone("") != l.cable.Probe.WithZone("") {
		return nil
	}
	l.packets++
	l.probes++
	l.heard = now
	look := false
	switch {
	case packet[4] == kindQuestion:
		l.packets++ // the answer
		look = l.told(packet[5])
		packet[4], packet[5] = kindAnswer, p.flags(now, l)
		answer = packet
	case packet[4] == kindAnswer && binary.BigEndian.Uint64(packet[16:]) == p.mark:
		unknown, inherited := l.path.RTT() == 0, l.path.Inherited()
		look = l.told(packet[5])
		look = l.path.Answer(binary.BigEndian.Uint64(packet[8:]), now) || look
		look = look || unknown && l.path.RTT() > 0 || inherited && !l.path.Inherited()
	}
	if look {
		p.poke()
	}
	return answer
}

// told takes the peer's flags, and reports whether they are news.
func (l *line) told(flags byte) (changed bool) {
	draining, translated := flags&flagDraining != 0, flags&flagTranslated != 0
	changed = draining != l.draining || translated != l.translated
	l.draining, l.translated, l.deaf = draining, translated, flags&flagDeaf != 0
	l.path.Leaving(draining)
	return changed
}
