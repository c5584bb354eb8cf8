// Command failover is `make bench-failover`: it breaks gateways of two clusters in the lab while streams run between them,
// prints for how long the streams were silent, and writes dist/bench/failover.json. See test/bench/README.md.
//
//	go run ./test/bench/failover [-only PART,...] [-trials N] [-flows N] [-keep] [-check] ...
//
// Its exit code is 1 when something could not be measured, whatever the figures are; with -check, also when something did not heal
// or was lost that may not be.
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

// options are the flags.
type options struct {
	only     []string
	trials   int
	flows    int
	interval time.Duration
	rest     time.Duration
	marginal time.Duration
	patience time.Duration
	keep     bool
	check    bool
	join     []string
}

// part is what -only chooses.
type part struct {
	name string
	run  func(*bench) error
	row  report.Row
}

// What is wanted of the longest gap: a second. Aimed at are 300 ms.
const wantedGap = 1000

var parts = []part{
	{"power-off", (*bench).powerOff, report.Want("power-off.p99-ms", "ms", report.Lower, wantedGap, "")},
	{"hang", (*bench).hang, report.Want("hang.p99-ms", "ms", report.Lower, wantedGap, "")},
	{"kill", (*bench).kill, report.Want("kill.p99-ms", "ms", report.Lower, wantedGap, "")},
	{"no-api", (*bench).noAPI, report.Want("no-api.p99-ms", "ms", report.Lower, wantedGap, "")},
	{"alternate", (*bench).alternate, report.Want("alternate.p99-ms", "ms", report.Lower, wantedGap, "")},
	{"drain", (*bench).drain, report.Want("drain-lost", "packets", report.Lower, 0, "")},
	{"partition", (*bench).partition, report.Want("partition-dns.p99-ms", "ms", report.Lower, 1000, "")},
	{"marginal", (*bench).marginal, report.Want("marginal-changes", "changes", report.Lower, 0, "")},
}

// breaking are the parts whose faults also tell what flows on the other gateway lose.
var breaking = []string{"power-off", "hang", "kill", "no-api", "alternate"}

const othersRow = "other-gateway-lost"

func main() {
	traffic.Role(nil)
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	var o options
	flags := flag.NewFlagSet("failover", flag.ExitOnError)
	only := flags.String("only", strings.Join(names, ","), "the `parts` to measure, in this order")
	flags.IntVar(&o.trials, "trials", 100, "faults of each kind")
	flags.IntVar(&o.flows, "flows", 2, "UDP flows in each direction of each family; half as many TCP flows, at least one, run beside them")
	flags.DurationVar(&o.interval, "interval", traffic.UDPInterval, "time between two packets of a UDP flow, and with it what a gap is exact to")
	flags.DurationVar(&o.marginal, "marginal", 10*time.Minute, "how long the links lose every tenth packet")
	flags.DurationVar(&o.rest, "rest", 10*time.Second, "how long all cables are up before the clusters are parted, or packets lost")
	flags.DurationVar(&o.patience, "patience", 15*time.Second, "how long streams may be broken before the fault is taken away")
	driver := flags.String("driver", "", "tunnel `driver` of both clusters, wireguard if none is given")
	flags.BoolVar(&o.keep, "keep", false, "leave the lab running, and use one that runs already")
	flags.BoolVar(&o.check, "check", false, "write no figures, but fail where streams did not heal, a drain lost packets, or answers stayed wrong")
	flags.Parse(os.Args[1:])
	o.only = strings.Split(*only, ",")
	if *driver != "" {
		o.join = []string{"--driver=" + *driver, "--allow-unencrypted"}
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-failover:", err)
		stop()
		os.Exit(1)
	}
}

func (o options) validate() error {
	var problems []error
	for _, name := range o.only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			problems = append(problems, fmt.Errorf("there is no part %q", name))
		}
	}
	if o.trials < 1 || o.flows < 1 || o.flows > 100 {
		problems = append(problems, errors.New("at least one trial, and 1 to 100 flows"))
	}
	if o.interval < 100*time.Microsecond || o.interval > 20*time.Millisecond {
		problems = append(problems, errors.New("0.1 to 20 ms between two packets: a gap is 50 ms"))
	}
	return errors.Join(problems...)
}

// bench is one run.
type bench struct {
	*world
	options
	report *report.Report
	others othersLoss
	// wrong is what a check finds.
	wrong []error
}

// run measures the parts asked for, and reports what it got even when some of them fail.
func run(ctx context.Context, o options) (err error) {
	start := time.Now()
	if err := o.validate(); err != nil {
		return err
	}
	var rows []report.Row
	for _, p := range parts {
		if slices.Contains(o.only, p.name) {
			rows = append(rows, p.row)
		}
	}
	if slices.ContainsFunc(o.only, func(name string) bool { return slices.Contains(breaking, name) }) {
		rows = append(rows, report.Want(othersRow, "packets", report.Lower, 0, ""))
	}
	b := &bench{options: o, report: report.New("failover", rows...)}
	pair, tidy, err := clusters.Up(ctx, o.keep, o.join...)
	defer func() { err = errors.Join(err, tidy()) }()
	if err != nil {
		return err
	}
	if b.world, err = newWorld(ctx, pair, o.interval); err != nil {
		return err
	}

	var failures []error
	for _, p := range parts {
		if !slices.Contains(o.only, p.name) {
			continue
		}
		fmt.Printf("== %s\n", p.name)
		if err := p.run(b); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", p.name, err))
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
		}
		if ctx.Err() != nil {
			break // what there is by now is told
		}
	}
	if b.others.flows > 0 {
		b.report.Set(othersRow, float64(b.others.lost), "of %d that %d flows sent over other gateways during %d faults", b.others.lost+b.others.received, b.others.flows, b.others.faults)
	}
	fmt.Println()
	b.report.Print(os.Stdout)
	if o.check {
		return errors.Join(append(failures, b.wrong...)...)
	}
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
