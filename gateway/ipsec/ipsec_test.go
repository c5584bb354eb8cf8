package ipsec

import (
	"crypto/ed25519"
	"encoding/base64"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/gateway/vxlan"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/test/netns"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func testConfig() Config {
	return Config{RunDir: "/run/test", Port: 4501, Log: slog.New(slog.DiscardHandler)}
}

func key(n byte) ed25519.PublicKey {
	return public(ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), n)))
}

func cablePeer(name string, n byte, address string) cable.Peer {
	p := cable.Peer{Endpoint: name, ClusterID: name[:2], Link: cables.LinkName(cables.IPsec, name), PublicKey: base64.StdEncoding.EncodeToString(key(n))}
	if address != "" {
		p.Address = netip.MustParseAddrPort(address)
	}
	return p
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestConfigurationIsText(t *testing.T) {
	all := []cable.Peer{cablePeer("c3.x", 3, "[2001:db8::9]:51821"), cablePeer("c2.a", 2, "192.0.2.9:51820"), cablePeer("c2.b", 4, "")}
	all[0].DriverPort = 4510
	peers, problems := readKeys(all, key(1))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for suffix, e := range map[string]esp{"": userspaceESP, "-kernel": kernelESP} {
		golden(t, "strongswan"+suffix+".conf", strongswanConf(testConfig(), e))
		golden(t, "swanctl"+suffix+".conf", swanctlConf(testConfig(), e, "c1.gw", Address(key(1)), peers))
	}
	text, err := pubPEM(key(2))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "peer.pem", text)
}

// Who encrypts decides which device leads into the tunnels, what segments take packets from, and what fits.
func TestPlan(t *testing.T) {
	all := []cable.Peer{cablePeer("c2.a", 2, "192.0.2.9:51820"), cablePeer("c2.b", 4, ""), cablePeer("c3.x", 3, "[2001:db8::9]:51821")}
	for i, mtu := range []int{8864, 1500, 1124} { // a jumbo line, an unknown one, and the least that IPv6 allows
		all[i].MTU = mtu
	}
	peers, problems := readKeys(all, key(1))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for who, e := range map[string]esp{"userspace": userspaceESP, "kernel": kernelESP} {
		for name, peers := range map[string][]peer{"none": nil, "peers": peers} {
			state, segments := plan(e, Address(key(1)), peers)
			scope := netstate.Scope{LinkPrefix: inner, Table: table, Protocol: protocol}
			if err := state.Validate(scope); err != nil {
				t.Error(err)
			}
			text := state.Text(scope)
			for _, s := range segments {
				text += fmt.Sprintf("# segment %s: mtu %d, %s > %s, from %s\n", s.Link, s.MTU, s.Local, s.Address, s.From)
			}
			golden(t, who+"-"+name+".txt", text)
		}
	}
}

// A peer with no key, with another's or with ours has no cable, and the others have theirs.
func TestKeysOfPeers(t *testing.T) {
	none := cablePeer("c2.none", 2, "")
	none.PublicKey = "AAAA"
	peers, problems := readKeys([]cable.Peer{cablePeer("c2.a", 2, ""), none, cablePeer("c2.thief", 2, ""), cablePeer("c2.mirror", 1, "")}, key(1))
	if len(peers) != 1 || peers[0].Endpoint != "c2.a" || len(problems) != 3 {
		t.Errorf("peers %v, problems %v", peers, problems)
	}
	if a, b := Address(key(1)), Address(key(2)); a == b || !cables.Inner().Contains(a) || a != Address(key(1)) {
		t.Errorf("addresses %s and %s", a, b)
	}
}

func TestWhoBegins(t *testing.T) {
	for name, c := range map[string]struct {
		self, other string
		leaving     bool
		want        time.Duration
	}{
		"the first by name": {"c1.gw", "c2.gw", false, 0},
		"the second":        {"c2.gw", "c1.gw", false, standIn},
		"a peer that goes":  {"c1.gw", "c2.gw", true, comeBack},
	} {
		if got := patience(c.self, peer{Peer: cable.Peer{Endpoint: c.other, Leaving: c.leaving}}); got != c.want {
			t.Errorf("%s waits %s, want %s", name, got, c.want)
		}
	}
}

func TestKeyIsKeptAndNeverReplaced(t *testing.T) {
	c := testConfig()
	c.KeyFile = filepath.Join(t.TempDir(), "state", "ipsec.key")
	first, err := New(c).PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := New(c).PublicKey(); err != nil || again != first {
		t.Errorf("key %s, then %s (%v)", first, again, err)
	}
	text, err := os.ReadFile(c.KeyFile)
	if err != nil || !strings.HasPrefix(string(text), "-----BEGIN PRIVATE KEY-----") {
		t.Errorf("the key is %d bytes of something else (%v)", len(text), err)
	}
	for _, damaged := range []string{"", string(text[:60]), strings.Replace(string(text), "M", "N", 1)} {
		if err := os.WriteFile(c.KeyFile, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(c).PublicKey(); err == nil || !strings.Contains(err.Error(), "is damaged") {
			t.Errorf("error %v, want that it is damaged", err)
		}
	}
}

func TestParseSAs(t *testing.T) {
	now := time.Unix(1000000, 0)
	const ends = " local-ts=[fd46:4153:544e::1/128] remote-ts=[fd46:4153:544e::2/128]}}"
	got, err := parseSAs(`list-sa event {fastnet-ia {uniqueid=7 version=2 state=ESTABLISHED local-host=192.0.2.1 local-port=4500 local-id=c1.gw remote-host=2001:db8::9 remote-port=4510 nat-remote=yes established=12 rekey-time=9 child-sas {fastnet-ia-3 {name=fastnet-ia uniqueid=3 state=INSTALLED mode=TUNNEL`+ends+`}}
list-sa event {fastnet-ib {uniqueid=8 version=2 state=ESTABLISHED remote-host=192.0.2.9 remote-port=4500 tasks-active=[IKE_AUTH CHILD_CREATE] established=1 child-sas {fastnet-ib-4 {name=fastnet-ib state=INSTALLING`+ends+`}}
list-sa event {(unnamed) {uniqueid=9 version=2 state=CONNECTING local-host=192.0.2.1 remote-host=192.0.2.7 remote-port=4500 child-sas {}}}
list-sa event {fastnet-ic {uniqueid=10 version=2 state=CONNECTING remote-host=192.0.2.9 remote-port=4500 initiator=yes initiator-spi=6fcf1b6b6a5c1f11 responder-spi=0000000000000000 tasks-active=[IKE_INIT] child-sas {}}}
list-sa event {fastnet-ic {uniqueid=11 version=2 state=CONNECTING remote-host=192.0.2.9 remote-port=4500 initiator=yes initiator-spi=6fcf1b6b6a5c1f12 responder-spi=60a1b2c3d4e5f600 tasks-active=[IKE_AUTH] child-sas {}}}
list-sas reply {}
`, now)
	if err != nil {
		t.Fatal(err)
	}
	want := []sa{
		{name: "fastnet-ia", id: "7", known: true, up: true, remote: netip.MustParseAddrPort("[2001:db8::9]:4510"), since: now.Add(-12 * time.Second),
			ends: []string{"fd46:4153:544e::1/128 fd46:4153:544e::2/128"}},
		{name: "fastnet-ib", id: "8", known: true, remote: netip.MustParseAddrPort("192.0.2.9:4500"), since: now.Add(-time.Second)},
		{name: "(unnamed)", id: "9", remote: netip.MustParseAddrPort("192.0.2.7:4500")},
		{name: "fastnet-ic", id: "10", unheard: true, remote: netip.MustParseAddrPort("192.0.2.9:4500")},
		{name: "fastnet-ic", id: "11", remote: netip.MustParseAddrPort("192.0.2.9:4500")},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sa{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !got[0].leads(netip.MustParseAddr("fd46:4153:544e::1"), netip.MustParseAddr("fd46:4153:544e::2")) || got[0].leads(netip.MustParseAddr("fd46:4153:544e::1"), netip.MustParseAddr("fd46:4153:544e::3")) {
		t.Error("leads elsewhere")
	}
	if sas, err := parseSAs("list-sas reply {}\n", now); err != nil || len(sas) > 0 {
		t.Errorf("none is %v, %v", sas, err)
	}
	for _, text := range []string{"list-sa event {a {b=c", "list-sa event {a", "list-sa event {}x=[", "list-sa event {={}}"} {
		if sas, err := parseSAs(text, now); err == nil && len(sas) > 0 {
			t.Errorf("%q is %v", text, sas)
		}
	}
}

// What a killed process has left is found without any memory of it, and what others have made stays.
func TestRemoveFindsWhatIsLeft(t *testing.T) {
	netns.RequireRoot(t)
	netns.Sh(t, "ip link set lo up; ip -6 route add blackhole fd99::/48; iptables-nft -t mangle -N OTHERS")
	const state = "ip -d link | sed 's/ [a-z_]*_timer *[^ ]*//g'; ip addr; ip -6 route show table all; iptables-nft -t mangle -S; ip6tables-nft -t mangle -S; true"
	before := netns.Sh(t, state)
	c := testConfig()
	c.LinkPrefix, c.ChainPrefix, c.RunDir = cables.LinkPrefix(cables.IPsec), "FNIPSEC-", filepath.Join(t.TempDir(), "run")
	c.KeyFile = filepath.Join(t.TempDir(), "ipsec.key")
	killed := New(c)
	if err := killed.Apply(t.Context(), cable.Config{Self: "c1.gw"}); err != nil {
		t.Fatal(err)
	}
	netns.Sh(t, "ip -6 route | grep 'blackhole fd46:4153:544e::/48'")
	segment := vxlan.Segment{Peer: cablePeer("c2.a", 2, "[fd46:4153:544e::2]:51820"), Local: Address(key(1)), From: tunnels + "+"}
	segment.Port, segment.MTU = 51820, 1330
	if err := killed.segments.Apply(t.Context(), "c1.gw", []vxlan.Segment{segment}); err != nil {
		t.Fatal(err)
	}
	if err := New(c).Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, netns.Sh(t, state)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
	if _, err := os.Stat(c.KeyFile); !os.IsNotExist(err) {
		t.Errorf("the key is still there (%v)", err)
	}
}

// requireESP skips the test where the kernel has not what tunnels need.
func requireESP(t *testing.T) {
	t.Helper()
	netns.RequireKernel(t, "ESP", `ip link add try type xfrm if_id 7
		ip xfrm state add src ::1 dst ::1 proto esp spi 7 mode tunnel aead 'rfc4106(gcm(aes))' 0x$(printf %072d 1) 128 encap espinudp 4500 4500 ::`)
}

const xfrmState = "ip -d link show type xfrm; ip xfrm state; ip xfrm policy"

// A kernel that has ESP is known by trying, and the try leaves nothing.
func TestKernelESPIsDetected(t *testing.T) {
	requireESP(t)
	before := netns.Sh(t, xfrmState)
	if is, lacks, err := detectESP(inner + "-try"); is != kernelESP || lacks != nil || err != nil {
		t.Errorf("it is %q, lacks %v, error %v", is, lacks, err)
	}
	if diff := cmp.Diff(before, netns.Sh(t, xfrmState)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}

// One that has not is known as well.
func TestKernelWithoutESP(t *testing.T) {
	netns.RequireRoot(t)
	if _, err := exec.Command("unshare", "--net", "ip", "link", "add", "try", "type", "xfrm", "if_id", "7").CombinedOutput(); err == nil {
		t.Skip("this kernel has it")
	}
	if is, lacks, err := detectESP(inner + "-try"); is != userspaceESP || lacks == nil || err != nil {
		t.Errorf("it is %q, lacks %v, error %v", is, lacks, err)
	}
}

// What a charon that was killed has left goes, half-made tunnels too; the IPsec of others stays. And with the device there and no
// policy, nothing for an inner address leaves.
func TestKernelESPIsSwept(t *testing.T) {
	requireESP(t)
	netns.Sh(t, `ip link set lo up; ip link add uplink type dummy; ip link set uplink up; ip addr add 192.0.2.1/24 dev uplink; ip addr add fd98::1/64 dev uplink nodad
		ip -6 route add default dev uplink; ip6tables-nft -t mangle -A POSTROUTING -d fd46:4153:544e::/48 -o uplink`)
	t.Cleanup(func() {
		netns.Sh(t, "ip xfrm state flush; ip xfrm policy flush; ip link del uplink; ip6tables-nft -t mangle -F POSTROUTING")
	})
	add := func(spi, ifID, selector string) string {
		return fmt.Sprintf(`ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi %s reqid 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x%072d 128 %s
			ip xfrm policy add src %s dst %s dir out %s tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1 mode tunnel
			`, spi, 1, ifID, selector, selector, ifID)
	}
	netns.Sh(t, add("0x1001", "", "fd99::/64")+add("0x1002", "if_id 0x7", "fd99::/64"))
	before := netns.Sh(t, xfrmState)
	ours := fmt.Sprintf("if_id %#x", ifID)
	netns.Sh(t, add("0x1003", ours, "fd46:4153:544e::1/128")+add("0x1004", ours, "fd46:4153:544e::2/128")+
		fmt.Sprintf("ip xfrm state allocspi src 192.0.2.2 dst 192.0.2.1 proto esp mode tunnel min %#x max %#x", spiMin+1, spiMin+1))
	if during := netns.Sh(t, xfrmState); strings.Count(during, ours) != 4 || !strings.Contains(during, "0xfa570001") {
		t.Fatalf("ours is not there:\n%s", during)
	}
	c := testConfig()
	c.LinkPrefix, c.ChainPrefix, c.RunDir = cables.LinkPrefix(cables.IPsec), "FNIPSEC-", filepath.Join(t.TempDir(), "run")
	c.KeyFile = filepath.Join(t.TempDir(), "ipsec.key")
	d := New(c)
	if err := d.Apply(t.Context(), cable.Config{Self: "c1.gw"}); err != nil {
		t.Fatal(err)
	}
	device := "ip -d link show " + inner
	if diff := cmp.Diff(before, strings.TrimPrefix(netns.Sh(t, xfrmState), netns.Sh(t, device))); diff != "" {
		t.Errorf("-before +after a start:\n%s", diff)
	}
	left := func() string { // what has gone by another way than the device
		netns.Sh(t, "for n in 1 2 3; do bash -c 'echo clear >/dev/udp/fd46:4153:544e::2/51820' || true; done")
		return strings.TrimSpace(netns.Sh(t, "ip6tables-nft -t mangle -vnxL POSTROUTING | awk '/fd46/ {print $1}'"))
	}
	if n := left(); n != "0" {
		t.Errorf("%s packets for an inner address have left", n)
	}
	if route := netns.Sh(t, "ip -6 route get fd46:4153:544e::2"); !strings.Contains(route, "dev "+inner) {
		t.Errorf("an inner address is sent by %s", route)
	}
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, netns.Sh(t, xfrmState)); diff != "" {
		t.Errorf("-before +removed:\n%s", diff)
	}
	if n := left(); n == "0" { // that is what it looks like
		t.Error("without us a packet for such an address does not leave either: nothing was shown")
	}
}

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

func FuzzParseSAs(f *testing.F) {
	f.Add("list-sa event {a {b=c d=[e f] g {h {i=j}}}}")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = parseSAs("list-sa event {"+text, time.Unix(0, 0)) })
}
