package lighthouse

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/labels"
)

const keep = `clusterset.local:PORT {
	bind 127.0.0.1
	lighthouse {
		kubeconfig KUBECONFIG
		snapshot SNAPSHOT
		startup_timeout 5s
	}
}`

// everything is a world with one of each thing that a snapshot holds.
const everything = shop + balanced + `
	gateway gw up=west,north.eu down=north
	slice shop/db west ports=pg/tcp/5432 weight=3 fd00:2::9 same=10.9.0.1,10.9.0.2
`

// TestSnapshotRoundTrip: what is restored is answered like what was saved.
func TestSnapshotRoundTrip(t *testing.T) {
	before := newTestWorld(t, everything)
	path := filepath.Join(t.TempDir(), "snapshot")
	from, ok := before.save()
	if !ok {
		t.Fatal("nothing to save")
	}
	if err := writeSnapshot(path, from); err != nil {
		t.Fatal(err)
	}
	read, err := readSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	after := newWorld(resourceImports, resourceSlices, resourceNamespaces, resourceGateways)
	after.restore(read, func(map[string]string) selection { return 0 })
	select {
	case <-after.firstSync:
	default:
		t.Error("a start would wait for the API server all the same")
	}
	one, two := newTestPlugin(before), newTestPlugin(after)
	one.clusterNames, two.clusterNames = true, true
	if !two.Ready() {
		t.Error("not ready with a snapshot")
	}
	want, got := transferred(t, one, testZone), transferred(t, two, testZone)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for key, s := range before.current.Load().services.all() {
		if restored := after.current.Load().services.get(key); restored == nil || s.kind != restored.kind || len(s.parts) != len(restored.parts) {
			t.Errorf("%s: got %+v, want %+v", key, restored, s)
		}
	}
}

// TestSnapshotOfWhatIsGone: Gateways and a ClusterProperty that the API server knows nothing of any more do not outlive the
// snapshot; while it has not told everything, they do.
func TestSnapshotOfWhatIsGone(t *testing.T) {
	from, _ := newTestWorld(t, "namespace shop\nlocal east\nimport shop/db Headless\nslice shop/db west ports=pg/tcp/5432 w=10.2.0.1\ngateway gw down=west").save()
	w := newWorld(resourceImports, resourceGateways, resourceProperties)
	w.restore(from, func(map[string]string) selection { return 0 })
	l := newTestPlugin(w)
	dnsCase{"restored", "db.shop A", nxdomain}.run(t, l)
	w.setRefused(resourceGateways, true)
	w.setRefused(resourceProperties, true)
	dnsCase{"an API server that starts may deny kinds it has", "db.shop A", nxdomain}.run(t, l)
	w.setSynced(resourceImports, true)
	dnsCase{"no Gateways at all: every cluster is reachable", "db.shop A", "NOERROR\ndb.shop 5 IN A 10.2.0.1"}.run(t, l)
	if id := w.current.Load().localID; id != "" {
		t.Errorf("the local cluster is still %s", id)
	}
}

// TestSnapshotAfterFailedReload: the source that is left goes on writing when the one that came later has ended.
func TestSnapshotAfterFailedReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	open := func() *snapshotFile {
		f := &snapshotFile{path: path, world: newTestWorld(t, shop), stop: make(chan struct{}), done: make(chan struct{})}
		f.load(func(map[string]string) selection { return 0 })
		go f.run()
		return f
	}
	first := open()
	open().end()
	first.world.setNamespace("later", true)
	first.end()
	read, err := readSnapshot(path)
	if err != nil || !slices.Contains(read.Namespaces, "later") {
		t.Errorf("the change is not in the file: %v", err)
	}
	if left := snapshotOwners.of[path]; left != nil {
		t.Errorf("%d sources still have the file", len(left))
	}
}

// TestSnapshotUnsynced: what has not been read whole is not written over what was.
func TestSnapshotUnsynced(t *testing.T) {
	w := newWorld(resourceImports)
	if _, ok := w.save(); ok {
		t.Error("a world that has not been read would be saved")
	}
}

// TestSnapshotDamaged: a file that is not whole is refused, whatever is missing.
func TestSnapshotDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	from, _ := newTestWorld(t, shop).save()
	if err := writeSnapshot(path, from); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, want string
		text       []byte
	}{
		{"empty", "no snapshot of this version", nil},
		{"cut in its first line", "no snapshot of this version", whole[:10]},
		{"cut in its checksum", "not whole", whole[:len(snapshotFormat)+5]},
		{"cut at its end", "not whole", whole[:len(whole)-1]},
		{"a bit turned", "not whole", append(append([]byte{}, whole[:len(whole)-1]...), whole[len(whole)-1]^1)},
		{"another version", "no snapshot of this version", []byte(strings.Replace(string(whole), "snapshot 1", "snapshot 2", 1))},
	} {
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSnapshot(path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
}

// TestSnapshotAcrossRestart: written within a second of a change and at the end; served by the next start, without an API
// server, within 500 ms; and the API server's word goes before it.
func TestSnapshotAcrossRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	corefile := strings.ReplaceAll(keep, "SNAPSHOT", path)
	api := newFakeAPI(t)
	api.load(t, shop)
	first, address := startServer(t, corefile, api)
	answered := func(address, name string) func() bool {
		return func() bool {
			m, err := exchange("udp", address, name, dns.TypeA)
			return err == nil && len(m.Answer) > 0
		}
	}
	eventually(t, "the first start answers", answered(address, "web.shop"))
	api.load(t, "import shop/later ClusterSetIP ips=10.96.0.77")
	eventually(t, "the file has a change, while the server runs", func() bool {
		s, err := readSnapshot(path)
		if err != nil {
			return false
		}
		for _, i := range s.Imports {
			if i.Name == "later" {
				return true
			}
		}
		return false
	})
	api.load(t, "import shop/last ClusterSetIP ips=10.96.0.78")
	eventually(t, "the last change is served", answered(address, "last.shop"))
	stopInstance(t, first)

	api.denyAll(503)
	started := time.Now()
	second, address := startServer(t, corefile, api)
	if !answered(address, "last.shop")() {
		t.Error("the second start does not answer what the first had last")
	}
	t.Logf("first right answer %v after the start", time.Since(started))
	if age := time.Since(time.Unix(0, servedSnapshot.Load())); servedSnapshot.Load() == 0 || age > time.Minute {
		t.Errorf("the age of the snapshot is given as %v", age)
	}
	api.remove(pathImports, "shop", "later")
	api.denyAll(0)
	eventually(t, "the API server's word goes before it", func() bool { return !answered(address, "later.shop")() })
	eventually(t, "and ends its age", func() bool { return servedSnapshot.Load() == 0 })
	stopInstance(t, second)
	if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestSnapshotStanzas: one file for one API server.
func TestSnapshotStanzas(t *testing.T) {
	dir := t.TempDir()
	one, two := writeKubeconfig(t, "http://127.0.0.1:1"), writeKubeconfig(t, "http://127.0.0.1:2")
	stanza := func(kubeconfig, file string) string {
		return "lighthouse a {\nkubeconfig " + kubeconfig + "\nsnapshot " + filepath.Join(dir, file) + "\n}"
	}
	for _, c := range []struct {
		rule, first, second, want string
	}{
		{"the same file of the same API server", stanza(one, "x"), stanza(one, "x"), ""},
		{"two files of one API server", stanza(one, "x"), stanza(one, "y"), "snapshot:"},
		{"one file of two API servers", stanza(one, "x"), stanza(two, "x"), "snapshot:"},
	} {
		c1 := caddy.NewTestController("dns", c.first)
		if err := setup(c1); err != nil {
			t.Fatal(err)
		}
		// Another server block of the same Corefile shares what the first one set.
		c2 := *c1
		c2.Dispenser = caddy.NewTestController("dns", c.second).Dispenser
		err := setup(&c2)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.rule, err)
		}
	}
}

// TestLabels: only ServiceImports that match, block by block, over one set of watches.
func TestLabels(t *testing.T) {
	api := newFakeAPI(t)
	objects := parseObjects(t, "namespace shop\nimport shop/web ClusterSetIP ips=10.96.0.1\nimport shop/db ClusterSetIP ips=10.96.0.2")
	api.load(t, "namespace shop")
	for _, i := range objects.imports {
		i.TypeMeta.APIVersion, i.TypeMeta.Kind = "multicluster.x-k8s.io/v1beta1", "ServiceImport"
		i.Labels = map[string]string{"app": i.Name, "tier": "front"}
		api.put(t, pathImports, i)
	}
	path := filepath.Join(t.TempDir(), "snapshot")
	corefile := `clusterset.local:PORT {
		bind 127.0.0.1
		lighthouse {
			kubeconfig KUBECONFIG
			snapshot ` + path + `
			labels app in (web, cart), tier=front
		}
	}
	other.local:PORT {
		bind 127.0.0.1
		lighthouse {
			kubeconfig KUBECONFIG
			snapshot ` + path + `
			labels app=db
			cluster_names
		}
	}`
	check := func(address string) {
		t.Helper()
		for _, c := range []struct {
			name string
			want int
		}{
			{"web.shop.svc.clusterset.local.", dns.RcodeSuccess},
			{"db.shop.svc.clusterset.local.", dns.RcodeNameError},
			{"web.shop.svc.other.local.", dns.RcodeNameError},
			{"db.shop.svc.other.local.", dns.RcodeSuccess},
		} {
			m := new(dns.Msg)
			m.SetQuestion(c.name, dns.TypeA)
			reply, err := dns.Exchange(m, address)
			if err != nil || reply.Rcode != c.want {
				t.Errorf("%s: %v, %v", c.name, reply, err)
			}
		}
	}
	i, address := startServer(t, corefile, api)
	check(address)
	for _, i := range objects.imports {
		if i.Name == "db" {
			i.Labels["app"] = "web"
			api.put(t, pathImports, i)
		}
	}
	eventually(t, "a label that changes", func() bool {
		m, err := exchange("udp", address, "db.shop", dns.TypeA)
		return err == nil && m.Rcode == dns.RcodeSuccess
	})
	for _, i := range objects.imports {
		if i.Name == "db" {
			i.Labels["app"] = "db"
			api.put(t, pathImports, i)
		}
	}
	eventually(t, "and back", func() bool {
		m, err := exchange("udp", address, "db.shop", dns.TypeA)
		return err == nil && m.Rcode == dns.RcodeNameError
	})
	if n := api.watching(); n > 5 {
		t.Errorf("%d watches run, want those of one set", n)
	}
	stopInstance(t, i)
	api.denyAll(503)
	i, address = startServer(t, corefile, api)
	check(address) // from the snapshot
	stopInstance(t, i)
}

// TestTooManySelectors: a stanza more than there are bits is an error, and none shares another's.
func TestTooManySelectors(t *testing.T) {
	s := &source{}
	for i := range maxSelectors + 1 {
		selector, err := labels.Parse(fmt.Sprintf("n=%d", i))
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.selector(selector)
		if i < maxSelectors && (err != nil || got != 1<<i) || i == maxSelectors && err == nil {
			t.Errorf("selector %d: %b, %v", i, got, err)
		}
	}
}

// stopInstance ends a server as SIGTERM does.
func stopInstance(t *testing.T, i *caddy.Instance) {
	t.Helper()
	if errs := i.ShutdownCallbacks(); len(errs) > 0 {
		t.Error(errs)
	}
	if err := i.Stop(); err != nil {
		t.Error(err)
	}
}

// BenchmarkSnapshot: from the file to being served, and from the world to the file, with 10,000 services and 250,000 backends.
func BenchmarkSnapshot(b *testing.B) {
	var text strings.Builder
	text.WriteString("namespace shop\n")
	for i := range 10_000 {
		fmt.Fprintf(&text, "import shop/web-%d ClusterSetIP ips=10.96.%d.%d ports=http/tcp/80\n", i, i/250, i%250)
	}
	for i := range 2500 {
		fmt.Fprintf(&text, "import shop/db-%d Headless\nslice shop/db-%[1]d west ports=pg/tcp/5432", i)
		for n := range 100 {
			fmt.Fprintf(&text, " db-%d=10.%d.%d.%d", n, i/250, i%250, n+1)
		}
		text.WriteString("\n")
	}
	w := newTestWorld(b, text.String())
	path := filepath.Join(b.TempDir(), "snapshot")
	write := func() {
		from, _ := w.save()
		if err := writeSnapshot(path, from); err != nil {
			b.Fatal(err)
		}
	}
	write()
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			from, err := readSnapshot(path)
			if err != nil {
				b.Fatal(err)
			}
			newWorld(resourceImports).restore(from, func(map[string]string) selection { return 0 })
		}
	})
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			write()
		}
	})
}
