// Package dnsserver runs a CoreDNS that was built, for tests: a process of its own with a Corefile, as users have it.
package dnsserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Process is a program that runs, or ran.
type Process struct {
	command *exec.Cmd
	ended   chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// Write takes what the program prints.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// Output is what the program has printed so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Start starts a program in a folder. It ends with the test at the latest.
func Start(t testing.TB, dir, program string, args ...string) *Process {
	t.Helper()
	p := &Process{command: exec.Command(program, args...), ended: make(chan struct{})}
	p.command.Dir, p.command.Stdout, p.command.Stderr = dir, p, p
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.command.Wait() // how it ended is in ProcessState
	}()
	t.Cleanup(func() {
		p.command.Process.Kill() // most have ended before
		<-p.ended
		if t.Failed() {
			out := p.Output()
			t.Logf("%s printed, last:\n%s", filepath.Base(program), out[max(0, len(out)-4000):])
		}
	})
	return p
}

// ID is the process's.
func (p *Process) ID() int { return p.command.Process.Pid }

// Signal sends it a signal.
func (p *Process) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// Ended tells whether it has.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// ExitCode waits for its end.
func (p *Process) ExitCode(t testing.TB, patience time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.command.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("still runs after %v", patience)
		return 0
	}
}

// Build builds a program of this module, or of one that it requires, as releases are built.
func Build(ctx context.Context, to, ldflags, pkg string) error {
	command := exec.CommandContext(ctx, "go", "build", "-ldflags", ldflags, "-o", to, pkg)
	command.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the Makefile: what is compiled is shared with it
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Write writes a file, below a folder that the test has.
func Write(t testing.TB, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Kubeconfig leads to an API server that asks nobody who he is.
func Kubeconfig(server string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`, server)
}

// Loopback is an address of this test process. On 127.0.0.1 every connection of the machine takes ports, and may take the one
// that was free a moment ago.
func Loopback() string {
	return fmt.Sprintf("127.%d.%d.1", 1+os.Getpid()>>8%254, os.Getpid()&0xff)
}

// FreePort is a port of that address that nobody has, by UDP nor by TCP.
func FreePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		listener, err := net.Listen("tcp", net.JoinHostPort(Loopback(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close() // only at the end, so that no port is offered twice
		address, err := net.ResolveTCPAddr("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if packets, err := net.ListenPacket("udp", address.String()); err == nil {
			packets.Close()
			return strconv.Itoa(address.Port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

// Ask asks a server one question, once.
func Ask(network, server, name string, qtype uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.SetEdns0(1232, false)
	local := net.ParseIP(Loopback()) // or the kernel would choose 127.0.0.1
	client := &dns.Client{Net: network, Dialer: &net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.UDPAddr{IP: local}}}
	if network == "tcp" {
		client.Dialer.LocalAddr = &net.TCPAddr{IP: local}
	}
	client.Timeout = 2 * time.Second
	reply, _, err := client.Exchange(m, server)
	return reply, err
}

// Get reads a page.
func Get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return string(body), err
}

// Eventually waits until a check gives no error.
func Eventually(t testing.TB, patience time.Duration, check func() error) {
	t.Helper()
	deadline := time.After(patience)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within %v: %v", patience, err)
		case <-ticker.C:
		}
	}
}
