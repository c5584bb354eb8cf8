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
// Two loops make the same plan from the same kind of snapshot and apply one side of it each, so that a broker that does not
// answer never holds up the local cluster.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
	// View is what the broker holds, as far as is known, and Connected whether it answers.
	View      func() broker.View
	Connected func() bool
	// Event tells users of an object about it. Kind is Normal or Warning.
	Event func(object runtime.Object, kind, reason, message string)
	// Now is the clock of conditions.
	Now func() time.Time
	// Metrics takes the agent's metrics.
	Metrics prometheus.Registerer
	Log     *slog.Logger
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
	if c.Reader == nil || c.Local == nil || c.Broker == nil || c.View == nil || c.Connected == nil {
		problems = append(problems, errors.New("agent: a reader, two clients, a view and the state of the connection are needed"))
	}
	if c.Event == nil || c.Now == nil || c.Metrics == nil || c.Log == nil {
		problems = append(problems, errors.New("agent: events, a clock, metrics and a log are needed"))
	}
	return errors.Join(problems...)
}

const (
	// resync finds what no watch tells of: objects held for a broker's sake are let go by it.
	resync = 30 * time.Second
	// backoff is short: most failures are a write upon an object that has just changed.
	backoff = 100 * time.Millisecond
)

// Agent is made with New.
type Agent struct {
	config   Config
	metrics  *metrics
	importer *converge.Loop // applies the local side
	exporter *converge.Loop // applies the broker's side
	reach    *reach
	warned   map[clusterset.Key]string // Services that were told what is wrong with them; used by importer alone
	local    *target                   // used by importer alone
	broker   *target                   // used by exporter alone

	mu       sync.Mutex
	refused  map[string]string
	shown    string // for /debug/plan
	imported bool   // a local round has succeeded
}

// New makes an agent that does nothing yet.
func New(config Config) (*Agent, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{config: config, metrics: newMetrics(config.Connected)}
	if err := a.metrics.register(config.Metrics); err != nil {
		return nil, err
	}
	side := func(name string, writer client.Client) *target {
		return &target{writer: writer, now: time.Now, wrote: map[string]written{}, poke: a.Poke, count: func(verb, kind string, failed bool) {
			a.metrics.wrote(name, kind, failed)
		}}
	}
	a.local, a.broker = side("local", config.Local), side("broker", config.Broker)
	a.reach = &reach{reader: config.Reader, poke: a.Poke, log: config.Log}
	loop := func(name string, round func(context.Context) error) (*converge.Loop, error) {
		return converge.New(converge.Config{Name: name, Round: round, Resync: resync, Backoff: backoff, Log: config.Log})
	}
	var problems [2]error
	a.importer, problems[0] = loop("import", a.importRound)
	a.exporter, problems[1] = loop("export", a.exportRound)
	return a, errors.Join(problems[:]...)
}

// Poke asks both loops for a round.
func (a *Agent) Poke() {
	a.importer.Poke()
	a.exporter.Poke()
}

// Run converges until the context ends. The reader's caches must be filled.
func (a *Agent) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { a.importer.Run(ctx) })
	loops.Go(func() { a.exporter.Run(ctx) })
	loops.Wait()
}

func (a *Agent) importRound(ctx context.Context) error {
	s, p, err := a.plan(ctx)
	if err != nil {
		return err
	}
	err = a.applyLocal(ctx, s, p)
	a.metrics.saw(s, p)

	text := p.String()
	if err != nil {
		text += "\n# last error\n" + err.Error() + "\n"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.imported = a.imported || err == nil
	a.shown = s.String() + "\n" + text
	return err
}

func (a *Agent) exportRound(ctx context.Context) error {
	s, p, err := a.plan(ctx)
	if err != nil {
		return err
	}
	err = a.applyBroker(ctx, s, p)
	a.mu.Lock()
	changed := !maps.Equal(s.Refused, a.refused)
	a.mu.Unlock()
	if changed {
		a.importer.Poke() // a refusal is told of in a status
	}
	return err
}

func (a *Agent) plan(ctx context.Context) (*Snapshot, *Plan, error) {
	s, err := a.snapshot(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot: %w", err)
	}
	p := BuildPlan(s)
	return s, &p, nil
}

// Ready says why the agent is not ready, or nil. The broker has no part in it: the agent is of use without.
func (a *Agent) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.imported {
		return errors.New("no round has succeeded yet")
	}
	return nil
}

// Shown is the last snapshot, plan and error, as text.
func (a *Agent) Shown() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shown
}
