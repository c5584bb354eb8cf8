//go:build e2e

package mcs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

// world is a lab with Fastnet on its clusters.
type world struct {
	lab    *lab.Lab
	names  []string // c1, c2, ...
	api    map[string]client.Client
	teller *story.Teller
	// families are those that pods, services and nodes have, in the order in which a Service gets them.
	families []corev1.IPFamily
	scenes   atomic.Int32
}

// start brings a lab up, for as long as the test lasts.
func start(t *testing.T, clusters int, families lab.Families) *world {
	t.Helper()
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	dist, err := filepath.Abs("../../../dist")
	if err != nil {
		t.Fatal(err)
	}
	config := lab.DefaultConfig(dist)
	config.Clusters, config.Workers, config.Families, config.Install = clusters, 1, families, true
	config.Progress = func(line string) { t.Log(line) }
	t.Cleanup(func() {
		if os.Getenv("FASTNET_KEEP_LAB") != "" {
			return
		}
		if err := lab.Down(context.Background(), func(string) {}); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	running, err := lab.Up(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d clusters with Fastnet in %.1f s", clusters, time.Since(began).Seconds())
	w := &world{lab: running, api: map[string]client.Client{}}
	for _, pods := range running.Clusters()[0].Pods() {
		w.families = append(w.families, familyOf(pods.Addr().String()))
	}
	w.teller, err = story.New(running, dist, filepath.Join(t.TempDir(), "story"), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(appsv1.AddToScheme(scheme), batchv1.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	for _, c := range running.Clusters() {
		config, err := kube.Config(c.Kubeconfig(), "fastnet-e2e")
		if err != nil {
			t.Fatal(err)
		}
		if w.api[c.Name()], err = client.New(config, client.Options{Scheme: scheme}); err != nil {
			t.Fatal(err)
		}
		w.names = append(w.names, c.Name())
	}
	return w
}

func (w *world) last() string { return w.names[len(w.names)-1] }

func (w *world) has(family corev1.IPFamily) bool { return slices.Contains(w.families, family) }

// familyOf is the family of an address.
func familyOf(address string) corev1.IPFamily {
	if strings.Contains(address, ":") {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// patience is how long anything may take to come; it comes in milliseconds, on a machine that has nothing else to do.
const patience = 90 * time.Second

// eventually looks until check has no complaint.
func eventually(t *testing.T, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, patience, last)
		case <-tick.C:
		}
	}
}

// scene is one rule's place: a namespace of its own, and in it the service web.
type scene struct {
	*world
	t  *testing.T
	ns string
}

// scene makes the namespace in these clusters, or in all.
func (w *world) scene(t *testing.T, clusters ...string) *scene {
	t.Helper()
	e := &scene{w, t, fmt.Sprintf("rule-%d", w.scenes.Add(1))}
	if len(clusters) == 0 {
		clusters = w.names
	}
	for _, c := range clusters {
		e.makeNamespace(c)
	}
	t.Cleanup(func() {
		for _, c := range w.names {
			err := w.api[c].Delete(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: e.ns}})
			if client.IgnoreNotFound(err) != nil {
				t.Error(err)
			}
		}
	})
	return e
}

// on is the scene for a subtest of the test that made it.
func (e *scene) on(t *testing.T) *scene { return &scene{e.world, t, e.ns} }

func (e *scene) makeNamespace(cluster string) {
	e.t.Helper()
	e.create(cluster, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: e.ns}})
}

func (e *scene) create(cluster string, object client.Object) {
	e.t.Helper()
	if err := e.api[cluster].Create(e.t.Context(), object); err != nil {
		e.t.Fatalf("%s: create %T %s: %v", cluster, object, object.GetName(), err)
	}
}

func (e *scene) delete(cluster string, object client.Object) {
	e.t.Helper()
	if err := e.api[cluster].Delete(e.t.Context(), object); err != nil {
		e.t.Fatalf("%s: delete %T %s: %v", cluster, object, object.GetName(), err)
	}
}

// change reads an object, changes it and writes it, again where somebody else was faster.
func change[T client.Object](e *scene, cluster string, object T, do func(T)) {
	e.t.Helper()
	eventually(e.t, fmt.Sprintf("change %T %s in %s", object, object.GetName(), cluster), func(ctx context.Context) error {
		if err := e.api[cluster].Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		do(object)
		return e.api[cluster].Update(ctx, object)
	})
}

const web = "web"

func (e *scene) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: e.ns, Name: name}
}

func (e *scene) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: e.ns, Name: name}
}

type changeService = func(*corev1.Service)

// service makes the Service web, port http 80, without a selector: backends are written by hand.
func (e *scene) service(cluster string, changes ...changeService) *corev1.Service {
	e.t.Helper()
	s := &corev1.Service{ObjectMeta: e.meta(web), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{servicePort("http", 80)}}}
	if len(e.families) > 1 {
		s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack)
	}
	for _, change := range changes {
		change(s)
	}
	e.create(cluster, s)
	return s
}

func servicePort(name string, number int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, Protocol: corev1.ProtocolTCP}
}

func withPorts(ports ...corev1.ServicePort) changeService {
	return func(s *corev1.Service) { s.Spec.Ports = ports }
}

func headless(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }

// address of the n-th backend of a cluster; nobody is there.
func address(cluster string, family corev1.IPFamily, n int) string {
	number := strings.TrimPrefix(cluster, "c")
	if family == corev1.IPv6Protocol {
		return fmt.Sprintf("2001:db8:%s::%x", number, n+1)
	}
	return fmt.Sprintf("198.51.%s.%d", number, n+1)
}

type changeSlice = func(*discoveryv1.EndpointSlice)

// backends makes an EndpointSlice of web with n ready endpoints, on the ports that the Service has plus 8000.
func (e *scene) backends(cluster, name string, n int, changes ...changeSlice) *discoveryv1.EndpointSlice {
	e.t.Helper()
	var service corev1.Service
	if err := e.api[cluster].Get(e.t.Context(), e.key(web), &service); err != nil {
		e.t.Fatal(err)
	}
	return e.backendsOf(cluster, name, service.Spec.IPFamilies[0], &service, n, changes...)
}

// backendsOf does so in one family.
func (e *scene) backendsOf(cluster, name string, family corev1.IPFamily, service *corev1.Service, n int, changes ...changeSlice) *discoveryv1.EndpointSlice {
	e.t.Helper()
	slice := &discoveryv1.EndpointSlice{ObjectMeta: e.meta(name), AddressType: discoveryv1.AddressType(family)}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: web, discoveryv1.LabelManagedBy: "somebody"}
	for _, p := range service.Spec.Ports {
		number := p.Port + 8000
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, AppProtocol: p.AppProtocol, Port: &number})
	}
	for i := range n {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address(cluster, family, i)}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)},
		})
	}
	for _, change := range changes {
		change(slice)
	}
	e.create(cluster, slice)
	return slice
}

func ptr[T any](v T) *T { return &v }

type changeExport = func(*mcsv1beta1.ServiceExport)

// export makes the ServiceExport of web.
func (e *scene) export(cluster string, changes ...changeExport) *mcsv1beta1.ServiceExport {
	e.t.Helper()
	x := e.newExport(changes...)
	e.create(cluster, x)
	return x
}

func (e *scene) newExport(changes ...changeExport) *mcsv1beta1.ServiceExport {
	x := &mcsv1beta1.ServiceExport{ObjectMeta: e.meta(web)}
	for _, change := range changes {
		change(x)
	}
	return x
}

// exportAfter makes the ServiceExport of web when it will be younger than another: creation times are whole seconds. What would be
// created now is asked of the API server.
func (e *scene) exportAfter(older *mcsv1beta1.ServiceExport, cluster string, changes ...changeExport) *mcsv1beta1.ServiceExport {
	e.t.Helper()
	eventually(e.t, "a later second", func(ctx context.Context) error {
		probe := e.newExport()
		if err := e.api[cluster].Create(ctx, probe, client.DryRunAll); err != nil {
			return err
		}
		if !older.CreationTimestamp.Before(&probe.CreationTimestamp) {
			return fmt.Errorf("it is still %v", probe.CreationTimestamp)
		}
		return nil
	})
	return e.export(cluster, changes...)
}

func annotated(pairs ...string) changeExport {
	return func(x *mcsv1beta1.ServiceExport) {
		x.Annotations = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			x.Annotations[pairs[i]] = pairs[i+1]
		}
	}
}

// imported waits until a cluster has the import as check wants it. A nil check takes any that is Ready.
func (e *scene) imported(cluster string, check func(*mcsv1beta1.ServiceImport) error) *mcsv1beta1.ServiceImport {
	e.t.Helper()
	var found mcsv1beta1.ServiceImport
	eventually(e.t, "the import in "+cluster, func(ctx context.Context) error {
		found = mcsv1beta1.ServiceImport{}
		if err := e.api[cluster].Get(ctx, e.key(web), &found); err != nil {
			return err
		}
		if check == nil {
			if !meta.IsStatusConditionTrue(found.Status.Conditions, string(mcsv1beta1.ServiceImportConditionReady)) {
				return fmt.Errorf("conditions %v", found.Status.Conditions)
			}
			return nil
		}
		if err := check(&found); err != nil {
			return fmt.Errorf("%w: %+v %+v", err, found.Spec, found.Status)
		}
		return nil
	})
	return &found
}

// fromClusters is a check that an import is made from these clusters.
func fromClusters(clusters ...string) func(*mcsv1beta1.ServiceImport) error {
	return func(i *mcsv1beta1.ServiceImport) error {
		if got := clustersOf(i); !slices.Equal(got, clusters) {
			return fmt.Errorf("clusters %v, want %v", got, clusters)
		}
		return nil
	}
}

func clustersOf(i *mcsv1beta1.ServiceImport) []string {
	var all []string
	for _, c := range i.Status.Clusters {
		all = append(all, c.Cluster)
	}
	slices.Sort(all)
	return all
}

// gone waits until a cluster holds nothing of the service: no import, no derived Service, no slices.
func (e *scene) gone(cluster string) {
	e.t.Helper()
	eventually(e.t, "nothing imported in "+cluster, func(ctx context.Context) error { return e.nothing(ctx, cluster) })
}

func (e *scene) nothing(ctx context.Context, cluster string) error {
	var imports mcsv1beta1.ServiceImportList
	if err := e.api[cluster].List(ctx, &imports, client.InNamespace(e.ns)); err != nil {
		return err
	}
	own, err := e.own(ctx, cluster)
	if err != nil {
		return err
	}
	err = e.api[cluster].Get(ctx, e.key(e.derivedName()), &corev1.Service{})
	if err == nil {
		return errors.New("the derived Service is there")
	}
	if len(imports.Items)+len(own) > 0 {
		return fmt.Errorf("%d imports, %d slices", len(imports.Items), len(own))
	}
	return client.IgnoreNotFound(err)
}

func (e *scene) derivedName() string { return clusterset.DerivedName(e.key(web)) }

// derived is the derived Service in a cluster.
func (e *scene) derived(ctx context.Context, cluster string) (*corev1.Service, error) {
	var s corev1.Service
	err := e.api[cluster].Get(ctx, e.key(e.derivedName()), &s)
	return &s, err
}

// own are the slices of ours in a cluster, sorted by name.
func (e *scene) own(ctx context.Context, cluster string) ([]discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := e.api[cluster].List(ctx, &list, client.InNamespace(e.ns), client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy})
	slices.SortFunc(list.Items, func(a, b discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	return list.Items, err
}

// importedSlices are the slices of backends, as the Multi-Cluster Services API has them, in a cluster.
func (e *scene) importedSlices(ctx context.Context, cluster string) ([]discoveryv1.EndpointSlice, error) {
	own, err := e.own(ctx, cluster)
	return slices.DeleteFunc(own, func(s discoveryv1.EndpointSlice) bool {
		return s.Labels[v1alpha1.LabelClusterAddress] != "" || s.Labels[v1alpha1.LabelServiceName] == ""
	}), err
}

// serving says who stands behind the clusterset IP in a cluster with a ready backend: "c1:http c2:admin", each once, sorted.
func (e *scene) serving(ctx context.Context, cluster string) (string, error) {
	own, err := e.own(ctx, cluster)
	all := map[string]bool{}
	for _, s := range own {
		// All backends of a cluster that serves stand there, those that are not ready too: kube-proxy leaves them out.
		ready := slices.ContainsFunc(s.Endpoints, func(end discoveryv1.Endpoint) bool { return *end.Conditions.Ready })
		if s.Labels[discoveryv1.LabelServiceName] != e.derivedName() || !ready {
			continue
		}
		for _, port := range s.Ports {
			all[s.Labels[v1alpha1.LabelSourceCluster]+":"+*port.Name] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(all)), " "), err
}

func (e *scene) serves(cluster, want string) {
	e.t.Helper()
	eventually(e.t, "who serves in "+cluster, func(ctx context.Context) error {
		got, err := e.serving(ctx, cluster)
		if err == nil && got != want {
			err = fmt.Errorf("%q, want %q", got, want)
		}
		return err
	})
}

// conditions waits until the export of web in a cluster has these conditions, each as "Type=Status/Reason", and all of the object
// as it is now. It gives the export.
func (e *scene) conditions(cluster string, want ...string) *mcsv1beta1.ServiceExport {
	e.t.Helper()
	var x mcsv1beta1.ServiceExport
	eventually(e.t, "conditions in "+cluster, func(ctx context.Context) error {
		x = mcsv1beta1.ServiceExport{}
		if err := e.api[cluster].Get(ctx, e.key(web), &x); err != nil {
			return err
		}
		for _, w := range want {
			kind, _, _ := strings.Cut(w, "=")
			c := meta.FindStatusCondition(x.Status.Conditions, kind)
			if c == nil {
				return fmt.Errorf("no condition %s", kind)
			}
			if got := fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason); got != w {
				return fmt.Errorf("%s (%s), want %s", got, c.Message, w)
			}
			if c.ObservedGeneration != x.Generation {
				return fmt.Errorf("%s is of generation %d, the object of %d", kind, c.ObservedGeneration, x.Generation)
			}
		}
		return nil
	})
	return &x
}

const (
	valid     = "Valid=True/Valid"
	exported  = "Ready=True/Exported"
	agreement = "Conflict=False/NoConflicts"
)

// exists says whether an object is there.
func (e *scene) exists(ctx context.Context, cluster string, object client.Object) (bool, error) {
	err := e.api[cluster].Get(ctx, client.ObjectKeyFromObject(object), object)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
