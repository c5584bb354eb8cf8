package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	pollInterval = 100 * time.Millisecond
	// patience is how long a cluster may take to be ready once its programs run. It takes half a minute on two cores;
	// the rest is for machines that do other work.
	patience = 5 * time.Minute
)

// Up starts the lab and returns when all clusters are ready: every node Ready, the cluster DNS available if its image
// is built. If the lab runs already it makes what is missing and changes nothing else; if another lab runs, with other
// clusters or ranges, it says so and does nothing.
func Up(ctx context.Context, config Config) (*Lab, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.complete()
	if err := check(config); err != nil {
		return nil, err
	}
	release, err := lock()
	if err != nil {
		return nil, err
	}
	defer release()
	l := newLab(config)
	running, err := Open()
	switch {
	case errors.Is(err, ErrNoLab):
	case err != nil:
		return nil, err
	case !running.config.same(config):
		return nil, fmt.Errorf("another lab is running (%s): run `fastnet-lab down` first", running.config)
	default:
		l.record.Inits = running.record.Inits
	}
	if l.groups, err = readCgroups(); err != nil {
		return nil, err
	}
	if err := l.save(func(*record) {}); err != nil {
		return nil, err
	}
	config.Progress(fmt.Sprintf("starting %s (control groups: %s)", config, l.groups.mode))
	if err := l.network(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	group, started := errgroup.WithContext(ctx)
	group.Go(func() error { return l.fillNodes(started) })
	for _, c := range l.clusters {
		group.Go(func() error {
			if err := l.startCluster(started, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("%w (logs: %s/CLUSTER/NODE/var/log; `fastnet-lab down` cleans up)", err, StateDir)
	}
	if err := l.save(func(r *record) { r.Ready = true }); err != nil {
		return nil, err
	}
	if config.Install {
		if err := l.install(ctx); err != nil {
			return nil, fmt.Errorf("install Fastnet: %w", err)
		}
	}
	return l, nil
}

// String is the size and ranges of a lab in one line.
func (c Config) String() string {
	c = c.complete()
	var text strings.Builder
	fmt.Fprintf(&text, "%d clusters of 1 control node and %d workers", c.Clusters, c.Workers)
	for _, name := range slices.Sorted(maps.Keys(c.Pods)) {
		fmt.Fprintf(&text, "; %s pods %s services %s", name, c.Pods[name], c.Services[name])
	}
	return text.String()
}

// startCluster starts all nodes of a cluster and waits until it is ready.
func (l *Lab) startCluster(ctx context.Context, c *Cluster) error {
	ca, err := openAuthority(pkiFolder(c), c.name)
	if err != nil {
		return err
	}
	if err := c.writeKubeconfig(ca); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := l.startNode(ctx, n, ca); err != nil {
			return fmt.Errorf("start node %s: %w", n.role, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a, err := newAPI(c.server(), ca)
	if err != nil {
		return err
	}
	if err := poll(ctx, pollInterval, func() (bool, error) { return a.ready(ctx), nil }); err != nil {
		return fmt.Errorf("the API server is not ready after %s: see var/log/kube-apiserver.log of the control node: %w",
			patience, err)
	}
	l.config.Progress(c.name + ": API server ready")
	for _, n := range c.nodes {
		if err := n.register(ctx, a); err != nil {
			return fmt.Errorf("register node %s: %w", n.role, err)
		}
	}
	if err := c.deployDNS(ctx, a); err != nil {
		return err
	}
	return l.awaitCluster(ctx, c, a)
}

// awaitCluster waits until all nodes are Ready and the cluster DNS is available.
func (l *Lab) awaitCluster(ctx context.Context, c *Cluster, a *api) error {
	before, state := -1, ""
	err := poll(ctx, 2*pollInterval, func() (bool, error) {
		nodes, err := a.readyNodes(ctx)
		if err != nil {
			state = err.Error() // an API server may be short of time; the next answer counts
			return false, nil
		}
		ready, missing := 0, []string{}
		for _, n := range c.nodes {
			// What a node that has just been started again said before does not count. The API's clock has seconds.
			if said, ok := nodes[n.name]; ok && !said.Before(n.started.Truncate(time.Second)) {
				ready++
			} else {
				missing = append(missing, n.role)
			}
		}
		state = "not Ready: " + strings.Join(missing, ", ")
		if ready != before {
			l.config.Progress(fmt.Sprintf("%s: %d of %d nodes Ready", c.name, ready, len(c.nodes)))
			before = ready
		}
		return ready == len(c.nodes), nil
	})
	if err != nil {
		return fmt.Errorf("%s after %s: see var/log/kubelet.log of the node", state, patience)
	}
	if !l.hasDNSImage() {
		l.config.Progress(c.name + ": no cluster DNS: " + filepath.Join(l.config.Dist, "images", "coredns.tar") +
			" is not built; run `make images`, then `fastnet-lab load-image` with it")
		return nil
	}
	err = poll(ctx, 2*pollInterval, func() (bool, error) {
		available, err := dnsAvailable(ctx, a)
		return available && err == nil, nil
	})
	if err != nil {
		return errors.New("cluster DNS is not available: see `kubectl -n kube-system describe pod -l k8s-app=kube-dns`")
	}
	l.config.Progress(c.name + ": cluster DNS available")
	return nil
}

func (c *Cluster) writeKubeconfig(ca *authority) error {
	if _, err := os.Stat(c.Kubeconfig()); err == nil {
		return nil
	}
	text, err := ca.kubeconfig(c.name, c.server(), c.name+"-admin", "system:masters")
	if err != nil {
		return err
	}
	return os.WriteFile(c.Kubeconfig(), []byte(text), 0o600)
}

// register makes the Node object before kubelet would, with the node's share of the pod range in it; kubelet then fills
// in the rest.
func (n *Node) register(ctx context.Context, a *api) error {
	var existing struct{ Spec struct{ PodCIDRs []string } }
	err := a.get(ctx, "/api/v1/nodes/"+n.name, &existing)
	if err == nil && len(existing.Spec.PodCIDRs) > 0 {
		return nil
	}
	if err != nil && !isNotFound(err) {
		return err
	}
	labels := map[string]string{"kubernetes.io/hostname": n.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": runtime.GOARCH}
	spec := map[string]any{}
	var cidrs []string
	for _, pods := range n.pods {
		cidrs = append(cidrs, pods.String())
	}
	spec["podCIDR"], spec["podCIDRs"] = cidrs[0], cidrs
	if n.role == "control" {
		labels["node-role.kubernetes.io/control-plane"] = ""
		spec["taints"] = []map[string]string{{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}}
	}
	return a.apply(ctx, "/api/v1/nodes", n.name, map[string]any{
		"apiVersion": "v1", "kind": "Node", "spec": spec,
		"metadata": map[string]any{"name": n.name, "labels": labels},
	})
}

// startNode starts the node's init unless it runs.
func (l *Lab) startNode(ctx context.Context, n *Node, ca *authority) error {
	if _, runs := n.init(); runs {
		return nil
	}
	// An `up` that was killed between starting an init and recording it has left one of which nobody knows.
	space, err := inode(filepath.Join(netnsDir, n.space()))
	if err != nil {
		return err
	}
	strays := func() ([]processInfo, error) {
		return processes(func(folder string) bool { return inNodeGroup(folder, n.name) || inNetwork(folder, space) })
	}
	if err := endAll(ctx, strays); err != nil {
		return err
	}
	// Groups of the containers of an earlier run hold kubelet up for seconds each: it looks for what is in them.
	if err := l.groups.removeAll(ctx, n.name); err != nil {
		return err
	}
	if err := applyCgroups(l.groups.plan(n.name)); err != nil {
		return err
	}
	spec, err := l.spec(n, ca)
	if err != nil {
		return err
	}
	init, err := l.startInit(spec, filepath.Join(StateDir, n.cluster.name, n.role, "init.json"), n.space())
	if err != nil {
		return err
	}
	info, err := readProcess(init.Pid)
	if err != nil {
		return fmt.Errorf("the node's init ended at once: %w", err)
	}
	n.started = time.Now()
	return l.save(func(r *record) { r.Inits[n.name] = info.process })
}

// startInit starts an init in namespaces of its own, and in the named network namespace unless that is "". It does not
// end with the caller.
func (l *Lab) startInit(spec nodeSpec, specFile, space string) (*os.Process, error) {
	text, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(specFile), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(specFile, text, 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(filepath.Dir(specFile), "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(l.config.Dist, "bin", initName), "node-init", specFile)
	cmd.Dir = "/"
	cmd.Env = []string{nodePath, "GOGC=50"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID,
	}
	if space == "" {
		err = cmd.Start()
	} else {
		err = inSpace(space, cmd.Start) // a child is born where the thread that forks it is
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return cmd.Process, nil
}
