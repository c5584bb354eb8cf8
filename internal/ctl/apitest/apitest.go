// Package apitest starts real Kubernetes API servers for tests: etcd, kube-apiserver, and of the controllers those that
// finish deletions. There are no nodes; what a test wants of the rest it writes itself.
package apitest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
)

// token of the administrator.
const token = "administrator"

// Binary finds the lab's Kubernetes, or skips the test where it is not built.
func Binary(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		path := filepath.Join(dir, "dist", "lab", "kube")
		if _, err := os.Stat(path); err != nil {
			t.Skip("needs Kubernetes, which `make lab` builds as dist/lab/kube")
		}
		return path
	}
	t.Fatal("this test does not run within the module")
	return ""
}

// Start starts a cluster without nodes and gives the path of an administrator's kubeconfig. It ends with the test.
func Start(t testing.TB, name, serviceCIDR string) (kubeconfig string) {
	t.Helper()
	return StartServer(t, name, serviceCIDR).Kubeconfig
}

// Server is a cluster without nodes.
type Server struct {
	Kubeconfig string // an administrator's

	dir, url, certificate string
	etcd, api             *program
	backups               int
}

// StartServer is Start, for a test that makes backups.
func StartServer(t testing.TB, name, serviceCIDR string) *Server {
	t.Helper()
	kube := Binary(t)
	dir := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files := writeFiles(t, dir)
	api, etcd, peer, controllers := freePort(t), freePort(t), freePort(t), freePort(t)
	etcdURL, peerURL := fmt.Sprintf("http://%s:%d", loopback(), etcd), fmt.Sprintf("http://%s:%d", loopback(), peer)
	s := &Server{Kubeconfig: filepath.Join(dir, "kubeconfig"), dir: dir, url: fmt.Sprintf("https://%s:%d", loopback(), api), certificate: files.cert}

	s.etcd = &program{dir, kube, "etcd", []string{"--data-dir=" + s.data(), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=default=" + peerURL}, nil, 0}
	s.api = &program{dir, kube, "kube-apiserver", []string{"--etcd-servers=" + etcdURL, fmt.Sprintf("--secure-port=%d", api),
		"--bind-address=" + loopback().String(), "--advertise-address=192.0.2.1", "--tls-cert-file=" + files.cert, "--tls-private-key-file=" + files.key,
		"--service-cluster-ip-range=" + serviceCIDR, "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + files.key, "--service-account-signing-key-file=" + files.key,
		"--token-auth-file=" + files.tokens, "--authorization-mode=RBAC", "--allow-privileged=true"}, nil, 0}
	s.etcd.start(t)
	s.api.start(t)

	write(t, s.Kubeconfig, fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: %[1]s, cluster: {server: %[2]q, certificate-authority: %[3]q}}]
users: [{name: admin, user: {token: %[4]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: admin}}]
current-context: %[1]s
`, name, s.url, files.cert, token))
	await(t, dir, s.url, files.cert)
	controller := &program{dir, kube, "kube-controller-manager", []string{"--kubeconfig=" + s.Kubeconfig, "--leader-elect=false",
		fmt.Sprintf("--secure-port=%d", controllers), "--bind-address=" + loopback().String(),
		"--controllers=namespace-controller,garbage-collector-controller"}, nil, 0}
	controller.start(t)
	return s
}

// Pause stops the API server in its tracks: it takes connections and answers nothing, until Resume.
func (s *Server) Pause(t testing.TB) { s.api.signal(t, syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume(t testing.TB) { s.api.signal(t, syscall.SIGCONT) }

func (s *Server) data() string { return filepath.Join(s.dir, "etcd") }

// Backup keeps what the cluster holds now, and returns where. The cluster does not notice.
func (s *Server) Backup(t testing.TB) (backup string) {
	t.Helper()
	s.backups++
	backup = filepath.Join(s.dir, fmt.Sprintf("backup-%d", s.backups))
	// What etcd has on disk while it stands still is what it would find after a power cut, which it survives.
	s.etcd.signal(t, syscall.SIGSTOP)
	err := os.CopyFS(backup, os.DirFS(s.data()))
	s.etcd.signal(t, syscall.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	return backup
}

// Restore makes the cluster hold what a backup holds, as an administrator would: etcd and the API server are stopped, and started upon it.
// It returns when the API server is ready again.
func (s *Server) Restore(t testing.TB, backup string) {
	t.Helper()
	s.api.stop(t)
	s.etcd.stop(t)
	if err := os.RemoveAll(s.data()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.data(), os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.data(), 0o700); err != nil {
		t.Fatal(err)
	}
	s.etcd.start(t)
	s.api.start(t)
	await(t, s.dir, s.url, s.certificate)
}

// StopAPI kills the API server. Its data stay, and so does its address.
func (s *Server) StopAPI(t testing.TB) { t.Helper(); s.api.stop(t) }

// StartAPI starts the API server again, and waits until it is ready.
func (s *Server) StartAPI(t testing.TB) {
	t.Helper()
	s.api.start(t)
	await(t, s.dir, s.url, s.certificate)
}

type files struct{ cert, key, tokens string }

func writeFiles(t testing.TB, dir string) files {
	t.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey(loopback().String(), []net.IP{loopback()}, []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	f := files{filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "tokens.csv")}
	write(t, f.cert, string(certificate))
	write(t, f.key, string(key))
	write(t, f.tokens, token+`,admin,admin,"system:masters"`+"\n")
	return f
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// loopback is an address of this test process. On 127.0.0.1 every connection of the machine takes ports, and may take the one
// that was free a moment ago.
func loopback() net.IP {
	return net.IPv4(127, byte(1+os.Getpid()>>8%254), byte(os.Getpid()), 1)
}

func freePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(loopback().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	address, ok := listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("no TCP address")
	}
	return address.Port
}

// guarded ends the program when its own standard input ends, and so also when the test is killed.
const guarded = `"$@" </dev/null & read -r _; kill -9 $!; wait`

// program is one of the lab's, with its log beside its data.
type program struct {
	dir, kube, name string
	args            []string
	end             func(testing.TB) // nil while it does not run
	guard           int              // the process ID of the shell around it
}

// start starts a program that ends with the test.
func (p *program) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	command := exec.Command("/bin/sh", append([]string{"-c", guarded, "sh", p.kube, p.name}, p.args...)...)
	command.Stdout, command.Stderr = log, log
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p.guard = command.Process.Pid
	p.end = func(t testing.TB) {
		stdin.Close()
		if err := command.Wait(); err != nil {
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
				t.Errorf("%s: %v", p.name, err)
			}
		}
	}
	t.Cleanup(func() { p.stop(t) })
}

// stop kills the program and waits for its end.
func (p *program) stop(t testing.TB) {
	t.Helper()
	if p.end != nil {
		p.end(t)
		p.end = nil
	}
}

// signal sends a signal to the program, and not to the shell that is to end it.
func (p *program) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.guard))
	if err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatalf("%s is not there: %v", p.name, err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
}

// await waits until the API server is ready, and shows the end of its log if it does not become so.
func await(t testing.TB, dir, server, certificate string) {
	t.Helper()
	roots := x509.NewCertPool()
	text, err := os.ReadFile(certificate)
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(text)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ctx.Done():
			log, err := os.ReadFile(filepath.Join(dir, "kube-apiserver.log"))
			lines := strings.Split(strings.TrimSpace(string(log)), "\n")
			t.Fatalf("the API server is not ready after a minute; the end of its log (%v):\n%s", err, strings.Join(lines[max(0, len(lines)-10):], "\n"))
		case <-ticker.C:
		}
	}
}
