package traffic_test

import (
	"fmt"
	"net"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
)

func TestResolver(t *testing.T) {
	var state atomic.Value
	state.Store("both")
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		record := func(rdata string) {
			rr, err := dns.NewRR(fmt.Sprintf("%s 5 IN %s %s", q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype], rdata))
			if err != nil {
				t.Error(err)
			}
			reply.Answer = append(reply.Answer, rr)
		}
		v4 := q.Question[0].Qtype == dns.TypeA
		switch state := state.Load(); {
		case state == "silent":
			return
		case state == "none":
			reply.Rcode = dns.RcodeNameError
		case v4:
			record("10.9.0.5")
			if state == "both" {
				record("10.8.0.5")
			}
		default:
			record("fd00::5")
		}
		if err := w.WriteMsg(reply); err != nil {
			t.Error(err)
		}
	})}
	go server.ActivateAndServe()
	defer server.Shutdown()

	line, err := traffic.Args("resolver", conn.LocalAddr().String(), "web.shop.svc.clusterset.local")
	if err != nil {
		t.Fatal(err)
	}
	p, err := traffic.Start(exec.Command(line[0], line[1:]...))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	changes, timeouts := 0, 0
	await := func(want func(traffic.Answers) bool) {
		t.Helper()
		err := traffic.Await(t.Context(), 30*time.Second, "the answer is as wanted", func() error {
			answers, err := p.Answers()
			changes, timeouts = changes+answers.Changes, timeouts+answers.Timeouts
			if err == nil && !want(answers) {
				err = fmt.Errorf("answers are %+v", answers)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	only := func(set string) func(traffic.Answers) bool {
		return func(a traffic.Answers) bool {
			return len(a.Sets) == 1 && a.Sets[set].Count > 1 && time.Since(a.Sets[set].Last) < time.Minute
		}
	}
	await(only("10.8.0.5,10.9.0.5,fd00::5"))
	state.Store("one")
	await(only("10.9.0.5,fd00::5"))
	if changes != 1 {
		t.Errorf("%d changes, want 1", changes)
	}
	state.Store("silent")
	await(func(a traffic.Answers) bool { return len(a.Sets) == 0 && a.Timeouts > 0 })
	state.Store("none")
	await(only("NXDOMAIN,NXDOMAIN"))
	// From two addresses to none, one family after the other.
	if changes != 3 {
		t.Errorf("%d changes, want 3", changes)
	}
}
