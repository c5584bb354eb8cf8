package lab

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); -update writes it anew:\n%s", file, diff)
	}
}

// TestCgroupPlan goes from the mountinfo of each kind of machine to the commands that would set up a node's groups.
func TestCgroupPlan(t *testing.T) {
	for _, mode := range []cgroupMode{cgroupV1, cgroupHybrid, cgroupV2} {
		t.Run(string(mode), func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", "mountinfo-"+string(mode)+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			groups, err := parseCgroups(string(text))
			if err != nil {
				t.Fatal(err)
			}
			if groups.mode != mode {
				t.Errorf("mode %s, want %s", groups.mode, mode)
			}
			var plan strings.Builder
			for _, step := range groups.plan("c1-worker1") {
				if step.Copy == "" {
					fmt.Fprintf(&plan, "mkdir %s\n", step.Path)
				} else {
					fmt.Fprintf(&plan, "cat %s > %s\n", step.Copy, step.Path)
				}
			}
			for _, file := range groups.procsFiles("c1-worker1") {
				fmt.Fprintf(&plan, "echo 0 > %s\n", file)
			}
			golden(t, "cgroup-"+string(mode)+".txt", plan.String())
		})
	}
	if _, err := parseCgroups("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n"); err == nil {
		t.Error("a machine without control groups passes")
	}
}

// TestCgroupApply carries out a plan on plain folders.
func TestCgroupApply(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"cpuset/cpuset.cpus": "0-1\n", "cpuset/cpuset.mems": "0\n", "memory/tasks": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	groups := cgroups{mode: cgroupV1, separate: []string{root + "/cpuset", root + "/memory"},
		hierarchy: map[string][]string{root + "/cpuset": {"cpuset"}, root + "/memory": {"memory"}}}
	for range 2 { // the second finds everything there
		if err := applyCgroups(groups.plan("c1-control")); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"} {
		got, err := os.ReadFile(filepath.Join(root, "cpuset/fastnet-lab/c1-control/system", name))
		if err != nil || string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
	if got := len(groups.groups("")); got != 2 {
		t.Errorf("%d top groups, want 2", got)
	}
}
