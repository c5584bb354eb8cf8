package lighthouse

import (
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/miekg/dns"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// The model says what the plugin has to answer, in the plainest way that there is: for each question it goes through all
// objects, writes down every name of the asked service with its records, and looks the asked name up. It shares nothing with
// the plugin, so that a rule misread here and there differs. It knows settled states alone: nothing of suspicion, of the time
// before the first sync, or of whose turn it is.
//
// Where the rules leave something open, it takes this:
//   - A hostname that is no DNS label counts as none, and a source cluster that is not made of DNS labels as a missing label.
//   - An IPv4 address in IPv6's clothes (::ffff:10.0.0.1) is the IPv4 address. Addresses count as the same, and name their
//     backends, in their canonical form.
//   - Of a backend that several slices have, the addresses and ports are those of all in which it is ready.
//   - A cluster-address slice gives its cluster a name and ports even without an address that can be answered.
//   - In a DNS-balanced service, a named port exists if the import or any cluster-address slice has it; a cluster that is
//     chosen for a question about all ports, and has none, gives NODATA.
//   - The known cluster IDs, which a name is matched against first, are those of the service.
//   - max_answers counts for each name: a named port has a subset of its own.

// model is a clusterset and the options of the stanza that serves it.
type model struct {
	*objects
	zones           []string
	clusterID       string // the option; goes before the ClusterProperty
	ttl             int
	only            []string // the option namespaces; nil for all
	clusterNames    bool
	maxAnswers      int
	serverAddresses []net.IP
}

// expectation is what may be answered to a question.
type expectation struct {
	qtype uint16
	rcode int
	soa   string // of the authority section where there is no answer
	// replies are all right, whichever it is. One without an answer has the SOA record in its authority section.
	replies []modelReply
	// pool, where there is one, is of backends of which limit have to be in the answer; the model does not know which.
	pool  []modelRecords
	limit int
}

// modelReply holds records as text. Those of the answer lack their owner, which is the name that was asked for, as it was asked.
type modelReply struct{ answer, additional []string }

// modelRecords are what a name has, or what one backend adds to it, of a type.
type modelRecords func(qtype uint16) modelReply

// modelNode is a name that exists.
type modelNode struct {
	choices func(qtype uint16) []modelReply // each of them is right; nil where the name has no records
	pool    func() []modelRecords           // all are in the answer, as far as max_answers lets them
	hidden  bool                            // NXDOMAIN although there are names below it
}

func (m *model) ask(qname string, qtype uint16) expectation {
	name, zone := strings.ToLower(qname), ""
	for _, z := range m.zones {
		if dns.IsSubDomain(z, name) && len(z) > len(zone) {
			zone = z
		}
	}
	if zone == "" {
		return expectation{qtype: qtype, rcode: dns.RcodeRefused} // by the next plugin, or by the server
	}
	labels := dns.SplitDomainName(name)
	relative := strings.Join(labels[:len(labels)-dns.CountLabel(zone)], ".")
	nodes := m.nodes(zone, relative)
	soa := fmt.Sprintf("%s %d SOA %s %d", zone, m.ttl, modelUnder("ns.dns", zone), m.ttl)
	nodata := expectation{qtype: qtype, soa: soa, replies: []modelReply{{}}}
	nxdomain := expectation{qtype: qtype, soa: soa, rcode: dns.RcodeNameError, replies: []modelReply{{}}}
	if n, found := nodes[relative]; found {
		switch {
		case n.hidden:
			return nxdomain
		case n.pool != nil:
			pool := n.pool()
			if len(pool) > m.maxAnswers {
				return expectation{qtype: qtype, soa: soa, pool: pool, limit: m.maxAnswers}
			}
			return expectation{qtype: qtype, soa: soa, replies: []modelReply{modelUnion(pool, qtype)}}
		case n.choices != nil:
			if choices := n.choices(qtype); len(choices) > 0 {
				return expectation{qtype: qtype, soa: soa, replies: choices}
			}
		}
		return nodata
	}
	for existing := range nodes {
		if strings.HasSuffix(existing, "."+relative) {
			return nodata // RFC 8020: it is above a name that exists
		}
	}
	return nxdomain
}

// nodes are the names of a zone, relative to it, except those of other services than the asked one.
func (m *model) nodes(zone, asked string) map[string]modelNode {
	var server []netip.Addr
	for _, ip := range m.serverAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		server = append(server, addr.Unmap())
	}
	ns := modelUnder("ns.dns", zone)
	apex := func(qtype uint16) (r modelReply) {
		switch qtype {
		case dns.TypeSOA:
			r.answer = []string{fmt.Sprintf("%d SOA %s %d", m.ttl, ns, m.ttl)}
		case dns.TypeNS:
			r = modelReply{[]string{fmt.Sprintf("%d NS %s", m.ttl, ns)}, m.glue(ns, server)}
		}
		return r
	}
	version := func(qtype uint16) (r modelReply) {
		if qtype == dns.TypeTXT {
			r.answer = []string{`28800 TXT "1.0.0"`}
		}
		return r
	}
	nodes := map[string]modelNode{
		"":            modelOf(apex),
		"dns-version": modelOf(version),
		"ns.dns":      modelOf(m.addresses(server)),
		"svc":         {},
	}
	for _, namespace := range m.namespaces {
		if m.only != nil && !slices.Contains(m.only, namespace) {
			continue
		}
		nodes[namespace+".svc"] = modelNode{}
		for _, i := range m.imports {
			base := i.Name + "." + i.Namespace + ".svc"
			if i.Namespace == namespace && modelIsLabel(i.Name) && (asked == base || strings.HasSuffix(asked, "."+base)) {
				m.service(nodes, zone, base, i)
			}
		}
	}
	return nodes
}

// service adds the names of a service.
func (m *model) service(nodes map[string]modelNode, zone, base string, i *mcsv1beta1.ServiceImport) {
	aliases := map[string]modelNode{} // <port>.<proto> without underscores: only where nothing else has the name
	addPorts := func(name string, ports []modelPort, at func(p modelPort) modelNode) {
		for _, p := range ports {
			if p.name != "" {
				nodes["_"+p.name+"._"+p.protocol+"."+name] = at(p)
				aliases[p.name+"."+p.protocol+"."+name] = at(p)
			}
		}
	}
	addParties := func(name string, list []modelParty, target func(modelParty) string) {
		nodes[name] = modelNode{pool: func() (pool []modelRecords) {
			for _, p := range list {
				pool = append(pool, func(qtype uint16) modelReply {
					if qtype == dns.TypeSRV {
						return m.srv(p, target(p), modelAnyPort)
					}
					return m.addresses(p.addresses)(qtype)
				})
			}
			return pool
		}}
		addPorts(name, modelAllPorts(list), func(port modelPort) modelNode {
			return modelNode{pool: func() (pool []modelRecords) {
				for _, p := range list {
					if slices.ContainsFunc(p.ports, port.same) {
						pool = append(pool, modelSrvOnly(func() modelReply { return m.srv(p, target(p), port.same) }))
					}
				}
				return pool
			}}
		})
	}

	var clusters []modelParty // what has names that hold a cluster
	ownName := func(p modelParty) string { return modelUnder(p.name, base, zone) }
	ips := modelUsableAddresses(i.Spec.IPs)
	switch {
	case i.Spec.Type == mcsv1beta1.Headless:
		clusters = m.parties(i, false, true)
		for _, p := range clusters {
			nodes[p.name+"."+base] = modelOf(m.addresses(p.addresses))
		}
		if list := slices.DeleteFunc(slices.Clone(clusters), func(p modelParty) bool { return !m.reachable(p.cluster) }); len(list) > 0 {
			addParties(base, list, ownName)
		} else {
			nodes[base] = modelNode{hidden: true}
		}
	case len(ips) > 0:
		clusters = m.parties(i, true, false)
		addParties(base, []modelParty{{addresses: ips, ports: modelImportPorts(i), weight: 50}}, func(modelParty) string { return modelUnder(base, zone) })
	default:
		clusters = m.parties(i, true, false)
		nodes[base] = modelNode{choices: func(qtype uint16) []modelReply { return m.balanced(i, modelUnder(base, zone), qtype, nil) }}
		addPorts(base, slices.Concat(modelImportPorts(i), modelAllPorts(clusters)), func(p modelPort) modelNode {
			return modelNode{choices: func(qtype uint16) []modelReply { return m.balanced(i, modelUnder(base, zone), qtype, &p) }}
		})
	}
	if !m.clusterNames {
		return
	}
	for at, p := range clusters { // as a whole first: it may be the name of a backend of another cluster
		if slices.ContainsFunc(clusters[:at], func(other modelParty) bool { return other.cluster == p.cluster }) {
			continue
		}
		of := slices.DeleteFunc(slices.Clone(clusters), func(other modelParty) bool { return other.cluster != p.cluster })
		addParties(p.cluster+"."+base, of, ownName)
	}
	for name, n := range aliases {
		if _, found := nodes[name]; !found {
			nodes[name] = n
		}
	}
}

// balanced gives the replies of a service that is balanced by its answers, one of a cluster whose turn it may be; of a named
// port, or of the service itself where there is none.
func (m *model) balanced(i *mcsv1beta1.ServiceImport, target string, qtype uint16, named *modelPort) (replies []modelReply) {
	of := func(p modelParty) modelReply {
		switch {
		case named != nil && qtype == dns.TypeSRV:
			return m.srv(p, target, named.same)
		case qtype == dns.TypeSRV:
			return m.srv(p, target, modelAnyPort)
		case named == nil:
			return m.addresses(p.addresses)(qtype)
		}
		return modelReply{}
	}
	// A cluster without ports may be chosen for a question about all ports, and then there is no answer.
	has := func(p modelParty) bool { return len(of(p).answer) > 0 || named == nil && qtype == dns.TypeSRV }
	var candidates []modelParty
	for _, p := range m.parties(i, true, true) {
		switch {
		case len(p.addresses) == 0: // not ready
		case p.cluster == m.localID() && (named == nil || has(p)):
			return modelOneEach(of(p), qtype)
		case p.cluster != m.localID() && m.reachable(p.cluster) && has(p):
			candidates = append(candidates, p)
		}
	}
	others := slices.ContainsFunc(candidates, func(p modelParty) bool { return p.share > 0 })
	for _, p := range candidates {
		if p.share > 0 || !others {
			replies = append(replies, modelOneEach(of(p), qtype)...)
		}
	}
	return replies
}

// modelOneEach makes replies of one address each.
func modelOneEach(r modelReply, qtype uint16) (replies []modelReply) {
	if qtype == dns.TypeSRV {
		return []modelReply{r}
	}
	for _, record := range r.answer {
		replies = append(replies, modelReply{answer: []string{record}})
	}
	return replies
}

// modelParty is a backend, or with its own address a cluster.
type modelParty struct {
	name          string // relative to the service: <host>.<cluster> or <cluster>
	cluster       string
	addresses     []netip.Addr
	ports         []modelPort
	weight, share int
}

type modelPort struct {
	name, protocol string
	number         int
}

func modelAnyPort(modelPort) bool { return true }

func (p modelPort) same(other modelPort) bool {
	return p.name == other.name && p.protocol == other.protocol
}

func modelImportPorts(i *mcsv1beta1.ServiceImport) (ports []modelPort) {
	for _, p := range i.Spec.Ports {
		ports = append(ports, modelPort{strings.ToLower(p.Name), strings.ToLower(string(p.Protocol)), int(p.Port)})
	}
	return ports
}

func modelAllPorts(list []modelParty) (ports []modelPort) {
	for _, p := range list {
		for _, port := range p.ports {
			if !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	return ports
}

// parties gathers the backends of a service, or the clusters' own addresses, over all slices. What is not ready is left out on
// demand; a cluster that is not ready keeps its name and ports.
func (m *model) parties(i *mcsv1beta1.ServiceImport, clusterAddress, onlyReady bool) (list []modelParty) {
	for _, s := range m.slices {
		cluster := strings.ToLower(s.Labels[v1alpha1.LabelSourceCluster])
		if s.Namespace != i.Namespace || s.Labels[v1alpha1.LabelServiceName] != i.Name || s.AddressType == discoveryv1.AddressTypeFQDN ||
			(s.Labels[v1alpha1.LabelClusterAddress] == "true") != clusterAddress || !modelIsClusterID(cluster) {
			continue
		}
		named := func(name string) *modelParty {
			at := slices.IndexFunc(list, func(p modelParty) bool { return p.name == name })
			if at < 0 {
				at = len(list)
				list = append(list, modelParty{name: name, cluster: cluster, weight: modelWeight(s, 50), share: modelWeight(s, 1)})
			}
			for _, p := range s.Ports {
				list[at].ports = append(list[at].ports, modelPort{strings.ToLower(*p.Name), strings.ToLower(string(*p.Protocol)), int(*p.Port)})
			}
			return &list[at]
		}
		if clusterAddress {
			named(cluster)
		}
		for _, e := range s.Endpoints {
			if onlyReady && e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, addr := range modelUsableAddresses(e.Addresses) {
				name := cluster
				switch {
				case clusterAddress:
				case e.Hostname != nil && modelIsLabel(strings.ToLower(*e.Hostname)):
					name = strings.ToLower(*e.Hostname) + "." + cluster
				default:
					name = strings.NewReplacer(".", "-", ":", "-").Replace(addr.String()) + "." + cluster
				}
				p := named(name)
				p.addresses = append(p.addresses, addr)
			}
		}
	}
	return list
}

// modelWeight is that of a slice, clamped; missing where there is none that can be read.
func modelWeight(s *discoveryv1.EndpointSlice, missing int) int {
	n, ok := new(big.Int).SetString(s.Annotations[v1alpha1.AnnotationWeight], 10)
	switch {
	case !ok:
		return missing
	case n.Sign() < 0:
		return 0
	case n.Cmp(big.NewInt(65535)) > 0:
		return 65535
	}
	return int(n.Int64())
}

func (m *model) localID() string {
	if m.clusterID != "" {
		return m.clusterID
	}
	return strings.ToLower(m.local)
}

func (m *model) reachable(cluster string) bool {
	if cluster == m.localID() || len(m.gateways) == 0 {
		return true
	}
	for _, g := range m.gateways {
		for _, cable := range g.Status.Cables {
			if cable.ClusterID == cluster && cable.State == v1alpha1.CableUp {
				return true
			}
		}
	}
	return false
}

func modelUsableAddresses(texts []string) (list []netip.Addr) {
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		addr = addr.Unmap()
		if err == nil && addr.Zone() == "" && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsMulticast() && !addr.IsUnspecified() {
			list = append(list, addr)
		}
	}
	return list
}

var modelLabelPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func modelIsLabel(s string) bool { return modelLabelPattern.MatchString(s) }

func modelIsClusterID(s string) bool {
	return !slices.ContainsFunc(strings.Split(s, "."), func(label string) bool { return !modelIsLabel(label) })
}

// addresses gives the A and AAAA records of a name.
func (m *model) addresses(list []netip.Addr) modelRecords {
	return func(qtype uint16) (r modelReply) {
		for _, addr := range list {
			if addr.Is4() && qtype == dns.TypeA || addr.Is6() && qtype == dns.TypeAAAA {
				r.answer = append(r.answer, fmt.Sprintf("%d %s %s", m.ttl, dns.Type(qtype), addr))
			}
		}
		return r
	}
}

func (m *model) glue(owner string, list []netip.Addr) (texts []string) {
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		for _, text := range m.addresses(list)(qtype).answer {
			texts = append(texts, owner+" "+text)
		}
	}
	return texts
}

func (m *model) srv(p modelParty, target string, wanted func(modelPort) bool) (r modelReply) {
	for _, port := range p.ports {
		if wanted(port) {
			r.answer = append(r.answer, fmt.Sprintf("%d SRV 0 %d %d %s", m.ttl, p.weight, port.number, target))
			r.additional = m.glue(target, p.addresses)
		}
	}
	return r
}

func modelOf(r modelRecords) modelNode {
	return modelNode{pool: func() []modelRecords { return []modelRecords{r} }}
}

func modelSrvOnly(srv func() modelReply) modelRecords {
	return func(qtype uint16) modelReply {
		if qtype == dns.TypeSRV {
			return srv()
		}
		return modelReply{}
	}
}

func modelUnion(pool []modelRecords, qtype uint16) (all modelReply) {
	for _, one := range pool {
		r := one(qtype)
		all.answer = append(all.answer, r.answer...)
		all.additional = append(all.additional, r.additional...)
	}
	return all
}

// modelUnder writes a name that is relative to others, down to a zone.
func modelUnder(names ...string) string {
	return strings.Replace(strings.Join(names, "."), "..", ".", 1) // the zone may be the root
}
