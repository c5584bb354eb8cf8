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

// Routes lead to nexthop groups, not to next hops: exchanging the members of a group is a message or two to the kernel,
// however many routes use it, and there is no moment at which a packet finds neither the old members nor the new ones.
//
// A nexthop is a member of one group, and there while it is: groups that go the same way have one each, so what is done to
// one group concerns no packet of another.
//
// IDs of ours lie in a range of ours, and bear the scope's protocol besides. They are made from what they stand for, so
// they need no memory: a process that starts finds what an earlier one has made. Nexthops and groups have halves of their
// own, since the kernel replaces neither by the other; so have the copies of detours.
const (
	firstNexthop = 0xFA570000
	firstGroup   = 0xFA578000
	firstCopy    = 0xFA580000
	groupOfThem  = 0xFA588000 // of the copies: the last ID
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

// in a group: what its ID is made from.
func (n Nexthop) in(group string) string { return fmt.Sprintf("%s %t %s", group, n.IPv6, n) }

// Group is what a route leads to: flows are spread over its members.
type Group struct {
	// Name in the plan; the ID is made from it, so a group keeps it whoever its members are.
	Name string
	// Members are those of the Candidates that are in use now.
	Members, Candidates []Nexthop
	// Resilient groups keep a flow on its member when others come and go: a table of buckets has a member each, and only
	// the buckets of one that goes are handed to the others. A bucket over its member's share is handed on when it was
	// idle for that long. Zero Buckets is a plain group, which hashes anew on every change.
	Buckets int
	Idle    time.Duration
}

// ids of the candidates, by what they are in their group, and of groups, by name: a hash, and the next free one where two meet. They
// are dealt in sorted order, so that all processes come to the same, and whoever is a member.
func (s State) ids() (nexthops, groups map[string]uint32) {
	var keys, names []string
	for _, g := range s.Groups {
		names = append(names, g.Name)
		for _, n := range g.Candidates {
			keys = append(keys, n.in(g.Name))
		}
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
	sorted := slices.SortedFunc(slices.Values(s.Groups), func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	for _, g := range sorted {
		for _, n := range slices.SortedFunc(slices.Values(g.Members), func(a, b Nexthop) int { return cmp.Compare(a.in(g.Name), b.in(g.Name)) }) {
			lines = append(lines, nexthopLine(nexthops[n.in(g.Name)], n, scope))
		}
	}
	for _, g := range sorted {
		var members []uint32
		for _, member := range g.Members {
			members = append(members, nexthops[member.in(g.Name)])
		}
		lines = append(lines, groupLine(groups[g.Name], members, g, scope))
	}
	return lines
}

func (s State) nexthopProblems(scope Scope) (problems []string) {
	if len(s.Groups) > 0 && scope.Protocol == 0 {
		problems = append(problems, "nexthop groups without a protocol to know them by")
	}
	candidates := 0
	groups := map[string]Group{}
	for _, g := range s.Groups {
		if _, twice := groups[g.Name]; twice || len(g.Members) == 0 {
			problems = append(problems, fmt.Sprintf("group %s is there twice, or has no members", g.Name))
		}
		groups[g.Name] = g
		candidates += len(g.Candidates)
		for _, member := range g.Members {
			if !slices.Contains(g.Candidates, member) {
				problems = append(problems, fmt.Sprintf("group %s: its member %s is no candidate", g.Name, member))
			}
		}
	}
	if candidates > idsOfAKind/2 || len(s.Groups) > idsOfAKind/2 {
		problems = append(problems, fmt.Sprintf("%d nexthops and %d groups are too many", candidates, len(s.Groups)))
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
		if id < firstNexthop || id > groupOfThem {
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
			if hop, ok := have.nexthops[route.group]; ok { // what a process that ended in the middle of a detour has left
				seen.InUse[route.Dst] = append(seen.InUse[route.Dst], hop)
			}
			for _, member := range have.groups[route.group].members {
				seen.InUse[route.Dst] = append(seen.InUse[route.Dst], have.nexthops[member])
			}
		}
	}
	return seen, nil
}

// Regroup gives groups the members that they should have, makes groups that are missing, and touches nothing else. It is the part of
// Apply that a failover needs: a few messages to the kernel.
//
// A nexthop whose device is gone, down or without carrier cannot be, and the kernel drops it by itself; its groups then
// have the members that can, and go, with their routes, where there are none. So packets fall through to what stands
// behind, until a device is back and somebody calls again.
func (k *Kernel) Regroup(_ context.Context, want State) (changes []string, err error) {
	if len(want.Groups) == 0 {
		return nil, nil
	}
	k.moving.Lock()
	defer k.moving.Unlock()
	have, err := k.ownPaths()
	if err != nil {
		return nil, err
	}
	r := regrouping{Kernel: k, have: have, routes: want.Routes}
	r.nexthops, r.groups = want.ids()
	r.endDetours()
	for _, g := range want.Groups {
		r.regroup(g)
	}
	return r.changes, errors.Join(r.errs...)
}

// regrouping is one call of Regroup.
type regrouping struct {
	*Kernel
	nexthops, groups map[string]uint32
	routes           []Route
	have             paths // kept as the kernel has it
	changes          []string
	errs             []error
}

// endDetours leads routes back to their groups where an earlier process ended in the middle of a detour: the copies are for others now.
func (r *regrouping) endDetours() {
	if !slices.ContainsFunc(slices.Collect(maps.Keys(r.have.nexthops)), func(id uint32) bool { return id >= firstCopy }) {
		return
	}
	for _, route := range r.routes {
		if route.Group != "" && route.Dst.Addr().Is6() {
			// It or its group may not be there.
			r.errs = append(r.errs, ignoring(noGroup, r.leadRoute(route, r.groups[route.Group]), "set route %s", route))
		}
	}
}

// regroup exchanges the members of one group, and loses no packet by it: who leaves a group in which others stay is removed, and the kernel
// takes it out; a list of new members goes past the packets of those that stay (detour).
func (r *regrouping) regroup(g Group) {
	id := r.groups[g.Name]
	before, exists := r.have.groups[id]
	var stay []Nexthop
	for _, member := range g.Members {
		mine := r.nexthops[member.in(g.Name)]
		if hop, ok := r.have.nexthops[mine]; ok && hop == member && slices.Contains(before.members, mine) {
			stay = append(stay, member)
		}
	}
	old := before
	if len(stay) > 0 {
		old.members = r.leave(g, id, before.members)
	}
	wanted := kernelGroup{buckets: g.Buckets, idle: g.Idle}
	for _, member := range g.Members {
		if mine := r.nexthops[member.in(g.Name)]; r.make(mine, member) {
			wanted.members = append(wanted.members, mine)
		}
	}
	slices.Sort(wanted.members)
	if r.plain {
		wanted.buckets, wanted.idle = 0, 0
	}
	if len(wanted.members) > 0 && !(exists && old.equal(wanted)) {
		if !r.exchange(g, id, wanted, exists, stay) {
			return
		}
		old = r.have.groups[id]
	}
	if exists && before.equal(old) {
		return
	}
	if exists {
		r.changes = append(r.changes, "- "+before.line(id, g.Name, r.scope))
		if len(stay) == 0 {
			r.leave(g, id, before.members)
		}
	}
	if len(old.members) > 0 {
		r.changes = append(r.changes, "+ "+old.line(id, g.Name, r.scope))
	}
}

// leave removes those of the members that the group should not have, and gives the others. What an earlier version has put into other groups
// too is taken out later, when no group has it (removePaths).
func (r *regrouping) leave(g Group, id uint32, members []uint32) (stay []uint32) {
	wanted := map[uint32]bool{}
	for _, member := range g.Members {
		wanted[r.nexthops[member.in(g.Name)]] = true
	}
	for _, member := range members {
		hop, known := r.have.nexthops[member]
		shared := false
		for other, group := range r.have.groups {
			shared = shared || other != id && slices.Contains(group.members, member)
		}
		if wanted[member] || !known || shared {
			stay = append(stay, member)
			continue
		}
		if err := r.delNexthop(member); err != nil && !gone(err) {
			r.errs = append(r.errs, fmt.Errorf("remove nexthop %s: %w", nexthopLine(member, hop, r.scope), err))
			stay = append(stay, member)
			continue
		}
		delete(r.have.nexthops, member)
		r.changes = append(r.changes, "- "+nexthopLine(member, hop, r.scope))
	}
	return stay
}

// make has the nexthop be there, and reports whether it is.
func (r *regrouping) make(id uint32, n Nexthop) bool {
	old, exists := r.have.nexthops[id]
	if exists && old == n {
		return true
	}
	if err := r.setNexthop(id, n, exists); err != nil {
		if !notNow(err) {
			r.errs = append(r.errs, fmt.Errorf("set nexthop %s: %w", nexthopLine(id, n, r.scope), err))
		}
		return false
	}
	r.have.nexthops[id] = n
	if exists {
		r.changes = append(r.changes, "- "+nexthopLine(id, old, r.scope))
	}
	r.changes = append(r.changes, "+ "+nexthopLine(id, n, r.scope))
	return true
}

// exchange gives the group its members, of which some may stay.
func (r *regrouping) exchange(g Group, id uint32, wanted kernelGroup, exists bool, stay []Nexthop) bool {
	if old := r.have.groups[id]; exists && old.buckets != wanted.buckets {
		// Of another version: the kernel replaces none by one of another kind or size. Its routes go with it and are
		// made again; what stands behind them holds meanwhile.
		r.errs = append(r.errs, ignoring(gone, r.delNexthop(id), "remove %s", old.line(id, g.Name, r.scope)))
		exists = false
	}
	set := func() error { return r.setGroup(id, wanted, exists) }
	err := error(nil)
	if exists && len(stay) > 0 {
		err = r.detour(g, id, stay, set)
	} else {
		err = set()
	}
	if !exists && wanted.buckets > 0 && (errors.Is(err, unix.EINVAL) || unsupported(err)) {
		// Kernels before 5.13 know plain groups only.
		wanted.buckets, wanted.idle = 0, 0
		if err = r.setGroup(id, wanted, exists); err == nil {
			r.plain = true
		}
	}
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("set %s: %w", wanted.line(id, g.Name, r.scope), err))
		return false
	}
	r.have.groups[id] = wanted
	return true
}

// detour has the group's IPv6 routes lead past it while it is exchanged, through copies of the members that stay.
//
// The kernel keeps, for each IPv6 nexthop and processor, the route that packets took last. When a group gets a new list, it throws away that of
// all who were members (nh_rt_cache_flush, net/ipv4/nexthop.c), and with it the packets that have been routed by it and have not left yet: of
// 90,000 a second, every eighth list lost one. It waits for those under way before (synchronize_net), but new ones come all the time. IPv4 has
// nothing of the kind, and what is removed without a new list waits for all packets.
//
// Where several stay, the copies may have other flows for the few milliseconds than the group. The group itself keeps which flow is whose.
func (r *regrouping) detour(g Group, id uint32, stay []Nexthop, exchange func() error) error {
	var routes []Route
	for _, route := range r.routes {
		if route.Group == g.Name && route.Dst.Addr().Is6() {
			routes = append(routes, route)
		}
	}
	if len(routes) == 0 {
		return exchange()
	}
	var copies []uint32
	for _, hop := range stay {
		next := firstCopy + uint32(len(copies))
		_, left := r.have.nexthops[next]
		if r.setNexthop(next, hop, left) == nil { // a device that is going
			copies = append(copies, next)
		}
	}
	through := uint32(firstCopy)
	if len(copies) > 1 {
		through = groupOfThem
		_, left := r.have.groups[through]
		if r.setGroup(through, kernelGroup{members: copies}, left) != nil {
			through = firstCopy
		}
	}
	var errs []error
	var past []Route
	for _, route := range routes {
		if len(copies) > 0 && r.leadRoute(route, through) == nil { // it may not be there yet
			past = append(past, route)
		}
	}
	errs = append(errs, exchange())
	for _, route := range past {
		if err := r.leadRoute(route, id); err != nil {
			errs = append(errs, fmt.Errorf("set route %s: %w", route, err))
		}
	}
	if len(copies) > 1 {
		errs = append(errs, ignoring(gone, r.delNexthop(groupOfThem), "remove nexthop group %d", uint32(groupOfThem)))
	}
	for _, one := range copies {
		errs = append(errs, ignoring(gone, r.delNexthop(one), "remove nexthop %d", one))
	}
	return errors.Join(errs...)
}

func (k *Kernel) removePaths(_ context.Context, want State) (changes []string, err error) {
	k.moving.Lock()
	defer k.moving.Unlock()
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
