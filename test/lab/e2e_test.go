//go:build e2e

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// distFolder is the dist folder of the source tree, unless FASTNET_DIST says otherwise.
func distFolder(t *testing.T) string {
	t.Helper()
	dist := os.Getenv("FASTNET_DIST")
	if dist == "" {
		dist = "../../dist"
	}
	dist, err := filepath.Abs(dist)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(filepath.Join(dist, "lab", "kube")); err != nil {
		t.Skipf("needs %s/lab/kube: run `make lab`", dist)
	}
	return dist
}

// TestLab brings a lab up and down; there is one on a machine, so one that runs is ended first. The order of the parts
// matters.
func TestLab(t *testing.T) {
	config := DefaultConfig(distFolder(t))
	config.Progress = ProgressLines(func(line string) { t.Log(line) })
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	down := func(t *testing.T) {
		t.Helper()
		if err := Down(context.WithoutCancel(ctx), nil); err != nil {
			t.Fatal(err)
		}
	}
	down(t)
	before := machine(t)
	clean := func(t *testing.T) {
		t.Helper()
		left, err := Leftovers()
		if err != nil || len(left) > 0 {
			t.Errorf("down left %q, %v", left, err)
		}
		if diff := cmp.Diff(before, machine(t)); diff != "" {
			t.Errorf("down left the machine changed (-before +after):\n%s", diff)
		}
	}
	defer down(t)

	// A lab is killed without a chance to clean up: at its start, while nodes start, and while clusters get ready.
	for _, moment := range []string{"starting", "API server ready", "nodes Ready"} {
		t.Run("down after a kill at "+moment, func(t *testing.T) {
			killUp(t, config.Dist, moment)
			if left, err := Leftovers(); err != nil || len(left) == 0 {
				t.Fatalf("the killed up made nothing: %q, %v", left, err)
			}
			down(t)
			clean(t)
		})
	}

	// This one goes on from where a killed one was.
	killUp(t, config.Dist, "API server ready")
	l, err := Up(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	inits := l.record.Inits
	kubectl := func(t *testing.T, cluster string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(config.Dist, "lab", "kube"),
			append([]string{"kubectl", "--kubeconfig=" + l.Cluster(cluster).Kubeconfig()}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	// reaches opens a TCP connection; what does not answer within two seconds is out of reach.
	reaches := func(n *Node, addr string, port int) bool {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return n.Command(limited, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", addr, port)).Run() == nil
	}
	until := func(t *testing.T, what string, done func() bool) {
		t.Helper()
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := poll(limited, pollInterval, func() (bool, error) { return done(), nil }); err != nil {
			t.Fatalf("%s: not within a minute", what)
		}
	}

	t.Run("up again does nothing", func(t *testing.T) {
		// Whatever was made of the DNS's configuration meanwhile stays.
		const corefile = "get configmap coredns -n kube-system -o jsonpath={.data.Corefile}"
		changed := "# the clusterset's\n" + kubectl(t, "c1", strings.Fields(corefile)...)
		patch, err := json.Marshal(map[string]any{"data": map[string]string{"Corefile": changed}})
		if err != nil {
			t.Fatal(err)
		}
		kubectl(t, "c1", "patch", "configmap", "coredns", "-n", "kube-system", "-p", string(patch))
		again, err := Up(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(inits, again.record.Inits); diff != "" {
			t.Errorf("nodes were started again:\n%s", diff)
		}
		if got := kubectl(t, "c1", strings.Fields(corefile)...); got != changed {
			t.Errorf("the Corefile is now\n%s", got)
		}
		other := config
		other.Workers = 1
		if _, err := Up(ctx, other); err == nil || !strings.Contains(err.Error(), "another lab") {
			t.Errorf("up with other workers: %v", err)
		}
	})

	t.Run("one at a time", func(t *testing.T) {
		release, err := lock()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if err := Down(ctx, nil); err == nil || !strings.Contains(err.Error(), "at work") {
			t.Errorf("down while another is at work: %v", err)
		}
	})

	t.Run("a node is a machine of its own", func(t *testing.T) {
		cmd := l.Node("c1", "worker1").Command(ctx, "sh", "-c", "hostname; cat; cat /proc/1/cmdline | tr '\\0' ' '")
		cmd.Stdin = strings.NewReader("input\n")
		out, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(out), "c1-worker1\ninput\n") || !strings.Contains(string(out), "node-init") {
			t.Errorf("%q, %v", out, err)
		}
		write := l.Node("c1", "worker1").Command(ctx, "sh", "-c", "mkdir -p /var/lib/fastnet && echo key > /var/lib/fastnet/key")
		if out, err := write.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := l.Node("c1", "worker2").Command(ctx, "test", "-e", "/var/lib/fastnet/key").Run(); err == nil {
			t.Error("a node sees another's /var/lib/fastnet")
		}
		if _, err := os.Stat("/var/lib/fastnet"); err == nil {
			t.Error("the machine has /var/lib/fastnet")
		}
	})

	t.Run("pods", func(t *testing.T) {
		for _, name := range []string{"whereami", "toolbox"} {
			if _, err := os.Stat(filepath.Join(config.Dist, "images", name+".tar")); err != nil {
				t.Fatalf("needs dist/images/%s.tar: run `make images`", name)
			}
		}
		for _, c := range l.Clusters() {
			cmd := exec.CommandContext(ctx, filepath.Join(config.Dist, "lab", "kube"), "kubectl",
				"--kubeconfig="+c.Kubeconfig(), "apply", "-f", "-")
			cmd.Stdin = strings.NewReader(podsManifest)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		for _, c := range l.Clusters() {
			kubectl(t, c.Name(), "rollout", "status", "--timeout=60s", "daemonset/web", "daemonset/tun", "daemonset/shell")
		}
		addrs := map[string][]string{} // of the pod on worker2 of each cluster
		for _, c := range l.Clusters() {
			addrs[c.Name()] = strings.Fields(kubectl(t, c.Name(), "get", "pods", "-l=app=web",
				"--field-selector=spec.nodeName="+c.Name()+"-worker2", "-o=jsonpath={.items[0].status.podIPs[*].ip}"))
			if len(addrs[c.Name()]) != 2 {
				t.Fatalf("pod addresses %v, want one in each family", addrs[c.Name()])
			}
			for i, addr := range addrs[c.Name()] {
				parsed, err := netip.ParseAddr(addr)
				if pods := c.Nodes()[2].Pods()[i]; err != nil || !pods.Contains(parsed) {
					t.Errorf("pod address %s is not of the node's %s", addr, pods)
				}
			}
		}
		for _, c := range l.Clusters() {
			services := strings.Fields(kubectl(t, c.Name(), "get", "service", "web", "-o=jsonpath={.spec.clusterIPs[*]}"))
			for _, addr := range slices.Concat(addrs[c.Name()], services) {
				until(t, c.Name()+" reaches "+addr, func() bool { return reaches(l.Node(c.Name(), "worker1"), addr, 80) })
			}
		}
		// Without a tunnel nothing goes from a cluster to the pods of another, by design.
		for _, addr := range addrs["c2"] {
			if reaches(l.Node("c1", "worker1"), addr, 80) {
				t.Errorf("c1 reaches the pod %s of c2 without a tunnel", addr)
			}
		}
		if got := kubectl(t, "c1", "logs", "--tail=1", "daemonset/web"); strings.Contains(got, "error") {
			t.Errorf("kubectl logs: %s", got)
		}
	})

	t.Run("a pod with NET_ADMIN alone makes a TUN device", func(t *testing.T) {
		got := kubectl(t, "c1", "exec", "daemonset/tun", "--", "sh", "-c",
			"ip tuntap add dev fastnet9 mode tun && ip -o link show fastnet9 && ip tuntap del dev fastnet9 mode tun")
		if !strings.Contains(got, "fastnet9") {
			t.Errorf("ip link: %s", got)
		}
	})

	t.Run("cluster DNS", func(t *testing.T) {
		if !l.hasDNSImage() {
			t.Skip("needs dist/images/coredns.tar: run `make images`")
		}
		for _, test := range []struct{ name, kind, addr string }{
			{"kubernetes.default", "A", "10.88.0.1"},
			{"kube-dns.kube-system", "A", "10.88.0.10"},
			{"kube-dns.kube-system", "AAAA", "fd00:10:88::a"},
		} {
			got := kubectl(t, "c1", "exec", "daemonset/shell", "--", "dig", "+short", "+search", test.kind, test.name)
			if got != test.addr {
				t.Errorf("%s %s is %q, want %s", test.name, test.kind, got, test.addr)
			}
		}
	})

	t.Run("load-image under any name", func(t *testing.T) {
		archive, err := imageOf("fastnet.dev/loaded:dev", "pause", []byte("program"))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(file, archive, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := l.LoadImage(ctx, file, "nginx:1.27"); err != nil {
			t.Fatal(err)
		}
		for _, c := range l.Clusters() {
			for _, n := range c.Nodes() {
				out, err := n.Command(ctx, "ctr", "images", "list", "-q").Output()
				for _, name := range []string{"fastnet.dev/loaded:dev", "docker.io/library/nginx:1.27"} {
					if err != nil || !strings.Contains(string(out), name) {
						t.Errorf("%s lacks %s: %s %v", n.Name(), name, out, err)
					}
				}
			}
		}
	})

	t.Run("cut and heal", func(t *testing.T) {
		from := l.Node("c1", "worker1")
		for _, test := range []struct {
			targets []string
			lost    []string // API servers out of reach from c1/worker1
			kept    []string
			shown   string // what status says of c1/worker1's network
		}{
			{[]string{"c1", "c2"}, []string{"172.30.2.2", "fd30:2::2"}, []string{"172.30.1.2", "fd30:1::2"}, "whole"},
			{[]string{"c1/worker1"}, []string{"172.30.1.2", "fd30:1::2", "172.30.2.2", "fd30:2::2"}, nil, "cut"},
			{[]string{"c1/worker1:eth0"}, []string{"172.30.1.2", "fd30:1::2", "172.30.2.2", "fd30:2::2"}, nil, "link down"},
		} {
			all := slices.Concat(test.lost, test.kept)
			for range 2 { // the second time nothing changes
				if err := l.Cut(ctx, test.targets...); err != nil {
					t.Fatal(err)
				}
			}
			for _, addr := range test.lost {
				if reaches(from, addr, 6443) {
					t.Errorf("cut %v: c1/worker1 still reaches %s", test.targets, addr)
				}
			}
			for _, addr := range test.kept {
				if !reaches(from, addr, 6443) {
					t.Errorf("cut %v: c1/worker1 does not reach %s", test.targets, addr)
				}
			}
			status, err := l.Status(ctx)
			if err != nil || status.Clusters[0].Nodes[1].Network != test.shown {
				t.Errorf("cut %v: status %+v, %v; want %q", test.targets, status, err, test.shown)
			}
			for range 2 {
				if err := l.Heal(ctx, test.targets...); err != nil {
					t.Fatal(err)
				}
			}
			for _, addr := range all {
				until(t, fmt.Sprintf("heal %v: c1/worker1 reaches %s", test.targets, addr), func() bool { return reaches(from, addr, 6443) })
			}
		}
	})

	t.Run("pause and resume", func(t *testing.T) {
		paused := func() string {
			status, err := l.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(status.Clusters[1].Nodes[1].Paused, ",")
		}
		for target, want := range map[string]string{"c2/worker1": "all", "c2/worker1:kubelet": "kubelet"} {
			if err := l.Pause(ctx, target); err != nil {
				t.Fatal(err)
			}
			if got := paused(); got != want {
				t.Errorf("pause %s: paused is %q, want %q", target, got, want)
			}
			if err := l.Resume(ctx, target); err != nil {
				t.Fatal(err)
			}
			if got := paused(); got != "" {
				t.Errorf("resume %s: still paused: %q", target, got)
			}
		}
		if err := l.Pause(ctx, "c2/worker1:nothing"); err == nil {
			t.Error("a program that is not there can be paused")
		}
	})

	t.Run("a node that went down comes back", func(t *testing.T) {
		n := l.Node("c1", "worker2")
		init, _ := n.init()
		if err := init.signal(9); err != nil {
			t.Fatal(err)
		}
		until(t, "c1/worker2 ends", func() bool { all, err := n.processes(); return err == nil && len(all) == 0 })
		if err := n.Command(ctx, "true").Run(); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("a command on a node that is down: %v", err)
		}
		var err error
		if l, err = Up(ctx, config); err != nil {
			t.Fatal(err)
		}
		until(t, "its pods run again", func() bool {
			all, err := l.Node("c1", "worker2").processes()
			return err == nil && slices.ContainsFunc(all, func(p processInfo) bool { return programName(p) == "pause" })
		})
	})

	t.Run("memory", func(t *testing.T) {
		status, err := l.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, c := range status.Clusters {
			for _, n := range c.Nodes {
				total += n.MemoryMiB
			}
		}
		t.Logf("%d MiB", total)
		if total > 5*1024 {
			t.Errorf("the lab takes %d MiB, more than 5 GiB", total)
		}
	})

	down(t)
	clean(t)
}

// killUp runs `fastnet-lab up` until it prints a word, and kills it there.
func killUp(t *testing.T, dist, word string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(dist, "bin", "fastnet-lab"), "up")
	output, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	for !strings.Contains(printed.String(), word) {
		part := make([]byte, 512)
		n, err := output.Read(part)
		printed.Write(part[:n])
		if err != nil {
			t.Fatalf("up ended before it said %q: %s", word, printed.String())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it says that it was killed
}

// machine is what the lab could change on the machine, as text.
func machine(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for name, command := range map[string]string{
		"links":    "ip -o link show | awk '{print $2}' | grep -v '^fastnet-test'",
		"routes":   "ip route show table all; ip -6 route show table all",
		"rules":    "ip rule; ip -6 rule",
		"firewall": "iptables-save | grep -v '^#' | grep -v '^:'; ip6tables-save | grep -v '^#' | grep -v '^:'; true",
		"mounts":   "cut -d' ' -f5 /proc/self/mountinfo | grep -v '^/run/netns/' | sort",
		"groups":   "find /sys/fs/cgroup -type d -name 'fastnet-lab*'; true",
		"folders":  "ls -d /var/lib/* /etc/cni /var/log/pods /var/log/containers /usr/libexec/kubernetes /opt/cni 2>/dev/null; true",
		"sysctls": "cd /proc/sys; for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys " +
			"kernel/keys/root_maxbytes net/ipv4/ip_forward net/ipv6/conf/all/forwarding net/netfilter/nf_conntrack_max; " +
			"do echo $f $(cat $f 2>/dev/null); done",
	} {
		out, err := exec.Command("bash", "-c", command).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		state[name] = string(out)
	}
	return state
}

// podsManifest has an HTTP server on every node behind a dual-stack Service, and on the workers a pod as our gateway's:
// in the node's network, not privileged, with NET_ADMIN and the TUN device, and a plain one with tools.
const podsManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      tolerations: [{operator: Exists}]
      terminationGracePeriodSeconds: 0
      containers:
      - {name: web, image: "fastnet.dev/whereami:dev"}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: tun}
spec:
  selector: {matchLabels: {app: tun}}
  template:
    metadata: {labels: {app: tun}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 0
      containers:
      - name: tun
        image: fastnet.dev/toolbox:dev
        command: [sleep, infinity]
        securityContext: {privileged: false, capabilities: {drop: [ALL], add: [NET_ADMIN]}}
        volumeMounts: [{name: tun, mountPath: /dev/net/tun}]
      volumes:
      - {name: tun, hostPath: {path: /dev/net/tun, type: CharDevice}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: shell}
spec:
  selector: {matchLabels: {app: shell}}
  template:
    metadata: {labels: {app: shell}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: shell, image: "fastnet.dev/toolbox:dev", command: [sleep, infinity]}
`
