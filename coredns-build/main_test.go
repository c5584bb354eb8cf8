package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	corednstest "github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

// testVersion is the version of Fastnet that the tests build with.
const testVersion = "v0.0.0-test"

// built is a folder with the two programs that the tests run: ours, and CoreDNS's own of the same release.
var built = struct {
	dir         string
	ours, stock func() (string, error)
}{}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "coredns-build-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	once := func(name, ldflags, pkg string) func() (string, error) {
		return sync.OnceValues(func() (string, error) {
			to := filepath.Join(dir, name, "coredns")
			return to, corednstest.Build(context.Background(), to, ldflags, pkg)
		})
	}
	built.dir = dir
	built.ours = once("ours", "-s -w -X main.version="+testVersion, ".")
	built.stock = once("stock", "-s -w", "github.com/coredns/coredns")
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// program gives one of the two.
func program(t *testing.T, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// coreDNSModule is CoreDNS as go.mod has it: its release, and the folder of its source.
func coreDNSModule(t *testing.T) (module struct{ Version, Dir string }) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-json", "github.com/coredns/coredns").Output()
	if err == nil {
		err = json.Unmarshal(out, &module)
	}
	if err != nil {
		t.Fatal(err)
	}
	return module
}

// pluginConfig gives the names in a plugin.cfg, in its order.
func pluginConfig(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "plugin.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if name, _, found := strings.Cut(strings.TrimSpace(line), ":"); found && !strings.HasPrefix(line, "#") {
			names = append(names, name)
		}
	}
	return names
}

// TestDirectives: those of this release's plugin.cfg, all of them and in its order, and lighthouse directly before kubernetes.
func TestDirectives(t *testing.T) {
	own := pluginConfig(t, coreDNSModule(t).Dir)
	if len(own) < 50 {
		t.Fatalf("plugin.cfg has %d plugins: %v", len(own), own)
	}
	if !slices.Equal(dnsserver.Directives, own) {
		t.Errorf("the list compiled into CoreDNS is not plugin.cfg's:\n%v\n%v", dnsserver.Directives, own)
	}
	got, err := withLighthouse(dnsserver.Directives)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Insert(slices.Clone(own), slices.Index(own, "kubernetes"), "lighthouse")
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if !slices.Equal(dnsserver.Directives, own) {
		t.Error("CoreDNS's own list was changed")
	}
	for _, directive := range got {
		if _, err := caddy.DirectiveAction("dns", directive); err != nil {
			t.Errorf("in the list, and not in the program: %v", err)
		}
	}
	if _, err := withLighthouse([]string{"file"}); err == nil {
		t.Error("no error without kubernetes")
	}
}

// output runs a program under the name coredns, which its usage message repeats, and gives all it prints.
func output(t *testing.T, path string, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), path, args...)
	command.Args[0] = "coredns"
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("coredns %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestFlags: those of CoreDNS, word for word; none of a library that we link came with it.
func TestFlags(t *testing.T) {
	ours, stock := output(t, program(t, built.ours), "-h"), output(t, program(t, built.stock), "-h")
	if ours != stock {
		t.Errorf("our flags:\n%s\nCoreDNS's:\n%s", ours, stock)
	}
}

// TestPlugins: those of CoreDNS, and one.
func TestPlugins(t *testing.T) {
	ours := strings.Split(output(t, program(t, built.ours), "-plugins"), "\n")
	stock := strings.Split(output(t, program(t, built.stock), "-plugins"), "\n")
	added := slices.DeleteFunc(slices.Clone(ours), func(line string) bool { return slices.Contains(stock, line) })
	missing := slices.DeleteFunc(slices.Clone(stock), func(line string) bool { return slices.Contains(ours, line) })
	if len(added) != 1 || strings.TrimSpace(added[0]) != "lighthouse" || len(missing) > 0 {
		t.Errorf("added %q, missing %q", added, missing)
	}
}

// TestVersion: CoreDNS's comes first and is true, ours stands beside it; the README shows what is printed.
func TestVersion(t *testing.T) {
	ours, stock := output(t, program(t, built.ours), "-version"), output(t, program(t, built.stock), "-version")
	stockFirst, stockRest, _ := strings.Cut(stock, "\n")
	if want := stockFirst + " lighthouse-" + testVersion + "\n" + stockRest; ours != want {
		t.Errorf("got\n%swant\n%s", ours, want)
	}
	version := coreDNSModule(t).Version
	if stockFirst != "CoreDNS-"+strings.TrimPrefix(version, "v") {
		t.Errorf("CoreDNS %s calls itself %s", version, stockFirst)
	}
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CoreDNS " + version, stockFirst + " lighthouse-v0.1.0\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("README.md does not say %q", want)
		}
	}
}

// TestBadCorefile: CoreDNS stops with exit code 1, as it does for its own plugins, and says whose fault what is.
func TestBadCorefile(t *testing.T) {
	ours := program(t, built.ours)
	for _, c := range []struct{ line, want string }{
		{"nonsense 5", "nonsense: unknown property"},
		{"ttl 3601", "ttl: "},
		{"ttl 1 2", "ttl: "},
		{"cluster_id A.B.C", "cluster_id: "},
		{"max_answers 0", "max_answers: "},
		{"namespaces", "namespaces: "},
		{"cluster_names yes", "cluster_names: "},
		{"startup_timeout soon", "startup_timeout: "},
		{"kubeconfig", "kubeconfig: "},
		{"kubeconfig /nonexistent", "kubeconfig: "},
		{"ttl 5\nttl 5", "ttl: "},
	} {
		t.Run(strings.Fields(c.line)[0], func(t *testing.T) {
			dir := t.TempDir()
			corefile := fmt.Sprintf("clusterset.local:%s {\n\tbind %s\n\tlighthouse {\n%s\n\t}\n}\n", corednstest.FreePort(t), corednstest.Loopback(), c.line)
			if err := os.WriteFile(filepath.Join(dir, "Corefile"), []byte(corefile), 0o600); err != nil {
				t.Fatal(err)
			}
			command := exec.CommandContext(t.Context(), ours)
			command.Dir = dir
			var stderr strings.Builder
			command.Stderr = &stderr
			if err := command.Run(); command.ProcessState.ExitCode() != 1 {
				t.Errorf("ended with %v, want exit code 1", err)
			}
			if got := stderr.String(); !strings.HasPrefix(got, "plugin/lighthouse: ") || !strings.Contains(got, c.want) {
				t.Errorf("standard error:\n%swant it to begin with plugin/lighthouse: and to hold %q", got, c.want)
			}
		})
	}
}

// TestTuneMemory: ours is the default, the environment goes before it.
func TestTuneMemory(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	defer debug.SetGCPercent(percent)
	defer debug.SetMemoryLimit(limit)
	for _, c := range []struct {
		environment string
		want        int
	}{{"", gcPercent}, {"50", 100}} { // the runtime has read the variable before we came
		t.Setenv("GOGC", c.environment)
		debug.SetGCPercent(100)
		tuneMemory()
		if got := debug.SetGCPercent(100); got != c.want {
			t.Errorf("with GOGC=%q: %d, want %d", c.environment, got, c.want)
		}
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	debug.SetMemoryLimit(1 << 30)
	tuneMemory()
	if got := debug.SetMemoryLimit(-1); got != 1<<30 {
		t.Errorf("the limit of the environment became %d", got)
	}
}

// TestLoadIsOver: once for each load, and once after the start; never while garbage is collected or much is allocated.
func TestLoadIsOver(t *testing.T) {
	var l load
	var now usage
	pass := func(seconds int, collections, allocated uint64, want int) {
		t.Helper()
		over := 0
		for range seconds {
			now.collections += collections
			now.allocated += allocated
			if l.over(now) {
				over++
			}
		}
		if over != want {
			t.Errorf("over %d times in %d s, want %d", over, seconds, want)
		}
	}
	pass(calm-1, 0, idle/2, 0)
	pass(10, 1, idle/2, 0)
	pass(10*calm, 0, idle/2, 1)
	pass(1, 1, 0, 0)
	pass(calm, 0, 0, 1)
	pass(10*calm, 0, 10*idle, 0) // a load that holds so much that nothing is collected
	pass(10*calm, 0, idle/2, 1)
}
