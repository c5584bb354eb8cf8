// Package routeview is what a node says of its ways to other clusters: the route agent serves it, on a page beside its metrics,
// and "kubectl fastnet show routes" asks for it.
package routeview

import "time"

// Page of the route agent that serves a Node, in JSON.
const Page = "/debug/routes"

// Node and its ways.
type Node struct {
	Node string `json:"node"`
	Ways []Way  `json:"ways"`
	// Problems that keep other clusters from being reached, in words.
	Problems []string `json:"problems,omitempty"`
}

// Paths of a way.
const (
	Cable  = "cable"  // this node is the gateway
	Direct = "direct" // a plain route to the gateway
	Tunnel = "tunnel" // through the VXLAN device
)

// Way to a cluster, of a family, that a node could take; it takes those that are Used.
type Way struct {
	ClusterID string `json:"clusterID"`
	Family    string `json:"family"` // IPv4 or IPv6
	// Gateway is the gateway's node, Endpoint what the cable leads to where it begins on this very node.
	Gateway  string `json:"gateway"`
	Endpoint string `json:"endpoint,omitempty"`
	Path     string `json:"path"`
	// Hop is the next hop, as "ip nexthop" says it.
	Hop  string `json:"hop"`
	Used bool   `json:"used"`
	// State of the path to the gateway, Since when, and its round-trip time in seconds, 0 while that is not known. With its own
	// cables' gateway a node talks within itself.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	RTT   float64   `json:"rtt,omitempty"`
	// Live: the path is up, and a cable behind it. Draining: the gateway wants no more traffic.
	Live     bool `json:"live"`
	Draining bool `json:"draining,omitempty"`
	// MTU of the device, 0 where there is none yet.
	MTU int `json:"mtu,omitempty"`
}
