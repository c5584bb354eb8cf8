package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
)

// TestRealBroker restores a broker, etcd and API server, from a backup while two agents run. Their own clusters are fakes. What was
// exported since the backup stays in the other cluster all the time, what was withdrawn since stays away, and in the end the broker has
// it all, and tells of changes again. Then the broker hangs while both agents start anew, and all stays as it is. In the end it is restored
// once more while no agent runs, and that of the importing cluster starts first.
func TestRealBroker(t *testing.T) {
	server := apitest.StartServer(t, "broker", "10.99.0.0/16,fd00:99::/108")
	ctx := t.Context()
	config, err := clientcmd.BuildConfigFromFlags("", server.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	admin := administrator(t, w.scheme, config)
	w.server("broker", dual) // nobody's
	for _, cluster := range []string{"c1", "c2"} {
		w.server(cluster, dual, decode(t, w.scheme, []byte(inEveryCluster))...)
		if err := admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "member-" + cluster}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, object := range decode(t, w.scheme, []byte(onTheBroker)) {
		eventually(t, func() error { return client.IgnoreAlreadyExists(admin.Create(ctx, object)) })
	}
	stop := w.connect(t, config, "c1", "c2")
	defer func() { stop() }()
	c2 := w.servers["c2"]
	export := func(name string, n int) {
		t.Helper()
		for _, object := range decode(t, w.scheme, []byte(fmt.Sprintf(exportedService, name, n))) {
			if err := applied(ctx, c2, object); err != nil {
				t.Fatal(err)
			}
		}
	}
	withdraw := func(name string) {
		t.Helper()
		if err := c2.Delete(ctx, &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "sample", Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want ...string) func() error {
		return func() error {
			got, err := w.backends(ctx, "c1")
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("c1 has %q, want %q", got, want)
			}
			return err
		}
	}
	const (
		kept4, kept6       = "kept 10.9.0.1", "kept fd00:9::1"
		changed4, changed6 = "changed 10.9.0.1", "changed fd00:9::1"
		later4, later6     = "changed 10.9.0.2", "changed fd00:9::2"
		gone4, gone6       = "withdrawn 10.9.0.1", "withdrawn fd00:9::1"
		new4, new6         = "young 10.9.0.1", "young fd00:9::1"
	)
	for _, name := range []string{"kept", "changed", "withdrawn"} {
		export(name, 1)
	}
	eventually(t, has(changed4, changed6, kept4, kept6, gone4, gone6))
	backup := server.Backup(t)

	export("changed", 2)
	export("young", 1)
	withdraw("withdrawn")
	eventually(t, has(later4, later6, kept4, kept6, new4, new6))
	// Others write more meanwhile than will be written after the restore until all has settled.
	busy := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "busy"}, Data: map[string]string{"n": "none"}}
	if err := admin.Create(ctx, busy); err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		busy.Data["n"] = strconv.Itoa(i)
		if err := admin.Update(ctx, busy); err != nil {
			t.Fatal(err)
		}
	}
	before := revision(t, admin)
	seen := w.observe(t, "c1")

	t.Logf("the broker stops at %s", time.Now().Format(time.TimeOnly))
	server.Restore(t, backup)
	t.Logf("it is there again at %s", time.Now().Format(time.TimeOnly))
	if after := revision(t, admin); after >= before {
		t.Fatalf("the broker is at revision %d, and was at %d: this is no older one", after, before)
	}
	records := func(want ...string) func() error {
		return func() error {
			var all v1alpha1.ExportedEndpointsList
			if err := admin.List(ctx, &all, client.InNamespace("member-c2")); err != nil {
				return err
			}
			var got []string
			for _, record := range all.Items {
				for _, b := range record.Spec.Backends {
					got = append(got, record.Spec.Service+" "+b.Addresses[0])
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				return fmt.Errorf("the broker has %q, want %q", got, want)
			}
			var services v1alpha1.ExportedServiceList
			if err := admin.List(ctx, &services, client.InNamespace("member-c2")); err != nil {
				return err
			}
			var names []string
			for _, record := range services.Items {
				if !record.Spec.Withdrawn {
					names = append(names, record.Spec.Name)
				}
			}
			slices.Sort(names)
			if want := []string{"changed", "kept", "young"}; !slices.Equal(names, want) {
				return fmt.Errorf("the broker has services %q, want %q", names, want)
			}
			return nil
		}
	}
	eventually(t, records(later4, later6, kept4, kept6, new4, new6))
	eventually(t, func() error {
		if held := w.agents["c1"].config.Records.View().Held; held > 0 {
			return fmt.Errorf("%d records are held", held)
		}
		return nil
	})

	// A watch that resumed where it was would wait for the revision that it saw last.
	export("changed", 1)
	eventually(t, has(changed4, changed6, kept4, kept6, new4, new6))
	if now := revision(t, admin); now >= before {
		t.Errorf("the broker is at revision %d, and was at %d: a watch that resumed would have told of the change too", now, before)
	}
	for _, cluster := range []string{"c1", "c2"} {
		var lease coordinationv1.Lease
		if err := admin.Get(ctx, client.ObjectKey{Namespace: "member-" + cluster, Name: v1alpha1.LeaseName}, &lease); err != nil {
			t.Error(err)
		}
	}

	t.Logf("it hangs from %s", time.Now().Format(time.TimeOnly))
	server.Pause(t)
	stop()
	stop = w.connect(t, config, "c1", "c2")
	for _, cluster := range []string{"c1", "c2"} {
		eventually(t, w.agents[cluster].Ready)
	}
	export("kept", 2) // c2 knows of it, and c1 cannot
	eventually(t, func() error {
		got, err := w.backends(ctx, "c2")
		if err == nil && !slices.Contains(got, "kept fd00:9::2") {
			err = fmt.Errorf("c2 has %q", got)
		}
		return err
	})
	if err := has(changed4, changed6, kept4, kept6, new4, new6)(); err != nil {
		t.Error(err)
	}
	t.Logf("it answers again from %s", time.Now().Format(time.TimeOnly))
	server.Resume(t)
	now := has(changed4, changed6, "kept 10.9.0.2", "kept fd00:9::2", new4, new6)
	eventually(t, now)
	heard := func() error {
		if awaited := w.agents["c1"].config.Records.View().Awaited; len(awaited) > 0 {
			return fmt.Errorf("%q are awaited", awaited)
		}
		return nil
	}
	eventually(t, heard)

	t.Logf("nobody runs when it is restored again, at %s", time.Now().Format(time.TimeOnly))
	stop()
	server.Restore(t, backup)
	eventually(t, func() error { return admin.List(ctx, &v1alpha1.ClusterSetList{}) })
	stopFirst := w.connect(t, config, "c1")
	eventually(t, w.agents["c1"].Ready)
	eventually(t, func() error {
		view := w.agents["c1"].config.Records.View()
		if !view.Synced || len(view.Services) != 3 || !slices.Equal(view.Awaited, []string{"c2"}) {
			return fmt.Errorf("c1 sees %d services, listed %t, awaits %q", len(view.Services), view.Synced, view.Awaited)
		}
		return nil
	})
	w.agents["c1"].Poke()
	if err := w.agents["c1"].rounds(ctx); err != nil {
		t.Error(err)
	}
	if err := now(); err != nil {
		t.Error(err)
	}
	stopSecond := w.connect(t, config, "c2")
	stop = func() { stopFirst(); stopSecond() }
	eventually(t, records(changed4, changed6, "kept 10.9.0.2", "kept fd00:9::2", new4, new6))
	eventually(t, heard)
	export("kept", 1)
	eventually(t, has(changed4, changed6, kept4, kept6, new4, new6))
	for _, event := range seen() {
		for _, never := range []string{"DELETED ServiceImport", "withdrawn", "DELETED EndpointSlice"} {
			if strings.Contains(event, never) {
				t.Errorf("c1 saw: %s", event)
			}
		}
	}
}

// exportedService is a Service with one backend in each family, and its ServiceExport.
const exportedService = `
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: sample}
spec: {ipFamilyPolicy: RequireDualStack, ports: [{name: http, protocol: TCP, port: 80, targetPort: 8080}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: %[1]s, namespace: sample}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-4, namespace: sample, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: [10.9.0.%[2]d], conditions: {ready: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-6, namespace: sample, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv6
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: ["fd00:9::%[2]d"], conditions: {ready: true}}]
`

// administrator is a client of a new broker, with the CRDs in place.
func administrator(t *testing.T, scheme *runtime.Scheme, config *rest.Config) client.Client {
	t.Helper()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := crds.Broker()
	if err != nil {
		t.Fatal(err)
	}
	for _, definition := range definitions {
		if err := admin.Create(t.Context(), definition); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		return errors.Join(admin.List(t.Context(), &v1alpha1.ClusterSetList{}), admin.List(t.Context(), &v1alpha1.EndpointList{}),
			admin.List(t.Context(), &v1alpha1.ExportedServiceList{}), admin.List(t.Context(), &v1alpha1.ExportedEndpointsList{}))
	})
	return admin
}

// connect runs the agents of clusters on a real broker, until the returned function is called.
func (w *world) connect(t *testing.T, config *rest.Config, clusters ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ctrllog.SetLogger(logr.Discard())
	var connections sync.WaitGroup
	for _, cluster := range clusters {
		a := w.agent(t, cluster)
		connection, err := broker.New(config, "member-"+cluster, w.scheme, a.BrokerChanged)
		if err != nil {
			t.Fatal(err)
		}
		a.config.Records, a.config.Connected, a.broker.writer = connection, connection.Connected, connection.Writer
		connection.Settled = a.Settled
		connections.Go(func() { _ = connection.Run(ctx) })
		w.start(cluster, a)
	}
	return func() {
		w.stopAll()
		cancel()
		connections.Wait()
	}
}

// backends are the services that a cluster has imported, with the backends of each, sorted.
func (w *world) backends(ctx context.Context, cluster string) ([]string, error) {
	p, err := w.held(ctx, cluster)
	var all []string
	for _, slice := range p.Slices {
		if name := slice.Labels[v1alpha1.LabelServiceName]; slice.Labels[v1alpha1.LabelClusterAddress] == "" && name != "" {
			for _, endpoint := range slice.Endpoints {
				all = append(all, name+" "+endpoint.Addresses[0])
			}
		}
	}
	slices.Sort(all)
	return all, err
}

// observe notes every event of imports and slices in a cluster, and returns what gives them when it is called.
func (w *world) observe(t *testing.T, cluster string) (seen func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	for _, list := range []client.ObjectList{&mcsv1beta1.ServiceImportList{}, &discoveryv1.EndpointSliceList{}} {
		events, err := w.servers[cluster].Watch(t.Context(), list)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(events.Stop)
		go func() {
			for event := range events.ResultChan() {
				object := event.Object.(client.Object)
				mu.Lock()
				all = append(all, fmt.Sprintf("%s %s %s at %s", event.Type, kindOf(object), object.GetName(), time.Now().Format(time.TimeOnly)))
				mu.Unlock()
			}
		}()
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// revision is that of the broker's store.
func revision(t *testing.T, admin client.Client) (n int64) {
	t.Helper()
	eventually(t, func() error {
		var sets v1alpha1.ClusterSetList
		if err := admin.List(t.Context(), &sets); err != nil {
			return err
		}
		_, err := fmt.Sscan(sets.ResourceVersion, &n)
		return err
	})
	return n
}

// eventually waits until check has no complaint, on a machine that may be busy starting an API server.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.After(4 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}
