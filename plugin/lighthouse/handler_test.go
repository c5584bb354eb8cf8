package lighthouse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// TestFallthrough: name errors only.
func TestFallthrough(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, shop))
	l.fall.SetZonesFromArgs(nil)
	runCases(t, l, []dnsCase{
		{"missing service", "nothing.shop A", "REFUSED"},
		{"missing namespace", "nothing.nowhere A", "REFUSED"},
		{"anything else", "pod.clusterset.local. A", "REFUSED"},
		{"NODATA does not fall through", "web.shop MX", nodata},
		{"Headless with no ready backend does not fall through", "idle.shop A", nxdomain},
	})
	l.fall.SetZonesFromArgs([]string{"example.org"})
	runCases(t, l, []dnsCase{{"only the zones listed", "nothing.shop A", nxdomain}})
}

// TestBeforeSync: apex and dns-version are answered, everything below svc is SERVFAIL and never falls through.
func TestBeforeSync(t *testing.T) {
	w := newWorld(resourceImports, resourceGateways)
	parseObjects(t, shop).into(w)
	l := newTestPlugin(w)
	l.fall.SetZonesFromArgs(nil)
	for _, c := range []dnsCase{
		{"apex", "clusterset.local. SOA", "NOERROR\n" + testSOA},
		{"dns-version", "dns-version.clusterset.local. TXT", "NOERROR\ndns-version.clusterset.local. 28800 IN TXT 1.0.0"},
		{"service", "web.shop A", "SERVFAIL"},
		{"namespace", "shop A", "SERVFAIL"},
		{"missing namespace", "nothing.nowhere A", "SERVFAIL"},
	} {
		t.Run(c.rule, func(t *testing.T) { c.run(t, l) })
	}
	if l.Ready() {
		t.Error("ready before everything was read")
	}
	w.setSynced(resourceImports, true)
	w.setSynced(resourceGateways, true)
	if !l.Ready() {
		t.Error("not ready after everything was read")
	}
	dnsCase{"after", "web.shop A", "NOERROR\nweb.shop 5 IN A 10.96.0.10"}.run(t, l)
}

func TestOptions(t *testing.T) {
	t.Run("namespaces", func(t *testing.T) {
		l := newTestPlugin(newTestWorld(t, shop))
		l.namespaces = map[string]struct{}{"empty": {}}
		runCases(t, l, []dnsCase{
			{"serve only these", "web.shop A", nxdomain},
			{"serve only these", "shop A", nxdomain},
			{"serve only these", "empty A", nodata},
		})
	})
	t.Run("ttl", func(t *testing.T) {
		l := newTestPlugin(newTestWorld(t, shop))
		l.ttl = 0
		runCases(t, l, []dnsCase{{"of answers", "web.shop A", "NOERROR\nweb.shop 0 IN A 10.96.0.10"}})
		m, _ := ask(t, l, "web.nowhere.svc."+testZone, dns.TypeA)
		if soa := m.Ns[0].(*dns.SOA); soa.Hdr.Ttl != 0 || soa.Minttl != 0 {
			t.Errorf("negative TTL is not the option's: %v", soa)
		}
	})
	t.Run("cluster_id", func(t *testing.T) {
		l := newTestPlugin(newTestWorld(t, balanced+"local east"))
		l.clusterID = "north"
		if got := answers(t, l, "web.shop A", 1); got[0] != "10.3.0.1" {
			t.Errorf("the option does not go before the ClusterProperty: %v", got)
		}
	})
}

// TestMaxAnswers: one stable subset of backends for all types; host names outside it stay resolvable.
func TestMaxAnswers(t *testing.T) {
	var text strings.Builder
	text.WriteString("namespace shop\nimport shop/db Headless\n")
	for i := range 40 {
		fmt.Fprintf(&text, "slice shop/db c%d ports=pg/tcp/5432 db-%d=10.0.0.%d\n", i%3, i, i)
		fmt.Fprintf(&text, "slice shop/db c%d ports=pg/tcp/5432 db-%d=fd00::%x\n", i%3, i, i+1)
	}
	w := newTestWorld(t, text.String())
	l := newTestPlugin(w)
	l.maxAnswers = 10

	four := answers(t, l, "db.shop A", 2)
	if four[0] != four[1] || strings.Count(four[0], ",")+1 != 10 {
		t.Errorf("not ten and the same: %v", four)
	}
	var hosts []string // of the backends, by the last number of the address
	for addr := range strings.SplitSeq(four[0], ", ") {
		hosts = append(hosts, addr[strings.LastIndex(addr, ".")+1:])
	}
	m, _ := ask(t, l, "db.shop.svc."+testZone, dns.TypeSRV)
	for _, rr := range m.Answer {
		host := strings.TrimPrefix(strings.Split(rr.(*dns.SRV).Target, ".")[0], "db-")
		if !slices.Contains(hosts, host) {
			t.Errorf("SRV has a backend, %s, that A has not: %v", host, hosts)
		}
	}
	if len(m.Answer) != 10 || len(m.Extra) != 20 {
		t.Errorf("%d SRV records and %d of glue, want 10 and 20", len(m.Answer), len(m.Extra))
	}
	m, _ = ask(t, l, "db.shop.svc."+testZone, dns.TypeAAAA)
	for _, rr := range m.Answer {
		last := fmt.Sprint(int(rr.(*dns.AAAA).AAAA[15]) - 1)
		if !slices.Contains(hosts, last) {
			t.Errorf("AAAA has a backend, %s, that A has not: %v", last, hosts)
		}
	}
	for i := range 40 {
		dnsCase{"outside it", fmt.Sprintf("db-%d.c%d.db.shop A", i, i%3), fmt.Sprintf("NOERROR\ndb-%d.c%d.db.shop 5 IN A 10.0.0.%d", i, i%3, i)}.run(t, l)
	}

	// One backend more changes at most one of the ten.
	before := strings.Split(four[0], ", ")
	w.setSlice(newSliceObject(parseObjects(t, "slice shop/db c9 ports=pg/tcp/5432 another=10.0.1.1").slices[0]))
	changed := 0
	for addr := range strings.SplitSeq(answers(t, l, "db.shop A", 1)[0], ", ") {
		if !slices.Contains(before, addr) {
			changed++
		}
	}
	if changed > 1 {
		t.Errorf("one backend more changed %d of the answers", changed)
	}
}

// TestTooLargeForTCP: a reply too large even for TCP loses its glue first.
func TestTooLargeForTCP(t *testing.T) {
	var text strings.Builder
	text.WriteString("namespace shop\nimport shop/db Headless\n")
	for i := range 600 {
		fmt.Fprintf(&text, "slice shop/db west ports=pg/tcp/5432 a-rather-long-name-of-a-backend-%d=10.0.%d.%d\n", i, i/200, i%200)
	}
	l := newTestPlugin(newTestWorld(t, text.String()))
	l.maxAnswers = 1000
	m, _ := ask(t, l, "db.shop.svc."+testZone, dns.TypeSRV)
	if len(m.Answer) != 600 || len(m.Extra) != 0 {
		t.Errorf("%d answers and %d of glue, want 600 and none", len(m.Answer), len(m.Extra))
	}
	wire, err := m.Pack()
	if err != nil || len(wire) > dns.MaxMsgSize {
		t.Errorf("%d bytes, %v", len(wire), err)
	}
}

// TestSuspicion: when all of two or more remotes go within a second, their answers stay, with TTL 1, for 30 s or until
// one is back.
func TestSuspicion(t *testing.T) {
	const objects = `
		namespace shop
		import shop/db Headless
		slice shop/db east ports=pg/tcp/5432 e=10.1.0.1
		slice shop/db west ports=pg/tcp/5432 w=10.2.0.1
	`
	gateway := func(w *world, line string) {
		w.setGateway(newGatewayObject(parseObjects(t, line).gateways[0]))
	}
	both := "NOERROR\ndb.shop %d IN A 10.1.0.1\ndb.shop %[1]d IN A 10.2.0.1"
	check := func(rule, want string, l *Lighthouse) {
		t.Helper()
		dnsCase{rule, "db.shop A", want}.run(t, l)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newTestWorld(t, objects+"gateway gw up=east,west")
		l := newTestPlugin(w)
		check("both up", fmt.Sprintf(both, 5), l)

		gateway(w, "gateway gw up=west down=east")
		check("one of two down", "NOERROR\ndb.shop 5 IN A 10.2.0.1", l)
		time.Sleep(900 * time.Millisecond)
		gateway(w, "gateway gw down=east,west")
		check("both within a second", fmt.Sprintf(both, 1), l)
		time.Sleep(29 * time.Second)
		gateway(w, "gateway gw connecting=east,west")
		check("after 29 s", fmt.Sprintf(both, 1), l)
		time.Sleep(2 * time.Second)
		check("after 31 s", nxdomain, l)

		gateway(w, "gateway gw up=east,west")
		gateway(w, "gateway gw down=east,west")
		check("both at once", fmt.Sprintf(both, 1), l)
		gateway(w, "gateway gw up=east down=west")
		check("one is back", "NOERROR\ndb.shop 5 IN A 10.1.0.1", l)
		time.Sleep(time.Minute)
		check("and stays", "NOERROR\ndb.shop 5 IN A 10.1.0.1", l)
		gateway(w, "gateway gw down=east,west")
		check("the last of one", nxdomain, l)

		gateway(w, "gateway gw up=east,west")
		gateway(w, "gateway gw up=west")
		time.Sleep(1100 * time.Millisecond)
		gateway(w, "gateway gw")
		check("more than a second between", nxdomain, l)
		w.close()
	})
	synctest.Test(t, func(t *testing.T) {
		w := newTestWorld(t, objects+"gateway gw down=east,west")
		check("a start with none reachable is no suspicion", nxdomain, newTestPlugin(w))
		w.close()
	})
}

// TestSerial: it rises on every change of records, and on nothing else.
func TestSerial(t *testing.T) {
	w := newTestWorld(t, shop)
	l := newTestPlugin(w)
	serial := func() uint32 {
		m, _ := ask(t, l, testZone, dns.TypeSOA)
		return m.Answer[0].(*dns.SOA).Serial
	}
	before := serial()
	parseObjects(t, shop).into(w)
	for range 10 {
		ask(t, l, "web.shop.svc."+testZone, dns.TypeA)
	}
	if got := serial(); got != before {
		t.Errorf("the serial went from %d to %d without a change of records", before, got)
	}
	for _, change := range []func(){
		func() {
			w.setSlice(newSliceObject(parseObjects(t, "slice shop/db new ports=pg/tcp/5432 x=10.7.0.1").slices[0]))
		},
		func() { w.deleteSlice(objectKey{"shop", "db-0"}) },
		func() { w.setNamespace("another", true) },
		func() { w.setGateway(newGatewayObject(parseObjects(t, "gateway gw up=west").gateways[0])) },
		func() { w.deleteImport(objectKey{"shop", "four"}) },
	} {
		change()
		got := serial()
		if got <= before {
			t.Errorf("the serial went from %d to %d on a change", before, got)
		}
		before = got
	}
}

// TestRecordsAreNotShared: other plugins change what they are handed, such as rewrite.
func TestRecordsAreNotShared(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, shop))
	for _, question := range []string{"web.shop A", "web.shop AAAA", "web.shop SRV", "db.shop A", "db.shop SRV", "nothing.shop A"} {
		name, typeName, _ := strings.Cut(question, " ")
		name += ".svc." + testZone
		first, _ := ask(t, l, name, dns.StringToType[typeName])
		want := first.String()
		for _, rr := range slices.Concat(first.Answer, first.Ns, first.Extra) {
			rr.Header().Name, rr.Header().Ttl = "changed.", 99
			switch rr := rr.(type) {
			case *dns.A:
				rr.A[0]++
			case *dns.AAAA:
				rr.AAAA[0]++
			}
		}
		second, _ := ask(t, l, name, dns.StringToType[typeName])
		second.Id = first.Id
		if got := second.String(); strings.SplitN(got, "\n", 2)[1] != strings.SplitN(want, "\n", 2)[1] {
			t.Errorf("%s: what was done to one reply shows in the next:\n%s", question, got)
		}
	}
}

func TestMetadata(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, shop))
	l.clusterNames = true
	for _, c := range []struct{ name, want string }{
		{"web.shop", "kind=clustersetip namespace=shop service=web"},
		{"db-0.north.eu.db.shop", "cluster=north.eu hostname=db-0 kind=backend namespace=shop service=db"},
		{"_http._tcp.east.web.shop", "cluster=east kind=cluster namespace=shop port=http protocol=tcp service=web"},
		{"nothing.shop", "namespace=shop service=nothing"},
	} {
		m := new(dns.Msg)
		m.SetQuestion(c.name+".svc."+testZone, dns.TypeA)
		ctx := metadata.ContextWithMetadata(context.Background())
		ctx = l.Metadata(ctx, request.Request{W: &test.ResponseWriter{}, Req: m})
		var got []string
		for _, label := range metadata.Labels(ctx) {
			got = append(got, strings.TrimPrefix(label, "lighthouse/")+"="+metadata.ValueFunc(ctx, label)())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %v, want %s", c.name, got, c.want)
		}
	}
}

// TestTransferWithoutPlugin: nobody gets the zone by asking the plugin itself.
func TestTransferWithoutPlugin(t *testing.T) {
	m, rcode := ask(t, newTestPlugin(newTestWorld(t, shop)), testZone, dns.TypeAXFR)
	if m != nil || rcode != dns.RcodeRefused {
		t.Errorf("got %v, %s", m, dns.RcodeToString[rcode])
	}
}

func BenchmarkServeDNS(b *testing.B) {
	var text strings.Builder
	text.WriteString("namespace shop\n")
	for i := range 10000 {
		fmt.Fprintf(&text, "import shop/web-%d ClusterSetIP ips=10.96.%d.%d ports=http/tcp/80\n", i, i/250, i%250)
	}
	for _, n := range []int{25, 100} {
		fmt.Fprintf(&text, "import shop/db%d Headless\nslice shop/db%[1]d west ports=pg/tcp/5432", n)
		for i := range n {
			fmt.Fprintf(&text, " db-%d=10.0.0.%d", i, i+1)
		}
		text.WriteString("\n")
	}
	l := newTestPlugin(newTestWorld(b, text.String()))
	for _, c := range []struct{ name, question string }{
		{"clusterip-a", "web-4711.shop A"},
		{"headless25-a", "db25.shop A"},
		{"headless100-a", "db100.shop A"},
		{"headless25-srv", "db25.shop SRV"},
		{"nxdomain", "nothing.shop A"},
		{"srv", "_http._tcp.web-4711.shop SRV"},
	} {
		b.Run(c.name, func(b *testing.B) {
			name, typeName, _ := strings.Cut(c.question, " ")
			m := new(dns.Msg)
			m.SetQuestion(name+".svc."+testZone, dns.StringToType[typeName])
			w := &test.ResponseWriter{}
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				l.ServeDNS(ctx, w, m)
			}
		})
	}
}

// BenchmarkSliceUpdate: one slice of 100 backends changes in a zone of 250,000, from the API's object to being served.
func BenchmarkSliceUpdate(b *testing.B) {
	for _, c := range []struct {
		name     string
		services int
	}{{"2500-services-of-1-slice", 2500}, {"10-services-of-250-slices", 10}, {"1-service-of-2500-slices", 1}} {
		b.Run(c.name, func(b *testing.B) {
			const all = 2500
			var text strings.Builder
			text.WriteString("namespace shop\n")
			for i := range c.services {
				fmt.Fprintf(&text, "import shop/db-%d Headless\n", i)
			}
			for i := range all {
				fmt.Fprintf(&text, "slice shop/db-%d c%d ports=pg/tcp/5432", i%c.services, i%7)
				for n := range 100 {
					fmt.Fprintf(&text, " db-%d=10.%d.%d.%d", n, i/250, i%250, n+1)
				}
				text.WriteString("\n")
			}
			objects := parseObjects(b, text.String())
			w := newWorld()
			objects.into(w)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				slice := objects.slices[n*7%all]
				ready := slice.Endpoints[n%100].Conditions.Ready
				*ready = !*ready
				w.setSlice(newSliceObject(slice))
				n++
			}
		})
	}
}
