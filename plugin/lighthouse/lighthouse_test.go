package lighthouse

import (
	"context"
	"net"
	"sort"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

const testZone = "clusterset.local."

// newTestPlugin serves a world under clusterset.local.
func newTestPlugin(w *world) *Lighthouse {
	return &Lighthouse{
		Next:            test.NextHandler(dns.RcodeRefused, nil),
		config:          config{zones: plugin.Zones{testZone}, ttl: defaultTTL, maxAnswers: defaultMaxAnswers},
		world:           w,
		serverAddresses: []net.IP{net.ParseIP("192.0.2.53"), net.ParseIP("2001:db8::53")},
		counters:        newCounters(),
	}
}

// ask sends one question and gives the reply, nil where the plugin wrote none, and the rcode that it returned.
func ask(t testing.TB, l *Lighthouse, name string, qtype uint16) (*dns.Msg, int) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	rec := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, _ := l.ServeDNS(context.Background(), rec, m)
	return rec.Msg, rcode
}

// dnsCase is one question, "name TYPE", and the reply as zone-file text: the rcode, the answer section and, below a line
// "additional:", the additional section. Names without a dot at their end are below svc.clusterset.local. Where there is no answer, the zone's
// SOA record is expected in the authority section without being written down each time.
type dnsCase struct {
	rule     string // of the specification
	question string
	want     string
}

const testSOA = "clusterset.local. 5 IN SOA ns.dns.clusterset.local. hostmaster.clusterset.local. 303 7200 1800 86400 5"

func (c dnsCase) run(t *testing.T, l *Lighthouse) {
	t.Helper()
	name, typeName, _ := strings.Cut(c.question, " ")
	if !strings.HasSuffix(name, ".") {
		name += ".svc." + testZone
	}
	got, rcode := ask(t, l, name, dns.StringToType[typeName])
	wantRcode, sections, _ := strings.Cut(strings.TrimSpace(c.want), "\n")
	if got == nil {
		if dns.RcodeToString[rcode] != wantRcode {
			t.Fatalf("no reply, rcode %s, want %s", dns.RcodeToString[rcode], wantRcode)
		}
		return
	}
	answer, additional, _ := strings.Cut(sections, "additional:")
	want := test.Case{
		Qname:  name,
		Qtype:  dns.StringToType[typeName],
		Rcode:  dns.StringToRcode[wantRcode],
		Answer: records(t, answer),
		Extra:  records(t, additional),
	}
	if len(want.Answer) == 0 {
		want.Ns = []dns.RR{test.SOA(testSOA)}
		for _, rr := range got.Ns {
			rr.(*dns.SOA).Serial = 303 // a test of its own
		}
	}
	sort.Sort(test.RRSet(want.Answer))
	sort.Sort(test.RRSet(want.Extra))
	if err := test.SortAndCheck(got, want); err != nil {
		t.Errorf("%v\ngot:\n%v", err, got)
	}
	if !got.Authoritative {
		t.Errorf("AA is not set")
	}
	if got.Question[0].Name != name {
		t.Errorf("question came back as %s", got.Question[0].Name)
	}
}

// records parses zone-file text.
func records(t testing.TB, text string) []dns.RR {
	t.Helper()
	var rrs []dns.RR
	var lines strings.Builder
	for line := range strings.Lines(text + "\n") {
		lines.WriteString(strings.TrimLeft(line, " \t")) // a line that begins with a blank has the owner of the one before
	}
	parser := dns.NewZoneParser(strings.NewReader(lines.String()), "svc."+testZone, "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		rrs = append(rrs, rr)
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	return rrs
}

func runCases(t *testing.T, l *Lighthouse, cases []dnsCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.rule+": "+c.question, " ", "_"), func(t *testing.T) { c.run(t, l) })
	}
}

const (
	nodata   = "NOERROR"
	nxdomain = "NXDOMAIN"
)

const shop = `
namespace shop empty
local east

import shop/web ClusterSetIP ips=10.96.0.10,fd00:96::10 ports=http/tcp/80,https/tcp/443,tcp/9000
address shop/web east ports=http/tcp/80 weight=7 10.1.0.1
address shop/web east ports=http/tcp/80 fd00:1::1
address shop/web west ports=https/tcp/443 !10.2.0.1
address shop/web north.eu ports=http/tcp/80 10.3.0.1
slice shop/web east ports=http/tcp/8080 10.1.9.9

import shop/four ClusterSetIP ips=10.96.0.11 ports=dns/udp/53,dns-tcp/tcp/53
import shop/portless ClusterSetIP ips=10.96.0.12

import shop/db Headless ports=pg/tcp/5432
slice shop/db east ports=pg/tcp/5432,tcp/9187 db-0=10.1.1.1 !db-1=10.1.1.2 ?db-2=10.1.1.3
slice shop/db east ports=pg/tcp/5432,tcp/9187 db-0=fd00:1::11 !db-1=fd00:1::12
slice shop/db west ports=pg/tcp/5432 weight=70000 10.2.1.1 10.2.1.2,10.2.1.3
slice shop/db north.eu ports=raft/tcp/7000 weight=x db-0=10.3.1.1
import shop/idle Headless ports=pg/tcp/5432
slice shop/idle east ports=pg/tcp/5432 !idle-0=10.1.2.1
`

// TestNameTable has a case for each row of the name table and each rule beside it.
func TestNameTable(t *testing.T) {
	runCases(t, newTestPlugin(newTestWorld(t, shop)), []dnsCase{
		{"schema version", "dns-version.clusterset.local. TXT", `NOERROR
			dns-version.clusterset.local. 28800 IN TXT "1.0.0"`},
		{"schema version, other type", "dns-version.clusterset.local. A", nodata},

		{"ClusterSetIP A: the clusterset IPs of that family", "web.shop A", `NOERROR
			web.shop 5 IN A 10.96.0.10`},
		{"ClusterSetIP AAAA", "web.shop AAAA", `NOERROR
			web.shop 5 IN AAAA fd00:96::10`},
		{"ClusterSetIP of one family: the other is NODATA", "four.shop AAAA", nodata},
		{"ClusterSetIP SRV: one record per distinct target and port", "web.shop SRV", `NOERROR
			web.shop 5 IN SRV 0 50 80 web.shop
			web.shop 5 IN SRV 0 50 443 web.shop
			web.shop 5 IN SRV 0 50 9000 web.shop
			additional:
			web.shop 5 IN A 10.96.0.10
			web.shop 5 IN AAAA fd00:96::10`},
		{"ClusterSetIP SRV: two protocols of one number are one record", "four.shop SRV", `NOERROR
			four.shop 5 IN SRV 0 50 53 four.shop
			additional:
			four.shop 5 IN A 10.96.0.11`},
		{"imports with IPs and no ports have addresses", "portless.shop A", `NOERROR
			portless.shop 5 IN A 10.96.0.12`},
		{"imports with IPs and no ports have no SRV records", "portless.shop SRV", nodata},
		{"ClusterSetIP named port", "_http._tcp.web.shop SRV", `NOERROR
			_http._tcp.web.shop 5 IN SRV 0 50 80 web.shop
			additional:
			web.shop 5 IN A 10.96.0.10
			web.shop 5 IN AAAA fd00:96::10`},
		{"named port of another protocol", "_http._udp.web.shop SRV", nxdomain},
		{"named port that no one has", "_ftp._tcp.web.shop SRV", nxdomain},
		{"named port, other type", "_http._tcp.web.shop A", nodata},
		{"unnamed ports have no name", "_._tcp.web.shop SRV", nxdomain},
		{"_tcp alone is an empty non-terminal", "_tcp.web.shop SRV", nodata},
		{"_udp without a port of it", "_udp.web.shop SRV", nxdomain},
		{"underscores are required", "http.tcp.web.shop SRV", nxdomain},
		{"port and protocol match without regard to case", "_HTTP._Tcp.web.shop SRV", `NOERROR
			_HTTP._Tcp.web.shop 5 IN SRV 0 50 80 web.shop
			additional:
			web.shop 5 IN A 10.96.0.10
			web.shop 5 IN AAAA fd00:96::10`},
		{"ClusterSetIP has no backend names", "10-1-9-9.east.web.shop A", nxdomain},
		{"ClusterSetIP: no cluster names without the option", "east.web.shop A", nxdomain},

		{"Headless A: every ready backend; ready nil counts as ready", "db.shop A", `NOERROR
			db.shop 5 IN A 10.1.1.1
			db.shop 5 IN A 10.1.1.3
			db.shop 5 IN A 10.2.1.1
			db.shop 5 IN A 10.2.1.2
			db.shop 5 IN A 10.2.1.3
			db.shop 5 IN A 10.3.1.1`},
		{"Headless AAAA", "db.shop AAAA", `NOERROR
			db.shop 5 IN AAAA fd00:1::11`},
		{"Headless SRV: one per ready backend and port, target the backend's name", "db.shop SRV", `NOERROR
			db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
			db.shop 5 IN SRV 0 50 9187 db-0.east.db.shop
			db.shop 5 IN SRV 0 50 5432 db-2.east.db.shop
			db.shop 5 IN SRV 0 50 9187 db-2.east.db.shop
			db.shop 5 IN SRV 0 65535 5432 10-2-1-1.west.db.shop
			db.shop 5 IN SRV 0 65535 5432 10-2-1-2.west.db.shop
			db.shop 5 IN SRV 0 65535 5432 10-2-1-3.west.db.shop
			db.shop 5 IN SRV 0 50 7000 db-0.north.eu.db.shop
			additional:
			db-0.east.db.shop 5 IN A 10.1.1.1
			db-0.east.db.shop 5 IN AAAA fd00:1::11
			db-2.east.db.shop 5 IN A 10.1.1.3
			10-2-1-1.west.db.shop 5 IN A 10.2.1.1
			10-2-1-2.west.db.shop 5 IN A 10.2.1.2
			10-2-1-3.west.db.shop 5 IN A 10.2.1.3
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},
		{"Headless named port: backends of clusters that have it", "_raft._tcp.db.shop SRV", `NOERROR
			_raft._tcp.db.shop 5 IN SRV 0 50 7000 db-0.north.eu.db.shop
			additional:
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},
		{"Headless named port that no backend has", "_http._tcp.db.shop SRV", nxdomain},
		{"Headless _tcp is an empty non-terminal", "_tcp.db.shop SRV", nodata},
		{"backend by hostname, all its addresses", "db-0.east.db.shop A", `NOERROR
			db-0.east.db.shop 5 IN A 10.1.1.1`},
		{"backend by hostname, AAAA", "db-0.east.db.shop AAAA", `NOERROR
			db-0.east.db.shop 5 IN AAAA fd00:1::11`},
		{"backend by address, several names", "10-2-1-3.west.db.shop A", `NOERROR
			10-2-1-3.west.db.shop 5 IN A 10.2.1.3`},
		{"backend of the other family", "10-2-1-3.west.db.shop AAAA", nodata},
		{"backend, SRV", "db-0.east.db.shop SRV", nodata},
		{"backend that is not ready", "db-1.east.db.shop A", nxdomain},
		{"a cluster ID may hold dots", "db-0.north.eu.db.shop A", `NOERROR
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},
		{"<cluster>.<svc> is an empty non-terminal", "east.db.shop A", nodata},
		{"<cluster>.<svc> with a dot is one too", "north.eu.db.shop A", nodata},
		{"and so is what lies above it", "eu.db.shop A", nodata},
		{"no such cluster", "south.db.shop A", nxdomain},
		{"the right end of a cluster ID only", "u.db.shop A", nxdomain},
		{"named port of one cluster without the option", "_pg._tcp.east.db.shop SRV", nxdomain},

		{"existing name, other type: NODATA", "web.shop MX", nodata},
		{"ANY of a service: NODATA", "web.shop ANY", nodata},
		{"HTTPS of a service: NODATA", "web.shop HTTPS", nodata},
		{"TXT of a service: NODATA", "db.shop TXT", nodata},
		{"apex: NODATA", "clusterset.local. A", nodata},
		{"svc.<zone>: NODATA", "svc.clusterset.local. A", nodata},
		{"an existing namespace: NODATA", "shop A", nodata},
		{"an existing namespace without services: NODATA", "empty A", nodata},
		{"missing namespace: NXDOMAIN", "nowhere A", nxdomain},
		{"missing namespace, service: NXDOMAIN", "web.nowhere A", nxdomain},
		{"missing service: NXDOMAIN", "nothing.shop A", nxdomain},
		{"below a missing service: NXDOMAIN", "_http._tcp.nothing.shop SRV", nxdomain},
		{"Headless with no ready backend: NXDOMAIN", "idle.shop A", nxdomain},
		{"pod names: NXDOMAIN", "10-1-1-1.shop.pod.clusterset.local. A", nxdomain},
		{"pod.<zone>: NXDOMAIN", "pod.clusterset.local. A", nxdomain},
		{"anything else: NXDOMAIN", "web.clusterset.local. A", nxdomain},
		{"a wildcard is a plain label", "*.shop A", nxdomain},
		{"a wildcard is a plain label, below", "*.east.db.shop A", nxdomain},
		{"a dot inside a label is not a separator", `web\.shop A`, nxdomain},

		{"apex SOA", "clusterset.local. SOA", "NOERROR\n" + testSOA},
		{"apex NS with glue", "clusterset.local. NS", `NOERROR
			clusterset.local. 5 IN NS ns.dns.clusterset.local.
			additional:
			ns.dns.clusterset.local. 5 IN A 192.0.2.53
			ns.dns.clusterset.local. 5 IN AAAA 2001:db8::53`},
		{"the name server's own name", "ns.dns.clusterset.local. AAAA", `NOERROR
			ns.dns.clusterset.local. 5 IN AAAA 2001:db8::53`},
		{"and its ancestor", "dns.clusterset.local. A", nodata},

		{"the question's case is echoed", "WeB.sHoP A", `NOERROR
			WeB.sHoP 5 IN A 10.96.0.10`},
		{"another zone is not ours", "example.org. A", "REFUSED"},
	})
}

// TestClusterNames has a case for each rule of the option cluster_names.
func TestClusterNames(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, shop+`
		gateway gw1 up=nobody
		import shop/dots Headless ports=pg/tcp/5432
		slice shop/dots b ports=pg/tcp/5432 a=10.5.0.1
		slice shop/dots a.b ports=pg/tcp/5432 h=10.5.0.2
		slice shop/dots tcp ports=pg/tcp/5432 http=10.5.0.3
	`))
	l.clusterNames = true
	runCases(t, l, []dnsCase{
		{"ClusterSetIP: the cluster's own address", "east.web.shop A", `NOERROR
			east.web.shop 5 IN A 10.1.0.1`},
		{"ClusterSetIP: the cluster's own address, AAAA", "east.web.shop AAAA", `NOERROR
			east.web.shop 5 IN AAAA fd00:1::1`},
		{"ClusterSetIP: its ports, its weight", "east.web.shop SRV", `NOERROR
			east.web.shop 5 IN SRV 0 7 80 east.web.shop
			additional:
			east.web.shop 5 IN A 10.1.0.1
			east.web.shop 5 IN AAAA fd00:1::1`},
		{"also when unready and unreachable", "west.web.shop A", `NOERROR
			west.web.shop 5 IN A 10.2.0.1`},
		{"the other family", "west.web.shop AAAA", nodata},
		{"a cluster ID with a dot", "north.eu.web.shop A", `NOERROR
			north.eu.web.shop 5 IN A 10.3.0.1`},
		{"above a cluster ID with a dot", "eu.web.shop A", nodata},
		{"named port of a cluster", "_https._tcp.west.web.shop SRV", `NOERROR
			_https._tcp.west.web.shop 5 IN SRV 0 50 443 west.web.shop
			additional:
			west.web.shop 5 IN A 10.2.0.1`},
		{"named port that this cluster lacks", "_https._tcp.east.web.shop SRV", nxdomain},
		{"_tcp of a cluster is an empty non-terminal", "_tcp.west.web.shop SRV", nodata},
		{"a cluster without a cluster-address slice", "south.web.shop A", nxdomain},
		{"no backend names", "10-1-9-9.east.web.shop A", nxdomain},

		{"Headless: the cluster's ready backends", "east.db.shop A", `NOERROR
			east.db.shop 5 IN A 10.1.1.1
			east.db.shop 5 IN A 10.1.1.3`},
		{"Headless: also when unreachable", "north.eu.db.shop A", `NOERROR
			north.eu.db.shop 5 IN A 10.3.1.1`},
		{"Headless: SRV of a cluster", "north.eu.db.shop SRV", `NOERROR
			north.eu.db.shop 5 IN SRV 0 50 7000 db-0.north.eu.db.shop
			additional:
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},
		{"Headless: named port of a cluster", "_raft._tcp.north.eu.db.shop SRV", `NOERROR
			_raft._tcp.north.eu.db.shop 5 IN SRV 0 50 7000 db-0.north.eu.db.shop
			additional:
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},
		{"Headless: a cluster with no ready backend", "east.idle.shop A", nxdomain},
		{"a backend of an unreachable cluster", "db-0.north.eu.db.shop A", `NOERROR
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},

		{"matched first as a whole, dots included", "a.b.dots.shop A", `NOERROR
			a.b.dots.shop 5 IN A 10.5.0.2`},
		{"then as host and cluster", "h.a.b.dots.shop A", `NOERROR
			h.a.b.dots.shop 5 IN A 10.5.0.2`},
		{"what matches neither", "c.b.dots.shop A", nxdomain},
		{"a host and a cluster before a port", "http.tcp.dots.shop A", `NOERROR
			http.tcp.dots.shop 5 IN A 10.5.0.3`},
		{"http.tcp is taken too", "http.tcp.web.shop SRV", `NOERROR
			http.tcp.web.shop 5 IN SRV 0 50 80 web.shop
			additional:
			web.shop 5 IN A 10.96.0.10
			web.shop 5 IN AAAA fd00:96::10`},
		{"and what lies above it", "tcp.web.shop SRV", nodata},
		{"but not half of it", "_http.tcp.web.shop SRV", nxdomain},
		{"nor the other half", "http._tcp.web.shop SRV", nxdomain},
	})
}

// TestReachability: a remote cluster is reachable when a Gateway shows an up cable to it.
func TestReachability(t *testing.T) {
	const objects = `
		namespace shop
		local east
		import shop/db Headless
		slice shop/db east ports=pg/tcp/5432 e=10.1.0.1
		slice shop/db west ports=pg/tcp/5432 w=10.2.0.1
		import shop/far Headless
		slice shop/far west ports=pg/tcp/5432 w=10.2.0.2
		import shop/web ClusterSetIP ips=10.96.0.1
		address shop/web west !10.2.0.9
	`
	east, west := "\ndb.shop 5 IN A 10.1.0.1", "\ndb.shop 5 IN A 10.2.0.1"
	for _, c := range []struct {
		rule, gateways, want string
	}{
		{"no Gateway objects: every cluster", "", "NOERROR" + east + west},
		{"an up cable", "gateway gw1 up=west", "NOERROR" + east + west},
		{"one of two cables", "gateway gw1 down=west up=north\ngateway gw2 up=west", "NOERROR" + east + west},
		{"connecting is not up; the local cluster always is", "gateway gw1 connecting=west", "NOERROR" + east},
		{"down", "gateway gw1 down=west", "NOERROR" + east},
		{"a cluster that vanished from every list", "gateway gw1", "NOERROR" + east},
	} {
		t.Run(strings.ReplaceAll(c.rule, " ", "_"), func(t *testing.T) {
			dnsCase{c.rule, "db.shop A", c.want}.run(t, newTestPlugin(newTestWorld(t, objects+c.gateways)))
		})
	}
	runCases(t, newTestPlugin(newTestWorld(t, objects+"gateway gw1 down=west")), []dnsCase{
		{"no ready backend in a reachable cluster: NXDOMAIN", "far.shop A", nxdomain},
		{"and its port names", "_pg._tcp.far.shop SRV", nxdomain},
		{"names that hold a cluster are answered", "w.west.far.shop A", `NOERROR
			w.west.far.shop 5 IN A 10.2.0.2`},
		{"clusterset IPs are answered regardless", "web.shop A", `NOERROR
			web.shop 5 IN A 10.96.0.1`},
	})
}

// TestBadAddresses: loopback, link-local, multicast, unspecified and unparseable addresses are never answered.
func TestBadAddresses(t *testing.T) {
	bad := "127.0.0.1,::1,169.254.169.254,fe80::1,224.0.0.1,ff02::1,0.0.0.0,::,10.0.0,www.example.org,::ffff:127.0.0.1,fe80::1%eth0"
	l := newTestPlugin(newTestWorld(t, `
		namespace shop
		import shop/web ClusterSetIP ports=http/tcp/80 ips=`+bad+`,10.96.0.1
		import shop/none ClusterSetIP ports=http/tcp/80 ips=`+bad+`
		address shop/none west ports=http/tcp/80 `+bad+`
		address shop/none east ports=http/tcp/80 `+bad+`,10.1.0.1
		import shop/db Headless
		slice shop/db west ports=pg/tcp/5432 a=`+bad+` b=127.0.0.1,10.2.0.1
		slice shop/db west ports=pg/tcp/5432 type=FQDN c=10.2.0.2
	`))
	runCases(t, l, []dnsCase{
		{"clusterset IPs", "web.shop A", "NOERROR\nweb.shop 5 IN A 10.96.0.1"},
		{"clusterset IPs, AAAA", "web.shop AAAA", nodata},
		{"IPs that are all unusable count as no IPs", "none.shop A", "NOERROR\nnone.shop 5 IN A 10.1.0.1"},
		{"backends; FQDN slices", "db.shop A", "NOERROR\ndb.shop 5 IN A 10.2.0.1"},
		{"a backend with none left", "a.west.db.shop A", nxdomain},
	})
}

// TestRepeatedAddresses: duplicate addresses over slices are given once.
func TestRepeatedAddresses(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, `
		namespace shop
		import shop/db Headless
		slice shop/db west ports=pg/tcp/5432 a=10.0.0.1 10.0.0.2
		slice shop/db west ports=pg/tcp/5432,metrics/tcp/9187 a=10.0.0.1 10.0.0.2
		slice shop/db east ports=pg/tcp/5432 b=10.0.0.1
	`))
	runCases(t, l, []dnsCase{
		{"A", "db.shop A", "NOERROR\ndb.shop 5 IN A 10.0.0.1\ndb.shop 5 IN A 10.0.0.2"},
		{"slices of one backend are merged", "_metrics._tcp.db.shop SRV", `NOERROR
			_metrics._tcp.db.shop 5 IN SRV 0 50 9187 a.west.db.shop
			_metrics._tcp.db.shop 5 IN SRV 0 50 9187 10-0-0-2.west.db.shop
			additional:
			a.west.db.shop 5 IN A 10.0.0.1
			10-0-0-2.west.db.shop 5 IN A 10.0.0.2`},
	})
}

// TestIPv6BackendNames: without a hostname a backend's name is its address with colons turned into dashes.
func TestIPv6BackendNames(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, `
		namespace shop
		import shop/db Headless
		slice shop/db west ports=pg/tcp/5432 fd00:2::7
	`))
	runCases(t, l, []dnsCase{
		{"AAAA", "fd00-2--7.west.db.shop AAAA", "NOERROR\nfd00-2--7.west.db.shop 5 IN AAAA fd00:2::7"},
		{"SRV", "_pg._tcp.db.shop SRV", `NOERROR
			_pg._tcp.db.shop 5 IN SRV 0 50 5432 fd00-2--7.west.db.shop
			additional:
			fd00-2--7.west.db.shop 5 IN AAAA fd00:2::7`},
	})
}
