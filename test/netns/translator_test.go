package netns

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
)

// A router between the clusters that both are behind, in one family. g1 can call, and be answered; nobody can call it. g2 has a few ports of
// another address, which are forwarded to it.
//
//	g1 172.31.1.2 --- | SNAT --to 198.51.100.1          | --- g2 172.31.2.2
//	                  | 203.0.113.7:52000.. DNAT --to g2 |
type translator struct {
	w        *world
	ipt      string
	g1, g2   string // their own addresses
	outside  string // of g1, without its last figure
	forwards string // to g2
}

func newTranslator(t *testing.T, w *world, family string) translator {
	t.Helper()
	from, to := nodeTable()["g1"], nodeTable()["g2"]
	tr := translator{w, "iptables-nft", from.addr4(), to.addr4(), "198.51.100.", "203.0.113.7"}
	ip, bits := "ip", 32
	if family == "IPv6" {
		tr = translator{w, "ip6tables-nft", from.addr6(), to.addr6(), "2001:db8:51::", "2001:db8:113::7"}
		ip, bits = "ip -6", 128
	}
	w.wan.Sh(t, fmt.Sprintf(`for a in %[3]s1 %[3]s2 %[6]s; do %[1]s addr add $a/%[2]d dev lo; done
		%[4]s -t mangle -A PREROUTING -i br1 -d %[7]s -j DROP
		%[4]s -t mangle -A PREROUTING -i br2 -d %[5]s -j DROP
		%[4]s -A FORWARD -i br2 -o br1 -m conntrack ! --ctstate ESTABLISHED -j DROP
		%[4]s -t nat -A PREROUTING -d %[6]s -p udp --dport 52000:52009 -j DNAT --to-destination %[7]s`,
		ip, bits, tr.outside, tr.ipt, tr.g1, tr.forwards, tr.g2))
	tr.seenAs(t, 1)
	return tr
}

// seenAs has the translator translate to another address, and forget what it has translated so far.
func (tr translator) seenAs(t *testing.T, last int) {
	t.Helper()
	tr.w.wan.Sh(t, fmt.Sprintf(`%[1]s -t nat -F POSTROUTING; %[1]s -t nat -A POSTROUTING -s %[2]s -o br2 -p udp -j SNAT --random-fully --to-source %[3]s%[4]d
		conntrack -F 2>/dev/null`, tr.ipt, tr.g1, tr.outside, last))
}

// Behind an address translator a gateway calls, and is answered where it is seen; also when that is somewhere else all of a sudden, or the
// other begins anew. The driver vxlan cannot do that.
func TestAddressTranslator(t *testing.T) {
	for _, driver := range []string{cables.WireGuard, cables.IPsec} {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(driver+" over "+family, func(t *testing.T) { testAddressTranslator(t, driver, family) })
		}
	}
}

func TestKernelAddressTranslator(t *testing.T) {
	for _, driver := range kernelDrivers() {
		if driver.name == cables.VXLAN {
			continue // it is answered at the address that it has told of
		}
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(driver.name+" over "+family, func(t *testing.T) {
				RequireKernel(t, driver.has, driver.try)
				testAddressTranslator(t, driver.name, family)
			})
		}
	}
}

func testAddressTranslator(t *testing.T, driver, family string) {
	w := newWorld(t, driver, "g1", "g2")
	sniffer := w.sniff(t)
	tr := newTranslator(t, w, family)
	w.addresses = func(f nodeFacts) []string {
		if f.cluster == "c2" {
			return []string{tr.forwards}
		}
		return []string{tr.g1}
	}
	w.ports = map[string][2]uint16{"g2": {52000, 52009}}
	connected := func(when string, last int) {
		t.Helper()
		took := Eventually(t, 45*time.Second, when, func() error {
			_, _, err := ask(w.pods["g1"], nodeTable()["g2"].pod4())
			return err
		})
		t.Logf("%s: pods reach each other after %s", when, took.Round(time.Millisecond))
		Eventually(t, 45*time.Second, "g2 answers where g1 is seen", func() error {
			c, err := w.cable("c2", "g2")
			if err == nil && (c.State != v1alpha1.CableUp || !strings.HasPrefix(strings.Trim(c.PeerAddress, "["), fmt.Sprintf("%s%d", tr.outside, last))) {
				err = fmt.Errorf("its cable is %+v", c)
			}
			return err
		})
		for _, pair := range [][2]string{{"g1", "g2"}, {"g2", "g1"}} {
			from, to := nodeTable()[pair[0]], nodeTable()[pair[1]]
			w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), 1460)
			w.expect(t, w.pods[pair[0]], to.pod6(), from.pod6(), 1440)
		}
	}
	up := w.connect(t)
	if !strings.HasPrefix(strings.Trim(up.PeerAddress, "["), tr.forwards) || !strings.Contains(up.PeerAddress, ":520") {
		t.Errorf("g1 calls %s", up.PeerAddress)
	}
	w.pods["g1"].Start(t, "server")
	w.pods["g2"].Start(t, "server")
	connected("joined", 1)
	tr.seenAs(t, 2)
	connected("g1 is seen elsewhere", 2)
	for _, node := range []string{"g2", "g1"} {
		w.gateways[node].Kill()
		w.startGateway(node)
		connected(node+" is another process", 2)
	}
	w.gateways["g2"].Signal(t, syscall.SIGTERM)
	w.gateways["g2"].Wait(t, 20*time.Second)
	w.startGateway("g2")
	connected("g2 has said farewell and is back", 2)
	w.gateways["g2"].Kill()
	tr.seenAs(t, 1)
	w.startGateway("g2")
	connected("g1 is seen elsewhere while g2 is another process", 1)
	if leaked := w.leaked(t); leaked != "" {
		t.Errorf("routed in clear:\n%s", leaked)
	}
	if strings.Contains(sniffer.Log(), "clear") {
		t.Errorf("packets of pods in clear between the clusters:\n%s", sniffer.Log())
	}
}
