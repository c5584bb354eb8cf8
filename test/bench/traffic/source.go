package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// source sends the flows it was last told of.
func source(_ []string, in io.Reader, out io.Writer) error {
	s := &sender{}
	defer s.replace(nil)
	go s.pace()
	return Serve(in, out, func(flows []Flow) (any, error) { return nil, s.replace(flows) })
}

// sender holds the UDP flows, which one thread sends at the same beat, and the TCP flows, which have a goroutine each.
type sender struct {
	mu     sync.Mutex
	udp    []*udpFlow
	cancel context.CancelFunc
	tcp    sync.WaitGroup
}

type udpFlow struct {
	port     uint16
	to       netip.AddrPort
	conn     *net.UDPConn // not connected: else an ICMP error would be told instead of the next packet being sent
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
		conn, err := net.ListenUDP(map[bool]string{true: "udp4", false: "udp6"}[flow.To.Is4()], &net.UDPAddr{Port: int(flow.Port)})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		udp = append(udp, &udpFlow{port: flow.Port, to: netip.AddrPortFrom(flow.To, Port), conn: conn})
	}
	s.mu.Lock()
	old, stop := s.udp, s.cancel
	s.udp, s.cancel = udp, cancel
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	for _, flow := range old {
		errs = append(errs, flow.conn.Close())
	}
	s.tcp.Wait()
	for _, flow := range flows {
		if flow.TCP {
			s.tcp.Go(func() { sendTCP(ctx, flow) })
		}
	}
	return errors.Join(errs...)
}

// pace sends a packet of each UDP flow at each beat. A beat that comes late by more than one interval moves all later ones,
// and the packets tell by how much.
func (s *sender) pace() {
	runtime.LockOSThread() // its sleeps are the kernel's: the runtime's timers may be late by the interval itself
	due := time.Now()
	buffer := make([]byte, messageSize)
	for {
		due = due.Add(UDPInterval)
		rest := time.Until(due)
		if rest > 0 {
			spec := unix.NsecToTimespec(int64(rest))
			_ = unix.Nanosleep(&spec, nil) // a signal that ends it early makes one packet early
		}
		late := time.Since(due)
		if late < UDPInterval {
			late = 0
		}
		due = due.Add(late)
		s.mu.Lock()
		for _, flow := range s.udp {
			flow.sequence++
			flow.stalled += late
			putMessage(buffer, flow.port, flow.sequence, flow.stalled)
			_, _ = flow.conn.WriteToUDPAddrPort(buffer, flow.to) // what could not be sent is a packet that is lost
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
