package broker

import (
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// leases is how long the members have been silent, by their Leases.
//
// The clocks of clusters differ, so no time in a Lease is compared with a clock, or with one of another member. What counts is time
// that passed here, and of that only what passed under a watch that works: while the broker is away nobody can renew. There is
// proof of such a watch, and that is its events; our own Lease's renewal is among them, so that one comes in time wherever all is
// well. Time passes between two events, and not across a list, which says that a watch was lost. So nothing here
// needs a timer, and an agent that starts, was stopped, or whose watch hangs, takes nobody for silent.
type leases struct {
	of map[string]*lease // by namespace on the broker
	// watched is the time that passed, and heard when it was last reckoned; zero while no watch has begun.
	watched time.Duration
	heard   time.Time
}

// lease is what is known of a member's Lease.
type lease struct {
	// renewed is the latest renewal, by the member's own clock. A broker that was restored from a backup shows an older one.
	renewed time.Time
	// at is what watched was when that was seen.
	at time.Duration
	// word is when a watch last told of a renewal, by our clock.
	word time.Time
	// settled is v1alpha1.AnnotationSettled as the broker last had it, 0 for none.
	settled uint64
	// there says that the broker has the Lease now. One that somebody else deleted is still known: a member that is silent does not
	// come back by that.
	there bool
}

// maxQuiet is how long there may be no event in a watch that works: the time in which our own Lease is renewed, and as much again.
// A longer one proves that something stood still, be it only this process, and does not count at all.
const maxQuiet = 2 * v1alpha1.RenewEvery

// event notes a renewal that a watch tells of. Whatever the Lease says, somebody wrote it just now.
func (l *leases) event(namespace string, as renewed, now time.Time) {
	l.tick(now)
	known := l.of[namespace]
	if known == nil {
		known = &lease{}
		l.of[namespace] = known
	}
	known.renewed, known.at, known.word, known.there = later(known.renewed, as.at), l.watched, now, true
	known.settled = as.settled
}

// deleted notes that a watch told of a Lease's end.
func (l *leases) deleted(namespace string, now time.Time) {
	l.tick(now)
	if known := l.of[namespace]; known != nil {
		known.there = false
	}
}

// list notes what there is, by namespace. A renewal that was missed in between counts as one of now, and an older one than was seen
// before is none: it is of a backup.
func (l *leases) list(all map[string]renewed, now time.Time) {
	l.heard = now
	for namespace, known := range l.of {
		_, known.there = all[namespace]
	}
	for namespace, as := range all {
		switch known := l.of[namespace]; {
		case known == nil:
			l.of[namespace] = &lease{renewed: as.at, at: l.watched, there: true}
		case as.at.After(known.renewed):
			known.renewed, known.at = as.at, l.watched
		}
		l.of[namespace].settled = as.settled
	}
}

// tick reckons the time between two events.
func (l *leases) tick(now time.Time) {
	if quiet := now.Sub(l.heard); !l.heard.IsZero() && quiet <= maxQuiet {
		l.watched += quiet
	}
	l.heard = now
}

// silent says whether a member has been silent for longer than it may. One that never had a Lease is not judged: its agent may be
// older than Leases.
func (l *leases) silent(namespace string, longer time.Duration) bool {
	known := l.of[namespace]
	return known != nil && l.watched-known.at > longer
}

// mute says whether a member that has a Lease has not been heard of since a time.
func (l *leases) mute(namespace string, since time.Time) bool {
	known := l.of[namespace]
	return known != nil && known.word.Before(since)
}

// forget forgets Leases that are gone, but for those of the namespaces in keep.
func (l *leases) forget(keep map[string]bool) {
	for namespace, known := range l.of {
		if !known.there && !keep[namespace] {
			delete(l.of, namespace)
		}
	}
}

// settled says whether a member has vouched for its records since the broker's store was at a version.
func (l *leases) settled(namespace string, since uint64) bool {
	known := l.of[namespace]
	return known != nil && since > 0 && known.settled >= since
}

// renewed is what a Lease says.
type renewed struct {
	at      time.Time // the last renewal
	settled uint64    // see lease
}

func renewedBy(object *coordinationv1.Lease) renewed {
	return renewed{renewedAt(object), versionIn(object, v1alpha1.AnnotationSettled)}
}

// awaitedBy is v1alpha1.AnnotationAwaits of a Lease, 0 for none.
func awaitedBy(object *coordinationv1.Lease) uint64 {
	return versionIn(object, v1alpha1.AnnotationAwaits)
}

// versionIn an annotation, 0 where there is none that can be read.
func versionIn(object *coordinationv1.Lease, annotation string) uint64 {
	version, err := strconv.ParseUint(object.Annotations[annotation], 10, 64)
	if err != nil {
		return 0
	}
	return version
}

func renewedAt(object *coordinationv1.Lease) time.Time {
	if object.Spec.RenewTime == nil {
		return time.Time{}
	}
	return object.Spec.RenewTime.Time
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// expireAfter is how long a member may be silent.
func expireAfter(set *v1alpha1.ClusterSet) time.Duration {
	if set == nil || set.Spec.ExpireAfter == nil {
		return v1alpha1.DefaultExpireAfter
	}
	return max(set.Spec.ExpireAfter.Duration, v1alpha1.MinExpireAfter)
}
