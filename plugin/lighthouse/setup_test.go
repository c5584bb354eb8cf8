package lighthouse

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
)

func TestParse(t *testing.T) {
	c := caddy.NewTestController("dns", `lighthouse clusterset.local Example.ORG {
		kubeconfig /etc/kubeconfig admin
		cluster_id east.eu
		ttl 30
		fallthrough example.org
		namespaces shop bank
		cluster_names
		max_answers 1000
		startup_timeout 100ms
	}`)
	s, err := parse(c)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.zones, []string{"clusterset.local.", "example.org."}) || s.source != (sourceKey{"/etc/kubeconfig", "admin"}) ||
		s.clusterID != "east.eu" || s.ttl != 30 || !slices.Equal(s.fall.Zones, []string{"example.org."}) ||
		!s.serves("shop") || s.serves("other") || !s.clusterNames || s.maxAnswers != 1000 || s.startupTimeout != 100*time.Millisecond {
		t.Errorf("got %+v", s)
	}
}

func TestParseDefaults(t *testing.T) {
	c := caddy.NewTestController("dns", "lighthouse")
	c.ServerBlockKeys = []string{"dns://clusterset.local.:53", "dns://example.org.:53"}
	s, err := parse(c)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.zones, []string{"clusterset.local.", "example.org."}) || s.source != (sourceKey{}) || s.clusterID != "" ||
		s.ttl != 5 || len(s.fall.Zones) != 0 || !s.serves("any") || s.clusterNames || s.maxAnswers != 500 || s.startupTimeout != 5*time.Second {
		t.Errorf("got %+v", s)
	}
}

// TestParseErrors: any error stops CoreDNS with a message that begins "plugin/lighthouse:" and names the property.
func TestParseErrors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // not in a pod, wherever the test runs
	for _, c := range []struct{ property, line string }{
		{"kubeconfig", "kubeconfig"},
		{"kubeconfig", "kubeconfig a b c"},
		{"kubeconfig", "kubeconfig /nowhere/kubeconfig"},
		{"cluster_id", "cluster_id"},
		{"cluster_id", "cluster_id a b"},
		{"cluster_id", "cluster_id a.b.c"},
		{"cluster_id", "cluster_id -a"},
		{"cluster_id", "cluster_id East"},
		{"cluster_id", "cluster_id east."},
		{"cluster_id", "cluster_id .east"},
		{"cluster_id", "cluster_id a_b"},
		{"cluster_id", "cluster_id " + strings.Repeat("a", 64)},
		{"ttl", "ttl"},
		{"ttl", "ttl 5 6"},
		{"ttl", "ttl -1"},
		{"ttl", "ttl 3601"},
		{"ttl", "ttl 5s"},
		{"namespaces", "namespaces"},
		{"namespaces", "namespaces shop.svc"},
		{"cluster_names", "cluster_names yes"},
		{"max_answers", "max_answers"},
		{"max_answers", "max_answers 0"},
		{"max_answers", "max_answers -1"},
		{"max_answers", "max_answers 1 2"},
		{"max_answers", "max_answers many"},
		{"startup_timeout", "startup_timeout"},
		{"startup_timeout", "startup_timeout 5"},
		{"startup_timeout", "startup_timeout -1s"},
		{"startup_timeout", "startup_timeout 1s 2s"},
		{"ttl", "ttl 5\nttl 6"},
		{"snapshot", "snapshot"},
		{"snapshot", "snapshot a b"},
		{"snapshot", "snapshot /nowhere/snapshot"},
		{"snapshot", "snapshot /dev/null"},
		{"snapshot", "snapshot /"},
		{"labels", "labels"},
		{"labels", "labels a=b=c"},
		{"labels", "labels a in b"},
		{"nonsense", "nonsense"},
	} {
		t.Run(strings.ReplaceAll(c.line, "/", "_"), func(t *testing.T) {
			err := setup(caddy.NewTestController("dns", "lighthouse clusterset.local {\n"+c.line+"\n}"))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.HasPrefix(err.Error(), "plugin/lighthouse:") || !strings.Contains(err.Error(), c.property) {
				t.Errorf("%v: does not begin with the plugin or does not name %s", err, c.property)
			}
		})
	}
	for _, stanza := range []string{
		"lighthouse a\nlighthouse b",
		"lighthouse 10.0.0.0/8",
		"lighthouse a..b",
		"lighthouse clusterset.local", // no kubeconfig, and no pod
	} {
		if err := setup(caddy.NewTestController("dns", stanza)); err == nil || !strings.HasPrefix(err.Error(), "plugin/lighthouse:") {
			t.Errorf("%q: %v", stanza, err)
		}
	}
}

// TestSetupSharesWatches: several server blocks share one set of watches; another API server has its own.
func TestSetupSharesWatches(t *testing.T) {
	one, two := writeKubeconfig(t, "http://127.0.0.1:1"), writeKubeconfig(t, "http://127.0.0.1:2")
	c := caddy.NewTestController("dns", "")
	sources := map[*source]bool{}
	for _, file := range []string{one, one, two} {
		s, err := sharedSource(c, sourceKey{kubeconfig: file})
		if err != nil {
			t.Fatal(err)
		}
		sources[s] = true
	}
	if len(sources) != 2 {
		t.Errorf("%d sources, want 2", len(sources))
	}
}

func TestSetup(t *testing.T) {
	c := caddy.NewTestController("dns", "lighthouse clusterset.local {\nkubeconfig "+writeKubeconfig(t, "http://127.0.0.1:1")+"\n}")
	if err := setup(c); err != nil {
		t.Fatal(err)
	}
	plugins := dnsserver.GetConfig(c).Plugin
	if len(plugins) != 1 {
		t.Fatalf("%d plugins", len(plugins))
	}
	if l, ok := plugins[0](nil).(*Lighthouse); !ok || l.Ready() {
		t.Errorf("got %v, want a Lighthouse that is not ready", l)
	}
	if dnsserver.GetConfig(c).UDPDecorateWriterFunc == nil {
		t.Error("nothing bounds those that wait for a socket")
	}
}

// TestSetupBesideShed: where the plugin *shed* writes replies to UDP, it goes on to.
func TestSetupBesideShed(t *testing.T) {
	c := caddy.NewTestController("dns", "lighthouse clusterset.local {\nkubeconfig "+writeKubeconfig(t, "http://127.0.0.1:1")+"\n}")
	sheds := errors.New("this is shed's")
	dnsserver.GetConfig(c).UDPDecorateWriterFunc = func(*dnsserver.Server) dns.DecorateWriter { panic(sheds) }
	if err := setup(c); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if got := recover(); got != sheds {
			t.Errorf("replies are written by %v, want %v", got, sheds)
		}
	}()
	dnsserver.GetConfig(c).UDPDecorateWriterFunc(nil)
}

func TestServerAddresses(t *testing.T) {
	for _, c := range []struct{ hosts, want string }{
		{"192.0.2.1", "[192.0.2.1]"},
		{"127.0.0.1 2001:db8::1", "[2001:db8::1]"},
		{"127.0.0.1 ::1", "[127.0.0.1 ::1]"},
	} {
		var got []string
		for _, ip := range serverAddresses(strings.Fields(c.hosts)) {
			got = append(got, ip.String())
		}
		if s := "[" + strings.Join(got, " ") + "]"; s != c.want {
			t.Errorf("bound to %s: got %s, want %s", c.hosts, s, c.want)
		}
	}
	if len(serverAddresses([]string{""})) == 0 {
		t.Error("bound to all: no address")
	}
}

// writeKubeconfig writes a kubeconfig for an API server, and gives its path.
func writeKubeconfig(t testing.TB, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	err := os.WriteFile(path, []byte(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "`+server+`"}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
users: [{name: test, user: {}}]
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
