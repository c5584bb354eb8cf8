package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestCounts(t *testing.T) {
	var out bytes.Buffer
	r := newRun(&out)
	for _, line := range strings.Split(strings.TrimSpace(`
{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestGood/sub"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"it broke\n"}
{"Action":"output","Package":"p","Test":"TestBad/sub","Output":"    x_test.go:7: 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestBad/sub"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestNot","Output":"    x_test.go:1: needs root\n"}
{"Action":"output","Package":"p","Test":"TestNot","Output":"--- SKIP: TestNot\n"}
{"Action":"skip","Package":"p","Test":"TestNot"}
{"Action":"fail","Package":"p","Elapsed":1}
{"Action":"build-output","ImportPath":"q","Output":"x.go:1: undefined: y\n"}
{"Action":"fail","Package":"q"}
not JSON`), "\n") {
		r.line([]byte(line))
	}
	if want := (counts{passed: 1, failed: 2, skipped: 1}); r.total != want {
		t.Errorf("counted %+v, want %+v", r.total, want)
	}
	for _, want := range []string{"it broke", "undefined: y", "not JSON", "FAIL p "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "noise") {
		t.Errorf("output of a test that passed was printed:\n%s", out.String())
	}
	if len(r.skipped) != 1 || !strings.Contains(r.skipped[0], "needs root") {
		t.Errorf("skipped %q, want the reason", r.skipped)
	}
	if got, want := strings.Join(r.failed, "\n"), "failed: p TestBad/sub\n    x_test.go:7: 1, want 2\nfailed: p TestBad\nfailed: q \n    x.go:1: undefined: y"; got != want {
		t.Errorf("failed:\n%s\nwant:\n%s", got, want)
	}
}
