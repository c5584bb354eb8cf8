package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// TestSmall measures everything in a small world: each change must show, later than it was sent, and every row must get a value.
func TestSmall(t *testing.T) {
	ground.Needs(t)
	small := []load{{50, 40, 6}}
	measured, err := measure(t.Context(), 8, 1, small)
	if err != nil {
		t.Fatal(err)
	}
	if missing := measured.Missing(); len(missing) > 0 {
		t.Errorf("no value: %v", missing)
	}
	for _, row := range measured.Rows() {
		if row.Value <= 0 {
			t.Errorf("%s is %v: %s", row.Name, row.Value, row.Detail)
		}
	}
}

func TestReplies(t *testing.T) {
	for _, s := range newWorld(4, 0).services {
		wanted, other := s.backends[3], s.backends[4]
		reply := new(dns.Msg)
		reply.SetReply(s.question())
		if text := pack(t, reply); answers(text) || nameless(text) || holds(text, wanted) {
			t.Errorf("%s: an empty reply is taken for an answer", s.name)
		}
		reply.Answer = append(reply.Answer, record(t, s, wanted))
		if text := pack(t, reply); !answers(text) || !holds(text, wanted) || holds(text, other) {
			t.Errorf("%s: a reply with %s: answers %v, holds it %v, holds %s %v", s.name, wanted, answers(text), holds(text, wanted), other, holds(text, other))
		}
		reply.Answer, reply.Rcode = nil, dns.RcodeNameError
		if text := pack(t, reply); answers(text) || !nameless(text) {
			t.Errorf("%s: no such name is not taken for that", s.name)
		}
	}
}

func pack(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	text, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func record(t *testing.T, s *service, address netip.Addr) dns.RR {
	t.Helper()
	question := s.question().Question[0]
	rr, err := dns.NewRR(question.Name + " 5 IN " + dns.TypeToString[question.Qtype] + " " + address.String())
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// An address is given once, and a backend that becomes ready is not one that was ready before.
func TestAddressesAreNew(t *testing.T) {
	w := newWorld(6, 2)
	seen := map[netip.Addr]bool{}
	for _, s := range append(w.services, w.spare...) {
		for _, address := range s.backends {
			if seen[address] {
				t.Errorf("%s twice", address)
			}
			seen[address] = true
		}
		endpoints := s.slice(time.Now()).Endpoints
		for i, endpoint := range endpoints {
			if want := i < ready; *endpoint.Conditions.Ready != want {
				t.Errorf("%s: endpoint %d is ready: %v", s.name, i, !want)
			}
		}
	}
}

func TestHistogram(t *testing.T) {
	bins := histogram(report.Sample{0.5, 1, 1.1, 99, 100, 20000})
	if got, want := listed(bins), "<=1 2, <=2 1, <=100 2, >10000 1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	text := bars(histogram(report.Sample{15, 25, 25, 26}))
	if lines := strings.Split(strings.TrimRight(text, "\n"), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "25.0 %") || strings.Count(lines[1], "#") != 50 {
		t.Errorf("got\n%s", text)
	}
}
