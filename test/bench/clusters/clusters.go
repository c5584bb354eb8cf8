// Package clusters is the lab of the network benchmarks: two clusters, each with a control node, two gateways, and a plain
// node with some pods. A pod on a plain node reaches the other cluster by a gateway of its own and one of the other cluster.
//
//	pods - c1/worker3 -+- c1/worker1 -+- WAN -+- c2/worker1 -+- c2/worker3 - pods
//	                   +- c1/worker2 -+       +- c2/worker2 -+
package clusters

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

// Gateways of each cluster: worker1 and so on. The worker after them is the plain node.
const Gateways = 2

// pods on the plain node. By default kernels spread flows by their addresses alone, so one pair of pods would have but one way.
const pods = 4

// Pair is the two clusters.
type Pair struct {
	Lab    *lab.Lab
	Teller *story.Teller
	Dist   string // the folder of what is built
	Sides  []*Side

	dir       string // for files
	processes []*traffic.Process
}

// Side is one of the two clusters.
type Side struct {
	Cluster  string
	Gateways []*lab.Node
	Plain    *lab.Node
	// Pods on the plain node.
	Pods []Pod
}

// Pod is one of them.
type Pod struct {
	// Addrs are its addresses, IPv4 first.
	Addrs []netip.Addr

	node  *lab.Node
	space string // its network namespace, on the node
}

// Name by which both clusters find the plain nodes' pods of both: a headless service that both export.
const Name = "traffic.bench.svc.clusterset.local"

// manifest of the pods: those on the plain node, whose service it is, and one on each gateway.
func manifest(s *Side) string {
	text := `
apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: v1
kind: Service
metadata: {name: traffic, namespace: bench}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {app: traffic}
  ports: [{name: traffic, port: 5300, protocol: UDP}]
`
	pod := func(name, app string, node *lab.Node) {
		text += fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: bench, labels: {app: %[3]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: sleep, image: "fastnet.dev/toolbox:dev", command: [sleep, infinity]}
`, name, node.Name(), app)
	}
	for n := range pods {
		pod(fmt.Sprintf("traffic-%d", n), "traffic", s.Plain)
	}
	for _, gateway := range s.Gateways {
		// With it the gateway has an address among the pods, which the other cluster reaches through the tunnel.
		pod("gateway-"+gateway.Role(), "gateway", gateway)
	}
	return text
}

// Up starts the lab with Fastnet and the pods, and returns when every cable is up. tidy takes all away again, also after an
// error. With keep it uses a lab that runs, and leaves it running. Clusters join with these arguments besides the usual ones.
func Up(ctx context.Context, keep bool, join ...string) (pair *Pair, tidy func() error, err error) {
	tidy = func() error { return nil }
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, tidy, fmt.Errorf("find the module: %w", err)
	}
	p := &Pair{Dist: filepath.Join(strings.TrimSpace(string(root)), "dist")}
	config := lab.DefaultConfig(p.Dist)
	config.Workers, config.Install, config.Gateways, config.Join = Gateways+1, true, Gateways, join
	config.Progress = lab.ProgressLines(func(line string) { fmt.Println("  " + line) })
	if _, err := lab.Open(); err == nil {
		if !keep {
			return nil, tidy, errors.New("a lab is running on this machine, and the benchmark needs one of its own: run `make demo-down` first")
		}
		config.Install = false // Fastnet is on it
	}
	if p.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, tidy, err
	}
	tidy = func() error {
		errs := []error{os.RemoveAll(p.dir)}
		for _, process := range p.processes {
			errs = append(errs, process.Stop())
		}
		if !keep {
			errs = append(errs, lab.Down(context.Background(), func(string) {}))
		}
		return errors.Join(errs...)
	}
	if p.Lab, err = lab.Up(ctx, config); err != nil {
		return nil, tidy, err
	}
	if p.Teller, err = story.New(p.Lab, p.Dist, filepath.Join(p.dir, "story"), os.Stdout); err != nil {
		return nil, tidy, err
	}
	for _, c := range p.Lab.Clusters() {
		s := &Side{Cluster: c.Name(), Plain: p.Lab.Node(c.Name(), fmt.Sprintf("worker%d", Gateways+1))}
		for n := range Gateways {
			s.Gateways = append(s.Gateways, p.Lab.Node(c.Name(), fmt.Sprintf("worker%d", n+1)))
		}
		p.Sides = append(p.Sides, s)
		if err := p.populate(ctx, s); err != nil {
			return nil, tidy, fmt.Errorf("%s: %w", c.Name(), err)
		}
		for _, gateway := range s.Gateways {
			if err := watchFlows(ctx, gateway); err != nil {
				return nil, tidy, fmt.Errorf("%s: %w", gateway.Name(), err)
			}
		}
	}
	return p, tidy, p.AwaitCables(ctx)
}

// populate makes the pods of a side.
func (p *Pair) populate(ctx context.Context, s *Side) error {
	file := filepath.Join(p.dir, s.Cluster+".yaml")
	if err := os.WriteFile(file, []byte(manifest(s)), 0o600); err != nil {
		return err
	}
	kubectl := "kubectl --context " + s.Cluster + " "
	for _, line := range []string{
		kubectl + "apply -f " + file,
		kubectl + "-n bench wait --for=condition=Ready --timeout=120s pods --all",
		"kubectl service export traffic -n bench --context " + s.Cluster,
	} {
		if _, err := p.Teller.Output(ctx, line); err != nil {
			return err
		}
	}
	out, err := p.Teller.Output(ctx, kubectl+`-n bench get pods -l app=traffic -o jsonpath='{range .items[*]}{.status.podIPs[*].ip}{"\n"}{end}'`)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		pod := Pod{node: s.Plain}
		for _, text := range strings.Fields(line) {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return err
			}
			pod.Addrs = append(pod.Addrs, addr)
		}
		if len(pod.Addrs) != 2 {
			return fmt.Errorf("a pod has the addresses %v, want one of each family", pod.Addrs)
		}
		// One that goes meanwhile is no pod's that stays.
		find := fmt.Sprintf(`for f in /run/netns/*; do nsenter --net=$f ip -o addr 2>/dev/null | grep -qF ' %s/' && echo $f; done; true`, pod.Addrs[0])
		space, err := s.Plain.Command(ctx, "sh", "-c", find).CombinedOutput()
		if err != nil {
			return fmt.Errorf("find the pod's network namespace: %w: %s", err, space)
		}
		if pod.space = strings.TrimSpace(string(space)); len(strings.Fields(pod.space)) != 1 {
			return fmt.Errorf("the pod's network namespace is %q, want one", pod.space)
		}
		s.Pods = append(s.Pods, pod)
	}
	if len(s.Pods) != pods {
		return fmt.Errorf("there are %d pods, want %d", len(s.Pods), pods)
	}
	return nil
}

// InPod starts a role in a pod's network, after a command line that goes before it, such as that of nice. It is no process of
// the pod, so that it can be asked while the API server is stopped. It is stopped by tidy.
func (p *Pair) InPod(ctx context.Context, pod Pod, before []string, role string, args ...string) (*traffic.Process, error) {
	return p.OnNode(ctx, pod.node, append([]string{"nsenter", "--net=" + pod.space, "--"}, before...), role, args...)
}

// OnNode is the same in a node's own network.
func (p *Pair) OnNode(ctx context.Context, n *lab.Node, before []string, role string, args ...string) (*traffic.Process, error) {
	line, err := traffic.Args(role, args...)
	if err != nil {
		return nil, err
	}
	process, err := traffic.Start(n.Command(ctx, append(before, line...)...))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name(), err)
	}
	p.processes = append(p.processes, process)
	return process, nil
}

// Settle is how long the clusters may take to be as they were, once nothing is broken any more.
const Settle = 2 * time.Minute

// AwaitCables waits until every gateway says that every cable is up. It asks the gateways themselves: an API server may be
// stopped, and what is in it is older.
func (p *Pair) AwaitCables(ctx context.Context) error {
	return traffic.AwaitEvery(ctx, time.Second, Settle, "all cables are up", func() error { return p.CablesUp(ctx) })
}

// CablesUp names the gateways that have a cable that is not up.
func (p *Pair) CablesUp(ctx context.Context) error {
	var errs []error
	for _, s := range p.Sides {
		for _, gateway := range s.Gateways {
			errs = append(errs, cablesUp(ctx, gateway))
		}
	}
	return errors.Join(errs...)
}

func cablesUp(ctx context.Context, gateway *lab.Node) error {
	out, err := gateway.Command(ctx, "curl", "-sS", "--max-time", "2", "http://localhost:9471/metrics").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", gateway.Name(), err, strings.TrimSpace(string(out)))
	}
	if up := countUp(string(out)); up != Gateways {
		return fmt.Errorf("%s: %d of %d cables are up", gateway.Name(), up, Gateways)
	}
	return nil
}

// countUp counts the cables that the gateway's metrics call up.
func countUp(metrics string) int {
	up := 0
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "fastnet_gateway_cable_up{") && strings.HasSuffix(strings.TrimSpace(line), " 1") {
			up++
		}
	}
	return up
}

// Target is how the lab names a node.
func Target(n *lab.Node) string { return ClusterOf(n) + "/" + n.Role() }

// ClusterOf is the name of a node's cluster.
func ClusterOf(n *lab.Node) string {
	name, _, _ := strings.Cut(n.Name(), "-") // the lab's nodes bear the cluster's name
	return name
}
