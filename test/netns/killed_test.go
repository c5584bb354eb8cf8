package netns

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
)

var kills = flag.Int("kills", 7, "how often TestKilledAnywhere kills everything, with each driver")

// TestKilledAnywhere kills every daemon at a random moment after its start, some times with each driver, cleans the nodes as an operator
// would (fastnet-gateway cleanup, fastnet-routeagent cleanup), and compares what the kernel and the state directories hold with what
// they held before the first start.
func TestKilledAnywhere(t *testing.T) {
	for _, driver := range cables.Drivers() {
		t.Run(driver, func(t *testing.T) {
			w := newWorld(t, driver)
			before := map[string]string{}
			for name, node := range w.nodes {
				before[name] = node.State(t)
			}
			w.startAPI(t, "c1", "g1")
			w.startAPI(t, "c2", "g2")
			var whole time.Duration // a start until cables are up
			for n := range *kills + 1 {
				start := time.Now()
				for node := range nodeTable() {
					w.startAgent(node)
				}
				w.startGateway("g1")
				w.startGateway("g2")
				if n == 0 { // undisturbed, so that the API servers know what a start is to find, and we how long one takes
					w.mirror(t, "c1", "g1", "c2")
					w.mirror(t, "c2", "g2", "c1")
					w.waitCable(t, "c1", "g1", v1alpha1.CableUp, 30*time.Second)
					w.waitCable(t, "c2", "g2", v1alpha1.CableUp, 30*time.Second)
					whole = time.Since(start)
				} else {
					// Any moment is as good as any other: nothing is waited for.
					time.Sleep(time.Duration(rand.Int64N(int64(whole))))
				}
				after := time.Since(start)
				for _, process := range w.gateways {
					process.Kill()
				}
				for _, process := range w.agents {
					process.Kill()
				}
				for name, node := range w.nodes {
					w.clean(t, name)
					if diff := cmp.Diff(strings.Split(before[name], "\n"), strings.Split(node.State(t), "\n")); diff != "" {
						t.Fatalf("%s, killed %s after the start and cleaned, is not as it was before (-before +now):\n%s", name, after.Round(time.Millisecond), diff)
					}
					left, err := os.ReadDir(w.stateDir(name))
					if err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
					if len(left) > 0 {
						t.Fatalf("%s, killed %s after the start and cleaned, still has %v", name, after.Round(time.Millisecond), left)
					}
				}
			}
			t.Logf("killed %d times within %s of a start", *kills, whole.Round(time.Millisecond))
		})
	}
}

// clean a node of both daemons.
func (w *world) clean(t *testing.T, node string) {
	t.Helper()
	for _, role := range []string{"gateway-cleanup", "routeagent-cleanup"} {
		if _, gateway := w.gateways[node]; !gateway && role == "gateway-cleanup" {
			continue
		}
		p := w.nodes[node].Start(t, role, "FASTNET_TEST_CONFIG="+text(t, map[string]any{"StateDir": w.stateDir(node)}))
		p.Wait(t, 30*time.Second)
	}
}
