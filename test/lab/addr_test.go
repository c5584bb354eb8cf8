package lab

import (
	"net/netip"
	"testing"
)

func TestParseRanges(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"10.8.0.0/16", "10.8.0.0/16"},
		{"10.8.1.2/16", "10.8.0.0/16"},
		{"10.8.0.0/16,fd00:10:8::/48", "10.8.0.0/16,fd00:10:8::/48"},
		{"fd00:10:8::/48, 10.8.0.0/16", "10.8.0.0/16,fd00:10:8::/48"},
		{"", ""}, {"10.8.0.0", ""}, {"10.8.0.0/33", ""},
		{"10.8.0.0/16,10.9.0.0/16", ""},
		{"fd00:1::/64,fd00:2::/64", ""},
		{"10.8.0.0/16,fd00:10:8::/48,10.9.0.0/16", ""},
	} {
		got, err := ParseRanges(test.text)
		if (err == nil) != (test.want != "") || got.String() != test.want {
			t.Errorf("ParseRanges(%q) = %q, %v; want %q", test.text, got, err, test.want)
		}
	}
}

func TestSubnetsAndAddresses(t *testing.T) {
	for _, test := range []struct {
		prefix string
		n      int
		subnet string
		addr   string
		room   int
	}{
		{"10.8.0.0/16", 0, "10.8.0.0/24", "10.8.0.0", 256},
		{"10.8.0.0/16", 2, "10.8.2.0/24", "10.8.0.2", 256},
		{"120.1.0.0/24", 3, "120.1.0.48/28", "120.1.0.3", 16},
		{"10.8.0.0/22", 15, "10.8.3.192/26", "10.8.0.15", 16},
		{"10.8.0.0/27", 0, "10.8.0.0/31", "10.8.0.0", 0},
		{"fd00:10:8::/48", 0, "fd00:10:8::/64", "fd00:10:8::", 65536},
		{"fd00:10:8::/48", 2, "fd00:10:8:2::/64", "fd00:10:8::2", 65536},
		{"fd00:10:8::/64", 2, "fd00:10:8:0:200::/72", "fd00:10:8::2", 256},
		{"fd00:10:8::/112", 2, "fd00:10:8::200/120", "fd00:10:8::2", 256},
		{"fd00:10:8::/120", 0, "fd00:10:8::/128", "fd00:10:8::", 0},
	} {
		prefix := netip.MustParsePrefix(test.prefix)
		if got := nthSubnet(prefix, nodeMask(prefix), test.n).String(); got != test.subnet {
			t.Errorf("subnet %d of %s = %s, want %s", test.n, prefix, got, test.subnet)
		}
		if got := nthAddr(prefix, test.n).String(); got != test.addr {
			t.Errorf("address %d of %s = %s, want %s", test.n, prefix, got, test.addr)
		}
		if got := nodeRoom(prefix); got != test.room {
			t.Errorf("nodes in %s: %d, want %d", prefix, got, test.room)
		}
	}
}

// TestDefaultRangesAreApart: no default range of any cluster may overlap another, nor the nodes' subnets.
func TestDefaultRangesAreApart(t *testing.T) {
	var all []netip.Prefix
	for n := range maxClusters + 1 {
		all = append(all, underlay(n)...)
		if n > 0 {
			all = append(append(all, defaultPods(n)...), defaultServices(n)...)
		}
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s and %s overlap", a, b)
			}
		}
	}
	if got := defaultPods(1).String() + " " + defaultServices(2).String(); got != "10.8.0.0/16,fd00:10:8::/48 10.99.0.0/16,fd00:10:99::/112" {
		t.Errorf("pods of c1 and services of c2 are %s", got)
	}
}
