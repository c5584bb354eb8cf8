//go:build e2e

// Package e2e is the stories and the bad days, on two real clusters: the tests run in the order in which they stand here, on
// one lab that the first starts and the last takes away. One that fails leaves the rest without ground to stand on, so they fail
// at once and say so.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

// world is what one test hands to the next.
var world struct {
	lab     *lab.Lab
	machine string            // its state before the lab
	nodes   map[string]string // their state before Fastnet
	teller  *story.Teller
	told    transcript
	wan     *capture
	dir     string
	broken  string // the test that failed
}

// transcript is a buffer that several goroutines may write to.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (t *transcript) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Reset()
}

func TestMain(m *testing.M) {
	code := m.Run()
	if world.wan != nil {
		if err := world.wan.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = 1
		}
	}
	if world.lab != nil && os.Getenv("FASTNET_KEEP_LAB") == "" {
		if err := lab.Down(context.Background(), func(string) {}); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = 1
		}
	}
	if world.dir != "" {
		if err := os.RemoveAll(world.dir); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// stage begins a test that stands on those before it.
func stage(t *testing.T) (context.Context, *story.Teller) {
	t.Helper()
	if world.broken != "" {
		t.Fatalf("%s failed, and this stands on it", world.broken)
	}
	world.told.Reset()
	t.Cleanup(func() {
		if t.Failed() {
			world.broken = t.Name()
			t.Logf("what was told:\n%s", world.told.String())
		}
	})
	return t.Context(), world.teller
}

// inspection begins a test that looks at the lab whatever became of the tests before it.
func inspection(t *testing.T) context.Context {
	t.Helper()
	if world.wan == nil {
		t.Fatal("the lab did not start")
	}
	return t.Context()
}

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// tell runs parts of a story.
func tell(t *testing.T, ctx context.Context, parts ...func(context.Context) error) {
	t.Helper()
	for _, part := range parts {
		if err := part(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUp(t *testing.T) {
	ctx, _ := stage(t)
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	dist := must[string](t)(filepath.Abs("../../dist"))
	world.machine = must[string](t)(machineState(ctx))
	start := time.Now()
	config := lab.DefaultConfig(dist)
	config.Progress = func(line string) { fmt.Fprintln(&world.told, line) }
	world.lab = &lab.Lab{} // from here on there is something to take down
	world.lab = must[*lab.Lab](t)(lab.Up(ctx, config))
	t.Logf("two clusters of three nodes in %.1f s", time.Since(start).Seconds())

	world.dir = must[string](t)(os.MkdirTemp("", "fastnet-e2e-"))
	world.teller = must[*story.Teller](t)(story.New(world.lab, dist, filepath.Join(world.dir, "story"), &world.told))
	world.nodes = must[map[string]string](t)(stateOf(ctx, world.lab))
	world.wan = must[*capture](t)(startCapture(context.Background(), world.lab, world.dir))

	// Without Fastnet nothing keeps a packet for another cluster's pod off the WAN. One such, to the port named discard, shows
	// that the capture and its filter find what they look for.
	for _, address := range []string{"UDP4:10.9.2.200:9", "UDP6:[fd00:10:9:2::200]:9"} {
		if out, err := world.lab.Node("c1", "worker2").Command(ctx, "sh", "-c", "echo astray | socat -u - "+address).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

func TestUpTwiceIsSafe(t *testing.T) {
	ctx, teller := stage(t)
	before := must[string](t)(teller.Output(ctx, "kubectl --context c1 get nodes -o jsonpath='{.items[*].metadata.uid}'"))
	dist := must[string](t)(filepath.Abs("../../dist"))
	world.lab = must[*lab.Lab](t)(lab.Up(ctx, lab.DefaultConfig(dist)))
	if after := must[string](t)(teller.Output(ctx, "kubectl --context c1 get nodes -o jsonpath='{.items[*].metadata.uid}'")); before != after {
		t.Errorf("the nodes were %s and are %s", before, after)
	}
}

func TestJoin(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Connect)
}

func TestStoryA1Prepare(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Prepare)
}

func TestStoryA2Export(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Export)
}

func TestStoryA3Reach(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Reach)
}

// TestHostNetworkClient: a process on a node, gateway or not, with pods or without, reaches the service too.
func TestHostNetworkClient(t *testing.T) {
	ctx, teller := stage(t)
	for _, node := range []string{"worker1", "worker2", "control"} {
		for n, flag := range []string{"-4", "-6"} {
			ip := must[string](t)(teller.Output(ctx, fmt.Sprintf("kubectl --context c1 -n sample get serviceimport whereami-cs -o jsonpath='{.spec.ips[%d]}'", n)))
			url := "http://" + ip
			if flag == "-6" {
				url = "http://[" + ip + "]"
			}
			out, err := world.lab.Node("c1", node).Command(ctx, "curl", "-sS", "--max-time", "5", "--retry", "3", "--retry-all-errors", flag, url).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "c2-") {
				t.Errorf("from c1-%s over %s: %v\n%s", node, flag, err, out)
			}
		}
	}
}

// daemon is a process of Fastnet on one node.
type daemon struct{ cluster, role, program string }

// TestKilledDaemonsBreakNothing kills each daemon in turn, and holds connections and asks the name all the while.
func TestKilledDaemonsBreakNothing(t *testing.T) {
	ctx, teller := stage(t)
	held := holdStreams(t, ctx, teller)
	for _, d := range []daemon{
		{"c1", "", "fastnet-agent"}, {"c2", "", "fastnet-agent"},
		{"c1", "worker1", "fastnet-gateway"}, {"c2", "worker1", "fastnet-gateway"},
		{"c1", "worker1", "fastnet-routeagent"}, {"c1", "worker2", "fastnet-routeagent"}, {"c2", "worker1", "fastnet-routeagent"},
	} {
		killAndAwait(t, ctx, d)
		held.expectFlow(t, fmt.Sprintf("after %+v was killed", d))
	}
	held.end(t)
}

// TestDNSRestartsWithoutAPIServer: CoreDNS is killed while its cluster's API server hangs, and answers clusterset names again
// once the kubelet has started it, from its snapshot.
func TestDNSRestartsWithoutAPIServer(t *testing.T) {
	ctx, _ := stage(t)
	const name = "whereami-cs.sample.svc.clusterset.local"
	before := dig(ctx, name)
	if before == "" {
		t.Fatalf("%s has no answer to begin with", name)
	}
	if err := world.lab.Pause(ctx, "c1/control:kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := world.lab.Resume(context.WithoutCancel(ctx), "c1/control:kube-apiserver"); err != nil {
			t.Error(err)
		}
	}()
	killed := corednsProcesses(ctx)
	if len(killed) == 0 {
		t.Fatal("no CoreDNS runs in c1")
	}
	start := time.Now()
	for _, p := range killed {
		if out, err := world.lab.Node("c1", p.node).Command(ctx, "kill", "-KILL", p.pid).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for {
		running := corednsProcesses(ctx)
		again := len(running) >= len(killed) && !slices.ContainsFunc(running, func(p nodeProcess) bool { return slices.Contains(killed, p) })
		if again && dig(ctx, name) == before {
			break
		}
		if time.Since(start) > 60*time.Second {
			t.Fatalf("%s has no answer a minute after the kill; CoreDNS runs as %v", name, running)
		}
	}
	t.Logf("answered again after %.1f s", time.Since(start).Seconds())
}

func TestStoryA4LocalFirst(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.LocalFirst)
}

// TestCutAndHeal: a cable that loses its peer is down, and up again when the network is.
func TestCutAndHeal(t *testing.T) {
	ctx, teller := stage(t)
	if err := world.lab.Cut(ctx, "c1", "c2"); err != nil {
		t.Fatal(err)
	}
	state := "kubectl --context c1 -n fastnet-system get gateways -o jsonpath='{.items[*].status.cables[*].state}'"
	_, down := teller.Until(ctx, state, equals("down"))
	if err := world.lab.Heal(ctx, "c1", "c2"); err != nil {
		t.Fatal(err)
	}
	if down != nil {
		t.Fatal(down)
	}
	if _, err := teller.Until(ctx, state, equals("up")); err != nil {
		t.Fatal(err)
	}
}

func TestAffinity(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Affinity)
}

func TestStoryCBalancedByDNS(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.BalancedByDNS)
}

func TestStoryA5Unexport(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Unexport)
}

func TestStoryBHeadless(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Headless, teller.HeadlessGone)
}

// TestErrorsOfTheCommandLine: what cannot be exported is one clear line, and the exit code 1.
func TestErrorsOfTheCommandLine(t *testing.T) {
	ctx, teller := stage(t)
	for line, want := range map[string]string{
		"kubectl service --context c1 -n sample export nothing": "nothing",
		"kubectl --context c1 -n sample create service externalname away --external-name example.org >&2; kubectl service --context c1 -n sample export away": "ExternalName",
	} {
		out := must[string](t)(teller.Output(ctx, "("+line+`) 2>err; echo "exit $?"; cat err; rm err`))
		if !strings.Contains(out, "exit 1") || !strings.Contains(out, want) {
			t.Errorf("%s: want exit code 1 and a line about %q:\n%s", line, want, out)
		}
	}
}

// TestLeave: members leave and the broker goes; the clusters and their nodes are as they were.
func TestLeave(t *testing.T) {
	ctx, teller := stage(t)
	tell(t, ctx, teller.Again)
	for _, line := range []string{
		"kubectl fastnet --context c2 leave --yes",
		"kubectl fastnet --context c1 leave --yes",
		"kubectl fastnet --context c1 broker undeploy",
	} {
		if err := teller.Run(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	after := must[map[string]string](t)(stateOf(ctx, world.lab))
	for name, before := range world.nodes {
		if diff := difference(before, after[name]); diff != "" {
			t.Errorf("%s is not as it was:\n%s", name, diff)
		}
	}
	for _, cluster := range []string{"c1", "c2"} {
		for _, line := range []string{
			"kubectl --context " + cluster + " get namespaces -o name | grep -e fastnet -e sample; true",
			"kubectl --context " + cluster + " get crds -o name | grep -e fastnet -e about -e multicluster; true",
			"kubectl --context " + cluster + " get clusterroles,clusterrolebindings -o name | grep fastnet; true",
			"kubectl --context " + cluster + " get nodes --show-labels | grep fastnet; true",
			"kubectl --context " + cluster + " get services,endpointslices,configmaps,deployments -A -o name | grep -e fastnet -e derived; true",
			"kubectl --context " + cluster + " -n kube-system get configmap coredns -o yaml | grep -e clusterset -e lighthouse; true",
		} {
			if out := must[string](t)(teller.Output(ctx, line)); out != "" {
				t.Errorf("%s finds\n%s", line, out)
			}
		}
	}
	// The clusters' own DNS goes on.
	for _, cluster := range []string{"c1", "c2"} {
		if _, err := teller.Until(ctx, "kubectl --context "+cluster+" -n kube-system rollout status deployment/coredns --timeout 30s", func(string) error { return nil }); err != nil {
			t.Error(err)
		}
	}
}

// TestWANSawNoClearPodPacket looks back on everything until here: joining, stories, killed daemons, cuts, leaving.
func TestWANSawNoClearPodPacket(t *testing.T) {
	ctx := inspection(t)
	if err := world.wan.stop(); err != nil {
		t.Fatal(err)
	}
	tunnel := must[[]string](t)(world.wan.packets(ctx, "udp port 51820"))
	if len(tunnel) < 100 {
		t.Errorf("the capture holds %d packets of the tunnel: it cannot have seen the stories", len(tunnel))
	}
	if astray := must[[]string](t)(world.wan.packets(ctx, "udp port 9 and ("+clearFilter(world.lab)+")")); len(astray) != 2 {
		t.Errorf("the filter finds %d of the 2 packets that were sent astray:\n%s", len(astray), strings.Join(astray, "\n"))
	}
	if leaked := must[[]string](t)(world.wan.packets(ctx, "not port 9 and ("+clearFilter(world.lab)+")")); len(leaked) > 0 {
		t.Errorf("%d packets of pods in clear between the clusters:\n%s", len(leaked), strings.Join(leaked[:min(len(leaked), 20)], "\n"))
	}
}

func TestDownLeavesNothing(t *testing.T) {
	ctx := inspection(t)
	if err := world.lab.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if left := must[[]string](t)(lab.Leftovers()); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if diff := difference(world.machine, must[string](t)(machineState(ctx))); diff != "" {
		t.Errorf("the machine is not as it was:\n%s", diff)
	}
}

func equals(want ...string) func(string) error {
	return func(out string) error {
		if got := strings.Fields(out); !slices.Equal(got, want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	}
}
