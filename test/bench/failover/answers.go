package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/clusters"
	"github.com/fastnet-io/fastnet/test/bench/report"
	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
)

// resolve gives what asks each cluster's DNS for the name, from the pods.
func (w *world) resolve() (resolvers []*traffic.Process, err error) {
	if len(w.resolvers) > 0 {
		return w.resolvers, nil
	}
	for _, s := range w.sides {
		server, err := w.Teller.Output(w.ctx, "kubectl --context "+s.Cluster+" -n kube-system get service kube-dns -o jsonpath='{.spec.clusterIP}'")
		if err != nil {
			return nil, err
		}
		addr, err := netip.ParseAddr(strings.TrimSpace(server))
		if err != nil {
			return nil, err
		}
		r, err := w.InPod(w.ctx, s.Pods[0], first(), "resolver", netip.AddrPortFrom(addr, 53).String(), clusters.Name)
		if err != nil {
			return nil, err
		}
		resolvers = append(resolvers, r)
	}
	w.resolvers = resolvers
	return resolvers, nil
}

// answer is how a resolver tells the pods of these sides.
func answer(sides ...*side) string {
	var addrs []netip.Addr
	for _, s := range sides {
		for _, pod := range s.Pods {
			addrs = append(addrs, pod.Addrs...)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare) // all IPv4 first, as the resolver has A before AAAA
	return strings.Join(strings.Fields(strings.Trim(fmt.Sprint(addrs), "[]")), ",")
}

// partition cuts the two clusters off from each other, again and again, and notes when each cluster's DNS last gave an address
// of the other.
func (b *bench) partition() error {
	if err := b.silence(); err != nil {
		return err
	}
	resolvers, err := b.resolve()
	if err != nil {
		return err
	}
	names := []string{b.sides[0].Cluster, b.sides[1].Cluster}
	var last report.Sample
	endless := 0
	defer func() { b.accountPartitions(last, endless) }() // also of a part that was interrupted
	for range b.options.trials {
		if err := b.calm(resolvers); err != nil {
			return err
		}
		cut, wrong, err := b.cutClusters(resolvers, names)
		if errors.Is(err, errStillWrong) {
			endless++
		} else if err != nil {
			return err
		}
		var took time.Duration
		fmt.Printf("  cut at %s, last wrong answer", cut.Format("15:04:05.000"))
		for i, latest := range wrong {
			fmt.Printf(" of %s after %s", names[i], rounded(latest.Sub(cut)))
			took = max(took, latest.Sub(cut))
		}
		fmt.Println()
		last = append(last, milliseconds(took))
		if err := b.AwaitCables(b.ctx); err != nil {
			return err
		}
		for _, gateway := range b.sides[0].Gateways { // each cable has one of them
			if err := b.forgive(gateway); err != nil {
				return err
			}
		}
	}
	return nil
}

// accountPartitions makes the row of the partitions, endless of which were not over while they were waited for.
func (b *bench) accountPartitions(last report.Sample, endless int) {
	if len(last) == 0 {
		return
	}
	detail := fmt.Sprintf("min %.4g, median %.4g, p99 %.4g, max %.4g ms over %d partitions; the later of the two clusters counts",
		last.Quantile(0), last.Median(), last.Quantile(0.99), last.Quantile(1), len(last))
	if endless > 0 {
		b.wrong = append(b.wrong, fmt.Errorf("partition: answers were still wrong after %s, %d of %d times", b.patience, endless, len(last)))
		detail += fmt.Sprintf("; %d were still wrong after %s", endless, b.patience)
	}
	b.report.Set("partition-dns.p99-ms", last.Quantile(0.99), "%s", detail)
}

// calm waits until all is well, and has been for a while: clusters that were cut off a moment ago are asked for longer, and give each other
// more time, than those that are parted out of the blue.
func (b *bench) calm(resolvers []*traffic.Process) error {
	if err := b.AwaitCables(b.ctx); err != nil {
		return err
	}
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(b.rest):
	}
	return b.awaitAnswers(resolvers)
}

// awaitAnswers waits until both clusters answer with the pods of both, and with nothing else for as long as it takes to ask
// dozens of times.
func (w *world) awaitAnswers(resolvers []*traffic.Process) error {
	both := answer(w.sides...)
	return traffic.AwaitEvery(w.ctx, 500*time.Millisecond, clusters.Settle, "both clusters answer with both", func() error {
		var errs []error
		for i, r := range resolvers {
			answers, err := r.Answers()
			if err == nil && (len(answers.Sets) != 1 || answers.Sets[both].Count == 0) {
				err = fmt.Errorf("%s answers %+v, want %s", w.sides[i].Cluster, answers, both)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

var errStillWrong = errors.New("still wrong")

// steady is how long answers have to be right for the last wrong one to count as the last.
const steady = 2 * time.Second

// cutClusters gives the time of the cut, and of each cluster's last wrong answer.
func (b *bench) cutClusters(resolvers []*traffic.Process, names []string) (cut time.Time, wrong []time.Time, err error) {
	defer func() { err = errors.Join(err, b.Lab.Heal(b.ctx, names...)) }()
	cut = time.Now()
	if err := b.Lab.Cut(b.ctx, names...); err != nil {
		return cut, nil, err
	}
	wrong = slices.Repeat([]time.Time{cut}, len(resolvers))
	right := make([]time.Time, len(resolvers))
	err = traffic.Await(b.ctx, b.patience, "no answer has an address of the other cluster", func() error {
		for i, r := range resolvers {
			answers, err := r.Answers()
			if err != nil {
				return err
			}
			for set, seen := range answers.Sets {
				if set == answer(b.sides[i]) {
					right[i] = seen.Last
				} else if seen.Last.After(wrong[i]) {
					wrong[i] = seen.Last
				}
			}
		}
		for i := range right {
			if right[i].Sub(wrong[i]) < steady {
				return fmt.Errorf("%s: %w", b.sides[i].Cluster, errStillWrong)
			}
		}
		return nil
	})
	return cut, wrong, err
}

// The rules that lose every tenth packet between the clusters, each way, and between nodes of one segment, since frames that are bridged come
// by here, too (br_netfilter). Neighbour discovery is let through, as ARP is, which these rules never see: to a kernel three of its messages
// lost in a row are a neighbour that is gone, and a fifth of those it then misses for a second, with all that was to go there.
const lossRules = `table inet bench_failover_loss {
	chain forward {
		type filter hook forward priority 0; policy accept;
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		numgen random mod 10 0 drop
	}
}
`

// marginal has the way between the clusters lose every tenth packet, while streams run and the name is asked for: nothing should
// come of it. What counts is changes of our routes on any node, as the kernel tells of them, and of answers.
func (b *bench) marginal() (err error) {
	if err := b.renew(b.flows); err != nil {
		return err
	}
	resolvers, err := b.resolve()
	if err != nil {
		return err
	}
	routes, unwatchRoutes, err := b.watchRoutes()
	defer unwatchRoutes()
	if err != nil {
		return err
	}
	// Until nothing has changed for a while: what has to be started takes of the processors, and makes paths late.
	for tries, moved := 0, true; moved; tries++ {
		if tries == 10 {
			return errors.New("marginal: routes change before any packet is lost")
		}
		if err := b.calm(resolvers); err != nil {
			return err
		}
		moved = len(routes()) > 0
	}
	if err := b.window(); err != nil {
		return err
	}
	for _, r := range resolvers {
		if _, err := r.Answers(); err != nil { // from here on they count
			return err
		}
	}
	wan := func(rules string) error { // also when the benchmark is interrupted: what it has made must go
		command := b.Lab.WAN().Command(context.WithoutCancel(b.ctx), "nft", "-f", "-")
		command.Stdin = strings.NewReader(rules)
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}
	stalls, unwatch := watchStalls(b.ctx)
	defer unwatch()
	routes() // from here on these count, too
	began := time.Now()
	if err := wan(lossRules); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wan("delete table inet bench_failover_loss\n")) }()
	fmt.Printf("  every tenth packet between the clusters is lost for %s\n", b.options.marginal)
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(b.options.marginal): // the time is what is measured
	}
	stood := stalls()
	changes, ofRoutes, ofAnswers := routes(), 0, 0
	fmt.Printf("  a processor stood still for %s at most\n", rounded(stood))
	for i, r := range resolvers {
		answers, err := r.Answers()
		if err != nil {
			return err
		}
		lines := changes[b.sides[i].Cluster]
		fmt.Printf("  %s: %d route changes on its nodes, %d changes of answers\n", b.sides[i].Cluster, len(lines), answers.Changes)
		for _, line := range lines[:min(len(lines), 20)] {
			fmt.Println("    " + line)
		}
		ofRoutes += len(lines)
		ofAnswers += answers.Changes
	}
	accounts, err := b.accounts()
	if err != nil {
		return err
	}
	var lost, sent uint64
	for flow, account := range accounts {
		if !flow.TCP {
			lost, sent = lost+account.Lost, sent+account.Lost+account.Received
		}
	}
	total := ofRoutes + ofAnswers
	if total > 0 {
		b.wrong = append(b.wrong, fmt.Errorf("marginal: %d changes of routes or answers", total))
	}
	b.report.Set("marginal-changes", float64(total), "%d of answers, %d of routes, in %s in which streams lost %.1f %% and a processor stood still for %s at most",
		ofAnswers, ofRoutes, b.options.marginal, 100*float64(lost)/float64(max(1, sent)), rounded(stood))
	if total > 0 {
		return b.printLogs(began)
	}
	return nil
}

// printLogs prints what gateways and route agents of both clusters have logged since then.
func (w *world) printLogs(since time.Time) error {
	for _, s := range w.sides {
		text, err := w.Teller.Output(w.ctx, "for name in gateway routeagent; do kubectl --context "+s.Cluster+
			" -n fastnet-system logs --prefix --tail=-1 -l app.kubernetes.io/name=fastnet-$name --since-time "+since.UTC().Format(time.RFC3339)+"; done")
		if err != nil {
			return err
		}
		fmt.Printf("  %s has logged:\n%s\n", s.Cluster, text)
	}
	return nil
}

// ours marks routes and next hops in what `ip monitor` prints: the route agent's protocol.
const ours = "proto 250"

// watchRoutes keeps the changes of our routes from now on, and gives those since the last time, by cluster.
func (w *world) watchRoutes() (changes func() map[string][]string, stop func(), err error) {
	watches := map[*lab.Node]*monitor{}
	stop = func() {
		for _, m := range watches {
			m.stop()
		}
	}
	for _, s := range w.sides {
		for _, n := range w.Lab.Cluster(s.Cluster).Nodes() {
			m, err := startMonitor(n.Command(w.ctx, "stdbuf", "-oL", "ip", "-ts", "monitor", "route", "nexthop"), ours)
			if err != nil {
				return nil, stop, fmt.Errorf("%s: %w", n.Name(), err)
			}
			watches[n] = m
		}
	}
	return func() map[string][]string {
		all := map[string][]string{}
		for n, m := range watches {
			for _, line := range m.take() {
				all[clusters.ClusterOf(n)] = append(all[clusters.ClusterOf(n)], n.Name()+": "+line)
			}
		}
		return all
	}, stop, nil
}
