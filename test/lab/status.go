package lab

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// initName is the program of a node's init, which only Pause of the whole node stops.
const initName = "fastnet-lab"

// Status is a lab at one moment.
type Status struct {
	Ready    bool // an `up` has ended well
	Clusters []ClusterStatus
}

// ClusterStatus is one cluster at one moment.
type ClusterStatus struct {
	Name, Kubeconfig string
	API              string // "ready" or "not ready"
	Pods, Services   Ranges
	Nodes            []NodeStatus
}

// NodeStatus is one node at one moment.
type NodeStatus struct {
	Name, Role string
	State      string // Ready or NotReady as Kubernetes says; unknown; down (its init has ended)
	Addrs      []string
	Network    string   // "whole", "cut" or "link down"
	Paused     []string // programs that are stopped; "all" when the whole node is
	MemoryMiB  int      // of all its processes, shared pages shared out (proportional set size)
}

// Status looks at every node.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	s := Status{Ready: l.record.Ready}
	for _, c := range l.clusters {
		status, err := l.clusterStatus(ctx, c)
		if err != nil {
			return Status{}, err
		}
		s.Clusters = append(s.Clusters, status)
	}
	return s, nil
}

func (l *Lab) clusterStatus(ctx context.Context, c *Cluster) (ClusterStatus, error) {
	s := ClusterStatus{Name: c.name, Kubeconfig: c.Kubeconfig(), API: "not ready", Pods: c.pods, Services: c.services}
	ready := map[string]time.Time{}
	ca, err := openAuthority(pkiFolder(c), c.name)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if a, err := newAPI(c.server(), ca); err == nil && a.ready(limited) {
			s.API = "ready"
			ready, _ = a.readyNodes(limited) // no answer: the nodes are unknown
		}
	}
	network, err := l.portStates(ctx)
	if err != nil {
		return s, err
	}
	for _, n := range c.nodes {
		status := NodeStatus{Name: n.name, Role: n.role, State: "unknown", Network: network[n.port()]}
		for _, addr := range n.addrs {
			status.Addrs = append(status.Addrs, addr.String())
		}
		if _, ok := ready[n.name]; ok {
			status.State = "Ready"
		} else if s.API == "ready" {
			status.State = "NotReady"
		}
		if _, runs := n.init(); !runs {
			status.State = "down"
		}
		all, err := n.processes()
		if err != nil {
			return s, err
		}
		memory := 0
		for _, p := range all {
			memory += p.memory()
			if name := programName(p); p.state == 'T' && !slices.Contains(status.Paused, name) {
				status.Paused = append(status.Paused, name)
			}
		}
		slices.Sort(status.Paused)
		if slices.Contains(status.Paused, initName) {
			status.Paused = []string{"all"}
		}
		status.MemoryMiB = memory / 1024
		s.Nodes = append(s.Nodes, status)
	}
	return s, nil
}

// portStates reads what is cut, from the WAN itself.
func (l *Lab) portStates(ctx context.Context) (map[string]string, error) {
	out, err := l.WAN().Command(ctx, "bridge", "link", "show").Output()
	if err != nil {
		return nil, fmt.Errorf("look at the WAN's bridges: %w", err)
	}
	return parsePorts(string(out)), nil
}

// parsePorts reads lines such as
//
//	5: c1-control@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 master c1 state forwarding priority 32 cost 2
func parsePorts(text string) map[string]string {
	ports := map[string]string{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(fields[1], ":"), "@")
		flags := strings.Split(strings.Trim(fields[2], "<>"), ",")
		switch {
		case !slices.Contains(flags, "UP"):
			ports[name] = "link down"
		case strings.Contains(line, " state disabled "):
			ports[name] = "cut"
		default:
			ports[name] = "whole"
		}
	}
	return ports
}

// Print writes the status as a table.
func (s Status) Print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if !s.Ready {
		fmt.Fprintln(table, "The last `fastnet-lab up` did not end well: run it again, or `fastnet-lab down`.")
	}
	for _, c := range s.Clusters {
		fmt.Fprintf(table, "%s: API server %s, pods %s, services %s\n", c.Name, c.API, c.Pods, c.Services)
	}
	fmt.Fprintln(table, "\nNODE\tSTATE\tADDRESSES\tNETWORK\tPAUSED\tMEMORY")
	total := 0
	for _, c := range s.Clusters {
		for _, n := range c.Nodes {
			paused := strings.Join(n.Paused, ",")
			if paused == "" {
				paused = "-"
			}
			fmt.Fprintf(table, "%s/%s\t%s\t%s\t%s\t%s\t%d MiB\n", c.Name, n.Role, n.State, strings.Join(n.Addrs, " "), n.Network,
				paused, n.MemoryMiB)
			total += n.MemoryMiB
		}
	}
	fmt.Fprintf(table, "\t\t\t\t\t%d MiB\n", total)
	return table.Flush()
}
