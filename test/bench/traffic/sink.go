package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// message is what a flow sends, as UDP packet or TCP record: its port, a sequence number from 1, and for how long in all the
// source has been late.
const messageSize = 2 + 8 + 8

func putMessage(buffer []byte, port uint16, sequence uint64, stalled time.Duration) {
	binary.BigEndian.PutUint16(buffer, port)
	binary.BigEndian.PutUint64(buffer[2:], sequence)
	binary.BigEndian.PutUint64(buffer[10:], uint64(stalled))
}

func readMessage(buffer []byte) (port uint16, sequence uint64, stalled time.Duration) {
	return binary.BigEndian.Uint16(buffer), binary.BigEndian.Uint64(buffer[2:]), time.Duration(binary.BigEndian.Uint64(buffer[10:]))
}

// tallies of a sink.
type tallies struct {
	mu    sync.Mutex
	flows map[uint16]*tally
	udp   *inbox
}

// arrive must be called with the mutex held.
func (s *tallies) arrive(buffer []byte, at time.Time) {
	port, sequence, stalled := readMessage(buffer)
	s.flow(port).arrive(sequence, stalled, at)
}

func (s *tallies) flow(port uint16) *tally {
	flow := s.flows[port]
	if flow == nil {
		flow = &tally{}
		s.flows[port] = flow
	}
	return flow
}

// answer begins a window of these flows, if any, and tells how all flows stand.
func (s *tallies) answer(window []Flow) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty() // what has arrived by now
	accounts := map[uint16]Account{}
	for port, flow := range s.flows {
		if flow.started {
			accounts[port] = flow.account(time.Now())
		}
	}
	if window != nil {
		keep := map[uint16]*tally{}
		for _, flow := range window {
			if known := s.flows[flow.Port]; known != nil {
				known.window()
				keep[flow.Port] = known
			}
		}
		s.flows = keep
	}
	return accounts, nil
}

// sink receives on [Port], both families.
func sink(_ []string, in io.Reader, out io.Writer) error {
	udp, err := newInbox()
	if err != nil {
		return err
	}
	defer udp.close()
	s := &tallies{flows: map[uint16]*tally{}, udp: udp}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{Port: Port})
	if err != nil {
		return err
	}
	defer tcp.Close()
	go s.receive()
	go s.accept(tcp)
	return Serve(in, out, s.answer)
}

const receiveBuffer = 32 << 20

// emptyEvery is how often the inbox is emptied when nobody asks: the kernel notes when packets come, so to be woken by each of them
// would only take the processor from those who carry them.
const emptyEvery = 100 * time.Millisecond

func (s *tallies) receive() {
	for {
		s.udp.wait() // while nothing flows nothing is looked for
		s.mu.Lock()
		s.empty()
		s.mu.Unlock()
		time.Sleep(emptyEvery)
	}
}

// empty must be called with the mutex held.
func (s *tallies) empty() {
	for {
		more, err := s.udp.read(s.arrive)
		if err != nil || !more {
			return // an ICMP error for somebody else's packet is told once
		}
	}
}

// stamp is the time at which the kernel received the packet.
func stamp(extra []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(extra)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

func (s *tallies) accept(listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		go func() {
			defer conn.Close()
			buffer := make([]byte, messageSize)
			for first := true; ; first = false {
				if _, err := io.ReadFull(conn, buffer); err != nil {
					return
				}
				s.mu.Lock()
				if first {
					s.connected(buffer)
				}
				s.arrive(buffer, time.Now())
				s.mu.Unlock()
			}
		}()
	}
}

// connected must be called with the mutex held.
func (s *tallies) connected(buffer []byte) {
	port, _, _ := readMessage(buffer)
	flow := s.flow(port)
	flow.tcp = true
	flow.connections++
}

func joined(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("traffic: %w", err)
	}
	return nil
}
