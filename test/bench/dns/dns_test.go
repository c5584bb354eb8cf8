package main

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const dnsperfOutput = `
Statistics:

  Queries sent:         200100
  Queries completed:    200000 (99.95%)
  Queries lost:         100 (0.05%)

  Response codes:       NOERROR 150000 (75.00%), SERVFAIL 50000 (25.00%)
  Average packet size:  request 57, response 118
  Run time (s):         2.000000
  Queries per second:   100000.000000

  Average Latency (s):  0.000999 (min 0.000069, max 0.009)
  Latency StdDev (s):   0.000407
`

func TestParseDnsperf(t *testing.T) {
	l, right, err := parseDnsperf(dnsperfOutput, "NOERROR")
	if err != nil || right != 150000 || l.qps != 75000 || l.size != 118 || l.lost < 0.0004 || l.lost > 0.0006 {
		t.Errorf("got %+v, %v, %v", l, right, err)
	}
	if _, _, err := parseDnsperf(dnsperfOutput, "NXDOMAIN"); err == nil {
		t.Error("no answer was right, and nobody says so")
	}
	if _, _, err := parseDnsperf("Segmentation fault", "NOERROR"); err == nil {
		t.Error("took no output for a measurement")
	}
}

func TestFrames(t *testing.T) {
	for contentType, want := range map[string][]string{
		"application/json": {"{\"a\":1}\n", "{}\n"},
		"application/vnd.kubernetes.protobuf;stream=watch": {"\x00\x00\x00\x03abc", "\x00\x00\x00\x00"},
	} {
		read := frames(contentType, strings.NewReader(strings.Join(want, "")))
		for _, w := range want {
			if got, err := read(); err != nil || string(got) != w {
				t.Errorf("%s: got %q, %v, want %q", contentType, got, err, w)
			}
		}
		if _, err := read(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the last: %v", contentType, err)
		}
	}
}

func TestCheck(t *testing.T) {
	q := question{name: "a.", qtype: dns.TypeA, addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1")}}
	reply := func(addresses ...string) *dns.Msg {
		m := new(dns.Msg)
		for _, address := range addresses {
			rr, err := dns.NewRR("a. A " + address)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return m
	}
	if err := q.check(reply("10.0.0.1", "10.0.0.2")); err != nil {
		t.Error(err)
	}
	for _, wrong := range [][]string{{}, {"10.0.0.1"}, {"10.0.0.1", "10.0.0.3"}, {"10.0.0.1", "10.0.0.2", "10.0.0.2"}} {
		if q.check(reply(wrong...)) == nil {
			t.Errorf("%v passes", wrong)
		}
	}
	// The worlds of the same run hold different addresses.
	w := small()
	w.grow()
	seen := map[netip.Addr]bool{}
	for _, services := range [][]*service{w.clusterIP, w.headless10, w.headless25, w.headless100, w.large} {
		for _, s := range services {
			for _, address := range s.addresses() {
				if seen[address] {
					t.Fatalf("%s twice", address)
				}
				seen[address] = true
			}
		}
	}
	if len(seen) != 10_000+500*10+100*25+20*100+250_000 {
		t.Errorf("%d addresses", len(seen))
	}
}
