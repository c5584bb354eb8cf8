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
}

func (s *tallies) arrive(buffer []byte, at time.Time) {
	port, sequence, stalled := readMessage(buffer)
	s.mu.Lock()
	defer s.mu.Unlock()
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
	s := &tallies{flows: map[uint16]*tally{}}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: Port})
	if err != nil {
		return err
	}
	defer udp.Close()
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		// The kernel says when a packet came in, however late this process gets a processor; and it keeps some seconds of
		// them meanwhile. Beyond the system's limit that takes a privilege: without it the limit has to do.
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer))
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{Port: Port})
	if err != nil {
		return err
	}
	defer tcp.Close()
	go s.receive(udp)
	go s.accept(tcp)
	return Serve(in, out, s.answer)
}

const receiveBuffer = 32 << 20

func (s *tallies) receive(conn *net.UDPConn) {
	buffer, extra := make([]byte, 64), make([]byte, 128)
	for {
		n, extraSize, _, _, err := conn.ReadMsgUDPAddrPort(buffer, extra)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != messageSize {
			continue // an ICMP error for somebody else's packet, or not ours
		}
		s.arrive(buffer, stamp(extra[:extraSize]))
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
				if first {
					s.connected(buffer)
				}
				s.arrive(buffer, time.Now())
			}
		}()
	}
}

func (s *tallies) connected(buffer []byte) {
	port, _, _ := readMessage(buffer)
	s.mu.Lock()
	defer s.mu.Unlock()
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
