package lighthouse

import (
	"net/netip"
	"sync"

	"github.com/miekg/dns"
)

// reply is what is told beside the records: where the name lies, and how long the reply may be kept.
type reply struct {
	question *dns.Question // as the client wrote it
	rcode    int
	ttl      uint32 // of the records
	// canonical is the service's own name, lower-case and fully qualified.
	canonical string

	zone    string // for the SOA record, whose TTL, and that of negative answers, is zoneTTL
	names   *authorities
	serial  uint32
	zoneTTL uint32
}

// The fields of the SOA record that never change.
const (
	nsName      = "ns.dns."
	mboxName    = "hostmaster."
	soaRefresh  = 7200
	soaRetry    = 1800
	soaExpire   = 86400
	maxGlueless = 200 // records that cannot come near the size of a message, whatever their names
)

// authorities are the names in the SOA records of a stanza's zones, joined once.
type authorities struct{ zones sync.Map }

type authority struct{ ns, mbox string }

func (a *authorities) of(zone string) *authority {
	if known, found := a.zones.Load(zone); found {
		return known.(*authority)
	}
	known, _ := a.zones.LoadOrStore(zone, &authority{below(nsName, zone), below(mboxName, zone)})
	return known.(*authority)
}

// soa is the zone's SOA record; its last field is the TTL of negative answers.
func (p *reply) soa(owner string) dns.SOA {
	names := p.names.of(p.zone)
	return dns.SOA{
		Hdr:     dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: p.zoneTTL},
		Ns:      names.ns,
		Mbox:    names.mbox,
		Serial:  p.serial,
		Refresh: soaRefresh,
		Retry:   soaRetry,
		Expire:  soaExpire,
		Minttl:  p.zoneTTL,
	}
}

func (p *reply) ns(owner string) dns.RR {
	rr := &dns.NS{Ns: p.names.of(p.zone).ns}
	p.fill(&rr.Hdr, owner, dns.TypeNS)
	return rr
}

// fill fills in the header of a record that has none yet.
func (p *reply) fill(header *dns.RR_Header, owner string, rrtype uint16) {
	header.Name, header.Rrtype, header.Class, header.Ttl = owner, rrtype, dns.ClassINET, p.ttl
}

// message builds the reply to query. Every reply gets records of its own: other plugins change what they are handed, and
// *cache* keeps it. Names are left uncompressed: the server compresses where that makes the reply fit, and nowhere else.
func (p *reply) message(query *dns.Msg, r *content) *dns.Msg {
	switch {
	case len(r.services) > 0:
		return p.serviceMessage(query, r)
	case len(r.addresses) == 1 && r.addresses[0].Is4():
		// The most common replies are a single allocation.
		m := new(struct {
			message
			records [1]dns.RR
			fourRecord
		})
		p.fill(&m.Hdr, p.question.Name, dns.TypeA)
		m.bytes = r.addresses[0].As4()
		m.A.A = m.bytes[:]
		m.records[0] = &m.A
		m.Answer = m.records[:]
		return m.begin(query, p.rcode)
	case len(r.addresses) == 1:
		m := new(struct {
			message
			records [1]dns.RR
			sixRecord
		})
		p.fill(&m.Hdr, p.question.Name, dns.TypeAAAA)
		m.bytes = r.addresses[0].As16()
		m.AAAA.AAAA = m.bytes[:]
		m.records[0] = &m.AAAA
		m.Answer = m.records[:]
		return m.begin(query, p.rcode)
	case len(r.addresses) > 0:
		m := new(message)
		var b addressRecords
		b.count(r.addresses)
		m.Answer = b.appendTo(make([]dns.RR, 0, len(r.addresses)), p, p.question.Name, r.addresses)
		return m.begin(query, p.rcode)
	}
	m := new(struct {
		message
		records [1]dns.RR
		soa     dns.SOA
	})
	m.soa = p.soa(p.zone)
	m.records[0] = &m.soa
	m.Ns = m.records[:]
	return m.begin(query, p.rcode)
}

// message is a reply with room for its question.
type message struct {
	dns.Msg
	room [1]dns.Question
}

// begin fills in the header, as (*dns.Msg).SetRcode does.
func (m *message) begin(query *dns.Msg, rcode int) *dns.Msg {
	m.room[0] = query.Question[0]
	m.Question = m.room[:]
	m.MsgHdr = dns.MsgHdr{Id: query.Id, Response: true, Opcode: query.Opcode, Authoritative: true, Rcode: rcode}
	if query.Opcode == dns.OpcodeQuery {
		m.RecursionDesired, m.CheckingDisabled = query.RecursionDesired, query.CheckingDisabled
	}
	return &m.Msg
}

// serviceMessage builds a reply of SRV records with glue. Records and names of a kind are one allocation each.
func (p *reply) serviceMessage(query *dns.Msg, r *content) *dns.Msg {
	var b addressRecords
	names := make([]byte, 0, len(r.targets)*(nameRoom+len(p.canonical)))
	for i := range r.targets {
		t := &r.targets[i]
		b.count(t.addresses)
		names = t.appendName(names, p.canonical)
		t.at = len(names)
	}
	text := string(names)
	host := func(i int) string {
		if i == 0 {
			return text[:r.targets[0].at]
		}
		return text[r.targets[i-1].at:r.targets[i].at]
	}

	srvs := make([]dns.SRV, len(r.services))
	rrs := make([]dns.RR, 0, len(r.services)+b.fourCount+b.sixCount+1) // and the OPT record that the server adds
	for i, s := range r.services {
		rr := &srvs[i]
		p.fill(&rr.Hdr, p.question.Name, dns.TypeSRV)
		rr.Weight, rr.Port, rr.Target = s.weight, s.number, host(s.target)
		rrs = append(rrs, rr)
	}
	for i := range r.targets {
		rrs = b.appendTo(rrs, p, host(i), r.targets[i].addresses)
	}
	m := new(message)
	m.Answer, m.Extra = rrs[:len(srvs):len(srvs)], rrs[len(srvs):]
	m.begin(query, p.rcode)
	// "A reply too large even for TCP loses its glue first." Below that, size is the server's business.
	if len(rrs) > maxGlueless {
		m.Compress = true
		if m.Len() > dns.MaxMsgSize-64 {
			m.Extra = nil
		}
	}
	return &m.Msg
}

// appendName appends the name that the target stands for.
func (t *target) appendName(room []byte, canonical string) []byte {
	if t.part != nil {
		if t.backend != nil {
			room = append(t.backend.appendName(room), '.')
		}
		room = append(append(room, t.part.cluster.id...), '.')
	}
	return append(room, canonical...)
}

// addressRecords makes A and AAAA records, those of a kind in one allocation: what is to come is counted first.
type addressRecords struct {
	fourCount, sixCount int
	fours               []fourRecord
	sixes               []sixRecord
}

type fourRecord struct {
	dns.A
	bytes [4]byte
}

type sixRecord struct {
	dns.AAAA
	bytes [16]byte
}

func (b *addressRecords) count(addresses []netip.Addr) {
	for i := range addresses {
		if addresses[i].Is4() {
			b.fourCount++
		} else {
			b.sixCount++
		}
	}
}

// appendTo appends the records of a name. They are filled in where they stand: made elsewhere and copied, they would cost
// twice as much.
func (b *addressRecords) appendTo(rrs []dns.RR, p *reply, owner string, addresses []netip.Addr) []dns.RR {
	if b.fours == nil && b.fourCount > 0 {
		b.fours = make([]fourRecord, b.fourCount)
	}
	if b.sixes == nil && b.sixCount > 0 {
		b.sixes = make([]sixRecord, b.sixCount)
	}
	for i := range addresses {
		if addresses[i].Is4() {
			rr := &b.fours[0]
			b.fours = b.fours[1:]
			p.fill(&rr.Hdr, owner, dns.TypeA)
			rr.bytes = addresses[i].As4()
			rr.A.A = rr.bytes[:]
			rrs = append(rrs, &rr.A)
		} else {
			rr := &b.sixes[0]
			b.sixes = b.sixes[1:]
			p.fill(&rr.Hdr, owner, dns.TypeAAAA)
			rr.bytes = addresses[i].As16()
			rr.AAAA.AAAA = rr.bytes[:]
			rrs = append(rrs, &rr.AAAA)
		}
	}
	return rrs
}
