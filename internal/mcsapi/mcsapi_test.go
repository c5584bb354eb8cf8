package mcsapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/mcsapi"
	"github.com/fastnet-io/fastnet/internal/mcsapi/mcstest"
)

// TestFollow changes what a real API server serves, under a cache and a client that stay the same: nothing, v1alpha1 as it first
// was, both versions, v1alpha1 alone, nothing, v1beta1 alone.
func TestFollow(t *testing.T) {
	config, err := kube.Config(apitest.Start(t, "c1", "10.97.0.0/16"), "test")
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	var changes, deleted atomic.Int32
	api, err := mcsapi.New(config, slog.New(slog.DiscardHandler), func() { changes.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	objects, c, err := broker.Local(config, scheme, api)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	informer, err := objects.GetInformer(ctx, &mcsv1beta1.ServiceImport{}, cache.BlockUntilSynced(false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { deleted.Add(1) }}); err != nil {
		t.Fatal(err)
	}
	if _, err := objects.GetInformer(ctx, &mcsv1beta1.ServiceExport{}, cache.BlockUntilSynced(false)); err != nil {
		t.Fatal(err)
	}
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { _ = api.Run(background) })
	running.Go(func() { _ = objects.Start(background) })

	crds := func(all []*apiextensionsv1.CustomResourceDefinition, err error) {
		t.Helper()
		if err == nil {
			err = mcstest.Put(ctx, admin, all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	served := func(exports, imports string) {
		t.Helper()
		want := "ServiceExport.multicluster.x-k8s.io: " + exports + "\nServiceImport.multicluster.x-k8s.io: " + imports + "\n"
		eventually(t, func() error {
			if got := api.String(); got != want {
				return fmt.Errorf("served is\n%s, want\n%s", got, want)
			}
			return nil
		})
	}
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: name} }
	// imported is an import with everything in it.
	imported := func(name string) *mcsv1beta1.ServiceImport {
		return &mcsv1beta1.ServiceImport{
			ObjectMeta: named(name),
			Spec: mcsv1beta1.ServiceImportSpec{
				Type: mcsv1beta1.ClusterSetIP, IPs: []string{"10.0.0.1", "fd00::1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
				Ports:           []mcsv1beta1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
				SessionAffinity: corev1.ServiceAffinityNone, TrafficDistribution: new("PreferClose"),
			},
		}
	}
	// write makes an import and its status as they should be, as far as there is room, and tells whether that changed anything.
	write := func(name string) (changed bool) {
		t.Helper()
		eventually(t, func() error {
			want, have := imported(name), &mcsv1beta1.ServiceImport{}
			err := c.Get(ctx, client.ObjectKeyFromObject(want), have)
			if apierrors.IsNotFound(err) {
				have = want
				api.Fit(have)
				err = c.Create(ctx, have)
				changed = true
			}
			if err != nil {
				return err
			}
			before := have.ResourceVersion
			have.Spec = imported(name).Spec
			api.Fit(have)
			if err := c.Update(ctx, have); err != nil {
				return err
			}
			have.Status = mcsv1beta1.ServiceImportStatus{
				Clusters: []mcsv1beta1.ClusterStatus{{Cluster: "c1"}}, EndpointSliceObjects: mcsv1beta1.EndpointSliceObjectsPresent,
				Conditions: []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Ready", ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(time.Unix(1, 0))}},
			}
			api.Fit(have)
			want = have.DeepCopy()
			if err := c.Status().Update(ctx, have); err != nil {
				return err
			}
			changed = changed || have.ResourceVersion != before
			// What was written is what is there: nothing was dropped without a word.
			if diff := cmp.Diff(want.Spec, have.Spec) + cmp.Diff(want.Status, have.Status); diff != "" {
				t.Errorf("%s became (-want +got):\n%s", name, diff)
			}
			return nil
		})
		return changed
	}
	// seen waits until the cache has the imports named, with so many addresses each.
	seen := func(addresses int, names ...string) {
		t.Helper()
		eventually(t, func() error {
			var list mcsv1beta1.ServiceImportList
			if err := objects.List(ctx, &list); err != nil {
				return err
			}
			var got []string
			for _, i := range list.Items {
				if len(i.Spec.IPs) != addresses {
					return fmt.Errorf("%s has the addresses %v, want %d", i.Name, i.Spec.IPs, addresses)
				}
				got = append(got, i.Name)
			}
			if len(got) != len(names) {
				return fmt.Errorf("the cache has %v, want %v", got, names)
			}
			return nil
		})
	}

	// No CRDs: it says so, and the API server does not pass for one that is away.
	const none = "cannot be used: there is no CRD "
	served(none+"serviceexports.multicluster.x-k8s.io", none+"serviceimports.multicluster.x-k8s.io")
	if err := api.Ready(); err == nil || !strings.Contains(err.Error(), "ServiceImport.multicluster.x-k8s.io cannot be used: there is no CRD") {
		t.Errorf("ready: %v", err)
	}
	if err := c.Create(ctx, imported("web")); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "there is no CRD") {
		t.Errorf("create: %v", err)
	}

	crds(mcstest.First())
	const firstExports = "v1alpha1, without spec, status.conditions.observedGeneration"
	served(firstExports, "v1alpha1, without more than 1 of spec.ips, spec.ipFamilies, spec.internalTrafficPolicy, spec.trafficDistribution, status.endpointSliceObjects, status.conditions")
	if err := api.Ready(); err != nil {
		t.Error(err)
	}
	write("web")
	if write("web") {
		t.Error("an import that is as it should be was changed by writing it")
	}
	seen(1, "web")

	// More fields, and the other version: they are used at once, and what was there stays.
	crds(mcstest.Serving("v1alpha1", "v1beta1"))
	served("v1beta1", "v1beta1")
	if !write("web") {
		t.Error("the new fields are not used")
	}
	write("db")
	seen(2, "web", "db")

	// The version that was spoken is no longer served.
	before := changes.Load()
	crds(mcstest.Serving("v1alpha1"))
	served("v1alpha1", "v1alpha1")
	if changes.Load() == before {
		t.Error("nobody was told of the change")
	}
	if write("web") {
		t.Error("speaking the other version changes what is there")
	}
	write("api")
	seen(2, "web", "db", "api")

	// Neither is: what was read stays, for as long as it takes.
	crds(mcstest.Serving())
	const neither = "cannot be used: its CRD serves nothing, none of v1beta1, v1alpha1"
	served(neither, neither)
	seen(2, "web", "db", "api")
	crds(mcstest.Serving("v1beta1"))
	served("v1beta1", "v1beta1")
	write("more")
	seen(2, "web", "db", "api", "more")
	if n := deleted.Load(); n != 0 {
		t.Errorf("the cache told of %d deletions, and there were none", n)
	}

	// The CRDs go, and all objects with them; others of the same name come.
	all, err := mcstest.Serving()
	if err != nil {
		t.Fatal(err)
	}
	if err := mcstest.Remove(ctx, admin, all); err != nil {
		t.Fatal(err)
	}
	seen(2)
	served(none+"serviceexports.multicluster.x-k8s.io", none+"serviceimports.multicluster.x-k8s.io")
	crds(mcstest.Serving("v1beta1"))
	served("v1beta1", "v1beta1")
	write("web")
	seen(2, "web")
}

func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
