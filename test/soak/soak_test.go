//go:build e2e

// Package soak loads the real CoreDNS binary with lighthouse, beside a real API server, more than it can bear and for longer than
// tests like to wait: overload with garbage, names too big for a packet, an API server that is gone, reloads under load.
// With the flags as they are by default it takes seconds and shows that all of it works; `make soak-dns` has the real figures.
package soak

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

var (
	overloadTime = flag.Duration("overload", 3*time.Second, "for how long to overload the server")
	outageTime   = flag.Duration("outage", 5*time.Second, "for how long to stop the API server")
	reloads      = flag.Int("reloads", 20, "how often to reload, at least 20")
	rate         = flag.Int("rate", 1000, "queries a second while the API server is stopped and during reloads")
	rowsFile     = flag.String("rows", "", "write the results to this `file`, as rows of a benchmark")
)

// row is a result, in the form that all benchmarks of the project have.
type row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Unit   string   `json:"unit"`
	Better string   `json:"better"`
	Wanted *float64 `json:"wanted,omitempty"`
	Detail string   `json:"detail,omitempty"`
}

// misses tells whether the value falls short of what is wanted.
func (r row) misses() bool {
	return r.Wanted != nil && (r.Better == "lower" && r.Value > *r.Wanted || r.Better == "higher" && r.Value < *r.Wanted)
}

var rows []row

// atMost and atLeast note a result, and fail the test where it falls short of what is wanted.
func atMost(t *testing.T, name string, value float64, unit string, wanted float64, detail string) {
	t.Helper()
	result(t, row{name, value, unit, "lower", &wanted, detail})
}

func atLeast(t *testing.T, name string, value float64, unit string, wanted float64, detail string) {
	t.Helper()
	result(t, row{name, value, unit, "higher", &wanted, detail})
}

// noted is a result of which nothing is wanted.
func noted(name string, value float64, unit, better, detail string) {
	rows = append(rows, row{Name: name, Value: value, Unit: unit, Better: better, Detail: detail})
}

func result(t *testing.T, r row) {
	t.Helper()
	rows = append(rows, r)
	if r.misses() {
		t.Errorf("%s is %.4g %s, want %.4g or %s (%s)", r.Name, r.Value, r.Unit, *r.Wanted, r.Better, r.Detail)
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if err := report(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		code = 1
	}
	os.Exit(code)
}

// report prints the results as a table, and writes them to the file.
func report() error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "result\tvalue\tunit\twanted\t\t")
	for _, r := range rows {
		wanted, mark := "", ""
		if r.Wanted != nil {
			wanted = fmt.Sprintf("%s %.4g", map[string]string{"lower": "<=", "higher": ">="}[r.Better], *r.Wanted)
		}
		if r.misses() {
			mark = "SHORT  "
		}
		fmt.Fprintf(table, "%s\t%.4g\t%s\t%s\t%s%s\n", r.Name, r.Value, r.Unit, wanted, mark, r.Detail)
	}
	if err := table.Flush(); err != nil || *rowsFile == "" {
		return err
	}
	if short := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !r.misses() }); len(short) > 0 {
		var names []string
		for _, r := range short {
			names = append(names, r.Name)
		}
		fmt.Println("short of what is wanted:", strings.Join(names, ", "))
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(*rowsFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(*rowsFile, append(text, '\n'), 0o644)
}
