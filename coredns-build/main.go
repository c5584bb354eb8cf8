// Command coredns is CoreDNS with every plugin of its own release, and lighthouse.
//
// It takes CoreDNS's flags, reads CoreDNS's Corefile, and stands in for CoreDNS's image. The version it tells is that of
// CoreDNS, with ours beside it.
package main

import (
	"fmt"
	"os"
	"slices"

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
