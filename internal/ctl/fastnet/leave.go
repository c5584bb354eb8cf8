package fastnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/deploy/helm"
	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/mcsapi"
	"github.com/fastnet-io/fastnet/internal/withdraw"
)

func newLeave(o *options) *cobra.Command {
	var yes bool
	var timeout time.Duration
	command := &cobra.Command{
		Use:   "leave",
		Short: "Take this cluster out of its clusterset, and everything of Fastnet out of it",
		Long: `Take this cluster out of its clusterset, and everything of Fastnet out of it: workloads, what they have set up on
the nodes, imported services, the cluster's records on the broker, labels that join put on nodes, CRDs that join made. The
cluster's DNS becomes what it was before. Your ServiceExports stay.

It may be run again after a failure, and in a cluster where a join failed half-way. It ends within --timeout, whether the
broker answers or not, and says what is left.`,
		Args: ctl.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			if !yes {
				if err := o.confirm(c); err != nil {
					return err
				}
			}
			return o.leave(ctx, c, timeout)
		},
	}
	command.Flags().BoolVarP(&yes, "yes", "y", false, "Do not ask")
	command.Flags().DurationVar(&timeout, "timeout", time.Minute, "How long it may take")
	return command
}

// confirm asks, where there is somebody to ask.
func (o *options) confirm(c *cluster) error {
	file, ok := o.In.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return nil
	}
	fmt.Fprintf(o.ErrOut, "Take Fastnet out of the cluster at %s? [y/N] ", c.config.Host)
	answer, err := bufio.NewReader(file).ReadString('\n')
	if err != nil || !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return errors.New("nothing done")
	}
	return nil
}

// leave undoes a join within a time. A step that fails does not keep the later ones from being tried: half of Fastnet is worth
// nothing. Those that wait for others have their share of the time.
func (o *options) leave(ctx context.Context, c *cluster, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	share := func(most time.Duration) time.Duration { return min(most, timeout/4) }
	api, err := withdraw.New(c.config)
	if err != nil {
		return err
	}
	releases, err := c.releases(v1alpha1.Namespace)
	if err != nil {
		return err
	}
	values, joined, err := releases.values(helm.Member)
	if err != nil {
		return err
	}
	m, brokerErr := c.membership(ctx, values)
	if !joined && m == nil {
		var namespace corev1.Namespace
		if err := c.Get(ctx, types.NamespacedName{Name: v1alpha1.Namespace}, &namespace); apierrors.IsNotFound(err) {
			o.progress.Say("This cluster is in no clusterset; looking for leftovers.")
		}
	}
	var left []error
	step := func(name string, run func(ctx context.Context, note func(string)) error) {
		if ctx.Err() == nil {
			left = append(left, o.progress.Step(ctx, name, run))
		}
	}
	step("Restore the cluster's DNS", func(ctx context.Context, _ func(string)) error {
		said, err := c.giveBack(ctx)
		if err != nil {
			return err
		}
		if said == "" {
			return c.unforward(ctx)
		}
		o.progress.Say("  %s", said)
		return nil
	})
	// First the daemons, while they still have the rights to see that they are to go: each takes what it set up off its
	// node. Helm would take their rights away in the same breath.
	step("Stop the agent, the gateways and the route agents", func(ctx context.Context, note func(string)) error {
		ctx, cancel := context.WithTimeout(ctx, share(withdraw.StopFor))
		defer cancel()
		return ctl.Explain("stop the daemons", api.StopDaemons(ctx, note))
	})
	step("Uninstall the chart fastnet", func(ctx context.Context, _ func(string)) error {
		return errors.Join(releases.uninstall(ctx, helm.Member), c.removeHook(ctx))
	})
	step("Remove imported services", func(ctx context.Context, _ func(string)) error {
		ctx, cancel := context.WithTimeout(ctx, timeout/2)
		defer cancel()
		return ctl.Explain("remove imported services", api.RemoveImports(ctx))
	})
	step("Remove this cluster's records from the broker", func(ctx context.Context, _ func(string)) error {
		if m == nil {
			return brokerErr
		}
		broker, err := withdraw.New(m.broker.config)
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, share(withdraw.BrokerFor))
			defer cancel()
			err = broker.RemoveRecords(ctx, m.namespace)
		}
		if err != nil {
			return fmt.Errorf("%w; an administrator of the broker can: kubectl fastnet broker remove %s", err, m.clusterID)
		}
		return nil
	})
	step("Take the gateway label off the nodes that join gave it", func(ctx context.Context, _ func(string)) error { return c.unlabelGateways(ctx) })
	step("Remove CRDs and the namespace fastnet-system", func(ctx context.Context, note func(string)) error {
		said, err := c.removeDefinitions(ctx)
		for _, line := range said {
			o.progress.Say("  %s", line)
		}
		if err := errors.Join(err, c.deleteNamespace(ctx, v1alpha1.Namespace)); err != nil {
			return err
		}
		return ctl.Await(ctx, time.Until(deadline), note, c.leftovers)
	})
	if err := errors.Join(append(left, ctx.Err())...); err != nil {
		return err
	}
	fmt.Fprintln(o.Out, "Fastnet is gone from this cluster.")
	return nil
}

// membership is what the cluster's own Secret says about the broker. Nil, without an error, where there is none.
func (c *cluster) membership(ctx context.Context, values map[string]any) (*membership, error) {
	name, _ := section(values, "broker")["existingSecret"].(string)
	if name == "" {
		name = "fastnet-broker"
	}
	var secret corev1.Secret
	err := c.Get(ctx, types.NamespacedName{Namespace: v1alpha1.Namespace, Name: name}, &secret)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, ctl.Explain("read the broker's credentials", err)
	}
	return openJoinFile(secret.Data["kubeconfig"])
}

// removeHook takes away what a failed hook of `helm uninstall` left outside of the namespace.
func (c *cluster) removeHook(ctx context.Context) error {
	const name = "fastnet-withdraw"
	return ctl.Explain("remove what helm uninstall left", errors.Join(
		client.IgnoreNotFound(c.Delete(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}})),
		client.IgnoreNotFound(c.Delete(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}})),
	))
}

func (c *cluster) unlabelGateways(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return ctl.Explain("list nodes", err)
	}
	var failed []error
	for _, node := range nodes.Items {
		if node.Annotations[annotationGatewayLabel] == "" {
			continue
		}
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:null},"annotations":{%q:null}}}`, v1alpha1.LabelGatewayNode, annotationGatewayLabel)
		failed = append(failed, ctl.Explain("take the label off node "+node.Name,
			c.Patch(ctx, &node, client.RawPatch(types.MergePatchType, []byte(patch)))))
	}
	return errors.Join(failed...)
}

// removeDefinitions deletes the CRDs that nothing needs any more, and says which it leaves.
func (c *cluster) removeDefinitions(ctx context.Context) ([]string, error) {
	definitions, err := crds.Member()
	if err != nil {
		return nil, err
	}
	var broker corev1.Namespace
	isBroker := c.Get(ctx, types.NamespacedName{Name: v1alpha1.BrokerNamespace}, &broker) == nil
	var said []string
	var failed []error
	mcsInUse, err := c.mcsInUse(ctx)
	if err != nil {
		return nil, err
	}
	for _, definition := range definitions {
		var live apiextensionsv1.CustomResourceDefinition
		err := c.Get(ctx, client.ObjectKeyFromObject(definition), &live)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			failed = append(failed, ctl.Explain("read CRD "+definition.Name, err))
			continue
		}
		if definition.Spec.Group == v1alpha1.GroupVersion.Group {
			if isBroker && definition.Spec.Names.Plural == "endpoints" {
				continue
			}
		} else if live.Annotations[annotationCreatedBy] == "" {
			continue // it was there before join
		} else if definition.Spec.Group == "multicluster.x-k8s.io" && mcsInUse != "" {
			said = append(said, "CRD "+live.Name+" stays: "+mcsInUse+".")
			continue
		} else if definition.Spec.Group == "about.k8s.io" {
			properties, err := c.properties(ctx)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			if len(properties) > 0 {
				said = append(said, "CRD "+live.Name+" stays: there are ClusterProperties of others.")
				continue
			}
		}
		failed = append(failed, ctl.Explain("delete CRD "+live.Name, client.IgnoreNotFound(c.Delete(ctx, &live))))
	}
	return said, errors.Join(failed...)
}

// mcsInUse says who still has objects of the Multi-Cluster Services API, or nothing.
func (c *cluster) mcsInUse(ctx context.Context) (string, error) {
	for _, version := range mcsapi.Versions {
		for _, kind := range []string{"ServiceExport", "ServiceImport"} {
			list := &unstructured.UnstructuredList{}
			list.SetGroupVersionKind(schema.GroupVersionKind{Group: mcsapi.Group, Version: version, Kind: kind})
			err := c.List(ctx, list)
			if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return "", ctl.Explain("list "+kind+" objects", err)
			}
			if len(list.Items) > 0 {
				return fmt.Sprintf("there are %ss, as %s/%s", kind, list.Items[0].GetNamespace(), list.Items[0].GetName()), nil
			}
		}
	}
	return "", nil
}

// leftovers says what of Fastnet is still on its way out.
func (c *cluster) leftovers(ctx context.Context) (string, error) {
	var left []string
	var namespace corev1.Namespace
	err := c.Get(ctx, types.NamespacedName{Name: v1alpha1.Namespace}, &namespace)
	if err == nil {
		left = append(left, "namespace "+namespace.Name)
	} else if !apierrors.IsNotFound(err) {
		return "", err
	}
	var definition apiextensionsv1.CustomResourceDefinition
	err = c.Get(ctx, types.NamespacedName{Name: "gateways." + v1alpha1.GroupVersion.Group}, &definition)
	if err == nil {
		left = append(left, "CRD "+definition.Name)
	} else if !apierrors.IsNotFound(err) {
		return "", err
	}
	if len(left) == 0 {
		return "", nil
	}
	return "still being deleted: " + strings.Join(left, ", "), nil
}
