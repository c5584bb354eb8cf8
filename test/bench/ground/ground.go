// Package ground is what benchmarks of whole clusters stand on: real API servers, a broker whose members joined it as users'
// clusters do, and the agents and the CoreDNS that are measured, each a process of its own.
package ground

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Ground is a folder and everything that runs in it. Make it with Open.
type Ground struct {
	dir     string
	starter *outsideTest
}

// Open makes a ground with nothing on it.
func Open(ctx context.Context, name string) (*Ground, error) {
	// Libraries that run in this process have nothing to say that an error does not.
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	dir, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return nil, err
	}
	return &Ground{dir: dir, starter: &outsideTest{ctx: ctx, dir: dir}}, nil
}

// Dir is the folder.
func (g *Ground) Dir() string { return g.dir }

// Close ends what runs and removes the folder.
func (g *Ground) Close() {
	g.starter.end()
	os.RemoveAll(g.dir)
}

// Root is the top of this module, in which the program has to run.
func Root(ctx context.Context) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return strings.TrimSpace(string(root)), nil
}

// Build compiles commands of this module, given as paths from its top. Binary is where they are then.
func (g *Ground) Build(ctx context.Context, commands ...string) error {
	defer Progress("building %s", strings.Join(commands, ", "))()
	root, err := Root(ctx)
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", append([]string{"build", "-o", g.Binary("") + "/"}, commands...)...)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// Binary is the path of a command that Build has made.
func (g *Ground) Binary(command string) string {
	return filepath.Join(g.dir, "bin", filepath.Base(command))
}

// Progress says what is being done now. done says how long it took, where that was more than a moment.
func Progress(format string, args ...any) (done func()) {
	what := fmt.Sprintf(format, args...)
	start := time.Now()
	fmt.Printf("  %s\n", what)
	return func() {
		if took := time.Since(start); took > 2*time.Second {
			fmt.Printf("  ... done in %.1f s\n", took.Seconds())
		}
	}
}

// ErrGone ends waiting for what will not come.
var ErrGone = errors.New("the process has ended")

// Await tries until it works.
func Await(ctx context.Context, timeout time.Duration, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrGone) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s until %s: %w", timeout, what, err)
		case <-ticker.C:
		}
	}
}

// outsideTest lets the starter of tests' API servers work in a program. What the starter does not use is not there.
type outsideTest struct {
	testing.TB
	ctx      context.Context
	dir      string
	mu       sync.Mutex
	cleanups []func()
}

type testFailure struct{ error }

func (t *outsideTest) Helper()                  {}
func (t *outsideTest) Context() context.Context { return t.ctx }
func (t *outsideTest) TempDir() string          { return t.dir }
func (t *outsideTest) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}
func (t *outsideTest) Fatal(args ...any) { panic(testFailure{errors.New(fmt.Sprint(args...))}) }
func (t *outsideTest) Fatalf(format string, args ...any) {
	panic(testFailure{fmt.Errorf(format, args...)})
}
func (t *outsideTest) Skip(args ...any) { t.Fatal(args...) }
func (t *outsideTest) Errorf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (t *outsideTest) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
	t.cleanups = nil
}

// failing runs what a test would run, and gives its failure as an error.
func (t *outsideTest) failing(run func()) (err error) {
	defer func() {
		if failure := recover(); failure != nil {
			failed, ours := failure.(testFailure)
			if !ours {
				panic(failure)
			}
			err = failed.error
		}
	}()
	run()
	return nil
}
