package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// changes writes to the API server; every address it gives is one that was not there before, so that an answer that holds it is
// new for sure.
type changes struct {
	api  client.Client
	next int
}

func (c *changes) address() netip.Addr {
	c.next++
	return nth(netip.AddrFrom4([4]byte{172, 16, 0, 1}), c.next)
}

// moveImport gives a ClusterSetIP service another IP, and returns when the API server has acknowledged it.
func (c *changes) moveImport(ctx context.Context, s *service) (netip.Addr, error) {
	var object mcsv1beta1.ServiceImport
	if err := c.api.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: s.name}, &object); err != nil {
		return netip.Addr{}, err
	}
	s.ip = c.address()
	object.Spec.IPs = []string{s.ip.String()}
	return s.ip, c.api.Update(ctx, &object)
}

// replaceBackend gives the place of one backend of a headless service to another, and returns when the API server has
// acknowledged it.
func (c *changes) replaceBackend(ctx context.Context, s *service) (netip.Addr, error) {
	var object discoveryv1.EndpointSlice
	if err := c.api.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: s.name + "-" + s.cluster}, &object); err != nil {
		return netip.Addr{}, err
	}
	at := c.next % len(s.backends)
	s.backends[at] = c.address()
	object.Endpoints[at].Addresses = []string{s.backends[at].String()}
	return s.backends[at], c.api.Update(ctx, &object)
}

// change makes one change, and says which service it is about and which address its answer holds from now on.
type change func(ctx context.Context, n int) (*service, netip.Addr, error)

// propagate makes changes one after the other, and measures for each from the API server's acknowledgement to the first reply
// that has it. The server is asked again 50 us after each reply: its answer is late by that and one query at most.
func (b *bench) propagate(s *server, count int, make change) (report.Sample, error) {
	socket, err := dialRaw(s.site)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	var millis report.Sample
	for n := range count {
		svc, address, err := make(b.ctx, n)
		acknowledged := time.Now()
		if err != nil {
			return nil, err
		}
		query, err := svc.question(s.zone).message(true).Pack()
		if err != nil {
			return nil, err
		}
		if err := pollFor(b.ctx, socket, query, address, acknowledged.Add(10*time.Second)); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", s.name, svc.fqdn(s.zone), err)
		}
		millis = append(millis, time.Since(acknowledged).Seconds()*1e3)
	}
	return millis, nil
}

// pollFor asks again and again until a reply holds an address.
func pollFor(ctx context.Context, socket int, query []byte, address netip.Addr, deadline time.Time) error {
	want := address.As4()
	reply := make([]byte, 65536)
	for id := uint16(1); ; id++ {
		binary.BigEndian.PutUint16(query, id)
		if _, err := unix.Write(socket, query); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("send: %w", err)
		}
		asked := time.Now()
		for {
			n, err := unix.Read(socket, reply)
			switch {
			case err == nil && n > 2 && binary.BigEndian.Uint16(reply) == id:
				if bytes.Contains(reply[:n], want[:]) {
					return nil
				}
			case errors.Is(err, unix.EAGAIN):
				if time.Since(asked) < time.Second {
					pause(20 * time.Microsecond)
					continue
				}
			case errors.Is(err, unix.ECONNREFUSED):
				pause(time.Millisecond) // nobody listens yet
			case err == nil:
				continue // late, for an earlier question
			default:
				return fmt.Errorf("receive: %w", err)
			}
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer with %s in time", address)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		pause(50 * time.Microsecond)
	}
}

// pause lets others run for less than the millisecond that the Go runtime's own timers may take.
func pause(d time.Duration) {
	wait := unix.NsecToTimespec(d.Nanoseconds())
	unix.Nanosleep(&wait, nil)
}

// startup measures from the start of a process to its first right answer, with everything that it reads in the caches of
// the machine. It asks for the services one after the other, and is over when each was answered.
func (b *bench) startup(name string, times int, services ...*service) (report.Sample, error) {
	done := ground.Progress("starting %s %d times", name, times)
	defer done()
	var seconds report.Sample
	for n := range times + 1 { // the first is for the caches
		s, err := b.launch(name, -1, "")
		if err != nil {
			return nil, err
		}
		err = func() error {
			defer s.stop()
			socket, err := dialRaw(s.site)
			if err != nil {
				return err
			}
			defer unix.Close(socket)
			for _, svc := range services {
				query, err := svc.question(s.zone).message(true).Pack()
				if err != nil {
					return err
				}
				if err := pollFor(b.ctx, socket, query, svc.addresses()[0], s.started.Add(2*time.Minute)); err != nil {
					return fmt.Errorf("%s: %w%s", name, err, ground.Tail(filepath.Join(s.dir, "log")))
				}
			}
			if n > 0 {
				seconds = append(seconds, time.Since(s.started).Seconds())
			}
			// What came first must be right in whole.
			for _, svc := range services {
				reply, err := s.exchange(svc.question(s.zone), true)
				if err != nil {
					return err
				}
				if err := svc.question(s.zone).check(reply); err != nil {
					return fmt.Errorf("%s after its start: %w", name, err)
				}
			}
			return nil
		}()
		if err != nil {
			return nil, err
		}
	}
	return seconds, nil
}

// propagation measures in the small world: starts, and changes of both kinds, with all processors for everyone.
func (b *bench) propagation() error {
	first, last := b.world.clusterIP[len(b.world.clusterIP)-1], b.world.headless25[len(b.world.headless25)-1]
	starts := map[string]report.Sample{}
	for _, name := range []string{ours, multicluster} {
		var err error
		if starts[name], err = b.startup(name, b.rounds, first, last); err != nil {
			return err
		}
	}
	b.report.Set("start-s-10k", starts[ours].Median(), "s from the start of the process to right answers for a ClusterSetIP and a headless name: %s",
		report.Figures(starts))

	const total = 1000
	c := &changes{api: b.api}
	servers, able, stop, err := b.startAnywhere(ours, multicluster)
	if err != nil {
		return err
	}
	defer stop()
	kinds := map[string]change{
		"ServiceImport": func(ctx context.Context, n int) (*service, netip.Addr, error) {
			s := b.world.clusterIP[c.next%len(b.world.clusterIP)]
			address, err := c.moveImport(ctx, s)
			return s, address, err
		},
		"EndpointSlice": func(ctx context.Context, n int) (*service, netip.Addr, error) {
			s := b.world.headless25[c.next%len(b.world.headless25)]
			address, err := c.replaceBackend(ctx, s)
			return s, address, err
		},
	}
	done := ground.Progress("%d changes for each of %s", total, strings.Join(able, ", "))
	defer done()
	const turns = 10 // of each peer, so that both see the same machine
	samples, all := map[string]report.Sample{}, map[string]report.Sample{}
	for range turns {
		for _, kind := range sortedKeys(kinds) {
			for _, name := range able {
				sample, err := b.propagate(servers[name], total/turns/len(kinds), kinds[kind])
				if err != nil {
					return err
				}
				samples[name+", "+kind] = append(samples[name+", "+kind], sample...)
				all[name] = append(all[name], sample...)
			}
		}
	}
	var parts []string
	for _, name := range sortedKeys(samples) {
		parts = append(parts, name+": "+quantiles(samples[name]))
	}
	detail := "ms from the API server's acknowledgement to the first changed answer, asked every 50 us or so; " + strings.Join(parts, "; ")
	b.report.Set("local-propagation.p50-ms", all[ours].Median(), "%s", detail)
	b.report.Set("local-propagation.p99-ms", all[ours].Quantile(0.99), "all changes: %s %s; %s %s", ours, quantiles(all[ours]), multicluster, quantiles(all[multicluster]))
	return nil
}

func quantiles(s report.Sample) string {
	return fmt.Sprintf("p50 %.3g, p90 %.3g, p99 %.3g, max %.3g of %d", s.Median(), s.Quantile(0.9), s.Quantile(0.99), s.Quantile(1), len(s))
}

// startAnywhere starts servers on all processors, as people run them, and checks their answers.
func (b *bench) startAnywhere(names ...string) (servers map[string]*server, able []string, stop func(), err error) {
	servers = map[string]*server{}
	stop = func() {
		for _, s := range servers {
			s.stop()
		}
	}
	for _, name := range names {
		if servers[name], err = b.start(name, -1, "", caseNamed("clusterip-a"), caseNamed("headless25-a")); err != nil {
			delete(servers, name)
			stop()
			return nil, nil, nil, err
		}
	}
	return servers, names, stop, nil
}

// large measures in a world of 250,000 headless backends more.
func (b *bench) large() error {
	if b.world.large == nil {
		b.world.grow()
		if err := create(b.ctx, b.api, b.world.large); err != nil {
			return err
		}
	}
	first, last := b.world.clusterIP[len(b.world.clusterIP)-1], b.world.large[len(b.world.large)-1]
	starts := map[string]report.Sample{}
	for _, name := range []string{ours, multicluster} {
		var err error
		if starts[name], err = b.startup(name, max(3, b.rounds/2), first, last); err != nil {
			return err
		}
	}
	b.report.Set("start-s-250k", starts[ours].Median(), "s from the start of the process to right answers for a ClusterSetIP and a headless name: %s",
		report.Figures(starts))

	var heaps []string
	var ourHeap float64
	for _, name := range []string{ours, multicluster} {
		s, err := b.start(profiled(name), -1, "", caseNamed("clusterip-a"), caseNamed("headless25-a"))
		if err != nil {
			return err
		}
		var live float64
		if err = s.await(b.ctx, time.Minute, last.question(s.zone), true); err == nil {
			live, err = s.heap(b.ctx)
		}
		heaps = append(heaps, fmt.Sprintf("%s %.1f MB live, %.0f MB resident", name, live/1e6, s.resident()/1e6))
		s.stop()
		if err != nil {
			return err
		}
		if name == ours {
			ourHeap = live / 1e6
		}
	}
	b.report.Set("heap-mb-250k", ourHeap, "live heap after a forced garbage collection: %s", strings.Join(heaps, "; "))
	return b.sliceUpdates()
}

// sliceUpdates measures what one update of a slice of 100 costs in the large world, and when it is served.
func (b *bench) sliceUpdates() error {
	servers, able, stop, err := b.startAnywhere(ours, multicluster)
	if err != nil {
		return err
	}
	defer stop()
	c := &changes{api: b.api, next: 1 << 16} // other addresses than those of propagation
	update := func(ctx context.Context, n int) (*service, netip.Addr, error) {
		s := b.world.large[c.next%len(b.world.large)]
		address, err := c.replaceBackend(ctx, s)
		return s, address, err
	}
	const total, turns = 200, 10
	done := ground.Progress("%d updates of one slice each, for each of %s", 2*total, strings.Join(able, ", "))
	defer done()
	served, cpu := map[string]report.Sample{}, map[string]report.Sample{}
	for range turns {
		for _, name := range able {
			sample, err := b.propagate(servers[name], total/turns, update)
			if err != nil {
				return err
			}
			served[name] = append(served[name], sample...)
		}
		// The processor time apart from that, and without the questions. Both see the same updates.
		before := map[string]time.Duration{}
		for _, name := range able {
			if before[name], err = servers[name].cpu(); err != nil {
				return err
			}
		}
		var svc *service
		var address netip.Addr
		for n := range total / turns {
			if svc, address, err = update(b.ctx, n); err != nil {
				return err
			}
		}
		for _, name := range able {
			if err := servers[name].awaitAddress(b.ctx, svc, address); err != nil {
				return err
			}
			after, err := servers[name].cpu()
			if err != nil {
				return err
			}
			cpu[name] = append(cpu[name], millis(after-before[name])/(total/turns))
		}
	}
	b.report.Set("slice-update-ms", served[ours].Median(), "ms from the API server's acknowledgement to the first changed answer, one backend of a slice of 100 replaced: %s %s; %s %s",
		ours, quantiles(served[ours]), multicluster, quantiles(served[multicluster]))
	b.report.Add(report.Row{Name: "slice-update-p99-ms", Value: served[ours].Quantile(0.99), Unit: "ms", Better: report.Lower})
	b.report.Set("slice-update-cpu-ms", cpu[ours].Median(), "processor time of the server for one such update, %d in a row, garbage collection included: %s", total/turns, report.Figures(cpu))
	return nil
}

// awaitAddress waits until the answer about a service holds an address.
func (s *server) awaitAddress(ctx context.Context, svc *service, address netip.Addr) error {
	socket, err := dialRaw(s.site)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	query, err := svc.question(s.zone).message(true).Pack()
	if err != nil {
		return err
	}
	return pollFor(ctx, socket, query, address, time.Now().Add(10*time.Second))
}

// heap asks a server with the plugin pprof for its live heap, in bytes.
func (s *server) heap(ctx context.Context) (float64, error) {
	address, err := os.ReadFile(filepath.Join(s.dir, "metrics"))
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(address)+"/debug/pprof/heap?gc=1&debug=1", nil)
	if err != nil {
		return 0, err
	}
	var live float64
	for range 2 { // finalizers of the first collection free more in the second
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, err
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return 0, err
		}
		_, after, found := strings.Cut(string(text), "# HeapAlloc = ")
		if n, _ := fmt.Sscan(after, &live); !found || n != 1 {
			return 0, errors.New("the profile tells no HeapAlloc")
		}
	}
	return live, nil
}
