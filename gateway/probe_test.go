package gateway

import (
	"cmp"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

func testProber() *prober { return newProber(func() {}, slog.New(slog.DiscardHandler)) }

const probeAddress = "fe80::1%fastnet-wabcdef"

// cableTo an Endpoint, as a driver reports it.
func cableTo(endpoint string) cable.Cable {
	return cable.Cable{Endpoint: endpoint, PeerAddress: netip.MustParseAddrPort("192.0.2.9:51820"), Local: netip.MustParseAddr("fe80::9%fastnet-wabcdef"), Probe: netip.MustParseAddr(probeAddress)}
}

// turns of the prober for some time, in which there is no socket to be had: probes go out and none is answered.
func (p *prober) turns(t *testing.T, from time.Time, d time.Duration) {
	t.Helper()
	var readers sync.WaitGroup
	for now := from; now.Before(from.Add(d)); {
		next := p.turn(t.Context(), now, &readers)
		if !next.After(now) {
			t.Fatal("the prober wants to do nothing, at once")
		}
		now = next
	}
}

func probe(kind, flags byte, sequence, mark uint64) []byte {
	packet := append([]byte(probeMagic), kind, flags, 0, 0)
	packet = binary.BigEndian.AppendUint64(packet, sequence)
	return binary.BigEndian.AppendUint64(packet, mark)
}

// A restart is no change of state: a cable that was up stays up, since when it was, until its probes fail.
func TestStateIsTakenOverFromTheProcessBefore(t *testing.T) {
	p := testProber()
	since := metav1.NewTime(time.Unix(1000, 0))
	p.seed([]v1alpha1.Cable{
		{Endpoint: "c2.a", State: v1alpha1.CableUp, Since: since, RTTMilliseconds: "2.500"},
		{Endpoint: "c2.b", State: v1alpha1.CableDown, Since: since}, {Endpoint: "c9.gone", State: v1alpha1.CableUp, Since: since},
	})
	p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a"), cableTo("c2.b")}})
	health := p.health()
	if h := health["c2.a"]; h.State != v1alpha1.CableUp || !h.Since.Equal(since.Time) || h.RTT != 2500*time.Microsecond {
		t.Errorf("c2.a is %+v, want it up as before", h)
	}
	if h := health["c2.b"]; h.State != v1alpha1.CableConnecting {
		t.Errorf("c2.b is %+v, want it connecting", h)
	}
	if len(health) != 2 {
		t.Errorf("cables %v, want two", health)
	}
	// Nodes are told of it when something has come through it.
	told := func() bool {
		return slices.Contains(nodeView(p.health(), false).Cables, nodeprobe.Cable{Endpoint: "c2.a", Up: true})
	}
	line, readers := p.lines["c2.a"], sync.WaitGroup{}
	now := time.Now()
	p.turn(t.Context(), now, &readers)
	if told() {
		t.Error("nodes are told that c2.a is up, and nobody knows")
	}
	p.take(probe(kindAnswer, 0, 1, p.mark), netip.MustParseAddr(probeAddress), line, now.Add(time.Millisecond))
	if !told() {
		t.Error("nodes are not told that c2.a is up")
	}
	p.turns(t, time.Now(), time.Second)
	if h := p.health()["c2.a"]; h.State != v1alpha1.CableDown {
		t.Errorf("without answers c2.a is %+v, want it down", h)
	}
}

func TestAnswersCountOnlyFromThePeerTheyWereAskedOf(t *testing.T) {
	p := testProber()
	p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a")}})
	start := time.Now()
	p.turns(t, start, time.Millisecond)
	line := p.lines["c2.a"]
	for name, wrong := range map[string]struct {
		packet []byte
		from   string
	}{
		"another address":      {probe(kindAnswer, flagDraining, 1, p.mark), "fe80::2"},
		"never asked":          {probe(kindAnswer, 0, 7, p.mark), "fe80::1"},
		"of an earlier start":  {probe(kindAnswer, flagDraining, 1, p.mark+1), "fe80::1"},
		"neither of the kinds": {probe(3, flagDraining, 1, p.mark), "fe80::1"},
		"short":                {probe(kindAnswer, flagDraining, 1, p.mark)[:23], "fe80::1"},
		"empty":                {nil, "fe80::1"},
		"another protocol":     {append([]byte("FNp9"), probe(kindAnswer, 0, 1, p.mark)[4:]...), "fe80::1"},
	} {
		answer := p.take(wrong.packet, netip.MustParseAddr(wrong.from), line, start)
		if h := p.health()["c2.a"]; h.State != v1alpha1.CableConnecting || h.Draining || answer != nil {
			t.Errorf("%s: it counts, or is answered (%v): %+v", name, answer, h)
		}
	}
	p.take(probe(kindAnswer, 0, 1, p.mark), netip.MustParseAddr(probeAddress), line, start.Add(time.Millisecond))
	if p.health()["c2.a"].State != v1alpha1.CableUp {
		t.Error("the right answer does not count")
	}
}

func TestQuestionsAreAnsweredAsTheyWereAsked(t *testing.T) {
	p := testProber()
	p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a")}})
	pokes := 0
	p.poke = func() { pokes++ }
	translated := cableTo("c2.a")
	translated.Translated = true
	p.set(cable.Report{Cables: []cable.Cable{translated}})
	for _, flags := range []byte{0, flagDraining, flagDraining, 0, flagTranslated, flagTranslated | flagDraining} {
		question := probe(kindQuestion, flags, 77, 12345)
		answer := p.take(question, netip.MustParseAddr("fe80::1"), p.lines["c2.a"], time.Now())
		if string(answer) != string(probe(kindAnswer, flagTranslated, 77, 12345)) {
			t.Errorf("answer % x", answer)
		}
		if h := p.health()["c2.a"]; h.Draining != (flags&flagDraining != 0) || h.Translated != (flags&flagTranslated != 0) || h.State != v1alpha1.CableConnecting {
			t.Errorf("after flags %d: %+v", flags, h)
		}
	}
	if pokes != 4 {
		t.Errorf("%d pokes, want one for each change", pokes)
	}
}

func TestAttemptsCountAddressesTried(t *testing.T) {
	p := testProber()
	pokes := 0
	p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a")}})
	p.poke = func() { pokes++ }
	silent := p.lines["c2.a"].cable
	silent.PeerAddress = netip.AddrPort{}
	p.lines["c2.a"].cable = silent
	start := time.Now()
	p.turns(t, start, time.Minute)
	if h := p.health()["c2.a"]; h.Attempts != 0 {
		t.Errorf("%d attempts where there is no address to try", h.Attempts)
	}
	p.lines["c2.a"].cable = cableTo("c2.a")
	p.turns(t, start.Add(time.Minute), 3*attemptAfter+time.Second)
	if h := p.health()["c2.a"]; h.Attempts != 3 || pokes != 3 {
		t.Errorf("%d attempts and %d pokes, want 3 of each", h.Attempts, pokes)
	}
}

func TestHandshakesStandInWhereThereCanBeNoProbes(t *testing.T) {
	now := time.Now()
	p := testProber()
	for _, step := range []struct {
		last time.Time
		want v1alpha1.CableState
	}{{time.Time{}, v1alpha1.CableConnecting}, {now.Add(-time.Minute), v1alpha1.CableUp}, {now.Add(-handshakeLife), v1alpha1.CableDown}, {now, v1alpha1.CableUp}} {
		p.set(cable.Report{Cables: []cable.Cable{{Endpoint: "c2.a", LastHandshake: step.last}}})
		if h := p.health()["c2.a"]; h.State != step.want {
			t.Errorf("last handshake %s: %s, want %s", step.last, h.State, step.want)
		}
	}
}

// TestCableLivesWithoutAnswers: no probe of ours is answered. What happens depends on what the device receives, and on what the peer says.
func TestCableLivesWithoutAnswers(t *testing.T) {
	const tick = 20 * time.Millisecond
	for name, c := range map[string]struct {
		data     uint64 // bytes a tick
		flags    byte   // of the peer's probes
		every    int    // so many ticks there is one, 5 if it is 0
		silent   bool   // there are none
		broken   bool   // nobody knows what the device has received
		downFrom time.Duration
		downBy   time.Duration // 0 for never
	}{
		"nothing":                              {silent: true, downFrom: 200 * time.Millisecond, downBy: 300 * time.Millisecond},
		"the peer's probes":                    {},
		"the peer's probes, and it drains":     {flags: flagDraining},
		"the peer does not hear":               {flags: flagDeaf, downFrom: 200 * time.Millisecond, downBy: 400 * time.Millisecond},
		"data":                                 {data: 3000, silent: true, downFrom: wordOfData, downBy: wordOfData + 500*time.Millisecond},
		"data, and a word now and then":        {data: 3000, every: 50},
		"a word now and then":                  {every: 50, downFrom: 200 * time.Millisecond, downBy: 500 * time.Millisecond},
		"a word now and then, and little data": {data: 10, every: 50, downFrom: 200 * time.Millisecond, downBy: 500 * time.Millisecond},
		"data, and the peer does not hear":     {data: 3000, flags: flagDeaf, downFrom: 200 * time.Millisecond, downBy: 400 * time.Millisecond},
		"data that nobody can count":           {data: 3000, every: 50, broken: true, downFrom: 200 * time.Millisecond, downBy: 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p := testProber()
			var received uint64
			p.received = func(link string) (uint64, error) {
				if link != "fastnet-wabcdef" || c.broken {
					return 0, errors.New("no such link")
				}
				return received, nil
			}
			p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a")}})
			peer, line, now := netip.MustParseAddr(probeAddress), p.lines["c2.a"], time.Now()
			p.turns(t, now, time.Millisecond)
			p.take(probe(kindAnswer, 0, 1, p.mark), peer, line, now.Add(time.Millisecond))
			p.turns(t, now.Add(time.Millisecond), 50*time.Millisecond)
			now = now.Add(52 * time.Millisecond)
			p.take(probe(kindAnswer, 0, 2, p.mark), peer, line, now)
			if line.path.State() != liveness.Up || line.path.RTT() == 0 {
				t.Fatal("it is not up")
			}
			start := now
			down := time.Duration(0)
			for n := 1; down == 0 && now.Sub(start) < 10*time.Second; n++ {
				received += c.data
				if n%cmp.Or(c.every, 5) == 0 && !c.silent {
					received += 72
					p.take(probe(kindQuestion, c.flags, 1, 99), peer, line, now)
				}
				p.turns(t, now, tick)
				now = now.Add(tick)
				if line.path.State() != liveness.Up {
					down = now.Sub(start)
				}
			}
			if down < c.downFrom || down > c.downBy {
				t.Errorf("down after %s, want %s to %s", down, c.downFrom, c.downBy)
			}
			if c.downBy > 0 {
				return
			}
			// It dies.
			for start = now; line.path.State() == liveness.Up && now.Sub(start) < 2*time.Second; now = now.Add(tick) {
				p.turns(t, now, tick)
			}
			if died := now.Sub(start); died > 500*time.Millisecond {
				t.Errorf("dead after %s", died)
			}
		})
	}
}

// A cable whose peer says that it goes, and goes, is taken back as soon as it answers, however often it does.
func TestFarewellIsNoFailure(t *testing.T) {
	p := testProber()
	p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a")}})
	line, now, from := p.lines["c2.a"], time.Now(), netip.MustParseAddr(probeAddress)
	var readers sync.WaitGroup
	run := func(d time.Duration, answers bool) {
		for end := now.Add(d); now.Before(end); {
			p.turn(t.Context(), now, &readers)
			now = now.Add(5 * time.Millisecond)
			for sequence := uint64(1); answers && sequence < 500; sequence++ { // those that were not asked, or are answered, are nothing
				p.take(probe(kindAnswer, 0, sequence, p.mark), from, line, now)
			}
		}
	}
	for n := range 4 {
		run(1500*time.Millisecond, true)
		if h := p.health()["c2.a"]; h.State != v1alpha1.CableUp {
			t.Fatalf("time %d: it answers and is %+v, want it up", n, h)
		}
		p.take(probe(kindQuestion, flagDraining, 1, 99), from, line, now)
		run(time.Second, false)
		if h := p.health()["c2.a"]; h.State != v1alpha1.CableDown {
			t.Fatalf("time %d: it does not answer and is %+v, want it down", n, h)
		}
		p.take(probe(kindQuestion, 0, 1, 99), from, line, now)
	}
}

// A gateway that hears nothing says so.
func TestWhoHearsNothingSaysSo(t *testing.T) {
	p := testProber()
	p.set(cable.Report{Cables: []cable.Cable{cableTo("c2.a")}})
	line, now := p.lines["c2.a"], time.Now()
	check := func(when string, want byte) {
		t.Helper()
		if got := p.flags(now, line); got != want {
			t.Errorf("%s: flags %d, want %d", when, got, want)
		}
	}
	check("at first", flagDeaf)
	p.take(probe(kindQuestion, 0, 1, 99), netip.MustParseAddr(probeAddress), line, now)
	check("when a probe came", 0)
	p.drain(true)
	now = now.Add(deafAfter)
	check("in the last moment", flagDraining)
	now = now.Add(1)
	check("after it", flagDraining|flagDeaf)
	line.look.data = now
	check("when data came", flagDraining)
}
