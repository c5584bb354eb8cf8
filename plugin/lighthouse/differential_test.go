package lighthouse

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/miekg/dns"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// The plugin and the model are asked the same about worlds drawn by lot, and have to agree.

var (
	differentialQueries = flag.Int("differential.queries", 70_000, "questions that the differential tests ask together")
	differentialSeed    = flag.Uint64("differential.seed", 1, "seed of the differential tests' worlds and questions")
)

// testClusterset is the objects of a world, each a line in the language of parseObjects. It never changes: a change makes
// another one.
type testClusterset []testObject

// testObject is one object.
type testObject struct {
	kind, key string // a clusterset holds one object of a kind and key
	line      string
	parsed    *objects
}

func newTestObject(t testing.TB, key, line string) testObject {
	parsed := parseObjects(t, line)
	for _, s := range parsed.slices {
		s.Name = key
		// The language has no slice without these labels. Pasted into another test, such a slice has an empty label or an
		// ID that is no label, and the answers are the same.
		for _, label := range []string{v1alpha1.LabelServiceName, v1alpha1.LabelSourceCluster} {
			if s.Labels[label] == "" || s.Labels[label] == "-" {
				delete(s.Labels, label)
			}
		}
	}
	kind, _, _ := strings.Cut(line, " ")
	if kind == "address" {
		kind = "slice" // labels may change
	}
	return testObject{kind, key, line, parsed}
}

// with replaces an object or adds it.
func (c testClusterset) with(o testObject) testClusterset { return append(c.without(o.kind, o.key), o) }

func (c testClusterset) without(kind, key string) testClusterset {
	return slices.DeleteFunc(slices.Clone(c), func(o testObject) bool { return o.kind == kind && o.key == key })
}

func (c testClusterset) of(kind string) (list []testObject) {
	for _, o := range c {
		if o.kind == kind {
			list = append(list, o)
		}
	}
	return list
}

// about leaves out what is of other services than the one that a name is of.
func (c testClusterset) about(qname string) testClusterset {
	return slices.DeleteFunc(slices.Clone(c), func(o testObject) bool {
		namespace, name := "", ""
		switch o.kind {
		case "import":
			namespace, name = o.parsed.imports[0].Namespace, o.parsed.imports[0].Name
		case "slice":
			namespace, name = o.parsed.slices[0].Namespace, o.parsed.slices[0].Labels[v1alpha1.LabelServiceName]
		default:
			return false
		}
		return !strings.Contains("."+strings.ToLower(qname), "."+name+"."+namespace+".svc.")
	})
}

func (c testClusterset) objects() *objects {
	all := &objects{}
	for _, o := range c {
		all.namespaces = append(all.namespaces, o.parsed.namespaces...)
		all.imports = append(all.imports, o.parsed.imports...)
		all.slices = append(all.slices, o.parsed.slices...)
		all.gateways = append(all.gateways, o.parsed.gateways...)
		all.local += o.parsed.local
	}
	return all
}

func (c testClusterset) String() string {
	var text strings.Builder
	for _, o := range c {
		fmt.Fprintln(&text, o.line)
	}
	return text.String()
}

// options of the stanza.
type testOptions struct {
	zones        []string
	clusterID    string
	ttl          int
	only         []string
	clusterNames bool
	maxAnswers   int
}

func (o testOptions) String() string {
	return fmt.Sprintf("# zones %v, cluster_id %q, ttl %d, namespaces %v, cluster_names %v, max_answers %d\n",
		o.zones, o.clusterID, o.ttl, o.only, o.clusterNames, o.maxAnswers)
}

func (o testOptions) plugin(w *world) *Lighthouse {
	l := newTestPlugin(w)
	l.zones = plugin.Zones(o.zones)
	l.clusterID = o.clusterID
	l.ttl = uint32(o.ttl)
	l.clusterNames = o.clusterNames
	l.maxAnswers = o.maxAnswers
	if o.only != nil {
		l.namespaces = map[string]struct{}{}
		for _, namespace := range o.only {
			l.namespaces[namespace] = struct{}{}
		}
	}
	return l
}

func (o testOptions) model(c testClusterset, l *Lighthouse) *model {
	return &model{c.objects(), o.zones, o.clusterID, o.ttl, o.only, o.clusterNames, o.maxAnswers, l.serverAddresses}
}

// lots draws worlds and questions. The same seed and number give the same ones.
type lots struct {
	*rand.Rand
	t        testing.TB
	seed     uint64
	number   int
	clusters []string
	weights  map[string]string
	slices   int
	// settled worlds do not change, so that Gateways may say what they like. A world that changes has one more Gateway,
	// with a cable to a cluster that is always up, as long as it has any: the plugin would suspect itself if all went at once.
	settled bool
	crowded bool // one service has many backends
}

func newLots(t testing.TB, number int) *lots {
	seed := *differentialSeed
	l := &lots{Rand: rand.New(rand.NewPCG(seed, uint64(number))), t: t, seed: seed, number: number, weights: map[string]string{}}
	pool := []string{"east", "west", "north.eu", "south.eu", "eu", "tcp", "svc", "b", "a.b", "http.tcp", "db-0.west", "x.north.eu", "0"}
	l.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
	l.clusters = pool[:2+l.IntN(5)]
	return l
}

func pickOne[T any](l *lots, list ...T) T { return list[l.IntN(len(list))] }

// few is a number up to n, seldom 0.
func (l *lots) few(n int) int {
	if l.chance(4) {
		return 0
	}
	return 1 + l.IntN(n)
}

// chance is true p times of a hundred.
func (l *lots) chance(p int) bool { return l.IntN(100) < p }

var (
	testNamespaces = []string{"shop", "empty", "svc", "pod", "tcp", "a", "kube-system", "x-1"}
	testServices   = []string{"web", "db", "svc", "tcp", "a", "b", "dns", "east", "0", "http"}
	testHosts      = []string{"db-0", "db-1", "db-2", "a", "h", "http", "x", "DB-0", "10-1-0-1", "_tcp", "x.y", "bad_host", "-x", "*",
		"", strings.Repeat("l", 63), strings.Repeat("l", 64)}
	testPorts    = []string{"http", "HTTP", "pg", "a", "dns", "db-0", "Dns-Tcp", "east"}
	testUnusable = []string{"127.0.0.1", "::1", "169.254.0.7", "fe80::7", "224.0.0.1", "ff02::1", "ff0e::7", "0.0.0.0", "::", "10.0.0",
		"10.0.0.0.1", "010.0.0.1", "www.example.org", "fd00::7%eth0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "fd00::g"}
)

func (l *lots) options() testOptions {
	o := testOptions{
		zones: pickOne(l, []string{testZone}, []string{testZone}, []string{"mesh.of.all.clusters.example.org."}, []string{testZone, "example.org."},
			[]string{testZone, pickOne(l, "svc.", "db.", "dns.", "shop.svc.") + testZone}, []string{testZone, "."}),
		ttl:          pickOne(l, 5, 5, 0, 3600),
		clusterNames: l.chance(50),
		maxAnswers:   pickOne(l, 500, 500, 500, 1, 2, 4),
	}
	if l.chance(20) {
		o.clusterID = pickOne(l, l.clusters...)
	}
	if l.chance(10) {
		o.only = []string{"shop", "svc", "nowhere"}
	}
	return o
}

func (l *lots) clusterset() (c testClusterset) {
	for _, namespace := range testNamespaces[:l.few(5)] {
		c = c.with(newTestObject(l.t, namespace, "namespace "+namespace))
	}
	if l.chance(60) {
		c = c.with(l.local())
	}
	for range l.few(12) {
		i := l.serviceImport(c.without("slice", ""))
		c = c.with(i)
		for range l.few(4) {
			c = c.with(l.slice(i.key, strings.Contains(i.line, " Headless") != l.chance(10)))
		}
	}
	for range l.IntN(3) {
		c = c.with(l.slice(l.service(c), l.chance(50)))
	}
	if l.crowded {
		c = c.with(newTestObject(l.t, "shop", "namespace shop"))
		c = c.with(newTestObject(l.t, "shop/crowd", "import shop/crowd Headless"))
		for range 2 + l.IntN(8) {
			c = c.with(l.slice("shop/crowd", true))
		}
	}
	if l.chance(60) {
		if !l.settled {
			c = c.with(l.anchor())
		}
		for i := range 1 + l.IntN(3) {
			c = c.with(l.gateway(i))
		}
	}
	return c
}

func (l *lots) local() testObject {
	return newTestObject(l.t, "", "local "+pickOne(l, append([]string{"elsewhere"}, l.clusters...)...))
}

// service is mostly in a namespace that exists.
func (l *lots) service(c testClusterset) string {
	namespace := pickOne(l, testNamespaces...)
	if list := c.of("namespace"); len(list) > 0 && l.chance(95) {
		namespace = pickOne(l, list...).key
	}
	return namespace + "/" + pickOne(l, testServices...)
}

func (l *lots) serviceImport(c testClusterset) testObject {
	key, kind := l.service(c), pickOne(l, " ClusterSetIP", " Headless")
	if list := c.of("slice"); len(list) > 0 && l.chance(80) { // one that has slices, mostly of its kind
		o := pickOne(l, list...)
		s := o.parsed.slices[0]
		key = s.Namespace + "/" + cmp.Or(s.Labels[v1alpha1.LabelServiceName], "web")
		if l.chance(90) && strings.HasPrefix(o.line, "slice") {
			kind = " Headless"
		} else if l.chance(90) {
			kind = " ClusterSetIP"
		}
	}
	if l.chance(2) {
		key = "shop/a.b" // a name that the API allows, and that no service can have
	}
	line := "import " + key + kind
	if l.chance(50) {
		line += " ips=" + l.addresses(1+l.IntN(3), 25)
	}
	return newTestObject(l.t, key, line+l.ports())
}

func (l *lots) ports() string {
	var list []string
	for range l.IntN(4) {
		port := pickOne(l, "tcp", "tcp", "udp", "sctp") + "/" + pickOne(l, "53", "80", "443", "65535")
		if l.chance(75) {
			port = pickOne(l, testPorts...) + "/" + port
		}
		list = append(list, port)
	}
	if list == nil {
		return ""
	}
	return " ports=" + strings.Join(list, ",")
}

// addresses of which some are unusable.
func (l *lots) addresses(n, unusable int) string {
	var list []string
	for range n {
		switch {
		case l.chance(unusable):
			list = append(list, pickOne(l, testUnusable...))
		case l.chance(2):
			list = append(list, pickOne(l, "::ffff:10.9.0.1", "FD00:0::A"))
		case l.chance(50):
			list = append(list, fmt.Sprintf("10.%d.0.%d", l.IntN(3), 1+l.IntN(9)))
		default:
			list = append(list, fmt.Sprintf("fd00:%d::%x", 1+l.IntN(3), 1+l.IntN(20)))
		}
	}
	return strings.Join(list, ",")
}

// slice of backends or of a cluster's own address. The weight of a cluster is the same on all slices of a service: which one
// counts is not laid down.
func (l *lots) slice(service string, backends bool) testObject {
	namespace, name, _ := strings.Cut(service, "/")
	l.slices++
	return l.sliceOf(fmt.Sprintf("slice-%d", l.slices), namespace, name, backends)
}

func (l *lots) sliceOf(key, namespace, name string, backends bool) testObject {
	cluster := pickOne(l, l.clusters...)
	text, found := l.weights[name+cluster]
	if !found {
		if l.chance(60) {
			text = " weight=" + pickOne(l, "0", "1", "3", "7", "100", "-4", "70000", "99999999999999999999", "-99999999999999999999", "x", "", "7.5", "1e3", "0x10")
		}
		l.weights[name+cluster] = text
	}
	if l.chance(3) {
		name = ""
	}
	switch {
	case l.chance(3):
		cluster = "-"
	case l.chance(1):
		cluster = pickOne(l, "a..b", "under_score", strings.Repeat("l", 64)+".x")
	case l.chance(3):
		cluster = strings.ToUpper(cluster)
	}
	kind, endpoints := "address", 1
	if backends {
		kind, endpoints = "slice", l.few(3)
	} else if l.chance(10) {
		endpoints = l.IntN(3)
	}
	line := kind + " " + namespace + "/" + name + " " + cluster + l.ports() + text
	if l.chance(3) {
		line += " type=FQDN"
	}
	if l.crowded && name == "crowd" {
		endpoints = 30
	}
	for i := range endpoints {
		e := pickOne(l, "", "", "", "!", "?")
		switch {
		case !backends:
			e += l.addresses(pickOne(l, 1, 1, 1, 1, 1, 1, 1, 2), 10)
		case l.crowded && name == "crowd":
			e += fmt.Sprintf("a-rather-long-name-%d=10.3.%d.%d", i, l.IntN(3), i)
		default:
			if l.chance(60) {
				e += pickOne(l, testHosts...) + "="
			}
			e += l.addresses(pickOne(l, 1, 1, 1, 2, 3), 8)
		}
		line += " " + e
	}
	return newTestObject(l.t, namespace+"-"+key, line)
}

func (l *lots) gateway(i int) testObject {
	name := fmt.Sprintf("gw%d", i)
	line := "gateway " + name
	for _, id := range append([]string{"stranger"}, l.clusters...) {
		if state := pickOne(l, "up", "up", "up", "connecting", "down", ""); state != "" {
			line += " " + state + "=" + id
		}
	}
	return newTestObject(l.t, name, line)
}

func (l *lots) anchor() testObject { return newTestObject(l.t, "anchor", "gateway anchor up=anchor") }

// change makes one random change: what is after it, and what does it to a world.
func (l *lots) change(c testClusterset) (testClusterset, func(*world)) {
	set := func(o testObject, apply func(*world)) (testClusterset, func(*world)) { return c.with(o), apply }
	drop := func(o testObject, apply func(*world)) (testClusterset, func(*world)) {
		return c.without(o.kind, o.key), apply
	}
	switch l.IntN(10) {
	case 0:
		name := pickOne(l, testNamespaces[:6]...)
		o := newTestObject(l.t, name, "namespace "+name)
		if exists := l.chance(80); !exists {
			return drop(o, func(w *world) { w.setNamespace(name, false) })
		}
		return set(o, func(w *world) { w.setNamespace(name, true) })
	case 1, 2:
		if list := c.of("import"); len(list) > 0 && l.chance(30) {
			o := pickOne(l, list...)
			i := o.parsed.imports[0]
			return drop(o, func(w *world) { w.deleteImport(objectKey{i.Namespace, i.Name}) })
		}
		o := l.serviceImport(c)
		return set(o, func(w *world) { w.setImport(newImportObject(o.parsed.imports[0])) })
	case 3, 4, 5, 6, 7:
		list := c.of("slice")
		var old *discoveryv1.EndpointSlice
		if len(list) > 0 {
			o := pickOne(l, list...)
			old = o.parsed.slices[0]
			if l.chance(30) {
				return drop(o, func(w *world) { w.deleteSlice(objectKey{old.Namespace, old.Name}) })
			}
		}
		service, headless := l.service(c), l.chance(50)
		if imports := c.of("import"); len(imports) > 0 && l.chance(90) {
			o := pickOne(l, imports...)
			service, headless = o.key, o.parsed.imports[0].Spec.Type == mcsv1beta1.Headless
		}
		o := l.slice(service, headless)
		if old != nil && l.chance(60) { // the same slice, of what service and cluster it may be
			name := old.Labels[v1alpha1.LabelServiceName]
			if l.chance(20) {
				name = pickOne(l, testServices...)
			}
			backends := old.Labels[v1alpha1.LabelClusterAddress] == ""
			o = l.sliceOf(strings.TrimPrefix(old.Name, old.Namespace+"-"), old.Namespace, name, backends != l.chance(10))
		}
		return set(o, func(w *world) { w.setSlice(newSliceObject(o.parsed.slices[0])) })
	case 8:
		gateways := c.of("gateway")
		switch {
		case len(gateways) == 0:
			o := l.anchor()
			return set(o, func(w *world) { w.setGateway(newGatewayObject(o.parsed.gateways[0])) })
		case l.chance(40):
			o := pickOne(l, gateways...)
			if o.key == "anchor" && len(gateways) > 1 { // it goes last
				return c, func(*world) {}
			}
			return drop(o, func(w *world) { w.deleteGateway(objectKey{v1alpha1.Namespace, o.key}) })
		}
		o := l.gateway(l.IntN(3))
		return set(o, func(w *world) { w.setGateway(newGatewayObject(o.parsed.gateways[0])) })
	default:
		if l.chance(30) {
			return c.without("local", ""), func(w *world) { w.setLocalID("") }
		}
		o := l.local()
		return set(o, func(w *world) { w.setLocalID(o.parsed.local) })
	}
}

// question is mostly made of what the world is made of.
func (l *lots) question(c testClusterset, o testOptions) (string, uint16) {
	qtype := pickOne(l, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeSRV, dns.TypeSRV, dns.TypeSRV,
		pickOne(l, dns.TypeTXT, dns.TypeANY, dns.TypeMX, dns.TypeSOA, dns.TypeNS, dns.TypeHTTPS, dns.TypeCNAME, dns.TypePTR, 65280))
	for {
		name := l.name(c, o.only)
		if strings.HasPrefix(name, "_") && l.chance(60) {
			qtype = dns.TypeSRV
		}
		if name, ok := canonicalName(l.spoil(name) + pickOne(l, o.zones...)); ok {
			return name, qtype
		}
	}
}

// name relative to the zone, with a dot at its end unless it is the zone's own.
func (l *lots) name(c testClusterset, only []string) string {
	if l.chance(8) {
		return pickOne(l, "", "svc.", "dns-version.", "ns.dns.", "dns.", "x.dns-version.", "a.ns.dns.", "pod.", "web.shop.pod.", "clusterset.local.", "svc.svc.")
	}
	service := l.service(c)
	imports := c.of("import")
	if l.chance(92) { // those that are served
		imports = slices.DeleteFunc(imports, func(o testObject) bool {
			namespace := o.parsed.imports[0].Namespace
			return only != nil && !slices.Contains(only, namespace) ||
				!slices.ContainsFunc(c, func(o testObject) bool { return o.kind == "namespace" && o.key == namespace })
		})
	}
	if len(imports) > 0 && l.chance(96) {
		service = pickOne(l, imports...).key
	}
	namespace, name, _ := strings.Cut(service, "/")
	if l.chance(4) {
		return pickOne(l, namespace, strings.Replace(l.service(c), "/", ".", 1), strings.Replace(service, "/", ".", 1)) + ".svc."
	}
	// What a name can hold: of one slice of the service, mostly, or of anything.
	var list []testObject
	headless := slices.ContainsFunc(c, func(o testObject) bool {
		return o.kind == "import" && o.key == service && o.parsed.imports[0].Spec.Type == mcsv1beta1.Headless
	})
	for _, o := range c.of("slice") {
		s := o.parsed.slices[0]
		if s.Namespace == namespace && s.Labels[v1alpha1.LabelServiceName] == name && (headless == strings.HasPrefix(o.line, "slice") || l.chance(10)) {
			list = append(list, o)
		}
	}
	host, cluster, port := pickOne(l, testHosts[:8]...), pickOne(l, l.clusters...), pickOne(l, testPorts...)+"."+pickOne(l, "tcp", "udp")
	ports := []string{port}
	for _, o := range c.of("import") {
		if o.key == service && l.chance(90) {
			for _, p := range o.parsed.imports[0].Spec.Ports {
				ports = append(ports, p.Name+"."+string(p.Protocol))
			}
		}
	}
	if len(list) > 0 && l.chance(90) {
		s := pickOne(l, list...).parsed.slices[0]
		cluster = cmp.Or(s.Labels[v1alpha1.LabelSourceCluster], cluster)
		for _, p := range s.Ports {
			ports = append(ports, *p.Name+"."+string(*p.Protocol))
		}
		if len(s.Endpoints) > 0 {
			e := pickOne(l, s.Endpoints...)
			host = strings.NewReplacer(".", "-", ":", "-").Replace(pickOne(l, e.Addresses...))
			if e.Hostname != nil && l.chance(95) {
				host = cmp.Or(*e.Hostname, host)
			}
		}
		if l.chance(10) { // of this service, but not together
			cluster = pickOne(l, l.clusters...)
		}
	}
	if port = pickOne(l, ports...); len(ports) > 1 && l.chance(80) {
		port = pickOne(l, ports[1:]...)
	}
	protocol := port[strings.Index(port, ".")+1:]
	underscored := "_" + strings.Replace(port, ".", "._", 1)
	left := pickOne(l, "", "", "", "", underscored, underscored, underscored, host+"."+cluster, host+"."+cluster,
		pickOne(l, cluster, cluster, underscored+"."+cluster, host+"."+cluster),
		pickOne(l, "_"+protocol, port, port, protocol, port+"."+cluster, "_"+protocol+"."+cluster, underscored+"."+host+"."+cluster, host, "*", "x",
			"x."+host+"."+cluster, cluster[strings.Index(cluster, ".")+1:], "_"+port, host+"."+cluster+"x"))
	if left != "" {
		left += "."
	}
	return left + name + "." + namespace + ".svc."
}

// spoil changes a few names a little.
func (l *lots) spoil(name string) string {
	labels := strings.SplitAfter(name, ".")
	at := l.IntN(len(labels))
	if l.chance(90) {
		at = 0
	}
	switch l.IntN(50) {
	case 0, 1, 2, 8, 9, 10, 11:
		return strings.Map(func(r rune) rune {
			if l.chance(50) {
				return []rune(strings.ToUpper(string(r)))[0]
			}
			return r
		}, name)
	case 3:
		return strings.Join(slices.Delete(labels, at, at+1), "")
	case 4:
		return strings.Join(slices.Insert(labels, at, pickOne(l, "x.", "*.", "_tcp.", "tcp.", "svc.", `a\.b.`, `\000.`, `\195\164.`, `\\.`, pickOne(l, l.clusters...)+".")), "")
	case 5:
		return strings.Replace(name, ".", `\.`, 1)
	case 6:
		if name != "" { // the same name, written otherwise
			return fmt.Sprintf(`\%03d`, name[0]) + name[1:]
		}
	case 7:
		return pickOne(l, `\\`, `\.`, `\000`, `\032`, "-", "_", "*") + name
	}
	return name
}

// canonicalName writes a name as it comes from the wire.
func canonicalName(name string) (string, bool) {
	wire := make([]byte, 256)
	end, err := dns.PackDomainName(name, wire, 0, nil, false)
	if err != nil {
		return "", false
	}
	name, _, err = dns.UnpackDomainName(wire[:end], 0)
	return name, err == nil
}

// observation is what came back, in the words of an expectation.
type observation struct {
	rcode                         int
	answer, authority, additional []string
	authoritative, truncated      bool
}

func observed(m *dns.Msg, rcode int) observation {
	if m == nil {
		return observation{rcode: rcode}
	}
	return observation{m.Rcode, recordTexts(m.Answer, true), recordTexts(m.Ns, false), recordTexts(m.Extra, false), m.Authoritative, m.Truncated}
}

// recordTexts leaves out the OPT record, and of a SOA record what the model does not know. Case is kept in the owners of
// answers alone: it tells whether the question was echoed.
func recordTexts(rrs []dns.RR, keepCase bool) []string {
	var texts []string
	for _, rr := range rrs {
		header := rr.Header()
		if header.Rrtype == dns.TypeOPT {
			continue
		}
		owner, data := header.Name, strings.TrimPrefix(rr.String(), header.String())
		if !keepCase {
			owner = strings.ToLower(owner)
		}
		if soa, ok := rr.(*dns.SOA); ok {
			data = fmt.Sprintf("%s %d", soa.Ns, soa.Minttl)
		}
		texts = append(texts, fmt.Sprintf("%s %d %s %s", owner, header.Ttl, dns.Type(header.Rrtype), strings.ToLower(data)))
		if header.Class != dns.ClassINET {
			texts = append(texts, "of another class")
		}
	}
	slices.Sort(texts)
	return texts
}

// allows tells whether a reply is one of those expected.
func (e expectation) allows(qname string, o observation) bool {
	if o.rcode != e.rcode || o.authoritative != (e.rcode != dns.RcodeRefused) {
		return false
	}
	if e.pool != nil {
		return e.allowsSubset(qname, o)
	}
	if e.replies == nil {
		return len(o.answer)+len(o.authority)+len(o.additional) == 0
	}
	return slices.ContainsFunc(e.replies, func(r modelReply) bool {
		answer, additional := ownedTexts(qname, r.answer), sortedTexts(r.additional)
		if o.truncated {
			return len(answer) > 0 && containsAll(o.answer, answer) && containsAll(o.additional, additional)
		}
		authority := []string(nil)
		if len(answer) == 0 {
			authority = []string{e.soa}
		}
		return slices.Equal(o.answer, answer) && slices.Equal(o.authority, authority) && slices.Equal(o.additional, additional)
	})
}

// allowsSubset is for one type alone; see subset.
func (e expectation) allowsSubset(qname string, o observation) bool {
	var all []string
	for _, one := range e.pool {
		all = append(all, ownedTexts(qname, one(e.qtype).answer)...)
	}
	return containsAll(o.answer, all) && (len(o.answer) == 0) == slices.Equal(o.authority, []string{e.soa})
}

// subset tells which backends of a pool were answered with, from the answers of all types together: those of which every
// record is there. ok is that they explain all records and are as many as they have to be. Backends that share all addresses
// with others may seem to be there without being.
func (e expectation) subset(qname string, answers map[uint16]observation) (ok bool) {
	var members []modelRecords
	for _, one := range e.pool {
		there := true
		for qtype, o := range answers {
			there = there && containsAll(ownedTexts(qname, one(qtype).answer), o.answer)
		}
		if there {
			members = append(members, one)
		}
	}
	seen := map[string]int{}
	for qtype, o := range answers {
		all := modelUnion(members, qtype)
		if !slices.Equal(o.answer, ownedTexts(qname, all.answer)) || !slices.Equal(o.additional, sortedTexts(all.additional)) {
			return false
		}
		for _, one := range members {
			for _, text := range ownedTexts(qname, one(qtype).answer) {
				seen[text]++
			}
		}
	}
	unshared := 0
	for _, one := range members {
		for qtype := range answers {
			if slices.ContainsFunc(ownedTexts(qname, one(qtype).answer), func(text string) bool { return seen[text] == 1 }) {
				unshared++
				break
			}
		}
	}
	return unshared <= e.limit && e.limit <= len(members)
}

// ownedTexts gives records their owner.
func ownedTexts(qname string, records []string) []string {
	var texts []string
	for _, text := range records {
		texts = append(texts, qname+" "+text)
	}
	return sortedTexts(texts)
}

func sortedTexts(texts []string) []string {
	texts = slices.Clone(texts)
	slices.Sort(texts)
	return slices.Compact(texts)
}

func containsAll(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

func (o observation) String() string {
	return fmt.Sprintf("%s, authoritative %v, truncated %v\n\tanswer %q\n\tauthority %q\n\tadditional %q\n",
		dns.RcodeToString[o.rcode], o.authoritative, o.truncated, o.answer, o.authority, o.additional)
}

func (e expectation) String() string {
	var text strings.Builder
	fmt.Fprintln(&text, dns.RcodeToString[e.rcode])
	for _, r := range e.replies {
		fmt.Fprintf(&text, "\tanswer %q, additional %q\n", sortedTexts(r.answer), sortedTexts(r.additional))
	}
	if e.pool != nil {
		fmt.Fprintf(&text, "\t%d of:\n", e.limit)
		for _, one := range e.pool {
			r := one(e.qtype)
			fmt.Fprintf(&text, "\tanswer %q, additional %q\n", sortedTexts(r.answer), sortedTexts(r.additional))
		}
	}
	return text.String()
}

// comparison counts the questions of a test and reports differences, the first few of them.
type comparison struct {
	t           testing.TB
	asked, left atomic.Int64
	differences atomic.Int64
	start       time.Time
	// What was expected, so that it shows if worlds and questions no longer go together.
	found, nodata, nxdomain, chosen atomic.Int64
}

const enoughDifferences = 5

// newComparison is for a share, in sevenths, of all questions.
func newComparison(t testing.TB, sevenths int) *comparison {
	c := &comparison{t: t, start: time.Now()}
	c.left.Store(int64(*differentialQueries) * int64(sevenths) / 7)
	t.Cleanup(func() {
		t.Logf("%d questions, seed %d, %d differences, %v; %d answers, %d of several, %d NODATA, %d NXDOMAIN", c.asked.Load(), *differentialSeed,
			c.differences.Load(), time.Since(c.start).Round(time.Millisecond), c.found.Load(), c.chosen.Load(), c.nodata.Load(), c.nxdomain.Load())
	})
	return c
}

// count counts a question by what was expected.
func (c *comparison) count(e expectation) {
	switch {
	case e.rcode == dns.RcodeNameError:
		c.nxdomain.Add(1)
	case e.pool != nil || len(e.replies) > 1:
		c.chosen.Add(1)
	case len(e.replies) == 1 && len(e.replies[0].answer) == 0:
		c.nodata.Add(1)
	default:
		c.found.Add(1)
	}
}

// next takes a question off those that are left.
func (c *comparison) next() bool {
	if c.done() {
		return false
	}
	c.left.Add(-1)
	c.asked.Add(1)
	return true
}

func (c *comparison) done() bool {
	return c.left.Load() <= 0 || c.differences.Load() >= enoughDifferences
}

// differ reports a difference, and the world that shows it.
func (c *comparison) differ(l *lots, o testOptions, set fmt.Stringer, qname string, qtype uint16, want, got any, format string, args ...any) {
	c.t.Helper()
	if c.differences.Add(1) <= enoughDifferences {
		c.t.Errorf("%s (seed %d, world %d)\n%s%s\nquestion: %s %s\nwant: %v\ngot: %v",
			fmt.Sprintf(format, args...), l.seed, l.number, o, set, qname, dns.Type(qtype), want, got)
	}
}

// TestDifferential asks about many small worlds, half of which change between the questions.
func TestDifferential(t *testing.T) {
	c := newComparison(t, 4)
worlds: // of each, one difference is enough
	for number := 0; !c.done(); number++ {
		lots := newLots(t, number)
		lots.settled = number%2 == 0
		options, set := lots.options(), lots.clusterset()
		w := newWorld()
		set.objects().into(w)
		l := options.plugin(w)
		for range 8 {
			m := options.model(set, l)
			for range 25 {
				qname, qtype := lots.question(set, options)
				if !c.compare(lots, options, set, l, m, qname, qtype) {
					continue worlds
				}
			}
			if !lots.settled {
				var apply func(*world)
				set, apply = lots.change(set)
				apply(w)
			}
		}
	}
}

// compare asks one question. It tells whether to ask more.
func (c *comparison) compare(lots *lots, options testOptions, set testClusterset, l *Lighthouse, m *model, qname string, qtype uint16) bool {
	if !c.next() {
		return false
	}
	want, got, what := oneDifference(c.t, l, m, qname, qtype)
	c.count(want)
	if what == "" {
		return true
	}
	if smaller, found := set.smallest(c.t, options, qname, qtype); found {
		set = smaller
		w := newWorld()
		set.objects().into(w)
		l := options.plugin(w)
		want, got, what = oneDifference(c.t, l, options.model(set, l), qname, qtype)
	} else {
		set = set.about(qname)
		what += ", after changes alone"
	}
	c.differ(lots, options, set, qname, qtype, want, got, "%s", what)
	return false
}

// smallest takes away objects as long as there is a difference in what is left. There may be none even with all of them: if it
// took the changes that led there, or a server.
func (c testClusterset) smallest(t testing.TB, options testOptions, qname string, qtype uint16) (testClusterset, bool) {
	shows := func(c testClusterset) bool {
		w := newWorld()
		c.objects().into(w)
		l := options.plugin(w)
		_, _, what := oneDifference(t, l, options.model(c, l), qname, qtype)
		return what != ""
	}
	if !shows(c) {
		return c, false
	}
	for i := 0; i < len(c); {
		if less := slices.Delete(slices.Clone(c), i, i+1); shows(less) {
			c = less
		} else {
			i++
		}
	}
	return c, true
}

// oneDifference asks the plugin and the model; what they differ in is "" where they do not. Where the model does not know which
// backends are in the answer, it asks for all types, twice.
func oneDifference(t testing.TB, l *Lighthouse, m *model, qname string, qtype uint16) (want expectation, got observation, what string) {
	t.Helper()
	want = m.ask(qname, qtype)
	got = observed(ask(t, l, qname, qtype))
	if !want.allows(qname, got) {
		return want, got, "another answer"
	}
	if want.pool == nil {
		return want, got, ""
	}
	answers := map[uint16]observation{}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV} {
		got = observed(ask(t, l, qname, qtype))
		answers[qtype] = got
		want.qtype = qtype
		if again := observed(ask(t, l, qname, qtype)); again.String() != got.String() {
			return want, again, "another subset of backends the second time, the first was " + got.String()
		}
	}
	if !want.subset(qname, answers) {
		return want, got, fmt.Sprint("not one subset of backends for all types: ", answers)
	}
	return want, got, ""
}

// differentialServer is CoreDNS's own server, on both transports, with the plugin in it.
type differentialServer struct {
	udp, tcp string
	stop     func()
}

// serveDifferential starts a server. With recorded, a plugin in front needs the message of each reply, as prometheus does;
// without, the plugin's writer is the server's own.
func serveDifferential(t testing.TB, l *Lighthouse, recorded bool) differentialServer {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var configs []*dnsserver.Config
	for _, zone := range l.zones {
		config := &dnsserver.Config{Zone: zone, Transport: "dns", ListenHosts: []string{"127.0.0.1"}, Port: "0"}
		config.AddPlugin(func(plugin.Handler) plugin.Handler {
			if recorded {
				return recordedPlugin{l}
			}
			return l
		})
		configs = append(configs, config)
	}
	server, err := dnsserver.NewServer("dns://127.0.0.1:0", configs)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.ServePacket(packets); err != nil {
			t.Errorf("UDP: %v", err)
		}
	})
	wg.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Errorf("TCP: %v", err)
		}
	})
	return differentialServer{packets.LocalAddr().String(), listener.Addr().String(), func() {
		if err := server.Stop(); err != nil {
			t.Errorf("server: %v", err)
		}
		wg.Wait()
	}}
}

type recordedPlugin struct{ next plugin.Handler }

func (r recordedPlugin) Name() string { return "recorded" }

func (r recordedPlugin) ServeDNS(ctx context.Context, w dns.ResponseWriter, m *dns.Msg) (int, error) {
	return r.next.ServeDNS(ctx, dnstest.NewRecorder(w), m)
}

// differentialClient has one connection of each transport.
type differentialClient struct{ udp, tcp *dns.Conn }

func (s differentialServer) dial(t testing.TB) differentialClient {
	t.Helper()
	udp, err := dns.Dial("udp", s.udp)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := dns.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	return differentialClient{udp, tcp}
}

func (c differentialClient) close() {
	c.udp.Close()
	c.tcp.Close()
}

// exchange sends a query and gives the reply, and what is wrong with it whatever it says.
func (c differentialClient) exchange(network string, query *dns.Msg) (*dns.Msg, error) {
	conn, size := c.tcp, dns.MaxMsgSize
	if network == "udp" {
		conn, size = c.udp, querySize(query)
	}
	conn.UDPSize = dns.MaxMsgSize // of the buffer that it reads into
	reply := new(dns.Msg)
	wire, err := query.Pack()
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	if err == nil {
		_, err = conn.Write(wire)
	}
	if err == nil {
		wire, err = conn.ReadMsgHeader(nil)
	}
	if err == nil {
		err = reply.Unpack(wire)
	}
	switch {
	case err != nil:
		return reply, err
	case len(wire) > size:
		return reply, fmt.Errorf("%d bytes, more than %d", len(wire), size)
	case network == "tcp" && reply.Truncated:
		return reply, errors.New("truncated")
	}
	switch asked, got := query.IsEdns0(), reply.IsEdns0(); {
	case !reply.Response, reply.Id != query.Id, reply.Opcode != query.Opcode, reply.RecursionDesired != query.RecursionDesired,
		reply.CheckingDisabled != query.CheckingDisabled:
		return reply, errors.New("not a reply to this query")
	case reply.RecursionAvailable, reply.AuthenticatedData, reply.Zero:
		return reply, errors.New("flags of others")
	case len(reply.Question) != 1 || reply.Question[0] != query.Question[0]:
		return reply, errors.New("another question")
	case (asked == nil) != (got == nil):
		return reply, errors.New("EDNS on one side alone")
	case asked != nil && (got.Do() != asked.Do() || got.UDPSize() != asked.UDPSize() || got.Version() != 0 || got.Hdr.Name != "." || len(got.Option) > 0):
		return reply, fmt.Errorf("OPT record: %v", got)
	}
	return reply, nil
}

// query has what clients put around a question.
func (l *lots) query(qname string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(qname, qtype)
	m.Id = uint16(l.Uint32())
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = l.chance(50), l.chance(20), l.chance(20)
	if l.chance(75) {
		m.SetEdns0(pickOne(l, uint16(0), 512, 1232, 1232, 4096, 65535), l.chance(30))
		if l.chance(10) {
			m.IsEdns0().Option = []dns.EDNS0{pickOne[dns.EDNS0](l, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1223344556"})}
		}
	}
	return m
}

// querySize is how much of a reply over UDP the query leaves room for.
func querySize(query *dns.Msg) int {
	if opt := query.IsEdns0(); opt != nil {
		return max(dns.MinMsgSize, int(opt.UDPSize()))
	}
	return dns.MinMsgSize
}

// TestDifferentialOnTheWire goes through CoreDNS's own server, over UDP and TCP, with the plugin alone in its chain and with
// one in front, several queries at a time.
func TestDifferentialOnTheWire(t *testing.T) {
	c := newComparison(t, 1)
	var truncated atomic.Int64
	for number := 0; !c.done(); number++ {
		maker := newLots(t, 1_000_000+number)
		maker.settled, maker.crowded = true, number%3 == 0
		options, set := maker.options(), maker.clusterset()
		options.maxAnswers = defaultMaxAnswers
		w := newWorld()
		set.objects().into(w)
		l := options.plugin(w)
		m := options.model(set, l)
		server := serveDifferential(t, l, number%2 == 0)
		var askers sync.WaitGroup
		for asker := range 2 {
			client := server.dial(t)
			lots := newLots(t, 5_000_000+2*number+asker)
			lots.clusters = maker.clusters
			askers.Go(func() {
				defer client.close()
				for range 50 {
					qname, qtype := lots.question(set, options)
					if maker.crowded && lots.chance(10) {
						qname = "crowd.shop.svc." + options.zones[0]
					}
					query := lots.query(qname, qtype)
					want := m.ask(qname, qtype)
					var whole *dns.Msg
					for _, network := range []string{"tcp", "udp"} {
						if !c.next() {
							return
						}
						c.count(want)
						reply, err := client.exchange(network, query)
						got := observed(reply, reply.Rcode)
						if err == nil && !want.allows(qname, got) {
							err = errors.New("another answer")
						}
						if network == "tcp" {
							whole = reply
						} else if reply.Truncated {
							truncated.Add(1)
							whole.Compress = true
							if size := querySize(query); err == nil && len(want.replies) == 1 && whole.Len() <= size {
								err = fmt.Errorf("truncated although all of it is %d bytes of %d", whole.Len(), size)
							}
						}
						if err != nil {
							smaller, found := set.smallest(t, options, qname, qtype)
							if !found {
								smaller = set.about(qname)
							}
							c.differ(maker, options, smaller, qname, qtype, want, got, "%s, plugin in front %v: %v\nquery: %v", network, number%2 == 0, err, query)
							return
						}
					}
				}
			})
		}
		askers.Wait()
		server.stop()
	}
	if truncated.Load() == 0 {
		t.Error("no reply was truncated: this test does not test that")
	}
	t.Logf("%d truncated", truncated.Load())
}

// worldHistory is the states that a world went through. Of those before the last that was applied, none can show any more.
type worldHistory struct {
	mu      sync.Mutex
	states  []testClusterset
	settled atomic.Int64 // the last state that was wholly applied
	begun   atomic.Int64 // the last state that may show
}

func (h *worldHistory) at(i int64) testClusterset {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.states[i]
}

// testClustersets are states of a world, one after another.
type testClustersets []testClusterset

func (list testClustersets) String() string {
	var text strings.Builder
	for i, c := range list {
		fmt.Fprintf(&text, "# state %d\n%s", i, c)
	}
	return text.String()
}

// apply adds a state before a change of the world may show it.
func (h *worldHistory) apply(c testClusterset, change func()) {
	h.mu.Lock()
	h.states = append(h.states, c)
	h.mu.Unlock()
	now := h.begun.Add(1)
	change()
	h.settled.Store(now)
}

// TestDifferentialDuringChanges asks while the world changes: an answer is right by any state that was current from the
// moment of the question to that of the answer.
func TestDifferentialDuringChanges(t *testing.T) {
	c := newComparison(t, 2)
	changes, overlaps := 0, atomic.Int64{}
	for number := 0; !c.done(); number++ {
		maker := newLots(t, 2_000_000+number)
		options, first := maker.options(), maker.clusterset()
		options.maxAnswers = defaultMaxAnswers
		w := newWorld()
		first.objects().into(w)
		l := options.plugin(w)
		h := &worldHistory{states: []testClusterset{first}}

		var askers, changer sync.WaitGroup
		asked := make(chan struct{}, 1) // one change a question
		left := atomic.Int64{}
		left.Store(600)
		server := serveDifferential(t, l, false)
		for asker := range 2 {
			lots := newLots(t, 3_000_000+2*number+asker)
			lots.clusters = maker.clusters
			query := func(qname string, qtype uint16) (observation, error) { return observed(ask(t, l, qname, qtype)), nil }
			if asker == 1 { // the plugin may have another way to write to the server
				client := server.dial(t)
				defer client.close()
				query = func(qname string, qtype uint16) (observation, error) {
					reply, err := client.exchange("tcp", lots.query(qname, qtype))
					return observed(reply, reply.Rcode), err
				}
			}
			askers.Go(func() {
				for left.Add(-1) >= 0 && c.next() {
					qname, qtype := lots.question(h.at(h.settled.Load()), options)
					from := h.settled.Load()
					got, err := query(qname, qtype)
					to := h.begun.Load()
					if from < to {
						overlaps.Add(1)
					}
					asked <- struct{}{}
					var during testClustersets
					var want []expectation
					right := false
					for i := from; i <= to && !right; i++ {
						e := options.model(h.at(i), l).ask(qname, qtype)
						right = err == nil && e.allows(qname, got)
						during, want = append(during, h.at(i).about(qname)), append(want, e)
					}
					c.count(want[len(want)-1])
					if !right {
						c.differ(maker, options, during, qname, qtype, want, got, "not right by any of %d states, error %v", to-from+1, err)
						return
					}
				}
			})
		}
		changer.Go(func() {
			state := first
			for range asked {
				next, change := maker.change(state)
				h.apply(next, func() { change(w) })
				state = next
				changes++
			}
		})
		askers.Wait()
		close(asked)
		changer.Wait()
		server.stop()
	}
	t.Logf("%d changes, %d questions during one", changes, overlaps.Load())
}

// TestDifferentialTurns: in any full round, which is as many questions as the weights add up to, every cluster comes as often
// as its weight says.
func TestDifferentialTurns(t *testing.T) {
	for number := range 50 {
		lots := newLots(t, 4_000_000+number)
		text, round, want := "namespace shop\nimport shop/web ClusterSetIP\n", 0, map[string]int{}
		for i := range 1 + lots.IntN(6) {
			weight := lots.IntN(12)
			text += fmt.Sprintf("address shop/web c%d ports=http/tcp/%d weight=%d 10.0.0.%d fd00::%d\n", i, i+1, weight, i+1, i+1)
			if weight > 0 {
				want[fmt.Sprint(i+1)] = weight
			}
			round += weight
		}
		if round == 0 { // it has to be one, of which TestDifferential knows enough
			continue
		}
		l := newTestPlugin(newTestWorld(t, text))
		// The types take turns of their own: here they come mixed.
		turns := map[uint16][]string{}
		for range 4 * round {
			qtype := pickOne(lots, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
			m, _ := ask(t, l, "web.shop.svc."+testZone, qtype)
			if len(m.Answer) != 1 {
				t.Fatalf("%d answers\n%s", len(m.Answer), text)
			}
			var cluster string
			switch rr := m.Answer[0].(type) {
			case *dns.A:
				cluster = fmt.Sprint(rr.A[len(rr.A)-1])
			case *dns.AAAA:
				cluster = fmt.Sprint(rr.AAAA[15])
			case *dns.SRV:
				cluster = fmt.Sprint(rr.Port)
			}
			turns[qtype] = append(turns[qtype], cluster)
		}
		for qtype, list := range turns {
			for from := 0; from+round <= len(list); from++ {
				got := map[string]int{}
				for _, cluster := range list[from : from+round] {
					got[cluster]++
				}
				if !maps.Equal(got, want) {
					t.Fatalf("%s from turn %d: got %v, want %v\n%s", dns.Type(qtype), from, got, want, text)
				}
			}
		}
	}
}
