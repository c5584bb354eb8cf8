package routeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/kept"
)

// known is what a plan takes from the API server. It is kept on the node, for a start without one.
type known struct {
	Endpoints []v1alpha1.Endpoint `json:"endpoints"`
	Nodes     []Node              `json:"nodes"`
}

// knownFile of a node, by its cluster and name: nodes may share a file system, as in a laboratory.
func knownFile(stateDir, name string) string {
	return filepath.Join(stateDir, "routeagent-"+name+".json")
}

// recall what an earlier process has kept. Without it the first round waits for the API server.
func (a *agent) recall() {
	var k known
	found, err := a.file.Read(&k)
	if err != nil {
		a.config.Log.Error("what was known is lost: the API server must answer first", "error", err)
	}
	if found && len(k.Endpoints) > 0 && len(k.Nodes) > 0 {
		a.recalled = &k
	}
}

// wait until there is something to plan from, and see to it that the API server's word counts when it comes. It returns false
// when the context has ended.
func (a *agent) wait(ctx context.Context, synced func(context.Context) bool, poke func()) bool {
	ready := kept.Wait(ctx, synced, a.recalled != nil, func(late bool) {
		a.answered.Store(true)
		if late {
			poke()
		}
	})
	if ready && !a.answered.Load() {
		a.config.Log.Info("the API server does not answer: going by what was known", "endpoints", len(a.recalled.Endpoints))
	}
	return ready
}

// cluster is what is known of it now.
func (a *agent) cluster(ctx context.Context) (k known, err error) {
	if !a.answered.Load() {
		return *a.recalled, nil
	}
	var endpoints v1alpha1.EndpointList
	if err := a.objects.List(ctx, &endpoints, client.InNamespace(v1alpha1.Namespace)); err != nil {
		return k, fmt.Errorf("list endpoints: %w", err)
	}
	k.Endpoints = kept.Endpoints(endpoints.Items)
	var nodes corev1.NodeList
	if err := a.objects.List(ctx, &nodes); err != nil {
		return k, fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		k.Nodes = append(k.Nodes, toNode(&nodes.Items[i]))
	}
	slices.SortFunc(k.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return k, nil
}

// CleanupAll takes everything away that route agents have ever made on this node, files too.
func CleanupAll(ctx context.Context, stateDir string, log *slog.Logger) error {
	return errors.Join(Cleanup(ctx, log), removeKnown(stateDir, "*"))
}

// removeKnown removes what was kept, by a name or a pattern.
func removeKnown(stateDir, name string) error {
	files, err := kept.Find(knownFile(stateDir, name))
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}
