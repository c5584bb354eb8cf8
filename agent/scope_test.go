package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// objectsOfScopes are objects as YAML, and the scope that each belongs to, "" for none.
var objectsOfScopes = []struct{ scope, object string }{
	{"sample/web", "{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: {namespace: sample, name: web}}"},
	{"sample/web", "{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceImport, metadata: {namespace: sample, name: web}}"},
	{"sample/web", "{apiVersion: v1, kind: Service, metadata: {namespace: sample, name: web}}"},
	{"sample/web", "{apiVersion: v1, kind: Service, metadata: {namespace: sample, name: DERIVED, labels: {app.kubernetes.io/managed-by: fastnet.dev, multicluster.kubernetes.io/service-name: web}}}"},
	{"sample/DERIVED", "{apiVersion: v1, kind: Service, metadata: {namespace: sample, name: DERIVED}}"},
	{"sample/web", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: sample, name: web-1, labels: {kubernetes.io/service-name: web}}}"},
	{"", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: sample, name: nobodys}}"},
	{"sample/web", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: sample, name: web-c2, labels: {endpointslice.kubernetes.io/managed-by: fastnet.dev, multicluster.kubernetes.io/service-name: web, kubernetes.io/service-name: DERIVED}}}"},
	{"sample/web", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: sample, name: web-c2-some, labels: {endpointslice.kubernetes.io/managed-by: fastnet.dev, kubernetes.io/service-name: DERIVED}, annotations: {fastnet.dev/import: web}}}"},
	{"sample/", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: sample, name: web-c3, labels: {endpointslice.kubernetes.io/managed-by: fastnet.dev}}}"},
	{"/", "{apiVersion: fastnet.dev/v1alpha1, kind: Endpoint, metadata: {namespace: fastnet-system, name: c2.w1}}"},
}

func TestScopeOfAnObject(t *testing.T) {
	w := newWorld(t)
	derived := clusterset.DerivedName(clusterset.Key{Namespace: "sample", Name: "web"})
	for _, c := range objectsOfScopes {
		object := decode(t, w.scheme, []byte(strings.ReplaceAll(c.object, "DERIVED", derived)))[0]
		of, ok := scopeOf(object)
		if got, want := of.String(), strings.ReplaceAll(c.scope, "DERIVED", derived); ok != (want != "") || ok && got != want {
			t.Errorf("%s belongs to %q (%t), want %q", nameOf(object), got, ok, want)
		}
	}
}

// TestChangeLeadsToItsRound: an agent that runs is told of one changed object at a time, and comes to the state that it would come
// to by looking at everything.
func TestChangeLeadsToItsRound(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	s := w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster))...)
	b := w.server("broker", dual, decode(t, w.scheme, []byte(onTheBroker))...)
	a := w.prepare(t, "c1")
	handler := a.handler()
	w.watch = func(of *server, old, after client.Object) {
		object := after
		if after == nil {
			object = old
		}
		switch record := object.(type) {
		case *v1alpha1.ExportedService:
			a.BrokerChanged(broker.Change{Service: clusterset.Key{Namespace: record.Spec.Namespace, Name: record.Spec.Name}, Theirs: record.Namespace != a.config.BrokerNamespace})
		case *v1alpha1.ExportedEndpoints:
			a.BrokerChanged(broker.Change{Service: clusterset.Key{Namespace: record.Spec.Namespace, Name: record.Spec.Service}, Theirs: record.Namespace != a.config.BrokerNamespace})
		default:
			switch {
			case old == nil:
				handler.OnAdd(object, false)
			case after == nil && len(old.GetUID())%2 == 0:
				handler.OnDelete(toolscache.DeletedFinalStateUnknown{Obj: old})
			case after == nil:
				handler.OnDelete(old)
			default:
				handler.OnUpdate(old, after)
			}
		}
	}
	w.start("c1", a)
	defer w.stopAll()
	ctx := t.Context()

	name := func() string { return fmt.Sprintf("s%d", random.IntN(4)) }
	exists := func(s *server, object client.Object) bool {
		return s.Get(ctx, client.ObjectKeyFromObject(object), object) == nil
	}
	toggle := func(s *server, object client.Object) {
		var err error
		if old := object.DeepCopyObject().(client.Object); exists(s, old) {
			err = s.Delete(ctx, old)
		} else {
			err = s.Create(ctx, object)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	steps := []func() string{
		func() string {
			n := name()
			toggle(s, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "sample", Name: n}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP"}}}})
			return "service " + n
		},
		func() string {
			n := name()
			toggle(s, decode(t, w.scheme, fmt.Appendf(nil, "{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: {namespace: sample, name: %s}}", n))[0])
			return "export " + n
		},
		func() string {
			n := name()
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: "sample", Name: n + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: n}},
				AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprintf("10.8.0.%d", 1+random.IntN(250))}}},
			}
			toggle(s, slice)
			return "slice " + n
		},
		func() string {
			n := name()
			toggle(b, decode(t, w.scheme, fmt.Appendf(nil, `
apiVersion: fastnet.dev/v1alpha1
kind: ExportedService
metadata: {name: c2.%[1]s.sample, namespace: member-c2, labels: {multicluster.kubernetes.io/source-cluster: c2}}
spec: {namespace: sample, name: %[1]s, type: %[2]s, exportedAt: "2026-01-01T00:00:00Z", ports: [{name: http, protocol: TCP, port: 80}], ipFamilies: [IPv4]}
`, n, []string{"ClusterSetIP", "Headless"}[random.IntN(2)]))[0])
			return "record of " + n
		},
		func() string {
			n := name()
			toggle(b, decode(t, w.scheme, fmt.Appendf(nil, `
apiVersion: fastnet.dev/v1alpha1
kind: ExportedEndpoints
metadata: {name: c2.%[1]s-1.sample, namespace: member-c2, labels: {multicluster.kubernetes.io/source-cluster: c2}}
spec: {namespace: sample, service: %[1]s, ipFamily: IPv4, ports: [{name: http, protocol: TCP, port: 8080}], backends: [{addresses: [10.9.1.%[2]d]}]}
`, n, 1+random.IntN(250)))[0])
			return "backends of " + n
		},
		func() string {
			toggle(s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
			return "namespace"
		},
		func() string { // somebody tampers with what is ours
			var all discoveryv1.EndpointSliceList
			if err := s.List(ctx, &all); err != nil {
				t.Fatal(err)
			}
			own := slices.DeleteFunc(all.Items, func(e discoveryv1.EndpointSlice) bool {
				return e.Labels[discoveryv1.LabelManagedBy] != v1alpha1.ManagedBy
			})
			if len(own) == 0 {
				return "nothing to tamper with"
			}
			old := &own[random.IntN(len(own))]
			changed := old.DeepCopy()
			if random.IntN(2) == 0 {
				delete(changed.Labels, v1alpha1.LabelServiceName)
			} else {
				changed.Labels[v1alpha1.LabelServiceName] = name()
			}
			if err := s.Update(ctx, changed); err != nil {
				return "a slice that the agent was changing"
			}
			return "labels of " + old.Name
		},
	}
	for step := range 150 {
		what := steps[random.IntN(len(steps))]()
		err := w.eventually(func() error {
			got, err := w.held(ctx, "c1")
			if err != nil {
				return err
			}
			_, want, err := a.plan(ctx, nil)
			if err != nil {
				return err
			}
			text := func(p Plan) string { // what services consist of
				of := Plan{Slices: p.Slices, Imports: p.Imports}
				for _, service := range p.Services {
					service = service.DeepCopy()
					service.Spec.ClusterIPs = nil // the API server's to say
					of.Services = append(of.Services, service)
				}
				slices.SortFunc(of.Services, func(a, b *corev1.Service) int { return strings.Compare(a.Name, b.Name) })
				return of.String()
			}
			if diff := cmp.Diff(text(*want), text(got)); diff != "" {
				return fmt.Errorf("c1 is not as the plan of everything has it (-want +got):\n%s", diff)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("seed %d, step %d, %s: %v\nfailing: %v, %v", seed, step, what, err, a.importer.Failing(), a.exporter.Failing())
		}
	}
}
