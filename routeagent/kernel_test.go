package routeagent

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// kernelState is what operators see, without counters and states that change by themselves.
func kernelState(t *testing.T, backend netstate.Backend) string {
	t.Helper()
	return netns.Sh(t, strings.ReplaceAll(`ip -d link | sed -E 's/ (qdisc|state|qlen|[a-z_]+_timer) +[^ ]+//g'; ip addr | grep inet
		ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; bridge fdb; ip neigh show nud permanent; ip -6 neigh show nud permanent; ip nexthop
		for save in iptables-BACKEND-save ip6tables-BACKEND-save; do $save 2>/dev/null | grep -v '^#' | sed -E 's/\[[0-9]+:[0-9]+\]//'; done || true
		for link in eth0 flannel.1 all; do echo $link $(cat /proc/sys/net/ipv4/conf/$link/rp_filter); done`, "BACKEND", string(backend)))
}

// From any plan to any other, on the real kernel: each is reached in one Apply, a second one finds nothing to do, foreign
// state is not touched, and the empty state leaves the node as it was.
func TestRandomWalkBetweenPlans(t *testing.T) {
	netns.RequireRoot(t)
	// Something with a carrier stands in for the devices of cables.
	cableDevices := ""
	for _, endpoint := range []string{"c2.gw", "c2.gw2"} {
		cableDevices += fmt.Sprintf("ip link add %[1]s type bridge; ip link set %[1]s up\n", cables.LinkName(cables.WireGuard, endpoint))
	}
	netns.Sh(t, strings.ReplaceAll(`sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.rp_filter=1
		ip link set lo up; ip link add eth0 type veth peer name peer0; ip link set eth0 up; ip link set peer0 up
		ip addr add 172.18.0.2/24 dev eth0; ip addr add fd18::2/64 dev eth0 nodad
		ip route add default via 172.18.0.1; ip -6 route add default via fd18::1
		ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.8.1.1/24 dev cni0; ip addr add fd00:8:1::1/64 dev cni0 nodad
		ip link add flannel.1 type vxlan id 1 local 172.18.0.2 dstport 8472; ip link set flannel.1 up
		CABLES
		ip rule add priority 1000 lookup 77; ip route add 10.200.0.0/16 dev eth0 table 77; ip route add 10.9.9.0/24 dev eth0 table 64087 proto static`, "CABLES", cableDevices))
	t.Cleanup(func() {
		netns.Sh(t, "for link in eth0 cni0 flannel.1 $(ip -br link | grep -o '^fastnet-w[a-z0-9]*'); do ip link delete $link; done; ip rule delete priority 1000")
	})
	states := map[string]netstate.State{"empty": {}}
	for name, snapshot := range cases() {
		states[name] = Plan(snapshot).State
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range states {
			if !yield(name) {
				return
			}
		}
	})
	for _, backend := range []netstate.Backend{netstate.NFT, netstate.Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			netns.Sh(t, strings.ReplaceAll(`for ipt in iptables-BACKEND ip6tables-BACKEND; do
				for table in nat mangle filter; do $ipt -t $table -N KUBE-KUBELET-CANARY; done
				$ipt -t nat -A POSTROUTING -o eth0 -j MASQUERADE; $ipt -A FORWARD -i cni0 -j ACCEPT; done`, "BACKEND", string(backend)))
			t.Cleanup(func() {
				netns.Sh(t, strings.ReplaceAll(`for ipt in iptables-BACKEND ip6tables-BACKEND; do for table in nat mangle filter; do
					$ipt -t $table -F; $ipt -t $table -X; done; done`, "BACKEND", string(backend)))
			})
			if got := netstate.Detect(); got != backend {
				t.Fatalf("Detect says %s", got)
			}
			tables, err := netstate.NewTables(backend, ChainPrefix)
			if err != nil {
				t.Fatal(err)
			}
			kernel := netstate.New(Scope, tables)
			before := kernelState(t, backend)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			var way []string
			for _, i := range append(random.Perm(len(names)), random.Perm(len(names))[:6]...) { // every one, and some again
				way = append(way, names[i])
			}
			reached := map[string]string{}
			for i, name := range append(way, "empty") {
				if _, err := kernel.Apply(t.Context(), states[name]); err != nil {
					t.Fatalf("step %d, %s: %v", i, name, err)
				}
				if again, err := kernel.Apply(t.Context(), states[name]); err != nil || len(again) > 0 {
					t.Fatalf("step %d, %s again: %v, changes\n%s", i, name, err, strings.Join(again, "\n"))
				}
				now := kernelState(t, backend)
				if was, ok := reached[name]; ok && indexless(was) != indexless(now) {
					t.Errorf("step %d, %s is not what it was when reached before:\n%s", i, name, cmp.Diff(indexless(was), indexless(now)))
				}
				reached[name] = now
			}
			if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(kernelState(t, backend), "\n")); diff != "" {
				t.Errorf("after the empty state (-before +after):\n%s", diff)
			}
		})
	}
}

// indexless sorts lines and takes link numbers out: the order in which links, and so their routes, were made is no part
// of a state.
func indexless(state string) string {
	lines := strings.Split(state, "\n")
	for i, line := range lines {
		if number, rest, ok := strings.Cut(line, ": "); ok && !strings.Contains(number, " ") && !strings.Contains(line, "lookup") {
			lines[i] = rest
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestSnapshotOfTheKernel(t *testing.T) {
	netns.RequireRoot(t)
	netns.Sh(t, `ip link add eth0 type veth peer name pod0; ip addr add 172.18.0.2/24 dev eth0; ip addr add fd18::2/64 dev eth0 nodad
		sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv4.ip_forward=1`)
	t.Cleanup(func() { netns.Sh(t, "ip link delete eth0") })
	netns.Sh(t, `ip link set pod0 up; ip link set eth0 up
		ip route add 10.8.2.0/24 via 172.18.0.3; ip route add 10.8.3.0/25 via 172.18.0.3; ip -6 route add fd00:8:2::/64 via fd18::3
		ip route add 10.8.4.0/24 via 172.18.0.3 table 7; ip route add 10.8.4.1 via 172.18.0.3; ip route add 10.8.4.2 via 172.18.0.3; ip link set pod0 down`)
	s := Snapshot{Nodes: []Node{
		{Name: "n2", PodPrefixes: prefixes("10.8.2.0/24", "fd00:8:2::/64")}, {Name: "n3", PodPrefixes: prefixes("10.8.3.0/24")}, {Name: "n4", PodPrefixes: prefixes("10.8.4.0/24")},
	}}
	if err := s.kernel(map[string]int{"eth0": 0}); err != nil {
		t.Fatal(err)
	}
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := []Link{{Name: "eth0", Kind: "veth", Index: uint32(eth0.Index), Up: false, MTU: 1500, Addresses: prefixes("172.18.0.2/24", "fd18::2/64"), RPFilter: 1, Loosened: true}}
	compare := cmp.Comparer(func(a, b Link) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
	if diff := cmp.Diff(want, s.Links, compare); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	if want := prefixes("10.8.2.0/24", "10.8.4.1/32", "fd00:8:2::/64"); !slices.Equal(want, s.MainRoutes) {
		t.Errorf("pod CIDRs in the main table: %v, want %v", s.MainRoutes, want)
	}
	if !s.ForwardIPv4 || !s.IPv6 {
		t.Errorf("forwards IPv4 %t, has IPv6 %t; want both", s.ForwardIPv4, s.IPv6)
	}
}

func TestMetrics(t *testing.T) {
	target := nodeprobe.Target{Gateway: "c1.gw", Addr: addrs("172.18.0.3")[0]}
	m := newMetrics(func() map[nodeprobe.Target]nodeprobe.Health {
		return map[nodeprobe.Target]nodeprobe.Health{target: {State: liveness.Up, RTT: time.Millisecond, Loss: 0.25}}
	})
	m.observe(0, Plan(base()), 3, nil)
	m.failedOver(time.Millisecond, Plan(base()), 2)
	m.failedOver(time.Millisecond, Plan(base()), 0) // nothing was exchanged
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			if name == "fastnet_routeagent_routes" {
				name = metric.GetLabel()[0].GetValue()
			}
			values[name] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{"gateway": 0, "direct": 3, "tunnel": 0, "blackhole": 0, "fastnet_routeagent_failovers_total": 1,
		"fastnet_routeagent_changes_total": 5, "fastnet_routeagent_path_up": 1, "fastnet_routeagent_path_loss_ratio": 0.25} {
		if values[name] != want {
			t.Errorf("%s is %g, want %g", name, values[name], want)
		}
	}
}
