package lab

import (
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"
)

// What kubelet sets on its machine. Here the machine is somebody's, so the node only sees these values; see hideTunables.
var kubeletTunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

const (
	pauseImage     = "fastnet.dev/pause:dev"
	containerdSock = "/run/containerd/containerd.sock"
	// imagesReady is in the node when its containerd folder holds the lab's images.
	imagesReady = "/var/lib/containerd/fastnet-lab-images"
	pki         = "/etc/kubernetes/pki/"
)

// spec is everything the node's init has to set up and run.
func (l *Lab) spec(n *Node, ca *authority) (nodeSpec, error) {
	b := specBuilder{lab: l, node: n, ca: ca, spec: nodeSpec{
		Hostname:  n.name,
		Var:       n.Var(),
		Procs:     l.groups.procsFiles(n.name),
		Forward:   true,
		Tunables:  kubeletTunables,
		Readiness: pki + "ca.crt",

		Masquerade: n.cluster.pods,
	}}
	b.file("/etc/hostname", n.name+"\n")
	b.file("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"+hostsLines(n.cluster))
	// No resolver: the machine's own is out of a node's reach, and the lab asks nobody outside.
	b.file("/etc/resolv.conf", "# a node of fastnet-lab has no name server\n")
	// An identity that differs between nodes; no secret.
	b.file("/etc/machine-id", fmt.Sprintf("%x\n", md5.Sum([]byte(n.name))))
	b.file(pki+"ca.crt", string(ca.certPEM))
	if n.role == "control" {
		b.controlPlane()
	}
	b.containerd()
	b.kubelet()
	b.kubeProxy()
	return b.spec, b.err
}

// hostsLines names every node of the cluster, as a site's own DNS would.
func hostsLines(c *Cluster) string {
	var text strings.Builder
	for _, node := range c.nodes {
		for _, addr := range node.addrs {
			fmt.Fprintf(&text, "%s %s\n", addr, node.name)
		}
	}
	return text.String()
}

type specBuilder struct {
	lab  *Lab
	node *Node
	ca   *authority
	spec nodeSpec
	err  error
}

func (b *specBuilder) file(path, text string) {
	mode := fs.FileMode(0o644)
	if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "client-key-data") {
		mode = 0o600
	}
	b.spec.Files = append(b.spec.Files, nodeFile{Path: path, Mode: mode, Text: text})
}

func (b *specBuilder) json(path string, value any) {
	text, err := json.MarshalIndent(value, "", "  ")
	b.fail(err)
	b.file(path, string(text)+"\n")
}

func (b *specBuilder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// keyPair writes NAME.crt and NAME.key.
func (b *specBuilder) keyPair(name, user string, groups, names []string, addrs []netip.Addr) {
	cert, key, err := b.ca.issue(user, groups, names, addrs)
	b.fail(err)
	b.file(pki+name+".crt", string(cert))
	b.file(pki+name+".key", string(key))
}

// kubeconfig writes a kubeconfig under /etc/kubernetes and gives its path.
func (b *specBuilder) kubeconfig(name, user string, groups ...string) string {
	text, err := b.ca.kubeconfig(b.node.cluster.name, b.node.cluster.server(), user, groups...)
	b.fail(err)
	path := "/etc/kubernetes/" + name + ".conf"
	b.file(path, text)
	return path
}

// kube adds a program out of the one binary that holds all of Kubernetes.
func (b *specBuilder) kube(name string, wait, env []string, args ...string) {
	b.spec.Programs = append(b.spec.Programs, program{
		Name: name, Path: filepath.Join(b.lab.config.Dist, "lab", "kube"), Args: args, Env: env, Wait: wait,
	})
}

// apiReady is what everything but etcd and the API server waits for.
func (b *specBuilder) apiReady() []string { return []string{b.node.cluster.server() + "/readyz"} }

// lean makes Go's collector work harder: in a lab memory is scarcer than its work.
var lean = []string{"GOGC=50"}

func (b *specBuilder) controlPlane() {
	c := b.node.cluster
	b.keyPair("apiserver", "kube-apiserver", nil,
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local", b.node.name},
		append(append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, b.node.addrs...),
			each(c.services, func(p netip.Prefix) netip.Addr { return nthAddr(p, 1) })...))
	b.keyPair("kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil, nil)
	b.file(pki+"ca.key", string(b.ca.keyPEM))
	b.file(pki+"sa.key", string(b.ca.accountKey))
	b.kubeconfig("admin", "kubernetes-admin", "system:masters")

	const etcd = "http://127.0.0.1:2379"
	b.kube("etcd", nil, lean,
		"--name=lab", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://127.0.0.1:2380")
	b.kube("kube-apiserver", nil, lean,
		"--etcd-servers="+etcd, "--bind-address="+b.lab.config.Families.unspecified(), "--secure-port=6443", "--advertise-address="+b.node.addrs[0].String(),
		"--tls-cert-file="+pki+"apiserver.crt", "--tls-private-key-file="+pki+"apiserver.key", "--client-ca-file="+pki+"ca.crt",
		"--kubelet-client-certificate="+pki+"kubelet-client.crt", "--kubelet-client-key="+pki+"kubelet-client.key",
		"--kubelet-preferred-address-types=InternalIP", "--cert-dir=/var/lib/kubernetes",
		"--service-account-key-file="+pki+"sa.key", "--service-account-signing-key-file="+pki+"sa.key",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-cluster-ip-range="+c.services.String(), "--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--profiling=false")
	config := b.kubeconfig("controller-manager", "system:kube-controller-manager")
	b.kube("kube-controller-manager", b.apiReady(), lean,
		"--kubeconfig="+config, "--authentication-kubeconfig="+config, "--authorization-kubeconfig="+config,
		"--bind-address=127.0.0.1", "--cert-dir=/var/lib/kubernetes", "--leader-elect=false", "--cluster-name="+c.name,
		// Each node's share of the pod range is written into its Node object when that is made: worker1 of c1 always
		// has 10.8.1.0/24, whichever node is first.
		"--allocate-node-cidrs=false", "--use-service-account-credentials=true",
		"--root-ca-file="+pki+"ca.crt", "--service-account-private-key-file="+pki+"sa.key",
		"--cluster-signing-cert-file="+pki+"ca.crt", "--cluster-signing-key-file="+pki+"ca.key",
		"--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins", "--profiling=false")
	config = b.kubeconfig("scheduler", "system:kube-scheduler")
	b.kube("kube-scheduler", b.apiReady(), lean,
		"--kubeconfig="+config, "--authentication-kubeconfig="+config, "--authorization-kubeconfig="+config,
		"--bind-address=127.0.0.1", "--cert-dir=/var/lib/kubernetes", "--leader-elect=false", "--profiling=false")
}

func (b *specBuilder) containerd() {
	b.file("/etc/containerd/config.toml", containerdConfig)
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, pods := range b.node.pods {
		ranges = append(ranges, []map[string]string{{"subnet": pods.String()}})
		routes = append(routes, map[string]string{"dst": netip.PrefixFrom(pods.Addr(), 0).Masked().String()})
	}
	b.json("/etc/cni/net.d/10-fastnet-lab.conflist", map[string]any{
		"cniVersion": "0.4.0", "name": "fastnet-lab",
		"plugins": []any{
			// ptp gives every pod a link and a route of its own. On a bridge, pods of one node answer each other
			// without passing the node's routing, and a service's address is then not translated back unless the
			// kernel has br_netfilter, which a module-less or minimal kernel may lack.
			map[string]any{"type": "ptp", "ipMasq": b.lab.config.IPMasq, "ipam": map[string]any{
				"type": "host-local", "dataDir": "/run/cni", "ranges": ranges, "routes": routes}},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	})
	b.spec.Programs = append(b.spec.Programs, program{
		Name: "containerd", Path: "/usr/bin/containerd", Env: lean, Wait: []string{"file:" + imagesReady},
		Args: []string{"--config=/etc/containerd/config.toml"},
	})
}

// containerdConfig: the oom_score settings are for machines whose root may not lower a process's badness
// (CAP_SYS_RESOURCE): runc fails there without them.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "` + containerdSock + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

func (b *specBuilder) kubelet() {
	n, c := b.node, b.node.cluster
	b.keyPair("kubelet", "system:node:"+n.name, []string{"system:nodes"}, []string{n.name}, n.addrs)
	b.json("/etc/kubernetes/kubelet.json", map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": pki + "ca.crt"},
		},
		"authorization":                 map[string]any{"mode": "Webhook"},
		"address":                       b.lab.config.Families.unspecified(),
		"tlsCertFile":                   pki + "kubelet.crt",
		"tlsPrivateKeyFile":             pki + "kubelet.key",
		"containerRuntimeEndpoint":      "unix://" + containerdSock,
		"cgroupDriver":                  "cgroupfs",
		"cgroupRoot":                    "/" + cgroupName + "/" + n.name,
		"failCgroupV1":                  false,
		"failSwapOn":                    false,
		"enforceNodeAllocatable":        []string{},
		"localStorageCapacityIsolation": false,
		"evictionHard":                  map[string]string{},
		"imageGCHighThresholdPercent":   100,
		"oomScoreAdj":                   0,
		"volumePluginDir":               "/var/lib/kubelet/volume-plugins",
		"resolvConf":                    "/etc/resolv.conf",
		"clusterDomain":                 "cluster.local",
		"clusterDNS":                    []string{dnsAddr(c.services[0]).String()},
		"shutdownGracePeriod":           "0s",
		"enableDebuggingHandlers":       true,
	})
	var addrs []string
	for _, addr := range n.addrs {
		addrs = append(addrs, addr.String())
	}
	b.kube("kubelet", append(b.apiReady(), "file:"+containerdSock), lean,
		"--config=/etc/kubernetes/kubelet.json",
		"--kubeconfig="+b.kubeconfig("kubelet", "system:node:"+n.name, "system:nodes"),
		"--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--hostname-override="+n.name,
		"--node-ip="+strings.Join(addrs, ","))
}

func (b *specBuilder) kubeProxy() {
	n, c := b.node, b.node.cluster
	config := b.kubeconfig("kube-proxy", "system:kube-proxy")
	b.json("/etc/kubernetes/kube-proxy.json", map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": map[string]any{"kubeconfig": config},
		"mode":             string(b.lab.config.Proxy),
		"hostnameOverride": n.name,
		"clusterCIDR":      c.pods.String(),
		// nf_conntrack_max is the whole machine's: leave it. The score may not be lowered everywhere.
		"conntrack":   map[string]any{"maxPerCore": 0, "min": 0},
		"oomScoreAdj": 0,
	})
	b.kube("kube-proxy", b.apiReady(), lean, "--config=/etc/kubernetes/kube-proxy.json")
}

// dnsAddr is the cluster DNS's address in a service range: the tenth, as kubeadm has it.
func dnsAddr(services netip.Prefix) netip.Addr { return nthAddr(services, 10) }
