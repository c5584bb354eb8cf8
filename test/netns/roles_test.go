package netns

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/fastnet-io/fastnet/gateway"
	"github.com/fastnet-io/fastnet/gateway/ipsec"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
	"github.com/fastnet-io/fastnet/routeagent"
)

// TestMain runs the tests, or, in a process that a test has started in a namespace, one of the roles.
func TestMain(m *testing.M) {
	role := os.Getenv("FASTNET_TEST_ROLE")
	if role == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctrllog.SetLogger(logr.FromSlogHandler(log().Handler()))
	roles := map[string]func(context.Context) error{"api": api, "gateway": runGateway, "routeagent": runRouteAgent, "gateway-cleanup": cleanGateway, "routeagent-cleanup": cleanRouteAgent, "server": server, "stream": stream, "flood": flood, "sniffer": sniffer}
	if err := roles[role](ctx); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
}

// settings come as JSON in the environment.
func settings(into any) error {
	return json.Unmarshal([]byte(os.Getenv("FASTNET_TEST_CONFIG")), into)
}

func log() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func runGateway(ctx context.Context) error {
	config := gateway.Config{Drivers: []string{cables.WireGuard}, Port: 51820, IPsecPort: ipsec.DefaultPort, NodeProbePort: nodeprobe.DefaultPort, HTTPAddress: "127.0.0.1:9471"}
	if err := settings(&config); err != nil {
		return err
	}
	config.Log = log()
	return gateway.Run(ctx, config)
}

func runRouteAgent(ctx context.Context) error {
	config := routeagent.Config{Mode: routeagent.ModeAuto, HTTPAddress: "127.0.0.1:9472", ProbePort: nodeprobe.DefaultPort}
	if err := settings(&config); err != nil {
		return err
	}
	config.Log = log()
	return routeagent.Run(ctx, config)
}

func cleanGateway(ctx context.Context) error {
	config := gateway.Config{Log: log()}
	if err := settings(&config); err != nil {
		return err
	}
	return gateway.Cleanup(ctx, config)
}

func cleanRouteAgent(ctx context.Context) error {
	var config struct{ StateDir string }
	if err := settings(&config); err != nil {
		return err
	}
	return routeagent.CleanupAll(ctx, config.StateDir, log())
}

// api serves an API on a TCP address for the daemons and on a unix socket for the test.
func api(ctx context.Context) error {
	var listen struct{ TCP, Unix string }
	if err := settings(&listen); err != nil {
		return err
	}
	handler := NewAPI()
	failed := make(chan error, 2)
	for network, address := range map[string]string{"tcp": listen.TCP, "unix": listen.Unix} {
		listener, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		go func() { failed <- http.Serve(listener, handler) }()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// echoPort of the server role.
const echoPort = "7007"

// server tells every TCP client who it is and what segments fit, and then echoes.
func server(ctx context.Context) error {
	listener, err := net.Listen("tcp", ":"+echoPort)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		connection, err := listener.Accept()
		if err != nil {
			return nil
		}
		go func() {
			defer connection.Close()
			host, _, _ := net.SplitHostPort(connection.RemoteAddr().String())
			fmt.Fprintf(connection, "%s %d\n", host, segment(connection))
			_, _ = io.Copy(connection, connection)
		}()
	}
}

func segment(connection net.Conn) int {
	raw, err := connection.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0
	}
	size := 0
	_ = raw.Control(func(fd uintptr) { size, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	return size
}

// stream keeps one TCP connection busy until it is told to stop: a line there, the same line back, 50 times a second. An
// error on the connection, which is what must never happen, ends it with failure.
func stream(ctx context.Context) error {
	var target struct{ Address string }
	if err := settings(&target); err != nil {
		return err
	}
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(target.Address, echoPort), 5*time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	reader := bufio.NewReader(connection)
	if _, err := reader.ReadString('\n'); err != nil {
		return err
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for n := 1; ; n++ {
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(connection, line); err != nil {
			return err
		}
		back, err := reader.ReadString('\n')
		if err != nil || back != line {
			return errors.Join(err, fmt.Errorf("line %d came back as %q", n, back))
		}
		fmt.Print(line)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// flood sends 2000 UDP packets of 1000 bytes a second, to wherever they get, for as long as it is told.
func flood(ctx context.Context) error {
	var target struct {
		Address string
		Lasts   time.Duration
	}
	if err := settings(&target); err != nil {
		return err
	}
	connection, err := net.Dial("udp", net.JoinHostPort(target.Address, "9"))
	if err != nil {
		return err
	}
	defer connection.Close()
	end := time.After(target.Lasts)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for packet := make([]byte, 1000); ; {
		for range 10 {
			_, _ = connection.Write(packet) // what comes back is that nobody listens
		}
		select {
		case <-ctx.Done():
			return nil
		case <-end:
			return nil
		case <-ticker.C:
		}
	}
}

// sniffer listens on a link for packets of pods that are not encrypted: in whatever they are wrapped, an IP header with the
// addresses of two of them is there to read. It prints each pair that it sees, once.
func sniffer(ctx context.Context) error {
	var look struct {
		Link string
		// Between are pairs of addresses of pods; a packet that goes from the one to the other, or back, is one.
		Between [][2]netip.Addr
	}
	if err := settings(&look); err != nil {
		return err
	}
	link, err := net.InterfaceByName(look.Link)
	if err != nil {
		return err
	}
	const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the order of the network
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, allProtocols)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: link.Index})
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	}
	if err != nil {
		return err
	}
	type pattern struct {
		text  string
		bytes []byte
		seen  bool
	}
	var patterns []*pattern
	for _, pair := range look.Between {
		for _, way := range [][2]netip.Addr{pair, {pair[1], pair[0]}} {
			patterns = append(patterns, &pattern{text: way[0].String() + " > " + way[1].String(), bytes: append(way[0].AsSlice(), way[1].AsSlice()...)})
		}
	}
	context.AfterFunc(ctx, func() { os.Exit(0) })
	fmt.Println("listening")
	buffer := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buffer)
		if err != nil {
			return err
		}
		for _, p := range patterns {
			if !p.seen && bytes.Contains(buffer[:n], p.bytes) {
				p.seen = true
				fmt.Println("clear:", p.text)
			}
		}
	}
}
