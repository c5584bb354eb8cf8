package main

import (
	"context"
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

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/test/bench/ground"
)

// server is a peer that runs.
type server struct {
	peer
	site
	command *exec.Cmd
	exited  chan struct{}
	started time.Time
}

func (s *server) address() string { return net.JoinHostPort(s.ip, s.port) }

// place finds a peer a folder, an address and a port.
func (b *bench) place(name string) (peer, site, error) {
	dir, err := os.MkdirTemp(b.tmp, strings.Map(func(r rune) rune {
		if r == ' ' || r == '/' {
			return '-'
		}
		return r
	}, name))
	if err != nil {
		return peer{}, site{}, err
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		return peer{}, site{}, err
	}
	s := site{dir: dir, ip: ground.Loopback(), kubeconfig: b.kubeconfig}
	s.port, err = ground.FreePort(s.ip)
	return peerNamed(name), s, err
}

// launch starts a peer's process, on the one given processor, or with -1 on all; it does not wait for answers.
func (b *bench) launch(name string, processor int, kubeconfig string) (*server, error) {
	p, s, err := b.place(name)
	if err != nil {
		return nil, err
	}
	if kubeconfig != "" {
		s.kubeconfig = kubeconfig
	}
	text, err := p.config(b, s)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, "config")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return nil, err
	}
	args := p.command(b, path, s)
	if _, err := exec.LookPath(args[0]); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	processors := b.processors
	if processor >= 0 {
		processors = []int{processor}
	}
	var list []string
	for _, p := range processors {
		list = append(list, strconv.Itoa(p))
	}
	command := exec.Command("taskset", append([]string{"-c", strings.Join(list, ",")}, args...)...)
	command.Stdout, command.Stderr, command.Dir = log, log, s.dir
	// The server ends with this program, however this program ends.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := &server{peer: p, site: s, command: command, exited: make(chan struct{}), started: time.Now()}
	if err := command.Start(); err != nil {
		return nil, err
	}
	go func() {
		command.Wait()
		close(started.exited)
	}()
	return started, nil
}

// start starts a peer on one processor, or with -1 on all, waits until it answers, and compares a sample of its answers in
// each case with the right ones. A peer that is fixed only has to answer.
func (b *bench) start(name string, processor int, kubeconfig string, cases ...queryCase) (*server, error) {
	s, err := b.launch(name, processor, kubeconfig)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*server, error) {
		s.stop()
		return nil, fmt.Errorf("%s: %w%s", name, err, ground.Tail(filepath.Join(s.dir, "log")))
	}
	for _, c := range cases {
		questions := s.questions(b.world, c)[:100]
		if err := s.await(b.ctx, time.Minute, questions[0], c.edns); err != nil {
			return fail(err)
		}
		for _, q := range questions {
			reply, err := s.exchange(q, c.edns)
			if err != nil {
				return fail(err)
			}
			if err := q.check(reply); err != nil && !s.fixed {
				return fail(fmt.Errorf("wrong answer: %w", err))
			}
		}
	}
	return s, nil
}

// questions of a case, as this peer can answer them.
func (s *server) questions(w *world, c queryCase) []question {
	if s.zone == clusterZone {
		// Plain Services stand for all of them: fewer names, and no others.
		plain := *w
		plain.clusterIP = w.plain
		w = &plain
	}
	return c.draw(w, s.zone)
}

// await waits until the server gives the right answer, or for a fixed one any.
func (s *server) await(ctx context.Context, timeout time.Duration, q question, edns bool) error {
	return ground.Await(ctx, timeout, s.name+" answers", func() error {
		select {
		case <-s.exited:
			return fmt.Errorf("%w: %v", ground.ErrGone, s.command.ProcessState)
		default:
		}
		reply, err := s.exchange(q, edns)
		if err == nil && !s.fixed {
			err = q.check(reply)
		}
		return err
	})
}

func (s *server) exchange(q question, edns bool) (*dns.Msg, error) {
	client := &dns.Client{Timeout: time.Second, UDPSize: 4096}
	reply, _, err := client.Exchange(q.message(edns), s.address())
	return reply, err
}

// stop ends the server and waits for its end.
func (s *server) stop() {
	s.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(3 * time.Second):
		s.command.Process.Kill()
		<-s.exited
	}
}

// cpu is the processor time, user and system, that the server has taken so far, with its child processes.
func (s *server) cpu() (time.Duration, error) {
	var total time.Duration
	for _, pid := range append(ground.Descendants(s.command.Process.Pid), s.command.Process.Pid) {
		took, err := ground.CPUOf(pid)
		if err != nil {
			return 0, err
		}
		total += took
	}
	return total, nil
}

// undisturbed measures a server that is alone on its processor. Where others of this machine took more than a little of it, the
// measurement is made again, as long as the part's patience lasts.
func (b *bench) undisturbed(s *server, measure func() error) error {
	const little = 0.03
	for {
		start := time.Now()
		busyBefore, err1 := busy(b.processors[0])
		ownBefore, err2 := s.cpu()
		if err := measure(); err != nil {
			return err
		}
		took := time.Since(start)
		busyAfter, err3 := busy(b.processors[0])
		ownAfter, err4 := s.cpu()
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		others := (busyAfter - busyBefore) - (ownAfter - ownBefore)
		if others.Seconds() < little*took.Seconds() {
			return nil
		}
		b.disturbed++
		if b.patience < took {
			return nil
		}
		b.patience -= took
	}
}

// busy is how long a processor has worked so far, for anyone, interrupts left out: those are nobody's.
func busy(processor int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 9 || fields[0] != "cpu"+strconv.Itoa(processor) {
			continue
		}
		const user, nice, system, steal = 1, 2, 3, 8
		var ticks int64
		for _, at := range []int{user, nice, system, steal} {
			n, err := strconv.ParseInt(fields[at], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/stat: %w", err)
			}
			ticks += n
		}
		return time.Duration(ticks) * (time.Second / 100), nil // of USER_HZ, which is 100 everywhere
	}
	return 0, fmt.Errorf("/proc/stat does not tell of processor %d", processor)
}

// resident is the server's resident memory in bytes.
func (s *server) resident() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kilobytes float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kilobytes); n == 1 {
			return kilobytes * 1024
		}
	}
	return 0
}

// allowed are the processors that this program may run on.
func allowed() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("processors: %w", err)
	}
	var processors []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			processors = append(processors, i)
		}
	}
	return processors, nil
}

// confine moves this program and all that it has started to some processors. What starts later inherits them.
func confine(processors []int) error {
	var set unix.CPUSet
	for _, p := range processors {
		set.Set(p)
	}
	for _, pid := range append(ground.Descendants(os.Getpid()), os.Getpid()) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			id, err := strconv.Atoi(filepath.Base(task))
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d to processors %v: %w", id, processors, err)
			}
		}
	}
	return nil
}
