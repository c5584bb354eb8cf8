// Command dns is `make bench-dns`: it measures the lighthouse plugin against its peers, prints a table, and writes
// dist/bench/dns.json. See test/bench/README.md.
//
//	go run ./test/bench/dns [-only PART,...] [-rounds N] [-slice DURATION]
//
// Its exit code is 1 when something could not be measured, whatever the figures are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// bench is one run.
type bench struct {
	ctx        context.Context
	root       string // of the module
	dist       string
	tmp        string
	rounds     int
	slice      time.Duration // of one measurement over the wire
	processors []int         // the first is the servers', the second the clients'
	kubeconfig string
	api        client.Client
	world      *world
	report     *report.Report
	// knee holds queries a second over the wire, of ClusterSetIP names, by peer.
	knee map[string]report.Sample
	// disturbed counts the measurements that others on this machine disturbed; patience is left for measuring again.
	disturbed int
	patience  time.Duration
}

// patience is how long each part may take to measure again what others disturbed.
const patience = 45 * time.Second

// part is what -only chooses.
type part struct {
	name string
	run  func(*bench) error
	rows []report.Row
}

var parts = []part{
	{"inprocess", (*bench).inProcess, []report.Row{
		report.Want("clusterip-a.speedup", "x", report.Higher, 6, multicluster),
		report.Want("clusterip-a.allocs", "allocs", report.Lower, 5, ""),
		report.Want("clusterip-a.vs-erratic", "x", report.Lower, 1.3, static),
		report.Want("headless25-a.speedup", "x", report.Higher, 6, multicluster),
		report.Want("headless100-a.speedup", "x", report.Higher, 10, multicluster),
		report.Want("nxdomain.speedup", "x", report.Higher, 5, multicluster),
		report.Want("srv.speedup", "x", report.Higher, 4, multicluster),
	}},
	{"wire", (*bench).wire, []report.Row{
		report.Want("udp-headless25.vs-kubernetes", "x", report.Higher, 5, multicluster),
		report.Want("udp-qps.vs-kubernetes", "x", report.Higher, 2.2, multicluster),
		report.Want("udp-qps.vs-static", "x", report.Higher, 0.95, static),
		report.Want("udp-qps-chain.vs-kubernetes", "x", report.Higher, 1.8, multicluster+" in the same chain"),
	}},
	{"latency", (*bench).tails, []report.Row{report.Want("udp-p99.vs-static", "x", report.Lower, 1.1, static)}},
	{"updates", (*bench).updates, []report.Row{report.Want("update-slowdown", "%", report.Lower, 10, "")}},
	{"propagation", (*bench).propagation, []report.Row{
		report.Want("start-s-10k", "s", report.Lower, 1.3, ""),
		report.Want("local-propagation.p50-ms", "ms", report.Lower, 1.5, ""),
		report.Want("local-propagation.p99-ms", "ms", report.Lower, 5, ""),
	}},
	{"large", (*bench).large, []report.Row{
		report.Want("start-s-250k", "s", report.Lower, 10, ""),
		report.Want("heap-mb-250k", "MB", report.Lower, 150, ""),
		report.Want("slice-update-ms", "ms", report.Lower, 5, ""),
		report.Want("slice-update-cpu-ms", "ms", report.Lower, 1, ""),
	}},
}

func main() {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	flags := flag.NewFlagSet("dns", flag.ExitOnError)
	only := flags.String("only", strings.Join(names, ","), "the `parts` to measure, in this order")
	rounds := flags.Int("rounds", 5, "how often the peers take turns; figures are medians over the rounds")
	slice := flags.Duration("slice", 3*time.Second, "how long one peer is measured in one round over the wire; a thirtieth of it in process")
	flags.Parse(os.Args[1:])
	log.SetOutput(io.Discard)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, strings.Split(*only, ","), *rounds, *slice); err != nil {
		fmt.Fprintln(os.Stderr, "bench-dns:", err)
		os.Exit(1)
	}
}

// run measures the parts asked for, in the order of the list, and reports what it got even when some of them fail.
func run(ctx context.Context, only []string, rounds int, slice time.Duration) error {
	start := time.Now()
	for _, name := range only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is no part %q", name)
		}
	}
	if rounds < 1 || slice < time.Second {
		return errors.New("at least one round, of at least a second")
	}
	b := &bench{ctx: ctx, rounds: rounds, slice: slice, world: small(), knee: map[string]report.Sample{}}
	var chosen []part
	var rows []report.Row
	for _, p := range parts {
		if slices.Contains(only, p.name) {
			chosen, rows = append(chosen, p), append(rows, p.rows...)
		}
	}
	b.report = report.New("dns", rows...)
	tidy, err := b.prepare()
	defer tidy()
	if err != nil {
		return err
	}

	var failures []error
	for _, p := range chosen {
		fmt.Printf("== %s\n", p.name)
		b.patience = patience
		if err := p.run(b); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", p.name, err))
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Println()
	b.report.Print(os.Stdout)
	if b.disturbed > 0 {
		fmt.Printf("others on this machine disturbed %d measurements; for %s of each part they were made again\n", b.disturbed, patience)
	}
	path, err := b.report.Write(filepath.Join(b.dist, "bench"))
	if err != nil {
		return err
	}
	fmt.Printf("measured in %s; the rows are in %s\n", time.Since(start).Round(time.Second), path)
	if missing := b.report.Missing(); len(missing) > 0 {
		failures = append(failures, fmt.Errorf("not everything could be measured: %s", strings.Join(missing, ", ")))
	}
	return errors.Join(failures...)
}

// prepare builds the servers and starts an API server with the small world. tidy takes all away again, also after an error.
func (b *bench) prepare() (tidy func(), err error) {
	tidy = func() {}
	if b.root, err = ground.Root(b.ctx); err != nil {
		return tidy, err
	}
	b.dist = filepath.Join(b.root, "dist")
	if b.processors, err = allowed(); err != nil {
		return tidy, err
	}
	if len(b.processors) < 2 {
		return tidy, errors.New("needs two processors: one for the server that is measured, one for its clients")
	}
	if err := b.build(); err != nil {
		return tidy, err
	}
	g, err := ground.Open(b.ctx, "bench-dns")
	if err != nil {
		return tidy, err
	}
	tidy, b.tmp = g.Close, g.Dir()
	clusters, err := g.Clusters(map[string]string{"bench": "10.96.0.0/16"})
	if err != nil {
		return tidy, err
	}
	b.kubeconfig = clusters["bench"].Kubeconfig
	if b.api, err = connect(b.kubeconfig); err != nil {
		return tidy, err
	}
	if err := prepare(b.ctx, b.api); err != nil {
		return tidy, err
	}
	if err := create(b.ctx, b.api, b.world.clusterIP, b.world.headless10, b.world.headless25, b.world.headless100); err != nil {
		return tidy, err
	}
	return tidy, createPlain(b.ctx, b.api, b.world.plain)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
