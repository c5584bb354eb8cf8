// Command demo shows what Fastnet does, on two real clusters that it starts on this machine and leaves running: stories A
// and B with every command and what it printed.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n\nThe clusters, if they came up, are still there to look at (dist/bin/fastnet-lab status); "+
			"`make demo-down` takes all away.\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dist, err := filepath.Abs("dist")
	if err != nil {
		return err
	}
	config := lab.DefaultConfig(dist)
	config.Progress = lab.ProgressLines(func(line string) { fmt.Println(line) })
	start := time.Now()
	l, err := lab.Up(ctx, config)
	if err != nil {
		return err
	}
	up := time.Since(start)

	dir := filepath.Join(lab.StateDir, "story") // goes with the lab
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	t, err := story.New(l, dist, dir, os.Stdout)
	if err != nil {
		return err
	}
	for _, tell := range []func(context.Context) error{
		t.Again, t.Connect, t.Prepare, t.Export, t.Reach, t.LocalFirst, t.Unexport, t.Headless,
	} {
		if err := tell(ctx); err != nil {
			return err
		}
	}

	fmt.Print(`
== What was shown

  A  A service exported in c2 is found in c1 under one name and reached over the encrypted tunnel, over IPv4 and IPv6; the
     server sees the pod that asks. Exported in both, the local pods answer first; when they go, the other cluster's do.
  B  A headless service gives every pod of c2 its own name in c1.

== What was measured, on this machine, once

`)
	fmt.Printf("  %6.1f s  two clusters of three nodes started\n", up.Seconds())
	for _, m := range t.Took {
		fmt.Printf("  %6.1f s  %s\n", m.Time.Seconds(), m.What)
	}
	fmt.Printf("  %6.1f s  all of this demo\n", time.Since(start).Seconds())
	fmt.Printf(`
== What to type next

  export KUBECONFIG=%s:%s
  export PATH=%s:%s:$PATH
  kubectl --context c1 -n sample exec -it deploy/client -- sh    # dig, curl, nslookup ...
  kubectl service --context c2 -n sample export whereami-cs      # then ask for whereami-cs.sample.svc.clusterset.local
  kubectl fastnet --context c1 show
  fastnet-lab cut c1 c2; fastnet-lab heal c1 c2                  # a bad day on the network between them
  make demo-down                                                 # takes everything away
`, l.Cluster("c1").Kubeconfig(), l.Cluster("c2").Kubeconfig(), filepath.Join(dist, "bin"), filepath.Join(dist, "lab", "bin"))
	return nil
}
