package lab

import (
	"strings"
	"testing"
)

func ranges(t *testing.T, text string) Ranges {
	t.Helper()
	parsed, err := ParseRanges(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestValidate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string // a part of each line; none: valid
	}{
		"default":     {func(*Config) {}, nil},
		"one of each": {func(c *Config) { c.Clusters, c.Workers = 1, 0 }, nil},
		"most":        {func(c *Config) { c.Clusters, c.Workers = 9, 50 }, nil},
		"IPv4 alone":  {func(c *Config) { c.Families = IPv4 }, nil},
		"IPv6 alone":  {func(c *Config) { c.Families = IPv6 }, nil},
		"as it comes": {func(c *Config) { c.Families = "" }, nil},
		"same pods in two clusters, as globalnet has it": {func(c *Config) {
			c.Pods = map[string]Ranges{"c1": ranges(t, "10.7.0.0/16,fd00:10:7::/48"), "c2": ranges(t, "10.7.0.0/16,fd00:10:7::/48")}
		}, nil},
		"IPv6 is left out when not asked for": {func(c *Config) {
			c.Families = IPv4
			c.Pods = map[string]Ranges{"c1": ranges(t, "10.7.0.0/16,fd00:10:7::/48")}
		}, nil},
		"so is IPv4, though it overlaps the nodes'": {func(c *Config) {
			c.Families = IPv6
			c.Pods = map[string]Ranges{"c1": ranges(t, "172.30.0.0/16,fd00:10:7::/48")}
		}, nil},
		"unknown mode":     {func(c *Config) { c.Proxy = "ipvs" }, []string{"--proxy-mode ipvs: give iptables or nftables"}},
		"unknown families": {func(c *Config) { c.Families = "ipv5" }, []string{"--families ipv5: give ipv4, ipv6 or dual"}},
		"a range of the other family": {func(c *Config) {
			c.Families = IPv6
			c.Pods = map[string]Ranges{"c2": ranges(t, "10.7.0.0/16")}
		}, []string{"--pods c2=: give an IPv6 range"}},
		"everything wrong": {func(c *Config) {
			c.Clusters, c.Workers, c.Gateways, c.Dist = 10, -1, 2, ""
		}, []string{"10 clusters", "-1 workers", "2 gateways", "no folder"}},
		"unknown cluster": {func(c *Config) {
			c.Pods = map[string]Ranges{"c3": ranges(t, "10.7.0.0/16,fd00:10:7::/48")}
		}, []string{"the clusters are [c1 c2]"}},
		"one family": {func(c *Config) {
			c.Services = map[string]Ranges{"c1": ranges(t, "10.7.0.0/16")}
		}, []string{"--services c1=10.7.0.0/16: give an IPv4 and an IPv6 range"}},
		"too small": {func(c *Config) {
			c.Workers = 20
			c.Pods = map[string]Ranges{"c1": ranges(t, "10.7.0.0/24,fd00:10:7::/48")}
		}, []string{"room for 16 nodes, 21 wanted"}},
		"pods over services": {func(c *Config) {
			c.Pods = map[string]Ranges{"c1": ranges(t, "10.88.0.0/16,fd00:10:8::/48")}
		}, []string{"overlaps the service range 10.88.0.0/16"}},
		"pods over nodes": {func(c *Config) {
			c.Pods = map[string]Ranges{"c1": ranges(t, "172.30.0.0/16,fd30::/48")}
		}, []string{"overlaps 172.30.0.0/24", "overlaps fd30::/64"}},
		"services too large": {func(c *Config) {
			c.Services = map[string]Ranges{"c1": ranges(t, "10.88.0.0/16,fd00:10:88::/64")}
		}, []string{"64 to 1048576 addresses"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := DefaultConfig("dist")
			test.change(&config)
			err := config.Validate()
			if (err == nil) != (test.want == nil) {
				t.Fatalf("Validate: %v, want %q", err, test.want)
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("Validate says %q, which lacks %q", err, part)
				}
			}
		})
	}
}

func TestSameLab(t *testing.T) {
	base := DefaultConfig("dist")
	other := base
	other.Dist, other.Install = "elsewhere", true
	if !base.complete().same(other.complete()) {
		t.Error("where the programs are makes it another lab")
	}
	for name, change := range map[string]func(*Config){
		"clusters": func(c *Config) { c.Clusters = 3 },
		"workers":  func(c *Config) { c.Workers = 1 },
		"families": func(c *Config) { c.Families = IPv6 },
		"proxy":    func(c *Config) { c.Proxy = ProxyNFTables },
		"ip-masq":  func(c *Config) { c.IPMasq = true },
		"pods":     func(c *Config) { c.Pods = map[string]Ranges{"c2": ranges(t, "10.8.0.0/16,fd00:10:8::/48")} },
	} {
		other := base
		change(&other)
		if base.complete().same(other.complete()) {
			t.Errorf("other %s, yet the same lab", name)
		}
	}
}
