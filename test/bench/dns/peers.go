package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fastnet-io/fastnet/test/bench/ground"
)

// Names of those who are measured.
const (
	ours         = "lighthouse"
	multicluster = "kubernetes multicluster"
	plainCluster = "kubernetes"
	static       = "erratic"
	instant      = "erratic in our CoreDNS" // what a chain costs in our process where the plugin at its end costs next to nothing
	hosts        = "hosts"
	file         = "file"
	bare         = "miekg/dns"
	nsd          = "nsd"
	knot         = "knot"
)

// chained is the peer within the chain of plugins that people run.
func chained(name string) string { return name + " in a chain" }

// site is where a server runs and what it reads.
type site struct {
	dir        string // of its own, for its configuration
	ip         string
	port       string
	kubeconfig string
}

// peer is one server that is measured.
type peer struct {
	name string
	zone string
	// fixed says that it answers every question with one record, which is not the right one.
	fixed bool
	// config is the text of its configuration file.
	config func(*bench, site) (string, error)
	// command runs it with that file.
	command func(b *bench, config string, s site) []string
}

const plainChain = ""

// chain is what stands around the plugin in the Corefiles that people run.
const chain = `
	errors
	prometheus IP:METRICS
	cache 30
	loadbalance`

// allPeers can be asked for by name. Those of the chain are the same Corefiles with more plugins.
var allPeers = []peer{
	corednsPeer(ours, clustersetZone, "ours", plainChain, lighthouseStanza),
	corednsPeer(multicluster, clustersetZone, "stock", plainChain, multiclusterStanza),
	corednsPeer(plainCluster, clusterZone, "stock", plainChain, "kubernetes {\n\t\tkubeconfig KUBECONFIG\n\t}"),
	fixed(corednsPeer(static, clustersetZone, "stock", plainChain, erraticStanza)),
	corednsPeer(hosts, clustersetZone, "stock", plainChain, "hosts DIR/hosts {\n\t\tttl 5\n\t\tno_reverse\n\t}"),
	corednsPeer(file, clustersetZone, "stock", plainChain, "file DIR/zone"),
	{
		name: bare, zone: clustersetZone, fixed: true,
		config:  func(*bench, site) (string, error) { return "", nil },
		command: func(b *bench, _ string, s site) []string { return []string{b.binary("bare"), s.ip + ":" + s.port} },
	},
	{
		name: nsd, zone: clustersetZone,
		config:  zoneConfig(nsdConfig),
		command: func(_ *bench, config string, _ site) []string { return []string{"nsd", "-d", "-c", config} },
	},
	{
		name: knot, zone: clustersetZone,
		config:  zoneConfig(knotConfig),
		command: func(_ *bench, config string, _ site) []string { return []string{"knotd", "-c", config} },
	},
	corednsPeer(chained(ours), clustersetZone, "ours", chain, lighthouseStanza),
	corednsPeer(chained(multicluster), clustersetZone, "stock", chain, multiclusterStanza),
	fixed(corednsPeer(chained(static), clustersetZone, "stock", chain, erraticStanza)),
	// In the server block of another zone, our plugin sets up the process as it does for its own.
	fixed(corednsPeer(chained(instant), clustersetZone, "ours", chain, erraticStanza+"\n}\nelsewhere:PORT {\n\tbind IP\n\t"+lighthouseStanza)),
	corednsPeer(profiled(ours), clustersetZone, "ours", profiler, lighthouseStanza),
	corednsPeer(profiled(multicluster), clustersetZone, "stock", profiler, multiclusterStanza),
}

// profiled is the peer with the plugin pprof, which tells of its heap.
func profiled(name string) string { return name + " with pprof" }

const (
	profiler           = "\n\tpprof IP:METRICS"
	lighthouseStanza   = "lighthouse {\n\t\tkubeconfig KUBECONFIG\n\t}"
	multiclusterStanza = "kubernetes {\n\t\tkubeconfig KUBECONFIG\n\t\tmulticluster clusterset.local\n\t}"
	erraticStanza      = "erratic {\n\t\tdrop 0\n\t}"
	nsdConfig          = `server:
	ip-address: IP@PORT
	port: PORT
	server-count: 1
	do-ip6: no
	username: ""
	zonesdir: "DIR"
	database: ""
	pidfile: "DIR/nsd.pid"
	zonelistfile: "DIR/zone.list"
	xfrdfile: "DIR/xfrd.state"
	xfrdir: "DIR"
	rrl-ratelimit: 0
remote-control:
	control-enable: no
zone:
	name: clusterset.local
	zonefile: DIR/zone
`
	knotConfig = `server:
    rundir: DIR
    listen: IP@PORT
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: DIR/db
zone:
  - domain: clusterset.local
    file: DIR/zone
    zonefile-sync: -1
    journal-content: none
`
)

func peerNamed(name string) peer {
	return allPeers[slices.IndexFunc(allPeers, func(p peer) bool { return p.name == name })]
}

func fixed(p peer) peer {
	p.fixed = true
	return p
}

// corednsPeer is a CoreDNS with one plugin that answers, and maybe others before it.
func corednsPeer(name, zone, binary, before, stanza string) peer {
	text := zone + ":PORT {\n\tbind IP" + before + "\n\t" + stanza + "\n}\n"
	return peer{
		name: name, zone: zone,
		config: func(b *bench, s site) (string, error) {
			if strings.Contains(text, "DIR/") {
				if err := writeZone(b.world, s.dir); err != nil {
					return "", err
				}
			}
			return b.fill(text, s)
		},
		command: func(b *bench, config string, s site) []string {
			return []string{b.binary(binary), "-conf", config}
		},
	}
}

func zoneConfig(text string) func(*bench, site) (string, error) {
	return func(b *bench, s site) (string, error) {
		if err := writeZone(b.world, s.dir); err != nil {
			return "", err
		}
		return b.fill(text, s)
	}
}

// fill puts a site's own into the text of a configuration.
func (b *bench) fill(text string, s site) (string, error) {
	metrics := ""
	if strings.Contains(text, "METRICS") {
		var err error
		if metrics, err = ground.FreePort(s.ip); err != nil {
			return "", err
		}
		// Whoever wants to ask there finds the address in this file.
		if err := os.WriteFile(filepath.Join(s.dir, "metrics"), []byte(s.ip+":"+metrics), 0o644); err != nil {
			return "", err
		}
	}
	return strings.NewReplacer("PORT", s.port, "IP", s.ip, "DIR", s.dir, "KUBECONFIG", s.kubeconfig, "METRICS", metrics).Replace(text), nil
}

// writeZone writes the world as a hosts file and as a zone file.
func writeZone(w *world, dir string) error {
	var hostsFile, zoneFile strings.Builder
	fmt.Fprintf(&zoneFile, "$ORIGIN %s\n$TTL 5\n@ SOA ns.dns.%[1]s hostmaster.%[1]s 1 7200 1800 86400 5\n@ NS ns.dns.%[1]s\nns.dns A %s\n", clustersetZone, ground.Loopback())
	for _, services := range [][]*service{w.clusterIP, w.headless10, w.headless25, w.headless100} {
		for _, s := range services {
			name := s.fqdn(clustersetZone)
			for _, address := range s.addresses() {
				fmt.Fprintf(&hostsFile, "%s %s\n", address, strings.TrimSuffix(name, "."))
				fmt.Fprintf(&zoneFile, "%s A %s\n", name, address)
			}
			if s.ip.IsValid() {
				fmt.Fprintf(&zoneFile, "_%s._tcp.%s SRV 0 50 %d %s\n", portName, name, port, name)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(hostsFile.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "zone"), []byte(zoneFile.String()), 0o644)
}

// binary is the path of a program that build has made.
func (b *bench) binary(name string) string { return filepath.Join(b.dist, "bench", "bin", name) }

// build makes the programs that are measured, all with the toolchain and the module versions of this tree.
func (b *bench) build() error {
	done := ground.Progress("building the servers")
	defer done()
	for name, path := range map[string]string{"ours": "./coredns-build", "stock": "github.com/coredns/coredns", "bare": "./test/bench/dns/bare"} {
		command := exec.CommandContext(b.ctx, "go", "build", "-ldflags", "-s -w", "-o", b.binary(name), path)
		command.Dir = b.root
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", path, err, out)
		}
	}
	return nil
}
