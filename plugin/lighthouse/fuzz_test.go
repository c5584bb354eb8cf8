package lighthouse

import (
	"context"
	"fmt"
	"math"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

func TestParseName(t *testing.T) {
	for _, c := range []struct {
		name, zone string
		want       question
	}{
		{"clusterset.local.", "clusterset.local.", question{place: placeApex}},
		{"dns-version.clusterset.local.", "clusterset.local.", question{place: placeVersion}},
		{"ns.dns.clusterset.local.", "clusterset.local.", question{place: placeNS}},
		{"dns.clusterset.local.", "clusterset.local.", question{place: placeNSParent}},
		{"svc.clusterset.local.", "clusterset.local.", question{place: placeRoot}},
		{"shop.svc.clusterset.local.", "clusterset.local.", question{place: placeNamespace, namespace: "shop"}},
		{"web.shop.svc.clusterset.local.", "clusterset.local.", question{placeService, "shop", "web", "web.shop", ""}},
		{"a.b.c.web.shop.svc.clusterset.local.", "clusterset.local.", question{placeService, "shop", "web", "web.shop", "a.b.c"}},
		{`a.b\.web.shop.svc.clusterset.local.`, "clusterset.local.", question{placeService, "shop", `b\.web`, `b\.web.shop`, "a"}},
		{`a.b\\.web.shop.svc.clusterset.local.`, "clusterset.local.", question{placeService, "shop", "web", "web.shop", `a.b\\`}},
		{"pod.clusterset.local.", "clusterset.local.", question{}},
		{"web.shop.pod.clusterset.local.", "clusterset.local.", question{}},
		{`web.shop.svc\.clusterset.local.`, "clusterset.local.", question{}},
		{"xclusterset.local.", "clusterset.local.", question{}},
		{"example.org.", "clusterset.local.", question{}},
		{"web.shop.svc.", ".", question{placeService, "shop", "web", "web.shop", ""}},
		{".", ".", question{place: placeApex}},
	} {
		if got := parseName(c.name, c.zone); got != c.want {
			t.Errorf("%s in %s: got %+v, want %+v", c.name, c.zone, got, c.want)
		}
	}
}

// FuzzName: what parseName takes apart, put together again, is the name; the labels are those that the dns package sees.
func FuzzName(f *testing.F) {
	for _, name := range []string{"web.shop.svc.clusterset.local.", `a\.b.c\\.web.shop.svc.clusterset.local.`, "ns.dns.clusterset.local.", "_http._tcp.east.eu.web.shop.svc.clusterset.local."} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if _, ok := dns.IsDomainName(name); !ok || name == "" {
			t.Skip()
		}
		name = strings.ToLower(dns.Fqdn(name))
		for _, zone := range []string{"clusterset.local.", "."} {
			if in := dns.IsSubDomain(zone, name); in != inZone(name, zone) {
				t.Errorf("%q in %s: got %v", name, zone, !in)
			} else if !in {
				continue
			}
			var q question
			if allocs := testing.AllocsPerRun(1, func() { q = parseName(name, zone) }); allocs > 0 {
				t.Errorf("%q: %v allocations", name, allocs)
			}
			if q.place != placeService {
				continue
			}
			again := q.key + ".svc." + strings.TrimPrefix(zone, ".")
			if q.left != "" {
				again = q.left + "." + again
			}
			if again != name || q.key != q.service+"."+q.namespace {
				t.Errorf("%q came apart as %+v", name, q)
			}
			labels := dns.SplitDomainName(name)
			at := len(labels) - dns.CountLabel(zone) - 3
			if labels[at] != q.service || labels[at+1] != q.namespace {
				t.Errorf("%q: labels %q, came apart as %+v", name, labels, q)
			}
			var left []string
			for rest := q.left; rest != ""; {
				var label string
				label, rest = cutFirst(rest)
				left = append(left, label)
			}
			if !slices.Equal(left, labels[:at]) {
				t.Errorf("%q: labels %q, cut as %q", name, labels[:at], left)
			}
		}
	})
}

// fuzzed is a world in which what the fuzzer may find by mutation is near.
func fuzzed(t testing.TB) *Lighthouse {
	l := newTestPlugin(newTestWorld(t, shop+`
		import shop/bal ClusterSetIP ports=http/tcp/80
		address shop/bal west ports=http/tcp/80 10.2.0.9
		address shop/bal north.eu ports=http/tcp/80 weight=0 fd00:3::9
		gateway gw up=north.eu down=west
	`))
	l.clusterNames = true
	l.zones = plugin.Zones{testZone, "."}
	return l
}

// addQueries seeds a fuzzer with whole queries.
func addQueries(f *testing.F) {
	for _, name := range []string{
		testZone, "web.shop.svc." + testZone, "_http._tcp.bal.shop.svc." + testZone, "db-0.north.eu.db.shop.svc." + testZone,
		"EU.dB.shop.svc." + testZone, `x\.y.db.shop.svc.` + testZone, "db.shop.svc." + testZone,
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeANY} {
			m := new(dns.Msg)
			m.SetQuestion(name, qtype)
			if qtype != dns.TypeA {
				m.SetEdns0(1232, qtype == dns.TypeSRV)
			}
			wire, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
	}
}

// FuzzServe: whatever comes over the wire, the reply is one that can be sent, fits the question, and keeps the rules that
// hold for every reply.
func FuzzServe(f *testing.F) {
	l := fuzzed(f)
	addQueries(f)
	f.Fuzz(func(t *testing.T, wire []byte) {
		query := new(dns.Msg)
		if query.Unpack(wire) != nil || len(query.Question) != 1 || query.Question[0].Qclass != dns.ClassINET {
			t.Skip() // the server's business
		}
		question := query.Question[0]
		rec := dnstest.NewRecorder(&test.ResponseWriter{})
		l.ServeDNS(context.Background(), rec, query)
		m := rec.Msg
		if m == nil {
			if question.Qtype != dns.TypeAXFR && question.Qtype != dns.TypeIXFR {
				t.Fatalf("%v: no reply", question)
			}
			return
		}
		packed, err := m.Pack()
		if err != nil {
			t.Fatalf("%v: %v", question, err)
		}
		if len(packed) > 4096 {
			t.Errorf("%v: %d bytes from so small a world", question, len(packed))
		}
		if !m.Authoritative || m.Id != query.Id || m.Question[0] != question {
			t.Errorf("%v: not a reply to it: %v", question, m)
		}
		soa := len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA
		if (len(m.Answer) == 0) != soa || m.Rcode == dns.RcodeNameError && len(m.Answer) > 0 {
			t.Errorf("%v: SOA with an answer, or neither: %v", question, m)
		}
		for _, rr := range m.Answer {
			if rr.Header().Name != question.Name || rr.Header().Rrtype != question.Qtype {
				t.Errorf("%v: answered with %v", question, rr)
			}
		}
		// RFC 8020: what exists has no ancestor that does not.
		if m.Rcode == dns.RcodeSuccess && question.Name != "." && !strings.EqualFold(question.Name, testZone) {
			off, end := dns.NextLabel(question.Name, 0)
			if !end {
				above, _ := ask(t, l, question.Name[off:], dns.TypeA)
				hidden := strings.EqualFold(question.Name[off:], "db.shop.svc."+testZone) // see answerHidden
				if above.Rcode != dns.RcodeSuccess && !hidden {
					t.Errorf("%v exists, and above it is %s", question, dns.RcodeToString[above.Rcode])
				}
			}
		}
	})
}

// memoryConn is a socket without a network: what is put into in comes from a client, and out has what goes to it.
type memoryConn struct{ in, out chan []byte }

func (c *memoryConn) ReadFrom(p []byte) (int, net.Addr, error) {
	wire, open := <-c.in
	if !open {
		return 0, nil, net.ErrClosed
	}
	return copy(p, wire), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}, nil
}

func (c *memoryConn) WriteTo(p []byte, _ net.Addr) (int, error) {
	c.out <- slices.Clone(p)
	return len(p), nil
}

func (c *memoryConn) Close() error                     { return nil }
func (c *memoryConn) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 53), Port: 53} }
func (c *memoryConn) SetDeadline(time.Time) error      { return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }

// fuzzedSize is the longest packet that the fuzzed server takes.
const fuzzedSize = 4096

// FuzzPackets: the whole way from a packet to a packet, through the server's own code, with bytes written straight from the
// zone where it may be. The reply can be read, is no longer than the client said, and says what the message would have said;
// and no packet makes us allocate more than in proportion to its size.
func FuzzPackets(f *testing.F) {
	l := fuzzed(f)
	addQueries(f)
	conn := &memoryConn{in: make(chan []byte), out: make(chan []byte, 1)}
	server := &dns.Server{PacketConn: conn, UDPSize: fuzzedSize, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		rcode, _ := l.ServeDNS(context.Background(), request.NewScrubWriter(r, w), r)
		if !plugin.ClientWrite(rcode) {
			w.WriteMsg(new(dns.Msg).SetRcode(r, rcode))
		}
	})}
	go server.ActivateAndServe()
	f.Fuzz(func(t *testing.T, wire []byte) {
		query := new(dns.Msg)
		if query.Unpack(wire) != nil || len(query.Question) != 1 || query.Response || query.Question[0].Qclass != dns.ClassINET || len(wire) > fuzzedSize {
			t.Skip() // the server's business
		}
		// The least of some tries: what else goes on in the process, and buffers that the garbage collector has taken from
		// their pools, count now and then.
		var reply []byte
		least := uint64(math.MaxUint64)
		bound := uint64(16<<10 + 128*len(wire))
		for try := 0; try < 10 && least > bound; try++ {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			conn.in <- wire
			reply = <-conn.out
			runtime.ReadMemStats(&after)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
		}
		if least > bound {
			t.Errorf("%d bytes allocated for a packet of %d", least, len(wire))
		}
		got := new(dns.Msg)
		if err := got.Unpack(reply); err != nil {
			t.Fatalf("%v: %v", query.Question, err)
		}
		if got.Id != query.Id || !got.Response {
			t.Errorf("%v: not a reply to it: %v", query.Question, got)
		}
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		if len(reply) > size {
			t.Errorf("%v: %d bytes, and the client takes %d", query.Question, len(reply), size)
		}
		if got.Rcode != dns.RcodeSuccess && got.Rcode != dns.RcodeNameError || got.Truncated || got.Opcode != dns.OpcodeQuery {
			return
		}
		if strings.Contains(query.Question[0].Name, ".bal.") || strings.HasPrefix(strings.ToLower(query.Question[0].Name), "bal.") {
			return // whose turn it is
		}
		rec := dnstest.NewRecorder(&test.ResponseWriter{})
		l.ServeDNS(context.Background(), rec, query)
		if rec.Msg == nil || rec.Msg.Rcode != got.Rcode || fmt.Sprint(rec.Msg.Answer, rec.Msg.Ns) != fmt.Sprint(got.Answer, got.Ns) {
			t.Errorf("%v: as bytes\n%v\nas a message\n%v", query.Question, got, rec.Msg)
		}
	})
}
