// Package liveness says of a path whether it lives, from probes that go out and answers that come back. It is the one
// judgement for gateway to gateway, inside a cable, and node to gateway. It does no I/O and has no clock: who uses it
// sends a probe when Next says so, and tells it of answers.
//
// What it promises, and why the numbers are what they are:
//
//   - A dead path is down within 300 ms and twice its round-trip time. Probes go out every 90 ms, and every 12 ms once one is missed. The
//     worst: the path dies right after an answer. The next probe goes out 90 ms later, and is the first of 12 that are missed, which
//     is known at 90 + 25 = 115 ms; the last of them goes out at 115 + 10*12 = 235 ms, and has had its time at 260 ms.
//   - A path whose answers come late is not a dead path. Where processors are short, answers of all paths are late at once; more
//     probes then make it worse, and paths that are given up and taken back worse still. So the first probe that is missed has as much
//     more time as answers were late by in the last seconds, up to 350 ms. For so long a dead path is down as much later.
//   - 10 % loss in each direction for 10 minutes changes nothing. One round trip in 1 - 0.9*0.9 = 19 % is then lost, and 12
//     in a row are with 0.19^12 = 2.2e-9. A run of losses begins after an answer: with at most 20 answers a second there are
//     12,000 beginnings in 10 minutes, so at most one path in 38,000 would change.
//   - A path that was down is up again when 12 of the last 20 probes were answered: half a second of answers alone, or a second
//     with losses. At 19 % loss that holds for 99.6 % of all seconds. At half of all lost it holds for a quarter, and a path
//     goes down once in some minutes.
//   - A path that flaps, which is one that was up for less than a minute when it goes down, has to answer for twice as long each
//     time before it is up again: 2 s, 4 s and so on, to 30 s. A minute of being up forgives all, and so does a farewell (Leaving): gateways
//     that are restarted one after the other are no flapping ones. While it answers for that time it is recovering: to be taken where
//     there is nothing better.
//   - Where probes are lost among much else, so that a path looks dead, whoever knows better may say so (Vouch): what it missed is forgotten.
//   - Whoever is stopped (SIGSTOP, a starved processor) blames no path: probes that nobody could have seen answered are
//     forgotten.
package liveness

import "time"

// The numbers.
const (
	// Pace between two probes of a path that is up, or the round-trip time where that is longer; SeldomPace where that is enough, EagerPace
	// of one that is not up yet.
	// HastyPace while answers are missing, SlowPace where nothing has come for quiet: a node that is away for a week is asked five times
	// a second.
	Pace       = 90 * time.Millisecond
	SeldomPace = 500 * time.Millisecond
	EagerPace  = 50 * time.Millisecond
	HastyPace  = 12 * time.Millisecond
	SlowPace   = 200 * time.Millisecond
	quiet      = 5 * time.Second

	// DownAfter probes in a row that were missed a path is down.
	DownAfter = 12
	// A path that was down is up again when upOf of the last upFrom probes were answered.
	upOf, upFrom = 12, 20

	// A path that goes down before it was up for forgiven is asked for twice as long as the last time, at most longest.
	forgiven = time.Minute
	longest  = 30 * time.Second

	// A probe is missed when it has no answer after the round-trip time and grace; the first one in a row has as much more time as answers
	// were late by. Later answers count when they come, so jitter beyond that does no harm. While the time is not known it is strangeRTT,
	// or what the first answer took.
	grace      = 25 * time.Millisecond
	strangeRTT = time.Second
	// The most that lateness counts, and in how many times itself it is forgotten: 350 ms in 10 s.
	mostLate, forgets = 350 * time.Millisecond, 30

	// stall is how late a probe may go out before we take it that we ourselves were stopped.
	stall = 100 * time.Millisecond

	// remembered probes: those of the last ten to twenty seconds of a path that answers. Loss is measured over them.
	remembered = 200

	// A probe of a path that answers goes out so much before its time where others go out (Due): to wake up for each costs more than probes do.
	together = 15 * time.Millisecond
)

// State of a path.
type State string

// A path is Unknown until its first answer, and then Up or Down; or Recovering, which is down, but answers again.
const (
	Unknown    State = "unknown"
	Up         State = "up"
	Down       State = "down"
	Recovering State = "recovering"
)

// Path is the liveness of one path. Make it with New. It is not safe for use by several goroutines at once.
type Path struct {
	state State
	since time.Time

	next time.Time // when the next probe goes out
	sent uint64    // probes so far; the sequence number of the latest

	probes   [remembered]probe // by sequence number, modulo
	newest   uint64            // the newest probe that was answered, or that counts as such
	answered time.Time         // when the last answer came, or could first have come

	rtt time.Duration
	// An answer took so much longer than others, at that time.
	late   time.Duration
	lateAt time.Time
	// first is how long the answer took that brought the path up, with the wait for a handshake maybe.
	first time.Duration

	asked  time.Duration // for how long the path must answer now until it is up again, 0 for as long as upFrom probes take
	steady time.Time     // since when it does, zero while it does not
	fresh  bool          // it has not been down yet
	seldom bool
	// leaving: the other end has said that it goes.
	leaving bool
	// near: it is up again with the first answer.
	near bool
	// inherited: that it is up is the word of an earlier process alone.
	inherited bool
}

type probe struct {
	sent     time.Time
	answered bool
	void     bool // nobody could have seen its answer
}

// New makes a path that nothing is known of.
func New(now time.Time) *Path {
	return &Path{state: Unknown, since: now, next: now, answered: now, fresh: true}
}

// Resume makes a path of which an earlier process has said that it is up: it stays so unless its probes are missed.
func Resume(since, now time.Time, rtt time.Duration) *Path {
	return &Path{state: Up, since: since, next: now, answered: now, rtt: rtt, fresh: true, inherited: true}
}

// Inherited says whether nothing but an earlier process's word is behind the path's state: there has been no answer yet.
func (p *Path) Inherited() bool { return p.inherited }

// State now, and Since when.
func (p *Path) State() State { return p.state }

// Since when the path has been in its state.
func (p *Path) Since() time.Time { return p.since }

// RTT is the smoothed round-trip time, 0 while it is not known.
func (p *Path) RTT() time.Duration { return p.rtt }

// Answered is when the last answer came. Time in which none could have come does not count as silence.
func (p *Path) Answered() time.Time { return p.answered }

// Next is when Probe wants to be called.
func (p *Path) Next() time.Time { return p.next }

// Due says whether Probe may be called now, together with another path's: at Next, or a moment before where nothing is missing.
func (p *Path) Due(now time.Time) bool {
	early := time.Duration(0)
	if p.state == Up && p.newest == p.sent {
		early = together
	}
	return !p.next.After(now.Add(early))
}

// Probe notes that a probe goes out now, and gives its sequence number. It reports whether the state has changed.
func (p *Path) Probe(now time.Time) (sequence uint64, changed bool) {
	if p.sent > 0 && now.Sub(p.next) > stall {
		p.forget(now) // answers to what is under way may wait in our own queue
	}
	missed := p.missed(now)
	if p.answers() && missed >= DownAfter {
		if p.state == Up {
			p.flap(now)
		}
		p.steady = time.Time{}
		p.set(Down, now)
		p.newest = p.sent // what counts for the way up begins here
		changed = true
	}
	p.sent++
	p.probes[p.sent%remembered] = probe{sent: now}
	switch {
	case now.Sub(p.answered) > quiet:
		p.next = now.Add(SlowPace)
	case missed > 0 && p.answers():
		p.next = now.Add(HastyPace)
	case p.state == Up && p.rtt > 0:
		p.next = now.Add(p.rtt + grace + p.lateness(now)) // unless there is an answer by then
	default:
		p.next = now.Add(EagerPace)
	}
	return p.sent, changed
}

// Missed is how many probes in a row a path has missed that counted as living until now. With DownAfter it is down by the next Probe.
func (p *Path) Missed(now time.Time) int {
	if !p.answers() {
		return 0
	}
	return p.missed(now)
}

// Vouch notes that the path lives, both ways, whatever became of its probes.
func (p *Path) Vouch(now time.Time) { p.forget(now) }

// forget the probes that were missed, or are under way. Answers to them still count when they come.
func (p *Path) forget(now time.Time) {
	for n := p.newest + 1; n <= p.sent; n++ {
		if probe := p.probe(n); probe != nil && !probe.answered {
			probe.void = true
		}
	}
	p.newest, p.answered = p.sent, now
}

// Answer notes that the answer to a probe has come. It reports whether the state has changed. Answers to probes that were
// not sent, or are forgotten, and second ones, are nothing.
func (p *Path) Answer(sequence uint64, now time.Time) (changed bool) {
	probe := p.probe(sequence)
	if probe == nil || probe.answered {
		return false
	}
	slow := now.Sub(p.answered) > quiet
	probe.answered, probe.void, p.answered, p.inherited = true, false, now, false
	p.newest = max(p.newest, sequence)
	// A probe from before the path was up may have waited for a handshake: its time is no round-trip time.
	if p.state == Recovering || p.state == Up && !probe.sent.Before(p.since) {
		p.measure(now.Sub(probe.sent), now)
	} else if p.state == Down && p.rtt > 0 && probe.sent.Before(p.since) {
		p.lateBy(now.Sub(probe.sent)-p.rtt, now) // it was not dead
	}
	switch {
	case slow:
		p.next = now
	case sequence == p.sent && p.state == Up && p.rtt > 0:
		p.next = probe.sent.Add(p.pace())
	}
	state := p.state
	switch {
	case p.state == Unknown || p.state != Up && (p.near || p.stays(sequence, now)):
		p.set(Up, now)
	case p.state == Down && !p.steady.IsZero():
		p.state = Recovering // still since it went down, which is what its way up is counted from
	}
	if p.state == state {
		return false
	}
	if state != Recovering { // while it recovered the time was measured
		p.rtt, p.first = 0, now.Sub(probe.sent)
	}
	return true
}

// Seldom has the path asked at SeldomPace while it is up, which makes it so much longer until it is known to be dead.
func (p *Path) Seldom(yes bool, now time.Time) {
	if p.seldom && !yes && p.next.After(now.Add(Pace)) {
		p.next = now
	}
	p.seldom = yes
}

// Near has the path be up again with the first answer: there is nothing between its ends that may flap.
func (p *Path) Near(yes bool) { p.near = yes }

// Leaving notes whether the other end says that it goes: when the path then goes down it has not failed.
func (p *Path) Leaving(yes bool) { p.leaving = yes }

func (p *Path) pace() time.Duration {
	if p.seldom {
		return SeldomPace
	}
	return Pace
}

// answers: its probes are answered, or were until a moment ago.
func (p *Path) answers() bool { return p.state == Up || p.state == Recovering }

// Loss is the share of the remembered probes that were missed, 0 to 1.
func (p *Path) Loss(now time.Time) float64 {
	answered, decided := p.count(p.sent, remembered, time.Time{}, now)
	if decided == 0 {
		return 0
	}
	return float64(decided-answered) / float64(decided)
}

func (p *Path) set(state State, now time.Time) { p.state, p.since = state, now }

// probe by its sequence number, nil where it is not remembered.
func (p *Path) probe(sequence uint64) *probe {
	if sequence == 0 || sequence > p.sent || p.sent-sequence >= remembered {
		return nil
	}
	return &p.probes[sequence%remembered]
}

// overdue is the time before which a probe must have gone out to be missed.
func (p *Path) overdue(now time.Time) time.Time {
	if p.rtt == 0 {
		return now.Add(-max(strangeRTT, p.first))
	}
	return now.Add(-p.rtt - grace)
}

func (p *Path) measure(rtt time.Duration, now time.Time) {
	if p.rtt == 0 {
		p.rtt = rtt
	}
	p.lateBy(rtt-p.rtt, now)
	p.rtt += (rtt - p.rtt) / 8
}

// lateBy notes how much longer an answer took than others.
func (p *Path) lateBy(d time.Duration, now time.Time) {
	if d = min(d, mostLate); d >= p.lateness(now) {
		p.late, p.lateAt = d, now
	}
}

// lateness is the worst of late, which fades.
func (p *Path) lateness(now time.Time) time.Duration {
	return max(0, p.late-now.Sub(p.lateAt)/forgets)
}

// missed counts the probes in a row, the latest that have had their time, without an answer.
func (p *Path) missed(now time.Time) (missed int) {
	overdue := p.overdue(now)
	if first := p.probe(p.newest + 1); first != nil && p.rtt > 0 && first.sent.After(overdue.Add(-p.lateness(now))) {
		return 0
	}
	for n := p.sent; n > p.newest; n-- {
		probe := p.probe(n)
		if probe == nil {
			break
		}
		if !probe.sent.After(overdue) {
			missed++
		}
	}
	return missed
}

// count looks, from one probe back, at those that are decided, answered or missed, as many as are wanted and not older than that.
func (p *Path) count(from uint64, wanted int, oldest, now time.Time) (answered, decided int) {
	overdue := p.overdue(now)
	for n := from; decided < wanted; n-- {
		probe := p.probe(n)
		if probe == nil || probe.sent.Before(oldest) {
			break
		}
		switch {
		case probe.answered:
			answered++
			decided++
		case !probe.void && !probe.sent.After(overdue):
			decided++
		}
	}
	return answered, decided
}

// flap notes that the path goes down, and how long it was up.
func (p *Path) flap(now time.Time) {
	switch {
	case now.Sub(p.since) >= forgiven || p.fresh || p.leaving:
		p.asked = 0
	default:
		p.asked = min(longest, 2*max(p.asked, upFrom*EagerPace))
	}
	p.fresh, p.steady = false, time.Time{}
}

// stays: it has recovered, and for as long as was asked.
func (p *Path) stays(latest uint64, now time.Time) bool {
	if !p.recovered(latest, now) {
		p.steady = time.Time{}
		return false
	}
	if p.steady.IsZero() {
		p.steady = now
	}
	// To recover took the answers of upOf probes at least.
	return now.Sub(p.steady) >= p.asked-upOf*EagerPace
}

// recovered: of the probes up to the one that was just answered, none of them from before the path went down, most were answered. Later ones
// are under way, for as long as this one was: the round-trip time from before says nothing of a path that comes back, which may
// be another way, or lead to somebody who is busy. By that time a path that has become 430 ms slower would have missed half of them,
// always.
func (p *Path) recovered(latest uint64, now time.Time) bool {
	answered, decided := p.count(latest, upFrom, p.since, now)
	return decided == upFrom && answered >= upOf
}
