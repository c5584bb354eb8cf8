package main

import (
	"flag"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	programs := apitest.Programs()
	programs["fastnet-agent"] = main
	testscript.Main(m, programs)
}

// withdraw against two real API servers, the broker's and a member's.
func TestWithdraw(t *testing.T) {
	apitest.Scripts(t, "testdata/withdraw", *update, map[string]string{
		"BROKER": apitest.Start(t, "broker", "10.99.0.0/16"),
		"C1":     apitest.Start(t, "c1", "10.88.0.0/16,fd00:88::/108"),
	})
}
