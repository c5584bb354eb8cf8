package routeagent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

// Snapshot is all that a plan depends on.
type Snapshot struct {
	ClusterID, Node string
	// Prefixes of this cluster.
	Prefixes []netip.Prefix
	Mode     Mode
	// Endpoints, own and mirrored, and Nodes of this cluster, both sorted by name.
	Endpoints []v1alpha1.Endpoint
	Nodes     []Node
	// Links of the kernel, sorted by name.
	Links []Link
	// Now is the time; only the patience with proofs looks at it.
	Now time.Time
	// Paths to this cluster's gateways, as far as they are probed.
	Paths map[nodeprobe.Target]nodeprobe.Health
	// InUse are the next hops of our routes in the kernel, by the routes' prefixes.
	InUse map[netip.Prefix][]netstate.Nexthop
	// MainRoutes are the routes of the main table to a node's pod CIDR as it is, or to the first address in one.
	MainRoutes []netip.Prefix
	// RPFilterAll is net.ipv4.conf.all.rp_filter.
	RPFilterAll int
	// IPv6 is switched on in the kernel.
	IPv6                     bool
	ForwardIPv4, ForwardIPv6 bool
}

// Node of this cluster.
type Node struct {
	Name string `json:"name"`
	// Addresses are its InternalIPs, the primary first.
	Addresses []netip.Addr `json:"addresses"`
	// PodPrefixes are the ranges of its own pods, where the cluster assigns such.
	PodPrefixes []netip.Prefix `json:"podPrefixes,omitempty"`
}

func (n Node) has(v6 bool) bool {
	return slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return a.Is6() == v6 })
}

// Link of the kernel.
type Link struct {
	Name, Kind string
	// Index is its number. Up: with a carrier.
	Index uint32
	Up    bool
	MTU   int
	// Addresses, without link-local ones.
	Addresses []netip.Prefix
	RPFilter  int
	// Loosened: we have set its RPFilter.
	Loosened bool
}

func (s Snapshot) node(name string) *Node {
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i]
		}
	}
	return nil
}

func (s Snapshot) link(name string) *Link {
	for i := range s.Links {
		if s.Links[i].Name == name {
			return &s.Links[i]
		}
	}
	return nil
}

func (s Snapshot) nodeAddresses() (addresses []netip.Addr) {
	for _, node := range s.Nodes {
		addresses = append(addresses, node.Addresses...)
	}
	return addresses
}

// String is the snapshot for the debug page.
func (s Snapshot) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s, node %s, mode %s, CIDRs %v\n", s.ClusterID, s.Node, s.Mode, s.Prefixes)
	fmt.Fprintf(&b, "kernel: forwards IPv4 %t, IPv6 %t; has IPv6 %t; rp_filter of all %d\n", s.ForwardIPv4, s.ForwardIPv6, s.IPv6, s.RPFilterAll)
	for _, endpoint := range s.Endpoints {
		fmt.Fprintf(&b, "endpoint %s: cluster %s, node %s, addresses %v, port %d, CIDRs %v\n",
			endpoint.Name, endpoint.Spec.ClusterID, endpoint.Spec.Node, endpoint.Spec.Addresses, endpoint.Spec.Port, endpoint.Spec.Prefixes)
	}
	for _, node := range s.Nodes {
		fmt.Fprintf(&b, "node %s: addresses %v, pods %v\n", node.Name, node.Addresses, node.PodPrefixes)
	}
	for _, target := range slices.SortedFunc(maps.Keys(s.Paths), func(a, b nodeprobe.Target) int {
		return cmp.Or(cmp.Compare(a.Gateway, b.Gateway), a.Addr.Compare(b.Addr), a.Source.Compare(b.Source))
	}) {
		path := s.Paths[target]
		of := target.Addr.String()
		if target.Source.IsValid() {
			of = fmt.Sprintf("%s, as from %s to %s", of, target.Source, target.Dest)
		}
		fmt.Fprintf(&b, "path to %s (%s): %s since %s, rtt %s, loss %.0f %%, %s\n", target.Gateway, of, path.State,
			path.Since.Format(time.RFC3339Nano), path.RTT.Round(time.Microsecond), 100*path.Loss, s.says(path.Seen))
	}
	fmt.Fprintf(&b, "main table, as far as it matters: %v\n", s.MainRoutes)
	for _, link := range s.Links {
		fmt.Fprintf(&b, "link %s: %s, mtu %d, addresses %v, rp_filter %d\n", link.Name, link.Kind, link.MTU, link.Addresses, link.RPFilter)
	}
	return b.String()
}

// says is a gateway's view in words.
func (s Snapshot) says(seen *nodeprobe.Seen) string {
	if seen == nil {
		return "no view yet"
	}
	var up, draining []string
	for _, endpoint := range s.Endpoints {
		switch {
		case endpoint.Spec.ClusterID == s.ClusterID:
		case seen.Up(endpoint.Name):
			up = append(up, endpoint.Name)
		case seen.CableDraining(endpoint.Name):
			draining = append(draining, endpoint.Name)
		}
	}
	text := fmt.Sprintf("cables up to %v", up)
	if len(draining) > 0 {
		text += fmt.Sprintf(", to %v that drain", draining)
	}
	if seen.Draining {
		return "draining, " + text
	}
	return text
}

// kernel fills in what the kernel knows. Links without an address matter only where they are ours, so the pods' ends,
// of which there are many, are left out.
func (s *Snapshot) kernel(loosened map[string]int) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	addresses := map[int][]netip.Prefix{}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range addrs {
		prefix, err := netip.ParsePrefix(addr.IPNet.String())
		if err == nil && !prefix.Addr().IsLinkLocalUnicast() && !prefix.Addr().IsLoopback() {
			addresses[addr.LinkIndex] = append(addresses[addr.LinkIndex], prefix)
		}
	}
	for _, link := range links {
		name := link.Attrs().Name
		if len(addresses[link.Attrs().Index]) == 0 && !strings.HasPrefix(name, "fastnet-") && link.Type() == "veth" || name == "lo" {
			continue
		}
		rpFilter, err := netstate.RPFilter(name)
		if err != nil {
			continue // it went away between the two looks
		}
		_, ours := loosened[name]
		s.Links = append(s.Links, Link{
			Name: name, Kind: link.Type(), Index: uint32(link.Attrs().Index), Up: link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0, MTU: link.Attrs().MTU, Addresses: addresses[link.Attrs().Index],
			RPFilter: rpFilter, Loosened: ours,
		})
	}
	slices.SortFunc(s.Links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	if err := s.mainRoutes(); err != nil {
		return err
	}
	if s.RPFilterAll, err = netstate.RPFilter("all"); err != nil {
		return err
	}
	s.ForwardIPv4 = procOne("/proc/sys/net/ipv4/ip_forward")
	s.ForwardIPv6 = procOne("/proc/sys/net/ipv6/conf/all/forwarding")
	if _, err := os.Stat("/proc/sys/net/ipv6/conf/all/disable_ipv6"); err == nil {
		s.IPv6 = !procOne("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	}
	return nil
}

func (s *Snapshot) mainRoutes() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // one of another node's is enough, and the next round looks again
		return fmt.Errorf("list the routes of the main table: %w", err)
	}
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		prefix, err := netip.ParsePrefix(route.Dst.String())
		if err == nil && s.matters(prefix) {
			s.MainRoutes = append(s.MainRoutes, prefix)
		}
	}
	slices.SortFunc(s.MainRoutes, netip.Prefix.Compare)
	s.MainRoutes = slices.Compact(s.MainRoutes)
	return nil
}

func (s *Snapshot) matters(route netip.Prefix) bool {
	return slices.ContainsFunc(s.Nodes, func(node Node) bool {
		return slices.ContainsFunc(node.PodPrefixes, func(pods netip.Prefix) bool {
			return route == pods || route.IsSingleIP() && route.Addr() == pods.Masked().Addr().Next()
		})
	})
}

func procOne(path string) bool {
	text, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(text)) == "1"
}
