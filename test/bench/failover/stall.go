package main

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// watchStalls has a thread on each processor wake up all the time, and gives by how much one was late at most since it was last asked. That
// is time in which whoever runs there does nothing either: the host of a virtual machine has taken the processor away.
func watchStalls(ctx context.Context) (worst func() time.Duration, stop func()) {
	const nap = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	var late atomic.Int64
	var threads sync.WaitGroup
	for cpu := range runtime.NumCPU() {
		threads.Go(func() {
			runtime.LockOSThread() // and it is never given back: the thread ends with this
			var set unix.CPUSet
			set.Set(cpu)
			if unix.SchedSetaffinity(0, &set) != nil {
				return // not one of ours
			}
			for last := time.Now(); ctx.Err() == nil; {
				rest := unix.NsecToTimespec(int64(nap))
				_ = unix.Nanosleep(&rest, nil) // a signal may end it early
				now := time.Now()
				for by := int64(now.Sub(last) - nap); ; {
					if most := late.Load(); by <= most || late.CompareAndSwap(most, by) {
						break
					}
				}
				last = now
			}
		})
	}
	return func() time.Duration { return time.Duration(late.Swap(0)) }, func() { cancel(); threads.Wait() }
}
