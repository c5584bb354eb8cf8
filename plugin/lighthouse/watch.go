package lighthouse

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// repeatLog is how often a failure that lasts is logged.
const repeatLog = 30 * time.Second

// pace is how soon failed requests are tried again.
type pace struct {
	afterError   time.Duration
	afterRefusal time.Duration // no such resource, or no right to it: a person has to do something first
}

// source reads one API server into one world, for all stanzas that name it.
type source struct {
	world    *world
	config   *rest.Config
	pace     pace
	property bool // whether somebody needs the ClusterProperty
	// snapshot keeps what was read, nil where no stanza wants that.
	snapshot *snapshotFile
	// selectors of the stanzas; the place of one is its bit in a selection.
	selectors []labels.Selector

	mu      sync.Mutex
	started bool
	stopped bool
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newSource(config *rest.Config) (*source, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "coredns-lighthouse"
	config.QPS = -1 // five watches and their retries need no limiter
	if _, err := rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err) // such as certificates that cannot be read
	}
	return &source{
		config: config,
		pace:   pace{afterError: time.Second, afterRefusal: 3 * time.Second},
		world:  newWorld(resourceImports, resourceSlices, resourceNamespaces, resourceGateways),
	}, nil
}

// followProperty has the source watch the ClusterProperty. It is to be called before start.
func (s *source) followProperty() {
	if !s.property {
		s.property = true
		s.world.setSynced(resourceProperties, false)
	}
}

// keepSnapshot has the source keep its objects in a file. It is to be called before start.
func (s *source) keepSnapshot(path string) error {
	if s.snapshot != nil && s.snapshot.path != path {
		return fmt.Errorf("%s is kept for this API server already, by another stanza", s.snapshot.path)
	}
	if s.snapshot == nil {
		s.snapshot = &snapshotFile{path: path, world: s.world, stop: make(chan struct{}), done: make(chan struct{})}
	}
	return nil
}

// maxSelectors is the number of bits of a selection.
const maxSelectors = 64

// selector gives the bit of a label selector, the same for the same one. It is to be called before start.
func (s *source) selector(wanted labels.Selector) (selection, error) {
	at := slices.IndexFunc(s.selectors, func(known labels.Selector) bool { return known.String() == wanted.String() })
	if at < 0 {
		if at = len(s.selectors); at == maxSelectors {
			return 0, fmt.Errorf("more than %d different ones over one API server", maxSelectors)
		}
		s.selectors = append(s.selectors, wanted)
	}
	return 1 << at, nil
}

// slimImport slims an import down, and settles which stanzas select it.
func (s *source) slimImport(obj any) (*importObject, error) {
	o, err := slimImport(obj)
	if object, full := obj.(metav1.Object); err == nil && full && len(s.selectors) > 0 {
		if _, again := obj.(*importObject); !again {
			o.labels = object.GetLabels()
		}
		o.selected = s.selects(o.labels)
	}
	return o, err
}

// selects tells which of the selectors match.
func (s *source) selects(set map[string]string) (selected selection) {
	for i, selector := range s.selectors {
		if selector.Matches(labels.Set(set)) {
			selected |= 1 << i
		}
	}
	return selected
}

// start begins to watch; calls after the first do nothing.
func (s *source) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.stopped {
		return
	}
	s.started = true
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	s.cancel = cancel
	if s.snapshot != nil {
		s.snapshot.load(s.selects)
		go s.snapshot.run()
	}
	watches, err := s.watches()
	if err != nil {
		log.Errorf("cannot watch the API server: %v", err) // newSource has made such a client before
		return
	}
	for _, w := range watches {
		s.running.Go(func() { w.run(ctx) })
	}
}

// stop ends every watch, and returns when they have ended. What was read stays served.
func (s *source) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.stopped = true
	if s.cancel != nil {
		s.cancel()
	}
	s.running.Wait()
	if s.snapshot != nil && s.started {
		s.snapshot.end()
	}
	s.world.close()
}

// waitSynced waits until everything has been read, and tells whether it has been in that time.
func (s *source) waitSynced(timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-s.world.firstSync:
		return true
	case <-timer.C:
		return s.world.current.Load().synced
	}
}

// watches makes one watch for each kind of object.
func (s *source) watches() ([]*resourceWatch, error) {
	httpClient, err := rest.HTTPClientFor(s.config)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		discoveryv1.AddToScheme, mcsv1beta1.Install, mcsv1alpha1.Install, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	typed := typedClient{config: s.config, httpClient: httpClient, codecs: serializer.NewCodecFactory(scheme)}
	betaImports, err := typed.listWatch(schema.GroupVersion(mcsv1beta1.GroupVersion), "serviceimports", &mcsv1beta1.ServiceImportList{}, nil)
	if err != nil {
		return nil, err
	}
	alphaImports, err := typed.listWatch(schema.GroupVersion(mcsv1alpha1.GroupVersion), "serviceimports", &mcsv1alpha1.ServiceImportList{}, nil)
	if err != nil {
		return nil, err
	}
	sliceWatch, err := typed.listWatch(discoveryv1.SchemeGroupVersion, "endpointslices", &discoveryv1.EndpointSliceList{},
		func(o *metav1.ListOptions) { o.LabelSelector = v1alpha1.LabelSourceCluster })
	if err != nil {
		return nil, err
	}
	gateways, err := typed.listWatch(v1alpha1.GroupVersion, "gateways", &v1alpha1.GatewayList{}, nil)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfigAndClient(s.config, httpClient)
	if err != nil {
		return nil, err
	}
	namespaces := metadataClient.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})

	w := s.world
	watches := []*resourceWatch{
		{
			// v1beta1 first, v1alpha1 where the cluster lacks it.
			versions: []*cache.ListWatch{betaImports, alphaImports},
			atOnce:   true,
			store:    newSink(w, resourceImports, s.slimImport, w.setImport, w.deleteImport, w.replaceImports),
		},
		{
			versions: []*cache.ListWatch{sliceWatch},
			example:  &discoveryv1.EndpointSlice{},
			store:    newSink(w, resourceSlices, slimSlice, w.setSlice, w.deleteSlice, w.replaceSlices),
		},
		{
			versions: []*cache.ListWatch{listWatch(namespaces.List, namespaces.Watch, nil)},
			example:  &metav1.PartialObjectMetadata{},
			store: newSink(w, resourceNamespaces, slimNamespace,
				func(o *namespaceObject) { w.setNamespace(o.name, true) },
				func(key objectKey) { w.setNamespace(key.name, false) },
				w.replaceNamespaces),
		},
		{
			versions: []*cache.ListWatch{gateways},
			example:  &v1alpha1.Gateway{},
			store:    newSink(w, resourceGateways, slimGateway, w.setGateway, w.deleteGateway, w.replaceGateways),
		},
	}
	if s.property {
		dynamicClient, err := dynamic.NewForConfigAndClient(s.config, httpClient)
		if err != nil {
			return nil, err
		}
		properties := dynamicClient.Resource(schema.GroupVersionResource{Group: "about.k8s.io", Version: "v1alpha1", Resource: "clusterproperties"})
		watches = append(watches, &resourceWatch{
			versions: []*cache.ListWatch{listWatch(properties.List, properties.Watch, func(o *metav1.ListOptions) {
				o.FieldSelector = "metadata.name=" + v1alpha1.ClusterPropertyID
			})},
			store: newSink(w, resourceProperties, slimProperty,
				func(o *propertyObject) { w.setLocalID(o.value) },
				func(objectKey) { w.setLocalID("") },
				func(list []*propertyObject) {
					id := ""
					for _, o := range list {
						id = o.value
					}
					w.setLocalID(id)
				}),
		})
	}
	for _, rw := range watches {
		rw.world, rw.pace = w, s.pace
		rw.resource = rw.store.kind()
	}
	return watches, nil
}

// typedClient makes list-watches that decode into Go types, from protobuf where the API server has it.
type typedClient struct {
	config     *rest.Config
	httpClient *http.Client
	codecs     serializer.CodecFactory
}

func (t *typedClient) listWatch(gv schema.GroupVersion, plural string, list runtime.Object, options func(*metav1.ListOptions)) (*cache.ListWatch, error) {
	config := rest.CopyConfig(t.config)
	config.GroupVersion = &gv
	config.APIPath = "/apis"
	config.NegotiatedSerializer = t.codecs.WithoutConversion()
	if gv == discoveryv1.SchemeGroupVersion {
		config.ContentType = runtime.ContentTypeProtobuf
		config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	client, err := rest.RESTClientForConfigAndClient(config, t.httpClient)
	if err != nil {
		return nil, err
	}
	get := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		into := list.DeepCopyObject()
		err := client.Get().Resource(plural).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(into)
		return into, err
	}
	follow := func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		o.Watch = true
		return client.Get().Resource(plural).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
	}
	return listWatch(get, follow, options), nil
}

// listWatch joins the two calls of a client; options narrows what they ask for.
func listWatch[L runtime.Object](
	list func(context.Context, metav1.ListOptions) (L, error),
	follow func(context.Context, metav1.ListOptions) (watch.Interface, error),
	options func(*metav1.ListOptions),
) *cache.ListWatch {
	if options == nil {
		options = func(*metav1.ListOptions) {}
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			options(&o)
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			options(&o)
			return follow(ctx, o)
		},
	}
}

// resourceWatch keeps the world's view of one kind of object up to date, for as long as its context lasts.
type resourceWatch struct {
	resource resource
	world    *world
	versions []*cache.ListWatch // tried in turn where the API server does not know one
	example  runtime.Object
	// atOnce has lists come as one reply, not as a stream of events, one for each object. As JSON, events cost both sides twice as
	// much, and a start waits for them; in protobuf it makes no difference to that, and the list never stands in memory whole.
	atOnce bool
	store  store
	pace   pace

	mu     sync.Mutex
	logged time.Time           // when the failure that lasts was logged; zero where there is none
	reason metav1.StatusReason // of that failure
}

// run lists and watches until ctx ends. What goes wrong is logged and tried again; what was read stays served meanwhile.
//
// A watch that has to begin anew begins with the first version: when a CRD changes, every watch of its objects ends so.
func (rw *resourceWatch) run(ctx context.Context) {
	reflectors := make([]*cache.Reflector, len(rw.versions))
	for i, version := range rw.versions {
		reflectors[i] = rw.reflector(version)
	}
	version := 0
	for ctx.Err() == nil {
		err := reflectors[version].ListAndWatchWithContext(ctx)
		pause := rw.pace.afterError
		switch {
		case err == nil:
			version = 0
		case apierrors.IsNotFound(err):
			if version++; version < len(rw.versions) {
				pause = 0
				break
			}
			version = 0
			rw.world.setRefused(rw.resource, true)
			pause = rw.pace.afterRefusal
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			rw.world.setRefused(rw.resource, false)
			pause = rw.pace.afterRefusal
		}
		if pause > 0 && err != nil {
			rw.failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait.Jitter(pause, 0.2)):
		}
	}
}

func (rw *resourceWatch) reflector(lw *cache.ListWatch) *cache.Reflector {
	// The reflector retries some errors by itself, such as a refused connection; they are to be seen in the log as well.
	seen := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.ResourceVersion == "0" {
				// That is any state, such as one of before a service came that must not be NXDOMAIN now. Asked for no state in
				// particular, the API server gives the one of now, as it does where it streams; newer ones from memory if it is
				// asked for in one piece.
				o.ResourceVersion, o.Limit = "", 0
			}
			list, err := lw.ListWithContextFunc(ctx, o)
			rw.tried(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchFuncWithContext(ctx, o)
			rw.tried(ctx, err)
			return w, err
		},
	}
	var lister cache.ListerWatcher = seen
	if rw.atOnce {
		lister = atOnce{seen}
	}
	logger := logr.Discard()
	return cache.NewReflectorWithOptions(lister, rw.example, rw.store, cache.ReflectorOptions{
		Name:            "lighthouse/" + string(rw.resource),
		TypeDescription: string(rw.resource),
		Logger:          &logger,
		Backoff:         &wait.Backoff{Duration: rw.pace.afterError / 5, Factor: 2, Jitter: 0.5, Steps: 5, Cap: 2 * rw.pace.afterError},
	})
}

// atOnce is a list-watch whose lists do not stream.
type atOnce struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what reflectors ask for that; client-go has made it for clients that cannot.
func (atOnce) IsWatchListSemanticsUnSupported() bool { return true }

// tried takes the outcome of one request.
func (rw *resourceWatch) tried(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil || errors.Is(err, context.Canceled):
	case err == nil:
		rw.recovered()
	case apierrors.IsNotFound(err) || apierrors.IsBadRequest(err) || apierrors.IsInvalid(err):
		// run knows whether another version is left to try, and older API servers refuse to stream lists.
	default:
		rw.failed(err)
	}
}

// failed logs a failure: the first at once, then now and again for as long as it lasts.
func (rw *resourceWatch) failed(err error) {
	watchErrors.WithLabelValues(string(rw.resource)).Inc()
	rw.mu.Lock()
	reason := apierrors.ReasonForError(err)
	first := rw.logged.IsZero() || reason != rw.reason
	due := first || time.Since(rw.logged) >= repeatLog
	if due {
		rw.logged, rw.reason = time.Now(), reason
	}
	rw.mu.Unlock()
	optional := rw.resource == resourceGateways || rw.resource == resourceProperties
	missing := apierrors.IsNotFound(err)
	if !due || optional && missing && !first {
		return
	}

	effect := "serving what was read before"
	if !rw.world.current.Load().synced {
		effect = "SERVFAIL below svc until it can be read"
	}
	switch {
	case missing && rw.resource == resourceGateways:
		log.Infof("%s: no such resource in this cluster; every cluster counts as reachable", rw.resource)
	case missing && optional:
		log.Infof("%s: no such resource in this cluster; running without a local cluster", rw.resource)
	case missing:
		log.Errorf("%s: no such resource in this cluster, is its CRD installed? %s", rw.resource, effect)
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		log.Errorf("%s: no right to list and watch it, is the ClusterRole bound? %s: %v", rw.resource, effect, err)
	default:
		log.Errorf("%s: %s: %v", rw.resource, effect, err)
	}
}

func (rw *resourceWatch) recovered() {
	rw.mu.Lock()
	was := !rw.logged.IsZero()
	rw.logged = time.Time{}
	rw.mu.Unlock()
	if was {
		log.Infof("%s: can be read again", rw.resource)
	}
}

// store is where a resourceWatch puts what it reads.
type store interface {
	cache.TransformingStore
	kind() resource
}

// sink takes what a reflector reads, slims it and hands it to the world.
type sink[T metav1.Object] struct {
	world   *world
	of      resource
	slim    func(any) (T, error)
	set     func(T)
	remove  func(objectKey)
	replace func([]T)
}

func newSink[T metav1.Object](w *world, of resource, slim func(any) (T, error), set func(T), remove func(objectKey), replace func([]T)) *sink[T] {
	return &sink[T]{world: w, of: of, slim: slim, set: set, remove: remove, replace: replace}
}

func (s *sink[T]) kind() resource { return s.of }

// Add implements cache.ReflectorStore.
func (s *sink[T]) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *sink[T]) Update(obj any) error {
	o, err := s.slim(obj)
	if err != nil {
		return err
	}
	s.set(o)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *sink[T]) Delete(obj any) error {
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("%s: deleted %T", s.of, obj)
	}
	s.remove(objectKey{o.GetNamespace(), o.GetName()})
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *sink[T]) Replace(list []any, _ string) error {
	slimmed := make([]T, 0, len(list))
	for _, obj := range list {
		o, err := s.slim(obj)
		if err != nil {
			return err
		}
		slimmed = append(slimmed, o)
	}
	s.replace(slimmed)
	s.world.setSynced(s.of, true)
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *sink[T]) Resync() error { return nil }

// Transformer implements cache.TransformingStore: lists are slimmed while they stream in.
func (s *sink[T]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.slim(obj) }
}

// The slimming functions take an object as the API server sent it, or one that is slim already.

func slimImport(obj any) (*importObject, error) {
	switch o := obj.(type) {
	case *importObject:
		return o, nil
	case *mcsv1beta1.ServiceImport:
		return newImportObject(o), nil
	case *mcsv1alpha1.ServiceImport:
		return newImportObject(fromAlpha(o)), nil
	}
	return nil, fmt.Errorf("%s: got %T", resourceImports, obj)
}

func slimSlice(obj any) (*sliceObject, error) {
	switch o := obj.(type) {
	case *sliceObject:
		return o, nil
	case *discoveryv1.EndpointSlice:
		return newSliceObject(o), nil
	}
	return nil, fmt.Errorf("%s: got %T", resourceSlices, obj)
}

func slimNamespace(obj any) (*namespaceObject, error) {
	switch o := obj.(type) {
	case *namespaceObject:
		return o, nil
	case *metav1.PartialObjectMetadata:
		return &namespaceObject{slimOf(o)}, nil
	}
	return nil, fmt.Errorf("%s: got %T", resourceNamespaces, obj)
}

func slimGateway(obj any) (*gatewayObject, error) {
	switch o := obj.(type) {
	case *gatewayObject:
		return o, nil
	case *v1alpha1.Gateway:
		return newGatewayObject(o), nil
	}
	return nil, fmt.Errorf("%s: got %T", resourceGateways, obj)
}

func slimProperty(obj any) (*propertyObject, error) {
	switch o := obj.(type) {
	case *propertyObject:
		return o, nil
	case *unstructured.Unstructured:
		value, _, err := unstructured.NestedString(o.Object, "spec", "value")
		if err != nil || !isClusterID(value) {
			value = "" // not an ID that DNS could do anything with
		}
		return &propertyObject{slimOf(o), value}, nil
	}
	return nil, fmt.Errorf("%s: got %T", resourceProperties, obj)
}
