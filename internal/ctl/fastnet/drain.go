package fastnet

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

func newDrainGateway(o *options) *cobra.Command {
	var undo bool
	var timeout time.Duration
	command := &cobra.Command{
		Use:   "drain-gateway NODE",
		Short: "Move the traffic between clusters away from a gateway node",
		Long: `Move the traffic between clusters away from a gateway node, so that it can be stopped or rebooted without a
packet lost: annotate the node (fastnet.dev/drain=true), and wait until its gateway carries nothing any more. Its tunnels stay, and
it stays drained until --undo. Where no other gateway can take the traffic it goes on as before, and the command fails after
--timeout.

Cordoning a node drains its gateway in the same way.`,
		Args: ctl.Args(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			return o.drainGateway(ctx, c, args[0], undo, timeout)
		},
	}
	command.Flags().BoolVar(&undo, "undo", false, "Let the gateway carry again")
	command.Flags().DurationVar(&timeout, "timeout", time.Minute, "How long to wait")
	return command
}

func (o *options) drainGateway(ctx context.Context, c *cluster, name string, undo bool, timeout time.Duration) error {
	var node corev1.Node
	if err := c.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("there is no node %s", name)
		}
		return ctl.Explain("read node "+name, err)
	}
	if node.Labels[v1alpha1.LabelGatewayNode] != "true" && !undo {
		return fmt.Errorf("node %s is no gateway: it has no label %s=true", name, v1alpha1.LabelGatewayNode)
	}
	patch := client.MergeFrom(node.DeepCopy())
	if undo {
		delete(node.Annotations, v1alpha1.AnnotationDrain)
	} else {
		if node.Annotations == nil {
			node.Annotations = map[string]string{}
		}
		node.Annotations[v1alpha1.AnnotationDrain] = "true"
	}
	if err := c.Patch(ctx, &node, patch); err != nil {
		return ctl.Explain("annotate node "+name, err)
	}
	if undo {
		if node.Spec.Unschedulable {
			o.progress.Say("Node %s is cordoned: its gateway stays drained until kubectl uncordon %s.", name, name)
			return nil
		}
		fmt.Fprintf(o.Out, "Gateway %s carries again.\n", name)
		return nil
	}
	err := o.progress.Step(ctx, "Wait until gateway "+name+" carries nothing", func(ctx context.Context, note func(string)) error {
		return ctl.Await(ctx, timeout, note, func(ctx context.Context) (string, error) { return c.drainState(ctx, name) })
	})
	if err != nil {
		return fmt.Errorf("gateway %s is not drained: %w (it goes on draining until kubectl fastnet drain-gateway %s --undo)", name, err, name)
	}
	fmt.Fprintf(o.Out, "Gateway %s is drained.\n", name)
	return nil
}

// drainState says what there is to wait for, "" when the gateway is drained.
func (c *cluster) drainState(ctx context.Context, name string) (string, error) {
	var gateway v1alpha1.Gateway
	err := c.Get(ctx, client.ObjectKey{Namespace: v1alpha1.Namespace, Name: name}, &gateway)
	switch {
	case apierrors.IsNotFound(err):
		return "its gateway has not reported yet", nil
	case err != nil:
		return "", err
	case gateway.Status.Drain == v1alpha1.DrainDrained:
		return "", nil
	case gateway.Status.Drain == v1alpha1.DrainDraining:
		return "traffic still passes", nil
	default:
		return "its gateway has not noticed yet", nil
	}
}
