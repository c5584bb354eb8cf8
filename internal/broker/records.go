package broker

import (
	"cmp"
	"container/list"
	"maps"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// View is what the broker holds, as far as this process knows. Its objects are shared: nobody writes to them.
type View struct {
	// Synced says that every kind was listed once. Until then absence means nothing.
	Synced bool
	// ClusterSet is nil where there is none.
	ClusterSet *v1alpha1.ClusterSet
	// All lists are sorted by namespace and name.
	Services  []*v1alpha1.ExportedService
	Endpoints []*v1alpha1.ExportedEndpoints
	Gateways  []*v1alpha1.Endpoint
	// Withdrawn are the tombstones in this member's own namespace, ExportedServices and ExportedEndpoints. Those of others are
	// nowhere: what they withdrew is gone.
	Withdrawn []client.Object
	// Held is how many of the objects above the broker no longer has, or has only an older copy of.
	Held int
	// Expired are the members, by cluster ID and sorted, that have been silent for longer than ClusterSet.spec.expireAfter. Their
	// records are nowhere above.
	Expired []string
	// Awaited are members, by cluster ID and sorted, of which nobody knows yet whether what is above is their word: see Records.
	Awaited []string
}

// Change says what a watch of the broker told of. Its zero value tells of nothing.
type Change struct {
	// Service is the service, by its namespace and name in the clusters, of a record that changed; zero for none.
	Service types.NamespacedName
	// Theirs says that the record is in another member's namespace: nothing follows for what this one has on the broker.
	Theirs bool
	// Gateways says that an Endpoint of a gateway changed.
	Gateways bool
	// All says that anything may have changed: the roster, who is silent, the connection, whether all is listed.
	All bool
}

// Records keeps what the watches of a broker tell, and makes Views of it. What it holds changes by Put, Delete and Replace, and
// by time alone when something was held long enough; poke is told of each change, outside of any lock.
//
// Three things happen to a broker that its clients must not take for the word of a record's owner:
//
//   - A record is absent from a list, after a watch was lost. It may have been deleted meanwhile, or the broker may have been
//     restored from a backup that is older than the record. It is held for HoldFor, in which its owner, if it still exports
//     it, has written it again; while the broker is away nobody can, and that time does not count, nor does it while
//     its owner, if it has a Lease, does not renew it. One that somebody deletes while we watch is gone at once, and so is one that is withdrawn.
//   - A record is back in an older version, for the same reason. What was known of it stands, that it is gone included, until
//     the owner has written it again, or deleted it again. If nobody has within HoldFor, the older copy is all there is, and counts.
//   - A record in our own namespace does either. Nothing is held: its owner is here, sees what is there and writes what is right.
//
// The ClusterSet is a record too, of the administrator: the API server's count of its changes is its version.
//
// An agent that starts remembers nothing of that, and the broker may have been restored a moment ago. So it asks, by its own Lease, and every
// member answers by its Lease when what the broker has of it is right. Until then, and for HoldFor at most, the member is Awaited in Views,
// and its records may be a backup's. What proves the answer to be one is the version of the broker's store in it: no backup's Lease
// has one that is as high as that which the broker had when we came.
//
// Besides, a member may be silent for too long, by its Lease. Then its records are as if they were not, until it renews it.
type Records struct {
	own  string // our own namespace
	poke func(Change)

	mu       sync.Mutex
	listed   map[kind]bool
	records  map[id]*record
	services map[types.NamespacedName]map[id]*record // those that count, by service
	gateways map[id]*record
	gone     list.List // of *record: of which only the version is known, the oldest first
	waiting  []ending  // the earliest first
	timer    *time.Timer
	away     bool
	leases   leases
	expired  map[string]string // cluster IDs of members that are silent for too long, by namespace
	// For an agent that starts: the version of the broker's store when it came, 0 while that is not known; who has not answered since, by
	// namespace, nil until all is listed; and the end of its patience. Awaited is true for those whose answer has come a moment ago.
	came     uint64
	awaited  map[string]bool
	trust    bool // nobody is awaited
	patience *time.Timer
}

// Times and bounds of Records.
const (
	// HoldFor is how long a record is held that vanished, or fell back, while nobody watched: time for its owner's agent to
	// notice, to come back from a restart if need be, and to write it again.
	HoldFor = 2 * time.Minute
	// answerLasts is how long after an answer its member is awaited yet: Leases and records come by watches of their own, and what the answer
	// speaks of may be under way.
	answerLasts = time.Second
	// maxGone is how many records that are gone are remembered by their version. A version is needed while a backup may
	// bring its record back.
	maxGone = 100_000
)

// kind is a kind of record.
type kind int8

const (
	clusterSets kind = iota
	exportedServices
	exportedEndpoints
	endpoints
)

var kinds = []kind{clusterSets, exportedServices, exportedEndpoints, endpoints}

func kindOf(object client.Object) (kind, bool) {
	switch object.(type) {
	case *v1alpha1.ClusterSet:
		return clusterSets, true
	case *v1alpha1.ExportedService:
		return exportedServices, true
	case *v1alpha1.ExportedEndpoints:
		return exportedEndpoints, true
	case *v1alpha1.Endpoint:
		return endpoints, true
	}
	return 0, false
}

type id struct {
	kind kind
	name types.NamespacedName
}

// record is what is known of one name.
type record struct {
	id id
	// object is what counts; nil for nothing. Of what is withdrawn it is the tombstone, in our own namespace alone.
	object client.Object
	// version is the highest that was seen.
	version int64
	// older is what the broker has instead of object, nil unless its version is below that.
	older client.Object
	// since is when the broker ceased to have what counts; zero while it has.
	since time.Time
	// gone is the place among those that are gone, nil for one that is not.
	gone *list.Element
}

// ending is for the end of a hold. It is void if the record is no longer held since then.
type ending struct {
	*record
	since time.Time
}

// NewRecords makes Records that hold nothing, for a member that writes in the namespace own of the broker.
func NewRecords(own string, poke func(Change)) *Records {
	return &Records{
		own: own, poke: poke, listed: map[kind]bool{},
		records: map[id]*record{}, services: map[types.NamespacedName]map[id]*record{}, gateways: map[id]*record{},
		leases: leases{of: map[string]*lease{}},
	}
}

// Put takes an object that was added or changed.
func (r *Records) Put(object client.Object) {
	if l, ok := object.(*coordinationv1.Lease); ok {
		r.lease(func(now time.Time) { r.leases.event(l.Namespace, renewedBy(l), now) })
		return
	}
	which, ok := idOf(object)
	if !ok {
		return
	}
	r.change(func(tell func(Change)) { r.put(which, object, tell) })
}

// Delete takes an object that somebody deleted, as the watch saw.
func (r *Records) Delete(object client.Object) {
	if l, ok := object.(*coordinationv1.Lease); ok {
		r.lease(func(now time.Time) { r.leases.deleted(l.Namespace, now) })
		return
	}
	which, ok := idOf(object)
	if !ok {
		return
	}
	r.change(func(tell func(Change)) {
		if known := r.records[which]; known != nil {
			r.settle(known, nil, tell)
		}
	})
}

// Replace takes a list of all objects of the kind that of is an example of.
func (r *Records) Replace(of client.Object, objects []client.Object) {
	if _, ok := of.(*coordinationv1.Lease); ok {
		all := map[string]renewed{}
		for _, object := range objects {
			if l, ok := object.(*coordinationv1.Lease); ok {
				all[l.Namespace] = renewedBy(l)
			}
		}
		r.lease(func(now time.Time) { r.leases.list(all, now) })
		return
	}
	listed, ok := kindOf(of)
	if !ok {
		return
	}
	r.change(func(tell func(Change)) {
		there := make(map[id]bool, len(objects))
		for _, object := range objects {
			if which, ok := idOf(object); ok {
				there[which] = true
				r.put(which, object, tell)
			}
		}
		for which, known := range r.records {
			if which.kind == listed && !there[which] {
				r.missed(known, tell)
			}
		}
		r.listed[listed] = true
	})
}

// change makes a change under the lock and tells of it after.
func (r *Records) change(do func(tell func(Change))) {
	var told []Change
	r.mu.Lock()
	before := len(r.listed)
	do(func(c Change) { told = append(told, c) })
	if len(r.listed) > before {
		if len(r.listed) == len(kinds) {
			r.await()
		}
		told = []Change{{All: true}}
	}
	r.mu.Unlock()
	for _, c := range told {
		r.poke(c)
	}
}

// lease makes a change of what is known of Leases, and judges by it.
func (r *Records) lease(do func(now time.Time)) {
	r.change(func(tell func(Change)) {
		do(time.Now())
		r.judge(tell)
		r.hear()
	})
}

// Came says at which version the broker's store was when it first answered, or when it first did after it was restored.
func (r *Records) Came(version uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came = version
	r.hear()
}

// Awaits is the version since which the word of any member is awaited, 0 where nobody's is.
func (r *Records) Awaits() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trust || r.awaited != nil && len(r.awaited) == 0 {
		return 0
	}
	return r.came
}

// Trust takes what the broker has for its owners' word, from now on.
func (r *Records) Trust() {
	r.change(func(tell func(Change)) {
		r.trust = true
		r.relent(tell)
	})
}

// relent waits for nobody any longer.
func (r *Records) relent(tell func(Change)) {
	if len(r.awaited) > 0 {
		clear(r.awaited)
		tell(Change{All: true})
	}
}

// await begins to wait for the members that there are at the start. Those that join later have nothing in a backup.
func (r *Records) await() {
	r.awaited = map[string]bool{}
	if set := r.clusterSet(); set != nil && !r.trust {
		for _, member := range set.Spec.Members {
			if member.Namespace != r.own {
				r.awaited[member.Namespace] = false
			}
		}
	}
	r.bePatient()
	r.hear()
}

// hear takes the answers that have come, in a moment.
func (r *Records) hear() {
	for namespace, answered := range r.awaited {
		if answered || !r.leases.settled(namespace, r.came) {
			continue
		}
		r.awaited[namespace] = true
		time.AfterFunc(answerLasts, func() {
			r.change(func(tell func(Change)) {
				switch _, still := r.awaited[namespace]; {
				case !still:
				case r.leases.settled(namespace, r.came):
					delete(r.awaited, namespace)
					tell(Change{All: true})
				default:
					r.awaited[namespace] = false // the broker was restored once more
				}
			})
		})
	}
}

// bePatient waits for as long as a record is held, if for anybody.
func (r *Records) bePatient() {
	if r.patience != nil {
		r.patience.Stop()
		r.patience = nil
	}
	if len(r.awaited) > 0 && !r.away {
		r.patience = time.AfterFunc(HoldFor, func() { r.change(r.relent) })
	}
}

// judge says anew who has been silent for too long.
func (r *Records) judge(tell func(Change)) {
	set := r.clusterSet()
	members, expired := map[string]bool{}, map[string]string{}
	if set != nil {
		for _, member := range set.Spec.Members {
			members[member.Namespace] = true
			if member.Namespace != r.own && r.leases.silent(member.Namespace, expireAfter(set)) {
				expired[member.Namespace] = member.ClusterID
			}
		}
	}
	r.leases.forget(members)
	if !maps.Equal(r.expired, expired) {
		r.expired = expired
		tell(Change{All: true})
	}
}

func (r *Records) clusterSet() *v1alpha1.ClusterSet {
	if known := r.records[id{clusterSets, types.NamespacedName{Name: v1alpha1.ClusterSetName}}]; known != nil && known.object != nil {
		return known.object.(*v1alpha1.ClusterSet)
	}
	return nil
}

// put takes what the broker has.
func (r *Records) put(which id, object client.Object, tell func(Change)) {
	known := r.records[which]
	if known == nil {
		known = &record{id: which}
		r.records[which] = known
	}
	version := versionOf(object)
	if version >= known.version || which.name.Namespace == r.own {
		r.settle(known, object, tell)
		return
	}
	// An older copy, or a still older one than that: the broker was restored, or restored once more.
	if known.older == nil || version < versionOf(known.older) {
		r.hold(known, tell)
	}
	known.older = object
	r.remember(known)
}

// missed takes that the broker no longer has a record, and nobody saw why.
func (r *Records) missed(known *record, tell func(Change)) {
	switch {
	case known.object == nil || known.id.name.Namespace == r.own:
		r.settle(known, nil, tell)
	case known.since.IsZero():
		r.hold(known, tell)
	}
	known.older = nil
}

// settle makes an object, nil for none, the one that counts, from now on without doubt.
func (r *Records) settle(known *record, object client.Object, tell func(Change)) {
	before, held := known.object, !known.since.IsZero()
	known.object, known.older, known.since = object, nil, time.Time{}
	if object != nil {
		known.version = versionOf(object)
		if withdrawn(object) && known.id.name.Namespace != r.own {
			known.object = nil
		}
	}
	if before != nil && known.object != nil && before.GetResourceVersion() != "" &&
		before.GetResourceVersion() == known.object.GetResourceVersion() && !held {
		return // a list that tells nothing new
	}
	r.index(known, before)
	r.remember(known)
	for _, c := range r.changes(known, before, known.object) {
		tell(c)
	}
	if known.id.kind == clusterSets {
		r.judge(tell)
	}
}

// changes are what is told of when one object of a record, nil for none, takes the place of another.
func (r *Records) changes(of *record, before, after client.Object) []Change {
	switch {
	case before == nil && after == nil:
		return nil
	case of.id.kind == clusterSets:
		return []Change{{All: true}}
	case of.id.kind == endpoints:
		return []Change{{Gateways: true}}
	}
	var all []Change
	for _, object := range []client.Object{before, after} {
		if object == nil {
			continue
		}
		if c := (Change{Service: serviceOf(object), Theirs: of.id.name.Namespace != r.own}); !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}

// index puts a record where it is looked for; before is the object that it held.
func (r *Records) index(known *record, before client.Object) {
	switch known.id.kind {
	case endpoints:
		if known.object == nil {
			delete(r.gateways, known.id)
		} else {
			r.gateways[known.id] = known
		}
	case exportedServices, exportedEndpoints:
		if before != nil {
			service := serviceOf(before)
			delete(r.services[service], known.id)
			if len(r.services[service]) == 0 {
				delete(r.services, service)
			}
		}
		if known.object != nil {
			service := serviceOf(known.object)
			if r.services[service] == nil {
				r.services[service] = map[id]*record{}
			}
			r.services[service][known.id] = known
		}
	}
}

// remember keeps the list of those that are gone, and forgets the oldest of too many.
func (r *Records) remember(known *record) {
	if known.object != nil || known.older != nil {
		if known.gone != nil {
			r.gone.Remove(known.gone)
			known.gone = nil
		}
		return
	}
	switch {
	case known.version == 0 || known.id.name.Namespace == r.own: // no different from one that was never seen
		if known.gone != nil {
			r.gone.Remove(known.gone)
		}
		delete(r.records, known.id)
	case known.gone == nil:
		known.gone = r.gone.PushBack(known)
	}
	if r.gone.Len() > maxGone {
		oldest := r.gone.Remove(r.gone.Front()).(*record)
		delete(r.records, oldest.id)
	}
}

// hold begins to hold what is known.
func (r *Records) hold(known *record, tell func(Change)) {
	known.since = time.Now()
	for _, c := range r.changes(known, nil, known.object) {
		tell(c) // what is held is counted
	}
	r.waiting = append(r.waiting, ending{known, known.since})
	if r.timer == nil && !r.away {
		r.timer = time.AfterFunc(HoldFor, r.release)
	}
}

// Away says that the broker went away, or that it is back: then all that is held, or awaited, has its time anew.
func (r *Records) Away(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
	r.bePatient()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	if away {
		return
	}
	still := r.waiting[:0]
	for _, next := range r.waiting {
		if next.record.since.Equal(next.since) {
			next.record.since = time.Now()
			still = append(still, ending{next.record, next.record.since})
		}
	}
	clear(r.waiting[len(still):])
	r.waiting = still
	if len(still) > 0 {
		r.timer = time.AfterFunc(HoldFor, r.release)
	}
}

// release ends the holds that are over, and waits for the next one.
func (r *Records) release() {
	r.change(func(tell func(Change)) {
		for len(r.waiting) > 0 && !r.away {
			next := r.waiting[0]
			if next.record.since.Equal(next.since) {
				if left := HoldFor - time.Since(next.since); left > 0 {
					r.timer = time.AfterFunc(left, r.release)
					return
				}
				namespace := next.record.id.name.Namespace
				if _, expired := r.expired[namespace]; !expired && r.leases.mute(namespace, next.since) {
					// Its owner has not been there to write it again. It is, or it is silent in the end.
					next.record.since = time.Now()
					r.waiting = append(r.waiting, ending{next.record, next.record.since})
				} else {
					r.settle(next.record, next.older, tell)
				}
			}
			r.waiting = r.waiting[1:]
		}
		r.timer = nil
	})
}

// View is a view of everything.
func (r *Records) View() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	view := r.head()
	for _, of := range r.services {
		r.add(&view, of)
	}
	r.add(&view, r.gateways)
	view.sort()
	return view
}

// Service is a view of one service, by its namespace and name in the clusters, without Gateways. It costs what that
// service has records.
func (r *Records) Service(key types.NamespacedName) View {
	r.mu.Lock()
	defer r.mu.Unlock()
	view := r.head()
	r.add(&view, r.services[key])
	view.sort()
	return view
}

// Gateways is a view of the gateways' Endpoints alone.
func (r *Records) Gateways() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	view := r.head()
	r.add(&view, r.gateways)
	view.sort()
	return view
}

// Services are the services that there are records of, tombstones in our own namespace included, in no order.
func (r *Records) Services() []types.NamespacedName {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]types.NamespacedName, 0, len(r.services))
	for key := range r.services {
		all = append(all, key)
	}
	return all
}

// head is what every view has.
func (r *Records) head() View {
	view := View{Synced: len(r.listed) == len(kinds), Expired: slices.Sorted(maps.Values(r.expired))}
	if set := r.records[id{clusterSets, types.NamespacedName{Name: v1alpha1.ClusterSetName}}]; set != nil && set.object != nil {
		view.ClusterSet = set.object.(*v1alpha1.ClusterSet)
		for _, member := range view.ClusterSet.Spec.Members {
			if _, awaited := r.awaited[member.Namespace]; awaited && r.expired[member.Namespace] == "" {
				view.Awaited = append(view.Awaited, member.ClusterID)
			}
		}
		slices.Sort(view.Awaited)
		if !set.since.IsZero() {
			view.Held++
		}
	}
	return view
}

// add adds those of the records that count.
func (r *Records) add(v *View, records map[id]*record) {
	for _, known := range records {
		if _, silent := r.expired[known.id.name.Namespace]; silent {
			continue
		}
		if !known.since.IsZero() {
			v.Held++
		}
		if withdrawn(known.object) {
			v.Withdrawn = append(v.Withdrawn, known.object)
			continue
		}
		switch object := known.object.(type) {
		case *v1alpha1.ExportedService:
			v.Services = append(v.Services, object)
		case *v1alpha1.ExportedEndpoints:
			v.Endpoints = append(v.Endpoints, object)
		case *v1alpha1.Endpoint:
			v.Gateways = append(v.Gateways, object)
		}
	}
}

func (v *View) sort() {
	slices.SortFunc(v.Services, byName)
	slices.SortFunc(v.Endpoints, byName)
	slices.SortFunc(v.Gateways, byName)
	slices.SortFunc(v.Withdrawn, byName)
}

func byName[T client.Object](a, b T) int {
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

func idOf(object client.Object) (id, bool) {
	of, ok := kindOf(object)
	return id{of, client.ObjectKeyFromObject(object)}, ok
}

// serviceOf is the service that a record speaks of.
func serviceOf(record client.Object) types.NamespacedName {
	switch record := record.(type) {
	case *v1alpha1.ExportedService:
		return types.NamespacedName{Namespace: record.Spec.Namespace, Name: record.Spec.Name}
	case *v1alpha1.ExportedEndpoints:
		return types.NamespacedName{Namespace: record.Spec.Namespace, Name: record.Spec.Service}
	}
	return types.NamespacedName{}
}

// withdrawn says whether a record is a tombstone.
func withdrawn(record client.Object) bool {
	switch record := record.(type) {
	case *v1alpha1.ExportedService:
		return record.Spec.Withdrawn
	case *v1alpha1.ExportedEndpoints:
		return record.Spec.Withdrawn
	}
	return false
}
