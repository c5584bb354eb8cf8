//go:build e2e

// Package failover is a short `make bench-failover` for each tunnel driver: a gateway's node loses its power, its process is killed, it
// is drained, and the clusters are cut off from each other. How long things take is the benchmark's; here they have to heal. IPsec has its
// test in package drivers, with one gateway a cluster: four that encrypt in user space leave two processors no time for anything else.
package failover

import (
	"os/exec"
	"testing"

	"github.com/fastnet-io/fastnet/test/lab"
)

func TestFailover(t *testing.T) {
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	for _, driver := range []string{"wireguard", "vxlan"} {
		t.Run(driver, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), "go", "run", "../../bench/failover", "-check", "-driver", driver,
				"-only", "power-off,kill,drain,partition", "-trials", "1", "-flows", "1", "-interval", "5ms").CombinedOutput()
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
		})
	}
}
