package lighthouse

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin/kubernetes/object"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// The objects as they are kept: what DNS needs of them and no more. They are made as objects arrive, so that the lists of
// large clusters never stand in memory whole.

// slim is what every kept object bears, for the reflector to tell objects apart: while a list streams in, it goes by their
// names. Versions it reads from the objects as they come.
type slim struct {
	object.Empty
	objectKey
}

func slimOf(o metav1.Object) slim { return slim{objectKey: objectKey{o.GetNamespace(), o.GetName()}} }

func (s *slim) GetNamespace() string          { return s.namespace }
func (s *slim) SetNamespace(namespace string) { s.namespace = namespace }
func (s *slim) GetName() string               { return s.name }
func (s *slim) SetName(name string)           { s.name = name }
func (s *slim) GetUID() types.UID             { return "" }
func (s *slim) SetUID(types.UID)              {}
func (s *slim) GetResourceVersion() string    { return "" }
func (s *slim) SetResourceVersion(string)     {}

// importObject is a ServiceImport.
type importObject struct {
	slim
	key       string // "name.namespace"
	headless  bool
	addresses families
	ports     []port
	labels    map[string]string // kept where a stanza selects by them
	selected  selection
}

func newImportObject(o *mcsv1beta1.ServiceImport) *importObject {
	i := &importObject{key: o.Name + "." + o.Namespace, headless: o.Spec.Type == mcsv1beta1.Headless}
	i.name, i.namespace = i.key[:len(o.Name)], i.key[len(o.Name)+1:]
	var addresses []netip.Addr
	for _, ip := range o.Spec.IPs {
		if addr, ok := parseAddress(ip); ok {
			addresses = appendNew(addresses, addr)
		}
	}
	i.addresses = newFamilies(addresses)
	for _, p := range o.Spec.Ports {
		i.ports = appendPort(i.ports, p.Name, string(p.Protocol), p.Port)
	}
	return i
}

// sliceObject is an EndpointSlice with the labels of the Multi-Cluster Services API. It never changes once it is made: zones
// hold on to it.
type sliceObject struct {
	slim
	serviceKey string // "service.namespace"
	clusterID  string
	// clusterAddress tells that the endpoint is the cluster's own address of the service, not a backend.
	clusterAddress bool
	weighted       bool
	weight, share  uint16
	ports          []port

	// backends that are ready, by rank and name; none in a cluster-address slice.
	backends []backend
	// fours and sixes tell which families are among the backends; repeats, that two of them have the same address.
	fours, sixes, repeats bool

	// addresses of a cluster-address slice, and of those the ready ones.
	addresses, ready []netip.Addr

	// changed is when what led to this state happened, zero where nobody wrote it down.
	changed time.Time
}

// A cluster without a weight of its own has this weight in SRV records, and this share of the answers of a DNS-balanced
// service.
const (
	defaultWeight = 50
	defaultShare  = 1
)

// newSliceObject slims a slice down. One that DNS has no use for keeps its name alone: without a service key it is filed
// nowhere.
func newSliceObject(o *discoveryv1.EndpointSlice) *sliceObject {
	s := &sliceObject{slim: slimOf(o), weight: defaultWeight, share: defaultShare}
	service, id := o.Labels[v1alpha1.LabelServiceName], strings.ToLower(o.Labels[v1alpha1.LabelSourceCluster])
	if service == "" || !isDotted(id) || o.AddressType == discoveryv1.AddressTypeFQDN {
		return s
	}
	s.serviceKey, s.clusterID = service+"."+o.Namespace, id
	s.clusterAddress = o.Labels[v1alpha1.LabelClusterAddress] == "true"
	if text, found := o.Annotations[v1alpha1.AnnotationWeight]; found {
		s.weighted = true
		s.weight, s.share = parseWeight(text, defaultWeight), parseWeight(text, defaultShare)
	}
	if at, err := time.Parse(time.RFC3339Nano, o.Annotations[lastChangeAnnotation]); err == nil {
		s.changed = at
	}
	for _, p := range o.Ports {
		if p.Port == nil {
			continue // every port: nothing that an SRV record could tell
		}
		var name, protocol string
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = string(*p.Protocol)
		}
		s.ports = appendPort(s.ports, name, protocol, *p.Port)
	}
	s.ports = slices.Clip(s.ports)

	if s.clusterAddress {
		s.takeAddresses(o.Endpoints)
	} else {
		s.takeBackends(o.Endpoints)
	}
	return s
}

// takeAddresses keeps the addresses of a cluster-address slice.
func (s *sliceObject) takeAddresses(endpoints []discoveryv1.Endpoint) {
	for i := range endpoints {
		for _, text := range endpoints[i].Addresses {
			if addr, ok := parseAddress(text); ok {
				s.addresses = appendNew(s.addresses, addr)
				if isReady(&endpoints[i]) {
					s.ready = appendNew(s.ready, addr)
				}
			}
		}
	}
}

// takeBackends keeps the addresses of the ready endpoints of a backend slice.
func (s *sliceObject) takeBackends(endpoints []discoveryv1.Endpoint) {
	n := 0
	for i := range endpoints {
		n += len(endpoints[i].Addresses)
	}
	s.backends = make([]backend, 0, n)
	for i := range endpoints {
		if !isReady(&endpoints[i]) {
			continue
		}
		var hostname string
		if name := endpoints[i].Hostname; name != nil {
			if lower := strings.ToLower(*name); isLabel(lower) {
				hostname = lower
			}
		}
		for _, text := range endpoints[i].Addresses {
			if addr, ok := parseAddress(text); ok {
				s.addBackend(hostname, addr)
			}
		}
	}
	s.orderBackends()
}

func (s *sliceObject) addBackend(hostname string, addr netip.Addr) {
	b := backend{hostname: hostname, address: addr}
	var room [nameRoom]byte
	b.rank = rankOf(b.appendName(room[:0]))
	s.backends = append(s.backends, b)
}

// orderBackends ends the making of a slice.
func (s *sliceObject) orderBackends() {
	slices.SortStableFunc(s.backends, func(a, b backend) int { return compareRank(&a, &b) })
	s.backends = slices.Clip(slices.Compact(s.backends))
	seen := make(map[netip.Addr]struct{}, len(s.backends))
	for i := range s.backends {
		addr := s.backends[i].address
		seen[addr] = struct{}{}
		s.fours, s.sixes = s.fours || addr.Is4(), s.sixes || addr.Is6()
	}
	s.repeats = len(seen) < len(s.backends)
}

// isReady: "ready nil counts as ready".
func isReady(e *discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

// lastChangeAnnotation is set by the EndpointSlice controller, and copied by those who mirror its slices.
const lastChangeAnnotation = "endpoints.kubernetes.io/last-change-trigger-time"

// appendPort appends a port, leaving out numbers that no port has and ports that are there already.
func appendPort(ports []port, name, protocol string, number int32) []port {
	if number < 1 || number > math.MaxUint16 {
		return ports
	}
	switch protocol {
	case "TCP", "":
		protocol = "tcp"
	case "UDP":
		protocol = "udp"
	default:
		protocol = strings.ToLower(protocol)
	}
	return appendNew(ports, port{strings.ToLower(name), protocol, uint16(number)})
}

// parseWeight reads a weight, clamped to what an SRV record can hold.
func parseWeight(text string, unreadable uint16) uint16 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return unreadable
	}
	return uint16(min(max(n, 0), math.MaxUint16))
}

// isDotted tells whether s is one or more lower-case DNS labels.
func isDotted(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// namespaceObject is a Namespace; its name is all of it.
type namespaceObject struct{ slim }

// gatewayObject is a Gateway.
type gatewayObject struct {
	slim
	up []string // IDs of the clusters that a cable of it is up to, sorted
}

func newGatewayObject(o *v1alpha1.Gateway) *gatewayObject {
	g := &gatewayObject{slim: slimOf(o)}
	for _, cable := range o.Status.Cables {
		if cable.State == v1alpha1.CableUp {
			g.up = appendNew(g.up, strings.ToLower(cable.ClusterID))
		}
	}
	slices.Sort(g.up)
	return g
}

// propertyObject is the ClusterProperty that holds this cluster's ID.
type propertyObject struct {
	slim
	value string
}

// fromAlpha makes a v1beta1 ServiceImport of a v1alpha1 one, as far as DNS reads it.
func fromAlpha(o *mcsv1alpha1.ServiceImport) *mcsv1beta1.ServiceImport {
	i := &mcsv1beta1.ServiceImport{ObjectMeta: o.ObjectMeta}
	i.Spec.Type = mcsv1beta1.ServiceImportType(o.Spec.Type)
	i.Spec.IPs = o.Spec.IPs
	for _, p := range o.Spec.Ports {
		i.Spec.Ports = append(i.Spec.Ports, mcsv1beta1.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	return i
}
