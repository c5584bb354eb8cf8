package wireguard

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/test/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// far lies between two ports of this host: what comes to a way leaves by the other one 300 ms later, for the port behind the first.
func far(t *testing.T, ways, ports [2]netip.AddrPort) {
	t.Helper()
	var sockets [2]*net.UDPConn
	for i, way := range ways {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(way))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socket.Close() })
		sockets[i] = socket
	}
	for i, in := range sockets {
		go func() {
			for buffer := make([]byte, 2048); ; {
				n, err := in.Read(buffer)
				if err != nil {
					return
				}
				packet := bytes.Clone(buffer[:n])
				time.AfterFunc(300*time.Millisecond, func() { _, _ = sockets[1-i].WriteToUDPAddrPort(packet, ports[i]) })
			}
		}()
	}
}

// Both ends of a cable begin at the same moment, on a long way: their initiations cross. There are packets for the cable at all
// times, as of probes.
func TestCrossingInitiations(t *testing.T) {
	netns.RequireRoot(t)
	netns.Sh(t, "ip link set lo up")
	for name, host := range map[string]netip.Addr{"ipv4": netip.MustParseAddr("127.0.0.1"), "ipv6": netip.IPv6Loopback()} {
		t.Run(name, func(t *testing.T) {
			type end struct {
				*Driver
				key string
			}
			ends := [2]*end{{}, {}}
			ports := [2]netip.AddrPort{netip.AddrPortFrom(host, 51001), netip.AddrPortFrom(host, 51002)}
			ways := [2]netip.AddrPort{netip.AddrPortFrom(host, 52001), netip.AddrPortFrom(host, 52002)}
			far(t, ways, ports)
			for i, e := range ends {
				prefix := "fastnet-" + string(rune('a'+i))
				e.Driver = New(Config{LinkPrefix: prefix, KeyFile: filepath.Join(t.TempDir(), "key"), Log: slog.New(slog.DiscardHandler)})
				t.Cleanup(func() {
					if err := e.Remove(context.Background()); err != nil {
						t.Error(err)
					}
				})
				var err error
				if e.key, err = e.PublicKey(); err != nil {
					t.Fatal(err)
				}
			}
			apply := func(withAddress bool) {
				for i, e := range ends {
					other := ends[1-i]
					peer := cable.Peer{Endpoint: "peer", ClusterID: "c", Link: e.config.LinkPrefix + "peer", Port: ports[i].Port(), MTU: 1400, PublicKey: other.key}
					if withAddress {
						peer.Address = ways[1-i]
					}
					if err := e.Apply(t.Context(), cable.Config{Self: "self", Peers: []cable.Peer{peer}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			apply(false) // making the devices takes its time
			apply(true)
			began := time.Now()
			netns.Eventually(t, 30*time.Second, "a handshake on both sides", func() error {
				met := 0
				for _, e := range ends {
					report, err := e.Report(t.Context())
					if err != nil {
						return err
					}
					for _, c := range report.Cables {
						if conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.Probe, 9))); err == nil {
							_, _ = conn.Write([]byte("packet"))
							conn.Close()
						}
						if !c.LastHandshake.IsZero() {
							met++
						}
					}
				}
				if met < len(ends) {
					return errors.New("none")
				}
				return nil
			})
			t.Logf("after %s", time.Since(began).Round(time.Millisecond))
		})
	}
}
