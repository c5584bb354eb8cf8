// Package plan is what the two sides of test/vm must agree on: what the guest is to run, and how it tells what came of it.
package plan

import "strings"

const (
	// File in the guest's initial file system that holds the Plan, in JSON.
	File = "plan.json"
	// Share is the name of the host's folder of kernel and programs, and Folder the guest's for it.
	Share, Folder = "vm", "/run/vm"
	// Env is set in the environment of tests that run in the machine: the kernel has everything, and nothing may be skipped
	// for want of it. The processor is emulated.
	Env = "FASTNET_TEST_VM"
	// Passed is the verdict on a program that exited with 0.
	Passed = "passed"
)

// Plan of a run.
type Plan struct {
	// Modules to load before there is a root, in order, as paths in the initial file system.
	Modules []string
	// Programs to run, one after the other, each with Args.
	Programs []Program
	Args     []string
}

// Program of tests.
type Program struct {
	Package string
	// Path in Folder.
	Path string
	// Dir to run it in, the same on host and guest.
	Dir string
}

// The report is what the programs print, between lines that begin with a byte which no test prints.
const mark = "\x01"

// Begin is the line before a program's output.
func Begin(name string) string { return mark + "begin " + name + "\n" }

// End is the line after it.
func End(name, verdict string) string { return mark + "end " + name + " " + verdict + "\n" }

// Parse tells lines of Begin ("begin", package, "") and End ("end", package, verdict) from output ("", "", "").
func Parse(line string) (word, name, verdict string) {
	rest, ok := strings.CutPrefix(line, mark)
	if !ok {
		return "", "", ""
	}
	fields := strings.SplitN(strings.TrimSpace(rest), " ", 3)
	if len(fields) < 2 {
		return "", "", ""
	}
	return fields[0], fields[1], strings.Join(fields[2:], "")
}
