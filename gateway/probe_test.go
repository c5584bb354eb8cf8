package gateway

import (
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// A script of a cable: "p" is a probe that goes out, "a" an answer to it. The state after each is one letter: c, u, d.
func TestTrack(t *testing.T) {
	for name, test := range map[string]struct{ script, want string }{
		"the first answer is enough":                 {"ppa", "ccu"},
		"one lost answer is nothing":                 {"papppa", "cuuuuu"},
		"down after five without an answer":          {"papppppp", "cuuuuuud"},
		"up again after two answers in a row":        {"pappppppapapa", "cuuuuuuddduuu"},
		"one answer between losses is not enough":    {"pappppppappa", "cuuuuuuddddd"},
		"never answered is connecting, not down":     {"pppppppppppp", "cccccccccccc"},
		"a late answer within the limit keeps it up": {"papppppapp", "cuuuuuuuuu"},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			track := newTrack(now)
			got := ""
			for _, step := range test.script {
				if step == 'p' {
					now = now.Add(probeInterval)
					track.probed(now)
				} else {
					track.answered(now, now.Add(-time.Millisecond))
				}
				got += string(track.health.State)[:1]
			}
			if got != test.want {
				t.Errorf("%s: states %s, want %s", test.script, got, test.want)
			}
		})
	}
}

func TestRTTLeavesOutTheHandshake(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, 0).Add(time.Duration(ms) * time.Millisecond) }
	track := newTrack(at(0))
	for _, step := range []struct {
		sent, now int
		want      time.Duration
		changed   bool
	}{
		{0, 1000, 0, true},                        // up; the probe has waited for the handshake
		{500, 1001, 0, false},                     // so has the next one
		{1500, 1508, 8 * time.Millisecond, true},  // the first that has not: the time is known
		{2000, 2016, 9 * time.Millisecond, false}, // smoothed
		{2500, 2501, 8 * time.Millisecond, false},
	} {
		if changed := track.answered(at(step.now), at(step.sent)); changed != step.changed || track.health.RTT != step.want {
			t.Errorf("sent at %d ms, answered at %d: RTT %s, changed %t; want %s, %t", step.sent, step.now, track.health.RTT, changed, step.want, step.changed)
		}
	}
}

func TestAttemptsCountAddressesTried(t *testing.T) {
	track := newTrack(time.Unix(0, 0))
	changes := 0
	for range attemptAfter + 1 {
		if track.probed(time.Unix(1, 0)) {
			changes++
		}
	}
	if track.health.Attempts != 1 || changes != 1 {
		t.Errorf("%d attempts and %d changes after %d probes, want one of each", track.health.Attempts, changes, attemptAfter+1)
	}
}

func TestHandshakesStandInWhereThereCanBeNoProbes(t *testing.T) {
	now := time.Unix(10000, 0)
	track := newTrack(now)
	for _, step := range []struct {
		last time.Time
		want v1alpha1.CableState
	}{{time.Time{}, v1alpha1.CableConnecting}, {now.Add(-time.Minute), v1alpha1.CableUp}, {now.Add(-handshakeLife), v1alpha1.CableDown}, {now, v1alpha1.CableUp}} {
		if track.handshake(now, step.last); track.health.State != step.want {
			t.Errorf("last handshake %s: %s, want %s", step.last, track.health.State, step.want)
		}
	}
}
