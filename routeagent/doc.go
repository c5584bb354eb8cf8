// Package routeagent runs on every node: it brings packets for other clusters to the gateway, and keeps everything else
// on the node from rewriting or losing them. Snapshot, plan, apply: snapshot.go gathers Endpoints, Nodes and the
// kernel's links; plan.go decides, without any I/O; package netstate makes the kernel match.
//
// It talks to its own cluster's API server and to the kernel, to nobody else.
package routeagent
