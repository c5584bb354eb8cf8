package cables

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// The drivers, by their names in flags and Endpoints. Another one needs a name and a link prefix here, a place in the
// Endpoint's enumeration, and a cable.Driver that the gateway makes by that name.
const (
	WireGuard = "wireguard"
	IPsec     = "ipsec"
	VXLAN     = "vxlan"
)

// Anchor is the one IPv4 address of every device of ours, the same on all nodes and never in a packet: on a device without any, the
// kernel's reverse path filter is strict even where it is set to loose, and drops what comes back by another gateway. 250.87 is 0xFA57.
var Anchor = netip.MustParsePrefix("169.254.250.87/32")

// LinkPrefix begins the names of the devices of a driver's cables: a mark by which the driver knows its own, also those that
// a crashed process left. All devices of Fastnet begin with "fastnet-"; the route agent's with "fastnet-vx", so those of the
// driver vxlan, which sends unencrypted, begin with "fastnet-u".
func LinkPrefix(driver string) string {
	return map[string]string{WireGuard: "fastnet-w", IPsec: "fastnet-i", VXLAN: "fastnet-u"}[driver]
}

// Drivers that there are, in the order of their names.
func Drivers() []string { return []string{IPsec, VXLAN, WireGuard} }

// CheckDrivers says what is wrong with a list of drivers, the preferred first.
func CheckDrivers(names []string, allowUnencrypted bool) error {
	if len(names) == 0 {
		return errors.New("no driver")
	}
	for i, name := range names {
		switch {
		case !slices.Contains(Drivers(), name):
			return fmt.Errorf("%q is none of %s", name, strings.Join(Drivers(), ", "))
		case slices.Contains(names[:i], name):
			return fmt.Errorf("%s is there twice", name)
		case name == VXLAN && !allowUnencrypted:
			return errors.New("vxlan sends the packets of pods unencrypted, for all between the clusters to read and to forge: give --allow-unencrypted too if that is wanted")
		}
	}
	return nil
}

// IsLink says whether a device may be that of a cable, by its name.
func IsLink(name string) bool {
	return slices.ContainsFunc(Drivers(), func(driver string) bool { return strings.HasPrefix(name, LinkPrefix(driver)) })
}

// LinkName is the name of the device that leads to an Endpoint, the same on every gateway node. Linux takes 15 bytes: 9 are
// the prefix, 6 are 30 bits of a hash. Among a hundred Endpoints two have the same one in one clusterset of 200,000;
// Decide finds it.
func LinkName(driver, endpoint string) string { return LinkPrefix(driver) + linkHash(endpoint) }

func linkHash(endpoint string) string {
	sum := sha256.Sum256([]byte("fastnet cable " + endpoint))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:6])
}

// End is what a gateway has at its end of a cable that is a segment with two stations: 64 bits of a hash of its Endpoint's
// name in a link-local address, 46 in a MAC.
type End struct {
	Addr netip.Addr
	MAC  string
}

// Inner is the range of the gateways' addresses inside IPsec tunnels: "FASTN" in ASCII. No cluster may have pods or services
// there.
func Inner() netip.Prefix { return netip.MustParsePrefix("fd46:4153:544e::/48") }

// EndOf an Endpoint.
func EndOf(endpoint string) End {
	sum := sha256.Sum256([]byte("fastnet cable end " + endpoint))
	addr := [16]byte{0: 0xfe, 1: 0x80}
	copy(addr[8:], sum[:8])
	mac := net.HardwareAddr(sum[8:14])
	mac[0] = mac[0]&^1 | 2 // locally administered, no group
	return End{Addr: netip.AddrFrom16(addr), MAC: mac.String()}
}

// SegmentID is the VXLAN network identifier of the cable between two Endpoints, the same from both ends. Two cables with the
// same one do not meet: each has a port of its own.
func SegmentID(a, b string) int {
	sum := sha256.Sum256([]byte("fastnet cable segment " + min(a, b) + " " + max(a, b)))
	return int(binary.BigEndian.Uint32(sum[:4]) >> 8)
}

// drivers of the gateway on this node.
func (in Input) drivers() []string {
	if len(in.Drivers) > 0 {
		return in.Drivers
	}
	for _, endpoint := range in.Endpoints {
		if endpoint.Spec.ClusterID == in.ClusterID && endpoint.Spec.Node == in.Node && in.Node != "" && endpoint.DeletionTimestamp == nil {
			return names(endpoint.Spec.Drivers)
		}
	}
	return nil
}

func names(drivers []v1alpha1.EndpointDriver) (names []string) {
	for _, driver := range drivers {
		names = append(names, driver.Name)
	}
	return names
}

// common is the rule by which two gateways choose their driver: the order of the one whose cluster has the smaller ID, and of
// that the first that the other has too. Both ends come to the same; "" is none.
func common(aCluster string, a []string, bCluster string, b []string) string {
	if bCluster < aCluster {
		a, b = b, a
	}
	if i := slices.IndexFunc(a, func(driver string) bool { return slices.Contains(b, driver) && LinkPrefix(driver) != "" }); i >= 0 {
		return a[i]
	}
	return ""
}

// meet fills in how this node and a remote gateway meet, and says what is in the way.
func (r *Remote) meet(clusterID string, own []string, theirs []v1alpha1.EndpointDriver, owner bool) (problem string) {
	r.Driver = common(clusterID, own, r.ClusterID, names(theirs))
	if r.Driver == "" {
		return fmt.Sprintf("cluster %s: Endpoint %s has the drivers %s, this gateway has %s: no cable; let both clusters have one in common (kubectl fastnet join --driver)",
			r.ClusterID, r.Name, strings.Join(names(theirs), ","), strings.Join(own, ","))
	}
	driver := theirs[slices.IndexFunc(theirs, func(d v1alpha1.EndpointDriver) bool { return d.Name == r.Driver })]
	r.PublicKey = driver.PublicKey
	if driver.Port > 0 && driver.Port <= 65535 {
		r.DriverPort = uint16(driver.Port)
	}
	if owner {
		r.Link = LinkName(r.Driver, r.Name)
		if r.Driver != WireGuard {
			r.Via = EndOf(r.Name).Addr
		}
	}
	return ""
}
