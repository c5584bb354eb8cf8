package lighthouse

import (
	"context"
	"errors"
	"net"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/fall"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// schemaVersion and its TTL are those of the Kubernetes multi-cluster DNS specification.
	schemaVersion    = "1.0.0"
	schemaVersionTTL = 28800

	nsName = "ns.dns."
)

// Lighthouse answers the clusterset zones of one server block.
type Lighthouse struct {
	Next plugin.Handler

	config
	world *world
	// serverAddresses are the addresses of ns.dns.<zone>: set when the server starts, before it answers.
	serverAddresses []net.IP
	counters        counters
}

var (
	errNotSynced = plugin.Error(pluginName, errors.New("not all objects have been read from the API server yet"))
)

// Name implements plugin.Handler.
func (l *Lighthouse) Name() string { return pluginName }

// ServeDNS implements plugin.Handler. Each way out names the rule behind it.
func (l *Lighthouse) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	qname, qtype := state.Name(), state.QType()
	zoneName := matchZone(l.zones, qname)
	if zoneName == "" {
		return plugin.NextOrFailure(pluginName, l.Next, ctx, w, r)
	}
	if qtype == dns.TypeAXFR || qtype == dns.TypeIXFR {
		return dns.RcodeRefused, nil
	}

	z := l.world.current.Load()
	v := view{zone: z, local: l.clusterID, clusterNames: l.clusterNames, maxAnswers: l.maxAnswers}
	if v.local == "" {
		v.local = z.localID
	}
	q := parseName(qname, zoneName)
	m := reply{authority: zoneName, serial: z.serial, zoneTTL: l.ttl, builder: builder{question: r.Question[0].Name, ttl: l.ttl}}
	if z.reach.suspect && q.place == placeService {
		m.ttl = min(m.ttl, 1)
	}

	switch q.place {
	case placeNowhere:
		// "<svc>.<ns>.pod and anything else: NXDOMAIN."
		return l.nameError(ctx, state, &m, true)

	case placeVersion:
		if qtype == dns.TypeTXT {
			m.answer = []dns.RR{&dns.TXT{
				Hdr: dns.RR_Header{Name: m.question, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: schemaVersionTTL},
				Txt: []string{schemaVersion},
			}}
		}
		return l.send(state, &m, kindLabelApex)

	case placeApex:
		switch qtype {
		case dns.TypeSOA:
			m.answer = []dns.RR{m.soa(m.question)}
		case dns.TypeNS:
			m.answer = []dns.RR{&dns.NS{Hdr: m.header(m.question, dns.TypeNS), Ns: below(nsName, zoneName)}}
			m.extra = l.nsRecords(&m, below(nsName, zoneName), dns.TypeNone)
		}
		return l.send(state, &m, kindLabelApex)

	case placeNS:
		if qtype == dns.TypeA || qtype == dns.TypeAAAA {
			m.answer = l.nsRecords(&m, m.question, qtype)
		}
		return l.send(state, &m, kindLabelApex)

	case placeNSParent, placeRoot:
		// "svc.<zone>: NODATA", and "every ancestor of an existing name is NODATA".
		return l.send(state, &m, kindLabelApex)
	}

	// "Before the first sync: everything below svc is SERVFAIL and never falls through."
	if !z.synced {
		l.counters.count(kindLabelUnknown, dns.RcodeServerFailure)
		return dns.RcodeServerFailure, errNotSynced
	}
	if _, exists := z.namespaces.get(q.namespace); !exists || !l.serves(q.namespace) {
		// "Missing namespace or service: NXDOMAIN."
		return l.nameError(ctx, state, &m, true)
	}
	if q.place == placeNamespace {
		// "An existing namespace: NODATA."
		return l.send(state, &m, kindLabelApex)
	}
	s, exists := z.services.get(q.key)
	if !exists {
		return l.nameError(ctx, state, &m, true)
	}
	a := v.find(s, q.left)
	switch a.kind {
	case answerNone:
		return l.nameError(ctx, state, &m, true)
	case answerHidden:
		return l.nameError(ctx, state, &m, false)
	}
	switch qtype {
	case dns.TypeA, dns.TypeAAAA:
		m.answer = v.addressRecords(&m.builder, a, m.question, qtype)
	case dns.TypeSRV:
		m.answer, m.extra = v.serviceRecords(&m.builder, a, below(q.key+".svc.", zoneName))
	}
	return l.send(state, &m, labelOf(a))
}

// reply is what an answer is built from before it becomes a message.
type reply struct {
	builder
	authority     string // the zone
	serial        uint32
	zoneTTL       uint32 // of SOA and of negative answers
	answer, extra []dns.RR
}

// soa is the zone's SOA record; its last field is the TTL of negative answers.
func (m *reply) soa(owner string) dns.RR {
	return &dns.SOA{
		Hdr:     dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: m.zoneTTL},
		Ns:      below(nsName, m.authority),
		Mbox:    below("hostmaster.", m.authority),
		Serial:  m.serial,
		Refresh: 7200,
		Retry:   1800,
		Expire:  86400,
		Minttl:  m.zoneTTL,
	}
}

// nsRecords gives the server's addresses under a name; of one type, or with TypeNone of both.
func (l *Lighthouse) nsRecords(m *reply, owner string, qtype uint16) []dns.RR {
	var rrs []dns.RR
	for _, ip := range l.serverAddresses {
		if four := ip.To4(); four != nil {
			if qtype != dns.TypeAAAA {
				rrs = append(rrs, &dns.A{Hdr: m.header(owner, dns.TypeA), A: four})
			}
		} else if qtype != dns.TypeA {
			rrs = append(rrs, &dns.AAAA{Hdr: m.header(owner, dns.TypeAAAA), AAAA: ip})
		}
	}
	return rrs
}

// nameError answers NXDOMAIN, or hands the question on where the Corefile wants that and it may be.
func (l *Lighthouse) nameError(ctx context.Context, state request.Request, m *reply, may bool) (int, error) {
	if may && l.fall.Through(state.Name()) {
		return plugin.NextOrFailure(pluginName, l.Next, ctx, state.W, state.Req)
	}
	return l.write(state, m, dns.RcodeNameError, kindLabelNone)
}

// send answers with the records there are; none is NODATA.
func (l *Lighthouse) send(state request.Request, m *reply, kind kindLabel) (int, error) {
	return l.write(state, m, dns.RcodeSuccess, kind)
}

func (l *Lighthouse) write(state request.Request, m *reply, rcode int, kind kindLabel) (int, error) {
	msg := new(dns.Msg)
	msg.SetRcode(state.Req, rcode)
	msg.Authoritative = true
	msg.Compress = true
	msg.Answer, msg.Extra = m.answer, m.extra
	if len(m.answer) == 0 {
		msg.Ns = []dns.RR{m.soa(m.authority)}
	}
	// "A reply too large even for TCP loses its glue first." Below that, size is the server's business; few records can
	// not come near it.
	if len(m.answer) > 200 && len(m.extra) > 0 && msg.Len() > dns.MaxMsgSize-64 {
		msg.Extra = nil
	}
	l.counters.count(kind, rcode)
	if err := state.W.WriteMsg(msg); err != nil {
		return dns.RcodeServerFailure, err
	}
	return dns.RcodeSuccess, nil
}

// Ready implements ready.Readiness. A cluster without the MCS API, or without rights to it, has SERVFAIL in this zone, and
// is ready all the same: its pods must not lose the rest of their DNS over it.
func (l *Lighthouse) Ready() bool { return l.world.current.Load().settled }

// Metadata implements metadata.Provider.
func (l *Lighthouse) Metadata(ctx context.Context, state request.Request) context.Context {
	zoneName := matchZone(l.zones, state.Name())
	if zoneName == "" {
		return ctx
	}
	q := parseName(state.Name(), zoneName)
	if q.namespace == "" {
		return ctx
	}
	set := func(label, value string) {
		metadata.SetValueFunc(ctx, pluginName+"/"+label, func() string { return value })
	}
	set("namespace", q.namespace)
	set("service", q.service)
	z := l.world.current.Load()
	s, exists := z.services.get(q.key)
	if !exists || !z.synced || !l.serves(q.namespace) {
		return ctx
	}
	v := view{zone: z, local: l.clusterID, clusterNames: l.clusterNames, maxAnswers: l.maxAnswers}
	a := v.find(s, q.left)
	set("kind", labelOf(a).String())
	if a.part != nil {
		set("cluster", a.part.cluster.id)
	}
	if a.backend != nil {
		set("hostname", a.backend.name)
	}
	if a.kind == answerPort {
		set("port", a.port)
		set("protocol", a.protocol)
	}
	return ctx
}

// config is what the stanza says.
type config struct {
	zones        plugin.Zones
	clusterID    string
	ttl          uint32
	fall         fall.F
	namespaces   map[string]struct{} // nil for all
	clusterNames bool
	maxAnswers   int
}

func (c *config) serves(namespace string) bool {
	if c.namespaces == nil {
		return true
	}
	_, found := c.namespaces[namespace]
	return found
}

// kindLabel is the metrics' word for what a name was.
type kindLabel int

const (
	kindLabelNone kindLabel = iota
	kindLabelUnknown
	kindLabelApex
	kindLabelIP
	kindLabelBalanced
	kindLabelHeadless
	kindLabelCluster
	kindLabelBackend
	kindLabels
)

func (k kindLabel) String() string {
	return [kindLabels]string{"none", "unknown", "apex", "clustersetip", "balanced", "headless", "cluster", "backend"}[k]
}

func labelOf(a answer) kindLabel {
	switch {
	case a.service == nil:
		return kindLabelNone
	case a.backend != nil:
		return kindLabelBackend
	case a.part != nil:
		return kindLabelCluster
	}
	return [...]kindLabel{kindIP: kindLabelIP, kindBalanced: kindLabelBalanced, kindHeadless: kindLabelHeadless}[a.service.kind]
}

// counters are the metrics of every kind and rcode, looked up once: a lookup by label is a lock and a hash.
type counters [kindLabels][3]prometheus.Counter

func newCounters() (c counters) {
	for k := range c {
		for i, rcode := range []string{"NOERROR", "NXDOMAIN", "SERVFAIL"} {
			c[k][i] = answersTotal.WithLabelValues(kindLabel(k).String(), rcode)
		}
	}
	return c
}

func (c *counters) count(k kindLabel, rcode int) {
	switch rcode {
	case dns.RcodeSuccess:
		c[k][0].Inc()
	case dns.RcodeNameError:
		c[k][1].Inc()
	default:
		c[k][2].Inc()
	}
}
