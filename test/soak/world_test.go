//go:build e2e

package soak

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

const (
	zone    = "clusterset.local."
	bigZone = "clusterset.big." // the same services, with max_answers raised
)

// patience is how long anything may take that is not measured.
const patience = time.Minute

// dist is the folder with what make has built.
func dist(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../dist")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

type object = map[string]any

// address is the n-th backend's of a service, of 65,536.
func address(service byte, n int) string {
	return net.IPv4(10, service, byte(n>>8), byte(n)).String()
}

// cluster starts an API server that holds the services which the tests ask for, and gives its kubeconfig.
func cluster(t *testing.T) (kubeconfig string) {
	t.Helper()
	kubeconfig = apitest.Start(t, "soak", "10.96.0.0/16")
	kubectl(t, kubeconfig, nil, "create", "-f", "../../deploy/helm/fastnet/crds/multicluster.x-k8s.io_serviceimports.yaml",
		"-f", "../../deploy/helm/fastnet/crds/fastnet.dev_gateways.yaml", "-f", "../../deploy/helm/fastnet/crds/about.k8s.io_clusterproperties.yaml")
	kubectl(t, kubeconfig, nil, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

	items := []any{object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": "shop"}}}
	ports := []any{object{"name": "http", "port": 80, "protocol": "TCP"}}
	service := func(name, kind string, ips ...string) {
		spec := object{"type": kind, "ports": ports}
		if len(ips) > 0 {
			spec["ips"] = ips
		}
		items = append(items, object{"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
			"metadata": object{"name": name, "namespace": "shop"}, "spec": spec})
	}
	backends := func(name string, second byte, count int) {
		for first := 0; first < count; first += 100 {
			var endpoints []any
			for n := first; n < min(first+100, count); n++ {
				endpoints = append(endpoints, object{"addresses": []string{address(second, n)}, "hostname": fmt.Sprintf("host-%d", n)})
			}
			items = append(items, object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
				"metadata": object{"name": fmt.Sprintf("%s-west-%d", name, first), "namespace": "shop", "labels": object{
					"multicluster.kubernetes.io/service-name": name, "multicluster.kubernetes.io/source-cluster": "west",
					"endpointslice.kubernetes.io/managed-by": "fastnet.dev"}},
				"ports": ports, "endpoints": endpoints})
		}
	}
	service("web", "ClusterSetIP", "10.96.0.7", "fd00:96::7")
	service("db", "Headless")
	backends("db", 1, 3)
	service("many", "Headless")
	backends("many", 2, 500)
	service("more", "Headless")
	backends("more", 3, 1000)
	text, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": items})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, kubeconfig, text, "create", "-f", "-")
	return kubeconfig
}

// kubectl runs it, and gives what it prints.
func kubectl(t *testing.T, kubeconfig string, stdin []byte, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), apitest.Binary(t), append([]string{"kubectl", "--kubeconfig", kubeconfig}, args...)...)
	command.Stdin = bytes.NewReader(stdin)
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("kubectl %q: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// lighthouseWatches is how many collections lighthouse watches where its cluster's ID is in the Corefile: ServiceImports,
// EndpointSlices, Namespaces and Gateways.
const lighthouseWatches = 4

// countWatches puts a proxy before the API server and gives a kubeconfig that leads through it, and how many watches do at
// the moment. The API server itself could not tell the server's from those of the controllers.
func countWatches(t *testing.T, kubeconfig string) (through string, watches *atomic.Int64) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	watches = &atomic.Int64{}
	forward := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorLog: log.New(io.Discard, "", 0), // requests that the server breaks off
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			watches.Add(1)
			defer watches.Add(-1)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		proxy.CloseClientConnections()
		proxy.Close()
	})
	dir := t.TempDir()
	dnsserver.Write(t, dir, "kubeconfig", dnsserver.Kubeconfig(proxy.URL))
	return filepath.Join(dir, "kubeconfig"), watches
}

// apiServer is the process of the API server, found by the port in the kubeconfig.
type apiServer struct {
	id      int
	command []string
	address string
}

func findAPIServer(t *testing.T, kubeconfig string) apiServer {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		command := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		if command[0] == apitest.Binary(t) && slices.Contains(command, "--secure-port="+server.Port()) {
			id, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			return apiServer{id, command, server.Host}
		}
	}
	t.Fatal("the API server does not run")
	return apiServer{}
}

// stop kills it, and waits until nobody answers there.
func (a apiServer) stop(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(a.id, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	dnsserver.Eventually(t, patience, func() error {
		connection, err := net.Dial("tcp", a.address)
		if err != nil {
			return nil
		}
		connection.Close()
		return fmt.Errorf("the API server still listens")
	})
}

// start starts it again, as it was started before.
func (a apiServer) start(t *testing.T) {
	t.Helper()
	dnsserver.Start(t, t.TempDir(), a.command[0], a.command[1:]...)
}

// server is the CoreDNS that a test loads.
type server struct {
	*dnsserver.Process
	dns            string // host and port
	corefile       string // path
	metrics, pprof string // pages
}

// serve starts CoreDNS with lighthouse, and waits until it serves. Each of more is a line in every server block. With pinned
// it runs on the machine's first processor alone, and leaves the others to those who ask.
func serve(t *testing.T, kubeconfig string, pinned bool, more ...string) *server {
	t.Helper()
	dir := t.TempDir()
	ip, port := dnsserver.Loopback(), dnsserver.FreePort(t)
	page := func() string { return net.JoinHostPort(ip, dnsserver.FreePort(t)) }
	metrics, pprof := page(), page()
	block := func(zone, plugins, stanza string) string {
		return fmt.Sprintf("%s:%s {\n\tbind %s\n\terrors\n%s%s\tlighthouse {\n\t\tkubeconfig %s\n\t\tcluster_id east\n\t\tttl 5\n%s\t}\n}\n",
			strings.TrimSuffix(zone, "."), port, ip, plugins, strings.Join(append(slices.Clone(more), ""), "\n"), kubeconfig, stanza)
	}
	dnsserver.Write(t, dir, "Corefile", block(zone, "\tprometheus "+metrics+"\n\tpprof "+pprof+"\n", "")+
		block(bigZone, "\tloadbalance\n\tcache 30\n", "\t\tmax_answers 1000\n"))

	if pinned && runtime.NumCPU() > 1 {
		defer onProcessor(t, 0)()
	}
	s := &server{
		Process: dnsserver.Start(t, dir, filepath.Join(dist(t), "bin", "coredns")),
		dns:     net.JoinHostPort(ip, port), corefile: filepath.Join(dir, "Corefile"),
		metrics: "http://" + metrics + "/metrics", pprof: "http://" + pprof + "/debug/pprof/",
	}
	dnsserver.Eventually(t, patience, func() error { return everything.check(s.dns, 2*time.Second) })
	return s
}

// onProcessor keeps this goroutine, and what it starts, on one processor until undo is called.
func onProcessor(t *testing.T, n int) (undo func()) {
	t.Helper()
	runtime.LockOSThread()
	var before, set unix.CPUSet
	set.Set(n)
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	}
}

// state is what a process could leak.
type state struct {
	goroutines, files int
	heap, resident    float64 // MB
}

func (s state) String() string {
	return fmt.Sprintf("%d goroutines, %d open files, heap %.1f MB, resident %.1f MB", s.goroutines, s.files, s.heap, s.resident)
}

// state of the server after collections of garbage: what is pooled is dropped by the second.
func (s *server) state(t *testing.T) state {
	t.Helper()
	for range 2 {
		if _, err := dnsserver.Get(t.Context(), s.pprof+"heap?gc=1"); err != nil {
			t.Fatal(err)
		}
	}
	text, err := dnsserver.Get(t.Context(), s.metrics)
	if err != nil {
		t.Fatal(err)
	}
	value := func(name string) float64 {
		for line := range strings.Lines(text) {
			if rest, found := strings.CutPrefix(line, name+" "); found {
				v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	return state{
		goroutines: int(value("go_goroutines")), files: int(value("process_open_fds")),
		heap: value("go_memstats_heap_alloc_bytes") / 1e6, resident: s.resident(t),
	}
}

// resident memory of the process, in MB.
func (s *server) resident(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.ID()))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return float64(pages*os.Getpagesize()) / 1e6
}
