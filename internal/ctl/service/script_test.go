package service_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"sigs.k8s.io/yaml"

	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/internal/mcsapi/mcstest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { testscript.Main(m, apitest.Programs()) }

// What needs no cluster: help, mistakes on the command line.
func TestCommandLine(t *testing.T) { apitest.Scripts(t, "testdata/plain", *update, nil) }

// The plugin against a real API server.
func TestAgainstAPIServer(t *testing.T) {
	crds, err := filepath.Abs("../../../deploy/crds")
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := mcstest.First()
	if err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(t.TempDir(), "first.yaml")
	var text []byte
	for _, definition := range definitions {
		document, err := yaml.Marshal(definition)
		if err != nil {
			t.Fatal(err)
		}
		text = append(append(text, "---\n"...), document...)
	}
	if err := os.WriteFile(first, text, 0o600); err != nil {
		t.Fatal(err)
	}
	apitest.Scripts(t, "testdata/api", *update, map[string]string{
		"C1": apitest.Start(t, "c1", "10.88.0.0/16,fd00:88::/108"), "CRDS": crds, "FIRST": first,
	})
}
