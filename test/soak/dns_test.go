//go:build e2e

package soak

import (
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

// TestBigNames: of names with 500 and 1,000 backends a packet has as much as fits and says that this is not all; a
// connection has everything.
func TestBigNames(t *testing.T) {
	s := serve(t, cluster(t), false)
	tcp, err := net.Dial("tcp", s.dns)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.Dial("udp", s.dns)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	asked, wrong := 0, 0
	for range 3 { // the second and third time from the cache, where there is one
		for _, c := range []net.Conn{udp, tcp} {
			for _, q := range everything {
				asked++
				if err := q.ask(c, 10*time.Second); err != nil {
					wrong++
					t.Errorf("%s: %v", c.LocalAddr().Network(), err)
				}
			}
		}
	}
	atMost(t, "big-names.errors", float64(wrong), "errors", 0,
		fmt.Sprintf("of %d; 500 backends, and 1,000 with max_answers raised; UDP truncated within %d bytes, TCP whole", asked, udpSize))
}

// TestOutage: the answers go on while the API server is away, and follow it when it is back.
func TestOutage(t *testing.T) {
	kubeconfig := cluster(t)
	s := serve(t, kubeconfig, false)
	api := findAPIServer(t, kubeconfig)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan *tally, 1)
	go func() { done <- load(ctx, s.dns, everything, *rate) }()

	before := s.state(t)
	api.stop(t)
	select {
	case <-time.After(*outageTime):
	case l := <-done:
		t.Fatalf("the load ended: %v", l)
	}
	during := s.state(t)
	api.start(t)
	dnsserver.Eventually(t, 2*patience, func() error { return ready(t, kubeconfig) })
	// A change now is served: the watches are back.
	kubectl(t, kubeconfig, nil, "-n", "shop", "patch", "serviceimport", "web", "--type=json", "-p",
		`[{"op": "add", "path": "/metadata/labels", "value": {"touched": "yes"}}]`)
	kubectl(t, kubeconfig, []byte(`{"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "metadata": {"name": "new", "namespace": "shop"},
		"spec": {"type": "ClusterSetIP", "ips": ["10.96.0.8"], "ports": [{"port": 80}]}}`), "create", "-f", "-")
	back := time.Now()
	c, err := net.Dial("udp", s.dns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	added := question{name: "new.shop.svc." + zone, qtype: 1, want: []string{"10.96.0.8"}}
	dnsserver.Eventually(t, 2*patience, func() error { return added.ask(c, time.Second) })
	caught := time.Since(back)
	cancel()
	l := <-done
	atMost(t, "outage.errors", float64(l.errors()), "errors", 0, fmt.Sprintf("API server stopped for %v: %v", *outageTime, l))
	noted("outage.retries", float64(l.again), "queries", "lower", "asked again, for nothing came back within a second")
	noted("outage.catch-up", caught.Seconds(), "s", "lower", "from a change at the API server that is back until it is served")
	atMost(t, "outage.heap-growth", during.heap-before.heap, "MB", 10, fmt.Sprintf("before: %v; at the end of the outage: %v", before, during))
	if s.Ended() {
		t.Error("CoreDNS has ended")
	}
}

// ready tells whether the API server is.
func ready(t *testing.T, kubeconfig string) error {
	t.Helper()
	api := findAPIServer(t, kubeconfig)
	c, err := net.Dial("tcp", api.address)
	if err != nil {
		return err
	}
	return c.Close()
}

// TestReloads: reloads lose no question and leave nothing behind.
func TestReloads(t *testing.T) {
	if *reloads < 20 {
		t.Fatal("-reloads: at least 20, for what is left behind is the difference between the tenth and the last")
	}
	kubeconfig, watches := countWatches(t, cluster(t))
	s := serve(t, kubeconfig, false, "\treload 2s 0s")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan *tally, 1)
	go func() { done <- load(ctx, s.dns, everything, *rate) }()

	settled := func() state {
		t.Helper()
		// What a reload replaces ends in its own time. That it does is what is waited for.
		dnsserver.Eventually(t, patience, func() error {
			if n := watches.Load(); n != lighthouseWatches {
				return fmt.Errorf("%d watches, want %d", n, lighthouseWatches)
			}
			return nil
		})
		return s.state(t)
	}
	n := 0
	once := func() {
		t.Helper()
		n++
		if n <= *reloads/4 {
			// These come first: CoreDNS's plugin *reload* does not survive a SIGUSR1, with which caddy forgets its hooks.
			// It sees a Corefile that says something else: a comment would not do.
			text, err := os.ReadFile(s.corefile)
			if err == nil {
				text = regexp.MustCompile(`ttl \d+`).ReplaceAll(text, fmt.Appendf(nil, "ttl %d", n))
				err = os.WriteFile(s.corefile, text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		} else {
			s.Signal(t, syscall.SIGUSR1)
		}
		dnsserver.Eventually(t, patience, func() error {
			if done := strings.Count(s.Output(), "Reloading complete"); done != n {
				return fmt.Errorf("%d reloads done, want %d", done, n)
			}
			return nil
		})
	}
	for range 10 {
		once()
	}
	early := settled()
	for n < *reloads {
		once()
	}
	late := settled()
	cancel()
	l := <-done
	detail := fmt.Sprintf("after 10 reloads: %v; after %d: %v", early, n, late)
	atMost(t, "reloads.errors", float64(l.errors()), "errors", 0, fmt.Sprintf("%d reloads: %v", n, l))
	noted("reloads.retries", float64(l.again), "queries", "lower", "asked again, for nothing came back within a second")
	atMost(t, "reloads.watches", float64(watches.Load()), "watches", lighthouseWatches, detail)
	atMost(t, "reloads.goroutines", float64(late.goroutines-early.goroutines), "goroutines", 10, "more than after 10 reloads")
	atMost(t, "reloads.files", float64(late.files-early.files), "files", 5, "more than after 10 reloads")
	atMost(t, "reloads.heap", late.heap-early.heap, "MB", 5, "more than after 10 reloads")
	if s.Ended() {
		t.Error("CoreDNS has ended")
	}
}
