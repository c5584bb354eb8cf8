package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

const (
	// labelManagedBy marks our Services, ServiceImports and mirrored Endpoints. What bears it and is not in the plan goes.
	labelManagedBy = "app.kubernetes.io/managed-by"
	// annotationRecord on a backend slice names the ExportedEndpoints that it was made from, so that an agent that starts
	// while the broker is away can tell from the slice what it would be called.
	annotationRecord = "fastnet.dev/record"
	// annotationImport on a backend slice that only kube-proxy reads names the import that it belongs to.
	annotationImport = "fastnet.dev/import"
)

// derivedFor is the import that a Service is the derived Service of. Label and name must agree: the label alone is one that
// people put on Services of their own.
func derivedFor(service *corev1.Service) (clusterset.Key, bool) {
	key := clusterset.Key{Namespace: service.Namespace, Name: service.Labels[v1alpha1.LabelServiceName]}
	return key, ours(service) && service.Name == clusterset.DerivedName(key)
}

func ours(object metav1.Object) bool { return object.GetLabels()[labelManagedBy] == v1alpha1.ManagedBy }

// Plan is what should be, on both sides. Everything of ours that is not in it goes.
type Plan struct {
	// On the broker, in the member's namespace; applied only when Publish is set: while nobody knows what the broker holds,
	// nothing can be said to be stale there.
	Publish            bool
	ExportedServices   []*v1alpha1.ExportedService
	ExportedEndpoints  []*v1alpha1.ExportedEndpoints
	PublishedEndpoints []*v1alpha1.Endpoint

	// In the agent's own cluster.
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
	Imports  []*mcsv1beta1.ServiceImport // conditions without times
	Mirrors  []*v1alpha1.Endpoint
	Exports  []ExportStatus

	// GlobalExports are the ServiceExports that Services ask for by annotation.
	GlobalExports []*mcsv1beta1.ServiceExport
	// Warnings are told to users in events.
	Warnings []Warning

	// Problems are records that were skipped, each with the reason, sorted.
	Problems []string
	// Conflicts counts the exports of this cluster that are in conflict, by reason.
	Conflicts map[string]int
}

// ExportStatus is the conditions that a ServiceExport should have, without times. Conditions that are not here are left as
// they are.
type ExportStatus struct {
	Key        clusterset.Key
	Conditions []metav1.Condition
	// Notices are what the message of Valid says beside. A new one is worth an event.
	Notices []Notice
}

// Notice tells of something that is wrong with an export and keeps nothing from being exported.
type Notice struct{ Reason, Message string }

// BuildPlan is the agent's one decision: from everything that is seen, all that should be. It reads no clock and calls
// nobody; equal snapshots make equal plans.
func BuildPlan(s *Snapshot) Plan {
	p := Plan{Publish: s.Broker.Synced, Conflicts: map[string]int{}}
	roster := p.roster(s)
	contributions := p.remoteContributions(s, roster)

	exports := map[clusterset.Key]export{}
	has := publishedBy(s, roster)
	for _, key := range sortedKeys(s.Exports) {
		if !s.Exports[key].DeletionTimestamp.IsZero() {
			continue
		}
		e := planExport(s, roster, key)
		exports[key] = e
		if e.contribution != nil {
			contributions[key] = append(contributions[key], *e.contribution)
		}
	}

	held := map[clusterset.Key]bool{}
	for _, key := range sortedKeys(s.Imports) {
		switch known := p.known(s, key); {
		case len(known) > 0:
			contributions[key] = append(contributions[key], known...)
			held[key] = true
		case len(contributions[key]) == 0 && !s.Broker.Synced && ours(s.Imports[key]) && s.Namespaces[key.Namespace]:
			p.keep(s, key)
		}
	}
	conflicts := map[clusterset.Key][]clusterset.Conflict{}
	for _, key := range sortedKeys(contributions) {
		service, _ := clusterset.Merge(contributions[key])
		conflicts[key] = service.Conflicts
		if s.Namespaces[key.Namespace] {
			p.importService(s, service, contributions[key])
		}
	}

	for _, key := range sortedKeys(exports) {
		p.exportStatus(s, key, exports[key], has, conflicts[key], s.Broker.Synced && !held[key])
	}
	p.globals(s)
	p.gateways(s, roster)
	slices.Sort(p.Problems)
	return p
}

func compareKeys(a, b clusterset.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func sortedKeys[V any](m map[clusterset.Key]V) []clusterset.Key {
	return slices.SortedFunc(maps.Keys(m), compareKeys)
}

func (p *Plan) problem(kind string, object metav1.Object, err error) {
	p.Problems = append(p.Problems, fmt.Sprintf("%s %s/%s skipped: %s", kind, object.GetNamespace(), object.GetName(),
		strings.ReplaceAll(err.Error(), "\n", "; ")))
}

func (p *Plan) roster(s *Snapshot) clusterset.Roster {
	var members []v1alpha1.Member
	if s.Broker.ClusterSet != nil {
		members = s.Broker.ClusterSet.Spec.Members
	}
	roster, err := clusterset.NewRoster(members)
	if err != nil {
		p.problem("ClusterSet", s.Broker.ClusterSet, err)
	}
	return roster
}

// remoteContributions are those of every other member. This cluster's own come from its own API server: what the broker
// has of them is at best an echo.
func (p *Plan) remoteContributions(s *Snapshot, roster clusterset.Roster) map[clusterset.Key][]clusterset.Contribution {
	type source struct {
		clusterset.Key
		cluster string
	}
	backends := map[source][]clusterset.Backends{}
	for _, record := range s.Broker.Endpoints {
		switch cluster, err := roster.Backends(record); {
		case err != nil:
			p.problem("ExportedEndpoints", record, err)
		case cluster != s.ClusterID && s.heard(cluster):
			from := source{clusterset.Key{Namespace: record.Spec.Namespace, Name: record.Spec.Service}, cluster}
			backends[from] = append(backends[from], clusterset.Backends{Record: record.Name, Spec: record.Spec, Changed: changedAt(record)})
		}
	}
	contributions := map[clusterset.Key][]clusterset.Contribution{}
	for _, record := range s.Broker.Services {
		switch cluster, err := roster.Export(record); {
		case err != nil:
			p.problem("ExportedService", record, err)
		case cluster != s.ClusterID && s.heard(cluster):
			key := clusterset.Key{Namespace: record.Spec.Namespace, Name: record.Spec.Name}
			contributions[key] = append(contributions[key], clusterset.Contribution{
				Cluster: cluster, Export: record.Spec, Backends: backends[source{key, cluster}],
			})
		}
	}
	return contributions
}

// exportStatus adds the conditions of an export. Conflicts say nothing where it is not heard what the others export.
func (p *Plan) exportStatus(s *Snapshot, key clusterset.Key, e export, has published, conflicts []clusterset.Conflict, heard bool) {
	status := ExportStatus{Key: key, Conditions: []metav1.Condition{e.valid}, Notices: e.notices}
	if e.contribution == nil {
		status.Conditions = append(status.Conditions, e.ready)
		if heard {
			status.Conditions = append(status.Conditions, agreement(nil))
		}
	} else {
		service, endpoints := p.publish(s, e.contribution)
		if ready := readiness(s, cmp.Or(s.Told[key], s.Exports[key]), has, service, endpoints); ready != nil {
			status.Conditions = append(status.Conditions, *ready)
		}
		if heard {
			status.Conditions = append(status.Conditions, agreement(conflicts))
			for _, c := range conflicts {
				p.Conflicts[string(c.Reason)]++
			}
		}
	}
	for i := range status.Conditions {
		status.Conditions[i].ObservedGeneration = s.Exports[key].Generation
	}
	p.Exports = append(p.Exports, status)
}

// byDNS says whether a service is balanced by DNS: as its exports have it, else as the ClusterSet has it, and while nobody
// knows that, as it was.
func byDNS(s *Snapshot, service clusterset.Service) bool {
	known := s.Imports[service.Key]
	switch {
	case service.Spec.Type != mcsv1beta1.ClusterSetIP:
		return false
	case service.Policy.Balance != "":
		return service.Policy.Balance == v1alpha1.BalanceDNS
	case s.Broker.ClusterSet != nil:
		return s.Broker.ClusterSet.Spec.Balance == v1alpha1.BalanceDNS
	}
	return known != nil && ours(known) && isByDNS(known)
}

// isByDNS says whether an import of ours is one that is balanced by DNS.
func isByDNS(known *mcsv1beta1.ServiceImport) bool {
	return known.Spec.Type == mcsv1beta1.ClusterSetIP && known.Annotations[v1alpha1.AnnotationDerivedService] == ""
}

// dnsPolicy puts an order of clusters into words that DNS knows. It always takes the local cluster first, and takes turns
// among the others by their weights; so those whose turn has not come have weight 0, with which they still serve when the
// preferred one is gone and nobody has told yet.
func dnsPolicy(s *Snapshot, policy clusterset.Policy, all []clusterset.Slice) clusterset.Policy {
	if len(policy.Prefer) == 0 {
		return policy
	}
	policy.Affinity = v1alpha1.AffinityNone
	weights := map[string]int32{}
	for i, ports := range clusterset.Choose(s.ClusterID, policy, s.Reach.Of, all) {
		cluster := all[i].Cluster
		own, weighed := policy.Weights[cluster]
		switch _, known := weights[cluster]; {
		case len(ports) > 0 && weighed:
			weights[cluster] = own
		case len(ports) > 0:
			weights[cluster] = 1
		case !known:
			weights[cluster] = 0
		}
	}
	policy.Weights = weights
	return policy
}

// importService adds what an import consists of. One with a clusterset IP has a derived Service, whose addresses the API server
// gives, slices, and, as soon as there are addresses, the ServiceImport: without them it would mean a service balanced by DNS.
// One of those has no derived Service, and the cluster-address slices are what it is balanced by.
func (p *Plan) importService(s *Snapshot, service clusterset.Service, contributions []clusterset.Contribution) {
	imported := &mcsv1beta1.ServiceImport{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: service.Key.Namespace, Name: service.Key.Name,
			Labels: maps.Clone(service.Labels), Annotations: maps.Clone(service.Annotations),
		},
		Spec: service.Spec,
	}
	set(&imported.Labels, labelManagedBy, v1alpha1.ManagedBy)
	if service.Spec.Type == mcsv1beta1.ClusterSetIP {
		imported.Annotations = service.Policy.Annotate(imported.Annotations)
	}
	for _, cluster := range service.Clusters {
		imported.Status.Clusters = append(imported.Status.Clusters, mcsv1beta1.ClusterStatus{Cluster: cluster})
	}
	imported.Status.EndpointSliceObjects = mcsv1beta1.EndpointSliceObjectsPresent
	ready := metav1.Condition{
		Type: string(mcsv1beta1.ServiceImportConditionReady), Status: metav1.ConditionTrue,
		Reason: string(mcsv1beta1.ServiceImportReasonReady), Message: "the service can be used in this cluster",
	}

	derived := ""
	addressed := true
	dns := byDNS(s, service)
	if service.Spec.Type == mcsv1beta1.ClusterSetIP && !dns {
		derived = clusterset.DerivedName(service.Key)
		set(&imported.Annotations, v1alpha1.AnnotationDerivedService, derived)
		known := s.Services[clusterset.Key{Namespace: service.Key.Namespace, Name: derived}]
		if known != nil {
			if _, is := derivedFor(known); !is {
				p.problem("ServiceImport", imported, fmt.Errorf("its derived Service %s would take the name of a Service that is not Fastnet's", derived))
				return
			}
		}
		p.Services = append(p.Services, derivedService(s, service, derived))
		addressed = known != nil && len(known.Spec.ClusterIPs) > 0
		if addressed {
			imported.Spec.IPs, imported.Spec.IPFamilies = clustersetIPs(service.Spec.IPFamilies, known)
		}
		if addressed && len(imported.Spec.IPs) == 0 {
			ready.Status, ready.Reason = metav1.ConditionFalse, string(mcsv1beta1.ServiceImportReasonIPFamilyNotSupported)
			ready.Message = fmt.Sprintf("the service has %v addresses, Services of this cluster have %v", service.Spec.IPFamilies, known.Spec.IPFamilies)
		}
	}
	imported.Status.Conditions = []metav1.Condition{ready}
	if known := s.Imports[service.Key]; addressed {
		p.Imports = append(p.Imports, imported)
	} else if known != nil && ours(known) && known.Spec.Type == mcsv1beta1.ClusterSetIP {
		p.Imports = append(p.Imports, known) // as it was, balanced by DNS perhaps, until there is what replaces it
	}

	all := service.Slices(contributions)
	p.backendSlices(s, service.Key, service.Spec, service.Policy, derived, all)
	if dns {
		service.Policy = dnsPolicy(s, service.Policy, all)
	}
	if service.Spec.Type == mcsv1beta1.ClusterSetIP {
		for _, c := range slices.SortedFunc(slices.Values(contributions), func(a, b clusterset.Contribution) int { return cmp.Compare(a.Cluster, b.Cluster) }) {
			p.addressSlices(service.Key, service.Policy, c)
		}
	}
}

// derivedService is the selectorless Service whose cluster IPs are the clusterset IPs. Nothing in Kubernetes writes to the
// slices of a Service without a selector, as long as nobody makes an Endpoints object of its name.
func derivedService(s *Snapshot, service clusterset.Service, name string) *corev1.Service {
	derived := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: service.Key.Namespace, Name: name,
			Labels: map[string]string{labelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelServiceName: service.Key.Name},
		},
		Spec: corev1.ServiceSpec{
			Type:                  corev1.ServiceTypeClusterIP,
			SessionAffinity:       service.Spec.SessionAffinity,
			SessionAffinityConfig: service.Spec.SessionAffinityConfig,
			InternalTrafficPolicy: service.Spec.InternalTrafficPolicy,
			TrafficDistribution:   service.Spec.TrafficDistribution,
		},
	}
	if derived.Spec.InternalTrafficPolicy == nil {
		policy := corev1.ServiceInternalTrafficPolicyCluster
		derived.Spec.InternalTrafficPolicy = &policy
	}
	names := clusterset.PortNames(service.Spec)
	for i, port := range service.Spec.Ports {
		derived.Spec.Ports = append(derived.Spec.Ports, corev1.ServicePort{
			Name: names[i], Protocol: port.Protocol, AppProtocol: port.AppProtocol, Port: port.Port, TargetPort: intstr.FromInt32(port.Port),
		})
	}
	known := s.Services[clusterset.Key{Namespace: service.Key.Namespace, Name: name}]
	policy, families := derivedFamilies(s, service.Spec.IPFamilies, known)
	derived.Spec.IPFamilyPolicy, derived.Spec.IPFamilies = &policy, families
	if lost := s.Imports[service.Key]; known == nil && lost != nil && ours(lost) && len(lost.Spec.IPs) > 0 {
		// Somebody deleted the derived Service. Ask for the addresses it had: clients know them. An API server wants the first twice.
		derived.Spec.ClusterIP, derived.Spec.ClusterIPs = lost.Spec.IPs[0], lost.Spec.IPs
	}
	return derived
}

// derivedFamilies says how to ask for the families of an import. Only one family can be asked for by name without knowing
// that the cluster has it: the one that its own Service kubernetes has. For all else the API server gives what the cluster
// has, and what it gave decides.
func derivedFamilies(s *Snapshot, wanted []corev1.IPFamily, known *corev1.Service) (corev1.IPFamilyPolicy, []corev1.IPFamily) {
	if len(wanted) == 1 {
		var primary []corev1.IPFamily
		if kubernetes := s.Services[kubernetesService]; kubernetes != nil {
			primary = kubernetes.Spec.IPFamilies
		}
		if known != nil {
			primary = known.Spec.IPFamilies // a Service's first family is its for life
		}
		if len(primary) > 0 && primary[0] == wanted[0] {
			return corev1.IPFamilyPolicySingleStack, slices.Clone(wanted)
		}
	}
	return corev1.IPFamilyPolicyPreferDualStack, nil
}

// clustersetIPs are the derived Service's addresses of the families of the import, in their order, and those families. Where
// the cluster has none of them the families stay as they are, for people to read.
func clustersetIPs(families []corev1.IPFamily, derived *corev1.Service) (ips []string, have []corev1.IPFamily) {
	for _, family := range families {
		for _, ip := range derived.Spec.ClusterIPs {
			if clusterset.FamilyOf(ip) == string(family) {
				ips = append(ips, ip)
				have = append(have, family)
			}
		}
	}
	if len(ips) == 0 {
		return nil, families
	}
	return ips, have
}

func set(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}
