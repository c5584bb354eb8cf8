// Package uninstall tells a daemon that was asked to stop whether it will come back. A restart, an upgrade or a node
// that reboots must leave the node's network as it is; an uninstall must leave nothing. Nobody can run code on a node
// after the last pod of ours has gone, so the pod itself has to know, in the seconds between SIGTERM and its end.
package uninstall

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Question is about one daemon on one node.
type Question struct {
	// DaemonSet in the namespace fastnet-system that runs the daemon.
	DaemonSet string
	// Node it runs on, and the label that the node must have for it, "" for none.
	Node, NodeLabel string
}

// Reason says why the daemon will not come back, or "" where it may: then the node's state stays. The DaemonSet gone or
// going is an uninstall; so is an API server that no longer lets us ask, since our permissions are removed together with
// the rest. An API server that does not answer says nothing, and nothing is what happens then.
func Reason(ctx context.Context, config *rest.Config, q Question) (string, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return "", fmt.Errorf("ask whether this is an uninstall: %w", err)
	}
	daemonSets := client.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"})
	daemonSet, err := daemonSets.Namespace(v1alpha1.Namespace).Get(ctx, q.DaemonSet, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("DaemonSet %s is gone", q.DaemonSet), nil
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return fmt.Sprintf("not allowed to read DaemonSet %s any more", q.DaemonSet), nil
	case err != nil:
		return "", fmt.Errorf("ask whether this is an uninstall: %w", err)
	case daemonSet.GetDeletionTimestamp() != nil:
		return fmt.Sprintf("DaemonSet %s is being deleted", q.DaemonSet), nil
	case q.NodeLabel == "":
		return "", nil
	}
	nodes := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	node, err := nodes.Get(ctx, q.Node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("node %s is gone", q.Node), nil
	case err != nil:
		return "", fmt.Errorf("ask whether this is an uninstall: %w", err)
	case node.GetLabels()[q.NodeLabel] != "true":
		return fmt.Sprintf("node %s has lost the label %s=true", q.Node, q.NodeLabel), nil
	}
	return "", nil
}
