// Package fastnet is the kubectl plugin kubectl-fastnet: it sets up a broker, lets clusters join and leave a clusterset,
// and shows what is connected.
package fastnet

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/kube"
)

// userAgent, and the name under which fields are applied.
const userAgent = "kubectl-fastnet"

// options are what every subcommand gets.
type options struct {
	genericiooptions.IOStreams
	flags    *genericclioptions.ConfigFlags
	progress ctl.Progress
}

// NewCommand is the whole plugin. The version is what `version` prints.
func NewCommand(streams genericiooptions.IOStreams, version string) *cobra.Command {
	flags := genericclioptions.NewConfigFlags(false)
	flags.Namespace = nil // every object here has its place
	o := &options{IOStreams: streams, flags: flags, progress: ctl.Progress{Out: streams.ErrOut}}
	root := &cobra.Command{
		Use:         "kubectl-fastnet",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl fastnet"},
		Short:       "Join Kubernetes clusters into one clusterset",
		Long: `Join Kubernetes clusters into one clusterset: a service exported in one of them is found by name in every
other, and its pods are reached over encrypted tunnels.

Set up the broker once, invite each cluster, and let each join with the file that the invitation wrote:

  kubectl fastnet broker deploy --context hub
  kubectl fastnet broker invite c1 -o c1.yaml --context hub
  kubectl fastnet join c1.yaml --context c1

Exit codes: 0 done, 1 failed, 2 a mistake on the command line.`,
		Args: ctl.Subcommands,
		RunE: ctl.Help,
	}
	flags.AddFlags(root.PersistentFlags())
	root.AddCommand(newBroker(o), newJoin(o), newLeave(o), newShow(o), newDrainGateway(o), newVersion(o, version))
	return root
}

func newVersion(o *options, version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  ctl.Args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(o.Out, "kubectl-fastnet %s\n", version)
			return nil
		},
	}
}

// cluster is one API server, and all the ways in which this package talks to it.
type cluster struct {
	client.Client
	config *rest.Config
	getter *ctl.Getter
}

func newScheme() (*runtime.Scheme, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme, networkingv1.AddToScheme,
		rbacv1.AddToScheme, apiextensionsv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build scheme: %w", err)
		}
	}
	return scheme, nil
}

func connect(loader clientcmd.ClientConfig) (*cluster, error) {
	config, err := ctl.Config(loader, userAgent)
	if err != nil {
		return nil, err
	}
	if config.Timeout == 0 {
		config.Timeout = ctl.RequestTimeout // Helm's requests too: an API server that goes silent must not keep anybody
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	made, err := ctl.Client(config, scheme)
	if err != nil {
		return nil, err
	}
	getter, err := ctl.NewGetter(config, loader)
	if err != nil {
		return nil, err
	}
	return &cluster{Client: made, config: config, getter: getter}, nil
}

// local connects to the cluster that the flags name, and sees that it answers.
func (o *options) local(ctx context.Context) (*cluster, error) {
	c, err := connect(o.flags.ToRawKubeConfigLoader())
	if err != nil {
		return nil, err
	}
	if _, err := c.uid(ctx); err != nil {
		return nil, ctl.Explain("reach the cluster at "+c.config.Host, err)
	}
	return c, nil
}

// waitFlags are --wait and --timeout.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}
