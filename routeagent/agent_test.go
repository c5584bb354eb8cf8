package routeagent

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestMoved: what changes in the kernel is looked at at once, but for what a failover has changed itself.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pokes atomic.Int32
		a := &agent{poke: func() { pokes.Add(1) }}
		expect := func(what string, want int32) {
			t.Helper()
			if synctest.Wait(); pokes.Load() != want {
				t.Errorf("%s: %d pokes, want %d", what, pokes.Load(), want)
			}
		}
		a.moved()
		expect("nothing was regrouped", 1)
		a.regrouped.Store(time.Now().UnixNano())
		a.moved()
		a.moved()
		expect("right after a failover", 1)
		time.Sleep(2 * echo)
		a.moved()
		expect("something else, later", 2)
		time.Sleep(settle)
		expect("what the failover has done itself", 3)
		time.Sleep(time.Minute)
		expect("and no more", 3)
		a.regrouped.Store(time.Now().UnixNano())
		a.moved()
		time.Sleep(settle)
		expect("the next failover", 4)
	})
}
