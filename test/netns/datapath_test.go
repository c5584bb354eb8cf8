package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
)

// The world of these tests. Both families everywhere; only IPv4 is drawn.
//
//	pod 10.8.1.5 - w1 --+                                       +- w2 - pod 10.9.1.5
//	           172.31.1.3 |  172.31.1.0/24      172.31.2.0/24   | 172.31.3.3
//	                    +-- wan (router, knows no pods) --------+ 172.31.3.0/24
//	           172.31.1.2 |                   | 172.31.2.2
//	pod 10.8.0.5 - g1 --+                   +- g2
//
// c1 is g1 and w1, on one segment: direct routes. c2 is g2 and w2, on two: its CNI is an overlay (flannel.1 here), and
// ours takes the VXLAN device. Reverse path filters are strict everywhere, every node masquerades what leaves its pods'
// network, and g1 forwards nothing unless told to.
type world struct {
	t     *testing.T // of the whole test: what a part of it starts lives on
	wan   *Namespace
	nodes map[string]*Namespace
	pods  map[string]*Namespace
	apis  map[string]*http.Client
	dir   string
	renew time.Duration // how often gateways write their Gateway, 0 for as often as always

	driver                    string
	addresses                 func(nodeFacts) []string // of a gateway for its peers; nil is the node's
	ports                     map[string][2]uint16     // of a gateway: the first for its peers, and that of IPsec; none is the default
	gateways, agents, servers map[string]*Process      // by node, and the API servers by cluster
}

type nodeFacts struct {
	cluster       string
	segment, host int // 172.31.<segment>.<host>, fd31:<segment>::<host>
	pods          int // 10.<cluster>.<pods>.0/24, fd00:<cluster>:<pods>::/64
}

func nodeTable() map[string]nodeFacts {
	return map[string]nodeFacts{
		"g1": {"c1", 1, 2, 0}, "w1": {"c1", 1, 3, 1},
		"g2": {"c2", 2, 2, 0}, "w2": {"c2", 3, 3, 1},
	}
}

func (f nodeFacts) range4() int     { return map[string]int{"c1": 8, "c2": 9}[f.cluster] }
func (f nodeFacts) addr4() string   { return fmt.Sprintf("172.31.%d.%d", f.segment, f.host) }
func (f nodeFacts) addr6() string   { return fmt.Sprintf("fd31:%d::%d", f.segment, f.host) }
func (f nodeFacts) pod4() string    { return fmt.Sprintf("10.%d.%d.5", f.range4(), f.pods) }
func (f nodeFacts) pod6() string    { return plain(fmt.Sprintf("fd00:%d:%d::5", f.range4(), f.pods)) }
func (f nodeFacts) prefix4() string { return fmt.Sprintf("10.%d.0.0/16", f.range4()) }
func (f nodeFacts) prefix6() string { return fmt.Sprintf("fd00:%d::/32", f.range4()) }

// plain is an address in its usual form.
func plain(addr string) string { return netip.MustParseAddr(addr).String() }

// newWorld with the nodes that are named, all where none is.
func newWorld(t *testing.T, driver string, only ...string) *world {
	t.Helper()
	RequireRoot(t)
	w := &world{t: t, nodes: map[string]*Namespace{}, pods: map[string]*Namespace{}, apis: map[string]*http.Client{},
		driver: driver, gateways: map[string]*Process{}, agents: map[string]*Process{}, servers: map[string]*Process{}}
	// Paths of unix sockets are short, t.TempDir's are not.
	dir, err := os.MkdirTemp("", "fastnet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.dir = dir
	w.wan = New(t, "wan")
	for segment := 1; segment <= 3; segment++ {
		w.wan.Sh(t, fmt.Sprintf(`ip link add br%[1]d type bridge forward_delay 0
			ip addr add 172.31.%[1]d.1/24 dev br%[1]d; ip addr add fd31:%[1]d::1/64 dev br%[1]d nodad; ip link set br%[1]d up`, segment))
	}
	// Frames between the nodes of one segment are bridged here, not routed, and none of the WAN's business.
	w.wan.Sh(t, "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
	// What a sniffer on the WAN would look for: a pod's address in a packet that is routed there.
	w.wan.Sh(t, `for ipt in "iptables-nft 10.8.0.0/15" "ip6tables-nft fd00:8::/31"; do set -- $ipt
		$1 -t raw -A PREROUTING -s $2 -j DROP; $1 -t raw -A PREROUTING -d $2 -j DROP; done`)
	for name, f := range nodeTable() {
		if len(only) > 0 && !slices.Contains(only, name) {
			continue
		}
		node := New(t, name)
		w.nodes[name] = node
		Join(t, w.wan, "to-"+name, node, "eth0")
		w.wan.Sh(t, fmt.Sprintf("ip link set to-%s master br%d", name, f.segment))
		node.Sh(t, fmt.Sprintf(`sysctl -qw net.ipv4.conf.all.rp_filter=1
			ip addr add %s/24 dev eth0; ip addr add %s/64 dev eth0 nodad
			ip route add default via 172.31.%[3]d.1; ip -6 route add default via fd31:%[3]d::1
			ip link add cni0 type bridge; ip link set cni0 up
			for ipt in iptables-nft ip6tables-nft; do for table in nat mangle filter; do $ipt -t $table -N KUBE-KUBELET-CANARY; done; done
			ip addr add 10.%[4]d.%[5]d.1/24 dev cni0; ip addr add fd00:%[4]d:%[5]d::1/64 dev cni0 nodad
			iptables-nft -t nat -A POSTROUTING -s 10.%[4]d.0.0/16 ! -d 10.%[4]d.0.0/16 -j MASQUERADE
			ip6tables-nft -t nat -A POSTROUTING -s fd00:%[4]d::/32 ! -d fd00:%[4]d::/32 -j MASQUERADE`,
			f.addr4(), f.addr6(), f.segment, f.range4(), f.pods))
		pod := New(t, "pod-"+name)
		w.pods[name] = pod
		Join(t, node, "veth0", pod, "eth0")
		node.Sh(t, "ip link set veth0 master cni0")
		pod.Sh(t, fmt.Sprintf(`ip addr add %s/24 dev eth0; ip addr add %s/64 dev eth0 nodad
			ip route add default via 10.%[3]d.%[4]d.1; ip -6 route add default via fd00:%[3]d:%[4]d::1`, f.pod4(), f.pod6(), f.range4(), f.pods))
	}
	w.nodes["g1"].Sh(t, `iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -s 10.8.0.0/16 -d 10.8.0.0/16 -j ACCEPT
		ip6tables-nft -P FORWARD DROP; ip6tables-nft -A FORWARD -s fd00:8::/32 -d fd00:8::/32 -j ACCEPT`)
	if len(only) > 0 {
		return w // without ways to nodes that are not there
	}
	w.nodes["g1"].Sh(t, `ip route add 10.8.1.0/24 via 172.31.1.3; ip -6 route add fd00:8:1::/64 via fd31:1::3`)
	w.nodes["w1"].Sh(t, `ip route add 10.8.0.0/24 via 172.31.1.2; ip -6 route add fd00:8:0::/64 via fd31:1::2`)
	overlay := func(node, local, remote string, self, other int) {
		w.nodes[node].Sh(t, fmt.Sprintf(`ip link add flannel.1 type vxlan id 1 local %s remote %s dstport 8472; ip link set flannel.1 mtu 1450 up
			ip addr add 10.9.255.%[3]d/24 dev flannel.1; ip addr add fd00:9:ff::%[3]d/64 dev flannel.1 nodad
			ip route add 10.9.%[5]d.0/24 via 10.9.255.%[4]d; ip -6 route add fd00:9:%[5]d::/64 via fd00:9:ff::%[4]d`,
			local, remote, self, other, other-1))
	}
	overlay("g2", "172.31.2.2", "172.31.3.3", 1, 2)
	overlay("w2", "172.31.3.3", "172.31.2.2", 2, 1)
	return w
}

// ---- the API servers

func (w *world) startAPI(t *testing.T, cluster, gatewayNode string) {
	t.Helper()
	address := nodeTable()[gatewayNode].addr4() + ":8001"
	socket := filepath.Join(w.dir, cluster+".sock")
	w.servers[cluster] = w.nodes[gatewayNode].Start(t, "api", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"TCP": address, "Unix": socket}))
	w.apis[cluster] = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	Eventually(t, 10*time.Second, "API of "+cluster, func() error { return w.call(cluster, "GET", "/api", nil, nil) })
	kubeconfig := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"+
		"clusters: [{name: c, cluster: {server: 'http://%s'}}]\nusers: [{name: u, user: {}}]\n", address)
	if err := os.WriteFile(w.kubeconfig(cluster), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	w.create(t, cluster, "/api/v1/namespaces", object{"metadata": object{"name": "kube-system"}})
	for _, name := range []string{"fastnet-gateway", "fastnet-routeagent"} {
		w.create(t, cluster, daemonSets, object{"metadata": object{"name": name, "namespace": "fastnet-system"}})
	}
	for name, f := range nodeTable() {
		if f.cluster != cluster || w.nodes[name] == nil {
			continue
		}
		labels := object{}
		if name == gatewayNode {
			labels["fastnet.dev/gateway"] = "true"
		}
		w.create(t, cluster, "/api/v1/nodes", object{"metadata": object{"name": name, "labels": labels},
			"spec":   object{"podCIDRs": []string{fmt.Sprintf("10.%d.%d.0/24", f.range4(), f.pods), fmt.Sprintf("fd00:%d:%d::/64", f.range4(), f.pods)}},
			"status": object{"addresses": []object{{"type": "InternalIP", "address": f.addr4()}, {"type": "InternalIP", "address": f.addr6()}}}})
	}
}

const (
	daemonSets   = "/apis/apps/v1/namespaces/fastnet-system/daemonsets"
	endpointsURL = "/apis/fastnet.dev/v1alpha1/namespaces/fastnet-system/endpoints"
	gatewaysURL  = "/apis/fastnet.dev/v1alpha1/namespaces/fastnet-system/gateways"
)

func (w *world) kubeconfig(cluster string) string { return filepath.Join(w.dir, cluster+".kubeconfig") }

func (w *world) call(cluster, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		encoded, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(encoded)
	}
	request, err := http.NewRequest(method, "http://api"+path, body)
	if err != nil {
		return err
	}
	response, err := w.apis[cluster].Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(out)
}

func (w *world) create(t *testing.T, cluster, collection string, o any) {
	t.Helper()
	if err := w.call(cluster, "POST", collection, o, nil); err != nil {
		t.Fatal(err)
	}
}

// mirror does what the agents do, until the test ends: it copies an Endpoint of one cluster into another, and its changes
// (the ports at which it awaits others).
func (w *world) mirror(t *testing.T, from, node, to string) {
	t.Helper()
	name := from + "." + node
	copied := v1alpha1.Endpoint{}
	copy := func() error {
		var endpoint v1alpha1.Endpoint
		if err := w.call(from, "GET", endpointsURL+"/"+name, nil, &endpoint); err != nil || cmp.Equal(endpoint.Spec, copied.Spec) {
			return err
		}
		wanted := v1alpha1.Endpoint{Spec: endpoint.Spec}
		wanted.Name, wanted.Namespace = endpoint.Name, endpoint.Namespace
		method, path := "PUT", endpointsURL+"/"+name
		if copied.Name == "" {
			method, path = "POST", endpointsURL
		}
		if err := w.call(to, method, path, wanted, nil); err != nil {
			return err
		}
		copied = wanted
		return nil
	}
	Eventually(t, 15*time.Second, "Endpoint of "+from, copy)
	done, stop := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done })
	go func() {
		defer close(done)
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				_ = copy() // the API server may be about to be forbidden or gone; the next turn tries again
			}
		}
	}()
}

func (w *world) cable(cluster, node string) (v1alpha1.Cable, error) {
	var g v1alpha1.Gateway
	if err := w.call(cluster, "GET", gatewaysURL+"/"+node, nil, &g); err != nil {
		return v1alpha1.Cable{}, err
	}
	if len(g.Status.Cables) != 1 || len(g.Status.Problems) > 0 {
		return v1alpha1.Cable{}, fmt.Errorf("status is %+v", g.Status)
	}
	return g.Status.Cables[0], nil
}

func (w *world) waitCable(t *testing.T, cluster, node string, state v1alpha1.CableState, within time.Duration) v1alpha1.Cable {
	t.Helper()
	var c v1alpha1.Cable
	took := Eventually(t, within, fmt.Sprintf("cable of %s is %s", cluster, state), func() (err error) {
		if c, err = w.cable(cluster, node); err == nil && c.State != state {
			err = fmt.Errorf("it is %s", c.State)
		}
		return err
	})
	t.Logf("cable of %s %s after %s, RTT %s ms", cluster, state, took.Round(time.Millisecond), c.RTTMilliseconds)
	return c
}

// ---- the daemons

func (w *world) startGateway(node string) {
	config := w.config(node)
	config["Drivers"], config["AllowUnencrypted"] = []string{w.driver}, true
	if w.addresses != nil {
		config["Addresses"] = w.addresses(nodeTable()[node])
	}
	if ports, ok := w.ports[node]; ok {
		config["Port"], config["IPsecPort"] = ports[0], ports[1]
	}
	w.gateways[node] = w.nodes[node].Start(w.t, "gateway", "FASTNET_TEST_CONFIG="+text(w.t, config))
}

func (w *world) startAgent(node string) {
	w.agents[node] = w.nodes[node].Start(w.t, "routeagent", "FASTNET_TEST_CONFIG="+text(w.t, w.config(node)))
}

func (w *world) config(node string) map[string]any {
	f := nodeTable()[node]
	return map[string]any{"Kubeconfig": w.kubeconfig(f.cluster), "ClusterID": f.cluster, "Node": node, "Prefixes": []string{f.prefix4(), f.prefix6()},
		"StateDir": w.stateDir(node), "Renew": w.renew}
}

func (w *world) stateDir(node string) string { return filepath.Join(w.dir, node, "state") }

func text(t *testing.T, value any) string {
	t.Helper()
	out, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// ask connects to the server role and returns what it says of us.
func ask(n *Namespace, address string) (caller string, mss int, err error) {
	out, err := n.Try(fmt.Sprintf("timeout 2 bash -c 'exec 3<>/dev/tcp/%s/%s; head -1 <&3'", address, echoPort))
	if err != nil {
		return "", 0, fmt.Errorf("%w: %s", err, out)
	}
	if _, err := fmt.Sscan(strings.TrimPrefix(out, "::ffff:"), &caller, &mss); err != nil {
		return "", 0, fmt.Errorf("answer %q: %w", out, err)
	}
	return caller, mss, nil
}

func (w *world) expect(t *testing.T, from *Namespace, to, caller string, mssBelow int) {
	t.Helper()
	Eventually(t, 10*time.Second, fmt.Sprintf("%s reaches %s as %s", from.Name, to, caller), func() error {
		is, mss, err := ask(from, to)
		if err == nil && is != caller {
			err = fmt.Errorf("it is seen as %s", is)
		}
		if err == nil && mss > mssBelow {
			err = fmt.Errorf("segments of %d bytes, more than %d", mss, mssBelow)
		}
		return err
	})
}

// leaked says what of the pods' the WAN has seen.
func (w *world) leaked(t *testing.T) string {
	t.Helper()
	return w.wan.Sh(t, `for ipt in iptables-nft ip6tables-nft; do $ipt -t raw -vnxL PREROUTING | awk 'NR > 2 && $1 > 0'; done`)
}

// killCharon of a gateway, and wait for the next one.
func (w *world) killCharon(t *testing.T, node string) {
	t.Helper()
	gateway := w.gateways[node]
	runs := func() []string {
		return regexp.MustCompile(`charon runs" pid=([0-9]+)`).FindAllString(gateway.Log(), -1)
	}
	var before []string
	Eventually(t, 10*time.Second, "charon runs on "+node, func() error {
		if before = runs(); len(before) == 0 {
			return errors.New(gateway.Log())
		}
		return nil
	})
	_, text, _ := strings.Cut(before[len(before)-1], "pid=")
	pid, err := strconv.Atoi(text)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out := w.nodes[node].Sh(t, "ip -6 route"); !strings.Contains(out, "blackhole fd46:4153:544e::/48") {
		t.Errorf("no blackhole behind the tunnels of %s:\n%s", node, out)
	}
	Eventually(t, 10*time.Second, "charon runs again on "+node, func() error {
		if len(runs()) == len(before) {
			return errors.New(lastLine(gateway.Log()))
		}
		return nil
	})
}

// sniff listens where the packets between the clusters pass.
func (w *world) sniff(t *testing.T) *Process {
	var between [][2]netip.Addr
	for _, a := range nodeTable() {
		for _, b := range nodeTable() {
			if a.cluster != "c1" || b.cluster != "c2" {
				continue
			}
			for _, hosts := range [][2]int{{5, 5}, {1, 5}, {5, 1}} { // 1 is a node, as pods see it
				between = append(between,
					[2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.8.%d.%d", a.pods, hosts[0])), netip.MustParseAddr(fmt.Sprintf("10.9.%d.%d", b.pods, hosts[1]))},
					[2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("fd00:8:%d::%d", a.pods, hosts[0])), netip.MustParseAddr(fmt.Sprintf("fd00:9:%d::%d", b.pods, hosts[1]))})
			}
		}
	}
	// The bridge's own device has what is routed between the segment of c1 and others. Frames from w1 to g1, which are in clear,
	// go from port to port and never come by it.
	p := w.wan.Start(t, "sniffer", "FASTNET_TEST_CONFIG="+text(t, map[string]any{"Link": "br1", "Between": between}))
	Eventually(t, 5*time.Second, "the sniffer listens", func() error {
		if !strings.Contains(p.Log(), "listening") {
			return errors.New(p.Log())
		}
		return nil
	})
	return p
}

// mtu inside a cable, over links of 1500 bytes. With ESP in userspace it is what charon's device leaves.
func (w *world) mtu() int {
	if w.driver == cables.IPsec {
		if _, err := w.nodes["g1"].Try("ip -d link show fastnet-esp | grep -q ' xfrm '"); err != nil {
			return 1330
		}
	}
	return map[string]int{cables.WireGuard: 1420, cables.IPsec: 1364, cables.VXLAN: 1450}[w.driver]
}

// start starts everything, and waits until cables and routes are there. It returns the cable of c1.
func (w *world) start(t *testing.T) v1alpha1.Cable {
	t.Helper()
	w.startAPI(t, "c1", "g1")
	w.startAPI(t, "c2", "g2")
	for node := range nodeTable() {
		w.startAgent(node)
	}
	w.startGateway("g1")
	w.startGateway("g2")
	w.mirror(t, "c1", "g1", "c2")
	w.mirror(t, "c2", "g2", "c1")
	up := w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
	w.waitCable(t, "c2", "g2", v1alpha1.CableUp, 15*time.Second)
	// Before a node knows of other clusters it treats their addresses as it treats any: nobody may ask for them until then.
	for name, node := range w.nodes {
		Eventually(t, 10*time.Second, "rules of "+name, func() error {
			_, err := node.Try("ip rule | grep -q 64087; ip -6 rule | grep -q 64087")
			return err
		})
	}
	return up
}

func TestDataPath(t *testing.T) {
	for _, driver := range []string{cables.WireGuard, cables.IPsec, cables.VXLAN} {
		t.Run(driver, func(t *testing.T) { testDataPath(t, driver) })
	}
}

// connect starts both clusters with one gateway each, and returns when the cable is up on both sides: c1's.
func (w *world) connect(t *testing.T) v1alpha1.Cable {
	t.Helper()
	return w.connectWithin(t, 15*time.Second)
}

func (w *world) connectWithin(t *testing.T, within time.Duration) v1alpha1.Cable {
	t.Helper()
	for node, cluster := range map[string]string{"g1": "c1", "g2": "c2"} {
		w.startAPI(t, cluster, node)
		w.startAgent(node)
		w.startGateway(node)
	}
	w.mirror(t, "c1", "g1", "c2")
	w.mirror(t, "c2", "g2", "c1")
	up := w.waitCable(t, "c1", "g1", v1alpha1.CableUp, within)
	w.waitCable(t, "c2", "g2", v1alpha1.CableUp, within)
	return up
}

// Gateways that have nothing but IPv6 for each other carry both families.
func TestUnderlayIPv6(t *testing.T) {
	for _, driver := range []string{cables.WireGuard, cables.IPsec, cables.VXLAN} {
		t.Run(driver, func(t *testing.T) {
			w := newWorld(t, driver)
			w.addresses = func(f nodeFacts) []string { return []string{f.addr6()} }
			up := w.connect(t)
			if !strings.HasPrefix(up.PeerAddress, "[fd31:2::2]:") {
				t.Errorf("the peer is at %s", up.PeerAddress)
			}
			from, to := nodeTable()["g1"], nodeTable()["g2"]
			w.pods["g2"].Start(t, "server")
			w.expect(t, w.pods["g1"], to.pod4(), from.pod4(), 1430-40)
			w.expect(t, w.pods["g1"], to.pod6(), from.pod6(), 1430-60)
		})
	}
}

// Of a gateway's addresses that nobody answers at is given up for the next one, also one of the other family.
func TestNextAddress(t *testing.T) {
	for _, c := range []struct {
		driver, dead string
		alive        func(nodeFacts) string
	}{
		{cables.WireGuard, "203.0.113.9", nodeFacts.addr6},
		{cables.WireGuard, "2001:db8::9", nodeFacts.addr4},
		{cables.IPsec, "203.0.113.9", nodeFacts.addr6},
		{cables.VXLAN, "2001:db8::9", nodeFacts.addr4},
	} {
		t.Run(c.driver+" not at "+c.dead, func(t *testing.T) {
			w := newWorld(t, c.driver, "g1", "g2")
			w.addresses = func(f nodeFacts) []string { return []string{c.dead, c.alive(f)} }
			up := w.connectWithin(t, 40*time.Second)
			if at := c.alive(nodeTable()["g2"]); !strings.Contains(up.PeerAddress, at) {
				t.Errorf("the peer is at %s, want %s", up.PeerAddress, at)
			}
			from, to := nodeTable()["g1"], nodeTable()["g2"]
			w.pods["g2"].Start(t, "server")
			w.expect(t, w.pods["g1"], to.pod4(), from.pod4(), 1460)
			w.expect(t, w.pods["g1"], to.pod6(), from.pod6(), 1440)
		})
	}
}

// Nodes on which IPv6 is switched off have no addresses for probes; WireGuard's handshakes stand in, and IPv4 is carried.
func TestWithoutIPv6(t *testing.T) {
	w := newWorld(t, cables.WireGuard, "g1", "g2")
	for _, node := range []string{"g1", "g2"} {
		w.nodes[node].Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
	}
	w.addresses = func(f nodeFacts) []string { return []string{f.addr4()} }
	w.connect(t)
	w.pods["g1"].Start(t, "server")
	w.pods["g2"].Start(t, "server")
	for _, pair := range [][2]string{{"g1", "g2"}, {"g2", "g1"}} {
		from, to := nodeTable()[pair[0]], nodeTable()[pair[1]]
		w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), 1420-40)
	}
	w.gateways["g2"].Kill()
	w.startGateway("g2")
	w.expect(t, w.pods["g1"], nodeTable()["g2"].pod4(), nodeTable()["g1"].pod4(), 1420-40)
}

func testDataPath(t *testing.T, driver string) {
	w := newWorld(t, driver)
	before := map[string]string{}
	for name, node := range w.nodes {
		before[name] = node.State(t)
	}
	sniffer := w.sniff(t)
	up := w.start(t)
	Eventually(t, 5*time.Second, "RTT is known", func() (err error) {
		if up, err = w.cable("c1", "g1"); err == nil && up.RTTMilliseconds == "" {
			err = errors.New("none")
		}
		return err
	})
	if ms, err := strconv.ParseFloat(up.RTTMilliseconds, 64); err != nil || ms <= 0 || ms > 200 {
		t.Errorf("RTT between two namespaces is %q ms", up.RTTMilliseconds)
	}
	port := map[string]string{cables.WireGuard: "51820", cables.IPsec: "4500", cables.VXLAN: "51820"}[driver]
	if up.PeerAddress != "172.31.2.2:"+port || up.ClusterID != "c2" || up.Endpoint != "c2.g2" {
		t.Errorf("cable of c1 is %+v", up)
	}

	servers := map[string]*Process{}
	for name, pod := range w.pods {
		servers[name] = pod.Start(t, "server")
	}
	nodes := nodeTable()
	t.Run("pods keep their addresses, segments fit", func(t *testing.T) {
		for _, pair := range [][2]string{{"w1", "w2"}, {"w2", "w1"}, {"g1", "w2"}, {"w1", "g2"}, {"g1", "g2"}} {
			from, to := nodes[pair[0]], nodes[pair[1]]
			w.expect(t, w.pods[pair[0]], to.pod4(), from.pod4(), w.mtu()-40)
			w.expect(t, w.pods[pair[0]], to.pod6(), from.pod6(), w.mtu()-60)
		}
	})
	t.Run("clients in the host network are seen with their node's pod address", func(t *testing.T) {
		for _, pair := range [][2]string{{"w1", "w2"}, {"w2", "w1"}, {"g1", "w2"}, {"g2", "g1"}} {
			from, to := nodes[pair[0]], nodes[pair[1]]
			w.expect(t, w.nodes[pair[0]], to.pod4(), fmt.Sprintf("10.%d.%d.1", from.range4(), from.pods), w.mtu()-40)
			w.expect(t, w.nodes[pair[0]], to.pod6(), plain(fmt.Sprintf("fd00:%d:%d::1", from.range4(), from.pods)), w.mtu()-60)
		}
	})
	t.Run("clients in the host network of nodes without pods too", func(t *testing.T) {
		for _, name := range []string{"w1", "g1"} { // the other two have an address among the pods on their overlay too
			from, to := nodes[name], nodes["w2"]
			w.agents[name].Kill() // a question as of a pod, when its bridge has lost its address, would have its answer go astray
			w.nodes[name].Sh(t, "ip addr flush dev cni0 scope global")
			w.startAgent(name)
			Eventually(t, 10*time.Second, "the agent plans without an address among the pods", func() error {
				_, err := w.nodes[name].Try(fmt.Sprintf("ip route show table 64087 | grep -qF 'blackhole 10.%[1]d.%[2]d.1 ' && ip -6 route show table 64087 | grep -qF 'blackhole %[3]s '",
					from.range4(), from.pods, plain(fmt.Sprintf("fd00:%d:%d::1", from.range4(), from.pods))))
				return err
			})
			w.expect(t, w.nodes[name], to.pod4(), fmt.Sprintf("10.%d.%d.1", from.range4(), from.pods), w.mtu()-40)
			w.expect(t, w.nodes[name], to.pod6(), plain(fmt.Sprintf("fd00:%d:%d::1", from.range4(), from.pods)), w.mtu()-60)
			w.nodes[name].Sh(t, fmt.Sprintf("ip addr add 10.%[1]d.%[2]d.1/24 dev cni0; ip addr add fd00:%[1]d:%[2]d::1/64 dev cni0 nodad", from.range4(), from.pods))
		}
	})
	t.Run("direct on one segment, VXLAN on two", func(t *testing.T) {
		for node, want := range map[string]string{
			"w1": "via 172.31.1.2 dev eth0 proto 250 metric 50", "w2": "via inet6 fe80:", "g1": "dev " + cables.LinkName(driver, "c2.g2"),
		} {
			if routes := w.nodes[node].Sh(t, "ip route show table 64087"); !strings.Contains(routes, want) || !strings.Contains(routes, "blackhole") {
				t.Errorf("routes of %s, want %q and a blackhole:\n%s", node, want, routes)
			}
		}
		for node, want := range map[string]bool{"w1": false, "g1": true, "w2": true, "g2": true} {
			if _, err := w.nodes[node].Try("ip link show fastnet-vx"); (err == nil) != want {
				t.Errorf("%s has a VXLAN device: %t, want %t", node, err == nil, want)
			}
		}
	})
	t.Run("what comes through a cable from elsewhere than behind it is dropped", func(t *testing.T) {
		const foreign = "10.77.0.5"
		w.pods["g2"].Sh(t, "ip addr add "+foreign+"/32 dev lo; ip route add "+nodes["w1"].pod4()+" via 10.9.0.1 src "+foreign)
		w.nodes["g2"].Sh(t, "ip route add "+foreign+" dev cni0; iptables-nft -t mangle -A POSTROUTING -s "+foreign+" -o "+cables.LinkName(driver, "c1.g1"))
		w.nodes["w1"].Sh(t, "iptables-nft -t mangle -A PREROUTING -s "+foreign)
		count := func(node, chain string) int {
			n, err := strconv.Atoi(strings.TrimSpace(w.nodes[node].Sh(t, "iptables-nft -t mangle -vnxL "+chain+" | awk '/"+foreign+"/ {print $1}'")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		for range 5 {
			w.pods["g2"].Sh(t, "bash -c 'echo foreign >/dev/udp/"+nodes["w1"].pod4()+"/9'")
		}
		w.expect(t, w.pods["g2"], nodes["w1"].pod6(), nodes["g2"].pod6(), w.mtu()-60) // what has been sent has come by now
		if sent, came := count("g2", "POSTROUTING"), count("w1", "PREROUTING"); sent != 5 || came != 0 {
			t.Errorf("%d packets sent, %d came", sent, came)
		}
		w.pods["g2"].Sh(t, "ip addr del "+foreign+"/32 dev lo") // the route goes with it
		w.nodes["g2"].Sh(t, "ip route del "+foreign+" dev cni0; iptables-nft -t mangle -D POSTROUTING -s "+foreign+" -o "+cables.LinkName(driver, "c1.g1"))
		w.nodes["w1"].Sh(t, "iptables-nft -t mangle -D PREROUTING -s "+foreign)
	})
	if driver == cables.IPsec {
		t.Run("what comes for a segment in clear is dropped", func(t *testing.T) {
			dropped := func() string {
				return strings.TrimSpace(w.nodes["g1"].Sh(t, "ip6tables-nft -t mangle -vnxL FNIPSEC-SOURCE | awk '/DROP.*dpt:51820/ {print $1}'"))
			}
			if before := dropped(); before != "0" {
				t.Errorf("%s packets of the tunnels were dropped", before)
			}
			w.wan.Sh(t, "bash -c 'echo clear >/dev/udp/"+nodes["g1"].addr6()+"/51820'")
			Eventually(t, 5*time.Second, "dropped", func() error {
				if now := dropped(); now != "1" {
					return fmt.Errorf("%s packets", now)
				}
				return nil
			})
		})
	}
	t.Run("a jump that lost the first place gets it back", func(t *testing.T) {
		w.nodes["w1"].Sh(t, "iptables-nft -t nat -I POSTROUTING -s 10.8.0.0/16 -j MASQUERADE")
		Eventually(t, 20*time.Second, "first again", func() error {
			if first := strings.Split(w.nodes["w1"].Sh(t, "iptables-nft -t nat -S POSTROUTING"), "\n")[1]; first != "-A POSTROUTING -j FASTNET-POSTROUTING" {
				return errors.New(first)
			}
			return nil
		})
		w.nodes["w1"].Sh(t, "iptables-nft -t nat -D POSTROUTING -s 10.8.0.0/16 -j MASQUERADE")
	})
	t.Run("killed daemons break no connection", func(t *testing.T) {
		streams := []*Process{
			w.pods["w1"].Start(t, "stream", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"Address": nodes["w2"].pod4()})),
			w.pods["w1"].Start(t, "stream", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"Address": nodes["w2"].pod6()})),
		}
		goesOn := func() {
			t.Helper()
			for _, stream := range streams {
				lines := strings.Count(stream.Log(), "\n")
				Eventually(t, 20*time.Second, "the stream goes on", func() error {
					if strings.Count(stream.Log(), "\n") < lines+10 {
						return errors.New(lastLine(stream.Log()))
					}
					return nil
				})
			}
		}
		goesOn()
		for _, node := range []string{"g1", "g2"} {
			w.gateways[node].Kill()
			if out := w.nodes[node].Sh(t, "ip route show table 64087; ip -6 route show table 64087"); strings.Count(out, "blackhole") != 2 {
				t.Errorf("after its gateway was killed %s has the routes\n%s", node, out)
			}
			w.startGateway(node)
			goesOn()
		}
		for _, node := range []string{"w1", "g1", "w2"} {
			w.agents[node].Kill()
			goesOn()
			w.startAgent(node)
			goesOn()
		}
		if driver == cables.IPsec {
			for _, node := range []string{"g1", "g2"} {
				w.killCharon(t, node)
				goesOn()
			}
		}
		for _, stream := range streams {
			stream.Signal(t, syscall.SIGTERM)
			stream.Wait(t, 5*time.Second)
		}
		w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 5*time.Second)
	})
	t.Run("a device that vanishes is made again, and in between all is dropped", func(t *testing.T) {
		w.nodes["g1"].Sh(t, "ip link delete "+cables.LinkName(driver, "c2.g2"))
		Eventually(t, 5*time.Second, "pods reach each other again", func() error {
			_, _, err := ask(w.pods["w1"], nodes["w2"].pod4())
			return err
		})
		w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 10*time.Second)
	})
	t.Run("a cut cable is down, and up again when healed", func(t *testing.T) {
		w.wan.Sh(t, "ip link set to-g2 down")
		w.waitCable(t, "c1", "g1", v1alpha1.CableDown, 10*time.Second)
		w.wan.Sh(t, "ip link set to-g2 up")
		w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 15*time.Second)
		w.expect(t, w.pods["w1"], nodes["w2"].pod4(), nodes["w1"].pod4(), w.mtu()-40)
	})
	t.Run("a gateway that is to go says so, and is drained when nothing is carried", func(t *testing.T) {
		var node object
		if err := w.call("c1", "GET", "/api/v1/nodes/g1", nil, &node); err != nil {
			t.Fatal(err)
		}
		for _, drain := range []bool{true, false} {
			node["metadata"].(object)["annotations"] = object{v1alpha1.AnnotationDrain: fmt.Sprint(drain)}
			delete(node["metadata"].(object), "resourceVersion")
			if err := w.call("c1", "PUT", "/api/v1/nodes/g1", node, nil); err != nil {
				t.Fatal(err)
			}
			Eventually(t, 10*time.Second, fmt.Sprintf("drained: %t", drain), func() error {
				var g v1alpha1.Gateway
				if err := w.call("c1", "GET", gatewaysURL+"/g1", nil, &g); err != nil {
					return err
				}
				if (g.Status.Drain == v1alpha1.DrainDrained) != drain || !drain && g.Status.Drain != "" {
					return fmt.Errorf("it is %q", g.Status.Drain)
				}
				c, err := w.cable("c2", "g2")
				if err == nil && (c.Draining != drain || c.State != v1alpha1.CableUp) {
					err = fmt.Errorf("the peer says %+v", c)
				}
				return err
			})
		}
		w.expect(t, w.pods["w1"], nodes["w2"].pod4(), nodes["w1"].pod4(), w.mtu()-40)
	})
	t.Run("a restart leaves all as it is", func(t *testing.T) {
		during := w.nodes["g1"].State(t)
		for _, p := range []*Process{w.gateways["g1"], w.agents["g1"]} {
			p.Signal(t, syscall.SIGTERM)
			p.Wait(t, 15*time.Second)
		}
		// The kernel has no nexthop over a device without a carrier; the blackholes behind are there. Tunnels end with their charon.
		paths := func(line string) bool {
			return strings.HasPrefix(line, "xfrm ") || strings.Contains(line, "nhid ") || strings.HasPrefix(line, "id ") || strings.HasPrefix(line, "\tnexthop ")
		}
		left := func(state string) []string { return slices.DeleteFunc(without(strip(state), "ipsec0"), paths) }
		if diff := cmp.Diff(left(during), left(w.nodes["g1"].State(t))); diff != "" {
			t.Errorf("after SIGTERM (-running +stopped):\n%s", diff)
		}
		w.startGateway("g1")
		w.startAgent("g1")
		// Packets pass without them too; that they are there again the next part needs.
		for _, p := range []*Process{w.gateways["g1"], w.agents["g1"]} {
			Eventually(t, 10*time.Second, "started again", func() error {
				if !strings.Contains(p.Log(), " starts") {
					return errors.New(p.Log())
				}
				return nil
			})
		}
		w.expect(t, w.pods["w1"], nodes["w2"].pod4(), nodes["w1"].pod4(), w.mtu()-40)
	})
	if leaked := w.leaked(t); leaked != "" {
		t.Errorf("the WAN has seen packets of pods in clear:\n%s", leaked)
	}
	if seen := strings.Contains(sniffer.Log(), "clear"); seen != (driver == cables.VXLAN) {
		t.Errorf("packets of pods in clear on the way between the clusters: %t\n%s", seen, sniffer.Log())
	}
	t.Run("an uninstall leaves nothing", func(t *testing.T) {
		// c1: the DaemonSets are gone. c2: its API server does not know us any more.
		for _, name := range []string{"fastnet-gateway", "fastnet-routeagent"} {
			if err := w.call("c1", "DELETE", daemonSets+"/"+name, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.call("c2", "POST", "/test/forbid", nil, nil); err != nil {
			t.Fatal(err)
		}
		for _, daemons := range []map[string]*Process{w.gateways, w.agents} {
			for _, p := range daemons {
				p.Signal(t, syscall.SIGTERM)
			}
		}
		for _, daemons := range []map[string]*Process{w.gateways, w.agents} {
			for _, p := range daemons {
				p.Wait(t, 20*time.Second)
			}
		}
		for name, node := range w.nodes {
			if diff := cmp.Diff(strip(before[name]), strip(node.State(t))); diff != "" {
				t.Errorf("%s (-before +after):\n%s", name, diff)
			}
		}
		for node := range w.nodes {
			if files, err := os.ReadDir(w.stateDir(node)); err != nil || len(files) > 0 {
				t.Errorf("%s keeps files %v (%v)", node, files, err)
			}
		}
		for _, path := range []string{endpointsURL + "/c1.g1", gatewaysURL + "/g1"} {
			if err := w.call("c1", "GET", path, nil, nil); err == nil {
				t.Errorf("%s is still there", path)
			}
		}
	})
}

// without a device: charon's own goes with it, and another comes with the next charon.
func without(state []string, device string) (out []string) {
	of := false
	for _, line := range state {
		if !strings.HasPrefix(line, "    ") { // "ip -d link" has more lines for a device, all with a margin
			of = strings.Contains(line, device)
		}
		if !of {
			out = append(out, line)
		}
	}
	return out
}

// strip takes out what may differ.
func strip(state string) []string {
	var out []string
	for _, line := range strings.Split(state, "\n") {
		// Nobody reads the TUN device of a stopped gateway: it has no carrier, and its routes are marked so.
		line = strings.NewReplacer("NO-CARRIER,", "", ",LOWER_UP", "", " linkdown", "").Replace(line)
		out = append(out, strings.TrimRight(line, " "))
	}
	return out
}

func lastLine(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return lines[len(lines)-1]
}
