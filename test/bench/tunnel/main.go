// Command tunnel is `make bench-tunnel`: it measures throughput and round-trip times between two clusters in the lab, against
// those of bare veth, VXLAN and wireguard-go between the very same nodes, and writes dist/bench/tunnel.json. See
// test/bench/README.md.
//
//	go run ./test/bench/tunnel [-only PART,...] [-rounds N] [-slice DURATION] [-keep]
//
// Its exit code is 1 when something could not be measured, whatever the figures are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
)

// part is what -only chooses.
type part struct {
	name string
	run  func(*bench) error
	rows []report.Row
}

var parts = []part{
	{"throughput", (*bench).throughput, []report.Row{
		report.Want("gw-gw.vs-wireguard-go", "x", report.Higher, 0.9, bareWireGuard),
		report.Want("worker-worker.vs-gw-gw", "x", report.Higher, 0.9, gwGw),
		known("worker-worker.vs-veth", "x", report.Higher, vethWorkers),
	}},
	{"rtt", (*bench).rtt, []report.Row{known("rtt-added-us", "us", report.Lower, vethWorkers)}},
	{"scaling", (*bench).scaling, []report.Row{report.Want("two-gateways.scaling", "x", report.Higher, 1.8, "one gateway")}},
}

// known is a row from which nothing is wanted but to be known.
func known(name, unit string, better report.Better, peer string) report.Row {
	return report.Row{Name: name, Unit: unit, Better: better, Peer: peer}
}

// bench is one run.
type bench struct {
	*clusters.Pair
	ctx    context.Context
	rounds int
	slice  time.Duration
	report *report.Report
	ways   map[string]*way
	pods   []*way // between the pods, see flowsOf
	carry  int    // gateways of each cluster, 0 while nobody knows: a lab that was kept may have drained ones
	port   uint16 // the next flow's
}

func main() {
	traffic.Role(traffic.Roles{"wireguard": wireguard})
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	flags := flag.NewFlagSet("tunnel", flag.ExitOnError)
	only := flags.String("only", strings.Join(names, ","), "the `parts` to measure, in this order")
	rounds := flags.Int("rounds", 8, "how often the ways take turns; figures are medians over the rounds")
	slice := flags.Duration("slice", 2*time.Second, "how long one way is measured in one round")
	keep := flags.Bool("keep", false, "leave the lab running, and use one that runs already")
	flags.Parse(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, strings.Split(*only, ","), *rounds, *slice, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "bench-tunnel:", err)
		stop()
		os.Exit(1)
	}
}

// run measures the parts asked for, and reports what it got even when some of them fail.
func run(ctx context.Context, only []string, rounds int, slice time.Duration, keep bool) (err error) {
	start := time.Now()
	for _, name := range only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is no part %q", name)
		}
	}
	if rounds < 1 || slice < 100*time.Millisecond {
		return errors.New("at least one round, of at least 100 ms")
	}
	var chosen []part
	var rows []report.Row
	for _, p := range parts {
		if slices.Contains(only, p.name) {
			chosen, rows = append(chosen, p), append(rows, p.rows...)
		}
	}
	b := &bench{ctx: ctx, rounds: rounds, slice: slice, report: report.New("tunnel", rows...), port: 20000}
	pair, tidy, err := clusters.Up(ctx, keep)
	defer func() { err = errors.Join(err, tidy()) }()
	if err != nil {
		return err
	}
	b.Pair = pair
	if err := b.openWays(); err != nil {
		return err
	}
	var failures []error
	for _, p := range chosen {
		fmt.Printf("== %s\n", p.name)
		if err := p.run(b); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", p.name, err))
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if keep {
		failures = append(failures, b.oneGateway(false))
	}
	fmt.Println()
	b.report.Print(os.Stdout)
	path, err := b.report.Write(filepath.Join(b.Dist, "bench"))
	if err != nil {
		return err
	}
	fmt.Printf("measured in %s; the rows are in %s\n", time.Since(start).Round(time.Second), path)
	if missing := b.report.Missing(); len(missing) > 0 {
		failures = append(failures, fmt.Errorf("not everything could be measured: %s", strings.Join(missing, ", ")))
	}
	return errors.Join(failures...)
}
