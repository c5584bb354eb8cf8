package lighthouse

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"
)

// startServer runs CoreDNS with a Corefile, in which PORT stands for the port and KUBECONFIG for the file that names the
// API server.
func startServer(t *testing.T, corefile string, api *fakeAPI) (*caddy.Instance, string) {
	t.Helper()
	withLighthouse()
	address := loopback()
	port := freePort(t, address)
	i, err := caddy.Start(corefileInput(strings.NewReplacer("bind 127.0.0.1", "bind "+address, "PORT", port,
		"KUBECONFIG", writeKubeconfig(t, api.URL)).Replace(corefile)))
	if err != nil {
		t.Fatal(err)
	}
	return i, net.JoinHostPort(address, port)
}

// withLighthouse puts the directive in its place, as coredns-build does.
func withLighthouse() {
	if !slices.Contains(dnsserver.Directives, pluginName) {
		before := slices.Index(dnsserver.Directives, "kubernetes")
		dnsserver.Directives = slices.Insert(slices.Clone(dnsserver.Directives), before, pluginName)
	}
	dnsserver.Quiet, caddy.Quiet = true, true
}

// loopback is an address of this test process. On 127.0.0.1 every connection of the machine takes ports, and may take the one
// that was free a moment ago.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.1", 1+os.Getpid()>>8%254, os.Getpid()&0xff)
}

func corefileInput(text string) caddy.Input {
	return caddy.CaddyfileInput{Contents: []byte(text), Filepath: "Corefile", ServerTypeName: "dns"}
}

// freePort is a port of an address that nobody has.
func freePort(t *testing.T, address string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, port, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func exchange(network, server, name string, qtype uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name+".svc."+testZone, qtype)
	m.SetEdns0(1232, false)
	client := &dns.Client{Net: network, Timeout: 5 * time.Second}
	reply, _, err := client.Exchange(m, server)
	return reply, err
}

const chain = `clusterset.local:PORT {
	bind 127.0.0.1
	errors
	cache 30
	loadbalance
	rewrite name suffix .alias.clusterset.local .shop.svc.clusterset.local answer auto
	lighthouse {
		kubeconfig KUBECONFIG
		startup_timeout 60s
	}
}`

// TestServer goes over the wire, in the chain that people run.
func TestServer(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	var big strings.Builder
	big.WriteString("import shop/big Headless\n")
	for i := range 500 {
		fmt.Fprintf(&big, "slice shop/big west ports=pg/tcp/5432 b-%d=10.9.%d.%d\n", i, i/250, i%250)
	}
	api.load(t, big.String())
	i, server := startServer(t, chain, api)
	defer i.Stop()
	defer i.ShutdownCallbacks()

	for range 3 { // the second and third time from the cache
		for _, network := range []string{"udp", "tcp"} {
			m, err := exchange(network, server, "web.shop", dns.TypeA)
			if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.96.0.1" || !m.Authoritative {
				t.Fatalf("%s: %v, %v", network, m, err)
			}
		}
	}
	m := new(dns.Msg)
	m.SetQuestion("web.alias."+testZone, dns.TypeA)
	if m, err := dns.Exchange(m, server); err != nil || len(m.Answer) != 1 || m.Answer[0].Header().Name != "web.alias."+testZone {
		t.Errorf("rewrite: %v, %v", m, err)
	}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
		m, err := exchange("udp", server, "big.shop", qtype)
		if err != nil || !m.Truncated || len(m.Answer) == 500 {
			t.Errorf("500 backends, UDP: %d answers, %v", len(m.Answer), err)
		}
		m, err = exchange("tcp", server, "big.shop", qtype)
		if err != nil || m.Truncated || len(m.Answer) != 500 {
			t.Errorf("500 backends, TCP: %d answers, %v", len(m.Answer), err)
		}
	}
	if m, err := exchange("udp", server, "nothing.shop", dns.TypeA); err != nil || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 {
		t.Errorf("NXDOMAIN: %v, %v", m, err)
	}
}

// TestReload: answers go on over reloads, and no watch is left behind; several server blocks share one set of watches.
func TestReload(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	corefile := `clusterset.local:PORT {
		bind 127.0.0.1
		lighthouse {
			kubeconfig KUBECONFIG
		startup_timeout 60s
		}
	}
	example.org:PORT {
		bind 127.0.0.1
		lighthouse {
			kubeconfig KUBECONFIG
		startup_timeout 60s
			ttl 30
		}
	}`
	i, server := startServer(t, corefile, api)
	eventually(t, "one watch of each resource", func() bool { return api.watching() == 5 })
	input := i.Caddyfile()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if m, err := exchange("udp", server, "web.shop", dns.TypeA); err != nil || len(m.Answer) != 1 {
				t.Errorf("during reloads: %v, %v", m, err)
				return
			}
		}
	})
	for range 10 {
		next, err := i.Restart(input)
		if err != nil {
			t.Fatal(err)
		}
		i = next
	}
	close(stop)
	wg.Wait()
	eventually(t, "one watch of each resource after the reloads", func() bool { return api.watching() == 5 })

	i.ShutdownCallbacks()
	i.Stop()
	eventually(t, "no watch after the end", func() bool { return api.watching() == 0 })
}

// TestFailedReload: new configurations that do not come up do not add up to more and more watches. CoreDNS tells nobody
// that it gave one up, so its watches end when it is collected as garbage; CoreDNS itself holds on to the last one until
// the next reload.
func TestFailedReload(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	i, server := startServer(t, chain, api)
	eventually(t, "watches", func() bool { return api.watching() == 5 })
	good := i.Caddyfile()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.NewReplacer("PORT", port, "KUBECONFIG", writeKubeconfig(t, api.URL)).Replace(chain)
	for range 5 {
		if _, err := i.Restart(corefileInput(bad)); err == nil {
			t.Fatal("the port is taken, and yet it started")
		}
	}
	watching := func(n int) func() bool {
		return func() bool {
			runtime.GC()
			return api.watching() <= n
		}
	}
	eventually(t, "the old watches and those of the last reload", watching(10))
	if m, err := exchange("udp", server, "web.shop", dns.TypeA); err != nil || len(m.Answer) != 1 {
		t.Errorf("after the failed reloads: %v, %v", m, err)
	}
	next, err := i.Restart(good)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one set of watches after a good reload", watching(5))
	next.ShutdownCallbacks()
	next.Stop()
	eventually(t, "no watch after the end", watching(0))
}

// TestStartWithoutAPI: CoreDNS starts, and serves SERVFAIL below svc, until the API server is there.
func TestStartWithoutAPI(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	api.denyAll(http.StatusServiceUnavailable)
	i, server := startServer(t, strings.Replace(strings.Replace(chain, "startup_timeout 60s", "startup_timeout 10ms", 1), "cache 30", "", 1), api)
	defer i.Stop()
	defer i.ShutdownCallbacks()
	if m, err := exchange("udp", server, "web.shop", dns.TypeA); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v, %v", m, err)
	}
	api.denyAll(0)
	eventually(t, "answer", func() bool {
		m, err := exchange("udp", server, "web.shop", dns.TypeA)
		return err == nil && len(m.Answer) == 1
	})
}
