package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	Port      uint16
	// Driver is "wireguard"; PublicKey is in its form.
	Driver, PublicKey string
	// Endpoints in this cluster, own and mirrored.
	Endpoints []v1alpha1.Endpoint
	// UnderlayMTU is the least MTU on the way to any peer, as far as this node's routes tell.
	UnderlayMTU int
	// Overhead of the driver in bytes.
	Overhead int
	// Attempts is, by Endpoint, how many times in a row an address of it was tried without an answer.
	Attempts map[string]int
}

// Name of this gateway's Endpoint.
func (s Snapshot) name() string { return EndpointName(s.ClusterID, s.Node) }

// EndpointName is the name of the Endpoint of a gateway node.
func EndpointName(clusterID, node string) string { return clusterID + "." + node }

// Desired is what this gateway should say and have.
type Desired struct {
	Endpoint v1alpha1.EndpointSpec
	Cables   cable.Config
	// Problems in words, sorted.
	Problems []string
}

// minMTU is the least that IPv6 needs of a link.
const minMTU = 1280

// Plan is the whole decision of the gateway. Every gateway of another cluster is a peer, so that every cable can be
// probed; prefixes go only where both ends are the first of their clusters: a prefix has one peer in WireGuard, and
// packets from it are dropped when they come from another.
func Plan(s Snapshot) Desired {
	desired := Desired{
		Endpoint: v1alpha1.EndpointSpec{
			ClusterID: s.ClusterID, ClusterUID: s.ClusterUID, Node: s.Node, Driver: s.Driver,
			Addresses: texts(s.Addresses), Port: int32(s.Port), PublicKey: s.PublicKey, Prefixes: texts(s.Prefixes),
		},
		Cables: cable.Config{Port: s.Port, MTU: s.UnderlayMTU - s.Overhead},
	}
	// Until our own Endpoint has come back from the API server we count as if it had: the others will see it like this.
	endpoints := slices.DeleteFunc(slices.Clone(s.Endpoints), func(e v1alpha1.Endpoint) bool { return e.Name == s.name() })
	own := v1alpha1.Endpoint{Spec: desired.Endpoint}
	own.Name = s.name()
	plan := cables.Decide(cables.Input{
		ClusterID: s.ClusterID, Prefixes: s.Prefixes, Nodes: s.Addresses, Endpoints: append(endpoints, own),
	})
	desired.Problems = plan.Problems
	if len(s.Addresses) == 0 {
		desired.Problems = append(desired.Problems, "this node has no address for peers: give --addresses")
	}
	if desired.Cables.MTU < minMTU {
		desired.Problems = append(desired.Problems, fmt.Sprintf("MTU %d towards the peers leaves %d in the tunnel, less than IPv6 needs (%d)",
			s.UnderlayMTU, desired.Cables.MTU, minMTU))
	}
	port := map[string]uint16{}
	for _, endpoint := range s.Endpoints {
		port[endpoint.Name] = uint16(endpoint.Spec.Port)
	}
	for _, cluster := range plan.Clusters {
		for i, remote := range cluster.Gateways {
			if remote.Driver != s.Driver {
				desired.Problems = append(desired.Problems, fmt.Sprintf("cluster %s: Endpoint %s wants driver %s, this gateway has %s: no cable",
					remote.ClusterID, remote.Name, remote.Driver, s.Driver))
				continue
			}
			peer := cable.Peer{Endpoint: remote.Name, ClusterID: remote.ClusterID, PublicKey: remote.PublicKey}
			if plan.Locals[0].Name == s.name() && i == 0 {
				peer.Prefixes = cluster.Prefixes
			}
			if n := len(remote.Addresses); n > 0 {
				peer.Address = netip.AddrPortFrom(remote.Addresses[s.Attempts[remote.Name]%n], port[remote.Name])
			}
			desired.Cables.Peers = append(desired.Cables.Peers, peer)
		}
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
	fmt.Fprintf(&b, "endpoint %s: driver %s, addresses %v, port %d, public key %s, CIDRs %v\n",
		EndpointName(e.ClusterID, e.Node), e.Driver, e.Addresses, e.Port, e.PublicKey, e.Prefixes)
	b.WriteString(d.Cables.String())
	for _, problem := range d.Problems {
		b.WriteString("problem: " + problem + "\n")
	}
	return b.String()
}
