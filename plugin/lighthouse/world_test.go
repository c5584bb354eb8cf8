package lighthouse

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// A world for a test is a few lines of text, one an object:
//
//	namespace shop
//	import shop/web ClusterSetIP ips=10.96.0.1,fd00::1 ports=http/tcp/80,tcp/81
//	slice shop/db west ports=pg/tcp/5432 weight=3 db-0=10.0.0.1 !db-1=10.0.0.2 10.0.0.3
//	address shop/web west ports=http/tcp/80 weight=3 10.96.7.7
//	gateway gw1 up=west,east down=north
//	local east
//
// A slice is a backend slice, an address is a cluster-address slice; "!" makes an endpoint not ready, "?" leaves its
// readiness out. The objects go the way that they go in production, from the API's types on.

// objects of a text.
type objects struct {
	namespaces []string
	imports    []*mcsv1beta1.ServiceImport
	slices     []*discoveryv1.EndpointSlice
	gateways   []*v1alpha1.Gateway
	local      string
}

func parseObjects(t testing.TB, text string) *objects {
	t.Helper()
	o := &objects{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		switch fields[0] {
		case "namespace":
			o.namespaces = append(o.namespaces, fields[1:]...)
		case "local":
			o.local = fields[1]
		case "import":
			o.imports = append(o.imports, parseImport(t, fields[1:]))
		case "slice", "address":
			s := parseSlice(t, fields[1:])
			s.Name = fmt.Sprintf("%s-%d", s.Labels[v1alpha1.LabelServiceName], len(o.slices))
			if fields[0] == "address" {
				s.Labels[v1alpha1.LabelClusterAddress] = "true"
			}
			o.slices = append(o.slices, s)
		case "gateway":
			o.gateways = append(o.gateways, parseGateway(t, fields[1:]))
		default:
			t.Fatalf("no such object: %s", line)
		}
	}
	return o
}

func parseImport(t testing.TB, fields []string) *mcsv1beta1.ServiceImport {
	t.Helper()
	o := &mcsv1beta1.ServiceImport{}
	o.Namespace, o.Name, _ = strings.Cut(fields[0], "/")
	o.Spec.Type = mcsv1beta1.ServiceImportType(fields[1])
	for _, field := range fields[2:] {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "ips":
			o.Spec.IPs = strings.Split(value, ",")
		case "ports":
			for _, p := range parsePorts(t, value) {
				o.Spec.Ports = append(o.Spec.Ports, mcsv1beta1.ServicePort{Name: *p.Name, Protocol: *p.Protocol, Port: *p.Port})
			}
		default:
			t.Fatalf("import: %s", field)
		}
	}
	return o
}

func parseSlice(t testing.TB, fields []string) *discoveryv1.EndpointSlice {
	t.Helper()
	o := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	namespace, service, _ := strings.Cut(fields[0], "/")
	o.Namespace = namespace
	o.Labels = map[string]string{v1alpha1.LabelServiceName: service, v1alpha1.LabelSourceCluster: fields[1]}
	for _, field := range fields[2:] {
		key, value, found := strings.Cut(field, "=")
		switch {
		case found && key == "ports":
			o.Ports = parsePorts(t, value)
		case found && key == "weight":
			o.Annotations = map[string]string{v1alpha1.AnnotationWeight: value}
		case found && key == "type":
			o.AddressType = discoveryv1.AddressType(value)
		default:
			e := discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}
			if rest, cut := strings.CutPrefix(field, "!"); cut {
				field, e.Conditions.Ready = rest, new(false)
			} else if rest, cut := strings.CutPrefix(field, "?"); cut {
				field, e.Conditions.Ready = rest, nil
			}
			if host, addresses, found := strings.Cut(field, "="); found {
				e.Hostname, field = new(host), addresses
			}
			e.Addresses = strings.Split(field, ",")
			if strings.Contains(field, ":") {
				o.AddressType = discoveryv1.AddressTypeIPv6
			}
			o.Endpoints = append(o.Endpoints, e)
		}
	}
	return o
}

// parsePorts reads "name/protocol/number" or "protocol/number".
func parsePorts(t testing.TB, text string) []discoveryv1.EndpointPort {
	t.Helper()
	var ports []discoveryv1.EndpointPort
	for one := range strings.SplitSeq(text, ",") {
		fields := strings.Split(one, "/")
		if len(fields) == 2 {
			fields = append([]string{""}, fields...)
		}
		n, err := strconv.ParseInt(fields[2], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		protocol := corev1.Protocol(strings.ToUpper(fields[1]))
		ports = append(ports, discoveryv1.EndpointPort{Name: new(fields[0]), Protocol: &protocol, Port: new(int32(n))})
	}
	return ports
}

func parseGateway(t testing.TB, fields []string) *v1alpha1.Gateway {
	t.Helper()
	o := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: fields[0]}}
	for _, field := range fields[1:] {
		state, clusters, found := strings.Cut(field, "=")
		if !found {
			t.Fatalf("gateway: %s", field)
		}
		for id := range strings.SplitSeq(clusters, ",") {
			o.Status.Cables = append(o.Status.Cables, v1alpha1.Cable{ClusterID: id, Endpoint: id, State: v1alpha1.CableState(state)})
		}
	}
	return o
}

// newTestWorld makes a world that has read these objects and nothing else.
func newTestWorld(t testing.TB, text string) *world {
	t.Helper()
	w := newWorld()
	parseObjects(t, text).into(w)
	return w
}

// into lists the objects to the world.
func (o *objects) into(w *world) {
	var namespaces []*namespaceObject
	for _, name := range o.namespaces {
		namespaces = append(namespaces, &namespaceObject{slim{objectKey: objectKey{"", name}}})
	}
	var imports []*importObject
	for _, i := range o.imports {
		imports = append(imports, newImportObject(i))
	}
	var list []*sliceObject
	for _, s := range o.slices {
		list = append(list, newSliceObject(s))
	}
	var gateways []*gatewayObject
	for _, g := range o.gateways {
		gateways = append(gateways, newGatewayObject(g))
	}
	w.replaceSlices(list)
	w.replaceNamespaces(namespaces)
	w.replaceImports(imports)
	w.replaceGateways(gateways)
	w.setLocalID(o.local)
}
