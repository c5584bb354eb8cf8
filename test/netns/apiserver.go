package netns

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// API is as much of a Kubernetes API server as the two daemons ask for: discovery, get, list, watch, create, update,
// delete, and the status subresource, of a few kinds, in JSON, in memory, for everybody.
type API struct {
	mu       sync.Mutex
	revision int
	objects  map[string]object // by path: /api/v1/nodes/w1
	watchers map[chan event]string
	// Forbidden answers every request with 403, as a cluster does that has removed our permissions.
	forbidden bool
}

type object = map[string]any

type event struct {
	Type   string `json:"type"`
	Object object `json:"object"`
}

type resource struct {
	group, version, name, kind string
	namespaced                 bool
}

func resources() []resource {
	return []resource{
		{"", "v1", "nodes", "Node", false},
		{"", "v1", "namespaces", "Namespace", false},
		{"", "v1", "services", "Service", true},
		{"apps", "v1", "daemonsets", "DaemonSet", true},
		{"fastnet.dev", "v1alpha1", "endpoints", "Endpoint", true},
		{"fastnet.dev", "v1alpha1", "gateways", "Gateway", true},
	}
}

// NewAPI makes an empty one.
func NewAPI() *API {
	return &API{objects: map[string]object{}, watchers: map[chan event]string{}}
}

// ServeHTTP answers.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/test/forbid" {
		a.mu.Lock()
		a.forbidden = true
		a.mu.Unlock()
		return
	}
	a.mu.Lock()
	forbidden := a.forbidden
	a.mu.Unlock()
	if forbidden {
		fail(w, http.StatusForbidden, "Forbidden")
		return
	}
	if discovery(w, r.URL.Path) {
		return
	}
	path := strings.TrimSuffix(r.URL.Path, "/")
	for _, res := range resources() {
		collection, name, status, ok := res.split(path)
		if !ok {
			continue
		}
		switch {
		case name == "" && r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
			a.watch(w, r, res, collection)
		case name == "" && r.Method == http.MethodGet:
			a.mu.Lock()
			list := object{"kind": res.kind + "List", "apiVersion": res.apiVersion(), "items": a.list(collection),
				"metadata": object{"resourceVersion": strconv.Itoa(a.revision)}}
			a.mu.Unlock()
			answer(w, http.StatusOK, list)
		default:
			a.one(w, r, res, collection, name, status)
		}
		return
	}
	fail(w, http.StatusNotFound, "NotFound")
}

func (r resource) apiVersion() string {
	if r.group == "" {
		return r.version
	}
	return r.group + "/" + r.version
}

func (r resource) root() string {
	if r.group == "" {
		return "/api/" + r.version
	}
	return "/apis/" + r.apiVersion()
}

// split a path into the collection, the object's name and whether its status is meant.
func (r resource) split(path string) (collection, name string, status, ok bool) {
	rest, ok := strings.CutPrefix(path, r.root()+"/")
	if !ok {
		return "", "", false, false
	}
	parts := strings.Split(rest, "/")
	collection = r.root()
	if r.namespaced {
		if len(parts) < 3 || parts[0] != "namespaces" {
			return "", "", false, false
		}
		collection += "/namespaces/" + parts[1]
		parts = parts[2:]
	}
	if parts[0] != r.name || len(parts) > 3 || len(parts) == 3 && parts[2] != "status" {
		return "", "", false, false
	}
	collection += "/" + r.name
	if len(parts) > 1 {
		name = parts[1]
	}
	return collection, name, len(parts) == 3 && parts[2] == "status", true
}

func (a *API) list(collection string) []object {
	items := []object{}
	for path, o := range a.objects {
		if strings.HasPrefix(path, collection+"/") {
			items = append(items, o)
		}
	}
	return items
}

func (a *API) one(w http.ResponseWriter, r *http.Request, res resource, collection, name string, status bool) {
	var in object
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			fail(w, http.StatusBadRequest, "BadRequest")
			return
		}
		if name == "" {
			name = fmt.Sprint(meta(in)["name"])
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	path := collection + "/" + name
	old, exists := a.objects[path]
	if !exists && r.Method != http.MethodPost {
		fail(w, http.StatusNotFound, "NotFound")
		return
	}
	kind := "MODIFIED"
	switch r.Method {
	case http.MethodGet:
		answer(w, http.StatusOK, old)
		return
	case http.MethodDelete:
		delete(a.objects, path)
		a.tell("DELETED", path, old)
		answer(w, http.StatusOK, object{"kind": "Status", "apiVersion": "v1", "status": "Success"})
		return
	case http.MethodPost:
		if exists {
			fail(w, http.StatusConflict, "AlreadyExists")
			return
		}
		kind = "ADDED"
		meta(in)["uid"] = "uid-of-" + name
		meta(in)["creationTimestamp"] = "2026-01-01T00:00:00Z"
	case http.MethodPut:
		if version := meta(in)["resourceVersion"]; version != nil && version != meta(old)["resourceVersion"] {
			fail(w, http.StatusConflict, "Conflict")
			return
		}
		if status {
			merged := object{}
			for key, value := range old {
				merged[key] = value
			}
			merged["status"] = in["status"]
			in = copied(merged) // it has the old one's metadata, which is written to below
		} else if res.kind == "Gateway" {
			in["status"] = old["status"]
		}
		for _, key := range []string{"uid", "creationTimestamp"} {
			meta(in)[key] = meta(old)[key]
		}
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
		return
	}
	in = copied(in)
	in["kind"], in["apiVersion"] = res.kind, res.apiVersion()
	a.revision++
	meta(in)["resourceVersion"] = strconv.Itoa(a.revision)
	a.objects[path] = in
	a.tell(kind, path, in)
	answer(w, http.StatusOK, in)
}

// tell the watchers. An object is never changed once it is stored.
func (a *API) tell(kind, path string, o object) {
	for watcher, collection := range a.watchers {
		if strings.HasPrefix(path, collection+"/") {
			watcher <- event{kind, o}
		}
	}
}

// watch sends the objects that are there, an end mark, and then what happens.
func (a *API) watch(w http.ResponseWriter, r *http.Request, res resource, collection string) {
	events := make(chan event, 1000)
	a.mu.Lock()
	var first []event
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range a.list(collection) {
			first = append(first, event{"ADDED", o})
		}
		first = append(first, event{"BOOKMARK", object{"kind": res.kind, "apiVersion": res.apiVersion(), "metadata": object{
			"resourceVersion": strconv.Itoa(a.revision), "annotations": object{"k8s.io/initial-events-end": "true"}}}})
	}
	a.watchers[events] = collection
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, events)
		a.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	send := func(e event) bool { return encoder.Encode(e) == nil && flush.Flush() == nil }
	for _, e := range first {
		if !send(e) {
			return
		}
	}
	if flush.Flush() != nil {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			if !send(e) {
				return
			}
		}
	}
}

func discovery(w http.ResponseWriter, path string) bool {
	groups := map[string][]object{}
	var names []string
	for _, res := range resources() {
		root := res.root()
		if groups[root] == nil {
			names = append(names, root)
		}
		groups[root] = append(groups[root], object{"name": res.name, "kind": res.kind, "namespaced": res.namespaced, "singularName": "",
			"verbs": []string{"get", "list", "watch", "create", "update", "delete"}})
	}
	switch {
	case path == "/api":
		answer(w, http.StatusOK, object{"kind": "APIVersions", "versions": []string{"v1"}})
	case path == "/apis":
		var list []object
		for _, root := range names {
			if group, version, ok := strings.Cut(strings.TrimPrefix(root, "/apis/"), "/"); ok && strings.HasPrefix(root, "/apis/") {
				v := object{"groupVersion": group + "/" + version, "version": version}
				list = append(list, object{"name": group, "versions": []object{v}, "preferredVersion": v})
			}
		}
		answer(w, http.StatusOK, object{"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
	case groups[path] != nil:
		answer(w, http.StatusOK, object{"kind": "APIResourceList", "apiVersion": "v1", "resources": groups[path],
			"groupVersion": strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")})
	default:
		return false
	}
	return true
}

func meta(o object) object {
	m, ok := o["metadata"].(object)
	if !ok {
		m = object{}
		o["metadata"] = m
	}
	return m
}

// copied through JSON, whole.
func copied(o object) object {
	text, err := json.Marshal(o)
	if err != nil {
		return object{}
	}
	var out object
	if json.Unmarshal(text, &out) != nil {
		return object{}
	}
	return out
}

func fail(w http.ResponseWriter, code int, reason string) {
	answer(w, code, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client has gone
}
