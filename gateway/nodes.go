package gateway

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

// answerAgain is how long nodes wait for answers when their port could not be had.
const answerAgain = 5 * time.Second

// tellNodes has the nodes of this cluster told what has changed. It does not block.
func (g *gateway) tellNodes() { poke(g.view) }

// poke a channel that holds one: any number of pokes is one reason to look. It does not block.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// answerNodes answers the probes of this cluster's nodes until the context ends, and tells them at once what has changed.
// It begins when the first round has made the cables: to a node that asks earlier this gateway is not there yet.
func (g *gateway) answerNodes(ctx context.Context) {
	var answering sync.WaitGroup
	defer answering.Wait()
	var server *nodeprobe.Server
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.view:
		}
		if server == nil {
			key, err := loadProbeKey(g.probeKeyFile())
			if err == nil {
				server, err = nodeprobe.NewServer(key.Bytes(), g.config.NodeProbePort, g.config.Log)
			}
			if err != nil {
				g.config.Log.Error("cannot answer nodes", "error", err)
				continue // the next round brings us here again
			}
			server.Set(nodeView(g.prober.health(), g.draining()))
			answering.Go(func() { g.keepAnswering(ctx, server) })
			continue
		}
		server.Set(nodeView(g.prober.health(), g.draining()))
	}
}

func (g *gateway) keepAnswering(ctx context.Context, server *nodeprobe.Server) {
	for ctx.Err() == nil {
		if err := server.Run(ctx); err != nil {
			g.config.Log.Error("cannot answer nodes", "port", g.config.NodeProbePort, "error", err, "retry", answerAgain)
			select {
			case <-ctx.Done():
			case <-time.After(answerAgain):
			}
		}
	}
}

// nodeView is what nodes are told: a cable is up while packets get through it and its peer wants them. One that is asked to stay for a
// while, since it went too often, is up for want of a better one: nothing is gained by sending into the void meanwhile. One that was up when
// the process before ended is so again when something has come through it: in-process tunnels end with their process, and this one may be the next
// choice of nodes whose other gateway is just going.
func nodeView(health map[string]Health, draining bool) nodeprobe.View {
	up := map[string]bool{}
	for _, h := range health {
		up[h.ClusterID] = up[h.ClusterID] || h.State == v1alpha1.CableUp && !h.Inherited && !h.Draining
	}
	view := nodeprobe.View{Draining: draining}
	for _, endpoint := range slices.Sorted(maps.Keys(health)) {
		h := health[endpoint]
		carries := h.State == v1alpha1.CableUp && !h.Inherited || h.Recovering && !up[h.ClusterID]
		view.Cables = append(view.Cables, nodeprobe.Cable{Endpoint: endpoint, ClusterID: h.ClusterID, Up: carries && !h.Draining, Draining: carries && h.Draining})
	}
	return view
}
