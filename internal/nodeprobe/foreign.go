package nodeprobe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Foreign questions prove that a segment carries packets of pods, and not only those that the nodes send in their own names: some
// networks drop what has an address that they have not given out. So they look like the traffic that is meant: from an address among
// this cluster's pods to one among another cluster's, in a frame to the gateway. No route of the asker's leads there by that
// very way unless it is the one that is used, so the frame is made by hand. At the gateway an ear hears it before any routing does; with a hop
// limit of 1 it goes no further. The answer is an ordinary packet to the pod address, by the CNI's way, as answers of other clusters are.
const (
	foreignHops = 1
	// macFor is how long a gateway's MAC address counts while it answers, and macRetry while it does not. The kernel keeps it up to date by
	// the ordinary questions; to ask it for one means to read the whole table of neighbours.
	macFor   = 10 * time.Second
	macRetry = 500 * time.Millisecond

	udpHeader = 8
)

// foreignSocket sends frames, and hears nothing.
func foreignSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket for frames: %w", err)
	}
	return fd, nil
}

// sendForeign sends a question, where the gateway's MAC address is known: until then it is one without an answer.
func sendForeign(fd int, to Target, mac net.HardwareAddr, source, port uint16, payload []byte) error {
	if len(mac) != 6 {
		return nil
	}
	address := &unix.SockaddrLinklayer{Protocol: networkOrder(protocolOf(to.Addr)), Ifindex: int(to.Link), Halen: 6}
	copy(address.Addr[:], mac)
	return unix.Sendto(fd, datagram(netip.AddrPortFrom(to.Source, source), netip.AddrPortFrom(to.Dest, port), payload), 0, address)
}

func protocolOf(addr netip.Addr) uint16 {
	if addr.Is6() {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// datagram is a whole IP packet.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	length := uint16(udpHeader + len(payload))
	var packet []byte
	sum := uint32(unix.IPPROTO_UDP) + uint32(length)
	source, dest := from.Addr().AsSlice(), to.Addr().AsSlice()
	if from.Addr().Is6() {
		packet = append(packet, 0x60, 0, 0, 0)
		packet = binary.BigEndian.AppendUint16(packet, length)
		packet = append(packet, unix.IPPROTO_UDP, foreignHops)
		packet = append(append(packet, source...), dest...)
	} else {
		packet = append(packet, 0x45, 0)
		packet = binary.BigEndian.AppendUint16(packet, 20+length)
		packet = append(packet, 0, 0, 0x40, 0, foreignHops, unix.IPPROTO_UDP, 0, 0) // no fragments
		packet = append(append(packet, source...), dest...)
		binary.BigEndian.PutUint16(packet[10:], ^fold(add(0, packet)))
	}
	head := len(packet)
	packet = binary.BigEndian.AppendUint16(packet, from.Port())
	packet = binary.BigEndian.AppendUint16(packet, to.Port())
	packet = binary.BigEndian.AppendUint16(packet, length)
	packet = append(packet, 0, 0)
	packet = append(packet, payload...)
	checksum := ^fold(add(add(add(sum, source), dest), packet[head:]))
	if checksum == 0 {
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(packet[head+6:], checksum)
	return packet
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// macOf a neighbour, as the kernel has it; none where it does not know.
func macOf(link uint32, addr netip.Addr) net.HardwareAddr {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	neighbours, err := netlink.NeighList(int(link), family)
	if err != nil {
		return nil
	}
	for _, n := range neighbours {
		if is, ok := netip.AddrFromSlice(n.IP); ok && is.Unmap() == addr && n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) == 0 {
			return n.HardwareAddr
		}
	}
	return nil
}

// ear hears foreign questions of a family.
func ear(v6 bool, port uint16) (int, error) {
	protocol := networkOrder(unix.ETH_P_IP)
	if v6 {
		protocol = networkOrder(unix.ETH_P_IPV6)
	}
	// Of no protocol yet: nothing may come in before the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("ear for foreign questions: %w", err)
	}
	filter := earFilter(v6, port)
	timeout := unix.NsecToTimeval(int64(200 * time.Millisecond))
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol}),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("ear for foreign questions: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// earFilter passes UDP with a hop limit of 1 to the port, and is quick to say no: every packet of the node asks it.
func earFilter(v6 bool, port uint16) []unix.SockFilter {
	byteAt := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: at}
	}
	// equal goes on where it is, else skips so many: to the end, which says no.
	equal := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	pass := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	if v6 {
		return []unix.SockFilter{
			byteAt(7), equal(foreignHops, 5), byteAt(6), equal(unix.IPPROTO_UDP, 3),
			{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 40 + 2}, equal(uint32(port), 1), pass, drop,
		}
	}
	return []unix.SockFilter{
		byteAt(8), equal(foreignHops, 6), byteAt(9), equal(unix.IPPROTO_UDP, 4),
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0}, {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2}, equal(uint32(port), 1), pass, drop,
	}
}

// listenForeign answers foreign questions until the context ends.
func (s *Server) listenForeign(ctx context.Context, fd int, v6 bool) {
	defer unix.Close(fd)
	buffer := make([]byte, 60+udpHeader+maxPacket+1)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			continue // the time is up, or the link is down, and there will be others
		}
		if link, ok := from.(*unix.SockaddrLinklayer); !ok || link.Pkttype != unix.PACKET_HOST {
			continue
		}
		if at, payload, ok := readDatagram(buffer[:n], v6); ok {
			s.hear(payload, at)
		}
	}
}

// readDatagram takes an IP packet apart that has passed the filter.
func readDatagram(packet []byte, v6 bool) (at path, payload []byte, ok bool) {
	var source netip.Addr
	switch {
	case v6 && len(packet) >= 40:
		source, packet = netip.AddrFrom16([16]byte(packet[8:24])), packet[40:]
		at.to = netip.IPv6Unspecified()
	case !v6 && len(packet) >= 20 && len(packet) >= int(packet[0]&0xf)*4:
		source, packet = netip.AddrFrom4([4]byte(packet[12:16])), packet[int(packet[0]&0xf)*4:]
		at.to = netip.IPv4Unspecified()
	default:
		return at, nil, false
	}
	if len(packet) < udpHeader {
		return at, nil, false
	}
	length := int(binary.BigEndian.Uint16(packet[4:]))
	if length < udpHeader || length > len(packet) || source.IsLinkLocalUnicast() || source.IsMulticast() {
		return at, nil, false
	}
	at.addr = netip.AddrPortFrom(source, binary.BigEndian.Uint16(packet))
	return at, packet[udpHeader:length], true
}
