package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// change is one thing that was done in the source cluster, and that has to show in the target cluster's DNS.
type change struct {
	query []byte // asks about it; the first two bytes are the ID
	wants func(reply []byte) bool

	// due is when it should have been sent, sent when it was, acknowledged when the API server had taken it.
	due, sent, acknowledged time.Time
	// answered is when the first answer came that shows it. asked counts the questions.
	answered time.Time
	asked    int
}

// newChange makes a change that shows when a reply to the question about a service fits.
func newChange(s *service, wants func([]byte) bool) (*change, error) {
	query, err := s.question().Pack()
	if err != nil {
		return nil, err
	}
	return &change{query: query, wants: wants}, nil
}

// holds says whether a reply has an address: its bytes, as the data of a record of that length.
func holds(reply []byte, address netip.Addr) bool {
	data := address.AsSlice()
	return bytes.Contains(reply, append([]byte{0, byte(len(data))}, data...))
}

// answers says whether a reply has any answer at all.
func answers(reply []byte) bool {
	return len(reply) >= 12 && reply[3]&0xf == 0 && binary.BigEndian.Uint16(reply[6:]) > 0
}

// nameless says whether a reply is that there is no such name.
func nameless(reply []byte) bool { return len(reply) >= 12 && reply[3]&0xf == 3 }

const (
	// gap is between two questions about the same change, at least: so late an answer may be noticed.
	gap = time.Millisecond
	// pace is between any two questions: with many changes under way each waits longer, and the questions do not take the
	// processors from what is measured.
	pace = 200 * time.Microsecond
)

// observer asks a DNS server about changes, over and over, until each shows.
type observer struct {
	conn *net.UDPConn

	mu      sync.Mutex
	pending []*change
	byID    [1 << 16]*change
	poked   chan struct{}
}

// observe makes an observer of the server at an address. It ends with the context.
func observe(ctx context.Context, address string) (*observer, error) {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return nil, err
	}
	o := &observer{conn: conn.(*net.UDPConn), poked: make(chan struct{}, 1)}
	context.AfterFunc(ctx, func() { conn.Close() })
	go o.ask(ctx)
	go o.listen()
	return o, nil
}

// await asks about a change from now on.
func (o *observer) await(c *change) {
	o.mu.Lock()
	o.pending = append(o.pending, c)
	o.mu.Unlock()
	select {
	case o.poked <- struct{}{}:
	default:
	}
}

// left is how many changes do not show yet.
func (o *observer) left() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pending)
}

// settle waits until everything shows.
func (o *observer) settle(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for o.left() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s DNS does not show %d changes", timeout, o.left())
		case <-ticker.C:
		}
	}
	return nil
}

// ask sends questions about everything that is pending, round and round.
func (o *observer) ask(ctx context.Context) {
	var id uint16
	for ctx.Err() == nil {
		o.mu.Lock()
		round := slices.Clone(o.pending)
		o.mu.Unlock()
		if len(round) == 0 {
			select {
			case <-ctx.Done():
			case <-o.poked:
			}
			continue
		}
		began := time.Now()
		for n, c := range round {
			id++
			o.mu.Lock()
			if c.answered.IsZero() {
				o.byID[id] = c
				c.asked++
				binary.BigEndian.PutUint16(c.query, id)
			}
			o.mu.Unlock()
			if _, err := o.conn.Write(c.query); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return // closed
			}
			if ahead := time.Duration(n)*pace - time.Since(began); ahead > gap {
				pause(ahead)
			}
		}
		if rest := max(gap, time.Duration(len(round))*pace) - time.Since(began); rest > 0 {
			pause(rest)
		}
	}
}

// listen takes the replies.
func (o *observer) listen() {
	reply := make([]byte, 1<<16)
	for {
		n, err := o.conn.Read(reply)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 12 {
			continue // nobody listens there yet
		}
		now := time.Now()
		o.mu.Lock()
		c := o.byID[binary.BigEndian.Uint16(reply)]
		if c != nil && c.answered.IsZero() && c.wants(reply[:n]) {
			c.answered = now
			at := slices.Index(o.pending, c)
			o.pending = slices.Delete(o.pending, at, at+1)
		}
		o.mu.Unlock()
	}
}

// pause lets others run for less than the millisecond that the Go runtime's own timers may take.
func pause(d time.Duration) {
	wait := unix.NsecToTimespec(d.Nanoseconds())
	unix.Nanosleep(&wait, nil)
}
