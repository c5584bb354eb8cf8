// Command bare is the least that a DNS server in Go can be: github.com/miekg/dns and one record for every question. It is a
// peer of the DNS benchmark, and tells what the library itself costs.
package main

import (
	"log"
	"net"
	"os"

	"github.com/miekg/dns"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: bare ADDRESS:PORT")
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5},
			A:   net.IPv4(192, 0, 2, 53),
		}}
		w.WriteMsg(m)
	})
	log.Fatal((&dns.Server{Addr: os.Args[1], Net: "udp", Handler: handler}).ListenAndServe())
}
