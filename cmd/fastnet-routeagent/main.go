// Command fastnet-routeagent runs on every node and keeps its routes towards the gateway. See routeagent/README.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/go-logr/logr"

	"github.com/fastnet-io/fastnet/internal/nodeprobe"
	"github.com/fastnet-io/fastnet/routeagent"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fastnet-routeagent:", err)
		return 1
	}
	return 0
}

func command() *cobra.Command {
	var config routeagent.Config
	var mode string
	var level slog.Level
	root := &cobra.Command{
		Use:           "fastnet-routeagent",
		Short:         "Keep this node's routes towards the gateway of its cluster",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) {
			config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			config.Mode = routeagent.Mode(mode)
			ctrllog.SetLogger(logr.FromSlogHandler(config.Log.Handler()))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return routeagent.Run(cmd.Context(), config) },
	}
	flags := root.Flags()
	flags.StringVar(&config.Kubeconfig, "kubeconfig", "", "kubeconfig file of this cluster (default: the pod's service account)")
	flags.StringVar(&config.ClusterID, "cluster-id", "", "ID of this cluster")
	flags.StringVar(&config.Node, "node", os.Getenv("NODE_NAME"), "name of this node (default: $NODE_NAME)")
	flags.StringSliceVar(&config.Prefixes, "prefixes", nil, "pod and service CIDRs of this cluster, both families, comma separated")
	flags.StringVar(&mode, "mode", string(routeagent.ModeAuto), "path to the gateway: auto, direct or tunnel")
	root.PersistentFlags().StringVar(&config.StateDir, "state-dir", "/var/lib/fastnet", "directory that keeps what was last known, for a start without the API server")
	flags.StringVar(&config.HTTPAddress, "http-address", ":9472", "address for /metrics, /healthz, /readyz and /debug/plan")
	flags.Uint16Var(&config.ProbePort, "node-probe-port", nodeprobe.DefaultPort, "port (UDP) at which gateways answer the nodes' probes")
	root.PersistentFlags().TextVar(&level, "log-level", slog.LevelInfo, "least level logged: debug, info, warn or error")
	root.AddCommand(&cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that a route agent has made on this node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return routeagent.CleanupAll(cmd.Context(), config.StateDir, config.Log)
		},
	})
	return root
}
