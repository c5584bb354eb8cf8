// Package converge is the one loop of Fastnet's daemons: something changed, so look at everything again, plan, apply.
//
// A change is only ever a poke, without content: a missed or doubled event cannot leave a wrong state behind. Pokes that
// come while a round runs are answered by one more round, and a failed round is tried again by itself.
package converge

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Config says what a Loop does.
type Config struct {
	// Name of the loop in its log lines.
	Name string
	// Round looks, plans and applies, whole. Its error is logged here, once, and leads to another round.
	Round func(context.Context) error
	// Resync is the longest time between two rounds: what no watch tells of is found by then.
	Resync time.Duration
	// Backoff is the wait after a first failure; it doubles with each further one, up to Resync. A poke ends the wait
	// early, though never earlier than Backoff after the failure, so that a failing round that pokes cannot spin.
	Backoff time.Duration
	// Log takes one line for each failed round, and one when all is well again.
	Log *slog.Logger
}

// Validate reports every problem of the configuration.
func (c Config) Validate() error {
	var problems []error
	if c.Name == "" {
		problems = append(problems, errors.New("converge: no name"))
	}
	if c.Round == nil {
		problems = append(problems, errors.New("converge: no round"))
	}
	if c.Backoff <= 0 || c.Resync < c.Backoff {
		problems = append(problems, errors.New("converge: want 0 < backoff <= resync"))
	}
	if c.Log == nil {
		problems = append(problems, errors.New("converge: no log"))
	}
	return errors.Join(problems...)
}

// Loop runs rounds. Make it with New.
type Loop struct {
	config Config
	poked  chan struct{} // holds one: any number of pokes is one reason for a round
}

// New makes a loop that does nothing yet. It fails on an invalid configuration.
func New(config Config) (*Loop, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Loop{config: config, poked: make(chan struct{}, 1)}, nil
}

// Poke asks for a round, soon. It never blocks and may be called from anywhere, before Run too.
func (l *Loop) Poke() {
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

// Run runs a first round at once and goes on until the context ends; it returns when the round under way is over.
func (l *Loop) Run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		err := l.config.Round(ctx)
		wait := l.config.Resync
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = l.backoff(failures)
			failures++
			l.config.Log.Error("round failed", "loop", l.config.Name, "error", err, "failures", failures, "retry", wait)
		case failures > 0:
			l.config.Log.Info("round succeeded again", "loop", l.config.Name, "failures", failures)
			failures = 0
		}
		if err != nil && !pause(ctx, l.config.Backoff, nil) {
			return
		}
		if err != nil {
			wait -= l.config.Backoff
		}
		if !pause(ctx, wait, l.poked) {
			return
		}
	}
}

func (l *Loop) backoff(failures int) time.Duration {
	wait := l.config.Backoff
	for range failures {
		if wait *= 2; wait >= l.config.Resync {
			return l.config.Resync
		}
	}
	return wait
}

// pause waits for the time to pass or for a poke, and reports whether the context still stands.
func pause(ctx context.Context, wait time.Duration, poked <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-poked:
	case <-timer.C:
	}
	return ctx.Err() == nil
}
