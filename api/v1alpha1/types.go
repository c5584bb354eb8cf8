package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ClusterSet is the administrator's word on who belongs: one object, named "clusterset", on the broker.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="Members",type=string,JSONPath=`.spec.members[*].clusterID`
type ClusterSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ClusterSetSpec `json:"spec"`
}

// ClusterSetSpec is the roster.
type ClusterSetSpec struct {
	// name of the clusterset, as the ClusterProperty clusterset.k8s.io of every member holds it.
	Name string `json:"name"`
	// members are the clusters whose records count. What a cluster that is not here has written is ignored.
	// +listType=map
	// +listMapKey=clusterID
	// +optional
	Members []Member `json:"members,omitempty"`
	// balance says how services that do not say it themselves are balanced over clusters: ip (the default), by a clusterset
	// IP in every importing cluster, or dns, by answers with the exporting clusters' own addresses in turn.
	// +kubebuilder:validation:Enum=ip;dns
	// +optional
	Balance string `json:"balance,omitempty"`
	// expireAfter is how long a member may be silent: one whose agent has not renewed its Lease for longer is taken away by every
	// other, with its services and its tunnels, until it renews it again. At least 2m; the default is 15m.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('2m')",message="must be 2m or more"
	// +optional
	ExpireAfter *metav1.Duration `json:"expireAfter,omitempty"`
}

// Member is one cluster of the clusterset.
type Member struct {
	// clusterID is one or two DNS labels.
	ClusterID string `json:"clusterID"`
	// namespace on the broker in which this member, and only it, writes.
	Namespace string `json:"namespace"`
}

// ClusterSetList is a list of ClusterSets.
//
// +kubebuilder:object:root=true
type ClusterSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterSet `json:"items"`
}

// ExportedService is one cluster's contribution to a clusterset service. Named <cluster ID>.<service>.<namespace>.
//
// +kubebuilder:object:root=true
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.namespace`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.name`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
type ExportedService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ExportedServiceSpec `json:"spec"`
}

// ExportedServiceSpec says what the cluster exports. Enumerations hold the values of the core and Multi-Cluster Services
// APIs.
type ExportedServiceSpec struct {
	// namespace and name of the Service, the same in every cluster.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// withdrawn makes this a tombstone: the record counts as gone, at once, whatever else it says. Its owner writes it in place
	// of what it no longer exports, and deletes it when everybody has seen it.
	// +optional
	Withdrawn bool `json:"withdrawn,omitempty"`
	// type is ClusterSetIP or Headless.
	// +kubebuilder:validation:Enum=ClusterSetIP;Headless
	Type string `json:"type"`
	// exportedAt is when the ServiceExport was created: the oldest export wins a conflict.
	ExportedAt metav1.Time `json:"exportedAt"`
	// ports of the Service.
	// +listType=atomic
	// +optional
	Ports []ServicePort `json:"ports,omitempty"`
	// ipFamilies of the Service, IPv4 and IPv6, the preferred first.
	// +listType=atomic
	// +optional
	IPFamilies []string `json:"ipFamilies,omitempty"`
	// addresses are the cluster's own addresses of the service, at most one a family, as peers reach them: its cluster
	// IPs. None for a headless service.
	// +listType=atomic
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// sessionAffinity is None or ClientIP.
	// +optional
	SessionAffinity string `json:"sessionAffinity,omitempty"`
	// sessionAffinityTimeoutSeconds goes with ClientIP.
	// +optional
	SessionAffinityTimeoutSeconds *int32 `json:"sessionAffinityTimeoutSeconds,omitempty"`
	// internalTrafficPolicy is Cluster or Local.
	// +optional
	InternalTrafficPolicy *string `json:"internalTrafficPolicy,omitempty"`
	// trafficDistribution of the Service.
	// +optional
	TrafficDistribution *string `json:"trafficDistribution,omitempty"`
	// exportedLabels and exportedAnnotations of the ServiceExport.
	// +optional
	ExportedLabels map[string]string `json:"exportedLabels,omitempty"`
	// +optional
	ExportedAnnotations map[string]string `json:"exportedAnnotations,omitempty"`

	// affinity says who serves behind the clusterset IP of an importing cluster: local, none or remote. Empty is local.
	// +kubebuilder:validation:Enum=local;none;remote
	// +optional
	Affinity string `json:"affinity,omitempty"`
	// weight of this cluster among those that export the service, 0 to 65535; unset is 1. Unlike all else here it is every
	// cluster's own, and no export's word on others.
	// +optional
	Weight *int32 `json:"weight,omitempty"`
	// prefer is clusters in the order in which they are to serve, among those that affinity leaves.
	// +listType=atomic
	// +optional
	Prefer []string `json:"prefer,omitempty"`
	// minLocalPercent is the least share of local backends that must be ready, in percent, for them to serve alone.
	// +optional
	MinLocalPercent *int32 `json:"minLocalPercent,omitempty"`
	// balance is ip or dns; empty is what the ClusterSet says.
	// +kubebuilder:validation:Enum=ip;dns
	// +optional
	Balance string `json:"balance,omitempty"`
}

// ServicePort is a port of an exported service.
type ServicePort struct {
	// +optional
	Name string `json:"name,omitempty"`
	// protocol is TCP, UDP or SCTP.
	Protocol string `json:"protocol"`
	// +optional
	AppProtocol *string `json:"appProtocol,omitempty"`
	Port        int32   `json:"port"`
}

// ExportedServiceList is a list of ExportedServices.
//
// +kubebuilder:object:root=true
type ExportedServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExportedService `json:"items"`
}

// MaxBackends is how many backends one ExportedEndpoints, and one EndpointSlice of ours, holds at most.
const MaxBackends = 100

// ExportedEndpoints is up to MaxBackends backends of one family of one exported service, in one cluster. Named
// <cluster ID>.<name of the EndpointSlice it was made from>.<namespace>.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=exportedendpoints,singular=exportedendpoints
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.namespace`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.service`
// +kubebuilder:printcolumn:name="Family",type=string,JSONPath=`.spec.ipFamily`
// +kubebuilder:printcolumn:name="Backends",type=string,JSONPath=`.spec.backends[*].addresses`
type ExportedEndpoints struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ExportedEndpointsSpec `json:"spec"`
}

// ExportedEndpointsSpec holds the backends.
type ExportedEndpointsSpec struct {
	// namespace and service name the exported service.
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// withdrawn makes this a tombstone: the record counts as gone, at once, whatever else it says. Its owner writes it in place
	// of what it no longer exports, and deletes it when everybody has seen it.
	// +optional
	Withdrawn bool `json:"withdrawn,omitempty"`
	// ipFamily of all addresses here.
	// +kubebuilder:validation:Enum=IPv4;IPv6
	IPFamily string `json:"ipFamily"`
	// ports of the backends (target ports), with the names of the service's ports.
	// +listType=atomic
	// +optional
	Ports []BackendPort `json:"ports,omitempty"`
	// +kubebuilder:validation:MaxItems=100
	// +listType=atomic
	// +optional
	Backends []Backend `json:"backends,omitempty"`
}

// BackendPort is a port that every backend of its ExportedEndpoints listens on.
type BackendPort struct {
	// +optional
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	// +optional
	AppProtocol *string `json:"appProtocol,omitempty"`
	Port        int32   `json:"port"`
}

// Backend is a pod behind an exported service.
type Backend struct {
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +listType=atomic
	Addresses []string `json:"addresses"`
	// hostname of the pod, where it has one: the first label of its own name.
	// +optional
	Hostname string `json:"hostname,omitempty"`
	// ready, serving and terminating as in EndpointSlices; nil is unknown.
	// +optional
	Ready *bool `json:"ready,omitempty"`
	// +optional
	Serving *bool `json:"serving,omitempty"`
	// +optional
	Terminating *bool `json:"terminating,omitempty"`
	// +optional
	Zone *string `json:"zone,omitempty"`
	// +optional
	NodeName *string `json:"nodeName,omitempty"`
}

// ExportedEndpointsList is a list of ExportedEndpoints.
//
// +kubebuilder:object:root=true
type ExportedEndpointsList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExportedEndpoints `json:"items"`
}

// Endpoint is one gateway node as other clusters' gateways reach it. Named <cluster ID>.<node>. The gateway writes it in
// its own cluster; the agent publishes it, and mirrors the others' into this cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:printcolumn:name="Cluster",type=string,JSONPath=`.spec.clusterID`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Drivers",type=string,JSONPath=`.spec.drivers[*].name`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Port",type=integer,JSONPath=`.spec.port`
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.spec.prefixes`
type Endpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EndpointSpec `json:"spec"`
}

// EndpointSpec says where and how.
type EndpointSpec struct {
	ClusterID string `json:"clusterID"`
	// clusterUID is the UID of the cluster's namespace kube-system: two clusters that claim one ID differ in it.
	ClusterUID string `json:"clusterUID"`
	Node       string `json:"node"`
	// drivers that the gateway has, the preferred first. Two gateways meet on the first of the one whose cluster has the
	// smaller ID that the other has too.
	// +kubebuilder:validation:MinItems=1
	// +listType=map
	// +listMapKey=name
	Drivers []EndpointDriver `json:"drivers"`
	// addresses of the gateway node on the network between clusters (peer addresses), the preferred first.
	// +kubebuilder:validation:MinItems=1
	// +listType=atomic
	Addresses []string `json:"addresses"`
	// port (UDP) is the first of those at which the gateway awaits its peers.
	Port int32 `json:"port"`
	// ports (UDP) at which the gateway awaits its peers, by the names of their Endpoints: each has one of its own. Who is not
	// here yet has to wait.
	// +optional
	Ports map[string]int32 `json:"ports,omitempty"`
	// probeKey is the X25519 public key (32 bytes in base64) by which the nodes of the gateway's own cluster know who answers
	// their probes. No cable uses it.
	// +optional
	ProbeKey string `json:"probeKey,omitempty"`
	// prefixes (pod and service ranges, both families) that lie behind the gateway.
	// +listType=set
	Prefixes []string `json:"prefixes"`
}

// EndpointDriver is a kind of cable that a gateway can make.
type EndpointDriver struct {
	// +kubebuilder:validation:Enum=wireguard;ipsec;vxlan
	Name string `json:"name"`
	// publicKey of the gateway, in the driver's own form (wireguard and ipsec: 32 bytes in base64; vxlan has none).
	// +optional
	PublicKey string `json:"publicKey,omitempty"`
	// port (UDP) of the driver's own, where it has one beside those for peers (ipsec: IKE and ESP in UDP).
	// +optional
	Port int32 `json:"port,omitempty"`
}

// EndpointList is a list of Endpoints.
//
// +kubebuilder:object:root=true
type EndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Endpoint `json:"items"`
}

// Gateway is a gateway node's own report, named by the node, in the namespace fastnet-system.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Driver",type=string,JSONPath=`.status.driver`
// +kubebuilder:printcolumn:name="Clusters",type=string,JSONPath=`.status.cables[*].clusterID`
// +kubebuilder:printcolumn:name="Cables",type=string,JSONPath=`.status.cables[*].state`
// +kubebuilder:printcolumn:name="Drain",type=string,JSONPath=`.status.drain`
type Gateway struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status GatewayStatus `json:"status,omitempty"`
}

// GatewayStatus is the state of the gateway's cables.
type GatewayStatus struct {
	// driver: those of this gateway, with their implementations: "wireguard (in-process), vxlan".
	// +optional
	Driver string `json:"driver,omitempty"`
	// drain is empty, or draining while traffic is being moved to other gateways, or drained when none is left.
	// +kubebuilder:validation:Enum=draining;drained
	// +optional
	Drain string `json:"drain,omitempty"`
	// cables, one an Endpoint of another cluster.
	// +listType=map
	// +listMapKey=endpoint
	// +optional
	Cables []Cable `json:"cables,omitempty"`
	// problems that keep the gateway from doing what it should, in words; none when all is well.
	// +listType=atomic
	// +optional
	Problems []string `json:"problems,omitempty"`
	// conditions: DriverAgreed.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// renewed is when the gateway last wrote this. One that does not go on doing so is gone, and its Gateway is deleted.
	// +optional
	Renewed *metav1.Time `json:"renewed,omitempty"`
}

// ConditionDriverAgreed of a Gateway is True while it has a driver in common with each gateway of other clusters, and False while it has
// none with some: there is no cable to these, the problems have their names and drivers, and the message those of the first.
const ConditionDriverAgreed = "DriverAgreed"

// Reasons of the condition DriverAgreed.
const (
	ReasonDriverAgreed   = "DriverAgreed"
	ReasonNoCommonDriver = "NoCommonDriver"
)

// States of a Gateway on its way out.
const (
	DrainDraining = "draining"
	DrainDrained  = "drained"
)

// CableState is the state of a cable.
// +kubebuilder:validation:Enum=up;connecting;down
type CableState string

// A cable is connecting until its first answer, up while answers come through it, and down when they no longer do.
const (
	CableConnecting CableState = "connecting"
	CableUp         CableState = "up"
	CableDown       CableState = "down"
)

// Cable is a tunnel between this gateway and one of another cluster.
type Cable struct {
	ClusterID string `json:"clusterID"`
	// endpoint is the name of the other side's Endpoint.
	Endpoint string `json:"endpoint"`
	// driver with its implementation: "wireguard" or "wireguard (in-process)".
	Driver string `json:"driver"`
	// peerAddress in use, with its port.
	// +optional
	PeerAddress string     `json:"peerAddress,omitempty"`
	State       CableState `json:"state"`
	// rttMilliseconds is the round-trip time through the cable: a decimal number, a smoothed mean.
	// +optional
	RTTMilliseconds string `json:"rttMilliseconds,omitempty"`
	// lossPercent is the share of the last probes through the cable that were lost: a decimal number.
	// +optional
	LossPercent string `json:"lossPercent,omitempty"`
	// draining: the other side wants no more traffic over this cable.
	// +optional
	Draining bool `json:"draining,omitempty"`
	// since when the cable has been in this state.
	Since metav1.Time `json:"since"`
}

// GatewayList is a list of Gateways.
//
// +kubebuilder:object:root=true
type GatewayList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Gateway `json:"items"`
}
