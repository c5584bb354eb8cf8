package liveness

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a path, and time that passes as far as it is told to.
type world struct {
	path    *Path
	now     time.Time
	random  *rand.Rand
	rtt     func() time.Duration
	lost    func() bool // one way
	dead    bool
	answers []answer // under way
	changes []string
	stopped time.Duration // for how long the observer is stopped, from its next probe on
	probes  int
}

type answer struct {
	sequence uint64
	at       time.Time
}

func start() time.Time { return time.Unix(1_000_000, 0) }

func newWorld(seed uint64) *world {
	w := &world{now: start(), random: rand.New(rand.NewPCG(seed, 7))}
	w.path = New(w.now)
	w.rtt = func() time.Duration { return time.Millisecond }
	w.lost = func() bool { return false }
	return w
}

// loss of a share of the packets, in each direction.
func (w *world) loss(share float64) *world {
	w.lost = func() bool { return w.random.Float64() < share }
	return w
}

func (w *world) changed(yes bool) {
	if yes {
		w.changes = append(w.changes, fmt.Sprintf("%s at %d", w.path.State(), w.now.Sub(start()).Milliseconds()))
	}
}

// run for some time. Probes go out up to 2 ms late, as timers are.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for {
		late := time.Duration(w.random.Int64N(int64(2*time.Millisecond))) + w.stopped
		next := w.path.Next().Add(late)
		if next.Before(w.now) {
			next = w.now
		}
		if i := slices.IndexFunc(w.answers, func(a answer) bool { return !a.at.After(next) }); i >= 0 && w.stopped == 0 && !w.answers[i].at.After(end) {
			w.now = w.answers[i].at
			w.changed(w.path.Answer(w.answers[i].sequence, w.now))
			w.answers = slices.Delete(w.answers, i, i+1)
			continue
		}
		if next.After(end) {
			w.now = end
			return
		}
		w.stopped = 0
		w.now = next
		sequence, changed := w.path.Probe(w.now)
		w.probes++
		w.changed(changed)
		if !w.dead && !w.lost() && !w.lost() {
			w.answers = append(w.answers, answer{sequence, w.now.Add(w.rtt())})
			slices.SortStableFunc(w.answers, func(a, b answer) int { return a.at.Compare(b.at) })
		}
	}
}

func (w *world) expect(t *testing.T, state State, changes int) {
	t.Helper()
	if w.path.State() != state || len(w.changes) != changes {
		t.Fatalf("path is %s after %v, want %s after %d changes", w.path.State(), w.changes, state, changes)
	}
}

func TestADeadPathIsDownWithin300ms(t *testing.T) {
	for _, rtt := range []time.Duration{100 * time.Microsecond, 2 * time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond} {
		var worst time.Duration
		for seed := range uint64(500) {
			w := newWorld(seed)
			w.rtt = func() time.Duration { return rtt + time.Duration(w.random.Int64N(int64(rtt)/4+1)) }
			w.run(2*time.Second + time.Duration(w.random.Int64N(int64(Pace))))
			w.expect(t, Up, 1)
			died := w.now
			w.dead, w.answers = true, nil
			w.run(5 * time.Second)
			w.expect(t, Down, 2)
			worst = max(worst, w.path.Since().Sub(died))
		}
		t.Logf("round-trip time %s: at most %s", rtt, worst)
		// Twice the round-trip time, which varies by a quarter.
		if worst > 300*time.Millisecond+2*rtt*5/4 {
			t.Errorf("round-trip time %s: down after %s", rtt, worst)
		}
	}
}

// By the sums in the package's comment one path in 38,000 would change.
func TestTenPercentLossChangesNothing(t *testing.T) {
	answered, sent := 0, 0
	for seed := range uint64(200) {
		w := newWorld(seed).loss(0.1)
		w.run(10 * time.Minute)
		w.expect(t, Up, 1)
		a, d := w.path.count(w.path.sent, remembered, time.Time{}, w.now)
		answered, sent = answered+a, sent+d
	}
	if loss := 1 - float64(answered)/float64(sent); math.Abs(loss-0.19) > 0.02 {
		t.Errorf("loss was measured as %.3f, want about 0.19", loss)
	}
}

// Now and then nothing is answered for a while, since there is no processor to do it, and all of it comes then. One such time may take a
// path down; the next ones do not, and it is not asked more often than one that answers at once. A dead path is found as soon after.
func TestWhoIsBusyIsNotDead(t *testing.T) {
	for seed := range uint64(100) {
		w := newWorld(seed)
		busyUntil := w.now
		w.rtt = func() time.Duration { return max(2*time.Millisecond, busyUntil.Sub(w.now)) }
		busy := func() {
			busyUntil = w.now.Add(400 * time.Millisecond)
			w.run(time.Second)
		}
		w.run(10 * time.Second)
		busy()
		before := len(w.changes)
		w.run(2 * time.Second)
		w.probes = 0
		for range 20 {
			busy()
		}
		if w.path.State() != Up || len(w.changes) > before+1 {
			t.Fatalf("path is %s after %v", w.path.State(), w.changes)
		}
		if w.probes > 20*20 {
			t.Fatalf("%d probes in 20 s", w.probes)
		}
		w.run(20 * time.Second)
		died, changes := w.now, len(w.changes)
		w.dead, w.answers = true, nil
		w.run(5 * time.Second)
		w.expect(t, Down, changes+1)
		if took := w.path.Since().Sub(died); took > 350*time.Millisecond {
			t.Fatalf("20 s later it was found dead after %s", took)
		}
	}
}

func TestItComesBackDespiteLoss(t *testing.T) {
	for seed := range uint64(300) {
		w := newWorld(seed).loss(0.1)
		w.run(time.Second)
		w.dead = true
		w.run(time.Duration(1+w.random.IntN(20)) * time.Second)
		w.expect(t, Down, 2)
		w.dead = false
		back := w.now
		w.run(3 * time.Second)
		w.expect(t, Up, 3)
		if took := w.path.Since().Sub(back); took < 10*EagerPace || took > 2*time.Second {
			t.Errorf("seed %d: up again after %s", seed, took)
		}
	}
}

// A path may come back as another way, or its other end be busy: how long answers took before must not keep it down.
func TestItComesBackSlower(t *testing.T) {
	for _, rtt := range []time.Duration{50 * time.Millisecond, 400 * time.Millisecond, 600 * time.Millisecond, 2 * time.Second} {
		for seed := range uint64(100) {
			w := newWorld(seed).loss(0.1)
			w.run(time.Second)
			w.dead = true
			w.run(time.Duration(1+w.random.IntN(20)) * time.Second)
			w.expect(t, Down, 2)
			w.dead, w.rtt = false, func() time.Duration { return rtt }
			w.run(5*time.Second + rtt)
			w.expect(t, Up, 3)
			w.run(time.Minute)
			w.expect(t, Up, 3)
			if is := w.path.RTT(); is < rtt-time.Millisecond || is > rtt+time.Millisecond {
				t.Errorf("round-trip time %s was measured as %s", rtt, is)
			}
		}
	}
}

// A path that comes and goes is asked for longer and longer; one that stays for a minute has a clean slate.
func TestWhatFlapsIsAskedForLonger(t *testing.T) {
	for seed := range uint64(50) {
		w := newWorld(seed).loss(0.03)
		w.run(time.Second)
		fail := func() (back time.Duration) {
			t.Helper()
			w.dead = true
			w.run(time.Second)
			if w.path.State() != Down {
				t.Fatalf("it is %s", w.path.State())
			}
			w.dead = false
			since := w.now
			for w.path.State() != Up && w.now.Sub(since) < time.Minute {
				w.run(10 * time.Millisecond)
			}
			return w.now.Sub(since)
		}
		for i, least := range []float64{0.5, 2, 4, 8, 16, 30, 30} {
			if took := fail().Seconds(); took < least-0.2 || took > least+1.6 {
				t.Errorf("seed %d: after failure %d it was up again after %.2f s, want at least %.1f", seed, i, took, least)
			}
			w.run(time.Second)
		}
		w.run(forgiven)
		if took := fail(); took > 2*time.Second {
			t.Errorf("seed %d: after a minute it was up again after %s", seed, took)
		}
	}
}

// Who says farewell may come and go as often as he wants; what goes without one after that flaps again.
func TestWhoSaysFarewellDoesNotFlap(t *testing.T) {
	w := newWorld(1)
	w.run(time.Second)
	goes := func(farewell bool) (back time.Duration) {
		w.path.Leaving(farewell)
		w.dead = true
		w.run(time.Second)
		w.path.Leaving(false)
		w.dead = false
		since := w.now
		for w.path.State() != Up && w.now.Sub(since) < time.Minute {
			w.run(10 * time.Millisecond)
		}
		w.run(time.Second)
		return w.now.Sub(since) - time.Second
	}
	for i, farewell := range []bool{true, true, true, true, false, false, true, true, false} {
		least := []time.Duration{0, 0, 0, 0, 2 * time.Second, 4 * time.Second, 0, 0, 2 * time.Second}[i]
		if took := goes(farewell); took < least-200*time.Millisecond || took > least+1200*time.Millisecond {
			t.Errorf("time %d, farewell %t: it was up again after %s, want at least %s", i, farewell, took, least)
		}
	}
}

// A gateway on this very node is up with its first answer, however often it was down.
func TestNearIsUpWithTheFirstAnswer(t *testing.T) {
	w := newWorld(1)
	w.path.Near(true)
	w.run(time.Second)
	for n := range 5 {
		w.dead = true
		w.run(time.Second)
		w.expect(t, Down, 2*n+2)
		w.dead = false
		w.run(2 * SlowPace)
		w.expect(t, Up, 2*n+3)
	}
}

// What recovers and goes again before it was up for good begins anew.
func TestFlappingWhileAsked(t *testing.T) {
	w := newWorld(1)
	w.run(time.Second)
	for range 6 {
		w.dead = true
		w.run(time.Second)
		w.dead = false
		w.run(1500 * time.Millisecond)
	}
	// From its second time on, 2 s are never answered.
	if ups := strings.Count(strings.Join(w.changes, ","), "up at"); ups != 2 {
		t.Errorf("it was up %d times: %v", ups, w.changes)
	}
}

// What is asked for long is recovering meanwhile, also where the way has become longer; and down at once when it goes again.
func TestRecovering(t *testing.T) {
	for _, rtt := range []time.Duration{time.Millisecond, 400 * time.Millisecond} {
		for seed := range uint64(50) {
			w := newWorld(seed).loss(0.1)
			for range 4 {
				for w.path.State() != Up {
					w.run(10 * time.Millisecond)
				}
				w.run(time.Second)
				w.dead = true
				w.run(time.Second)
				w.dead = false
			}
			w.rtt = func() time.Duration { return rtt }
			w.run(2*time.Second + 2*rtt)
			if w.path.State() != Recovering {
				t.Fatalf("it is %s after %v", w.path.State(), w.changes)
			}
			changes := len(w.changes)
			w.run(2 * time.Second)
			w.expect(t, Recovering, changes)
			died := w.now
			w.dead, w.answers = true, nil
			w.run(time.Second + 2*rtt)
			w.expect(t, Down, changes+1)
			if took := w.path.Since().Sub(died); took > 300*time.Millisecond+2*rtt {
				t.Errorf("round-trip time %s: down after %s", rtt, took)
			}
			w.dead = false
			w.run(time.Minute)
			w.expect(t, Up, changes+3)
		}
	}
}

// A path that answers now and then does not come back.
func TestSingleAnswersBringNoPathBack(t *testing.T) {
	w := newWorld(1)
	w.run(time.Second)
	w.dead = true
	w.run(time.Second)
	w.dead = false
	w.lost = func() bool { return w.random.Float64() < 0.6 } // 16 % come through
	w.run(10 * time.Minute)
	w.expect(t, Down, 2)
}

func TestWhoIsStoppedBlamesNoPath(t *testing.T) {
	for seed := range uint64(100) {
		w := newWorld(seed)
		w.run(time.Second)
		for range 20 {
			w.stopped = stall + time.Duration(w.random.Int64N(int64(10*time.Second)))
			w.run(w.stopped + time.Second)
		}
		w.expect(t, Up, 1)
		// Not even where answers are lost at that moment; but a path that died meanwhile is noticed.
		w.dead, w.answers = true, nil
		w.stopped = 5 * time.Second
		w.run(5*time.Second + 400*time.Millisecond)
		w.expect(t, Down, 2)
	}
}

func TestUntilTheFirstAnswerNothingIsKnown(t *testing.T) {
	w := newWorld(1)
	w.dead = true
	w.run(time.Hour)
	w.expect(t, Unknown, 0)
	if perSecond := float64(w.probes) / 3600; perSecond > 5.1 {
		t.Errorf("%.1f probes a second where nobody answers", perSecond)
	}
	w.dead = false
	w.run(2 * SlowPace)
	w.expect(t, Up, 1)
}

func TestResumed(t *testing.T) {
	w := newWorld(1)
	since := start().Add(-time.Hour)
	w.path = Resume(since, w.now, 20*time.Millisecond)
	w.rtt = func() time.Duration { return 20 * time.Millisecond }
	w.run(time.Second)
	w.expect(t, Up, 0)
	if w.path.Since() != since {
		t.Errorf("up since %s, want %s", w.path.Since(), since)
	}
	w.path = Resume(since, w.now, 20*time.Millisecond)
	w.dead, w.answers = true, nil
	w.run(350 * time.Millisecond)
	w.expect(t, Down, 1)
}

func TestRTTLeavesOutTheHandshake(t *testing.T) {
	w := newWorld(1)
	w.rtt = func() time.Duration { return start().Add(time.Second).Sub(w.now) } // all answers come when the handshake is done
	w.run(990 * time.Millisecond)
	w.rtt = func() time.Duration { return 8 * time.Millisecond }
	w.run(3 * time.Second)
	w.expect(t, Up, 1)
	if rtt := w.path.RTT(); rtt < 7*time.Millisecond || rtt > 9*time.Millisecond {
		t.Errorf("round-trip time %s, want 8 ms", rtt)
	}
}

func TestPaces(t *testing.T) {
	w := newWorld(1)
	w.run(10 * time.Second)
	if w.probes < 105 || w.probes > 113 {
		t.Errorf("%d probes in 10 s", w.probes)
	}
	w.rtt = func() time.Duration { return 150 * time.Millisecond }
	w.run(5 * time.Second)
	w.probes = 0
	w.run(11 * time.Second)
	if w.probes < 60 || w.probes > 90 {
		t.Errorf("%d probes in 11 s of a long way", w.probes)
	}
	if loss := w.path.Loss(w.now); loss != 0 {
		t.Errorf("loss %f where none was", loss)
	}
	w.path.Seldom(true, w.now)
	w.probes = 0
	w.run(20 * time.Second)
	if w.probes < 37 || w.probes > 42 {
		t.Errorf("%d probes in 20 s, seldom", w.probes)
	}
	w.path.Seldom(false, w.now)
	w.probes = 0
	w.run(300 * time.Millisecond)
	w.expect(t, Up, 1)
	if w.probes < 2 {
		t.Errorf("%d probes in 300 ms, no longer seldom", w.probes)
	}
	w.dead = true
	w.run(time.Minute)
	w.probes = 0
	w.run(time.Minute)
	if w.probes < 290 || w.probes > 301 {
		t.Errorf("%d probes a minute to one who has been silent for long", w.probes)
	}
	if loss := w.path.Loss(w.now); loss != 1 {
		t.Errorf("loss %f where nothing came", loss)
	}
}

// Probes go out together where nothing is missing, and a moment later or never where something is.
func TestDue(t *testing.T) {
	w := newWorld(1)
	w.run(10 * time.Second)
	due := func(early time.Duration) bool { return w.path.Due(w.path.Next().Add(-early)) }
	if !due(0) || !due(together) || due(together+1) {
		t.Errorf("a path that answers is due %t, %t, %t", due(0), due(together), due(together+1))
	}
	w.dead = true
	w.run(200 * time.Millisecond)
	if w.path.State() != Up || !due(0) || due(1) {
		t.Errorf("a path that misses answers, %s, is due %t, %t", w.path.State(), due(0), due(1))
	}
}

// Whatever happens, in any order: an answer that is none changes nothing, time between two probes is one of four, states
// follow each other as they may, and each change is told of exactly once.
func TestAnythingGoes(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 3))
		now := start()
		p := New(now)
		var sent []uint64
		for range 3000 {
			before, since := p.State(), p.Since()
			changed := false
			switch random.IntN(5) {
			case 0, 1:
				var sequence uint64
				sequence, changed = p.Probe(now)
				if len(sent) > 0 && sequence != sent[len(sent)-1]+1 {
					t.Fatalf("sequence number %d after %d", sequence, sent[len(sent)-1])
				}
				sent = append(sent, sequence)
				if wait := p.Next().Sub(now); wait != EagerPace && wait != HastyPace && wait != SlowPace && wait != p.RTT()+grace+p.lateness(now) {
					t.Fatalf("the next probe in %s", wait)
				}
				if p.State() == Up && before != Up {
					t.Fatal("up by a probe")
				}
			case 2, 3:
				if len(sent) > 0 {
					sequence := sent[max(0, len(sent)-1-random.IntN(300))]
					changed = p.Answer(sequence, now)
					if p.Answer(sequence, now) {
						t.Fatal("a second answer counts")
					}
				}
				for _, wrong := range []uint64{0, math.MaxUint64, uint64(len(sent)) + 1} {
					if p.Answer(wrong, now) {
						t.Fatalf("an answer to probe %d counts", wrong)
					}
				}
				if p.State() == Down && before != Down {
					t.Fatal("down by an answer")
				}
			case 4:
				now = now.Add(time.Duration(random.Int64N(int64(200 * time.Millisecond))))
			}
			if changed != (p.State() != before) || !changed && p.Since() != since || p.State() == Unknown && before != Unknown {
				t.Fatalf("%s since %s became %s since %s, told: %t", before, since, p.State(), p.Since(), changed)
			}
			if loss := p.Loss(now); loss < 0 || loss > 1 {
				t.Fatalf("loss %f", loss)
			}
		}
	}
}
