//go:build e2e

package soak

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// udpSize is what askers by UDP advertise.
const udpSize = 1232

// question is one, with its right answer.
type question struct {
	name  string
	qtype uint16
	rcode int
	want  []string // data of the answers, sorted; of a truncated reply it has some
	big   bool     // too big for UDP
}

type questions []question

// everything is all that the tests ask for.
var everything = func() questions {
	list := func(second byte, count int) []string {
		var all []string
		for n := range count {
			all = append(all, address(second, n))
		}
		slices.Sort(all)
		return all
	}
	targets := func(count int, service, zone string) []string {
		var all []string
		for n := range count {
			all = append(all, fmt.Sprintf("0 50 80 host-%d.west.%s.shop.svc.%s", n, service, zone))
		}
		slices.Sort(all)
		return all
	}
	var all questions
	for _, z := range []string{zone, bigZone} {
		name := func(left string) string { return left + ".shop.svc." + z }
		all = append(all, questions{
			{name: name("web"), qtype: dns.TypeA, want: []string{"10.96.0.7"}},
			{name: name("web"), qtype: dns.TypeAAAA, want: []string{"fd00:96::7"}},
			{name: name("_http._tcp.web"), qtype: dns.TypeSRV, want: []string{"0 50 80 " + name("web")}},
			{name: name("db"), qtype: dns.TypeA, want: list(1, 3)},
			{name: name("db"), qtype: dns.TypeAAAA},
			{name: name("db"), qtype: dns.TypeSRV, want: targets(3, "db", z)},
			{name: name("host-1.west.db"), qtype: dns.TypeA, want: []string{address(1, 1)}},
			{name: name("host-499.west.many"), qtype: dns.TypeA, want: []string{address(2, 499)}},
			{name: name("many"), qtype: dns.TypeA, want: list(2, 500), big: true},
			{name: name("nothing"), qtype: dns.TypeA, rcode: dns.RcodeNameError},
			{name: name("host-9.west.db"), qtype: dns.TypeA, rcode: dns.RcodeNameError},
			{name: "dns-version." + z, qtype: dns.TypeTXT, want: []string{`"1.0.0"`}},
			{name: z, qtype: dns.TypeMX},
		}...)
	}
	return append(all,
		question{name: "many.shop.svc." + zone, qtype: dns.TypeSRV, want: targets(500, "many", zone), big: true},
		question{name: "more.shop.svc." + bigZone, qtype: dns.TypeA, want: list(3, 1000), big: true},
		question{name: "more.shop.svc." + bigZone, qtype: dns.TypeSRV, want: targets(1000, "more", bigZone), big: true})
}()

// small are those questions whose replies fit in a packet.
func (all questions) small() questions {
	return slices.DeleteFunc(slices.Clone(all), func(q question) bool { return q.big })
}

// check asks each question once, by UDP.
func (all questions) check(server string, patience time.Duration) error {
	c, err := net.Dial("udp", server)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, q := range all {
		if err := q.ask(c, patience); err != nil {
			return err
		}
	}
	return nil
}

// message is the question as it is sent.
func (q question) message() *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.qtype)
	m.SetEdns0(udpSize, false)
	return m
}

// ask asks over a connection, UDP or TCP, and looks at the reply.
func (q question) ask(c net.Conn, patience time.Duration) error {
	m := q.message()
	conn := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := conn.WriteMsg(m); err != nil {
		return err
	}
	for {
		text, err := conn.ReadMsgHeader(nil)
		if err != nil {
			return err
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(text); err != nil {
			return fmt.Errorf("%w: %s: %w", errWrong, q.name, err)
		}
		if reply.Id != m.Id {
			continue // a late one, to a question that was given up
		}
		_, packets := c.(*net.UDPConn)
		if err := q.judge(reply, len(text), packets); err != nil {
			return fmt.Errorf("%w: %s %s: %w", errWrong, q.name, dns.TypeToString[q.qtype], err)
		}
		return nil
	}
}

// errWrong is what an answer is that is not right, rather than missing.
var errWrong = errors.New("wrong answer")

func (q question) judge(m *dns.Msg, size int, packets bool) error {
	var got []string
	for _, rr := range m.Answer {
		if rr.Header().Rrtype == q.qtype {
			got = append(got, rr.String()[len(rr.Header().String()):])
		}
	}
	slices.Sort(got)
	switch {
	case !m.Response || !m.Authoritative || len(m.Question) != 1 || m.Question[0].Name != q.name || len(got) != len(m.Answer):
		return fmt.Errorf("not a reply to it: %v", m)
	case m.Rcode != q.rcode:
		return fmt.Errorf("%s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[q.rcode])
	case packets && size > udpSize:
		return fmt.Errorf("%d bytes, and the asker has room for %d", size, udpSize)
	case m.Truncated != (packets && q.big):
		return fmt.Errorf("truncated is %v, with %d answers", m.Truncated, len(got))
	case m.Truncated:
		for _, one := range got {
			if !slices.Contains(q.want, one) {
				return fmt.Errorf("%q in a truncated reply", one)
			}
		}
	case !slices.Equal(got, q.want):
		return fmt.Errorf("got %d answers %.200q, want %d", len(got), got, len(q.want))
	case len(got) == 0 && (len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA):
		return fmt.Errorf("negative, without SOA: %v", m)
	}
	return nil
}

// tally is what became of the questions of a load.
type tally struct {
	mu       sync.Mutex
	asked    int
	again    int // tries beyond the first
	missing  int // no answer to any try
	wrong    int
	examples []string
}

func (l *tally) errors() int { return l.missing + l.wrong }

func (l *tally) String() string {
	return fmt.Sprintf("%d asked, %d wrong, %d without an answer, %d asked again %q", l.asked, l.wrong, l.missing, l.again, l.examples)
}

// load asks the questions in turn, at a rate, from several sockets, until the context ends. Like a stub resolver it asks
// again, up to twice, where nothing comes back.
func load(ctx context.Context, server string, all questions, perSecond int) *tally {
	const askers, tries = 4, 3
	l := &tally{}
	var wait sync.WaitGroup
	for n := range askers {
		wait.Go(func() {
			ticker := time.NewTicker(time.Second * askers / time.Duration(perSecond))
			defer ticker.Stop()
			c, err := net.Dial("udp", server)
			if err != nil {
				l.note(0, err)
				return
			}
			defer c.Close()
			for i := n; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				try := 0
				for {
					try++
					err = all[i%len(all)].ask(c, time.Second)
					if err == nil || errors.Is(err, errWrong) || try == tries {
						break
					}
				}
				l.note(try-1, err)
			}
		})
	}
	wait.Wait()
	return l
}

func (l *tally) note(again int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	l.again += again
	switch {
	case errors.Is(err, errWrong):
		l.wrong++
	case err != nil:
		l.missing++
	}
	if err != nil && len(l.examples) < 5 {
		l.examples = append(l.examples, err.Error())
	}
}
