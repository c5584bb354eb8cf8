package gateway

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// renewals of its own that a gateway must have seen, and then another, since another gateway's last: so that none dies of a single
// write that failed, and at least 90 s of those in which the API server was there, with the usual time between them.
const renewals = 3

// witness finds Gateways whose process is gone: what they say of their cables holds no more, and would have the cluster count as
// reachable for ever. Nobody's clock is compared with another's: time is what passes here, and it passes only while this gateway
// sees its own renewals come back from the API server. Without that, silence is the API server's, or our own.
type witness struct {
	version string // of our own Gateway
	own     int    // renewals of it that we have seen
	seen    map[string]sighting
}

// sighting of a Gateway in a version of it.
type sighting struct {
	version string
	at      time.Time
	own     int // our renewals by then
}

// stale ones among the Gateways of this cluster, as they are now.
func (w *witness) stale(gateways []v1alpha1.Gateway, self string, renew time.Duration, now time.Time) (stale []v1alpha1.Gateway) {
	seen := map[string]sighting{}
	for _, gateway := range gateways {
		if gateway.Name == self && gateway.ResourceVersion != w.version {
			w.version = gateway.ResourceVersion
			w.own++
		}
	}
	for _, gateway := range gateways {
		last, ok := w.seen[gateway.Name]
		switch {
		case gateway.Name == self:
			continue
		case !ok || last.version != gateway.ResourceVersion:
			last = sighting{gateway.ResourceVersion, now, w.own}
		case now.Sub(last.at) >= renewals*renew && w.own-last.own > renewals:
			stale = append(stale, gateway)
		}
		seen[gateway.Name] = last
	}
	w.seen = seen
	return stale
}

// sweep deletes stale Gateways. One that comes back writes its own anew.
func (g *gateway) sweep(ctx context.Context, now time.Time) error {
	var gateways v1alpha1.GatewayList
	if err := g.objects.List(ctx, &gateways, client.InNamespace(v1alpha1.Namespace)); err != nil {
		return fmt.Errorf("list gateways: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	for _, gateway := range g.witness.stale(gateways.Items, g.config.Node, g.config.Renew, now) {
		// That very version: who has just renewed his is alive.
		err := g.api.Delete(ctx, &gateway, client.Preconditions{UID: &gateway.UID, ResourceVersion: &gateway.ResourceVersion})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete the stale gateway %s: %w", gateway.Name, err)
		}
		g.config.Log.Info("gateway deleted: it was not renewed", "gateway", gateway.Name)
		g.event(&gateway, event{corev1.EventTypeWarning, eventGatewayGone, "it was not renewed: deleted by " + g.config.Node})
	}
	return nil
}
