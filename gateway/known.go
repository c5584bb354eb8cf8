package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/kept"
)

// known is what this gateway plans from, as far as the API server tells it. It is kept on the node, for a start without one.
type known struct {
	Node struct {
		UID        types.UID    `json:"uid"`
		ClusterUID string       `json:"clusterUID"`
		Addresses  []netip.Addr `json:"addresses"`
		Drain      bool         `json:"drain,omitempty"`
	} `json:"node"`
	Endpoints []v1alpha1.Endpoint `json:"endpoints"`
}

// knownFile of a gateway; it bears the gateway's name as keyFile does.
func knownFile(stateDir, gateway string) string {
	return filepath.Join(stateDir, "known-"+gateway+".json")
}

// recall what an earlier process has kept. Without it the first round waits for the API server.
func (g *gateway) recall() {
	var k known
	found, err := g.known.Read(&k)
	if err != nil {
		g.config.Log.Error("what was known is lost: the API server must answer first", "error", err)
	}
	if !found || len(k.Endpoints) == 0 {
		return
	}
	g.node = nodeFacts{known: true, uid: k.Node.UID, clusterUID: k.Node.ClusterUID, addresses: k.Node.Addresses, drain: k.Node.Drain}
	g.recalled = k.Endpoints
}

// keep what is known now.
func (g *gateway) keep(endpoints []v1alpha1.Endpoint) error {
	k := known{Endpoints: kept.Endpoints(endpoints)}
	k.Node.UID, k.Node.ClusterUID, k.Node.Addresses, k.Node.Drain = g.node.uid, g.node.clusterUID, g.node.addresses, g.node.drain
	return g.known.Write(k)
}

// wait until there is something to plan from, and see to it that the API server's word counts when it comes. It returns false
// when the context has ended.
func (g *gateway) wait(ctx context.Context, synced func(context.Context) bool, poke func()) bool {
	ready := kept.Wait(ctx, synced, g.node.known, func(late bool) {
		g.answered.Store(true)
		if late {
			poke()
		}
	})
	if ready && !g.answered.Load() {
		g.config.Log.Info("the API server does not answer: going by what was known", "endpoints", len(g.recalled))
	}
	return ready
}

// endpoints in this cluster, own and mirrored.
func (g *gateway) endpoints(ctx context.Context, answered bool) ([]v1alpha1.Endpoint, error) {
	if !answered {
		return g.recalled, nil
	}
	var endpoints v1alpha1.EndpointList
	if err := g.objects.List(ctx, &endpoints, client.InNamespace(v1alpha1.Namespace)); err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return endpoints.Items, nil
}
