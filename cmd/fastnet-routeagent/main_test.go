package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// The manual page's table of flags is what --help says.
func TestManualHasEveryFlag(t *testing.T) {
	manual, err := os.ReadFile("../../routeagent/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(manual), "| flag | default | |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Count(table, "\n| `--")
	t.Setenv("NODE_NAME", "")
	command := command()
	check := func(flag *pflag.Flag) {
		rows--
		usage, _, _ := strings.Cut(flag.Usage, " (default: ")
		if !strings.Contains(table, fmt.Sprintf("| `--%s` |", flag.Name)) {
			t.Errorf("the manual has no row for --%s", flag.Name)
		}
		text := flag.Usage
		if _, after, ok := strings.Cut(text, ": "); ok && !strings.Contains(text, "(default: ") {
			text = after
		} else {
			text = usage
		}
		if !strings.Contains(table, text) {
			t.Errorf("the manual's row for --%s does not say %q", flag.Name, text)
		}
		if flag.DefValue != "" && flag.DefValue != "[]" && !strings.Contains(table, fmt.Sprintf("`--%s` | `%s` |", flag.Name, flag.DefValue)) {
			t.Errorf("the manual's row for --%s does not have the default %s", flag.Name, flag.DefValue)
		}
	}
	command.Flags().VisitAll(check)
	command.PersistentFlags().VisitAll(check)
	if rows != 0 {
		t.Errorf("the manual has %d rows more than there are flags", rows)
	}
}
