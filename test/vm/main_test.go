package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/test/vm/plan"
)

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"9p.ko", "9pnet.ko", "netfs.ko", "9pnet_virtio.ko", "unused.ko"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// As depmod writes it: a module's needs, each before its own.
	index := "9p.ko: 9pnet.ko netfs.ko\n9pnet.ko:\nnetfs.ko:\n9pnet_virtio.ko: 9pnet.ko\nunused.ko:\n"
	if err := os.WriteFile(filepath.Join(folder, "modules.dep"), []byte(index), 0o600); err != nil {
		t.Fatal(err)
	}
	files, order, err := needed(folder, "9pnet_virtio", "9p")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/modules/9pnet.ko", "/modules/9pnet_virtio.ko", "/modules/netfs.ko", "/modules/9p.ko"}
	if diff := cmp.Diff(want, order); diff != "" || len(files) != len(want) || string(files["modules/9p.ko"]) != "9p.ko" {
		t.Errorf("files %v, order -want +got:\n%s", files, diff)
	}
	if _, _, err := needed(folder, "nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("error %v names no module", err)
	}
}

func TestArchiveIsOneThatCpioReads(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		if cpio, err = exec.LookPath("busybox"); err != nil {
			t.Skip("needs cpio or busybox")
		}
	}
	list := exec.Command(cpio, "-t")
	if filepath.Base(cpio) == "busybox" {
		list = exec.Command(cpio, "cpio", "-t")
	}
	list.Stdin = bytes.NewReader(archive(map[string][]byte{"init": []byte("odd"), "modules/a.ko": nil, "modules/b.ko": []byte("even")}))
	out, err := list.Output()
	if want := "dev\ndev/console\ninit\nmodules\nmodules/a.ko\nmodules/b.ko\n"; err != nil || string(out) != want {
		t.Errorf("%v, it lists\n%s", err, out)
	}
}

func TestReportIsToldFromOutput(t *testing.T) {
	for line, want := range map[string][3]string{
		plan.Begin("a/b"):                {"begin", "a/b", ""},
		plan.End("a/b", "exit status 1"): {"end", "a/b", "exit status 1"},
		plan.End("a/b", plan.Passed):     {"end", "a/b", plan.Passed},
		"begin a/b\n":                    {},
		"\x16--- PASS: TestX (0.00s)\n":  {}, // as -test.v=test2json marks it
		"":                               {},
	} {
		word, name, verdict := plan.Parse(line)
		if got := [3]string{word, name, verdict}; got != want {
			t.Errorf("%q is %q, want %q", line, got, want)
		}
	}
}
