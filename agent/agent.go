// Package agent exports a cluster's services to the broker and imports those of all members: it reads ServiceExports and
// writes ServiceImports, derived Services and EndpointSlices, and it carries the gateways' Endpoints both ways. It is the
// only part of Fastnet that talks to the broker.
//
//	local API server                         agent                        broker
//	ServiceExport, Service, EndpointSlices --------> ExportedService, ExportedEndpoints of this member
//	ServiceImport, derived Service, slices <-------- the same of all members on the roster
//	Endpoints of this cluster's gateways   --------> Endpoints of this member
//	mirrored Endpoints                     <-------- Endpoints of the other members
//
// A change is a round of the one service that it belongs to (scope.go). Two loops make the same plan from the same kind of
// snapshot and apply one side of it each, so that a broker that does not answer never holds up the local cluster.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
	"github.com/fastnet-io/fastnet/internal/converge"
)

// Config is what an agent needs of the world.
type Config struct {
	// ClusterID of this cluster, one or two DNS labels.
	ClusterID string
	// BrokerNamespace is the namespace on the broker that this member writes in.
	BrokerNamespace string
	// Reader reads the local cluster from caches; Local and Broker write.
	Reader client.Reader
	Local  client.Client
	Broker client.Client
	// API says what of the Multi-Cluster Services API the local cluster has; nil: all of it.
	API API
	// Records is what the broker holds, as far as is known, and Connected whether it answers.
	Records   Records
	Connected func() bool
	// Event tells users of an object about it. Kind is Normal or Warning.
	Event func(object runtime.Object, kind, reason, message string)
	// Now is the clock of conditions.
	Now func() time.Time
	// Metrics takes the agent's metrics.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// API is what a cluster has of the Multi-Cluster Services API.
type API interface {
	// Fit takes out of an object what the API server would drop or refuse: it would be written again and again.
	Fit(client.Object)
	// String says what is served.
	String() string
}

// Records is what the broker holds, as far as is known: all of it, and as much as a round of one scope looks at.
type Records interface {
	View() broker.View
	// Service has the records of one service alone, and Gateways the Endpoints of all members' gateways.
	Service(clusterset.Key) broker.View
	Gateways() broker.View
	// Services are those that there are records of.
	Services() []clusterset.Key
	// Trust has nobody Awaited any more.
	Trust()
}

// Validate reports every problem of the configuration.
func (c Config) Validate() error {
	var problems []error
	if err := clusterset.CheckClusterID(c.ClusterID); err != nil {
		problems = append(problems, err)
	}
	if c.BrokerNamespace == "" {
		problems = append(problems, errors.New("agent: no namespace on the broker"))
	}
	if c.Reader == nil || c.Local == nil || c.Broker == nil || c.Records == nil || c.Connected == nil {
		problems = append(problems, errors.New("agent: a reader, two clients, a view and the state of the connection are needed"))
	}
	if c.Event == nil || c.Now == nil || c.Metrics == nil || c.Log == nil {
		problems = append(problems, errors.New("agent: events, a clock, metrics and a log are needed"))
	}
	return errors.Join(problems...)
}

const (
	// resync finds what no watch tells of. Nothing is known that would need it.
	resync = 5 * time.Minute
	// backoff is short: most failures are a write upon an object that has just changed.
	backoff = 100 * time.Millisecond
	// workers of a loop. They wait for answers to writes most of the time.
	workers = 8
)

// Agent is made with New.
type Agent struct {
	config   Config
	metrics  *metrics
	importer *converge.Keyed[scope] // applies the local side
	exporter *converge.Keyed[scope] // applies the broker's side
	reach    *reach
	local    *target // used by importer alone
	broker   *target // used by exporter alone

	mu      sync.Mutex
	refused map[scope]map[string]string // what the broker said to writes, see Snapshot.Refused
	warned  map[scope]string            // Services that were told what is wrong with them
	silent  []string                    // members that the log has as silent
}

// New makes an agent that does nothing yet.
func New(config Config) (*Agent, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{config: config, refused: map[scope]map[string]string{}, warned: map[scope]string{}}
	a.metrics = newMetrics(config.ClusterID, config.Connected, config.Records.View)
	if err := a.metrics.register(config.Metrics); err != nil {
		return nil, err
	}
	side := func(name string, writer client.Client, owns func(client.Object) bool) *target {
		return &target{writer: writer, now: time.Now, owns: owns, stamp: func(client.Object, client.Object) {}, wrote: map[string]written{}, count: func(verb string, object client.Object, failed bool) {
			a.metrics.wrote(name, object, failed)
		}}
	}
	a.local = side("local", config.Local, func(object client.Object) bool {
		return ours(object) || object.GetLabels()[discoveryv1.LabelManagedBy] == v1alpha1.ManagedBy
	})
	if config.API != nil {
		a.local.fit = config.API.Fit
	}
	a.broker = side("broker", config.Broker, func(client.Object) bool { return true }) // nobody else writes in the namespace
	a.broker.stamp = stampVersion(time.Now)
	a.reach = &reach{reader: config.Reader, poke: a.Poke, log: config.Log}
	loop := func(name string, round func(context.Context, scope) (time.Duration, error)) (*converge.Keyed[scope], error) {
		return converge.NewKeyed(converge.KeyedConfig[scope]{
			Name: name, Round: round, All: a.scopes, Workers: workers, Resync: resync, Backoff: backoff, Log: config.Log,
			Done: func(_ scope, took time.Duration) { a.metrics.converged(name, took) },
		})
	}
	var problems [2]error
	a.importer, problems[0] = loop("import", a.importRound)
	a.exporter, problems[1] = loop("export", a.exportRound)
	return a, errors.Join(problems[:]...)
}

// Poke asks both loops to look at everything.
func (a *Agent) Poke() {
	a.reach.observe(context.Background())
	a.importer.PokeAll()
	a.exporter.PokeAll()
}

// poke asks both loops to look at some scopes.
func (a *Agent) poke(scopes ...scope) {
	a.importer.Poke(scopes...)
	a.exporter.Poke(scopes...)
}

// Run converges until the context ends. The reader's caches must be filled.
func (a *Agent) Run(ctx context.Context) {
	if s, err := a.everything(ctx); err == nil && !s.imported() {
		a.config.Records.Trust() // a cluster that has just joined: there is nothing here that a backup could contradict
	}
	var loops sync.WaitGroup
	loops.Go(func() { a.importer.Run(ctx) })
	loops.Go(func() { a.exporter.Run(ctx) })
	loops.Wait()
}

func (a *Agent) importRound(ctx context.Context, of scope) (time.Duration, error) {
	s, p, err := a.plan(ctx, &of)
	if err != nil {
		return 0, err
	}
	again, err := a.applyLocal(ctx, of, s, p)
	a.metrics.saw(of, s, p)
	return again, err
}

// exportRound does nothing while the broker does not answer. When it does again, everything has a round.
func (a *Agent) exportRound(ctx context.Context, of scope) (time.Duration, error) {
	if !a.config.Connected() {
		return 0, nil
	}
	s, p, err := a.plan(ctx, &of)
	if err != nil {
		return 0, err
	}
	again, refused, err := a.applyBroker(ctx, s, p)
	if !maps.Equal(s.Refused, refused) {
		a.mu.Lock()
		a.refused[of] = refused
		if len(refused) == 0 {
			delete(a.refused, of)
		}
		a.mu.Unlock()
		a.importer.Poke(of) // a refusal is told of in a status
	}
	return again, err
}

// plan looks at one scope, or at everything where there is none, and says what should be.
func (a *Agent) plan(ctx context.Context, of *scope) (*Snapshot, *Plan, error) {
	started := time.Now()
	defer func() { a.metrics.planSeconds.Observe(time.Since(started).Seconds()) }()
	s, err := a.snapshot(ctx, of)
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot: %w", err)
	}
	p := BuildPlan(s)
	return s, &p, nil
}

// Ready says why the agent is not ready, or nil. The broker has no part in it: the agent is of use without.
func (a *Agent) Ready() error { return a.importer.Ready() }

// Settled says whether everything has been written to the broker that what was known by a time asks for.
func (a *Agent) Settled(by time.Time) bool { return a.exporter.Answered(by) }

// Shown is the snapshot of everything, what should be, and what cannot be done, as text.
func (a *Agent) Shown() string {
	s, p, err := a.plan(context.Background(), nil)
	if err != nil {
		return err.Error() + "\n"
	}
	text := s.String() + "\n" + p.String()
	if a.config.API != nil {
		text = a.config.API.String() + "\n" + text
	}
	for _, loop := range []*converge.Keyed[scope]{a.importer, a.exporter} {
		failing := loop.Failing()
		for _, of := range slices.SortedFunc(maps.Keys(failing), compareKeys) {
			text += fmt.Sprintf("\n# last error of %s\n%v\n", nameOfScope(of), failing[of])
		}
	}
	return text
}
