//go:build e2e

package soak

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

// overload is how many times the most that the server can answer it is sent.
const overload = 10

// residentMore is by how many MB the server may be larger afterwards for its memory to count as given back.
const residentMore = 25

// TestOverload: under ten times what it can answer, half of it garbage, the server lives, remembers nothing of it, and has
// an answer for others, then and at once afterwards.
func TestOverload(t *testing.T) {
	kubeconfig := cluster(t)
	for _, c := range []struct{ name, line string }{
		{"overload", ""},
		// With sockets of its own for others than the one that floods.
		{"overload-multisocket", "\tmultisocket 16\n"},
		// With as few goroutines as CoreDNS can do with.
		{"overload-shed", "\tshed\n"},
	} {
		t.Run(c.name, func(t *testing.T) { testOverload(t, kubeconfig, c.name, c.line) })
	}
}

func testOverload(t *testing.T, kubeconfig, name, line string) {
	s := serve(t, kubeconfig, true, line)
	knee := measureKnee(t, s.dns)
	before := s.state(t)

	batches := makeBatches(t)
	ctx, cancel := context.WithTimeout(t.Context(), *overloadTime)
	defer cancel()
	var sent atomic.Int64
	var wait sync.WaitGroup
	start := time.Now()
	wait.Go(func() { flood(t, ctx, s.dns, batches, knee*overload, &sent) })
	udp, tcp := &clients{network: "udp"}, &clients{network: "tcp"}
	wait.Go(func() { tcp.ask(ctx, s.dns) })
	for range 50 { // most of their time they wait
		wait.Go(func() { udp.ask(ctx, s.dns) })
	}
	peak, droppedBefore := s.resident(t), s.dropped(t)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			peak = max(peak, s.resident(t))
		}
	}
	took := time.Since(start)
	dropped := s.dropped(t) - droppedBefore
	wait.Wait()

	after := time.Now()
	// Asked as often as a question comes, not as a resolver would: what waits in the socket when the flood ends is answered, and the
	// question that found it full is lost. Its time out must be far below what is measured.
	dnsserver.Eventually(t, patience, func() error { return everything.small().check(s.dns, 100*time.Millisecond) })
	again := time.Since(after)
	// The server gives its memory back by itself: nobody has asked for a collection of garbage yet.
	var held float64
	dnsserver.Eventually(t, patience, func() error {
		if held = s.resident(t); held > before.resident+residentMore {
			return fmt.Errorf("%.1f MB resident; before: %v", held, before)
		}
		return nil
	})
	back := time.Since(after)
	var late state
	dnsserver.Eventually(t, patience, func() error {
		if late = s.state(t); late.goroutines > before.goroutines+20 {
			return fmt.Errorf("%v; before: %v", late, before)
		}
		return nil
	})
	if s.Ended() {
		t.Error("CoreDNS has ended")
	}
	offered := float64(sent.Load()) / took.Seconds()
	// Sender and server share the machine's processors: half of what is meant is an overload still, less would be none.
	atLeast(t, name+".offered", offered/knee, "times the knee", overload/2,
		fmt.Sprintf("%.0f packets a second for %.0f s, half of them garbage; the knee is %.0f queries a second", offered, took.Seconds(), knee))
	noted(name+".dropped", 100*dropped/float64(sent.Load()), "%", "lower", "of the packets, by the kernel, for the server's sockets were full")
	atMost(t, name+".answers-again", again.Seconds(), "s", 1, "until the first pass over all questions without a fault, afterwards")
	// Go's runtime keeps the descriptor of every goroutine that ran at the busiest moment, 0.4 kB each, for the next such moment;
	// CoreDNS has one for each packet that waits.
	atMost(t, name+".heap-growth", late.heap-before.heap, "MB", 32, fmt.Sprintf("before: %v; afterwards: %v", before, late))
	noted(name+".peak", peak, "MB resident", "lower", "during the overload")
	atMost(t, name+".memory-back", back.Seconds(), "s", 10, fmt.Sprintf("until %.1f MB were resident; %.1f before, %.1f at most", held, before.resident, peak))
	atLeast(t, name+".tcp-answered", percent(&tcp.answered, &tcp.asked), "%", 99, fmt.Sprintf("another client, by TCP, meanwhile: %v", tcp))
	noted(name+".udp-answered", percent(&udp.answered, &udp.asked), "%", "higher",
		fmt.Sprintf("50 other clients, by UDP, who ask up to 5 times with 1 s each, meanwhile: %v", udp))
	noted(name+".udp-answered-tries", percent(&udp.answeredTries, &udp.tries), "%", "higher", "of their tries")
}

// dropped counts the packets that came when the server's sockets were full.
func (s *server) dropped(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	local, err := net.ResolveUDPAddr("udp", s.dns)
	if err != nil {
		t.Fatal(err)
	}
	// As the kernel prints it: the address as a number of the machine's byte order.
	address := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(local.IP.To4()), local.Port)
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[1] == address {
			drops, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += drops
		}
	}
	return sum
}

// clients ask while another floods.
type clients struct {
	network                               string
	asked, answered, tries, answeredTries atomic.Int64
}

func percent(part, whole *atomic.Int64) float64 {
	return 100 * float64(part.Load()) / float64(max(1, whole.Load()))
}

func (c *clients) String() string {
	return fmt.Sprintf("%d questions, %d answered; %d tries, %d answered", c.asked.Load(), c.answered.Load(), c.tries.Load(), c.answeredTries.Load())
}

// ask asks one question after the other until the context ends; by UDP as a stub resolver does, each try from a new port. What
// was not decided when the context ended does not count: the flood has ended then too.
func (c *clients) ask(ctx context.Context, server string) {
	all := everything.small()
	tries, timeout := 1, 10*time.Second
	if c.network == "udp" {
		tries, timeout = 5, time.Second
	}
	for ctx.Err() == nil {
		q := all[rand.IntN(len(all))]
		answered := false
		for try := 0; try < tries && !answered; try++ {
			answered = q.dial(c.network, server, timeout) == nil
			if ctx.Err() != nil {
				return
			}
			c.tries.Add(1)
			if answered {
				c.answeredTries.Add(1)
			}
		}
		c.asked.Add(1)
		if answered {
			c.answered.Add(1)
		}
	}
}

// dial asks from a socket of its own.
func (q question) dial(network, server string, timeout time.Duration) error {
	c, err := net.DialTimeout(network, server, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	return q.ask(c, timeout)
}

// measureKnee finds how many queries a second the server answers, asked for as many as it can.
func measureKnee(t *testing.T, server string) float64 {
	t.Helper()
	const askers = 64
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	query, err := everything[0].message().Pack()
	if err != nil {
		t.Fatal(err)
	}
	var answered atomic.Int64
	var wait sync.WaitGroup
	start := time.Now()
	for range askers {
		wait.Go(func() {
			c, err := net.Dial("udp", server)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			reply := make([]byte, udpSize)
			for ctx.Err() == nil {
				c.SetDeadline(time.Now().Add(time.Second))
				if _, err := c.Write(query); err != nil {
					continue
				}
				if _, err := c.Read(reply); err == nil {
					answered.Add(1)
				}
			}
		})
	}
	wait.Wait()
	return float64(answered.Load()) / time.Since(start).Seconds()
}

// A batch goes to the kernel in one call: the sender must be a good deal faster than the server.
const batchPackets = 64

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	sent   uint32
	_      [4]byte
}

// batch is packets that are sent in one call.
type batch []message

func makeBatch(packets [][]byte) batch {
	b := make(batch, len(packets))
	for n, p := range packets {
		b[n].header.Iov = &unix.Iovec{Base: &p[0], Len: uint64(len(p))}
		b[n].header.Iovlen = 1
	}
	return b
}

// send gives a batch to the kernel and tells how many packets it took.
func (b batch) send(socket int) int {
	n, _, err := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(socket), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
	if err != 0 {
		return 0 // say, for an error that the kernel kept from an earlier packet
	}
	return int(n)
}

// flood sends batches at a rate, from a few sockets of its own, on a processor that is not the server's.
func flood(t *testing.T, ctx context.Context, server string, batches []batch, perSecond float64, sent *atomic.Int64) {
	if runtime.NumCPU() > 1 {
		defer onProcessor(t, 1)()
	}
	to, err := netip.ParseAddrPort(server)
	if err != nil {
		t.Error(err)
		return
	}
	var sockets []int
	for range 4 {
		socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(socket)
		if err := unix.Connect(socket, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			t.Error(err)
			return
		}
		sockets = append(sockets, socket)
	}
	for n, start := 0, time.Now(); ctx.Err() == nil; {
		if float64(sent.Load()) >= time.Since(start).Seconds()*perSecond {
			runtime.Gosched() // a rate that leaves microseconds between batches: no timer is as fine
			continue
		}
		sent.Add(int64(batches[n%len(batches)].send(sockets[n%len(sockets)])))
		n++
	}
}

// makeBatches makes packets to flood with: every second one is a query, the others are garbage.
func makeBatches(t *testing.T) []batch {
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(size int) []byte {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		return p
	}
	query := func(q question) []byte {
		packet, err := q.message().Pack()
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	garbage := []func(q question) []byte{
		func(question) []byte { return noise(1 + random.IntN(600)) },
		func(q question) []byte { p := query(q); return p[:1+random.IntN(len(p)-1)] }, // cut off
		func(question) []byte { // a header that promises much, and noise
			p := noise(12 + random.IntN(400))
			p[2], p[3] = 0x01, 0
			binary.BigEndian.PutUint16(p[4:], uint16(1+random.IntN(65535)))
			return p
		},
		func(q question) []byte { p := query(q); p[2] |= 0x80; return p },                         // a response
		func(q question) []byte { p := query(q); p[2] |= byte(1+random.IntN(15)) << 3; return p }, // another opcode
		func(question) []byte { return longName(random, 127) },                                    // as long as a name may be
		func(question) []byte { return longName(random, 250) },
		func(question) []byte { // a name that points at itself
			return []byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}
		},
		func(q question) []byte { // bits turned over
			p := query(q)
			for range 1 + random.IntN(8) {
				p[random.IntN(len(p))] ^= 1 << random.IntN(8)
			}
			return p
		},
	}
	var batches []batch
	for all, n := everything.small(), 0; len(batches) < 256; {
		var packets [][]byte
		for len(packets) < batchPackets {
			q := all[n%len(all)]
			packets = append(packets, query(q), garbage[n%len(garbage)](q))
			n++
		}
		batches = append(batches, makeBatch(packets))
	}
	return batches
}

// longName is a query for a name of so many labels of one letter.
func longName(random *rand.Rand, labels int) []byte {
	p := make([]byte, 12, 12+2*labels+5)
	p[5] = 1
	for range labels {
		p = append(p, 1, 'a'+byte(random.IntN(26)))
	}
	return append(p, 0, 0, 1, 0, 1)
}
