package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// What the Gateways say of a cluster is not yet what services are steered by.
//
// A cluster that is lost leaves at once. One that comes back is used again when it has been up for a while: a cable that
// flaps would otherwise move connections to and fro. Where nothing else could serve it is used at once, see clusterset.Returning.
//
// Losing every remote cluster at once says more about this cluster than about the others. Its own uplink or gateways are the
// likelier fault, and to rewrite every service for a blip would help nobody: what was reachable is kept a while. These two
// times are those of the plugin lighthouse, which answers by the same Gateways.
const (
	returnAfter     = 5 * time.Second
	suspicionWindow = time.Second
	suspicionLasts  = 30 * time.Second
)

// Reachability is which clusters count as reachable.
type Reachability struct {
	// Clusters that are not Unreachable; nil where there are no Gateways, and every cluster is reachable.
	Clusters map[string]clusterset.Reach
	// Suspect says that all were lost at once, and count as they did before.
	Suspect bool
}

// Of says how reachable a cluster is.
func (r Reachability) Of(cluster string) clusterset.Reach {
	if r.Clusters == nil {
		return clusterset.Reachable
	}
	return r.Clusters[cluster]
}

// names are the clusters of one state, sorted.
func (r Reachability) names(reach clusterset.Reach) []string {
	var all []string
	for cluster, is := range r.Clusters {
		if is == reach {
			all = append(all, cluster)
		}
	}
	slices.Sort(all)
	return all
}

// reachState is what it takes to settle reachability: the past.
type reachState struct {
	up        map[string]time.Time // what the Gateways say is up now, and since when they do; nil where there are none
	counted   map[string]bool      // those of them that count
	lost      map[string]time.Time // what counted once and does not now, and when it was lost
	held      map[string]bool      // what counts on suspicion
	heldUntil time.Time
}

// settle takes what the Gateways say at a moment: the clusters with a cable that is up, nil where there are no Gateways. It
// returns what counts, and when to ask again though nothing else happens, zero for never.
func (s *reachState) settle(up map[string]bool, now time.Time) (Reachability, time.Time) {
	if up == nil {
		*s = reachState{} // Gateways that come later start like an agent does
		return Reachability{}, time.Time{}
	}
	start := s.up == nil
	if start {
		s.up, s.counted, s.lost = map[string]time.Time{}, map[string]bool{}, map[string]time.Time{}
	}
	for cluster := range s.up {
		if !up[cluster] {
			delete(s.up, cluster)
		}
	}
	for cluster := range s.counted {
		if !up[cluster] {
			delete(s.counted, cluster)
			s.lost[cluster] = now
		}
	}
	var again time.Time
	for cluster := range up {
		if _, known := s.up[cluster]; !known {
			s.up[cluster] = now
		}
		// What is there from the start, was never lost, or never ceased to count need not prove itself.
		_, lost := s.lost[cluster]
		steady := s.up[cluster].Add(returnAfter)
		if start || !lost || s.held[cluster] || !now.Before(steady) {
			s.counted[cluster] = true
			delete(s.lost, cluster)
		} else if again.IsZero() || steady.Before(again) {
			again = steady
		}
	}

	switch {
	case len(up) > 0:
		s.held = nil
	case s.held != nil && !now.Before(s.heldUntil):
		s.held = nil
	case s.held == nil:
		recent := map[string]bool{}
		for cluster, at := range s.lost {
			if now.Sub(at) <= suspicionWindow {
				recent[cluster] = true
			}
		}
		if len(recent) >= 2 {
			s.held, s.heldUntil = recent, now.Add(suspicionLasts)
		}
	}
	if s.held != nil {
		again = s.heldUntil // nothing is up, so nothing else is waited for
	}

	r := Reachability{Clusters: map[string]clusterset.Reach{}, Suspect: s.held != nil}
	for cluster := range up {
		r.Clusters[cluster] = clusterset.Returning
	}
	for cluster := range s.counted {
		r.Clusters[cluster] = clusterset.Reachable
	}
	for cluster := range s.held {
		r.Clusters[cluster] = clusterset.Reachable
	}
	return r, again
}

// reach watches the Gateways for both loops.
type reach struct {
	reader client.Reader
	poke   func()
	log    *slog.Logger

	mu    sync.Mutex // over reading the Gateways too: an older reading must not come after a newer one
	state reachState
	read  bool // last is of a reading
	last  Reachability
	again *time.Timer
}

// settled is what counts, by the last reading.
func (r *reach) settled(ctx context.Context) (Reachability, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.read {
		if _, err := r.observeLocked(ctx); err != nil {
			return Reachability{}, err
		}
	}
	return r.last, nil
}

// observe reads the Gateways and settles what counts. It reports whether that has changed, and pokes when time alone would
// change it. Gateways that cannot be read change nothing: they are in memory, and the next change of one has them read again.
func (r *reach) observe(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed, err := r.observeLocked(ctx)
	if err != nil {
		r.log.Error("reading Gateways failed", "error", err)
	}
	return changed
}

func (r *reach) observeLocked(ctx context.Context) (bool, error) {
	var gateways v1alpha1.GatewayList
	if err := r.reader.List(ctx, &gateways, client.InNamespace(v1alpha1.Namespace), shared); err != nil {
		return false, fmt.Errorf("read %T: %w", &gateways, err)
	}
	now := time.Now()
	settled, again := r.state.settle(clustersUp(gateways.Items), now)
	if r.again != nil {
		r.again.Stop()
		r.again = nil
	}
	if !again.IsZero() {
		r.again = time.AfterFunc(again.Sub(now), r.poke)
	}
	r.tell(r.last, settled)
	changed := !r.read || settled.Suspect != r.last.Suspect || !maps.Equal(settled.Clusters, r.last.Clusters) ||
		(settled.Clusters == nil) != (r.last.Clusters == nil)
	r.last, r.read = settled, true
	return changed, nil
}

func (r *reach) tell(before, now Reachability) {
	clusters := now.names(clusterset.Reachable)
	switch {
	case now.Suspect && !before.Suspect:
		r.log.Warn("all clusters were lost at once: rather this one's fault, they count as reachable for now", "clusters", clusters, "longest", suspicionLasts)
	case !now.Suspect && before.Suspect:
		r.log.Warn("clusters were lost at once, and it is over", "reachable", clusters)
	case !maps.Equal(before.Clusters, now.Clusters):
		r.log.Info("reachable clusters have changed", "reachable", clusters, "returning", now.names(clusterset.Returning))
	}
}

// clustersUp are the clusters with a cable that is up at any of the gateways, nil where there are no gateways.
func clustersUp(gateways []v1alpha1.Gateway) map[string]bool {
	if len(gateways) == 0 {
		return nil
	}
	up := map[string]bool{}
	for i := range gateways {
		for _, cable := range gateways[i].Status.Cables {
			if cable.State == v1alpha1.CableUp {
				up[cable.ClusterID] = true
			}
		}
	}
	return up
}
