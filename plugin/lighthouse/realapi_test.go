package lighthouse

import (
	"net"
	"testing"
	"time"

	"github.com/coredns/caddy"
	_ "github.com/coredns/coredns/plugin/autopath"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/mcsapi/mcstest"
)

// TestBesideKubernetes runs a cluster's whole DNS against a real API server: *kubernetes* for cluster.local, with *autopath*,
// *cache* and *loadbalance*. Before the CRDs are there, only the clusterset zone suffers; then it heals by itself.
func TestBesideKubernetes(t *testing.T) {
	kubeconfig := apitest.Start(t, "east", "10.97.0.0/16")
	api := newClient(t, kubeconfig)
	create := func(o client.Object) {
		t.Helper()
		if err := api.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	create(&corev1.Service{ObjectMeta: meta("local"), Spec: corev1.ServiceSpec{ClusterIP: "10.97.0.10", Ports: []corev1.ServicePort{{Port: 80}}}})

	address := loopback()
	port := freePort(t, address)
	server := net.JoinHostPort(address, port)
	withLighthouse()
	i, err := caddy.Start(corefileInput(`.:` + port + ` {
		bind ` + address + `
		cache 30
		loadbalance
		autopath @kubernetes
		lighthouse clusterset.local {
			kubeconfig ` + kubeconfig + `
			startup_timeout 0s
			cluster_names
		}
		kubernetes cluster.local {
			kubeconfig ` + kubeconfig + `
			pods verified
		}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	defer stopInstance(t, i)
	ask := func(name string, qtype uint16) *dns.Msg {
		t.Helper()
		m, err := dns.Exchange(new(dns.Msg).SetQuestion(name, qtype), server)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	const local, web, db = "local.shop.svc.cluster.local.", "web.shop.svc.clusterset.local.", "db.shop.svc.clusterset.local."
	eventually(t, "cluster.local is answered", func() bool { return len(ask(local, dns.TypeA).Answer) == 1 })
	if m := ask("nothing.shop.svc.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("a name that is not there, in cluster.local: %v", m)
	}
	if m := ask(web, dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without CRDs: %v", m)
	}

	definitions, err := crds.Member()
	if err != nil {
		t.Fatal(err)
	}
	for _, definition := range definitions {
		create(definition)
	}
	objects := parseObjects(t, `
		import shop/web ClusterSetIP ips=10.97.1.1,fd00:97::1 ports=http/tcp/80
		import shop/db Headless ports=pg/tcp/5432
		slice shop/db west ports=pg/tcp/5432 db-0=10.2.1.1 !db-1=10.2.1.2
		slice shop/db west ports=pg/tcp/5432 db-0=fd00:2::1
	`)
	for _, o := range objects.imports {
		eventually(t, "the CRD is served", func() bool { return api.Create(t.Context(), o.DeepCopy()) == nil })
	}
	for _, o := range objects.slices {
		create(o)
	}
	eventually(t, "the clusterset zone heals", func() bool { return len(ask(web, dns.TypeA).Answer) == 1 })
	eventually(t, "and has backends", func() bool { return len(ask("db-0.west."+db, dns.TypeAAAA).Answer) == 1 })
	if m := ask(db, dns.TypeSRV); len(m.Answer) != 1 || len(m.Extra) != 2 {
		t.Errorf("SRV: %v", m)
	}

	// With autopath a client's first try, below its own namespace, has the answer.
	pod := &corev1.Pod{ObjectMeta: meta("client"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}}, NodeName: "node"}}
	account := &corev1.ServiceAccount{ObjectMeta: meta("default")}
	create(account)
	create(pod)
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "127.0.0.1", PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}}}
	if err := api.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	tried := web + "shop.svc.cluster.local."
	eventually(t, "autopath finds the clusterset name", func() bool {
		m := ask(tried, dns.TypeA)
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 2 {
			return false
		}
		alias, isAlias := m.Answer[0].(*dns.CNAME)
		a, isA := m.Answer[1].(*dns.A)
		return isAlias && isA && alias.Target == web && a.Hdr.Name == web && a.A.String() == "10.97.1.1"
	})

	// What changes at the API is served at once, slices in protobuf included.
	slice := objects.slices[0]
	slice.Endpoints[1].Conditions.Ready = new(true)
	if err := api.Update(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a backend gets ready", func() bool { return len(ask("db-1.west."+db, dns.TypeA).Answer) == 1 })
	if err := api.DeleteAllOf(t.Context(), &discoveryv1.EndpointSlice{}, client.InNamespace("shop")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all backends go", func() bool { return ask("db-2.west."+db, dns.TypeA).Rcode == dns.RcodeNameError })
}

// TestFollowVersions changes which version of the Multi-Cluster Services API a real API server serves. What was read is served
// throughout, and what changes under the other version is seen.
func TestFollowVersions(t *testing.T) {
	kubeconfig := apitest.Start(t, "east", "10.97.0.0/16")
	api := newClient(t, kubeconfig)
	if err := api.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}); err != nil {
		t.Fatal(err)
	}
	serve := func(definitions []*apiextensionsv1.CustomResourceDefinition, err error) {
		t.Helper()
		if err == nil {
			err = mcstest.Put(t.Context(), api, definitions)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// write makes web's import, in a version, one with these addresses.
	write := func(version string, ips ...any) {
		t.Helper()
		eventually(t, "written in "+version, func() bool {
			object := &unstructured.Unstructured{}
			object.SetGroupVersionKind(schema.GroupVersionKind{Group: "multicluster.x-k8s.io", Version: version, Kind: "ServiceImport"})
			err := api.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "web"}, object)
			object.SetNamespace("shop")
			object.SetName("web")
			object.Object["spec"] = map[string]any{"type": "ClusterSetIP", "ips": ips, "ports": []any{map[string]any{"port": int64(80), "protocol": "TCP"}}}
			if apierrors.IsNotFound(err) {
				return api.Create(t.Context(), object) == nil
			}
			return err == nil && api.Update(t.Context(), object) == nil
		})
	}
	config, err := kube.Config(kubeconfig, "test")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSource(config)
	if err != nil {
		t.Fatal(err)
	}
	s.pace = pace{afterError: 10 * time.Millisecond, afterRefusal: 20 * time.Millisecond}
	s.start()
	t.Cleanup(s.stop)
	l := newTestPlugin(s.world)
	const question = "web.shop A"
	wantShort(t, l, question, "SERVFAIL")
	served := func(address string) {
		t.Helper()
		eventually(t, address+" is answered", func() bool {
			switch got := short(t, l, question); got {
			case address:
				return true
			case "SERVFAIL", "NXDOMAIN", "":
				t.Fatalf("while %s was awaited: %q", address, got)
			}
			return false
		})
	}

	serve(mcstest.First())
	write("v1alpha1", "10.96.0.1")
	wantShort(t, l, question, "10.96.0.1")

	serve(mcstest.Serving("v1alpha1", "v1beta1"))
	write("v1beta1", "10.96.0.2", "fd00:96::2")
	served("10.96.0.2")
	wantShort(t, l, "web.shop AAAA", "fd00:96::2")

	serve(mcstest.Serving("v1beta1"))
	write("v1beta1", "10.96.0.3", "fd00:96::3")
	served("10.96.0.3")

	serve(mcstest.Serving("v1alpha1"))
	write("v1alpha1", "10.96.0.4", "fd00:96::4")
	served("10.96.0.4")

	serve(mcstest.Serving())
	serve(mcstest.Serving("v1beta1"))
	write("v1beta1", "10.96.0.5", "fd00:96::5")
	served("10.96.0.5")
	wantShort(t, l, "web.shop AAAA", "fd00:96::5")
}

// newClient reaches an API server with every kind that the tests write.
func newClient(t *testing.T, kubeconfig string) client.Client {
	t.Helper()
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	config, err := kube.Config(kubeconfig, "test")
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return api
}
