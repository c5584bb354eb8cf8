package nodeprobe

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/internal/liveness"
)

// Target is one path to one gateway.
type Target struct {
	// Gateway is the name of its Endpoint, PublicKey its key in base64.
	Gateway, PublicKey string
	// Addr to ask at. Link is the number of the link where it is link-local or questions are foreign, else 0.
	Addr netip.Addr
	Link uint32
	// Source and Dest make the questions foreign: from the one, an address of this node's, to the other, in frames to Addr on Link.
	Source, Dest netip.Addr
}

// Ask says how a path is probed.
type Ask struct {
	// InUse: where the path is new, it was in use before this process began, and counts as up until its probes are missed.
	InUse bool
	// Own: the gateway is on this very node. That it answers once is enough to be up again: nothing lies in between that may flap.
	Own bool
	// Seldom: twice a second is enough while it is up, and while the path Beside answers, where there is one.
	Seldom bool
	Beside Target
}

// Health of a path.
type Health struct {
	State liveness.State
	Since time.Time
	RTT   time.Duration
	// Loss of the last probes, 0 to 1.
	Loss float64
	// Seen is the gateway's view, nil before it was told, and SeenAt is when it last changed.
	Seen   *Seen
	SeenAt time.Time
}

// Prober is the nodes' side. Make it with NewProber.
type Prober struct {
	port    uint16
	changed func()
	log     *slog.Logger

	mu      sync.Mutex
	talks   map[Target]*talk
	at      map[netip.Addr][]*talk
	foreign []*talk               // answers to these come from whatever address the gateway has for us
	sockets map[bool]*net.UDPConn // by "IPv6"
	frames  int                   // socket of foreign questions, -1 where there is none
	wake    chan struct{}
}

type talk struct {
	target Target
	ask    Ask
	path   *liveness.Path
	*conversation
	seenAt time.Time
	mac    net.HardwareAddr // of the gateway, for foreign questions
	macAt  time.Time
}

// NewProber asks at a port, and calls changed, which must not block, when the state of a path or a gateway's view
// changes.
func NewProber(port uint16, changed func(), log *slog.Logger) *Prober {
	return &Prober{port: port, changed: changed, log: log, talks: map[Target]*talk{}, at: map[netip.Addr][]*talk{},
		sockets: map[bool]*net.UDPConn{}, frames: -1, wake: make(chan struct{}, 1)}
}

// Set takes the paths to probe; those that stay are not disturbed.
func (p *Prober) Set(targets map[Target]Ask) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	now := time.Now()
	at := map[netip.Addr][]*talk{}
	p.foreign = nil
	for target := range p.talks {
		if _, ok := targets[target]; !ok {
			delete(p.talks, target)
		}
	}
	for target, ask := range targets {
		if p.talks[target] == nil {
			key, err := base64.StdEncoding.DecodeString(target.PublicKey)
			if err != nil {
				errs = append(errs, fmt.Errorf("gateway %s: public key: %w", target.Gateway, err))
				continue
			}
			c, err := newConversation(key)
			if err != nil {
				errs = append(errs, fmt.Errorf("gateway %s: %w", target.Gateway, err))
				continue
			}
			path := liveness.New(now)
			if ask.InUse {
				path = liveness.Resume(now, now, 0)
			}
			p.talks[target] = &talk{target: target, path: path, conversation: c}
		}
		p.talks[target].ask = ask
		p.talks[target].path.Near(ask.Own)
		if target.Source.IsValid() {
			p.foreign = append(p.foreign, p.talks[target])
		} else {
			at[target.Addr] = append(at[target.Addr], p.talks[target])
		}
	}
	p.at = at
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// Health of every path.
func (p *Prober) Health() map[Target]Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	all := map[Target]Health{}
	for target, t := range p.talks {
		all[target] = Health{State: t.path.State(), Since: t.path.Since(), RTT: t.path.RTT(), Loss: t.path.Loss(now), Seen: t.seen, SeenAt: t.seenAt}
	}
	return all
}

// Run probes until the context ends. It fails only where the node lets it have no socket.
func (p *Prober) Run(ctx context.Context) error {
	var reading sync.WaitGroup
	defer reading.Wait()
	for _, v6 := range []bool{false, true} {
		socket, err := listen(ctx, v6, 0)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			continue
		}
		if err != nil {
			return fmt.Errorf("node probes: %w", err)
		}
		defer func() { _ = socket.Close() }() // nothing is buffered
		p.mu.Lock()
		p.sockets[v6] = socket
		p.mu.Unlock()
		reading.Go(func() { p.read(socket) })
	}
	if fd, err := foreignSocket(); err != nil {
		p.log.Error("segments cannot be proven to carry packets of pods", "error", err)
	} else {
		defer unix.Close(fd)
		p.mu.Lock()
		p.frames = fd
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			p.frames = -1
			p.mu.Unlock()
		}()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
		timer.Reset(p.ask())
	}
}

// ask sends what is due, and says when the next is.
func (p *Prober) ask() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	next := now.Add(time.Second)
	changed := false
	for target, t := range p.talks {
		t.path.Seldom(t.ask.Seldom && !p.doubted(t.ask.Beside, now), now)
		if t.path.Due(now) {
			missed, silent := t.path.Missed(now), now.Sub(t.path.Answered())
			sequence, moved := t.path.Probe(now)
			if moved {
				p.log.Info("path "+string(t.path.State()), "gateway", target.Gateway, "address", target.Addr, "from", target.Source, "unanswered", missed, "silent", silent,
					"rtt", t.path.RTT())
			}
			changed = changed || moved
			if target.Source.IsValid() {
				p.askForeign(now, t, sequence)
				continue
			}
			out := path{addr: netip.AddrPortFrom(target.Addr, p.port), to: netip.IPv6Unspecified(), link: target.Link}
			var oob []byte
			if target.Link != 0 {
				oob = out.oob()
			}
			question := t.conversation.ask(sequence)
			if socket := p.sockets[target.Addr.Is6()]; socket != nil {
				// An error (no route, no carrier) is a probe without an answer.
				_, _, _ = socket.WriteMsgUDPAddrPort(question, oob, out.addr)
			}
		}
	}
	for _, t := range p.talks {
		if t.path.Next().Before(next) {
			next = t.path.Next()
		}
	}
	if changed {
		p.changed()
	}
	return max(0, next.Sub(now))
}

// doubted: the path is there, and has missed a probe or is not up. The mutex is held.
func (p *Prober) doubted(target Target, now time.Time) bool {
	t := p.talks[target]
	return t != nil && (t.path.State() != liveness.Up || t.path.Missed(now) > 0)
}

// askForeign must be called with mu held.
func (p *Prober) askForeign(now time.Time, t *talk, sequence uint64) {
	socket := p.sockets[t.target.Addr.Is6()]
	if p.frames < 0 || socket == nil {
		return
	}
	counts := macFor
	if t.path.State() != liveness.Up {
		counts = macRetry
	}
	// At the start the first answer to an ordinary question makes it known, within milliseconds.
	if len(t.mac) == 0 && now.Sub(t.macAt) > liveness.EagerPace || now.Sub(t.macAt) > counts {
		t.mac, t.macAt = macOf(t.target.Link, t.target.Addr), now
	}
	from, ok := socket.LocalAddr().(*net.UDPAddr)
	if !ok {
		return
	}
	// An error (the link is down) is a probe without an answer.
	_ = sendForeign(p.frames, t.target, t.mac, uint16(from.Port), p.port, t.conversation.ask(sequence))
}

func (p *Prober) read(socket *net.UDPConn) {
	buffer := make([]byte, maxPacket+1)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && from.Port() == p.port {
			p.hear(buffer[:n], from.Addr().WithZone(""))
		}
	}
}

func (p *Prober) hear(packet []byte, from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range slices.Concat(p.at[from], p.foreign) {
		sequence, changed, ok := t.conversation.hear(packet)
		if !ok {
			continue
		}
		if changed {
			t.seenAt = time.Now()
		}
		t.path.Leaving(t.conversation.seen != nil && t.conversation.seen.Draining)
		if sequence != 0 && t.path.Answer(sequence, time.Now()) {
			changed = true
			p.log.Info("path "+string(t.path.State()), "gateway", t.target.Gateway, "address", t.target.Addr, "from", t.target.Source)
		}
		if changed {
			p.changed()
		}
		return
	}
}
