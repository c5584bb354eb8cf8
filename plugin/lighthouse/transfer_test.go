package lighthouse

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"
)

// transferred gives the records of a transfer, as sorted text without the SOA records around them.
func transferred(t *testing.T, l *Lighthouse, zone string) []string {
	t.Helper()
	batches, err := l.Transfer(zone, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []dns.RR
	for batch := range batches {
		all = append(all, batch...)
	}
	first, isSOA := all[0].(*dns.SOA)
	last, alsoSOA := all[len(all)-1].(*dns.SOA)
	if !isSOA || !alsoSOA || *first != *last || first.Serial != l.world.current.Load().serial {
		t.Fatalf("not between two SOA records of this serial: %v, %v", all[0], all[len(all)-1])
	}
	var text []string
	for _, rr := range all[1 : len(all)-1] {
		text = append(text, rr.String())
	}
	slices.Sort(text)
	return text
}

// TestTransfer: the same records as live answers.
func TestTransfer(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, `
		namespace shop
		import shop/web ClusterSetIP ips=10.96.0.10,fd00:96::10 ports=http/tcp/80,tcp/9000
		address shop/web east ports=http/tcp/80 10.1.0.1
		import shop/db Headless ports=pg/tcp/5432
		slice shop/db east ports=pg/tcp/5432 db-0=10.1.1.1 !db-1=10.1.1.2
		slice shop/db west ports=pg/tcp/5432 10.2.1.1
		import shop/bal ClusterSetIP
		address shop/bal west ports=http/tcp/80 10.2.0.1
		address shop/bal east ports=http/tcp/80 weight=2 10.1.0.2
		address shop/bal none ports=http/tcp/80 weight=0 10.3.0.2
		import nowhere/web ClusterSetIP ips=10.96.0.11
		gateway gw up=east,none down=west
	`))
	check := func(rule, want string) {
		t.Helper()
		var texts []string
		for _, rr := range records(t, want) {
			texts = append(texts, rr.String())
		}
		slices.Sort(texts)
		if got := transferred(t, l, testZone); !slices.Equal(got, texts) {
			t.Errorf("%s: got\n%s\nwant\n%s", rule, strings.Join(got, "\n"), strings.Join(texts, "\n"))
		}
	}
	const common = `
		clusterset.local. 5 IN NS ns.dns.clusterset.local.
		ns.dns.clusterset.local. 5 IN A 192.0.2.53
		ns.dns.clusterset.local. 5 IN AAAA 2001:db8::53
		dns-version.clusterset.local. 28800 IN TXT "1.0.0"
		web.shop 5 IN A 10.96.0.10
		web.shop 5 IN AAAA fd00:96::10
		web.shop 5 IN SRV 0 50 80 web.shop
		web.shop 5 IN SRV 0 50 9000 web.shop
		_http._tcp.web.shop 5 IN SRV 0 50 80 web.shop
		db.shop 5 IN A 10.1.1.1
		db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
		_pg._tcp.db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
		db-0.east.db.shop 5 IN A 10.1.1.1
		10-2-1-1.west.db.shop 5 IN A 10.2.1.1
		bal.shop 5 IN A 10.1.0.2
		bal.shop 5 IN SRV 0 2 80 bal.shop
		_http._tcp.bal.shop 5 IN SRV 0 2 80 bal.shop
	`
	check("as the specification has it", common)
	l.clusterNames = true
	check("cluster labels included", common+`
		http.tcp.web.shop 5 IN SRV 0 50 80 web.shop
		east.web.shop 5 IN A 10.1.0.1
		east.web.shop 5 IN SRV 0 50 80 east.web.shop
		_http._tcp.east.web.shop 5 IN SRV 0 50 80 east.web.shop
		http.tcp.east.web.shop 5 IN SRV 0 50 80 east.web.shop
		pg.tcp.db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
		east.db.shop 5 IN A 10.1.1.1
		east.db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
		_pg._tcp.east.db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
		pg.tcp.east.db.shop 5 IN SRV 0 50 5432 db-0.east.db.shop
		west.db.shop 5 IN A 10.2.1.1
		west.db.shop 5 IN SRV 0 50 5432 10-2-1-1.west.db.shop
		_pg._tcp.west.db.shop 5 IN SRV 0 50 5432 10-2-1-1.west.db.shop
		pg.tcp.west.db.shop 5 IN SRV 0 50 5432 10-2-1-1.west.db.shop
		http.tcp.bal.shop 5 IN SRV 0 2 80 bal.shop
		west.bal.shop 5 IN A 10.2.0.1
		west.bal.shop 5 IN SRV 0 50 80 west.bal.shop
		_http._tcp.west.bal.shop 5 IN SRV 0 50 80 west.bal.shop
		http.tcp.west.bal.shop 5 IN SRV 0 50 80 west.bal.shop
		east.bal.shop 5 IN A 10.1.0.2
		east.bal.shop 5 IN SRV 0 2 80 east.bal.shop
		_http._tcp.east.bal.shop 5 IN SRV 0 2 80 east.bal.shop
		http.tcp.east.bal.shop 5 IN SRV 0 2 80 east.bal.shop
		none.bal.shop 5 IN A 10.3.0.2
		none.bal.shop 5 IN SRV 0 0 80 none.bal.shop
		_http._tcp.none.bal.shop 5 IN SRV 0 0 80 none.bal.shop
		http.tcp.none.bal.shop 5 IN SRV 0 0 80 none.bal.shop
	`)
	l.clusterNames, l.clusterID = false, "east"
	check("the local address if usable", common)
	l.clusterID = ""
	l.world.setGateway(newGatewayObject(parseObjects(t, "gateway gw up=none").gateways[0]))
	if got := transferred(t, l, testZone); !slices.Contains(got, "bal.shop.svc.clusterset.local.\t5\tIN\tA\t10.3.0.2") {
		t.Errorf("weight 0 where no other is left: got %v", got)
	}
}

// TestTransferSerial: an incremental request from that serial on is told that there is nothing new; an older one gets the
// zone.
func TestTransferSerial(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, shop))
	serial := l.world.current.Load().serial
	for _, c := range []struct {
		rule   string
		serial uint32
		whole  bool
	}{
		{"AXFR", 0, true},
		{"the same", serial, false},
		{"newer", serial + 1, false},
		{"older", serial - 1, true},
		{"older, across the end of the numbers", serial + 1<<31 + 1, true},
	} {
		batches, err := l.Transfer(testZone, c.serial)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for batch := range batches {
			n += len(batch)
		}
		if (n > 1) != c.whole {
			t.Errorf("%s: %d records", c.rule, n)
		}
	}
	if _, err := l.Transfer("example.org.", 0); !errors.Is(err, transfer.ErrNotAuthoritative) {
		t.Errorf("of another zone: %v", err)
	}
	if _, err := newTestPlugin(newWorld(resourceImports)).Transfer(testZone, 0); !errors.Is(err, errNotSynced) {
		t.Errorf("before everything was read: %v", err)
	}
}

// TestTransferEqualsAnswers: the zone as it is transferred is the set of all that may be answered, in worlds drawn by lot.
func TestTransferEqualsAnswers(t *testing.T) {
	for number := range 150 {
		lots := newLots(t, number)
		lots.settled = true
		c, o := lots.clusterset(), lots.options()
		w := newWorld()
		c.objects().into(w)
		l := o.plugin(w)
		for _, zone := range o.zones {
			l.zones = []string{zone} // a zone within another would answer for it
			m := o.model(c, l)
			m.zones = l.zones
			got := map[string]map[string]bool{} // records by "owner TYPE"
			for _, text := range transferred(t, l, zone) {
				fields := strings.SplitN(text, "\t", 5)
				key := fields[0] + " " + fields[3]
				if got[key] == nil {
					got[key] = map[string]bool{}
				}
				if got[key][text] {
					t.Errorf("world %d: twice: %s", number, text)
				}
				got[key][text] = true
			}
			want, turns := map[string]map[string]bool{}, map[string]bool{}
			for name := range everyName(m, zone) {
				for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeNS, dns.TypeTXT} {
					e := m.ask(name, qtype)
					answers := e.replies
					// Of several addresses of one cluster the model lets either be the answer, while one is.
					turns[name+" "+dns.TypeToString[qtype]] = len(answers) > 1
					if e.pool != nil {
						live, _ := ask(t, l, name, qtype) // the model does not know which backends are chosen
						answers = []modelReply{{}}
						for _, rr := range live.Answer {
							answers[0].answer = append(answers[0].answer, rr.String())
						}
					}
					for _, reply := range answers {
						for _, text := range reply.answer {
							key := name + " " + dns.TypeToString[qtype]
							if want[key] == nil {
								want[key] = map[string]bool{}
							}
							want[key][name+" "+text] = true
						}
					}
				}
			}
			for key := range want {
				if n := len(got[key]); n != len(want[key]) && !(turns[key] && 0 < n && n < len(want[key])) {
					t.Errorf("world %d, %s: %d records transferred, %d may be answered: %v, %v\n%s%s", number, key, len(got[key]), len(want[key]), got[key], want[key], o, c)
				}
			}
			for key := range got {
				if want[key] == nil {
					t.Errorf("world %d, %s is transferred and never answered\n%s%s", number, key, o, c)
				}
			}
			if t.Failed() {
				return
			}
		}
	}
}

// everyName gives every name of a zone that the model knows, fully qualified.
func everyName(m *model, zone string) map[string]bool {
	names := map[string]bool{}
	add := func(nodes map[string]modelNode) {
		for name := range nodes {
			if name == "" {
				names[zone] = true
			} else {
				names[modelUnder(name, zone)] = true
			}
		}
	}
	add(m.nodes(zone, ""))
	for _, i := range m.imports {
		add(m.nodes(zone, i.Name+"."+i.Namespace+".svc"))
	}
	return names
}

// TestTransferOverTCP: through the plugin *transfer*, as a secondary server asks for it.
func TestTransferOverTCP(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, shop)
	i, address := startServer(t, `clusterset.local:PORT {
		bind 127.0.0.1
		transfer {
			to *
		}
		lighthouse {
			kubeconfig KUBECONFIG
		}
	}`, api)
	defer stopInstance(t, i)
	soa := new(dns.Msg)
	soa.SetQuestion(testZone, dns.TypeSOA)
	reply, err := dns.Exchange(soa, address)
	if err != nil || len(reply.Answer) != 1 {
		t.Fatalf("%v, %v", reply, err)
	}
	serial := reply.Answer[0].(*dns.SOA).Serial
	records := func(query *dns.Msg) (n int) {
		t.Helper()
		envelopes, err := (&dns.Transfer{}).In(query, address)
		if err != nil {
			t.Fatal(err)
		}
		for e := range envelopes {
			if e.Error != nil {
				t.Fatal(e.Error)
			}
			for _, rr := range e.RR {
				if soa, ok := rr.(*dns.SOA); ok && soa.Serial != serial {
					t.Errorf("serial %d, and %d to a query", soa.Serial, serial)
				}
			}
			n += len(e.RR)
		}
		return n
	}
	if n := records(new(dns.Msg).SetAxfr(testZone)); n < 20 {
		t.Errorf("%d records", n)
	}
	if n := records(new(dns.Msg).SetIxfr(testZone, serial, "ns.dns."+testZone, "hostmaster."+testZone)); n != 1 {
		t.Errorf("%d records for a secondary server that has them all", n)
	}
	udp := new(dns.Msg)
	udp.SetAxfr(testZone)
	if reply, err := dns.Exchange(udp, address); err != nil || reply.Rcode != dns.RcodeRefused {
		t.Errorf("over UDP: %v, %v", reply, err)
	}
}
