package converge

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// script runs a loop in virtual time and notes when each round began; fail says which rounds fail.
func script(t *testing.T, fail func(l *Loop, round int) bool, during func(l *Loop), until time.Duration) (rounds []time.Duration, log string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var loop *Loop
		var err error
		loop, err = New(Config{
			Name: "test", Resync: time.Minute, Backoff: time.Second, Log: slog.New(slog.NewTextHandler(&out, nil)),
			Round: func(context.Context) error {
				rounds = append(rounds, time.Since(start))
				if fail(loop, len(rounds)) {
					return errors.New("no such device")
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		go loop.Run(ctx)
		during(loop)
		time.Sleep(until - time.Since(start)) // virtual time: returns at once when all else is idle
		cancel()
		synctest.Wait()
		log = out.String()
	})
	return rounds, log
}

func seconds(rounds []time.Duration) string {
	var b strings.Builder
	for _, at := range rounds {
		b.WriteString(at.String() + " ")
	}
	return strings.TrimSpace(b.String())
}

func TestRounds(t *testing.T) {
	never := func(*Loop, int) bool { return false }
	for _, test := range []struct {
		name   string
		fail   func(*Loop, int) bool
		during func(*Loop)
		want   string
	}{
		{"at once, then on the timer", never, func(*Loop) {}, "0s 1m0s 2m0s"},
		{"a poke is a round", never, func(l *Loop) { time.Sleep(10 * time.Second); l.Poke() }, "0s 10s 1m10s 2m10s"},
		{"many pokes during a round are one more", func(l *Loop, n int) bool {
			for range 100 * (n % 2) {
				l.Poke()
			}
			return false
		}, func(*Loop) {}, "0s 0s 1m0s 1m0s 2m0s 2m0s"},
		{"failures wait twice as long each", func(_ *Loop, n int) bool { return n < 5 }, func(*Loop) {}, "0s 1s 3s 7s 15s 1m15s 2m15s"},
		{"a poke ends the wait, but not before the backoff", func(_ *Loop, n int) bool { return n <= 3 }, func(l *Loop) {
			time.Sleep(3100 * time.Millisecond)
			l.Poke()
		}, "0s 1s 3s 4s 1m4s 2m4s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rounds, _ := script(t, test.fail, test.during, 150*time.Second)
			if got := seconds(rounds); got != test.want {
				t.Errorf("rounds began at\n  %s, want\n  %s", got, test.want)
			}
		})
	}
}

func TestFailureIsLoggedOnceARoundAndRecoveryOnce(t *testing.T) {
	_, log := script(t, func(_ *Loop, n int) bool { return n <= 2 }, func(*Loop) {}, 90*time.Second)
	if got := strings.Count(log, "round failed"); got != 2 {
		t.Errorf("%d failures logged, want 2:\n%s", got, log)
	}
	if got := strings.Count(log, "round succeeded again"); got != 1 {
		t.Errorf("%d recoveries logged, want 1:\n%s", got, log)
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	_, err := New(Config{})
	for _, want := range []string{"no name", "no round", "backoff", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
