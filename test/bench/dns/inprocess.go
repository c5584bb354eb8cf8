package main

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/erratic"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	_ "github.com/fastnet-io/fastnet/plugin/lighthouse"
	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// directive of the plugin that takes the handlers of a server block out, for the benchmark to call.
const directive = "bench"

// registerDirectives adds ours to CoreDNS's list, where the image has it, and the benchmark's own at the end: when it is set
// up all others of the block have been, and none can tell that it is there.
func registerDirectives(taken *plugin.Handler) {
	before := slices.Index(dnsserver.Directives, "kubernetes")
	dnsserver.Directives = append(slices.Insert(slices.Clone(dnsserver.Directives), before, "lighthouse"), directive)
	plugin.Register(directive, func(c *caddy.Controller) error {
		config := dnsserver.GetConfig(c)
		first := config.Plugin[0]
		config.Plugin[0] = func(next plugin.Handler) plugin.Handler {
			*taken = first(next)
			return *taken
		}
		return nil
	})
}

// perOp is what one call of ServeDNS costs.
type perOp struct {
	micros      float64
	allocations float64
}

// inProcess measures ServeDNS alone: CoreDNS runs in this process, one instance for each peer, and the handlers of each are
// called with a writer that does nothing.
func (b *bench) inProcess() error {
	dnsserver.Quiet, caddy.Quiet = true, true
	var taken plugin.Handler
	registerDirectives(&taken)
	handlers := map[string]plugin.Handler{}
	inProcessPeers := []string{ours, multicluster, static, hosts}
	for _, name := range inProcessPeers {
		done := ground.Progress("starting %s in process", name)
		p, site, err := b.place(name)
		if err != nil {
			return err
		}
		text, err := p.config(b, site)
		if err != nil {
			return err
		}
		text = strings.TrimSuffix(strings.TrimSpace(text), "}") + directive + "\n}\n"
		instance, err := caddy.Start(caddy.CaddyfileInput{Contents: []byte(text), Filepath: "Corefile", ServerTypeName: "dns"})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer instance.Stop()
		defer instance.ShutdownCallbacks()
		handlers[name] = taken
		done()
	}

	// One processor, so that what the garbage collector does for a peer counts for it, as on a server with one core.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, c := range queryCases {
		questions := c.draw(b.world, clustersetZone)
		messages := make([]*dns.Msg, len(questions))
		for i, q := range questions {
			messages[i] = q.message(false)
		}
		var able []string
		for _, name := range inProcessPeers {
			verify := func() error { return verifyHandler(b.ctx, handlers[name], questions) }
			err := verify()
			switch {
			case err == nil || name == static && c.name == "clusterip-a": // static answers with an address of its own
				able = append(able, name)
			case name == ours || name == multicluster:
				// On a busy machine one may not have read all when its server begins to serve.
				if err := ground.Await(b.ctx, time.Minute, name+" answers rightly, without which there is nothing to compare", verify); err != nil {
					return err
				}
				able = append(able, name)
			}
		}
		done := ground.Progress("ServeDNS, %s: %s", c.name, strings.Join(able, ", "))
		for _, fresh := range []bool{false, true} {
			// Many short rounds rather than few long ones: what disturbs the machine for a second then spoils few of them.
			results, err := report.Rounds(3*b.rounds, able, func(name string) (perOp, error) {
				return measureServeDNS(handlers[name], messages, b.slice/30, fresh), b.ctx.Err()
			})
			if err != nil {
				return err
			}
			b.reportServeDNS(c.name, results, fresh)
		}
		if c.name == "clusterip-a" {
			// These two are close to each other. They take turns alone, so that the two of each pair lie side by side in time.
			results, err := report.Rounds(8*b.rounds, []string{ours, static}, func(name string) (perOp, error) {
				return measureServeDNS(handlers[name], messages, b.slice/30, false), b.ctx.Err()
			})
			if err != nil {
				return err
			}
			micros := func(name string) report.Sample {
				return report.Pick(results[name], func(p perOp) float64 { return p.micros })
			}
			over := micros(ours).Over(micros(static))
			low, high := over.Interval()
			b.report.Set("clusterip-a.vs-erratic", over.Median(), "median of the ratios of %d pairs of rounds, with 95 %% confidence between %.3g and %.3g; ratios %s; ServeDNS us: %s %s, %s %s",
				len(over), low, high, over, ours, micros(ours), static, micros(static))
		}
		done()
	}
	return nil
}

// verifyHandler compares a sample of the answers with the right ones.
func verifyHandler(ctx context.Context, h plugin.Handler, questions []question) error {
	for _, q := range questions[:200] {
		w := &keepingWriter{}
		rcode, err := h.ServeDNS(ctx, w, q.message(false))
		if err != nil {
			return err
		}
		if w.reply == nil {
			w.reply = &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}
		}
		if err := q.check(w.reply); err != nil {
			return err
		}
	}
	return nil
}

// keepingWriter keeps the reply.
type keepingWriter struct {
	test.ResponseWriter
	reply *dns.Msg
}

func (w *keepingWriter) WriteMsg(m *dns.Msg) error {
	w.reply = m
	return nil
}

func (w *keepingWriter) Write(packed []byte) (int, error) {
	w.reply = new(dns.Msg)
	return len(packed), w.reply.Unpack(packed)
}

// idleWriter is a client on UDP to whom nothing is written. It does as little as a writer can.
type idleWriter struct{ test.ResponseWriter }

var (
	localAddress  net.Addr = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53}
	remoteAddress net.Addr = &net.UDPAddr{IP: net.IPv4(10, 240, 0, 1), Port: 40212}
)

func (*idleWriter) LocalAddr() net.Addr  { return localAddress }
func (*idleWriter) RemoteAddr() net.Addr { return remoteAddress }

// measureServeDNS calls the handler for about a time. With fresh each call has a goroutine of its own, as each packet has in
// a server: a deep chain of calls then pays for the growth of its stack.
//
// The time is that of whole periods, each from the end of one garbage collection to the end of the next, so that every call pays its
// share of one. Beside a heap as large as that of all peers together, a collection costs as much as all the calls between two: a given
// number of calls would have one or none, by chance.
func measureServeDNS(h plugin.Handler, messages []*dns.Msg, d time.Duration, fresh bool) perOp {
	w := &idleWriter{}
	finished := make(chan struct{})
	request := new(dns.Msg)
	ctx := context.Background() // the server's, which has no deadline
	call := func(m *dns.Msg) {
		*request = *m // plugins may change the header; the question stays
		h.ServeDNS(ctx, w, request)
	}
	calls := 0
	// Processor time of this process, in which nothing else has work to do: unlike the clock on the wall it does not run while
	// others have the processor.
	loop := func(n int) time.Duration {
		start := processorTime()
		for range n {
			m := messages[calls%len(messages)]
			calls++
			if !fresh {
				call(m)
				continue
			}
			go func() {
				call(m)
				finished <- struct{}{}
			}()
			<-finished
		}
		return processorTime() - start
	}
	// Learn how many calls fit between two looks at the collector.
	n := 1
	for loop(n) < betweenLooks {
		n *= 2
	}
	// period calls until the next collection has ended; a handler that makes no garbage would never come to it.
	period := func() (took time.Duration) {
		for before := collections(); collections() == before && took < 100*d; {
			took += loop(n)
		}
		return took
	}
	period() // warms up, and ends where the first one that counts begins
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	from, took := calls, time.Duration(0)
	for took < d {
		took += period()
	}
	runtime.ReadMemStats(&after)
	return perOp{
		micros:      float64(took.Nanoseconds()) / 1e3 / float64(calls-from),
		allocations: float64(after.Mallocs-before.Mallocs) / float64(calls-from),
	}
}

// betweenLooks is much shorter than a period, and much longer than a look.
const betweenLooks = 100 * time.Microsecond

// collections is how often garbage was collected so far. Looking makes no garbage itself.
func collections() uint64 {
	metrics.Read(cycles)
	return cycles[0].Value.Uint64()
}

var cycles = []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var used unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &used); err != nil {
		panic(err) // every Linux has this clock
	}
	return time.Duration(used.Nano())
}

func (b *bench) reportServeDNS(name string, results map[string][]perOp, fresh bool) {
	micros, allocations := map[string]report.Sample{}, map[string]report.Sample{}
	for peer, r := range results {
		micros[peer] = report.Pick(r, func(p perOp) float64 { return p.micros })
		allocations[peer] = report.Pick(r, func(p perOp) float64 { return p.allocations })
	}
	speedup := micros[multicluster].Over(micros[ours])
	if fresh {
		b.report.Add(report.Row{Name: name + ".speedup-fresh-goroutine", Value: speedup.Median(), Unit: "x", Better: report.Higher, Peer: multicluster,
			Detail: "ServeDNS in a new goroutine for each call, us: " + report.Figures(micros)})
		return
	}
	b.report.Set(name+".speedup", speedup.Median(), "ratios %s; ServeDNS us: %s; allocations: %s", speedup, report.Figures(micros), medians(allocations))
	if name == "clusterip-a" {
		b.report.Set("clusterip-a.allocs", allocations[ours].Median(), "allocations of one ServeDNS: %s", medians(allocations))
	}
}

// medians lists the medians of everyone.
func medians(samples map[string]report.Sample) string {
	var parts []string
	for _, name := range sortedKeys(samples) {
		parts = append(parts, fmt.Sprintf("%s %.4g", name, samples[name].Median()))
	}
	return strings.Join(parts, ", ")
}
