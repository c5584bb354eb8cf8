package clusterset

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Roster is who belongs to the clusterset, and where each member writes. It decides which records count; what a record
// holds is checked to the last field, so that no member can hand another cluster an object that its API server refuses.
type Roster struct {
	members map[string]string // cluster ID by namespace
	ids     map[string]bool
}

// NewRoster makes a roster of members. Members that are no valid cluster ID, or that share an ID or a namespace with
// another, are left out and told of: nobody could say which of two is meant.
func NewRoster(members []v1alpha1.Member) (Roster, error) {
	r := Roster{members: map[string]string{}, ids: map[string]bool{}}
	ids, namespaces := map[string]int{}, map[string]int{}
	for _, m := range members {
		ids[m.ClusterID]++
		namespaces[m.Namespace]++
	}
	var problems []error
	for _, m := range members {
		switch err := CheckClusterID(m.ClusterID); {
		case err != nil:
			problems = append(problems, fmt.Errorf("member of the clusterset: %w", err))
		case m.Namespace == "" || ids[m.ClusterID] > 1 || namespaces[m.Namespace] > 1:
			problems = append(problems, fmt.Errorf("member %q of the clusterset: its ID and its namespace %q must be its own", m.ClusterID, m.Namespace))
		default:
			r.members[m.Namespace] = m.ClusterID
			r.ids[m.ClusterID] = true
		}
	}
	return r, errors.Join(problems...)
}

// Member is the cluster ID of the member that writes in a namespace of the broker, or "".
func (r Roster) Member(namespace string) string { return r.members[namespace] }

// Has says whether a cluster is a member.
func (r Roster) Has(cluster string) bool { return r.ids[cluster] }

// CheckClusterID says what is wrong with a cluster ID: it is one or two DNS labels, and short enough for a label value.
func CheckClusterID(id string) error {
	labels := strings.Split(id, ".")
	if len(labels) > 2 || len(id) > validation.LabelValueMaxLength {
		return fmt.Errorf("cluster ID %q: must be one or two DNS labels of at most %d characters together", id, validation.LabelValueMaxLength)
	}
	for _, label := range labels {
		if problems := validation.IsDNS1123Label(label); len(problems) > 0 {
			return fmt.Errorf("cluster ID %q: %s", id, problems[0])
		}
	}
	return nil
}

// owner checks the three marks of a record, its namespace, its name and its label, against each other, and returns the
// member that they name.
func (r Roster) owner(record *metav1.ObjectMeta) (string, error) {
	id := r.members[record.Namespace]
	if id == "" {
		return "", fmt.Errorf("namespace %q belongs to no member", record.Namespace)
	}
	if label := record.Labels[v1alpha1.LabelSourceCluster]; label != id {
		return "", fmt.Errorf("label %s is %q in the namespace of %q", v1alpha1.LabelSourceCluster, label, id)
	}
	rest, ok := strings.CutPrefix(record.Name, id+".")
	if !ok {
		return "", fmt.Errorf("the name does not begin with %q", id+".")
	}
	// Where "eu" and "eu.west" are both members, "eu.west.db.shop" is a name of the second alone.
	if next, _, more := strings.Cut(rest, "."); more && r.ids[id+"."+next] {
		return "", fmt.Errorf("the name is one of member %q", id+"."+next)
	}
	return id, nil
}

// Export checks an ExportedService and returns the cluster whose contribution it is.
func (r Roster) Export(record *v1alpha1.ExportedService) (string, error) {
	id, err := r.owner(&record.ObjectMeta)
	if err != nil {
		return "", err
	}
	if want := ExportName(id, Key{Namespace: record.Spec.Namespace, Name: record.Spec.Name}); record.Name != want {
		return "", fmt.Errorf("the name is not %q", want)
	}
	return id, CheckExport(&record.Spec)
}

// Backends checks an ExportedEndpoints and returns the cluster whose contribution it is.
func (r Roster) Backends(record *v1alpha1.ExportedEndpoints) (string, error) {
	id, err := r.owner(&record.ObjectMeta)
	if err != nil {
		return "", err
	}
	return id, CheckBackends(&record.Spec)
}

// Endpoint checks a gateway's Endpoint and returns the cluster that it leads to.
func (r Roster) Endpoint(record *v1alpha1.Endpoint) (string, error) {
	id, err := r.owner(&record.ObjectMeta)
	if err != nil {
		return "", err
	}
	spec := record.Spec
	var c checker
	c.that(spec.ClusterID == id, "clusterID is %q", spec.ClusterID)
	c.that(len(spec.Drivers) > 0, "no drivers")
	for i, driver := range spec.Drivers {
		c.oneOf("driver", driver.Name, "wireguard", "ipsec", "vxlan")
		c.that(!slices.ContainsFunc(spec.Drivers[:i], func(d v1alpha1.EndpointDriver) bool { return d.Name == driver.Name }), "driver %s is there twice", driver.Name)
	}
	c.that(spec.Port > 0 && spec.Port <= 65535, "port is %d", spec.Port)
	c.that(len(spec.Addresses) > 0, "no addresses")
	for _, address := range spec.Addresses {
		c.address(address, "")
	}
	for _, prefix := range spec.Prefixes {
		p, err := netip.ParsePrefix(prefix)
		c.that(err == nil && p == p.Masked() && p.String() == prefix, "prefix %q is not a CIDR in its usual form", prefix)
	}
	return id, c.err()
}

// Bounds of a record beyond those of the kinds it becomes.
const (
	maxPorts     = 100          // of an EndpointSlice
	maxMetadata  = 64 << 10     // bytes of exported labels and annotations; the API server takes 256 KiB of annotations
	maxAffinity  = 24 * 60 * 60 // seconds
	maxAddresses = 100          // of one endpoint of an EndpointSlice
	familyIPv4   = string(corev1.IPv4Protocol)
	familyIPv6   = string(corev1.IPv6Protocol)
)

// CheckExport says everything that is wrong with a contribution, its own cluster's word on it included.
func CheckExport(e *v1alpha1.ExportedServiceSpec) error {
	var c checker
	c.labels("namespace", e.Namespace)
	c.that(len(validation.IsDNS1035Label(e.Name)) == 0 || len(validation.IsDNS1123Label(e.Name)) == 0, "name %q is not a DNS label", e.Name)
	c.oneOf("type", e.Type, string(mcsv1beta1.ClusterSetIP), string(mcsv1beta1.Headless))
	c.that(!e.ExportedAt.IsZero(), "no exportedAt")
	c.that(len(e.Ports) <= maxPorts, "%d ports, at most %d", len(e.Ports), maxPorts)
	names, numbers := map[string]bool{}, map[string]bool{}
	for _, p := range e.Ports {
		c.port(p.Name, p.Protocol, p.AppProtocol, p.Port)
		number := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		c.that(!names[p.Name], "two ports named %q", p.Name)
		c.that(!numbers[number], "two ports %s", number)
		names[p.Name], numbers[number] = true, true
	}
	c.that(e.Type == string(mcsv1beta1.Headless) || len(e.Ports) > 0, "no ports")
	c.that(len(e.IPFamilies) > 0 && len(e.IPFamilies) <= 2 && (len(e.IPFamilies) == 1 || e.IPFamilies[0] != e.IPFamilies[1]), "ipFamilies are %q", e.IPFamilies)
	for _, family := range e.IPFamilies {
		c.oneOf("ipFamily", family, familyIPv4, familyIPv6)
	}
	c.that(len(e.Addresses) <= 2, "%d addresses", len(e.Addresses))
	for _, address := range e.Addresses {
		c.address(address, "")
	}
	c.that(len(e.Addresses) < 2 || FamilyOf(e.Addresses[0]) != FamilyOf(e.Addresses[1]), "two addresses of one family")
	c.oneOf("sessionAffinity", e.SessionAffinity, "", string(corev1.ServiceAffinityNone), string(corev1.ServiceAffinityClientIP))
	if t := e.SessionAffinityTimeoutSeconds; t != nil {
		c.that(*t > 0 && *t <= maxAffinity, "sessionAffinityTimeoutSeconds is %d", *t)
	}
	if p := e.InternalTrafficPolicy; p != nil {
		c.oneOf("internalTrafficPolicy", *p, string(corev1.ServiceInternalTrafficPolicyCluster), string(corev1.ServiceInternalTrafficPolicyLocal))
	}
	if d := e.TrafficDistribution; d != nil {
		c.oneOf("trafficDistribution", *d, corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
	c.checkPolicy(e)
	size := 0
	for key, value := range e.ExportedLabels {
		size += len(key) + len(value)
		c.that(len(validation.IsQualifiedName(key)) == 0 && len(validation.IsValidLabelValue(value)) == 0, "exported label %s=%s is not a valid label", key, value)
	}
	for key, value := range e.ExportedAnnotations {
		size += len(key) + len(value)
		c.that(len(validation.IsQualifiedName(strings.ToLower(key))) == 0, "exported annotation %s is not a valid annotation", key)
	}
	c.that(size <= maxMetadata, "%d bytes of exported labels and annotations, at most %d", size, maxMetadata)
	return c.err()
}

// CheckBackends says everything that is wrong with a record of backends.
func CheckBackends(b *v1alpha1.ExportedEndpointsSpec) error {
	var c checker
	c.labels("namespace", b.Namespace)
	c.that(b.Service != "", "no service")
	c.oneOf("ipFamily", b.IPFamily, familyIPv4, familyIPv6)
	c.that(len(b.Ports) <= maxPorts, "%d ports, at most %d", len(b.Ports), maxPorts)
	names := map[string]bool{}
	for _, p := range b.Ports {
		c.port(p.Name, p.Protocol, p.AppProtocol, p.Port)
		c.that(!names[p.Name], "two ports named %q", p.Name)
		names[p.Name] = true
	}
	c.that(len(b.Backends) <= v1alpha1.MaxBackends, "%d backends, at most %d", len(b.Backends), v1alpha1.MaxBackends)
	for _, backend := range b.Backends {
		c.that(len(backend.Addresses) > 0 && len(backend.Addresses) <= maxAddresses, "a backend with %d addresses", len(backend.Addresses))
		for _, address := range backend.Addresses {
			c.address(address, b.IPFamily)
		}
		if backend.Hostname != "" {
			c.labels("hostname", backend.Hostname)
		}
		if z := backend.Zone; z != nil {
			c.that(*z != "" && len(validation.IsValidLabelValue(*z)) == 0, "zone %q", *z)
		}
		if n := backend.NodeName; n != nil {
			c.that(len(validation.IsDNS1123Subdomain(*n)) == 0, "nodeName %q", *n)
		}
	}
	return c.err()
}

// FamilyOf is the family of an address, "" where it is none.
func FamilyOf(address string) string {
	switch a, err := netip.ParseAddr(address); {
	case err != nil:
		return ""
	case a.Is4():
		return familyIPv4
	default:
		return familyIPv6
	}
}

// maxProblems bounds what is said about one record, however bad it is.
const maxProblems = 10

// checker gathers problems.
type checker []error

func (c *checker) that(ok bool, format string, args ...any) {
	if !ok && len(*c) < maxProblems {
		*c = append(*c, fmt.Errorf(format, args...))
	}
}

func (c *checker) err() error { return errors.Join(*c...) }

func (c *checker) oneOf(field, value string, allowed ...string) {
	c.that(slices.Contains(allowed, value), "%s is %q", field, value)
}

func (c *checker) labels(field, value string) {
	c.that(len(validation.IsDNS1123Label(value)) == 0, "%s %q is not a DNS label", field, value)
}

func (c *checker) port(name, protocol string, appProtocol *string, number int32) {
	if name != "" {
		c.labels("port name", name)
	}
	c.oneOf("protocol", protocol, string(corev1.ProtocolTCP), string(corev1.ProtocolUDP), string(corev1.ProtocolSCTP))
	c.that(number > 0 && number <= 65535, "port number %d", number)
	if appProtocol != nil {
		c.that(len(validation.IsQualifiedName(*appProtocol)) == 0, "appProtocol %q", *appProtocol)
	}
}

// address checks what the API server checks of an endpoint's address, and that nobody sends our pods to themselves or to
// their neighbours on the link.
func (c *checker) address(address, family string) {
	a, err := netip.ParseAddr(address)
	ok := err == nil && a.Zone() == "" && !a.Is4In6() && a.String() == address &&
		!a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
	c.that(ok && (family == "" || FamilyOf(address) == family), "address %q", address)
}
