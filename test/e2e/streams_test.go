//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/story"
)

// streams are connections from c1's client pod to c2, one a family, that the server sends a line over every 100 ms; and beside
// them the name asked again and again.
type streams struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup
	lines  [2]atomic.Int64
	ended  [2]atomic.Bool // a connection that ends by itself has broken

	mu      sync.Mutex
	answers map[string]int // what the name gave, and how often
	ending  bool
}

// flowing is how long a stalled connection may take to move again; TCP doubles its waits while the way is gone.
const flowing = 30 * time.Second

func holdStreams(t *testing.T, ctx context.Context, teller *story.Teller) *streams {
	t.Helper()
	const name = "whereami-cs.sample.svc.clusterset.local"
	ctx, cancel := context.WithCancel(ctx)
	s := &streams{cancel: cancel, answers: map[string]int{}}
	t.Cleanup(func() { s.stop() })
	for n, flag := range []string{"-4", "-6"} {
		command := teller.Command(ctx, fmt.Sprintf("exec kubectl --context c1 -n sample exec deploy/client -- curl -sS -N %s http://%s/stream", flag, name))
		out, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		s.wait.Go(func() {
			for scanner := bufio.NewScanner(out); scanner.Scan(); {
				s.lines[n].Add(1)
			}
			s.ended[n].Store(true)
			command.Wait() // how it ended is told by whether it was asked to
		})
	}
	s.wait.Go(func() {
		for ctx.Err() == nil {
			out, err := teller.Output(ctx, "kubectl --context c1 -n sample exec deploy/client -- sh -c 'dig +short +tries=2 "+name+" A; dig +short +tries=2 "+name+" AAAA'")
			s.mu.Lock()
			if !s.ending {
				if err != nil {
					out = err.Error()
				}
				s.answers[strings.Join(strings.Fields(out), " ")]++
			}
			s.mu.Unlock()
		}
	})
	s.expectFlow(t, "at the start")
	return s
}

// expectFlow waits until each connection has brought ten more lines.
func (s *streams) expectFlow(t *testing.T, when string) {
	t.Helper()
	deadline := time.Now().Add(flowing)
	for n := range s.lines {
		for start := s.lines[n].Load(); s.lines[n].Load() < start+10; <-time.After(20 * time.Millisecond) {
			if s.ended[n].Load() || time.Now().After(deadline) {
				t.Fatalf("%s: the connection over IPv%d brings nothing (ended: %v)", when, 4+2*n, s.ended[n].Load())
			}
		}
	}
}

// end checks that the connections still stand and that the name gave one answer all the while.
func (s *streams) end(t *testing.T) {
	t.Helper()
	for n := range s.lines {
		if s.ended[n].Load() {
			t.Errorf("the connection over IPv%d broke", 4+2*n)
		}
	}
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answers) != 1 {
		t.Errorf("the name gave %d different answers: %v", len(s.answers), s.answers)
	}
	for answer, times := range s.answers {
		if times < 10 || len(strings.Fields(answer)) != 2 {
			t.Errorf("the name gave %q %d times, want two addresses, ten times at least", answer, times)
		}
	}
}

func (s *streams) stop() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.cancel()
	s.wait.Wait()
}

// killAndAwait kills a daemon with SIGKILL, by its process ID, and waits until another is ready in its place. Without a role
// it looks for the daemon on every node of the cluster.
func killAndAwait(t *testing.T, ctx context.Context, d daemon) {
	t.Helper()
	killed := false
	for _, n := range world.lab.Cluster(d.cluster).Nodes() {
		if d.role != "" && n.Role() != d.role {
			continue
		}
		out, err := n.Command(ctx, "pgrep", "-x", d.program[:min(len(d.program), 15)]).Output()
		if err != nil {
			continue // pgrep's way to say that there is none
		}
		for _, pid := range strings.Fields(string(out)) {
			if out, err := n.Command(ctx, "kill", "-KILL", pid).CombinedOutput(); err != nil {
				t.Fatalf("kill %s: %v\n%s", d.program, err, out)
			}
			killed = true
		}
	}
	if !killed {
		t.Fatalf("no %s to kill in %s %s", d.program, d.cluster, d.role)
	}
	selector := map[string]string{"fastnet-agent": "deployment/fastnet-agent", "fastnet-gateway": "daemonset/fastnet-gateway", "fastnet-routeagent": "daemonset/fastnet-routeagent"}[d.program]
	deadline := time.Now().Add(60 * time.Second)
	// The kubelet needs a moment to see that the process died: first the restart, then readiness.
	for {
		out, err := world.teller.Output(ctx, "kubectl --context "+d.cluster+" -n fastnet-system rollout status "+selector+" --timeout 5s")
		if err == nil && restarted(ctx, d) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v does not come back: %v\n%s", d, err, out)
		}
	}
}

// restarted says whether the daemon runs again.
func restarted(ctx context.Context, d daemon) bool {
	for _, n := range world.lab.Cluster(d.cluster).Nodes() {
		if d.role != "" && n.Role() != d.role {
			continue
		}
		out, err := n.Command(ctx, "pgrep", "-x", d.program[:min(len(d.program), 15)]).Output()
		if _, failure := strconv.Atoi(strings.TrimSpace(string(out))); err == nil && failure == nil {
			return true
		}
	}
	return false
}
