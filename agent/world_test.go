package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
	"github.com/fastnet-io/fastnet/internal/kube"
)

// start is when every world begins. Its API servers give each new object a creation time one second later than the last.
var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is a broker and the clusters around it: fake API servers, real agents.
type world struct {
	scheme *runtime.Scheme

	mu      sync.Mutex
	created int
	changed chan struct{} // closed and made anew on every write anywhere
	away    bool          // the broker does not answer
	agents  map[string]*running
	servers map[string]*server // by cluster, and "broker"
	// watch, where set, is told of every write, as watches are; agents are not poked then. Old or after is nil where there is none.
	watch func(s *server, old, after client.Object)
}

// server is a fake API server that does what ours depends on: it gives addresses, times and UIDs.
type server struct {
	client.WithWatch
	families []corev1.IPFamily // of Services, the primary first
	writes   int               // guarded by world.mu
	events   []string
	order    sync.Mutex // held from before a write until world.watch was told: a watch tells of writes in their order
}

// running is an agent that runs.
type running struct {
	*Agent
	stop func()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	return &world{scheme: scheme, changed: make(chan struct{}), agents: map[string]*running{}, servers: map[string]*server{}}
}

// server makes an API server that holds objects, which are as they would be after a while: with times, UIDs and addresses.
func (w *world) server(name string, families []corev1.IPFamily, objects ...client.Object) *server {
	s := &server{families: families}
	for _, object := range objects {
		w.born(s, object)
	}
	// before is an object as it is before a write.
	before := func(ctx context.Context, c client.WithWatch, object client.Object) client.Object {
		if w.watch == nil {
			return nil
		}
		old := object.DeepCopyObject().(client.Object)
		if c.Get(ctx, client.ObjectKeyFromObject(object), old) != nil {
			return nil
		}
		return old
	}
	told := func(err error, old, after client.Object) error {
		if err == nil && w.watch != nil {
			if after != nil {
				after = after.DeepCopyObject().(client.Object)
			}
			w.watch(s, old, after)
		}
		return err
	}
	wrote := func(err error) error {
		if err == nil {
			w.mu.Lock()
			s.writes++
			w.mu.Unlock()
			w.poke()
		}
		return err
	}
	gone := func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if name == "broker" && w.away {
			return &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
		}
		return nil
	}
	s.WithWatch = fake.NewClientBuilder().WithScheme(w.scheme).WithObjects(objects...).
		WithIndex(&discoveryv1.EndpointSlice{}, indexSlices, indexOfSlice).
		WithStatusSubresource(&mcsv1beta1.ServiceImport{}, &mcsv1beta1.ServiceExport{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, object client.Object, o ...client.CreateOption) error {
				if err := gone(); err != nil {
					return err
				}
				if service, ok := object.(*corev1.Service); ok && len(service.Spec.ClusterIPs) > 0 && service.Spec.ClusterIP != service.Spec.ClusterIPs[0] {
					// spec.clusterIPs "must be empty when `clusterIP` is not specified"
					return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, service.Name, nil)
				}
				s.order.Lock()
				defer s.order.Unlock()
				w.born(s, object)
				return told(wrote(c.Create(ctx, object, o...)), nil, object)
			},
			Update: func(ctx context.Context, c client.WithWatch, object client.Object, o ...client.UpdateOption) error {
				if err := gone(); err != nil {
					return err
				}
				s.order.Lock()
				defer s.order.Unlock()
				w.allocate(s, object)
				old := before(ctx, c, object)
				return told(wrote(c.Update(ctx, object, o...)), old, object)
			},
			Delete: func(ctx context.Context, c client.WithWatch, object client.Object, o ...client.DeleteOption) error {
				if err := gone(); err != nil {
					return err
				}
				s.order.Lock()
				defer s.order.Unlock()
				old := before(ctx, c, object)
				return told(wrote(c.Delete(ctx, object, o...)), old, nil)
			},
			SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, object client.Object, o ...client.SubResourceUpdateOption) error {
				return wrote(c.SubResource(sub).Update(ctx, object, o...))
			},
		}).Build()
	w.servers[name] = s
	return s
}

// born gives a new object what an API server gives it.
func (w *world) born(s *server, object client.Object) {
	w.mu.Lock()
	w.created++
	n := w.created
	w.mu.Unlock()
	if object.GetCreationTimestamp().Time.IsZero() {
		object.SetCreationTimestamp(metav1.NewTime(start.Add(time.Duration(n) * time.Second)))
	}
	if object.GetUID() == "" {
		object.SetUID(types.UID(fmt.Sprintf("uid-%d", n)))
	}
	w.allocate(s, object)
}

// allocate gives a Service its addresses, by the rules of an API server that has the families of s: the addresses are a
// function of the name, so that goldens can hold them.
func (w *world) allocate(s *server, object client.Object) {
	service, ok := object.(*corev1.Service)
	if !ok || service.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	policy := corev1.IPFamilyPolicySingleStack
	if service.Spec.IPFamilyPolicy != nil {
		policy = *service.Spec.IPFamilyPolicy
	}
	if len(service.Spec.IPFamilies) == 0 {
		service.Spec.IPFamilies = s.families[:1]
	}
	if policy != corev1.IPFamilyPolicySingleStack && len(service.Spec.IPFamilies) < len(s.families) {
		service.Spec.IPFamilies = append(slices.Clone(service.Spec.IPFamilies), s.families[1])
	}
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		return
	}
	sum := 0
	for _, r := range service.Namespace + service.Name {
		sum = (sum*31 + int(r)) % 250
	}
	for _, family := range service.Spec.IPFamilies[len(service.Spec.ClusterIPs):] {
		address := fmt.Sprintf("10.96.0.%d", sum+1)
		if family == corev1.IPv6Protocol {
			address = fmt.Sprintf("fd00:96::%x", sum+1)
		}
		service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, address)
	}
	service.Spec.ClusterIP = service.Spec.ClusterIPs[0]
}

// poke tells every agent and every waiting test that something changed.
func (w *world) poke() {
	w.mu.Lock()
	w.stir()
	if w.watch != nil {
		w.mu.Unlock()
		return
	}
	agents := slices.Collect(maps.Values(w.agents))
	w.mu.Unlock()
	for _, a := range agents {
		a.Poke()
	}
}

// stir has every waiting test look again; w.mu is held.
func (w *world) stir() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// view reads the broker as the watches of a member would.
func (w *world) view(ctx context.Context, cluster string) (broker.View, error) {
	var (
		sets      v1alpha1.ClusterSetList
		services  v1alpha1.ExportedServiceList
		endpoints v1alpha1.ExportedEndpointsList
		gateways  v1alpha1.EndpointList
	)
	b := w.servers["broker"]
	view := broker.View{Synced: true}
	if err := errors.Join(b.List(ctx, &sets), b.List(ctx, &services), b.List(ctx, &endpoints), b.List(ctx, &gateways)); err != nil {
		return broker.View{}, err
	}
	for i := range sets.Items {
		view.ClusterSet = &sets.Items[i]
	}
	withdrawn := func(record client.Object) {
		if record.GetNamespace() == "member-"+cluster {
			view.Withdrawn = append(view.Withdrawn, record)
		}
	}
	for i := range services.Items {
		if record := &services.Items[i]; record.Spec.Withdrawn {
			withdrawn(record)
		} else {
			view.Services = append(view.Services, record)
		}
	}
	for i := range endpoints.Items {
		if record := &endpoints.Items[i]; record.Spec.Withdrawn {
			withdrawn(record)
		} else {
			view.Endpoints = append(view.Endpoints, record)
		}
	}
	for i := range gateways.Items {
		view.Gateways = append(view.Gateways, &gateways.Items[i])
	}
	return view, nil
}

// records are views of what a function says that the broker holds.
type records func() broker.View

func (r records) View() broker.View { return r() }

func (r records) Gateways() broker.View {
	view := r()
	view.Services, view.Endpoints = nil, nil
	return view
}

func (r records) Service(key clusterset.Key) broker.View {
	view := r()
	view.Gateways = nil
	view.Services = slices.DeleteFunc(slices.Clone(view.Services), func(e *v1alpha1.ExportedService) bool {
		return e.Spec.Namespace != key.Namespace || e.Spec.Name != key.Name
	})
	view.Endpoints = slices.DeleteFunc(slices.Clone(view.Endpoints), func(e *v1alpha1.ExportedEndpoints) bool {
		return e.Spec.Namespace != key.Namespace || e.Spec.Service != key.Name
	})
	view.Withdrawn = slices.DeleteFunc(slices.Clone(view.Withdrawn), func(record client.Object) bool { return serviceOf(record) != key })
	return view
}

func (r records) Trust() {}

func (r records) Services() []clusterset.Key {
	var all []clusterset.Key
	view := r()
	for _, e := range view.Services {
		all = append(all, serviceOf(e))
	}
	for _, e := range view.Endpoints {
		all = append(all, serviceOf(e))
	}
	for _, e := range view.Withdrawn {
		all = append(all, serviceOf(e))
	}
	return all
}

// serviceOf is the service that a record is of.
func serviceOf(record client.Object) clusterset.Key {
	switch record := record.(type) {
	case *v1alpha1.ExportedService:
		return clusterset.Key{Namespace: record.Spec.Namespace, Name: record.Spec.Name}
	case *v1alpha1.ExportedEndpoints:
		return clusterset.Key{Namespace: record.Spec.Namespace, Name: record.Spec.Service}
	}
	return clusterset.Key{}
}

// run starts a cluster's agent, as a new process: it knows of the broker what it has heard since.
func (w *world) run(t testing.TB, cluster string) {
	t.Helper()
	w.start(cluster, w.prepare(t, cluster))
}

// prepare makes an agent that is to run.
func (w *world) prepare(t testing.TB, cluster string) *Agent {
	t.Helper()
	var mu sync.Mutex
	var last broker.View
	a := w.agent(t, cluster)
	a.config.Records = records(func() broker.View {
		mu.Lock()
		defer mu.Unlock()
		w.mu.Lock()
		away := w.away
		w.mu.Unlock()
		if !away {
			if view, err := w.view(context.Background(), cluster); err == nil {
				last = view
			}
		}
		return last
	})
	return a
}

func (w *world) start(cluster string, a *Agent) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.mu.Lock()
	w.agents[cluster] = &running{a, func() { cancel(); <-done }} // before its first write, which pokes all that are here
	w.mu.Unlock()
	go func() { a.Run(ctx); close(done) }()
}

// agent makes an agent of a cluster that does not run, and sees the broker as it is.
func (w *world) agent(t testing.TB, cluster string) *Agent {
	t.Helper()
	s := w.servers[cluster]
	a, err := New(Config{
		ClusterID: cluster, BrokerNamespace: "member-" + cluster,
		Reader: s, Local: s, Broker: w.servers["broker"],
		Records: records(func() broker.View {
			view, err := w.view(context.Background(), cluster)
			if err != nil {
				t.Error(err)
			}
			return view
		}),
		Connected: func() bool { w.mu.Lock(); defer w.mu.Unlock(); return !w.away },
		Event: func(object runtime.Object, kind, reason, message string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			s.events = append(s.events, fmt.Sprintf("%s %s %s", object.(client.Object).GetName(), kind, reason))
			w.stir()
		},
		Now: func() time.Time { return start }, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) stop(cluster string) {
	w.mu.Lock()
	a := w.agents[cluster]
	delete(w.agents, cluster)
	w.mu.Unlock()
	if a != nil {
		a.stop()
	}
}

func (w *world) stopAll() {
	w.mu.Lock()
	all := slices.Collect(maps.Keys(w.agents))
	w.mu.Unlock()
	for _, cluster := range all {
		w.stop(cluster)
	}
}

// within is the longest that a test waits for what must come; it comes in milliseconds.
const within = 20 * time.Second

// eventually waits until check has no complaint.
func (w *world) eventually(check func() error) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-deadline.C:
			return err
		}
	}
}

// shown is what a cluster holds of ours, in the text of a plan.
func (w *world) shown(ctx context.Context, cluster string) (string, error) {
	p, err := w.held(ctx, cluster)
	_, text, _ := strings.Cut(p.String(), "# cluster\n")
	return text, err
}

// held is what a cluster holds of ours, as the plan that would say so.
func (w *world) held(ctx context.Context, cluster string) (Plan, error) {
	a := &Agent{config: Config{ClusterID: cluster, Reader: w.servers[cluster], Connected: func() bool { return true }},
		reach: &reach{reader: w.servers[cluster], log: slog.New(slog.DiscardHandler)}}
	s, err := a.everything(ctx)
	if err != nil {
		return Plan{}, err
	}
	var p Plan
	for _, key := range sortedKeys(s.Services) {
		if _, derived := derivedFor(s.Services[key]); derived {
			p.Services = append(p.Services, s.Services[key])
		}
	}
	for _, slices := range s.OwnSlices {
		p.Slices = append(p.Slices, slices...)
	}
	for _, key := range sortedKeys(s.Imports) {
		p.Imports = append(p.Imports, s.Imports[key])
	}
	for _, key := range sortedKeys(s.Exports) {
		p.Exports = append(p.Exports, ExportStatus{Key: key, Conditions: s.Exports[key].Status.Conditions})
	}
	for _, e := range s.Endpoints {
		if mirrored(cluster, e) {
			p.Mirrors = append(p.Mirrors, e)
		}
	}
	return p, nil
}

// decode reads objects from YAML documents.
func decode(t testing.TB, scheme *runtime.Scheme, text []byte) []client.Object {
	t.Helper()
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var all []client.Object
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		// The comment keeps what begins with a brace from being taken for JSON.
		object, _, err := decoder.Decode(append([]byte("#\n"), document...), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		all = append(all, object.(client.Object))
	}
}
