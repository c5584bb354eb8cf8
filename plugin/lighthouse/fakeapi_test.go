package lighthouse

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

const (
	pathImports      = "/apis/multicluster.x-k8s.io/v1beta1/serviceimports"
	pathImportsAlpha = "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"
	pathSlices       = "/apis/discovery.k8s.io/v1/endpointslices"
	pathNamespaces   = "/api/v1/namespaces"
	pathGateways     = "/apis/fastnet.dev/v1alpha1/gateways"
	pathProperties   = "/apis/about.k8s.io/v1alpha1/clusterproperties"
)

// fakeAPI is an API server that lists and watches, as far as the plugin asks: with resource versions, label selectors,
// and lists that stream. Each collection can be taken away (404) or closed (403).
type fakeAPI struct {
	*httptest.Server
	streams bool // whether lists stream, as newer API servers have it

	mu      sync.Mutex
	version int
	changed chan struct{} // closed and made anew with each change
	status  map[string]int
	objects map[string]map[string]map[string]any // by path and "namespace/name"
	events  map[string][]fakeEvent
	drop    int      // counts up to end every watch
	asked   []string // paths, in the order that they were asked for
	lists   []string // of those that asked for a list, and the version that they wanted: "path 42"
	running int      // watches that run
}

// watching counts the watches that run.
func (f *fakeAPI) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

// requests gives the paths of all requests so far.
func (f *fakeAPI) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// listed gives what was asked for as a list so far.
func (f *fakeAPI) listed() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.lists)
}

type fakeEvent struct {
	version int
	Type    string         `json:"type"`
	Object  map[string]any `json:"object"`
}

// denyAll denies every path, or with 0 serves them again as in the beginning.
func (f *fakeAPI) denyAll(status int) {
	f.change(func() {
		for path := range f.objects {
			f.status[path] = status
		}
		if status == 0 {
			f.status[pathImportsAlpha] = http.StatusNotFound
		}
		f.drop++
	})
}

// newFakeAPI serves every collection, empty, except the old version of ServiceImport.
func newFakeAPI(t testing.TB) *fakeAPI {
	f := &fakeAPI{
		version: 1,
		changed: make(chan struct{}),
		status:  map[string]int{pathImportsAlpha: http.StatusNotFound},
		objects: map[string]map[string]map[string]any{},
		events:  map[string][]fakeEvent{},
	}
	for _, path := range []string{pathImports, pathImportsAlpha, pathSlices, pathNamespaces, pathGateways, pathProperties} {
		f.objects[path] = map[string]map[string]any{}
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(func() {
		f.disconnect()
		f.Server.Close()
	})
	return f
}

// change runs fn under the lock and wakes the watches.
func (f *fakeAPI) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.changed)
	f.changed = make(chan struct{})
}

// disconnect ends every watch.
func (f *fakeAPI) disconnect() { f.change(func() { f.drop++ }) }

// deny answers a path with a status from now on, 0 for its objects again, and ends the watches that run.
func (f *fakeAPI) deny(path string, status int) {
	f.change(func() { f.status[path] = status; f.drop++ })
}

// put creates or replaces an object.
func (f *fakeAPI) put(t testing.TB, path string, object any) {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var o map[string]any
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	meta := o["metadata"].(map[string]any)
	key := fmt.Sprintf("%v/%v", meta["namespace"], meta["name"])
	f.change(func() {
		f.version++
		meta["resourceVersion"] = strconv.Itoa(f.version)
		event := "ADDED"
		if f.objects[path][key] != nil {
			event = "MODIFIED"
		}
		f.objects[path][key] = o
		f.events[path] = append(f.events[path], fakeEvent{f.version, event, o})
	})
}

// remove deletes an object; namespace is "<nil>" for those that have none.
func (f *fakeAPI) remove(path, namespace, name string) {
	f.change(func() {
		f.version++
		key := namespace + "/" + name
		o := f.objects[path][key]
		delete(f.objects[path], key)
		f.events[path] = append(f.events[path], fakeEvent{f.version, "DELETED", o})
	})
}

// load puts the objects of a text.
func (f *fakeAPI) load(t testing.TB, text string) {
	t.Helper()
	o := parseObjects(t, text)
	for _, name := range o.namespaces {
		f.put(t, pathNamespaces, map[string]any{
			"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": map[string]any{"name": name},
		})
	}
	for _, i := range o.imports {
		i.TypeMeta.APIVersion, i.TypeMeta.Kind = mcsv1beta1.GroupVersion.String(), "ServiceImport"
		f.put(t, pathImports, i)
	}
	for _, s := range o.slices {
		s.TypeMeta.APIVersion, s.TypeMeta.Kind = discoveryv1.SchemeGroupVersion.String(), "EndpointSlice"
		f.put(t, pathSlices, s)
	}
	for _, g := range o.gateways {
		g.TypeMeta.APIVersion, g.TypeMeta.Kind = v1alpha1.GroupVersion.String(), "Gateway"
		f.put(t, pathGateways, g)
	}
	if o.local != "" {
		f.put(t, pathProperties, clusterProperty(o.local))
	}
}

func clusterProperty(value string) map[string]any {
	return map[string]any{
		"apiVersion": "about.k8s.io/v1alpha1", "kind": "ClusterProperty",
		"metadata": map[string]any{"name": v1alpha1.ClusterPropertyID}, "spec": map[string]any{"value": value},
	}
}

// ServeHTTP implements http.Handler.
func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query, path := r.URL.Query(), r.URL.Path
	w.Header().Set("Content-Type", "application/json")
	f.mu.Lock()
	f.asked = append(f.asked, path)
	if query.Get("watch") == "" {
		f.lists = append(f.lists, path+" "+query.Get("resourceVersion"))
	}
	status := f.status[path]
	if f.objects[path] == nil {
		status = http.StatusNotFound
	}
	f.mu.Unlock()
	switch {
	case status != 0:
		writeStatus(w, status)
	case query.Get("watch") == "":
		f.list(w, path, query.Get("labelSelector"))
	case query.Get("sendInitialEvents") != "" && !f.streams:
		writeStatus(w, http.StatusUnprocessableEntity)
	default:
		f.watch(w, r, path, query.Get("labelSelector"), query.Get("sendInitialEvents") != "")
	}
}

func writeStatus(w http.ResponseWriter, status int) {
	reason := map[int]string{http.StatusNotFound: "NotFound", http.StatusForbidden: "Forbidden", http.StatusUnprocessableEntity: "Invalid"}[status]
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": status})
}

// selected tells whether an object has the label that the selector, a bare key, asks for.
func selected(o map[string]any, selector string) bool {
	if selector == "" {
		return true
	}
	labels, _ := o["metadata"].(map[string]any)["labels"].(map[string]any)
	return labels[selector] != nil
}

func (f *fakeAPI) list(w http.ResponseWriter, path, selector string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	items := []any{}
	for _, o := range f.objects[path] {
		if selected(o, selector) {
			items = append(items, o)
		}
	}
	apiVersion, kind := strings.TrimPrefix(strings.TrimPrefix(path[:strings.LastIndex(path, "/")], "/apis/"), "/api/"), "List"
	switch path {
	case pathImports, pathImportsAlpha:
		kind = "ServiceImportList"
	case pathSlices:
		kind = "EndpointSliceList"
	case pathGateways:
		kind = "GatewayList"
	case pathProperties:
		kind = "ClusterPropertyList"
	case pathNamespaces:
		apiVersion, kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
	}
	json.NewEncoder(w).Encode(map[string]any{
		"apiVersion": apiVersion, "kind": kind, "items": items,
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)},
	})
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, path, selector string, initial bool) {
	out := json.NewEncoder(w)
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	f.mu.Lock()
	drop := f.drop
	f.running++
	if initial {
		for _, o := range f.objects[path] {
			if selected(o, selector) {
				out.Encode(fakeEvent{Type: "ADDED", Object: o})
			}
		}
		since = f.version
		bookmark := map[string]any{"metadata": map[string]any{
			"resourceVersion": strconv.Itoa(since), "annotations": map[string]any{"k8s.io/initial-events-end": "true"},
		}}
		bookmark["apiVersion"], bookmark["kind"] = kindOf(path)
		out.Encode(fakeEvent{Type: "BOOKMARK", Object: bookmark})
	}
	for f.drop == drop && r.Context().Err() == nil {
		for _, e := range f.events[path] {
			if e.version > since && selected(e.Object, selector) {
				out.Encode(e)
			}
		}
		since = f.version
		changed := f.changed
		f.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		f.mu.Lock()
	}
	f.running--
	f.mu.Unlock()
}

func kindOf(path string) (apiVersion, kind string) {
	switch path {
	case pathImports:
		return "multicluster.x-k8s.io/v1beta1", "ServiceImport"
	case pathImportsAlpha:
		return "multicluster.x-k8s.io/v1alpha1", "ServiceImport"
	case pathSlices:
		return "discovery.k8s.io/v1", "EndpointSlice"
	case pathGateways:
		return "fastnet.dev/v1alpha1", "Gateway"
	case pathProperties:
		return "about.k8s.io/v1alpha1", "ClusterProperty"
	}
	return "meta.k8s.io/v1", "PartialObjectMetadata"
}
