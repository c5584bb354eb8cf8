package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

// The lab of this benchmark: in each cluster a control node, two gateways, and a plain node with the pod at one end of all
// streams. A pod on a plain node reaches the other cluster by a gateway of its own and one of the other cluster.
//
//	pod - c1/worker3 -+- c1/worker1 -+- WAN -+- c2/worker1 -+- c2/worker3 - pod
//	                  +- c1/worker2 -+       +- c2/worker2 -+
const (
	gateways  = 2
	plainNode = "worker3"
)

// world is the lab with the streams' ends in it.
type world struct {
	ctx    context.Context
	dist   string
	dir    string // for files, removed at the end
	lab    *lab.Lab
	teller *story.Teller
	sides  []*side
	// port is the next flow's. No two flows of a run have the same, so a port alone says which flow a packet is of.
	port uint16
}

// side is one of the two clusters.
type side struct {
	cluster      string
	gateways     []*lab.Node
	node         *lab.Node // the plain one
	pod          []netip.Addr
	space        string // of the pod, on its node
	sink, source *traffic.Process
	flows        []traffic.Flow // that the source sends
}

const service = "traffic"

// manifest is the pod, and the headless service by which the other cluster finds it.
const manifest = `
apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: v1
kind: Pod
metadata: {name: traffic, namespace: bench, labels: {app: traffic}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: traffic, image: "fastnet.dev/toolbox:dev", command: [sleep, infinity]}
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

// newWorld starts the lab. tidy takes all away again, also after an error.
func newWorld(ctx context.Context, keep bool) (w *world, tidy func() error, err error) {
	tidy = func() error { return nil }
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, tidy, fmt.Errorf("find the module: %w", err)
	}
	w = &world{ctx: ctx, dist: filepath.Join(strings.TrimSpace(string(root)), "dist"), port: 20000}
	config := lab.DefaultConfig(w.dist)
	config.Workers, config.Install, config.Gateways = gateways+1, true, gateways
	config.Progress = lab.ProgressLines(func(line string) { fmt.Println("  " + line) })
	if _, err := lab.Open(); err == nil && !keep {
		return nil, tidy, errors.New("a lab is running on this machine, and the benchmark needs one of its own: run `make demo-down` first")
	}
	if !keep {
		tidy = func() error { return lab.Down(context.Background(), func(string) {}) }
	}
	if w.lab, err = lab.Up(ctx, config); err != nil {
		return nil, tidy, err
	}
	if w.dir, err = os.MkdirTemp("", "bench-failover-"); err != nil {
		return nil, tidy, err
	}
	down := tidy
	tidy = func() error { return errors.Join(w.stop(), down(), os.RemoveAll(w.dir)) }
	if w.teller, err = story.New(w.lab, w.dist, filepath.Join(w.dir, "story"), os.Stdout); err != nil {
		return nil, tidy, err
	}
	for _, c := range w.lab.Clusters() {
		s := &side{cluster: c.Name(), node: w.lab.Node(c.Name(), plainNode)}
		for n := range gateways {
			s.gateways = append(s.gateways, w.lab.Node(c.Name(), fmt.Sprintf("worker%d", n+1)))
		}
		w.sides = append(w.sides, s)
		if err := w.populate(s); err != nil {
			return nil, tidy, fmt.Errorf("%s: %w", c.Name(), err)
		}
	}
	for _, s := range w.sides {
		for _, gateway := range s.gateways {
			if err := watchFlows(ctx, gateway); err != nil {
				return nil, tidy, fmt.Errorf("%s: %w", gateway.Name(), err)
			}
		}
	}
	return w, tidy, w.awaitCables()
}

// populate makes the pod of a side, and starts source and sink in it.
func (w *world) populate(s *side) error {
	file := filepath.Join(w.dir, s.cluster+".yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, manifest, s.node.Name()), 0o600); err != nil {
		return err
	}
	kubectl := "kubectl --context " + s.cluster + " "
	for _, line := range []string{
		kubectl + "apply -f " + file,
		kubectl + "-n bench wait --for=condition=Ready --timeout=120s pod/traffic",
		"kubectl service export " + service + " -n bench --context " + s.cluster,
	} {
		if _, err := w.teller.Output(w.ctx, line); err != nil {
			return err
		}
	}
	out, err := w.teller.Output(w.ctx, kubectl+"-n bench get pod traffic -o jsonpath='{.status.podIPs[*].ip}'")
	if err != nil {
		return err
	}
	for _, text := range strings.Fields(out) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		s.pod = append(s.pod, addr)
	}
	if len(s.pod) != 2 {
		return fmt.Errorf("the pod has the addresses %v, want one of each family", s.pod)
	}
	find := fmt.Sprintf(`for f in /run/netns/*; do nsenter --net=$f ip -o addr | grep -qF ' %s/' && echo $f; done; true`, s.pod[0])
	space, err := s.node.Command(w.ctx, "sh", "-c", find).CombinedOutput()
	if s.space = strings.TrimSpace(string(space)); err != nil || len(strings.Fields(s.space)) != 1 {
		return fmt.Errorf("find the pod's network namespace: %w: %q", err, s.space)
	}
	if s.sink, err = w.inPod(s, "sink"); err != nil {
		return err
	}
	s.source, err = w.inPod(s, "source")
	return err
}

// inPod starts a role in the pod's network. It is no process of the pod, so that it can be asked while the API server is
// stopped; and it goes before others, for what it measures is the network, not this machine's processors.
func (w *world) inPod(s *side, role string, args ...string) (*traffic.Process, error) {
	line, err := traffic.Args(role, args...)
	if err != nil {
		return nil, err
	}
	return traffic.Start(s.node.Command(w.ctx, append([]string{"nsenter", "--net=" + s.space, "--", "nice", "-n", "-10"}, line...)...))
}

func (w *world) stop() error {
	var errs []error
	for _, s := range w.sides {
		for _, p := range []*traffic.Process{s.source, s.sink} {
			if p != nil {
				errs = append(errs, p.Stop())
			}
		}
	}
	return errors.Join(errs...)
}

// renew has all sources send new flows, and waits until they arrive.
func (w *world) renew(flows int) error {
	for i, s := range w.sides {
		other := w.sides[1-i]
		s.flows = nil
		for _, to := range other.pod {
			for n := range flows + flows/2 {
				s.flows = append(s.flows, traffic.Flow{Port: w.port, TCP: n >= flows, To: to})
				if w.port++; w.port == 60000 {
					w.port = 20000 // those from the beginning are long gone
				}
			}
		}
	}
	return errors.Join(w.send(), w.window(), w.awaitFlow(nil))
}

func (w *world) send() error {
	var errs []error
	for _, s := range w.sides {
		errs = append(errs, s.source.Send(s.flows))
	}
	return errors.Join(errs...)
}

// silence stops all flows.
func (w *world) silence() error {
	for _, s := range w.sides {
		s.flows = nil
	}
	return w.send()
}

// window begins a new window everywhere.
func (w *world) window() error {
	var errs []error
	for i, s := range w.sides {
		errs = append(errs, s.sink.Window(append([]traffic.Flow{}, w.sides[1-i].flows...)))
	}
	return errors.Join(errs...)
}

// accounts of all flows. One that never arrived has an empty account.
func (w *world) accounts() (map[traffic.Flow]traffic.Account, error) {
	all := map[traffic.Flow]traffic.Account{}
	for i, s := range w.sides {
		accounts, err := s.sink.Accounts()
		if err != nil {
			return nil, err
		}
		for _, flow := range w.sides[1-i].flows {
			all[flow] = accounts[flow.Port]
		}
	}
	return all, nil
}

// errBroken is what flows that are not whole are.
var errBroken = errors.New("streams are broken")

// whole says whether every flow is: 200 packets or 20 records came one after the other, and since the accounts before.
func whole(before, now map[traffic.Flow]traffic.Account) error {
	var broken []string
	for flow, account := range now {
		enough := uint64(200)
		if flow.TCP {
			enough = 20
		}
		if account.Run < enough || account.Received < before[flow].Received+enough {
			broken = append(broken, fmt.Sprint(flow.Port))
		}
	}
	if len(broken) > 0 {
		slices.Sort(broken)
		return fmt.Errorf("%w: %d of %d (%s)", errBroken, len(broken), len(now), strings.Join(broken, " "))
	}
	return nil
}

// awaitFlow waits until all flows are whole, with what arrived after the accounts before.
func (w *world) awaitFlow(before map[traffic.Flow]traffic.Account) error {
	return w.awaitFlowFor(settle, before)
}

func (w *world) awaitFlowFor(patience time.Duration, before map[traffic.Flow]traffic.Account) error {
	return traffic.Await(w.ctx, patience, "all streams are whole", func() error {
		now, err := w.accounts()
		if err != nil {
			return err
		}
		return whole(before, now)
	})
}

// settle is how long the clusters may take to be as they were, once nothing is broken any more.
const settle = 2 * time.Minute

// awaitCables waits until every gateway says that every cable is up. It asks the gateways themselves: an API server may be
// stopped, and what is in it is older.
func (w *world) awaitCables() error {
	return traffic.Await(w.ctx, settle, "all cables are up", w.cablesUp)
}

func (w *world) cablesUp() error {
	var errs []error
	for _, s := range w.sides {
		for _, gateway := range s.gateways {
			errs = append(errs, cablesUp(w.ctx, gateway))
		}
	}
	return errors.Join(errs...)
}

func cablesUp(ctx context.Context, gateway *lab.Node) error {
	out, err := gateway.Command(ctx, "curl", "-sS", "--max-time", "2", "http://localhost:9471/metrics").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", gateway.Name(), err, strings.TrimSpace(string(out)))
	}
	up := 0
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "fastnet_gateway_cable_up{") && strings.HasSuffix(strings.TrimSpace(line), " 1") {
			up++
		}
	}
	if up != gateways {
		return fmt.Errorf("%s: %d of %d cables are up", gateway.Name(), up, gateways)
	}
	return nil
}

// target is how the lab names a node.
func target(n *lab.Node) string {
	return cluster(n) + "/" + n.Role()
}

func cluster(n *lab.Node) string {
	name, _, _ := strings.Cut(n.Name(), "-") // the lab's nodes bear the cluster's name
	return name
}
