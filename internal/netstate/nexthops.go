package netstate

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Routes lead to nexthop groups, not to next hops: exchanging the members of a group is one message to the kernel,
// however many routes use it, and there is no moment at which a packet finds neither the old members nor the new ones.
//
// IDs of ours lie in a range of ours, and bear the scope's protocol besides. They are made from what they stand for, so
// they need no memory: a process that starts finds what an earlier one has made. Nexthops and groups have halves of their
// own, since the kernel replaces neither by the other.
const (
	firstNexthop = 0xFA570000
	firstGroup   = 0xFA578000
	idsOfAKind   = 0x8000
)

// Nexthop is a single next hop: through a gateway on a link, or straight into a device.
type Nexthop struct {
	// IPv6: used by IPv6 routes. Where Via is IPv6, IPv4 routes may use it too; without Via it is for one family.
	IPv6 bool
	Via  netip.Addr
	Dev  string
}

// String is the next hop as "ip nexthop" says it, without its ID.
func (n Nexthop) String() string {
	if !n.Via.IsValid() {
		return "dev " + n.Dev
	}
	return "via " + n.Via.String() + " dev " + n.Dev
}

func (n Nexthop) key() string { return fmt.Sprintf("%t %s", n.IPv6, n) }

// Group is what a route leads to: flows are spread over its members.
type Group struct {
	// Name in the plan; the ID is made from it, so a group keeps it whoever its members are.
	Name    string
	Members []Nexthop
	// Resilient groups keep a flow on its member when others come and go: a table of buckets has a member each, and only
	// the buckets of one that goes are handed to the others. A bucket over its member's share is handed on when it was
	// idle for that long. Zero Buckets is a plain group, which hashes anew on every change.
	Buckets int
	Idle    time.Duration
}

// ids of the state's nexthops, by key, and groups, by name: a hash, and the next free one where two meet. They are dealt
// in sorted order, so that all processes come to the same.
func (s State) ids() (nexthops, groups map[string]uint32) {
	var keys, names []string
	for _, n := range s.Nexthops {
		keys = append(keys, n.key())
	}
	for _, g := range s.Groups {
		names = append(names, g.Name)
	}
	return deal(firstNexthop, idsOfAKind, keys), deal(firstGroup, idsOfAKind, names)
}

func deal(first, count uint32, keys []string) map[string]uint32 {
	slices.Sort(keys)
	ids := map[string]uint32{}
	taken := map[uint32]bool{}
	for _, key := range slices.Compact(keys) {
		hash := fnv.New32a()
		_, _ = hash.Write([]byte(key)) // a hash never fails
		offset := hash.Sum32() % count
		for taken[offset] {
			offset = (offset + 1) % count
		}
		taken[offset] = true
		ids[key] = first + offset
	}
	return ids
}

// ---- text

func nexthopLine(id uint32, n Nexthop, scope Scope) string {
	return fmt.Sprintf("id %d %s proto %d", id, n, scope.Protocol)
}

func groupLine(id uint32, members []uint32, g Group, scope Scope) string {
	var texts []string
	for _, member := range slices.Sorted(slices.Values(members)) {
		texts = append(texts, fmt.Sprint(member))
	}
	kind := ""
	if g.Buckets > 0 {
		kind = fmt.Sprintf(" type resilient buckets %d idle_timer %g", g.Buckets, g.Idle.Seconds())
	}
	line := fmt.Sprintf("id %d group %s%s proto %d", id, strings.Join(texts, "/"), kind, scope.Protocol)
	if g.Name != "" {
		line += " # " + g.Name
	}
	return line
}

func (s State) nexthopLines(scope Scope) (lines []string) {
	nexthops, groups := s.ids()
	for _, n := range slices.SortedFunc(slices.Values(s.Nexthops), func(a, b Nexthop) int { return cmp.Compare(a.key(), b.key()) }) {
		lines = append(lines, nexthopLine(nexthops[n.key()], n, scope))
	}
	for _, g := range slices.SortedFunc(slices.Values(s.Groups), func(a, b Group) int { return cmp.Compare(a.Name, b.Name) }) {
		var members []uint32
		for _, member := range g.Members {
			members = append(members, nexthops[member.key()])
		}
		lines = append(lines, groupLine(groups[g.Name], members, g, scope))
	}
	return lines
}

func (s State) nexthopProblems(scope Scope) (problems []string) {
	if len(s.Nexthops)+len(s.Groups) > 0 && scope.Protocol == 0 {
		problems = append(problems, "nexthops without a protocol to know them by")
	}
	if len(s.Nexthops) > idsOfAKind/2 || len(s.Groups) > idsOfAKind/2 {
		problems = append(problems, fmt.Sprintf("%d nexthops and %d groups are too many", len(s.Nexthops), len(s.Groups)))
	}
	groups := map[string]Group{}
	for _, g := range s.Groups {
		if _, twice := groups[g.Name]; twice || len(g.Members) == 0 {
			problems = append(problems, fmt.Sprintf("group %s is there twice, or has no members", g.Name))
		}
		groups[g.Name] = g
		for _, member := range g.Members {
			if !slices.Contains(s.Nexthops, member) {
				problems = append(problems, fmt.Sprintf("group %s: its member %s is no nexthop of the state", g.Name, member))
			}
		}
	}
	for _, r := range s.Routes {
		g, ok := groups[r.Group]
		if r.Group == "" {
			continue
		}
		if !ok || r.Dst.Addr().Is6() && slices.ContainsFunc(g.Members, func(n Nexthop) bool { return !n.IPv6 }) {
			problems = append(problems, fmt.Sprintf("route %s: there is no such group, or not for IPv6", r))
		}
	}
	return problems
}

// ---- the kernel's

// paths are the nexthops and groups of ours that the kernel has.
type paths struct {
	nexthops map[uint32]Nexthop
	groups   map[uint32]kernelGroup
}

type kernelGroup struct {
	members []uint32 // sorted
	buckets int
	idle    time.Duration
}

func (k kernelGroup) equal(other kernelGroup) bool {
	return slices.Equal(k.members, other.members) && k.buckets == other.buckets && k.idle == other.idle
}

func (k kernelGroup) line(id uint32, name string, scope Scope) string {
	return groupLine(id, k.members, Group{Name: name, Buckets: k.buckets, Idle: k.idle}, scope)
}

// Attributes of resilient groups, of linux/nexthop.h.
const (
	nhaResGroup     = 12
	nhaResBuckets   = 1
	nhaResIdleTimer = 2
	groupResilient  = 1   // NEXTHOP_GRP_TYPE_RES
	userHZ          = 100 // clock_t, in which the kernel tells timers
	rtaNHID         = 30
	sizeofNhmsg     = 8
	sizeofGrp       = 8 // struct nexthop_grp: id, weight and padding
)

// nhmsg is struct nhmsg: family, scope, protocol, padding, flags.
type nhmsg struct{ family, protocol uint8 }

func (m nhmsg) Len() int { return sizeofNhmsg }

func (m nhmsg) Serialize() []byte { return []byte{m.family, 0, m.protocol, 0, 0, 0, 0, 0} }

func attributes(b []byte) (map[int][]byte, error) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, err
	}
	byType := map[int][]byte{}
	for _, attr := range attrs {
		byType[int(attr.Attr.Type&nl.NLA_TYPE_MASK)] = attr.Value
	}
	return byType, nil
}

func number(b []byte) uint32 {
	switch len(b) {
	case 2:
		return uint32(binary.NativeEndian.Uint16(b))
	case 4:
		return binary.NativeEndian.Uint32(b)
	}
	return 0
}

func (k *Kernel) ownPaths() (paths, error) {
	have := paths{nexthops: map[uint32]Nexthop{}, groups: map[uint32]kernelGroup{}}
	names, err := linkNames()
	if err != nil {
		return have, err
	}
	messages, err := whole(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP)
		req.AddData(nhmsg{})
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEXTHOP)
	})
	if err != nil {
		return have, fmt.Errorf("list nexthops: %w", err)
	}
	for _, m := range messages {
		if len(m) < sizeofNhmsg || int(m[2]) != k.scope.Protocol {
			continue
		}
		attrs, err := attributes(m[sizeofNhmsg:])
		if err != nil {
			return have, fmt.Errorf("list nexthops: %w", err)
		}
		id := number(attrs[unix.NHA_ID])
		if id < firstNexthop || id >= firstGroup+idsOfAKind {
			continue
		}
		if members, ok := attrs[unix.NHA_GROUP]; ok {
			var g kernelGroup
			for ; len(members) >= sizeofGrp; members = members[sizeofGrp:] {
				g.members = append(g.members, number(members[:4]))
			}
			slices.Sort(g.members)
			if number(attrs[unix.NHA_GROUP_TYPE]) == groupResilient {
				resilient, err := attributes(attrs[nhaResGroup])
				if err != nil {
					return have, fmt.Errorf("list nexthops: %w", err)
				}
				g.buckets = int(number(resilient[nhaResBuckets]))
				g.idle = time.Duration(number(resilient[nhaResIdleTimer])) * (time.Second / userHZ)
			}
			have.groups[id] = g
			continue
		}
		n := Nexthop{IPv6: m[0] == unix.AF_INET6, Dev: names[int(number(attrs[unix.NHA_OIF]))]}
		n.Via, _ = netip.AddrFromSlice(attrs[unix.NHA_GATEWAY])
		have.nexthops[id] = n
	}
	return have, nil
}

func linkNames() (map[int]string, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	return names, nil
}

// Observed is what the kernel has of an owner's paths.
type Observed struct {
	// Lines as Text has them.
	Lines []string
	// InUse are the next hops that the routes lead to, by their prefixes.
	InUse map[netip.Prefix][]Nexthop
}

// Observe reads nexthops, groups and routes. Groups are named as in the state.
func (k *Kernel) Observe(want State) (Observed, error) {
	seen := Observed{InUse: map[netip.Prefix][]Nexthop{}}
	_, groups := want.ids()
	have, err := k.ownPaths()
	if err != nil {
		return seen, err
	}
	routes, err := k.ownRoutes(groups)
	if err != nil {
		return seen, err
	}
	names := map[uint32]string{}
	for name, id := range groups {
		names[id] = name
	}
	for _, id := range slices.Sorted(maps.Keys(have.nexthops)) {
		seen.Lines = append(seen.Lines, nexthopLine(id, have.nexthops[id], k.scope))
	}
	for _, id := range slices.Sorted(maps.Keys(have.groups)) {
		seen.Lines = append(seen.Lines, have.groups[id].line(id, names[id], k.scope))
	}
	slices.SortFunc(routes, func(a, b kernelRoute) int { return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric)) })
	for _, route := range routes {
		seen.Lines = append(seen.Lines, route.String())
		switch {
		case route.Blackhole:
		case route.group == 0:
			seen.InUse[route.Dst] = append(seen.InUse[route.Dst], Nexthop{IPv6: route.Dst.Addr().Is6(), Via: route.Via, Dev: route.Dev})
		default:
			for _, member := range have.groups[route.group].members {
				seen.InUse[route.Dst] = append(seen.InUse[route.Dst], have.nexthops[member])
			}
		}
	}
	return seen, nil
}

// Regroup makes the nexthops that are missing and exchanges the members of groups that differ; it removes nothing, and
// touches nothing else. It is the part of Apply that a failover needs: a few messages to the kernel.
//
// A nexthop whose device is gone, down or without carrier cannot be, and the kernel drops it by itself; its groups then
// have the members that can, and go, with their routes, where there are none. So packets fall through to what stands
// behind, until a device is back and somebody calls again.
func (k *Kernel) Regroup(_ context.Context, want State) (changes []string, err error) {
	if len(want.Groups) == 0 && len(want.Nexthops) == 0 {
		return nil, nil
	}
	have, err := k.ownPaths()
	if err != nil {
		return nil, err
	}
	var errs []error
	nexthops, groups := want.ids()
	for _, n := range want.Nexthops {
		id := nexthops[n.key()]
		old, exists := have.nexthops[id]
		if exists && old == n {
			continue
		}
		if err := k.setNexthop(id, n, exists); err != nil {
			if !notNow(err) {
				errs = append(errs, fmt.Errorf("set nexthop %s: %w", nexthopLine(id, n, k.scope), err))
			}
			continue
		}
		have.nexthops[id] = n
		if exists {
			changes = append(changes, "- "+nexthopLine(id, old, k.scope))
		}
		changes = append(changes, "+ "+nexthopLine(id, n, k.scope))
	}
	for _, g := range want.Groups {
		id := groups[g.Name]
		old, exists := have.groups[id]
		wanted := kernelGroup{buckets: g.Buckets, idle: g.Idle}
		for _, member := range g.Members {
			if have.nexthops[nexthops[member.key()]] == member {
				wanted.members = append(wanted.members, nexthops[member.key()])
			}
		}
		slices.Sort(wanted.members)
		if k.plain {
			wanted.buckets, wanted.idle = 0, 0
		}
		if len(wanted.members) == 0 || exists && old.equal(wanted) {
			continue
		}
		if exists && old.buckets != wanted.buckets {
			// Of another version: the kernel replaces none by one of another kind or size. Its routes go with it and are
			// made again; what stands behind them holds meanwhile.
			errs = append(errs, ignoring(gone, k.delNexthop(id), "remove %s", old.line(id, g.Name, k.scope)))
			exists = false
			changes = append(changes, "- "+old.line(id, g.Name, k.scope))
		}
		err := k.setGroup(id, wanted, exists)
		if !exists && wanted.buckets > 0 && (errors.Is(err, unix.EINVAL) || unsupported(err)) {
			// Kernels before 5.13 know plain groups only.
			wanted.buckets, wanted.idle = 0, 0
			if err = k.setGroup(id, wanted, exists); err == nil {
				k.plain = true
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", wanted.line(id, g.Name, k.scope), err))
			continue
		}
		if exists {
			changes = append(changes, "- "+old.line(id, g.Name, k.scope))
		}
		changes = append(changes, "+ "+wanted.line(id, g.Name, k.scope))
	}
	return changes, errors.Join(errs...)
}

func (k *Kernel) removePaths(_ context.Context, want State) (changes []string, err error) {
	have, err := k.ownPaths()
	if unsupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	wanted := map[uint32]bool{}
	nexthops, groups := want.ids()
	for _, ids := range []map[string]uint32{nexthops, groups} {
		for _, id := range ids {
			wanted[id] = true
		}
	}
	remove := func(id uint32, line string) {
		errs = append(errs, ignoring(gone, k.delNexthop(id), "remove nexthop %s", line))
		changes = append(changes, "- "+line)
	}
	for id, g := range have.groups {
		if !wanted[id] {
			remove(id, g.line(id, "", k.scope))
		}
	}
	for id, n := range have.nexthops {
		if !wanted[id] {
			remove(id, nexthopLine(id, n, k.scope))
		}
	}
	return changes, errors.Join(errs...)
}

// nexthopFlags: one that exists is ours and replaced in one step; another must not exist, lest we replace somebody else's.
func nexthopFlags(exists bool) int {
	if exists {
		return unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
}

func (k *Kernel) setNexthop(id uint32, n Nexthop, exists bool) error {
	link, err := netlink.LinkByName(n.Dev)
	if err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEXTHOP, nexthopFlags(exists))
	req.AddData(nhmsg{family: uint8(family(n.IPv6)), protocol: uint8(k.scope.Protocol)})
	req.AddData(nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(id)))
	req.AddData(nl.NewRtAttr(unix.NHA_OIF, nl.Uint32Attr(uint32(link.Attrs().Index))))
	if n.Via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.NHA_GATEWAY, n.Via.AsSlice()))
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) setGroup(id uint32, g kernelGroup, exists bool) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEXTHOP, nexthopFlags(exists))
	req.AddData(nhmsg{protocol: uint8(k.scope.Protocol)})
	req.AddData(nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(id)))
	var members []byte
	for _, member := range g.members {
		members = binary.NativeEndian.AppendUint32(members, member)
		members = append(members, 0, 0, 0, 0) // a weight of 0 says 1
	}
	req.AddData(nl.NewRtAttr(unix.NHA_GROUP, members))
	if g.buckets > 0 {
		req.AddData(nl.NewRtAttr(unix.NHA_GROUP_TYPE, nl.Uint16Attr(groupResilient)))
		resilient := nl.NewRtAttr(nhaResGroup|unix.NLA_F_NESTED, nil)
		resilient.AddRtAttr(nhaResBuckets, nl.Uint16Attr(uint16(g.buckets)))
		resilient.AddRtAttr(nhaResIdleTimer, nl.Uint32Attr(uint32(g.idle/(time.Second/userHZ))))
		req.AddData(resilient)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) delNexthop(id uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELNEXTHOP, unix.NLM_F_ACK)
	req.AddData(nhmsg{})
	req.AddData(nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(id)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
