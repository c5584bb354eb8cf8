// Package gateway runs on every gateway node: it keeps the cables to the gateways of other clusters, tells them how to
// reach this one (its Endpoint), and reports how its cables are (its Gateway). Snapshot, plan, apply: snapshot.go and
// plan.go decide, a driver of package cable makes the cables, probe.go measures them from inside.
//
// It talks to its own cluster's API server, to the kernel and to its peers, to nobody else: the agent publishes and
// mirrors Endpoints, so no credentials of the broker lie on a gateway node, and the broker may be away.
package gateway
