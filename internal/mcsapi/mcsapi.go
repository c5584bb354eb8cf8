// Package mcsapi speaks whichever version of the Multi-Cluster Services API a cluster serves, v1beta1 or else v1alpha1, and
// goes on speaking when that changes. Those who use it know the types of v1beta1 alone.
//
//	CRDs ---watch---> version and fields ---> informers: list and watch that version, list anew when it changes
//	                                     ---> client: writes that version
//	                                     ---> Fit: an object without what the CRD has no field for
//
// The two versions differ in nothing but the name, and CRDs differ in which fields they have, whatever the version: the first
// v1alpha1 has room for one address, and for neither conditions nor families of an import. An API server drops such fields
// without a word. So whoever compares what is there with what should be must know what can be there.
package mcsapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

// Group of the API.
const Group = mcsv1beta1.GroupName

// Versions are those that are spoken, the best first.
var Versions = []string{"v1beta1", "v1alpha1"}

// API is how a cluster has the Multi-Cluster Services API. Make it with New; it knows nothing before Run.
type API struct {
	log     *slog.Logger
	crds    client.WithWatch
	clients map[string]client.WithWatch // by version
	kinds   []*kind
	changed func()
}

// kind is one of the API's two, each of which has a CRD of its own.
type kind struct {
	name, crd string
	object    client.Object
	list      client.ObjectList

	mu   sync.Mutex
	now  served
	next chan struct{} // closed when now changes
}

// served is how a kind is served.
type served struct {
	version string    // empty where none is, for the reason why
	why     string    // also what is wrong though there is a version
	lacks   []lack    // what the CRD has no fields for
	crd     types.UID // of the CRD: another one of the same name holds other objects
	serial  int       // counts changes
}

// New prepares to speak with an API server, and asks it for nothing yet. Changed is called after every change of what is served.
func New(config *rest.Config, log *slog.Logger, changed func()) (*API, error) {
	a := &API{log: log, clients: map[string]client.WithWatch{}, changed: changed, kinds: []*kind{
		{name: "ServiceExport", crd: "serviceexports." + Group, object: &mcsv1beta1.ServiceExport{}, list: &mcsv1beta1.ServiceExportList{}},
		{name: "ServiceImport", crd: "serviceimports." + Group, object: &mcsv1beta1.ServiceImport{}, list: &mcsv1beta1.ServiceImportList{}},
	}}
	for _, k := range a.kinds {
		k.now.why, k.next = "its CRD was not looked at yet", make(chan struct{})
	}
	connect := func(scheme *runtime.Scheme, mapper meta.RESTMapper) (client.WithWatch, error) {
		c, err := client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper})
		if err != nil {
			return nil, fmt.Errorf("client of the Multi-Cluster Services API: %w", err)
		}
		return c, nil
	}
	var err error
	for _, version := range Versions {
		if a.clients[version], err = connect(speak(version, a.kinds)); err != nil {
			return nil, err
		}
	}
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	mapper.Add(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"), meta.RESTScopeRoot)
	a.crds, err = connect(scheme, mapper)
	return a, err
}

// speak makes the scheme and mapper by which a client writes and reads the types of v1beta1 as those of a version.
func speak(version string, kinds []*kind) (*runtime.Scheme, meta.RESTMapper) {
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	gv := schema.GroupVersion{Group: Group, Version: version}
	for _, k := range kinds {
		scheme.AddKnownTypes(gv, k.object.DeepCopyObject(), k.list.DeepCopyObject())
		mapper.Add(gv.WithKind(k.name), meta.RESTScopeNamespace)
	}
	metav1.AddToGroupVersion(scheme, gv)
	return scheme, mapper
}

// kind of an object or list, nil for those of other APIs.
func (a *API) kind(object runtime.Object) *kind {
	switch object.(type) {
	case *mcsv1beta1.ServiceExport, *mcsv1beta1.ServiceExportList:
		return a.kinds[0]
	case *mcsv1beta1.ServiceImport, *mcsv1beta1.ServiceImportList:
		return a.kinds[1]
	}
	return nil
}

func (k *kind) current() (served, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now, k.next
}

// Run follows the CRDs until the context ends.
func (a *API) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, k := range a.kinds {
		follow := &follower{api: a, kind: k}
		reflector := toolscache.NewReflectorWithOptions(follow, &apiextensionsv1.CustomResourceDefinition{}, follow, toolscache.ReflectorOptions{
			Name: "mcsapi", TypeDescription: "CRD " + k.crd,
		})
		running.Go(func() { reflector.RunWithContext(ctx) })
	}
	running.Wait()
	return nil
}

// Ready says why the API cannot be spoken, or nil.
func (a *API) Ready() error {
	var problems []error
	for _, k := range a.kinds {
		if now, _ := k.current(); now.version == "" {
			problems = append(problems, fmt.Errorf("%s.%s cannot be used: %s", k.name, Group, now.why))
		}
	}
	return errors.Join(problems...)
}

// String says what is served, a line for each kind.
func (a *API) String() string {
	var text strings.Builder
	for _, k := range a.kinds {
		now, _ := k.current()
		fmt.Fprintf(&text, "%s.%s: %s\n", k.name, Group, now)
	}
	return text.String()
}

func (s served) String() string {
	text := "cannot be used"
	if s.version != "" {
		text = s.version
	}
	if s.why != "" {
		text += ": " + s.why
	}
	if len(s.lacks) > 0 {
		names := make([]string, len(s.lacks))
		for i, l := range s.lacks {
			names[i] = l.String()
		}
		text += ", without " + strings.Join(names, ", ")
	}
	return text
}

// set takes what is served from now on.
func (a *API) set(k *kind, now served) {
	k.mu.Lock()
	before := k.now
	now.serial = before.serial
	if now.String() == before.String() && now.crd == before.crd {
		k.mu.Unlock()
		return
	}
	now.serial++
	k.now = now
	close(k.next)
	k.next = make(chan struct{})
	k.mu.Unlock()
	level := slog.LevelInfo
	if now.version == "" || now.why != "" {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, "Multi-Cluster Services API", "kind", k.name, "served", now.String())
	a.changed()
}

// read is how a kind is served by its CRD.
func read(k *kind, crd *apiextensionsv1.CustomResourceDefinition) served {
	established := slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
	if !established {
		return served{why: "its CRD is not established", crd: crd.UID}
	}
	var others []string
	for _, version := range Versions {
		for _, v := range crd.Spec.Versions {
			if v.Name == version && v.Served {
				return served{version: version, crd: crd.UID, lacks: lacking(k.object, crd, v.Schema)}
			}
		}
	}
	for _, v := range crd.Spec.Versions {
		if v.Served {
			others = append(others, v.Name)
		}
	}
	return served{why: fmt.Sprintf("its CRD serves %s, none of %s", cmp.Or(strings.Join(others, ", "), "nothing"), strings.Join(Versions, ", ")), crd: crd.UID}
}

// follower lists and watches one CRD, and is the store that takes what comes.
type follower struct {
	api  *API
	kind *kind
}

func (f *follower) options(o metav1.ListOptions) *client.ListOptions {
	// By name alone: the right to it need not extend to other CRDs.
	o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, f.kind.crd).String()
	return &client.ListOptions{Raw: &o}
}

// failed takes errors. Without the right to read CRDs, which an older ClusterRole lacks, the API is taken for the one that comes
// with this program.
func (f *follower) failed(err error) error {
	if apierrors.IsForbidden(err) {
		f.api.set(f.kind, served{version: Versions[0], why: "assumed, there is no right to read its CRD"})
	}
	return err
}

// List is ListWithContext without one.
func (f *follower) List(o metav1.ListOptions) (runtime.Object, error) {
	return f.ListWithContext(context.Background(), o)
}

// ListWithContext lists the CRD.
func (f *follower) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	list := &apiextensionsv1.CustomResourceDefinitionList{}
	return list, f.failed(f.api.crds.List(ctx, list, f.options(o)))
}

// Watch is WatchWithContext without one.
func (f *follower) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return f.WatchWithContext(context.Background(), o)
}

// WatchWithContext watches the CRD.
func (f *follower) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := f.api.crds.Watch(ctx, &apiextensionsv1.CustomResourceDefinitionList{}, f.options(o))
	return w, f.failed(err)
}

// Add takes the CRD.
func (f *follower) Add(object any) error {
	crd, ok := object.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return fmt.Errorf("%T in a watch of CRDs", object)
	}
	f.api.set(f.kind, read(f.kind, crd))
	return nil
}

// Update takes the CRD.
func (f *follower) Update(object any) error { return f.Add(object) }

// Delete notes that there is no CRD.
func (f *follower) Delete(any) error {
	f.api.set(f.kind, served{why: fmt.Sprintf("there is no CRD %s", f.kind.crd)})
	return nil
}

// Replace takes the CRD, or that there is none.
func (f *follower) Replace(list []any, _ string) error {
	if len(list) == 0 {
		return f.Delete(nil)
	}
	return f.Add(list[0])
}

// Resync does nothing: there is no period to it.
func (f *follower) Resync() error { return nil }
