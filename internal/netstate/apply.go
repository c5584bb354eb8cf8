package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel applies states to the network namespace of the process. Make it with New.
type Kernel struct {
	scope  Scope
	tables *Tables // nil where the scope owns no chains
	plain  bool    // this kernel has no resilient groups
	// moving is held while groups, and routes to them, are changed: a detour of the one is nothing to tidy up for the other.
	moving sync.Mutex
}

// New makes a Kernel. Tables may be nil where the scope has no chains.
func New(scope Scope, tables *Tables) *Kernel {
	return &Kernel{scope: scope, tables: tables}
}

// Apply makes what the scope owns in the kernel match the state, and tells what it changed: "+ " and "- " before lines
// as Text has them. It goes on after an error; errors are joined.
//
// The order keeps packets for remote prefixes off the default route at every moment: blackholes and the rule that leads to them come
// first, then what the routes need (links, neighbours, nexthops, then the chains that keep addresses as they are), then the routes;
// removal goes the other way round. A route is exchanged for another in one step.
func (k *Kernel) Apply(ctx context.Context, want State) (changes []string, err error) {
	changes, err = k.ApplyPaths(ctx, want)
	more, restErr := k.ApplyRest(ctx, want)
	return append(changes, more...), errors.Join(err, restErr)
}

// ApplyPaths is the first part of Apply, what is done over netlink in a few milliseconds: blackholes, rules, links, neighbours,
// nexthops and groups. An owner that also regroups between two rounds keeps others from regrouping while this one runs, and lets them
// during the second part, ApplyRest, which starts processes: it does not touch groups that are wanted.
func (k *Kernel) ApplyPaths(ctx context.Context, want State) (changes []string, err error) {
	if err := want.Validate(k.scope); err != nil {
		return nil, err
	}
	var steps []step
	if k.scope.Table != 0 {
		steps = append(steps, k.blackholes, k.addRules)
	}
	if k.scope.LinkPrefix != "" {
		steps = append(steps, k.makeLinks, k.neighbours, k.forwarding)
	}
	return k.run(ctx, want, append(steps, k.Regroup)...)
}

// ApplyRest is the second part of Apply.
func (k *Kernel) ApplyRest(ctx context.Context, want State) (changes []string, err error) {
	if err := want.Validate(k.scope); err != nil {
		return nil, nil // said already
	}
	var steps []step
	if k.tables != nil {
		steps = append(steps, k.sysctls, k.tables.makeChains)
	}
	if k.scope.Table != 0 {
		steps = append(steps, k.routes, k.removeRules, k.removePaths)
	}
	if k.tables != nil {
		steps = append(steps, k.tables.removeChains)
	}
	if k.scope.LinkPrefix != "" {
		steps = append(steps, k.removeLinks)
	}
	return k.run(ctx, want, steps...)
}

type step func(context.Context, State) ([]string, error)

func (k *Kernel) run(ctx context.Context, want State, steps ...step) (changes []string, err error) {
	var errs []error
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return changes, errors.Join(append(errs, err)...)
		}
		done, err := step(ctx, want)
		changes, errs = append(changes, done...), append(errs, err)
	}
	return changes, errors.Join(errs...)
}

// ---- links

func (k *Kernel) ownLinks() ([]netlink.Link, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return !strings.HasPrefix(l.Attrs().Name, k.scope.LinkPrefix) }), nil
}

func kind(link netlink.Link) string {
	if link.Type() == "tuntap" {
		return KindTUN
	}
	return link.Type()
}

// observed is a link of ours as the kernel has it. A kind that we never make comes back as it is, and is replaced.
func observed(link netlink.Link) (Link, error) {
	l := Link{Name: link.Attrs().Name, Kind: kind(link), MTU: link.Attrs().MTU}
	if vxlan, ok := link.(*netlink.Vxlan); ok {
		local, _ := netip.AddrFromSlice(vxlan.SrcAddr)
		l.VXLAN = VXLAN{ID: vxlan.VxlanId, Port: vxlan.Port, Local: local.Unmap()}
		l.MAC = link.Attrs().HardwareAddr.String()
	}
	if xfrm, ok := link.(*netlink.Xfrmi); ok {
		l.IfID = xfrm.Ifid
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return Link{}, ignoring(gone, err, "list addresses of %s", l.Name)
	}
	for _, addr := range addrs {
		l.Addresses = append(l.Addresses, toPrefix(addr.IPNet))
	}
	return l, nil
}

func (k *Kernel) makeLinks(_ context.Context, want State) (changes []string, err error) {
	have, err := k.ownLinks()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, wanted := range want.Links {
		var old *Link
		i := slices.IndexFunc(have, func(l netlink.Link) bool { return l.Attrs().Name == wanted.Name })
		if i >= 0 {
			is, err := observed(have[i])
			errs = append(errs, err)
			if is.String() == wanted.String() && have[i].Attrs().Flags&net.FlagUp != 0 {
				continue
			}
			if is.Kind != wanted.Kind || is.VXLAN != wanted.VXLAN || is.IfID != wanted.IfID {
				errs = append(errs, ignoring(gone, netlink.LinkDel(have[i]), "remove link %s", wanted.Name))
				changes = append(changes, "- "+is.String())
			} else {
				old = &is
			}
		}
		if err := makeLink(wanted, old); err != nil {
			errs = append(errs, err)
			continue
		}
		if old != nil && old.String() != wanted.String() {
			changes = append(changes, "- "+old.String())
		}
		changes = append(changes, "+ "+wanted.String())
	}
	return changes, errors.Join(errs...)
}

// makeLink makes the link, or changes the old one where there is one.
func makeLink(want Link, old *Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = want.Name, want.MTU
	if old == nil {
		var link netlink.Link
		switch want.Kind {
		case KindVXLAN:
			mac, err := net.ParseMAC(want.MAC)
			if err != nil {
				return fmt.Errorf("make link %s: %w", want.Name, err)
			}
			attrs.HardwareAddr = mac
			link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: want.VXLAN.ID, Port: want.VXLAN.Port,
				SrcAddr: want.VXLAN.Local.AsSlice(), Learning: false}
		case KindWireGuard:
			link = &netlink.Wireguard{LinkAttrs: attrs}
		case KindTUN:
			link = &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		case KindXFRM:
			link = &netlink.Xfrmi{LinkAttrs: attrs, Ifid: want.IfID}
		default:
			return fmt.Errorf("make link %s: unknown kind %q", want.Name, want.Kind)
		}
		if err := ignoring(present, netlink.LinkAdd(link), "make link %s (%s)", want.Name, want.Kind); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(want.Name)
	if err != nil {
		return fmt.Errorf("make link %s: %w", want.Name, err)
	}
	var errs []error
	if old == nil {
		// 1 is "none": a link-local address that the kernel makes up would be one more to tell from ours.
		errs = append(errs, ignoring(unsupported, netlink.LinkSetIP6AddrGenMode(link, 1), "set address generation of %s", want.Name))
	}
	if link.Attrs().MTU != want.MTU {
		errs = append(errs, ignoring(none, netlink.LinkSetMTU(link, want.MTU), "set MTU of %s", want.Name))
	}
	if old != nil && old.MAC != want.MAC {
		mac, err := net.ParseMAC(want.MAC)
		errs = append(errs, err)
		if err == nil {
			errs = append(errs, ignoring(none, netlink.LinkSetHardwareAddr(link, mac), "set address of %s", want.Name))
		}
	}
	for _, address := range want.Addresses {
		if old != nil && slices.Contains(old.Addresses, address) {
			continue
		}
		addr := &netlink.Addr{IPNet: toIPNet(address)}
		if address.Addr().Is4() && address.Addr().IsLinkLocalUnicast() {
			addr.Scope = unix.RT_SCOPE_HOST // never chosen as the source of a packet
		}
		if address.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // nobody else can have it: it is made from a key or a name of ours
		}
		errs = append(errs, ignoring(present, netlink.AddrAdd(link, addr), "add %s to %s", address, want.Name))
	}
	if old != nil {
		for _, address := range old.Addresses {
			if !slices.Contains(want.Addresses, address) {
				errs = append(errs, ignoring(gone, netlink.AddrDel(link, &netlink.Addr{IPNet: toIPNet(address)}), "remove %s from %s", address, want.Name))
			}
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, ignoring(none, netlink.LinkSetUp(link), "set %s up", want.Name))
	}
	return errors.Join(errs...)
}

func none(error) bool { return false }

func (k *Kernel) removeLinks(_ context.Context, want State) (changes []string, err error) {
	have, err := k.ownLinks()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, link := range have {
		if slices.ContainsFunc(want.Links, func(l Link) bool { return l.Name == link.Attrs().Name }) {
			continue
		}
		is, err := observed(link)
		errs = append(errs, err, ignoring(gone, netlink.LinkDel(link), "remove link %s", link.Attrs().Name))
		changes = append(changes, "- "+is.String())
	}
	return changes, errors.Join(errs...)
}

// ---- neighbours and forwarding entries of our links; both go with their link

func (k *Kernel) eachLink(want State, family int, entry func(netlink.Link, netlink.Neigh) string, wanted map[string]netlink.Neigh) (changes []string, err error) {
	links, err := k.ownLinks()
	if err != nil {
		return nil, err
	}
	var errs []error
	have := map[string]bool{}
	for _, link := range links {
		neighs, err := whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, family) })
		if err != nil {
			errs = append(errs, ignoring(gone, err, "list neighbours of %s", link.Attrs().Name))
			continue
		}
		for _, neigh := range neighs {
			line := entry(link, neigh)
			if neigh.State&netlink.NUD_PERMANENT == 0 || line == "" {
				continue
			}
			if _, ok := wanted[line]; ok {
				have[line] = true
				continue
			}
			errs = append(errs, ignoring(gone, netlink.NeighDel(&neigh), "remove %s", line))
			changes = append(changes, "- "+line)
		}
	}
	for line, neigh := range wanted {
		if have[line] {
			continue
		}
		if err := netlink.NeighSet(&neigh); err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", line, err))
			continue
		}
		changes = append(changes, "+ "+line)
	}
	return changes, errors.Join(errs...)
}

func (k *Kernel) neighbours(_ context.Context, want State) ([]string, error) {
	var changes []string
	var errs []error
	for _, v6 := range []bool{false, true} {
		wanted := map[string]netlink.Neigh{}
		for _, n := range want.Neighbours {
			if n.Addr.Is6() != v6 {
				continue
			}
			neigh, err := neighbour(n.Link, n.MAC)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			neigh.Family, neigh.IP = family(v6), n.Addr.AsSlice()
			wanted[n.String()] = neigh
		}
		done, err := k.eachLink(want, family(v6), func(link netlink.Link, n netlink.Neigh) string {
			addr, ok := netip.AddrFromSlice(n.IP)
			if !ok || len(n.HardwareAddr) == 0 {
				return ""
			}
			return Neighbour{Link: link.Attrs().Name, Addr: addr.Unmap(), MAC: n.HardwareAddr.String()}.String()
		}, wanted)
		changes, errs = append(changes, done...), append(errs, err)
	}
	return changes, errors.Join(errs...)
}

// forwarding speaks netlink itself: the netlink library knows nothing of ports.
func (k *Kernel) forwarding(_ context.Context, want State) (changes []string, err error) {
	links, err := k.ownLinks()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	messages, err := whole(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE})
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	})
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	var errs []error
	var have []Forwarding
	for _, m := range messages {
		// struct ndmsg: family, padding, link at 4, state at 8.
		link := names[int(binary.NativeEndian.Uint32(m[4:]))]
		if link == "" || m[0] != unix.AF_BRIDGE || binary.NativeEndian.Uint16(m[8:])&netlink.NUD_PERMANENT == 0 {
			continue
		}
		attrs, err := attributes(m[unix.SizeofNdMsg:])
		if err != nil {
			return nil, fmt.Errorf("list forwarding entries: %w", err)
		}
		dst, ok := netip.AddrFromSlice(attrs[netlink.NDA_DST])
		if !ok {
			continue
		}
		f := Forwarding{Link: link, MAC: net.HardwareAddr(attrs[netlink.NDA_LLADDR]).String(), Dst: dst.Unmap()}
		if port := attrs[netlink.NDA_PORT]; len(port) == 2 { // left out where it is the device's own
			f.Port = int(binary.BigEndian.Uint16(port))
		}
		have = append(have, f)
	}
	ports := map[string]int{}
	for _, link := range links {
		if vxlan, ok := link.(*netlink.Vxlan); ok {
			ports[link.Attrs().Name] = vxlan.Port
		}
	}
	var wanted []Forwarding
	for _, f := range want.Forwarding {
		if f.Port == ports[f.Link] {
			f.Port = 0
		}
		wanted = append(wanted, f)
	}
	for _, f := range have {
		if !slices.Contains(wanted, f) {
			errs = append(errs, ignoring(gone, setForwarding(unix.RTM_DELNEIGH, 0, f), "remove %s", f))
			changes = append(changes, "- "+f.String())
		}
	}
	for _, f := range wanted {
		if slices.Contains(have, f) {
			continue
		}
		if err := setForwarding(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, f); err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", f, err))
			continue
		}
		changes = append(changes, "+ "+f.String())
	}
	return changes, errors.Join(errs...)
}

func setForwarding(message, flags int, f Forwarding) error {
	neigh, err := neighbour(f.Link, f.MAC)
	if err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(message, flags|unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(neigh.LinkIndex), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF})
	req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, neigh.HardwareAddr))
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, f.Dst.AsSlice()))
	if f.Port != 0 {
		req.AddData(nl.NewRtAttr(netlink.NDA_PORT, binary.BigEndian.AppendUint16(nil, uint16(f.Port))))
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func neighbour(linkName, hardware string) (netlink.Neigh, error) {
	link, err := netlink.LinkByName(linkName)
	if err != nil {
		return netlink.Neigh{}, fmt.Errorf("neighbour on %s: %w", linkName, err)
	}
	mac, err := net.ParseMAC(hardware)
	if err != nil {
		return netlink.Neigh{}, fmt.Errorf("neighbour on %s: %w", linkName, err)
	}
	return netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, HardwareAddr: mac}, nil
}

// ---- routes and rules

// kernelRoute is a route as the kernel has it, with the ID of its group.
type kernelRoute struct {
	Route
	group uint32
}

// ownRoutes reads the kernel's dump itself: the netlink library knows nothing of nexthop groups. Groups have the names
// given for their IDs; others, from before, are "id N".
func (k *Kernel) ownRoutes(groups map[string]uint32) ([]kernelRoute, error) {
	links, err := linkNames()
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{}
	for name, id := range groups {
		names[id] = name
	}
	var routes []kernelRoute
	for _, v6 := range []bool{false, true} {
		messages, err := whole(func() ([][]byte, error) {
			req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
			msg := nl.NewRtMsg()
			msg.Family = uint8(family(v6))
			req.AddData(msg)
			return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		})
		if unsupported(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range messages {
			head := nl.DeserializeRtMsg(m)
			if int(head.Protocol) != k.scope.Protocol {
				continue
			}
			attrs, err := attributes(m[unix.SizeofRtMsg:])
			if err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			if int(number(attrs[unix.RTA_TABLE])) != k.scope.Table {
				continue
			}
			route := kernelRoute{Route: Route{Dst: defaultRoute(v6), Blackhole: head.Type == unix.RTN_BLACKHOLE, Metric: int(number(attrs[unix.RTA_PRIORITY]))}}
			if dst, ok := netip.AddrFromSlice(attrs[unix.RTA_DST]); ok {
				route.Dst = netip.PrefixFrom(dst, int(head.Dst_len))
			}
			switch id := number(attrs[rtaNHID]); {
			case route.Blackhole:
			case id != 0:
				route.group = id
				if route.Group = names[id]; route.Group == "" {
					route.Group = fmt.Sprintf("id %d", id)
				}
			default:
				route.Dev = links[int(number(attrs[unix.RTA_OIF]))]
				route.Via, _ = netip.AddrFromSlice(attrs[unix.RTA_GATEWAY])
				if via := attrs[unix.RTA_VIA]; len(via) > 2 {
					route.Via, _ = netip.AddrFromSlice(via[2:])
				}
			}
			routes = append(routes, route)
		}
	}
	return routes, nil
}

// leadRoute has a route that is there lead to another group, or nexthop.
func (k *Kernel) leadRoute(r Route, id uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_REPLACE)
	k.addRoute(req, r)
	req.AddData(nl.NewRtAttr(rtaNHID, nl.Uint32Attr(id)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) setRoute(r Route, groups map[string]uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	k.addRoute(req, r)
	switch {
	case r.Blackhole:
	case r.Group != "":
		req.AddData(nl.NewRtAttr(rtaNHID, nl.Uint32Attr(groups[r.Group])))
	default:
		link, err := netlink.LinkByName(r.Dev)
		if err != nil {
			return err
		}
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(link.Attrs().Index))))
		if r.Via.Is6() && r.Dst.Addr().Is4() {
			req.AddData(nl.NewRtAttr(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), r.Via.AsSlice()...)))
		} else if r.Via.IsValid() {
			req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
		}
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) delRoute(r Route) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	k.addRoute(req, r)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// addRoute adds to a request what tells a route from others.
func (k *Kernel) addRoute(req *nl.NetlinkRequest, r Route) {
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len = uint8(family(r.Dst.Addr().Is6())), uint8(r.Dst.Bits())
	msg.Table, msg.Protocol = unix.RT_TABLE_UNSPEC, uint8(k.scope.Protocol)
	if r.Blackhole {
		msg.Type = unix.RTN_BLACKHOLE
	} else if r.Group == "" && !r.Via.IsValid() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Metric))))
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(k.scope.Table))))
}

// blackholes makes those that are not there yet.
func (k *Kernel) blackholes(_ context.Context, want State) (changes []string, err error) {
	have, err := k.ownRoutes(nil)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range sortedRoutes(want.Routes) {
		if !r.Blackhole || slices.ContainsFunc(have, func(is kernelRoute) bool { return is.Route == r }) {
			continue
		}
		if err := k.setRoute(r, nil); err != nil {
			errs = append(errs, fmt.Errorf("set route %s: %w", r, err))
			continue
		}
		changes = append(changes, "+ "+r.String())
	}
	return changes, errors.Join(errs...)
}

func (k *Kernel) routes(_ context.Context, want State) (changes []string, err error) {
	k.moving.Lock()
	defer k.moving.Unlock()
	_, groups := want.ids()
	dump, err := k.ownRoutes(groups)
	if err != nil {
		return nil, err
	}
	var have []Route
	for _, route := range dump {
		have = append(have, route.Route)
	}
	var errs []error
	remove := func(r Route) {
		errs = append(errs, ignoring(gone, k.delRoute(r), "remove route %s", r))
		changes = append(changes, "- "+r.String())
	}
	wanted := map[string]Route{}
	for _, route := range want.Routes {
		wanted[route.key()] = route
	}
	kept := map[string]bool{}
	for _, route := range have {
		if wanted[route.key()] == route {
			kept[route.key()] = true
		}
	}
	for _, r := range sortedRoutes(want.Routes) {
		if kept[r.key()] {
			continue
		}
		if err := k.setRoute(r, groups); err != nil {
			if r.Group == "" || !noGroup(err) {
				errs = append(errs, fmt.Errorf("set route %s: %w", r, err))
			}
			continue
		}
		changes = append(changes, "+ "+r.String())
	}
	for _, r := range sortedRoutes(have) {
		if w, ok := wanted[r.key()]; !ok {
			remove(r)
		} else if w != r && kept[r.key()] {
			remove(r) // a second one of the same key, beside the one we want: IPv6 would balance over both
		}
	}
	return changes, errors.Join(errs...)
}

// ownRules gives those of one family, none where the kernel has no such rules.
func (k *Kernel) ownRules(v6 bool) (rules []netlink.Rule, err error) {
	rules, err = whole(func() ([]netlink.Rule, error) { return netlink.RuleList(family(v6)) })
	if unsupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return slices.DeleteFunc(rules, func(r netlink.Rule) bool {
		return r.Table != k.scope.Table || int(r.Protocol) != k.scope.Protocol
	}), nil
}

func (k *Kernel) addRules(_ context.Context, want State) (changes []string, err error) {
	var errs []error
	for _, rule := range want.Rules {
		have, err := k.ownRules(rule.IPv6)
		if err != nil {
			return changes, errors.Join(append(errs, err)...)
		}
		if slices.ContainsFunc(have, func(is netlink.Rule) bool { return is.Priority == rule.Priority }) {
			continue
		}
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table, r.Protocol = family(rule.IPv6), rule.Priority, k.scope.Table, uint8(k.scope.Protocol)
		switch err := netlink.RuleAdd(r); {
		case unsupported(err):
		case err != nil && !present(err):
			errs = append(errs, fmt.Errorf("add rule %s: %w", rule.text(k.scope), err))
		default:
			changes = append(changes, "+ "+rule.text(k.scope))
		}
	}
	return changes, errors.Join(errs...)
}

// removeRules leaves one of each that is wanted.
func (k *Kernel) removeRules(_ context.Context, want State) (changes []string, err error) {
	var errs []error
	for _, v6 := range []bool{false, true} {
		have, err := k.ownRules(v6)
		if err != nil {
			return changes, errors.Join(append(errs, err)...)
		}
		kept := map[Rule]bool{}
		for _, rule := range have {
			is := Rule{IPv6: v6, Priority: rule.Priority}
			if slices.Contains(want.Rules, is) && !kept[is] {
				kept[is] = true
				continue
			}
			rule.Family = family(v6)
			errs = append(errs, ignoring(gone, netlink.RuleDel(&rule), "remove rule %s", is.text(k.scope)))
			changes = append(changes, "- "+is.text(k.scope))
		}
	}
	return changes, errors.Join(errs...)
}

// ---- sysctls

// RPFilter reads a link's rp_filter (0 off, 1 strict, 2 loose). "all" is a link too; the kernel takes the higher of both.
func RPFilter(link string) (int, error) {
	text, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", link, "rp_filter"))
	if err != nil {
		return 0, fmt.Errorf("read rp_filter: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// setRPFilter goes over netlink: /proc/sys is read-only in a container that is not privileged, and NET_ADMIN is enough
// here.
func setRPFilter(link netlink.Link, value int) error {
	const (
		inetConf = 1 // IFLA_INET_CONF
		rpFilter = 8 // IPV4_DEVCONF_RP_FILTER
	)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(rpFilter, nl.Uint32Attr(uint32(value)))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) sysctls(ctx context.Context, want State) (changes []string, err error) {
	before, err := k.tables.Remembered()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, sysctl := range want.Sysctls {
		is, err := RPFilter(sysctl.Link)
		if err != nil || is == sysctl.RPFilter {
			errs = append(errs, ignoring(func(err error) bool { return errors.Is(err, os.ErrNotExist) }, err, "%s", sysctl))
			continue
		}
		// Remembered first: killed in between, we would put back what is there already.
		if _, ok := before[sysctl.Link]; !ok {
			if err := k.tables.remember(sysctl.Link, is); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		link, err := netlink.LinkByName(sysctl.Link)
		if err == nil {
			err = setRPFilter(link, sysctl.RPFilter)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", sysctl, err))
			continue
		}
		changes = append(changes, fmt.Sprintf("- %s", Sysctl{Link: sysctl.Link, RPFilter: is}), "+ "+sysctl.String())
	}
	for name, value := range before {
		if slices.ContainsFunc(want.Sysctls, func(s Sysctl) bool { return s.Link == name }) {
			continue
		}
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = setRPFilter(link, value)
		}
		if err := ignoring(gone, err, "put back rp_filter of %s", name); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, k.tables.forget(name, value))
		changes = append(changes, "+ "+Sysctl{Link: name, RPFilter: value}.String())
	}
	return changes, errors.Join(errs...)
}

// ---- conversions

func family(v6 bool) int {
	if v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

func defaultRoute(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	addr = addr.Unmap()
	if addr.Is4() && size == 128 {
		bits -= 96
	}
	return netip.PrefixFrom(addr, bits)
}
