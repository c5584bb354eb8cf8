package lighthouse

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/miekg/dns"
)

// content is what one reply says of a name, before it takes the form of a message (message.go) or of bytes (packed.go).
// It points into the zone, or into the room that belongs to it; making it allocates nothing once the room has grown.
type content struct {
	// addresses of an A or AAAA reply, all of one family.
	addresses []netip.Addr
	// services of an SRV reply, and the names that they point at.
	services []serviceRecord
	targets  []target

	room    []netip.Addr
	merge   merge
	seen    map[netip.Addr]struct{}
	packing []byte
}

// serviceRecord is an SRV record; its target is an index into targets.
type serviceRecord struct {
	weight, number uint16
	target         int
}

// target is a name that SRV records point at: that of the service, or where part is set of a cluster, or of a backend.
type target struct {
	part    *part
	backend *backend
	// addresses are the glue.
	addresses []netip.Addr
	// at is where the name stands in a packed reply.
	at int
}

var contentPool = sync.Pool{New: func() any { return &content{packing: make([]byte, 0, 4096)} }}

// reset empties r, and lets go of the zone.
func (r *content) reset() {
	r.merge.clear()
	clear(r.targets)
	r.addresses, r.services, r.targets, r.room = nil, r.services[:0], r.targets[:0], r.room[:0]
}

// release gives r back. Nothing of it may be used after that.
func (r *content) release() {
	r.reset()
	contentPool.Put(r)
}

// collect fills in the records of a name. canonical is the service's own name.
func (r *content) collect(v *view, a *answer, qtype uint16, canonical string) {
	switch {
	case a.kind == answerEmpty:
	case qtype == dns.TypeSRV:
		if a.kind == answerBackend {
			return
		}
		if a.service.kind == kindHeadless {
			r.backendServices(v, a, canonical)
		} else {
			r.ownServices(v, a)
		}
	case qtype != dns.TypeA && qtype != dns.TypeAAAA, a.kind == answerPort:
	case a.service.kind == kindHeadless:
		r.backendAddresses(v, a, qtype)
	case a.kind == answerCluster:
		r.addresses = a.part.addresses.of(qtype == dns.TypeA)
	case a.service.kind == kindIP:
		r.addresses = a.service.addresses.of(qtype == dns.TypeA)
	default:
		if p := v.choose(a, qtype); p != nil {
			r.chosen(a, qtype, p)
		}
	}
}

// ownServices gives the SRV records of a service that is not headless, or of one cluster's part in it.
func (r *content) ownServices(v *view, a *answer) {
	switch {
	case a.part != nil:
		r.addService(a, a.part.weight, a.part.ports, target{part: a.part, addresses: a.part.addresses.all()})
	case a.service.kind == kindIP:
		r.addService(a, defaultWeight, a.service.ports, target{addresses: a.service.addresses.all()})
	default:
		if p := v.choose(a, dns.TypeSRV); p != nil {
			r.chosen(a, dns.TypeSRV, p)
		}
	}
}

// chosen adds what a DNS-balanced service is answered with once a cluster is chosen.
func (r *content) chosen(a *answer, qtype uint16, p *part) {
	if qtype == dns.TypeSRV {
		r.addService(a, p.weight, p.ports, target{addresses: p.ready.all()})
		return
	}
	r.addresses = p.ready.of(qtype == dns.TypeA)[:1] // "one address an answer"
}

// addService adds a target, and a record for each of its ports that the question is about.
func (r *content) addService(a *answer, weight uint16, ports []port, t target) {
	if r.addPorts(a, weight, ports, len(r.services)) {
		r.targets = append(r.targets, t)
	}
}

// addPorts adds a record for each of ports that the question is about and that has none yet from that index of services
// on, and tells whether there are any.
func (r *content) addPorts(a *answer, weight uint16, ports []port, from int) bool {
	for i := range ports {
		p := &ports[i]
		if a.kind == answerPort && (p.name != a.port || p.protocol != a.protocol) {
			continue
		}
		if !slices.ContainsFunc(r.services[from:], func(s serviceRecord) bool { return s.number == p.number }) {
			r.services = append(r.services, serviceRecord{weight, p.number, len(r.targets)})
		}
	}
	return len(r.services) > from
}

// backendAddresses gives the addresses of one family of the backends that a name stands for.
func (r *content) backendAddresses(v *view, a *answer, qtype uint16) {
	four := qtype == dns.TypeA
	r.addresses = r.room[:0]
	repeats := r.merge.begin(v, a, qtype)
	// Of a single slice that fits there is nothing to merge.
	if len(r.merge.heads) == 1 && len(r.merge.heads[0].left) <= v.maxAnswers {
		for i := range r.merge.heads[0].left {
			if b := &r.merge.heads[0].left[i]; b.address.Is4() == four {
				r.addresses = append(r.addresses, b.address)
			}
		}
	} else {
		for n := 0; n < v.maxAnswers && r.merge.next(); n++ {
			for _, m := range r.merge.group {
				if m.backend.address.Is4() == four {
					r.addresses = append(r.addresses, m.backend.address)
				}
			}
		}
	}
	r.room = r.addresses
	if repeats {
		r.addresses = r.unique(r.addresses)
	}
}

// unique keeps the first of each address, in place.
func (r *content) unique(list []netip.Addr) []netip.Addr {
	if len(list) < 2 {
		return list
	}
	if r.seen == nil {
		r.seen = map[netip.Addr]struct{}{}
	}
	clear(r.seen)
	return slices.DeleteFunc(list, func(addr netip.Addr) bool {
		_, found := r.seen[addr]
		r.seen[addr] = struct{}{}
		return found
	})
}

// maxName is the longest name that DNS can hold, as text with a dot at its end (RFC 1035, 2.3.4).
const maxName = 254

// backendServices gives the SRV records of the backends that a name stands for.
func (r *content) backendServices(v *view, a *answer, canonical string) {
	r.merge.begin(v, a, dns.TypeSRV)
	for n := 0; n < v.maxAnswers && r.merge.next(); {
		group := r.merge.group
		first := group[0]
		before := len(r.services)
		for _, m := range group {
			r.addPorts(a, first.slice.weight, m.slice.ports, before)
		}
		// A, AAAA and SRV of one name are about the same backends: one without ports takes its place as well. Of the name of a
		// port, it is those that have it.
		if len(r.services) > before || a.kind != answerPort {
			n++
		}
		if len(r.services) == before {
			continue
		}
		var room [nameRoom]byte
		if len(first.backend.appendName(room[:0]))+1+len(first.part.cluster.id)+1+len(canonical) > maxName {
			r.services = r.services[:before] // no name in DNS could hold it
			continue
		}
		// IPv4 first, as everywhere.
		from := len(r.room)
		for _, four := range [...]bool{true, false} {
			for _, m := range group {
				if addr := m.backend.address; addr.Is4() == four && !slices.Contains(r.room[from:], addr) {
					r.room = append(r.room, addr)
				}
			}
		}
		r.targets = append(r.targets, target{part: first.part, backend: first.backend, addresses: r.room[from:len(r.room):len(r.room)]})
	}
}

// merge walks over the backends that a headless name stands for, in the order of their ranks: those of the named cluster,
// else of the reachable ones, slice by slice. All that slices say of one backend comes at once, as a group.
type merge struct {
	// heads are what is left of each slice, a heap with the lowest rank on top.
	heads []head
	group []member
	used  int // heads there were at the start
}

type head struct {
	part  *part
	slice *sliceObject
	left  []backend
}

type member struct {
	part    *part
	slice   *sliceObject
	backend *backend
}

// begin sets the walk to its start, and tells whether an address may come more than once. Where nothing will be cut off,
// the slices that have no address of the family asked for are left out.
func (m *merge) begin(v *view, a *answer, qtype uint16) (repeats bool) {
	backends := 0
	for _, p := range a.service.parts {
		if p != a.part && (a.part != nil || !v.reachable(p.cluster)) {
			continue
		}
		for _, slice := range p.backends {
			left := slice.backends
			if a.host != "" {
				left = slice.find(rankOf(a.host), a.host)
			}
			if len(left) > 0 {
				m.heads = append(m.heads, head{p, slice, left})
				backends += len(left)
			}
		}
	}
	m.used = len(m.heads)
	if backends <= v.maxAnswers && qtype != dns.TypeSRV {
		m.heads = slices.DeleteFunc(m.heads, func(h head) bool {
			return qtype == dns.TypeA && !h.slice.fours || qtype == dns.TypeAAAA && !h.slice.sixes
		})
	}
	for i := len(m.heads)/2 - 1; i >= 0; i-- {
		m.sift(i)
	}
	return len(m.heads) > 1 || len(m.heads) == 1 && m.heads[0].slice.repeats
}

// next walks on to the next backend, which is then group, and tells whether there is one.
func (m *merge) next() bool {
	m.group = m.group[:0]
	for len(m.heads) > 0 {
		top := &m.heads[0]
		if len(m.group) > 0 && (m.group[0].part != top.part || compareRank(m.group[0].backend, &top.left[0]) != 0) {
			break
		}
		m.group = append(m.group, member{top.part, top.slice, &top.left[0]})
		if top.left = top.left[1:]; len(top.left) == 0 {
			last := len(m.heads) - 1
			m.heads[0] = m.heads[last]
			m.heads = m.heads[:last]
		}
		m.sift(0)
	}
	return len(m.group) > 0
}

// sift restores the order of the heap where only heads[i] may be too high up.
func (m *merge) sift(i int) {
	for {
		least := i
		for _, child := range [...]int{2*i + 1, 2*i + 2} {
			if child < len(m.heads) && m.heads[child].before(&m.heads[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heads[i], m.heads[least] = m.heads[least], m.heads[i]
		i = least
	}
}

func (h *head) before(o *head) bool {
	if c := compareRank(&h.left[0], &o.left[0]); c != 0 {
		return c < 0
	}
	if h.part != o.part {
		return h.part.cluster.id < o.part.cluster.id
	}
	return h.slice.name < o.slice.name
}

// clear lets go of the zone.
func (m *merge) clear() {
	clear(m.heads[:m.used])
	clear(m.group[:cap(m.group)])
	m.heads, m.group, m.used = m.heads[:0], m.group[:0], 0
}
