package ground

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that is measured.
type Process struct {
	Started time.Time

	command *exec.Cmd
	log     string
	exited  chan struct{}
}

// Launch starts a program with a log of its own. It ends with this program, however this program ends.
func (g *Ground) Launch(name string, args ...string) (*Process, error) {
	p := &Process{log: filepath.Join(g.dir, name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.command = exec.Command(args[0], args[1:]...)
	p.command.Stdout, p.command.Stderr, p.command.Dir = log, log, g.dir
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.Started = time.Now()
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.command.Wait()
		close(p.exited)
	}()
	g.starter.Cleanup(p.Stop)
	return p, nil
}

// Stop ends the process and waits for its end.
func (p *Process) Stop() {
	p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(3 * time.Second):
		p.command.Process.Kill()
		<-p.exited
	}
}

// Running says why the process no longer runs, with the end of its log, or nil.
func (p *Process) Running() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%w: %v%s", ErrGone, p.command.ProcessState, Tail(p.log))
	default:
		return nil
	}
}

// Log is the end of what the process has said, for an error.
func (p *Process) Log() string { return Tail(p.log) }

// Memory is the process's resident memory in bytes, as it is and at its most.
func (p *Process) Memory() (now, most float64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.command.Process.Pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		var kilobytes float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kilobytes); n == 1 {
			now = kilobytes * 1024
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kilobytes); n == 1 {
			most = kilobytes * 1024
		}
	}
	return now, most
}

// CPU is the processor time, user and system, that this program and those it has started have taken so far, by what they are:
// kube-apiserver, etcd and the like, and the names of the binaries.
func CPU() (map[string]time.Duration, error) {
	all := map[string]time.Duration{}
	for _, pid := range append(Descendants(os.Getpid()), os.Getpid()) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has just ended
		}
		args := strings.Split(string(text), "\x00")
		name := filepath.Base(args[0])
		if name == "kube" && len(args) > 1 {
			name = args[1]
		}
		took, err := CPUOf(pid)
		if err != nil {
			return nil, err
		}
		all[name] += took
	}
	return all, nil
}

// CPUOf is the processor time, user and system, that a process has taken so far, without its child processes.
func CPUOf(pid int) (time.Duration, error) {
	var total time.Duration
	// The scheduler counts in nanoseconds, by thread; threads of these programs do not end.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has just ended
		}
		ran, _, _ := strings.Cut(string(text), " ")
		nanoseconds, err := strconv.ParseInt(ran, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", task, err)
		}
		total += time.Duration(nanoseconds)
	}
	return total, nil
}

// Descendants are the child processes of a process, and theirs.
func Descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		// pid (command) state ppid ...; the command may hold anything.
		head, rest, _ := strings.Cut(string(text), " ")
		fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:])
		child, err1 := strconv.Atoi(head)
		parent, err2 := strconv.Atoi(fields[1])
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], child)
		}
	}
	var all []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		all = append(all, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return all
}

// Loopback is an address of this process. On 127.0.0.1 every connection of the machine takes ports, and may take the one
// that was free a moment ago.
func Loopback() string {
	return fmt.Sprintf("127.%d.%d.1", 1+os.Getpid()>>8%254, os.Getpid()&0xff)
}

// FreePort is a port that nobody has on an address, with either protocol.
func FreePort(address string) (string, error) {
	for range 100 {
		udp, err := net.ListenPacket("udp", net.JoinHostPort(address, "0"))
		if err != nil {
			return "", err
		}
		_, port, err := net.SplitHostPort(udp.LocalAddr().String())
		udp.Close()
		if err != nil {
			return "", err
		}
		if tcp, err := net.Listen("tcp", net.JoinHostPort(address, port)); err == nil {
			return port, tcp.Close()
		}
	}
	return "", errors.New("no free port")
}

// Tail gives the end of a log, on lines of its own.
func Tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\n\t" + strings.Join(lines[max(0, len(lines)-5):], "\n\t")
}
