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
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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

It may be run again after a failure, and in a cluster where a join failed half-way. It ends within --timeout for each of
its steps, and says what is left.`,
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
	command.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "How long each step may wait")
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

// leave undoes a join. A step that fails does not keep the later ones from being tried: half of Fastnet is worth nothing.
func (o *options) leave(ctx context.Context, c *cluster, timeout time.Duration) error {
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
		return c.stopDaemons(ctx, timeout, note)
	})
	step("Uninstall the chart fastnet", func(context.Context, func(string)) error { return releases.uninstall(helm.Member) })
	step("Remove imported services", func(ctx context.Context, _ func(string)) error { return c.removeImports(ctx) })
	step("Remove this cluster's records from the broker", func(ctx context.Context, _ func(string)) error {
		if m == nil {
			return brokerErr
		}
		if err := m.removeRecords(ctx); err != nil {
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
		return ctl.Await(ctx, timeout, note, c.leftovers)
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

// stopDaemons deletes what runs and waits until the pods are gone.
func (c *cluster) stopDaemons(ctx context.Context, timeout time.Duration, note func(string)) error {
	object := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: name}
	}
	for _, daemon := range []client.Object{
		&appsv1.Deployment{ObjectMeta: object("fastnet-agent")},
		&appsv1.DaemonSet{ObjectMeta: object("fastnet-gateway")},
		&appsv1.DaemonSet{ObjectMeta: object("fastnet-routeagent")},
	} {
		err := c.Delete(ctx, daemon, client.PropagationPolicy(metav1.DeletePropagationBackground))
		if client.IgnoreNotFound(err) != nil {
			return ctl.Explain("delete "+daemon.GetName(), err)
		}
	}
	return ctl.Await(ctx, timeout, note, func(ctx context.Context) (string, error) {
		var pods corev1.PodList
		if err := c.List(ctx, &pods, client.InNamespace(v1alpha1.Namespace)); err != nil {
			return "", err
		}
		var running []string
		for _, pod := range pods.Items {
			switch pod.Labels["app.kubernetes.io/name"] {
			case "fastnet-agent", "fastnet-gateway", "fastnet-routeagent":
				running = append(running, pod.Name)
			}
		}
		if len(running) == 0 {
			return "", nil
		}
		return fmt.Sprintf("%d pods still stopping: %s", len(running), strings.Join(running, ", ")), nil
	})
}

// removeImports takes away what the agent wrote: objects, known by their labels, and what it said of exports.
func (c *cluster) removeImports(ctx context.Context) error {
	byUs := client.MatchingLabels{"app.kubernetes.io/managed-by": v1alpha1.ManagedBy}
	slices := client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy}
	return errors.Join(
		// Those of Services that ask for it by annotation; users' own ServiceExports stay.
		c.deleteAll(ctx, schema.GroupVersionKind{Group: "multicluster.x-k8s.io", Version: "v1beta1", Kind: "ServiceExport"}, byUs, client.HasLabels{v1alpha1.LabelGlobal}),
		c.forgetExports(ctx),
		c.deleteAll(ctx, discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), slices),
		c.deleteAll(ctx, discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), byUs),
		// The second label as well: the first is one that people put on Services of their own.
		c.deleteAll(ctx, corev1.SchemeGroupVersion.WithKind("Service"), byUs, client.HasLabels{v1alpha1.LabelServiceName}),
		c.deleteAll(ctx, schema.GroupVersionKind{Group: "multicluster.x-k8s.io", Version: "v1beta1", Kind: "ServiceImport"}, byUs),
		c.deleteAll(ctx, v1alpha1.GroupVersion.WithKind("Endpoint"), client.InNamespace(v1alpha1.Namespace)),
		c.deleteAll(ctx, v1alpha1.GroupVersion.WithKind("Gateway"), client.InNamespace(v1alpha1.Namespace)),
	)
}

// forgetExports takes the conditions off the ServiceExports, which stay: nobody is left to say that they are ready.
func (c *cluster) forgetExports(ctx context.Context) error {
	kind := schema.GroupVersionKind{Group: "multicluster.x-k8s.io", Version: "v1beta1", Kind: "ServiceExport"}
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind)
	err := c.List(ctx, list)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return ctl.Explain("list ServiceExport objects", err)
	}
	var failed []error
	for i := range list.Items {
		export := &list.Items[i]
		export.SetGroupVersionKind(kind)
		err := c.Status().Patch(ctx, export, client.RawPatch(types.MergePatchType, []byte(`{"status":{"conditions":null}}`)))
		if client.IgnoreNotFound(err) != nil {
			failed = append(failed, ctl.Explain("clear the status of ServiceExport "+export.Namespace+"/"+export.Name, err))
		}
	}
	return errors.Join(failed...)
}

// deleteAll deletes every object of a kind that the options select, one by one: Services know no other way. A kind that
// the API server does not know has no objects.
func (c *cluster) deleteAll(ctx context.Context, kind schema.GroupVersionKind, options ...client.ListOption) error {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind)
	err := c.List(ctx, list, options...)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return ctl.Explain("list "+kind.Kind+" objects", err)
	}
	var failed []error
	for i := range list.Items {
		object := &list.Items[i]
		object.SetGroupVersionKind(kind)
		if err := client.IgnoreNotFound(c.Delete(ctx, object)); err != nil {
			failed = append(failed, ctl.Explain("delete "+kind.Kind+" "+object.Namespace+"/"+object.Name, err))
		}
	}
	return errors.Join(failed...)
}

// removeRecords deletes what this cluster wrote on the broker, with its own credentials.
func (m *membership) removeRecords(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*ctl.RequestTimeout)
	defer cancel()
	for _, kind := range []string{"ExportedService", "ExportedEndpoints", "Endpoint"} {
		err := m.broker.deleteAll(ctx, v1alpha1.GroupVersion.WithKind(kind), client.InNamespace(m.namespace))
		switch {
		case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
			return nil // no longer a member: the broker has dropped the records already
		case err != nil:
			return fmt.Errorf("the records on the broker at %s stay: %w", m.broker.config.Host, err)
		}
	}
	return nil
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
	for _, kind := range []string{"ServiceExport", "ServiceImport"} {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(schema.GroupVersionKind{Group: "multicluster.x-k8s.io", Version: "v1beta1", Kind: kind})
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
