package netns

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Two nodes on one segment, which drops what has an address that is none of the nodes': a node that asks its gateway in its own name
// alone is answered. So the plain route is not enough, and the pods' packets take the tunnel, each family by itself; and the plain route
// again when that carries them.
func TestSegmentThatDropsPodsPackets(t *testing.T) {
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
	w.pods["w2"].Start(t, "server")
	by := func(family, want string) {
		t.Helper()
		took := Eventually(t, 15*time.Second, "w1 sends "+family+" "+want, func() error {
			out, err := w.nodes["w1"].Try("ip " + family + " route show table 64087")
			if err == nil && !strings.Contains(out, want) {
				err = errors.New(out)
			}
			return err
		})
		t.Logf("%s %s after %s", family, want, took.Round(time.Millisecond))
	}
	flows := func() {
		t.Helper()
		w.expect(t, w.pods["w1"], nodes["w2"].pod4(), nodes["w1"].pod4(), 1420-40)
		w.expect(t, w.pods["w1"], nodes["w2"].pod6(), nodes["w1"].pod6(), 1420-60)
	}
	by("-4", "dev eth0")
	by("-6", "dev eth0")
	flows()

	w.wan.Sh(t, `nft add table bridge filter; nft 'add chain bridge filter segment { type filter hook forward priority 0; }'
		nft add rule bridge filter segment oifname to-g1 ip daddr 10.9.0.0/16 drop`)
	by("-4", "dev fastnet-vx")
	flows()
	if out := w.nodes["w1"].Sh(t, "ip -6 route show table 64087"); !strings.Contains(out, "dev eth0") {
		t.Errorf("IPv6, which passes, has left its way:\n%s", out)
	}
	w.wan.Sh(t, "nft add rule bridge filter segment oifname to-g1 ip6 saddr fd00:8::/32 drop")
	by("-6", "dev fastnet-vx")
	flows()

	// A new process goes on with what it finds, and does not try the segment with traffic.
	w.agents["w1"].Kill()
	w.startAgent("w1")
	Eventually(t, 15*time.Second, "the new process knows its ways, and they are live", func() error {
		out, err := w.nodes["w1"].Try("curl -sf http://127.0.0.1:9472/debug/routes")
		if err == nil && (strings.Contains(out, `"path":"direct"`) || strings.Count(out, `"live":true`) != 2) {
			err = errors.New(out)
		}
		return err
	})
	for _, family := range []string{"-4", "-6"} {
		by(family, "dev fastnet-vx")
	}
	flows()

	w.wan.Sh(t, "nft flush chain bridge filter segment")
	by("-4", "dev eth0")
	by("-6", "dev eth0")
	flows()
	Eventually(t, 20*time.Second, "no tunnel is left on w1", func() error {
		if out, err := w.nodes["w1"].Try("ip link show fastnet-vx"); err == nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
