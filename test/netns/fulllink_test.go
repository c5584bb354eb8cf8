package netns

import (
	"fmt"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
)

// A link with eight times as much to carry as it can takes no cable down: of g1's probes and answers seven in eight are lost with the rest.
// When it is cut, the cable is down as ever.
func TestFullLinkIsNoDeadOne(t *testing.T) {
	for _, driver := range []string{cables.WireGuard, cables.IPsec, cables.VXLAN} {
		t.Run(driver, func(t *testing.T) {
			w := newWorld(t, driver)
			w.connect(t)
			g1, g2 := nodeTable()["g1"], nodeTable()["g2"]
			w.nodes["g1"].Sh(t, `tc qdisc add dev eth0 root handle 1: htb default 1 r2q 1
				tc class add dev eth0 parent 1: classid 1:1 htb rate 2mbit burst 4k
				tc qdisc add dev eth0 parent 1:1 pfifo limit 20`)
			before := map[string]v1alpha1.Cable{}
			for cluster, node := range map[string]string{"c1": "g1", "c2": "g2"} {
				before[cluster] = w.waitCable(t, cluster, node, v1alpha1.CableUp, 5*time.Second)
			}
			const lasts = 3 * time.Second
			for _, to := range []string{g2.pod4(), g2.pod6()} {
				w.pods["g1"].Start(t, "flood", "FASTNET_TEST_CONFIG="+text(t, map[string]any{"Address": to, "Lasts": lasts})).Wait(t, 5*lasts)
			}
			t.Log(w.nodes["g1"].Sh(t, "tc -s qdisc show dev eth0 | grep -A1 pfifo"))
			for cluster, node := range map[string]string{"c1": "g1", "c2": "g2"} {
				now, err := w.cable(cluster, node)
				if err != nil || now.State != v1alpha1.CableUp || !now.Since.Time.Equal(before[cluster].Since.Time) {
					t.Errorf("the cable of %s is %s since %s (%v), and was up since %s", cluster, now.State, now.Since, err, before[cluster].Since)
				}
			}
			w.wan.Sh(t, fmt.Sprintf("iptables-nft -I FORWARD -s %[1]s -j DROP; iptables-nft -I FORWARD -d %[1]s -j DROP", g1.addr4()))
			for cluster, node := range map[string]string{"c1": "g1", "c2": "g2"} {
				w.waitCable(t, cluster, node, v1alpha1.CableDown, 5*time.Second)
			}
		})
	}
}
