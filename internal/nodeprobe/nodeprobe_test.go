package nodeprobe

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTalk(t testing.TB, gateway *ecdh.PrivateKey) *conversation {
	t.Helper()
	c, err := newConversation(gateway.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	start = time.Unix(1_700_000_000, 0)
	here  = path{addr: netip.MustParseAddrPort("192.0.2.7:4000"), to: netip.MustParseAddr("192.0.2.1")}
	up    = View{Cables: []Cable{{Endpoint: "c2.a", ClusterID: "c2", Up: true}, {Endpoint: "c2.b", ClusterID: "c2"}}}
)

func TestAnswersTellTheView(t *testing.T) {
	key := newKey(t)
	g := newAnswers(key, 1)
	c := newTalk(t, key)
	if out := g.set(up, start); len(out) != 0 {
		t.Errorf("told %d askers, there is none", len(out))
	}
	first := c.ask(1)
	sequence, changed, ok := c.hear(g.answer(first, here, start))
	if sequence != 1 || !changed || !ok || !c.seen.Up("c2.a") || c.seen.Up("c2.b") || c.seen.Draining || !c.seen.Equal(SeenOf(up)) {
		t.Fatalf("sequence %d, changed %t, ok %t, seen %+v", sequence, changed, ok, c.seen)
	}
	// Once known it is not told again, and questions are short.
	second := c.ask(2)
	reply := g.answer(second, here, start)
	if len(second) != minQuestion || len(reply) != minAnswer {
		t.Errorf("%d bytes asked, %d answered; want %d and %d", len(second), len(reply), minQuestion, minAnswer)
	}
	if sequence, changed, ok := c.hear(reply); sequence != 2 || changed || !ok {
		t.Errorf("sequence %d, changed %t, ok %t", sequence, changed, ok)
	}
	// A change is told out of turn to who has asked lately, and to nobody else.
	drain := View{Draining: true, Cables: up.Cables}
	if out := g.set(drain, start.Add(recent+time.Second)); len(out) != 0 {
		t.Error("told an asker that was silent")
	}
	g.set(up, start)
	out := g.set(drain, start.Add(time.Second))
	if len(out) != 1 || out[0].from != here {
		t.Fatalf("told %d askers", len(out))
	}
	if sequence, changed, ok := c.hear(out[0].bytes); sequence != 0 || !changed || !ok || !c.seen.Draining {
		t.Errorf("sequence %d, changed %t, ok %t, seen %+v", sequence, changed, ok, c.seen)
	}
	if out := g.set(drain, start); len(out) != 0 {
		t.Error("told of no change")
	}
	peer := View{Cables: []Cable{{Endpoint: "c2.a", ClusterID: "c2", Draining: true}}}
	if _, changed, _ := c.hear(g.set(peer, start)[0].bytes); !changed || c.seen.Up("c2.a") || !c.seen.CableDraining("c2.a") || c.seen.CableDraining("c2.b") {
		t.Errorf("changed %t, seen %+v", changed, c.seen)
	}
	// The word is lost: the next answer has no room for the list and says that there is one, the next but one tells it.
	var long View
	for n := range 10 {
		long.Cables = append(long.Cables, Cable{Endpoint: fmt.Sprintf("c3.%d", n), Up: true})
	}
	g.set(long, start)
	if _, changed, _ := c.hear(g.answer(c.ask(3), here, start)); changed || !c.behind {
		t.Errorf("changed %t, behind %t", changed, c.behind)
	}
	if _, changed, _ := c.hear(g.answer(c.ask(4), here, start)); !changed || c.behind || c.seen.Up("c2.a") || !c.seen.Up("c3.9") || c.seen.Draining {
		t.Errorf("changed %t, seen %+v", changed, c.seen)
	}
}

// What was heard before, what is somebody else's and what strangers make up changes nothing, at either end.
func TestOldAndForeignPacketsAreNothing(t *testing.T) {
	key := newKey(t)
	g := newAnswers(key, 1)
	g.set(up, start)
	c := newTalk(t, key)
	first := c.ask(1)
	firstAnswer := g.answer(first, here, start)
	c.hear(firstAnswer)
	if g.answer(first, here, start) != nil {
		t.Error("the gateway answers one question twice")
	}
	word := g.set(View{Draining: true}, start)[0].bytes
	c.hear(word)
	if _, _, ok := c.hear(word); ok {
		t.Error("one word counts twice")
	}
	if _, changed, _ := c.hear(firstAnswer); changed || !c.seen.Draining {
		t.Error("an old answer brings an old view back")
	}
	if _, _, ok := newTalk(t, key).hear(word); ok {
		t.Error("somebody else's word counts")
	}
	second := c.ask(2)
	for i := range second {
		forged := bytes.Clone(second)
		forged[i] ^= 1
		if g.answer(forged, here, start) != nil {
			t.Fatalf("answered though byte %d is another", i)
		}
	}
	// The right MAC, but nothing behind it: such an asker takes no place.
	body := append(bytes.Clone(second[:4]), newKey(t).PublicKey().Bytes()...)
	body = append(body, second[36:len(second)-macSize]...)
	if g.answer(append(body, mac(g.mac, body)...), here, start) != nil || g.order.Len() != 1 {
		t.Errorf("%d askers are known, want 1", g.order.Len())
	}
	reply := g.answer(second, here, start)
	if reply == nil {
		t.Fatal("the right question was not answered")
	}
	for i := range reply {
		forged := bytes.Clone(reply)
		forged[i] ^= 1
		if _, _, ok := c.hear(forged); ok {
			t.Fatalf("heard though byte %d is another", i)
		}
	}
	if other := newAnswers(newKey(t), 1); other.answer(c.ask(3), here, start) != nil {
		t.Error("another gateway answers")
	}
}

// A gateway that starts again begins anew: only the answer to our own question says so, not an old word.
func TestGatewayStartsAgain(t *testing.T) {
	key := newKey(t)
	before, after := newAnswers(key, 7), newAnswers(key, 3) // its clock may have gone back
	before.set(up, start)
	c := newTalk(t, key)
	c.hear(before.answer(c.ask(1), here, start))
	late := before.answer(c.ask(2), here, start)
	after.answer(c.ask(3), here, start)
	word := after.set(View{Draining: true}, start)[0].bytes
	if _, _, ok := c.hear(word); ok {
		t.Error("a word of another epoch counts")
	}
	c.hear(after.answer(c.ask(4), here, start)) // says that there is another view
	c.hear(after.answer(c.ask(5), here, start))
	if !c.seen.Draining {
		t.Errorf("seen %+v", c.seen)
	}
	if _, changed, ok := c.hear(late); changed || !ok || !c.seen.Draining {
		t.Errorf("a late answer of the process before: changed %t, seen %+v", changed, c.seen)
	}
}

func TestAnswersAreNeverLongerThanQuestions(t *testing.T) {
	key := newKey(t)
	g := newAnswers(key, 1)
	c := newTalk(t, key)
	for _, cables := range []int{0, 1, maxTags, maxTags + 1, 1000} {
		var v View
		for n := range cables {
			v.Cables = append(v.Cables, Cable{Endpoint: fmt.Sprintf("c%d.gw", n), Up: true})
		}
		g.set(v, start)
		for range 3 {
			q := c.ask(c.asked + 1)
			a := g.answer(q, here, start)
			if len(a) > len(q) || len(q) > maxPacket || a == nil {
				t.Fatalf("%d cables: %d bytes asked, %d answered", cables, len(q), len(a))
			}
			c.hear(a)
		}
		if cables > 0 && !c.seen.Up(fmt.Sprintf("c%d.gw", cables-1)) || c.seen.Up("nosuch.gw") != (cables > maxTags) || c.behind {
			t.Errorf("%d cables: seen %+v", cables, c.seen)
		}
	}
}

func TestAskersAreBounded(t *testing.T) {
	key := newKey(t)
	g := newAnswers(key, 1)
	g.limit, g.rate, g.credit = 50, 20, 20
	now := start
	first, second := newTalk(t, key), newTalk(t, key)
	g.answer(first.ask(1), here, now)
	g.answer(second.ask(1), here, now)
	for range g.limit - 1 {
		now = now.Add(time.Second / 20)
		g.answer(newTalk(t, key).ask(1), here, now)
		g.answer(first.ask(first.asked+1), here, now)
	}
	if len(g.askers) != g.limit || g.order.Len() != g.limit {
		t.Errorf("%d askers, %d in order, want %d", len(g.askers), g.order.Len(), g.limit)
	}
	if g.askers[first.public] == nil || g.askers[second.public] != nil {
		t.Errorf("the asker that goes on is known: %t; the one that was silent: %t", g.askers[first.public] != nil, g.askers[second.public] != nil)
	}
	now = now.Add(time.Minute)
	if g.answer(second.ask(2), here, now) == nil {
		t.Error("a forgotten asker is not answered")
	}
	// Many at once have to wait, those who are known do not.
	refused := 0
	for range 30 {
		if g.answer(newTalk(t, key).ask(1), here, now) == nil {
			refused++
		}
	}
	if refused != 30-19 {
		t.Errorf("%d new askers refused, want 11", refused)
	}
	if g.answer(second.ask(3), here, now) == nil {
		t.Error("a known asker is refused")
	}
}

func FuzzQuestion(f *testing.F) {
	key := newKey(f)
	f.Add(newTalk(f, key).ask(1), true)
	f.Add([]byte(magicQuestion), false)
	f.Fuzz(func(t *testing.T, packet []byte, sign bool) {
		g := newAnswers(key, 1)
		if sign {
			packet = append(packet, mac(g.mac, packet)...) // so that what lies behind is reached
		}
		if reply := g.answer(packet, here, start); len(reply) > len(packet) {
			t.Errorf("%d bytes for %d", len(reply), len(packet))
		}
	})
}

func FuzzAnswer(f *testing.F) {
	key := newKey(f)
	g := newAnswers(key, 1)
	g.set(up, start)
	c := newTalk(f, key)
	f.Add(g.answer(c.ask(1), here, start), []byte{1, 2, 3})
	f.Add([]byte(magicAnswer), bytes.Repeat([]byte{255}, answerFixed+tagSize+1))
	f.Fuzz(func(t *testing.T, packet, plain []byte) {
		c := newTalk(t, key)
		c.ask(1)
		if _, _, ok := c.hear(packet); ok {
			t.Error("heard what was not for us")
		}
		nonce := make([]byte, 24)
		sealed := c.secrets.answer.Seal(append([]byte(magicAnswer), nonce...), nonce, plain, append([]byte(magicAnswer), c.public[:]...))
		if _, _, ok := c.hear(sealed); ok && len(plain) < answerFixed {
			t.Error("took half an answer")
		}
	})
}

func TestServerSaysWhyItCannotRun(t *testing.T) {
	netns.RequireRoot(t)
	netns.Sh(t, "ip link set lo up")
	socket, err := listen(t.Context(), false, DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	}()
	server, err := NewServer(newKey(t).Bytes(), DefaultPort, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Run(t.Context()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := NewServer(nil, DefaultPort, nil); err == nil {
		t.Error("a server without a key is made")
	}
}

func BenchmarkAnswer(b *testing.B) {
	key := newKey(b)
	g := newAnswers(key, 1)
	g.set(up, start)
	c := newTalk(b, key)
	for b.Loop() {
		c.hear(g.answer(c.ask(c.asked+1), here, start))
	}
}
