package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/withdraw"
)

// withdrawCommand is the one subcommand. It is in the agent's image because the chart's hook has no other that holds the
// credentials of the broker, and in the agent's program because the two must agree on what the agent makes.
const withdrawCommand = "withdraw"

// withdrawConfig is what the flags of withdraw say.
type withdrawConfig struct {
	kubeconfig       string
	brokerKubeconfig string
	timeout          time.Duration
}

func parseWithdraw(args []string, output io.Writer) (withdrawConfig, error) {
	var c withdrawConfig
	flags := pflag.NewFlagSet("fastnet-agent withdraw", pflag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `FILE` of this cluster; empty: the pod's service account")
	flags.StringVar(&c.brokerKubeconfig, "broker-kubeconfig", "/etc/fastnet/broker/kubeconfig", "kubeconfig `FILE` of the broker; one that cannot be read is told of and left out")
	flags.DurationVar(&c.timeout, "timeout", 40*time.Second, "`TIME` after which it ends in any case")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected arguments %q", flags.Args())
	}
	return c, nil
}

// Validate reports every problem of the flags.
func (c withdrawConfig) Validate() error {
	if c.timeout <= 0 {
		return errors.New("--timeout: give more than nothing")
	}
	return nil
}

func withdrawRun(ctx context.Context, c withdrawConfig) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	const userAgent = "fastnet-agent withdraw"
	localConfig, err := kube.Config(c.kubeconfig, userAgent)
	if err != nil {
		return err
	}
	local, err := withdraw.New(localConfig)
	if err != nil {
		return err
	}
	var remote *withdraw.Server
	brokerConfig, namespace, err := broker.Config(c.brokerKubeconfig, userAgent)
	if err == nil {
		remote, err = withdraw.New(brokerConfig)
	}
	if err != nil {
		log.Warn("nothing says where the broker is; what this cluster has there stays", "error", err)
	}
	return withdraw.Run(ctx, local, remote, namespace, c.timeout, log)
}
