package service_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
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
	apitest.Scripts(t, "testdata/api", *update, map[string]string{"C1": apitest.Start(t, "c1", "10.88.0.0/16,fd00:88::/108"), "CRDS": crds})
}
