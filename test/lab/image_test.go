package lab

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestArchiveNames(t *testing.T) {
	own, err := imageOf("fastnet.dev/pause:dev", "pause", []byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	archive := func(name, text string) []byte {
		var out bytes.Buffer
		files := tar.NewWriter(&out)
		if err := files.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := files.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for name, test := range map[string]struct {
		archive []byte
		want    string // "" for an error
	}{
		"ours":        {own, "fastnet.dev/pause:dev"},
		"docker save": {archive("manifest.json", `[{"RepoTags":["nginx:1.27","web:dev"]}]`), "nginx:1.27 web:dev"},
		"skopeo": {archive("./index.json", `{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"a.example/b:c"}}]}`),
			"a.example/b:c"},
		"no name":  {archive("index.json", `{"manifests":[{}]}`), ""},
		"no image": {archive("bin/sh", "x"), ""},
		"no tar":   {[]byte(strings.Repeat("x", 2048)), ""},
	} {
		names, err := archiveNames(bytes.NewReader(test.archive))
		if (err == nil) != (test.want != "") || strings.Join(names, " ") != test.want {
			t.Errorf("%s: archiveNames = %q, %v; want %q", name, names, err, test.want)
		}
	}
}

func TestFullName(t *testing.T) {
	for name, want := range map[string]string{
		"nginx":                 "docker.io/library/nginx:latest",
		"nginx:1.27":            "docker.io/library/nginx:1.27",
		"someone/web":           "docker.io/someone/web:latest",
		"localhost/web":         "localhost/web:latest",
		"example.org:5000/web":  "example.org:5000/web:latest",
		"fastnet.dev/agent:dev": "fastnet.dev/agent:dev",
		"a.example/b@sha256:00": "a.example/b@sha256:00",
	} {
		if got := fullName(name); got != want {
			t.Errorf("fullName(%q) = %q, want %q", name, got, want)
		}
	}
}

// TestLinkTree: blobs and layers are shared between nodes, databases are not.
func TestLinkTree(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	write := func(name string, mode os.FileMode) {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("text"), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("content/blobs/sha256/ab", 0o444)
	write("meta/meta.db", 0o600)
	write("snapshots/1/fs/bin/su", 0o755)
	if err := os.Symlink("su", filepath.Join(from, "snapshots/1/fs/bin/sh")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(from, "snapshots/1/fs/tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(from, "snapshots/1/fs/tmp"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := linkTree(from, to); err != nil {
		t.Fatal(err)
	}
	same := func(name string) bool {
		a, err1 := os.Lstat(filepath.Join(from, name))
		b, err2 := os.Lstat(filepath.Join(to, name))
		return err1 == nil && err2 == nil && os.SameFile(a, b)
	}
	var shared []string
	for _, name := range []string{"content/blobs/sha256/ab", "meta/meta.db", "snapshots/1/fs/bin/su", "snapshots/1/fs/bin/sh"} {
		if same(name) {
			shared = append(shared, name)
		}
	}
	if want := []string{"content/blobs/sha256/ab", "snapshots/1/fs/bin/su", "snapshots/1/fs/bin/sh"}; !slices.Equal(shared, want) {
		t.Errorf("shared files %q, want %q", shared, want)
	}
	info, err := os.Stat(filepath.Join(to, "snapshots/1/fs/tmp"))
	if err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("tmp of a layer: %v, %v", info.Mode(), err)
	}
}
