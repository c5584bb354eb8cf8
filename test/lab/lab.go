package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Lab is the lab of this machine.
type Lab struct {
	config   Config
	clusters []*Cluster
	groups   cgroups

	mu     sync.Mutex // guards record
	record record
}

// record is the file lab.json in the state folder: what was asked for, and what was started. It is written before and
// after each node is started; what a crash left out of it is found by its marks.
type record struct {
	Config Config
	Ready  bool               // an `up` has ended well
	Inits  map[string]process // the init of each node by the node's name
}

// Cluster is one Kubernetes cluster of the lab.
type Cluster struct {
	name     string
	pods     Ranges
	services Ranges
	underlay Ranges
	nodes    []*Node
}

// Node is one node: a machine of its own to what runs in it.
type Node struct {
	lab     *Lab
	cluster *Cluster
	role    string         // control, worker1, ...
	name    string         // c1-worker1, its name in Kubernetes
	addrs   []netip.Addr   // of eth0, IPv4 first
	pods    []netip.Prefix // its share of the cluster's pod range
	started time.Time      // when this process started its init; zero if it ran before
}

// WAN is the router between the clusters.
type WAN struct{}

// newLab lays out names and addresses; it touches nothing.
func newLab(config Config) *Lab {
	config = config.complete()
	l := &Lab{config: config, record: record{Config: config, Inits: map[string]process{}}}
	for n := 1; n <= config.Clusters; n++ {
		c := &Cluster{name: clusterName(n), underlay: config.Families.of(underlay(n))}
		c.pods, c.services = config.Pods[c.name], config.Services[c.name]
		for i := 0; i <= config.Workers; i++ {
			role := "control"
			if i > 0 {
				role = "worker" + strconv.Itoa(i)
			}
			c.nodes = append(c.nodes, &Node{
				lab: l, cluster: c, role: role, name: c.name + "-" + role,
				addrs: each(c.underlay, func(p netip.Prefix) netip.Addr { return nthAddr(p, 2+i) }),
				pods:  each(c.pods, func(p netip.Prefix) netip.Prefix { return nthSubnet(p, nodeMask(p), i) }),
			})
		}
		l.clusters = append(l.clusters, c)
	}
	return l
}

// ErrNoLab is what [Open] says on a machine without a lab.
var ErrNoLab = errors.New("no lab is running: start one with `fastnet-lab up`")

// Open is the lab that runs on this machine.
func Open() (*Lab, error) {
	text, err := os.ReadFile(filepath.Join(StateDir, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoLab
	}
	if err != nil {
		return nil, err
	}
	var found record
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, fmt.Errorf("%s/lab.json: %w; run `fastnet-lab down`", StateDir, err)
	}
	l := newLab(found.Config)
	l.record.Ready = found.Ready
	for name, init := range found.Inits {
		l.record.Inits[name] = init
	}
	if l.groups, err = readCgroups(); err != nil {
		return nil, err
	}
	return l, nil
}

// save writes the record; readers see the old or the new one, never a part.
func (l *Lab) save(change func(*record)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.record)
	text, err := json.MarshalIndent(l.record, "", "\t")
	if err != nil {
		return err
	}
	file := filepath.Join(StateDir, "lab.json")
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// lock keeps two `up` or `down` from working at once. It ends with the process, also when that is killed.
func lock() (release func(), err error) {
	if err := os.MkdirAll(StateDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(StateDir, "lock")
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			file.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errors.New("another fastnet-lab is at work on this machine: wait for it to end")
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Whoever had the lock may have been `down`, which removes the file: then this lock is on nothing.
		held, err1 := file.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return func() { file.Close() }, nil
		}
		file.Close()
		if err := os.MkdirAll(StateDir, 0o755); err != nil {
			return nil, err
		}
	}
}

// Clusters lists the clusters c1, c2, ... in order.
func (l *Lab) Clusters() []*Cluster { return l.clusters }

// Cluster is the cluster of that name, or nil.
func (l *Lab) Cluster(name string) *Cluster {
	for _, c := range l.clusters {
		if c.name == name {
			return c
		}
	}
	return nil
}

// Node is a node by its cluster and its role there (control, worker1, ...), or nil.
func (l *Lab) Node(cluster, role string) *Node {
	if c := l.Cluster(cluster); c != nil {
		for _, n := range c.nodes {
			if n.role == role {
				return n
			}
		}
	}
	return nil
}

// WAN is the router between the clusters.
func (l *Lab) WAN() *WAN { return &WAN{} }

// Name is the cluster's name, c1 say; it is also the name of its context in the kubeconfig.
func (c *Cluster) Name() string { return c.name }

// Kubeconfig is the path of a kubeconfig for the cluster's administrator that works from the machine the lab is on.
func (c *Cluster) Kubeconfig() string { return filepath.Join(StateDir, c.name, "kubeconfig") }

// Nodes lists the nodes, the control node first.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Pods is the cluster's pod range in each family.
func (c *Cluster) Pods() Ranges { return c.pods }

// Services is the cluster's service range in each family.
func (c *Cluster) Services() Ranges { return c.services }

// Underlay is the range of the cluster's nodes in each family.
func (c *Cluster) Underlay() Ranges { return c.underlay }

// server is the API server's URL.
func (c *Cluster) server() string {
	return "https://" + netip.AddrPortFrom(c.nodes[0].addrs[0], 6443).String()
}

// Name is the node's name in Kubernetes: c1-worker1.
func (n *Node) Name() string { return n.name }

// Role is the node's name within its cluster: control, worker1, ...
func (n *Node) Role() string { return n.role }

// Addrs is the node's own addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr { return n.addrs }

// Pods is the node's share of the cluster's pod range in each family.
func (n *Node) Pods() []netip.Prefix { return n.pods }

// Var is the folder of the machine that is /var in the node: logs of the node's programs are in Var()/log.
func (n *Node) Var() string { return filepath.Join(StateDir, n.cluster.name, n.role, "var") }

func (n *Node) space() string { return "fastnet-" + n.name }

// port is the WAN's end of the node's link; at most 12 of the 15 characters that a link name may have.
func (n *Node) port() string { return n.name }

// init is the node's init, if it runs.
func (n *Node) init() (process, bool) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	p, ok := n.lab.record.Inits[n.name]
	return p, ok && p.alive()
}

// Command is a command that runs on the node: in its network, files and processes. Standard input, output and error are
// the caller's to set, as with any command. When the context ends, the command's whole process group is killed.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	init, ok := n.init()
	if !ok {
		cmd := exec.CommandContext(ctx, "nsenter")
		cmd.Err = fmt.Errorf("node %s/%s is not running: run `fastnet-lab up` again", n.cluster.name, n.role)
		return cmd
	}
	return enter(ctx, n.enterArgs(init), args)
}

// enterArgs is the command line, nsenter included, that a command on the node is put after.
func (n *Node) enterArgs(init process) []string {
	// The lab's own kubectl goes before one that the machine may have, of whatever version.
	path := strings.Replace(nodePath, "=", "="+filepath.Join(n.lab.config.Dist, "lab", "bin")+":", 1)
	kubeconfig := "KUBECONFIG=/etc/kubernetes/kubelet.conf"
	if n.role == "control" {
		kubeconfig = "KUBECONFIG=/etc/kubernetes/admin.conf"
	}
	return append(joinGroup(n.lab.groups.procsFiles(n.name)), "nsenter", "--target="+strconv.Itoa(init.PID), "--net", "--mount", "--uts", "--ipc", "--pid", "--wd",
		"--", "env", path, kubeconfig, "CONTAINERD_NAMESPACE=k8s.io")
}

// joinGroup is the command line to put before one that is to run in the control group that files are of. On a node a command has its share
// of the node's processors, as it would have on a machine, and none beside the lab's: in a busy one all nodes together had no more than a
// command alone.
func joinGroup(files []string) []string {
	return append([]string{"sh", "-c", `while [ "$1" != -- ]; do echo 0 > "$1" || exit; shift; done; shift; exec "$@"`, "sh"}, append(files, "--")...)
}

// Command is a command that runs in the WAN's network namespace, with the machine's own files and processes.
func (w *WAN) Command(ctx context.Context, args ...string) *exec.Cmd {
	return enter(ctx, w.enterArgs(), args)
}

func (*WAN) enterArgs() []string {
	return []string{"nsenter", "--net=" + filepath.Join(netnsDir, wanSpace), "--"}
}

func enter(ctx context.Context, prefix, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, prefix[0], append(prefix[1:len(prefix):len(prefix)], args...)...)
	// nsenter passes no signal on to the process it forks in the node, so the group is what is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// EnterArgs is the command line to put before a command that is to run at a target, CLUSTER/NODE or wan, for those who
// replace their own process with it (an interactive shell).
func (l *Lab) EnterArgs(target string) ([]string, error) {
	if target == "wan" {
		return l.WAN().enterArgs(), nil
	}
	parsed, err := l.parseTarget(target)
	if err != nil {
		return nil, err
	}
	if parsed.node == nil || parsed.detail != "" {
		return nil, fmt.Errorf("%q is no node: give CLUSTER/NODE (c1/worker1) or wan", target)
	}
	init, ok := parsed.node.init()
	if !ok {
		return nil, fmt.Errorf("node %s is not running: run `fastnet-lab up` again", target)
	}
	return parsed.node.enterArgs(init), nil
}

// target is what cut, heal, pause and resume work on.
type target struct {
	node   *Node
	detail string // after the colon: a link or a program
}

// parseTarget reads CLUSTER/NODE or CLUSTER/NODE:DETAIL. A node may also be given by its name in Kubernetes (c1/c1-worker1).
func (l *Lab) parseTarget(text string) (target, error) {
	place, detail, _ := strings.Cut(text, ":")
	cluster, role, isNode := strings.Cut(place, "/")
	c := l.Cluster(cluster)
	if c == nil {
		return target{}, fmt.Errorf("no cluster %q: there are %s", cluster, strings.Join(l.config.clusterNames(), ", "))
	}
	if !isNode {
		return target{}, fmt.Errorf("%q names no node: give CLUSTER/NODE, such as %s/control", text, cluster)
	}
	node := l.Node(cluster, strings.TrimPrefix(role, cluster+"-"))
	if node == nil {
		var roles []string
		for _, n := range c.nodes {
			roles = append(roles, n.role)
		}
		return target{}, fmt.Errorf("no node %q in %s: there are %s", role, cluster, strings.Join(roles, ", "))
	}
	return target{node, detail}, nil
}
