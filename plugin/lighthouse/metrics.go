package lighthouse

import (
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The metrics are the process's, like those of every CoreDNS plugin: the *prometheus* plugin serves the default registry,
// and counters go on over a reload. The values of every label are a fixed few; servers are those of the Corefile.
var (
	answersTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "answers_total",
		Help:      "Replies of the plugin, by what the name was and by response code.",
	}, []string{"kind", "rcode"})

	repliesDropped = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "replies_dropped_total",
		Help:      "Replies, of all plugins, that were not sent because too many waited for their UDP socket.",
	}, []string{"server"})

	servicesHeld = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "services",
		Help:      "Imported services that are held, by kind.",
	}, []string{"kind"})

	backendsHeld = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "backends",
		Help:      "Addresses of ready backends of headless services that are held.",
	})

	reachableClusters = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "reachable_clusters",
		Help:      "Remote clusters with a cable that is up; -1 where no Gateway reports and every cluster counts as reachable.",
	})

	suspecting = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "suspecting_self",
		Help:      "1 while answers of clusters that all went at once are kept, because this cluster is the likelier one to be cut off.",
	})

	synced = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "synced",
		Help:      "1 once every kind of object has been read from the API server.",
	})

	watchErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "watch_errors_total",
		Help:      "Failed requests to list or watch, by kind of object.",
	}, []string{"resource"})

	// servedSnapshot is when the snapshot was written whose records are served, in nanoseconds since 1970; 0 while there is
	// none, or the API server has taken its place.
	servedSnapshot atomic.Int64

	_ = promauto.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "snapshot_age_seconds",
		Help:      "Age of the snapshot whose records are served; 0 where none is, because the API server has answered.",
	}, func() float64 {
		written := servedSnapshot.Load()
		if written == 0 {
			return 0
		}
		return time.Since(time.Unix(0, written)).Seconds()
	})

	snapshotErrors = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "snapshot_errors_total",
		Help:      "Attempts to write the snapshot that failed.",
	})

	programmingSeconds = promauto.NewHistogram(prometheus.HistogramOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "programming_duration_seconds",
		Help:      "Time from a change of endpoints, as its EndpointSlice tells it, until it is served.",
		Buckets:   prometheus.ExponentialBuckets(0.001, 2, 16),
	})
)

// observeLatency records that a change made at that time is served now.
func observeLatency(changed time.Time) {
	if !changed.IsZero() {
		programmingSeconds.Observe(time.Since(changed).Seconds())
	}
}

// held counts what a zone holds, as it is built.
type held struct {
	services [3]int // by kind
	backends int
}

var kindNames = [...]string{kindIP: "clustersetip", kindBalanced: "balanced", kindHeadless: "headless"}

// add counts a service in, or with -1 out.
func (h *held) add(s *service, n int) {
	h.services[s.kind] += n
	for _, p := range s.parts {
		for _, slice := range p.backends {
			h.backends += n * len(slice.backends)
		}
	}
}

// export sets the gauges to what is served now.
func (h *held) export(z *zone) {
	for k, name := range kindNames {
		servicesHeld.WithLabelValues(name).Set(float64(h.services[k]))
	}
	backendsHeld.Set(float64(h.backends))
	synced.Set(boolGauge(z.synced))
	suspecting.Set(boolGauge(z.reach.suspect))
	n := -1
	if !z.reach.everything {
		n = 0
		for _, up := range z.reach.up {
			if up {
				n++
			}
		}
	}
	reachableClusters.Set(float64(n))
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
