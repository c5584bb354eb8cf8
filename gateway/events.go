package gateway

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Reasons of the events about a Gateway.
const (
	eventCableUp     = "CableUp"
	eventCableDown   = "CableDown"
	eventNoCable     = "NoCable"     // the last cable to a cluster is down
	eventProblem     = "Problem"     // a new one in the status: a refused range, no common driver, no port, ...
	eventGatewayGone = "GatewayGone" // another one of this cluster was deleted
)

// event is what an operator should hear of.
type event struct{ kind, reason, message string }

// events between two states that were written one after the other. What a process finds when it starts is no news.
func events(before, now v1alpha1.GatewayStatus) (all []event) {
	say := func(kind, reason, format string, args ...any) {
		all = append(all, event{kind, reason, fmt.Sprintf(format, args...)})
	}
	up := func(cables []v1alpha1.Cable, cluster string) bool {
		return slices.ContainsFunc(cables, func(c v1alpha1.Cable) bool { return c.ClusterID == cluster && c.State == v1alpha1.CableUp })
	}
	var lost []string
	for _, c := range now.Cables {
		i := slices.IndexFunc(before.Cables, func(old v1alpha1.Cable) bool { return old.Endpoint == c.Endpoint })
		if i < 0 || before.Cables[i].State == c.State {
			continue
		}
		switch {
		case c.State == v1alpha1.CableUp:
			say(corev1.EventTypeNormal, eventCableUp, "the cable to %s is up", c.Endpoint)
		case before.Cables[i].State == v1alpha1.CableUp:
			say(corev1.EventTypeWarning, eventCableDown, "the cable to %s is %s", c.Endpoint, c.State)
			if !up(now.Cables, c.ClusterID) && !slices.Contains(lost, c.ClusterID) {
				lost = append(lost, c.ClusterID)
			}
		}
	}
	for _, cluster := range lost {
		say(corev1.EventTypeWarning, eventNoCable, "no cable of this gateway to cluster %s is up", cluster)
	}
	for _, problem := range now.Problems {
		if !slices.Contains(before.Problems, problem) {
			say(corev1.EventTypeWarning, eventProblem, "%s", problem)
		}
	}
	return all
}

// recorder writes events until the context ends. They are best effort, and never waited for.
func recorder(ctx context.Context, config *rest.Config, scheme *runtime.Scheme, node string) (func(runtime.Object, event), func(), error) {
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("events: %w", err)
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: core.Events("")})
	to := broadcaster.NewRecorder(scheme, corev1.EventSource{Component: "fastnet-gateway", Host: node})
	return func(about runtime.Object, e event) { to.Event(about, e.kind, e.reason, e.message) }, broadcaster.Shutdown, nil
}
