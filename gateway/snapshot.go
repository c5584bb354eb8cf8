package gateway

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/fastnet-io/fastnet/internal/cables"
)

// ethernetMTU is taken where no route tells better.
const ethernetMTU = 1500

// underlayMTU is the least MTU that this node's routes to the addresses of a peer have. What lies further on the way is not known:
// TCP adapts by the MSS clamp and by what routers say.
func underlayMTU(addresses []netip.Addr) int {
	least := 0
	for _, address := range addresses {
		routes, err := netlink.RouteGet(address.AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil || cables.IsLink(link.Attrs().Name) {
			continue
		}
		mtu := link.Attrs().MTU
		if routes[0].MTU > 0 {
			mtu = min(mtu, routes[0].MTU)
		}
		if least == 0 || mtu < least {
			least = mtu
		}
	}
	if least == 0 {
		return ethernetMTU
	}
	return least
}

// hasRoute says whether this node can send to an address at all.
func hasRoute(address netip.Addr) bool {
	_, err := netlink.RouteGet(address.AsSlice())
	return err == nil
}
