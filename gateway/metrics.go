package gateway

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// collector reads the cables when it is asked, so that figures are never older than the scrape.
type collector struct{ gateway *gateway }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fastnet_gateway_"+name, help, labels, nil)
}

// The metrics. A cable is named by the cluster and the Endpoint at its other end.
func cableUp() *prometheus.Desc {
	return describe("cable_up", "1 while the cable is up, else 0.", "remote_cluster", "endpoint")
}
func cableRTT() *prometheus.Desc {
	return describe("cable_rtt_seconds", "Smoothed round-trip time through the cable.", "remote_cluster", "endpoint")
}
func cableLoss() *prometheus.Desc {
	return describe("cable_loss_ratio", "Share of the last probes through the cable that had no answer.", "remote_cluster", "endpoint")
}
func cableFailures() *prometheus.Desc {
	return describe("cable_failures_total", "Times that the cable went down.", "remote_cluster", "endpoint")
}
func draining() *prometheus.Desc {
	return describe("draining", "1 while this gateway asks others to send no more, else 0.")
}
func cableHandshake() *prometheus.Desc {
	return describe("cable_last_handshake_timestamp_seconds", "Time of the last handshake, in Unix seconds.", "remote_cluster", "endpoint")
}
func cableSent() *prometheus.Desc {
	return describe("cable_sent_bytes_total", "Bytes sent through the cable, tunnel headers included.", "remote_cluster", "endpoint")
}
func cableReceived() *prometheus.Desc {
	return describe("cable_received_bytes_total", "Bytes received through the cable, tunnel headers included.", "remote_cluster", "endpoint")
}
func problems() *prometheus.Desc {
	return describe("problems", "Problems that the Gateway object names.")
}

// Describe sends what Collect may send.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []func() *prometheus.Desc{cableUp, cableRTT, cableLoss, cableFailures, cableHandshake, cableSent, cableReceived, draining, problems} {
		out <- desc()
	}
}

// Collect reads the driver and the prober.
func (c collector) Collect(out chan<- prometheus.Metric) {
	c.gateway.mu.Lock()
	desired := c.gateway.last.desired
	c.gateway.mu.Unlock()
	out <- prometheus.MustNewConstMetric(problems(), prometheus.GaugeValue, float64(len(desired.Problems)))
	drains := 0.0
	if c.gateway.draining() {
		drains = 1
	}
	out <- prometheus.MustNewConstMetric(draining(), prometheus.GaugeValue, drains)
	report, err := c.gateway.drivers.report(context.Background())
	if err != nil {
		out <- prometheus.NewInvalidMetric(cableUp(), err)
		return
	}
	health := c.gateway.prober.health()
	for _, cable := range report.Cables {
		send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64) {
			out <- prometheus.MustNewConstMetric(desc, kind, value, cable.ClusterID, cable.Endpoint)
		}
		h := health[cable.Endpoint]
		up := 0.0
		if h.State == v1alpha1.CableUp {
			up = 1
		}
		send(cableUp(), prometheus.GaugeValue, up)
		if h.RTT > 0 {
			send(cableRTT(), prometheus.GaugeValue, h.RTT.Seconds())
		}
		send(cableLoss(), prometheus.GaugeValue, h.Loss)
		send(cableFailures(), prometheus.CounterValue, float64(h.Failures))
		if !cable.LastHandshake.IsZero() {
			send(cableHandshake(), prometheus.GaugeValue, float64(cable.LastHandshake.Unix()))
		}
		send(cableSent(), prometheus.CounterValue, float64(cable.Sent))
		send(cableReceived(), prometheus.CounterValue, float64(cable.Received))
	}
}

func newRegistry(g *gateway) (*prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(collector{g}); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return registry, nil
}
