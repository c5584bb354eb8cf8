package lighthouse

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
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

// FuzzServe: whatever comes over the wire, the reply is one that can be sent, fits the question, and keeps the rules that
// hold for every reply.
func FuzzServe(f *testing.F) {
	l := newTestPlugin(newTestWorld(f, shop+`
		import shop/bal ClusterSetIP ports=http/tcp/80
		address shop/bal west ports=http/tcp/80 10.2.0.9
		address shop/bal north.eu ports=http/tcp/80 weight=0 fd00:3::9
		gateway gw up=north.eu down=west
	`))
	l.clusterNames = true
	l.zones = plugin.Zones{testZone, "."}
	for _, name := range []string{
		testZone, "web.shop.svc." + testZone, "_http._tcp.bal.shop.svc." + testZone, "db-0.north.eu.db.shop.svc." + testZone,
		"EU.dB.shop.svc." + testZone, `x\.y.db.shop.svc.` + testZone,
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeANY} {
			m := new(dns.Msg)
			m.SetQuestion(name, qtype)
			wire, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
	}
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
