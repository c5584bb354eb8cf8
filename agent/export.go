package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// export is what a ServiceExport comes to: a contribution, or the reason why there is none.
type export struct {
	contribution *clusterset.Contribution
	valid, ready metav1.Condition // ready only where there is no contribution
	notices      []Notice         // what is wrong and keeps nothing from being exported; part of valid's message
}

func condition(kind mcsv1beta1.ServiceExportConditionType, status metav1.ConditionStatus, reason mcsv1beta1.ServiceExportConditionReason, message string) metav1.Condition {
	return metav1.Condition{Type: string(kind), Status: status, Reason: string(reason), Message: message}
}

// planExport turns a ServiceExport, its Service and that Service's EndpointSlices into a contribution.
func planExport(s *Snapshot, roster clusterset.Roster, key clusterset.Key) export {
	no := func(reason, ready mcsv1beta1.ServiceExportConditionReason, message string) export {
		return export{
			valid: condition(mcsv1beta1.ServiceExportConditionValid, metav1.ConditionFalse, reason, message),
			ready: condition(mcsv1beta1.ServiceExportConditionReady, metav1.ConditionFalse, ready, message),
		}
	}
	service := s.Services[key]
	derived := false
	if service != nil {
		_, derived = derivedFor(service)
	}
	switch {
	case service == nil:
		return no(mcsv1beta1.ServiceExportReasonNoService, mcsv1beta1.ServiceExportReasonPending,
			fmt.Sprintf("there is no Service %s; it is exported as soon as there is one", key))
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return no(mcsv1beta1.ServiceExportReasonInvalidServiceType, mcsv1beta1.ServiceExportReasonFailed,
			"a Service of type ExternalName cannot be exported")
	case derived:
		return no(mcsv1beta1.ServiceExportReasonInvalidServiceType, mcsv1beta1.ServiceExportReasonFailed,
			"the derived Service of an import cannot be exported; export the Service that it stands for")
	}
	e := export{
		valid: condition(mcsv1beta1.ServiceExportConditionValid, metav1.ConditionTrue, mcsv1beta1.ServiceExportReasonValid, "the Service can be exported"),
	}
	contribution := clusterset.Contribution{
		Cluster: s.ClusterID, Export: exportOf(s.Exports[key], service), Backends: backendsOf(s.ClusterID, key, s.Slices[key]),
	}
	e.readPolicy(s, roster, s.Exports[key], &contribution.Export)
	e.checkNames(&contribution)
	err := clusterset.CheckExport(&contribution.Export)
	for _, backends := range contribution.Backends {
		if err == nil {
			err = clusterset.CheckBackends(&backends.Spec)
		}
	}
	if err != nil {
		e.ready = condition(mcsv1beta1.ServiceExportConditionReady, metav1.ConditionFalse, mcsv1beta1.ServiceExportReasonFailed,
			"cannot be exported: "+strings.ReplaceAll(err.Error(), "\n", "; "))
		return e
	}
	e.contribution = &contribution
	return e
}

// readPolicy reads the annotations by which users say who serves. What is wrong with them is told in the condition Valid,
// which stays true, and keeps nothing from being exported.
func (e *export) readPolicy(s *Snapshot, roster clusterset.Roster, object *mcsv1beta1.ServiceExport, into *v1alpha1.ExportedServiceSpec) {
	problems := clusterset.ReadPolicy(object.Annotations, into)
	if len(into.Prefer) > 0 && !s.Broker.Synced {
		// Nobody knows who is in the clusterset: what was said of the list stands.
		if known := meta.FindStatusCondition(object.Status.Conditions, e.valid.Type); known != nil && known.Status == e.valid.Status {
			e.valid.Message = known.Message
			return
		}
	} else {
		// They stay in the list: a cluster that joins later, or is away for a while, has its place.
		var strangers []string
		for _, cluster := range into.Prefer {
			if !roster.Has(cluster) {
				strangers = append(strangers, cluster)
			}
		}
		if len(strangers) > 0 {
			problems = append(problems, fmt.Sprintf("%s names %s, not in the clusterset", v1alpha1.AnnotationPrefer, strings.Join(strangers, " and ")))
		}
	}
	if into.MinLocalPercent != nil && clusterset.EffectiveAffinity(*into) != v1alpha1.AffinityLocal {
		problems = append(problems, fmt.Sprintf("%s has no effect without %s: %s", v1alpha1.AnnotationMinLocalPercent, v1alpha1.AnnotationAffinity, v1alpha1.AffinityLocal))
	}
	if into.Balance == v1alpha1.BalanceDNS && (into.MinLocalPercent != nil || into.Affinity != "" && into.Affinity != v1alpha1.AffinityLocal) {
		problems = append(problems, fmt.Sprintf("%s and %s have no effect with %s: %s, which is local first",
			v1alpha1.AnnotationAffinity, v1alpha1.AnnotationMinLocalPercent, v1alpha1.AnnotationBalance, v1alpha1.BalanceDNS))
	}
	if len(problems) > 0 {
		e.notice(reasonInvalidAnnotation, shorten(strings.Join(problems, "; ")))
	}
}

func (e *export) notice(reason, message string) {
	e.notices = append(e.notices, Notice{reason, message})
	e.valid.Message += "; " + message
}

// checkNames finds the backends of a headless service that can have no name of their own. All other names of a service fit into DNS,
// however long its parts are.
func (e *export) checkNames(c *clusterset.Contribution) {
	if c.Export.Type != string(mcsv1beta1.Headless) {
		return
	}
	var tooLong []string
	for _, backends := range c.Backends {
		for _, b := range backends.Spec.Backends {
			name := clusterset.DNSName(b.Hostname, c.Cluster, clusterset.Key{Namespace: c.Export.Namespace, Name: c.Export.Name})
			if b.Hostname != "" && len(name) > clusterset.MaxDNSName && !slices.Contains(tooLong, name) {
				tooLong = append(tooLong, name)
			}
		}
	}
	if len(tooLong) > 0 {
		e.notice(reasonNameTooLong, fmt.Sprintf("DNS has no room for the names of %d pods, such as %s, of %d characters; it takes %d",
			len(tooLong), slices.Min(tooLong), len(slices.Min(tooLong)), clusterset.MaxDNSName))
	}
}

func exportOf(export *mcsv1beta1.ServiceExport, service *corev1.Service) v1alpha1.ExportedServiceSpec {
	spec := v1alpha1.ExportedServiceSpec{
		Namespace:           service.Namespace,
		Name:                service.Name,
		Type:                string(mcsv1beta1.ClusterSetIP),
		ExportedAt:          export.CreationTimestamp,
		SessionAffinity:     string(service.Spec.SessionAffinity),
		TrafficDistribution: service.Spec.TrafficDistribution,
		ExportedLabels:      export.Spec.ExportedLabels,
		ExportedAnnotations: export.Spec.ExportedAnnotations,
	}
	for _, p := range service.Spec.Ports {
		spec.Ports = append(spec.Ports, v1alpha1.ServicePort{
			Name: p.Name, Protocol: cmp.Or(string(p.Protocol), string(corev1.ProtocolTCP)), AppProtocol: p.AppProtocol, Port: p.Port,
		})
	}
	for _, family := range service.Spec.IPFamilies {
		spec.IPFamilies = append(spec.IPFamilies, string(family))
	}
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		spec.Type = string(mcsv1beta1.Headless)
	} else {
		spec.Addresses = service.Spec.ClusterIPs
	}
	if config := service.Spec.SessionAffinityConfig; config != nil && config.ClientIP != nil {
		spec.SessionAffinityTimeoutSeconds = config.ClientIP.TimeoutSeconds
	}
	if policy := service.Spec.InternalTrafficPolicy; policy != nil {
		spec.InternalTrafficPolicy = (*string)(policy)
	}
	return spec
}

// backendsOf makes records of a Service's EndpointSlices: slice by slice, so that a change of one backend is a change of
// one record. Slices without endpoints, which Kubernetes keeps as placeholders, make none.
func backendsOf(cluster string, key clusterset.Key, endpointSlices []*discoveryv1.EndpointSlice) []clusterset.Backends {
	var all []clusterset.Backends
	for _, slice := range endpointSlices {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
			continue
		}
		var ports []v1alpha1.BackendPort
		for _, p := range slice.Ports {
			if p.Port == nil { // "all ports": no Service has such a slice
				continue
			}
			port := v1alpha1.BackendPort{Protocol: string(corev1.ProtocolTCP), AppProtocol: p.AppProtocol, Port: *p.Port}
			if p.Name != nil {
				port.Name = *p.Name
			}
			if p.Protocol != nil {
				port.Protocol = string(*p.Protocol)
			}
			ports = append(ports, port)
		}
		part := 0
		for endpoints := range slices.Chunk(slice.Endpoints, v1alpha1.MaxBackends) {
			spec := v1alpha1.ExportedEndpointsSpec{Namespace: key.Namespace, Service: key.Name, IPFamily: string(slice.AddressType), Ports: ports}
			for _, endpoint := range endpoints {
				backend := v1alpha1.Backend{
					Addresses: endpoint.Addresses, Zone: endpoint.Zone, NodeName: endpoint.NodeName,
					Ready: endpoint.Conditions.Ready, Serving: endpoint.Conditions.Serving, Terminating: endpoint.Conditions.Terminating,
				}
				if endpoint.Hostname != nil {
					backend.Hostname = *endpoint.Hostname
				}
				spec.Backends = append(spec.Backends, backend)
			}
			all = append(all, clusterset.Backends{
				Record: clusterset.BackendsName(cluster, slice.Name, key.Namespace, part), Spec: spec, Changed: changedAt(slice),
			})
			part++
		}
	}
	slices.SortFunc(all, func(a, b clusterset.Backends) int { return cmp.Compare(a.Record, b.Record) })
	return all
}

// changedAt is when the endpoints of a slice, or of a record, last changed, "" where that is not known. It goes with them to
// the clusters that import them, so that lighthouse and kube-proxy there can measure how long that took.
func changedAt(object metav1.Object) string {
	text := object.GetAnnotations()[corev1.EndpointsLastChangeTriggerTime]
	if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
		return "" // a member could have written anything
	}
	return text
}

// publish adds the records of a contribution to the plan.
func (p *Plan) publish(s *Snapshot, c *clusterset.Contribution) (*v1alpha1.ExportedService, []*v1alpha1.ExportedEndpoints) {
	key := clusterset.Key{Namespace: c.Export.Namespace, Name: c.Export.Name}
	object := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: s.BrokerNamespace, Name: name, Labels: map[string]string{
			v1alpha1.LabelSourceCluster:    c.Cluster,
			v1alpha1.LabelServiceNamespace: key.Namespace,
			v1alpha1.LabelService:          key.Name,
		}}
	}
	service := &v1alpha1.ExportedService{ObjectMeta: object(clusterset.ExportName(c.Cluster, key)), Spec: c.Export}
	var endpoints []*v1alpha1.ExportedEndpoints
	for _, b := range c.Backends {
		record := &v1alpha1.ExportedEndpoints{ObjectMeta: object(b.Record), Spec: b.Spec}
		if b.Changed != "" {
			set(&record.Annotations, corev1.EndpointsLastChangeTriggerTime, b.Changed)
		}
		endpoints = append(endpoints, record)
	}
	p.ExportedServices = append(p.ExportedServices, service)
	p.ExportedEndpoints = append(p.ExportedEndpoints, endpoints...)
	return service, endpoints
}

// published holds what the broker has of ours.
type published struct {
	services  map[string]*v1alpha1.ExportedService
	endpoints map[string]*v1alpha1.ExportedEndpoints
	member    bool // the roster has this cluster, in this namespace
}

func publishedBy(s *Snapshot, roster clusterset.Roster) published {
	p := published{
		services: map[string]*v1alpha1.ExportedService{}, endpoints: map[string]*v1alpha1.ExportedEndpoints{},
		member: roster.Member(s.BrokerNamespace) == s.ClusterID,
	}
	for _, record := range s.Broker.Services {
		if record.Namespace == s.BrokerNamespace {
			p.services[record.Name] = record
		}
	}
	for _, record := range s.Broker.Endpoints {
		if record.Namespace == s.BrokerNamespace {
			p.endpoints[record.Name] = record
		}
	}
	return p
}

// readiness is the condition Ready of an export with a contribution, or nil to leave it as it is.
//
// It becomes true when the broker has every record, and stays true while backends come and go: a change under way is no
// reason to write a status, and the records that the broker still has go on serving.
func readiness(s *Snapshot, e *mcsv1beta1.ServiceExport, has published, service *v1alpha1.ExportedService, endpoints []*v1alpha1.ExportedEndpoints) *metav1.Condition {
	now := meta.FindStatusCondition(e.Status.Conditions, string(mcsv1beta1.ServiceExportConditionReady))
	// A CRD of old has no observedGeneration.
	wasReady := now != nil && now.Status == metav1.ConditionTrue && (now.ObservedGeneration == e.Generation || now.ObservedGeneration == 0)
	not := func(reason mcsv1beta1.ServiceExportConditionReason, message string) *metav1.Condition {
		c := condition(mcsv1beta1.ServiceExportConditionReady, metav1.ConditionFalse, reason, message)
		return &c
	}
	if !s.Broker.Synced {
		if wasReady {
			return nil
		}
		return not(mcsv1beta1.ServiceExportReasonPending, "the broker has not answered yet")
	}
	if !has.member {
		return not(mcsv1beta1.ServiceExportReasonPending,
			fmt.Sprintf("cluster %q, writing to namespace %q, is not on the roster of the clusterset", s.ClusterID, s.BrokerNamespace))
	}
	observed := has.services[service.Name]
	accepted := observed != nil && equality.Semantic.DeepEqual(observed.Spec, service.Spec) && maps.Equal(observed.Labels, service.Labels)
	refusals := []string{s.Refused[refusal(service)]}
	for _, record := range endpoints {
		observed := has.endpoints[record.Name]
		accepted = accepted && observed != nil && equality.Semantic.DeepEqual(observed.Spec, record.Spec)
		refusals = append(refusals, s.Refused[refusal(record)])
	}
	switch refused := cmp.Or(refusals...); {
	case accepted:
		c := condition(mcsv1beta1.ServiceExportConditionReady, metav1.ConditionTrue, mcsv1beta1.ServiceExportReasonExported, "the broker has the service")
		return &c
	case refused != "":
		return not(mcsv1beta1.ServiceExportReasonFailed, "the broker refuses: "+refused)
	case observed != nil && wasReady:
		return nil
	case !s.Connected:
		return not(mcsv1beta1.ServiceExportReasonPending, "the broker does not answer; exported as soon as it does")
	}
	return not(mcsv1beta1.ServiceExportReasonPending, "on its way to the broker")
}

// agreement is the condition Conflict of an export.
func agreement(conflicts []clusterset.Conflict) metav1.Condition {
	if len(conflicts) == 0 {
		return condition(mcsv1beta1.ServiceExportConditionConflict, metav1.ConditionFalse, mcsv1beta1.ServiceExportReasonNoConflicts, "all clusters export the same")
	}
	var reasons, messages []string
	for _, c := range conflicts {
		reasons = append(reasons, string(c.Reason))
		messages = append(messages, c.Message)
	}
	message := shorten(strings.Join(messages, ". "))
	return condition(mcsv1beta1.ServiceExportConditionConflict, metav1.ConditionTrue,
		mcsv1beta1.ServiceExportConditionReason(strings.Join(reasons, ",")), message)
}

func shorten(message string) string {
	if len(message) > maxMessage {
		return strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
	}
	return message
}

// maxMessage keeps a condition's message well below the API server's 32,768 bytes, and readable.
const maxMessage = 4096
