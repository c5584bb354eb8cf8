package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	corednstest "github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

// distribution is a way in which CoreDNS comes with Kubernetes. Its Corefile in testdata is written after the one that it
// documents.
type distribution struct {
	name     string
	lameduck bool // it goes on answering for some seconds after it was told to end
	autopath bool
	// custom are files that the distribution's users add beside the Corefile, and with which they add plugins.
	custom map[string]string
}

var distributions = []distribution{
	{name: "kubeadm", lameduck: true},
	{name: "k3s", custom: map[string]string{
		"NodeHosts":               "192.0.2.7 node1\n",
		"custom/own.server":       "example.net:PORT {\n\tbind ADDRESS\n\twhoami\n}\n",
		"custom/own.override":     "any\n",
		"custom/zone.override":    "LIGHTHOUSE",
		"custom/unrelated.config": "nonsense\n",
	}},
	{name: "rke2", lameduck: true},
	{name: "rke2-autopath", lameduck: true, autopath: true},
}

// running is a CoreDNS that a test runs, and how to reach it.
type running struct {
	process                *corednstest.Process
	dns                    string // host and port
	health, ready, metrics string // pages
	dir                    string // stands for /etc/coredns
}

// run starts our CoreDNS on a distribution's Corefile in which nothing is changed but what cannot be had outside of a pod:
// ports below 1024 and of all addresses, the folder /etc/coredns, the service account, and the resolver of the machine.
func (d distribution) run(t *testing.T, lighthouse bool, apiServer string) running {
	t.Helper()
	dir := t.TempDir()
	address := corednstest.Loopback()
	port := corednstest.FreePort(t)
	page := func() string { return net.JoinHostPort(address, corednstest.FreePort(t)) }
	health, ready, metrics := page(), page(), page()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	files := map[string]string{"kubeconfig": corednstest.Kubeconfig(apiServer)}
	text, err := os.ReadFile(filepath.Join("testdata", d.name+".Corefile"))
	if err != nil {
		t.Fatal(err)
	}
	corefile := string(text)
	stanza := ""
	if lighthouse {
		stanza = "lighthouse clusterset.local {\n\tkubeconfig " + kubeconfig + "\n\tstartup_timeout 2s\n}\n"
	}
	if d.custom == nil {
		corefile = regexp.MustCompile(`(?m)^ *kubernetes `).ReplaceAllString(corefile, stanza+"$0")
	}
	for _, change := range []struct{ from, to string }{
		{`(?m)^\.:53 \{`, ".:" + port + " {\n    bind " + address},
		{`(?m)^    health`, "    health " + health},
		{`(?m)^    ready`, "    ready " + ready},
		{`(?m)^    prometheus .*`, "    prometheus " + metrics},
		{`(?m)^    kubernetes .*\{`, "$0\n        kubeconfig " + kubeconfig},
		{`/etc/resolv.conf`, upstream(t)},
	} {
		changed := regexp.MustCompile(change.from).ReplaceAllString(corefile, change.to)
		if changed == corefile {
			t.Fatalf("%s.Corefile has nothing like %s", d.name, change.from)
		}
		corefile = changed
	}
	corefile = strings.ReplaceAll(corefile, "/etc/coredns", dir)
	files["Corefile"] = corefile
	maps.Copy(files, d.custom)
	for name, content := range files {
		content = strings.NewReplacer("PORT", port, "ADDRESS", address, "LIGHTHOUSE", stanza).Replace(content)
		corednstest.Write(t, dir, name, content)
	}
	return running{
		process: corednstest.Start(t, dir, program(t, built.ours), "-conf", filepath.Join(dir, "Corefile")),
		dns:     net.JoinHostPort(address, port), dir: dir,
		health: "http://" + health + "/health", ready: "http://" + ready + "/ready", metrics: "http://" + metrics + "/metrics",
	}
}

// upstream is a resolver that knows one name.
func upstream(t *testing.T) string {
	t.Helper()
	address := net.JoinHostPort(corednstest.Loopback(), corednstest.FreePort(t))
	for _, network := range []string{"udp", "tcp"} {
		listening := make(chan struct{})
		server := &dns.Server{Addr: address, Net: network, NotifyStartedFunc: func() { close(listening) },
			Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
				reply := new(dns.Msg).SetReply(r)
				if r.Question[0].Name == "example.org." {
					reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
						A: net.IPv4(192, 0, 2, 53)}}
				} else {
					reply.Rcode = dns.RcodeNameError
				}
				w.WriteMsg(reply)
			})}
		go server.ListenAndServe()
		select {
		case <-listening:
		case <-time.After(10 * time.Second):
			t.Fatal("the upstream resolver does not listen")
		}
		t.Cleanup(func() { server.Shutdown() })
	}
	return address
}

// answers checks that a name has one address, by UDP and by TCP.
func (r running) answers(name, want string) error {
	for _, network := range []string{"udp", "tcp"} {
		m, err := corednstest.Ask(network, r.dns, name, dns.TypeA)
		if err != nil {
			return fmt.Errorf("%s over %s: %w", name, network, err)
		}
		var got []string
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok {
				got = append(got, a.A.String())
			}
		}
		if !slices.Equal(got, []string{want}) {
			return fmt.Errorf("%s over %s: want %s in\n%v", name, network, want, m)
		}
	}
	return nil
}

// rcode checks that a name gives an error.
func (r running) rcode(name string, want int) error {
	m, err := corednstest.Ask("udp", r.dns, name, dns.TypeA)
	if err == nil && m.Rcode != want {
		err = fmt.Errorf("%s: want %s in\n%v", name, dns.RcodeToString[want], m)
	}
	return err
}

// patience is how long a CoreDNS may take to do as it is told; far longer than it does, on a machine that is busy too.
const patience = 60 * time.Second

// TestDistributions: their Corefiles run in our CoreDNS, untouched and with lighthouse in them.
func TestDistributions(t *testing.T) {
	program(t, built.ours) // built before the clocks of the tests below start
	var ending []func()    // so that all wait out their lame duck's time together
	defer func() {
		for _, end := range ending {
			end()
		}
	}()
	for _, d := range distributions {
		for _, lighthouse := range []bool{false, true} {
			name := d.name
			if lighthouse {
				name += "+lighthouse"
			}
			parent := t
			t.Run(name, func(t *testing.T) {
				r := d.run(parent, lighthouse, fakeAPI(parent))
				// The page tells that the plugins are ready, a moment before the server listens.
				corednstest.Eventually(t, patience, func() error {
					if _, err := corednstest.Get(t.Context(), r.ready); err != nil {
						return err
					}
					return r.answers("kubernetes.default.svc.cluster.local.", "10.96.0.1")
				})
				if out, err := corednstest.Get(t.Context(), r.health); err != nil || out != "OK" {
					t.Errorf("health: %q, %v", out, err)
				}
				if out, err := corednstest.Get(t.Context(), r.metrics); err != nil || !strings.Contains(out, "coredns_build_info{") {
					t.Errorf("metrics: %v\n%s", err, out)
				}
				check := func(err error) {
					t.Helper()
					if err != nil {
						t.Error(err)
					}
				}
				check(r.answers("kubernetes.default.svc.cluster.local.", "10.96.0.1"))
				check(r.rcode("nothing.default.svc.cluster.local.", dns.RcodeNameError))
				check(r.answers("example.org.", "192.0.2.53"))
				if d.custom != nil {
					check(r.answers("node1.", "192.0.2.7"))
					check(r.rcode("own.example.net.", dns.RcodeSuccess))
				}
				const exported = "web.default.svc.clusterset.local."
				if lighthouse {
					check(r.answers(exported, "10.96.7.7"))
					check(r.rcode("nothing.default.svc.clusterset.local.", dns.RcodeNameError))
				} else {
					check(r.rcode(exported, dns.RcodeNameError)) // the upstream's word
				}
				if d.autopath {
					// The client is a pod, by its address, so the server walks the pod's search path for it.
					check(r.answers("kubernetes.default.svc.cluster.local.default.svc.cluster.local.", "10.96.0.1"))
					if lighthouse {
						check(r.answers(exported+"default.svc.cluster.local.", "10.96.7.7"))
					}
				}

				r.process.Signal(t, syscall.SIGTERM)
				if d.lameduck {
					check(r.answers("kubernetes.default.svc.cluster.local.", "10.96.0.1"))
				}
				ending = append(ending, func() {
					if code := r.process.ExitCode(parent, patience); code != 0 {
						parent.Errorf("%s: exit code %d after SIGTERM", name, code)
					}
					if out := r.process.Output(); !strings.Contains(out, "CoreDNS-") || !strings.Contains(out, " lighthouse-"+testVersion+"\n") {
						parent.Errorf("%s: the banner does not tell both versions:\n%s", name, out)
					}
				})
			})
		}
	}
}

// TestNoAPIServer: without one CoreDNS starts as it always did: what does not need the API server is served.
func TestNoAPIServer(t *testing.T) {
	t.Parallel()
	nobody := "http://" + net.JoinHostPort(corednstest.Loopback(), corednstest.FreePort(t))
	r := distributions[1].run(t, true, nobody)
	corednstest.Eventually(t, patience, func() error { return r.answers("example.org.", "192.0.2.53") })
	if _, err := corednstest.Get(t.Context(), r.health); err != nil {
		t.Error(err)
	}
	if _, err := corednstest.Get(t.Context(), r.ready); err == nil {
		t.Error("it says that it is ready")
	}
	for _, name := range []string{"kubernetes.default.svc.cluster.local.", "web.default.svc.clusterset.local."} {
		if err := r.rcode(name, dns.RcodeServerFailure); err != nil {
			t.Error(err)
		}
	}
	r.process.Signal(t, syscall.SIGTERM)
	if code := r.process.ExitCode(t, patience); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// TestSignals: SIGUSR1 reads the Corefile again, SIGINT ends the program.
func TestSignals(t *testing.T) {
	t.Parallel()
	r := distributions[1].run(t, true, fakeAPI(t))
	corednstest.Eventually(t, patience, func() error { return r.answers("web.default.svc.clusterset.local.", "10.96.7.7") })
	path := filepath.Join(r.dir, "custom", "own.server")
	address, port, err := net.SplitHostPort(r.dns)
	if err == nil {
		err = os.WriteFile(path, []byte("example.net:"+port+" {\n\tbind "+address+"\n\thosts {\n\t\t192.0.2.9 new.example.net\n\t}\n}\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.process.Signal(t, syscall.SIGUSR1)
	corednstest.Eventually(t, patience, func() error { return r.answers("new.example.net.", "192.0.2.9") })
	if err := r.answers("web.default.svc.clusterset.local.", "10.96.7.7"); err != nil {
		t.Error(err)
	}
	r.process.Signal(t, syscall.SIGINT)
	if code := r.process.ExitCode(t, patience); code != 0 && code != 2 { // 2 is caddy's, for SIGINT
		t.Errorf("exit code %d after SIGINT", code)
	}
}

// fakeAPI is an API server with a cluster of one service, one pod (this process, by its address) and one imported service,
// in which nothing ever changes.
func fakeAPI(t *testing.T) string {
	t.Helper()
	meta := func(name string, labels map[string]string) map[string]any {
		return map[string]any{"name": name, "namespace": "default", "resourceVersion": "1", "labels": labels}
	}
	type object = map[string]any
	collections := map[string]struct {
		kind  string
		items []any
	}{
		"/api/v1/services": {"v1 ServiceList", []any{object{"metadata": meta("kubernetes", nil),
			"spec": object{"clusterIP": "10.96.0.1", "clusterIPs": []string{"10.96.0.1"}, "type": "ClusterIP",
				"ports": []any{object{"name": "https", "port": 443, "protocol": "TCP"}}}}}},
		"/api/v1/pods": {"v1 PodList", []any{object{"metadata": meta("client", nil),
			"status": object{"phase": "Running", "podIP": corednstest.Loopback(), "podIPs": []any{object{"ip": corednstest.Loopback()}}}}}},
		"/api/v1/namespaces":                       {"v1 NamespaceList", []any{object{"metadata": object{"name": "default", "resourceVersion": "1"}}}},
		"/apis/discovery.k8s.io/v1/endpointslices": {"discovery.k8s.io/v1 EndpointSliceList", nil},
		"/apis/multicluster.x-k8s.io/v1beta1/serviceimports": {"multicluster.x-k8s.io/v1beta1 ServiceImportList", []any{object{
			"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "metadata": meta("web", nil),
			"spec": object{"type": "ClusterSetIP", "ips": []string{"10.96.7.7"}, "ports": []any{object{"name": "http", "port": 80, "protocol": "TCP"}}}}}},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		collection, found := collections[r.URL.Path]
		refuse := func(code int, reason string) {
			w.WriteHeader(code)
			json.NewEncoder(w).Encode(object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code})
		}
		switch {
		case !found:
			refuse(http.StatusNotFound, "NotFound")
		case r.URL.Query().Get("sendInitialEvents") != "":
			refuse(http.StatusUnprocessableEntity, "Invalid") // a list that streams is an offer that servers may decline
		case r.URL.Query().Get("watch") != "":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			version, kind, _ := strings.Cut(collection.kind, " ")
			if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList") {
				version, kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
			}
			json.NewEncoder(w).Encode(object{"apiVersion": version, "kind": kind, "metadata": object{"resourceVersion": "1"}, "items": collection.items})
		}
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}
