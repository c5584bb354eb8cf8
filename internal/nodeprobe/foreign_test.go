package nodeprobe

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
)

// What goes out comes apart again, and its checksums are those that a kernel would take.
func TestDatagram(t *testing.T) {
	for _, test := range []struct {
		from, to, head string
	}{
		{"10.8.1.1", "10.9.0.0", "4500002100004000011164bb0a0801010a090000" + "30390025"},
		{"fd00:8:1::1", "fd00:9::", "60000000000d1101fd000008000100000000000000000001fd000009000000000000000000000000" + "30390025"},
	} {
		payload := []byte("odd b")
		from, to := netip.MustParseAddr(test.from), netip.MustParseAddr(test.to)
		packet := datagram(netip.AddrPortFrom(from, 12345), netip.AddrPortFrom(to, 37), payload)
		if head := hex.EncodeToString(packet[:len(test.head)/2]); head != test.head {
			t.Errorf("%s to %s begins with\n%s, want\n%s", from, to, head, test.head)
		}
		at, got, ok := readDatagram(packet, from.Is6())
		if !ok || at.addr != netip.AddrPortFrom(from, 12345) || !bytes.Equal(got, payload) || !at.to.IsUnspecified() || at.to.Is6() != from.Is6() {
			t.Errorf("read as %v, %q, %t", at, got, ok)
		}
		ends := len(packet) - len(payload) - udpHeader
		sum := add(17+uint32(udpHeader+len(payload)), append(from.AsSlice(), to.AsSlice()...))
		if sum := fold(add(sum, packet[ends:])); sum != 0xffff {
			t.Errorf("%s: checksum of UDP gives %x", from, sum)
		}
		if !from.Is6() && fold(add(0, packet[:20])) != 0xffff {
			t.Error("checksum of IPv4")
		}
		for n := range packet {
			if _, _, ok := readDatagram(packet[:n], from.Is6()); ok {
				t.Fatalf("the first %d bytes of %d are taken", n, len(packet))
			}
		}
	}
}
