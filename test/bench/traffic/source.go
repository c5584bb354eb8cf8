package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// source sends the flows it was last told of. Its argument is the time between two packets of a UDP flow, [UDPInterval] without one.
func source(args []string, in io.Reader, out io.Writer) error {
	s := &sender{interval: UDPInterval}
	if len(args) > 0 {
		var err error
		if s.interval, err = time.ParseDuration(args[0]); err != nil || s.interval <= 0 {
			return fmt.Errorf("%q is no time between packets", args[0])
		}
	}
	s.some.L = &s.mu
	defer s.replace(nil)
	go s.pace()
	return Serve(in, out, func(flows []Flow) (any, error) { return nil, s.replace(flows) })
}

// sender holds the UDP flows, which one thread sends at the same beat, and the TCP flows, which have a goroutine each.
type sender struct {
	interval time.Duration

	mu     sync.Mutex
	udp    []*udpFlow
	some   sync.Cond // there are UDP flows
	cancel context.CancelFunc
	tcp    sync.WaitGroup
}

type udpFlow struct {
	port     uint16
	to       []byte // struct sockaddr
	socket   int    // not connected: else an ICMP error would be told instead of the next packet being sent
	sequence uint64
	stalled  time.Duration
}

func (s *sender) replace(flows []Flow) error {
	var udp []*udpFlow
	ctx, cancel := context.WithCancel(context.Background())
	var errs []error
	for _, flow := range flows {
		if flow.TCP {
			continue
		}
		one, err := newUDPFlow(flow)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		udp = append(udp, one)
	}
	s.mu.Lock()
	old, stop := s.udp, s.cancel
	s.udp, s.cancel = udp, cancel
	s.some.Signal()
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	for _, flow := range old {
		errs = append(errs, unix.Close(flow.socket))
	}
	s.tcp.Wait()
	for _, flow := range flows {
		if flow.TCP {
			s.tcp.Go(func() { sendTCP(ctx, flow) })
		}
	}
	return errors.Join(errs...)
}

// newUDPFlow with a socket of the kernel's alone: a thousand packets a second through the runtime's network poller would cost more
// than they themselves.
func newUDPFlow(flow Flow) (*udpFlow, error) {
	family, from := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(flow.Port)})
	to := binary.NativeEndian.AppendUint16(nil, uint16(unix.AF_INET))
	to = binary.BigEndian.AppendUint16(to, Port)
	if flow.To.Is4() {
		to = append(append(to, flow.To.AsSlice()...), make([]byte, 8)...)
	} else {
		family, from = unix.AF_INET6, &unix.SockaddrInet6{Port: int(flow.Port)}
		binary.NativeEndian.PutUint16(to, uint16(unix.AF_INET6))
		to = append(append(append(to, make([]byte, 4)...), flow.To.AsSlice()...), make([]byte, 4)...) // flow label, address, scope
	}
	socket, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(socket, from); err != nil {
		return nil, errors.Join(fmt.Errorf("port %d: %w", flow.Port, err), unix.Close(socket))
	}
	return &udpFlow{port: flow.Port, to: to, socket: socket}, nil
}

// pace sends a packet of each UDP flow at each beat, and sleeps while there is none. A beat that comes late by more than one interval
// moves all later ones, and the packets tell by how much.
//
// Its system calls are raw: the runtime, told of them, would wake its monitor a thousand times a second, which costs more than the packets.
func (s *sender) pace() {
	runtime.LockOSThread() // its sleeps are the kernel's: the runtime's timers may be late by the interval itself
	due := time.Now()
	buffer := make([]byte, messageSize)
	for {
		due = due.Add(s.interval)
		for rest := time.Until(due); rest > 0; rest = time.Until(due) { // a signal may end a sleep early
			spec := unix.NsecToTimespec(int64(rest))
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&spec)), 0, 0)
		}
		late := time.Since(due)
		if late < s.interval {
			late = 0
		}
		due = due.Add(late)
		s.mu.Lock()
		for len(s.udp) == 0 {
			s.some.Wait()
			due, late = time.Now(), 0
		}
		for _, flow := range s.udp {
			flow.sequence++
			flow.stalled += late
			putMessage(buffer, flow.port, flow.sequence, flow.stalled)
			// What could not be sent is a packet that is lost.
			_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(flow.socket), uintptr(unsafe.Pointer(&buffer[0])), messageSize, 0,
				uintptr(unsafe.Pointer(&flow.to[0])), uintptr(len(flow.to)))
		}
		s.mu.Unlock()
	}
}

// sendTCP sends records, over a new connection where one broke.
func sendTCP(ctx context.Context, flow Flow) {
	var sequence uint64
	var stalled time.Duration
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(flow.Port)}, Control: reuse}
	ticker := time.NewTicker(TCPInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(flow.To, Port).String())
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			err = sendRecords(ctx, conn.(*net.TCPConn), ticker, flow.Port, &sequence, &stalled)
			stop()
			conn.Close()
		}
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func sendRecords(ctx context.Context, conn *net.TCPConn, ticker *time.Ticker, port uint16, sequence *uint64, stalled *time.Duration) error {
	// Without lingering the port is free at once for the flow's next connection.
	if err := conn.SetLinger(0); err != nil {
		return fmt.Errorf("linger: %w", err)
	}
	buffer := make([]byte, messageSize)
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		due = due.Add(TCPInterval)
		if late := time.Since(due); late > TCPInterval {
			*stalled += late
			due = due.Add(late)
		}
		*sequence++
		putMessage(buffer, port, *sequence, *stalled)
		if _, err := conn.Write(buffer); err != nil {
			return err
		}
	}
}

// reuse lets a port that has just been used be used again.
func reuse(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, failed)
}
