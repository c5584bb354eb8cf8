package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// StateDir holds all files of the lab on the machine: kubeconfigs, keys, logs, and every node's /var.
const StateDir = "/var/lib/fastnet-lab"

// Families says which IP families a lab has. Pods, services, nodes and the ways between them have no address of another,
// but for the loopback addresses of a node.
type Families string

// The families that a lab can have.
const (
	Dual Families = "dual" // IPv4 and IPv6
	IPv4 Families = "ipv4"
	IPv6 Families = "ipv6"
)

// ProxyMode is the mode of kube-proxy, by its own name.
type ProxyMode string

// The modes of kube-proxy that a lab can have.
const (
	ProxyIPTables ProxyMode = "iptables"
	ProxyNFTables ProxyMode = "nftables"
)

// of is those of the ranges that are of these families.
func (f Families) of(r Ranges) Ranges {
	var out Ranges
	for _, prefix := range r {
		if f == Dual || prefix.Addr().Is4() == (f == IPv4) {
			out = append(out, prefix)
		}
	}
	return out
}

// unspecified is the address on which a server listens for all of them: a socket of :: takes IPv4 too.
func (f Families) unspecified() string {
	if f == IPv4 {
		return "0.0.0.0"
	}
	return "::"
}

// Config says what lab to run. The zero value of each field means its default, but for Workers: start from [DefaultConfig].
type Config struct {
	Clusters int               // number of clusters c1, c2, ...; 1 to 9
	Workers  int               // worker nodes of each cluster, besides the one control node; 0 to 50
	Families Families          // of pods, services and nodes; both when empty
	Proxy    ProxyMode         // of kube-proxy on all nodes; iptables when empty
	IPMasq   bool              // the CNI plugin masquerades what leaves the pod range of its node, as many do
	Pods     map[string]Ranges // pod ranges by cluster name; those not named have defaults
	Services map[string]Ranges // service ranges by cluster name; those not named have defaults
	Install  bool              // put Fastnet on the clusters with the tool that users run
	Gateways int               // gateway nodes of each cluster when it does: worker1 on; the control node without workers
	Join     []string          // more arguments of kubectl fastnet join then, such as --driver=ipsec
	Dist     string            // folder of the built programs and images; see [FindDist]

	// Progress, if set, is told of each step as it starts or ends, one line of text without a newline. It may be called
	// by several goroutines at once.
	Progress func(line string) `json:"-"`
}

// DefaultConfig is two dual-stack clusters of one control node and two workers, the programs taken from the folder
// dist.
func DefaultConfig(dist string) Config {
	return Config{Clusters: 2, Workers: 2, Families: Dual, Proxy: ProxyIPTables, Dist: dist}
}

// FindDist is the folder that `make build` and `make lab` write to: the environment's FASTNET_DIST, else the folder
// above the one the running program is in (dist/bin/fastnet-lab gives dist).
func FindDist() (string, error) {
	if dist := os.Getenv("FASTNET_DIST"); dist != "" {
		return filepath.Abs(dist)
	}
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the folder of the built programs: %w; set FASTNET_DIST", err)
	}
	return filepath.Dir(filepath.Dir(program)), nil
}

// complete fills in defaults, so that the result says everything about the lab.
func (c Config) complete() Config {
	if c.Clusters == 0 {
		c.Clusters = 2
	}
	if c.Gateways == 0 {
		c.Gateways = 1
	}
	if c.Families == "" {
		c.Families = Dual
	}
	if c.Proxy == "" {
		c.Proxy = ProxyIPTables
	}
	pods, services := map[string]Ranges{}, map[string]Ranges{}
	for n := 1; n <= c.Clusters; n++ {
		pods[clusterName(n)], services[clusterName(n)] = defaultPods(n), defaultServices(n)
	}
	maps.Copy(pods, c.Pods)
	maps.Copy(services, c.Services)
	for _, ranges := range []map[string]Ranges{pods, services} {
		for name := range ranges {
			ranges[name] = c.Families.of(ranges[name])
		}
	}
	c.Pods, c.Services = pods, services
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	return c
}

// Validate reports all that is wrong with the config, not just the first thing.
func (c Config) Validate() error {
	c = c.complete()
	var problems []error
	complain := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.Clusters < 1 || c.Clusters > maxClusters {
		complain("%d clusters: give 1 to %d", c.Clusters, maxClusters)
	}
	if c.Workers < 0 || c.Workers > 50 {
		complain("%d workers: give 0 to 50", c.Workers)
	}
	if c.Gateways < 1 || c.Gateways > max(1, c.Workers) {
		complain("%d gateways: give 1 to %d, the number of workers", c.Gateways, max(1, c.Workers))
	}
	if c.Dist == "" {
		complain("no folder of built programs: give --dist or set FASTNET_DIST")
	}
	wanted, ok := map[Families]string{IPv4: "an IPv4 range", IPv6: "an IPv6 range", Dual: "an IPv4 and an IPv6 range, joined by a comma"}[c.Families]
	if !ok {
		complain("--families %s: give ipv4, ipv6 or dual", c.Families)
	}
	if c.Proxy != ProxyIPTables && c.Proxy != ProxyNFTables {
		complain("--proxy-mode %s: give iptables or nftables", c.Proxy)
	}
	for _, kind := range []struct {
		name   string
		ranges map[string]Ranges
	}{{"pods", c.Pods}, {"services", c.Services}} {
		for _, cluster := range slices.Sorted(maps.Keys(kind.ranges)) {
			ranges := kind.ranges[cluster]
			if !slices.ContainsFunc(c.clusterNames(), func(name string) bool { return name == cluster }) {
				complain("--%s %s=...: the clusters are %v", kind.name, cluster, c.clusterNames())
			}
			if len(ranges) != len(c.Families.of(underlay(0))) {
				complain("--%s %s=%s: give %s", kind.name, cluster, ranges, wanted)
			}
			for _, prefix := range ranges {
				problems = append(problems, c.checkRange(kind.name, cluster, prefix)...)
			}
		}
	}
	return errors.Join(problems...)
}

// checkRange is what is wrong with one range by itself and against its own cluster's other ranges. Ranges of different
// clusters may overlap: that is what globalnet is for.
func (c Config) checkRange(kind, cluster string, prefix netip.Prefix) []error {
	var problems []error
	complain := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("--%s %s=%s: %w", kind, cluster, prefix, fmt.Errorf(format, args...)))
	}
	if kind == "pods" {
		if room := nodeRoom(prefix); room < c.Workers+1 {
			complain("room for %d nodes, %d wanted: give a larger range", room, c.Workers+1)
		}
		for _, services := range c.Services[cluster] {
			if services.Overlaps(prefix) {
				complain("overlaps the service range %s of the same cluster", services)
			}
		}
	} else if hostBits := prefix.Addr().BitLen() - prefix.Bits(); hostBits < 6 || hostBits > 20 {
		complain("a service range has 64 to 1048576 addresses (IPv4 /12 to /26, IPv6 /108 to /122)")
	}
	for n := 0; n <= c.Clusters; n++ {
		for _, nodes := range underlay(n) {
			if nodes.Overlaps(prefix) {
				complain("overlaps %s, which the lab's nodes use", nodes)
			}
		}
	}
	return problems
}

func (c Config) clusterNames() []string {
	names := make([]string, 0, max(0, c.Clusters))
	for n := 1; n <= c.Clusters; n++ {
		names = append(names, clusterName(n))
	}
	return names
}

// same says whether a running lab of this config is what other asks for. Where the programs come from and whether
// Fastnet was put on the clusters do not make it another lab.
func (c Config) same(other Config) bool {
	return c.Clusters == other.Clusters && c.Workers == other.Workers && c.Families == other.Families && c.Proxy == other.Proxy && c.IPMasq == other.IPMasq &&
		maps.EqualFunc(c.Pods, other.Pods, slices.Equal) && maps.EqualFunc(c.Services, other.Services, slices.Equal)
}

func clusterName(n int) string { return fmt.Sprintf("c%d", n) }

// steps prints lines with the time since the start, and is what [Config.Progress] is usually set to.
type steps struct {
	since time.Time
	print func(string)
}

// ProgressLines is a [Config.Progress] that writes each line with the seconds since now before it.
func ProgressLines(print func(line string)) func(string) {
	s := steps{time.Now(), print}
	return func(line string) { s.print(fmt.Sprintf("[%5.1fs] %s", time.Since(s.since).Seconds(), line)) }
}
