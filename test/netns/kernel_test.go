package netns

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
)

// Where the kernel has WireGuard it carries the cables: both families, also over a bad line.
func TestKernelWireGuard(t *testing.T) {
	RequireKernel(t, "WireGuard", "ip link add try type wireguard")
	RequireKernel(t, "netem", "tc qdisc add dev lo root netem delay 1ms")
	w := newWorld(t, cables.WireGuard)
	w.start(t)
	device := cables.LinkName(cables.WireGuard, "c2.g2")
	t.Run("devices are the kernel's", func(t *testing.T) {
		for cluster, node := range map[string]string{"c1": "g1", "c2": "g2"} {
			var g v1alpha1.Gateway
			if err := w.call(cluster, "GET", gatewaysURL+"/"+node, nil, &g); err != nil {
				t.Fatal(err)
			}
			if g.Status.Driver != "wireguard" {
				t.Errorf("driver of %s is %q", node, g.Status.Driver)
			}
		}
		if links := w.nodes["g1"].Sh(t, "ip -br link show type wireguard"); !strings.HasPrefix(links, device) || strings.Count(links, "\n") != 1 {
			t.Errorf("WireGuard devices, want %s alone:\n%s", device, links)
		}
	})
	nodes := nodeTable()
	for _, node := range []string{"w1", "w2"} {
		w.pods[node].Start(t, "server")
	}
	reached := func(t *testing.T) {
		t.Helper()
		for _, pair := range [][2]string{{"w1", "w2"}, {"w2", "w1"}} {
			from, to := nodes[pair[0]], nodes[pair[1]]
			w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), 1420-40)
			w.expect(t, w.pods[pair[0]], to.pod6(), from.pod6(), 1420-60)
		}
	}
	t.Run("pods reach each other", reached)
	t.Run("a gateway's process ends and another begins: the kernel carries on", func(t *testing.T) {
		before := w.nodes["g1"].Sh(t, "ip -d link show "+device)
		w.gateways["g1"].Kill()
		reached(t)
		w.startGateway("g1")
		w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
		if after := w.nodes["g1"].Sh(t, "ip -d link show "+device); after != before {
			t.Errorf("the device was made again: before\n%s\nafter\n%s", before, after)
		}
		reached(t)
	})
	t.Run("20 ms of delay with 5 ms of jitter, 5 % loss, each way", func(t *testing.T) {
		up := w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
		paths := func() (all string) {
			for _, node := range []string{"w1", "g1", "w2", "g2"} {
				all += node + "\n" + w.nodes[node].Sh(t, "ip nexthop; ip route show table 64087; ip -6 route show table 64087")
			}
			return all
		}
		before := paths()
		// Towards the gateways' segments; what stays within one does not pass here.
		w.wan.Sh(t, "for link in br1 br2; do tc qdisc add dev $link root netem delay 20ms 5ms loss 5%; done")
		stream := w.pods["w1"].Start(t, "stream", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"Address": nodes["w2"].pod6()}))
		Eventually(t, time.Minute, "the gateway has measured it", func() error {
			metrics, err := w.nodes["g1"].Try("curl -sf http://127.0.0.1:9471/metrics")
			if err != nil {
				return errors.New(metrics)
			}
			rtt, loss := metric(metrics, "fastnet_gateway_cable_rtt_seconds"), metric(metrics, "fastnet_gateway_cable_loss_ratio")
			if rtt < 0.035 || rtt > 0.060 || loss < 0.05 || loss > 0.16 { // of both ways: 40 ms and 9.75 %, of 200 probes
				return fmt.Errorf("RTT %g s, loss %g", rtt, loss)
			}
			t.Logf("RTT %g s, loss %g", rtt, loss)
			return nil
		})
		Eventually(t, time.Minute, "a TCP connection carries 200 lines", func() error {
			if lines := strings.Count(stream.Log(), "\n"); lines < 200 {
				return fmt.Errorf("%d lines", lines)
			}
			return nil
		})
		stream.Signal(t, syscall.SIGTERM)
		stream.Wait(t, 10*time.Second)
		if after := paths(); after != before {
			t.Errorf("paths before\n%s\nafter\n%s", before, after)
		}
		now, err := w.cable("c1", "g1")
		if err != nil || now.State != v1alpha1.CableUp || !now.Since.Equal(&up.Since) {
			t.Errorf("the cable was %+v, is %+v (%v)", up, now, err)
		}
		if failures := metric(w.nodes["g1"].Sh(t, "curl -sf http://127.0.0.1:9471/metrics"), "fastnet_gateway_cable_failures_total"); failures != 0 {
			t.Errorf("the cable went down %g times", failures)
		}
		w.wan.Sh(t, "for link in br1 br2; do tc qdisc delete dev $link root; done")
	})
	if leaked := w.leaked(t); leaked != "" {
		t.Errorf("the WAN has seen packets of pods in clear:\n%s", leaked)
	}
}

// metric is the value of the first sample of this name in the text of metrics, or -1.
func metric(text, name string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+"{"); ok {
			fields := strings.Fields(rest[strings.LastIndex(rest, "}")+1:])
			if value, err := strconv.ParseFloat(fields[0], 64); err == nil {
				return value
			}
		}
	}
	return -1
}
