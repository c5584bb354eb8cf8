// Package report is what the benchmarks share: rows with what is wanted of them, a table for people, a JSON file for
// programs, and rounds in which ours and the peers take turns.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// Better says which way a figure improves.
type Better string

const (
	Lower  Better = "lower"
	Higher Better = "higher"
)

// Row is one figure.
type Row struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Better Better  `json:"better"`
	// Wanted is the value that is good enough, nil where the figure is only to be known.
	Wanted *float64 `json:"wanted,omitempty"`
	// Peer is the name of what ours is measured against.
	Peer string `json:"peer,omitempty"`
	// Detail is how the value came about: the figures behind it, their spread, the conditions.
	Detail string `json:"detail,omitempty"`
}

// short tells whether the row misses what is wanted.
func (r Row) short() bool {
	if r.Wanted == nil {
		return false
	}
	if r.Better == Higher {
		return r.Value < *r.Wanted
	}
	return r.Value > *r.Wanted
}

// Report gathers the rows of one benchmark.
type Report struct {
	name     string
	declared []Row // in the order of the table
	rows     map[string]Row
	extra    []string // names of rows that were not declared, in the order they came
}

// New makes the report of `make bench-NAME`. Each declared row has to be given a value by Set before the report is whole.
func New(name string, declared ...Row) *Report {
	return &Report{name: name, declared: declared, rows: map[string]Row{}}
}

// Want declares a row.
func Want(name, unit string, better Better, wanted float64, peer string) Row {
	return Row{Name: name, Unit: unit, Better: better, Wanted: &wanted, Peer: peer}
}

// Set gives a declared row its value, rounded to four significant digits.
func (r *Report) Set(name string, value float64, detail string, args ...any) {
	at := slices.IndexFunc(r.declared, func(d Row) bool { return d.Name == name })
	if at < 0 {
		panic("report: no row " + name + " was declared")
	}
	row := r.declared[at]
	row.Value, row.Detail = round(value), fmt.Sprintf(detail, args...)
	r.rows[name] = row
}

// Add adds a row beyond those that were declared, from which nothing is wanted.
func (r *Report) Add(row Row) {
	row.Value = round(row.Value)
	if _, again := r.rows[row.Name]; !again {
		r.extra = append(r.extra, row.Name)
	}
	r.rows[row.Name] = row
}

// Missing names the declared rows that have no value.
func (r *Report) Missing() []string {
	var missing []string
	for _, d := range r.declared {
		if row, found := r.rows[d.Name]; !found || math.IsNaN(row.Value) || math.IsInf(row.Value, 0) {
			missing = append(missing, d.Name)
		}
	}
	return missing
}

// Rows gives all rows that have a value: the declared ones first, each in order.
func (r *Report) Rows() []Row {
	rows := []Row{}
	for _, d := range r.declared {
		if row, found := r.rows[d.Name]; found {
			rows = append(rows, row)
		}
	}
	for _, name := range r.extra {
		rows = append(rows, r.rows[name])
	}
	// JSON has no way to say "not a number".
	return slices.DeleteFunc(rows, func(row Row) bool { return math.IsNaN(row.Value) || math.IsInf(row.Value, 0) })
}

func (r *Report) path(dir string) string { return filepath.Join(dir, r.name+".json") }

// Write writes the rows to NAME.json in a folder, and gives the file's path.
func (r *Report) Write(dir string) (string, error) {
	text, err := json.MarshalIndent(r.Rows(), "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return r.path(dir), os.WriteFile(r.path(dir), append(text, '\n'), 0o644)
}

// Print prints the table. Rows short of what is wanted are marked, and named at the end, as are those without a value.
func (r *Report) Print(out io.Writer) {
	rows := r.Rows()
	lines := [][]string{{"", "row", "value", "wanted", "against"}}
	var short []string
	for _, row := range rows {
		mark, wanted := "", ""
		if row.Wanted != nil {
			mark, wanted = "ok", map[Better]string{Higher: ">= ", Lower: "<= "}[row.Better]+number(*row.Wanted)
		}
		if row.short() {
			mark = "SHORT"
			short = append(short, row.Name)
		}
		lines = append(lines, []string{mark, row.Name, strings.TrimSpace(number(row.Value) + " " + row.Unit), wanted, row.Peer})
	}
	widths := map[int]int{}
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, line := range lines {
		var text strings.Builder
		for column, cell := range line {
			text.WriteString(cell + strings.Repeat(" ", widths[column]-utf8.RuneCountInString(cell)+2))
		}
		fmt.Fprintln(out, strings.TrimRight(text.String(), " "))
		if i > 0 && rows[i-1].Detail != "" {
			fmt.Fprintf(out, "%s%s\n", strings.Repeat(" ", widths[0]+4), rows[i-1].Detail)
		}
	}
	if missing := r.Missing(); len(missing) > 0 {
		fmt.Fprintf(out, "not measured: %s\n", strings.Join(missing, ", "))
	}
	if len(short) > 0 {
		fmt.Fprintf(out, "short of what is wanted: %s\n", strings.Join(short, ", "))
	} else {
		fmt.Fprintln(out, "every row measured is as wanted")
	}
}

// round keeps four significant digits: more is noise in every figure here.
func round(value float64) float64 {
	if value == 0 || math.IsNaN(value) || math.IsInf(value, 0) {
		return value
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(value))))
	return math.Round(value*scale) / scale
}

func number(value float64) string {
	if math.Abs(value) >= 1000 {
		return fmt.Sprintf("%.0f", value)
	}
	return fmt.Sprintf("%.4g", value)
}

// Sample is a figure measured several times.
type Sample []float64

// Quantile gives the value below which the share q (0 to 1) of the sample lies, NaN of an empty one.
func (s Sample) Quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (sorted[high]-sorted[low])*(at-float64(low))
}

// Median is the middle of the sample.
func (s Sample) Median() float64 { return s.Quantile(0.5) }

// Interval gives the bounds between which, with a confidence of 95 %, the median lies of all that could have been measured: of n
// values in order those that lie as far from both ends as n tosses of a coin stray in 19 of 20 cases. It supposes nothing about how
// the values spread. Fewer than six are too few for it, and give the least and the most.
func (s Sample) Interval() (low, high float64) {
	n := len(s)
	outside := 0                        // values at each end that may be left out
	chance := math.Pow(0.5, float64(n)) // that exactly so many tosses of n are heads
	for sum := chance; n > 0 && sum <= 0.025; sum += chance {
		outside++
		chance *= float64(n-outside+1) / float64(outside)
	}
	if n == 0 {
		return math.NaN(), math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	outside = max(outside, 1)
	return sorted[outside-1], sorted[n-outside]
}

// String is the median with the spread: "12.3 (11.9..14)".
func (s Sample) String() string {
	return fmt.Sprintf("%s (%s..%s)", number(s.Median()), number(s.Quantile(0)), number(s.Quantile(1)))
}

// Over gives the ratios of the rounds of s to those of the other sample. Rounds that were measured one after the other
// share the state of the machine, so their ratios spread less than the figures themselves.
func (s Sample) Over(other Sample) Sample {
	var ratios Sample
	for i := range min(len(s), len(other)) {
		if other[i] != 0 {
			ratios = append(ratios, s[i]/other[i])
		}
	}
	return ratios
}

// Rounds has the named ones take turns, A B C, B C A, ..., and gives the results of each in the order of the rounds. The
// one that fails ends it.
func Rounds[T any](rounds int, names []string, measure func(name string) (T, error)) (map[string][]T, error) {
	results := map[string][]T{}
	for round := range rounds {
		for i := range names {
			name := names[(round+i)%len(names)]
			result, err := measure(name)
			if err != nil {
				return results, fmt.Errorf("%s: %w", name, err)
			}
			results[name] = append(results[name], result)
		}
	}
	return results, nil
}

// Pick makes a sample of one figure of each result.
func Pick[T any](results []T, figure func(T) float64) Sample {
	sample := make(Sample, 0, len(results))
	for _, result := range results {
		sample = append(sample, figure(result))
	}
	return sample
}

// Figures lists a figure of everyone: "a 1.2 (1.1..1.3), b 3.4 (3.3..3.9)".
func Figures(samples map[string]Sample) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(samples)) {
		parts = append(parts, name+" "+samples[name].String())
	}
	return strings.Join(parts, ", ")
}
