package lighthouse

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

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
)

// Lighthouse answers the clusterset zones of one server block.
type Lighthouse struct {
	Next plugin.Handler

	config
	world *world
	// serverAddresses are the addresses of ns.dns.<zone>: set when the server starts, before it answers.
	serverAddresses []net.IP
	counters        counters
	authorities     authorities
}

var (
	errNotSynced = plugin.Error(pluginName, errors.New("not all objects have been read from the API server yet"))
)

// Name implements plugin.Handler.
func (l *Lighthouse) Name() string { return pluginName }

// ServeDNS implements plugin.Handler. Each way out names the rule behind it.
//
// Its frame is kept small, and so are those below it: every packet has a goroutine of its own, whose stack has to grow to
// what they take together.
func (l *Lighthouse) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if len(r.Question) == 0 {
		return plugin.NextOrFailure(pluginName, l.Next, ctx, w, r)
	}
	qname, qtype := strings.ToLower(r.Question[0].Name), r.Question[0].Qtype
	zoneName := matchZone(l.zones, qname)
	if zoneName == "" {
		return plugin.NextOrFailure(pluginName, l.Next, ctx, w, r)
	}
	if qtype == dns.TypeAXFR || qtype == dns.TypeIXFR {
		return dns.RcodeRefused, nil // the plugin *transfer* asks in another way
	}

	z := l.world.current.Load()
	q := parseName(qname, zoneName)
	p := reply{question: &r.Question[0], zone: zoneName, names: &l.authorities, serial: z.serial, zoneTTL: l.ttl, ttl: l.ttl}

	switch q.place {
	case placeNowhere:
		// "<svc>.<ns>.pod and anything else: NXDOMAIN."
		return l.nameError(ctx, w, r, &p, true)
	case placeApex, placeVersion, placeNS, placeNSParent, placeRoot:
		return l.serveTop(w, r, &p, q.place)
	}

	// "Before the first sync: everything below svc is SERVFAIL and never falls through."
	if !z.synced {
		l.counters.count(kindLabelUnknown, dns.RcodeServerFailure)
		return dns.RcodeServerFailure, errNotSynced
	}
	if q.place == placeNamespace {
		if z.namespaces.get(q.namespace) != nil && l.serves(q.namespace) {
			// "An existing namespace: NODATA."
			return l.send(w, r, &p, kindLabelApex)
		}
		return l.nameError(ctx, w, r, &p, true)
	}
	s := z.services.get(q.key)
	if s == nil || !s.selected.has(l.selector) || !l.serves(q.namespace) {
		// "Missing namespace or service: NXDOMAIN."
		return l.nameError(ctx, w, r, &p, true)
	}
	if z.reach.suspect {
		p.ttl = min(p.ttl, 1)
	}
	p.canonical = qname[len(qname)-canonicalLength(q.key, zoneName):]
	return l.serveService(ctx, w, r, &p, z, s, q.left)
}

// serveService answers for a service that exists.
func (l *Lighthouse) serveService(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, p *reply, z *zone, s *service, left string) (int, error) {
	v := l.view(z)
	a := v.find(s, left)
	switch a.kind {
	case answerNone:
		return l.nameError(ctx, w, r, p, true)
	case answerHidden:
		return l.nameError(ctx, w, r, p, false)
	}
	found := contentPool.Get().(*content)
	defer found.release()
	found.collect(&v, &a, p.question.Qtype, p.canonical)
	return l.write(w, r, p, found, labelOf(&a))
}

// serveTop answers for the names that are there without any service.
func (l *Lighthouse) serveTop(w dns.ResponseWriter, r *dns.Msg, p *reply, place place) (int, error) {
	m := new(message)
	switch qtype := p.question.Qtype; {
	case place == placeVersion && qtype == dns.TypeTXT:
		m.Answer = []dns.RR{versionRecord(p.question.Name)}
	case place == placeApex && qtype == dns.TypeSOA:
		soa := p.soa(p.question.Name)
		m.Answer = []dns.RR{&soa}
	case place == placeApex && qtype == dns.TypeNS:
		m.Answer = []dns.RR{p.ns(p.question.Name)}
		m.Extra = l.nsAddresses(p, below(nsName, p.zone), dns.TypeNone)
	case place == placeNS && (qtype == dns.TypeA || qtype == dns.TypeAAAA):
		m.Answer = l.nsAddresses(p, p.question.Name, qtype)
	}
	if len(m.Answer) == 0 {
		// "svc.<zone>: NODATA", and "every ancestor of an existing name is NODATA".
		return l.send(w, r, p, kindLabelApex)
	}
	l.counters.count(kindLabelApex, dns.RcodeSuccess)
	if err := w.WriteMsg(m.begin(r, dns.RcodeSuccess)); err != nil {
		return dns.RcodeServerFailure, err
	}
	return dns.RcodeSuccess, nil
}

// versionRecord tells the version of the specification.
func versionRecord(owner string) dns.RR {
	return &dns.TXT{
		Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: schemaVersionTTL},
		Txt: []string{schemaVersion},
	}
}

// nsAddresses gives the server's addresses under a name; of one type, or with TypeNone of both.
func (l *Lighthouse) nsAddresses(p *reply, owner string, qtype uint16) []dns.RR {
	var wanted []netip.Addr
	for _, ip := range l.serverAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			if addr = addr.Unmap(); qtype == dns.TypeNone || addr.Is4() == (qtype == dns.TypeA) {
				wanted = append(wanted, addr)
			}
		}
	}
	var b addressRecords
	b.count(wanted)
	return b.appendTo(nil, p, owner, wanted)
}

// nameError answers NXDOMAIN, or hands the question on where the Corefile wants that and it may be.
func (l *Lighthouse) nameError(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, p *reply, may bool) (int, error) {
	if may && len(l.fall.Zones) > 0 && l.fall.Through(strings.ToLower(p.question.Name)) {
		return plugin.NextOrFailure(pluginName, l.Next, ctx, w, r)
	}
	p.rcode = dns.RcodeNameError
	return l.send(w, r, p, kindLabelNone)
}

// send answers without records: NODATA, or with that rcode NXDOMAIN.
func (l *Lighthouse) send(w dns.ResponseWriter, r *dns.Msg, p *reply, kind kindLabel) (int, error) {
	found := contentPool.Get().(*content)
	defer found.release()
	return l.write(w, r, p, found, kind)
}

// write sends the reply, as bytes where that may be.
func (l *Lighthouse) write(w dns.ResponseWriter, r *dns.Msg, p *reply, found *content, kind kindLabel) (int, error) {
	l.counters.count(kind, p.rcode)
	var err error
	if to, size, opt, ok := packed(w, r); ok {
		found.packing = p.pack(found.packing[:0], r, found, size, opt)
		_, err = to.Write(found.packing)
	} else {
		err = w.WriteMsg(p.message(r, found))
	}
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	return dns.RcodeSuccess, nil
}

// canonicalLength is the length of <key>.svc.<zone>.
func canonicalLength(key, zone string) int {
	if zone == "." {
		return len(key) + len(".svc.")
	}
	return len(key) + len(".svc.") + len(zone)
}

// view is the zone with the options of this stanza.
func (l *Lighthouse) view(z *zone) view {
	v := view{zone: z, local: l.clusterID, clusterNames: l.clusterNames, maxAnswers: l.maxAnswers}
	if v.local == "" {
		v.local = z.localID
	}
	return v
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
	s := z.services.get(q.key)
	if s == nil || !s.selected.has(l.selector) || !z.synced || !l.serves(q.namespace) {
		return ctx
	}
	v := l.view(z)
	a := v.find(s, q.left)
	set("kind", labelOf(&a).String())
	if a.part != nil {
		set("cluster", a.part.cluster.id)
	}
	if a.host != "" {
		set("hostname", a.host)
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
	selector     selection           // the bit of the stanza's label selector, 0 without one
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

func labelOf(a *answer) kindLabel {
	switch {
	case a.service == nil:
		return kindLabelNone
	case a.host != "":
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
