package v1alpha1

import "time"

// TombstoneLives is how long a record stays on the broker after it was withdrawn: longer than any agent that is at work takes to
// see it, restarts and outages of its own included.
const TombstoneLives = 10 * time.Minute

// Times of the members' Leases on the broker.
const (
	// RenewEvery is how often a member's agent renews its Lease. It is all that it writes at rest.
	RenewEvery = 40 * time.Second
	// DefaultExpireAfter is the default of ClusterSet.spec.expireAfter.
	DefaultExpireAfter = 15 * time.Minute
	// MinExpireAfter is the least that it may be: three renewals in a row must be missed.
	MinExpireAfter = 3 * RenewEvery
)

// Labels, annotations and names that more than one part reads.
const (
	// LabelSourceCluster holds the ID of the cluster that an object speaks for: on Fastnet's own objects, and on the
	// EndpointSlices that the agent writes (the Multi-Cluster Services API's own label).
	LabelSourceCluster = "multicluster.kubernetes.io/source-cluster"
	// LabelServiceName holds the ServiceImport's name, on EndpointSlices (the Multi-Cluster Services API's own label).
	LabelServiceName = "multicluster.kubernetes.io/service-name"
	// AnnotationDerivedService on a ServiceImport names its derived Service (the Multi-Cluster Services API's own).
	AnnotationDerivedService = "multicluster.kubernetes.io/derived-service"
	// ManagedBy is the value of endpointslice.kubernetes.io/managed-by and app.kubernetes.io/managed-by on what we write.
	ManagedBy = "fastnet.dev"

	// LabelClusterAddress, "true", marks the slices whose one endpoint is a cluster's own address of a service, for DNS
	// alone: kube-proxy must not balance over it.
	LabelClusterAddress = "fastnet.dev/cluster-address"
	// AnnotationWeight on a cluster-address slice is that cluster's weight among clusters, 0 to 65535; on a ServiceExport it
	// asks for it.
	AnnotationWeight = "fastnet.dev/weight"
	// AnnotationAffinity, AnnotationPrefer, AnnotationMinLocalPercent and AnnotationBalance on a ServiceExport are the
	// fields of those names of its ExportedService.
	AnnotationAffinity        = "fastnet.dev/affinity"
	AnnotationPrefer          = "fastnet.dev/prefer"
	AnnotationMinLocalPercent = "fastnet.dev/min-local-percent"
	AnnotationBalance         = "fastnet.dev/balance"
	// AnnotationGlobal, "true", on a Service exports it, unless AnnotationShared there is "false".
	AnnotationGlobal = "fastnet.dev/global"
	AnnotationShared = "fastnet.dev/shared"
	// LabelGlobal, beside managed-by, marks a ServiceExport that was made because of AnnotationGlobal.
	LabelGlobal = AnnotationGlobal

	// Values of affinity and of balance.
	AffinityLocal  = "local"
	AffinityNone   = "none"
	AffinityRemote = "remote"
	BalanceIP      = "ip"
	BalanceDNS     = "dns"
	// LabelServiceNamespace and LabelService on ExportedService and ExportedEndpoints name the exported service.
	LabelServiceNamespace = "fastnet.dev/service-namespace"
	LabelService          = "fastnet.dev/service"

	// AnnotationVersion on ExportedService and ExportedEndpoints is when the record was written: decimal milliseconds since
	// 1970, and more than what the record had before, so that it never falls for one record. A broker that was restored from
	// a backup shows older versions than were seen before; without the annotation a record is older than any with it.
	AnnotationVersion = "fastnet.dev/version"

	// AnnotationSettled on a member's Lease is a version of the broker's store, decimal: by then the broker had of the member what it should
	// have. A broker that was restored from a backup shows an older one than it is at itself.
	AnnotationSettled = "fastnet.dev/settled"
	// AnnotationAwaits on a member's Lease is a version of the broker's store too: all others are asked to say AnnotationSettled of that one, or a
	// later one. Its agent has started.
	AnnotationAwaits = "fastnet.dev/awaits"

	// LabelGatewayNode, "true", on a Node makes it a gateway node.
	LabelGatewayNode = "fastnet.dev/gateway"
	// AnnotationDrain, "true", on a gateway node moves the traffic between clusters to other gateways.
	AnnotationDrain = "fastnet.dev/drain"
	// AnnotationAddresses on a gateway node are IP addresses, separated by commas, at which others reach it, before those that it has itself.
	AnnotationAddresses = "fastnet.dev/gateway-addresses"
	// LabelGatewayAddress on a Service of type LoadBalancer in Namespace is the name of the gateway node that it leads to: others reach
	// the node at its addresses, and at the ports that the gateway listens on.
	LabelGatewayAddress = "fastnet.dev/gateway-address-of"
	// LabelMember on a namespace of the broker holds the cluster ID of the member whose records live there.
	LabelMember = "fastnet.dev/member"

	// Namespace is where Fastnet's workloads, Gateways and mirrored Endpoints live in a member.
	Namespace = "fastnet-system"
	// BrokerNamespace is where the members' ServiceAccounts live on the broker, one a member, named by the cluster ID.
	BrokerNamespace = "fastnet-broker"
	// LeaseName is the name of the Lease by which a member says in its own namespace on the broker that it is there.
	LeaseName = "fastnet-agent"
	// ClusterSetName is the name of the one ClusterSet of a broker.
	ClusterSetName = "clusterset"

	// ClusterPropertyID and ClusterPropertyClusterSet are the names of the about.k8s.io ClusterProperties that hold a
	// cluster's ID and its clusterset (KEP-2149).
	ClusterPropertyID         = "cluster.clusterset.k8s.io"
	ClusterPropertyClusterSet = "clusterset.k8s.io"
)
