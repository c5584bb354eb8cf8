package lighthouse

import (
	"bytes"
	"context"
	golog "log"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"k8s.io/client-go/rest"
)

// startSource reads a fake API server, and stops with the test.
func startSource(t *testing.T, api *fakeAPI) *source {
	t.Helper()
	s, err := newSource(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	s.pace = pace{afterError: 10 * time.Millisecond, afterRefusal: 20 * time.Millisecond}
	s.followProperty()
	s.start()
	t.Cleanup(s.stop)
	return s
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// short gives the reply to "name TYPE" as dig +short would, or its rcode.
func short(t *testing.T, l *Lighthouse, question string) string {
	t.Helper()
	name, typeName, _ := strings.Cut(question, " ")
	m, rcode := ask(t, l, name+".svc."+testZone, dns.StringToType[typeName])
	if m == nil {
		return dns.RcodeToString[rcode]
	}
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	var data []string
	for _, rr := range m.Answer {
		data = append(data, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	if len(data) == 0 {
		return "NODATA"
	}
	return strings.Join(data, " ")
}

func wantShort(t *testing.T, l *Lighthouse, question, want string) {
	t.Helper()
	got := ""
	defer func() {
		if t.Failed() {
			t.Logf("%s: last got %q, want %q", question, got, want)
		}
	}()
	eventually(t, question+" -> "+want, func() bool { got = short(t, l, question); return got == want })
}

const watched = `
namespace shop
local east
import shop/web ClusterSetIP ips=10.96.0.1 ports=http/tcp/80
import shop/db Headless ports=pg/tcp/5432
slice shop/db east ports=pg/tcp/5432 db-0=10.1.0.1
import shop/bal ClusterSetIP ports=http/tcp/80
address shop/bal east ports=http/tcp/80 10.1.0.9
address shop/bal west ports=http/tcp/80 10.2.0.9
`

// TestWatch follows every kind of object through its life.
func TestWatch(t *testing.T) {
	for name, streams := range map[string]bool{"lists that stream": true, "lists of older API servers": false} {
		t.Run(name, func(t *testing.T) {
			api := newFakeAPI(t)
			api.streams = streams
			api.load(t, watched)
			// A slice of the cluster's own, without the label: not ours to read.
			own := parseObjects(t, "slice shop/db east ports=pg/tcp/5432 own=10.1.0.66").slices[0]
			own.Name, own.Labels = "own", nil
			api.put(t, pathSlices, own)
			l := newTestPlugin(startSource(t, api).world)

			eventually(t, "ready", l.Ready)
			for question, want := range map[string]string{
				"web.shop A":            "10.96.0.1",
				"db.shop A":             "10.1.0.1",
				"bal.shop A":            "10.1.0.9", // the ClusterProperty says that we are east
				"_http._tcp.bal.shop A": "NODATA",
				"new.shop A":            "NXDOMAIN",
			} {
				if got := short(t, l, question); got != want {
					t.Errorf("%s: got %s, want %s", question, got, want)
				}
			}

			api.put(t, pathProperties, clusterProperty("west"))
			wantShort(t, l, "bal.shop A", "10.2.0.9")
			api.load(t, "namespace bank\nimport bank/pay ClusterSetIP ips=10.96.0.2,fd00:96::2")
			wantShort(t, l, "pay.bank AAAA", "fd00:96::2")
			api.load(t, "import bank/pay ClusterSetIP ips=10.96.0.3")
			wantShort(t, l, "pay.bank A", "10.96.0.3")
			api.remove(pathImports, "bank", "pay")
			wantShort(t, l, "pay.bank A", "NXDOMAIN")
			wantShort(t, l, "bank A", "NODATA")
			api.remove(pathNamespaces, "<nil>", "bank")
			wantShort(t, l, "bank A", "NXDOMAIN")
			api.load(t, "import shop/db Headless ports=pg/tcp/5432\nslice shop/db east ports=pg/tcp/5432 db-0=10.1.0.2")
			wantShort(t, l, "db-0.east.db.shop A", "10.1.0.2")
			api.load(t, "gateway gw down=west")
			api.load(t, "slice shop/db west ports=pg/tcp/5432 w=10.2.0.5") // the same name: it is west's slice now
			wantShort(t, l, "w.west.db.shop A", "10.2.0.5")
			wantShort(t, l, "db.shop A", "10.2.0.5") // west is ourselves
			api.put(t, pathProperties, clusterProperty("east"))
			wantShort(t, l, "db.shop A", "NXDOMAIN")
			api.load(t, "gateway gw up=west")
			wantShort(t, l, "db.shop A", "10.2.0.5")
			api.remove(pathSlices, "shop", "db-0")
			wantShort(t, l, "db.shop A", "NXDOMAIN")
			api.remove(pathProperties, "<nil>", "cluster.clusterset.k8s.io")
			eventually(t, "no local cluster", func() bool { return l.world.current.Load().localID == "" })
		})
	}
}

// TestLists: imports come as one reply, the others stream where the API server has that. No list is of any other time than now: what
// is not in it is NXDOMAIN.
func TestLists(t *testing.T) {
	for name, c := range map[string]struct {
		streams bool
		want    []string
	}{
		"lists that stream":          {true, []string{pathImports + " "}},
		"lists of older API servers": {false, []string{pathNamespaces + " ", pathProperties + " ", pathSlices + " ", pathGateways + " ", pathImports + " "}},
	} {
		t.Run(name, func(t *testing.T) {
			api := newFakeAPI(t)
			api.streams = c.streams
			api.load(t, watched)
			s := startSource(t, api)
			if !s.waitSynced(20 * time.Second) {
				t.Fatal("not synced")
			}
			got := api.listed()
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("lists asked for: %q, want %q", got, c.want)
			}
		})
	}
}

// TestMissingResource: a missing CRD or a missing right makes only this zone SERVFAIL, and heals by itself.
func TestMissingResource(t *testing.T) {
	for _, c := range []struct {
		name   string
		paths  []string
		status int
		log    string
	}{
		{"no MCS CRDs", []string{pathImports, pathImportsAlpha}, http.StatusNotFound, "serviceimports.multicluster.x-k8s.io: no such resource in this cluster, is its CRD installed"},
		{"no right to imports", []string{pathImports, pathImportsAlpha}, http.StatusForbidden, "serviceimports.multicluster.x-k8s.io: no right to list and watch it"},
		{"no right to slices", []string{pathSlices}, http.StatusForbidden, "endpointslices.discovery.k8s.io: no right to list and watch it"},
		{"no right to namespaces", []string{pathNamespaces}, http.StatusForbidden, "namespaces: no right to list and watch it"},
		{"no right to gateways", []string{pathGateways}, http.StatusForbidden, "gateways.fastnet.dev: no right to list and watch it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			logged := captureLog(t)
			api := newFakeAPI(t)
			api.load(t, watched)
			for _, path := range c.paths {
				api.deny(path, c.status)
			}
			s := startSource(t, api)
			l := newTestPlugin(s.world)
			eventually(t, "log line", func() bool { return strings.Contains(logged.String(), c.log) })
			eventually(t, "ready, for the sake of the other zones", l.Ready)
			if got := short(t, l, "web.shop A"); got != "SERVFAIL" {
				t.Errorf("got %s", got)
			}
			if s.waitSynced(0) {
				t.Error("synced")
			}
			api.denyAll(0)
			wantShort(t, l, "web.shop A", "10.96.0.1")
			if !l.Ready() || !s.waitSynced(0) {
				t.Error("not ready")
			}
		})
	}
}

// TestOptionalResources: without Gateways every cluster is reachable, without ClusterProperty there is no local cluster;
// both are followed when they appear.
func TestOptionalResources(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	api.load(t, "import shop/far Headless\nslice shop/far west ports=pg/tcp/5432 w=10.2.0.1\ngateway gw down=west")
	api.deny(pathGateways, http.StatusNotFound)
	api.deny(pathProperties, http.StatusNotFound)
	l := newTestPlugin(startSource(t, api).world)
	eventually(t, "ready", l.Ready)
	wantShort(t, l, "far.shop A", "10.2.0.1")
	first, second := short(t, l, "bal.shop A"), short(t, l, "bal.shop A")
	if first == second {
		t.Errorf("%s twice: is there a local cluster?", first)
	}
	api.deny(pathGateways, 0)
	wantShort(t, l, "far.shop A", "NXDOMAIN")
	api.deny(pathProperties, 0)
	eventually(t, "local cluster", func() bool { return l.world.current.Load().localID == "east" })
}

// TestAlpha: v1alpha1 where the cluster lacks v1beta1.
func TestAlpha(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	api.deny(pathImports, http.StatusNotFound)
	api.deny(pathImportsAlpha, 0)
	i := parseObjects(t, "import shop/old ClusterSetIP ips=10.96.0.7 ports=http/tcp/80").imports[0]
	i.TypeMeta.APIVersion, i.TypeMeta.Kind = "multicluster.x-k8s.io/v1alpha1", "ServiceImport"
	api.put(t, pathImportsAlpha, i)
	l := newTestPlugin(startSource(t, api).world)
	eventually(t, "ready", l.Ready)
	wantShort(t, l, "old.shop A", "10.96.0.7")
	wantShort(t, l, "_http._tcp.old.shop SRV", "0 50 80 old.shop.svc.clusterset.local.")

	// The CRD is brought up to date, and drops what it had.
	api.deny(pathImportsAlpha, http.StatusNotFound)
	api.deny(pathImports, 0)
	wantShort(t, l, "web.shop A", "10.96.0.1")
	wantShort(t, l, "old.shop A", "NXDOMAIN")
}

// TestAPIServerAway: answers go on, and changes made meanwhile are seen afterwards.
func TestAPIServerAway(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	l := newTestPlugin(startSource(t, api).world)
	eventually(t, "ready", l.Ready)
	for _, status := range []int{http.StatusInternalServerError, http.StatusNotFound, http.StatusForbidden} {
		before := len(api.requests())
		api.denyAll(status)
		eventually(t, "tried again", func() bool { return len(api.requests()) > before+20 })
		if got := short(t, l, "web.shop A"); got != "10.96.0.1" || !l.Ready() {
			t.Errorf("status %d: got %s", status, got)
		}
	}
	api.load(t, "import shop/web ClusterSetIP ips=10.96.0.4")
	api.denyAll(0)
	wantShort(t, l, "web.shop A", "10.96.0.4")
}

// TestCRDRemoved: with the CRD its objects go, and then nobody can say which names exist.
func TestCRDRemoved(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, "namespace shop\nimport shop/web ClusterSetIP ips=10.96.0.1")
	l := newTestPlugin(startSource(t, api).world)
	eventually(t, "ready", l.Ready)
	wantShort(t, l, "web.shop A", "10.96.0.1")
	api.remove(pathImports, "shop", "web")
	wantShort(t, l, "web.shop A", "NXDOMAIN")
	api.deny(pathImports, http.StatusNotFound)
	wantShort(t, l, "web.shop A", "SERVFAIL")
	api.deny(pathImports, 0)
	wantShort(t, l, "web.shop A", "NXDOMAIN")
}

// TestStop: no watch is left, whether it runs, waits or fails.
func TestStop(t *testing.T) {
	api := newFakeAPI(t)
	api.load(t, watched)
	api.deny(pathGateways, http.StatusForbidden)
	s := startSource(t, api)
	wantRequests := func() bool { return len(api.requests()) > 8 }
	eventually(t, "watching", wantRequests)
	s.stop()
	s.stop()
	s.start() // nothing starts again
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("a watch is left")
	}
}

// TestQueriesDuringChanges is for the race detector.
func TestQueriesDuringChanges(t *testing.T) {
	w := newTestWorld(t, shop)
	l := newTestPlugin(w)
	l.clusterNames = true
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, name := range []string{"web.shop", "db.shop", "db-0.east.db.shop", "west.web.shop", "nothing.shop"} {
					for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
						m := new(dns.Msg)
						m.SetQuestion(name+".svc."+testZone, qtype)
						l.ServeDNS(ctx, &test.ResponseWriter{}, m)
					}
				}
			}
		})
	}
	slim := newSliceObject(parseObjects(t, "slice shop/db west ports=pg/tcp/5432 x=10.7.0.1").slices[0])
	gateways := []*gatewayObject{
		newGatewayObject(parseObjects(t, "gateway gw up=west,north.eu").gateways[0]),
		newGatewayObject(parseObjects(t, "gateway gw down=west").gateways[0]),
	}
	for i := range 2000 {
		w.setSlice(slim)
		w.setGateway(gateways[i%2])
		w.deleteSlice(slim.objectKey)
	}
	cancel()
	wg.Wait()
	w.close()
}

// captureLog gives what CoreDNS's log is written from now on, until the test ends.
func captureLog(t *testing.T) *syncBuffer {
	b := &syncBuffer{}
	golog.SetOutput(b)
	t.Cleanup(func() { golog.SetOutput(os.Stderr) })
	return b
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
