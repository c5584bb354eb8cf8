package wireguard

import (
	"encoding/binary"

	"golang.zx2c4.com/wireguard/tun"
)

// checksummed is a TUN device whose IPv6 UDP packets have a checksum.
//
// The kernel leaves the checksums of pods' packets to the device, and wireguard-go's computes them. One in 65,536 of them is 0, which UDP writes
// as 0xFFFF, since 0 says that there is none; wireguard-go writes 0, and with IPv6 the receiver drops such a packet (RFC 8200, section 8.1).
type checksummed struct{ tun.Device }

// Read reads packets as tun.Device says.
func (d checksummed) Read(buffers [][]byte, sizes []int, offset int) (n int, err error) {
	n, err = d.Device.Read(buffers, sizes, offset)
	for i := range n {
		mangleZero(buffers[i][offset : offset+sizes[i]])
	}
	return n, err
}

const (
	ipv6Header = 40
	udpHeader  = 8
	udp        = 17
	allOnes    = 0xFFFF // how UDP writes a checksum that is 0
)

// mangleZero gives a packet its checksum that was computed as 0. One that has none, as a tunnel's may (RFC 6935), stays without: its checksum
// would be another. Packets with extension headers are nobody's but such tunnels', and are left alone.
func mangleZero(packet []byte) {
	if len(packet) < ipv6Header+udpHeader || packet[0]>>4 != 6 || packet[6] != udp {
		return
	}
	segment := packet[ipv6Header:]
	if field := segment[6:8]; field[0]|field[1] == 0 && sum(packet[8:ipv6Header], segment) == allOnes {
		binary.BigEndian.PutUint16(field, allOnes)
	}
}

// sum of a UDP segment and its pseudo header: the checksum is its complement.
func sum(addresses, segment []byte) uint16 {
	total := uint64(len(segment)) + udp
	for _, part := range [][]byte{addresses, segment} {
		for ; len(part) > 1; part = part[2:] {
			total += uint64(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			total += uint64(part[0]) << 8
		}
	}
	for total > 0xFFFF {
		total = total>>16 + total&0xFFFF
	}
	return uint16(total)
}
