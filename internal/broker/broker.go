// Package broker is the agent's way to its two API servers: its own cluster's, and the broker's, which may be away for as
// long as it likes. Reads come from watches; writes go straight through.
package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/mcsapi"
)

// Config reads the kubeconfig of a broker. The namespace of its current context is the one that this member writes in.
func Config(kubeconfig, userAgent string) (config *rest.Config, namespace string, err error) {
	loaded := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}, &clientcmd.ConfigOverrides{})
	if config, err = loaded.ClientConfig(); err != nil {
		return nil, "", fmt.Errorf("broker kubeconfig: %w", err)
	}
	raw, err := loaded.RawConfig()
	if err != nil {
		return nil, "", fmt.Errorf("broker kubeconfig: %w", err)
	}
	if current := raw.Contexts[raw.CurrentContext]; current != nil {
		namespace = current.Namespace
	}
	if namespace == "" {
		// "default" would be the answer of kubectl; here it would mean that a member writes where it does not belong.
		return nil, "", fmt.Errorf("broker kubeconfig %s: the current context names no namespace", kubeconfig)
	}
	config.UserAgent = userAgent
	config.QPS = -1
	return config, namespace, nil
}

// mapper knows the kinds that the agent uses, so that nothing has to be asked of an API server that may be away.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	add := func(gv schema.GroupVersion, kind, singular, plural string, scope meta.RESTScope) {
		m.AddSpecific(gv.WithKind(kind), gv.WithResource(plural), gv.WithResource(singular), scope)
	}
	add(v1alpha1.GroupVersion, "ClusterSet", "clusterset", "clustersets", meta.RESTScopeRoot)
	add(v1alpha1.GroupVersion, "ExportedService", "exportedservice", "exportedservices", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "ExportedEndpoints", "exportedendpoints", "exportedendpoints", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "Endpoint", "endpoint", "endpoints", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "Gateway", "gateway", "gateways", meta.RESTScopeNamespace)
	add(coordinationv1.SchemeGroupVersion, "Lease", "lease", "leases", meta.RESTScopeNamespace)
	add(corev1.SchemeGroupVersion, "Namespace", "namespace", "namespaces", meta.RESTScopeRoot)
	add(corev1.SchemeGroupVersion, "Service", "service", "services", meta.RESTScopeNamespace)
	add(corev1.SchemeGroupVersion, "Event", "event", "events", meta.RESTScopeNamespace)
	add(discoveryv1.SchemeGroupVersion, "EndpointSlice", "endpointslice", "endpointslices", meta.RESTScopeNamespace)
	add(schema.GroupVersion(mcsv1beta1.GroupVersion), "ServiceExport", "serviceexport", "serviceexports", meta.RESTScopeNamespace)
	add(schema.GroupVersion(mcsv1beta1.GroupVersion), "ServiceImport", "serviceimport", "serviceimports", meta.RESTScopeNamespace)
	return mapped{m}
}

// mapped maps the list kinds too, by which a cache of one namespace asks.
type mapped struct{ *meta.DefaultRESTMapper }

func (m mapped) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	kind.Kind = strings.TrimSuffix(kind.Kind, "List")
	return m.DefaultRESTMapper.RESTMapping(kind, versions...)
}

// Local makes the cache and the writing client of the agent's own cluster, which has the Multi-Cluster Services API as mcs says.
func Local(config *rest.Config, scheme *runtime.Scheme, mcs *mcsapi.API) (cache.Cache, client.WithWatch, error) {
	own := cache.ByObject{Namespaces: map[string]cache.Config{v1alpha1.Namespace: {}}}
	objects, err := cache.New(config, cache.Options{
		Scheme: scheme, Mapper: mapper(), DefaultTransform: cache.TransformStripManagedFields(), NewInformer: mcs.NewInformer,
		ByObject: map[client.Object]cache.ByObject{&v1alpha1.Endpoint{}: own, &v1alpha1.Gateway{}: own},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("cache of the local cluster: %w", err)
	}
	writer, err := client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper()})
	if err != nil {
		return nil, nil, fmt.Errorf("client of the local cluster: %w", err)
	}
	return objects, mcs.Client(writer), nil
}

// Broker is a connection to the broker. Make it with New; it does nothing until Run.
type Broker struct {
	*Records
	// Writer writes to the broker, past the watches.
	Writer client.Client
	// Settled, where set, says whether everything has been done that what the broker was known to hold by a time asked for. It is set before Run.
	Settled func(by time.Time) bool

	client    client.WithWatch
	lease     *renewal
	sources   []*source
	connected atomic.Bool
	losses    atomic.Int64  // how often the broker went away, or could not be reached by one of us
	asked     chan struct{} // somebody awaits our word
	said      atomic.Uint64 // the version that our Lease vouches for, 0 for none

	// Used by probe alone.
	revision  uint64    // the highest that the broker told of
	renew     time.Time // when the Lease is next to be renewed
	handled   int64     // losses that the Lease was renewed after
	returned  time.Time // when the broker was last there again, and all had been told so
	answering bool      // asked, and not answered yet
	vouchedAt time.Time // when the Lease last said that all is settled
}

// Times of a connection.
const (
	// probeEvery and probeTimeout bound how late a change of the connection is noticed.
	probeEvery   = 2 * time.Second
	probeTimeout = 5 * time.Second
)

// backoff is between attempts to list and watch a broker that is away. It is short: whoever waits for the broker should be up
// to date in seconds after its return, and what an attempt costs is a refused connection.
var backoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 4, Cap: time.Second}

// New makes a connection. Poke is called on every change of what views say.
func New(config *rest.Config, namespace string, scheme *runtime.Scheme, poke func(Change)) (*Broker, error) {
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper()})
	if err != nil {
		return nil, fmt.Errorf("client of the broker: %w", err)
	}
	b := &Broker{Records: NewRecords(namespace, poke), Writer: c, client: c, asked: make(chan struct{}, 1), lease: &renewal{client: c, namespace: namespace}}
	b.sources = newSources(b)
	return b, nil
}

// Run watches the broker until the context ends, however often the broker goes away and comes back.
//
// A watch that goes on where an earlier one ended is no good after the broker was restored from a backup: its versions begin
// again at an earlier one, and the API server waits for those that the watch has not seen yet, and tells of nothing meanwhile.
// Nor does any error say so. So what was listed before the broker was away, or before its versions went back, is listed anew.
//
// A probe alone does not see it away: client-go asks again where a connection breaks, and a broker that was restored and started within
// seconds is there for the second attempt, with versions that are soon above those that the probe knew. The watches break with the
// server, though, and who reconnects them is refused: one attempt that no server answers is a loss as good as a probe's. A watch that
// lasts is proof that the server did: whoever has one lists nothing anew, or a broker with too much to do, which answers probes late,
// would be asked for everything by everybody.
func (b *Broker) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { b.probe(ctx) })
	for _, source := range b.sources {
		tasks.Go(func() { source.run(ctx) })
	}
	return nil
}

func (b *Broker) probe(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		b.probeOnce(ctx)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				waiting = false
			case <-b.asked:
				// Who is asked again soon answers with the next probe: else a member that asks all the time keeps all others writing.
				b.answering, waiting = true, time.Since(b.vouchedAt) < probeEvery
			}
		}
	}
}

func (b *Broker) probeOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// A list, for the version that it has: that of the broker's whole store, and never one from an API server's memory.
	var sets v1alpha1.ClusterSetList
	err := b.client.List(ctx, &sets)
	answered := err == nil || apierrors.IsNotFound(err)
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	before := b.connected.Swap(answered)
	if before && !answered {
		b.losses.Add(1)
	}
	if before != answered {
		b.Away(!answered)
		b.poke(Change{All: true})
		b.returned = time.Now()
	}
	if !answered {
		return
	}
	restored := false
	if revision, err := strconv.ParseUint(sets.ResourceVersion, 10, 64); err == nil {
		restored = revision < b.revision
		if restored || b.revision == 0 {
			b.Came(revision)
		}
		b.revision = revision
	}
	losses := b.losses.Load()
	say := word{awaits: b.Awaits()}
	if !restored && b.settled() {
		say.settled = b.revision
	}
	news := say.settled > 0 && (b.answering || b.said.Load() == 0)
	if restored || losses > b.handled || time.Now().After(b.renew) || news {
		another, err := b.lease.renew(ctx, time.Now(), say)
		restored = restored || another
		var refused apierrors.APIStatus
		if err == nil || errors.As(err, &refused) {
			b.renew, b.handled = time.Now().Add(v1alpha1.RenewEvery), losses
		}
		if err == nil && !another && say.settled > 0 {
			b.said.Store(say.settled)
			b.answering, b.vouchedAt = false, time.Now()
		} else {
			b.said.Store(0) // nobody knows what it says
		}
	}
	for _, source := range b.sources {
		// A list that is under way comes from a server that has been there since it was asked for. To begin anew while it takes longer than
		// it is from one probe to the next would be to have none, ever.
		if restored || source.watched.Load() > source.listed.Load() && !source.due.Load() {
			source.relist()
		}
	}
}

// settled says whether what the broker has of this member is what it should have: all is listed since the broker was last away or
// restored, and what followed from it is written.
func (b *Broker) settled() bool {
	by := b.returned
	for _, source := range b.sources {
		if source.due.Load() || source.watched.Load() > source.listed.Load() {
			return false
		}
		by = later(by, *source.at.Load())
	}
	return b.Settled != nil && b.Settled(by)
}

// Connected says whether the broker answered the last probe.
func (b *Broker) Connected() bool { return b.connected.Load() }

// source is one kind on the broker: where a reflector lists and watches it, and where it puts what it hears.
//
// Records are the reflector's own store. An informer would keep every object a second time, and forget an absent one before
// it tells anybody.
type source struct {
	*Broker
	name   string
	object client.Object
	list   func() client.ObjectList
	of     string // the name of the objects, "" for any

	again chan struct{} // asks for a fresh list
	// How often the broker had been away when the last list came, and when a watch last began where an earlier one ended.
	listed, watched atomic.Int64
	due             atomic.Bool               // a fresh list is asked for, or under way
	at              atomic.Pointer[time.Time] // when all had been told of the last list
}

func newSources(b *Broker) []*source {
	kind := func(name string, object client.Object, list func() client.ObjectList, of string) *source {
		s := &source{Broker: b, name: name, object: object, list: list, of: of, again: make(chan struct{}, 1)}
		s.due.Store(true)
		return s
	}
	return []*source{
		kind("clustersets", &v1alpha1.ClusterSet{}, func() client.ObjectList { return &v1alpha1.ClusterSetList{} }, ""),
		kind("exportedservices", &v1alpha1.ExportedService{}, func() client.ObjectList { return &v1alpha1.ExportedServiceList{} }, ""),
		kind("exportedendpoints", &v1alpha1.ExportedEndpoints{}, func() client.ObjectList { return &v1alpha1.ExportedEndpointsList{} }, ""),
		kind("endpoints", &v1alpha1.Endpoint{}, func() client.ObjectList { return &v1alpha1.EndpointList{} }, ""),
		// By name, which is all that a member may read of Leases: there are others on a broker.
		kind("leases", &coordinationv1.Lease{}, func() client.ObjectList { return &coordinationv1.LeaseList{} }, v1alpha1.LeaseName),
	}
}

// run lists and watches until the context ends.
func (s *source) run(ctx context.Context) {
	for ctx.Err() == nil {
		reflecting, stop := context.WithCancel(ctx)
		go func() {
			defer stop()
			select {
			case <-s.again:
			case <-reflecting.Done():
			}
		}()
		toolscache.NewReflectorWithOptions(s, s.object, s, toolscache.ReflectorOptions{
			Name: "broker", TypeDescription: s.name, Backoff: &backoff,
		}).RunWithContext(reflecting)
		stop()
		s.due.Store(true) // a list that came in the last moment is no fresh one
	}
}

// relist asks for a fresh list.
func (s *source) relist() {
	s.due.Store(true)
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// List lists what is there now. A reflector begins by asking for whatever an API server has in its cache, which may be from
// before what we saw already.
func (s *source) List(options metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), options)
}

// ListWithContext is List within a context.
func (s *source) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	if options.ResourceVersion == "0" {
		options.ResourceVersion = ""
	}
	s.due.Store(true)
	list := s.list()
	if err := s.client.List(ctx, list, s.options(options)); err != nil {
		return nil, s.failed(ctx, err)
	}
	return list, nil
}

// Watch watches.
func (s *source) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), options)
}

// WatchWithContext is Watch within a context.
func (s *source) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	streamed := options.SendInitialEvents != nil && *options.SendInitialEvents // a list, in the form of a watch that goes on
	if streamed {
		s.due.Store(true)
	}
	w, err := s.client.Watch(ctx, s.list(), s.options(options))
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	if !streamed {
		s.watched.Store(s.losses.Load())
	}
	return w, nil
}

// failed counts an error that is no answer of an API server, as a loss of the broker.
func (s *source) failed(ctx context.Context, err error) error {
	var answered apierrors.APIStatus
	if ctx.Err() == nil && !errors.As(err, &answered) {
		s.losses.Add(1)
	}
	return err
}

func (s *source) options(raw metav1.ListOptions) *client.ListOptions {
	options := &client.ListOptions{Raw: &raw}
	if s.of != "" {
		options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, s.of)
	}
	return options
}

// Add takes an object that a watch tells of.
func (s *source) Add(object any) error { return s.take(object, s.Records.Put) }

// Update takes an object that a watch tells of.
func (s *source) Update(object any) error { return s.take(object, s.Records.Put) }

// Delete takes an object that a watch saw deleted.
func (s *source) Delete(object any) error { return s.take(object, s.Records.Delete) }

func (s *source) take(object any, put func(client.Object)) error {
	record, ok := object.(client.Object)
	if !ok {
		return fmt.Errorf("%T in a watch of %s", object, s.name)
	}
	record.SetManagedFields(nil)
	put(record)
	if lease, ok := record.(*coordinationv1.Lease); ok && lease.Namespace != s.own && awaitedBy(lease) > s.said.Load() {
		select {
		case s.asked <- struct{}{}:
		default: // a question waits to be answered already
		}
	}
	return nil
}

// Replace takes a whole list.
func (s *source) Replace(list []any, _ string) error {
	objects := make([]client.Object, 0, len(list))
	for _, object := range list {
		if err := s.take(object, func(record client.Object) { objects = append(objects, record) }); err != nil {
			return err
		}
	}
	s.listed.Store(s.losses.Load()) // the server was there until now, however long it took
	s.Records.Replace(s.object, objects)
	now := time.Now()
	s.at.Store(&now)
	s.due.Store(false)
	return nil
}

// Resync does nothing: there is no period to it.
func (s *source) Resync() error { return nil }
