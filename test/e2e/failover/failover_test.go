//go:build e2e

// Package failover is a short `make bench-failover` for each tunnel driver: all that it breaks, once each. How long things take is the
// benchmark's; here they have to heal. `make soak` has it a hundred times each.
package failover

import (
	"flag"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/lab"
)

var (
	trials   = flag.Int("trials", 1, "faults of each kind")
	marginal = flag.Duration("marginal", 10*time.Second, "how long packets are lost")
)

func TestFailover(t *testing.T) {
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	// Gateways that encrypt IPsec in user space, each packet by itself, are slow.
	for driver, interval := range map[string]string{"wireguard": "5ms", "vxlan": "5ms", "ipsec": "10ms"} {
		t.Run(driver, func(t *testing.T) {
			bench := exec.CommandContext(t.Context(), "go", "run", "../../bench/failover", "-check", "-driver", driver,
				"-trials", strconv.Itoa(*trials), "-marginal", marginal.String(), "-flows", "1", "-interval", interval)
			bench.Stdout, bench.Stderr = t.Output(), t.Output()
			if err := bench.Run(); err != nil {
				t.Error(err)
			}
		})
	}
}
