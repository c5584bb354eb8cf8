package netns

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

// The fork of these tests: a worker with the real route agent, two gateways of which only what a worker sees is real (they
// answer probes and forward), and the other cluster, which is one namespace here:
//
//	pod 10.8.1.5 - w --- lan 172.31.1.0/24 ---+- a ---- far 10.9.0.0/16
//	                                          +- b ----/
type fork struct {
	*world              // its t is that of the part of the test that runs
	whole    *testing.T // what a part starts lives on
	pod, far *Namespace
	gateways map[string]*fakeGateway
	incoming map[string]uint32 // number of the link of far's to a gateway, by its name
}

type fakeGateway struct {
	node   *Namespace
	key    *ecdh.PrivateKey
	server *nodeprobe.Server
	stop   func()
}

func newFork(t *testing.T) *fork {
	t.Helper()
	RequireRoot(t)
	dir, err := os.MkdirTemp("", "fastnet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fork{whole: t, world: &world{t: t, nodes: map[string]*Namespace{}, apis: map[string]*http.Client{}, dir: dir}, gateways: map[string]*fakeGateway{}, incoming: map[string]uint32{}}
	lan, node := New(t, "lan"), New(t, "w")
	lan.Sh(t, "ip link add br0 type bridge forward_delay 0; ip link set br0 up; sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
	f.nodes["w"], f.pod, f.far = node, New(t, "pod"), New(t, "far")
	attach := func(name string, n *Namespace, host int) {
		Join(t, lan, "to-"+name, n, "eth0")
		lan.Sh(t, "ip link set to-"+name+" master br0")
		n.Sh(t, fmt.Sprintf("ip addr add 172.31.1.%[1]d/24 dev eth0; ip addr add fd31:1::%[1]d/64 dev eth0 nodad", host))
	}
	attach("w", node, 3)
	Join(t, node, "veth0", f.pod, "eth0")
	node.Sh(t, `ip link add cni0 type bridge; ip link set cni0 up; ip link set veth0 master cni0
		ip addr add 10.8.1.1/24 dev cni0; ip addr add fd00:8:1::1/64 dev cni0 nodad`)
	f.pod.Sh(t, `ip addr add 10.8.1.5/24 dev eth0; ip addr add fd00:8:1::5/64 dev eth0 nodad
		ip route add default via 10.8.1.1; ip -6 route add default via fd00:8:1::1`)
	f.far.Sh(t, "ip route add local 10.9.0.0/16 dev lo; ip -6 route add local fd00:9::/32 dev lo")
	for i, name := range []string{"a", "b"} {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		g := &fakeGateway{node: New(t, name), key: key}
		f.gateways[name] = g
		attach(name, g.node, 4+i)
		Join(t, g.node, "cable", f.far, "to-"+name)
		g.node.Sh(t, fmt.Sprintf(`ip addr add 172.30.%[1]d.1/24 dev cable; ip addr add fd30:%[1]d::1/64 dev cable nodad
			ip route add 10.9.0.0/16 via 172.30.%[1]d.2; ip -6 route add fd00:9::/32 via fd30:%[1]d::2`, i))
		f.far.Sh(t, fmt.Sprintf("ip addr add 172.30.%[1]d.2/24 dev to-%[2]s; ip addr add fd30:%[1]d::2/64 dev to-%[2]s nodad", i, name))
		f.far.in(t, func() {
			link, err := net.InterfaceByName("to-" + name)
			if err != nil {
				t.Error(err)
				return
			}
			f.incoming[name] = uint32(link.Index)
		})
		f.serve(name)
	}
	f.api()
	f.agent()
	return f
}

// in runs a function in the namespace. Sockets that it makes stay there.
func (n *Namespace) in(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- n.enter(f)
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// enter must be called with the thread locked, for good.
func (n *Namespace) enter(f func()) error {
	fd, err := unix.Open("/run/netns/"+n.Name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		_ = unix.Close(fd)
	}
	if err == nil {
		f()
	}
	return err
}

// serve lets a gateway answer probes.
func (f *fork) serve(name string) {
	g := f.gateways[name]
	var err error
	if g.server, err = nodeprobe.NewServer(g.key.Bytes(), nodeprobe.DefaultPort, slog.New(slog.DiscardHandler)); err != nil {
		f.t.Fatal(err)
	}
	f.say(name, false)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var runErr error
		err := g.node.enter(func() { runErr = g.server.Run(ctx) })
		done <- errors.Join(err, runErr)
	}()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.whole.Error(err)
		}
	})
	f.whole.Cleanup(g.stop)
}

// say is what a gateway says of itself.
func (f *fork) say(name string, draining bool) {
	f.gateways[name].server.Set(nodeprobe.View{Draining: draining, Cables: []nodeprobe.Cable{{Endpoint: "c2.far", ClusterID: "c2", Up: true}}})
}

func (f *fork) api() {
	t := f.t
	socket := filepath.Join(f.dir, "c1.sock")
	f.nodes["w"].Start(t, "api", "FASTNET_TEST_CONFIG="+text(t, map[string]string{"TCP": "127.0.0.1:8001", "Unix": socket}))
	f.apis["c1"] = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	Eventually(t, 10*time.Second, "API", func() error { return f.call("c1", "GET", "/api", nil, nil) })
	kubeconfig := "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n" +
		"clusters: [{name: c, cluster: {server: 'http://127.0.0.1:8001'}}]\nusers: [{name: u, user: {}}]\n"
	if err := os.WriteFile(f.kubeconfig("c1"), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	f.create(t, "c1", "/api/v1/namespaces", object{"metadata": object{"name": "kube-system"}})
	f.create(t, "c1", daemonSets, object{"metadata": object{"name": "fastnet-routeagent", "namespace": "fastnet-system"}})
	endpoint := func(cluster, node, key string, prefixes ...string) {
		e := v1alpha1.Endpoint{Spec: v1alpha1.EndpointSpec{ClusterID: cluster, Node: node, Drivers: []v1alpha1.EndpointDriver{{Name: "wireguard"}}, Addresses: []string{"192.0.2.1"},
			Port: 51820, ProbeKey: key, Prefixes: prefixes}}
		e.Name, e.Namespace = cluster+"."+node, "fastnet-system"
		f.create(t, "c1", endpointsURL, e)
	}
	for i, name := range []string{"w", "a", "b"} {
		f.create(t, "c1", "/api/v1/nodes", object{"metadata": object{"name": name}, "spec": object{},
			"status": object{"addresses": []object{{"type": "InternalIP", "address": fmt.Sprintf("172.31.1.%d", 3+i)}, {"type": "InternalIP", "address": fmt.Sprintf("fd31:1::%d", 3+i)}}}})
		if g := f.gateways[name]; g != nil {
			endpoint("c1", name, base64.StdEncoding.EncodeToString(g.key.PublicKey().Bytes()), "10.8.0.0/16", "fd00:8::/32")
		}
	}
	endpoint("c2", "far", "", "10.9.0.0/16", "fd00:9::/32")
}

func (f *fork) agent() *Process {
	p := f.nodes["w"].Start(f.t, "routeagent", "FASTNET_TEST_CONFIG="+text(f.t, map[string]any{
		"Kubeconfig": f.kubeconfig("c1"), "ClusterID": "c1", "Node": "w", "Prefixes": []string{"10.8.0.0/16", "fd00:8::/32"}, "StateDir": filepath.Join(f.dir, "state"),
	}))
	return p
}

// members waits until these gateways have a like share each of the buckets of both groups: then none is about to move.
func (f *fork) members(names ...string) {
	f.t.Helper()
	Eventually(f.t, 30*time.Second, fmt.Sprintf("flows go by %v", names), func() error {
		hops, err := f.nodes["w"].Try("ip nexthop; ip nexthop bucket")
		if err != nil {
			return fmt.Errorf("%w: %s", err, hops)
		}
		by, buckets := map[string]string{}, map[string]int{}
		for _, line := range strings.Split(hops, "\n") {
			words := strings.Fields(line)
			for name, host := range map[string]string{"a": "4", "b": "5"} {
				if len(words) > 3 && (words[3] == "172.31.1."+host || words[3] == "fd31:1::"+host) {
					by[words[1]] = name + words[3][:1]
				}
			}
			for i, word := range words {
				if word == "nhid" {
					buckets[by[words[i+1]]]++
				}
			}
		}
		for _, name := range names {
			for _, family := range []string{"1", "f"} {
				if buckets[name+family] != 128/len(names) {
					return fmt.Errorf("%v", buckets)
				}
			}
		}
		return nil
	})
}

// flows are streams of a packet a millisecond each, some by each gateway and family.
type flows struct {
	f     *fork
	wg    sync.WaitGroup
	stop  chan struct{}
	sent  chan struct{} // closed when the last packet has been sent
	sinks []*net.UDPConn

	mu    sync.Mutex
	flows map[netip.Addr]*flow
}

type flow struct {
	by       string // the gateway by which it went first
	sent     uint64
	received map[uint64]bool
	link     uint32 // by which the latest packet came
	since    int    // packets that have come by that link since another
	last     time.Time
	gap      time.Duration // the longest between two packets
}

const flowPort = 7099

func (f *fork) start() *flows {
	f.t.Helper()
	fl := &flows{f: f, stop: make(chan struct{}), sent: make(chan struct{}), flows: map[netip.Addr]*flow{}}
	for _, prefix := range []string{"10.9.7.%d from 10.8.1.5 iif cni0", "fd00:9::%x from fd00:8:1::5 iif cni0"} {
		found := map[string]int{}
		for n := 1; n < 200 && (found["a"] < 3 || found["b"] < 3); n++ {
			query := fmt.Sprintf(prefix, n)
			route := f.nodes["w"].Sh(f.t, "ip route get "+query)
			by := ""
			for name, host := range map[string]string{"a": "4", "b": "5"} {
				if strings.Contains(route, "via 172.31.1."+host+" ") || strings.Contains(route, "via fd31:1::"+host+" ") {
					by = name
				}
			}
			if by == "" {
				f.t.Fatalf("route of %s: %s", query, route)
			}
			if found[by]++; found[by] <= 3 {
				fl.flows[netip.MustParseAddr(strings.Fields(query)[0])] = &flow{by: by, received: map[uint64]bool{}}
			}
		}
		if found["a"] == 0 || found["b"] == 0 {
			f.t.Fatalf("not both gateways are used: %v", found)
		}
	}
	sources := map[bool]*net.UDPConn{}
	for _, v6 := range []bool{false, true} {
		network := map[bool]string{false: "udp4", true: "udp6"}[v6]
		open := func(n *Namespace, port int) (socket *net.UDPConn) {
			n.in(f.t, func() {
				config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
					return raw.Control(func(fd uintptr) {
						_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
						_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
						_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
					})
				}}
				conn, err := config.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
				if err != nil {
					f.t.Error(err)
					return
				}
				socket, _ = conn.(*net.UDPConn)
			})
			if socket == nil {
				f.t.FailNow()
			}
			return socket
		}
		sink := open(f.far, flowPort)
		fl.sinks = append(fl.sinks, sink)
		fl.wg.Go(func() { fl.receive(sink) })
		sources[v6] = open(f.pod, 0)
	}
	go fl.send(sources)
	fl.wait("every flow has begun", func(_ netip.Addr, one *flow) bool { return one.since > 100 })
	// What counts is where they go: the flow label of IPv6, which the route was not asked for with, may lead elsewhere.
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, one := range fl.flows {
		for name, link := range f.incoming {
			if one.link == link {
				one.by = name
			}
		}
	}
	return fl
}

func (fl *flows) send(sources map[bool]*net.UDPConn) {
	defer close(fl.sent)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-fl.stop:
			for _, source := range sources {
				_ = source.Close()
			}
			return
		case <-ticker.C:
		}
		fl.mu.Lock()
		for to, one := range fl.flows {
			payload := binary.BigEndian.AppendUint64(nil, one.sent)
			if _, err := sources[to.Is6()].WriteToUDPAddrPort(payload, netip.AddrPortFrom(to, flowPort)); err == nil {
				one.sent++
			}
		}
		fl.mu.Unlock()
	}
}

func (fl *flows) receive(sink *net.UDPConn) {
	buffer, control := make([]byte, 64), make([]byte, 128)
	for {
		n, controls, _, _, err := sink.ReadMsgUDPAddrPort(buffer, control)
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(control[:controls])
		if err != nil || len(messages) == 0 || n != 8 {
			continue
		}
		var to netip.Addr
		var link uint32
		switch m := messages[0]; m.Header.Level {
		case unix.IPPROTO_IP:
			to, link = netip.AddrFrom4([4]byte(m.Data[8:12])), binary.NativeEndian.Uint32(m.Data)
		case unix.IPPROTO_IPV6:
			to, link = netip.AddrFrom16([16]byte(m.Data[:16])), binary.NativeEndian.Uint32(m.Data[16:])
		}
		fl.mu.Lock()
		if one := fl.flows[to]; one != nil {
			now := time.Now()
			if !one.last.IsZero() {
				one.gap = max(one.gap, now.Sub(one.last))
			}
			one.last = now
			one.received[binary.BigEndian.Uint64(buffer)] = true
			if one.link != link {
				one.link, one.since = link, 0
			}
			one.since++
		}
		fl.mu.Unlock()
	}
}

// wait until all flows meet a condition.
func (fl *flows) wait(what string, met func(netip.Addr, *flow) bool) {
	fl.f.t.Helper()
	Eventually(fl.f.t, time.Minute, what, func() error {
		fl.mu.Lock()
		defer fl.mu.Unlock()
		for to, one := range fl.flows {
			if !met(to, one) {
				return fmt.Errorf("%s, first by %s: sent %d, received %d, %d since it came by link %d", to, one.by, one.sent, len(one.received), one.since, one.link)
			}
		}
		return nil
	})
}

// by waits until all flows have come by one gateway for a while.
func (fl *flows) by(gateway string) {
	fl.f.t.Helper()
	fl.wait("all flows go by "+gateway, func(_ netip.Addr, one *flow) bool { return one.link == fl.f.incoming[gateway] && one.since > 200 })
}

// end stops the flows, waits for what is under way, and tells what the flows that began by a gateway have lost, and the
// longest gap among them.
func (fl *flows) end() (lost map[string]int, gap map[string]time.Duration) {
	fl.f.t.Helper()
	close(fl.stop)
	<-fl.sent
	last := func(_ netip.Addr, one *flow) bool { return one.received[one.sent-1] }
	fl.wait("the last packets have come", last)
	for _, sink := range fl.sinks {
		_ = sink.Close()
	}
	fl.wg.Wait()
	lost, gap = map[string]int{}, map[string]time.Duration{}
	for to, one := range fl.flows {
		lost[one.by] += int(one.sent) - len(one.received)
		for first := uint64(0); first < one.sent; first++ {
			if until := first; !one.received[first] {
				for !one.received[until] {
					until++
				}
				fl.f.t.Logf("%s, first by %s: lost %d to %d of %d", to, one.by, first, until-1, one.sent)
				first = until
			}
		}
		gap[one.by] = max(gap[one.by], one.gap)
	}
	return lost, gap
}

// Nodes leave a gateway by themselves: flows over the other one lose nothing and stay where they are, and where the old path
// still carries nothing is lost at all.
func TestFailover(t *testing.T) {
	f := newFork(t)
	Eventually(t, 20*time.Second, "routes", func() error {
		_, err := f.nodes["w"].Try("ip route show table 64087 | grep -v blackhole && ip -6 route show table 64087 | grep -v blackhole")
		return err
	})
	f.members("a", "b")
	t.Run("drain", func(t *testing.T) {
		f.t = t
		fl := f.start()
		f.say("a", true)
		fl.by("b")
		lost, gap := fl.end()
		if lost["a"]+lost["b"] != 0 {
			t.Errorf("lost %v", lost)
		}
		t.Logf("longest gaps %v", gap)
		f.say("a", false)
		f.members("a", "b")
	})
	t.Run("gateway off", func(t *testing.T) {
		f.t = t
		fl := f.start()
		a := f.gateways["a"].node
		a.Sh(t, "ip link set eth0 down; ip link set cable down")
		fl.by("b")
		lost, gap := fl.end()
		if lost["b"] != 0 || lost["a"] == 0 {
			t.Errorf("lost %v: want some of a's, none of b's", lost)
		}
		t.Logf("flows by the gateway that went off: %d packets lost, longest gap %s; by the other: %d, %s", lost["a"], gap["a"], lost["b"], gap["b"])
		a.Sh(t, `ip link set eth0 up; ip link set cable up; ip addr add fd31:1::4/64 dev eth0 nodad; ip addr add fd30:0::1/64 dev cable nodad
			ip route add 10.9.0.0/16 via 172.30.0.2; ip -6 route add fd00:9::/32 via fd30:0::2`)
		f.far.Sh(t, "ip addr replace fd30:0::2/64 dev to-a nodad")
		f.members("a", "b")
	})
	t.Run("gateway's process ends, its path carries on", func(t *testing.T) {
		f.t = t
		fl := f.start()
		f.gateways["b"].stop()
		fl.by("a")
		if lost, _ := fl.end(); lost["a"]+lost["b"] != 0 {
			t.Errorf("lost %v", lost)
		}
	})
	t.Run("the last gateway's process ends: all stays", func(t *testing.T) {
		f.t = t
		before := f.nodes["w"].Sh(t, "ip nexthop; ip route show table 64087; ip -6 route show table 64087")
		f.gateways["a"].stop()
		Eventually(t, 20*time.Second, "no path is known to live", func() error {
			out, err := f.nodes["w"].Try("curl -sf http://127.0.0.1:9472/debug/plan")
			if err == nil && !strings.Contains(out, "no path to it is known to live") {
				err = errors.New("it still is")
			}
			return err
		})
		if after := f.nodes["w"].Sh(t, "ip nexthop; ip route show table 64087; ip -6 route show table 64087"); after != before {
			t.Errorf("before\n%s\nafter\n%s", before, after)
		}
		f.serve("b")
		f.members("b")
		f.serve("a")
		f.members("a", "b")
	})
}
