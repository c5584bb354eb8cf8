package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// stub is a driver whose cables are whatever a test says.
type stub struct{ report cable.Report }

func (stub) PublicKey() (string, error)                     { return "key", nil }
func (stub) Apply(context.Context, cable.Config) error      { return nil }
func (s stub) Report(context.Context) (cable.Report, error) { return s.report, nil }
func (stub) Remove(context.Context) error                   { return nil }
func (stub) Close() error                                   { return nil }

func TestStatus(t *testing.T) {
	now := time.Unix(2000, 500)
	desired := Plan(base())
	desired.Problems = []string{"something"}
	report := cable.Report{Driver: "wireguard (in-process)", Cables: []cable.Cable{
		{Endpoint: "c2.a", PeerAddress: netip.MustParseAddrPort("192.0.2.9:51820"), Driver: "wireguard (in-process)"}, {Endpoint: "c2.b", Driver: "vxlan"},
	}}
	health := map[string]Health{
		"c2.a": {State: v1alpha1.CableUp, Since: time.Unix(1000, 900), RTT: 1234567 * time.Nanosecond, Loss: 0.125},
		"c2.b": {State: v1alpha1.CableDown, Since: time.Unix(1500, 0), RTT: time.Millisecond},
	}
	at := func(seconds int64) metav1.Time { return metav1.NewTime(time.Unix(seconds, 0)) }
	renewed := at(2000)
	agreed := metav1.Condition{
		Type: "DriverAgreed", Status: "True", Reason: "DriverAgreed", LastTransitionTime: renewed, Message: "this gateway has a driver in common with each gateway of other clusters",
	}
	want := v1alpha1.GatewayStatus{Driver: "wireguard (in-process)", Problems: []string{"something"}, Renewed: &renewed, Conditions: []metav1.Condition{agreed}, Cables: []v1alpha1.Cable{
		{ClusterID: "c2", Endpoint: "c2.a", Driver: "wireguard (in-process)", PeerAddress: "192.0.2.9:51820", State: "up", RTTMilliseconds: "1.235", LossPercent: "12.5", Since: at(1000)},
		{ClusterID: "c2", Endpoint: "c2.b", Driver: "vxlan", State: "down", Since: at(1500)},
		{ClusterID: "c3", Endpoint: "c3.x", Driver: "wireguard", State: "connecting", Since: at(2000)},
	}}
	got := status(desired, report, health, "", nil, now)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	slower := status(desired, report, map[string]Health{"c2.a": {State: "up", Since: time.Unix(1000, 0), RTT: time.Second}, "c2.b": health["c2.b"]}, "", got.Conditions, now)
	if !cmp.Equal(settled(got), settled(slower)) {
		t.Error("another RTT counts as a change")
	}
	if got.Cables[0].RTTMilliseconds != "1.235" {
		t.Error("comparing has changed the status")
	}

	// A driver that is not in common, and since when.
	condition := func(seconds time.Duration, before []metav1.Condition, mismatches ...string) []metav1.Condition {
		desired.NoCommonDriver = mismatches
		return status(desired, report, health, "", before, now.Add(seconds*time.Second)).Conditions
	}
	first := condition(1, got.Conditions, "a has none")
	second := condition(2, first, "a has none", "b has none", "c has none")
	over := condition(3, second)
	differ := metav1.Condition{Type: "DriverAgreed", Status: "False", Reason: "NoCommonDriver", LastTransitionTime: at(2001), Message: "a has none"}
	more := differ
	more.Message += " (and 2 more, see problems)"
	agreed.LastTransitionTime = at(2003)
	if diff := cmp.Diff([][]metav1.Condition{{differ}, {more}, {agreed}}, [][]metav1.Condition{first, second, over}); diff != "" {
		t.Errorf("conditions: -want +got:\n%s", diff)
	}
}

func TestMetrics(t *testing.T) {
	report := cable.Report{Cables: []cable.Cable{{Endpoint: "c2.a", LastHandshake: time.Unix(5, 0), Sent: 1, Received: 2}}}
	g := newGateway(Config{}, nil, nil, drivers{{Driver: stub{report}, name: "wireguard"}}, nil, nil)
	g.prober = testProber()
	g.prober.set(report)
	g.last.desired = Plan(base())
	registry, err := newRegistry(g)
	if err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil || len(families) < 7 {
		t.Fatalf("%d metrics: %v", len(families), err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

func TestReadyOnlyAfterARound(t *testing.T) {
	g := newGateway(Config{Log: slog.New(slog.DiscardHandler)}, nil, nil, nil, nil, nil)
	if g.ready() == nil {
		t.Error("ready before any round")
	}
	if err := g.ended(outcome{err: errors.New("no")}); err == nil || g.ready() == nil {
		t.Error("ready after a failed round")
	}
	if err := g.ended(outcome{done: true}); err != nil || g.ready() != nil {
		t.Error("not ready after a good round")
	}
	if err := g.ended(outcome{err: errors.New("API server away")}); err == nil || g.ready() != nil {
		t.Error("no longer ready when the API server is away: the cables work on")
	}
}

func TestCleanupRemovesTheFiles(t *testing.T) {
	netns.RequireRoot(t) // it looks for the device too
	for name, test := range map[string]struct {
		config Config
		left   []string
	}{
		"one": {Config{ClusterID: "c1", Node: "a"}, []string{"node-probe-c1.b.key", "node-probe-c2.a.key", "ports-c1.b.json", "ports-c2.a.json", "wireguard-c1.b.key", "wireguard-c2.a.key"}},
		"all": {Config{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, gateway := range []string{"c1.a", "c1.b", "c2.a"} {
				for _, path := range []string{keyFile(dir, "wireguard", gateway), keyFile(dir, nodeProbe, gateway), portsFile(dir, gateway)} {
					if err := os.WriteFile(path, nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			test.config.StateDir, test.config.Log = dir, slog.New(slog.DiscardHandler)
			if err := Cleanup(t.Context(), test.config); err != nil {
				t.Fatal(err)
			}
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, file := range files {
				left = append(left, file.Name())
			}
			if !slices.Equal(left, test.left) {
				t.Errorf("left are %v, want %v", left, test.left)
			}
		})
	}
}

// TestEndsAreToldTogether: the first of several cables that die is told with the others, and not for ever after.
func TestEndsAreToldTogether(t *testing.T) {
	const up, down = v1alpha1.CableUp, v1alpha1.CableDown
	told := []v1alpha1.Cable{{ClusterID: "c2", Endpoint: "c2.a", State: up}, {ClusterID: "c2", Endpoint: "c2.b", State: up}, {ClusterID: "c3", Endpoint: "c3.a", State: up}}
	for name, test := range map[string]struct {
		a, b, other Health
		want        bool
	}{
		"all is well":                          {Health{State: up}, Health{State: up}, Health{State: up}, false},
		"one is silent":                        {Health{State: up, Silent: time.Second}, Health{State: up}, Health{State: up}, false},
		"one is lost":                          {Health{State: down, Silent: time.Second}, Health{State: up, Silent: 100 * time.Millisecond}, Health{State: up}, false},
		"one is lost, and the other silent":    {Health{State: down, Silent: time.Second}, Health{State: up, Silent: silence + 1}, Health{State: up}, true},
		"both are lost":                        {Health{State: down, Silent: time.Second}, Health{State: down, Silent: time.Second}, Health{State: up}, false},
		"a long way":                           {Health{State: down}, Health{State: up, RTT: 50 * time.Millisecond, Silent: silence + 50*time.Millisecond}, Health{State: up}, false},
		"that of another cluster is silent":    {Health{State: down}, Health{State: up}, Health{State: up, Silent: time.Second}, false},
		"the silent one was never up":          {Health{State: down}, Health{State: v1alpha1.CableConnecting, Silent: time.Hour}, Health{State: up}, false},
		"the other cluster loses its only one": {Health{State: up, Silent: time.Second}, Health{State: up}, Health{State: down}, false},
	} {
		test.a.ClusterID, test.b.ClusterID, test.other.ClusterID = "c2", "c2", "c3"
		if got := undecided(told, map[string]Health{"c2.a": test.a, "c2.b": test.b, "c3.a": test.other}); got != test.want {
			t.Errorf("%s: undecided is %t", name, got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		g := &gateway{prober: testProber()}
		g.object.Status.Cables = told[:2]
		g.prober.seed(told[:2])
		a, b := cableTo("c2.a"), cableTo("c2.b")
		a.ClusterID, b.ClusterID = "c2", "c2"
		g.prober.set(cable.Report{Cables: []cable.Cable{a, b}})
		start := time.Now()
		time.Sleep(time.Minute)
		g.prober.lines["c2.a"].path.Probe(time.Now()) // the prober has stood still: that is no proof of anything
		if g.decided(t.Context()); time.Since(start) != time.Minute {
			t.Errorf("it waits for %s where nothing is lost", time.Since(start)-time.Minute)
		}
		for g.prober.lines["c2.a"].path.State() == liveness.Up {
			g.prober.lines["c2.a"].path.Probe(time.Now())
			time.Sleep(liveness.HastyPace)
		}
		start = time.Now()
		if health := g.decided(t.Context()); health["c2.a"].State != down || health["c2.b"].State != up {
			t.Errorf("c2.a is %s, c2.b %s", health["c2.a"].State, health["c2.b"].State)
		}
		if waited := time.Since(start); waited < deciding || waited > deciding+2*liveness.HastyPace {
			t.Errorf("it waits for %s", waited)
		}
	})
}

func TestPeersSeenElsewhereAreTranslated(t *testing.T) {
	endpoint := func(name string, addresses ...string) v1alpha1.Endpoint {
		return v1alpha1.Endpoint{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EndpointSpec{Addresses: addresses}}
	}
	endpoints := []v1alpha1.Endpoint{endpoint("c2.a", "192.0.2.1", "2001:DB8::1"), endpoint("c2.b", "nonsense")}
	for at, want := range map[string]bool{
		"c2.a at 192.0.2.1:51820": false, "c2.a at [2001:db8::1]:9": false, "c2.a at 192.0.2.2:51820": true, "c2.a at [2001:db8::2]:51820": true,
		"c2.b at 192.0.2.1:51820": true, "c2.gone at 192.0.2.1:51820": false, "c2.a at nowhere": false,
	} {
		name, address, _ := strings.Cut(at, " at ")
		found := []cable.Cable{{Endpoint: name}}
		found[0].PeerAddress, _ = netip.ParseAddrPort(address)
		findTranslated(found, endpoints)
		if found[0].Translated != want {
			t.Errorf("%s is translated: %t", at, found[0].Translated)
		}
	}
}

// TestOneWriteForEachChange: a Gateway is written when a cable has changed, and every 30 s; nobody writes what is there already.
func TestOneWriteForEachChange(t *testing.T) {
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	writes := 0
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.Gateway{}).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceUpdate: func(ctx context.Context, c client.Client, name string, object client.Object, o ...client.SubResourceUpdateOption) error {
			writes++
			return c.SubResource(name).Update(ctx, object, o...)
		},
	}).Build()
	g := newGateway(Config{ClusterID: "c1", Node: "a", Renew: renewEvery, Log: slog.New(slog.DiscardHandler)}, nil, nil, nil, api, api)
	g.event = func(runtime.Object, event) {}
	start := time.Unix(1000, 0)
	for _, step := range []struct {
		after time.Duration
		state v1alpha1.CableState
		rtt   string
		want  int
	}{
		{0, v1alpha1.CableConnecting, "", 1},
		{time.Second, v1alpha1.CableConnecting, "", 0},
		{2 * time.Second, v1alpha1.CableUp, "", 1},
		{3 * time.Second, v1alpha1.CableUp, "1.5", 1}, // known now
		{4 * time.Second, v1alpha1.CableUp, "2.5", 0},
		{32 * time.Second, v1alpha1.CableUp, "0.5", 0},
		{33 * time.Second, v1alpha1.CableUp, "0.5", 1},
		{34 * time.Second, v1alpha1.CableDown, "", 1},
		{63 * time.Second, v1alpha1.CableDown, "", 0},
		{64 * time.Second, v1alpha1.CableDown, "", 1},
	} {
		before := writes
		status := v1alpha1.GatewayStatus{Cables: []v1alpha1.Cable{{ClusterID: "c2", Endpoint: "c2.a", State: step.state, RTTMilliseconds: step.rtt}}}
		if err := g.writeStatus(t.Context(), status, g.meta("a"), start.Add(step.after)); err != nil {
			t.Fatal(err)
		}
		if writes-before != step.want {
			t.Errorf("after %s, %s: %d writes, want %d", step.after, step.state, writes-before, step.want)
		}
	}
}
