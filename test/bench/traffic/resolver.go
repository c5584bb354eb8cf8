package traffic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// resolver asks a server for the A and AAAA records of a name in turn, one question every few milliseconds, and takes both
// together for the answer.
func resolver(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("give the server's address with its port, and a name")
	}
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	log := &answerLog{answers: Answers{Sets: map[string]Seen{}}}
	go func() {
		latest := map[uint16]string{}
		ticker := time.NewTicker(askInterval)
		defer ticker.Stop()
		for id := uint16(1); ; id++ {
			<-ticker.C
			kind := []uint16{dns.TypeA, dns.TypeAAAA}[id%2]
			text, err := ask(conn, id, dns.Fqdn(args[1]), kind)
			if err != nil {
				log.timeout()
				continue
			}
			if latest[kind] = text; len(latest) == 2 {
				log.answer(latest[dns.TypeA]+" "+latest[dns.TypeAAAA], time.Now())
			}
		}
	}()
	return Serve(in, out, func(struct{}) (any, error) { return log.take(), nil })
}

const (
	askInterval = 10 * time.Millisecond // at 2, this and the DNS servers take half a processor
	askTimeout  = 200 * time.Millisecond
)

// ask gives the addresses of the answer, sorted, or its rcode.
func ask(conn net.Conn, id uint16, name string, kind uint16) (string, error) {
	question := new(dns.Msg)
	question.SetQuestion(name, kind)
	question.Id = id
	question.SetEdns0(4096, false)
	packed, err := question.Pack()
	if err != nil {
		return "", err
	}
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write(packed); err != nil {
		return "", err
	}
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return "", err
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(buffer[:n]); err != nil || reply.Id != id {
			continue // an answer that came too late
		}
		return said(reply), nil
	}
}

func said(reply *dns.Msg) string {
	if reply.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[reply.Rcode]
	}
	var addresses []netip.Addr
	for _, record := range reply.Answer {
		switch record := record.(type) {
		case *dns.A:
			address, _ := netip.AddrFromSlice(record.A.To4())
			addresses = append(addresses, address)
		case *dns.AAAA:
			address, _ := netip.AddrFromSlice(record.AAAA)
			addresses = append(addresses, address)
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return strings.Trim(fmt.Sprint(addresses), "[]")
}

type answerLog struct {
	mu      sync.Mutex
	answers Answers
	latest  string
}

func (l *answerLog) answer(text string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text = strings.Join(strings.Fields(text), ",")
	if l.latest != "" && l.latest != text {
		l.answers.Changes++
	}
	l.latest = text
	l.answers.Sets[text] = Seen{l.answers.Sets[text].Count + 1, at}
}

func (l *answerLog) timeout() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers.Timeouts++
}

func (l *answerLog) take() Answers {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.answers
	l.answers = Answers{Sets: map[string]Seen{}}
	return taken
}
