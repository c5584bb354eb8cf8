// Command coredns is CoreDNS with every plugin of its own release, and lighthouse.
//
// It takes CoreDNS's flags, reads CoreDNS's Corefile, and stands in for CoreDNS's image. The version it tells is that of
// CoreDNS, with ours beside it.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/core/plugin" // CoreDNS's own plugins
	"github.com/coredns/coredns/coremain"

	_ "github.com/fastnet-io/fastnet/plugin/lighthouse" // and ours
)

// version of Fastnet. The build sets it: -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	directives, err := withLighthouse(dnsserver.Directives)
	if err != nil {
		fmt.Fprintln(os.Stderr, "coredns:", err)
		os.Exit(1)
	}
	dnsserver.Directives = directives
	tuneMemory()
	go returnMemory(time.Tick(time.Second))
	caddy.AppVersion = coremain.CoreVersion + " lighthouse-" + version
	coremain.Run()
}

// withLighthouse puts lighthouse into CoreDNS's list of directives, directly before kubernetes. The order of the list is
// the order in which plugins see a query: the plugins that answer come after those that change or remember (rewrite,
// cache), and lighthouse comes first of the two that know clusterset zones.
func withLighthouse(own []string) ([]string, error) {
	at := slices.Index(own, "kubernetes")
	if at < 0 {
		return nil, fmt.Errorf("this release of CoreDNS has no kubernetes plugin, by which lighthouse finds its place")
	}
	return slices.Insert(slices.Clone(own), at, "lighthouse"), nil
}

// gcPercent is how much garbage may lie beside what lives before it is collected. A DNS server makes much of it, a few
// kilobytes a query, and keeps little. Against Go's 100, the usual chain costs 5 % less processor time a query with 300 and 9 %
// less with 600, for as much more memory.
const gcPercent = 400

// tuneMemory sets up the garbage collector; what GOGC and GOMEMLIMIT say in the environment goes before it. From nine tenths of
// the container's memory limit on, garbage is collected more often, whatever gcPercent says: CoreDNS by itself knows no limit, and
// is killed at it.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if _, err := memlimit.Set(); err != nil {
		fmt.Fprintln(os.Stderr, "coredns: the memory limit of the container is not known:", err)
	}
}

// A second is quiet in which no garbage is collected and less than idle allocated. After calm of them, what is free goes back to the
// system. The amount counts too, since under a load that holds much, as a goroutine for each of 100,000 packets, half a minute may pass
// from one collection to the next, and the load may be over by then. It is what 1,000 queries a second take.
const (
	calm = 5
	idle = 4 << 20
)

// returnMemory gives memory back once the load is over for which it was taken. Go by itself keeps it until the collection after next,
// and without queries the next is minutes away. A server with a load that is never quiet for so long never comes here; any
// other is at most charged with a collection, some tens of milliseconds, for each that it had anyway, and for each burst.
func returnMemory(tick <-chan time.Time) {
	l := load{before: used()}
	for range tick {
		if l.over(used()) {
			debug.FreeOSMemory()
			l.before = used() // that has collected, too
		}
	}
}

// load is told each second what was used.
type load struct {
	before usage
	quiet  int // seconds
}

// over reports, once, that a load is over.
func (l *load) over(now usage) bool {
	busy := now.collections != l.before.collections || now.allocated-l.before.allocated >= idle
	l.before = now
	if busy {
		l.quiet = 0
		return false
	}
	l.quiet++
	return l.quiet == calm
}

// usage is how often garbage was collected since the start, and how many bytes were allocated.
type usage struct{ collections, allocated uint64 }

func used() usage {
	samples := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	return usage{samples[0].Value.Uint64(), samples[1].Value.Uint64()}
}
