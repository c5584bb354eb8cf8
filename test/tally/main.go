// Command tally reads the output of `go test -json` and prints what a person wants of it: a line a package, the whole output
// of what failed, and last the count. A test counts with its subtests as one; a package that does not build, or that dies
// outside a test, counts as one failure.
//
//	go test -json ./... | tally [-append FILE]
//
// With -append the counts are added to FILE as a line "PASSED FAILED SKIPPED", and what failed, with a few lines of why, to
// FILE.failed. It exits with 1 when anything failed, and when no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"
)

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

type counts struct{ passed, failed, skipped int }

type run struct {
	out     io.Writer
	total   counts
	of      map[string]*counts  // by package
	output  map[string][]string // by package and top-level test; kept until it is known whether it passed
	own     map[string][]string // what a test or subtest says at lines of code, first and last few lines, by package and whole name
	skipped []string
	failed  []string // and why, in short
}

func main() {
	file := flag.String("append", "", "add the counts to this `file`")
	flag.Parse()
	r := newRun(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		r.line(lines.Bytes())
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
	for _, line := range r.skipped {
		fmt.Println(line)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.total.passed, r.total.failed, r.total.skipped)
	if *file != "" {
		err := appendTo(*file, fmt.Sprintf("%d %d %d\n", r.total.passed, r.total.failed, r.total.skipped))
		if err == nil && len(r.failed) > 0 {
			err = appendTo(*file+".failed", strings.Join(r.failed, "\n")+"\n")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "tally:", err)
			os.Exit(1)
		}
	}
	if r.total.failed > 0 || r.total.passed == 0 {
		os.Exit(1)
	}
}

func newRun(out io.Writer) *run {
	return &run{out: out, of: map[string]*counts{}, output: map[string][]string{}, own: map[string][]string{}}
}

func (r *run) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		fmt.Fprintf(r.out, "%s\n", line) // the go command's own words
		return
	}
	if e.Package == "" {
		e.Package = e.ImportPath
	}
	top, _, isSub := strings.Cut(e.Test, "/")
	key := e.Package + " " + top
	if r.of[e.Package] == nil {
		r.of[e.Package] = &counts{}
	}
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		if name := e.Package + " " + e.Test; said.MatchString(e.Output) || e.Test == "" {
			if own := r.own[name]; len(own) == 2*few {
				r.own[name] = append(own[:few], own[few+1:]...)
			}
			r.own[name] = append(r.own[name], e.Output)
		}
	case "pass", "fail", "skip":
		name := e.Package + " " + e.Test
		if own := r.own[name]; e.Action == "fail" && (e.Test != "" || r.of[e.Package].failed == 0) {
			r.failed = append(r.failed, "failed: "+name)
			for _, line := range own {
				r.failed = append(r.failed, "    "+shorten(strings.TrimSpace(line)))
			}
		}
		delete(r.own, name)
		if isSub {
			return
		}
		if e.Test == "" {
			r.packageEnds(e)
		} else {
			r.testEnds(e, key)
		}
	}
}

// said is output at a line of code: what a test logs, and its errors.
var said = regexp.MustCompile(`^\s*\w+\.go:\d+: `)

// few lines from the beginning and as many from the end say why a test failed.
const few = 4

func shorten(line string) string {
	const most = 400
	if len(line) > most {
		return strings.ToValidUTF8(line[:most], "") + "..."
	}
	return line
}

func (r *run) testEnds(e event, key string) {
	c := r.of[e.Package]
	switch e.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skipped++
		r.skipped = append(r.skipped, "skipped: "+e.Package+" "+e.Test+": "+reason(r.output[key]))
	case "fail":
		c.failed++
		fmt.Fprint(r.out, strings.Join(r.output[key], ""))
	}
	delete(r.output, key)
}

func (r *run) packageEnds(e event) {
	c := r.of[e.Package]
	if e.Action == "fail" {
		if c.failed == 0 {
			c.failed++
		}
		r.dump(e.Package)
	}
	if ran := c.passed + c.failed + c.skipped; ran > 0 {
		word := map[bool]string{true: "ok  ", false: "FAIL"}[c.failed == 0]
		fmt.Fprintf(r.out, "%s %-70s %4d tests %7.1f s\n", word, e.Package, ran, e.Elapsed)
	}
	r.total.passed += c.passed
	r.total.failed += c.failed
	r.total.skipped += c.skipped
	*c = counts{}
}

// dump prints what is left of a failed package's output: build errors, panics, tests that never ended.
func (r *run) dump(name string) {
	var keys []string
	for key := range r.output {
		if strings.HasPrefix(key, name+" ") || strings.HasPrefix(key, name+".test]") {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	for _, key := range keys {
		fmt.Fprint(r.out, strings.Join(r.output[key], ""))
		delete(r.output, key)
	}
}

// reason is the message of t.Skip: the last line of a test's output that is not the runner's.
func reason(output []string) string {
	for i := len(output) - 1; i >= 0; i-- {
		line := strings.TrimSpace(output[i])
		if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			return line
		}
	}
	return "no reason given"
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
