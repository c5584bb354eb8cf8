package lighthouse

import "sync"

// Each packet has a goroutine of its own. A new goroutine has a stack of 2 KiB, and CoreDNS's chain of calls takes more: the
// stack is copied to one twice as large, and mostly once more, for every query. In the chain that clusters run (errors,
// prometheus, cache, loadbalance) that was a fifth of all the time spent.
//
// The runtime lets new goroutines begin with what those that it found at the last garbage collection used on average
// (/gc/stack/starting-size:bytes in runtime/metrics). It finds few that serve queries, as they are short-lived, and many that
// wait for a watch and use next to nothing. So we hold some that use as much as a query does, and the average is right.
//
//	stacks held    128 x 8 KiB = 1 MiB
//	average        above 4 KiB less the runtime's guard, with up to about 200 other goroutines; so they start with 8 KiB
const (
	stacksHeld = 128
	stackDepth = 6 // frames of holdStack, 1 KiB and a little each
)

// holdStacks has new goroutines begin with stacks that queries need not grow. The process needs it once.
var holdStacks = sync.OnceFunc(func() {
	for range stacksHeld {
		go holdStack(stackDepth)
	}
})

// holdStack waits for ever, with that many frames more below it.
//
//go:noinline
func holdStack(more int) byte {
	var frame [1024]byte
	frame[more] = byte(more)
	if more > 0 {
		return holdStack(more-1) + frame[more/2]
	}
	select {}
}
