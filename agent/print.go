package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// String is the snapshot in numbers.
func (s *Snapshot) String() string {
	silent := ""
	if len(s.Broker.Expired) > 0 {
		silent = ", silent for too long: " + list(s.Broker.Expired)
	}
	if len(s.Broker.Awaited) > 0 {
		silent += ", not heard yet: " + list(s.Broker.Awaited)
	}
	return fmt.Sprintf(`# snapshot of cluster %s
broker: namespace %s, answers %t, listed %t, %d services, %d backend records, %d gateways, %d held%s
cluster: %d namespaces, %d services, %d exports, %d imports, %d endpoints
reachable: %s
`, s.ClusterID, s.BrokerNamespace, s.Connected, s.Broker.Synced, len(s.Broker.Services), len(s.Broker.Endpoints), len(s.Broker.Gateways), s.Broker.Held, silent,
		len(s.Namespaces), len(s.Services), len(s.Exports), len(s.Imports), len(s.Endpoints), s.Reach)
}

func (r Reachability) String() string {
	if r.Clusters == nil {
		return "every cluster, there are no gateways"
	}
	text := list(r.names(clusterset.Reachable))
	if returning := r.names(clusterset.Returning); len(returning) > 0 {
		text += ", returning: " + list(returning)
	}
	if r.Suspect {
		text += " (all were lost at once, and count for now)"
	}
	return text
}

// String is the plan, object by object, in the words that kubectl uses.
func (p Plan) String() string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
	}

	line("# broker (publish: %t)", p.Publish)
	for _, e := range p.PublishedEndpoints {
		printEndpoint(line, e)
	}
	for _, e := range p.ExportedServices {
		line("ExportedService %s/%s", e.Namespace, e.Name)
		line("  type %s, families %s, addresses %s, exported %s", e.Spec.Type, list(e.Spec.IPFamilies), list(e.Spec.Addresses), e.Spec.ExportedAt.UTC().Format("2006-01-02T15:04:05Z"))
		for _, port := range e.Spec.Ports {
			line("  port %s", portText(port.Name, port.Port, port.Protocol, port.AppProtocol))
		}
		if policy := policyText(e.Spec); policy != "" {
			line("  serves by%s", policy)
		}
	}
	for _, e := range p.ExportedEndpoints {
		var ports []string
		for _, port := range e.Spec.Ports {
			ports = append(ports, portText(port.Name, port.Port, port.Protocol, port.AppProtocol))
		}
		line("ExportedEndpoints %s/%s", e.Namespace, e.Name)
		line("  of %s/%s, %s, ports %s%s", e.Spec.Namespace, e.Spec.Service, e.Spec.IPFamily, list(ports), changedText(e))
		for _, backend := range e.Spec.Backends {
			line("  %s %s%s%s%s", strings.Join(backend.Addresses, ","), state(backend.Ready, backend.Serving, backend.Terminating),
				field("hostname", backend.Hostname), field("node", deref(backend.NodeName)), field("zone", deref(backend.Zone)))
		}
	}

	line("")
	line("# cluster")
	for _, e := range p.Mirrors {
		printEndpoint(line, e)
	}
	for _, s := range p.Services {
		line("Service %s/%s", s.Namespace, s.Name)
		line("  families %v %s, affinity %s, addresses %s", s.Spec.IPFamilies, *s.Spec.IPFamilyPolicy, cmp.Or(s.Spec.SessionAffinity, "None"), list(s.Spec.ClusterIPs))
		for _, port := range s.Spec.Ports {
			line("  port %s", portText(port.Name, port.Port, string(port.Protocol), port.AppProtocol))
		}
	}
	sorted := slices.SortedFunc(slices.Values(p.Slices), func(a, b *discoveryv1.EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range sorted {
		printSlice(line, s)
	}
	for _, i := range p.Imports {
		var clusters []string
		for _, c := range i.Status.Clusters {
			clusters = append(clusters, c.Cluster)
		}
		line("ServiceImport %s/%s", i.Namespace, i.Name)
		line("  type %s, ips %s, families %v, clusters %s", i.Spec.Type, list(i.Spec.IPs), i.Spec.IPFamilies, list(clusters))
		if policy := annotationsText(i.Annotations); policy != "" {
			line("  serves by%s", policy)
		}
		if isByDNS(i) {
			line("  balanced by DNS")
		}
		if derived := i.Annotations[v1alpha1.AnnotationDerivedService]; derived != "" {
			line("  derived service %s", derived)
		}
		for _, port := range i.Spec.Ports {
			line("  port %s", portText(port.Name, port.Port, string(port.Protocol), port.AppProtocol))
		}
		printConditions(line, i.Status.Conditions)
	}
	for _, e := range p.GlobalExports {
		line("ServiceExport %s of a global Service%s", client.ObjectKeyFromObject(e), annotationsText(e.Annotations))
	}
	for _, e := range p.Exports {
		line("ServiceExport %s", e.Key)
		printConditions(line, e.Conditions)
	}
	for _, w := range p.Warnings {
		line("! Service %s: %s", w.Service, w.Message)
	}
	for _, problem := range p.Problems {
		line("! %s", problem)
	}
	return b.String()
}

func changedText(object metav1.Object) string {
	if at := changedAt(object); at != "" {
		return ", changed " + at
	}
	return ""
}

// policyText is what an export says of who serves: " affinity=none weight=3".
func policyText(e v1alpha1.ExportedServiceSpec) string {
	number := func(n *int32) string {
		if n == nil {
			return ""
		}
		return fmt.Sprint(*n)
	}
	return field("affinity", e.Affinity) + field("prefer", strings.Join(e.Prefer, ",")) + field("min-local-percent", number(e.MinLocalPercent)) +
		field("weight", number(e.Weight)) + field("balance", e.Balance)
}

// annotationsText is the same of annotations.
func annotationsText(annotations map[string]string) string {
	text := ""
	for _, key := range clusterset.PolicyAnnotations() {
		text += field(strings.TrimPrefix(key, "fastnet.dev/"), annotations[key])
	}
	return text
}

type printer func(format string, args ...any)

func printEndpoint(line printer, e *v1alpha1.Endpoint) {
	line("Endpoint %s/%s", e.Namespace, e.Name)
	var drivers []string
	for _, driver := range e.Spec.Drivers {
		drivers = append(drivers, driver.Name)
	}
	line("  cluster %s, %s to %s port %d, for %s", e.Spec.ClusterID, strings.Join(drivers, ","), list(e.Spec.Addresses), e.Spec.Port, list(e.Spec.Prefixes))
}

func printSlice(line printer, s *discoveryv1.EndpointSlice) {
	var ports []string
	for _, port := range s.Ports {
		ports = append(ports, portText(*port.Name, *port.Port, string(*port.Protocol), port.AppProtocol))
	}
	purpose := "not behind a clusterset IP"
	switch service := s.Labels[discoveryv1.LabelServiceName]; {
	case s.Labels[v1alpha1.LabelClusterAddress] != "":
		purpose = "the cluster's own address"
	case service != "":
		purpose = "behind " + service
	}
	if weight, ok := s.Annotations[v1alpha1.AnnotationWeight]; ok {
		purpose += ", weight " + weight
	}
	purpose += changedText(s)
	line("EndpointSlice %s/%s", s.Namespace, s.Name)
	line("  %s of %s, cluster %s, ports %s, %s", s.AddressType, cmp.Or(s.Labels[v1alpha1.LabelServiceName], "no import"), s.Labels[v1alpha1.LabelSourceCluster], list(ports), purpose)
	for _, e := range s.Endpoints {
		line("  %s %s%s%s%s", strings.Join(e.Addresses, ","), state(e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating),
			field("hostname", deref(e.Hostname)), field("node", deref(e.NodeName)), field("zone", deref(e.Zone)))
	}
}

func printConditions(line printer, conditions []metav1.Condition) {
	for _, c := range conditions {
		line("  %s %s %s: %s", c.Type, c.Status, c.Reason, c.Message)
	}
}

func portText(name string, number int32, protocol string, appProtocol *string) string {
	return fmt.Sprintf("%s:%d/%s%s", name, number, cmp.Or(protocol, string(corev1.ProtocolTCP)), field("app", deref(appProtocol)))
}

func state(ready, serving, terminating *bool) string {
	text := "ready"
	if ready != nil && !*ready {
		text = "unready"
	}
	if terminating != nil && *terminating {
		text += " terminating"
		if serving != nil && *serving {
			text += " serving"
		}
	}
	return text
}

func list(all []string) string { return cmp.Or(strings.Join(all, ","), "none") }

func field(name, value string) string {
	if value == "" {
		return ""
	}
	return " " + name + "=" + value
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
