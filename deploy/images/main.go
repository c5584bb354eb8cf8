// Command images makes the container images without an engine: it puts each recipe's root file system together, and writes it
// as an OCI archive that containerd, podman and skopeo read. The same recipes give the Dockerfiles.
//
//	images [-dist DIR] [NAME...]      write DIR/images/NAME.tar for each image, or for those named
//	images -dockerfiles DIR           write the Dockerfiles
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const rootsPath = "/etc/ssl/certs/ca-certificates.crt"

func main() {
	dist := flag.String("dist", "dist", "the `folder` with bin/, where images/ is written")
	dockerfiles := flag.String("dockerfiles", "", "write the Dockerfiles to this `folder`, and no images")
	flag.Parse()
	if err := run(*dist, *dockerfiles, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(dist, dockerfiles string, names []string) error {
	if dockerfiles != "" {
		return writeDockerfiles(dockerfiles)
	}
	for _, name := range names {
		if !slices.ContainsFunc(recipes, func(r recipe) bool { return r.name == name }) {
			return fmt.Errorf("no image %q", name)
		}
	}
	if err := os.MkdirAll(filepath.Join(dist, "images"), 0o755); err != nil {
		return err
	}
	for _, r := range recipes {
		if len(names) > 0 && !slices.Contains(names, r.name) {
			continue
		}
		start := time.Now()
		file := filepath.Join(dist, "images", r.name+".tar")
		if err := r.write(dist, file); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		fmt.Printf("%-28s %-30s %6.1f MB %6.1f s\n", r.repository()+":dev", file, float64(info.Size())/1e6, time.Since(start).Seconds())
	}
	return nil
}

func writeDockerfiles(dir string) error {
	for _, r := range recipes {
		if r.lab {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, r.name+".Dockerfile"), []byte(r.dockerfile()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// layerOptions favour a quick build: these archives are read once, on this machine.
var layerOptions = []tarball.LayerOption{tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestSpeed)}

// write puts the image together and writes the archive, replacing an older one only when all is well.
func (r recipe) write(dist, file string) error {
	var layers []v1.Layer
	if len(r.debian) > 0 {
		base, err := debianBase(dist, r.debian)
		if err != nil {
			return err
		}
		layer, err := tarball.LayerFromFile(base, layerOptions...)
		if err != nil {
			return err
		}
		layers = append(layers, layer)
	}
	own, err := r.ownLayer(dist)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(own)), nil }, layerOptions...)
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), append(layers, layer)...)
	if err != nil {
		return err
	}
	config := v1.Config{
		User: fmt.Sprintf("%d:%d", r.user, r.user), WorkingDir: "/", ExposedPorts: map[string]struct{}{},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	for _, port := range r.ports {
		config.ExposedPorts[port] = struct{}{}
	}
	if r.binary != "" {
		config.Entrypoint = []string{"/" + r.binary}
	}
	if image, err = mutate.Config(image, config); err != nil {
		return err
	}
	described, err := image.ConfigFile()
	if err != nil {
		return err
	}
	described = described.DeepCopy()
	described.OS, described.Architecture = "linux", runtime.GOARCH
	if image, err = mutate.ConfigFile(image, described); err != nil {
		return err
	}
	return writeArchive(image, r.repository()+":dev", file)
}

// ownLayer is what the recipe adds to the packages, as a tar archive: our binary with its capability, certificates, links,
// and, where there is no Debian below, the users that programs look up.
func (r recipe) ownLayer(dist string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(header tar.Header, content []byte) error {
		header.Size, header.Format = int64(len(content)), tar.FormatPAX
		if err := w.WriteHeader(&header); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	var problems []error
	for _, dir := range []string{"etc/", "tmp/", "var/", "var/run/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		problems = append(problems, add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}, nil))
	}
	problems = append(problems,
		add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
			[]byte("root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")),
		add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nnonroot:x:65532:\n")))
	if r.roots {
		roots, err := os.ReadFile(rootsPath)
		if err != nil {
			return nil, fmt.Errorf("%w (install the package ca-certificates)", err)
		}
		for _, dir := range []string{"etc/ssl/", "etc/ssl/certs/"} {
			problems = append(problems, add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil))
		}
		problems = append(problems, add(tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(rootsPath, "/"), Mode: 0o644}, roots))
	}
	for name, target := range r.links {
		problems = append(problems, add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil))
	}
	if r.binary != "" {
		binary, err := os.ReadFile(filepath.Join(dist, "bin", r.binary))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w (run make build first)", err)
		}
		if err != nil {
			return nil, err
		}
		header := tar.Header{Typeflag: tar.TypeReg, Name: r.binary, Mode: 0o755}
		if r.bindCapability {
			header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": bindCapability()}
		}
		problems = append(problems, add(header, binary))
	}
	return out.Bytes(), errors.Join(append(problems, w.Close())...)
}

// bindCapability is the file attribute security.capability that `setcap cap_net_bind_service=+ep` writes: the kernel's struct
// vfs_cap_data, version 2 with the effective flag, then the permitted and inheritable sets, each in two halves.
func bindCapability() string {
	const (
		version2, effective = 0x02000000, 0x000001
		netBindService      = 1 << 10
	)
	var b []byte
	for _, word := range []uint32{version2 | effective, netBindService, 0, 0, 0} {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	return string(b)
}

// debianBase is a root file system of the packages as a tar file. It is kept under dist, named by what went into it: making
// one takes seconds and the network. Manual pages and the like stay out, the licences stay in.
func debianBase(dist string, packages []string) (string, error) {
	arguments := []string{
		"--quiet", "--variant=extract", "--include=" + strings.Join(packages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/info/*", "--dpkgopt=path-exclude=/usr/share/perl*", "--dpkgopt=path-exclude=/usr/lib/*/gconv/*",
		"--dpkgopt=path-exclude=/usr/lib/x86_64-linux-gnu/perl*", "--dpkgopt=path-include=/usr/share/doc/*/copyright", "bookworm",
	}
	sum := sha256.Sum256([]byte(strings.Join(arguments, " ")))
	file := filepath.Join(dist, "images", "base-"+hex.EncodeToString(sum[:6])+".tar")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	fmt.Printf("unpacking Debian packages, up to a minute: %s and what they need\n", strings.Join(packages, " "))
	unfinished := file + ".part"
	command := exec.Command("mmdebstrap", append(arguments, unfinished, "--format=tar")...)
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, output)
	}
	return file, os.Rename(unfinished, file)
}

// writeArchive writes an OCI image layout as one tar file. containerd takes the image's name from the annotation.
func writeArchive(image v1.Image, name, file string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".layout-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	index, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := index.AppendImage(image, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": path.Base(strings.Replace(name, ":", "/", 1)),
	})); err != nil {
		return err
	}
	unfinished, err := os.Create(file + ".part")
	if err != nil {
		return err
	}
	w := tar.NewWriter(unfinished)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), unfinished.Close()); err != nil {
		return err
	}
	return os.Rename(file+".part", file)
}
