package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/mcsapi"
	"github.com/fastnet-io/fastnet/internal/mcsapi/mcstest"
)

// TestVersions runs an agent on a real API server, which is the broker too, and whose CRDs of the Multi-Cluster Services API change
// under it: as they first were, as they are now, with either version alone. It exports and imports throughout, shows as much
// as there are fields for, and comes to rest.
func TestVersions(t *testing.T) {
	ctx := t.Context()
	config, err := kube.Config(apitest.Start(t, "c1", "10.97.0.0/16,fd00:97::/108"), "test")
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
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	serve := func(all []*apiextensionsv1.CustomResourceDefinition, err error) {
		t.Helper()
		must(err)
		must(mcstest.Put(ctx, admin, all))
	}
	eventually := func(try func() error) {
		t.Helper()
		deadline, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
		defer tick.Stop()
		for err := try(); err != nil; err = try() {
			select {
			case <-deadline:
				t.Fatal(err)
			case <-tick.C:
			}
		}
	}
	serve(mcstest.First())
	serve(crds.Broker())
	member, err := crds.Member()
	must(err)
	serve(slices.DeleteFunc(member, func(crd *apiextensionsv1.CustomResourceDefinition) bool { return crd.Spec.Group == mcsapi.Group }), nil)
	for _, object := range decode(t, scheme, []byte(`
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: fastnet-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: member-c1}
---
apiVersion: v1
kind: Namespace
metadata: {name: member-c2}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: ["fd00:1::1"]}]
`)) {
		must(admin.Create(ctx, object))
	}
	for _, object := range decode(t, scheme, []byte(onTheBroker)) {
		eventually(func() error {
			return client.IgnoreAlreadyExists(admin.Create(ctx, object.DeepCopyObject().(client.Object)))
		})
	}
	// c2 exports the service as well, by records alone.
	remote := clusterset.Key{Namespace: "shop", Name: "web"}
	record := &v1alpha1.ExportedService{
		ObjectMeta: metav1.ObjectMeta{Namespace: "member-c2", Name: clusterset.ExportName("c2", remote), Labels: map[string]string{
			v1alpha1.LabelSourceCluster: "c2", v1alpha1.LabelServiceNamespace: "shop", v1alpha1.LabelService: "web",
		}},
		Spec: v1alpha1.ExportedServiceSpec{
			Namespace: "shop", Name: "web", Type: "ClusterSetIP", ExportedAt: metav1.NewTime(time.Unix(1, 0)), SessionAffinity: "None",
			IPFamilies: []string{"IPv4", "IPv6"}, Ports: []v1alpha1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}},
		},
	}
	must(admin.Create(ctx, record))

	// The agent, as its program has it.
	var changed func(broker.Change)
	var served func()
	log := slog.New(slog.DiscardHandler)
	ctrllog.SetLogger(logr.Discard()) // else it asks for one, with a stack
	api, err := mcsapi.New(config, log, func() { served() })
	must(err)
	objects, local, err := broker.Local(config, scheme, api)
	must(err)
	records, err := broker.New(config, "member-c1", scheme, func(c broker.Change) { changed(c) })
	must(err)
	registry := prometheus.NewRegistry()
	a, err := New(Config{
		ClusterID: "c1", BrokerNamespace: "member-c1", Reader: objects, Local: local, API: api, Broker: records.Writer,
		Records: records, Connected: records.Connected, Event: func(runtime.Object, string, string, string) {},
		Now: time.Now, Metrics: registry, Log: log,
	})
	must(err)
	changed, served = a.BrokerChanged, a.Poke
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { _ = api.Run(background) })
	running.Go(func() { _ = records.Run(background) })
	must(a.Watch(background, objects))
	running.Go(func() { _ = objects.Start(background) })
	if !objects.WaitForCacheSync(background) {
		t.Fatal("the caches are not filled")
	}
	running.Go(func() { a.Run(background) })

	// shows waits until the import has so many addresses, from these clusters, and the conditions that its CRD has room for.
	shows := func(addresses int, conditions int, clusters ...string) {
		t.Helper()
		eventually(func() error {
			var export mcsv1beta1.ServiceExport
			var imported mcsv1beta1.ServiceImport
			if err := local.Get(ctx, remote, &export); err != nil {
				return err
			}
			if !meta.IsStatusConditionTrue(export.Status.Conditions, "Ready") {
				return fmt.Errorf("the export is %+v", export.Status)
			}
			if err := local.Get(ctx, remote, &imported); err != nil {
				return err
			}
			var has []string
			for _, c := range imported.Status.Clusters {
				has = append(has, c.Cluster)
			}
			if len(imported.Spec.IPs) != addresses || len(imported.Status.Conditions) != conditions || !slices.Equal(has, clusters) {
				return fmt.Errorf("the import is %+v %+v", imported.Spec, imported.Status)
			}
			return nil
		})
	}
	writes := func() (n float64) {
		families, err := registry.Gather()
		must(err)
		for _, family := range families {
			for _, metric := range family.Metric {
				if family.GetName() == "fastnet_agent_writes_total" {
					n += metric.GetCounter().GetValue()
				}
			}
		}
		return n
	}
	rests := func() {
		t.Helper()
		eventually(func() error {
			before := writes()
			err := a.rounds(ctx)
			if n := writes() - before; n > 0 {
				return fmt.Errorf("the agent does not come to rest: %v writes", n)
			}
			return err
		})
	}

	must(local.Create(ctx, &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}))
	shows(1, 0, "c1", "c2")
	rests()

	serve(mcstest.Serving("v1alpha1", "v1beta1"))
	shows(2, 1, "c1", "c2")
	rests()

	serve(mcstest.Serving("v1alpha1"))
	must(admin.Delete(ctx, record))
	shows(2, 1, "c1")
	rests()

	serve(mcstest.Serving("v1beta1"))
	record.ResourceVersion = ""
	must(admin.Create(ctx, record))
	shows(2, 1, "c1", "c2")
	rests()

	// Without the CRDs there is nothing that is exported; when they are back, all is as before, under the same addresses.
	var before, after corev1.Service
	derived := client.ObjectKey{Namespace: "shop", Name: clusterset.DerivedName(remote)}
	must(admin.Get(ctx, derived, &before))
	none, err := mcstest.Serving()
	must(err)
	must(mcstest.Remove(ctx, admin, none))
	serve(mcstest.Serving("v1alpha1", "v1beta1"))
	eventually(func() error {
		return client.IgnoreAlreadyExists(local.Create(ctx, &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}))
	})
	shows(2, 1, "c1", "c2")
	must(admin.Get(ctx, derived, &after))
	if !slices.Equal(before.Spec.ClusterIPs, after.Spec.ClusterIPs) {
		t.Errorf("the clusterset IPs were %v and are %v", before.Spec.ClusterIPs, after.Spec.ClusterIPs)
	}
	rests()
	var backends discoveryv1.EndpointSliceList
	must(admin.List(ctx, &backends, client.InNamespace("shop"), client.MatchingLabels{v1alpha1.LabelSourceCluster: "c1"}))
	if len(backends.Items) == 0 {
		t.Error("no slices")
	}
}
