package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
)

// applyLocal makes the agent's own cluster as the plan has it. What makes an answer comes before what announces it, and goes
// after: a derived Service and its slices are there before the ServiceImport that names them, and leave after it.
func (a *Agent) applyLocal(ctx context.Context, of scope, s *Snapshot, p *Plan) (again time.Duration, err error) {
	w := a.local.round()
	services := map[client.ObjectKey]*corev1.Service{}
	for key, service := range s.Services {
		if _, derived := derivedFor(service); derived {
			services[key] = service
		}
	}
	ownSlices := map[client.ObjectKey]*discoveryv1.EndpointSlice{}
	for _, of := range s.OwnSlices {
		for _, slice := range of {
			ownSlices[client.ObjectKeyFromObject(slice)] = slice
		}
	}
	mirrors := map[client.ObjectKey]*v1alpha1.Endpoint{}
	for _, e := range s.Endpoints {
		if mirrored(s.ClusterID, e) {
			mirrors[client.ObjectKeyFromObject(e)] = e
		}
	}
	imports := map[client.ObjectKey]*mcsv1beta1.ServiceImport{}
	for key, i := range s.Imports {
		if ours(i) {
			imports[key] = i
		}
	}

	exports := map[client.ObjectKey]*mcsv1beta1.ServiceExport{}
	for key, e := range s.Exports {
		if madeByUs(e) {
			exports[key] = e
		}
	}

	put(ctx, w, exports, p.GlobalExports, adoptExport)
	prune(ctx, w, exports, p.GlobalExports)
	put(ctx, w, mirrors, p.Mirrors, adoptEndpoint)
	put(ctx, w, services, p.Services, adoptService)
	put(ctx, w, ownSlices, p.Slices, adoptSlice)
	for i, current := range put(ctx, w, s.Imports, p.Imports, adoptImport) {
		if current != nil {
			a.putImportStatus(ctx, w, current, p.Imports[i])
		}
	}
	prune(ctx, w, imports, p.Imports)
	prune(ctx, w, ownSlices, p.Slices)
	prune(ctx, w, services, p.Services)
	prune(ctx, w, mirrors, p.Mirrors)
	for _, status := range p.Exports {
		a.putExportStatus(ctx, w, s.Exports[status.Key], status)
	}
	a.warn(of, s, p.Warnings)
	return w.end()
}

// applyBroker makes the member's namespace on the broker as the plan has it. Backends come before their service. It returns what
// the broker refused too, see Snapshot.Refused.
func (a *Agent) applyBroker(ctx context.Context, s *Snapshot, p *Plan) (again time.Duration, refused map[string]string, err error) {
	if !p.Publish {
		return 0, s.Refused, nil
	}
	w := a.broker.round()
	services := map[client.ObjectKey]*v1alpha1.ExportedService{}
	for _, record := range s.Broker.Services {
		if record.Namespace == s.BrokerNamespace {
			services[client.ObjectKeyFromObject(record)] = record
		}
	}
	endpoints := map[client.ObjectKey]*v1alpha1.ExportedEndpoints{}
	for _, record := range s.Broker.Endpoints {
		if record.Namespace == s.BrokerNamespace {
			endpoints[client.ObjectKeyFromObject(record)] = record
		}
	}
	gateways := map[client.ObjectKey]*v1alpha1.Endpoint{}
	for _, record := range s.Broker.Gateways {
		if record.Namespace == s.BrokerNamespace {
			gateways[client.ObjectKeyFromObject(record)] = record
		}
	}
	for _, tombstone := range s.Broker.Withdrawn {
		switch record := tombstone.(type) {
		case *v1alpha1.ExportedService:
			services[client.ObjectKeyFromObject(record)] = record
		case *v1alpha1.ExportedEndpoints:
			endpoints[client.ObjectKeyFromObject(record)] = record
		}
	}
	put(ctx, w, gateways, p.PublishedEndpoints, adoptEndpoint)
	put(ctx, w, endpoints, p.ExportedEndpoints, adoptExportedEndpoints)
	put(ctx, w, services, p.ExportedServices, adoptExportedService)
	withdraw(ctx, w, services, p.ExportedServices, func(record *v1alpha1.ExportedService) { record.Spec.Withdrawn = true })
	withdraw(ctx, w, endpoints, p.ExportedEndpoints, func(record *v1alpha1.ExportedEndpoints) {
		record.Spec.Backends, record.Spec.Withdrawn = nil, true
	})
	prune(ctx, w, gateways, p.PublishedEndpoints)
	again, err = w.end()
	return again, w.refused, err
}

// The adopt functions copy what we own of an object; all else, what the API server fills in above all, stays.

func adoptService(have, want *corev1.Service) {
	have.Labels = want.Labels
	have.Spec.Ports = want.Spec.Ports
	have.Spec.SessionAffinity, have.Spec.SessionAffinityConfig = want.Spec.SessionAffinity, want.Spec.SessionAffinityConfig
	have.Spec.InternalTrafficPolicy, have.Spec.TrafficDistribution = want.Spec.InternalTrafficPolicy, want.Spec.TrafficDistribution
	have.Spec.Selector = want.Spec.Selector
	have.Spec.IPFamilyPolicy = want.Spec.IPFamilyPolicy
	// No families wanted: whatever the API server gave. One: the second address goes, if there is one; the first is for life.
	if n := len(want.Spec.IPFamilies); n > 0 && len(have.Spec.IPFamilies) > n {
		have.Spec.IPFamilies, have.Spec.ClusterIPs = have.Spec.IPFamilies[:n], have.Spec.ClusterIPs[:n]
	}
}

func adoptSlice(have, want *discoveryv1.EndpointSlice) {
	endpoints := !equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) || !equality.Semantic.DeepEqual(have.Ports, want.Ports)
	other := !maps.Equal(have.Labels, want.Labels) || !maps.Equal(timeless(have.Annotations), timeless(want.Annotations))
	have.Annotations = timed(have.Annotations, want.Annotations, endpoints, other)
	have.Labels = want.Labels
	have.Endpoints, have.Ports = want.Endpoints, want.Ports
}

// timed are the annotations wanted, with the time at which endpoints last changed as it belongs to this write. It comes along
// when the endpoints do. It goes when the write has another reason, such as that the slice now serves: who measures by it
// would count from a change long ago; Kubernetes' own controller does the same. It is no reason for a write by itself.
func timed(have, want map[string]string, endpoints, other bool) map[string]string {
	const key = corev1.EndpointsLastChangeTriggerTime
	if endpoints {
		return want
	}
	all := timeless(want)
	if at, ok := have[key]; ok && !other {
		all = maps.Clone(all)
		set(&all, key, at)
	}
	return all
}

// timeless are annotations without the time at which endpoints last changed.
func timeless(annotations map[string]string) map[string]string {
	const key = corev1.EndpointsLastChangeTriggerTime
	if _, ok := annotations[key]; ok {
		annotations = maps.Clone(annotations)
		delete(annotations, key)
	}
	return annotations
}

func adoptImport(have, want *mcsv1beta1.ServiceImport) {
	have.Labels, have.Annotations, have.Spec = want.Labels, want.Annotations, want.Spec
}

func adoptEndpoint(have, want *v1alpha1.Endpoint) { have.Labels, have.Spec = want.Labels, want.Spec }

func adoptExportedService(have, want *v1alpha1.ExportedService) {
	have.Labels, have.Spec = want.Labels, want.Spec
}

func adoptExportedEndpoints(have, want *v1alpha1.ExportedEndpoints) {
	endpoints := !equality.Semantic.DeepEqual(have.Spec, want.Spec)
	annotations := maps.Clone(timeless(have.Annotations))
	if at := changedAt(want); at != "" {
		set(&annotations, corev1.EndpointsLastChangeTriggerTime, at)
	}
	have.Annotations = timed(have.Annotations, annotations, endpoints, !maps.Equal(have.Labels, want.Labels))
	have.Labels, have.Spec = want.Labels, want.Spec
}

// target is one API server as apply writes to it. It remembers for a while what it wrote, since a watch tells of it only
// later: without that, a round in between would write everything a second time, and fail on every object.
type target struct {
	writer client.Client
	now    func() time.Time
	count  func(verb string, object client.Object, failed bool)
	// stamp marks an object that is about to be written; have is what it takes the place of, nil for none.
	stamp func(object, have client.Object)
	// fit takes out of an object what the API server has no fields for; nil: it has all.
	fit func(client.Object)
	// owns says whether an object that is in the way of one that is to be made is ours after all.
	owns func(client.Object) bool

	mu    sync.Mutex // no two rounds write the same object, but the map is one
	wrote map[string]written
	swept time.Time
}

// written is a write that the watch may not have told of yet.
type written struct {
	before []string      // resource versions that are older than it, "" for no object at all
	after  client.Object // nil for a deletion
	at     time.Time
}

const (
	// writtenFor is how long a watch may lag behind a write. After that the watch is right, whatever it says.
	writtenFor = 2 * time.Second
	// writeTimeout bounds one write, so that an API server that swallows packets cannot stop the loop for long.
	writeTimeout = 10 * time.Second
)

// round is one application of a plan.
type round struct {
	*target
	problems []error
	refused  map[string]string
	away     bool          // the API server did not answer: no use in asking it a thousand times more
	again    time.Duration // when there is something to do though nobody pokes, zero for never
}

func (t *target) trim(object client.Object) {
	if t.fit != nil {
		t.fit(object)
	}
}

func (t *target) round() *round {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.now(); now.Sub(t.swept) > writtenFor {
		t.swept = now
		for name, w := range t.wrote {
			if now.Sub(w.at) > writtenFor {
				delete(t.wrote, name)
			}
		}
	}
	return &round{target: t, refused: map[string]string{}}
}

// end is the end of a round: everything that went wrong in it, and when there should be another though nobody pokes.
func (r *round) end() (again time.Duration, err error) {
	return r.again, errors.Join(r.problems...)
}

// lookAgain asks for a round after a time, or earlier.
func (r *round) lookAgain(after time.Duration) {
	if r.again == 0 || after < r.again {
		r.again = after
	}
}

// last is our last write to an object, if it is not too old to be believed over the watch.
func (t *target) last(name string) (written, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.wrote[name]
	return w, ok && t.now().Sub(w.at) <= writtenFor
}

// unseen is our last write to an object, where the watch still has one from before it, else nil.
func (t *target) unseen(observed client.Object) client.Object {
	if w, ok := t.last(nameOf(observed)); ok && slices.Contains(w.before, observed.GetResourceVersion()) {
		return w.after
	}
	return nil
}

func (t *target) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.wrote, name)
}

// stampVersion gives a record its version. What it had before may be known to others though it is no longer there.
func stampVersion(now func() time.Time) func(object, have client.Object) {
	return func(object, have client.Object) {
		previous := ""
		if have != nil {
			previous = have.GetAnnotations()[v1alpha1.AnnotationVersion]
		}
		annotations := maps.Clone(object.GetAnnotations())
		set(&annotations, v1alpha1.AnnotationVersion, broker.NextVersion(previous, now()))
		object.SetAnnotations(annotations)
	}
}

// refusal is the key of an object in Snapshot.Refused.
func refusal(object client.Object) string { return kindOf(object) + " " + object.GetName() }

func kindOf(object client.Object) string {
	full := fmt.Sprintf("%T", object)
	return full[strings.LastIndex(full, ".")+1:]
}

func nameOf(object client.Object) string {
	return kindOf(object) + " " + client.ObjectKeyFromObject(object).String()
}

// updateStatus is the verb of a write of a status. There is nothing wrong where its object was deleted a moment ago; where only the
// status is not found, the CRD has none.
const updateStatus = "update status of"

func (r *round) gone(ctx context.Context, object client.Object) bool {
	return apierrors.IsNotFound(r.writer.Get(ctx, client.ObjectKeyFromObject(object), object.DeepCopyObject().(client.Object)))
}

// do makes one write and notes how it went. It reports whether it went well.
func (r *round) do(ctx context.Context, verb string, object client.Object, write func(context.Context) error) bool {
	if r.away || ctx.Err() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := write(ctx)
	r.count(verb, object, err != nil)
	if err == nil {
		return true
	}
	if apierrors.IsNotFound(err) && verb == updateStatus && r.gone(ctx, object) {
		r.lookAgain(writtenFor) // the watch is about to say so
		return false
	}
	var answered apierrors.APIStatus
	r.away = !errors.As(err, &answered)
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsRequestEntityTooLargeError(err) {
		r.refused[refusal(object)] = err.Error()
	}
	r.problems = append(r.problems, fmt.Errorf("%s %s: %w", verb, nameOf(object), err))
	return false
}

// current is an object as it is, our own last write to it included.
func current[T client.Object](r *round, observed T, exists bool, name string) (T, bool) {
	w, ok := r.last(name)
	if !ok {
		return observed, exists
	}
	version := ""
	if exists {
		version = observed.GetResourceVersion()
	}
	if !slices.Contains(w.before, version) {
		r.forget(name) // the watch has it, or something newer
		return observed, exists
	}
	// An object that is deleted right after it was written looks like one that the watch has not told of yet. Nothing else would
	// come to tell them apart.
	r.lookAgain(writtenFor + time.Millisecond)
	after, ok := w.after.(T)
	return after, ok
}

// put creates and updates, where there is a difference, and returns the objects as they are then, nil where that failed.
//
// An object may be there that the round did not find among its own: somebody took its labels off, or the watch is far behind. It
// is read from the API server, and made what it should be.
func put[T client.Object](ctx context.Context, r *round, observed map[client.ObjectKey]T, wanted []T, adopt func(have, want T)) []T {
	all := make([]T, len(wanted))
	for i, want := range wanted {
		name := nameOf(want)
		seen, exists := observed[client.ObjectKeyFromObject(want)]
		have, exists := current(r, seen, exists, name)
		if !exists {
			created := want.DeepCopyObject().(T)
			r.trim(created)
			r.stamp(created, nil)
			inTheWay := false
			ok := r.do(ctx, "create", created, func(ctx context.Context) error {
				err := create(ctx, r.writer, created)
				if apierrors.IsAlreadyExists(err) {
					have = want.DeepCopyObject().(T)
					if got := r.writer.Get(ctx, client.ObjectKeyFromObject(want), have); got == nil && r.owns(have) {
						inTheWay = true
						return nil
					}
				}
				return err
			})
			if ok && !inTheWay {
				r.note(name, "", created)
				all[i] = created
			}
			if !inTheWay {
				continue
			}
		}
		changed := have.DeepCopyObject().(T)
		adopt(changed, want)
		r.trim(changed)
		if equality.Semantic.DeepEqual(have, changed) {
			all[i] = have
			continue
		}
		changed = changed.DeepCopyObject().(T) // the answer is decoded into it, and it shares parts with the plan
		// Nobody else writes what is ours, so nobody needs to know who wrote which field, which an API server works out at each write, keeps,
		// and sends to every watcher. One empty entry has it forget.
		changed.SetManagedFields([]metav1.ManagedFieldsEntry{{}})
		r.stamp(changed, have)
		if r.do(ctx, "update", changed, func(ctx context.Context) error { return r.writer.Update(ctx, changed) }) {
			r.note(name, have.GetResourceVersion(), changed)
			all[i] = changed
		}
	}
	return all
}

// note remembers a write, made upon a version. The watch may not even have told of the write before it.
func (t *target) note(name, version string, after client.Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wrote[name] = written{append(t.wrote[name].before, version), after, t.now()}
}

// An API server tells of a Service's end a moment before its addresses are free again. It is asked so often for them, with so
// long between: clients know these addresses, and they are worth a second.
const (
	reclaims = 10
	reclaim  = 100 * time.Millisecond
)

// create asks for the addresses that a derived Service had before; where they are taken or no longer the cluster's, any will do.
func create(ctx context.Context, writer client.Client, object client.Object) error {
	service, ok := object.(*corev1.Service)
	err := writer.Create(ctx, object)
	if !ok || len(service.Spec.ClusterIPs) == 0 {
		return err
	}
	for range reclaims {
		if !apierrors.IsInvalid(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(reclaim):
		}
		err = writer.Create(ctx, object)
	}
	if apierrors.IsInvalid(err) {
		service.Spec.ClusterIP, service.Spec.ClusterIPs = "", nil
		err = writer.Create(ctx, object)
	}
	return err
}

// withdraw makes a tombstone of what is observed and not wanted, by bury, and deletes the tombstones that everybody has seen.
func withdraw[T client.Object](ctx context.Context, r *round, observed map[client.ObjectKey]T, wanted []T, bury func(T)) {
	var buried []T
	old := map[client.ObjectKey]T{}
	for key, record := range observed {
		if slices.ContainsFunc(wanted, func(want T) bool { return client.ObjectKeyFromObject(want) == key }) {
			continue
		}
		tombstone := record.DeepCopyObject().(T)
		bury(tombstone)
		lives := v1alpha1.TombstoneLives - r.now().Sub(broker.WrittenAt(record))
		dropped := false
		if last, ok := r.last(nameOf(record)); ok && !slices.Contains(last.before, record.GetResourceVersion()) {
			// The watch has what we wrote last. If that was a tombstone, the broker's CRDs are older than tombstones, and drop the mark.
			wrote, is := last.after.(T)
			dropped = is && withdrawn(wrote) && !withdrawn(record)
		}
		switch {
		case dropped:
			old[key] = record
		case !equality.Semantic.DeepEqual(tombstone, record):
			buried = append(buried, tombstone)
			r.lookAgain(v1alpha1.TombstoneLives + time.Second)
		case lives > 0:
			r.lookAgain(lives + time.Second)
		default:
			old[key] = record
		}
	}
	put(ctx, r, observed, buried, func(have, want T) { bury(have) })
	prune(ctx, r, old, nil)
}

func withdrawn(record client.Object) bool {
	switch record := record.(type) {
	case *v1alpha1.ExportedService:
		return record.Spec.Withdrawn
	case *v1alpha1.ExportedEndpoints:
		return record.Spec.Withdrawn
	}
	return false
}

// prune deletes what is observed and not wanted. It deletes the object that was looked at and no other of its name.
func prune[T client.Object](ctx context.Context, r *round, observed map[client.ObjectKey]T, wanted []T) {
	keep := make(map[client.ObjectKey]bool, len(wanted))
	for _, want := range wanted {
		keep[client.ObjectKeyFromObject(want)] = true
	}
	for key, object := range observed {
		name := nameOf(object)
		if _, exists := current(r, object, true, name); keep[key] || !exists {
			continue
		}
		uid := object.GetUID()
		ok := r.do(ctx, "delete", object, func(ctx context.Context) error {
			return client.IgnoreNotFound(r.writer.Delete(ctx, object.DeepCopyObject().(client.Object), client.Preconditions(metav1.Preconditions{UID: &uid})))
		})
		if ok {
			r.note(name, object.GetResourceVersion(), nil)
		}
	}
}
