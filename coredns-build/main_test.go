package main

import (
	"slices"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// TestDirectives: CoreDNS's own, all of them and in its order, and lighthouse directly before kubernetes.
func TestDirectives(t *testing.T) {
	own := slices.Clone(dnsserver.Directives)
	got, err := withLighthouse(dnsserver.Directives)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.Index(got, "lighthouse")
	if at < 0 || got[at+1] != "kubernetes" {
		t.Fatalf("lighthouse is not directly before kubernetes: %v", got)
	}
	if rest := slices.Delete(slices.Clone(got), at, at+1); !slices.Equal(rest, own) || !slices.Equal(dnsserver.Directives, own) {
		t.Errorf("the others are not CoreDNS's:\n%v\n%v", rest, own)
	}
	for _, directive := range got {
		if _, err := caddy.DirectiveAction("dns", directive); err != nil {
			t.Errorf("in the list, and not in the program: %v", err)
		}
	}
	if _, err := withLighthouse([]string{"file"}); err == nil {
		t.Error("no error without kubernetes")
	}
}
