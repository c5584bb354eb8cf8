package lighthouse

import (
	"maps"
	"slices"

	"github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"
)

// transferBatch is how many services a batch of a zone transfer holds: enough that the channel costs nothing, few enough
// that the zone never stands in memory as records.
const transferBatch = 64

// Transfer implements transfer.Transferer. It sends what queries would be answered with, at one moment; of a DNS-balanced
// service, the answers of every cluster that takes turns. The serial is that of the SOA record, and takes part in RFC 1982's
// arithmetic.
func (l *Lighthouse) Transfer(zoneName string, serial uint32) (<-chan []dns.RR, error) {
	if !slices.Contains(l.zones, zoneName) {
		return nil, transfer.ErrNotAuthoritative
	}
	z := l.world.current.Load()
	if !z.synced {
		return nil, errNotSynced
	}
	p := reply{zone: zoneName, names: &l.authorities, serial: z.serial, zoneTTL: l.ttl, ttl: l.ttl}
	batches := make(chan []dns.RR, 1)
	soa := p.soa(zoneName)
	if serial != 0 && int32(serial-z.serial) >= 0 {
		batches <- []dns.RR{&soa}
		close(batches)
		return batches, nil
	}
	go func() {
		defer close(batches)
		batches <- append([]dns.RR{&soa, p.ns(zoneName), versionRecord(below("dns-version.", zoneName))},
			l.nsAddresses(&p, below(nsName, zoneName), dns.TypeNone)...)
		if z.reach.suspect {
			p.ttl = min(p.ttl, 1)
		}
		var keys []string
		for key, s := range z.services.all() {
			if _, namespace := cutFirst(key); l.serves(namespace) && s.selected.has(l.selector) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		v := l.view(z)
		for some := range slices.Chunk(keys, transferBatch) {
			var batch []dns.RR
			for _, key := range some {
				s := z.services.get(key)
				p.canonical = below(key+".svc.", zoneName)
				batch = v.appendRecords(batch, &p, s)
			}
			batches <- batch
		}
		last := p.soa(zoneName)
		batches <- []dns.RR{&last}
	}()
	return batches, nil
}

// appendRecords appends every record at and below a service's name.
func (v *view) appendRecords(rrs []dns.RR, p *reply, s *service) []dns.RR {
	found := &content{}
	query := &dns.Msg{Question: []dns.Question{{Qclass: dns.ClassINET}}}
	p.question = &query.Question[0]
	for _, left := range slices.Sorted(maps.Keys(v.names(s))) {
		p.question.Name = p.canonical
		if left != "" {
			p.question.Name = left + "." + p.canonical
		}
		a := v.find(s, left)
		if a.kind == answerNone || a.kind == answerHidden {
			continue
		}
		for _, qtype := range [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV} {
			p.question.Qtype = qtype
			from := len(rrs)
			add := func() {
				for _, rr := range p.message(query, found).Answer {
					if !slices.ContainsFunc(rrs[from:], func(o dns.RR) bool { return dns.IsDuplicate(rr, o) }) {
						rrs = append(rrs, rr)
					}
				}
			}
			turns := s.kind == kindBalanced && a.part == nil
			if turns && (a.kind == answerService || a.kind == answerPort && qtype == dns.TypeSRV) {
				for part := range v.candidates(&a, qtype) {
					found.reset()
					found.chosen(&a, qtype, part)
					add()
				}
				continue
			}
			found.reset()
			found.collect(v, &a, qtype, p.canonical)
			rrs = append(rrs, p.message(query, found).Answer...)
		}
	}
	return rrs
}

// names gives what may stand left of a service for a name to have records: nothing, ports, clusters, hosts. find knows
// which of them do.
func (v *view) names(s *service) map[string]struct{} {
	names := map[string]struct{}{"": {}}
	addPorts := func(ports []port, below string) {
		for _, p := range ports {
			if p.name == "" {
				continue
			}
			names["_"+p.name+"._"+p.protocol+below] = struct{}{}
			if v.clusterNames {
				names[p.name+"."+p.protocol+below] = struct{}{}
			}
		}
	}
	addPorts(s.ports, "")
	for _, p := range s.parts {
		addPorts(p.ports, "")
		if v.clusterNames {
			names[p.cluster.id] = struct{}{}
			addPorts(p.ports, "."+p.cluster.id)
		}
		for _, slice := range p.backends {
			for i := range slice.backends {
				names[string(slice.backends[i].appendName(nil))+"."+p.cluster.id] = struct{}{}
			}
		}
	}
	return names
}
