package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nodeSpec is all that a node's init needs to know. It is a file in the state folder.
type nodeSpec struct {
	Hostname  string
	Var       string     // folder of the machine that is the node's /var
	Procs     []string   // files of control groups to write the own process id to
	Files     []nodeFile // below /etc or /var, written before any program starts
	Programs  []program
	Forward   bool              // route packets (IPv4 and IPv6) in the node's network namespace
	Tunables  map[string]string // files in /proc/sys that shall read so in the node; see hideTunables
	Readiness string            // certificate authority file, as the node sees it, for programs that wait for a URL
	// Masquerade are the cluster's pod ranges: a pod's packet to anywhere else leaves under the node's address.
	Masquerade []netip.Prefix
}

type nodeFile struct {
	Path string
	Mode fs.FileMode
	Text string
}

// program is one long-running program of a node, started again when it ends.
type program struct {
	Name string   // argv[0] and the name of its log /var/log/NAME.log
	Path string   // of the executable
	Args []string // without argv[0]
	Env  []string // besides PATH
	Wait []string // starts when all of these are there: "file:PATH", "https://..." answering 200
}

// nodePath is PATH for all programs of a node.
const nodePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// RunNode is the init of a node: process 1 in namespaces of its own, made by [Up] through the hidden command
// `fastnet-lab node-init SPEC`. It gives the node its file systems, starts its programs and waits for every process the
// node leaves behind. It returns only with an error; when it ends, the kernel ends all processes of the node and drops
// the node's mounts.
func RunNode(specFile string) error {
	if os.Getpid() != 1 {
		return errors.New("node-init is for fastnet-lab itself: use `fastnet-lab up`")
	}
	text, err := os.ReadFile(specFile)
	if err != nil {
		return err
	}
	var spec nodeSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("%s: %w", specFile, err)
	}
	for _, file := range spec.Procs {
		if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join control group: %w", err)
		}
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountNode(spec); err != nil {
		return err
	}
	for _, file := range spec.Files {
		if err := os.MkdirAll(filepath.Dir(file.Path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file.Path, []byte(file.Text), file.Mode); err != nil {
			return err
		}
	}
	if spec.Forward {
		if err := setSysctls(routerSysctls); err != nil {
			return err
		}
	}
	for _, pods := range spec.Masquerade {
		if err := masquerade(pods); err != nil {
			return err
		}
	}
	return supervise(spec)
}

// masquerade does what most CNIs do: the world outside knows no pod addresses, so pods go there as their node. What joins
// clusters has to keep its own traffic out of this.
func masquerade(pods netip.Prefix) error {
	tool := "iptables"
	if pods.Addr().Is6() {
		tool = "ip6tables"
	}
	rule := []string{"POSTROUTING", "-s", pods.String(), "!", "-d", pods.String(), "-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", "MASQUERADE"}
	run := func(verb string) error {
		out, err := exec.Command(tool, append([]string{"-w", "-t", "nat", verb}, rule...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", tool, strings.Join(rule, " "), err, lastLine(out))
		}
		return nil
	}
	if run("-C") == nil { // a node that was booted again
		return nil
	}
	return run("-A")
}

// routerSysctls make a network namespace a router. Duplicate address detection is off since it delays each IPv6
// address by a second or more and no address of the lab is ever given twice.
var routerSysctls = [][2]string{
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv6/conf/all/forwarding", "1"},
	{"net/ipv6/conf/default/forwarding", "1"},
	{"net/ipv6/conf/all/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
}

// setSysctls writes settings of the network namespace the calling thread is in.
func setSysctls(settings [][2]string) error {
	for _, setting := range settings {
		if err := os.WriteFile("/proc/sys/"+setting[0], []byte(setting[1]), 0o644); err != nil {
			return fmt.Errorf("set %s: %w", setting[0], err)
		}
	}
	return nil
}

// mountNode gives the node its own view of files: the machine's root, but with
//
//	/proc  of the node's process namespace
//	/sys   of the node's network namespace; the control groups stay those of the machine
//	/run   empty (sockets, /run/netns, /run/xtables.lock)
//	/etc   the machine's, with the node's changes on top, gone when the node ends
//	/var   the node's folder; nothing of the machine's
//
// The mounts pass on to containers that ask for it (shared within the node) and never to the machine.
func mountNode(spec nodeSpec) error {
	type mount struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}
	const layers = "/run/fastnet-lab/etc"
	var failed error
	do := func(m mount) {
		if failed != nil {
			return
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			failed = fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	folder := func(paths ...string) {
		for _, path := range paths {
			if failed == nil {
				failed = os.MkdirAll(path, 0o755)
			}
		}
	}
	do(mount{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""})
	// /var first: the folder may lie below what the next mounts cover.
	folder(spec.Var)
	do(mount{spec.Var, "/var", "", unix.MS_BIND, ""})
	do(mount{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""})
	do(mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"})
	folder("/run/sys", "/run/lock", layers+"/upper", layers+"/work")
	do(mount{"sysfs", "/run/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""})
	do(mount{"/sys/fs/cgroup", "/run/sys/fs/cgroup", "", unix.MS_BIND | unix.MS_REC, ""})
	do(mount{"/run/sys", "/sys", "", unix.MS_MOVE, ""})
	do(mount{"overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=" + layers + "/upper,workdir=" + layers + "/work"})
	folder("/var/lib", "/var/log", "/var/cache", "/var/spool")
	if failed == nil {
		failed = hideTunables(spec.Tunables)
	}
	do(mount{"none", "/", "", unix.MS_REC | unix.MS_SHARED, ""})
	if failed != nil {
		return failed
	}
	_ = os.Remove("/run/sys")
	for name, target := range map[string]string{"/var/run": "/run", "/var/lock": "/run/lock"} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return errors.Join(os.MkdirAll("/var/tmp", 0o755), os.Chmod("/var/tmp", os.ModeSticky|0o777))
}

// hideTunables covers settings of the whole machine with files that read as the node's programs want them, so that they
// change nothing: kubelet sets the memory and panic behaviour of its machine, which here is somebody's.
func hideTunables(tunables map[string]string) error {
	const folder = "/run/fastnet-lab/tunables"
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, value := range tunables {
		cover := filepath.Join(folder, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(cover, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		err := unix.Mount(cover, "/proc/sys/"+name, "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) { // kernels differ in what they have
			return fmt.Errorf("cover %s: %w", name, err)
		}
	}
	return nil
}

// children is the running programs; the init reaps them together with the orphans of the node, for which it is the
// parent, so it cannot use os/exec.
type children struct {
	sync.Mutex
	ended map[int]chan syscall.WaitStatus
}

// supervise runs all programs and never returns but on a failure of its own.
func supervise(spec nodeSpec) error {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	running := &children{ended: map[int]chan syscall.WaitStatus{}}
	ready, err := newWaiter(spec.Readiness)
	if err != nil {
		return err
	}
	for _, p := range spec.Programs {
		go func() {
			for {
				ready.wait(p.Wait)
				began := time.Now()
				status, err := running.run(p)
				fmt.Fprintf(os.Stderr, "%s %s ended: %v %v\n", time.Now().Format(time.RFC3339), p.Name, status, err)
				// One that ends at once is given a second, so that it does not take a whole processor.
				if rest := time.Second - time.Since(began); rest > 0 {
					<-time.After(rest)
				}
			}
		}()
	}
	for range child {
		running.reap()
	}
	return nil
}

// run starts a program and waits for its end.
func (c *children) run(p program) (string, error) {
	log, err := os.OpenFile("/var/log/"+p.Name+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return "", err
	}
	defer null.Close()
	c.Lock() // until the channel is there for the reaper
	pid, err := syscall.ForkExec(p.Path, append([]string{p.Name}, p.Args...), &syscall.ProcAttr{
		Dir:   "/",
		Env:   append([]string{nodePath, "HOME=/root"}, p.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		c.Unlock()
		return "", fmt.Errorf("start %s: %w", p.Path, err)
	}
	end := make(chan syscall.WaitStatus, 1)
	c.ended[pid] = end
	c.Unlock()
	status := <-end
	if status.Signaled() {
		return status.Signal().String(), nil
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus()), nil
}

// reap takes note of every child that has ended.
func (c *children) reap() {
	c.Lock()
	defer c.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if end, ours := c.ended[pid]; ours {
			end <- status
			delete(c.ended, pid)
		}
	}
}

// waiter tells when the things a program needs are there.
type waiter struct{ client *http.Client }

func newWaiter(authorityFile string) (*waiter, error) {
	roots := x509.NewCertPool()
	if authorityFile != "" {
		text, err := os.ReadFile(authorityFile)
		if err != nil {
			return nil, err
		}
		roots.AppendCertsFromPEM(text)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	return &waiter{&http.Client{Transport: transport, Timeout: 5 * time.Second}}, nil
}

// wait returns when all conditions hold.
func (w *waiter) wait(conditions []string) {
	_ = poll(context.Background(), 100*time.Millisecond, func() (bool, error) {
		for _, condition := range conditions {
			if !w.holds(condition) {
				return false, nil
			}
		}
		return true, nil
	})
}

func (w *waiter) holds(condition string) bool {
	if path, ok := strings.CutPrefix(condition, "file:"); ok {
		_, err := os.Stat(path)
		return err == nil
	}
	answer, err := w.client.Get(condition)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// poll calls done each interval until it says true or fails, or the context ends.
func poll(ctx context.Context, interval time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
