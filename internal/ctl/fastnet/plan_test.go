package fastnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/helm"
)

func node(name string, podCIDRs ...string) corev1.Node {
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: podCIDRs}}
}

func program(words ...string) corev1.Pod {
	return corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Command: words}}}}
}

func serviceCIDR(cidrs ...string) networkingv1.ServiceCIDR {
	return networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

func TestDiscover(t *testing.T) {
	const kubeadm = "kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.8.0.0/16,fd00:8::/48\n  serviceSubnet: 10.88.0.0/16\n"
	for _, test := range []struct {
		name           string
		facts          addressFacts
		pods, services string
	}{
		{"nothing known", addressFacts{nodes: []corev1.Node{node("n1")}}, " ()", " ()"},
		{"flags, dual-stack, over all else", addressFacts{
			system: []corev1.Pod{
				program("kube-controller-manager", "--cluster-cidr=10.8.0.0/16,fd00:8::/48"),
				program("kube-apiserver", "--service-cluster-ip-range", "10.77.0.0/16"),
			},
			serviceCIDRs: []networkingv1.ServiceCIDR{serviceCIDR("10.88.0.0/16", "fd00:88::/108"), serviceCIDR("10.89.0.0/16")},
			nodes:        []corev1.Node{node("n1", "10.8.1.0/24", "fd00:8:0:1::/64")},
		}, "10.8.0.0/16 fd00:8::/48 (--cluster-cidr of the control plane)", "10.88.0.0/16 10.89.0.0/16 fd00:88::/108 (ServiceCIDR objects)"},
		{"kubeadm", addressFacts{kubeadm: kubeadm}, "10.8.0.0/16 fd00:8::/48 (kubeadm-config)", "10.88.0.0/16 (kubeadm-config)"},
		{"an older cluster", addressFacts{system: []corev1.Pod{program("kube-apiserver", "--service-cluster-ip-range=10.77.0.0/16")}, kubeadm: kubeadm},
			"10.8.0.0/16 fd00:8::/48 (kubeadm-config)", "10.77.0.0/16 (--service-cluster-ip-range of the control plane)"},
		{"a node outside of what the flag says", addressFacts{kubeadm: kubeadm, nodes: []corev1.Node{node("n1", "10.8.1.0/24"), node("n2", "10.9.2.0/24")}},
			"10.8.0.0/16 10.9.2.0/24 fd00:8::/48 (kubeadm-config and the nodes' podCIDRs)", "10.88.0.0/16 (kubeadm-config)"},
		{"nodes alone", addressFacts{nodes: []corev1.Node{node("n2", "10.8.2.0/24", "fd00:8:0:2::/64"), node("n1", "10.8.1.0/24")}},
			"10.8.1.0/24 10.8.2.0/24 fd00:8:0:2::/64 (the nodes' podCIDRs, one by one: nodes added later lie outside)", " ()"},
		{"what cannot be read is not said", addressFacts{system: []corev1.Pod{program("x", "--cluster-cidr=$(CIDR)")}, kubeadm: "}{"}, " ()", " ()"},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := discover(test.facts)
			got := []string{
				strings.Join(prefixStrings(found.pods), " ") + " (" + found.podsFrom + ")",
				strings.Join(prefixStrings(found.services), " ") + " (" + found.servicesFrom + ")",
			}
			if diff := cmp.Diff([]string{test.pods, test.services}, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestOverlapsNameBothSides(t *testing.T) {
	endpoint := func(id string, prefixes ...string) v1alpha1.Endpoint {
		return v1alpha1.Endpoint{Spec: v1alpha1.EndpointSpec{ClusterID: id, Prefixes: prefixes}}
	}
	ours := parsePrefixes("10.8.0.0/16,fd00:8::/48")
	got := overlaps("c1", ours, []v1alpha1.Endpoint{
		endpoint("c1", "10.8.0.0/16"), endpoint("c2", "10.9.0.0/16", "fd00:9::/48"),
		endpoint("c3", "10.0.0.0/8"), endpoint("c3", "10.0.0.0/8"), endpoint("c4", "fd00:8:0:7::/64"),
	})
	want := []string{"10.8.0.0/16 of this cluster overlaps 10.0.0.0/8 of cluster c3", "fd00:8::/48 of this cluster overlaps fd00:8:0:7::/64 of cluster c4"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestDNSAddress(t *testing.T) {
	for cidr, want := range map[string]string{"10.88.0.0/16": "10.88.0.10 true", "fd00:88::/108": "fd00:88::a true", "10.88.0.0/29": "10.88.0.10 false"} {
		address, ok := dnsAddress(netip.MustParsePrefix(cidr))
		if got := fmt.Sprintf("%s %t", address, ok); got != want {
			t.Errorf("%s: %s, want %s", cidr, got, want)
		}
	}
}

func TestCorefileBlock(t *testing.T) {
	const own = ".:53 {\n    errors\n}\n"
	first := withBlock(own, forwardBlock([]string{"10.88.0.5", "fd00:88::5"}))
	want := own + "# BEGIN fastnet\nclusterset.local:53 {\n    errors\n    forward . 10.88.0.5 fd00:88::5\n}\n# END fastnet\n"
	if first != want {
		t.Errorf("got\n%s\nwant\n%s", first, want)
	}
	if second := withBlock(first, lighthouseBlock()); strings.Count(second, blockBegin) != 1 || strings.Contains(second, "forward") {
		t.Errorf("the old block stays:\n%s", second)
	}
	if got := withoutBlock(first); got != own {
		t.Errorf("without the block: %q, want %q", got, own)
	}
	for corefile, refused := range map[string]bool{
		own: false, first: false, "": false,
		"# clusterset.local:53 {\n" + own:                                          false,
		own + "clusterset.local:53 {\n}\n":                                         true,
		own + "clusterset.local {\n}\n":                                            true,
		"example.org, clusterset.local. {\n}\n":                                    true,
		".:53 {\n    kubernetes cluster.local clusterset.local in-addr.arpa {\n }": true,
		".:53 {\n    hosts other-clusterset.localdomain\n}\n":                      false,
	} {
		if err := checkCorefile(corefile); (err != nil) != refused {
			t.Errorf("%q: error %v, want refused: %t", corefile, err, refused)
		}
	}
}

// The block that join writes is the one that the chart renders.
func TestCorefileBlockIsTheCharts(t *testing.T) {
	chart, err := helm.Chart(helm.Member)
	if err != nil {
		t.Fatal(err)
	}
	install := action.NewInstall(action.NewConfiguration())
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = helm.Member, v1alpha1.Namespace
	install.KubeVersion = &common.KubeVersion{Version: "v1.36.3", Major: "1", Minor: "36"}
	made, err := install.RunWithContext(t.Context(), chart, map[string]any{
		"clusterID": "c1", "prefixes": []any{"10.8.0.0/16"}, "broker": map[string]any{"existingSecret": "x"}, "dns": map[string]any{"mode": dnsCluster},
	})
	if err != nil {
		t.Fatal(err)
	}
	rendered, ok := made.(*release.Release)
	if !ok {
		t.Fatalf("a release of type %T", made)
	}
	want := strings.ReplaceAll(withBlock("", lighthouseBlock()), "\n", "\n    ")
	if !strings.Contains(rendered.Manifest, strings.TrimSpace(want)) {
		t.Errorf("the chart does not render\n%s", want)
	}
}

func TestCRDsAreNeverDowngraded(t *testing.T) {
	crd := func(group, release, schema string, versions ...string) *apiextensionsv1.CustomResourceDefinition {
		definition := &apiextensionsv1.CustomResourceDefinition{Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: group}}
		if release != "" {
			definition.Labels = map[string]string{"multicluster.x-k8s.io/release-version": release, "multicluster.x-k8s.io/crd-schema-revision": schema}
		}
		for _, version := range versions {
			definition.Spec.Versions = append(definition.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{Name: version, Served: true})
		}
		return definition
	}
	const mcs = "multicluster.x-k8s.io"
	ours := crd(mcs, "v0.5.2", "1")
	for _, test := range []struct {
		name       string
		live, ours *apiextensionsv1.CustomResourceDefinition
		want       bool
	}{
		{"older", crd(mcs, "v0.4.9", "7"), ours, true},
		{"older revision of the release", crd(mcs, "v0.5.2", "0"), ours, true},
		{"the same", crd(mcs, "v0.5.2", "1"), ours, false},
		{"newer revision", crd(mcs, "v0.5.2", "2"), ours, false},
		{"newer", crd(mcs, "v0.10.0", "0"), ours, false},
		{"without labels, serves what we need", crd(mcs, "", "", "v1alpha1", "v1beta1"), ours, false},
		{"without labels, too old", crd(mcs, "", "", "v1alpha1"), ours, true},
		{"labels nobody can read, too old", crd(mcs, "latest", "x", "v1alpha1"), ours, true},
		{"our own", crd("fastnet.dev", "", ""), crd("fastnet.dev", "", ""), true},
		{"ClusterProperty", crd("about.k8s.io", "", ""), crd("about.k8s.io", "", ""), false},
	} {
		if got := shouldReplace(test.live, test.ours); got != test.want {
			t.Errorf("%s: replace %t, want %t", test.name, got, test.want)
		}
	}
}

func TestBrokerServer(t *testing.T) {
	for _, test := range []struct{ host, asked, want string }{
		{"https://10.0.0.1:6443", "", "https://10.0.0.1:6443"},
		{"https://[fd00::1]:6443", "", "https://[fd00::1]:6443"},
		{"https://127.0.0.1:6443", "", "error: the kubeconfig's server https://127.0.0.1:6443 is this machine's own address"},
		{"https://localhost", "", "error: the kubeconfig's server"},
		{"https://[::1]:6443", "", "error: the kubeconfig's server"},
		{"https://0.0.0.0:6443", "", "error: the kubeconfig's server"},
		{"http://10.0.0.1", "", "error: the kubeconfig's server http://10.0.0.1 is not an https URL"},
		{"https://127.0.0.1:6443", "https://broker.example:6443", "https://broker.example:6443"},
		{"https://10.0.0.1", "broker.example", "error: --server \"broker.example\" is not a URL"},
	} {
		got, err := brokerServer(&rest.Config{Host: test.host}, test.asked)
		if err != nil {
			got = "error: " + err.Error()
		}
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("%s, asked %q: %s, want %s", test.host, test.asked, got, test.want)
		}
	}
	if _, err := brokerServer(&rest.Config{Host: "https://10.0.0.1", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, ""); err == nil {
		t.Error("a kubeconfig that verifies nothing is passed on")
	}
}

func TestClusterIDs(t *testing.T) {
	for id, good := range map[string]bool{
		"c1": true, "east.prod": true, "a-b.c-d": true, strings.Repeat("a", 63): true,
		"": false, "C1": false, "a.b.c": false, "-a": false, "a-": false, "a..b": false, "a_b": false, strings.Repeat("a", 64): false,
	} {
		if err := checkClusterID(id); (err == nil) != good {
			t.Errorf("%q: error %v, want good: %t", id, err, good)
		}
	}
}

func TestPickGateway(t *testing.T) {
	make := func(name string, ready, control, cordoned bool) corev1.Node {
		n := node(name)
		n.Labels = map[string]string{}
		if control {
			n.Labels["node-role.kubernetes.io/control-plane"] = ""
		}
		if ready {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		}
		n.Spec.Unschedulable = cordoned
		return n
	}
	for _, test := range []struct {
		want  string
		nodes []corev1.Node
	}{
		{"", nil},
		{"w1", []corev1.Node{make("a", true, true, false), make("w2", true, false, false), make("w1", true, false, false)}},
		{"w2", []corev1.Node{make("w1", false, false, false), make("w2", true, false, false), make("w0", true, false, true)}},
		{"control", []corev1.Node{make("control", true, true, false), make("w1", false, false, false)}},
		{"control", []corev1.Node{make("control", false, true, false)}},
	} {
		if got, _ := pickGateway(test.nodes); got != test.want {
			t.Errorf("picked %q, want %q", got, test.want)
		}
	}
}

// What a second join is not told stays, and so does what somebody set with Helm.
func TestMemberValuesKeepWhatIsNotGiven(t *testing.T) {
	m := &membership{file: []byte("file"), clusterID: "c1", clusterset: "prod"}
	prefixes := parsePrefixes("10.8.0.0/16")
	first := memberValues(nil, m, joinFlags{imageTag: "v1"}, prefixes)
	base := map[string]any{"clusterID": "c1", "clusterset": "prod", "broker": map[string]any{"kubeconfig": "file"}, "prefixes": []any{"10.8.0.0/16"}}
	want := func(more map[string]any) map[string]any {
		all := map[string]any{}
		for _, from := range []map[string]any{base, more} {
			for key, value := range from {
				all[key] = value
			}
		}
		return all
	}
	if diff := cmp.Diff(want(map[string]any{"dns": map[string]any{"mode": "standalone"}, "image": map[string]any{"tag": "v1"}}), first); diff != "" {
		t.Errorf("first (-want +got)\n%s", diff)
	}
	first["dns"] = map[string]any{"mode": "cluster", "replicas": 5}
	second := memberValues(first, m, joinFlags{imageRegistry: "registry.example"}, prefixes)
	if diff := cmp.Diff(want(map[string]any{
		"dns": map[string]any{"mode": "cluster", "replicas": 5}, "image": map[string]any{"tag": "v1", "registry": "registry.example"},
	}), second); diff != "" {
		t.Errorf("second (-want +got)\n%s", diff)
	}
}
