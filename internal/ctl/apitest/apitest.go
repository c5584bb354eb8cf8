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
	"sync"
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
	return New(t, name, serviceCIDR).Kubeconfig
}

// Cluster is a cluster without nodes.
type Cluster struct {
	// Kubeconfig is the path of an administrator's.
	Kubeconfig string

	dir, server, cert string
	command           []string // of the API server
	stop              func()
}

// StopAPI kills the API server. Its data stay, and so does its address.
func (c *Cluster) StopAPI() { c.stop() }

// StartAPI starts the API server again, and waits until it is ready.
func (c *Cluster) StartAPI(t testing.TB) {
	t.Helper()
	c.stop = run(t, c.dir, c.command[0], c.command[1], c.command[2:]...)
	await(t, c.dir, c.server, c.cert)
}

// New starts a cluster without nodes. It ends with the test.
func New(t testing.TB, name, serviceCIDR string) *Cluster {
	t.Helper()
	kube := Binary(t)
	dir := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files := writeFiles(t, dir)
	api, etcd, peer, controllers := freePort(t), freePort(t), freePort(t), freePort(t)
	etcdURL, peerURL := fmt.Sprintf("http://%s:%d", loopback(), etcd), fmt.Sprintf("http://%s:%d", loopback(), peer)
	server := fmt.Sprintf("https://%s:%d", loopback(), api)

	run(t, dir, kube, "etcd", "--data-dir="+dir+"/etcd", "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)
	c := &Cluster{Kubeconfig: filepath.Join(dir, "kubeconfig"), dir: dir, server: server, cert: files.cert}
	c.command = []string{kube, "kube-apiserver", "--etcd-servers=" + etcdURL, fmt.Sprintf("--secure-port=%d", api),
		"--bind-address=" + loopback().String(), "--advertise-address=192.0.2.1", "--tls-cert-file=" + files.cert, "--tls-private-key-file=" + files.key,
		"--service-cluster-ip-range=" + serviceCIDR, "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + files.key, "--service-account-signing-key-file=" + files.key,
		"--token-auth-file=" + files.tokens, "--authorization-mode=RBAC", "--allow-privileged=true"}

	write(t, c.Kubeconfig, fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: %[1]s, cluster: {server: %[2]q, certificate-authority: %[3]q}}]
users: [{name: admin, user: {token: %[4]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: admin}}]
current-context: %[1]s
`, name, server, files.cert, token))
	c.StartAPI(t)
	run(t, dir, kube, "kube-controller-manager", "--kubeconfig="+c.Kubeconfig, "--leader-elect=false",
		fmt.Sprintf("--secure-port=%d", controllers), "--bind-address="+loopback().String(),
		"--controllers=namespace-controller,garbage-collector-controller")
	return c
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
const guarded = `"$@" </dev/null & read -r _; kill -9 $!`

// run starts a program that ends by stop, or with the test, with its log beside its data.
func run(t testing.TB, dir, kube, name string, args ...string) (stop func()) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	command := exec.Command("/bin/sh", append([]string{"-c", guarded, "sh", kube, name}, args...)...)
	command.Stdout, command.Stderr = log, log
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		stdin.Close()
		if err := command.Wait(); err != nil {
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Cleanup(stop)
	return stop
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
