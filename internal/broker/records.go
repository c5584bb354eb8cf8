package broker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
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
	// Held is how many of the objects above are no longer on the broker and held for the time being.
	Held int
}

// Records keeps what the watches of a broker tell, and makes Views of it.
//
// An object that somebody deletes is gone at once: the watch says so. An object that is merely absent after the watch was
// lost and its kind listed anew may have been deleted meanwhile, or the broker may have been restored from a backup that is
// older than the object. It is held for a time, in which its owner, if it still exports it, has written it again.
//
// The informer's own store would not do: it forgets the absent object before it tells anybody.
type Records struct {
	own  string // namespace whose objects are never held: their owner is here, and writes them again
	hold time.Duration
	now  func() time.Time

	mu      sync.Mutex
	objects map[id]client.Object
	absent  map[id]time.Time // since when
}

type id struct {
	kind string
	name types.NamespacedName
}

// NewRecords makes Records that hold nothing. The clock is asked only for how long an object has been absent.
func NewRecords(own string, hold time.Duration, now func() time.Time) *Records {
	return &Records{own: own, hold: hold, now: now, objects: map[id]client.Object{}, absent: map[id]time.Time{}}
}

func idOf(object client.Object) id {
	return id{fmt.Sprintf("%T", object), client.ObjectKeyFromObject(object)}
}

// OnAdd, OnUpdate and OnDelete make Records the handler of an informer's events.
func (r *Records) OnAdd(object any, _ bool) { r.put(object) }

// OnUpdate takes the newer object.
func (r *Records) OnUpdate(_, object any) { r.put(object) }

// OnDelete forgets the object, or begins to hold it.
func (r *Records) OnDelete(object any) {
	tombstone, missed := object.(toolscache.DeletedFinalStateUnknown)
	if missed {
		object = tombstone.Obj
	}
	deleted, ok := object.(client.Object)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if missed && deleted.GetNamespace() != r.own {
		r.absent[idOf(deleted)] = r.now()
		return
	}
	delete(r.objects, idOf(deleted))
	delete(r.absent, idOf(deleted))
}

func (r *Records) put(object any) {
	record, ok := object.(client.Object)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.objects[idOf(record)] = record
	delete(r.absent, idOf(record))
}

// View is a view of now, without Synced.
func (r *Records) View() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	for which, since := range r.absent {
		if r.now().Sub(since) >= r.hold {
			delete(r.objects, which)
			delete(r.absent, which)
		}
	}
	view := View{Held: len(r.absent)}
	sorted := slices.SortedFunc(maps.Keys(r.objects), func(a, b id) int {
		return cmp.Or(cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name))
	})
	for _, which := range sorted {
		switch object := r.objects[which].(type) {
		case *v1alpha1.ClusterSet:
			if object.Name == v1alpha1.ClusterSetName {
				view.ClusterSet = object
			}
		case *v1alpha1.ExportedService:
			view.Services = append(view.Services, object)
		case *v1alpha1.ExportedEndpoints:
			view.Endpoints = append(view.Endpoints, object)
		case *v1alpha1.Endpoint:
			view.Gateways = append(view.Gateways, object)
		}
	}
	return view
}
