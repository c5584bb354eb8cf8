package agent

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// known are the contributions of the clusters that are not heard yet, as far as they can be told from what was imported of them: an agent
// that starts leaves it as it is. What an import says of itself is put into the mouth of each of them, as the oldest export, so that all
// of them together come to the same import again. The slices with clusters' own addresses are taken over as they are.
func (p *Plan) known(s *Snapshot, key clusterset.Key) []clusterset.Contribution {
	known := s.Imports[key]
	if !ours(known) || !s.Namespaces[key.Namespace] {
		return nil
	}
	slicesOf := map[string][]*discoveryv1.EndpointSlice{}
	clusters := sets.New[string]()
	note := func(cluster string) bool {
		if cluster == "" || cluster == s.ClusterID || s.heard(cluster) {
			return false
		}
		clusters.Insert(cluster)
		return true
	}
	for _, status := range known.Status.Clusters {
		note(status.Cluster)
	}
	for _, slice := range s.OwnSlices[key] {
		if cluster := slice.Labels[v1alpha1.LabelSourceCluster]; note(cluster) {
			slicesOf[cluster] = append(slicesOf[cluster], slice)
		}
	}
	derived := s.Services[clusterset.Key{Namespace: key.Namespace, Name: clusterset.DerivedName(key)}]
	var all []clusterset.Contribution
	for _, cluster := range sets.List(clusters) {
		c := clusterset.Contribution{Cluster: cluster, Export: exportIn(known, derived, s.OwnSlices[key])}
		for _, slice := range slicesOf[cluster] {
			if weight, err := strconv.ParseInt(slice.Annotations[v1alpha1.AnnotationWeight], 10, 32); err == nil {
				weight := int32(weight)
				c.Export.Weight = &weight
			}
			if slice.Labels[v1alpha1.LabelClusterAddress] != "" {
				p.Slices = append(p.Slices, slice)
				continue
			}
			for _, b := range backendsOf(cluster, key, []*discoveryv1.EndpointSlice{slice}) {
				b.Record = cmp.Or(slice.Annotations[annotationRecord], b.Record)
				nameBack(b.Spec.Ports, known.Spec)
				c.Backends = append(c.Backends, b)
			}
		}
		all = append(all, c)
	}
	return all
}

// keep leaves an import as it is that says of no cluster that it serves: whoever made it was stopped on the way.
func (p *Plan) keep(s *Snapshot, key clusterset.Key) {
	p.Imports = append(p.Imports, s.Imports[key])
	if derived := s.Services[clusterset.Key{Namespace: key.Namespace, Name: clusterset.DerivedName(key)}]; derived != nil {
		p.Services = append(p.Services, derived)
	}
}

// exportIn is the export that alone would come to an import, its derived Service, nil for none, and its slices. The import says it all,
// but where its CRD is an old one: that has no families and no traffic policies.
func exportIn(known *mcsv1beta1.ServiceImport, derived *corev1.Service, all []*discoveryv1.EndpointSlice) v1alpha1.ExportedServiceSpec {
	spec := known.Spec
	e := v1alpha1.ExportedServiceSpec{
		Namespace: known.Namespace, Name: known.Name, Type: string(spec.Type), SessionAffinity: string(spec.SessionAffinity),
		InternalTrafficPolicy: (*string)(spec.InternalTrafficPolicy), TrafficDistribution: spec.TrafficDistribution,
		ExportedLabels: maps.Clone(known.Labels), ExportedAnnotations: maps.Clone(known.Annotations),
	}
	for _, port := range spec.Ports {
		e.Ports = append(e.Ports, v1alpha1.ServicePort{Name: port.Name, Protocol: string(port.Protocol), AppProtocol: port.AppProtocol, Port: port.Port})
	}
	for _, family := range spec.IPFamilies {
		e.IPFamilies = append(e.IPFamilies, string(family))
	}
	switch {
	case len(e.IPFamilies) > 0:
	case derived != nil:
		for _, family := range derived.Spec.IPFamilies {
			e.IPFamilies = append(e.IPFamilies, string(family))
		}
	default:
		for _, slice := range all {
			e.IPFamilies = append(e.IPFamilies, string(slice.AddressType))
		}
		slices.Sort(e.IPFamilies)
		e.IPFamilies = slices.Compact(e.IPFamilies)
	}
	if derived != nil {
		e.TrafficDistribution = cmp.Or(e.TrafficDistribution, derived.Spec.TrafficDistribution)
		if policy := derived.Spec.InternalTrafficPolicy; policy != nil && *policy != corev1.ServiceInternalTrafficPolicyCluster {
			e.InternalTrafficPolicy = (*string)(policy)
		}
	}
	if config := spec.SessionAffinityConfig; config != nil && config.ClientIP != nil {
		e.SessionAffinityTimeoutSeconds = config.ClientIP.TimeoutSeconds
	}
	clusterset.ReadPolicy(known.Annotations, &e)
	e.Weight = nil
	delete(e.ExportedLabels, labelManagedBy)
	for _, ours := range append(clusterset.PolicyAnnotations(), v1alpha1.AnnotationDerivedService) {
		delete(e.ExportedAnnotations, ours)
	}
	return e
}

// nameBack gives the ports of a slice the names that they have in the import, see clusterset.PortNames.
func nameBack(ports []v1alpha1.BackendPort, spec mcsv1beta1.ServiceImportSpec) {
	for i, name := range clusterset.PortNames(spec) {
		for j := range ports {
			if ports[j].Name == name && corev1.Protocol(ports[j].Protocol) == spec.Ports[i].Protocol {
				ports[j].Name = spec.Ports[i].Name
			}
		}
	}
}
