package gateway

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/gateway/ipsec"
	"github.com/fastnet-io/fastnet/gateway/keyfile"
	"github.com/fastnet-io/fastnet/gateway/vxlan"
	"github.com/fastnet-io/fastnet/gateway/wireguard"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/kept"
)

// newDriver makes the driver of a name.
func newDriver(name string, c Config) cable.Driver {
	links, key := cables.LinkPrefix(name), keyFile(c.StateDir, name, EndpointName(c.ClusterID, c.Node))
	switch name {
	case cables.WireGuard:
		return wireguard.New(wireguard.Config{LinkPrefix: links, KeyFile: key, Log: c.Log})
	case cables.IPsec:
		return ipsec.New(ipsec.Config{LinkPrefix: links, ChainPrefix: "FNIPSEC-", KeyFile: key, RunDir: ipsecRunDir, Port: c.IPsecPort, Log: c.Log})
	case cables.VXLAN:
		return vxlan.New(vxlan.Config{LinkPrefix: links, ChainPrefix: "FNVXLAN-", Log: c.Log})
	default:
		panic("no driver " + name) // cables.CheckDrivers has let it through
	}
}

// ipsecRunDir is the gateway's own, as the whole of /var/run is in its pod.
const ipsecRunDir = "/var/run/fastnet-ipsec"

// overhead of a driver in bytes, on the way to a peer's address.
func overhead(driver string, peer netip.Addr) int {
	switch driver {
	case cables.IPsec:
		return ipsec.Overhead(peer)
	case cables.VXLAN:
		return vxlan.Overhead(peer)
	default:
		return wireguard.Overhead
	}
}

// named is a driver with its name in flags and Endpoints.
type named struct {
	cable.Driver
	name string
	port uint16 // of its own, 0 where it has none
}

// drivers of this gateway, the preferred first. To the rest of the gateway they are one.
type drivers []named

func newDrivers(c Config) (all drivers) {
	for _, name := range c.Drivers {
		driver := named{Driver: newDriver(name, c), name: name}
		if name == cables.IPsec {
			driver.port = c.IPsecPort
		}
		all = append(all, driver)
	}
	return all
}

// endpoint is what the Endpoint says of them.
func (d drivers) endpoint() (specs []v1alpha1.EndpointDriver, err error) {
	for _, driver := range d {
		key, err := driver.PublicKey()
		if err != nil {
			return nil, err
		}
		specs = append(specs, v1alpha1.EndpointDriver{Name: driver.name, PublicKey: key, Port: int32(driver.port)})
	}
	return specs, nil
}

// apply gives each driver its peers. A port that goes from one driver to another is free when the first has been told, and if
// that one comes later the next round brings it.
func (d drivers) apply(ctx context.Context, all cable.Config) error {
	var problems []error
	for _, driver := range d {
		config := cable.Config{Self: all.Self}
		for _, peer := range all.Peers {
			if peer.Driver == driver.name {
				config.Peers = append(config.Peers, peer)
			}
		}
		if err := driver.Apply(ctx, config); err != nil {
			problems = append(problems, fmt.Errorf("driver %s: %w", driver.name, err))
		}
	}
	return errors.Join(problems...)
}

func (d drivers) report(ctx context.Context) (all cable.Report, err error) {
	var names []string
	var problems []error
	for _, driver := range d {
		report, err := driver.Report(ctx)
		problems = append(problems, err)
		names = append(names, report.Driver)
		for _, c := range report.Cables {
			c.Driver = report.Driver
			all.Cables = append(all.Cables, c)
		}
	}
	all.Driver = strings.Join(names, ", ")
	return all, errors.Join(problems...)
}

func (d drivers) remove(ctx context.Context) (err error) {
	for _, driver := range d {
		err = errors.Join(err, driver.Remove(ctx))
	}
	return err
}

func (d drivers) close() (err error) {
	for _, driver := range d {
		err = errors.Join(err, driver.Close())
	}
	return err
}

// sweep takes away what drivers have left here that the gateway had in an earlier configuration.
func (d drivers) sweep(ctx context.Context, c Config) error {
	var problems []error
	for _, name := range cables.Drivers() {
		if !slices.ContainsFunc(d, func(driver named) bool { return driver.name == name }) {
			problems = append(problems, newDriver(name, c).Remove(ctx))
		}
	}
	return errors.Join(problems...)
}

// keyFile of a gateway for a purpose: a driver, or nodeProbe. It bears the gateway's name: a node that leaves one cluster for
// another has another key there, and nodes that share a file system, as in a laboratory, do not share a key.
func keyFile(stateDir, purpose, gateway string) string {
	return filepath.Join(stateDir, purpose+"-"+gateway+".key")
}

// nodeProbe is the purpose of the key by which this cluster's nodes know the gateway.
const nodeProbe = "node-probe"

// loadProbeKey reads that key, and makes it where there is none.
func loadProbeKey(path string) (*ecdh.PrivateKey, error) {
	return keyfile.Kind[*ecdh.PrivateKey]{
		Make: func() (string, error) {
			key, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return "", err
			}
			return base64.StdEncoding.EncodeToString(key.Bytes()) + "\n", nil
		},
		Parse: func(text string) (*ecdh.PrivateKey, error) {
			key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
			if err != nil {
				return nil, err
			}
			return ecdh.X25519().NewPrivateKey(key)
		},
	}.Load(path)
}

// files of a gateway, or of all with the name "*", that are no driver's own to remove.
func files(stateDir, gateway string) (paths []string, err error) {
	patterns := []string{portsFile(stateDir, gateway), knownFile(stateDir, gateway), keyFile(stateDir, nodeProbe, gateway)}
	for _, name := range cables.Drivers() {
		patterns = append(patterns, keyFile(stateDir, name, gateway))
	}
	for _, pattern := range patterns {
		found, err := kept.Find(pattern)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", pattern, err)
		}
		paths = append(paths, found...)
	}
	return paths, nil
}

// removeFiles whose absence is no error.
func removeFiles(paths ...string) (err error) {
	for _, path := range paths {
		if removeErr := os.Remove(path); !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}
