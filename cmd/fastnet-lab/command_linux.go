package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fastnet-io/fastnet/test/lab"
)

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "fastnet-lab",
		Short: "Run Kubernetes clusters in network namespaces of this machine",
		Long: `fastnet-lab runs real Kubernetes clusters on one Linux machine, without Docker and without a registry. Each node is a
set of namespaces, each cluster has its own segment, and a router that knows no pod ranges (the WAN) joins them.

Clusters are c1, c2, ...; their nodes are control, worker1, worker2, ... A node is named CLUSTER/NODE: c1/worker1.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(upCommand(), downCommand(), statusCommand(), kubeconfigCommand(), loadImageCommand(), execCommand(),
		cutCommand("cut", "Break the network of a node, a link or a pair of clusters", (*lab.Lab).Cut),
		cutCommand("heal", "Mend what cut broke", (*lab.Lab).Heal),
		pauseCommand("pause", "Stop a node or one of its programs, as if it hung", (*lab.Lab).Pause),
		pauseCommand("resume", "Let go on what pause stopped", (*lab.Lab).Resume),
		nodeInitCommand())
	return root
}

func upCommand() *cobra.Command {
	config := lab.DefaultConfig("")
	var pods, services []string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the clusters",
		Long: `Start the clusters and wait until they are ready. Run again, it makes what is missing and changes nothing else.

Pods and services of cluster cN have 10.(7+N).0.0/16 and 10.(77+11*N).0.0/16, and fd00:10:(7+N)::/48 and fd00:10:(77+11*N)::/112,
unless --pods or --services say otherwise.`,
		Example: `  fastnet-lab up
  fastnet-lab up --clusters 3 --workers 1
  fastnet-lab up --families ipv6
  fastnet-lab up --pods c1=10.7.0.0/16,fd00:10:7::/48 --pods c2=10.7.0.0/16,fd00:10:7::/48   # ranges that overlap`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if config.Dist == "" {
				if config.Dist, err = lab.FindDist(); err != nil {
					return err
				}
			}
			if config.Dist, err = filepath.Abs(config.Dist); err != nil {
				return err
			}
			if config.Pods, err = rangesByCluster("--pods", pods); err != nil {
				return err
			}
			if config.Services, err = rangesByCluster("--services", services); err != nil {
				return err
			}
			began := time.Now()
			if !quiet {
				config.Progress = lab.ProgressLines(func(line string) { cmd.PrintErrln(line) })
			}
			l, err := lab.Up(cmd.Context(), config)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%d clusters are ready after %.0f s. Next:\n", len(l.Clusters()), time.Since(began).Seconds())
			for _, c := range l.Clusters() {
				fmt.Fprintf(out, "  kubectl --kubeconfig %s get nodes\n", c.Kubeconfig())
			}
			fmt.Fprintf(out, "  fastnet-lab exec c1/worker1\n  fastnet-lab down\n")
			return nil
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.Clusters, "clusters", config.Clusters, "number of clusters, 1 to 9")
	flags.IntVar(&config.Workers, "workers", config.Workers, "worker nodes of each cluster, besides its control node")
	flags.StringVar((*string)(&config.Families), "families", string(config.Families), "IP families of pods, services and nodes: ipv4, ipv6 or dual")
	flags.StringVar((*string)(&config.Proxy), "proxy-mode", string(config.Proxy), "mode of kube-proxy: iptables or nftables")
	flags.BoolVar(&config.IPMasq, "ip-masq", false, "have the CNI plugin masquerade what leaves the pod range of its node")
	flags.StringArrayVar(&pods, "pods", nil, "pod ranges of a cluster, `CLUSTER=RANGE[,RANGE]`; may be given for each cluster")
	flags.StringArrayVar(&services, "services", nil,
		"service ranges of a cluster, `CLUSTER=RANGE[,RANGE]`; may be given for each cluster")
	flags.BoolVar(&config.Install, "install", false, "put Fastnet on the clusters, the broker in c1")
	flags.IntVar(&config.Gateways, "gateways", 1, "gateway nodes of each cluster, with --install")
	flags.StringArrayVar(&config.Join, "join", nil, "another `argument` of kubectl fastnet join, with --install, such as --driver=vxlan; may be given more than once")
	flags.StringVar(&config.Dist, "dist", "",
		"`folder` of the built programs and images (default $FASTNET_DIST, else the one above this program's)")
	flags.BoolVarP(&quiet, "quiet", "q", false, "print no progress")
	return cmd
}

// rangesByCluster reads the values of --pods or --services.
func rangesByCluster(flag string, values []string) (map[string]lab.Ranges, error) {
	ranges := map[string]lab.Ranges{}
	for _, value := range values {
		cluster, text, ok := strings.Cut(value, "=")
		if !ok {
			return nil, fmt.Errorf("%s %s: give CLUSTER=RANGE[,RANGE], such as c1=10.8.0.0/16,fd00:10:8::/48", flag, value)
		}
		parsed, err := lab.ParseRanges(text)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", flag, value, err)
		}
		ranges[cluster] = parsed
	}
	return ranges, nil
}

func downCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End the clusters and remove everything they left on the machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var progress func(string)
			if !quiet {
				progress = lab.ProgressLines(func(line string) { cmd.PrintErrln(line) })
			}
			return lab.Down(cmd.Context(), progress)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print no progress")
	return cmd
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show clusters and nodes: their state, addresses, memory, and what is cut or paused",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open()
			if err != nil {
				return err
			}
			status, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			return status.Print(cmd.OutOrStdout())
		},
	}
}

func kubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "kubeconfig CLUSTER",
		Short:             "Print the path of a cluster's kubeconfig",
		Example:           "  export KUBECONFIG=$(fastnet-lab kubeconfig c1)",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: complete(clusters, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open()
			if err != nil {
				return err
			}
			c := l.Cluster(args[0])
			if c == nil {
				return fmt.Errorf("no cluster %q: there are %s", args[0], strings.Join(clusters(l), ", "))
			}
			fmt.Fprintln(cmd.OutOrStdout(), c.Kubeconfig())
			return nil
		},
	}
}

func loadImageCommand() *cobra.Command {
	var as string
	cmd := &cobra.Command{
		Use:   "load-image FILE",
		Short: "Put an image on every node",
		Long: `Put the image of an archive (OCI layout, or written by docker save) on every node, under its own name, and with --as
under a second one, so that a manifest that names a public image runs without a registry.`,
		Example: "  fastnet-lab load-image dist/images/whereami.tar --as registry.k8s.io/e2e-test-images/agnhost:2.53",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open()
			if err != nil {
				return err
			}
			return l.LoadImage(cmd.Context(), args[0], as)
		},
	}
	cmd.Flags().StringVar(&as, "as", "", "second `name` of the image")
	return cmd
}

func execCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "exec CLUSTER/NODE|wan [-- COMMAND [ARG...]]",
		Short: "Run a command, or a shell, on a node or in the WAN",
		Long: `Run a command on a node, in its network, files, processes and host name, or in the WAN's network namespace. Without a
command it is a shell. kubectl (with all rights on a control node, else with the node's own) and ctr are set up.`,
		Example: `  fastnet-lab exec c1/worker1
  fastnet-lab exec c1/worker1 -- ip route
  fastnet-lab exec wan -- tcpdump -ni any`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: complete(func(l *lab.Lab) []string { return append(nodes(l), "wan") }, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := lab.Open()
			if err != nil {
				return err
			}
			enter, err := l.EnterArgs(args[0])
			if err != nil {
				return err
			}
			command := args[1:]
			if len(command) == 0 {
				command = []string{"bash", "--norc"}
			}
			path, err := exec.LookPath(enter[0])
			if err != nil {
				return err
			}
			// The command takes this process's place: terminal, signals and exit code are its own.
			return syscall.Exec(path, append(enter, command...), append(os.Environ(), "PS1="+args[0]+"# "))
		},
	}
}

func cutCommand(name, short string, do func(*lab.Lab, context.Context, ...string) error) *cobra.Command {
	return &cobra.Command{
		Use:   name + " CLUSTER/NODE | CLUSTER/NODE:eth0 | CLUSTER CLUSTER",
		Short: short,
		Long: short + `.

A node:             its packets are lost in silence, as behind a dead switch.
A link:             it goes down and the node's kernel sees that, as with a pulled cable.
A pair of clusters: the WAN drops in silence what their nodes send to each other.`,
		Example: fmt.Sprintf("  fastnet-lab %[1]s c1/worker1\n  fastnet-lab %[1]s c1/worker1:eth0\n  fastnet-lab %[1]s c1 c2", name),
		Args:    cobra.RangeArgs(1, 2),
		ValidArgsFunction: complete(func(l *lab.Lab) []string {
			places := append(clusters(l), nodes(l)...)
			for _, node := range nodes(l) {
				places = append(places, node+":eth0")
			}
			return places
		}, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open()
			if err != nil {
				return err
			}
			return do(l, cmd.Context(), args...)
		},
	}
}

func pauseCommand(name, short string, do func(*lab.Lab, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:     name + " CLUSTER/NODE[:PROGRAM]",
		Short:   short,
		Long:    short + ": all its processes, with those of its pods, or one program (kubelet, etcd, ... or one of a pod).",
		Example: fmt.Sprintf("  fastnet-lab %[1]s c1/worker1\n  fastnet-lab %[1]s c1/control:kube-apiserver", name),
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: complete(func(l *lab.Lab) []string {
			var places []string
			for _, node := range nodes(l) {
				places = append(places, node, node+":kubelet", node+":containerd", node+":kube-proxy")
			}
			return places
		}, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open()
			if err != nil {
				return err
			}
			return do(l, cmd.Context(), args[0])
		},
	}
}

// nodeInitCommand is what a node's first process runs; see lab.RunNode.
func nodeInitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node-init SPEC", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return lab.RunNode(args[0]) },
	}
}

func clusters(l *lab.Lab) []string {
	var names []string
	for _, c := range l.Clusters() {
		names = append(names, c.Name())
	}
	return names
}

func nodes(l *lab.Lab) []string {
	names := map[string]bool{}
	for _, c := range l.Clusters() {
		for _, n := range c.Nodes() {
			names[c.Name()+"/"+n.Role()] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// complete offers words of the running lab for the first most arguments.
func complete(words func(*lab.Lab) []string, most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		l, err := lab.Open()
		if err != nil || len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words(l), cobra.ShellCompDirectiveNoFileComp
	}
}
