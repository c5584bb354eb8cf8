package netns

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
)

// A driver as a full kernel carries it.
type kernelDriver struct {
	name string
	has  string // what of it the kernel has
	try  string // a script that tells
	port string // at which the peer is
	// alone: the kernel carries on without the gateway's process.
	alone bool
}

func kernelDrivers() []kernelDriver {
	return []kernelDriver{
		{cables.WireGuard, "WireGuard", "ip link add try type wireguard", "51820", true},
		{cables.IPsec, "ESP", "ip link add try type xfrm if_id 7", "4500", false},
		{cables.VXLAN, "VXLAN", "ip link add try type vxlan id 7 dstport 4789", "51820", true},
	}
}

// Where the kernel has what a driver needs it carries the cables: both families, also over a bad line, and nothing is left of it.
// The two gateways are all there is of their clusters here.
func TestKernel(t *testing.T) {
	for _, driver := range kernelDrivers() {
		t.Run(driver.name, func(t *testing.T) {
			RequireKernel(t, driver.has, driver.try)
			RequireKernel(t, "netem", "tc qdisc add dev lo root netem delay 1ms")
			testKernel(t, driver)
		})
	}
}

func testKernel(t *testing.T, driver kernelDriver) {
	w := newWorld(t, driver.name, "g1", "g2")
	nodes, gateways := nodeTable(), map[string]string{"g1": "c1", "g2": "c2"}
	before := map[string]string{}
	for node := range gateways {
		before[node] = w.nodes[node].State(t)
	}
	sniffer := w.sniff(t)
	up := w.connect(t)
	if up.PeerAddress != nodes["g2"].addr4()+":"+driver.port || up.Driver != driver.name {
		t.Errorf("the cable of c1 is %+v, want driver %s", up, driver.name)
	}
	for node := range gateways {
		w.pods[node].Start(t, "server")
	}
	reached := func(t *testing.T) {
		t.Helper()
		for _, pair := range [][2]string{{"g1", "g2"}, {"g2", "g1"}} {
			from, to := nodes[pair[0]], nodes[pair[1]]
			w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), w.mtu()-40)
			w.expect(t, w.pods[pair[0]], to.pod6(), from.pod6(), w.mtu()-60)
		}
	}
	t.Run("pods reach each other", reached)
	streams := []*Process{
		w.pods["g1"].Start(t, "stream", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"Address": nodes["g2"].pod4()})),
		w.pods["g1"].Start(t, "stream", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"Address": nodes["g2"].pod6()})),
	}
	goesOn := func(t *testing.T, lines int) {
		t.Helper()
		for _, stream := range streams {
			had := strings.Count(stream.Log(), "\n")
			Eventually(t, time.Minute, "the connection goes on", func() error {
				if has := strings.Count(stream.Log(), "\n"); has < had+lines {
					return fmt.Errorf("%d lines, had %d: %s", has, had, lastLine(stream.Log()))
				}
				return nil
			})
		}
	}
	t.Run("a gateway's process ends and another begins", func(t *testing.T) {
		device := cables.LinkName(driver.name, "c2.g2")
		link := w.nodes["g1"].Sh(t, "ip link show "+device)
		w.gateways["g1"].Kill()
		if driver.alone {
			goesOn(t, 5)
		}
		w.startGateway("g1")
		goesOn(t, 5)
		if now := w.nodes["g1"].Sh(t, "ip link show "+device); now != link {
			t.Errorf("the device was made again: before\n%s\nafter\n%s", link, now)
		}
		w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
	})
	if driver.name == cables.IPsec {
		t.Run("charon dies and another begins", func(t *testing.T) {
			for node := range gateways {
				w.killCharon(t, node)
				goesOn(t, 5)
			}
		})
	}
	t.Run("gateways that have but IPv6 for each other", func(t *testing.T) {
		w.addresses = func(f nodeFacts) []string { return []string{f.addr6()} }
		for node := range gateways {
			w.gateways[node].Kill()
			w.startGateway(node)
		}
		for node, other := range map[string]string{"g1": "g2", "g2": "g1"} {
			Eventually(t, 20*time.Second, node+" has its cable over IPv6", func() error {
				c, err := w.cable(gateways[node], node)
				if want := "[" + nodes[other].addr6() + "]:"; err == nil && (c.State != v1alpha1.CableUp || !strings.HasPrefix(c.PeerAddress, want)) {
					err = fmt.Errorf("it is %+v", c)
				}
				return err
			})
		}
		goesOn(t, 5)
	})
	t.Run("50 ms of jitter and 10 % loss change nothing", func(t *testing.T) { w.testBadLine(t, func() { goesOn(t, 50) }) })
	t.Run("a cut cable is down, and up again when healed", func(t *testing.T) {
		w.wan.Sh(t, "ip link set to-g2 down")
		w.waitCable(t, "c1", "g1", v1alpha1.CableDown, 10*time.Second)
		w.wan.Sh(t, "ip link set to-g2 up")
		w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
		goesOn(t, 5)
	})
	for _, stream := range streams {
		stream.Signal(t, syscall.SIGTERM)
		stream.Wait(t, 10*time.Second)
	}
	if seen := strings.Contains(sniffer.Log(), "clear"); seen != (driver.name == cables.VXLAN) {
		t.Errorf("packets of pods in clear between the clusters: %t\n%s", seen, sniffer.Log())
	}
	if leaked := w.leaked(t); leaked != "" {
		t.Errorf("the WAN has seen packets of pods in clear:\n%s", leaked)
	}
	t.Run("an uninstall leaves nothing, nor does a kill and a cleanup", func(t *testing.T) {
		for _, name := range []string{"fastnet-gateway", "fastnet-routeagent"} {
			if err := w.call("c1", "DELETE", daemonSets+"/"+name, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []*Process{w.gateways["g1"], w.agents["g1"]} {
			p.Signal(t, syscall.SIGTERM)
			p.Wait(t, 20*time.Second)
		}
		w.gateways["g2"].Kill()
		w.agents["g2"].Kill()
		w.clean(t, "g2")
		for node := range gateways {
			if diff := cmp.Diff(strip(before[node]), strip(w.nodes[node].State(t))); diff != "" {
				t.Errorf("%s (-before +after):\n%s", node, diff)
			}
		}
	})
}

// testBadLine makes the line between the clusters bad, and good again. No cable and no path minds.
func (w *world) testBadLine(t *testing.T, works func()) {
	t.Helper()
	up := w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
	paths := func() (all string) {
		for _, node := range []string{"g1", "g2"} {
			all += node + "\n" + w.nodes[node].Sh(t, "ip nexthop; ip route show table 64087; ip -6 route show table 64087")
		}
		return all
	}
	before := paths()
	w.wan.Sh(t, "for link in br1 br2; do tc qdisc add dev $link root netem delay 60ms 50ms loss 10%; done")
	Eventually(t, time.Minute, "the gateway has measured it", func() error {
		metrics, err := w.nodes["g1"].Try("curl -sf http://127.0.0.1:9471/metrics")
		if err != nil {
			return errors.New(metrics)
		}
		rtt, loss := metric(metrics, "fastnet_gateway_cable_rtt_seconds"), metric(metrics, "fastnet_gateway_cable_loss_ratio")
		if rtt < 0.08 || loss < 0.10 { // of both ways: 120 ms and 19 %, of 200 probes
			return fmt.Errorf("RTT %g s, loss %g", rtt, loss)
		}
		t.Logf("RTT %g s, loss %g", rtt, loss)
		return nil
	})
	works()
	if after := paths(); after != before {
		t.Errorf("paths before\n%s\nafter\n%s", before, after)
	}
	now, err := w.cable("c1", "g1")
	if err != nil || now.State != v1alpha1.CableUp || !now.Since.Equal(&up.Since) {
		t.Errorf("the cable was %+v, is %+v (%v)", up, now, err)
	}
	w.wan.Sh(t, "for link in br1 br2; do tc qdisc delete dev $link root; done")
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
