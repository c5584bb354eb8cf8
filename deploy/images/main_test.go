package main

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// writeCoreDNS writes the archive of the CoreDNS image, with some bytes for a program, and opens it.
func writeCoreDNS(t *testing.T) v1.Image {
	t.Helper()
	dist := t.TempDir()
	for _, dir := range []string{"bin", "images"} {
		if err := os.Mkdir(filepath.Join(dist, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dist, "bin", "coredns"), []byte("the program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := run(dist, "", []string{"coredns"}); err != nil {
		t.Fatal(err)
	}
	archive, err := os.Open(filepath.Join(dist, "images", "coredns.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	dir := t.TempDir()
	each(t, archive, func(header *tar.Header, content io.Reader) {
		path := filepath.Join(dir, filepath.FromSlash(header.Name))
		if header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			var text []byte
			if text, err = io.ReadAll(content); err == nil {
				err = os.WriteFile(path, text, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%d images in the archive (%v)", len(manifest.Manifests), err)
	}
	if name := manifest.Manifests[0].Annotations["io.containerd.image.name"]; name != "fastnet.dev/coredns:dev" {
		t.Errorf("the image's name is %q", name)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// each visits the entries of a tar archive.
func each(t *testing.T, archive io.Reader, visit func(*tar.Header, io.Reader)) {
	t.Helper()
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		visit(header, r)
	}
}

// TestCoreDNSConfig: what the image says of itself is what CoreDNS's says: entrypoint, user by number, working directory; and
// the ports.
func TestCoreDNSConfig(t *testing.T) {
	file, err := writeCoreDNS(t).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := file.Config
	if !slices.Equal(c.Entrypoint, []string{"/coredns"}) || len(c.Cmd) > 0 || c.User != "65532:65532" || c.WorkingDir != "/" || len(c.Volumes) > 0 {
		t.Errorf("entrypoint %q, arguments %q, user %q, working directory %q, volumes %v", c.Entrypoint, c.Cmd, c.User, c.WorkingDir, c.Volumes)
	}
	want := map[string]struct{}{"53/tcp": {}, "53/udp": {}, "9153/tcp": {}, "8080/tcp": {}, "8181/tcp": {}}
	for port := range want {
		if _, found := c.ExposedPorts[port]; !found {
			t.Errorf("port %s is missing", port)
		}
	}
	if len(c.ExposedPorts) != len(want) {
		t.Errorf("ports are %v", c.ExposedPorts)
	}
}

// TestCoreDNSFiles: the program may bind port 53 by its file, whoever runs it, and nothing in the image wants to be written.
func TestCoreDNSFiles(t *testing.T) {
	layers, err := writeCoreDNS(t).Layers()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*tar.Header{}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		each(t, content, func(header *tar.Header, _ io.Reader) { found[strings.TrimSuffix(header.Name, "/")] = header })
		if err := content.Close(); err != nil {
			t.Fatal(err)
		}
	}
	program := found["coredns"]
	if program == nil || program.Mode != 0o755 || program.Uid != 0 {
		t.Fatalf("the program is %+v", program)
	}
	// struct vfs_cap_data of linux/capability.h.
	var attribute struct {
		Magic uint32
		Data  [2]struct{ Permitted, Inheritable uint32 }
	}
	text := program.PAXRecords["SCHILY.xattr.security.capability"]
	if n, err := binary.Decode([]byte(text), binary.LittleEndian, &attribute); err != nil || n != len(text) {
		t.Fatalf("security.capability is %q: %v", text, err)
	}
	const (
		revision2Effective = 0x02000001
		netBindService     = 10
	)
	if attribute.Magic != revision2Effective || attribute.Data[0].Permitted != 1<<netBindService || attribute.Data[0].Inheritable != 0 ||
		attribute.Data[1].Permitted != 0 || attribute.Data[1].Inheritable != 0 {
		t.Errorf("security.capability is %+v", attribute)
	}
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "etc/passwd", "tmp"} {
		if found[name] == nil {
			t.Errorf("no %s in the image", name)
		}
	}
	for name, header := range found {
		if header.Uid != 0 || header.Mode&0o022 != 0 && header.Typeflag != tar.TypeSymlink && name != "tmp" {
			t.Errorf("%s can be written by user %d: mode %o, owner %d", name, nonroot, header.Mode, header.Uid)
		}
	}
}

// TestCoreDNSDockerfile: the Dockerfile says what CoreDNS's own of that release says of the image, and all that the archive
// says.
func TestCoreDNSDockerfile(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/coredns/coredns").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(recipes, func(r recipe) bool { return r.name == "coredns" })
	ours, own := instructions(recipes[i].dockerfile()), instructions(string(text))
	for _, keyword := range []string{"USER", "WORKDIR", "ENTRYPOINT", "CMD", "VOLUME", "ENV"} {
		if !slices.Equal(ours[keyword], own[keyword]) {
			t.Errorf("%s is %q, and CoreDNS's is %q", keyword, ours[keyword], own[keyword])
		}
	}
	exposed := ours["EXPOSE"]
	for _, port := range own["EXPOSE"] {
		for _, port := range strings.Fields(port) {
			if !strings.Contains(port, "/") {
				port += "/tcp"
			}
			if !slices.Contains(exposed, port) {
				t.Errorf("CoreDNS's exposes %s, and ours %q", port, exposed)
			}
		}
	}
	if !slices.Equal(exposed, recipes[i].ports) {
		t.Errorf("exposes %q, and the archive %q", exposed, recipes[i].ports)
	}
	const capability = "setcap cap_net_bind_service=+ep /coredns"
	if !slices.Contains(ours["RUN"], capability) || !slices.Contains(own["RUN"], capability) {
		t.Errorf("runs %q, and CoreDNS's %q: want both to run %q", ours["RUN"], own["RUN"], capability)
	}
}

// instructions gives the arguments of a Dockerfile's instructions, by keyword.
func instructions(dockerfile string) map[string][]string {
	of := map[string][]string{}
	for line := range strings.Lines(dockerfile) {
		keyword, rest, found := strings.Cut(strings.TrimSpace(line), " ")
		if found && !strings.HasPrefix(keyword, "#") {
			of[keyword] = append(of[keyword], rest)
		}
	}
	return of
}
