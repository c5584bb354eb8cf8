package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

var dual = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

func sliceOf(name string, addresses ...string) *discoveryv1.EndpointSlice {
	s := newSlice(clusterset.Key{Namespace: "sample", Name: "web"}, "c2", "IPv4", name)
	s.Name = name
	s.Endpoints = []discoveryv1.Endpoint{{Addresses: addresses}}
	return s
}

// foreign looks like ours but for the owner's mark.
func foreign(name string) *discoveryv1.EndpointSlice {
	s := sliceOf(name, "10.0.0.9")
	s.Labels[discoveryv1.LabelManagedBy] = "somebody.else"
	return s
}

// slicesIn lists the slices of a cluster: "a=10.0.0.1 b=10.0.0.2".
func slicesIn(t *testing.T, s *server) string {
	t.Helper()
	var list discoveryv1.EndpointSliceList
	if err := s.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, slice := range list.Items {
		all = append(all, slice.Name+"="+slice.Endpoints[0].Addresses[0])
	}
	return strings.Join(all, " ")
}

func TestApplyFromAnyStateToAnother(t *testing.T) {
	w := newWorld(t)
	s := w.server("c1", dual, foreign("foreign"))
	w.server("broker", dual)
	a := w.agent(t, "c1")
	for _, step := range []struct {
		name   string
		want   []*discoveryv1.EndpointSlice
		state  string
		writes int
	}{
		{"add", []*discoveryv1.EndpointSlice{sliceOf("a", "10.0.0.1"), sliceOf("b", "10.0.0.2")}, "a=10.0.0.1 b=10.0.0.2 foreign=10.0.0.9", 2},
		{"nothing to do", []*discoveryv1.EndpointSlice{sliceOf("b", "10.0.0.2"), sliceOf("a", "10.0.0.1")}, "a=10.0.0.1 b=10.0.0.2 foreign=10.0.0.9", 0},
		{"change one, add one, remove one", []*discoveryv1.EndpointSlice{sliceOf("b", "10.0.0.3"), sliceOf("c", "10.0.0.4")}, "b=10.0.0.3 c=10.0.0.4 foreign=10.0.0.9", 3},
		{"the uninstall", nil, "foreign=10.0.0.9", 2},
	} {
		t.Run(step.name, func(t *testing.T) {
			snapshot, err := a.snapshot(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			before := s.writes
			if _, err := a.applyLocal(t.Context(), scope{}, snapshot, &Plan{Slices: step.want}); err != nil {
				t.Fatal(err)
			}
			if got := slicesIn(t, s); got != step.state {
				t.Errorf("holds %s, want %s", got, step.state)
			}
			if got := s.writes - before; got != step.writes {
				t.Errorf("%d writes, want %d", got, step.writes)
			}
		})
	}
}

// A watch tells of our own writes late. A second round on the old snapshot must write nothing, and nothing twice.
func TestApplyKnowsItsOwnWrites(t *testing.T) {
	w := newWorld(t)
	s := w.server("c1", dual, sliceOf("old", "10.0.0.1"), sliceOf("changes", "10.0.0.2"))
	w.server("broker", dual)
	a := w.agent(t, "c1")
	stale, err := a.snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	plan := &Plan{Slices: []*discoveryv1.EndpointSlice{sliceOf("new", "10.0.0.3"), sliceOf("changes", "10.0.0.4")}}
	for round := range 3 {
		if _, err := a.applyLocal(t.Context(), scope{}, stale, plan); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if s.writes != 3 {
		t.Errorf("%d writes, want a creation, an update and a deletion", s.writes)
	}
	// On the same old snapshot, and a second change.
	plan.Slices[1] = sliceOf("changes", "10.0.0.5")
	if _, err := a.applyLocal(t.Context(), scope{}, stale, plan); err != nil {
		t.Fatal(err)
	}
	if got, want := slicesIn(t, s), "changes=10.0.0.5 new=10.0.0.3"; got != want {
		t.Errorf("holds %s, want %s", got, want)
	}
}

// One refused object is no reason to leave the others.
func TestApplyGoesOnAfterARefusal(t *testing.T) {
	w := newWorld(t)
	s := w.server("c1", dual)
	w.server("broker", dual)
	refusing := interceptor.NewClient(s.WithWatch, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, o ...client.CreateOption) error {
			if object.GetName() == "bad" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "endpointslices"}, "bad", fmt.Errorf("no"))
			}
			return c.Create(ctx, object, o...)
		},
	})
	a := w.agent(t, "c1")
	a.local.writer = refusing
	snapshot, err := a.snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.applyLocal(t.Context(), scope{}, snapshot, &Plan{Slices: []*discoveryv1.EndpointSlice{sliceOf("bad", "10.0.0.1"), sliceOf("good", "10.0.0.2")}})
	if err == nil || !strings.Contains(err.Error(), "create EndpointSlice sample/bad") {
		t.Errorf("error %v does not name the object", err)
	}
	if got, want := slicesIn(t, s), "good=10.0.0.2"; got != want {
		t.Errorf("holds %s, want %s", got, want)
	}
}

// newExport is a ServiceExport in a cluster whose agent has had no round yet.
func newExport(t *testing.T) (*server, *Agent, *mcsv1beta1.ServiceExport) {
	t.Helper()
	w := newWorld(t)
	s := w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster+exported))...)
	w.server("broker", dual, decode(t, w.scheme, []byte(onTheBroker))...)
	a := w.agent(t, "c1")
	export := &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "sample", Name: "web"}}
	if err := s.Create(t.Context(), export); err != nil {
		t.Fatal(err)
	}
	return s, a, export
}

// What a status said is not taken back by a round whose watch has not told of it yet.
func TestStatusIsNotTakenBackByAWatchThatLags(t *testing.T) {
	s, a, export := newExport(t)
	key := client.ObjectKeyFromObject(export)
	round := func(rounds ...func(context.Context, scope) (time.Duration, error)) (ready metav1.Condition) {
		t.Helper()
		for _, round := range rounds {
			if _, err := round(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Get(t.Context(), key, export); err != nil {
			t.Fatal(err)
		}
		return *meta.FindStatusCondition(export.Status.Conditions, string(mcsv1beta1.ServiceExportConditionReady))
	}
	if ready := round(a.importRound); ready.Reason != string(mcsv1beta1.ServiceExportReasonPending) {
		t.Fatalf("before the broker has it: %+v", ready)
	}
	a.config.Reader = lagging{a.config.Reader, export.DeepCopy()}
	before := round(a.exportRound, a.importRound)
	if before.Status != metav1.ConditionTrue {
		t.Fatalf("when the broker has it: %+v", before)
	}
	version := export.ResourceVersion
	backend := sliceOf("another", "10.8.0.77")
	backend.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	if err := s.Create(t.Context(), backend); err != nil {
		t.Fatal(err)
	}
	if after := round(a.importRound, a.exportRound, a.importRound); export.ResourceVersion != version {
		t.Errorf("a new backend changed the status from %+v to %+v", before, after)
	}
}

// An export that is deleted while its status is written is no error: the watch is about to say so.
func TestStatusOfADeletedExport(t *testing.T) {
	s, a, export := newExport(t)
	key := client.ObjectKeyFromObject(export)
	a.config.Reader = lagging{a.config.Reader, export.DeepCopy()}
	if err := s.Delete(t.Context(), export); err != nil {
		t.Fatal(err)
	}
	if again, err := a.importRound(t.Context(), key); err != nil || again <= 0 {
		t.Errorf("got %v, and looks again after %s; want no error, and another look", err, again)
	}
}

// An export that is there, and whose status is not found, is an error: its CRD has no status.
func TestStatusWithoutSubresource(t *testing.T) {
	s, a, export := newExport(t)
	a.local.writer = interceptor.NewClient(s.WithWatch, interceptor.Funcs{
		SubResourceUpdate: func(context.Context, client.Client, string, client.Object, ...client.SubResourceUpdateOption) error {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "serviceexports"}, export.Name)
		},
	})
	if _, err := a.importRound(t.Context(), client.ObjectKeyFromObject(export)); !apierrors.IsNotFound(err) {
		t.Errorf("got %v, want that the status is not found", err)
	}
}

// lagging is a reader whose watch has not told of a ServiceExport's last change.
type lagging struct {
	client.Reader
	export *mcsv1beta1.ServiceExport
}

func (l lagging) Get(ctx context.Context, key client.ObjectKey, into client.Object, options ...client.GetOption) error {
	if export, ok := into.(*mcsv1beta1.ServiceExport); ok {
		l.export.DeepCopyInto(export)
		return nil
	}
	return l.Reader.Get(ctx, key, into, options...)
}

// What the broker refuses shows in the export's status.
func TestRefusalOfTheBroker(t *testing.T) {
	w := newWorld(t)
	w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster))...)
	b := w.server("broker", dual, decode(t, w.scheme, []byte(onTheBroker))...)
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "sample", Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}}}}
	export := decode(t, w.scheme, []byte("apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: web, namespace: sample}\n"))[0]
	for _, object := range []client.Object{service, export} {
		if err := w.servers["c1"].Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	a := w.agent(t, "c1")
	a.broker.writer = interceptor.NewClient(b.WithWatch, interceptor.Funcs{
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "exportedservices"}, "c1.web.sample", fmt.Errorf("not your namespace"))
		},
	})
	if err := a.rounds(t.Context()); err == nil {
		t.Error("the refusal is no error")
	}
	_, p, err := a.plan(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.String(); !strings.Contains(got, "Ready False Failed: the broker refuses: ") || !strings.Contains(got, "not your namespace") {
		t.Errorf("the status does not tell of the refusal:\n%s", got)
	}
}

// What is wrong with a Service is told once, and again when it is something else.
func TestWarningsAreToldOnce(t *testing.T) {
	w := newWorld(t)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "sample", Name: "web", Annotations: map[string]string{v1alpha1.AnnotationGlobal: "maybe"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}}},
	}
	s := w.server("c1", dual, append(decode(t, w.scheme, []byte(inEveryCluster)), service)...)
	w.server("broker", dual, decode(t, w.scheme, []byte(onTheBroker))...)
	a := w.agent(t, "c1")
	round := func(want int) {
		t.Helper()
		for range 2 {
			if err := a.rounds(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Count(strings.Join(s.events, "\n"), "web Warning InvalidAnnotation"); got != want {
			t.Errorf("%d warnings, want %d: %q", got, want, s.events)
		}
	}
	round(1)
	for n, value := range []string{"perhaps", "false", "perhaps"} {
		if err := s.Get(t.Context(), client.ObjectKeyFromObject(service), service); err != nil {
			t.Fatal(err)
		}
		service.Annotations[v1alpha1.AnnotationGlobal] = value
		if err := s.Update(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		round([]int{2, 2, 3}[n])
	}
}

// The time of the last change comes with a change of endpoints, goes with any other, and is no reason for a write.
func TestTimeOfTheLastChange(t *testing.T) {
	const old, young = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01.000000001Z"
	at := func(slice *discoveryv1.EndpointSlice, time string) *discoveryv1.EndpointSlice {
		slice.Annotations = map[string]string{annotationRecord: "r"}
		if time != "" {
			slice.Annotations[corev1.EndpointsLastChangeTriggerTime] = time
		}
		return slice
	}
	serving := func(slice *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
		slice.Labels[discoveryv1.LabelServiceName] = "derived"
		return slice
	}
	const a, b = "10.0.0.1", "10.0.0.2"
	for _, test := range []struct {
		name       string
		have, want *discoveryv1.EndpointSlice
		time       string
		write      bool
	}{
		{"nothing changed", at(sliceOf("s", a), old), at(sliceOf("s", a), old), old, false},
		{"the endpoints changed", at(sliceOf("s", a), old), at(sliceOf("s", b), young), young, true},
		{"they changed for a reason without a time", at(sliceOf("s", a), old), at(sliceOf("s", b), ""), "", true},
		{"the time alone", at(sliceOf("s", a), old), at(sliceOf("s", a), young), old, false},
		{"a time where there was none", at(sliceOf("s", a), ""), at(sliceOf("s", a), young), "", false},
		{"the time alone, gone", at(sliceOf("s", a), old), at(sliceOf("s", a), ""), old, false},
		{"who serves changed", at(sliceOf("s", a), old), serving(at(sliceOf("s", a), old)), "", true},
		{"both changed", at(sliceOf("s", a), old), serving(at(sliceOf("s", b), young)), young, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			have := test.have.DeepCopy()
			adoptSlice(have, test.want.DeepCopy())
			if got := changedAt(have); got != test.time {
				t.Errorf("time %q, want %q", got, test.time)
			}
			if write := !equality.Semantic.DeepEqual(have, test.have); write != test.write {
				t.Errorf("a write: %t, want %t", write, test.write)
			}
			if have.Annotations[annotationRecord] != "r" {
				t.Errorf("annotations %v", have.Annotations)
			}

			// A record on the broker goes by the same rules; what others noted on it stays.
			record := func(s *discoveryv1.EndpointSlice) *v1alpha1.ExportedEndpoints {
				return &v1alpha1.ExportedEndpoints{
					ObjectMeta: metav1.ObjectMeta{Labels: s.Labels, Annotations: s.Annotations},
					Spec:       v1alpha1.ExportedEndpointsSpec{Backends: []v1alpha1.Backend{{Addresses: s.Endpoints[0].Addresses}}},
				}
			}
			published := record(test.have.DeepCopy())
			published.Annotations["note"] = "x"
			adoptExportedEndpoints(published, record(test.want.DeepCopy()))
			if got := changedAt(published); got != test.time || published.Annotations["note"] != "x" {
				t.Errorf("the record has time %q, want %q; annotations %v", got, test.time, published.Annotations)
			}
		})
	}
	if got := changedAt(at(sliceOf("s", a), "yesterday")); got != "" {
		t.Errorf("%q is a time", got)
	}
}

// FuzzRecords: whatever one member writes, the services of the others are what they were.
func FuzzRecords(f *testing.F) {
	f.Add("c2.x.sample", "sample", "x", "ClusterSetIP", "http", "TCP", int32(80), "10.0.0.1", "IPv4", "pod-0", "a", "b")
	f.Add("c2.web.sample", "sample", "web", "Headless", "", "ICMP", int32(-1), "127.0.0.1", "IPv6", "a.b", "", "\x00")
	f.Add("c3.web.sample", "sample", "web", "", "a b", "UDP", int32(70000), "fe80::1%eth0", "FQDN", strings.Repeat("a", 300), "a b", "c d")
	f.Fuzz(func(t *testing.T, name, namespace, service, kind, portName, protocol string, port int32, address, family, hostname, label, value string) {
		if namespace == "sample" && service == "web" {
			t.Skip("a part of the same service, if it is well formed")
		}
		w := newWorld(t)
		good := decode(t, w.scheme, []byte(goodRecords))
		view := func(bad bool) *Snapshot {
			s := &Snapshot{ClusterID: "c1", BrokerNamespace: "member-c1", Namespaces: map[string]bool{"sample": true}}
			s.Broker.Synced = true
			s.Broker.ClusterSet = good[0].(*v1alpha1.ClusterSet)
			s.Broker.Services = []*v1alpha1.ExportedService{good[1].(*v1alpha1.ExportedService)}
			s.Broker.Endpoints = []*v1alpha1.ExportedEndpoints{good[2].(*v1alpha1.ExportedEndpoints)}
			if bad {
				m := metav1.ObjectMeta{Namespace: "member-c2", Name: name, Labels: map[string]string{v1alpha1.LabelSourceCluster: "c2"}}
				s.Broker.Services = append(s.Broker.Services, &v1alpha1.ExportedService{ObjectMeta: m, Spec: v1alpha1.ExportedServiceSpec{
					Namespace: namespace, Name: service, Type: kind, ExportedAt: metav1.NewTime(start), IPFamilies: []string{family}, Addresses: []string{address},
					Ports: []v1alpha1.ServicePort{{Name: portName, Protocol: protocol, Port: port}}, ExportedLabels: map[string]string{label: value},
				}})
				s.Broker.Endpoints = append(s.Broker.Endpoints, &v1alpha1.ExportedEndpoints{ObjectMeta: m, Spec: v1alpha1.ExportedEndpointsSpec{
					Namespace: namespace, Service: service, IPFamily: family, Ports: []v1alpha1.BackendPort{{Name: portName, Protocol: protocol, Port: port}},
					Backends: []v1alpha1.Backend{{Addresses: []string{address}, Hostname: hostname}},
				}})
				s.Broker.Gateways = append(s.Broker.Gateways, &v1alpha1.Endpoint{ObjectMeta: m, Spec: v1alpha1.EndpointSpec{ClusterID: label, Addresses: []string{address}, Port: port, Prefixes: []string{value}}})
			}
			return s
		}
		about := func(p Plan) string {
			var web Plan
			for _, s := range p.Slices {
				if s.Labels[v1alpha1.LabelServiceName] == "web" && s.Namespace == "sample" {
					web.Slices = append(web.Slices, s)
				}
			}
			for _, s := range p.Services {
				if s.Namespace == "sample" && s.Labels[v1alpha1.LabelServiceName] == "web" {
					web.Services = append(web.Services, s)
				}
			}
			return web.String()
		}
		with, without := BuildPlan(view(true)), BuildPlan(view(false))
		if about(with) != about(without) || !strings.Contains(about(with), "10.8.0.1 ready") {
			t.Errorf("another record changed sample/web:\n%s\nwas\n%s", about(with), about(without))
		}
		_ = with.String()
	})
}

const goodRecords = `
apiVersion: fastnet.dev/v1alpha1
kind: ClusterSet
metadata: {name: clusterset}
spec: {name: demo, members: [{clusterID: c1, namespace: member-c1}, {clusterID: c2, namespace: member-c2}, {clusterID: c3, namespace: member-c3}]}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedService
metadata: {name: c3.web.sample, namespace: member-c3, labels: {multicluster.kubernetes.io/source-cluster: c3}}
spec: {namespace: sample, name: web, type: ClusterSetIP, exportedAt: "2026-01-01T00:00:00Z", ports: [{name: http, protocol: TCP, port: 80}], ipFamilies: [IPv4], addresses: [10.96.0.1]}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedEndpoints
metadata: {name: c3.web-1.sample, namespace: member-c3, labels: {multicluster.kubernetes.io/source-cluster: c3}}
spec: {namespace: sample, service: web, ipFamily: IPv4, ports: [{name: http, protocol: TCP, port: 8080}], backends: [{addresses: [10.8.0.1]}]}
`

func TestMetricsAreWellFormed(t *testing.T) {
	m := newMetrics("c1", func() bool { return true }, func() broker.View { return broker.View{} })
	registry := prometheus.NewRegistry()
	if err := m.register(registry); err != nil {
		t.Fatal(err)
	}
	m.wrote("local", &corev1.Service{}, false)
	m.converged("import", time.Second)
	m.saw(scope{Name: "web"}, &Snapshot{}, &Plan{Conflicts: map[string]int{"PortConflict": 1}})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	if want := 16; len(families) != want {
		t.Errorf("%d metrics, want %d", len(families), want)
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	_, err := New(Config{ClusterID: "Up"})
	for _, want := range []string{"cluster ID", "namespace on the broker", "two clients", "clock"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// TestDeletedRightAfterItWasWritten: what is deleted before the watch has told of it looks like a watch that lags. It comes
// back all the same, without anything else happening.
func TestDeletedRightAfterItWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server("c1", dual)
		side := &target{writer: s, now: time.Now, stamp: func(_, _ client.Object) {}, wrote: map[string]written{}, count: func(string, client.Object, bool) {}}
		want := []*discoveryv1.EndpointSlice{sliceOf("a", "10.0.0.1")}
		apply := func() time.Duration {
			r := side.round()
			put(t.Context(), r, nil, want, adoptSlice) // nil: the watch knows of none, now and for ever
			again, err := r.end()
			if err != nil {
				t.Fatal(err)
			}
			return again
		}
		apply()
		if err := s.Delete(t.Context(), want[0].DeepCopy()); err != nil {
			t.Fatal(err)
		}
		again := apply()
		if got := slicesIn(t, s); got != "" {
			t.Errorf("%q was made while the watch might only have lagged", got)
		}
		if again <= 0 {
			t.Fatal("nobody would look again")
		}
		time.Sleep(again)
		apply()
		if got := slicesIn(t, s); got != "a=10.0.0.1" {
			t.Errorf("the server holds %q, want the slice again", got)
		}
	})
}

// TestTombstones: what is withdrawn stays on the broker as a tombstone for a while; exported again meanwhile, it rises, and its
// version never falls.
func TestTombstones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster+exported))...)
		b := w.server("broker", dual, decode(t, w.scheme, []byte(onTheBroker))...)
		export := decode(t, w.scheme, []byte("apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: web, namespace: sample}\n"))[0]
		last := int64(0)
		// holds is what the broker holds of the service: "export, 1 backends", each withdrawn or not.
		holds := func() string {
			synctest.Wait()
			var services v1alpha1.ExportedServiceList
			var endpoints v1alpha1.ExportedEndpointsList
			if err := errors.Join(b.List(t.Context(), &services), b.List(t.Context(), &endpoints)); err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, e := range services.Items {
				all = append(all, fmt.Sprintf("export withdrawn=%t", e.Spec.Withdrawn))
				version := broker.WrittenAt(&e).UnixMilli()
				if version < last {
					t.Errorf("the version fell from %d to %d", last, version)
				}
				last = version
			}
			for _, e := range endpoints.Items {
				all = append(all, fmt.Sprintf("%d backends withdrawn=%t", len(e.Spec.Backends), e.Spec.Withdrawn))
			}
			return strings.Join(all, ", ")
		}
		check := func(when, want string) {
			t.Helper()
			if got := holds(); got != want {
				t.Errorf("%s the broker holds %q, want %q", when, got, want)
			}
		}
		set := func(exported bool) {
			if err := s.Delete(t.Context(), export); client.IgnoreNotFound(err) != nil {
				t.Fatal(err)
			}
			export.SetResourceVersion("")
			if exported {
				if err := s.Create(t.Context(), export); err != nil {
					t.Fatal(err)
				}
			}
		}
		const there, buried = "export withdrawn=false, 1 backends withdrawn=false", "export withdrawn=true, 0 backends withdrawn=true"
		w.run(t, "c1")
		defer w.stopAll()
		check("before the export", "")
		set(true)
		check("after the export", there)
		set(false)
		check("when it is withdrawn", buried)
		time.Sleep(v1alpha1.TombstoneLives / 2)
		set(true)
		check("when it is exported again", there)
		set(false)
		time.Sleep(v1alpha1.TombstoneLives - time.Second)
		check("just before the tombstone's end", buried)
		w.stop("c1") // the next agent deletes it too
		w.run(t, "c1")
		time.Sleep(5 * time.Second)
		check("after it", "")
	})
}

const exported = `
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: sample}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ipFamilies: [IPv4], ports: [{name: http, port: 80, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: web-1, namespace: sample, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.8.0.1]}]
`

// TestTombstonesOnAnOldBroker: where the broker's CRDs drop the mark of a tombstone, the record is deleted, and not written for ever.
func TestTombstonesOnAnOldBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster))...)
		b := w.server("broker", dual, append(decode(t, w.scheme, []byte(onTheBroker)), decode(t, w.scheme, []byte(`
apiVersion: fastnet.dev/v1alpha1
kind: ExportedService
metadata: {name: c1.web.sample, namespace: member-c1, labels: {multicluster.kubernetes.io/source-cluster: c1}}
spec: {namespace: sample, name: web, type: ClusterSetIP, exportedAt: "2026-01-01T00:00:00Z", ports: [{name: http, protocol: TCP, port: 80}], ipFamilies: [IPv4]}
`))...)...)
		a := w.prepare(t, "c1")
		a.broker.writer = interceptor.NewClient(b.WithWatch, interceptor.Funcs{
			Update: func(ctx context.Context, c client.WithWatch, object client.Object, o ...client.UpdateOption) error {
				dropped := object.DeepCopyObject().(client.Object)
				if record, ok := dropped.(*v1alpha1.ExportedService); ok {
					record.Spec.Withdrawn = false
				}
				return c.Update(ctx, dropped, o...)
			},
		})
		w.start("c1", a)
		defer w.stopAll()
		synctest.Wait()
		var all v1alpha1.ExportedServiceList
		if err := b.List(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		if len(all.Items) != 0 || b.writes != 2 {
			t.Errorf("the broker has %d records after %d writes, want none after 2", len(all.Items), b.writes)
		}
	})
}

// TestAddressesOfALostServiceAreAskedForAgain: they are not free yet when the API server tells of its end, and free a moment later, or
// somebody else's.
func TestAddressesOfALostServiceAreAskedForAgain(t *testing.T) {
	for name, test := range map[string]struct {
		takenFor time.Duration
		want     []string
	}{
		"free at once":           {0, []string{"10.96.0.7"}},
		"free a moment later":    {300 * time.Millisecond, []string{"10.96.0.7"}},
		"somebody else's by now": {time.Hour, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				writer := interceptor.NewClient(newWorld(t).server("c1", dual).WithWatch, interceptor.Funcs{
					Create: func(_ context.Context, _ client.WithWatch, object client.Object, _ ...client.CreateOption) error {
						if len(object.(*corev1.Service).Spec.ClusterIPs) > 0 && time.Since(began) < test.takenFor {
							return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, object.GetName(), nil)
						}
						return nil
					},
				})
				service := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7"}}}
				if err := create(t.Context(), writer, service); err != nil || !slices.Equal(service.Spec.ClusterIPs, test.want) {
					t.Errorf("asked for %v at last, want %v (%v)", service.Spec.ClusterIPs, test.want, err)
				}
			})
		})
	}
}

// A lost derived Service is asked for as an API server wants it: with the first address in both places.
func TestLostServiceIsAskedForWithItsAddresses(t *testing.T) {
	key := clusterset.Key{Namespace: "sample", Name: "web"}
	ips := []string{"10.96.0.7", "fd00:96::7"}
	known := &mcsv1beta1.ServiceImport{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{labelManagedBy: v1alpha1.ManagedBy}}, Spec: mcsv1beta1.ServiceImportSpec{IPs: ips}}
	s := &Snapshot{Imports: map[clusterset.Key]*mcsv1beta1.ServiceImport{key: known}}
	derived := derivedService(s, clusterset.Service{Key: key, Spec: mcsv1beta1.ServiceImportSpec{IPFamilies: dual}}, "derived")
	if derived.Spec.ClusterIP != ips[0] || !slices.Equal(derived.Spec.ClusterIPs, ips) {
		t.Errorf("asks for %q, %q", derived.Spec.ClusterIP, derived.Spec.ClusterIPs)
	}
}
