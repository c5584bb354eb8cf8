package agent

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// metrics are the agent's. Every label takes values from a fixed set.
type metrics struct {
	connected   prometheus.GaugeFunc
	records     prometheus.Collector
	writes      *prometheus.CounterVec
	planSeconds prometheus.Histogram
	convergence *prometheus.HistogramVec
	propagation prometheus.Histogram
	exports     prometheus.Gauge
	imports     prometheus.Gauge
	slices      prometheus.Gauge
	conflicts   *prometheus.GaugeVec
	skipped     prometheus.Gauge
	reachable   prometheus.Gauge
	suspected   prometheus.Gauge

	cluster string
	started time.Time
	mu      sync.Mutex
	tallies map[scope]tally
}

// tally is what a scope adds to the gauges.
type tally struct {
	exports, imports, slices, skipped int
	conflicts                         map[string]int
}

func newMetrics(cluster string, connected func() bool, view func() broker.View) *metrics {
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
		records: recordsCollector{view},
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fastnet_agent_writes_total", Help: "Writes to an API server, by side (local, broker), kind and result (ok, failed).",
		}, []string{"side", "kind", "result"}),
		planSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fastnet_agent_plan_duration_seconds", Help: "Time to read a snapshot of one service from the caches and to plan from it.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 4, 8),
		}),
		convergence: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "fastnet_agent_convergence_duration_seconds",
			Help:    "Time from the news of a change, from either API server, until everything that follows from it is written, by loop (import, export).",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"loop"}),
		propagation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fastnet_agent_propagation_duration_seconds",
			Help:    "Time from a change of endpoints in another cluster, by that cluster's clock, until the slice that shows it is written in this one.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 18),
		}),
		exports: gauge("exports", "ServiceExports of this cluster."),
		imports: gauge("imports", "ServiceImports in this cluster."),
		slices:  gauge("endpointslices", "EndpointSlices that the agent keeps in this cluster."),
		conflicts: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fastnet_agent_conflicts", Help: "ServiceExports of this cluster in conflict with other clusters', by reason.",
		}, []string{"reason"}),
		skipped:   gauge("skipped_records", "Records on the broker that do not count, for a reason that /debug/plan gives."),
		reachable: gauge("reachable_clusters", "Other clusters that count as reachable; 0 where there are no gateways."),
		suspected: gauge("reach_suspected", "Whether all clusters were lost at once, and count as reachable for the time being (1) or not (0)."),
		cluster:   cluster, started: time.Now(), tallies: map[scope]tally{},
	}
}

func (m *metrics) register(registry prometheus.Registerer) error {
	var problems []error
	for _, c := range []prometheus.Collector{m.connected, m.records, m.writes, m.planSeconds, m.convergence, m.propagation, m.exports, m.imports, m.slices, m.conflicts, m.skipped, m.reachable, m.suspected} {
		problems = append(problems, registry.Register(c))
	}
	return errors.Join(problems...)
}

// wrote counts a write. One that shows a change of endpoints in another cluster tells how long that took; what changed before
// this agent began was nobody's to wait for.
func (m *metrics) wrote(side string, object client.Object, failed bool) {
	result := "ok"
	if failed {
		result = "failed"
	}
	m.writes.WithLabelValues(side, kindOf(object), result).Inc()
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if ok && !failed && slice.Annotations[annotationRecord] != "" && slice.Labels[v1alpha1.LabelSourceCluster] != m.cluster {
		if at, err := time.Parse(time.RFC3339Nano, changedAt(slice)); err == nil && at.After(m.started) {
			m.propagation.Observe(max(0, time.Since(at).Seconds()))
		}
	}
}

func (m *metrics) converged(loop string, took time.Duration) {
	m.convergence.WithLabelValues(loop).Observe(took.Seconds())
}

// saw puts a plan of one scope in the place of the scope's last.
func (m *metrics) saw(of scope, s *Snapshot, p *Plan) {
	now := tally{len(p.Exports), len(p.Imports), len(p.Slices), len(p.Problems), p.Conflicts}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.tallies[of]
	m.tallies[of] = now
	if now.exports+now.imports+now.slices+now.skipped == 0 {
		delete(m.tallies, of)
	}
	m.exports.Add(float64(now.exports - before.exports))
	m.imports.Add(float64(now.imports - before.imports))
	m.slices.Add(float64(now.slices - before.slices))
	m.skipped.Add(float64(now.skipped - before.skipped))
	for reason, n := range before.conflicts {
		m.conflicts.WithLabelValues(reason).Sub(float64(n))
	}
	for reason, n := range now.conflicts {
		m.conflicts.WithLabelValues(reason).Add(float64(n))
	}
	if of != gateways {
		m.reachable.Set(float64(len(s.Reach.names(clusterset.Reachable))))
		m.suspected.Set(0)
		if s.Reach.Suspect {
			m.suspected.Set(1)
		}
	}
}

// recordsCollector counts what the broker holds, when somebody asks.
type recordsCollector struct{ view func() broker.View }

var (
	recordsDesc = prometheus.NewDesc("fastnet_agent_broker_records", "Records of all members on the broker, as far as is known, by kind.", []string{"kind"}, nil)
	heldDesc    = prometheus.NewDesc("fastnet_agent_held_records", "Records that vanished from the broker unseen and are held for the time being.", nil, nil)
	awaitedDesc = prometheus.NewDesc("fastnet_agent_awaited_members", "Members that have not confirmed their records since this agent started: what is imported of them stays as it is.", nil, nil)
	expiredDesc = prometheus.NewDesc("fastnet_agent_expired_members", "Members that have been silent for too long, and whose records do not count.", nil, nil)
)

// Describe is the Collector's.
func (c recordsCollector) Describe(all chan<- *prometheus.Desc) {
	all <- recordsDesc
	all <- heldDesc
	all <- awaitedDesc
	all <- expiredDesc
}

// Collect is the Collector's.
func (c recordsCollector) Collect(all chan<- prometheus.Metric) {
	view := c.view()
	for kind, n := range map[string]int{"ExportedService": len(view.Services), "ExportedEndpoints": len(view.Endpoints), "Endpoint": len(view.Gateways)} {
		all <- prometheus.MustNewConstMetric(recordsDesc, prometheus.GaugeValue, float64(n), kind)
	}
	all <- prometheus.MustNewConstMetric(heldDesc, prometheus.GaugeValue, float64(view.Held))
	all <- prometheus.MustNewConstMetric(awaitedDesc, prometheus.GaugeValue, float64(len(view.Awaited)))
	all <- prometheus.MustNewConstMetric(expiredDesc, prometheus.GaugeValue, float64(len(view.Expired)))
}
