package fastnet_test

import (
	"flag"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { testscript.Main(m, apitest.Programs()) }

// What needs no cluster: help, mistakes on the command line, files that are no join files.
func TestCommandLine(t *testing.T) { apitest.Scripts(t, "testdata/plain", *update, nil) }

// The plugin against two real API servers, the broker's and a member's.
func TestAgainstAPIServers(t *testing.T) {
	clusters := map[string]string{
		"BROKER": apitest.Start(t, "broker", "10.99.0.0/16"),
		"C1":     apitest.Start(t, "c1", "10.88.0.0/16,fd00:88::/108"),
	}
	// The first finds no broker and leaves none; the others leave theirs.
	for _, dir := range []string{"broker", "member"} {
		t.Run(dir, func(t *testing.T) { apitest.Scripts(t, "testdata/"+dir, *update, clusters) })
	}
}
