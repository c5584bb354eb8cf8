package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// question is one question with its right answer, as far as all peers agree on it: weights and TTLs differ.
type question struct {
	name      string
	qtype     uint16
	rcode     int
	addresses []netip.Addr // of the answer, or for SRV of the glue
	target    string       // of the one SRV record
}

// A benchmark case: the questions that are asked in it, of a zone.
type queryCase struct {
	name string
	draw func(w *world, zone string) []question
	// edns says whether queries over the wire advertise a buffer size: what gets large is asked for by resolvers that do.
	edns bool
	// rcode that is right.
	rcode int
}

// drawn is the number of random questions of a case.
const drawn = 20_000

// queryCases are what is asked in process and over the wire.
var queryCases = []queryCase{
	{name: "clusterip-a", draw: drawA(func(w *world) []*service { return w.clusterIP })},
	{name: "headless25-a", edns: true, draw: drawA(func(w *world) []*service { return w.headless25 })},
	{name: "headless100-a", edns: true, draw: drawA(func(w *world) []*service { return w.headless100 })},
	{name: "nxdomain", rcode: dns.RcodeNameError, draw: draw(func(w *world) []*service { return w.clusterIP }, func(s *service, zone string) question {
		return question{name: "no-" + s.fqdn(zone), qtype: dns.TypeA, rcode: dns.RcodeNameError}
	})},
	{name: "srv", draw: draw(func(w *world) []*service { return w.clusterIP }, func(s *service, zone string) question {
		return question{name: "_" + portName + "._tcp." + s.fqdn(zone), qtype: dns.TypeSRV, addresses: s.addresses(), target: s.fqdn(zone)}
	})},
}

func caseNamed(name string) queryCase {
	return queryCases[slices.IndexFunc(queryCases, func(c queryCase) bool { return c.name == name })]
}

func drawA(from func(*world) []*service) func(*world, string) []question {
	return draw(from, func(s *service, zone string) question { return s.question(zone) })
}

// draw asks about services by chance.
func draw(from func(*world) []*service, ask func(*service, string) question) func(*world, string) []question {
	return func(w *world, zone string) []question {
		services := from(w)
		chance := random(1)
		questions := make([]question, drawn)
		for i := range questions {
			questions[i] = ask(services[chance.IntN(len(services))], zone)
		}
		return questions
	}
}

// question asks for the service's addresses.
func (s *service) question(zone string) question {
	return question{name: s.fqdn(zone), qtype: dns.TypeA, addresses: s.addresses()}
}

func (q question) message(edns bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.qtype)
	if edns {
		m.SetEdns0(4096, false)
	}
	return m
}

// check compares a reply with the right answer.
func (q question) check(m *dns.Msg) error {
	if m.Rcode != q.rcode {
		return fmt.Errorf("%s %s is %s, want %s", q.name, dns.TypeToString[q.qtype], dns.RcodeToString[m.Rcode], dns.RcodeToString[q.rcode])
	}
	records := m.Answer
	if q.qtype == dns.TypeSRV {
		if len(m.Answer) != 1 {
			return fmt.Errorf("%s SRV has %d answers, want one", q.name, len(m.Answer))
		}
		srv, ok := m.Answer[0].(*dns.SRV)
		if !ok || srv.Port != port || !strings.EqualFold(srv.Target, q.target) {
			return fmt.Errorf("%s SRV is %v, want port %d of %s", q.name, m.Answer[0], port, q.target)
		}
		records = slices.DeleteFunc(slices.Clone(m.Extra), func(r dns.RR) bool { return r.Header().Rrtype != dns.TypeA })
	}
	var got []netip.Addr
	for _, record := range records {
		a, ok := record.(*dns.A)
		if !ok {
			return fmt.Errorf("%s has the answer %v", q.name, record)
		}
		address, _ := netip.AddrFromSlice(a.A.To4())
		got = append(got, address)
	}
	want := slices.Clone(q.addresses)
	slices.SortFunc(got, netip.Addr.Compare)
	slices.SortFunc(want, netip.Addr.Compare)
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s has the addresses %v, want %v", q.name, got, want)
	}
	return nil
}
