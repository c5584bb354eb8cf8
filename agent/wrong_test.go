package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// TestWrongInput gives exports what makes no sense. Each is told of, in the condition Valid and in one event, and changes nothing else: the
// cluster and the broker come to hold what they hold without it.
func TestWrongInput(t *testing.T) {
	for _, test := range []struct {
		name, annotation, value string
	}{
		{"affinity that is none", "fastnet.dev/affinity", "sideways"},
		{"weight below zero", "fastnet.dev/weight", "-1"},
		{"weight that is no number", "fastnet.dev/weight", "heavy"},
		{"weight too large", "fastnet.dev/weight", "65536"},
		{"percent above a hundred", "fastnet.dev/min-local-percent", "101"},
		{"prefer what is no cluster ID", "fastnet.dev/prefer", "C_2"},
		{"balance by luck", "fastnet.dev/balance", "luck"},
	} {
		t.Run(test.name, func(t *testing.T) {
			// held is what both sides come to, with and without what is wrong.
			held := func(wrong bool) (cluster, broker string, valid string, events []string) {
				w := newWorld(t)
				w.server("c1", []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, decode(t, w.scheme, []byte(inEveryCluster+`---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: sample}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], ports: [{name: http, protocol: TCP, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, namespace: sample, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: [10.8.1.4], conditions: {ready: true}}]
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: web, namespace: sample, creationTimestamp: "2026-01-02T00:00:00Z", generation: 1}
`))...)
				w.server("broker", []corev1.IPFamily{corev1.IPv4Protocol}, decode(t, w.scheme, []byte(onTheBroker))...)
				key := client.ObjectKey{Namespace: "sample", Name: "web"}
				var export mcsv1beta1.ServiceExport
				if err := w.servers["c1"].Get(t.Context(), key, &export); err != nil {
					t.Fatal(err)
				}
				if wrong {
					export.Annotations = map[string]string{test.annotation: test.value}
					if err := w.servers["c1"].Update(t.Context(), &export); err != nil {
						t.Fatal(err)
					}
				}
				a := w.agent(t, "c1")
				for range 6 {
					if err := a.rounds(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.servers["c1"].Get(t.Context(), key, &export); err != nil {
					t.Fatal(err)
				}
				condition := meta.FindStatusCondition(export.Status.Conditions, "Valid")
				if condition == nil || condition.Status != "True" {
					t.Fatalf("not valid: %+v", export.Status.Conditions)
				}
				text, err := w.shown(t.Context(), "c1")
				if err != nil {
					t.Fatal(err)
				}
				view, err := w.view(t.Context(), "c1")
				if err != nil {
					t.Fatal(err)
				}
				text = strings.ReplaceAll(text, condition.Message, "VALID")
				records := ""
				for _, service := range view.Services {
					records += fmt.Sprintf("%s %+v\n", service.Name, service.Spec)
				}
				return text, records, condition.Message, w.servers["c1"].events
			}
			cluster, broker, valid, events := held(true)
			wantCluster, wantBroker, wantValid, wantEvents := held(false)
			if !strings.Contains(valid, test.annotation) || strings.Contains(wantValid, test.annotation) {
				t.Errorf("Valid says %q, and %q without it; want %q", valid, wantValid, test.annotation)
			}
			const told = "web Warning InvalidAnnotation"
			if more := slices.DeleteFunc(slices.Clone(events), func(e string) bool { return slices.Contains(wantEvents, e) }); !slices.Equal(more, []string{told}) {
				t.Errorf("events %q beside %q, want %q", more, wantEvents, told)
			}
			if diff := cmp.Diff(wantCluster, cluster) + cmp.Diff(wantBroker, broker); diff != "" {
				t.Errorf("it changes something else (-without +with):\n%s", diff)
			}
		})
	}
}

// TestNamesTooLongForDNS: a pod of a headless service whose name has no room in DNS is told of, once, and exported all the same.
func TestNamesTooLongForDNS(t *testing.T) {
	label := strings.Repeat("n", 63)
	contribution := func(kind mcsv1beta1.ServiceImportType, hostnames ...string) *clusterset.Contribution {
		c := &clusterset.Contribution{Cluster: label[:50] + ".east", Export: v1alpha1.ExportedServiceSpec{Namespace: label, Name: label, Type: string(kind)}}
		for _, hostname := range hostnames { // both families
			b := clusterset.Backends{Spec: v1alpha1.ExportedEndpointsSpec{Backends: []v1alpha1.Backend{{Hostname: hostname}}}}
			c.Backends = append(c.Backends, b, b)
		}
		return c
	}
	for _, test := range []struct {
		name string
		of   *clusterset.Contribution
		want string
	}{
		{"too long by one", contribution(mcsv1beta1.Headless, "db-0", strings.Repeat("h", 49)), "DNS has no room for the names of 1 pods, such as " +
			strings.Repeat("h", 49) + "." + label[:50] + ".east." + label + "." + label + ".svc.clusterset.local, of 254 characters; it takes 253"},
		{"as long as can be", contribution(mcsv1beta1.Headless, strings.Repeat("h", 48), ""), ""},
		{"pods of a service with an address of its own have no names", contribution(mcsv1beta1.ClusterSetIP, label), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var e export
			e.checkNames(test.of)
			got := ""
			for _, notice := range e.notices {
				got += notice.Message
				if notice.Reason != reasonNameTooLong {
					t.Errorf("reason %s", notice.Reason)
				}
			}
			if got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}
