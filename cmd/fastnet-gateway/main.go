// Command fastnet-gateway runs on gateway nodes and keeps the cables to other clusters. See gateway/README.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/fastnet-io/fastnet/gateway"
	"github.com/fastnet-io/fastnet/gateway/ipsec"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fastnet-gateway:", err)
		return 1
	}
	return 0
}

func command() *cobra.Command {
	var config gateway.Config
	var level slog.Level
	root := &cobra.Command{
		Use:           "fastnet-gateway",
		Short:         "Keep the cables between this gateway node and other clusters",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) {
			config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			ctrllog.SetLogger(logr.FromSlogHandler(config.Log.Handler()))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return gateway.Run(cmd.Context(), config) },
	}
	flags := root.Flags()
	shared := root.PersistentFlags()
	flags.StringVar(&config.Kubeconfig, "kubeconfig", "", "kubeconfig file of this cluster (default: the pod's service account)")
	shared.StringVar(&config.ClusterID, "cluster-id", "", "ID of this cluster")
	shared.StringVar(&config.Node, "node", os.Getenv("NODE_NAME"), "name of this node (default: $NODE_NAME)")
	flags.StringSliceVar(&config.Prefixes, "prefixes", nil, "pod and service CIDRs of this cluster, both families, comma separated")
	flags.StringSliceVar(&config.Drivers, "driver", []string{cables.WireGuard}, "cable drivers, the preferred first, comma separated: wireguard, ipsec and vxlan")
	flags.Uint16Var(&config.IPsecPort, "ipsec-port", ipsec.DefaultPort, "UDP port of IKE and ESP, with the driver ipsec; one for all peers")
	flags.BoolVar(&config.AllowUnencrypted, "allow-unencrypted", false, "allow the driver vxlan, which sends the packets of pods unencrypted")
	flags.Uint16Var(&config.Port, "port", 51820, "first UDP port for peers; each peer has one of its own, from here upwards")
	flags.Uint16Var(&config.NodeProbePort, "node-probe-port", nodeprobe.DefaultPort, "UDP port at which the nodes of this cluster are answered")
	flags.StringSliceVar(&config.Addresses, "addresses", nil, "addresses of this node for peers (default: the Node's ExternalIPs and InternalIPs)")
	flags.StringVar(&config.HTTPAddress, "http-address", ":9471", "address for /metrics, /healthz, /readyz and /debug/plan")
	shared.StringVar(&config.StateDir, "state-dir", "/var/lib/fastnet", "directory that holds the private key, the peers' ports, and what was last known")
	shared.TextVar(&level, "log-level", slog.LevelInfo, "least level logged: debug, info, warn or error")
	root.AddCommand(&cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that a gateway has made on this node, its key too (all keys without --cluster-id)",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return gateway.Cleanup(cmd.Context(), config) },
	})
	return root
}
