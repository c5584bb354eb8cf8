package agent

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// metrics are the agent's. Every label takes values from a fixed set.
type metrics struct {
	connected       prometheus.GaugeFunc
	writes          *prometheus.CounterVec
	snapshotSeconds prometheus.Histogram
	exports         prometheus.Gauge
	imports         prometheus.Gauge
	slices          prometheus.Gauge
	conflicts       *prometheus.GaugeVec
	skipped         prometheus.Gauge
	held            prometheus.Gauge
	reachable       prometheus.Gauge
	suspected       prometheus.Gauge
}

func newMetrics(connected func() bool) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "fastnet_agent_" + name, Help: help})
	}
	return &metrics{
		connected: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fastnet_agent_broker_connected", Help: "Whether the broker answered the last probe (1) or not (0).",
		}, func() float64 {
			if connected() {
				return 1
			}
			return 0
		}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fastnet_agent_writes_total", Help: "Writes to an API server, by side (local, broker), kind and result (ok, failed).",
		}, []string{"side", "kind", "result"}),
		snapshotSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fastnet_agent_snapshot_duration_seconds", Help: "Time to read one snapshot from the caches.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		exports: gauge("exports", "ServiceExports of this cluster."),
		imports: gauge("imports", "ServiceImports in this cluster."),
		slices:  gauge("endpointslices", "EndpointSlices that the agent keeps in this cluster."),
		conflicts: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fastnet_agent_conflicts", Help: "ServiceExports of this cluster in conflict with other clusters', by reason.",
		}, []string{"reason"}),
		skipped:   gauge("skipped_records", "Records on the broker that do not count, for a reason that /debug/plan gives."),
		held:      gauge("held_records", "Records that vanished from the broker unseen and are held for the time being."),
		reachable: gauge("reachable_clusters", "Other clusters that count as reachable; 0 where there are no gateways."),
		suspected: gauge("reach_suspected", "Whether all clusters were lost at once, and count as reachable for the time being (1) or not (0)."),
	}
}

func (m *metrics) register(registry prometheus.Registerer) error {
	var problems []error
	for _, c := range []prometheus.Collector{m.connected, m.writes, m.snapshotSeconds, m.exports, m.imports, m.slices, m.conflicts, m.skipped, m.held, m.reachable, m.suspected} {
		problems = append(problems, registry.Register(c))
	}
	return errors.Join(problems...)
}

func (m *metrics) wrote(side, kind string, failed bool) {
	result := "ok"
	if failed {
		result = "failed"
	}
	m.writes.WithLabelValues(side, kind, result).Inc()
}

func (m *metrics) saw(s *Snapshot, p *Plan) {
	m.exports.Set(float64(len(p.Exports)))
	m.imports.Set(float64(len(p.Imports)))
	m.slices.Set(float64(len(p.Slices)))
	m.skipped.Set(float64(len(p.Problems)))
	m.held.Set(float64(s.Broker.Held))
	m.reachable.Set(float64(len(s.Reach.names(clusterset.Reachable))))
	m.suspected.Set(0)
	if s.Reach.Suspect {
		m.suspected.Set(1)
	}
	m.conflicts.Reset()
	for reason, n := range p.Conflicts {
		m.conflicts.WithLabelValues(reason).Set(float64(n))
	}
}
