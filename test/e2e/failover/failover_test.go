//go:build e2e

// Package failover is a short `make bench-failover` for each tunnel driver: a gateway's node loses its power, its process is killed, it
// is drained, and the clusters are cut off from each other. How long things take is the benchmark's; here they have to heal.
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
	// Gateways that encrypt IPsec in user space, each packet by itself, are slow.
	for driver, interval := range map[string]string{"wireguard": "5ms", "vxlan": "5ms", "ipsec": "10ms"} {
		t.Run(driver, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), "go", "run", "../../bench/failover", "-check", "-driver", driver,
				"-only", "power-off,kill,drain,partition", "-trials", "1", "-flows", "1", "-interval", interval).CombinedOutput()
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
		})
	}
}
