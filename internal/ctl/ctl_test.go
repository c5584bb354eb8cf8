package ctl_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/internal/ctl"
)

func TestMainExitCodesAndErrorLines(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		fail error
		code int
		want string
	}{
		{"done", nil, nil, 0, ""},
		{"failed", nil, errors.New("no such device"), 1, "error: no such device\n"},
		{"failed twice", nil, errors.Join(errors.New("one"), errors.Join(errors.New("two"), errors.New("three"))), 1, "error: one\nerror: two\nerror: three\n"},
		{"a message of several lines is one", nil, errors.New("bad:\n  line"), 1, "error: bad: line\n"},
		{"usage", nil, fmt.Errorf("join: %w", ctl.Usagef("no %s", "file")), 2, "error: join: no file\nSee 'tool --help'.\n"},
		{"unknown flag", []string{"--no"}, nil, 2, "error: unknown flag: --no\nSee 'tool --help'.\n"},
		{"surplus argument", []string{"x"}, nil, 2, "error: unknown command \"x\" for \"tool\"\nSee 'tool --help'.\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			root := &cobra.Command{Use: "tool", Args: ctl.Subcommands, RunE: func(*cobra.Command, []string) error { return test.fail }}
			code := ctl.Main(t.Context(), root, genericiooptions.IOStreams{Out: &out, ErrOut: &errOut}, append([]string{}, test.args...))
			if code != test.code || errOut.String() != test.want || out.Len() > 0 {
				t.Errorf("code %d, stderr %q, stdout %q; want code %d, stderr %q", code, &errOut, &out, test.code, test.want)
			}
		})
	}
}

// A step names itself at once, and then says every two seconds how long it has taken and what it waits for.
func TestProgressAndAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		start := time.Now()
		err := ctl.Progress{Out: &out}.Step(t.Context(), "Wait", func(ctx context.Context, note func(string)) error {
			return ctl.Await(ctx, time.Minute, note, func(context.Context) (string, error) {
				if time.Since(start) > 4500*time.Millisecond {
					return "", nil
				}
				return "agent 0/1", nil
			})
		})
		want := "* Wait\n  2s: agent 0/1\n  4s: agent 0/1\n"
		if err != nil || out.String() != want {
			t.Errorf("error %v, progress %q, want %q", err, &out, want)
		}
	})
}

func TestAwaitEnds(t *testing.T) {
	silent := func(string) {}
	for _, test := range []struct {
		name  string
		check func(context.Context) (string, error)
		want  string
	}{
		{"when time is up, with what was left", func(context.Context) (string, error) { return "two pods", nil }, "not done after 1s: two pods"},
		{"at an error", func(context.Context) (string, error) { return "", errors.New("forbidden") }, "forbidden"},
		{"when time is up within a check", func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }, "not done after 1s: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if err := ctl.Await(t.Context(), time.Second, silent, test.check); err == nil || err.Error() != test.want {
					t.Errorf("error %v, want %q", err, test.want)
				}
			})
		})
	}
	t.Run("not at an error that passes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			err := ctl.Await(t.Context(), time.Minute, silent, func(context.Context) (string, error) {
				if tries++; tries < 3 {
					return "", fmt.Errorf("list: %w", &net.OpError{Op: "dial", Err: errors.New("refused")})
				}
				return "", nil
			})
			if err != nil || tries != 3 {
				t.Errorf("error %v after %d tries", err, tries)
			}
		})
	})
	t.Run("when the user gives up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := ctl.Await(ctx, time.Minute, silent, func(context.Context) (string, error) { return "x", nil })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want canceled", err)
			}
		})
	})
}

func TestTable(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	conditions := []metav1.Condition{
		{Type: "Valid", Status: metav1.ConditionTrue, Reason: "Valid"},
		{Type: "Conflict", Status: metav1.ConditionTrue, Reason: "PortConflict,TypeConflict"},
	}
	rows := [][]string{{
		"web", ctl.ConditionCell(conditions, "Valid", metav1.ConditionTrue), ctl.ConditionCell(conditions, "Ready", metav1.ConditionTrue),
		ctl.ConditionCell(conditions, "Conflict", metav1.ConditionFalse), ctl.Age(metav1.NewTime(now.Add(-90*time.Second)), now),
		ctl.List(ctl.Ports([]mcsv1beta1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}, {Protocol: "UDP", Port: 53}})),
		ctl.List(ctl.Clusters([]mcsv1beta1.ClusterStatus{{Cluster: "c2"}, {Cluster: "c1"}})), ctl.List(nil), ctl.Age(metav1.Time{}, now),
	}}
	var out strings.Builder
	if err := ctl.Table(&out, "EXPORT\tVALID\tREADY\tCONFLICT\tAGE\tPORTS\tCLUSTERS\tIPS\tSINCE", rows); err != nil {
		t.Fatal(err)
	}
	want := `EXPORT   VALID   READY   CONFLICT                           AGE   PORTS               CLUSTERS   IPS   SINCE
web      True    -       True (PortConflict,TypeConflict)   90s   http:80/TCP,53/UDP   c1,c2      -     -
`
	if diff := cmp.Diff(normal(want), normal(out.String())); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// normal makes every run of spaces one: columns are the tabwriter's business.
func normal(text string) []string {
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}
