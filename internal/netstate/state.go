// Package netstate is desired network state of a node: links, neighbours, routes and rules of a table of our own, chains
// of our own and the jumps into them, and per-link sysctls, as one plain value.
//
// A State prints as an operator would read it from ip(8), bridge(8) and iptables-save(8). That one text is what goldens
// compare, what the debug page shows and, line by line, what the log says on a change. Apply makes the kernel match, and
// an empty State is the uninstall.
//
// Whose is what is marked in the kernel itself (Scope), so what a killed process has left is found and swept without
// any memory of it, and what others have made is never touched.
package netstate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// State is what one owner wants in the kernel, or has there.
type State struct {
	Links      []Link
	Neighbours []Neighbour
	Forwarding []Forwarding
	Groups     []Group
	Routes     []Route
	Rules      []Rule
	Chains     []Chain
	Jumps      []Jump
	Sysctls    []Sysctl
}

// Scope tells an owner's state from all else. Zero fields own nothing.
type Scope struct {
	// LinkPrefix begins the name of every link.
	LinkPrefix string
	// Table holds every route, and every rule leads to it.
	Table int
	// Protocol (rtm_protocol) marks every route and rule: a route that somebody else put into our table is left alone.
	Protocol int
	// ChainPrefix begins the name of every chain of the tables filter, nat and mangle.
	ChainPrefix string
}

// Kinds of links.
const (
	KindVXLAN     = "vxlan"
	KindWireGuard = "wireguard"
	// KindTUN is a persistent TUN device with packet offloads (IFF_VNET_HDR): it and its routes outlive the process that
	// reads it.
	KindTUN = "tun"
	// KindXFRM is a device that gives what is routed to it to the kernel's IPsec, and drops what that has no policy for.
	KindXFRM = "xfrm"
)

// Link is a virtual device, up.
type Link struct {
	Name string
	Kind string
	// MTU in bytes.
	MTU int
	// MAC of a VXLAN device, "" else.
	MAC string
	// Addresses with their prefix lengths. The kernel's own generation of addresses is off.
	Addresses []netip.Prefix
	// VXLAN is set for that kind only.
	VXLAN VXLAN
	// IfID of an XFRM device is that of the policies and states that count there, and nowhere else.
	IfID uint32
}

// VXLAN is a VXLAN device that learns nothing: all it knows is written into it.
type VXLAN struct {
	ID, Port int
	Local    netip.Addr
}

// String is the link as "ip -d link" and "ip addr" would say it, on one line.
func (l Link) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: mtu %d %s", l.Name, l.MTU, l.Kind)
	if l.Kind == KindVXLAN {
		fmt.Fprintf(&b, " id %d local %s dstport %d nolearning link/ether %s", l.VXLAN.ID, l.VXLAN.Local, l.VXLAN.Port, l.MAC)
	}
	if l.Kind == KindXFRM {
		fmt.Fprintf(&b, " if_id %#x", l.IfID)
	}
	for _, address := range slices.SortedFunc(slices.Values(l.Addresses), netip.Prefix.Compare) {
		fmt.Fprintf(&b, " %s %s", inet(address.Addr()), address)
	}
	return b.String()
}

// Neighbour is a permanent entry of the neighbour table: what "ip neigh" shows.
type Neighbour struct {
	Link string
	Addr netip.Addr
	MAC  string
}

func (n Neighbour) String() string {
	return fmt.Sprintf("%s dev %s lladdr %s PERMANENT", n.Addr, n.Link, n.MAC)
}

// Forwarding is a permanent entry of a VXLAN device's forwarding database: what "bridge fdb" shows.
type Forwarding struct {
	Link string
	MAC  string
	Dst  netip.Addr
	// Port (UDP) at the other end; 0 is that of the device.
	Port int
}

func (f Forwarding) String() string {
	if f.Port != 0 {
		return fmt.Sprintf("%s dev %s dst %s port %d self permanent", f.MAC, f.Link, f.Dst, f.Port)
	}
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Link, f.Dst)
}

// Route is a route of the scope's table: to a group, to a single next hop, or to nowhere.
type Route struct {
	Dst netip.Prefix
	// Blackhole drops silently.
	Blackhole bool
	// Group by its name.
	Group string
	// Via is the next hop, of either family; none for a route straight to a device.
	Via netip.Addr
	Dev string
	// Metric: the lowest of the routes to one prefix is taken. Zero is not allowed: IPv6 would make it 1024.
	Metric int
}

func (r Route) String() string {
	var b strings.Builder
	if r.Blackhole {
		b.WriteString("blackhole ")
	}
	b.WriteString(r.Dst.String())
	if r.Group != "" {
		b.WriteString(" group " + r.Group)
	}
	if r.Via.IsValid() {
		b.WriteString(" via ")
		if r.Via.Is6() && r.Dst.Addr().Is4() {
			b.WriteString("inet6 ")
		}
		b.WriteString(r.Via.String())
	}
	if r.Dev != "" {
		b.WriteString(" dev " + r.Dev)
	}
	fmt.Fprintf(&b, " metric %d", r.Metric)
	return b.String()
}

// key of a route: the kernel replaces one by another of the same key in a single step.
func (r Route) key() string { return fmt.Sprintf("%s metric %d", r.Dst, r.Metric) }

// Rule sends every packet of a family through the scope's table.
type Rule struct {
	IPv6     bool
	Priority int
}

func (r Rule) text(scope Scope) string {
	return fmt.Sprintf("%d: from all lookup %d proto %d", r.Priority, scope.Table, scope.Protocol)
}

// Chain is an iptables chain of our own, with its rules in order, as "iptables -S" prints them after "-A CHAIN ". They
// are compared as text, so they must be written in the very form that iptables prints.
type Chain struct {
	IPv6        bool
	Table, Name string
	Rules       []string
}

// Jump is the one rule that we put into a chain of the kernel's: "-A Builtin -j Chain".
type Jump struct {
	IPv6                  bool
	Table, Builtin, Chain string
	// Last puts it behind what is there, so that whoever decided before us has the last word. Otherwise it is kept in
	// the first place, also when others insert theirs before it later.
	Last bool
}

// Sysctl is a per-link setting of IPv4. What it was before is kept in the kernel beside it, as a rule of a chain that
// nothing jumps to (ChainPrefix + "SYSCTL"), so that it is put back whatever happens to us, and forgotten with the
// setting itself at a reboot.
type Sysctl struct {
	Link string
	// RPFilter is the only one so far: 2 is loose.
	RPFilter int
}

func (s Sysctl) String() string {
	return fmt.Sprintf("net.ipv4.conf.%s.rp_filter = %d", s.Link, s.RPFilter)
}

// Text of the state in this scope.
func (s State) Text(scope Scope) string {
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		b.WriteString("# " + title + "\n")
		for _, line := range lines {
			b.WriteString(line + "\n")
		}
	}
	section("ip -d addr", lines(s.Links))
	section("ip neigh", lines(s.Neighbours))
	section("bridge fdb", lines(s.Forwarding))
	section("ip nexthop", s.nexthopLines(scope))
	for _, v6 := range []bool{false, true} {
		var rules []string
		for _, rule := range s.Rules {
			if rule.IPv6 == v6 {
				rules = append(rules, rule.text(scope))
			}
		}
		section(ip(v6)+" rule", rules)
	}
	for _, v6 := range []bool{false, true} {
		var routes []string
		for _, route := range sortedRoutes(s.Routes) {
			if route.Dst.Addr().Is6() == v6 {
				routes = append(routes, route.String())
			}
		}
		section(fmt.Sprintf("%s route show table %d", ip(v6), scope.Table), routes)
	}
	for _, v6 := range []bool{false, true} {
		section(iptablesName(v6)+"-save", s.tables(v6))
	}
	section("sysctl", lines(s.Sysctls))
	return b.String()
}

func (s State) tables(v6 bool) []string {
	var out []string
	for _, table := range tableNames {
		var chains, jumps, rules []string
		for _, chain := range s.Chains {
			if chain.IPv6 == v6 && chain.Table == table {
				chains = append(chains, ":"+chain.Name+" - [0:0]")
				for _, rule := range chain.Rules {
					rules = append(rules, "-A "+chain.Name+" "+rule)
				}
			}
		}
		for _, jump := range s.Jumps {
			if jump.IPv6 == v6 && jump.Table == table {
				jumps = append(jumps, "-A "+jump.Builtin+" -j "+jump.Chain)
			}
		}
		if len(chains)+len(jumps) > 0 {
			out = append(append(append(append(out, "*"+table), chains...), jumps...), rules...)
		}
	}
	return out
}

func lines[T fmt.Stringer](values []T) []string {
	var out []string
	for _, value := range values {
		out = append(out, value.String())
	}
	slices.Sort(out)
	return out
}

// sortedRoutes by family, prefix, metric.
func sortedRoutes(routes []Route) []Route {
	return slices.SortedFunc(slices.Values(routes), func(a, b Route) int {
		return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.String(), b.String()))
	})
}

func inet(addr netip.Addr) string {
	if addr.Is4() {
		return "inet"
	}
	return "inet6"
}

func ip(v6 bool) string {
	if v6 {
		return "ip -6"
	}
	return "ip"
}

func iptablesName(v6 bool) string {
	if v6 {
		return "ip6tables"
	}
	return "iptables"
}

// Validate reports what the kernel could not hold, or what Apply could not find again.
func (s State) Validate(scope Scope) error {
	var problems []string
	for _, link := range s.Links {
		if scope.LinkPrefix == "" || !strings.HasPrefix(link.Name, scope.LinkPrefix) || len(link.Name) > 15 {
			problems = append(problems, fmt.Sprintf("link %q is not of prefix %q or too long", link.Name, scope.LinkPrefix))
		}
	}
	keys := map[string]bool{}
	for _, route := range s.Routes {
		if scope.Table == 0 || scope.Protocol == 0 || route.Metric == 0 || keys[route.key()] {
			problems = append(problems, fmt.Sprintf("route %s has no table, protocol or metric, or is there twice", route))
		}
		keys[route.key()] = true
	}
	problems = append(problems, s.nexthopProblems(scope)...)
	for _, chain := range s.Chains {
		if scope.ChainPrefix == "" || !strings.HasPrefix(chain.Name, scope.ChainPrefix) || len(chain.Name) > 28 {
			problems = append(problems, fmt.Sprintf("chain %q is not of prefix %q or too long", chain.Name, scope.ChainPrefix))
		}
	}
	if len(s.Sysctls) > 0 && scope.ChainPrefix == "" {
		problems = append(problems, "sysctls without a chain prefix to remember them by")
	}
	if len(problems) > 0 {
		return fmt.Errorf("network state: %s", strings.Join(problems, "; "))
	}
	return nil
}
