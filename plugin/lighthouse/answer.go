package lighthouse

import (
	"iter"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// view is the zone as one server block serves it: the same records, seen with its options.
type view struct {
	*zone
	local        string // this cluster's ID, "" where it is not known
	clusterNames bool
	maxAnswers   int
}

// reachable tells whether a cluster's backends are answered where the asker did not name it.
func (v *view) reachable(c *cluster) bool { return v.reach.has(c) || c.id == v.local }

// answerKind is what a name turned out to be.
type answerKind int

const (
	answerNone    answerKind = iota // no such name: NXDOMAIN
	answerHidden                    // no such name either, but its service exists: NXDOMAIN that never falls through
	answerEmpty                     // an empty non-terminal: NODATA for every type
	answerService                   // <svc>
	answerPort                      // _port._proto.<svc>, maybe of one cluster
	answerCluster                   // <cluster>.<svc>
	answerBackend                   // <host>.<cluster>.<svc>
)

// answer is a name found below a namespace. part and backend stand where the name holds a cluster or a host.
type answer struct {
	kind           answerKind
	service        *service
	part           *part
	backend        *backend
	port, protocol string
}

// find looks a name up. left holds the labels left of the service.
func (v *view) find(s *service, left string) answer {
	if left == "" {
		if s.kind == kindHeadless && !v.anyBackend(s) {
			// "Headless with no ready backend in a reachable cluster: NXDOMAIN, which does not fall through."
			return answer{kind: answerHidden, service: s}
		}
		return answer{kind: answerService, service: s}
	}
	if left[0] == '_' {
		return v.findPort(s, left, true)
	}
	if v.clusterNames {
		// A cluster ID may hold dots: as a whole first, then as host and cluster.
		if p := s.part(left); p != nil && v.named(p) {
			return answer{kind: answerCluster, service: s, part: p}
		}
	}
	if s.kind == kindHeadless {
		host, clusterID := cutFirst(left)
		if clusterID != "" {
			if p := s.part(clusterID); p != nil {
				if b := p.find(host); b != nil {
					return answer{kind: answerBackend, service: s, part: p, backend: b}
				}
			}
		}
	}
	// <cluster> itself where it has no records, and "west" above "east.west".
	for _, p := range s.parts {
		below := s.kind == kindHeadless && len(p.backends) > 0 || v.clusterNames && v.named(p)
		if below && (p.cluster.id == left || isBelow(p.cluster.id, left)) {
			return answer{kind: answerEmpty, service: s}
		}
	}
	if v.clusterNames {
		return v.findPort(s, left, false) // "http.tcp", as Submariner's users write it
	}
	return answer{kind: answerNone}
}

// named tells whether <cluster>.<svc> has records: the cluster has an address of its own or a ready backend, reachable or
// not, for the asker named it.
func (v *view) named(p *part) bool { return p.hasAddress || len(p.backends) > 0 }

// findPort looks up port and protocol, of the service or of one cluster. underscores tells how the labels begin.
func (v *view) findPort(s *service, left string, underscores bool) answer {
	first, rest := cutFirst(left)
	second, clusterID := cutFirst(rest)
	if underscores {
		first = first[1:]
	}

	// _port._proto and below it nothing or a cluster.
	if protocol, ok := protocolOf(second, underscores); ok && first != "" {
		a := answer{kind: answerPort, service: s, port: first, protocol: protocol}
		if clusterID == "" {
			if v.servicePort(s, func(ports []port) bool { return hasPort(ports, first, protocol) }) {
				return a
			}
		} else if v.clusterNames {
			if p := s.part(clusterID); p != nil && v.named(p) && hasPort(p.ports, first, protocol) {
				a.part = p
				return a
			}
		}
	}

	// _proto alone, above the ports.
	if protocol, ok := protocolOf(first, false); ok {
		if rest == "" {
			if v.servicePort(s, func(ports []port) bool { return hasProtocol(ports, protocol) }) {
				return answer{kind: answerEmpty, service: s}
			}
		} else if v.clusterNames {
			if p := s.part(rest); p != nil && v.named(p) && hasProtocol(p.ports, protocol) {
				return answer{kind: answerEmpty, service: s}
			}
		}
	}
	return answer{kind: answerNone}
}

// protocolOf reads the label of a protocol.
func protocolOf(label string, underscore bool) (string, bool) {
	if underscore {
		cut, found := strings.CutPrefix(label, "_")
		if !found {
			return "", false
		}
		label = cut
	}
	return label, label == "tcp" || label == "udp" || label == "sctp"
}

// servicePort tells whether one of the lists of ports that make up the service's names is as asked. The names of a
// headless service are those of the backends it is answered with; the others' do not come and go with readiness.
func (v *view) servicePort(s *service, is func([]port) bool) bool {
	if s.kind != kindHeadless && is(s.ports) {
		return true
	}
	if s.kind == kindIP {
		return false
	}
	for _, p := range s.parts {
		if (s.kind == kindBalanced || v.reachable(p.cluster) && len(p.backends) > 0) && is(p.ports) {
			return true
		}
	}
	return false
}

func (v *view) anyBackend(s *service) bool {
	for _, p := range s.parts {
		if len(p.backends) > 0 && v.reachable(p.cluster) {
			return true
		}
	}
	return false
}

// target is a backend that is answered, with the cluster it is in.
type target struct {
	part    *part
	backend *backend
}

// targets gives the backends that answer a headless name: those of the named cluster, else of the reachable ones; of
// more than the limit those with the lowest ranks. It merges the clusters' sorted lists. Of a port's name, only backends
// that have the port count.
func (v *view) targets(a answer) iter.Seq[target] {
	return func(yield func(target) bool) {
		if a.backend != nil {
			yield(target{a.part, a.backend})
			return
		}
		type head struct {
			part *part
			at   int
		}
		var room [8]head
		heads := room[:0]
		skip := func(h *head) {
			for a.kind == answerPort && h.at < len(h.part.backends) && !hasPort(h.part.backends[h.at].ports, a.port, a.protocol) {
				h.at++
			}
		}
		for _, p := range a.service.parts {
			if p == a.part || a.part == nil && v.reachable(p.cluster) {
				h := head{part: p}
				skip(&h)
				heads = append(heads, h)
			}
		}
		for range v.maxAnswers {
			var best *head
			for i := range heads {
				h := &heads[i]
				if h.at < len(h.part.backends) &&
					(best == nil || compareRank(&h.part.backends[h.at], &best.part.backends[best.at]) < 0) {
					best = h
				}
			}
			if best == nil || !yield(target{best.part, &best.part.backends[best.at]}) {
				return
			}
			best.at++
			skip(best)
		}
	}
}

// choose takes a DNS-balanced service's turn: the cluster that this answer is about, nil for none.
func (v *view) choose(s *service, qtype uint16, a answer) *part {
	fits := func(p *part) bool {
		switch qtype {
		case dns.TypeA:
			return hasFamily(p.ready, true)
		case dns.TypeAAAA:
			return hasFamily(p.ready, false)
		}
		return a.kind != answerPort || hasPort(p.ports, a.port, a.protocol)
	}
	// "The local cluster's address while it exports the service and is ready: always, never balanced away", and "a local
	// cluster that is ready but lacks the asked family gives NODATA". For a named port, others may have what it lacks.
	if local := s.part(v.local); v.local != "" && local != nil && len(local.ready) > 0 {
		if fits(local) {
			return local
		}
		if qtype != dns.TypeSRV {
			return nil
		}
	}

	candidate := func(p *part) bool {
		return len(p.ready) > 0 && v.reachable(p.cluster) && p.cluster.id != v.local && fits(p)
	}
	var total, n, divisor uint32
	var only *part
	for _, p := range s.parts {
		if candidate(p) {
			total, n, only = total+uint32(p.share), n+1, p
			divisor = gcd(divisor, uint32(p.share))
		}
	}
	if n < 2 {
		return only
	}
	turn := &s.turns.srv
	switch qtype {
	case dns.TypeA:
		turn = &s.turns.a
	case dns.TypeAAAA:
		turn = &s.turns.aaaa
	}
	equal := total == 0 // weight 0 takes a cluster out only while another is left
	if equal {
		total, divisor = n, 1
	}
	total /= divisor // 100 to 100 is 1 to 1: strictly in turn
	at := spread(turn.Add(1)-1, total)
	for _, p := range s.parts {
		if !candidate(p) {
			continue
		}
		share := uint32(p.share) / divisor
		if equal {
			share = 1
		}
		if at < share {
			return p
		}
		at -= share
	}
	return nil
}

// spread maps turn to one of total places, every place once in each round of total turns, and neighbours in time far
// apart. It is smooth weighted round robin without state: instead of a counter for each cluster, which queries would have
// to lock, one counter walks the wheel of all weights in steps of about the golden ratio of it.
func spread(turn, total uint32) uint32 {
	step := uint32(float64(total) * 0.6180339887)
	for step > 1 && gcd(step, total) != 1 {
		step--
	}
	if step == 0 {
		step = 1
	}
	return uint32(uint64(turn%total) * uint64(step) % uint64(total))
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func hasFamily(addresses []netip.Addr, four bool) bool {
	for _, addr := range addresses {
		if addr.Is4() == four {
			return true
		}
	}
	return false
}

// addressRecords gives the A or AAAA records of a name.
func (v *view) addressRecords(b *builder, a answer, owner string, qtype uint16) []dns.RR {
	four := qtype == dns.TypeA
	switch {
	case a.kind == answerPort || a.kind == answerEmpty:
		return nil
	case a.service.kind == kindHeadless:
		b.addresses = b.room[:0]
		for t := range v.targets(a) {
			for _, addr := range t.backend.addresses {
				if addr.Is4() == four {
					b.addresses = append(b.addresses, addr)
				}
			}
		}
		if a.service.repeats {
			b.dropRepeats()
		}
	case a.kind == answerCluster:
		b.takeFamily(a.part.addresses, four, 0)
	case a.service.kind == kindIP:
		b.takeFamily(a.service.addresses, four, 0)
	default:
		b.addresses = nil
		if p := v.choose(a.service, qtype, a); p != nil {
			b.takeFamily(p.ready, four, 1) // "one address an answer"
		}
	}
	return b.appendAddresses(nil, owner)
}

// serviceRecords gives the SRV records of a name, and the addresses of their targets as glue.
func (v *view) serviceRecords(b *builder, a answer, canonical string) (answers, glue []dns.RR) {
	wanted := func(p port) bool {
		return a.kind != answerPort || p.name == a.port && p.protocol == a.protocol
	}
	if a.kind == answerEmpty || a.kind == answerBackend {
		return nil, nil
	}
	if a.service.kind == kindHeadless {
		for t := range v.targets(a) {
			host := t.backend.name + "." + t.part.cluster.id + "." + canonical
			some := false
			from := len(answers)
			for _, p := range t.backend.ports {
				if wanted(p) && !hasPortNumber(answers[from:], p.number) {
					answers = append(answers, b.srv(t.backend.weight, p.number, host))
					some = true
				}
			}
			if some {
				b.addresses = append(b.room[:0], t.backend.addresses...)
				glue = b.appendAddresses(glue, host)
			}
		}
		return answers, glue
	}

	ports, weight, addresses, host := a.service.ports, uint16(defaultWeight), a.service.addresses, canonical
	switch {
	case a.part != nil:
		ports, weight, addresses = a.part.ports, a.part.weight, a.part.addresses
		host = a.part.cluster.id + "." + canonical
	case a.service.kind == kindBalanced:
		p := v.choose(a.service, dns.TypeSRV, a)
		if p == nil {
			return nil, nil
		}
		ports, weight, addresses = p.ports, p.weight, p.ready
	}
	for _, p := range ports {
		if wanted(p) && !hasPortNumber(answers, p.number) {
			answers = append(answers, b.srv(weight, p.number, host))
		}
	}
	if len(answers) > 0 {
		b.addresses = append(b.room[:0], addresses...)
		glue = b.appendAddresses(nil, host)
	}
	return answers, glue
}

func hasPortNumber(records []dns.RR, number uint16) bool {
	for _, rr := range records {
		if rr.(*dns.SRV).Port == number {
			return true
		}
	}
	return false
}

// builder makes the records of one reply. Every reply gets its own: other plugins change what they are handed.
type builder struct {
	question  string // as the client wrote it
	ttl       uint32
	addresses []netip.Addr
	room      [32]netip.Addr
}

// takeFamily takes those addresses that are of the family; at most limit of them, where it is not 0.
func (b *builder) takeFamily(addresses []netip.Addr, four bool, limit int) {
	b.addresses = b.room[:0]
	for _, addr := range addresses {
		if addr.Is4() == four {
			b.addresses = append(b.addresses, addr)
			if len(b.addresses) == limit {
				return
			}
		}
	}
}

// dropRepeats keeps the first of each address.
func (b *builder) dropRepeats() {
	seen := make(map[netip.Addr]struct{}, len(b.addresses))
	kept := b.addresses[:0]
	for _, addr := range b.addresses {
		if _, found := seen[addr]; !found {
			seen[addr] = struct{}{}
			kept = append(kept, addr)
		}
	}
	b.addresses = kept
}

// appendAddresses appends the A and AAAA records of the addresses taken. All records of a family are one allocation.
func (b *builder) appendAddresses(rrs []dns.RR, owner string) []dns.RR {
	fours, size := 0, 0
	for _, addr := range b.addresses {
		if addr.Is4() {
			fours, size = fours+1, size+4
		} else {
			size += 16
		}
	}
	if size == 0 {
		return rrs
	}
	if rrs == nil {
		rrs = make([]dns.RR, 0, len(b.addresses))
	}
	bytes := make([]byte, 0, size)
	as, aaaas := make([]dns.A, 0, fours), make([]dns.AAAA, 0, len(b.addresses)-fours)
	for _, addr := range b.addresses {
		from := len(bytes)
		if addr.Is4() {
			ip := addr.As4()
			bytes = append(bytes, ip[:]...)
			as = append(as, dns.A{Hdr: b.header(owner, dns.TypeA), A: bytes[from:len(bytes):len(bytes)]})
			rrs = append(rrs, &as[len(as)-1])
		} else {
			ip := addr.As16()
			bytes = append(bytes, ip[:]...)
			aaaas = append(aaaas, dns.AAAA{Hdr: b.header(owner, dns.TypeAAAA), AAAA: bytes[from:len(bytes):len(bytes)]})
			rrs = append(rrs, &aaaas[len(aaaas)-1])
		}
	}
	return rrs
}

func (b *builder) srv(weight, number uint16, host string) dns.RR {
	return &dns.SRV{Hdr: b.header(b.question, dns.TypeSRV), Weight: weight, Port: number, Target: host}
}

func (b *builder) header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: b.ttl}
}
