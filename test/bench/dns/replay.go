package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/test/bench/ground"
	"github.com/fastnet-io/fastnet/test/bench/report"
)

// updateRate is how many slice updates a second arrive while queries are measured.
const updateRate = 1000

// updates measures how much slower queries get while slices change. A machine with two processors cannot carry etcd and an
// API server that take 1,000 writes a second beside a server and its clients, so the events are real ones played again: a
// relay before the API server records what each watch got for some hundreds of updates, in whatever encoding the watch asked
// for, and then sends that round and round. The server reads, decodes and applies every one of them.
func (b *bench) updates() error {
	if err := confine(b.processors[1:]); err != nil {
		return err
	}
	defer confine(b.processors)
	relay, err := newRelay(b)
	if err != nil {
		return err
	}
	defer relay.Close()
	c := caseNamed("clusterip-a")

	// A slice of 10 is what most services have; one of 100 is the largest there is.
	type outcome struct{ quiet, busy, cpuMicros report.Sample }
	measure := func(name string, services []*service) (outcome, error) {
		s, err := b.start(name, b.processors[0], relay.kubeconfig, c)
		if err != nil {
			return outcome{}, err
		}
		defer s.stop()
		defer relay.disconnect()
		svc, addresses, err := b.recordUpdates(relay, s, services)
		if err != nil {
			return outcome{}, err
		}
		queries, err := b.queryFile(s.questions(b.world, c), s.zone)
		if err != nil {
			return outcome{}, err
		}
		done := ground.Progress("%s with and without %d updates a second of slices of %d", name, updateRate, len(services[0].backends))
		defer done()
		if _, err := b.dnsperf(s, queries, c, time.Second); err != nil {
			return outcome{}, err
		}
		var o outcome
		// Many short rounds: the difference is smaller than what a busy machine adds to any one of them.
		slice := max(time.Second, b.slice/3)
		results, err := report.Rounds(3*b.rounds, []string{"quiet", "busy"}, func(state string) (load, error) {
			if state == "quiet" {
				return b.dnsperf(s, queries, c, slice)
			}
			play, stop := context.WithCancel(b.ctx)
			defer stop()
			played := relay.play(play)
			defer func() { stop(); <-played }()
			// Both states of one service must show in turn, else nothing arrives.
			for _, address := range addresses {
				if err := s.awaitAddress(b.ctx, svc, address); err != nil {
					return load{}, fmt.Errorf("updates that are sent again do not arrive: %w", err)
				}
			}
			before := relay.sent.Load()
			start := time.Now()
			l, err := b.dnsperf(s, queries, c, slice)
			if rate := float64(relay.sent.Load()-before) / time.Since(start).Seconds(); err == nil && rate < 0.95*updateRate {
				err = fmt.Errorf("only %.0f updates a second were sent", rate)
			}
			return l, err
		})
		if err != nil {
			return outcome{}, err
		}
		o.quiet = report.Pick(results["quiet"], func(l load) float64 { return l.qps })
		o.busy = report.Pick(results["busy"], func(l load) float64 { return l.qps })
		// Without queries the whole cost of an update shows.
		play, stop := context.WithCancel(b.ctx)
		played := relay.play(play)
		for range b.rounds {
			before, err1 := s.cpu()
			sent := relay.sent.Load()
			err2 := ground.Await(b.ctx, time.Minute, "500 updates are sent", func() error {
				if n := relay.sent.Load() - sent; n < 500 {
					return fmt.Errorf("%d were", n)
				}
				return nil
			})
			after, err3 := s.cpu()
			if err1 != nil || err2 != nil || err3 != nil {
				stop()
				return outcome{}, fmt.Errorf("processor time: %v, %v, %v", err1, err2, err3)
			}
			o.cpuMicros = append(o.cpuMicros, float64((after-before).Microseconds())/float64(relay.sent.Load()-sent))
		}
		stop()
		<-played
		return o, nil
	}
	slowdown := func(o outcome) report.Sample {
		var percent report.Sample
		for _, ratio := range o.busy.Over(o.quiet) {
			percent = append(percent, 100*(1-ratio))
		}
		return percent
	}
	describe := func(name string, o outcome) string {
		return fmt.Sprintf("%s %s %% (%s/s quiet, %s/s busy), %s us of CPU an update", name, slowdown(o), o.quiet, o.busy, o.cpuMicros)
	}

	ten, err := measure(ours, b.world.headless10)
	if err != nil {
		return err
	}
	theirs, err := measure(multicluster, b.world.headless10)
	if err != nil {
		return err
	}
	b.report.Set("update-slowdown", slowdown(ten).Median(),
		"queries a second at the knee, server on one core, while %d recorded updates a second of slices of 10 backends arrive over TLS: %s; %s",
		updateRate, describe(ours, ten), describe(multicluster, theirs))
	hundred, err := measure(ours, b.world.headless100)
	if err != nil {
		return err
	}
	b.report.Add(report.Row{Name: "update-slowdown-100", Value: slowdown(hundred).Median(), Unit: "%", Better: report.Lower,
		Detail: "the same with slices of 100 backends, the largest there are: " + describe(ours, hundred)})
	return nil
}

// recordUpdates makes two updates of each service, while the relay records, and gives one service with the addresses that
// it has after each.
func (b *bench) recordUpdates(relay *relay, s *server, services []*service) (*service, []netip.Addr, error) {
	done := ground.Progress("recording %d updates of slices of %d", 2*len(services), len(services[0].backends))
	defer done()
	c := &changes{api: b.api, next: 1 << 18}
	relay.record(true)
	defer relay.record(false)
	var seen []netip.Addr
	for range 2 {
		place := c.next
		for i, svc := range services {
			c.next = place // the same backend of each, twice
			if i > 0 {
				c.next = place + i*len(svc.backends)
			}
			address, err := c.replaceBackend(b.ctx, svc)
			if err != nil {
				return nil, nil, err
			}
			if i == len(services)-1 {
				seen = append(seen, address)
				if err := s.awaitAddress(b.ctx, svc, address); err != nil {
					return nil, nil, err
				}
			}
		}
		c.next = place + (len(services)+1)*len(services[0].backends)
	}
	return services[len(services)-1], seen, nil
}

// relay stands before the API server. It passes everything on, and can record the events of EndpointSlice watches and send
// them again.
type relay struct {
	*httptest.Server
	kubeconfig string
	sent       atomic.Int64 // events, to the watch that got the most

	mu        sync.Mutex
	recording bool
	streams   map[*stream]bool
}

// stream is one watch.
type stream struct {
	mu     sync.Mutex // over what is written
	w      io.Writer
	flush  func()
	frames [][]byte // what was recorded
}

const slicesPath = "/apis/discovery.k8s.io/v1/endpointslices"

func newRelay(b *bench) (*relay, error) {
	config, err := kube.Config(b.kubeconfig, "bench-dns")
	if err != nil {
		return nil, err
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	upstream, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	r := &relay{streams: map[*stream]bool{}}
	pass := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(upstream) },
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(ground.Loopback(), "0"))
	if err != nil {
		return nil, err
	}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if watch := request.URL.Query().Get("watch"); request.URL.Path == slicesPath && (watch == "true" || watch == "1") {
			r.watch(w, request, transport, upstream)
			return
		}
		pass.ServeHTTP(w, request)
	}))
	r.Server.Listener.Close()
	r.Server.Listener = listener
	r.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.Server.EnableHTTP2 = true // as the API server has it
	r.Server.StartTLS()

	// The same user, by way of the relay.
	file, err := clientcmd.LoadFromFile(b.kubeconfig)
	if err != nil {
		return nil, err
	}
	for _, cluster := range file.Clusters {
		cluster.Server, cluster.CertificateAuthority, cluster.InsecureSkipTLSVerify = r.Server.URL, "", true
	}
	r.kubeconfig = filepath.Join(b.tmp, "relay-kubeconfig")
	return r, clientcmd.WriteToFile(*file, r.kubeconfig)
}

// Close ends the relay with all its watches.
func (r *relay) Close() {
	r.disconnect()
	r.Server.CloseClientConnections()
	r.Server.Close()
}

// watch passes one watch on, event by event.
func (r *relay) watch(w http.ResponseWriter, request *http.Request, transport http.RoundTripper, upstream *url.URL) {
	onward := request.Clone(request.Context())
	onward.URL.Scheme, onward.URL.Host, onward.Host, onward.RequestURI = upstream.Scheme, upstream.Host, "", ""
	response, err := transport.RoundTrip(onward)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	for name, values := range response.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(response.StatusCode)
	s := &stream{w: w, flush: func() { _ = http.NewResponseController(w).Flush() }}
	s.flush()
	r.mu.Lock()
	r.streams[s] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.streams, s)
		r.mu.Unlock()
		// Nobody may write once this handler has returned.
		s.mu.Lock()
		s.w = nil
		s.mu.Unlock()
	}()
	read := frames(response.Header.Get("Content-Type"), response.Body)
	for {
		frame, err := read()
		if err != nil {
			return
		}
		r.mu.Lock()
		if r.recording {
			s.frames = append(s.frames, frame)
		}
		r.mu.Unlock()
		if s.write(frame) != nil {
			return
		}
	}
}

// frames reads a watch event by event: with the length before each, or, where they are JSON, on a line each.
func frames(contentType string, body io.Reader) func() ([]byte, error) {
	in := bufio.NewReaderSize(body, 1<<20)
	if strings.HasPrefix(contentType, "application/json") {
		return func() ([]byte, error) { return in.ReadBytes('\n') }
	}
	return func() ([]byte, error) {
		const lengthSize, sane = 4, 1 << 26
		head, err := in.Peek(lengthSize)
		if err != nil {
			return nil, err
		}
		length := binary.BigEndian.Uint32(head)
		if length > sane {
			return nil, fmt.Errorf("an event of %d bytes as %s", length, contentType)
		}
		frame := make([]byte, lengthSize+length)
		_, err = io.ReadFull(in, frame)
		return frame, err
	}
}

func (s *stream) write(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return os.ErrClosed
	}
	_, err := s.w.Write(frame)
	s.flush()
	return err
}

// record begins a new recording, or ends the one that runs.
func (r *relay) record(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recording = on
	if on {
		for s := range r.streams {
			s.frames = nil
		}
	}
}

// play sends to each watch what was recorded of it, round and round, at updateRate, until the context ends; then the last round
// is sent to its end, so that the world is as the API server has it.
func (r *relay) play(ctx context.Context) (done <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var playing sync.WaitGroup
	first := true
	for s := range r.streams {
		// Bookmarks are in the recording as well; there are too few of them to matter.
		if len(s.frames) == 0 {
			continue
		}
		counts := first // one watch counts for all: each gets every update
		first = false
		playing.Go(func() {
			start := time.Now()
			for n := 0; ctx.Err() == nil || n%len(s.frames) != 0; n++ {
				if s.write(s.frames[n%len(s.frames)]) != nil {
					return
				}
				if counts {
					r.sent.Add(1)
				}
				if early := time.Until(start.Add(time.Duration(n) * time.Second / updateRate)); early > 0 {
					pause(early)
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() {
		playing.Wait()
		close(finished)
	}()
	return finished
}

// disconnect ends the connections of all clients.
func (r *relay) disconnect() { r.Server.CloseClientConnections() }
