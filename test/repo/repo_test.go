// Package repo holds the project's conventions as tests: who may import whom, that every package says what it is, that what
// is generated is current, and that no text speaks of what is not the project's.
package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fastnet-io/fastnet/"

// root is the top of the tree, seen from this package's folder.
const root = "../.."

type goPackage struct {
	ImportPath, Name, Doc, Dir string
	Imports, GoFiles           []string
	Deps                       []string
}

func (p goPackage) path() string { return strings.TrimPrefix(p.ImportPath, module) }

// packages of the root module, with what their files that go into a binary import.
func packages(t *testing.T) []goPackage {
	t.Helper()
	command := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Dir,Imports,GoFiles,Deps", "./...")
	command.Dir = root
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func within(path string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return path == f || strings.HasPrefix(path, f+"/") })
}

// TestImportDirections: the parts never import each other, they meet in API objects.
func TestImportDirections(t *testing.T) {
	parts := []string{"plugin", "agent", "gateway", "routeagent"}
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			own := strings.HasPrefix(imported, module)
			name := strings.TrimPrefix(imported, module)
			for _, part := range parts {
				for _, other := range parts {
					if part != other && within(p.path(), part) && own && within(name, other) {
						t.Errorf("%s imports %s: parts meet in API objects only", p.path(), name)
					}
				}
			}
			switch {
			case within(p.path(), "api") && !within(imported, "k8s.io/apimachinery") && strings.Contains(imported, "."):
				t.Errorf("%s imports %s: api imports apimachinery alone", p.path(), imported)
			case within(p.path(), append(parts, "internal", "api")...) && own && within(name, "cmd", "test", "coredns-build"):
				t.Errorf("%s imports %s: nothing imports the mains or the tests", p.path(), name)
			case within(p.path(), "internal/clusterset") && (own && !within(name, "api", "internal/clusterset") ||
				within(imported, "k8s.io/client-go", "sigs.k8s.io/controller-runtime", "github.com/vishvananda/netlink")):
				t.Errorf("%s imports %s: the domain is pure", p.path(), imported)
			}
		}
	}
}

// TestPlanIsPure: any plan.go touches neither the kernel nor an API server.
func TestPlanIsPure(t *testing.T) {
	walk(t, func(path string) bool { return filepath.Base(path) == "plan.go" }, func(path, text string) {
		for _, impure := range []string{"vishvananda/netlink", "k8s.io/client-go", "controller-runtime", "coreos/go-iptables", "wgctrl\"", "\"os\"", "\"net/http\""} {
			if head, _, _ := strings.Cut(text, "\n)"); strings.Contains(head, impure) {
				t.Errorf("%s imports %s: a plan is a function of its snapshot", path, impure)
			}
		}
	})
}

// TestThePluginIsLean: it is linked into CoreDNS, which has no use for a kernel.
func TestThePluginIsLean(t *testing.T) {
	for _, p := range packages(t) {
		if !within(p.path(), "plugin") {
			continue
		}
		for _, dep := range p.Deps {
			if within(dep, "github.com/vishvananda/netlink", "golang.zx2c4.com/wireguard", "sigs.k8s.io/controller-runtime", "helm.sh") {
				t.Errorf("%s depends on %s", p.path(), dep)
			}
		}
	}
}

// TestPackageDocs: every package says what it is.
func TestPackageDocs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.path())
		}
	}
}

// TestManualPages: each part has a README in the form of a manual page.
func TestManualPages(t *testing.T) {
	for _, part := range []string{"plugin/lighthouse", "agent", "gateway", "routeagent", "coredns-build", "cmd/kubectl-service", "cmd/kubectl-fastnet", "deploy/helm", "deploy/images", "test/lab"} {
		text, err := os.ReadFile(filepath.Join(root, part, "README.md"))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, section := range []string{"## Name", "## Description"} {
			if !strings.Contains(string(text), section) {
				t.Errorf("%s/README.md has no section %q", part, section)
			}
		}
	}
}

// TestGeneratedFiles: what `make gen` writes is what the tree holds. It runs on a copy of the folders that it reads.
func TestGeneratedFiles(t *testing.T) {
	fresh := t.TempDir()
	for _, name := range []string{"api", "deploy"} {
		if err := os.CopyFS(filepath.Join(fresh, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum", "Makefile"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(fresh, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("make", "--no-print-directory", "gen")
	command.Dir = fresh
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("make gen: %v\n%s", err, out)
	}
	err := filepath.WalkDir(fresh, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(fresh, path)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not current: run `make gen` (%v)", name, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLinks: what a document points at, by a path in the tree, is there.
func TestLinks(t *testing.T) {
	walk(t, func(path string) bool { return filepath.Ext(path) == ".md" }, func(path, text string) {
		for rest := text; ; {
			_, after, found := strings.Cut(rest, "](")
			if !found {
				return
			}
			target, _, _ := strings.Cut(after, ")")
			rest = after
			target, _, _ = strings.Cut(target, "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), target)); err != nil {
				t.Errorf("%s points at %s: %v", path, target, err)
			}
		}
	})
}

// walk calls visit with every file of the tree that match takes.
func walk(t *testing.T, match func(path string) bool, visit func(path, text string)) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "dist") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !match(path) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			seen++
			visit(path, string(text))
		}
		return err
	})
	if err != nil || seen == 0 {
		t.Errorf("looked at %d files (%v)", seen, err)
	}
}
