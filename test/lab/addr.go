package lab

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"
)

// Ranges is an address range in one or both IP families, at most one of each, IPv4 first.
type Ranges []netip.Prefix

// ParseRanges reads "10.8.0.0/16" or "10.8.0.0/16,fd00:10:8::/48".
func ParseRanges(text string) (Ranges, error) {
	var ranges Ranges
	for part := range strings.SplitSeq(text, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is no address range such as 10.8.0.0/16 or 10.8.0.0/16,fd00:10:8::/48", text)
		}
		ranges = append(ranges, prefix.Masked())
	}
	switch {
	case len(ranges) > 2:
		return nil, fmt.Errorf("%q has more than one range of a family", text)
	case len(ranges) == 2 && ranges[0].Addr().Is4() == ranges[1].Addr().Is4():
		return nil, fmt.Errorf("%q has two ranges of one family", text)
	case len(ranges) == 2 && ranges[1].Addr().Is4():
		ranges[0], ranges[1] = ranges[1], ranges[0]
	}
	return ranges, nil
}

// String is the form Kubernetes' flags take: the ranges joined by commas.
func (r Ranges) String() string {
	texts := make([]string, len(r))
	for i, prefix := range r {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

// each applies pick to every range: the nth address or the nth subnet in each family.
func each[T any](r Ranges, pick func(netip.Prefix) T) []T {
	out := make([]T, len(r))
	for i, prefix := range r {
		out[i] = pick(prefix)
	}
	return out
}

// maxClusters keeps the default ranges of all clusters apart: services step by 11 from 10.88, pods by one from 10.8.
const maxClusters = 9

// defaultPods and defaultServices give c1 10.8.0.0/16 and 10.88.0.0/16, c2 10.9.0.0/16 and 10.99.0.0/16, and so on, with
// the same numbers written in the IPv6 ranges.
func defaultPods(cluster int) Ranges {
	n := 7 + cluster
	return Ranges{
		netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", n)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/48", n)),
	}
}

func defaultServices(cluster int) Ranges {
	n := 77 + 11*cluster
	return Ranges{
		netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", n)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/112", n)),
	}
}

// underlay is the subnets the nodes of a cluster are on; number 0 is the segment between the machine and the WAN.
func underlay(cluster int) Ranges {
	return Ranges{
		netip.MustParsePrefix(fmt.Sprintf("172.30.%d.0/24", cluster)),
		netip.MustParsePrefix(fmt.Sprintf("fd30:%d::/64", cluster)),
	}
}

// nthAddr is the address n places after the first of the range.
func nthAddr(prefix netip.Prefix, n int) netip.Addr {
	return offset(prefix.Masked().Addr(), n, 0)
}

// nthSubnet is the range of size bits, n places after the first such range within prefix.
func nthSubnet(prefix netip.Prefix, bits, n int) netip.Prefix {
	return netip.PrefixFrom(offset(prefix.Masked().Addr(), n, prefix.Addr().BitLen()-bits), bits)
}

// offset adds n<<shift to an address.
func offset(addr netip.Addr, n, shift int) netip.Addr {
	sum := new(big.Int).SetBytes(addr.AsSlice())
	sum.Add(sum, new(big.Int).Lsh(big.NewInt(int64(n)), uint(shift)))
	moved, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, addr.BitLen()/8)))
	return moved
}

// nodeMask is the size of one node's share of a pod range: /24 and /64 as kubeadm has them where the range is large
// enough, else a sixteenth (IPv4) or a 256th (IPv6) of it.
func nodeMask(pods netip.Prefix) int {
	if pods.Addr().Is4() {
		return max(24, pods.Bits()+4)
	}
	return max(64, pods.Bits()+8)
}

// nodeRoom is how many nodes a pod range has room for, and 0 when a node's share would be too small for pods.
func nodeRoom(pods netip.Prefix) int {
	mask := nodeMask(pods)
	if mask > pods.Addr().BitLen()-4 {
		return 0
	}
	return 1 << min(16, mask-pods.Bits())
}
