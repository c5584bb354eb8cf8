package routeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/converge"
	"github.com/fastnet-io/fastnet/internal/debug"
	"github.com/fastnet-io/fastnet/internal/kept"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
	"github.com/fastnet-io/fastnet/internal/routeview"
	"github.com/fastnet-io/fastnet/internal/uninstall"
)

// DaemonSet that runs the route agent, in the namespace fastnet-system.
const DaemonSet = "fastnet-routeagent"

// Times of the daemon.
const (
	// resync finds what no watch tells of: a rule that somebody put before ours. With it iptables is looked at, and not in rounds before that,
	// since each look starts some twenty processes: where paths come and go, they would take the processor from the probes, and more would go.
	resync = 10 * time.Second
	trust  = resync - time.Second
	// What the kernel tells within echo of a failover is what that has done itself. A round, which looks at everything, comes after settle then: a
	// failover happens on all nodes at once, and where they share processors it should not have to share them with rounds too.
	echo, settle = 100 * time.Millisecond, time.Second
	// backoff after a failed round, at first.
	backoff = 200 * time.Millisecond
	// parting is how long the daemon may take, once told to stop, to find out whether it will come back and to clean
	// up if not: well inside the 30 seconds that a pod has.
	parting = 20 * time.Second
)

// Config of the daemon.
type Config struct {
	// Kubeconfig file; empty is the pod's service account.
	Kubeconfig string
	ClusterID  string
	// Node is this node's name.
	Node string
	// Prefixes are this cluster's pod and service CIDRs, both families.
	Prefixes    []string
	Mode        Mode
	HTTPAddress string
	// StateDir holds what was last known.
	StateDir string
	// ProbePort (UDP) at which gateways answer nodes.
	ProbePort uint16
	Log       *slog.Logger
}

// Validate reports every problem of the configuration.
func (c Config) Validate() error {
	var problems []error
	if c.ClusterID == "" {
		problems = append(problems, errors.New("--cluster-id is empty"))
	}
	if c.Node == "" {
		problems = append(problems, errors.New("--node is empty, and so is NODE_NAME"))
	}
	if len(c.Prefixes) == 0 {
		problems = append(problems, errors.New("--prefixes is empty"))
	}
	if _, err := cables.ParsePrefixes(c.Prefixes); err != nil {
		problems = append(problems, fmt.Errorf("--prefixes: %w", err))
	}
	if !slices.Contains([]Mode{ModeAuto, ModeDirect, ModeTunnel}, c.Mode) {
		problems = append(problems, fmt.Errorf("--mode %q is not auto, direct or tunnel", c.Mode))
	}
	if c.StateDir == "" {
		problems = append(problems, errors.New("--state-dir is empty"))
	}
	if c.ProbePort == 0 {
		problems = append(problems, errors.New("--node-probe-port is 0"))
	}
	if c.Log == nil {
		problems = append(problems, errors.New("no log"))
	}
	return errors.Join(problems...)
}

// Run keeps this node's routes until the context ends. Then it finds out whether the daemon was removed for good, and
// takes everything away if so; else all stays, and traffic flows on while a new process starts.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	prefixes, err := cables.ParsePrefixes(c.Prefixes)
	if err != nil {
		return err
	}
	config, err := kube.Config(c.Kubeconfig, "fastnet-routeagent")
	if err != nil {
		return err
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	objects, err := cache.New(config, cache.Options{
		Scheme:                      scheme,
		Mapper:                      kube.Mapper(),
		ReaderFailOnMissingInformer: true,
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.Endpoint{}: {Namespaces: map[string]cache.Config{v1alpha1.Namespace: {}}},
			&corev1.Node{}:       {Transform: slimNode},
		},
	})
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	tables, err := netstate.NewTables(netstate.Detect(), ChainPrefix)
	if err != nil {
		return err
	}
	tables.Trust = trust
	agent := newAgent(c, prefixes, objects, tables)
	agent.recall()
	var loop *converge.Loop
	agent.poke = func() { loop.Poke() }
	agent.later = time.AfterFunc(time.Hour, agent.poke)
	defer agent.later.Stop()
	loop, err = converge.New(converge.Config{Name: "routes", Round: agent.round, Resync: resync, Backoff: backoff, Log: c.Log})
	if err != nil {
		return err
	}
	c.Log.Info("route agent starts", "cluster", c.ClusterID, "node", c.Node, "mode", c.Mode, "prefixes", prefixes, "iptables", tables.Backend)

	within, stop := context.WithCancel(ctx)
	defer stop()
	group, running := errgroup.WithContext(within)
	// Before they start: a cache that has been told to stop by now takes no handler.
	if err := watch(running, objects, loop.Poke); err != nil {
		return err
	}
	group.Go(func() error { return objects.Start(running) })
	server := debug.Server{Address: c.HTTPAddress, Gatherer: agent.metrics.registry, Ready: agent.ready, Plan: agent.text,
		JSON: map[string]func() any{routeview.Page: func() any { return agent.view() }}}
	group.Go(func() error { return server.Run(running) })
	group.Go(func() error {
		netstate.KeepWatching(running, "fastnet-", Table, agent.moved, func(err error) { c.Log.Warn("lost sight of the kernel", "error", err) })
		return nil
	})
	group.Go(func() error { return agent.prober.Run(running) })
	group.Go(func() error {
		for {
			select {
			case <-running.Done():
				return nil
			case noticed := <-agent.noticed:
				if err := agent.failover(running, noticed); err != nil {
					c.Log.Warn("failover", "error", err)
					loop.Poke()
				}
			}
		}
	})
	group.Go(func() error {
		// Not one route is touched before all that is known has arrived, or was recalled: what an earlier process has made stays.
		if !agent.wait(running, objects.WaitForCacheSync, loop.Poke) {
			return nil
		}
		if other := tables.Other(); other != nil {
			if swept, err := other.Sweep(running); err != nil || len(swept) > 0 {
				c.Log.Info("swept chains of the other iptables back end", "backend", other.Backend, "changes", swept, "error", err)
			}
		}
		loop.Run(running)
		return nil
	})
	err = group.Wait()
	if ctx.Err() == nil {
		return err // failed: a new process will go on with what is there
	}
	return part(config, c)
}

// part decides what the end of the process means.
func part(config *rest.Config, c Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), parting)
	defer cancel()
	asking, stop := context.WithTimeout(ctx, parting/2)
	defer stop()
	reason, err := uninstall.Reason(asking, config, uninstall.Question{DaemonSet: DaemonSet, Node: c.Node})
	if reason == "" {
		c.Log.Info("route agent ends, its routes stay", "error", err)
		return nil
	}
	c.Log.Info("route agent is uninstalled", "reason", reason)
	return errors.Join(Cleanup(ctx, c.Log), removeKnown(c.StateDir, c.ClusterID+"."+c.Node))
}

// Cleanup takes everything away that a route agent has ever made in this node's kernel.
func Cleanup(ctx context.Context, log *slog.Logger) error {
	tables, err := netstate.NewTables(netstate.Detect(), ChainPrefix)
	if err != nil {
		return err
	}
	changes, err := netstate.New(Scope, tables).Apply(ctx, netstate.State{})
	if other := tables.Other(); other != nil {
		more, sweepErr := netstate.New(netstate.Scope{ChainPrefix: ChainPrefix}, other).Apply(ctx, netstate.State{})
		changes, err = append(changes, more...), errors.Join(err, sweepErr)
	}
	log.Info("node cleaned", "changes", changes)
	return err
}

// watch prepares the watches. A Node is written every few minutes by its kubelet; only what a plan reads pokes.
func watch(ctx context.Context, objects cache.Cache, poke func()) error {
	if err := kube.PokeOn(ctx, objects, poke, &v1alpha1.Endpoint{}); err != nil {
		return err
	}
	informer, err := objects.GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { poke() },
		DeleteFunc: func(any) { poke() },
		UpdateFunc: func(before, after any) {
			old, okOld := before.(*corev1.Node)
			is, okIs := after.(*corev1.Node)
			if !okOld || !okIs || fmt.Sprint(toNode(old)) != fmt.Sprint(toNode(is)) {
				poke()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	return nil
}

// slimNode keeps of a Node what toNode reads.
func slimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
		Spec:       corev1.NodeSpec{PodCIDR: node.Spec.PodCIDR, PodCIDRs: node.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Addresses: node.Status.Addresses},
	}, nil
}

func toNode(node *corev1.Node) Node {
	n := Node{Name: node.Name}
	for _, address := range node.Status.Addresses {
		if addr, err := netip.ParseAddr(address.Address); err == nil && address.Type == corev1.NodeInternalIP {
			n.Addresses = append(n.Addresses, addr)
		}
	}
	for _, text := range node.Spec.PodCIDRs {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			n.PodPrefixes = append(n.PodPrefixes, prefix)
		}
	}
	return n
}

// agent is the running daemon.
type agent struct {
	config   Config
	prefixes []netip.Prefix
	objects  client.Reader
	tables   *netstate.Tables
	kernel   *netstate.Kernel
	prober   *nodeprobe.Prober
	answered atomic.Bool    // the API server has, once
	noticed  chan time.Time // that the health of some path has changed, and when
	metrics  *metrics

	// paths is held from reading the health of paths until the groups are as it says, so that the latest health has the
	// last word, whoever writes: a round or a failover.
	paths sync.Mutex
	known *Snapshot // of the last round, with what is in use now; nil before the first

	poke  func()
	later *time.Timer // pokes when time alone has changed the plan

	regrouped atomic.Int64 // when a failover last changed something, Unix time in ns
	settling  atomic.Bool  // a poke after settle is under way

	file     *kept.File
	recalled *known // counts until the API server has answered; nil where there is none

	mu   sync.Mutex // guards last
	last outcome
}

// outcome of the last round or failover.
type outcome struct {
	at       time.Time
	snapshot Snapshot
	desired  Desired
	changes  []string // of the last one that made any
	changed  time.Time
	err      error
	done     bool // some round has succeeded
}

func newAgent(c Config, prefixes []netip.Prefix, objects client.Reader, tables *netstate.Tables) *agent {
	a := &agent{config: c, prefixes: prefixes, objects: objects, tables: tables, kernel: netstate.New(Scope, tables),
		noticed: make(chan time.Time, 1), file: kept.At(knownFile(c.StateDir, c.ClusterID+"."+c.Node))}
	a.prober = nodeprobe.NewProber(c.ProbePort, func() {
		select {
		case a.noticed <- time.Now():
		default:
		}
	}, c.Log)
	a.metrics = newMetrics(a.prober.Health)
	return a
}

func (a *agent) snapshot(ctx context.Context) (Snapshot, error) {
	s := Snapshot{ClusterID: a.config.ClusterID, Node: a.config.Node, Prefixes: a.prefixes, Mode: a.config.Mode}
	k, err := a.cluster(ctx)
	if err != nil {
		return s, err
	}
	s.Endpoints, s.Nodes = k.Endpoints, k.Nodes
	loosened, err := a.tables.Remembered()
	if err != nil {
		return s, err
	}
	return s, s.kernel(loosened)
}

func (a *agent) round(ctx context.Context) error {
	start := time.Now()
	answered := a.answered.Load()
	snapshot, err := a.snapshot(ctx)
	var changes []string
	if err == nil {
		var desired *Desired
		if desired, changes, err = a.choose(ctx, &snapshot, a.kernel.ApplyPaths); desired != nil {
			probeErr := a.prober.Set(desired.Targets)
			more, restErr := a.kernel.ApplyRest(ctx, desired.State) // also when not all paths could be made: the routes over the others are here
			changes, err = append(changes, more...), errors.Join(err, probeErr, restErr)
		}
		if answered {
			err = errors.Join(err, a.file.Write(known{Endpoints: snapshot.Endpoints, Nodes: snapshot.Nodes}))
		}
	}
	a.note(start, changes, err)
	a.mu.Lock()
	a.last.done = a.last.done || answered && err == nil
	desired := a.last.desired // a failover may have come since
	a.mu.Unlock()
	a.metrics.observe(time.Since(start), desired, len(changes), err)
	return err
}

// failover exchanges members of groups, and nothing else, as the health of the paths has it.
func (a *agent) failover(ctx context.Context, noticed time.Time) error {
	a.regrouped.Store(time.Now().UnixNano()) // the kernel tells of the first group before the last is done
	desired, changes, err := a.choose(ctx, nil, a.kernel.Regroup)
	a.regrouped.Store(0)
	if len(changes) > 0 {
		a.regrouped.Store(time.Now().UnixNano())
	}
	if desired == nil || err == nil && len(changes) == 0 {
		return err
	}
	a.note(noticed, changes, err)
	a.metrics.failedOver(time.Since(noticed), *desired, len(changes))
	return err
}

// moved: something has changed in the kernel.
func (a *agent) moved() {
	switch {
	case time.Since(time.Unix(0, a.regrouped.Load())) > echo:
		a.poke()
	case !a.settling.Swap(true):
		time.AfterFunc(settle, func() {
			a.settling.Store(false)
			a.poke()
		})
	}
}

// choose plans, from a new snapshot or else the one that is known, with the health of this moment, and applies that part
// of the plan which depends on it. Without a plan it returns none.
func (a *agent) choose(ctx context.Context, snapshot *Snapshot, apply func(context.Context, netstate.State) ([]string, error)) (*Desired, []string, error) {
	a.paths.Lock()
	defer a.paths.Unlock()
	if snapshot != nil {
		observed, err := a.kernel.Observe(netstate.State{})
		if err != nil {
			return nil, nil, err
		}
		snapshot.InUse = observed.InUse
		a.known = snapshot
	}
	if a.known == nil {
		return nil, nil, nil // the first round will look
	}
	a.known.Paths, a.known.Now = a.prober.Health(), time.Now()
	desired := Plan(*a.known)
	if !desired.Again.IsZero() {
		a.later.Reset(time.Until(desired.Again))
	}
	changes, err := apply(ctx, desired.State)
	a.mu.Lock()
	if !slices.Equal(a.last.desired.Problems, desired.Problems) {
		a.config.Log.Info("problems changed", "problems", desired.Problems)
	}
	a.last.snapshot, a.last.desired = *a.known, desired
	a.mu.Unlock()
	a.known.InUse = desired.inUse()
	return &desired, changes, err
}

// note what a round or a failover has done.
func (a *agent) note(start time.Time, changes []string, err error) {
	a.mu.Lock()
	a.last.at, a.last.err = start, err
	if len(changes) > 0 {
		a.last.changes, a.last.changed = changes, start
	}
	a.mu.Unlock()
	if len(changes) > 0 {
		a.config.Log.Info("node changed", "changes", changes, "took", time.Since(start).Round(100*time.Microsecond))
	}
}

func (a *agent) ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.last.done {
		return errors.Join(errors.New("no round has succeeded yet"), a.last.err)
	}
	return nil
}

// view of the ways that this node has, with the health of this moment.
func (a *agent) view() routeview.Node {
	a.mu.Lock()
	snapshot, desired := a.last.snapshot, a.last.desired
	a.mu.Unlock()
	snapshot.Paths, snapshot.InUse, snapshot.Now = a.prober.Health(), desired.inUse(), time.Now()
	now := Plan(snapshot)
	return routeview.Node{Node: a.config.Node, Ways: now.Ways, Problems: now.Problems}
}

// text is the debug page.
func (a *agent) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last.snapshot.Paths = a.prober.Health()
	var b strings.Builder
	fmt.Fprintf(&b, "# last round %s, error: %v\n\n# snapshot\n%s\n# desired\n%s", a.last.at.Format(time.RFC3339Nano), a.last.err, a.last.snapshot, a.last.desired.State.Text(Scope))
	for _, problem := range a.last.desired.Problems {
		fmt.Fprintf(&b, "problem: %s\n", problem)
	}
	observed, err := a.kernel.Observe(a.last.desired.State)
	if err != nil {
		observed.Lines = append(observed.Lines, "error: "+err.Error())
	}
	fmt.Fprintf(&b, "\n# observed\n%s\n", strings.Join(observed.Lines, "\n"))
	fmt.Fprintf(&b, "\n# last change %s\n%s\n", a.last.changed.Format(time.RFC3339Nano), strings.Join(a.last.changes, "\n"))
	return b.String()
}
