package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

func TestValidateReportsEveryProblem(t *testing.T) {
	c, err := parse([]string{"--cluster-id", "Up", "--broker-kubeconfig=", "--http-address=", "--log-level", "loud"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Validate()
	for _, want := range []string{"--cluster-id", "--broker-kubeconfig", "--http-address", "--log-level"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestDefaultsNeedOnlyAnID(t *testing.T) {
	c, err := parse([]string{"--cluster-id", "eu.west"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := parse([]string{"east"}, io.Discard); err == nil {
		t.Error("a stray argument is no error")
	}
}

// The manual names every flag.
func TestManualNamesEveryFlag(t *testing.T) {
	var help strings.Builder
	if _, err := parse([]string{"--help"}, &help); err == nil {
		t.Fatal("--help is no help")
	}
	manual, err := os.ReadFile("../../agent/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(help.String()) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, "--") && !strings.Contains(string(manual), "| `"+name) {
			t.Errorf("the manual does not name %s", name)
		}
	}
}
