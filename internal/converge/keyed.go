package converge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
)

// KeyedConfig says what a Keyed does.
type KeyedConfig[K comparable] struct {
	// Name of the loop in its log lines.
	Name string
	// Round looks at one key, plans and applies, whole. Never two rounds of one key run at once. An error leads to another
	// round; a positive again to one after that time, though nobody pokes.
	Round func(ctx context.Context, key K) (again time.Duration, err error)
	// All names every key that there is. All of them have a round at the start, and every Resync.
	All func() []K
	// Workers is how many rounds run at once.
	Workers int
	// Resync and Backoff are as in Config, but that a poke may end the wait after a failure at once.
	Resync, Backoff time.Duration
	// Done, where set, is told how long it took from a poke to the end of the round that answered it.
	Done func(key K, took time.Duration)
	// Log takes one line when rounds begin to fail, one every ten seconds while some do, and one when all is well again.
	Log *slog.Logger
}

// Validate reports every problem of the configuration.
func (c KeyedConfig[K]) Validate() error {
	var problems []error
	if c.Name == "" {
		problems = append(problems, errors.New("converge: no name"))
	}
	if c.Round == nil || c.All == nil {
		problems = append(problems, errors.New("converge: no round, or nothing that names all keys"))
	}
	if c.Workers <= 0 {
		problems = append(problems, errors.New("converge: no workers"))
	}
	if c.Backoff <= 0 || c.Resync < c.Backoff {
		problems = append(problems, errors.New("converge: want 0 < backoff <= resync"))
	}
	if c.Log == nil {
		problems = append(problems, errors.New("converge: no log"))
	}
	return errors.Join(problems...)
}

// Keyed is the same loop for many things that have nothing to do with each other: a change of one is a round of one, and
// thousands of others do not hold it up. Between a poke and its round there is nothing but the rounds of keys that were
// poked before. Make it with NewKeyed.
type Keyed[K comparable] struct {
	config KeyedConfig[K]

	mu      sync.Mutex
	queue   priorityqueue.PriorityQueue[K] // nil before Run: everything has a round then
	since   map[K]time.Time                // poked, and not answered yet
	rounds  map[K]time.Time                // of rounds under way, when they were poked
	unmet   map[K]bool                     // of the first keys, those without a good round; nil before Run
	failing map[K]error
	logged  time.Time
}

// Priorities of a round: what somebody waits for, what changed for all at once, and what is looked at for safety.
var urgent, ordinary, idle = 2, 1, 0

// failuresLogged is the least time between two log lines on failing rounds: one API server that is away fails them all.
const failuresLogged = 10 * time.Second

// NewKeyed makes a loop that does nothing yet. It fails on an invalid configuration.
func NewKeyed[K comparable](config KeyedConfig[K]) (*Keyed[K], error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Keyed[K]{config: config, since: map[K]time.Time{}, rounds: map[K]time.Time{}, failing: map[K]error{}}, nil
}

// Poke asks for a round of each key, before those that PokeAll asked for. It never blocks and may be called from anywhere.
func (l *Keyed[K]) Poke(keys ...K) { l.add(urgent, true, keys...) }

// PokeAll asks for a round of every key.
func (l *Keyed[K]) PokeAll() { l.add(ordinary, true, l.config.All()...) }

func (l *Keyed[K]) add(priority int, awaited bool, keys ...K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queue == nil {
		return
	}
	if awaited {
		now := time.Now()
		for _, key := range keys {
			if _, ok := l.since[key]; !ok {
				l.since[key] = now
			}
		}
	}
	l.queue.AddWithOpts(priorityqueue.AddOpts{Priority: &priority}, keys...)
}

// Run begins with a round of every key, and goes on until the context ends; it returns when the rounds under way are over.
func (l *Keyed[K]) Run(ctx context.Context) {
	queue := priorityqueue.New(l.config.Name, func(o *priorityqueue.Opts[K]) {
		o.RateLimiter = workqueue.NewTypedItemExponentialFailureRateLimiter[K](l.config.Backoff, l.config.Resync)
	})
	first := l.config.All()
	l.mu.Lock()
	l.queue, l.unmet = queue, map[K]bool{}
	for _, key := range first {
		l.unmet[key] = true
	}
	l.mu.Unlock()
	l.PokeAll() // after the queue is there: what came to be meanwhile is in it as well

	var workers sync.WaitGroup
	for range l.config.Workers {
		workers.Go(func() {
			for {
				key, _, stopped := queue.GetWithPriority()
				if stopped {
					return
				}
				l.round(ctx, key)
			}
		})
	}
	ticker := time.NewTicker(l.config.Resync)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			l.add(idle, false, l.config.All()...)
		}
	}
	queue.ShutDown()
	workers.Wait()
}

func (l *Keyed[K]) round(ctx context.Context, key K) {
	defer l.queue.Done(key)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	poked, awaited := l.since[key]
	delete(l.since, key) // what is poked from here on is another round's
	if awaited {
		l.rounds[key] = poked
	}
	l.mu.Unlock()

	again, err := l.config.Round(ctx, key)
	l.mu.Lock()
	delete(l.rounds, key)
	if awaited && err != nil {
		l.since[key] = poked
	}
	l.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	l.note(key, err)
	if err != nil {
		l.queue.AddWithOpts(priorityqueue.AddOpts{Priority: &ordinary, RateLimited: true}, key)
		return
	}
	l.queue.Forget(key)
	if again > 0 {
		l.queue.AddWithOpts(priorityqueue.AddOpts{Priority: &ordinary, After: again}, key)
	}
	if awaited && l.config.Done != nil {
		l.config.Done(key, time.Since(poked))
	}
}

// note keeps how a round went, and logs it where that is worth a line.
func (l *Keyed[K]) note(key K, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.failing)
	if err == nil {
		delete(l.failing, key)
		delete(l.unmet, key)
		if before > 0 && len(l.failing) == 0 {
			l.logged = time.Time{}
			l.config.Log.Info("all rounds succeed again", "loop", l.config.Name)
		}
		return
	}
	l.failing[key] = err
	if now := time.Now(); now.Sub(l.logged) >= failuresLogged {
		l.logged = now
		l.config.Log.Error("round failed", "loop", l.config.Name, "key", key, "error", err, "failing", len(l.failing))
	}
}

// Ready says why the loop is not ready, or nil: every key that there was at the start has had a good round.
func (l *Keyed[K]) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unmet == nil {
		return fmt.Errorf("%s: has not begun", l.config.Name)
	}
	if len(l.unmet) > 0 {
		return fmt.Errorf("%s: %d first rounds have not succeeded yet", l.config.Name, len(l.unmet))
	}
	return nil
}

// Answered says whether every poke before a time has been answered by a good round, and the first rounds have been good.
func (l *Keyed[K]) Answered(before time.Time) bool {
	if l.Ready() != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, waiting := range []map[K]time.Time{l.since, l.rounds} {
		for _, poked := range waiting {
			if poked.Before(before) {
				return false
			}
		}
	}
	return true
}

// Failing is the last error of every key whose last round failed.
func (l *Keyed[K]) Failing() map[K]error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.failing)
}
