package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// newMesh is a world in which every node is a gateway, with all cables up.
func newMesh(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, "wireguard")
	w.startAPI(t, "c1", "g1")
	w.startAPI(t, "c2", "g2")
	for node := range nodeTable() {
		w.startGateway(node)
	}
	for node, f := range nodeTable() {
		w.mirror(t, f.cluster, node, map[string]string{"c1": "c2", "c2": "c1"}[f.cluster])
	}
	for node := range nodeTable() {
		w.cables(t, node, 2, 20*time.Second)
	}
	return w
}

// cables waits until a gateway has so many cables that are up, by its own word: its API server may be away.
func (w *world) cables(t *testing.T, node string, up int, within time.Duration) {
	t.Helper()
	Eventually(t, within, fmt.Sprintf("%s has %d cables up", node, up), func() error {
		out, err := w.nodes[node].Try("curl -sf http://127.0.0.1:9471/debug/plan")
		if is := strings.Count(out, ": "+string(v1alpha1.CableUp)+" since"); err == nil && is != up {
			err = fmt.Errorf("%d are:\n%s", is, out)
		}
		return err
	})
}

// No API server answers, and every daemon is killed: those that come after them go by what was known, and traffic flows as before.
func TestRestartWithoutAPIServers(t *testing.T) {
	w := newWorld(t, "wireguard")
	w.startAPI(t, "c1", "g1")
	w.startAPI(t, "c2", "g2")
	nodes := nodeTable()
	for node := range nodes {
		w.startAgent(node)
	}
	w.startGateway("g1")
	w.startGateway("g2")
	w.mirror(t, "c1", "g1", "c2")
	w.mirror(t, "c2", "g2", "c1")
	w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
	w.waitCable(t, "c2", "g2", v1alpha1.CableUp, 15*time.Second)
	for _, node := range []string{"w1", "w2"} {
		w.pods[node].Start(t, "server")
	}
	flows := func() {
		t.Helper()
		for _, pair := range [][2]string{{"w1", "w2"}, {"w2", "w1"}} {
			from, to := nodes[pair[0]], nodes[pair[1]]
			w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), 1420-40)
			w.expect(t, w.pods[pair[0]], to.pod6(), from.pod6(), 1420-60)
		}
	}
	flows()
	for _, server := range w.servers {
		server.Kill()
	}
	for _, daemons := range []map[string]*Process{w.gateways, w.agents} {
		for _, daemon := range daemons {
			daemon.Kill()
		}
	}
	// Nor is anything left in the kernel, as after a crash of the node.
	for _, node := range w.nodes {
		node.Sh(t, `ip nexthop flush proto 250 >/dev/null 2>&1; for ip in "ip" "ip -6"; do $ip rule del priority 900; done; ip link delete fastnet-vx || true
			ip -o link | grep -o 'fastnet-w[a-z0-9]*' | while read link; do ip link delete $link; done`)
	}
	kept := filepath.Join(w.stateDir("g2"), "routeagent-c2.g2.json")
	whole, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"{", string(whole)} {
		if err := os.WriteFile(kept, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.startAgent("g2")
		if text == "{" {
			Eventually(t, 10*time.Second, "the damaged file is told of", func() error {
				if log := w.agents["g2"].Log(); !strings.Contains(log, "what was known is lost") {
					return errors.New(log)
				}
				return nil
			})
			w.agents["g2"].Kill()
		}
	}
	for _, node := range []string{"w1", "g1", "w2"} {
		w.startAgent(node)
	}
	w.startGateway("g1")
	w.startGateway("g2")
	flows()
}

// A gateway that was away, in whatever way, has all its cables again at once, on both sides, its API server in reach or not.
func TestHeal(t *testing.T) {
	nothing := func(*world) {}
	for _, test := range []struct {
		name      string
		cut, heal string // on the WAN
		meanwhile func(*world)
		away      time.Duration
		within    time.Duration
	}{
		{"behind a dead switch", "bridge link set dev to-w1 state 0", "bridge link set dev to-w1 state 3", nothing, 3 * time.Second, 5 * time.Second},
		{"a pulled cable", "ip link set to-w1 down", "ip link set to-w1 up", nothing, 8 * time.Second, 5 * time.Second},
		// The kernel forgets what it had of IPv6, and nobody tells it again: half of the node's addresses are dead.
		{"a link that lost its addresses", "ip link set to-w1 down", "ip link set to-w1 up", func(w *world) {
			w.nodes["w1"].Sh(t, "ip link set eth0 down; ip link set eth0 up; ip route add default via 172.31.1.1; ip -6 route del default || true")
		}, 12 * time.Second, 5 * time.Second},
		// Its keys of the moment are gone with the process: there must be a handshake, which is tried every 5 s and up to a third.
		{"a process that ended", "bridge link set dev to-w1 state 0", "bridge link set dev to-w1 state 3", func(w *world) {
			w.gateways["w1"].Kill()
			w.startGateway("w1")
		}, 12 * time.Second, 9 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newMesh(t) // each its own: a cable that fails again within a minute is asked for longer
			w.wan.Sh(t, test.cut)
			w.cables(t, "w1", 0, 10*time.Second)
			w.cables(t, "w2", 1, 10*time.Second)
			w.cables(t, "g2", 1, 10*time.Second)
			test.meanwhile(w)
			time.Sleep(test.away) // nothing happens, and that for a while
			w.wan.Sh(t, test.heal)
			healed := time.Now()
			for _, node := range []string{"w2", "g2", "w1"} {
				w.cables(t, node, 2, time.Until(healed.Add(test.within)))
			}
			t.Logf("all cables are up %s after the heal", time.Since(healed).Round(time.Millisecond))
		})
	}
}

// What a dead gateway has said of its cables does not stay: another one deletes it.
func TestStaleGatewayIsDeleted(t *testing.T) {
	w := newWorld(t, "wireguard")
	w.startAPI(t, "c1", "g1")
	w.renew = time.Second // 90 s are 3
	w.startGateway("g1")
	w.startGateway("w1")
	exists := func(node string, want bool) func() error {
		return func() error {
			if err := w.call("c1", "GET", gatewaysURL+"/"+node, nil, nil); (err == nil) != want {
				return fmt.Errorf("the Gateway of %s: %v, and should be there: %t", node, err, want)
			}
			return nil
		}
	}
	Eventually(t, 15*time.Second, "both have a Gateway", func() error { return errors.Join(exists("g1", true)(), exists("w1", true)()) })
	w.gateways["w1"].Kill()
	took := Eventually(t, time.Minute, "the dead one's is deleted", exists("w1", false))
	if took < 2*time.Second {
		t.Errorf("deleted after %s", took)
	}
	w.startGateway("w1")
	Eventually(t, 15*time.Second, "it is back", exists("w1", true))
	if err := exists("g1", true)(); err != nil {
		t.Error(err)
	}
}
