package lighthouse

import (
	"cmp"
	"net/netip"
	"slices"
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

	mu      sync.Mutex
	imports map[string]*importObject
	// slices of a service, by the service's key and the slice's name.
	slices     map[string]map[string]*sliceObject
	sliceOwner map[objectKey]string // key of the service that a slice is filed under
	namespaces map[string]struct{}
	gateways   map[objectKey][]string // clusters to which that gateway's cables are up
	clusters   map[string]*cluster
	unsynced   map[resource]struct{}
	refused    map[resource]struct{} // unsynced, because the API server has no such resource or gives no right to it
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
		imports:    map[string]*importObject{},
		slices:     map[string]map[string]*sliceObject{},
		sliceOwner: map[objectKey]string{},
		namespaces: map[string]struct{}{},
		gateways:   map[objectKey][]string{},
		clusters:   map[string]*cluster{},
		unsynced:   map[resource]struct{}{},
		refused:    map[resource]struct{}{},
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
		services:   newTable[*service](),
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
		} else {
			w.unsynced[r] = struct{}{}
		}
		w.settle(next)
		return false
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
		case missing && r == resourceImports && len(w.imports) == 0:
			w.unsynced[r] = struct{}{}
		}
		if _, waiting := w.unsynced[r]; waiting {
			w.refused[r] = struct{}{}
		}
		w.settle(next)
		return false
	})
}

// settle tells next what is still to be read.
func (w *world) settle(next *zone) {
	next.synced = len(w.unsynced) == 0
	next.settled = len(w.unsynced) == len(w.refused)
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

// file puts a slice with its service.
func (w *world) file(o *sliceObject) {
	if o.serviceKey == "" {
		return
	}
	if w.slices[o.serviceKey] == nil {
		w.slices[o.serviceKey] = map[string]*sliceObject{}
	}
	w.slices[o.serviceKey][o.name] = o
	w.sliceOwner[o.objectKey] = o.serviceKey
}

// unfile takes a slice away and tells the key of the service it was with, "" where there was none.
func (w *world) unfile(key objectKey) string {
	owner := w.sliceOwner[key]
	if owner == "" {
		return ""
	}
	delete(w.sliceOwner, key)
	delete(w.slices[owner], key.name)
	if len(w.slices[owner]) == 0 {
		delete(w.slices, owner)
	}
	return owner
}

func (w *world) setNamespace(name string, exists bool) {
	w.change(func(next *zone) bool {
		if _, found := next.namespaces.get(name); found == exists {
			return false
		}
		if exists {
			w.namespaces[name] = struct{}{}
			next.namespaces = next.namespaces.with(name, struct{}{})
		} else {
			delete(w.namespaces, name)
			next.namespaces = next.namespaces.without(name)
		}
		return true
	})
}

func (w *world) replaceNamespaces(objects []*namespaceObject) {
	w.change(func(next *zone) bool {
		old := w.namespaces
		w.namespaces = map[string]struct{}{}
		changed := false
		for _, o := range objects {
			name := o.name
			w.namespaces[name] = struct{}{}
			if _, found := old[name]; !found {
				next.namespaces = next.namespaces.with(name, struct{}{})
				changed = true
			}
		}
		for name := range old {
			if _, found := w.namespaces[name]; !found {
				next.namespaces = next.namespaces.without(name)
				changed = true
			}
		}
		return changed
	})
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
	for key := range keys {
		changed = w.rebuild(next, key) || changed
	}
	return changed
}

// rebuild builds the record of one service into next, and tells whether it changed.
func (w *world) rebuild(next *zone, key string) bool {
	old, existed := next.services.get(key)
	o := w.imports[key]
	if o == nil {
		if existed {
			w.held.add(old, -1)
			next.services = next.services.without(key)
		}
		return existed
	}
	s := w.build(o, w.slices[key])
	if existed {
		if s.equal(old) {
			return false
		}
		s.turns = old.turns
		w.held.add(old, -1)
	}
	w.held.add(s, 1)
	next.services = next.services.with(key, s)
	return true
}

// build makes the record of a service from its import and its slices.
func (w *world) build(o *importObject, all map[string]*sliceObject) *service {
	s := &service{kind: kindIP, addresses: o.addresses, ports: o.ports, turns: new(turns)}
	switch {
	case o.headless:
		s.kind, s.addresses = kindHeadless, nil
	case len(o.addresses) == 0:
		s.kind = kindBalanced
	}

	// Backend slices are for headless services, cluster-address slices for the others; the rest is kube-proxy's.
	byCluster := map[string][]*sliceObject{}
	for _, slice := range all {
		if slice.clusterAddress != o.headless {
			byCluster[slice.clusterID] = append(byCluster[slice.clusterID], slice)
		}
	}
	for id, list := range byCluster {
		slices.SortFunc(list, func(a, b *sliceObject) int { return cmp.Compare(a.name, b.name) })
		if o.headless {
			s.parts = append(s.parts, headlessPart(w.intern(id), list))
		} else {
			s.parts = append(s.parts, addressPart(w.intern(id), list))
		}
	}
	slices.SortFunc(s.parts, func(a, b *part) int { return cmp.Compare(a.cluster.id, b.cluster.id) })
	s.repeats = repeats(s.parts)
	return s
}

// addressPart makes a cluster's part from its cluster-address slices, one a family.
func addressPart(c *cluster, list []*sliceObject) *part {
	p := &part{cluster: c, hasAddress: true, weight: defaultWeight, share: defaultShare}
	weighted := false
	for _, slice := range list {
		for _, e := range slice.endpoints {
			for _, addr := range e.addresses {
				p.addresses = appendNew(p.addresses, addr)
				if e.ready {
					p.ready = appendNew(p.ready, addr)
				}
			}
		}
		p.ports = appendNew(p.ports, slice.ports...)
		if slice.weighted && !weighted {
			weighted = true
			p.weight, p.share = slice.weight, slice.share
		}
	}
	return p
}

// headlessPart makes a cluster's part from its backend slices. The slices of the two families tell the same backends, by
// hostname, so they are merged by name.
func headlessPart(c *cluster, list []*sliceObject) *part {
	p := &part{cluster: c, weight: defaultWeight, share: defaultShare}
	n := 0
	for _, slice := range list {
		n += len(slice.endpoints)
	}
	p.backends = make([]backend, 0, n)
	for _, slice := range list {
		ready := false
		for _, e := range slice.endpoints {
			if !e.ready {
				continue
			}
			ready = true
			if e.hostname != "" {
				p.backends = append(p.backends, backend{rankOf(e.hostname), slice.weight, e.hostname, e.addresses, slice.ports})
				continue
			}
			for i, addr := range e.addresses {
				name := dashed(addr)
				p.backends = append(p.backends, backend{rankOf(name), slice.weight, name, e.addresses[i : i+1 : i+1], slice.ports})
			}
		}
		if ready {
			p.ports = appendNew(p.ports, slice.ports...)
		}
	}
	slices.SortStableFunc(p.backends, func(a, b backend) int { return compareRank(&a, &b) })
	merged := p.backends[:0]
	for _, b := range p.backends {
		last := len(merged) - 1
		if last < 0 || merged[last].name != b.name {
			merged = append(merged, b)
			continue
		}
		m := &merged[last]
		m.addresses = appendNew(slices.Clip(m.addresses), b.addresses...)
		m.ports = appendNew(slices.Clip(m.ports), b.ports...)
	}
	clear(p.backends[len(merged):])
	p.backends = slices.Clip(merged)
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

// repeats tells whether an address occurs twice among the backends.
func repeats(parts []*part) bool {
	n := 0
	for _, p := range parts {
		n += len(p.backends)
	}
	if n < 2 {
		return false
	}
	seen := make(map[netip.Addr]struct{}, n)
	for _, p := range parts {
		for i := range p.backends {
			for _, addr := range p.backends[i].addresses {
				if _, found := seen[addr]; found {
					return true
				}
				seen[addr] = struct{}{}
			}
		}
	}
	return false
}
