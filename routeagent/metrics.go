package routeagent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

type metrics struct {
	registry  *prometheus.Registry
	rounds    *prometheus.CounterVec
	took      prometheus.Histogram
	changes   prometheus.Counter
	routes    *prometheus.GaugeVec
	problems  prometheus.Gauge
	failovers prometheus.Counter
	failing   prometheus.Histogram
}

func newMetrics(health func() map[nodeprobe.Target]nodeprobe.Health) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fastnet_routeagent_rounds_total",
			Help: "Rounds of looking, planning and applying, by result."}, []string{"result"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "fastnet_routeagent_round_duration_seconds",
			Help: "Time that a round took.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 11)}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{Name: "fastnet_routeagent_changes_total",
			Help: "Changes made to the kernel: links, neighbours, nexthops, routes, rules, iptables rules, sysctls."}),
		routes: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "fastnet_routeagent_routes",
			Help: "Routes to other clusters, by path: gateway (this node is one), direct, tunnel, blackhole (no path)."}, []string{"path"}),
		problems: prometheus.NewGauge(prometheus.GaugeOpts{Name: "fastnet_routeagent_problems",
			Help: "Problems that the plan names; /debug/plan says which."}),
		failovers: prometheus.NewCounter(prometheus.CounterOpts{Name: "fastnet_routeagent_failovers_total",
			Help: "Times that the members of nexthop groups were exchanged because the health of a path or cable had changed, either way."}),
		failing: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "fastnet_routeagent_failover_duration_seconds",
			Help: "Time from the verdict on a path or cable until the groups were exchanged.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12)}),
	}
	m.registry.MustRegister(m.rounds, m.took, m.changes, m.routes, m.problems, m.failovers, m.failing, pathCollector{health})
	return m
}

func (m *metrics) observe(took time.Duration, desired Desired, changes int, err error) {
	m.took.Observe(took.Seconds())
	m.changes.Add(float64(changes))
	if err != nil {
		m.rounds.WithLabelValues("failure").Inc()
		return
	}
	m.rounds.WithLabelValues("success").Inc()
	m.plan(desired)
}

func (m *metrics) failedOver(took time.Duration, desired Desired, changes int) {
	if changes == 0 {
		return
	}
	m.failovers.Inc()
	m.failing.Observe(took.Seconds())
	m.changes.Add(float64(changes))
	m.plan(desired)
}

func (m *metrics) plan(desired Desired) {
	m.problems.Set(float64(len(desired.Problems)))
	counts := map[string]float64{"gateway": 0, "direct": 0, "tunnel": 0, "blackhole": 0}
	members := map[string][]netstate.Nexthop{}
	for _, group := range desired.State.Groups {
		members[group.Name] = group.Members
	}
	for _, route := range desired.State.Routes {
		hops := members[route.Group]
		switch {
		case len(hops) == 0:
			counts["blackhole"]++ // one stands behind every route
		case cables.IsLink(hops[0].Dev):
			counts["gateway"]++
		case hops[0].Dev == LinkVXLAN:
			counts["tunnel"]++
		default:
			counts["direct"]++
		}
	}
	counts["blackhole"] -= counts["gateway"] + counts["direct"] + counts["tunnel"]
	for path, count := range counts {
		m.routes.WithLabelValues(path).Set(count)
	}
}

var (
	pathUp = prometheus.NewDesc("fastnet_routeagent_path_up",
		"Whether the path to a gateway of this cluster is up, by the gateway's Endpoint and the address probed.", []string{"gateway", "address"}, nil)
	pathProven = prometheus.NewDesc("fastnet_routeagent_path_proven",
		"Whether packets as of pods get directly to a gateway on this node's segment, by the gateway's Endpoint and the address.", []string{"gateway", "address"}, nil)
	pathRTT = prometheus.NewDesc("fastnet_routeagent_path_rtt_seconds",
		"Smoothed round-trip time of the probes to a gateway.", []string{"gateway", "address"}, nil)
	pathLoss = prometheus.NewDesc("fastnet_routeagent_path_loss_ratio",
		"Share of the last probes to a gateway that had no answer.", []string{"gateway", "address"}, nil)
)

// pathCollector reads the health of paths when it is asked.
type pathCollector struct {
	health func() map[nodeprobe.Target]nodeprobe.Health
}

// Describe implements prometheus.Collector.
func (pathCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- pathUp
	ch <- pathProven
	ch <- pathRTT
	ch <- pathLoss
}

// Collect implements prometheus.Collector.
func (c pathCollector) Collect(ch chan<- prometheus.Metric) {
	for target, health := range c.health() {
		up := 0.0
		if health.State == liveness.Up {
			up = 1
		}
		gauge := func(desc *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, target.Gateway, target.Addr.String())
		}
		if target.Source.IsValid() {
			if health.State != liveness.Unknown {
				gauge(pathProven, up)
			}
			continue
		}
		gauge(pathUp, up)
		gauge(pathRTT, health.RTT.Seconds())
		gauge(pathLoss, health.Loss)
	}
}
