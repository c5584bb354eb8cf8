package netns

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/internal/cables"
)

// A router on the way has less room than the gateways' own links, and says so: cables get as small as that, in both directions, and
// large packets pass before and after.
func TestPathMTU(t *testing.T) {
	const narrow = 1400
	for _, c := range []struct {
		driver, family string
		overhead       int // 0 where the router makes fragments, and nobody learns of it
	}{
		{cables.WireGuard, "IPv4", 80}, {cables.WireGuard, "IPv6", 80},
		{cables.IPsec, "IPv4", 136}, {cables.IPsec, "IPv6", 156},
		{cables.VXLAN, "IPv4", 0}, {cables.VXLAN, "IPv6", 70},
	} {
		t.Run(c.driver+" over "+c.family, func(t *testing.T) {
			w := newWorld(t, c.driver, "g1", "g2")
			w.addresses = func(f nodeFacts) []string {
				if c.family == "IPv6" {
					return []string{f.addr6()}
				}
				return []string{f.addr4()}
			}
			w.connect(t)
			w.pods["g1"].Start(t, "server")
			w.pods["g2"].Start(t, "server")
			w.wan.Sh(t, fmt.Sprintf("ip link set br1 mtu %[1]d; ip link set br2 mtu %[1]d", narrow))
			for _, pair := range [][2]string{{"g1", "g2"}, {"g2", "g1"}} {
				from, to := nodeTable()[pair[0]], nodeTable()[pair[1]]
				link := cables.LinkName(c.driver, to.cluster+"."+pair[1])
				for ipt, address := range map[string]string{"iptables-nft": to.pod4(), "ip6tables-nft": to.pod6()} {
					w.pods[pair[1]].Sh(t, ipt+" -A INPUT -p udp --dport 9 -j ACCEPT")
					took := Eventually(t, 30*time.Second, pair[0]+" sends large packets", func() error {
						w.pods[pair[0]].Sh(t, "bash -c 'head -c 1350 /dev/zero >/dev/udp/"+address+"/9'")
						if came := strings.Fields(w.pods[pair[1]].Sh(t, ipt+" -vnxL INPUT | tail -n 1"))[0]; came == "0" {
							return errors.New("none has come")
						}
						return nil
					})
					t.Logf("large packets pass from %s to %s after %s", pair[0], address, took.Round(time.Millisecond))
				}
				if c.overhead == 0 {
					continue
				}
				mtu := max(narrow-c.overhead, 1280) // less, and IPv6 has no place in it
				took := Eventually(t, 30*time.Second, "the cable of "+pair[0]+" is as small as its way", func() error {
					is := w.nodes[pair[0]].Sh(t, "ip link show "+link)
					if !strings.Contains(is, fmt.Sprintf("mtu %d ", mtu)) {
						return fmt.Errorf("want %d: %s", mtu, is)
					}
					return nil
				})
				t.Logf("its cable is as small as its way after %s", took.Round(time.Millisecond))
				w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), mtu-40)
				w.expect(t, w.pods[pair[0]], to.pod6(), from.pod6(), mtu-60)
			}
		})
	}
}
