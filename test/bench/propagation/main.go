// Command propagation is `make bench-propagation`: it measures how long a change in one cluster takes until another cluster's
// DNS shows it, prints a table, and writes dist/bench/propagation.json. See test/bench/README.md.
//
//	go run ./test/bench/propagation [-services N] [-rounds N] [-rates N,...]
//
// Its exit code is 1 when something could not be measured, whatever the figures are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// Names of the two members.
const (
	sourceName = "source"
	targetName = "target"
)

// load is what is measured at one rate in one round: how many changes of endpoints, and how many exports.
type load struct{ rate, endpoints, exports int }

// loads are the rates of the full measurement, in changes a second. The second is one that three API servers, two agents and a DNS server
// can keep up with on two processors.
var loads = []load{{1, 10, 5}, {25, 500, 20}, {100, 1500, 300}, {1000, 3000, 300}}

// patience is how long the last change of a round may take to show, on a machine that is behind by minutes.
const patience = 5 * time.Minute

type bench struct {
	ctx            context.Context
	broker         *ground.Cluster
	source, target *ground.Cluster
	agents         map[string]*ground.Agent
	world          *world
	observer       *observer
	report         *report.Report
}

func main() {
	flags := flag.NewFlagSet("propagation", flag.ExitOnError)
	count := flags.Int("services", 2000, "how many services are exported all the time")
	rounds := flags.Int("rounds", 3, "how often each rate is measured; figures are medians over the rounds")
	rates := flags.String("rates", "1,25,100,1000", "changes a second, of those four")
	flags.Parse(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var chosen []load
	for _, l := range loads {
		if slices.Contains(strings.Split(*rates, ","), strconv.Itoa(l.rate)) {
			chosen = append(chosen, l)
		}
	}
	if err := run(ctx, *count, *rounds, chosen); err != nil {
		fmt.Fprintln(os.Stderr, "bench-propagation:", err)
		os.Exit(1)
	}
}

// run measures and reports.
func run(ctx context.Context, count, rounds int, chosen []load) error {
	start := time.Now()
	root, err := ground.Root(ctx)
	if err != nil {
		return err
	}
	measured, failure := measure(ctx, count, rounds, chosen)
	if measured == nil {
		return failure
	}
	fmt.Println()
	measured.Print(os.Stdout)
	path, err := measured.Write(filepath.Join(root, "dist", "bench"))
	if err != nil {
		return err
	}
	fmt.Printf("measured in %s; the rows are in %s\n", time.Since(start).Round(time.Second), path)
	if missing := measured.Missing(); len(missing) > 0 {
		failure = errors.Join(failure, fmt.Errorf("not everything could be measured: %s", strings.Join(missing, ", ")))
	}
	return failure
}

// rows are those of the loads chosen.
func rows(chosen []load) []report.Row {
	wanted := map[string]float64{"endpoint-100.p50-ms": 50, "endpoint-100.p99-ms": 250, "endpoint-1000.p99-ms": 1000}
	var all []report.Row
	for _, kind := range []string{"endpoint", "export"} {
		for _, l := range chosen {
			for _, quantile := range []string{"p50", "p99"} {
				row := report.Row{Name: fmt.Sprintf("%s-%d.%s-ms", kind, l.rate, quantile), Unit: "ms", Better: report.Lower}
				if limit, ok := wanted[row.Name]; ok {
					row.Wanted = &limit
				}
				all = append(all, row)
			}
		}
	}
	return append(all, report.Row{Name: "bytes-per-change", Unit: "bytes", Better: report.Lower})
}

// measure starts everything, measures, and takes all away again.
func measure(ctx context.Context, count, rounds int, chosen []load) (*report.Report, error) {
	if count < 4 || rounds < 1 || len(chosen) == 0 {
		return nil, errors.New("at least four services, one round, one rate")
	}
	spare := 0
	for _, l := range chosen {
		spare = max(spare, l.exports)
	}
	b := &bench{ctx: ctx, report: report.New("propagation", rows(chosen)...), world: newWorld(count, spare)}
	g, err := ground.Open(ctx, "bench-propagation")
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if err = b.prepare(g); err == nil {
		err = b.measure(rounds, chosen)
	}
	if err != nil {
		err = errors.Join(err, b.logs())
	}
	return b.report, err
}

// logs is what the agents said last, for an error.
func (b *bench) logs() error {
	var all []error
	for name, agent := range b.agents {
		all = append(all, fmt.Errorf("agent of %s: %s", name, agent.Log()))
	}
	return errors.Join(all...)
}

// prepare starts a broker and two members with everything in sync.
func (b *bench) prepare(g *ground.Ground) error {
	if err := g.Build(b.ctx, "./cmd/fastnet-agent", "./coredns-build"); err != nil {
		return err
	}
	clusters, err := g.Clusters(map[string]string{
		"broker": "10.99.0.0/16,fd00:99::/112", sourceName: "10.96.0.0/16,fd00:96::/112", targetName: "10.97.0.0/16,fd00:97::/112",
	})
	if err != nil {
		return err
	}
	b.broker, b.source, b.target = clusters["broker"], clusters[sourceName], clusters[targetName]
	if err := b.broker.MakeBroker(b.ctx, sourceName, targetName); err != nil {
		return err
	}
	files := map[string]string{}
	for name, prefixes := range map[string][]string{
		sourceName: {"10.128.0.0/9", "fd00:128::/64", "10.96.0.0/16", "fd00:96::/112"},
		targetName: {"10.64.0.0/16", "fd00:64::/64", "10.97.0.0/16", "fd00:97::/112"},
	} {
		file, err := b.broker.Invite(b.ctx, name)
		if err != nil {
			return err
		}
		if err := clusters[name].Join(b.ctx, file, prefixes...); err != nil {
			return err
		}
		files[name] = file
	}
	if err := b.world.create(b.ctx, b.source, b.target); err != nil {
		return err
	}
	b.agents = map[string]*ground.Agent{}
	for _, name := range []string{sourceName, targetName} {
		if b.agents[name], err = clusters[name].Agent(b.ctx, files[name]); err != nil {
			return err
		}
	}
	server, address, err := b.target.DNS()
	if err != nil {
		return err
	}
	if b.observer, err = observe(b.ctx, address); err != nil {
		return err
	}
	defer ground.Progress("exporting and importing %d services", len(b.world.services))()
	// To ask DNS about all of them would take the processors from those who are at it.
	if err := b.atRest(len(b.world.services)); err != nil {
		return err
	}
	if err := b.shown(b.world.services, answers, patience); err != nil {
		return errors.Join(err, server.Running())
	}
	return nil
}

// shown waits until the target's DNS answers fittingly about services.
func (b *bench) shown(services []*service, wants func([]byte) bool, timeout time.Duration) error {
	for _, s := range services {
		c, err := newChange(s, wants)
		if err != nil {
			return err
		}
		c.sent = time.Now()
		b.observer.await(c)
	}
	return b.observer.settle(b.ctx, timeout)
}

// atRest waits until the target has imports of so many services, and neither agent has anything left to write.
func (b *bench) atRest(imports int) error {
	for _, name := range []string{sourceName, targetName} {
		agent := b.agents[name]
		last, since := "", time.Now()
		err := ground.Await(b.ctx, 8*time.Minute, "the agents are at rest", func() error {
			if err := agent.Running(); err != nil {
				return err
			}
			metrics, err := agent.Metrics(b.ctx)
			if err != nil {
				return err
			}
			if now := lines(metrics, "fastnet_agent_writes_total"); now != last {
				last, since = now, time.Now()
			}
			if has := strings.TrimSpace(lines(metrics, "fastnet_agent_imports ")); has != fmt.Sprintf("fastnet_agent_imports %d", imports) {
				return fmt.Errorf("%s has %q, not %d", name, has, imports)
			}
			if quiet := time.Since(since); quiet < time.Second {
				return fmt.Errorf("for %s", quiet)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lines are those of a metric.
func lines(metrics, name string) string {
	var found []string
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, name) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// measure has the rates and the kinds of change take turns.
func (b *bench) measure(rounds int, chosen []load) error {
	all := map[string][]round{}
	var bytesPerChange, sourceBytes, targetBytes report.Sample
	for n := range rounds {
		for _, l := range chosen {
			name := fmt.Sprintf("endpoint-%d", l.rate)
			before, err := b.traffic()
			if err != nil {
				return err
			}
			r, err := b.round(name, n, func() ([]*change, error) { return b.changeEndpoints(l) })
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all[name] = append(all[name], r)
			b.set(name, all[name])
			if l.rate == bytesAt(chosen) {
				after, err := b.traffic()
				if err != nil {
					return err
				}
				per := map[string]float64{}
				for who := range before {
					sum, err := after[who].Since(before[who])
					if err != nil {
						return fmt.Errorf("bytes between %s and the broker: %w", who, err)
					}
					per[who] = float64(sum.Sent+sum.Received) / float64(l.endpoints)
				}
				sourceBytes, targetBytes = append(sourceBytes, per[sourceName]), append(targetBytes, per[targetName])
				bytesPerChange = append(bytesPerChange, per[sourceName]+per[targetName])
				b.report.Set("bytes-per-change", bytesPerChange.Median(), "of both members' connections to the broker, both ways, TLS and HTTP/2 included, at %d changes a second of slices of %d backends: source %s, target %s",
					l.rate, ready+1, sourceBytes, targetBytes)
			}
		}
		for _, l := range chosen {
			name := fmt.Sprintf("export-%d", l.rate)
			r, err := b.round(name, n, func() ([]*change, error) { return b.export(l) })
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all[name] = append(all[name], r)
			b.set(name, all[name])
			if err := b.unexport(b.world.spare[:l.exports]); err != nil {
				return err
			}
		}
	}
	return nil
}

// bytesAt is the rate at which bytes are counted: 100, or the nearest there is.
func bytesAt(chosen []load) int {
	for _, l := range chosen {
		if l.rate >= 100 {
			return l.rate
		}
	}
	return chosen[len(chosen)-1].rate
}

func (b *bench) traffic() (map[string]ground.Traffic, error) {
	all := map[string]ground.Traffic{}
	for name, agent := range b.agents {
		counted, err := b.broker.Traffic(agent.Process)
		if err != nil {
			return nil, err
		}
		all[name] = counted
	}
	return all, nil
}

// round makes changes and waits until all of them show.
func (b *bench) round(name string, n int, make func() ([]*change, error)) (round, error) {
	defer ground.Progress("round %d of %s", n+1, name)()
	before, err := ground.CPU()
	if err != nil {
		return round{}, err
	}
	began := time.Now()
	changes, err := make()
	if err == nil {
		err = b.observer.settle(b.ctx, patience)
	}
	if err != nil {
		return round{}, err
	}
	r := round{changes: changes, took: time.Since(began), cpu: map[string]time.Duration{}}
	after, err := ground.CPU()
	for program := range after {
		r.cpu[program] = after[program] - before[program]
	}
	return r, err
}

// changeEndpoints has backends of headless services become ready, one service after the other.
func (b *bench) changeEndpoints(l load) ([]*change, error) {
	headless := b.world.headless()
	return drive(b.ctx, l.rate, l.endpoints, func(ctx context.Context, n int, c *change) error {
		s := headless[n%len(headless)]
		var err error
		if c.query, err = s.question().Pack(); err != nil {
			return err
		}
		return b.world.makeReady(ctx, b.source, s, func(address netip.Addr) {
			c.wants = func(reply []byte) bool { return holds(reply, address) }
			c.sent = time.Now()
			b.observer.await(c)
		})
	})
}

// export exports services of both kinds that were not. A service shows when DNS has any answer about it.
func (b *bench) export(l load) ([]*change, error) {
	return drive(b.ctx, l.rate, l.exports, func(ctx context.Context, n int, c *change) error {
		s := b.world.spare[n]
		var err error
		if c.query, err = s.question().Pack(); err != nil {
			return err
		}
		c.wants, c.sent = answers, time.Now()
		b.observer.await(c)
		return b.source.Create(ctx, s.export())
	})
}

// unexport takes exports back, and waits until nothing is left of them.
func (b *bench) unexport(services []*service) error {
	defer ground.Progress("taking %d exports back", len(services))()
	err := each(b.ctx, services, func(ctx context.Context, s *service) error {
		return client.IgnoreNotFound(b.source.Delete(ctx, &mcsv1beta1.ServiceExport{ObjectMeta: s.meta()}))
	})
	if err != nil {
		return err
	}
	if err := b.shown(services, nameless, patience); err != nil {
		return err
	}
	return b.atRest(len(b.world.services))
}

// set gives the rows of one kind and rate their values.
func (b *bench) set(name string, rounds []round) {
	var p50, p99, sentP99 report.Sample
	var all []*change
	var took time.Duration
	cpu := map[string]time.Duration{}
	for _, r := range rounds {
		sample := millis(r.changes, fromAcknowledged)
		p50, p99 = append(p50, sample.Median()), append(p99, sample.Quantile(0.99))
		sentP99 = append(sentP99, millis(r.changes, fromSent).Quantile(0.99))
		all = append(all, r.changes...)
		took += r.took
		for program, d := range r.cpu {
			cpu[program] += d
		}
	}
	sample := millis(all, fromAcknowledged)
	var programs []string
	for _, program := range sortedKeys(cpu) {
		if per := cpu[program].Seconds() * 1e3 / float64(len(all)); per >= 0.01 {
			programs = append(programs, fmt.Sprintf("%s %.2f", program, per))
		}
	}
	bins := histogram(sample)
	fmt.Printf("  %s, ms from the API server's acknowledgement to the first answer, %d rounds: p50 %.3g, p99 %.3g\n%s", name, len(rounds), p50.Median(), p99.Median(), bars(bins))
	b.report.Set(name+".p50-ms", p50.Median(), "medians of %d rounds %s; all %d changes: p50 %.3g, p90 %.3g, p99 %.3g, max %.3g; ms: %s",
		len(rounds), p50, len(all), sample.Median(), sample.Quantile(0.9), sample.Quantile(0.99), sample.Quantile(1), listed(bins))
	b.report.Set(name+".p99-ms", p99.Median(), "of %d rounds %s; from when a change was sent %s; sent late by p99 %.3g ms; asked every %.2g ms; %.0f changes a second in all; processor ms for each: %s",
		len(rounds), p99, sentP99, late(all).Quantile(0.99), between(all), float64(len(all))/took.Seconds(), strings.Join(programs, ", "))
}
