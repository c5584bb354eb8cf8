package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// load is what dnsperf saw of a server in one round.
type load struct {
	qps       float64 // answers a second with the right code
	cpuMicros float64 // processor time of the server for each of them
	lost      float64 // share of the queries without an answer
	size      float64 // mean size of a reply, bytes
}

// outstanding is how many queries dnsperf keeps on their way: enough that the server never waits for one, and few enough that
// none is dropped. What it measures is then the knee of the server's curve.
const outstanding = 100

// wire measures servers in processes of their own: each on the first processor, one at a time, and dnsperf on the second.
func (b *bench) wire() error {
	if err := confine(b.processors[1:]); err != nil {
		return err
	}
	defer confine(b.processors)

	clusterIP, err := b.compare(caseNamed("clusterip-a"), ours, multicluster, plainCluster, static, hosts, file, bare, nsd, knot)
	if err != nil {
		return err
	}
	qps := func(l load) float64 { return l.qps }
	for name, loads := range clusterIP {
		b.knee[name] = report.Pick(loads, qps)
	}
	over := b.knee[ours].Over(b.knee[multicluster])
	b.report.Set("udp-qps.vs-kubernetes", over.Median(), "ratios %s; %s", over, describe(clusterIP))
	over = b.knee[ours].Over(b.knee[static])
	b.report.Set("udp-qps.vs-static", over.Median(), "ratios %s of queries a second", over)
	headless, err := b.compare(caseNamed("headless25-a"), ours, multicluster, hosts, file, nsd, knot)
	if err != nil {
		return err
	}
	over = report.Pick(headless[ours], qps).Over(report.Pick(headless[multicluster], qps))
	b.report.Set("udp-headless25.vs-kubernetes", over.Median(), "ratios %s; %s", over, describe(headless))

	inChain, err := b.compare(caseNamed("clusterip-a"), chained(ours), chained(multicluster), chained(instant), chained(static))
	if err != nil {
		return err
	}
	chainRatio := func(name, other string) report.Sample {
		return report.Pick(inChain[chained(name)], qps).Over(report.Pick(inChain[chained(other)], qps))
	}
	over = chainRatio(ours, multicluster)
	b.report.Set("udp-qps-chain.vs-kubernetes", over.Median(), "ratios %s; %s", over, describe(inChain))
	most := chainRatio(instant, multicluster)
	b.report.Add(report.Row{Name: "udp-qps-chain.ceiling", Value: most.Median(), Unit: "x", Better: report.Higher, Peer: chained(multicluster),
		Detail: fmt.Sprintf("ratios %s of %s: the plugin at the end of the chain costs next to nothing there; ours reaches %s of it",
			most, chained(instant), chainRatio(ours, instant))})

	b.reportCPU("clusterip-a", clusterIP)
	b.reportCPU("headless25-a", headless)
	b.reportCPU("chain", inChain)
	return nil
}

// reportCPU adds a row for the processor time of everyone in a case. It moves less than the rate does when the machine has
// other things to do.
func (b *bench) reportCPU(name string, loads map[string][]load) {
	for _, peer := range sortedKeys(loads) {
		cpu := report.Pick(loads[peer], func(l load) float64 { return l.cpuMicros })
		b.report.Add(report.Row{Name: "udp-cpu-us." + name + "." + strings.ReplaceAll(strings.TrimSuffix(peer, chained("")), " ", "-"),
			Value: cpu.Median(), Unit: "us", Better: report.Lower, Detail: "processor time of the server a query: " + cpu.String()})
	}
}

// required tells whether there is nothing to compare without this peer.
func required(name string) bool {
	name = strings.TrimSuffix(name, chained(""))
	return name == ours || name == multicluster || name == static || name == instant
}

// startAll starts servers side by side on the servers' processor. A peer that cannot run here is left out, with a line that
// says why.
func (b *bench) startAll(names []string, cases ...queryCase) (servers map[string]*server, able []string, stop func(), err error) {
	done := ground.Progress("starting %s", strings.Join(names, ", "))
	defer done()
	servers = map[string]*server{}
	stop = func() {
		for _, s := range servers {
			s.stop()
		}
	}
	for _, name := range names {
		s, err := b.start(name, b.processors[0], "", cases...)
		switch {
		case err == nil:
			servers[name] = s
			able = append(able, name)
		case required(name) || b.ctx.Err() != nil:
			stop()
			return nil, nil, nil, err
		default:
			fmt.Printf("  without %v\n", err)
		}
	}
	return servers, able, stop, nil
}

// compare measures the servers in turns.
func (b *bench) compare(c queryCase, names ...string) (map[string][]load, error) {
	servers, able, stop, err := b.startAll(names, c)
	if err != nil {
		return nil, err
	}
	defer stop()
	files := map[string]string{}
	for _, s := range servers {
		if files[s.zone] == "" {
			if files[s.zone], err = b.queryFile(s.questions(b.world, c), s.zone); err != nil {
				return nil, err
			}
		}
	}
	done := ground.Progress("UDP, %s: %d rounds of %s", c.name, b.rounds, b.slice)
	defer done()
	// The first round warms up: caches fill, heaps grow to their size.
	if _, err := report.Rounds(1, able, func(name string) (load, error) {
		return b.dnsperf(servers[name], files[servers[name].zone], c, time.Second)
	}); err != nil {
		return nil, err
	}
	return report.Rounds(b.rounds, able, func(name string) (load, error) {
		return b.dnsperf(servers[name], files[servers[name].zone], c, b.slice)
	})
}

// queryFile writes questions as dnsperf reads them.
func (b *bench) queryFile(questions []question, zone string) (string, error) {
	var text strings.Builder
	for _, q := range questions {
		fmt.Fprintf(&text, "%s %s\n", q.name, dns.TypeToString[q.qtype])
	}
	f, err := os.CreateTemp(b.tmp, "queries-"+zone+"-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = f.WriteString(text.String())
	return f.Name(), err
}

// dnsperf loads a server for a time, in seconds at least.
func (b *bench) dnsperf(s *server, queries string, c queryCase, d time.Duration) (l load, err error) {
	err = b.undisturbed(s, func() error {
		l, err = b.dnsperfOnce(s, queries, c, d)
		return err
	})
	return l, err
}

func (b *bench) dnsperfOnce(s *server, queries string, c queryCase, d time.Duration) (load, error) {
	args := []string{"-s", s.ip, "-p", s.port, "-d", queries, "-c", "8", "-T", "1", "-q", strconv.Itoa(outstanding),
		"-l", strconv.Itoa(int(d.Round(time.Second).Seconds())), "-t", "1"}
	if c.edns {
		args = append(args, "-e")
	}
	before, err := s.cpu()
	if err != nil {
		return load{}, err
	}
	command := exec.CommandContext(b.ctx, "dnsperf", args...)
	out, err := command.CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("dnsperf: %w\n%s", err, out)
	}
	after, err := s.cpu()
	if err != nil {
		return load{}, err
	}
	l, right, err := parseDnsperf(string(out), dns.RcodeToString[c.rcode])
	l.cpuMicros = float64((after - before).Nanoseconds()) / 1e3 / right
	if err == nil && l.lost > 0.01 {
		err = fmt.Errorf("%.1f %% of the queries were lost: this is beyond the knee, or the server is broken%s", 100*l.lost, ground.Tail(filepath.Join(s.dir, "log")))
	}
	return l, err
}

var (
	dnsperfSent  = regexp.MustCompile(`Queries sent:\s+(\d+)`)
	dnsperfLost  = regexp.MustCompile(`Queries lost:\s+(\d+)`)
	dnsperfTime  = regexp.MustCompile(`Run time \(s\):\s+([0-9.]+)`)
	dnsperfSize  = regexp.MustCompile(`Average packet size:\s+request \d+, response (\d+)`)
	dnsperfCodes = regexp.MustCompile(`Response codes:\s+(.*)`)
)

// parseDnsperf reads dnsperf's output. right is the number of replies with the wanted code.
func parseDnsperf(text, rcode string) (l load, right float64, err error) {
	number := func(pattern *regexp.Regexp) float64 {
		found := pattern.FindStringSubmatch(text)
		if found == nil {
			err = fmt.Errorf("dnsperf printed no %v:\n%s", pattern, text)
			return 0
		}
		value, parseErr := strconv.ParseFloat(found[1], 64)
		if parseErr != nil {
			err = parseErr
		}
		return value
	}
	sent, lost, seconds := number(dnsperfSent), number(dnsperfLost), number(dnsperfTime)
	l.size = number(dnsperfSize)
	if codes := dnsperfCodes.FindStringSubmatch(text); codes != nil {
		for code := range strings.SplitSeq(codes[1], ", ") {
			if count, found := strings.CutPrefix(code, rcode+" "); found {
				count, _, _ = strings.Cut(count, " ")
				right, err = strconv.ParseFloat(count, 64)
			}
		}
	}
	if err == nil && (right == 0 || seconds == 0 || sent == 0) {
		err = fmt.Errorf("dnsperf got no right answer:\n%s", text)
	}
	if err != nil {
		return load{}, 0, err
	}
	l.qps, l.lost = right/seconds, lost/sent
	return l, right, nil
}

// describe lists what everyone reached.
func describe(loads map[string][]load) string {
	var parts []string
	for _, name := range sortedKeys(loads) {
		pick := func(figure func(load) float64) report.Sample { return report.Pick(loads[name], figure) }
		part := fmt.Sprintf("%s %s/s, %.3g us of CPU a query, %.0f B a reply", name, pick(func(l load) float64 { return l.qps }),
			pick(func(l load) float64 { return l.cpuMicros }).Median(), pick(func(l load) float64 { return l.size }).Median())
		if lost := pick(func(l load) float64 { return l.lost }).Quantile(1); lost > 0 {
			part += fmt.Sprintf(", up to %.2g %% lost", 100*lost)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}
