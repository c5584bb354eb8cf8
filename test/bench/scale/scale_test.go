package main

import (
	"strings"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/ground"
)

// TestSmall measures a small clusterset: all must come to know of all, and every row must get a value.
func TestSmall(t *testing.T) {
	ground.Needs(t)
	measured, err := measure(t.Context(), size{members: 3, services: 12, backends: 3, window: time.Second, outage: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if missing := measured.Missing(); len(missing) > 0 {
		t.Errorf("no value: %v", missing)
	}
	for _, row := range measured.Rows() {
		// Whether a Lease is renewed within so short a time is chance.
		if row.Value <= 0 && row.Name != "idle-writes-per-30s" {
			t.Errorf("%s is %v: %s", row.Name, row.Value, row.Detail)
		}
	}
}

func TestTotal(t *testing.T) {
	metrics := strings.Join([]string{
		"# TYPE a counter", `a{x="1",y="2"} 3`, `a{x="1",y="3"} 4`, `a{x="2"} 5`, "ab 6", "b 7", "",
	}, "\n")
	for labels, want := range map[string]float64{"": 12, `x="1"`: 7, `y="3"`: 4, `z="1"`: 0} {
		if got := total(metrics, "a", labels); got != want {
			t.Errorf("a{%s} is %v, want %v", labels, got, want)
		}
	}
	if got := total(metrics, "b"); got != 7 {
		t.Errorf("b is %v", got)
	}
}
