package story

import (
	"context"
	"errors"
	"time"
)

// Connect sets up the broker in c1 and joins both clusters. They differ in how they get their DNS, so that both ways are
// shown: in c1 Fastnet's CoreDNS takes the place of the cluster's own; in c2 the cluster's own asks Fastnet's.
func (t *Teller) Connect(ctx context.Context) error {
	t.Title("Join two clusters: the broker lives in c1; worker1 of each cluster is the gateway")
	start := time.Now()
	for _, line := range []string{
		"kubectl fastnet --context c1 broker deploy",
		"kubectl fastnet --context c1 broker invite c1 -o c1.join",
		"kubectl fastnet --context c1 broker invite c2 -o c2.join",
		"kubectl fastnet --context c1 join c1.join --gateway-node c1-worker1 --dns cluster",
		"kubectl fastnet --context c2 join c2.join --gateway-node c2-worker1 --dns standalone",
	} {
		if err := t.Run(ctx, line); err != nil {
			return err
		}
	}
	for cluster, other := range map[string]string{"c1": "c2", "c2": "c1"} {
		if _, err := t.Until(ctx, "kubectl fastnet --context "+cluster+" show connections", connected(other)); err != nil {
			return err
		}
	}
	t.note("two clusters joined, the tunnel up", time.Since(start))
	return nil
}

// connected is a check of `show connections` that it lists one cable, up, to that cluster.
func connected(cluster string) func(string) error {
	return func(out string) error {
		return errors.Join(has(cluster, "wireguard", "up")(out), hasNot("connecting", "down")(out))
	}
}
