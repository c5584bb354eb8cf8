package lighthouse

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// startDNS serves a plugin over UDP and TCP as CoreDNS's server does, with before between the two, and gives the address.
func startDNS(t testing.TB, l *Lighthouse, before func(dns.ResponseWriter) dns.ResponseWriter) string {
	t.Helper()
	packet, err := net.ListenPacket("udp", net.JoinHostPort(loopback(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", packet.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	serve := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		rcode, _ := l.ServeDNS(context.Background(), before(request.NewScrubWriter(r, w)), r)
		if !plugin.ClientWrite(rcode) {
			m := new(dns.Msg)
			m.SetRcode(r, rcode)
			w.WriteMsg(m)
		}
	})
	for _, server := range []*dns.Server{{PacketConn: packet, Handler: serve}, {Listener: listener, Handler: serve}} {
		started, ended := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			server.Shutdown()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return packet.LocalAddr().String()
}

func nothingBefore(w dns.ResponseWriter) dns.ResponseWriter { return w }

// recorderBefore stands for a plugin that reads replies.
func recorderBefore(w dns.ResponseWriter) dns.ResponseWriter { return dnstest.NewRecorder(w) }

// bigNames has names whose replies do not fit everywhere.
func bigNames(t testing.TB) *Lighthouse {
	var text strings.Builder
	text.WriteString(shop + balanced + "import shop/big Headless\nimport shop/huge Headless\nnamespace Up\n")
	for slice := range 5 {
		fmt.Fprintf(&text, "slice shop/big c%d ports=pg/tcp/5432,metrics/tcp/9187", slice)
		for i := range 100 {
			fmt.Fprintf(&text, " big-%d=10.%d.0.%d", i, slice, i+1)
		}
		fmt.Fprintf(&text, "\nslice shop/big c%d ports=pg/tcp/5432", slice)
		for i := range 20 {
			fmt.Fprintf(&text, " big-%d=fd00::%d:%x", i, slice, i+1)
		}
		text.WriteString("\n")
	}
	for slice := range 7 { // whose SRV records fill a message over TCP, and leave no room for glue
		fmt.Fprintf(&text, "slice shop/huge c%d ports=pg/tcp/5432", slice)
		for i := range 100 {
			fmt.Fprintf(&text, " a-rather-long-name-of-a-backend-%d=10.%d.1.%d", i, slice, i+1)
		}
		text.WriteString("\n")
	}
	l := newTestPlugin(newTestWorld(t, text.String()))
	l.clusterNames, l.maxAnswers = true, 1000
	return l
}

// TestPackedEqualsMessage: whether bytes or a message are written makes no difference to what the client reads, over UDP with
// any size, with and without EDNS, and over TCP; but the bytes are never more.
func TestPackedEqualsMessage(t *testing.T) {
	l := bigNames(t)
	bytes, messages := startDNS(t, l, nothingBefore), startDNS(t, l, recorderBefore)
	ask := func(network, address string, query *dns.Msg) *dns.Msg {
		t.Helper()
		reply, _, err := (&dns.Client{Net: network, Timeout: 10 * time.Second}).Exchange(query.Copy(), address)
		if err != nil {
			t.Fatalf("%s %v: %v", network, query.Question, err)
		}
		return reply
	}
	text := func(m *dns.Msg) string {
		m.Id = 0
		return m.String()
	}
	for _, question := range []string{
		"web.shop A", "web.shop AAAA", "web.shop SRV", "_http._tcp.web.shop SRV", "four.shop AAAA", "east.web.shop A", "east.web.shop SRV",
		"_https._tcp.west.web.shop SRV", "db.shop A", "db.shop AAAA", "db.shop SRV", "_pg._tcp.db.shop SRV", "db-0.east.db.shop AAAA",
		"db-0.north.eu.db.shop A", "10-2-1-3.west.db.shop A", "idle.shop A", "nothing.shop A", "web.shop MX", "shop A", "eu.db.shop A",
		"WeB.sHoP A", "nothing.SHOP A", "_HTTP._tcp.wEb.shop SRV", "big.shop A", "big.shop AAAA", "big.shop SRV", "_metrics._tcp.big.shop SRV",
		"c3.big.shop A", "c3.big.shop SRV", "huge.shop A", "huge.shop SRV", `web\.shop A`, `w\101b.shop A`, "x.nowhere A",
	} {
		name, typeName, _ := strings.Cut(question, " ")
		for _, size := range []uint16{0, 100, 512, 1232, 4096, 65535} {
			for _, network := range []string{"udp", "tcp"} {
				query := new(dns.Msg)
				query.SetQuestion(name+".svc."+testZone, dns.StringToType[typeName])
				query.CheckingDisabled, query.RecursionDesired = size == 512, size != 1232
				if size > 0 {
					query.SetEdns0(size, size == 4096)
				}
				got, want := ask(network, bytes, query), ask(network, messages, query)
				if text(got) != text(want) && !(got.Truncated && want.Truncated) {
					t.Errorf("%s %s, size %d: as bytes\n%v\nas message\n%v", network, question, size, got, want)
				}
				if got.Truncated != want.Truncated || network == "tcp" && got.Truncated {
					t.Errorf("%s %s, size %d: TC is %t in bytes, %t in the message", network, question, size, got.Truncated, want.Truncated)
				}
				if got.Truncated && (len(got.Answer) < len(want.Answer) || len(got.Answer) == 0) {
					t.Errorf("%s %s, size %d: %d records in bytes, %d in the message", network, question, size, len(got.Answer), len(want.Answer))
				}
			}
		}
	}
}

// TestPackedSize: replies are compressed whatever the client's buffer, as *dig* counts them.
func TestPackedSize(t *testing.T) {
	text := "namespace shop\nimport shop/db Headless\nslice shop/db west ports=pg/tcp/5432"
	for i := range 25 {
		text += fmt.Sprintf(" 10.0.0.%d", i+1)
	}
	l := newTestPlugin(newTestWorld(t, text))
	conn, err := net.Dial("udp", startDNS(t, l, nothingBefore))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	query := new(dns.Msg)
	query.SetQuestion("db.shop.svc."+testZone, dns.TypeA)
	query.SetEdns0(4096, false)
	wire, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(wire); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 4096)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := conn.Read(reply)
	if want := len(wire) + 25*16; err != nil || n != want {
		t.Errorf("%d bytes, %v, want %d: the question, and 16 for each address", n, err, want)
	}
}

// TestPackedOnlyForTheServer: a plugin that needs the message gets it.
func TestPackedOnlyForTheServer(t *testing.T) {
	query := new(dns.Msg)
	query.SetQuestion("web.shop.svc."+testZone, dns.TypeA)
	type other struct{ *test.ResponseWriter }
	for _, w := range []dns.ResponseWriter{
		&test.ResponseWriter{},
		request.NewScrubWriter(query, &test.ResponseWriter{}),
		request.NewScrubWriter(query, other{&test.ResponseWriter{}}),
		dnstest.NewRecorder(request.NewScrubWriter(query, &test.ResponseWriter{})),
	} {
		if _, _, _, ok := packed(w, query); ok {
			t.Errorf("%T would be handed bytes", w)
		}
	}
}

// TestPackedNotPastTheServer: a plugin that writes in the server's place, as *shed* does, writes all replies.
func TestPackedNotPastTheServer(t *testing.T) {
	var written atomic.Int32
	count := func(w dns.Writer) dns.Writer { return &countingWriter{w, &written} }
	askThrough(t, count, func(l *Lighthouse, w dns.ResponseWriter, r *dns.Msg) { l.ServeDNS(context.Background(), w, r) })
	if written.Load() != 1 {
		t.Errorf("%d replies went through the writer, want 1", written.Load())
	}
}

// TestPackedThroughOurBound: the writer that bounds those that wait takes bytes too, and they pass it.
func TestPackedThroughOurBound(t *testing.T) {
	var dropped atomic.Int32
	bound := &socket{drop: func() { dropped.Add(1) }}
	bound.waiting.Store(maxWaiting) // full
	askThrough(t, bound.writer, func(l *Lighthouse, w dns.ResponseWriter, r *dns.Msg) {
		if to, _, _, ok := packed(w, r); !ok || to.(*socketWriter).socket != bound {
			t.Errorf("bytes may be written: %t, to %T; want to our writer", ok, to)
		}
		l.ServeDNS(context.Background(), w, r) // dropped
		bound.waiting.Store(0)
		l.ServeDNS(context.Background(), w, r)
	})
	if dropped.Load() != 1 {
		t.Errorf("%d replies were dropped, want 1", dropped.Load())
	}
}

// askThrough asks a server whose writer is decorated, and expects an answer. The server has ended when it returns.
func askThrough(t *testing.T, decorate dns.DecorateWriter, serve func(*Lighthouse, dns.ResponseWriter, *dns.Msg)) {
	t.Helper()
	l := newTestPlugin(newTestWorld(t, shop))
	packet, err := net.ListenPacket("udp", net.JoinHostPort(loopback(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{
		PacketConn: packet, NotifyStartedFunc: func() { close(started) }, DecorateWriter: decorate,
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { serve(l, request.NewScrubWriter(r, w), r) }),
	}
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	defer func() {
		server.Shutdown()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	query := new(dns.Msg)
	query.SetQuestion("web.shop.svc."+testZone, dns.TypeA)
	if reply, err := dns.Exchange(query, packet.LocalAddr().String()); err != nil || len(reply.Answer) != 1 {
		t.Errorf("got %v, %v", reply, err)
	}
}

type countingWriter struct {
	dns.Writer
	written *atomic.Int32
}

func (w *countingWriter) Write(reply []byte) (int, error) {
	w.written.Add(1)
	return w.Writer.Write(reply)
}

// TestLongTargets: a backend whose name would be too long for DNS has no SRV record, and takes no other's away.
func TestLongTargets(t *testing.T) {
	long := strings.Repeat("x", 63)
	l := newTestPlugin(newTestWorld(t, fmt.Sprintf(`
		namespace %[1]s
		import %[1]s/%[1]s Headless
		slice %[1]s/%[1]s west ports=pg/tcp/5432 short=10.0.0.1 %[1]s=10.0.0.2
	`, long)))
	for _, before := range []func(dns.ResponseWriter) dns.ResponseWriter{nothingBefore, recorderBefore} {
		m := new(dns.Msg)
		m.SetQuestion(long+"."+long+".svc."+testZone, dns.TypeSRV)
		reply, err := dns.Exchange(m, startDNS(t, l, before))
		if err != nil || len(reply.Answer) != 1 || !strings.HasPrefix(reply.Answer[0].(*dns.SRV).Target, "short.west.") {
			t.Errorf("got %v, %v", reply, err)
		}
	}
}

// TestHoldStacks: new goroutines begin with a stack that a query need not grow. It is an average over all goroutines of a
// process, so it is asked of one in which no other test runs.
func TestHoldStacks(t *testing.T) {
	if os.Getenv("HOLD_STACKS") == "" {
		alone := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHoldStacks$", "-test.v")
		alone.Env = append(os.Environ(), "HOLD_STACKS=1")
		if out, err := alone.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestHoldStacks")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	holdStacks()
	sample := []metrics.Sample{{Name: "/gc/stack/starting-size:bytes"}}
	// The race detector makes frames larger, and 16 KiB of it where nothing else runs.
	eventually(t, "goroutines start with 8 KiB", func() bool {
		runtime.GC()
		metrics.Read(sample)
		return sample[0].Value.Uint64() == 8192 || sample[0].Value.Uint64() == 16384
	})
}
