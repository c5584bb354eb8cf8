//go:build e2e

// Package outage is the broker's bad days, in a lab of three clusters: c1 and c2 are members, c3 is the broker and nothing else.
// The tests run in the order in which they stand here.
package outage

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
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
	lab    *lab.Lab
	teller *story.Teller
	dir    string
	told   bytes.Buffer
	broken string // the test that failed
}

func TestMain(m *testing.M) {
	code := m.Run()
	if world.lab != nil && os.Getenv("FASTNET_KEEP_LAB") == "" {
		if err := lab.Down(context.Background(), func(string) {}); err != nil {
			fmt.Fprintln(os.Stderr, "outage:", err)
			code = 1
		}
	}
	if world.dir != "" {
		if err := os.RemoveAll(world.dir); err != nil {
			fmt.Fprintln(os.Stderr, "outage:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// stage begins a test that stands on those before it.
func stage(t *testing.T) context.Context {
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
	return t.Context()
}

// run runs command lines that must go well.
func run(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if err := world.teller.Run(t.Context(), line); err != nil {
			t.Fatal(err)
		}
	}
}

// until waits until a command line prints what check wants, and logs how long that took.
func until(t *testing.T, line string, check func(string) error) {
	t.Helper()
	took, err := world.teller.Until(t.Context(), line, check)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f s: %s", took.Seconds(), line)
}

func has(part string) func(string) error {
	return func(out string) error {
		if !strings.Contains(out, part) {
			return fmt.Errorf("%q is not in %q", part, out)
		}
		return nil
	}
}

func hasNot(part string) func(string) error {
	return func(out string) error {
		if strings.Contains(out, part) {
			return fmt.Errorf("%q is in %q", part, out)
		}
		return nil
	}
}

// addressOf is a check for one address of a family.
func addressOf(record string) func(string) error {
	return func(out string) error {
		a, err := netip.ParseAddr(strings.TrimSpace(out))
		if err == nil && a.Is4() != (record == "A") {
			err = fmt.Errorf("%s is no answer to %s", a, record)
		}
		return err
	}
}

func dig(name, record string) string {
	return fmt.Sprintf("kubectl --context c1 -n sample exec deploy/client -- dig +short +tries=2 +time=2 %s.sample.svc.clusterset.local %s", name, record)
}

func curl(flag, name string) string {
	return fmt.Sprintf("kubectl --context c1 -n sample exec deploy/client -- curl -sS %s --max-time 5 http://%s.sample.svc.clusterset.local", flag, name)
}

// asking asks DNS in c1 for a service, and the service itself, in both families again and again.
type asking struct {
	stop func()
	done chan struct{}

	mu       sync.Mutex
	asked    int
	failures []string
}

func ask(t *testing.T, name string) *asking {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &asking{stop: cancel, done: make(chan struct{})}
	want := map[string]string{}
	for _, line := range []string{dig(name, "A"), dig(name, "AAAA")} {
		out, err := world.teller.Output(ctx, line)
		if err != nil || strings.TrimSpace(out) == "" {
			t.Fatalf("%s has no answer to begin with: %q, %v", line, out, err)
		}
		want[line] = out
	}
	go func() {
		defer close(a.done)
		for ctx.Err() == nil {
			for _, line := range []string{dig(name, "A"), dig(name, "AAAA"), curl("-4", name), curl("-6", name)} {
				out, err := world.teller.Output(ctx, line)
				if ctx.Err() != nil {
					return
				}
				a.mu.Lock()
				a.asked++
				if was, same := want[line]; err != nil || same && out != was {
					a.failures = append(a.failures, fmt.Sprintf("%s %s: %q, %v", time.Now().Format("15:04:05"), line, out, err))
				}
				a.mu.Unlock()
			}
		}
	}()
	return a
}

// end ends the questions. All must have been answered as the first.
func (a *asking) end(t *testing.T) {
	t.Helper()
	a.stop()
	<-a.done
	if len(a.failures) > 0 || a.asked < 4 {
		t.Errorf("%d of %d questions failed:\n%s", len(a.failures), a.asked, strings.Join(a.failures, "\n"))
	}
	t.Logf("%d questions were answered all the same", a.asked)
}

// watch notes every event of the ServiceImports of a cluster, until it is asked for them.
func watch(t *testing.T, cluster string) (events func() string) {
	t.Helper()
	command := world.teller.Command(t.Context(), "exec kubectl --context "+cluster+" -n sample get serviceimports -w --output-watch-events --no-headers")
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		_ = command.Process.Kill()
		_ = command.Wait() // killed
		return out.String()
	}
}

func onNode(t *testing.T, cluster, role string, args ...string) string {
	t.Helper()
	out, err := world.lab.Node(cluster, role).Command(t.Context(), args...).CombinedOutput()
	if err != nil && args[0] != "pgrep" { // whose way it is to say that there is none
		t.Fatalf("%v on %s %s: %v\n%s", args, cluster, role, err, out)
	}
	return strings.TrimSpace(string(out))
}

// restartAgents kills the agents of both members, and waits until others are ready in their places.
func restartAgents(t *testing.T) {
	t.Helper()
	for _, cluster := range []string{"c1", "c2"} {
		before := onNode(t, cluster, "worker1", "pgrep", "-x", "fastnet-agent")
		if before == "" {
			t.Fatalf("no agent runs in %s", cluster)
		}
		onNode(t, cluster, "worker1", "kill", "-KILL", before)
		until(t, "kubectl --context "+cluster+" -n fastnet-system get pods -l app.kubernetes.io/name=fastnet-agent "+
			`-o jsonpath='{.items[*].status.containerStatuses[*].ready} '; echo`, func(out string) error {
			if now := onNode(t, cluster, "worker1", "pgrep", "-x", "fastnet-agent"); now == "" || now == before {
				return fmt.Errorf("the agent of %s is %q, and was %q", cluster, now, before)
			}
			return has("true")(out)
		})
	}
}

func TestUp(t *testing.T) {
	ctx := stage(t)
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	dist, err := filepath.Abs("../../../dist")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	config := lab.DefaultConfig(dist)
	config.Clusters, config.Workers = 3, 1
	config.Progress = func(string) {}
	world.lab = &lab.Lab{} // from here on there is something to take down
	if world.lab, err = lab.Up(ctx, config); err != nil {
		t.Fatal(err)
	}
	t.Logf("three clusters of two nodes in %.1f s", time.Since(start).Seconds())
	if world.dir, err = os.MkdirTemp("", "fastnet-outage-"); err != nil {
		t.Fatal(err)
	}
	if world.teller, err = story.New(world.lab, dist, filepath.Join(world.dir, "story"), &world.told); err != nil {
		t.Fatal(err)
	}
}

func TestJoin(t *testing.T) {
	ctx := stage(t)
	run(t, "kubectl fastnet --context c3 broker deploy",
		"kubectl fastnet --context c3 broker invite c1 -o c1.join",
		"kubectl fastnet --context c3 broker invite c2 -o c2.join",
		"kubectl fastnet --context c1 join c1.join --gateway-node c1-worker1 --dns cluster",
		"kubectl fastnet --context c2 join c2.join --gateway-node c2-worker1 --dns standalone")
	for cluster, other := range map[string]string{"c1": "c2", "c2": "c1"} {
		until(t, "kubectl fastnet --context "+cluster+" show connections", func(out string) error {
			if err := has(other)(out); err != nil {
				return err
			}
			return has("up")(out)
		})
	}
	for _, part := range []func(context.Context) error{world.teller.Prepare, world.teller.Export, world.teller.Reach} {
		if err := part(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, cluster := range []string{"c1", "c2"} {
		until(t, "kubectl --context c3 -n fastnet-"+cluster+" get lease fastnet-agent -o jsonpath='{.spec.renewTime}'", has("T"))
	}
}

// TestBrokerAway: the broker hangs. Names and connections go on, agents that restart keep what is there, and what is exported
// meanwhile works in its own cluster, and in the others as soon as the broker is back.
func TestBrokerAway(t *testing.T) {
	ctx := stage(t)
	asked := ask(t, "whereami-cs")
	if err := world.lab.Pause(ctx, "c3/control:kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	restartAgents(t)
	run(t, `kubectl --context c1 -n sample expose deployment client --name mine --port 80 --overrides '{"spec":{"ipFamilyPolicy":"RequireDualStack"}}'`,
		"kubectl service --context c1 -n sample export mine")
	until(t, dig("mine", "A"), addressOf("A"))
	until(t, dig("mine", "AAAA"), addressOf("AAAA"))
	until(t, "kubectl --context c1 -n sample get serviceexport mine -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].reason}'", has("Pending"))
	if err := world.lab.Resume(ctx, "c3/control:kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	until(t, "kubectl --context c1 -n sample get serviceexport mine -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].reason}'", has("Exported"))
	until(t, "kubectl --context c2 -n sample get serviceimports -o name", has("/mine"))
	asked.end(t)
}

// TestBrokerRestored: etcd of the broker is made what it was before a service was exported and another withdrawn. The first
// stays, the second stays away, and after a moment the broker has it so too.
func TestBrokerRestored(t *testing.T) {
	ctx := stage(t)
	etcd := filepath.Join(world.lab.Node("c3", "control").Var(), "lib", "etcd")
	// What etcd has on disk while it stands still is what it would find after a power cut.
	if err := world.lab.Pause(ctx, "c3/control:etcd"); err != nil {
		t.Fatal(err)
	}
	copied := os.CopyFS(etcd+".backup", os.DirFS(etcd))
	if err := world.lab.Resume(ctx, "c3/control:etcd"); err != nil || copied != nil {
		t.Fatal(err, copied)
	}

	run(t, "kubectl --context c2 -n sample expose deployment whereami --name young --port 80 --overrides '{\"spec\":{\"ipFamilyPolicy\":\"RequireDualStack\"}}'",
		"kubectl service --context c2 -n sample export young",
		"kubectl service --context c1 -n sample unexport mine")
	until(t, curl("-4", "young"), has("c2-"))
	until(t, curl("-6", "young"), has("c2-"))
	until(t, "kubectl --context c2 -n sample get serviceimports -o name", hasNot("/mine"))
	until(t, "kubectl --context c1 -n sample get serviceimports -o name", hasNot("/mine"))
	run(t, "kubectl --context c3 -n default create configmap late")

	events := map[string]func() string{"c1": watch(t, "c1"), "c2": watch(t, "c2")}
	old, young := ask(t, "whereami-cs"), ask(t, "young")
	// Both stand still while the folder is changed, and are started anew by the node's init.
	pids := map[string]string{}
	for _, program := range []string{"kube-apiserver", "etcd"} {
		if err := world.lab.Pause(ctx, "c3/control:"+program); err != nil {
			t.Fatal(err)
		}
		pids[program] = onNode(t, "c3", "control", "pgrep", "-f", "^([^ ]*/)?"+program+"( |$)") // one binary under many names
	}
	for _, move := range [][2]string{{etcd, etcd + ".late"}, {etcd + ".backup", etcd}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(etcd, 0o700); err != nil {
		t.Fatal(err)
	}
	for program, pid := range pids {
		if pid == "" {
			t.Fatalf("no %s runs on the broker", program)
		}
		onNode(t, "c3", "control", append([]string{"kill", "-KILL"}, strings.Fields(pid)...)...)
	}
	until(t, "kubectl --context c3 get --raw /readyz", has("ok"))
	if out, err := world.teller.Output(ctx, "kubectl --context c3 -n default get configmaps -o name"); err != nil || strings.Contains(out, "/late") {
		t.Fatalf("the broker was not restored: %s, %v", out, err)
	}
	until(t, "kubectl --context c3 -n fastnet-c2 get exportedservices c2.young.sample -o jsonpath='{.spec.withdrawn}{.spec.name}'", has("young"))
	until(t, "kubectl --context c3 -n fastnet-c1 get exportedservices -o jsonpath='{range .items[*]}{.spec.name}={.spec.withdrawn} {end}'", hasNot("mine= "))
	// The watches go on: what is withdrawn now is seen.
	old.end(t)
	young.end(t)
	for cluster, events := range events {
		if text := events(); strings.Contains(text, "DELETED") || strings.Contains(text, "mine ") {
			t.Errorf("imports of %s went, or came back:\n%s", cluster, text)
		}
	}
	run(t, "kubectl service --context c2 -n sample unexport young")
	until(t, "kubectl --context c1 -n sample get serviceimports -o name", hasNot("/young"))
}

// TestMemberIsRemoved: one that is taken off the roster is gone from every other, its services and its gateways.
func TestMemberIsRemoved(t *testing.T) {
	stage(t)
	run(t, "kubectl fastnet --context c3 broker remove c2")
	until(t, "kubectl --context c1 -n sample get serviceimports -o name", hasNot("whereami-cs"))
	until(t, "kubectl --context c1 -n fastnet-system get endpoints.fastnet.dev -o name", hasNot("c2."))
	if out, err := world.teller.Output(t.Context(), "kubectl --context c1 -n fastnet-system get endpoints.fastnet.dev -o name"); err != nil || !slices.ContainsFunc(strings.Fields(out), func(name string) bool {
		return strings.Contains(name, "c1.")
	}) {
		t.Errorf("c1's own gateway: %q, %v", out, err)
	}
}
