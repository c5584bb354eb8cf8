package lighthouse

import (
	"iter"
	"slices"
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

// answer is a name found below a namespace. part and host stand where the name holds a cluster or a host.
type answer struct {
	kind           answerKind
	service        *service
	part           *part
	host           string
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
			if p := s.part(clusterID); p != nil && p.has(host) {
				return answer{kind: answerBackend, service: s, part: p, host: host}
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

// candidates gives the clusters between which the answers of a DNS-balanced service take turns: none, or the local one
// alone, or remote ones.
func (v *view) candidates(a *answer, qtype uint16) iter.Seq[*part] {
	fits := func(p *part) bool {
		switch qtype {
		case dns.TypeA:
			return p.ready.fours > 0
		case dns.TypeAAAA:
			return p.ready.fours < p.ready.count
		}
		return p.ready.count > 0 && (a.kind != answerPort || hasPort(p.ports, a.port, a.protocol))
	}
	return func(yield func(*part) bool) {
		// "The local cluster's address while it exports the service and is ready: always, never balanced away", and "a local
		// cluster that is ready but lacks the asked family gives NODATA". For a named port, others may have what it lacks.
		if local := a.service.part(v.local); v.local != "" && local != nil && local.ready.count > 0 {
			if fits(local) {
				yield(local)
				return
			}
			if qtype != dns.TypeSRV {
				return
			}
		}
		remote := func(p *part) bool { return v.reachable(p.cluster) && p.cluster.id != v.local && fits(p) }
		// "0 takes the cluster out while another is left."
		weighted := slices.ContainsFunc(a.service.parts, func(p *part) bool { return p.share > 0 && remote(p) })
		for _, p := range a.service.parts {
			if (p.share > 0 || !weighted) && remote(p) && !yield(p) {
				return
			}
		}
	}
}

// choose takes a DNS-balanced service's turn: the cluster that this answer is about, nil for none.
func (v *view) choose(a *answer, qtype uint16) *part {
	var total, n, divisor uint32
	var only *part
	for p := range v.candidates(a, qtype) {
		total, n, only = total+uint32(p.share), n+1, p
		divisor = gcd(divisor, uint32(p.share))
	}
	if n < 2 {
		return only
	}
	turns := a.service.turns
	turn := &turns.srv
	switch qtype {
	case dns.TypeA:
		turn = &turns.a
	case dns.TypeAAAA:
		turn = &turns.aaaa
	}
	equal := total == 0
	if equal {
		total, divisor = n, 1
	}
	total /= divisor // 100 to 100 is 1 to 1: strictly in turn
	at := spread(turn.Add(1)-1, total)
	for p := range v.candidates(a, qtype) {
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
