package lighthouse

import (
	"slices"
	"time"
)

// Losing every remote cluster at once says more about this cluster than about the others: its own uplink or gateways are
// the likelier fault, and answers withdrawn everywhere would turn a blip into an outage. So what was reachable is kept a
// while, with a TTL that lets go at once.
const (
	suspicionWindow = time.Second
	suspicionLasts  = 30 * time.Second
)

// suspicion remembers what it takes to tell a dead cluster from a dead uplink.
type suspicion struct {
	up    map[*cluster]struct{}  // what the Gateways say now
	lost  map[*cluster]time.Time // when those that are not up were lost
	timer *time.Timer            // runs while we suspect ourselves
	round int                    // counts the timers
}

// setGateway takes a new state of a Gateway.
func (w *world) setGateway(o *gatewayObject) {
	w.change(func(next *zone) bool {
		w.gateways[o.objectKey] = o.up
		return w.setReach(next)
	})
}

func (w *world) deleteGateway(key objectKey) {
	w.change(func(next *zone) bool {
		delete(w.gateways, key)
		return w.setReach(next)
	})
}

func (w *world) replaceGateways(objects []*gatewayObject) {
	w.change(func(next *zone) bool {
		clear(w.gateways)
		for _, o := range objects {
			w.gateways[o.objectKey] = o.up
		}
		return w.setReach(next)
	})
}

// setReach settles which clusters are reachable, and tells whether that changed.
func (w *world) setReach(next *zone) bool {
	now := time.Now()
	s := &w.suspicion
	up := map[*cluster]struct{}{}
	for _, ids := range w.gateways {
		for _, id := range ids {
			up[w.intern(id)] = struct{}{}
		}
	}
	lost := map[*cluster]time.Time{}
	for c := range s.up {
		lost[c] = now
	}
	for c, at := range s.lost {
		lost[c] = at
	}
	for c := range up {
		delete(lost, c)
	}
	s.up, s.lost = up, lost

	var r reach
	switch {
	case len(w.gateways) == 0:
		r.everything = true
	case len(up) > 0:
		r.up = indexed(up)
	case s.timer != nil:
		return false // suspected already: what was reachable stands until the timer ends it
	default:
		recent := map[*cluster]struct{}{}
		for c, at := range lost {
			if now.Sub(at) <= suspicionWindow {
				recent[c] = struct{}{}
			}
		}
		if len(recent) >= 2 {
			r.up, r.suspect = indexed(recent), true
		}
	}
	if r.suspect {
		s.round++
		round := s.round
		s.timer = time.AfterFunc(suspicionLasts, func() { w.endSuspicion(round) })
	} else if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	changed := r.everything != next.reach.everything || r.suspect != next.reach.suspect || !slices.Equal(r.up, next.reach.up)
	next.reach = r
	return changed
}

// endSuspicion believes the Gateways after all. A timer that was stopped too late finds none in its place, or a later one.
func (w *world) endSuspicion(round int) {
	w.change(func(next *zone) bool {
		if w.suspicion.timer == nil || w.suspicion.round != round {
			return false
		}
		w.suspicion.timer = nil
		next.reach = reach{}
		return true
	})
}

// indexed is the set as reach keeps it.
func indexed(set map[*cluster]struct{}) []bool {
	var list []bool
	for c := range set {
		if n := c.index + 1 - len(list); n > 0 {
			list = append(list, make([]bool, n)...)
		}
		list[c.index] = true
	}
	return list
}

// close ends what the world has running.
func (w *world) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.suspicion.timer != nil {
		w.suspicion.timer.Stop()
		w.suspicion.timer = nil
	}
}
