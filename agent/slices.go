package agent

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// backendSlices adds the EndpointSlices of an import.
//
// One slice is read by two: by DNS, as one of a cluster's backends with all the ports that the cluster exposes, and by
// kube-proxy, as what stands behind the derived Service. Nearly always all ports of a slice or none of them stand there,
// and one object serves both, with or without kube-proxy's label:
//
//	sample/web-c2-3q7...   multicluster.kubernetes.io/service-name=web  kubernetes.io/service-name=derived-...
//
// Where some of the ports do (c1 serves http itself and has no admin), kube-proxy gets an object of its own, which DNS does
// not read:
//
//	sample/web-c2-3q7...   multicluster.kubernetes.io/service-name=web                              http, admin
//	sample/web-c2-k0f...                                 kubernetes.io/service-name=derived-...     admin
func (p *Plan) backendSlices(s *Snapshot, key clusterset.Key, spec mcsv1beta1.ServiceImportSpec, policy clusterset.Policy, derived string, all []clusterset.Slice) {
	chosen := make([][]v1alpha1.BackendPort, len(all))
	if derived != "" {
		chosen = clusterset.Choose(s.ClusterID, policy, s.Reach.Of, all)
	}
	for i, slice := range all {
		object := newSlice(key, slice.Cluster, slice.Family, slice.Record)
		object.Annotations = map[string]string{annotationRecord: slice.Record}
		if slice.Changed != "" {
			object.Annotations[corev1.EndpointsLastChangeTriggerTime] = slice.Changed
		}
		if spec.Type == mcsv1beta1.Headless {
			weigh(object, policy)
		}
		object.Ports = portsOf(slice.Ports)
		for _, backend := range slice.Backends {
			object.Endpoints = append(object.Endpoints, endpointOf(backend, spec, slice.Cluster == s.ClusterID))
		}
		whole := len(chosen[i]) > 0 && len(chosen[i]) == len(slice.Ports)
		if whole {
			object.Labels[discoveryv1.LabelServiceName] = derived
		} else {
			hide(object)
		}
		p.Slices = append(p.Slices, object)
		if len(chosen[i]) > 0 && !whole {
			some := newSlice(key, slice.Cluster, slice.Family, slice.Record, "some-ports")
			delete(some.Labels, v1alpha1.LabelServiceName)
			some.Labels[discoveryv1.LabelServiceName] = derived
			some.Annotations = map[string]string{annotationImport: key.Name}
			some.Ports, some.Endpoints = portsOf(chosen[i]), object.Endpoints
			p.Slices = append(p.Slices, some)
		}
	}
}

// weigh notes the weight of a slice's cluster, where it has set one: DNS balances by it, and gives it in SRV records.
func weigh(slice *discoveryv1.EndpointSlice, policy clusterset.Policy) {
	if weight, ok := policy.Weights[slice.Labels[v1alpha1.LabelSourceCluster]]; ok {
		set(&slice.Annotations, v1alpha1.AnnotationWeight, strconv.Itoa(int(weight)))
	}
}

// addressSlices adds a cluster's own addresses of a service, which DNS answers for the name that holds the cluster.
func (p *Plan) addressSlices(key clusterset.Key, policy clusterset.Policy, c clusterset.Contribution) {
	for _, address := range c.Export.Addresses {
		family := clusterset.FamilyOf(address)
		slice := newSlice(key, c.Cluster, family, "cluster-address")
		slice.Labels[v1alpha1.LabelClusterAddress] = "true"
		hide(slice)
		weigh(slice, policy)
		ready := slices.ContainsFunc(c.Backends, func(b clusterset.Backends) bool {
			return b.Spec.IPFamily == family && clusterset.AnyReady(b.Spec.Backends)
		})
		slice.Endpoints = []discoveryv1.Endpoint{{
			Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}}
		for _, port := range c.Export.Ports {
			protocol := corev1.Protocol(port.Protocol)
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &protocol, AppProtocol: port.AppProtocol, Port: &port.Port})
		}
		p.Slices = append(p.Slices, slice)
	}
}

func newSlice(key clusterset.Key, cluster, family string, source ...string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: clusterset.SliceName(key.Name, cluster, append(source, family)...),
			Labels: map[string]string{
				discoveryv1.LabelManagedBy:  v1alpha1.ManagedBy,
				v1alpha1.LabelServiceName:   key.Name,
				v1alpha1.LabelSourceCluster: cluster,
			},
		},
		AddressType: discoveryv1.AddressType(family),
	}
}

// hide keeps a slice out of kube-proxy's watch, which leaves out what bears this label, whatever its value. Without it every
// node would hold the slice and log that it belongs to no Service.
func hide(slice *discoveryv1.EndpointSlice) {
	slice.Labels[corev1.IsHeadlessService] = ""
}

func portsOf(ports []v1alpha1.BackendPort) []discoveryv1.EndpointPort {
	var all []discoveryv1.EndpointPort
	for _, port := range ports {
		protocol := corev1.Protocol(port.Protocol)
		all = append(all, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &protocol, AppProtocol: port.AppProtocol, Port: &port.Port})
	}
	return all
}

// endpointOf turns a backend back into an endpoint. Zone hints are made anew, as the clusters' own controllers make them;
// zones of one name in several clusters are meant to be the same place.
//
// A node's name is only sure to mean a node of its own cluster. kube-proxy compares it with its own under the internal
// traffic policy Local, and would take a remote backend on a namesake for its own; so it is left out there.
func endpointOf(b v1alpha1.Backend, spec mcsv1beta1.ServiceImportSpec, own bool) discoveryv1.Endpoint {
	endpoint := discoveryv1.Endpoint{
		Addresses:  b.Addresses,
		Conditions: discoveryv1.EndpointConditions{Ready: b.Ready, Serving: b.Serving, Terminating: b.Terminating},
		NodeName:   b.NodeName, Zone: b.Zone,
	}
	if b.Hostname != "" {
		endpoint.Hostname = &b.Hostname
	}
	if policy := spec.InternalTrafficPolicy; !own && policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal {
		endpoint.NodeName = nil
	}
	if spec.TrafficDistribution != nil && b.Zone != nil {
		endpoint.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: *b.Zone}}}
		if own && b.NodeName != nil && *spec.TrafficDistribution == corev1.ServiceTrafficDistributionPreferSameNode {
			endpoint.Hints.ForNodes = []discoveryv1.ForNode{{Name: *b.NodeName}}
		}
	}
	return endpoint
}

// mirrored says whether an Endpoint in this cluster is the agent's copy of another member's.
func mirrored(cluster string, e *v1alpha1.Endpoint) bool {
	return ours(e) && e.Spec.ClusterID != cluster
}

// gateways adds this cluster's Endpoints for the broker, and the other members' for this cluster.
func (p *Plan) gateways(s *Snapshot, roster clusterset.Roster) {
	for _, local := range s.Endpoints {
		if local.Spec.ClusterID == s.ClusterID {
			p.PublishedEndpoints = append(p.PublishedEndpoints, &v1alpha1.Endpoint{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.BrokerNamespace, Name: local.Name, Labels: map[string]string{
					v1alpha1.LabelSourceCluster: s.ClusterID,
				}},
				Spec: local.Spec,
			})
		}
	}
	if !s.Namespaces[v1alpha1.Namespace] {
		return
	}
	for _, mirror := range s.Endpoints {
		if mirrored(s.ClusterID, mirror) && !s.heard(mirror.Spec.ClusterID) {
			p.Mirrors = append(p.Mirrors, mirror)
		}
	}
	for _, record := range s.Broker.Gateways {
		switch cluster, err := roster.Endpoint(record); {
		case record.Namespace == v1alpha1.Namespace: // the broker is a member's own cluster: its gateways and mirrors
		case err != nil:
			p.problem("Endpoint", record, err)
		case cluster != s.ClusterID && s.heard(cluster):
			p.Mirrors = append(p.Mirrors, &v1alpha1.Endpoint{
				ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: record.Name, Labels: map[string]string{
					labelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelSourceCluster: cluster,
				}},
				Spec: record.Spec,
			})
		}
	}
}
