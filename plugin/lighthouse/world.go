package lighthouse

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// world holds the slimmed objects and turns each change of them into the next zone, at once and in the goroutine that
// brought it: a queue in between would only add to the time until it is served.
//
// Its own lock is for the watches among each other. Queries read current and nothing else.
type world struct {
	current   atomic.Pointer[zone]
	firstSync chan struct{} // closed when everything has been read for the first time
	changed   chan struct{} // holds a value when records have changed since it was last taken

	mu      sync.Mutex
	imports map[string]*importObject
	// slices of a service, by the service's key; sorted by cluster ID and name.
	slices     map[string][]*sliceObject
	sliceOwner map[objectKey]*sliceObject // every slice that is filed
	namespaces map[string]struct{}
	gateways   map[objectKey][]string // clusters to which that gateway's cables are up
	clusters   map[string]*cluster
	unsynced   map[resource]struct{}
	refused    map[resource]struct{} // unsynced, because the API server has no such resource or gives no right to it
	absent     map[resource]struct{} // optional ones that the API server does not have
	restored   bool                  // from a snapshot: what has not been read is served as it was last known
	suspicion  suspicion
	held       held
}

// objectKey names an object of one kind.
type objectKey struct{ namespace, name string }

// resource is a kind of object that is watched.
type resource string

const (
	resourceImports    resource = "serviceimports.multicluster.x-k8s.io"
	resourceSlices     resource = "endpointslices.discovery.k8s.io"
	resourceNamespaces resource = "namespaces"
	resourceGateways   resource = "gateways.fastnet.dev"
	resourceProperties resource = "clusterproperties.about.k8s.io"
)

// newWorld makes a world that waits for the first list of each of the resources.
func newWorld(resources ...resource) *world {
	w := &world{
		firstSync:  make(chan struct{}),
		changed:    make(chan struct{}, 1),
		imports:    map[string]*importObject{},
		slices:     map[string][]*sliceObject{},
		sliceOwner: map[objectKey]*sliceObject{},
		namespaces: map[string]struct{}{},
		gateways:   map[objectKey][]string{},
		clusters:   map[string]*cluster{},
		unsynced:   map[resource]struct{}{},
		refused:    map[resource]struct{}{},
		absent:     map[resource]struct{}{},
	}
	for _, r := range resources {
		w.unsynced[r] = struct{}{}
	}
	if len(resources) == 0 {
		close(w.firstSync)
	}
	w.current.Store(&zone{
		serial:     uint32(time.Now().Unix()),
		synced:     len(resources) == 0,
		settled:    len(resources) == 0,
		services:   newTable[service](),
		namespaces: newTable[struct{}](),
		reach:      reach{everything: true},
	})
	return w
}

// change applies fn to a copy of the served zone, under the lock, and publishes the copy. fn tells whether records
// changed; then the serial rises.
func (w *world) change(fn func(next *zone) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changeLocked(fn)
}

func (w *world) changeLocked(fn func(next *zone) bool) {
	old := w.current.Load()
	next := *old
	if fn(&next) {
		// Serials are seconds where changes are rare, so that they rise over a restart as well.
		next.serial = max(old.serial+1, uint32(time.Now().Unix()))
	} else if next.synced == old.synced && next.settled == old.settled {
		return
	}
	w.current.Store(&next)
	w.held.export(&next)
	select {
	case w.changed <- struct{}{}:
	default: // somebody has not come to take the last one
	}
	if next.synced && !old.synced {
		// Only now: who waits for it goes on to serve, and must find the zone.
		select {
		case <-w.firstSync:
		default:
			close(w.firstSync)
		}
	}
}

// setSynced tells that a resource has been listed, or, with false, that what there was of it is gone with its kind.
func (w *world) setSynced(r resource, synced bool) {
	w.change(func(next *zone) bool {
		if synced {
			delete(w.unsynced, r)
			delete(w.refused, r)
			delete(w.absent, r)
		} else {
			w.unsynced[r] = struct{}{}
		}
		return w.settle(next)
	})
}

// setRefused takes the news that the API server has no such resource, or gives no right to it.
//
// Where there is no such resource, that is nothing to worry about for the optional ones, which then count as listed and
// empty. What is held is kept in any case: an API server that starts may deny for a moment the kinds it has.
func (w *world) setRefused(r resource, missing bool) {
	w.change(func(next *zone) bool {
		switch {
		case missing && (r == resourceGateways || r == resourceProperties):
			delete(w.unsynced, r)
			w.absent[r] = struct{}{}
		case missing && r == resourceImports && len(w.imports) == 0:
			w.unsynced[r] = struct{}{}
		}
		if _, waiting := w.unsynced[r]; waiting {
			w.refused[r] = struct{}{}
		}
		return w.settle(next)
	})
}

// settle tells next what is still to be read, and tells whether records changed. Once all has been read, the snapshot has done
// its work, and what it holds of resources that are not there any more goes with it.
func (w *world) settle(next *zone) (changed bool) {
	next.synced = len(w.unsynced) == 0 || w.restored
	next.settled = len(w.unsynced) == len(w.refused) || w.restored
	if len(w.unsynced) > 0 || !w.restored {
		return false
	}
	w.restored = false
	servedSnapshot.Store(0)
	if _, absent := w.absent[resourceGateways]; absent && len(w.gateways) > 0 {
		clear(w.gateways)
		changed = w.setReach(next)
	}
	if _, absent := w.absent[resourceProperties]; absent && next.localID != "" {
		next.localID, changed = "", true
	}
	return changed
}

// waitingFor lists the resources that have not been read, sorted.
func (w *world) waitingFor() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for r := range w.unsynced {
		names = append(names, string(r))
	}
	slices.Sort(names)
	return names
}

// setImport takes a new state of a ServiceImport.
func (w *world) setImport(o *importObject) {
	w.change(func(next *zone) bool {
		w.imports[o.key] = o
		return w.rebuild(next, o.key)
	})
}

func (w *world) deleteImport(o objectKey) {
	w.change(func(next *zone) bool {
		key := o.name + "." + o.namespace
		delete(w.imports, key)
		return w.rebuild(next, key)
	})
}

func (w *world) replaceImports(objects []*importObject) {
	w.change(func(next *zone) bool {
		dirty := map[string]struct{}{}
		for key := range w.imports {
			dirty[key] = struct{}{}
		}
		clear(w.imports)
		for _, o := range objects {
			w.imports[o.key] = o
			dirty[o.key] = struct{}{}
		}
		return w.rebuildAll(next, dirty)
	})
}

// setSlice takes a new state of an EndpointSlice.
func (w *world) setSlice(o *sliceObject) {
	w.change(func(next *zone) bool {
		left := w.unfile(o.objectKey)
		w.file(o)
		changed := w.rebuild(next, o.serviceKey)
		if left != "" && left != o.serviceKey {
			changed = w.rebuild(next, left) || changed
		}
		return changed
	})
	observeLatency(o.changed)
}

func (w *world) deleteSlice(key objectKey) {
	w.change(func(next *zone) bool {
		left := w.unfile(key)
		return left != "" && w.rebuild(next, left)
	})
}

func (w *world) replaceSlices(objects []*sliceObject) {
	w.change(func(next *zone) bool {
		dirty := map[string]struct{}{}
		for key := range w.slices {
			dirty[key] = struct{}{}
		}
		clear(w.slices)
		clear(w.sliceOwner)
		for _, o := range objects {
			w.file(o)
			dirty[o.serviceKey] = struct{}{}
		}
		return w.rebuildAll(next, dirty)
	})
}

// file puts a slice with its service, in the place of an older state of it.
func (w *world) file(o *sliceObject) {
	if o.serviceKey == "" {
		return
	}
	list := w.slices[o.serviceKey]
	at, found := slices.BinarySearchFunc(list, o, compareSlices)
	if found {
		list[at] = o
	} else {
		list = slices.Insert(list, at, o)
	}
	w.slices[o.serviceKey] = list
	w.sliceOwner[o.objectKey] = o
}

// unfile takes a slice away and tells the key of the service it was with, "" where there was none.
func (w *world) unfile(key objectKey) string {
	o := w.sliceOwner[key]
	if o == nil {
		return ""
	}
	delete(w.sliceOwner, key)
	list := w.slices[o.serviceKey]
	if at, found := slices.BinarySearchFunc(list, o, compareSlices); found {
		list = slices.Delete(list, at, at+1)
	}
	if len(list) == 0 {
		delete(w.slices, o.serviceKey)
	} else {
		w.slices[o.serviceKey] = list
	}
	return o.serviceKey
}

func compareSlices(a, b *sliceObject) int {
	return cmp.Or(cmp.Compare(a.clusterID, b.clusterID), cmp.Compare(a.name, b.name))
}

func (w *world) setNamespace(name string, exists bool) {
	w.change(func(next *zone) bool {
		if next.namespaces.get(name) != nil == exists {
			return false
		}
		if exists {
			w.namespaces[name] = struct{}{}
			next.namespaces = next.namespaces.with(name, &struct{}{})
		} else {
			delete(w.namespaces, name)
			next.namespaces = next.namespaces.without(name)
		}
		w.rebuildNamespaces(next, map[string]struct{}{name: {}})
		return true
	})
}

func (w *world) replaceNamespaces(objects []*namespaceObject) {
	w.change(func(next *zone) bool {
		old := w.namespaces
		w.namespaces = map[string]struct{}{}
		changed := map[string]struct{}{}
		for _, o := range objects {
			w.namespaces[o.name] = struct{}{}
			if _, found := old[o.name]; !found {
				next.namespaces = next.namespaces.with(o.name, &struct{}{})
				changed[o.name] = struct{}{}
			}
		}
		for name := range old {
			if _, found := w.namespaces[name]; !found {
				next.namespaces = next.namespaces.without(name)
				changed[name] = struct{}{}
			}
		}
		w.rebuildNamespaces(next, changed)
		return len(changed) > 0
	})
}

// rebuildNamespaces builds the services of namespaces that have come or gone. That is rare enough to look at every import for
// it, and saves every query a look at the namespace.
func (w *world) rebuildNamespaces(next *zone, names map[string]struct{}) {
	keys := map[string]struct{}{}
	for key, o := range w.imports {
		if _, found := names[o.namespace]; found {
			keys[key] = struct{}{}
		}
	}
	w.rebuildAll(next, keys)
}

// setLocalID takes the value of the ClusterProperty, "" where there is none.
func (w *world) setLocalID(id string) {
	w.change(func(next *zone) bool {
		changed := next.localID != id
		next.localID = id
		return changed
	})
}

// intern gives the one value for a cluster ID.
func (w *world) intern(id string) *cluster {
	c := w.clusters[id]
	if c == nil {
		c = &cluster{id: id, index: len(w.clusters)}
		w.clusters[id] = c
	}
	return c
}

// rebuildAll builds the records of all those services, and tells whether any changed.
func (w *world) rebuildAll(next *zone, keys map[string]struct{}) bool {
	changed := false
	next.services = next.services.edit()
	for key := range keys {
		changed = w.rebuild(next, key) || changed
	}
	next.services = next.services.done()
	return changed
}

// rebuild builds the record of one service into next, and tells whether it changed. A service whose namespace does not exist
// has none; nor has one whose name is more than a label, which the API allows and no name in DNS can stand for.
func (w *world) rebuild(next *zone, key string) bool {
	old := next.services.get(key)
	o := w.imports[key]
	if o != nil {
		if _, exists := w.namespaces[o.namespace]; !exists || strings.Contains(o.name, ".") {
			o = nil
		}
	}
	if o == nil {
		if old == nil {
			return false
		}
		w.held.add(old, -1)
		next.services = next.services.without(key)
		return true
	}
	s := w.build(o, w.slices[key])
	if old != nil {
		if s.equal(old) {
			return false
		}
		if s.turns != nil && old.turns != nil {
			s.turns = old.turns
		}
		w.held.add(old, -1)
	}
	w.held.add(s, 1)
	next.services = next.services.with(key, s)
	return true
}

// build makes the record of a service from its import and its slices, which are sorted by cluster. It costs a step for each
// slice, whatever the number of backends in it: a slice is made ready for serving when it arrives.
func (w *world) build(o *importObject, all []*sliceObject) *service {
	s := &service{kind: kindIP, addresses: o.addresses, ports: o.ports, selected: o.selected}
	switch {
	case o.headless:
		s.kind, s.addresses = kindHeadless, families{}
	case o.addresses.count == 0:
		s.kind, s.turns = kindBalanced, new(turns)
	}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].clusterID == all[0].clusterID {
			n++
		}
		if p := newPart(w.intern(all[0].clusterID), o.headless, all[:n]); p != nil {
			s.parts = append(s.parts, p)
		}
		all = all[n:]
	}
	return s
}

// newPart makes the part of the cluster that these slices come from, nil where none of them is of use: backend slices are
// for headless services, cluster-address slices for the others; the rest is kube-proxy's.
func newPart(c *cluster, headless bool, list []*sliceObject) *part {
	p := &part{cluster: c, weight: defaultWeight, share: defaultShare}
	used, weighted := false, false
	var addresses, ready []netip.Addr
	for _, slice := range list {
		if slice.clusterAddress == headless {
			continue
		}
		used = true
		if headless {
			if len(slice.backends) > 0 {
				p.backends = append(p.backends, slice)
				p.ports = appendNew(p.ports, slice.ports...)
			}
			continue
		}
		p.hasAddress = true
		addresses, ready = appendNew(addresses, slice.addresses...), appendNew(ready, slice.ready...)
		p.ports = appendNew(p.ports, slice.ports...)
		if slice.weighted && !weighted {
			weighted = true
			p.weight, p.share = slice.weight, slice.share
		}
	}
	if !used {
		return nil
	}
	p.addresses, p.ready = newFamilies(addresses), newFamilies(ready)
	return p
}

// appendNew appends those values that are not in list.
func appendNew[T comparable](list []T, values ...T) []T {
	for _, v := range values {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}
