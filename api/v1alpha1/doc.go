// Package v1alpha1 holds Fastnet's own API objects, group fastnet.dev. Users never write them, the ClusterSet apart:
// they touch the Multi-Cluster Services API (multicluster.x-k8s.io), and these objects carry what that API needs from
// one cluster to another.
//
// Every shared object has exactly one writing cluster, known from its namespace on the broker, so plain RBAC enforces
// who may say what. A reader merges what many clusters wrote; nobody writes a merged object for others.
//
//	kind               where                              one writer
//	ClusterSet         broker                             the administrator
//	ExportedService    broker, the member's namespace     that member's agent
//	ExportedEndpoints  broker, the member's namespace     that member's agent
//	Endpoint           a member, published to its         that member's gateway
//	                   namespace on the broker and
//	                   mirrored into each other member
//	Gateway            a member                           that gateway
//
// +kubebuilder:object:generate=true
// +groupName=fastnet.dev
package v1alpha1
