package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	netnsDir = "/run/netns"
	wanSpace = "fastnet-wan"
	hostLink = "fastnet-host" // on the machine; its other end in the WAN is wanLink
	wanLink  = "host"
	nodeLink = "eth0" // in every node
)

var ownSpace = regexp.MustCompile(`^fastnet-(wan|c[0-9]+-(control|worker[0-9]+))$`)

// ownedNamespaces lists the lab's network namespaces by name.
func ownedNamespaces() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if ownSpace.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// inSpace calls f on a thread that is in the named network namespace.
func inSpace(name string, f func() error) error {
	return onThread(func() error {
		space, err := netns.GetFromName(name)
		if err == nil {
			defer space.Close()
			err = netns.Set(space)
		}
		if err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return f()
	})
}

// onThread calls f, which may change the network namespace of its thread. The thread goes back: the main thread could not end with its
// goroutine, and it is by that one that a process is taken for one of a namespace, and killed with it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			result <- err
			return
		}
		defer own.Close()
		err = f()
		if netns.Set(own) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// ensureSpace makes a named network namespace unless it is there.
func ensureSpace(name string) error {
	path := filepath.Join(netnsDir, name)
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err == nil && stat.Type == unix.NSFS_MAGIC {
		return nil
	}
	_ = os.Remove(path) // a plain file: the mount on it never came about
	err := onThread(func() error {
		space, err := netns.NewNamed(name)
		if err == nil {
			space.Close()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return nil
}

// handle is a netlink handle within a namespace; the name "" is the machine's own.
func handle(name string) (*netlink.Handle, error) {
	if name == "" {
		return netlink.NewHandle()
	}
	space, err := netns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	defer space.Close()
	return netlink.NewHandleAt(space)
}

// network makes all namespaces, links, addresses and routes that are not there yet.
func (l *Lab) network() error {
	if err := ensureSpace(wanSpace); err != nil {
		return err
	}
	if err := inSpace(wanSpace, func() error { return setSysctls(routerSysctls) }); err != nil {
		return err
	}
	machine, err := handle("")
	if err != nil {
		return err
	}
	defer machine.Close()
	wan, err := handle(wanSpace)
	if err != nil {
		return err
	}
	defer wan.Close()
	if err := up(wan, "lo"); err != nil {
		return err
	}
	segment := l.config.Families.of(underlay(0))
	near := each(segment, func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(nthAddr(p, 1), p.Bits()) })
	far := each(segment, func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(nthAddr(p, 2), p.Bits()) })
	if err := ensurePair(machine, hostLink, wan, wanSpace, wanLink); err != nil {
		return err
	}
	if err := errors.Join(setUp(machine, hostLink, near), setUp(wan, wanLink, far)); err != nil {
		return err
	}
	for _, cluster := range l.clusters {
		gateways := each(cluster.underlay, func(p netip.Prefix) netip.Prefix {
			return netip.PrefixFrom(nthAddr(p, 1), p.Bits())
		})
		if err := ensureBridge(wan, cluster.name); err != nil {
			return err
		}
		if err := setUp(wan, cluster.name, gateways); err != nil {
			return err
		}
		for i, subnet := range cluster.underlay {
			if err := route(machine, subnet, far[i].Addr(), hostLink); err != nil {
				return err
			}
		}
		for _, node := range cluster.nodes {
			if err := l.connect(wan, cluster, node); err != nil {
				return fmt.Errorf("%s: %w", node.name, err)
			}
		}
	}
	return nil
}

// connect puts one node on its cluster's bridge, with the routes a network plugin for plain routing would make.
func (l *Lab) connect(wan *netlink.Handle, cluster *Cluster, node *Node) error {
	if err := ensureSpace(node.space()); err != nil {
		return err
	}
	inside, err := handle(node.space())
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := inSpace(node.space(), func() error { return setSysctls(routerSysctls) }); err != nil {
		return err
	}
	if err := up(inside, "lo"); err != nil {
		return err
	}
	if err := ensurePair(wan, node.port(), inside, node.space(), nodeLink); err != nil {
		return err
	}
	bridge, err := wan.LinkByName(cluster.name)
	if err != nil {
		return err
	}
	port, err := wan.LinkByName(node.port())
	if err != nil {
		return err
	}
	if err := wan.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", node.port(), cluster.name, err)
	}
	if err := up(wan, node.port()); err != nil {
		return err
	}
	var addrs []netip.Prefix
	for i, addr := range node.addrs {
		addrs = append(addrs, netip.PrefixFrom(addr, cluster.underlay[i].Bits()))
	}
	if err := setUp(inside, nodeLink, addrs); err != nil {
		return err
	}
	for _, subnet := range cluster.underlay {
		everything := netip.PrefixFrom(nthAddr(subnet, 0), 0).Masked()
		if err := route(inside, everything, nthAddr(subnet, 1), nodeLink); err != nil {
			return err
		}
	}
	for _, other := range cluster.nodes {
		if other == node {
			continue
		}
		for i, pods := range other.pods {
			if err := route(inside, pods, other.addrs[i], nodeLink); err != nil {
				return err
			}
		}
	}
	return nil
}

// ensurePair makes a veth pair between two namespaces unless its first end is there.
func ensurePair(a *netlink.Handle, aName string, b *netlink.Handle, bSpace, bName string) error {
	if _, err := a.LinkByName(aName); err == nil {
		if _, err := b.LinkByName(bName); err == nil {
			return nil
		}
	}
	space, err := netns.GetFromName(bSpace)
	if err != nil {
		return err
	}
	defer space.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	err = a.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(space)})
	if err != nil {
		return fmt.Errorf("make link %s: %w", aName, err)
	}
	return nil
}

func ensureBridge(h *netlink.Handle, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return nil
}

func up(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}

// setUp gives a link its addresses and turns it on.
func setUp(h *netlink.Handle, name string, addrs []netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, addr := range addrs {
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(addr), Flags: addrFlags(addr)}); err != nil {
			return fmt.Errorf("address %s on %s: %w", addr, name, err)
		}
	}
	return up(h, name)
}

// addrFlags: an IPv6 address is usable at once, without duplicate address detection.
func addrFlags(addr netip.Prefix) int {
	if addr.Addr().Is4() {
		return 0
	}
	return unix.IFA_F_NODAD
}

func route(h *netlink.Handle, to netip.Prefix, via netip.Addr, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	r := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Gw: net.IP(via.AsSlice())}
	if err := h.RouteReplace(&r); err != nil {
		return fmt.Errorf("route %s via %s dev %s: %w", to, via, name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// removeNetwork takes away the host's link and all namespaces of the lab, in which no process is left.
func removeNetwork() error {
	var errs []error
	machine, err := handle("")
	if err != nil {
		return err
	}
	defer machine.Close()
	errs = append(errs, deleteLink(machine, hostLink))
	names, err := ownedNamespaces()
	if err != nil {
		return err
	}
	// The WAN holds one end of every node's link: with these gone, no link keeps on living in a namespace that some
	// open file still holds.
	if wan, err := handle(wanSpace); err == nil {
		links, err := wan.LinkList()
		errs = append(errs, err)
		for _, link := range links {
			if link.Type() == "veth" || link.Type() == "bridge" {
				errs = append(errs, deleteLink(wan, link.Attrs().Name))
			}
		}
		wan.Close()
	}
	for _, name := range names {
		errs = append(errs, removeSpace(filepath.Join(netnsDir, name)))
	}
	return errors.Join(errs...)
}

// removeSpace takes away a named network namespace.
func removeSpace(path string) error {
	unmount := func(path string) error {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		return nil
	}
	if err := unmount(path); err != nil {
		return err
	}
	err := os.Remove(path)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	// The first `ip netns add` on a machine mounts the folder over itself, with all that is mounted in it. What was unmounted
	// above is then the copy, and the lab's own mount is out of reach below it.
	foreign, err := foreignSpaces()
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		return fmt.Errorf("%s lies below network namespaces made with `ip netns`: delete %s and run this again", path, strings.Join(foreign, ", "))
	}
	if err := errors.Join(unmount(netnsDir), unmount(path)); err != nil {
		return err
	}
	return os.Remove(path)
}

// foreignSpaces lists the named network namespaces that are not the lab's.
func foreignSpaces() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if !ownSpace.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}
