package lighthouse

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// TestFaultsOfPeers has a case for each fault known of CoreDNS's *kubernetes* with `multicluster` (1.15.0) and of Submariner's
// Lighthouse (2024): none of them is ours.
func TestFaultsOfPeers(t *testing.T) {
	objects := `
		namespace shop
		local east
		import shop/db Headless ports=pg/tcp/5432
		slice shop/db north.eu ports=pg/tcp/5432 db-0=10.3.1.1
		slice shop/db north.eu ports=pg/tcp/5432 db-0=fd00:3::1
		slice shop/db west ports=pg/tcp/5432,bad/tcp/0,worse/tcp/70000 w=10.2.1.1
		import shop/portless ClusterSetIP ips=10.96.0.12
		import shop/odd ClusterSetIP ips=www.example.org,127.0.0.1,224.0.0.1,10.96.0.13 ports=http/tcp/80
		import shop/mixed ClusterSetIP ips=10.96.0.14 ports=bad/tcp/0,http/tcp/80,worse/tcp/70000
	`
	w := newTestWorld(t, objects)
	l := newTestPlugin(w)
	runCases(t, l, []dnsCase{
		{"kubernetes: TXT says 1.1.0", "dns-version.clusterset.local. TXT", `NOERROR
			dns-version.clusterset.local. 28800 IN TXT "1.0.0"`},
		{"kubernetes: SRV targets of two-label cluster IDs do not resolve", "db-0.north.eu.db.shop A", `NOERROR
			db-0.north.eu.db.shop 5 IN A 10.3.1.1`},
		{"kubernetes: imports with IPs and no ports are NXDOMAIN", "portless.shop A", "NOERROR\nportless.shop 5 IN A 10.96.0.12"},
		{"kubernetes: an unparseable import IP becomes a CNAME; loopback and multicast addresses are answered", "odd.shop A",
			"NOERROR\nodd.shop 5 IN A 10.96.0.13"},
		{"kubernetes: apex NS is wrong", "clusterset.local. NS", `NOERROR
			clusterset.local. 5 IN NS ns.dns.clusterset.local.
			additional:
			ns.dns.clusterset.local. 5 IN A 192.0.2.53
			ns.dns.clusterset.local. 5 IN AAAA 2001:db8::53`},
		{"kubernetes: apex TXT is wrong", "clusterset.local. TXT", nodata},
		{"Lighthouse: A and SRV only", "db-0.north.eu.db.shop AAAA", `NOERROR
			db-0.north.eu.db.shop 5 IN AAAA fd00:3::1`},
		{"Lighthouse: no SOA in negatives", "nothing.shop A", nxdomain}, // run checks for it
		{"Lighthouse: no SOA in negatives, NODATA", "portless.shop AAAA", nodata},
		{"Lighthouse: one bad port drops a whole SRV answer", "mixed.shop SRV", `NOERROR
			mixed.shop 5 IN SRV 0 50 80 mixed.shop
			additional:
			mixed.shop 5 IN A 10.96.0.14`},
		{"Lighthouse: one bad port drops a whole SRV answer, of backends", "db.shop SRV", `NOERROR
			db.shop 5 IN SRV 0 50 5432 db-0.north.eu.db.shop
			db.shop 5 IN SRV 0 50 5432 w.west.db.shop
			additional:
			db-0.north.eu.db.shop 5 IN A 10.3.1.1
			db-0.north.eu.db.shop 5 IN AAAA fd00:3::1
			w.west.db.shop 5 IN A 10.2.1.1`},
	})
	t.Run("kubernetes: AXFR drops cluster labels", func(t *testing.T) {
		if all := strings.Join(transferred(t, l, testZone), "\n"); !strings.Contains(all, "db-0.north.eu.db.shop.svc.clusterset.local.\t5\tIN\tA\t10.3.1.1") {
			t.Errorf("got\n%s", all)
		}
	})
	t.Run("kubernetes: the SOA serial stays 0 on import changes; Lighthouse: updates of a known import are ignored", func(t *testing.T) {
		before := w.current.Load().serial
		w.setImport(newImportObject(parseObjects(t, "import shop/portless ClusterSetIP ips=10.96.0.99").imports[0]))
		if after := w.current.Load().serial; before == 0 || after <= before {
			t.Errorf("the serial went from %d to %d", before, after)
		}
		dnsCase{"", "portless.shop A", "NOERROR\nportless.shop 5 IN A 10.96.0.99"}.run(t, l)
	})
	t.Run("kubernetes: with fallthrough and no API server names leak to the next plugin", func(t *testing.T) {
		l := newTestPlugin(newWorld(resourceImports))
		l.fall.SetZonesFromArgs(nil)
		dnsCase{"", "web.shop A", "SERVFAIL"}.run(t, l)
	})
	t.Run("kubernetes: no health", func(t *testing.T) {
		w.setGateway(newGatewayObject(parseObjects(t, "gateway gw up=west down=north.eu").gateways[0]))
		dnsCase{"", "db.shop A", "NOERROR\ndb.shop 5 IN A 10.2.1.1"}.run(t, l)
	})
	t.Run("Lighthouse: no readiness", func(t *testing.T) {
		if newTestPlugin(newWorld(resourceImports)).Ready() || !l.Ready() {
			t.Error("ready before anything was read, or not after")
		}
	})
	// Elsewhere: "a missing CRD keeps CoreDNS unready and turns cluster.local negatives into SERVFAIL" in TestBesideKubernetes and
	// TestMissingResource; "labels does not filter imports" in TestLabels; "v1alpha1 only" in TestWatch and TestAlpha; "no locality,
	// weights" in TestBalance; "unbounded metric labels" in TestMetrics.
	if m, _ := ask(t, l, "db-0.north.eu.db.shop.svc."+testZone, dns.TypeSRV); len(m.Answer) > 0 {
		t.Errorf("a backend has no SRV records: %v", m)
	}
}
