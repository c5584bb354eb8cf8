package gateway

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// herd is a cluster with gateways, as the first of them sees it.
type herd struct {
	now      time.Time
	witness  witness
	versions map[string]int
}

func (h *herd) look() (stale []string) {
	var gateways []v1alpha1.Gateway
	for name, version := range h.versions {
		g := v1alpha1.Gateway{}
		g.Name, g.ResourceVersion = name, fmt.Sprint(version)
		gateways = append(gateways, g)
	}
	for _, g := range h.witness.stale(gateways, "a", 30*time.Second, h.now) {
		stale = append(stale, g.Name)
	}
	return stale
}

// run lets the named gateways renew theirs every 30 s, at moments of their own, and looks every 10 s.
func (h *herd) run(d time.Duration, renew ...string) (stale []string) {
	for end := h.now.Add(d); h.now.Before(end); h.now = h.now.Add(time.Second) {
		for i, name := range renew {
			if h.now.Unix()%30 == int64(7*i) {
				h.versions[name]++
			}
		}
		if h.now.Unix()%10 == 0 {
			stale = append(stale, h.look()...)
		}
	}
	return stale
}

func TestWhoDoesNotRenewIsStale(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 9))
		h := &herd{now: time.Unix(1_000_000+random.Int64N(60), 0), versions: map[string]int{"a": 1, "b": 1, "c": 1}}
		if stale := h.run(10*time.Minute, "a", "b", "c"); stale != nil {
			t.Fatalf("all renew, and %v are stale", stale)
		}
		// The API server is away for longer than a gateway may be silent. It comes back, and they with it, one sooner than another.
		h.run(time.Duration(random.IntN(600)) * time.Second)
		if stale := h.run(40*time.Second, "a", "b"); stale != nil {
			t.Fatalf("the API server was away, and %v are stale", stale)
		}
		if stale := h.run(time.Minute, "a", "b", "c"); stale != nil {
			t.Fatalf("the API server was away, and %v are stale", stale)
		}
		// c dies.
		if stale := h.run(55*time.Second, "a", "b"); stale != nil {
			t.Fatalf("%v are stale already", stale)
		}
		if stale := h.run(100*time.Second, "a", "b"); len(stale) == 0 || stale[0] != "c" {
			t.Fatalf("stale are %v, want c", stale)
		}
		delete(h.versions, "c")
		if stale := h.run(10*time.Minute, "a", "b"); stale != nil {
			t.Fatalf("%v are stale", stale)
		}
		// It comes back.
		h.versions["c"] = 1
		if stale := h.run(10*time.Minute, "a", "b", "c"); stale != nil {
			t.Fatalf("c is back, and %v are stale", stale)
		}
	}
}
