package gateway

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/fastnet-io/fastnet/internal/kept"
)

// Ports are the UDP ports at which peers are awaited, by the names of their Endpoints. They are kept on the node: a peer
// goes on calling the port that it was told, over restarts of this gateway and with no API server to tell it another.
type Ports map[string]Port

// Port of a peer.
type Port struct {
	Port uint16 `json:"port"`
	// Gone is when the peer was first missed; the port is another's only when portKept has passed.
	Gone *time.Time `json:"gone,omitempty"`
}

// portKept is how long the port of a peer that is gone stays its own. An Endpoint that vanishes for a while, with a node that
// is made anew or a broker that is restored, finds the port that it knows.
const portKept = 24 * time.Hour

// allocate gives each peer a port: the one it has, else the lowest from base on that is nobody's. Ports below base, of an
// earlier configuration, are given up. The result is a new map; a peer for whom no port is left is not in it.
func allocate(have Ports, peers []string, base uint16, now time.Time) Ports {
	ports := Ports{}
	taken := map[uint16]bool{}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		port := have[name]
		switch {
		case port.Port < base || taken[port.Port]:
			continue
		case slices.Contains(peers, name):
			port.Gone = nil
		case port.Gone == nil:
			port.Gone = &now
		case now.Sub(*port.Gone) > portKept:
			continue
		}
		ports[name], taken[port.Port] = port, true
	}
	next := int(base)
	for _, name := range slices.Sorted(slices.Values(peers)) {
		if _, ok := ports[name]; ok {
			continue
		}
		for taken[uint16(next)] && next <= math.MaxUint16 {
			next++
		}
		if next > math.MaxUint16 {
			break
		}
		ports[name], taken[uint16(next)] = Port{Port: uint16(next)}, true
	}
	return ports
}

// portsFile of a gateway; it bears the gateway's name as keyFile does.
func portsFile(stateDir, gateway string) string {
	return filepath.Join(stateDir, "ports-"+gateway+".json")
}

// loadPorts reads what an earlier process kept. A file that cannot be read is no reason to have no cables: peers are then told
// other ports.
func loadPorts(path string) (Ports, error) {
	ports := Ports{}
	if _, err := kept.At(path).Read(&ports); err != nil {
		return Ports{}, fmt.Errorf("ports: %w", err)
	}
	return ports, nil
}

func savePorts(path string, ports Ports) error {
	if err := kept.At(path).Write(ports); err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	return nil
}
