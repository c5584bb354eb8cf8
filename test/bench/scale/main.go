// Command scale is `make bench-scale`: it measures a clusterset of many members at one broker, prints a table, and writes
// dist/bench/scale.json. See test/bench/README.md.
//
//	go run ./test/bench/scale [-members N] [-services N] [-backends N]
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// joiner is the member with a cluster and an agent of its own.
const joiner = "joiner"

// size is that of a clusterset, and for how long it is looked at.
type size struct {
	members, services, backends int
	window, outage              time.Duration
}

type bench struct {
	size
	ctx             context.Context
	broker, cluster *ground.Cluster
	joinFile        string
	agent           *ground.Agent
	world           *world
	members         []*member
	endMembers      func() // and wait until they have ended
	joined, herded  time.Duration
	report          *report.Report
}

// selfName is this program as the others see it.
var selfName = os.Args[0]

func main() {
	s := size{window: 3 * v1alpha1.RenewEvery, outage: 20 * time.Second}
	flags := flag.NewFlagSet("scale", flag.ExitOnError)
	flags.IntVar(&s.members, "members", 20, "how many simulated members there are")
	flags.IntVar(&s.services, "services", 2000, "how many services they export")
	flags.IntVar(&s.backends, "backends", 25, "how many backends a service has")
	flags.Parse(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench-scale:", err)
		os.Exit(1)
	}
}

// run measures and reports.
func run(ctx context.Context, s size) error {
	start := time.Now()
	root, err := ground.Root(ctx)
	if err != nil {
		return err
	}
	measured, failure := measure(ctx, s)
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

// measure starts everything, measures, and takes all away again.
func measure(ctx context.Context, s size) (*report.Report, error) {
	if s.members < 1 || s.services < s.members || s.backends < 1 || s.backends > v1alpha1.MaxBackends {
		return nil, fmt.Errorf("at least one member, a service for each, and 1 to %d backends", v1alpha1.MaxBackends)
	}
	b := &bench{size: s, world: newWorld(s.members, s.services, s.backends), report: report.New("scale",
		report.Want("join-s", "s", report.Lower, 10, ""),
		report.Row{Name: "join.vs-bare", Unit: "x", Better: report.Lower},
		report.Row{Name: "agent-rss-mb", Unit: "MB", Better: report.Lower},
		report.Want("idle-writes-per-30s", "", report.Lower, 1, ""),
		report.Want("herd-s", "s", report.Lower, 15, ""),
		report.Row{Name: "herd.vs-bare", Unit: "x", Better: report.Lower},
	)}
	g, err := ground.Open(ctx, "bench-scale")
	if err != nil {
		return nil, err
	}
	defer g.Close()
	// The members end before what they talk to.
	b.ctx = ctx
	var living sync.WaitGroup
	alive, end := context.WithCancel(ctx)
	b.endMembers = func() { end(); living.Wait() }
	defer b.endMembers()

	if err := b.prepare(alive, g, &living); err != nil {
		return nil, err
	}
	for _, part := range []func() error{b.join, b.herd, b.idle, b.bareHerd, func() error { return b.bareJoin(g) }} {
		if err := part(); err != nil {
			if b.agent != nil {
				err = errors.Join(err, errors.New("the agent's log:"+b.agent.Log()))
			}
			return b.report, err
		}
	}
	return b.report, nil
}

// prepare starts the broker with its members, and waits until all of them know of everything.
func (b *bench) prepare(alive context.Context, g *ground.Ground, living *sync.WaitGroup) error {
	if err := g.Build(b.ctx, "./cmd/fastnet-agent"); err != nil {
		return err
	}
	clusters, err := g.Clusters(map[string]string{"broker": "10.99.0.0/16,fd00:99::/112", joiner: "10.96.0.0/16,fd00:96::/112"})
	if err != nil {
		return err
	}
	b.broker, b.cluster = clusters["broker"], clusters[joiner]
	names := []string{joiner, bare}
	for n := range b.size.members {
		names = append(names, fmt.Sprintf("member-%02d", n))
	}
	if err := b.broker.MakeBroker(b.ctx, names...); err != nil {
		return err
	}
	if b.joinFile, err = b.broker.Invite(b.ctx, joiner); err != nil {
		return err
	}
	if err := b.cluster.Join(b.ctx, b.joinFile, "10.64.0.0/16", "fd00:64::/64", "10.96.0.0/16", "fd00:96::/112"); err != nil {
		return err
	}
	if err := makeNamespaces(b.ctx, b.cluster); err != nil {
		return err
	}
	files := map[string]string{}
	for _, name := range names[2:] {
		if files[name], err = b.broker.Invite(b.ctx, name); err != nil {
			return err
		}
	}

	defer ground.Progress("%d members export %d services of %d backends", b.size.members, b.services, b.backends)()
	for n, name := range names[2:] {
		m, err := newMember(name, files[name], b.world.members[n])
		if err != nil {
			return err
		}
		b.members = append(b.members, m)
		living.Go(func() { m.run(alive) })
	}
	return b.known(5 * time.Minute)
}

// known waits until every member knows of every service as it is.
func (b *bench) known(timeout time.Duration, services ...*service) error {
	if len(services) == 0 {
		for _, some := range b.world.members {
			services = append(services, some...)
		}
	}
	return ground.Await(b.ctx, timeout, "all members know of everything", func() error {
		for _, m := range b.members {
			if !m.done() {
				return fmt.Errorf("%s has not written all", m.name)
			}
			for _, s := range services {
				if !m.knows(s) {
					return fmt.Errorf("%s does not know of %s", m.name, s.key())
				}
			}
		}
		return nil
	})
}

// join starts an agent in an empty cluster, and measures until it has written the last of what it imports.
func (b *bench) join() error {
	done := ground.Progress("an agent joins")
	before, err := ground.CPU()
	if err != nil {
		return err
	}
	started, err := b.cluster.Agent(b.ctx, b.joinFile)
	if err != nil {
		return err
	}
	b.agent = started
	settled, err := b.quiet(5 * time.Minute)
	if err != nil {
		return err
	}
	took := settled.Sub(b.agent.Started)
	after, err := ground.CPU()
	if err != nil {
		return err
	}
	done()
	if err := b.imported(); err != nil {
		return fmt.Errorf("the agent is at rest, and %w", err)
	}
	metrics, err := b.agent.Metrics(b.ctx)
	if err != nil {
		return err
	}
	b.joined = took
	written := total(metrics, "fastnet_agent_writes_total", `result="ok"`, `side="local"`)
	b.report.Set("join-s", took.Seconds(), "from the start of the agent's process to the last of %.0f writes to its API server, for %d services of %d backends; processor s meanwhile: agent %.1f, API servers %.1f, etcds %.1f, simulated members %.1f",
		written, b.services, b.backends, (after["fastnet-agent"] - before["fastnet-agent"]).Seconds(), (after["kube-apiserver"] - before["kube-apiserver"]).Seconds(),
		(after["etcd"] - before["etcd"]).Seconds(), (after[filepath.Base(selfName)] - before[filepath.Base(selfName)]).Seconds())
	return nil
}

// quiet waits until the agent has written nothing for a second, and gives the time of the last write, to a tenth of a second.
func (b *bench) quiet(timeout time.Duration) (time.Time, error) {
	last, since := -1.0, time.Now()
	lastLook := time.Time{}
	err := ground.Await(b.ctx, timeout, "the agent is at rest", func() error {
		if err := b.agent.Running(); err != nil {
			return err
		}
		if time.Since(lastLook) < 100*time.Millisecond {
			return errors.New("not looked at")
		}
		lastLook = time.Now()
		metrics, err := b.agent.Metrics(b.ctx)
		if err != nil {
			return err
		}
		if now := total(metrics, "fastnet_agent_writes_total"); now != last {
			last, since = now, time.Now()
		}
		if imports := total(metrics, "fastnet_agent_imports"); int(imports) < b.services {
			return fmt.Errorf("%.0f of %d services are imported", imports, b.services)
		}
		if time.Since(since) < time.Second {
			return errors.New("it writes")
		}
		return nil
	})
	return since, err
}

// imported says what the joining cluster lacks, or nil.
func (b *bench) imported() error {
	var imports mcsv1beta1.ServiceImportList
	var slices discoveryv1.EndpointSliceList
	if err := b.cluster.List(b.ctx, &imports); err != nil {
		return err
	}
	err := b.cluster.List(b.ctx, &slices, client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy})
	if err != nil {
		return err
	}
	backends := 0
	for _, slice := range slices.Items {
		if slice.Labels[v1alpha1.LabelClusterAddress] == "" {
			backends += len(slice.Endpoints)
		}
	}
	if len(imports.Items) != b.services || backends != b.services*b.backends {
		return fmt.Errorf("has %d imports and %d backends, not %d and %d", len(imports.Items), backends, b.services, b.services*b.backends)
	}
	for _, i := range imports.Items {
		if i.Spec.Type == mcsv1beta1.ClusterSetIP && len(i.Spec.IPs) == 0 || len(i.Status.Clusters) != 1 {
			return fmt.Errorf("%s/%s is not whole: %v, %v", i.Namespace, i.Name, i.Spec.IPs, i.Status.Clusters)
		}
	}
	return nil
}

// idle counts writes while nothing changes, and looks at the agent's memory.
func (b *bench) idle() error {
	defer ground.Progress("nothing happens for %s", b.window)()
	began := time.Now()
	// An API server renews a Lease of its own. In the agent's cluster nobody else writes any: there it shows how many these are.
	count := func() (atBroker, here int, err error) {
		atBroker, err1 := b.writes(b.broker, "")
		here, err2 := b.writes(b.cluster, "")
		own, err3 := b.writes(b.cluster, "leases")
		return atBroker - own, here - own, errors.Join(err1, err2, err3)
	}
	brokerBefore, hereBefore, err := count()
	if err != nil {
		return err
	}
	timer := time.NewTimer(b.window)
	defer timer.Stop()
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-timer.C:
	}
	brokerAfter, hereAfter, err := count()
	if err != nil {
		return err
	}
	took := time.Since(began)
	scaled := 30 / took.Seconds()
	atBroker := max(0, float64(brokerAfter-brokerBefore)) * scaled / float64(len(b.members)+1)
	here := float64(hereAfter-hereBefore) * scaled
	b.report.Set("idle-writes-per-30s", atBroker+here, "writes for each member: %.2f at the broker (%d by all in %.0f s, its API server's own taken off), %.2f in the agent's own cluster",
		atBroker, brokerAfter-brokerBefore, took.Seconds(), here)
	now, most := b.agent.Memory()
	b.report.Set("agent-rss-mb", now/1e6, "resident memory of the agent, at rest, with %d services and %d backends imported; %.0f at its most", b.services, b.services*b.backends, most/1e6)
	return nil
}

// herd takes the broker away, has every member change something meanwhile, and measures from the broker's return until all know
// of all.
func (b *bench) herd() error {
	done := ground.Progress("the broker is away for %s", b.outage)
	b.broker.StopAPI()
	err := ground.Await(b.ctx, time.Minute, "all notice that the broker is away", func() error {
		for _, m := range b.members {
			if m.Connected() {
				return fmt.Errorf("%s has not", m.name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var changed []*service
	for _, m := range b.members {
		s := m.services[0]
		b.world.replace(s)
		m.change(s)
		changed = append(changed, s)
	}
	timer := time.NewTimer(b.outage)
	defer timer.Stop()
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-timer.C:
	}
	done()
	defer ground.Progress("the broker returns")()
	started := time.Now()
	if err := b.broker.StartAPI(); err != nil {
		return err
	}
	ready := time.Now()
	if err := b.known(5*time.Minute, changed...); err != nil {
		return err
	}
	members := time.Since(ready)
	if err := ground.Await(b.ctx, time.Minute, "the agent has written what changed", func() error { return b.serves(changed) }); err != nil {
		return err
	}
	b.herded = time.Since(ready)
	b.report.Set("herd-s", b.herded.Seconds(), "from when the broker's API server is ready until each of %d members has published a change made meanwhile and knows of all (%.1f s), and the agent has them in its cluster; the API server itself took %.1f s",
		len(b.members), members.Seconds(), ready.Sub(started).Seconds())
	return nil
}

// serves says which of the services are not in the agent's cluster as they are, or nil.
func (b *bench) serves(services []*service) error {
	for _, s := range services {
		var slices discoveryv1.EndpointSliceList
		err := b.cluster.List(b.ctx, &slices, client.InNamespace(s.namespace), client.MatchingLabels{v1alpha1.LabelServiceName: s.name})
		if err != nil {
			return err
		}
		there := false
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				there = there || endpoint.Addresses[0] == s.backends[0].String()
			}
		}
		if !there {
			return fmt.Errorf("%s has not its new backend", s.key())
		}
	}
	return nil
}

// writes is how many writing requests an API server has answered so far, of one resource or of all.
func (b *bench) writes(c *ground.Cluster, resource string) (int, error) {
	metrics, err := c.Metrics(b.ctx)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, verb := range []string{"POST", "PUT", "PATCH", "APPLY", "DELETE"} {
		labels := []string{`verb="` + verb + `"`}
		if resource != "" {
			labels = append(labels, `resource="`+resource+`"`)
		}
		sum += total(metrics, "apiserver_request_total", labels...)
	}
	return int(sum), nil
}

// total sums up a metric over everything that has these labels.
func total(metrics, name string, labels ...string) float64 {
	sum := 0.0
	for line := range strings.Lines(metrics) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		fits := true
		for _, label := range labels {
			fits = fits && strings.Contains(rest, label)
		}
		if value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64); fits && err == nil {
			sum += value
		}
	}
	return sum
}
