// Package clusterset is the domain of the Multi-Cluster Services API as pure functions: which records of a broker count,
// what many clusters' exports of one service come to, and which backends stand behind its clusterset IP. Nothing here
// reads a clock, an API server or the order in which records arrived, so every importing cluster comes to the same result.
//
//	records of all members -- Roster.Export, Roster.Backends: those that count
//	        |
//	  []Contribution per service -- Merge: the Service, its conflicts
//	        |
//	     []Slice -- Choose, by the Service's Policy: the ports that each slice serves behind the clusterset IP
package clusterset

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Key names a service: the same namespace and name in every cluster (namespace sameness).
type Key = types.NamespacedName

// Contribution is what one cluster offers to a service: its export and its backends.
type Contribution struct {
	Cluster  string
	Export   v1alpha1.ExportedServiceSpec
	Backends []Backends
}

// Backends is one record of backends of a contribution.
type Backends struct {
	// Record is the name of the ExportedEndpoints; it is unique over all clusters (see Roster).
	Record string
	Spec   v1alpha1.ExportedEndpointsSpec
	// Changed is when the endpoints last changed in their own cluster, as its EndpointSlice tells: RFC 3339, or "".
	Changed string
}

// Service is what all contributions to one service come to.
type Service struct {
	Key Key
	// Spec of the ServiceImport, without IPs: those are the importing cluster's own.
	Spec mcsv1beta1.ServiceImportSpec
	// Labels and Annotations exported for the ServiceImport.
	Labels, Annotations map[string]string
	// Policy says which clusters serve it.
	Policy Policy
	// Clusters that contribute, sorted.
	Clusters []string
	// Conflicts between the contributions, in the fixed order of the checks.
	Conflicts []Conflict
}

// Conflict is one property on which contributions differ.
type Conflict struct {
	Reason mcsv1beta1.ServiceExportConditionReason
	// Message names the field, the winner and the losers.
	Message string
}

// ReasonPolicyConflict is our own: exports differ in the annotations fastnet.dev/affinity, prefer, min-local-percent or
// balance. Weights differ by their nature.
const ReasonPolicyConflict mcsv1beta1.ServiceExportConditionReason = "PolicyConflict"

// Merge says what contributions, all to the same service and at most one a cluster, come to. Where they differ, the oldest
// export wins; equal ages are settled by the lower cluster ID. It reports false where there are none.
func Merge(contributions []Contribution) (Service, bool) {
	if len(contributions) == 0 {
		return Service{}, false
	}
	byAge := slices.SortedFunc(slices.Values(contributions), func(a, b Contribution) int {
		return cmp.Or(a.Export.ExportedAt.Compare(b.Export.ExportedAt.Time), cmp.Compare(a.Cluster, b.Cluster))
	})
	winner := byAge[0].Export
	service := Service{
		Key:         Key{Namespace: winner.Namespace, Name: winner.Name},
		Labels:      winner.ExportedLabels,
		Annotations: winner.ExportedAnnotations,
		Spec: mcsv1beta1.ServiceImportSpec{
			Type:                  mcsv1beta1.ServiceImportType(winner.Type),
			Ports:                 unionOfPorts(byAge),
			IPFamilies:            unionOfFamilies(byAge),
			SessionAffinity:       corev1.ServiceAffinity(affinity(winner)),
			InternalTrafficPolicy: (*corev1.ServiceInternalTrafficPolicy)(winner.InternalTrafficPolicy),
			TrafficDistribution:   winner.TrafficDistribution,
		},
	}
	if service.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		timeout := affinityTimeout(winner)
		service.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}
	for _, c := range byAge {
		service.Clusters = append(service.Clusters, c.Cluster)
	}
	slices.Sort(service.Clusters)
	service.Policy = policyOf(byAge)
	service.Conflicts = conflicts(byAge)
	return service, true
}

// unionOfPorts takes the ports of every export, the oldest export's first. A port whose name is taken is left out, and so
// is one whose protocol and number are: the port that a client sees is protocol and number, and a Service holds neither
// twice. Never nil: the API server wants a list.
func unionOfPorts(byAge []Contribution) []mcsv1beta1.ServicePort {
	union := []mcsv1beta1.ServicePort{}
	for _, c := range byAge {
		for _, p := range c.Export.Ports {
			taken := slices.ContainsFunc(union, func(u mcsv1beta1.ServicePort) bool {
				return u.Name == p.Name || string(u.Protocol) == p.Protocol && u.Port == p.Port
			})
			if !taken {
				union = append(union, mcsv1beta1.ServicePort{
					Name: p.Name, Protocol: corev1.Protocol(p.Protocol), AppProtocol: p.AppProtocol, Port: p.Port,
				})
			}
		}
	}
	return union
}

func unionOfFamilies(byAge []Contribution) []corev1.IPFamily {
	var union []corev1.IPFamily
	for _, c := range byAge {
		for _, family := range c.Export.IPFamilies {
			if !slices.Contains(union, corev1.IPFamily(family)) {
				union = append(union, corev1.IPFamily(family))
			}
		}
	}
	return union
}

func affinity(e v1alpha1.ExportedServiceSpec) string {
	return cmp.Or(e.SessionAffinity, string(corev1.ServiceAffinityNone))
}

func affinityTimeout(e v1alpha1.ExportedServiceSpec) int32 {
	if affinity(e) != string(corev1.ServiceAffinityClientIP) {
		return 0
	}
	if e.SessionAffinityTimeoutSeconds == nil {
		return corev1.DefaultClientIPServiceAffinitySeconds
	}
	return *e.SessionAffinityTimeoutSeconds
}

// conflicts compares every contribution with the oldest, property by property.
func conflicts(byAge []Contribution) []Conflict {
	var found []Conflict
	check := func(reason mcsv1beta1.ServiceExportConditionReason, field string, show func(v1alpha1.ExportedServiceSpec) string) {
		winner := show(byAge[0].Export)
		var losers []string
		for _, c := range byAge[1:] {
			if value := show(c.Export); value != winner {
				losers = append(losers, fmt.Sprintf("%s (%s)", c.Cluster, value))
			}
		}
		if len(losers) > 0 {
			found = append(found, Conflict{reason, fmt.Sprintf("%s: %s, exported first, has %s; different in %s",
				field, byAge[0].Cluster, winner, strings.Join(losers, ", "))})
		}
	}
	check(mcsv1beta1.ServiceExportReasonPortConflict, "ports", showPorts)
	check(mcsv1beta1.ServiceExportReasonTypeConflict, "type", func(e v1alpha1.ExportedServiceSpec) string { return e.Type })
	check(mcsv1beta1.ServiceExportReasonSessionAffinityConflict, "sessionAffinity", affinity)
	check(mcsv1beta1.ServiceExportReasonSessionAffinityConfigConflict, "sessionAffinityConfig", func(e v1alpha1.ExportedServiceSpec) string {
		if affinity(e) != affinity(byAge[0].Export) {
			e = byAge[0].Export // a difference of its own, reported as such
		}
		return fmt.Sprintf("%d seconds", affinityTimeout(e))
	})
	check(mcsv1beta1.ServiceExportReasonInternalTrafficPolicyConflict, "internalTrafficPolicy", func(e v1alpha1.ExportedServiceSpec) string {
		if e.InternalTrafficPolicy == nil {
			return string(corev1.ServiceInternalTrafficPolicyCluster)
		}
		return *e.InternalTrafficPolicy
	})
	check(mcsv1beta1.ServiceExportReasonTrafficDistributionConflict, "trafficDistribution", func(e v1alpha1.ExportedServiceSpec) string {
		if e.TrafficDistribution == nil {
			return "none"
		}
		return *e.TrafficDistribution
	})
	check(mcsv1beta1.ServiceExportReasonLabelsConflict, "exportedLabels", func(e v1alpha1.ExportedServiceSpec) string { return showMap(e.ExportedLabels) })
	check(mcsv1beta1.ServiceExportReasonAnnotationsConflict, "exportedAnnotations", func(e v1alpha1.ExportedServiceSpec) string { return showMap(e.ExportedAnnotations) })
	// The union of the families is served, so a cluster that lacks one of them gets none of that family's traffic.
	check(mcsv1beta1.ServiceExportReasonIPFamilyConflict, "ipFamilies", func(e v1alpha1.ExportedServiceSpec) string {
		return strings.Join(slices.Sorted(slices.Values(e.IPFamilies)), ",")
	})
	if conflict, ok := policyConflict(byAge); ok {
		found = append(found, conflict)
	}
	return found
}

// showPorts is the ports in a form whose equality is theirs: the order in which a Service lists them means nothing.
func showPorts(e v1alpha1.ExportedServiceSpec) string {
	var ports []string
	for _, p := range e.Ports {
		text := fmt.Sprintf("%s %d/%s", cmp.Or(p.Name, "(unnamed)"), p.Port, p.Protocol)
		if p.AppProtocol != nil {
			text += " " + *p.AppProtocol
		}
		ports = append(ports, text)
	}
	slices.Sort(ports)
	return cmp.Or(strings.Join(ports, ", "), "none")
}

func showMap(m map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", key, m[key]))
	}
	return cmp.Or(strings.Join(pairs, " "), "none")
}
