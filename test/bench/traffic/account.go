package traffic

import "time"

// tally is a flow as the sink sees it.
type tally struct {
	tcp         bool
	connections int

	started       bool
	highest       uint64    // sequence number
	last          time.Time // arrival
	stalled       time.Duration
	base          uint64 // highest when the window began
	received, run uint64
	gap           time.Duration
}

// long is a gap that ends a run. A packet that a busy machine loses does not: it says nothing of the path.
const long = 50 * time.Millisecond

// arrive takes note of a packet. stalled is the time for which the source has been late to send since the flow began, which
// is nobody's fault but the source's: it does not count as a gap. Where packets were lost as well it does, since the network was
// broken then, and for how much of the time nobody knows.
func (t *tally) arrive(sequence uint64, stalled time.Duration, at time.Time) {
	if !t.started {
		t.started, t.highest, t.base = true, sequence, sequence
		t.last, t.stalled = at, stalled
		return
	}
	gap := t.silence(at)
	if sequence <= t.highest+1 {
		gap -= max(0, stalled-t.stalled)
	}
	t.gap = max(t.gap, gap)
	t.run++
	if gap >= long {
		t.run = 0
	}
	if sequence > t.base {
		t.received++ // in whatever order: a path that changes lets packets overtake each other
	}
	t.highest, t.stalled = max(t.highest, sequence), max(t.stalled, stalled)
	if at.After(t.last) {
		t.last = at
	}
}

func (t *tally) silence(now time.Time) time.Duration { return max(0, now.Sub(t.last)) }

// window begins anew, in the middle of the stream.
func (t *tally) window() {
	t.base, t.received, t.gap = t.highest, 0, 0
}

// account of the window at this time. The silence that lasts is a gap as well; whether the source sends, nobody knows.
func (t *tally) account(now time.Time) Account {
	silent := t.silence(now)
	a := Account{Received: t.received, Run: t.run, Gap: max(t.gap, silent), Silent: silent, Connections: t.connections}
	if sent := t.highest - t.base; sent > t.received {
		a.Lost = sent - t.received
	}
	if silent >= long {
		a.Run = 0
	}
	return a
}
