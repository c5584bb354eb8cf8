// Package story tells the first day of a user with two clusters, as commands that the user types: what the demo shows and
// what the end-to-end tests assert are the same steps.
package story

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/lab"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// Teller runs commands against the clusters of a lab, c1 and c2, and says what it ran and what came out.
type Teller struct {
	// Out takes the commands with their output.
	Out io.Writer
	// Took notes how long what a user would wait for took.
	Took []Measure

	families []family // that the clusters have, IPv4 first
	dir      string   // holds the manifests and invitations that commands name
	env      []string // with the built programs first in PATH, and both clusters as contexts of KUBECONFIG
}

// Measure is a time that a story took note of.
type Measure struct {
	What string
	Time time.Duration
}

// New is a teller for the running lab, with its files in dir, which the caller removes. dist holds the built programs.
func New(l *lab.Lab, dist, dir string, out io.Writer) (*Teller, error) {
	files, err := fs.Sub(manifests, "manifests")
	if err != nil {
		return nil, err
	}
	if err := os.CopyFS(dir, files); err != nil {
		return nil, err
	}
	var kubeconfigs []string
	for _, c := range l.Clusters() {
		kubeconfigs = append(kubeconfigs, c.Kubeconfig())
	}
	var families []family
	for _, pods := range l.Clusters()[0].Pods() {
		families = append(families, familyOf(pods.Addr()))
	}
	return &Teller{Out: out, families: families, dir: dir, env: append(os.Environ(),
		"PATH="+strings.Join([]string{filepath.Join(dist, "bin"), filepath.Join(dist, "lab", "bin"), os.Getenv("PATH")}, ":"),
		"KUBECONFIG="+strings.Join(kubeconfigs, ":"),
	)}, nil
}

// Title says what comes next.
func (t *Teller) Title(text string) {
	fmt.Fprintf(t.Out, "\n== %s\n", text)
}

// Command is a command line, run by a shell, that the caller starts.
func (t *Teller) Command(ctx context.Context, line string) *exec.Cmd {
	command := exec.CommandContext(ctx, "sh", "-c", line)
	command.Dir, command.Env = t.dir, t.env
	return command
}

// Output runs a command line as a shell would and gives what it printed on standard output, saying nothing. Its error has
// what the command printed on standard error.
func (t *Teller) Output(ctx context.Context, line string) (string, error) {
	command := t.Command(ctx, line)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", line, err, out, stderr.Bytes())
	}
	return string(out), err
}

// Run runs a command line, shown with all it prints as it prints it.
func (t *Teller) Run(ctx context.Context, line string) error {
	fmt.Fprintf(t.Out, "\n$ %s\n", line)
	command := t.Command(ctx, line)
	command.Stdout, command.Stderr = t.Out, t.Out
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return nil
}

// patience is how long Until waits; far longer than anything should take, on a machine that is busy too.
const patience = 90 * time.Second

// Until runs a command line again and again until its output is what check wants, then shows the command with that output,
// once. It gives the time that took. A command that fails is one whose output check does not want.
func (t *Teller) Until(ctx context.Context, line string, check func(out string) error) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		out, err := t.Output(ctx, line)
		if ctx.Err() != nil {
			fmt.Fprintf(t.Out, "\n$ %s\n%s", line, out)
			return 0, fmt.Errorf("%s: not within %v: %w", line, patience, errors.Join(last, context.Cause(ctx)))
		}
		if err == nil {
			err = check(out)
		}
		if err == nil {
			took := time.Since(start)
			fmt.Fprintf(t.Out, "\n$ %s\n%s", line, out)
			return took, nil
		}
		last = fmt.Errorf("%w\nthe output was:\n%s", err, out)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (t *Teller) note(what string, took time.Duration) { t.Took = append(t.Took, Measure{what, took}) }

// has is a check that the output holds all of these.
func has(parts ...string) func(string) error {
	return func(out string) error {
		for _, part := range parts {
			if !strings.Contains(out, part) {
				return fmt.Errorf("no %q in it", part)
			}
		}
		return nil
	}
}

// hasNot is a check that the output holds none of these.
func hasNot(parts ...string) func(string) error {
	return func(out string) error {
		for _, part := range parts {
			if strings.Contains(out, part) {
				return fmt.Errorf("%q is in it", part)
			}
		}
		return nil
	}
}

// lines is a check that the output is these lines, in any order.
func lines(want ...string) func(string) error {
	return func(out string) error {
		got := strings.Fields(out)
		slices.Sort(got)
		want := slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	}
}

// Answer is what the server whereami answers.
type Answer struct{ Pod, Namespace, Node, PodIP, Caller string }

func (a Answer) inCluster(cluster string) error {
	if !strings.HasPrefix(a.Node, cluster+"-") { // the lab's nodes bear the cluster's name
		return fmt.Errorf("answered from %s, want %s", a.Node, cluster)
	}
	return nil
}

func (a Answer) saw(callers []string) error {
	if !slices.Contains(callers, a.Caller) {
		return fmt.Errorf("the server saw %s, want the caller's own address, of %q", a.Caller, callers)
	}
	return nil
}

// answers is a check of one or more answers of whereami, each.
func answers(check func(Answer) error) func(string) error {
	return func(out string) error {
		decoder := json.NewDecoder(strings.NewReader(out))
		for n := 0; ; n++ {
			var a Answer
			if err := decoder.Decode(&a); errors.Is(err, io.EOF) && n > 0 {
				return nil
			} else if err != nil {
				return err
			}
			if err := check(a); err != nil {
				return fmt.Errorf("%w: %+v", err, a)
			}
		}
	}
}

// from is a check that the answers come from pods of a cluster, and that the server saw one of the caller's own addresses.
func from(cluster string, callers ...string) func(string) error {
	return answers(func(a Answer) error { return errors.Join(a.inCluster(cluster), a.saw(callers)) })
}

// inCluster is a check that the answers come from pods of a cluster.
func inCluster(cluster string) func(string) error {
	return answers(func(a Answer) error { return a.inCluster(cluster) })
}

// inClient is a command line that runs in the client pod of a cluster.
func inClient(cluster, line string) string {
	return "kubectl --context " + cluster + " -n sample exec deploy/client -- " + line
}
