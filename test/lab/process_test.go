package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	const text = "4711 (a) b (c) S 12 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 987654 11 12 18446744073709551615\n"
	got, err := parseStat(4711, text)
	if err != nil {
		t.Fatal(err)
	}
	if got.Start != 987654 || got.state != 'S' || got.parent != 12 {
		t.Errorf("parseStat = %+v", got)
	}
	for _, broken := range []string{"", "4711 (a", "4711 (a) S 1", "4711 (a) S x 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 987654"} {
		if _, err := parseStat(4711, broken); err == nil {
			t.Errorf("parseStat(%q) passes", broken)
		}
	}
}

// TestProcessIdentity: a process that has the id of an earlier one is left alone.
func TestProcessIdentity(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Skip("no sleep here:", err)
	}
	info, err := readProcess(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !info.alive() || info.parent != os.Getpid() {
		t.Errorf("child %+v: alive %v", info, info.alive())
	}
	earlier := process{info.PID, info.Start - 1}
	if earlier.alive() {
		t.Error("an earlier process of that id counts as alive")
	}
	if err := earlier.signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if !info.alive() {
		t.Fatal("the signal for the earlier process ended the later one")
	}
	if err := info.signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = child.Wait() // it says that it was killed
	if info.alive() {
		t.Error("an ended process counts as alive")
	}
	if err := info.signal(unix.SIGKILL); err != nil {
		t.Error("signal to an ended process:", err)
	}
}

func TestInOwnGroup(t *testing.T) {
	for text, want := range map[string]bool{
		"4:memory:/fastnet-lab/c1-worker1/kubepods/x\n0::/\n": true,
		"0::/docker/abc/fastnet-lab/c1-worker1/system\n":      true,
		"0::/fastnet-lab\n":                    true,
		"0::/user.slice/fastnet-lab.service\n": false,
		"0::/fastnet-labs/x\n":                 false,
		"":                                     false,
	} {
		if got := inOwnGroup(text); got != want {
			t.Errorf("inOwnGroup(%q) = %v", text, got)
		}
	}
}

// TestThreadsComeBack: whichever thread was in another network namespace, the main one included, by which a process is taken for one of a
// namespace, is in its own afterwards.
func TestThreadsComeBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	own, err := inode("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
			t.Fatal(err)
		}
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if space, err := inode(thread); err == nil && space != own {
			t.Errorf("%s is in another network namespace", thread)
		}
	}
	if all, err := processes(func(folder string) bool {
		return inNetwork(folder, own) && filepath.Base(folder) == strconv.Itoa(os.Getpid())
	}); err != nil || len(all) > 0 {
		t.Errorf("this process is listed: %v, %v", all, err)
	}
}
