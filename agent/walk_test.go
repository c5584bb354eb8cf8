package agent

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// walk is a world in which exports of one service come, change and go, and what users and other members wrote, by name: all that an
// agent has to come to the same state from scratch.
type walk struct {
	*world
	random  *rand.Rand
	cluster map[string]client.Object // in c1
	broker  map[string]client.Object
}

const walkRoster = `
apiVersion: fastnet.dev/v1alpha1
kind: ClusterSet
metadata: {name: clusterset}
spec:
  name: demo
  members:
  - {clusterID: c1, namespace: member-c1}
  - {clusterID: c2, namespace: member-c2}
  - {clusterID: c3, namespace: member-c3}
  - {clusterID: c4, namespace: member-c4}
`

// TestWalkEndsWhereScratchBegins: whatever way exports took, the cluster holds what an agent makes that sees only their end. So no
// property of an earlier export stays on an import, its derived Service or its slices.
func TestWalkEndsWhereScratchBegins(t *testing.T) {
	seed := rand.Uint64()
	w := newWalk(t, seed)
	w.run(t, "c1")
	defer w.stopAll()
	for step := range 200 {
		what := w.step(t)
		if step%5 != 4 { // changes come while others are under way
			continue
		}
		scratch := newWalk(t, seed)
		for _, object := range w.cluster {
			scratch.write(t, "c1", object.DeepCopyObject().(client.Object))
		}
		for _, object := range w.broker {
			scratch.write(t, "broker", object.DeepCopyObject().(client.Object))
		}
		scratch.run(t, "c1")
		err := sameEnd(t.Context(), w.world, scratch.world)
		scratch.stopAll()
		if err != nil {
			t.Fatalf("seed %d, step %d, %s: %v", seed, step, what, err)
		}
	}
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{newWorld(t), rand.New(rand.NewPCG(seed, 0)), map[string]client.Object{}, map[string]client.Object{}}
	w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster))...)
	w.server("broker", dual, decode(t, w.scheme, []byte(walkRoster))...)
	return w
}

// write creates or replaces an object, and keeps it.
func (w *walk) write(t *testing.T, server string, object client.Object) {
	t.Helper()
	kept := w.broker
	if server == "c1" {
		kept = w.cluster
	}
	object.SetUID("")
	object.SetResourceVersion("")
	kept[nameOf(object)] = object.DeepCopyObject().(client.Object)
	s := w.servers[server]
	before := object.DeepCopyObject().(client.Object)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // the agent may write a status in between
		if s.Get(t.Context(), client.ObjectKeyFromObject(object), before) != nil {
			return s.Create(t.Context(), object)
		}
		object.SetUID(before.GetUID())
		object.SetResourceVersion(before.GetResourceVersion())
		if x, is := object.(*mcsv1beta1.ServiceExport); is {
			x.Status = before.(*mcsv1beta1.ServiceExport).Status
		}
		return s.Update(t.Context(), object)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *walk) remove(t *testing.T, server string, object client.Object) {
	t.Helper()
	delete(w.cluster, nameOf(object))
	delete(w.broker, nameOf(object))
	if err := w.servers[server].Delete(t.Context(), object); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
}

// step makes one change.
func (w *walk) step(t *testing.T) string {
	r := w.random
	cluster := fmt.Sprintf("c%d", 1+r.IntN(4))
	if cluster == "c1" {
		return w.localStep(t)
	}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "member-" + cluster, Name: cluster + "." + name + ".sample", Labels: map[string]string{v1alpha1.LabelSourceCluster: cluster}}
	}
	export := &v1alpha1.ExportedService{ObjectMeta: meta("web"), Spec: randomExport(r)}
	backends := &v1alpha1.ExportedEndpoints{ObjectMeta: meta(fmt.Sprintf("web-%d", r.IntN(2))), Spec: v1alpha1.ExportedEndpointsSpec{
		Namespace: "sample", Service: "web", IPFamily: "IPv4",
	}}
	switch r.IntN(5) {
	case 0:
		w.remove(t, "broker", export)
		return "no export of " + cluster
	case 1:
		w.remove(t, "broker", backends)
		return "no " + backends.Name
	case 2:
		ports := []v1alpha1.BackendPort{{Name: "http", Protocol: "TCP", Port: 8080}, {Name: "admin", Protocol: "TCP", Port: 8081}}
		backends.Spec.Ports = append(backends.Spec.Ports, ports[r.IntN(2):]...)
		for i := range r.IntN(3) {
			ready := r.IntN(3) > 0
			backends.Spec.Backends = append(backends.Spec.Backends, v1alpha1.Backend{Addresses: []string{fmt.Sprintf("10.%s.1.%d", cluster[1:], 1+i)}, Ready: &ready})
		}
		w.write(t, "broker", backends)
		return "backends " + backends.Name
	}
	w.write(t, "broker", export)
	return "export of " + cluster
}

// randomExport is any export that differs from others in anything.
func randomExport(r *rand.Rand) v1alpha1.ExportedServiceSpec {
	maybe := func(values ...string) string { return values[r.IntN(len(values))] }
	pointer := func(value string) *string {
		if value == "" {
			return nil
		}
		return &value
	}
	e := v1alpha1.ExportedServiceSpec{
		Namespace: "sample", Name: "web", ExportedAt: metav1.NewTime(start.Add(time.Duration(r.IntN(4)) * time.Hour)),
		Type:                  maybe("ClusterSetIP", "ClusterSetIP", "ClusterSetIP", "ClusterSetIP", "ClusterSetIP", "ClusterSetIP", "Headless"),
		IPFamilies:            [][]string{{"IPv4"}, {"IPv6"}, {"IPv4", "IPv6"}, {"IPv6", "IPv4"}}[r.IntN(4)],
		Ports:                 []v1alpha1.ServicePort{{Name: "http", Protocol: "TCP", Port: int32(80 + r.IntN(2))}, {Name: "admin", Protocol: "TCP", Port: 90}}[:1+r.IntN(2)],
		SessionAffinity:       maybe("", "None", "ClientIP"),
		InternalTrafficPolicy: pointer(maybe("", "Cluster", "Local")),
		TrafficDistribution:   pointer(maybe("", "PreferClose", "PreferSameNode")),
		Affinity:              maybe("", "", "none", "remote"),
		Balance:               maybe("", "", "", "", "", "", "", "dns"),
		Prefer:                [][]string{nil, nil, {"c3", "c2"}}[r.IntN(3)],
	}
	if r.IntN(2) == 0 {
		e.ExportedLabels, e.ExportedAnnotations = map[string]string{maybe("a", "b"): "x"}, map[string]string{maybe("a", "b"): "y"}
	}
	if r.IntN(3) == 0 {
		weight := int32(r.IntN(3))
		e.Weight = &weight
	}
	return e
}

// localStep changes what c1 itself has of the service.
func (w *walk) localStep(t *testing.T) string {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "sample", Name: name} }
	export := &mcsv1beta1.ServiceExport{ObjectMeta: meta("web")}
	export.CreationTimestamp = metav1.NewTime(start.Add(time.Duration(w.random.IntN(4)) * time.Hour))
	service := &corev1.Service{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP"}}}}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta("web-1"), AddressType: "IPv4"}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	switch object := []client.Object{export, service, slice}[w.random.IntN(3)]; {
	case w.random.IntN(3) == 0:
		w.remove(t, "c1", object)
		return "no " + nameOf(object)
	case object == client.Object(export) && w.cluster[nameOf(export)] != nil:
		export.CreationTimestamp = w.cluster[nameOf(export)].GetCreationTimestamp() // an object's own, for life
		export.Annotations = map[string]string{v1alpha1.AnnotationAffinity: []string{"local", "none", "remote"}[w.random.IntN(3)]}
		w.write(t, "c1", export)
		return "annotation of c1's export"
	default:
		name, number, protocol := "http", int32(8080), corev1.ProtocolTCP
		slice.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &protocol}}
		ready := w.random.IntN(2) == 0
		slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.1.1.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}
		w.write(t, "c1", object)
		return nameOf(object)
	}
}

// sameEnd waits until c1 holds the same in two worlds.
func sameEnd(ctx context.Context, a, b *world) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		a.mu.Lock()
		aChanged := a.changed
		a.mu.Unlock()
		b.mu.Lock()
		bChanged := b.changed
		b.mu.Unlock()
		one, err := shownOf(ctx, a)
		if err != nil {
			return err
		}
		other, err := shownOf(ctx, b)
		if err != nil {
			return err
		}
		diff := cmp.Diff(other, one)
		if diff == "" {
			return nil
		}
		select {
		case <-aChanged:
		case <-bChanged:
		case <-deadline.C:
			return fmt.Errorf("the walk ended elsewhere (-scratch +walk):\n%s", diff)
		}
	}
}

// shownOf is what c1 holds of ours: labels, annotations and specs in full.
func shownOf(ctx context.Context, w *world) (map[string]any, error) {
	p, err := w.held(ctx, "c1")
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	for _, s := range p.Services {
		all[nameOf(s)] = []any{s.Labels, s.Annotations, s.Spec}
	}
	for _, s := range p.Slices {
		all[nameOf(s)] = []any{s.Labels, maps.Clone(timeless(s.Annotations)), s.AddressType, s.Endpoints, s.Ports}
	}
	for _, i := range p.Imports {
		var conditions []string
		for _, c := range i.Status.Conditions {
			conditions = append(conditions, fmt.Sprint(c.Type, c.Status, c.Reason))
		}
		all[nameOf(i)] = []any{i.Labels, i.Annotations, i.Spec, i.Status.Clusters, i.Status.EndpointSliceObjects, conditions}
	}
	for _, e := range p.Exports {
		var conditions []string
		for _, c := range e.Conditions {
			conditions = append(conditions, fmt.Sprint(c.Type, c.Status, c.Reason, c.Message))
		}
		slices.Sort(conditions)
		all["ServiceExport "+e.Key.String()] = conditions
	}
	return all, nil
}
