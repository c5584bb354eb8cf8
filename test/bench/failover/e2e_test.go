//go:build e2e

package main

import (
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// TestGatewaysGoAndReturn breaks and drains gateways of both clusters in the lab, with every driver: each time all streams go on by
// the other gateway while it is away, and by both when it is back. For how long they were silent is printed and nothing more: the
// benchmark tells that, and this machine's processors have a part in it.
func TestGatewaysGoAndReturn(t *testing.T) {
	for name, join := range map[string][]string{
		"wireguard": {"--driver=wireguard"},
		"ipsec":     {"--driver=ipsec"},
		"vxlan":     {"--driver=vxlan", "--allow-unencrypted"},
	} {
		t.Run(name, func(t *testing.T) {
			pair, tidy, err := clusters.Up(t.Context(), false, join...)
			defer func() {
				if err := tidy(); err != nil {
					t.Error(err)
				}
			}()
			if err != nil {
				t.Fatal(err)
			}
			b := &bench{options: options{trials: 1, flows: 1, patience: time.Minute}, report: report.New("failover")}
			if b.world, err = newWorld(t.Context(), pair); err != nil {
				t.Fatal(err)
			}
			for n, f := range []fault{powerOff, hang, kill} {
				gateway := b.turn(n)
				if _, err := b.spread(gateway); err != nil {
					t.Fatal(err)
				}
				result, err := b.try(f, gateway, b.patience, false)
				if err != nil {
					t.Fatalf("%s of %s: %v", f.name, gateway.Name(), err)
				}
				t.Logf("%s %s", f.name, result)
				if result.endless {
					t.Errorf("%s of %s: streams were not whole before it ended", f.name, gateway.Name())
				}
			}
			for n, way := range ways {
				gateway := b.turn(n)
				if err := b.renew(b.flows); err != nil {
					t.Fatal(err)
				}
				accounts, err := b.drainOnce(gateway, way)
				if err != nil {
					t.Fatalf("%s of %s: %v", way.name, gateway.Name(), err)
				}
				if len(accounts) == 0 {
					t.Error("no streams")
				}
				var lost, received uint64
				for flow, account := range accounts {
					if flow.TCP && account.Connections > 1 {
						t.Errorf("%s of %s: a connection broke", way.name, gateway.Name())
					}
					lost, received = lost+account.Lost, received+account.Received
				}
				t.Logf("%s of %s: %d of %d packets lost", way.name, gateway.Name(), lost, lost+received)
			}
		})
	}
}
