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

// calm is for how many seconds no garbage is collected before what is free goes back to the system.
const calm = 5

// returnMemory gives memory back once the load is over for which it was taken. Go by itself keeps it until the collection after next,
// and without queries the next is minutes away. A server whose load has garbage collected more often than that never comes here; any
// other is at most charged with a collection, some tens of milliseconds, for each that it had anyway.
func returnMemory(tick <-chan time.Time) {
	l := load{collected: collections()}
	for range tick {
		if l.over(collections()) {
			debug.FreeOSMemory()
			l.collected = collections() // that has collected, too
		}
	}
}

// load is told each second how often garbage was collected.
type load struct {
	collected uint64
	quiet     int // seconds since then
}

// over reports, once, that a load is over.
func (l *load) over(collected uint64) bool {
	if collected != l.collected {
		l.collected, l.quiet = collected, 0
		return false
	}
	l.quiet++
	return l.quiet == calm
}

// collections counts how often garbage was collected.
func collections() uint64 {
	sample := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
