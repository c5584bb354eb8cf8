package withdraw

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// How the time for a withdrawal is shared out: no part may cost the next ones theirs.
const (
	// StopFor is how long pods have for their end. A gateway needs a second or two for its node; what takes longer is on a node
	// that does not answer, and its pod will find its rights gone.
	StopFor = 15 * time.Second
	// BrokerFor is how long the broker has to answer. It may be gone for good.
	BrokerFor = 15 * time.Second
)

// Run withdraws a cluster, in this order: daemons, then imports and records side by side. It ends within the time given. The error
// is about the cluster itself. What stays on the broker is told in the log, and is none: a broker that is gone must not keep
// anybody from leaving it. Broker is nil where nothing says which it is.
func Run(ctx context.Context, local, broker *Server, namespace string, within time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	stopping, done := context.WithTimeout(ctx, min(StopFor, within/3))
	defer done()
	log.Info("stopping the agent, the gateways and the route agents")
	if err := local.StopDaemons(stopping, func(string) {}); err != nil {
		log.Warn("going on without waiting for all of them to stop", "error", err)
	}
	records := make(chan error, 1)
	go func() {
		if broker == nil {
			records <- nil
			return
		}
		asking, done := context.WithTimeout(ctx, min(BrokerFor, within/3))
		defer done()
		records <- broker.RemoveRecords(asking, namespace)
	}()
	err := local.RemoveImports(ctx)
	if err != nil {
		err = fmt.Errorf("remove imported services: %w", err)
	} else {
		log.Info("imported services are gone")
	}
	if left := <-records; left != nil {
		log.Warn("an administrator of the broker can remove them: kubectl fastnet broker remove CLUSTER", "error", left)
	} else if broker != nil {
		log.Info("this cluster's records on the broker are gone", "broker", broker.host, "namespace", namespace)
	}
	return err
}
