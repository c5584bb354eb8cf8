// Package cable is the contract between the gateway and its drivers. A driver takes the whole set of cables that it
// should have and reports what exists; it has no connect and no disconnect. To the driver a restart, a changed peer and
// a first start are the same thing.
package cable

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Config is the set of cables of one driver that a gateway should have.
type Config struct {
	// Self is the name of this gateway's Endpoint.
	Self string
	// Peers, one for each Endpoint of another cluster that this driver leads to, sorted by name.
	Peers []Peer
}

// Peer is the other end of a cable.
type Peer struct {
	// Driver by its name.
	Driver string
	// Endpoint is the name of the peer's Endpoint object.
	Endpoint  string
	ClusterID string
	// Link is the name of the device that leads to it.
	Link string
	// Port (UDP) at which we await it.
	Port uint16
	// MTU of the device, in bytes.
	MTU int
	// PublicKey in the driver's own form.
	PublicKey string
	// Address to reach it at; invalid while none is known: then the peer may still come to us.
	Address netip.AddrPort
	// DriverPort is the driver's own port at the peer, 0 where it has none.
	DriverPort uint16
	// Leaving: it has said that it goes. When it is back it begins, as it can.
	Leaving bool
	// Prefixes that lie behind the peer. Those of two peers are the same where both are gateways of one cluster. What comes
	// from the peer with another source is dropped.
	Prefixes []netip.Prefix
}

// Cable is one that exists.
type Cable struct {
	Endpoint, ClusterID string
	// Driver with its implementation; who asks a driver knows it, and it is left empty.
	Driver string
	// PeerAddress that packets go to now, as the driver has learned it.
	PeerAddress netip.AddrPort
	// Translated: that address is none of those at which the peer says that it is. No driver needs to know.
	Translated bool
	// Local and Probe are the addresses of this end and of the peer inside the cable, with the device as their zone; invalid
	// where the kernel has no IPv6.
	Local, Probe netip.Addr
	// LastHandshake is zero before the first, and where the driver has none.
	LastHandshake time.Time
	// Sent and Received bytes of the cable, headers of the tunnel included.
	Sent, Received int64
	// Packets that have gone through the cable either way, probes and the like included.
	Packets uint64
}

// Report is what a driver has.
type Report struct {
	// Driver with its implementation: "wireguard" or "wireguard (in-process)".
	Driver string
	Cables []Cable
}

// Driver makes cables of one kind.
type Driver interface {
	// PublicKey of this gateway, in the driver's form, "" where the driver has none. It makes and keeps a key where there is
	// none, and fails on one that it cannot read: a new key in its place would cut every cable.
	PublicKey() (string, error)
	// Apply makes the cables exist that the configuration names, and no others. Cables that stay are not disturbed.
	Apply(context.Context, Config) error
	// Report says what exists.
	Report(context.Context) (Report, error)
	// Remove takes everything away, the key too: the uninstall.
	Remove(context.Context) error
	// Close ends what runs inside this process and leaves the rest as it is, for the next process.
	Close() error
}

// String is the configuration as text, for goldens and the debug page.
func (c Config) String() string {
	var b strings.Builder
	for _, peer := range c.Peers {
		address := "(none)"
		if peer.Address.IsValid() {
			address = peer.Address.String()
		}
		key := ""
		if peer.PublicKey != "" {
			key = " public key " + peer.PublicKey + ","
		}
		if peer.DriverPort != 0 {
			key += fmt.Sprintf(" driver's port %d,", peer.DriverPort)
		}
		if peer.Leaving {
			address += " (leaving)"
		}
		fmt.Fprintf(&b, "peer %s (cluster %s): %s, link %s, listen port %d, mtu %d,%s address %s, allowed %v\n",
			peer.Endpoint, peer.ClusterID, peer.Driver, peer.Link, peer.Port, peer.MTU, key, address, peer.Prefixes)
	}
	return b.String()
}
