package converge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// keyedScript runs a keyed loop over the keys a, b and c with one worker, in virtual time, and notes its rounds: "a@0s".
// A round takes what lasts says, and fails while fail says so.
type keyedScript struct {
	lasts  map[string]time.Duration
	fail   func(key string, at time.Duration) bool
	again  func(key string, at time.Duration) time.Duration
	during func(l *Keyed[string])
	until  time.Duration

	rounds, done []string
	log          string
	ready        []error // as it began, and at the end
}

func (s *keyedScript) run(t *testing.T) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var mu sync.Mutex
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		loop, err := NewKeyed(KeyedConfig[string]{
			Name: "test", Workers: 1, Resync: time.Minute, Backoff: time.Second, Log: slog.New(slog.NewTextHandler(&out, nil)),
			All: func() []string { return []string{"a", "b", "c"} },
			Round: func(_ context.Context, key string) (time.Duration, error) {
				at := time.Since(start)
				mu.Lock()
				s.rounds = append(s.rounds, fmt.Sprintf("%s@%v", key, at))
				mu.Unlock()
				time.Sleep(s.lasts[key])
				if s.fail != nil && s.fail(key, at) {
					return 0, errors.New("no such device")
				}
				if s.again != nil {
					return s.again(key, at), nil
				}
				return 0, nil
			},
			Done: func(key string, took time.Duration) {
				mu.Lock()
				s.done = append(s.done, fmt.Sprintf("%s+%v", key, took))
				mu.Unlock()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.ready = append(s.ready, loop.Ready())
		loop.Poke("a") // before Run: all keys have a round anyway
		ended := make(chan struct{})
		go func() { loop.Run(ctx); close(ended) }()
		synctest.Wait()
		if s.during != nil {
			s.during(loop)
		}
		time.Sleep(s.until - time.Since(start))
		s.ready = append(s.ready, loop.Ready())
		cancel()
		<-ended
		s.log = out.String()
	})
}

// first are the rounds of the start, in any order.
func (s *keyedScript) first(t *testing.T) []string {
	t.Helper()
	if len(s.rounds) < 3 {
		t.Fatalf("rounds %q", s.rounds)
	}
	begin := slices.Sorted(slices.Values(s.rounds[:3]))
	if got := strings.Join(begin, " "); !strings.HasPrefix(got, "a@") || !strings.Contains(got, "b@") || !strings.Contains(got, "c@") {
		t.Errorf("began with %s", got)
	}
	return s.rounds[3:]
}

func TestKeyedPokeIsARoundOfOneKey(t *testing.T) {
	s := &keyedScript{lasts: map[string]time.Duration{"b": time.Second}, until: 59 * time.Second, during: func(l *Keyed[string]) {
		time.Sleep(10 * time.Second)
		for range 100 {
			l.Poke("b", "b")
		}
	}}
	s.run(t)
	// Those that come while its round runs are one more.
	if got := strings.Join(s.first(t), " "); got != "b@10s" && got != "b@10s b@11s" {
		t.Errorf("rounds %s after the first", got)
	}
	if s.ready[0] == nil || s.ready[1] != nil {
		t.Errorf("ready: %v", s.ready)
	}
	if last := s.done[len(s.done)-1]; last != "b+1s" && last != "b+2s" {
		t.Errorf("took %q", s.done)
	}
}

func TestKeyedResyncLooksAtAll(t *testing.T) {
	s := &keyedScript{until: 61 * time.Second}
	s.run(t)
	if got := strings.Join(slices.Sorted(slices.Values(s.first(t))), " "); got != "a@1m0s b@1m0s c@1m0s" {
		t.Errorf("rounds %s", got)
	}
}

// What somebody waits for is not held up by what is looked at for all.
func TestKeyedPokeComesBeforePokeAll(t *testing.T) {
	s := &keyedScript{
		lasts: map[string]time.Duration{"a": time.Second, "b": time.Second, "c": time.Second}, until: 30 * time.Second,
		during: func(l *Keyed[string]) {
			time.Sleep(10 * time.Second)
			l.Poke("a")
			time.Sleep(time.Millisecond)
			l.PokeAll()
			l.Poke("c")
		},
	}
	s.run(t)
	rounds := s.first(t)
	if got := strings.Join(rounds[:2], " "); got != "a@10s c@11s" {
		t.Errorf("rounds %s", strings.Join(rounds, " "))
	}
	// The poke during a's own round is one more round of it, after c's.
	if got := strings.Join(slices.Sorted(slices.Values(rounds[2:])), " "); got != "a@12s b@13s" && got != "a@13s b@12s" {
		t.Errorf("rounds %s", strings.Join(rounds, " "))
	}
}

func TestKeyedFailureIsTriedAgainAlone(t *testing.T) {
	s := &keyedScript{until: 20 * time.Second, fail: func(key string, at time.Duration) bool { return key == "b" && at < 5*time.Second }}
	s.run(t)
	if got := strings.Join(s.first(t), " "); got != "b@1s b@3s b@7s" {
		t.Errorf("rounds %s", got)
	}
	if failed, again := strings.Count(s.log, "round failed"), strings.Count(s.log, "all rounds succeed again"); failed != 1 || again != 1 {
		t.Errorf("%d lines on failures, %d on the recovery:\n%s", failed, again, s.log)
	}
	if got := s.done[len(s.done)-1]; got != "b+7s" {
		t.Errorf("b's round was done as %s, want all the time since its poke", got)
	}
}

func TestKeyedPokeEndsTheWaitAfterAFailure(t *testing.T) {
	s := &keyedScript{until: 20 * time.Second, fail: func(key string, at time.Duration) bool { return key == "b" && at < 2*time.Second },
		during: func(l *Keyed[string]) { time.Sleep(2500 * time.Millisecond); l.Poke("b") }}
	s.run(t)
	if got := strings.Join(s.first(t), " "); got != "b@1s b@2.5s" {
		t.Errorf("rounds %s", got)
	}
}

func TestKeyedAgain(t *testing.T) {
	s := &keyedScript{until: 20 * time.Second, again: func(key string, at time.Duration) time.Duration {
		if key == "a" && at < time.Second {
			return 2 * time.Second
		}
		return 0
	}}
	s.run(t)
	if got := strings.Join(s.first(t), " "); got != "a@2s" {
		t.Errorf("rounds %s", got)
	}
}

// An API server that is away fails every round: the log says so, and not thousands of times.
func TestKeyedLogOfManyFailures(t *testing.T) {
	s := &keyedScript{until: 35 * time.Second, fail: func(string, time.Duration) bool { return true },
		during: func(l *Keyed[string]) {
			for range 30 {
				time.Sleep(time.Second)
				l.Poke("a", "b", "c")
			}
		}}
	s.run(t)
	if got := strings.Count(s.log, "round failed"); got < 3 || got > 4 {
		t.Errorf("%d lines in 35 s:\n%s", got, s.log)
	}
	if !strings.Contains(s.log, "failing=3") {
		t.Errorf("the log does not say how many fail:\n%s", s.log)
	}
}

func TestKeyedConfigReportsEveryProblem(t *testing.T) {
	_, err := NewKeyed(KeyedConfig[string]{})
	for _, want := range []string{"no name", "no round", "no workers", "backoff", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// TestAnswered: what was poked before a time is answered when its rounds, and the first ones, have been good.
func TestAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good atomic.Bool
		loop, err := NewKeyed(KeyedConfig[string]{
			Name: "test", Workers: 1, Resync: time.Hour, Backoff: time.Second, Log: slog.New(slog.DiscardHandler),
			All: func() []string { return []string{"a"} },
			Round: func(context.Context, string) (time.Duration, error) {
				time.Sleep(time.Second)
				if !good.Load() {
					return 0, errors.New("not yet")
				}
				return 0, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		check := func(when string, before time.Time, want bool) {
			t.Helper()
			if got := loop.Answered(before); got != want {
				t.Errorf("%s: answered %t, want %t", when, got, want)
			}
		}
		pass := func(d time.Duration) time.Time { time.Sleep(d); synctest.Wait(); return time.Now() }
		start := time.Now()
		check("before it runs", start, false)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { loop.Run(ctx) })
		check("while the first round fails", pass(1500*time.Millisecond), false)
		check("for nothing that was poked, before the first good round", start, false)
		good.Store(true)
		poked := pass(5 * time.Second)
		check("at rest", poked, true)
		loop.Poke("a")
		check("by what came before", poked, true)
		check("by what is poked", pass(time.Millisecond), false)
		later := pass(10 * time.Millisecond)
		loop.Poke("a")
		check("by a round that goes on", later, false)
		pass(time.Second)
		check("by it, when it is over, though another goes on", later, true)
		good.Store(false)
		pass(time.Second)
		check("by one that failed", time.Now(), false)
		cancel()
		running.Wait()
	})
}
