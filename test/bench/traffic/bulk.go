package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of every bulk sink: for as much as there is, and for packets that are sent back as they came.
const (
	BulkPort = 5301
	EchoPort = 5302
)

// Bulk is what a bulk source is asked for. All flows send as much as they can, until it is asked for something else; or else it
// sends pings.
type Bulk struct {
	To    []netip.Addr `json:"to"` // of sinks: flows take turns, pings go to the first
	TCP   bool         `json:"tcp,omitempty"`
	Ports []uint16     `json:"ports,omitempty"` // source ports, one a flow
	Pings int          `json:"pings,omitempty"` // one after the other, from the first of the ports
	Size  int          `json:"size,omitempty"`  // of a UDP packet, without headers; at least as large as a ping
}

// Bytes is how much a bulk sink has received until a time.
type Bytes struct {
	TCP uint64    `json:"tcp"`
	UDP uint64    `json:"udp"`
	At  time.Time `json:"at"`
}

// Bulk has a bulk source send, or, with no ports, stop.
func (p *Process) Bulk(b Bulk) error { return p.call(b, nil) }

// Ping gives the round-trip times of pings to a bulk sink. Those without an answer are left out.
func (p *Process) Ping(b Bulk) ([]time.Duration, error) {
	var times []time.Duration
	err := p.call(b, &times)
	return times, err
}

// Bytes of a bulk sink.
func (p *Process) Bytes() (Bytes, error) {
	var bytes Bytes
	err := p.call(nil, &bytes)
	return bytes, err
}

// bulkSource sends as much as it can.
func bulkSource(_ []string, in io.Reader, out io.Writer) error {
	var stop context.CancelFunc
	var running sync.WaitGroup
	end := func() {
		if stop != nil {
			stop()
		}
		running.Wait()
	}
	defer end()
	return Serve(in, out, func(b Bulk) (any, error) {
		end()
		if b.Pings > 0 {
			return ping(b)
		}
		var ctx context.Context
		ctx, stop = context.WithCancel(context.Background())
		var errs []error
		if len(b.Ports) > 0 && len(b.To) == 0 {
			return nil, errors.New("flows need somewhere to go")
		}
		for n, port := range b.Ports {
			flow := Flow{Port: port, TCP: b.TCP, To: b.To[n%len(b.To)]}
			send, err := openBulk(ctx, flow, b.Size)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			running.Go(send)
		}
		return nil, errors.Join(errs...)
	})
}

// connectTimeout is for a connection to a sink that is there.
const connectTimeout = 5 * time.Second

func openBulk(ctx context.Context, flow Flow, size int) (send func(), err error) {
	network, local := "udp", net.Addr(&net.UDPAddr{Port: int(flow.Port)})
	if flow.TCP {
		network, local, size = "tcp", &net.TCPAddr{Port: int(flow.Port)}, 256<<10
	}
	dialer := net.Dialer{LocalAddr: local, Timeout: connectTimeout, Control: reuse}
	conn, err := dialer.DialContext(ctx, network, netip.AddrPortFrom(flow.To, BulkPort).String())
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return func() {
		defer stop()
		buffer := make([]byte, size)
		for ctx.Err() == nil {
			_, err := conn.Write(buffer)
			if err != nil && flow.TCP {
				return // the sink tells how much came
			}
		}
	}, nil
}

// pingTimeout is far beyond what a round trip takes.
const pingTimeout = time.Second

func ping(b Bulk) (times []time.Duration, err error) {
	if len(b.Ports) == 0 || len(b.To) == 0 {
		return nil, errors.New("pings need a port, and somewhere to go")
	}
	conn, err := net.DialUDP("udp", &net.UDPAddr{Port: int(b.Ports[0])}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.To[0], EchoPort)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buffer, reply := make([]byte, max(messageSize, b.Size)), make([]byte, 64<<10)
	for n := range uint64(b.Pings) {
		putMessage(buffer, b.Ports[0], n, 0)
		start := time.Now()
		if err := conn.SetDeadline(start.Add(pingTimeout)); err != nil {
			return nil, err
		}
		if _, err := conn.Write(buffer); err != nil {
			continue // an ICMP error for the ping before
		}
		for {
			size, err := conn.Read(reply)
			if err != nil {
				break
			}
			if size < messageSize {
				continue
			}
			if _, sequence, _ := readMessage(reply); sequence == n {
				times = append(times, time.Since(start))
				break
			}
		}
	}
	slices.Sort(times)
	return times, nil
}

// bulkSink counts what it receives, and echoes.
func bulkSink(_ []string, in io.Reader, out io.Writer) error {
	var received struct{ tcp, udp atomic.Uint64 }
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: BulkPort})
	if err != nil {
		return err
	}
	defer udp.Close()
	echo, err := net.ListenUDP("udp", &net.UDPAddr{Port: EchoPort})
	if err != nil {
		return err
	}
	defer echo.Close()
	raw, err := echo.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	if err := raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) }); err != nil || refused != nil {
		return errors.Join(err, refused)
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{Port: BulkPort})
	if err != nil {
		return err
	}
	defer tcp.Close()
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, _, err := udp.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			received.udp.Add(uint64(n))
		}
	}()
	go answer(echo)
	go func() {
		for {
			conn, err := tcp.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go func() {
				defer conn.Close()
				for buffer := make([]byte, 256<<10); ; {
					n, err := conn.Read(buffer)
					received.tcp.Add(uint64(n))
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return Serve(in, out, func(struct{}) (any, error) {
		return Bytes{received.tcp.Load(), received.udp.Load(), time.Now()}, nil
	})
}

// answer sends packets back as they came, from the address that they were sent to: a host with several would take the one that its routes
// name. It is as IPv6, whatever the packets are: so is a socket that has both families.
func answer(echo *net.UDPConn) {
	buffer, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		n, size, _, from, err := echo.ReadMsgUDPAddrPort(buffer, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		messages, wrong := unix.ParseSocketControlMessage(control[:size])
		if err != nil || wrong != nil || len(messages) != 1 || len(messages[0].Data) < unix.SizeofInet6Pktinfo {
			continue
		}
		back := unix.Inet6Pktinfo{Addr: [16]byte(messages[0].Data)}                // by whatever link
		_, _, _ = echo.WriteMsgUDPAddrPort(buffer[:n], unix.PktInfo6(&back), from) // a ping without an answer is one that is lost
	}
}

// Rate is bits a second between two counts.
func Rate(before, after uint64, between time.Duration) (float64, error) {
	if between <= 0 {
		return 0, fmt.Errorf("a rate needs time, not %s", between)
	}
	return float64(after-before) * 8 / between.Seconds(), nil
}
