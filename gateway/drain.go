package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
)

// How a gateway goes: it says so in the probes of its cables and in its answers to nodes, everybody who can moves away, and it
// stays until nothing is carried any more.
const (
	// quietFor this long nothing must have been carried.
	quietFor = time.Second
	// leaving takes no longer than this: where no other gateway takes the traffic it never ends.
	leaving = 5 * time.Second
	// sampleEvery is how often it looks.
	sampleEvery = 100 * time.Millisecond
	// quietPackets in quietFor, on one cable, are nothing: the counts of packets and of probes are not taken at one moment,
	// and the kernel sends some of its own (neighbour and group messages).
	quietPackets = 5
)

// traffic knows whether this gateway is to go, and whether it still carries anything. It has no clock.
type traffic struct {
	mu      sync.Mutex
	node    bool // the Node says so
	ending  bool // the process ends
	samples []sample
}

// sample of the packets that each cable has carried, probes left out.
type sample struct {
	at      time.Time
	packets map[string]uint64
}

func (t *traffic) draining() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.node || t.ending
}

func (t *traffic) drainNode(yes bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node = yes
}

func (t *traffic) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ending = true
}

// state as the Gateway has it.
func (t *traffic) state() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.node && !t.ending:
		return ""
	case t.quiet():
		return v1alpha1.DrainDrained
	default:
		return v1alpha1.DrainDraining
	}
}

// quiet: on no cable was anything carried for quietFor. Samples are kept only while draining, so none is from before.
func (t *traffic) quiet() bool {
	if len(t.samples) == 0 {
		return false
	}
	latest := t.samples[len(t.samples)-1]
	if latest.at.Sub(t.samples[0].at) < quietFor {
		return false
	}
	for endpoint, packets := range latest.packets {
		if before, ok := t.samples[0].packets[endpoint]; !ok || packets > before+quietPackets {
			return false
		}
	}
	return true
}

// look takes a sample, and reports whether the state has changed by it.
func (t *traffic) look(now time.Time, report cable.Report, probes map[string]uint64) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.quiet()
	if !t.node && !t.ending {
		t.samples = nil
		return before
	}
	s := sample{at: now, packets: map[string]uint64{}}
	for _, c := range report.Cables {
		s.packets[c.Endpoint] = c.Packets - min(c.Packets, probes[c.Endpoint])
	}
	t.samples = append(t.samples, s)
	// The first one kept is the youngest that is old enough.
	for len(t.samples) > 2 && now.Sub(t.samples[1].at) >= quietFor {
		t.samples = t.samples[1:]
	}
	return t.quiet() != before
}

func (g *gateway) draining() bool { return g.traffic.draining() }

// sayDraining tells peers and nodes.
func (g *gateway) sayDraining() {
	draining := g.draining()
	if g.prober.drain(draining) {
		g.config.Log.Info("draining", "draining", draining)
		g.tellNodes()
	}
}

// watchTraffic looks, while draining, whether anything is carried.
func (g *gateway) watchTraffic(ctx context.Context, poke func()) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var report cable.Report
		if g.draining() {
			var err error
			if report, err = g.drivers.report(ctx); err != nil {
				continue // the round says so
			}
		}
		if g.traffic.look(time.Now(), report, g.prober.probes()) {
			poke()
		}
	}
}

// leave has all traffic moved away, and returns when nothing was carried for a moment, or after a while.
func (g *gateway) leave(ctx context.Context, poke func()) {
	ctx, cancel := context.WithTimeout(ctx, leaving)
	defer cancel()
	g.traffic.end()
	g.sayDraining()
	poke()
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for g.carriesMaybe() && g.traffic.state() != v1alpha1.DrainDrained {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// carriesMaybe: some cable is up.
func (g *gateway) carriesMaybe() bool {
	for _, h := range g.prober.health() {
		if h.State == v1alpha1.CableUp {
			return true
		}
	}
	return false
}
