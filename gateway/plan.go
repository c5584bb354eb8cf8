package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/cables"
)

// Snapshot is all that a plan depends on.
type Snapshot struct {
	ClusterID, ClusterUID, Node string
	// Prefixes of this cluster.
	Prefixes []netip.Prefix
	// Addresses of this node for peers, the preferred first.
	Addresses []netip.Addr
	// Ports that peers have, see allocate; BasePort is the first that one may get.
	Ports    Ports
	BasePort uint16
	// Drivers as the Endpoint names them, and the ProbeKey beside them.
	Drivers  []v1alpha1.EndpointDriver
	ProbeKey string
	// Now is the time; only ports that nobody needs any more look at it.
	Now time.Time
	// Endpoints in this cluster, own and mirrored.
	Endpoints []v1alpha1.Endpoint
	// UnderlayMTU is the least MTU on the way to each peer, by Endpoint, as far as this node's routes tell.
	UnderlayMTU map[string]int
	// NoRoute are addresses of peers to which this node has no route, maybe since its link was down.
	NoRoute map[netip.Addr]bool
	// Attempts is, by Endpoint, how many times in a row an address of it was tried without an answer.
	Attempts map[string]int
	// Leaving are Endpoints whose gateways have said that they go, of those that can call us when they are back.
	Leaving map[string]bool
}

// Name of this gateway's Endpoint.
func (s Snapshot) name() string { return EndpointName(s.ClusterID, s.Node) }

// EndpointName is the name of the Endpoint of a gateway node.
func EndpointName(clusterID, node string) string { return clusterID + "." + node }

// Desired is what this gateway should say and have.
type Desired struct {
	Endpoint v1alpha1.EndpointSpec
	Cables   cable.Config
	// Ports to keep.
	Ports Ports
	// Problems in words, sorted.
	Problems []string
	// NoCommonDriver has those of the problems that are about it.
	NoCommonDriver []string
}

// minMTU is the least that IPv6 needs of a link: a device with less loses its IPv6 addresses, those of our probes too.
const minMTU = 1280

// Plan is the whole decision of the gateway: a device for each gateway of another cluster, behind each of them all that is
// believed of its cluster (see package cables), and an Endpoint that tells each at which port it is awaited.
func Plan(s Snapshot) Desired {
	desired := Desired{
		Endpoint: v1alpha1.EndpointSpec{
			ClusterID: s.ClusterID, ClusterUID: s.ClusterUID, Node: s.Node, Drivers: s.Drivers, ProbeKey: s.ProbeKey,
			Addresses: texts(s.Addresses), Port: int32(s.BasePort), Prefixes: texts(s.Prefixes),
		},
		Cables: cable.Config{Self: s.name()},
	}
	problem := func(format string, args ...any) {
		desired.Problems = append(desired.Problems, fmt.Sprintf(format, args...))
	}
	var drivers []string
	for _, driver := range s.Drivers {
		drivers = append(drivers, driver.Name)
	}
	plan := cables.Decide(cables.Input{ClusterID: s.ClusterID, Node: s.Node, Drivers: drivers, Prefixes: s.Prefixes, Nodes: s.Addresses, Endpoints: s.Endpoints})
	desired.Problems, desired.NoCommonDriver = plan.Problems, plan.NoCommonDriver
	if len(s.Addresses) == 0 {
		problem("this node has no address for peers: give --addresses")
	}
	for _, cluster := range plan.Clusters {
		for _, remote := range cluster.Gateways {
			if remote.Link == "" {
				continue // a problem that is named already
			}
			peer := cable.Peer{
				Driver: remote.Driver, Endpoint: remote.Name, ClusterID: remote.ClusterID, Link: remote.Link,
				PublicKey: remote.PublicKey, DriverPort: remote.DriverPort, Prefixes: cluster.Prefixes, Leaving: s.Leaving[remote.Name],
			}
			// Who has not told yet at which port we are awaited may come to us.
			addresses := slices.DeleteFunc(slices.Clone(remote.Addresses), func(a netip.Addr) bool { return s.NoRoute[a] })
			if len(addresses) == 0 {
				addresses = remote.Addresses
			}
			if n := len(addresses); n > 0 && remote.Ports[s.name()] != 0 {
				peer.Address = netip.AddrPortFrom(addresses[s.Attempts[remote.Name]%n], remote.Ports[s.name()])
			}
			peer.MTU = s.UnderlayMTU[remote.Name] - overhead(remote.Driver, peer.Address.Addr())
			if peer.MTU < minMTU {
				problem("MTU %d towards %s leaves %d in the tunnel, less than IPv6 needs: it has %d, and large packets are sent in fragments, or lost with vxlan over IPv6",
					s.UnderlayMTU[remote.Name], remote.Name, peer.MTU, minMTU)
				peer.MTU = minMTU
			}
			desired.Cables.Peers = append(desired.Cables.Peers, peer)
		}
	}
	slices.SortFunc(desired.Cables.Peers, func(a, b cable.Peer) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	var names []string
	for _, peer := range desired.Cables.Peers {
		names = append(names, peer.Endpoint)
	}
	desired.Ports = allocate(s.Ports, names, s.BasePort, s.Now)
	desired.Cables.Peers = slices.DeleteFunc(desired.Cables.Peers, func(p cable.Peer) bool {
		if desired.Ports[p.Endpoint].Port == 0 {
			problem("no UDP port from %d on is left for %s: no cable", s.BasePort, p.Endpoint)
			return true
		}
		return false
	})
	for i, peer := range desired.Cables.Peers {
		if desired.Endpoint.Ports == nil {
			desired.Endpoint.Ports = map[string]int32{}
		}
		port := desired.Ports[peer.Endpoint].Port
		desired.Cables.Peers[i].Port, desired.Endpoint.Ports[peer.Endpoint] = port, int32(port)
	}
	slices.Sort(desired.Problems)
	return desired
}

func texts[T fmt.Stringer](values []T) []string {
	out := []string{}
	for _, value := range values {
		out = append(out, value.String())
	}
	return out
}

// String is the desired state for goldens and the debug page.
func (d Desired) String() string {
	var b strings.Builder
	e := d.Endpoint
	var drivers []string
	for _, driver := range e.Drivers {
		text := driver.Name
		if driver.PublicKey != "" {
			text += " (" + driver.PublicKey + ")"
		}
		if driver.Port != 0 {
			text += fmt.Sprintf(" at port %d", driver.Port)
		}
		drivers = append(drivers, text)
	}
	fmt.Fprintf(&b, "endpoint %s: drivers %v, addresses %v, ports from %d %v, probe key %s, CIDRs %v\n",
		EndpointName(e.ClusterID, e.Node), drivers, e.Addresses, e.Port, e.Ports, e.ProbeKey, e.Prefixes)
	b.WriteString(d.Cables.String())
	for _, problem := range d.Problems {
		b.WriteString("problem: " + problem + "\n")
	}
	return b.String()
}
