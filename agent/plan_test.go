package agent

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"

	"github.com/fastnet-io/fastnet/internal/broker"
)

var update = flag.Bool("update", false, "rewrite the golden plans and scripts")

// TestPlans reads testdata/plan/*.txtar: the objects of a cluster and of the broker, and the plan that they lead to. The
// first line of the comment is the cluster ID, "(broker silent)" where the broker has not answered yet, "(awaits c2)" where c2 has not.
func TestPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no plans", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			text := func(name string) []byte {
				for _, f := range archive.Files {
					if f.Name == name {
						return f.Data
					}
				}
				return nil
			}
			first, _, _ := strings.Cut(string(archive.Comment), "\n")
			cluster, silent := strings.CutSuffix(first, " (broker silent)")
			cluster, awaited, _ := strings.Cut(strings.TrimSuffix(cluster, ")"), " (awaits ")
			both := []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			w.server(cluster, both, decode(t, w.scheme, text("cluster.yaml"))...)
			w.server("broker", both, decode(t, w.scheme, text("broker.yaml"))...)
			a := w.agent(t, cluster)
			if silent {
				a.config.Records = records(func() broker.View { return broker.View{} })
			}
			if view := a.config.Records.View(); awaited != "" {
				view.Awaited = []string{awaited}
				a.config.Records = records(func() broker.View { return view })
			}
			_, p, err := a.plan(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := p.String()
			if *update {
				if err := setFile(archive, "plan.txt", got, file); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(got, planByScope(t, a)); diff != "" {
				t.Errorf("the plans of the scopes are not that of everything (-everything +scopes):\n%s", diff)
			}
			if diff := cmp.Diff(string(text("plan.txt")), got); diff != "" {
				t.Errorf("the plan differs (-want +got); -update writes it\n%s", diff)
			}
		})
	}
}

// planByScope plans scope by scope, and puts the plans together.
func planByScope(t *testing.T, a *Agent) string {
	t.Helper()
	var all Plan
	for _, of := range slices.SortedFunc(slices.Values(a.scopes()), compareKeys) {
		_, p, err := a.plan(t.Context(), &of)
		if err != nil {
			t.Fatal(err)
		}
		all.add(*p)
	}
	return all.String()
}

// add puts the plan of another scope beside this one.
func (p *Plan) add(other Plan) {
	p.Publish = other.Publish
	p.ExportedServices = append(p.ExportedServices, other.ExportedServices...)
	p.ExportedEndpoints = append(p.ExportedEndpoints, other.ExportedEndpoints...)
	p.PublishedEndpoints = append(p.PublishedEndpoints, other.PublishedEndpoints...)
	p.Services = append(p.Services, other.Services...)
	p.Slices = append(p.Slices, other.Slices...)
	p.Imports = append(p.Imports, other.Imports...)
	p.Mirrors = append(p.Mirrors, other.Mirrors...)
	p.Exports = append(p.Exports, other.Exports...)
	p.GlobalExports = append(p.GlobalExports, other.GlobalExports...)
	p.Warnings = append(p.Warnings, other.Warnings...)
	for _, problem := range other.Problems {
		if !slices.Contains(p.Problems, problem) { // the roster is read for every scope
			p.Problems = append(p.Problems, problem)
		}
	}
	slices.Sort(p.Problems)
}

func setFile(archive *txtar.Archive, name, text, path string) error {
	for i, f := range archive.Files {
		if f.Name == name {
			archive.Files[i].Data = []byte(text)
			return os.WriteFile(path, txtar.Format(archive), 0o644)
		}
	}
	return errors.New("no file " + name)
}
