//go:build e2e

// Package drivers has clusters meet by the tunnel drivers that are not the default, from our images and charts, beside either mode of
// kube-proxy. What each does with packets is tested in network namespaces.
package drivers

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

func TestDrivers(t *testing.T) {
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	for _, c := range []struct {
		name, shown string
		join        []string
		families    lab.Families
		proxy       lab.ProxyMode
	}{
		// Over IPv6 alone: where gateways have both families, their packets go over IPv4.
		{"ipsec", "ipsec", []string{"--driver=ipsec"}, lab.IPv6, lab.ProxyIPTables},
		{"vxlan", "vxlan", []string{"--driver=vxlan", "--allow-unencrypted"}, lab.Dual, lab.ProxyNFTables},
	} {
		t.Run(c.name, func(t *testing.T) {
			dist, err := filepath.Abs("../../../dist")
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			var told bytes.Buffer
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("what was told:\n%s", told.String())
				}
				if err := lab.Down(context.WithoutCancel(ctx), func(string) {}); err != nil {
					t.Error(err)
				}
			})
			config := lab.DefaultConfig(dist)
			config.Workers, config.Families, config.Proxy, config.IPMasq, config.Install, config.Join = 1, c.families, c.proxy, true, true, c.join
			clusters, err := lab.Up(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			teller, err := story.New(clusters, dist, filepath.Join(t.TempDir(), "story"), &told)
			if err != nil {
				t.Fatal(err)
			}
			up := func(out string) error {
				if !strings.Contains(out, c.shown) || !strings.Contains(out, " up ") {
					return fmt.Errorf("no cable of %s is up:\n%s", c.shown, out)
				}
				return nil
			}
			connected := func(when string) {
				t.Helper()
				for _, cluster := range []string{"c1", "c2"} {
					took, err := teller.Until(ctx, "kubectl fastnet --context "+cluster+" show connections", up)
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%s: the cable of %s is up after %.1f s", when, cluster, took.Seconds())
				}
			}
			connected("joined")
			// kube-proxy masquerades, in either mode, and so does the CNI plugin: pods are seen with their own addresses all the same.
			out, err := clusters.Node("c2", "worker1").Command(ctx, "nft", "list", "tables").CombinedOutput()
			if err != nil || strings.Contains(string(out), "kube-proxy") != (c.proxy == lab.ProxyNFTables) {
				t.Fatalf("kube-proxy should be in mode %s (%v):\n%s", c.proxy, err, out)
			}
			for _, part := range []func(context.Context) error{teller.Prepare, teller.Export, teller.Reach} {
				if err := part(ctx); err != nil {
					t.Fatal(err)
				}
			}
			// A container that dies takes with it what its gateway has started, charon for one.
			out, err = clusters.Node("c1", "worker1").Command(ctx, "pkill", "-KILL", "-x", "fastnet-gateway").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			connected("its gateway killed")
			if err := teller.Reach(ctx); err != nil {
				t.Fatal(err)
			}
			// Where others reach a gateway is its node's addresses, until somebody knows better.
			addresses := func(what string, all ...string) {
				t.Helper()
				const shown = "kubectl --context c1 -n fastnet-system get endpoints.fastnet.dev c2.c2-worker1 -o jsonpath='{.spec.addresses[*]}'"
				if _, err := teller.Until(ctx, shown, func(out string) error {
					if out != strings.Join(all, " ") {
						return fmt.Errorf("%s: want %s", what, strings.Join(all, " "))
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			run := func(lines ...string) {
				t.Helper()
				for _, line := range lines {
					if err := teller.Run(ctx, line); err != nil {
						t.Fatal(err)
					}
				}
			}
			own, err := teller.Output(ctx, "kubectl --context c2 get node c2-worker1 -o jsonpath='{.status.addresses[?(@.type==\"InternalIP\")].address}'")
			if err != nil {
				t.Fatal(err)
			}
			nodes := strings.Fields(own)
			addresses("its node's", nodes...)
			const service = "kubectl --context c2 -n fastnet-system "
			run(service+"create service loadbalancer to-worker1 --tcp=51820",
				service+"label service to-worker1 fastnet.dev/gateway-address-of=c2-worker1",
				service+`patch service to-worker1 --subresource=status --type=merge -p '{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.9"}]}}}'`)
			addresses("a load balancer's", append([]string{"203.0.113.9"}, nodes...)...)
			run(service+"delete service to-worker1", "kubectl --context c2 annotate node c2-worker1 fastnet.dev/gateway-addresses="+strings.Join(nodes, ",")+",203.0.113.8")
			addresses("the annotation's", append(slices.Clone(nodes), "203.0.113.8")...)
			run("kubectl --context c2 annotate node c2-worker1 fastnet.dev/gateway-addresses-")
			addresses("its node's again", nodes...)
			// Where the other cluster has another driver both say so, until it has this one again.
			drive := func(from, to string) {
				t.Helper()
				const gateway = "kubectl --context c2 -n fastnet-system get daemonset fastnet-gateway -o yaml"
				_, err := teller.Until(ctx, gateway+" | sed s/--driver="+from+"/--driver="+to+"/ | kubectl --context c2 replace -f -", func(string) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
			}
			agreed := func(want string) {
				t.Helper()
				for _, cluster := range []string{"c1", "c2"} {
					wait := "kubectl --context " + cluster + " -n fastnet-system wait gateways.fastnet.dev --all --timeout=90s --for=condition=DriverAgreed=" + want
					if err := teller.Run(ctx, wait); err != nil {
						t.Fatal(err)
					}
				}
			}
			agreed("true")
			drive(c.shown, "wireguard")
			agreed("false")
			const named = "has the drivers wireguard, this gateway has "
			if _, err := teller.Until(ctx, "kubectl fastnet --context c1 show connections", func(out string) error {
				if !strings.Contains(out, named+c.shown) || strings.Contains(out, " up ") {
					return fmt.Errorf("drivers differ, and what is shown is:\n%s", out)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			drive("wireguard", c.shown)
			agreed("true")
			connected("driven alike again")
			if err := teller.Reach(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}
