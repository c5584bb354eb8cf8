package mcsapi

import (
	"context"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// notServed is what a request comes to while no version is served. It is an answer, as the API server's own would be: nobody
// should take the API server for gone.
func (k *kind) notServed(now served) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: k.name + "." + Group + " cannot be used: " + now.why,
	}}
}

// NewInformer makes an informer as caches want it. One for a kind of the API reads it in the version that is served, waits while
// none is, and keeps what it has meanwhile.
func (a *API) NewInformer(reads toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
	if k := a.kind(object); k != nil {
		reads = &reader{api: a, kind: k}
	}
	return toolscache.NewSharedIndexInformer(reads, object, resync, indexers)
}

// reader lists and watches a kind.
type reader struct {
	api  *API
	kind *kind

	mu     sync.Mutex
	listed int // serial of what was served when the kind was last listed
}

// open waits until a version is served.
func (r *reader) open(ctx context.Context) (client.WithWatch, served, <-chan struct{}, error) {
	for {
		now, next := r.kind.current()
		if now.version != "" {
			return r.api.clients[now.version], now, next, nil
		}
		select {
		case <-ctx.Done():
			return nil, now, nil, ctx.Err()
		case <-next:
		}
	}
}

func (r *reader) list() client.ObjectList {
	list, ok := r.kind.list.DeepCopyObject().(client.ObjectList)
	if !ok {
		panic("a list that is none")
	}
	return list
}

// List is ListWithContext without one.
func (r *reader) List(o metav1.ListOptions) (runtime.Object, error) {
	return r.ListWithContext(context.Background(), o)
}

// ListWithContext lists the kind as soon as it is served.
func (r *reader) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	c, now, _, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	list := r.list()
	if err := c.List(ctx, list, &client.ListOptions{Raw: &o}); err != nil {
		return nil, err
	}
	r.heard(now.serial)
	return list, nil
}

func (r *reader) heard(serial int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed = serial
}

// Watch is WatchWithContext without one.
func (r *reader) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return r.WatchWithContext(context.Background(), o)
}

// WatchWithContext watches the kind as soon as it is served, until what is served changes. Who asks for changes alone, after that, is
// told to list first: the objects may have other fields now, or be others, and no event says so.
func (r *reader) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	c, now, next, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	listed := r.listed
	r.mu.Unlock()
	whole := o.SendInitialEvents != nil && *o.SendInitialEvents
	if !whole && listed != now.serial {
		return nil, apierrors.NewResourceExpired(r.kind.name + "." + Group + " is served in another way now")
	}
	w, err := c.Watch(ctx, r.list(), &client.ListOptions{Raw: &o})
	if err != nil {
		return nil, err
	}
	if whole {
		r.heard(now.serial)
	}
	bound := &boundWatch{Interface: w, stopped: make(chan struct{})}
	go func() {
		select {
		case <-next:
			w.Stop()
		case <-bound.stopped:
		}
	}()
	return bound, nil
}

// boundWatch is a watch that somebody else may stop, too.
type boundWatch struct {
	watch.Interface
	once    sync.Once
	stopped chan struct{}
}

// Stop ends the watch.
func (w *boundWatch) Stop() {
	w.once.Do(func() { close(w.stopped) })
	w.Interface.Stop()
}

// Client is the client given, which speaks of the kinds of the API in the version that is served.
func (a *API) Client(other client.WithWatch) client.WithWatch {
	return &speaker{WithWatch: other, api: a}
}

type speaker struct {
	client.WithWatch
	api *API
}

func (s *speaker) to(object runtime.Object) (client.WithWatch, error) {
	k := s.api.kind(object)
	if k == nil {
		return s.WithWatch, nil
	}
	now, _ := k.current()
	if now.version == "" {
		return nil, k.notServed(now)
	}
	return s.api.clients[now.version], nil
}

// Get is the Reader's.
func (s *speaker) Get(ctx context.Context, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
	c, err := s.to(object)
	if err != nil {
		return err
	}
	return c.Get(ctx, key, object, options...)
}

// List is the Reader's.
func (s *speaker) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	c, err := s.to(list)
	if err != nil {
		return err
	}
	return c.List(ctx, list, options...)
}

// Watch is the client's.
func (s *speaker) Watch(ctx context.Context, list client.ObjectList, options ...client.ListOption) (watch.Interface, error) {
	c, err := s.to(list)
	if err != nil {
		return nil, err
	}
	return c.Watch(ctx, list, options...)
}

// Create is the Writer's.
func (s *speaker) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	c, err := s.to(object)
	if err != nil {
		return err
	}
	return c.Create(ctx, object, options...)
}

// Update is the Writer's.
func (s *speaker) Update(ctx context.Context, object client.Object, options ...client.UpdateOption) error {
	c, err := s.to(object)
	if err != nil {
		return err
	}
	return c.Update(ctx, object, options...)
}

// Patch is the Writer's.
func (s *speaker) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	c, err := s.to(object)
	if err != nil {
		return err
	}
	return c.Patch(ctx, object, patch, options...)
}

// Delete is the Writer's.
func (s *speaker) Delete(ctx context.Context, object client.Object, options ...client.DeleteOption) error {
	c, err := s.to(object)
	if err != nil {
		return err
	}
	return c.Delete(ctx, object, options...)
}

// DeleteAllOf is the Writer's.
func (s *speaker) DeleteAllOf(ctx context.Context, object client.Object, options ...client.DeleteAllOfOption) error {
	c, err := s.to(object)
	if err != nil {
		return err
	}
	return c.DeleteAllOf(ctx, object, options...)
}

// Status is the client's.
func (s *speaker) Status() client.SubResourceWriter {
	return &statusSpeaker{SubResourceWriter: s.WithWatch.Status(), speaker: s}
}

type statusSpeaker struct {
	client.SubResourceWriter
	speaker *speaker
}

// Update is the SubResourceWriter's.
func (s *statusSpeaker) Update(ctx context.Context, object client.Object, options ...client.SubResourceUpdateOption) error {
	c, err := s.speaker.to(object)
	if err != nil {
		return err
	}
	return c.Status().Update(ctx, object, options...)
}

// Patch is the SubResourceWriter's.
func (s *statusSpeaker) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
	c, err := s.speaker.to(object)
	if err != nil {
		return err
	}
	return c.Status().Patch(ctx, object, patch, options...)
}
