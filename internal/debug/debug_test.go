package debug

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPages(t *testing.T) {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "fastnet_test_rounds_total", Help: "Rounds."})
	registry.MustRegister(counter)
	counter.Inc()
	unready := errors.New("caches are not filled yet")
	server := Server{Gatherer: registry, Ready: func() error { return unready }, Plan: func() string { return "ip route ...\n" },
		JSON: map[string]func() any{"/debug/more": func() any { return []int{7} }}}

	page := func(path string, wantCode int, want string) {
		t.Helper()
		recorder := httptest.NewRecorder()
		server.handler().ServeHTTP(recorder, httptest.NewRequest("GET", path, nil))
		if recorder.Code != wantCode || !strings.Contains(recorder.Body.String(), want) {
			t.Errorf("%s: %d %q, want %d with %q", path, recorder.Code, recorder.Body, wantCode, want)
		}
	}
	page("/metrics", 200, "fastnet_test_rounds_total 1")
	page("/healthz", 200, "ok")
	page("/readyz", 503, "caches are not filled yet")
	page("/debug/plan", 200, "ip route ...")
	page("/debug/more", 200, "[7]\n")
	page("/nothing", 404, "")
	unready = nil
	page("/readyz", 200, "ok")
}

func TestRunSaysWhereItCannotListen(t *testing.T) {
	if err := (Server{Address: "256.0.0.1:1"}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "256.0.0.1") {
		t.Errorf("error %v does not name the address", err)
	}
}
