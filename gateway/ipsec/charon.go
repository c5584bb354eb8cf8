package ipsec

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Times of the tender.
const (
	// tendEvery is how often it looks what charon has while something is missing, and restEvery while nothing is: each look starts swanctl. When a
	// cable goes the gateway looks at everything, and sets the tender to work again.
	tendEvery, restEvery = 500 * time.Millisecond, 2 * time.Second
	// startAgain is how soon after a start charon is started again.
	startAgain = time.Second
	// comeUp is how long charon may take until it listens, endWithin until it has told its peers goodbye.
	comeUp, endWithin = 5 * time.Second, 3 * time.Second
	// standIn is how long who is not the initiator waits for who is. That one may be unable to reach us, with a translator of
	// addresses before us; or not know that we have begun anew.
	standIn = time.Second
	// comeBack is how long a peer that has said that it goes is left to begin when it is back: what we sent meanwhile would make a second tunnel
	// beside its own, and the change to that loses what comes before charon is ready for it.
	comeBack = 10 * time.Second
	// initiateFor is how long one attempt may take.
	initiateFor = 8 * time.Second
	// asking is how long swanctl may take for anything else.
	asking = 5 * time.Second
)

// tender keeps charon as it should be.
type tender struct {
	config Config
	esp    esp
	key    ed25519.PrivateKey
	own    netip.Addr
	kick   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}
	tries  sync.WaitGroup

	// Only the loop touches these.
	charon  *process
	started time.Time
	loaded  string               // connections that charon has
	missing map[string]time.Time // since when, by link

	mu       sync.Mutex
	self     string
	peers    []peer
	last     error
	sas      []sa
	underway map[string]bool // attempts, by link
}

func newTender(c Config, e esp, key ed25519.PrivateKey) *tender {
	return &tender{config: c, esp: e, key: key, own: Address(public(key)), kick: make(chan struct{}, 1), done: make(chan struct{}),
		missing: map[string]time.Time{}, underway: map[string]bool{}}
}

func (t *tender) set(self string, peers []peer) {
	t.mu.Lock()
	t.self, t.peers = self, peers
	t.mu.Unlock()
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

func (t *tender) start() {
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(t.done)
		for {
			err := t.tend(ctx)
			wait := tendEvery
			if err == nil && t.charon != nil && len(t.missing) == 0 {
				wait = restEvery
			}
			t.mu.Lock()
			if err != nil && (t.last == nil || err.Error() != t.last.Error()) && ctx.Err() == nil {
				t.config.Log.Warn("IPsec", "error", err)
			}
			t.last = err
			t.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-t.kick:
			case <-time.After(wait):
			}
		}
	}()
}

// stop ends charon and removes what it has read.
func (t *tender) stop() error {
	t.cancel()
	<-t.done
	t.tries.Wait()
	if t.charon != nil {
		t.charon.end()
	}
	return os.RemoveAll(t.config.RunDir)
}

// problem is that of the last look.
func (t *tender) problem() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// tunnels to peers, by their Endpoints.
func (t *tender) tunnels() map[string]tunnel {
	t.mu.Lock()
	defer t.mu.Unlock()
	tunnels := map[string]tunnel{}
	for _, p := range t.peers {
		tunnels[p.Endpoint] = tunnel{remote: p.remote()}
		for _, s := range t.sas {
			if s.name == p.Link && s.up && !s.since.Before(tunnels[p.Endpoint].since) {
				tunnels[p.Endpoint] = tunnel{remote: s.remote, since: s.since}
			}
		}
	}
	return tunnels
}

// tend looks once: charon runs, has the connections, and has tunnels for them and no others.
func (t *tender) tend(ctx context.Context) error {
	t.mu.Lock()
	self, peers := t.self, t.peers
	t.mu.Unlock()
	if t.charon != nil && t.charon.ended() {
		t.config.Log.Warn("charon has ended: starting it again", "status", t.charon.status())
		t.charon = nil
	}
	if t.charon == nil {
		t.setSAs(nil)
		if time.Since(t.started) < startAgain {
			return nil // soon
		}
		t.started, t.loaded = time.Now(), ""
		charon, err := t.run(ctx)
		if err != nil {
			return err
		}
		t.charon = charon
	}
	if text := swanctlConf(t.config, t.esp, self, t.own, peers); text != t.loaded {
		if err := t.load(ctx, text, peers); err != nil {
			return err
		}
		t.loaded = text
	}
	out, err := t.swanctl(ctx, asking, "--list-sas", "--raw")
	if err != nil {
		return err
	}
	sas, err := parseSAs(out, time.Now())
	if err != nil {
		return err
	}
	t.setSAs(sas)
	var problems []error
	for _, s := range sas {
		i := slices.IndexFunc(peers, func(p peer) bool { return p.Link == s.name })
		if i < 0 && s.known || i >= 0 && s.up && !s.leads(t.own, peers[i].inner) { // gone, or it has another key now
			_, err := t.swanctl(ctx, asking, "--terminate", "--ike-id", s.id, "--force")
			problems = append(problems, err)
		}
	}
	for _, p := range peers {
		if slices.ContainsFunc(sas, func(s sa) bool { return s.name == p.Link && s.up && s.leads(t.own, p.inner) }) {
			delete(t.missing, p.Link)
			for _, s := range sas { // the peer was first; it need not hear of this one any more
				if s.name == p.Link && s.unheard {
					_, err := t.swanctl(ctx, asking, "--terminate", "--ike-id", s.id, "--force")
					problems = append(problems, err)
				}
			}
			continue
		}
		if t.missing[p.Link].IsZero() {
			t.missing[p.Link] = time.Now()
		}
		if p.Address.IsValid() && time.Since(t.missing[p.Link]) >= patience(self, p) {
			t.try(ctx, p)
		}
	}
	for link := range t.missing {
		if !slices.ContainsFunc(peers, func(p peer) bool { return p.Link == link }) {
			delete(t.missing, link)
		}
	}
	return errors.Join(problems...)
}

// patience is how long a tunnel must be missing before we initiate it.
func patience(self string, p peer) time.Duration {
	switch {
	case p.Leaving:
		return comeBack
	case initiator(self, p.Endpoint):
		return 0
	default:
		return standIn
	}
}

func (t *tender) setSAs(sas []sa) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sas = sas
}

// try to make a tunnel, beside the loop. That a peer does not answer is no problem of ours; its cable is not up.
func (t *tender) try(ctx context.Context, p peer) {
	t.mu.Lock()
	busy := t.underway[p.Link]
	t.underway[p.Link] = true
	t.mu.Unlock()
	if busy {
		return
	}
	t.tries.Go(func() {
		start := time.Now()
		_, err := t.swanctl(ctx, initiateFor, "--initiate", "--child", p.Link, "--timeout", strconv.Itoa(int(initiateFor.Seconds())-1))
		t.config.Log.Debug("IPsec initiated", "endpoint", p.Endpoint, "took", time.Since(start), "error", err)
		if err != nil { // a refusal comes at once; do not ask again at once
			select {
			case <-ctx.Done():
			case <-time.After(startAgain):
			}
		}
		t.mu.Lock()
		delete(t.underway, p.Link)
		t.mu.Unlock()
		select {
		case t.kick <- struct{}{}:
		default:
		}
	})
}

// load writes the connections and their keys, and has charon take them all.
func (t *tender) load(ctx context.Context, text string, peers []peer) error {
	files := map[string]string{"swanctl/swanctl.conf": text}
	keys := map[string]ed25519.PublicKey{"own": public(t.key)}
	for _, p := range peers {
		keys[p.Link] = p.key
	}
	for name, key := range keys {
		text, err := pubPEM(key)
		if err != nil {
			return err
		}
		files["swanctl/pubkey/"+name+".pem"] = text
	}
	for name, text := range files {
		if err := t.write(name, text); err != nil {
			return err
		}
	}
	// swanctl wants a key in a directory of this name. The key itself stays where it is.
	link := filepath.Join(t.config.RunDir, "swanctl/private/own.pem")
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		return err
	}
	path, err := filepath.Abs(t.config.KeyFile)
	if err != nil {
		return err
	}
	if err := os.Symlink(path, link); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	_, err = t.swanctl(ctx, asking, "--load-all", "--noprompt", "--file", filepath.Join(t.config.RunDir, "swanctl/swanctl.conf"))
	return err
}

func (t *tender) write(name, text string) error {
	path := filepath.Join(t.config.RunDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

func (t *tender) environment() []string {
	return append(os.Environ(), "STRONGSWAN_CONF="+filepath.Join(t.config.RunDir, "strongswan.conf"), "SWANCTL_DIR="+filepath.Join(t.config.RunDir, "swanctl"))
}

func (t *tender) swanctl(ctx context.Context, within time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "swanctl", append(args, "--uri", t.config.socket())...)
	cmd.Env = t.environment()
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
		return "", fmt.Errorf("swanctl %s: %w: %s", args[0], err, lines[len(lines)-1])
	}
	return out.String(), nil
}

// ---- the process

// process is charon.
type process struct {
	pid    int
	done   chan struct{}
	result error // when done
}

// places of charon, which is on nobody's PATH.
func places() []string {
	return []string{"/usr/lib/ipsec/charon", "/usr/libexec/ipsec/charon", "/usr/lib/strongswan/charon", "/usr/libexec/strongswan/charon"}
}

// pidFile is where charon is made to keep its number, and refuses to start where that of a living process is. In a container
// that was started anew it may be anybody's.
const pidFile = "/var/run/charon.pid"

func clearPIDFile() {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return
	}
	name, err := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/comm")
	if err != nil || strings.TrimSpace(string(name)) != "charon" {
		_ = os.Remove(pidFile) // where it cannot be removed charon says so
	}
}

// run starts charon and waits until it listens.
func (t *tender) run(ctx context.Context) (*process, error) {
	i := slices.IndexFunc(places(), func(path string) bool { _, err := os.Stat(path); return err == nil })
	if i < 0 {
		return nil, fmt.Errorf("strongSwan's charon is in none of %v: install it, with swanctl and the plugin kernel-libipsec", places())
	}
	if err := t.write("strongswan.conf", strongswanConf(t.config, t.esp)); err != nil {
		return nil, err
	}
	// What one before it has left in the kernel, this one knows nothing of.
	if err := sweepESP(); err != nil {
		return nil, err
	}
	clearPIDFile()
	socket := filepath.Join(t.config.RunDir, "vici")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	p, err := start(places()[i], t.environment(), func(line string) { t.config.Log.Info("charon: " + line) })
	if err != nil {
		return nil, fmt.Errorf("start charon: %w", err)
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(comeUp)
	for {
		if _, err := os.Stat(socket); err == nil {
			t.config.Log.Info("charon runs", "pid", p.pid, "port", t.config.Port)
			return p, nil
		}
		select {
		case <-ticker.C:
		case <-p.done:
			return nil, fmt.Errorf("charon has ended: %w; its log says why", p.result)
		case <-ctx.Done():
			p.end()
			return nil, ctx.Err()
		case <-deadline:
			p.end()
			return nil, fmt.Errorf("charon does not listen after %s", comeUp)
		}
	}
}

// start a process that is killed when this one ends, however it ends. The kernel means the thread by that, so the thread
// is kept until the process has ended.
func start(path string, environment []string, say func(line string)) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command(path)
		cmd.Env = environment
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		reader, writer := io.Pipe()
		cmd.Stdout, cmd.Stderr = writer, writer
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		go func() {
			lines := bufio.NewScanner(reader)
			for lines.Scan() {
				say(lines.Text())
			}
			_, _ = io.Copy(io.Discard, reader) // a line that is too long; charon must not wait for us
		}()
		p.pid = cmd.Process.Pid
		started <- nil
		p.result = cmd.Wait()
		_ = writer.Close()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) status() string {
	<-p.done
	if p.result == nil {
		return "0"
	}
	return p.result.Error()
}

// end asks it to, and kills it when it does not.
func (p *process) end() {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if p.ended() {
			return
		}
		_ = syscall.Kill(p.pid, signal) // it is not waited for before it has ended, so the number is its own
		select {
		case <-p.done:
		case <-time.After(endWithin):
		}
	}
}
