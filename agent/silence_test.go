package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fastnet-io/fastnet/internal/broker"
)

// TestSilenceIsToldOnce: who is silent is in the log when it begins and when it ends, in the metric, and on the debug page.
func TestSilenceIsToldOnce(t *testing.T) {
	var expired []string
	var log bytes.Buffer
	w := newWorld(t)
	w.server("c1", dual)
	w.server("broker", dual)
	a := w.agent(t, "c1")
	a.config.Records = records(func() broker.View { return broker.View{Synced: true, Expired: expired} })
	a.config.Log = slog.New(slog.NewTextHandler(&log, nil))
	tell := func(now []string, want ...string) {
		t.Helper()
		expired = now
		log.Reset()
		a.BrokerChanged(broker.Change{All: true})
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if log.Len() == 0 {
			lines = nil
		}
		if len(lines) != len(want) {
			t.Fatalf("the log says %q, want %q", lines, want)
		}
		for i, line := range lines {
			if !strings.Contains(line, want[i]) {
				t.Errorf("the log says %q, want %q", line, want[i])
			}
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(recordsCollector{a.config.Records.View})
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if got := int(family.Metric[0].GetGauge().GetValue()); family.GetName() == "fastnet_agent_expired_members" && got != len(now) {
				t.Errorf("the metric is %d, want %d", got, len(now))
			}
		}
	}
	tell(nil)
	tell([]string{"c2", "c3"}, "away\" cluster=c2", "away\" cluster=c3")
	tell([]string{"c2", "c3"})
	if text := a.Shown(); !strings.Contains(text, "silent for too long: c2,c3\n") {
		t.Errorf("the debug page says\n%s", text)
	}
	tell([]string{"c3"}, "no longer silent\" cluster=c2")
	tell(nil, "no longer silent\" cluster=c3")
}
