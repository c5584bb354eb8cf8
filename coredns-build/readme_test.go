package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corednstest "github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

// waysToBuild are the blocks of commands in the README, in its order.
func waysToBuild(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, match := range regexp.MustCompile(`(?s)~~~ sh\n(.*?)~~~`).FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, match[1])
	}
	if len(blocks) != 3 {
		t.Fatalf("README.md shows %d ways to build, want 3", len(blocks))
	}
	return blocks
}

// shell runs commands in a folder, as somebody would who reads them.
func shell(t *testing.T, proxy, dir, commands string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "sh", "-euxc", commands)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false") // neither folder is a checkout
	if proxy != "" {
		command.Env = append(command.Env, "GOPROXY="+proxy)
	}
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// moduleProxy is the module proxy that is set here, but for Fastnet's own module, of which it says that there is no such thing: the
// tree is to be taken, and a proxy may say worse of a module that is not published.
func moduleProxy(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	upstream, _, _ := strings.Cut(strings.ReplaceAll(strings.TrimSpace(string(out)), "|", ","), ",")
	if !strings.HasPrefix(upstream, "http") {
		return upstream
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/github.com/fastnet-io/") {
			http.NotFound(w, r)
			return
		}
		http.Redirect(w, r, strings.TrimSuffix(upstream, "/")+r.URL.EscapedPath(), http.StatusFound)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// TestOurMain: the README's first way.
func TestOurMain(t *testing.T) {
	coredns := filepath.Join(t.TempDir(), "coredns")
	shell(t, "", "..", strings.Replace(waysToBuild(t)[0], "-o coredns", "-o "+coredns, 1))
	if version := output(t, coredns, "-version"); !strings.Contains(version, " lighthouse-v0.1.0\n") {
		t.Errorf("it is\n%s", version)
	}
}

// TestGenerator: the README's other two, in a copy of CoreDNS's source. The plugin is this tree's.
func TestGenerator(t *testing.T) {
	here, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	proxy, module := moduleProxy(t), coreDNSModule(t)
	own := pluginConfig(t, module.Dir)
	for way, block := range map[string]string{"plugin.cfg": waysToBuild(t)[1], "COREDNS_PLUGINS": waysToBuild(t)[2]} {
		t.Run(way, func(t *testing.T) {
			source := filepath.Join(t.TempDir(), "coredns")
			if err := os.CopyFS(source, os.DirFS(module.Dir)); err != nil { // the copy can be written, the module cache cannot
				t.Fatal(err)
			}
			// What a release of Fastnet would bring with it: the module, and the sums of what it needs.
			shell(t, proxy, source, "go mod edit -require github.com/fastnet-io/fastnet@v0.0.0 -replace github.com/fastnet-io/fastnet="+here+
				"\ncat "+filepath.Join(here, "go.sum")+" >>go.sum")
			shell(t, proxy, source, strings.Replace(block, "@latest", "@v0.0.0", 1))

			directives := generatedDirectives(t, source)
			at := slices.Index(directives, "lighthouse")
			if at < 0 || !slices.Equal(slices.Delete(slices.Clone(directives), at, at+1), own) {
				t.Fatalf("directives are %v", directives)
			}
			if want := map[string]int{"plugin.cfg": slices.Index(own, "kubernetes"), "COREDNS_PLUGINS": len(own)}[way]; at != want {
				t.Errorf("lighthouse is number %d of the directives, want %d", at, want)
			}
			coredns := filepath.Join(source, "coredns")
			if plugins := output(t, coredns, "-plugins"); !strings.Contains(plugins, "lighthouse\n") {
				t.Errorf("lighthouse is not among its plugins:\n%s", plugins)
			}
			if ours, stock := output(t, coredns, "-version"), output(t, program(t, built.stock), "-version"); ours != stock {
				t.Errorf("it is\n%sand not\n%s", ours, stock)
			}

			r := serve(t, coredns, fakeAPI(t))
			corednstest.Eventually(t, patience, func() error { return r.answers("web.default.svc.clusterset.local.", "10.96.7.7") })
			if err := r.answers("kubernetes.default.svc.cluster.local.", "10.96.0.1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// generatedDirectives reads the list that CoreDNS's generator wrote.
func generatedDirectives(t *testing.T, source string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(source, "core", "dnsserver", "zdirectives.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, match := range regexp.MustCompile(`(?m)^\t"(.+)",$`).FindAllStringSubmatch(string(text), -1) {
		names = append(names, match[1])
	}
	return names
}

// serve runs a CoreDNS with the clusterset zone in a server block of its own, as it must be where lighthouse comes last.
func serve(t *testing.T, coredns, apiServer string) running {
	t.Helper()
	dir, port := t.TempDir(), corednstest.FreePort(t)
	corednstest.Write(t, dir, "kubeconfig", corednstest.Kubeconfig(apiServer))
	corednstest.Write(t, dir, "Corefile", strings.NewReplacer("PORT", port, "ADDRESS", corednstest.Loopback(), "FILE", filepath.Join(dir, "kubeconfig")).Replace(`
clusterset.local:PORT {
	bind ADDRESS
	lighthouse {
		kubeconfig FILE
	}
}
.:PORT {
	bind ADDRESS
	kubernetes cluster.local {
		kubeconfig FILE
	}
}
`))
	return running{process: corednstest.Start(t, dir, coredns), dns: corednstest.Loopback() + ":" + port, dir: dir}
}
