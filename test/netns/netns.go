// Package netns holds tests of the data path: the real gateway and route agent, in network namespaces that stand for the
// nodes of clusters, against the real kernel. A small API server of our own (apiserver.go) stands in for Kubernetes, so
// that a whole clusterset is up in a second or two. Root is needed.
package netns

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fastnet-io/fastnet/test/vm/plan"
)

// Namespace is a network namespace: a node.
type Namespace struct {
	// Name as "ip netns" shows it.
	Name string
}

// RequireRoot skips the test without root, and only then: as root, whatever is missing is a failure.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
}

// emulated: this is the machine of test/vm, whose kernel has everything and whose one processor is emulated.
func emulated() bool { return os.Getenv(plan.Env) != "" }

// patience is how much longer a test waits than it says. The emulated processor is a tenth of a real one, and shared by all
// that a test starts; what is waited for is reached there as well, only later. Times that the programs promise stay as
// they are.
func patience() time.Duration {
	if emulated() {
		return 4
	}
	return 1
}

// RequireKernel skips the test where the kernel lacks what it is about, which is where a script fails that tries it. In the
// machine of test/vm that is a failure.
func RequireKernel(t testing.TB, has, try string) {
	t.Helper()
	RequireRoot(t)
	out, err := exec.Command("unshare", "--net", "sh", "-ec", try).CombinedOutput()
	switch {
	case err == nil:
	case emulated():
		t.Fatalf("the full kernel has no %s: %s", has, out)
	default:
		t.Skipf("this kernel has no %s: make test-kernel has", has)
	}
}

// Main is for TestMain of a package whose tests change the kernel's network: as root it runs them all in a network
// namespace of their own, which has no name and is gone when they end. It returns the exit code.
func Main(m *testing.M) int {
	const inside = "FASTNET_TEST_IN_NETNS"
	if os.Getuid() != 0 || os.Getenv(inside) != "" {
		return m.Run()
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), inside+"=1")
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := self.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a network namespace:", err)
		return 1
	}
	return 0
}

// Sh runs a shell script where the test runs; it must succeed. It returns the output.
func Sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// New makes a namespace with the loopback up and forwarding on, and removes it at the end of the test, when every process
// in it must have ended.
func New(t testing.TB, label string) *Namespace {
	t.Helper()
	n := &Namespace{Name: fmt.Sprintf("fastnet-test-%d-%s", os.Getpid(), label)}
	host(t, "ip", "netns", "add", n.Name)
	t.Cleanup(func() { host(t, "ip", "netns", "delete", n.Name) })
	n.Sh(t, `ip link set lo up
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0`)
	return n
}

// Join connects two namespaces by a veth pair.
func Join(t testing.TB, a *Namespace, linkA string, b *Namespace, linkB string) {
	t.Helper()
	host(t, "ip", "link", "add", linkA, "netns", a.Name, "type", "veth", "peer", "name", linkB, "netns", b.Name)
	a.Sh(t, "ip link set "+linkA+" up")
	b.Sh(t, "ip link set "+linkB+" up")
}

// Command that runs in the namespace. /sys stays the host's: nothing here reads it.
func (n *Namespace) Command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.Name, "--"}, args...)...)
}

// Sh runs a shell script in the namespace, which must succeed, and returns its output.
func (n *Namespace) Sh(t testing.TB, script string) string {
	t.Helper()
	out, err := n.Try(script)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", n.Name, script, err, out)
	}
	return out
}

// Try runs a shell script in the namespace.
func (n *Namespace) Try(script string) (string, error) {
	out, err := n.Command("sh", "-ec", script).CombinedOutput()
	return string(out), err
}

// State of the namespace as operators print it, without what changes by itself (counters, timers).
func (n *Namespace) State(t testing.TB) string {
	t.Helper()
	return n.Sh(t, `ip -d link | sed -E 's/ (qdisc|state|qlen|[a-z_]+_timer) +[^ ]+//g'
		ip rule; ip -6 rule; ip nexthop
		ip route show table all; ip -6 route show table all | sed -E 's/ expires [^ ]+//'
		ip xfrm state 2>/dev/null | sed -n 's/^src/xfrm state src/p'; ip xfrm policy 2>/dev/null | sed -n 's/^src/xfrm policy src/p'
		for save in iptables-nft-save ip6tables-nft-save; do $save 2>/dev/null | grep -v '^#' | sed -E 's/\[[0-9]+:[0-9]+\]/[0:0]/'; done || true
		for link in /proc/sys/net/ipv4/conf/*; do echo $link $(cat $link/rp_filter $link/forwarding); done`)
}

func host(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Eventually waits until the condition holds; it fails with the condition's last words.
func Eventually(t testing.TB, within time.Duration, what string, condition func() error) time.Duration {
	t.Helper()
	within *= patience()
	start := time.Now()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > within {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		<-ticker.C
	}
}

// Process of a role of this test binary (see Main), in a namespace.
type Process struct {
	cmd    *exec.Cmd
	log    lockedBuffer
	done   chan struct{}
	status error
}

// Start runs this very test binary in the namespace in a role, with the arguments in its environment.
func (n *Namespace) Start(t testing.TB, role string, env ...string) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// As in a pod that is not privileged: a /run of its own (the sockets of in-process WireGuard bear the device's name,
	// the same on every node), /proc/sys to read only, and no capability but the two that the chart asks for.
	cmd := n.Command("unshare", "--mount", "sh", "-ec", `mount -t tmpfs fastnet-test /run
		mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
		exec setpriv --bounding-set -all,+net_admin,+net_raw "$0"`, self)
	cmd.Env = append(append(os.Environ(), "FASTNET_TEST_ROLE="+role), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // see Kill
	p := &Process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.status = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.Kill()
		if strings.Contains(p.log.String(), "DATA RACE") {
			t.Errorf("%s in %s has a data race", role, n.Name)
		}
		if t.Failed() {
			t.Logf("log of %s in %s:\n%s", role, n.Name, p.log.String())
		}
	})
	return p
}

// Kill ends the process at once (SIGKILL), and with it those that it has started: an iptables-restore that is under way dies with its
// container too.
func (p *Process) Kill() {
	select {
	case <-p.done: // its number may be another's by now
		return
	default:
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// Wait until the process has ended by itself, with success.
func (p *Process) Wait(t testing.TB, within time.Duration) {
	t.Helper()
	within *= patience()
	select {
	case <-p.done:
		if p.status != nil {
			t.Fatalf("process failed: %v\n%s", p.status, p.log.String())
		}
	case <-time.After(within):
		t.Fatalf("process still runs after %s\n%s", within, p.log.String())
	}
}

// Log of the process so far.
func (p *Process) Log() string { return p.log.String() }

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
