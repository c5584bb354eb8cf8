package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
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
	"syscall"

	"golang.org/x/sync/errgroup"
)

// imageFiles is the image archives that `make images` has written; `up` puts all of them on every node. Other archives
// beside them, such as a root file system kept for the next build, are passed over.
func (l *Lab) imageFiles() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(l.config.Dist, "images", "*.tar"))
	slices.Sort(files)
	return slices.DeleteFunc(files, func(file string) bool {
		_, err := namesInFile(file)
		return err != nil
	}), err
}

func namesInFile(file string) ([]string, error) {
	archive, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	names, err := archiveNames(archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return names, nil
}

// fillNodes puts the images into the containerd folder of every node that has none yet, before its containerd starts.
//
// Importing unpacks, which costs the more the more nodes there are. So images are imported once, into the folder of a
// containerd that runs for that alone; each node gets a copy with hard links. Links are safe: neither containerd nor an
// overlay file system ever writes to a blob or to a layer once it is there. Its databases are copied.
func (l *Lab) fillNodes(ctx context.Context) error {
	var empty []*Node
	for _, c := range l.clusters {
		for _, n := range c.nodes {
			if _, err := os.Stat(n.imagesReady()); err != nil {
				empty = append(empty, n)
			}
		}
	}
	if len(empty) == 0 {
		return nil
	}
	template, err := l.imageTemplate(ctx)
	if err != nil {
		return fmt.Errorf("prepare images: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for _, n := range empty {
		group.Go(func() error {
			target := filepath.Join(n.Var(), "lib/containerd")
			if err := os.RemoveAll(target); err != nil {
				return err
			}
			if err := linkTree(template, target); err != nil {
				return fmt.Errorf("copy images to %s: %w", n.name, err)
			}
			return os.WriteFile(n.imagesReady(), nil, 0o644)
		})
	}
	return group.Wait()
}

func (n *Node) imagesReady() string {
	return filepath.Join(n.Var(), strings.TrimPrefix(imagesReady, "/var/"))
}

// imageTemplate imports all images and gives the containerd folder they are in.
func (l *Lab) imageTemplate(ctx context.Context) (string, error) {
	files, err := l.imageFiles()
	if err != nil {
		return "", err
	}
	const name = "images"
	// An earlier `up` may have been killed while it was at this.
	if err := endAll(ctx, func() ([]processInfo, error) { return groupProcesses(name) }); err != nil {
		return "", err
	}
	folder := filepath.Join(StateDir, name)
	if err := os.RemoveAll(folder); err != nil {
		return "", err
	}
	store := filepath.Join(folder, "var/lib/containerd")
	if err := applyCgroups(l.groups.plan(name)); err != nil {
		return "", err
	}
	spec := nodeSpec{
		Hostname: "fastnet-lab-images", Var: filepath.Join(folder, "var"), Procs: l.groups.procsFiles(name),
		Files: []nodeFile{{Path: "/etc/containerd/config.toml", Mode: 0o644, Text: containerdConfig}},
		Programs: []program{{Name: "containerd", Path: "/usr/bin/containerd",
			Args: []string{"--config=/etc/containerd/config.toml"}}},
	}
	init, err := l.startInit(spec, filepath.Join(folder, "init.json"), "")
	if err != nil {
		return "", err
	}
	defer init.Kill()
	enter := []string{"nsenter", fmt.Sprintf("--target=%d", init.Pid), "--mount", "--pid", "--wd", "--", "ctr", "-n", "k8s.io"}
	err = poll(ctx, pollInterval, func() (bool, error) {
		return exec.CommandContext(ctx, enter[0], append(slices.Clone(enter[1:]), "version")...).Run() == nil, nil
	})
	if err != nil {
		return "", err
	}
	load := func(image io.Reader, what string) error {
		cmd := exec.CommandContext(ctx, enter[0], append(slices.Clone(enter[1:]), "images", "import", "-")...)
		cmd.Stdin = image
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("import %s: %w: %s", what, err, lastLine(out))
		}
		return nil
	}
	pause, err := os.ReadFile(filepath.Join(l.config.Dist, "lab", "pause"))
	if err != nil {
		return "", err
	}
	archive, err := imageOf(pauseImage, "pause", pause)
	if err != nil {
		return "", err
	}
	if err := load(bytes.NewReader(archive), "pause"); err != nil {
		return "", err
	}
	for i, file := range files {
		image, err := os.Open(file)
		if err != nil {
			return "", err
		}
		err = load(image, file)
		image.Close()
		if err != nil {
			return "", err
		}
		l.config.Progress(fmt.Sprintf("images: %d of %d imported (%s)", i+1, len(files), filepath.Base(file)))
	}
	// Its databases are whole on disk once it has ended.
	if err := init.Kill(); err != nil {
		return "", err
	}
	_, err = init.Wait()
	return store, err
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// linkTree copies a containerd folder: files are hard links, but for databases, which change.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(path, from)
		switch {
		case entry.IsDir():
			if err := os.MkdirAll(target, 0o700); err != nil {
				return err
			}
			// Layers hold folders of any owner and mode, and those are what a container sees.
			return copyOwner(info, target)
		case strings.HasSuffix(path, ".db"):
			return copyFile(path, target, info.Mode())
		default:
			return os.Link(path, target)
		}
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// imageOf is an image archive (OCI layout) that holds a single static program.
func imageOf(name, binary string, text []byte) ([]byte, error) {
	var layer bytes.Buffer
	files := tar.NewWriter(&layer)
	if err := files.WriteHeader(&tar.Header{Name: binary, Mode: 0o755, Size: int64(len(text))}); err != nil {
		return nil, err
	}
	if _, err := files.Write(text); err != nil {
		return nil, err
	}
	if err := files.Close(); err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	add := func(name string, text []byte) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			return err
		}
		_, err := out.Write(text)
		return err
	}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	blob := func(kind string, text []byte) (descriptor, error) {
		sum := fmt.Sprintf("%x", sha256.Sum256(text))
		return descriptor{MediaType: kind, Digest: "sha256:" + sum, Size: len(text)}, add("blobs/sha256/"+sum, text)
	}
	document := func(value any) []byte {
		text, _ := json.Marshal(value) // maps and strings: cannot fail
		return text
	}
	const oci = "application/vnd.oci.image."
	layerBlob, err1 := blob(oci+"layer.v1.tar", layer.Bytes())
	config, err2 := blob(oci+"config.v1+json", document(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Entrypoint": []string{"/" + binary}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerBlob.Digest}},
	}))
	manifest, err3 := blob(oci+"manifest.v1+json", document(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": []descriptor{layerBlob},
	}))
	_, tag, _ := strings.Cut(path.Base(name), ":")
	manifest.Annotations = map[string]string{
		"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
	}
	err := errors.Join(err1, err2, err3,
		add("index.json", document(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})),
		add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), out.Close())
	return archive.Bytes(), err
}

// archiveNames reads the names of the images in an archive: OCI layout or the older one of docker save.
func archiveNames(archive io.Reader) ([]string, error) {
	var names []string
	files := tar.NewReader(archive)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("no image archive: %w", err)
		}
		switch path.Clean(header.Name) {
		case "index.json":
			var index struct {
				Manifests []struct{ Annotations map[string]string }
			}
			if err := json.NewDecoder(files).Decode(&index); err != nil {
				return nil, fmt.Errorf("index.json: %w", err)
			}
			for _, manifest := range index.Manifests {
				name := manifest.Annotations["io.containerd.image.name"]
				if name == "" {
					name = manifest.Annotations["org.opencontainers.image.ref.name"]
				}
				if name != "" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		case "manifest.json":
			var manifests []struct{ RepoTags []string }
			if err := json.NewDecoder(files).Decode(&manifests); err != nil {
				return nil, fmt.Errorf("manifest.json: %w", err)
			}
			for _, manifest := range manifests {
				for _, name := range manifest.RepoTags {
					if !slices.Contains(names, name) {
						names = append(names, name)
					}
				}
			}
		}
	}
	if len(names) == 0 {
		return nil, errors.New("the archive names no image: neither index.json nor manifest.json with a name")
	}
	return names, nil
}

// LoadImage puts the image of an archive (OCI layout or docker save) on every node of the lab, under its own name and,
// if as is not empty, under that name too, so that a manifest which names any public image runs without a registry.
func (l *Lab) LoadImage(ctx context.Context, file, as string) error {
	names, err := namesInFile(file)
	if err != nil {
		return err
	}
	if as != "" && len(names) != 1 {
		return fmt.Errorf("%s holds %d images (%s): --as needs an archive of one", file, len(names), strings.Join(names, ", "))
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, c := range l.clusters {
		for _, n := range c.nodes {
			group.Go(func() error {
				if err := n.loadImage(ctx, file, names[0], as); err != nil {
					return fmt.Errorf("%s/%s: %w", c.name, n.role, err)
				}
				return nil
			})
		}
	}
	return group.Wait()
}

func (n *Node) loadImage(ctx context.Context, file, name, as string) error {
	archive, err := os.Open(file)
	if err != nil {
		return err
	}
	defer archive.Close()
	load := n.Command(ctx, "ctr", "images", "import", "-")
	load.Stdin = archive
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s: %w: %s", file, err, lastLine(out))
	}
	if as == "" || fullName(as) == fullName(name) {
		return nil
	}
	if out, err := n.Command(ctx, "ctr", "images", "tag", "--force", fullName(name), fullName(as)).CombinedOutput(); err != nil {
		return fmt.Errorf("name the image %s: %w: %s", as, err, lastLine(out))
	}
	return nil
}

// fullName is an image's name as containerd keeps it: nginx is docker.io/library/nginx:latest.
func fullName(name string) string {
	first, _, slash := strings.Cut(name, "/")
	switch {
	case !slash:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		name = "docker.io/" + name
	}
	if last := path.Base(name); !strings.Contains(last, ":") && !strings.Contains(last, "@") {
		name += ":latest"
	}
	return name
}

func copyOwner(info fs.FileInfo, target string) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no owner known", target)
	}
	if err := os.Lchown(target, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	return os.Chmod(target, info.Mode())
}
