package lighthouse

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
)

// zone is everything that is served at one moment. It never changes once it is published: a change makes another zone,
// which shares with this one all that the change did not touch.
type zone struct {
	// synced tells that every kind of object has been read; before that, nobody can say that a name does not exist.
	synced bool
	// settled tells that nothing is worth waiting for: what has not been read has been refused.
	settled bool
	// serial of the SOA record; it rises with every change of records.
	serial uint32
	// services by "service.namespace", of namespaces that exist.
	services table[service]
	// namespaces that exist in this cluster.
	namespaces table[struct{}]
	// localID is the cluster ID that the ClusterProperty tells, "" without one.
	localID string
	reach   reach
}

// reach tells which clusters can be reached. It stands apart from the services, so that a cluster that dies is out of
// every answer with one swap of a pointer, whatever the number of its backends.
type reach struct {
	// everything is reachable where no Gateway reports.
	everything bool
	// up by cluster.index; clusters beyond its end are not reachable.
	up []bool
	// suspect tells that all remotes went at once, that this cluster is the likelier one to be cut off, and that up is
	// what it was before.
	suspect bool
}

func (r *reach) has(c *cluster) bool {
	return r.everything || c.index < len(r.up) && r.up[c.index]
}

// cluster is a cluster ID. There is one value for each ID, for as long as the process lives.
type cluster struct {
	id    string
	index int
}

// kind of a service, as far as DNS tells them apart.
type kind int

const (
	kindIP       kind = iota // type ClusterSetIP, with IPs
	kindBalanced             // type ClusterSetIP without usable IPs: balanced by our answers
	kindHeadless
)

// service is the record of one imported service. It holds every cluster's part, reachable or not: which of them are
// answered is settled by the query, against the zone's reach.
type service struct {
	// The first three are all that most queries read. They stand together, behind the name: see link.

	kind kind
	// selected by which of the source's label selectors, a bit each.
	selected selection
	// addresses are the clusterset IPs that may be answered.
	addresses families

	// parts of the exporting clusters, sorted by cluster ID.
	parts []*part
	// ports of the ServiceImport.
	ports []port
	// turns of a DNS-balanced service outlive the record: a change of it must not send everybody back to the first cluster.
	turns *turns
}

// families are addresses, the IPv4 ones first: an answer is one end of them, as it stands.
type families struct {
	count, fours int32
	// few has them where there are no more than one of a family, as mostly; then they lie where the families do.
	few  [2]netip.Addr
	many []netip.Addr
}

// newFamilies takes over list and puts it in order; addresses of one family stay in the order they had.
func newFamilies(list []netip.Addr) families {
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	f := families{count: int32(len(list))}
	for f.fours < f.count && list[f.fours].Is4() {
		f.fours++
	}
	if copy(f.few[:], list) < len(list) {
		f.many = list
	}
	return f
}

func (f *families) all() []netip.Addr {
	if f.many != nil {
		return f.many
	}
	return f.few[:f.count:f.count]
}

// of gives the addresses of one family.
func (f *families) of(four bool) []netip.Addr {
	if four {
		return f.all()[:f.fours:f.fours]
	}
	return f.all()[f.fours:]
}

func (f *families) equal(o *families) bool { return slices.Equal(f.all(), o.all()) }

// turns count the answers of a DNS-balanced service, each kind of question for itself.
type turns struct{ a, aaaa, srv atomic.Uint32 }

// port as an SRV record tells it. The name, lower-case, may be empty; the protocol is "tcp", "udp" or "sctp".
type port struct {
	name, protocol string
	number         uint16
}

// part is what one cluster contributes to a service.
type part struct {
	cluster *cluster

	// backends of a headless service: the slices that have a ready one, by name.
	backends []*sliceObject

	// Of the cluster-address slices: whether there is one, the addresses of every family, and of those the ready ones.
	hasAddress       bool
	addresses, ready families
	// weight in SRV records, and share of the answers of a DNS-balanced service.
	weight uint16
	share  uint16

	// ports that the cluster has: those of its backends or of its own address.
	ports []port
}

// backend is one address of a ready endpoint of a headless service. What other slices say under the same name, such as
// the address of the other family, belongs to the same backend; an answer puts them together.
type backend struct {
	// rank is a hash of the name. Answers that are cut to max_answers keep the lowest ranks, so that a backend that comes
	// or goes changes at most one of the others, and every replica cuts alike.
	rank uint32
	// hostname, "" where the name is made of the address.
	hostname string
	address  netip.Addr
}

// nameRoom is enough for a label.
const nameRoom = 64

// appendName appends the backend's name to room.
func (b *backend) appendName(room []byte) []byte {
	if b.hostname != "" {
		return append(room, b.hostname...)
	}
	return appendDashed(room, b.address)
}

// named tells whether that is the backend's name.
func (b *backend) named(name string) bool {
	if b.hostname != "" {
		return b.hostname == name
	}
	var room [nameRoom]byte
	return string(appendDashed(room[:0], b.address)) == name
}

// find gives the backends of that name, none where there is no such name.
func (s *sliceObject) find(rank uint32, name string) []backend {
	from, _ := slices.BinarySearchFunc(s.backends, rank, func(b backend, rank uint32) int { return cmp.Compare(b.rank, rank) })
	for ; from < len(s.backends) && s.backends[from].rank == rank; from++ {
		to := from
		for to < len(s.backends) && s.backends[to].rank == rank && s.backends[to].named(name) {
			to++
		}
		if to > from {
			return s.backends[from:to]
		}
	}
	return nil
}

// has tells whether the cluster has a ready backend of that name.
func (p *part) has(name string) bool {
	rank := rankOf(name)
	return slices.ContainsFunc(p.backends, func(s *sliceObject) bool { return len(s.find(rank, name)) > 0 })
}

// compareRank is the order of backends everywhere.
func compareRank(a, b *backend) int {
	if a.rank != b.rank {
		return cmp.Compare(a.rank, b.rank)
	}
	if a.hostname != "" && b.hostname != "" {
		return cmp.Compare(a.hostname, b.hostname)
	}
	var roomA, roomB [nameRoom]byte
	return bytes.Compare(a.appendName(roomA[:0]), b.appendName(roomB[:0]))
}

// rankOf is FNV-1a with a mixing step at the end: hosts that are numbered ("web-1", "web-2") differ only in the last
// bytes, and plain FNV would keep them side by side.
func rankOf[T string | []byte](name T) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	return h
}

// part gives the part of a cluster, nil without one.
func (s *service) part(clusterID string) *part {
	for _, p := range s.parts {
		if p.cluster.id == clusterID {
			return p
		}
	}
	return nil
}

func hasPort(ports []port, name, protocol string) bool {
	return slices.ContainsFunc(ports, func(p port) bool { return p.name == name && p.protocol == protocol })
}

// hasProtocol tells whether a named port of that protocol is among ports: then _protocol is a name with names below it.
func hasProtocol(ports []port, protocol string) bool {
	return slices.ContainsFunc(ports, func(p port) bool { return p.name != "" && p.protocol == protocol })
}

// usable tells whether addr may be answered. A member of the clusterset must not be able to point the others' clients at
// their own loopback or link-local addresses, where the metadata services of clouds live.
func usable(addr netip.Addr) bool {
	return addr.IsValid() && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsLoopback() &&
		!addr.IsMulticast() && !addr.IsLinkLocalUnicast()
}

// parseAddress reads an address, and refuses those that may not be answered.
func parseAddress(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, false
	}
	addr = addr.Unmap() // ::ffff:127.0.0.1 is a loopback address, too
	return addr, usable(addr)
}

// appendDashed appends the name of a backend that has no hostname: its address with dashes for dots and colons.
func appendDashed(room []byte, addr netip.Addr) []byte {
	from := len(room)
	room = addr.AppendTo(room)
	for i, c := range room[from:] {
		if c == '.' || c == ':' {
			room[from+i] = '-'
		}
	}
	return room
}

// equal tells whether two records of a service give the same answers.
func (s *service) equal(o *service) bool {
	return s.kind == o.kind && s.selected == o.selected && s.addresses.equal(&o.addresses) && slices.Equal(s.ports, o.ports) &&
		slices.EqualFunc(s.parts, o.parts, (*part).equal)
}

func (p *part) equal(o *part) bool {
	return p.cluster == o.cluster && p.hasAddress == o.hasAddress && p.weight == o.weight && p.share == o.share &&
		p.addresses.equal(&o.addresses) && p.ready.equal(&o.ready) && slices.Equal(p.ports, o.ports) &&
		slices.EqualFunc(p.backends, o.backends, (*sliceObject).equal)
}

// equal tells whether two states of a slice give the same answers. Of most slices of a service it is the same state.
func (s *sliceObject) equal(o *sliceObject) bool {
	return s == o || s.weight == o.weight && slices.Equal(s.ports, o.ports) && slices.Equal(s.backends, o.backends)
}

// selection holds a bit for each label selector that stanzas of one source have.
type selection uint64

// has tells whether the stanza with that selector serves what the selection belongs to; without a selector it serves all.
func (s selection) has(selector selection) bool { return selector == 0 || s&selector != 0 }
