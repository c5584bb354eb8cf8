package wireguard

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/fastnet-io/fastnet/test/netns"
)

var (
	sender   = netip.MustParseAddrPort("[fd31::1]:4000")
	receiver = netip.MustParseAddrPort("[fd31::2]:9")
)

// datagram is an IPv6 UDP packet whose checksum is 0, and not written yet: of an even number of bytes, two that make it so, and more.
func datagram(even, more string) (packet, payload []byte) {
	payload = []byte(even + "\x00\x00" + more)
	length := byte(udpHeader + len(payload))
	packet = append([]byte{0x60, 0, 0, 0, 0, length, udp, 64}, sender.Addr().AsSlice()...)
	packet = append(packet, receiver.Addr().AsSlice()...)
	packet = binary.BigEndian.AppendUint16(packet, sender.Port())
	packet = binary.BigEndian.AppendUint16(packet, receiver.Port())
	packet = append(packet, 0, length, 0, 0)
	binary.BigEndian.PutUint16(payload[len(even):], allOnes-sum(packet[8:ipv6Header], append(bytes.Clone(packet[ipv6Header:]), payload...)))
	return append(packet, payload...), payload
}

func TestMangleZero(t *testing.T) {
	right, _ := datagram("even", "odd")
	change := func(at int, to ...byte) []byte {
		packet := bytes.Clone(right)
		copy(packet[at:], to)
		return packet
	}
	for name, c := range map[string]struct {
		packet []byte
		want   []byte
	}{
		"computed as 0":     {right, change(46, 0xFF, 0xFF)},
		"has none":          {change(50, 'x'), change(50, 'x')},
		"another":           {change(46, 1, 2), change(46, 1, 2)},
		"half a 0":          {change(46, 0, 2), change(46, 0, 2)},
		"TCP":               {change(6, 6), change(6, 6)},
		"IPv4":              {change(0, 0x45), change(0, 0x45)},
		"no whole header":   {right[:47], right[:47]},
		"nothing":           {nil, nil},
		"extension headers": {change(6, 60), change(6, 60)},
	} {
		packet := bytes.Clone(c.packet)
		mangleZero(packet)
		if !bytes.Equal(packet, c.want) {
			t.Errorf("%s: got % x, want % x", name, packet, c.want)
		}
	}
}

// The kernel leaves the checksum to the device.
func TestChecksumsOfPacketsThatTheKernelSends(t *testing.T) {
	netns.RequireRoot(t)
	plain, err := tun.CreateTUN("t0", 1400)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	netns.Sh(t, "ip link set lo up; ip link set t0 up; ip addr add "+sender.Addr().String()+"/64 dev t0 nodad")
	socket, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(sender), net.UDPAddrFromAddrPort(receiver))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	field := func(from tun.Device, more string) uint16 {
		t.Helper()
		_, payload := datagram("even", more)
		if _, err := socket.Write(payload); err != nil {
			t.Fatal(err)
		}
		const offset = 16
		buffers, sizes := make([][]byte, from.BatchSize()), make([]int, from.BatchSize())
		for i := range buffers {
			buffers[i] = make([]byte, offset+1500)
		}
		for { // the kernel sends packets of its own, too
			n, err := from.Read(buffers, sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if packet := buffers[i][offset : offset+sizes[i]]; bytes.HasSuffix(packet, payload) {
					return binary.BigEndian.Uint16(packet[46:])
				}
			}
		}
	}
	for _, more := range []string{"", "odd", "even"} {
		if got := field(checksummed{plain}, more); got != allOnes {
			t.Errorf("%q: the checksum is %#04x, want %#04x", more, got, allOnes)
		}
	}
	if got := field(plain, "as wireguard-go has it"); got != 0 {
		t.Errorf("wireguard-go computes %#04x by itself: checksummed has no purpose any more", got)
	}
}
