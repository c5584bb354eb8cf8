// Command fastnet-agent exports a cluster's services to the broker and imports those of all members of the clusterset.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/fastnet-io/fastnet/agent"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
	"github.com/fastnet-io/fastnet/internal/debug"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/mcsapi"
)

// config is what the flags say.
type config struct {
	kubeconfig       string
	brokerKubeconfig string
	clusterID        string
	httpAddress      string
	logLevel         string
}

func parse(args []string, output io.Writer) (config, error) {
	var c config
	flags := pflag.NewFlagSet("fastnet-agent", pflag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `FILE` of this cluster; empty: the pod's service account")
	flags.StringVar(&c.brokerKubeconfig, "broker-kubeconfig", "/etc/fastnet/broker/kubeconfig", "kubeconfig `FILE` of the broker; the namespace of its current context is this member's")
	flags.StringVar(&c.clusterID, "cluster-id", "", "`ID` of this cluster in the clusterset, one or two DNS labels (required)")
	flags.StringVar(&c.httpAddress, "http-address", ":9470", "`ADDRESS` for /metrics, /healthz, /readyz and /debug/plan")
	flags.StringVar(&c.logLevel, "log-level", "info", "`LEVEL` of the log: debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected arguments %q", flags.Args())
	}
	return c, nil
}

// Validate reports every problem of the flags.
func (c config) Validate() error {
	var problems []error
	if c.clusterID == "" {
		problems = append(problems, errors.New("--cluster-id is required"))
	} else if err := clusterset.CheckClusterID(c.clusterID); err != nil {
		problems = append(problems, fmt.Errorf("--cluster-id: %w", err))
	}
	if c.brokerKubeconfig == "" {
		problems = append(problems, errors.New("--broker-kubeconfig is required"))
	}
	if c.httpAddress == "" {
		problems = append(problems, errors.New("--http-address is required"))
	}
	if err := new(slog.Level).UnmarshalText([]byte(c.logLevel)); err != nil {
		problems = append(problems, fmt.Errorf("--log-level: %w", err))
	}
	return errors.Join(problems...)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == withdrawCommand {
		c, err := parseWithdraw(os.Args[2:], os.Stderr)
		end(ctx, c, err, withdrawRun)
		return
	}
	c, err := parse(os.Args[1:], os.Stderr)
	end(ctx, c, err, func(ctx context.Context, c config) error {
		err := run(ctx, c)
		if ctx.Err() != nil {
			return nil // what fails because it is to stop
		}
		return err
	})
}

// end runs what the flags say, if they can be read and make sense, and ends the process where that fails.
func end[C interface{ Validate() error }](ctx context.Context, c C, err error, run func(context.Context, C) error) {
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fastnet-agent:", err)
		os.Exit(2)
	}
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "fastnet-agent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetSlogLogger(log) // client-go's own lines: watches that fail and come back
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))

	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	localConfig, err := kube.Config(c.kubeconfig, "fastnet-agent")
	if err != nil {
		return err
	}
	brokerConfig, namespace, err := broker.Config(c.brokerKubeconfig, "fastnet-agent")
	if err != nil {
		return err
	}
	var served func()
	mcs, err := mcsapi.New(localConfig, log, func() { served() })
	if err != nil {
		return err
	}
	objects, local, err := broker.Local(localConfig, scheme, mcs)
	if err != nil {
		return err
	}
	core, err := typedcorev1.NewForConfig(localConfig)
	if err != nil {
		return fmt.Errorf("client for events: %w", err)
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: core.Events("")})

	var changed func(broker.Change)
	remote, err := broker.New(brokerConfig, namespace, scheme, func(c broker.Change) { changed(c) })
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a, err := agent.New(agent.Config{
		ClusterID: c.clusterID, BrokerNamespace: namespace,
		Reader: objects, Local: failing(local), API: mcs, Broker: failing(remote.Writer), Records: remote, Connected: remote.Connected,
		Event: events.NewRecorder(scheme, corev1.EventSource{Component: "fastnet-agent"}).Event,
		Now:   time.Now, Metrics: registry, Log: log,
	})
	if err != nil {
		return err
	}
	changed, served, remote.Settled = a.BrokerChanged, a.Poke, a.Settled // before anything runs that uses them

	log.Info("agent starts", "cluster", c.clusterID, "broker", brokerConfig.Host, "namespace", namespace)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		return debug.Server{Address: c.httpAddress, Gatherer: registry, Ready: func() error { return errors.Join(mcs.Ready(), a.Ready()) }, Plan: a.Shown}.Run(ctx)
	})
	tasks.Go(func() error { return remote.Run(ctx) })
	tasks.Go(func() error { return mcs.Run(ctx) })
	tasks.Go(func() error {
		// The index that it makes must be there before the cache starts.
		if err := a.Watch(ctx, objects); err != nil {
			return err
		}
		tasks.Go(func() error { return objects.Start(ctx) })
		if objects.WaitForCacheSync(ctx) {
			a.Run(ctx)
		}
		return nil
	})
	return tasks.Wait()
}
