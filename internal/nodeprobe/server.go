package nodeprobe

import (
	"container/list"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"
)

const (
	// maxAskers that a gateway remembers; the one that was silent longest is forgotten first and is a new one when it asks
	// again. About 500 bytes each.
	maxAskers = 8192
	// newAskers a second, at most: each costs a key agreement, some 60 µs.
	newAskers = 4096
	// recent askers, by their last question, are told of a changed view.
	recent = 2 * time.Second
)

// Server is a gateway's side. Make it with NewServer.
type Server struct {
	port uint16
	log  *slog.Logger

	mu      sync.Mutex
	answers answers
	sockets map[bool]*net.UDPConn // by "IPv6"
}

// NewServer takes the gateway's private key, an X25519 key such as WireGuard's.
func NewServer(key []byte, port uint16, log *slog.Logger) (*Server, error) {
	private, err := ecdh.X25519().NewPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("node probes: %w", err)
	}
	return &Server{port: port, log: log, answers: newAnswers(private, uint64(time.Now().UnixNano())), sockets: map[bool]*net.UDPConn{}}, nil
}

// Set takes the gateway's view, and tells those who have asked lately where it is another one.
func (s *Server) Set(v View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, out := range s.answers.set(v, time.Now()) {
		s.send(out)
	}
}

// send must be called with mu held. A lost answer is what probes are there to notice.
func (s *Server) send(out packet) {
	if socket := s.sockets[out.from.to.Is6()]; socket != nil {
		_, _, _ = socket.WriteMsgUDPAddrPort(out.bytes, out.from.oob(), out.from.addr)
	}
}

// Run answers until the context ends, on every address of the node, each from the address that was asked.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, 2)
	running := 0
	for _, v6 := range []bool{false, true} {
		socket, err := listen(ctx, v6, s.port)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			continue // the node has one family only
		}
		if err != nil {
			return errors.Join(fmt.Errorf("node probes: %w", err), s.close(failed, running))
		}
		s.mu.Lock()
		s.sockets[v6] = socket
		s.mu.Unlock()
		running++
		go func() { failed <- s.read(socket) }()
	}
	// Without ears (no right to have them) no node has a proof, and all take the tunnel in mode auto: that is told of.
	hearing, stop := context.WithCancel(ctx)
	var ears sync.WaitGroup
	defer ears.Wait()
	defer stop()
	for _, v6 := range []bool{false, true} {
		fd, err := ear(v6, s.port)
		if err != nil {
			s.log.Error("nodes on this node's segment have no proof that it carries packets of pods", "error", err)
			continue
		}
		ears.Go(func() { s.listenForeign(hearing, fd, v6) })
	}
	var err error
	if running > 0 {
		select {
		case err = <-failed:
			running--
		case <-ctx.Done():
		}
	} else {
		err = errors.New("the node has neither IPv4 nor IPv6")
	}
	err = errors.Join(err, s.close(failed, running))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("node probes: %w", err)
}

func (s *Server) close(failed <-chan error, running int) error {
	s.mu.Lock()
	for v6, socket := range s.sockets {
		_ = socket.Close() // nothing is buffered
		delete(s.sockets, v6)
	}
	s.mu.Unlock()
	var errs []error
	for range running {
		if err := <-failed; !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Server) read(socket *net.UDPConn) error {
	buffer, control := make([]byte, maxPacket+1), make([]byte, 128)
	for {
		n, controls, _, from, err := socket.ReadMsgUDPAddrPort(buffer, control)
		if err != nil {
			return err
		}
		at, ok := source(from, control[:controls])
		if !ok {
			continue
		}
		s.hear(buffer[:n], at)
	}
}

// hear a question, and answer it.
func (s *Server) hear(question []byte, at path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reply := s.answers.answer(question, at, time.Now()); reply != nil {
		s.send(packet{bytes: reply, from: at})
	}
}

// listen on a port (0: any) of all addresses of a family, and have the kernel tell which one a packet was for.
func listen(ctx context.Context, v6 bool, port uint16) (*net.UDPConn, error) {
	network, host := "udp4", "0.0.0.0"
	if v6 {
		network, host = "udp6", "::"
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var optErr error
		err := raw.Control(func(fd uintptr) {
			if v6 {
				optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			} else {
				optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
			optErr = errors.Join(optErr, First(int(fd), v6))
		})
		return errors.Join(err, optErr)
	}}
	conn, err := config.ListenPacket(ctx, network, net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	socket, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("no UDP socket"), conn.Close())
	}
	return socket, nil
}

// trafficClass of probes: CS6, that of network control (RFC 4594, 3.1). A link that is full has such packets go first, where whoever runs
// it lets it; so does Linux' default queue, pfifo_fast.
const trafficClass = 0xc0

// priority is what the class is to a Linux queue.
const priority = 6 // TC_PRIO_INTERACTIVE

// First has what a socket sends go first.
func First(fd int, v6 bool) error {
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	return errors.Join(unix.SetsockoptInt(fd, level, option, trafficClass), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, priority))
}

// path is where a packet came from and where it arrived. Zones are numbers of links here, never names: package net
// remembers a name's number for a minute, also when there is another link of that name.
type path struct {
	addr netip.AddrPort // without a zone
	to   netip.Addr
	link uint32 // of link-local addresses
}

func source(from netip.AddrPort, control []byte) (path, bool) {
	at := path{addr: netip.AddrPortFrom(from.Addr().WithZone(""), from.Port())}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return at, false
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			at.to = netip.AddrFrom4([4]byte(m.Data[8:12]))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			at.to = netip.AddrFrom16([16]byte(m.Data[:16]))
			if at.to.IsLinkLocalUnicast() {
				at.link = binary.NativeEndian.Uint32(m.Data[16:])
			}
		}
	}
	return at, at.to.IsValid() && !at.to.IsMulticast()
}

// oob makes the kernel send from the address that was asked, and over the link where that says nothing without one.
func (p path) oob() []byte {
	if p.to.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: p.to.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: p.to.As16(), Ifindex: p.link})
}

// packet to go out.
type packet struct {
	bytes []byte
	from  path
}

// answers is the gateway's side without sockets and clock.
type answers struct {
	key     *ecdh.PrivateKey
	own     []byte
	mac     []byte
	view    View
	tags    []tag
	flags   byte
	version version

	askers  map[[keySize]byte]*list.Element // of *asker
	order   *list.List                      // the one heard of last is first
	limit   int                             // askers that are remembered
	rate    float64                         // new askers a second
	credit  float64                         // new askers that may come now
	counted time.Time                       // when credit was
}

// asker that a gateway remembers.
type asker struct {
	key      [keySize]byte
	secrets  secrets
	sequence uint64
	heard    time.Time
	path     path
}

func newAnswers(key *ecdh.PrivateKey, epoch uint64) answers {
	own := key.PublicKey().Bytes()
	return answers{key: key, own: own, mac: macKey(own), version: version{epoch: epoch, count: 1},
		askers: map[[keySize]byte]*list.Element{}, order: list.New(), limit: maxAskers, rate: newAskers, credit: newAskers}
}

// set takes a view, and returns what is to be said of it.
func (a *answers) set(v View, now time.Time) (out []packet) {
	if a.view.Draining == v.Draining && slices.Equal(a.view.Cables, v.Cables) {
		return nil
	}
	a.view = View{Draining: v.Draining, Cables: slices.Clone(v.Cables)}
	a.version.count++
	var partial bool
	a.tags, partial = v.tags()
	a.flags = 0
	if v.Draining {
		a.flags |= flagDraining
	}
	if partial {
		a.flags |= flagPartial
	}
	for e := a.order.Front(); e != nil; e = e.Next() {
		one, ok := e.Value.(*asker)
		if !ok || now.Sub(one.heard) > recent {
			break
		}
		out = append(out, packet{bytes: a.say(one, 0, maxPacket, version{}), from: one.path})
	}
	return out
}

// say the view to an asker, in at most that many bytes.
func (a *answers) say(to *asker, sequence uint64, room int, have version) []byte {
	say := answer{sequence: sequence, version: a.version, flags: a.flags}
	if have != a.version && minAnswer+len(a.tags)*tagSize <= room {
		say.flags |= flagList
		say.up = a.tags
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	_, _ = rand.Read(nonce) // never fails
	return say.seal(to.secrets, to.key[:], nonce)
}

// answer to a packet; nil is silence.
func (a *answers) answer(packet []byte, from path, now time.Time) []byte {
	q, err := readQuestion(packet, a.mac)
	if err != nil {
		return nil
	}
	var one *asker
	known, isKnown := a.askers[q.asker]
	if isKnown {
		one, _ = known.Value.(*asker)
	} else if one = a.agree(q.asker, now); one == nil {
		return nil
	}
	if q, err = q.open(packet, one.secrets); err != nil || q.sequence <= one.sequence {
		return nil
	}
	one.sequence, one.heard, one.path = q.sequence, now, from
	if isKnown {
		a.order.MoveToFront(known)
	} else {
		// Only now: an asker that cannot seal takes nobody's place.
		a.askers[q.asker] = a.order.PushFront(one)
		if a.order.Len() > a.limit {
			if last, ok := a.order.Remove(a.order.Back()).(*asker); ok {
				delete(a.askers, last.key)
			}
		}
	}
	return a.say(one, q.sequence, q.room, q.have)
}

func (a *answers) agree(key [keySize]byte, now time.Time) *asker {
	if !a.counted.IsZero() {
		a.credit = min(a.rate, a.credit+now.Sub(a.counted).Seconds()*a.rate)
	}
	if a.counted = now; a.credit < 1 {
		return nil
	}
	a.credit--
	public, err := ecdh.X25519().NewPublicKey(key[:])
	if err != nil {
		return nil
	}
	s, err := agree(a.key, public, key[:], a.own)
	if err != nil {
		return nil
	}
	return &asker{key: key, secrets: s}
}
