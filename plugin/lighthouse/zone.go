package lighthouse

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
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
	// services by "service.namespace".
	services table[*service]
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
	kind kind
	// addresses are the clusterset IPs that may be answered.
	addresses []netip.Addr
	// ports of the ServiceImport.
	ports []port
	// parts of the exporting clusters, sorted by cluster ID.
	parts []*part
	// repeats tells that two backends share an address, so that answers have to look for duplicates.
	repeats bool
	// turns outlive the record: a change of a service must not send everybody back to the first cluster.
	turns *turns
}

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

	// Of a headless service: the ready backends, sorted by (rank, name), and the ports that any of them has.
	backends []backend

	// Of the cluster-address slices: whether there is one, the addresses of every family, and of those the ready ones.
	hasAddress bool
	addresses  []netip.Addr
	ready      []netip.Addr
	// weight in SRV records, and share of the answers of a DNS-balanced service.
	weight uint16
	share  uint16

	// ports that the cluster has: those of its backends or of its own address.
	ports []port
}

// backend is one ready endpoint of a headless service, known by one name.
type backend struct {
	// rank is a hash of the name. Answers that are cut to max_answers keep the lowest ranks, so that a backend that comes
	// or goes changes at most one of the others, and every replica cuts alike.
	rank      uint32
	weight    uint16
	name      string
	addresses []netip.Addr
	ports     []port
}

// find gives the backend of that name, nil without one.
func (p *part) find(name string) *backend {
	i, found := slices.BinarySearchFunc(p.backends, &backend{rank: rankOf(name), name: name}, func(b backend, wanted *backend) int {
		return compareRank(&b, wanted)
	})
	if !found {
		return nil
	}
	return &p.backends[i]
}

// compareRank is the order of backends everywhere.
func compareRank(a, b *backend) int {
	if a.rank != b.rank {
		return cmp.Compare(a.rank, b.rank)
	}
	return cmp.Compare(a.name, b.name)
}

// rankOf is FNV-1a with a mixing step at the end: hosts that are numbered ("web-1", "web-2") differ only in the last
// bytes, and plain FNV would keep them side by side.
func rankOf(name string) uint32 {
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

// dashed is the name of a backend that has no hostname.
func dashed(addr netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())
}

// equal tells whether two records of a service give the same answers.
func (s *service) equal(o *service) bool {
	return s.kind == o.kind && slices.Equal(s.addresses, o.addresses) && slices.Equal(s.ports, o.ports) &&
		slices.EqualFunc(s.parts, o.parts, (*part).equal)
}

func (p *part) equal(o *part) bool {
	return p.cluster == o.cluster && p.hasAddress == o.hasAddress && p.weight == o.weight && p.share == o.share &&
		slices.Equal(p.addresses, o.addresses) && slices.Equal(p.ready, o.ready) && slices.Equal(p.ports, o.ports) &&
		slices.EqualFunc(p.backends, o.backends, func(a, b backend) bool {
			return a.name == b.name && a.weight == b.weight && slices.Equal(a.addresses, b.addresses) && slices.Equal(a.ports, b.ports)
		})
}
