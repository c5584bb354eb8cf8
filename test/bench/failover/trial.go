package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// fault is something that happens to a gateway node, and how it ends, which it also does when the benchmark is interrupted.
type fault struct {
	name       string
	begin, end func(*world, *lab.Node) error
}

var (
	powerOff = fault{"power-off",
		func(w *world, n *lab.Node) error { return w.Lab.Cut(w.ctx, clusters.Target(n)) },
		func(w *world, n *lab.Node) error { return w.Lab.Heal(context.WithoutCancel(w.ctx), clusters.Target(n)) }}
	hang = fault{"hang",
		func(w *world, n *lab.Node) error { return w.Lab.Pause(w.ctx, clusters.Target(n)) },
		func(w *world, n *lab.Node) error {
			return w.Lab.Resume(context.WithoutCancel(w.ctx), clusters.Target(n))
		}}
	kill = fault{"kill", (*world).killGateway, func(*world, *lab.Node) error { return nil }}
)

// killGateway kills the gateway's process, and no other.
func (w *world) killGateway(n *lab.Node) error {
	out, err := n.Command(w.ctx, "pkill", "-KILL", "-x", "fastnet-gateway").CombinedOutput()
	if err != nil {
		return fmt.Errorf("kill the gateway on %s: %w: %s", n.Name(), err, out)
	}
	return nil
}

// forgive restarts a gateway that has failed. One that fails again within a minute has to answer for longer each time before it is up, half
// a minute in the end, and the kubelet waits for as long with one that is killed again and again. Who goes with a farewell is trusted at
// once, and a new pod has not been killed yet: so each fault is a first one, and a hundred take less than half the time.
func (b *bench) forgive(gateway *lab.Node) error {
	return errors.Join(podStop.begin(b, gateway), b.AwaitCables(b.ctx))
}

// trial is what one fault did.
type trial struct {
	gateway string
	// seen is when the paths of the flows were seen last, just before the fault.
	seen time.Time
	// hit flows went over the gateway, others did not.
	hit, others int
	// Longest gap of the worst UDP flow: before the fault, from the fault on until all streams were whole, and after the
	// fault had ended until all cables were up; and of the worst TCP flow from the fault on.
	quiet, gap, back, tcp time.Duration
	// lost packets of all UDP flows; of the others, and how many of theirs were received.
	lost, othersLost, othersReceived uint64
	// losers are the others that lost something.
	losers []string
	// broken TCP connections.
	broken int
	// endless says that streams did not get whole before the fault ended.
	endless bool
}

func (t trial) String() string {
	text := fmt.Sprintf("%-10s %2d flows over it, %2d not; gap %s, tcp %s, at its return %s, before %s; lost %d, others lost %d", t.gateway, t.hit, t.others,
		rounded(t.gap), rounded(t.tcp), rounded(t.back), rounded(t.quiet), t.lost, t.othersLost)
	if len(t.losers) > 0 {
		text += " (" + strings.Join(t.losers, ", ") + ")"
	}
	if t.broken > 0 {
		text += fmt.Sprintf("; %d connections broke", t.broken)
	}
	if t.endless {
		text += "; NOT WHOLE before the fault ended"
	}
	return text
}

func rounded(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// try lets a fault happen to a gateway in the middle of streams and waits until everything is as it was before.
func (w *world) try(f fault, gateway *lab.Node, patience time.Duration, noAPI bool) (t trial, err error) {
	t.gateway = gateway.Name()
	if noAPI {
		if err := w.pauseAPI((*lab.Lab).Pause); err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, w.pauseAPI((*lab.Lab).Resume)) }()
	}
	if err := errors.Join(w.window(), w.awaitFlow(nil)); err != nil {
		return t, err
	}
	before, err := w.accounts()
	if err != nil {
		return t, err
	}
	t.quiet = longest(before, false)
	paths, err := w.paths()
	if err != nil {
		return t, err
	}
	t.hit, t.others = clusters.Over(paths, gateway)
	t.seen = time.Now()

	if err := w.window(); err != nil {
		return t, err
	}
	begun := f.begin(w, gateway)
	ended := false
	end := func() error {
		if ended {
			return nil
		}
		ended = true
		return f.end(w, gateway)
	}
	defer func() { err = errors.Join(err, end()) }()
	if begun != nil {
		return t, begun
	}
	now, err := w.accounts()
	if err != nil {
		return t, err
	}
	switch err := w.awaitFlowFor(patience, now); {
	case errors.Is(err, errBroken):
		t.endless = true
		fmt.Printf("  %s of %s is taken away: %v\n", f.name, gateway.Name(), err)
		if err := errors.Join(end(), w.recover(noAPI), w.awaitFlow(nil)); err != nil {
			return t, err
		}
	case err != nil:
		return t, err
	}
	after, err := w.accounts()
	if err != nil {
		return t, err
	}
	t.gap, t.tcp = longest(after, false), longest(after, true)

	// Its return is another change of paths. Losses count over both.
	if err := errors.Join(w.window(), end(), w.recover(noAPI), w.awaitFlow(nil)); err != nil {
		return t, err
	}
	back, err := w.accounts()
	if err != nil {
		return t, err
	}
	t.back = longest(back, false)
	for n, accounts := range []map[traffic.Flow]traffic.Account{after, back} {
		for flow, account := range accounts {
			if flow.TCP {
				continue
			}
			t.lost += account.Lost
			if !slices.Contains(paths[flow.Port], gateway) {
				t.othersLost += account.Lost
				t.othersReceived += account.Received
				if account.Lost > 0 {
					t.losers = append(t.losers, fmt.Sprintf("%d to %s %s", account.Lost, flow.To, []string{"at the fault", "at the return"}[n]))
				}
			}
		}
	}
	for flow, account := range back {
		if flow.TCP {
			t.broken += account.Connections - before[flow].Connections
		}
	}
	return t, nil
}

// recover waits until the clusters are as they were before the fault.
func (w *world) recover(noAPI bool) error {
	if noAPI {
		if err := w.pauseAPI((*lab.Lab).Resume); err != nil {
			return err
		}
	}
	return w.AwaitCables(w.ctx)
}

// pauseAPI stops the API servers of both clusters, the broker's with them, or lets them go on.
func (w *world) pauseAPI(pause func(*lab.Lab, context.Context, string) error) error {
	var errs []error
	for _, s := range w.sides {
		errs = append(errs, pause(w.Lab, context.WithoutCancel(w.ctx), s.Cluster+"/control:kube-apiserver"))
	}
	return errors.Join(errs...)
}

// longest gap of all UDP, or all TCP flows.
func longest(accounts map[traffic.Flow]traffic.Account, tcp bool) time.Duration {
	var gap time.Duration
	for flow, account := range accounts {
		if flow.TCP == tcp {
			gap = max(gap, account.Gap)
		}
	}
	return gap
}

// spread renews the flows until some go over the gateway and some do not. Where the gateway carries nothing, or everything, it
// has to be taken as it is.
func (b *bench) spread(gateway *lab.Node) (hit int, err error) {
	for range 4 {
		if err := b.renew(b.flows); err != nil {
			return 0, err
		}
		paths, err := b.paths()
		if err != nil {
			return 0, err
		}
		others := 0
		if hit, others = clusters.Over(paths, gateway); hit > 0 && others > 0 {
			break
		}
	}
	return hit, nil
}

// turn is the gateway whose turn it is: one cluster's first, the other's first, the one's second, and so on.
func (w *world) turn(n int) *lab.Node {
	s := w.sides[n%len(w.sides)]
	return s.Gateways[n/len(w.sides)%len(s.Gateways)]
}

func (b *bench) powerOff() error {
	return b.trials("power-off", false, func(int) fault { return powerOff })
}
func (b *bench) hang() error { return b.trials("hang", false, func(int) fault { return hang }) }
func (b *bench) kill() error { return b.trials("kill", false, func(int) fault { return kill }) }
func (b *bench) noAPI() error {
	kinds := []fault{powerOff, hang, kill}
	return b.trials("no-api", true, func(n int) fault { return kinds[n/len(b.sides)%len(kinds)] })
}

// tell of a trial, and where a flow lost something that should not have, of what gateways and route agents have logged since a moment before it.
func (b *bench) tell(f fault, t trial) error {
	fmt.Printf("  %-9s %s\n", f.name, t)
	if t.othersLost == 0 {
		return nil
	}
	fmt.Printf("  paths were seen at %s\n", t.seen.UTC().Format("15:04:05.000"))
	const before = 3 * time.Second
	return b.printLogs(t.seen.Add(-before))
}

// trials of a part: the gateways take turns, each with new flows.
func (b *bench) trials(part string, noAPI bool, kind func(n int) fault) error {
	var results []trial
	idle := 0
	defer func() { b.account(part, results, idle) }() // also of a part that was interrupted
	for n := range b.options.trials {
		gateway := b.turn(n)
		hit, err := b.spread(gateway)
		if err != nil {
			return err
		}
		if hit == 0 {
			// A fault of a gateway that carries nothing would make the figures better than they are.
			idle++
			fmt.Printf("  %-10s carries nothing\n", gateway.Name())
			continue
		}
		f := kind(n)
		t, err := b.try(f, gateway, b.patience, noAPI)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", f.name, gateway.Name(), err)
		}
		results = append(results, t)
		if err := errors.Join(b.tell(f, t), b.forgive(gateway)); err != nil {
			return err
		}
	}
	return nil
}

// alternate has the gateways of a cluster fail one after the other, each as soon as the one before is back; the flows stay the
// same, so each fault hits those that the one before has moved.
func (b *bench) alternate() error {
	var results []trial
	idle := 0
	defer func() { b.account("alternate", results, idle) }()
	for i, s := range b.sides {
		if err := b.renew(b.flows); err != nil {
			return err
		}
		for n := i; n < b.options.trials; n += len(b.sides) {
			gateway := s.Gateways[n/len(b.sides)%len(s.Gateways)]
			t, err := b.try(powerOff, gateway, b.patience, false)
			if err != nil {
				return fmt.Errorf("%s: %w", gateway.Name(), err)
			}
			if t.hit == 0 {
				idle++
			} else {
				results = append(results, t)
			}
			if err := errors.Join(b.tell(powerOff, t), b.forgive(gateway)); err != nil {
				return err
			}
		}
	}
	return nil
}

// account makes the row of a part. A trial's figure is the longest gap of the whole trial, the gateway's return included.
func (b *bench) account(part string, results []trial, idle int) {
	if len(results) == 0 {
		return
	}
	whole := func(t trial) float64 { return milliseconds(max(t.gap, t.back)) }
	gaps := report.Pick(results, whole)
	detail := fmt.Sprintf("min %.4g, median %.4g, p99 %.4g, max %.4g ms over %d faults; at the gateway's return %s; without a fault %s",
		gaps.Quantile(0), gaps.Median(), gaps.Quantile(0.99), gaps.Quantile(1), len(results),
		report.Pick(results, func(t trial) float64 { return milliseconds(t.back) }),
		report.Pick(results, func(t trial) float64 { return milliseconds(t.quiet) }))
	endless, broken := 0, 0
	for _, t := range results {
		if t.endless {
			endless++
		}
		broken += t.broken
		b.others.faults++
		b.others.flows += t.others
		b.others.lost += t.othersLost
		b.others.received += t.othersReceived
	}
	if endless > 0 {
		b.wrong = append(b.wrong, fmt.Errorf("%s: %d of %d faults were not over until they were taken away", part, endless, len(results)))
		detail += fmt.Sprintf("; %d were not over until the fault was taken away, after %s", endless, b.patience)
	}
	if idle > 0 {
		detail += fmt.Sprintf("; %d more of gateways that carried nothing are left out", idle)
	}
	b.report.Set(part+".p99-ms", gaps.Quantile(0.99), "%s", detail)
	tcp := report.Pick(results, func(t trial) float64 { return milliseconds(t.tcp) })
	b.report.Add(report.Row{Name: part + ".tcp-p99-ms", Value: tcp.Quantile(0.99), Unit: "ms", Better: report.Lower,
		Detail: fmt.Sprintf("TCP flows: %s ms; %d connections broke", tcp, broken)})
}

// othersLoss sums up what flows lost that did not go over the gateway that failed.
type othersLoss struct {
	faults, flows  int
	lost, received uint64
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
