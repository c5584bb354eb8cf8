//go:build e2e

// Package mcs holds the rules of the Multi-Cluster Services API, each a subtest under its name, on real clusters with Fastnet as its
// users install it: three with both families, two with IPv4 alone, and two with IPv6 alone. A rule has a namespace and a service
// web of its own, so that they run side by side. Backends are EndpointSlices written by hand, but where packets are sent.
package mcs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/test/lab"
)

type rule struct {
	name string
	run  func(t *testing.T, w *world)
}

// everywhere are the rules that hold of any clusterset.
var everywhere = []rule{
	{"ExportIsByName", exportIsByName},
	{"UnexportTakesOneClusterOut", unexport},
	{"NamespacesThatAppearAndVanish", namespaces},
	{"ServiceTypes", serviceTypes},
	{"ExternalNameIsRefused", externalName},
	{"MissingServiceIsExportedWhenItAppears", missingService},
	{"ConditionTimesMoveOnChangesAlone", conditionTimes},
	{"ServiceImportHoldsWhatTheServiceHas", importFields},
	{"ServiceImportsAreOursToWrite", oursToWrite},
	{"ClustersetIPsAreStable", stableIPs},
	{"Conflicts", conflicts},
	{"EqualAgeIsSettledByClusterID", equalAge},
	{"PortsAreUnited", portsAreUnited},
	{"EndpointSlices", endpointSlices},
	{"AtMost100EndpointsASlice", hundredEndpoints},
	{"DerivedServiceFollows", derivedFollows},
	{"InternalTrafficPolicyLocal", trafficPolicyLocal},
	{"TrafficDistributionKeepsZoneHints", zoneHints},
	{"Affinity", affinity},
	{"WrongAnnotationsAreTold", wrongAnnotations},
	{"ClusterProperties", clusterProperties},
	{"BothAPIVersionsAreServed", apiVersions},
	{"TrafficGoesWhereThePortIs", perPortRouting},
	{"NamesOfHeadlessBackends", headlessNames},
	{"EveryFamilyCarries", everyFamilyCarries},
	{"NodesHaveNoOtherFamily", nodesHaveNoOtherFamily},
}

func runAll(t *testing.T, w *world, rules []rule) {
	t.Run("Rules", func(t *testing.T) {
		for _, r := range rules {
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				r.run(t, w)
			})
		}
	})
	// It wants all ways up at one moment, and a way that went too often, while rules kept all processors busy, takes half a minute to be.
	t.Run("ShowKnowsTheFamilies", func(t *testing.T) { showKnowsTheFamilies(t, w) })
}

func TestDualStackThreeClusters(t *testing.T) {
	w := start(t, 3, lab.Dual)
	runAll(t, w, append(slices.Clone(everywhere), rule{"IPFamilyConflict", familyConflict}, rule{"OneFamilyOfTwo", oneFamily}))
	if !t.Failed() {
		leaving(t, w)
	}
}

func TestIPv4TwoClusters(t *testing.T) {
	runAll(t, start(t, 2, lab.IPv4), append(slices.Clone(everywhere), rule{"IPFamilyNotSupported", familyNotSupported}))
}

func TestIPv6TwoClusters(t *testing.T) {
	runAll(t, start(t, 2, lab.IPv6), append(slices.Clone(everywhere), rule{"IPFamilyNotSupported", familyNotSupported}))
}

// Nothing is exported without a ServiceExport, which has the Service's namespace and name. A Service of that name in another
// cluster contributes nothing. Exporters import too.
func exportIsByName(t *testing.T, w *world) {
	e := w.scene(t)
	for _, c := range w.names[:2] {
		e.service(c)
		e.backends(c, "web-1", 1)
	}
	other := &corev1.Service{ObjectMeta: e.meta("other"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{servicePort("http", 80)}}}
	e.create("c1", other)
	e.export("c1")
	for _, c := range w.names {
		e.imported(c, fromClusters("c1"))
		e.serves(c, "c1:http")
		if there, err := e.exists(t.Context(), c, &mcsv1beta1.ServiceImport{ObjectMeta: e.meta("other")}); there || err != nil {
			t.Errorf("%s imports a service that nobody exports (%v)", c, err)
		}
	}
	e.conditions("c1", valid, exported, agreement)
}

// Without the ServiceExport of a cluster its part goes; with the last, everything goes everywhere.
func unexport(t *testing.T, w *world) {
	e := w.scene(t)
	var exports []*mcsv1beta1.ServiceExport
	for _, c := range w.names[:2] {
		e.service(c)
		e.backends(c, "web-1", 1)
		exports = append(exports, e.export(c))
	}
	last := e.imported(w.last(), fromClusters("c1", "c2"))
	e.delete("c1", exports[0])
	for _, c := range w.names {
		e.imported(c, fromClusters("c2"))
		e.serves(c, "c2:http")
		eventually(t, "no slice of c1 in "+c, func(ctx context.Context) error {
			own, err := e.own(ctx, c)
			for _, s := range own {
				if s.Labels[v1alpha1.LabelSourceCluster] != "c2" {
					err = errors.Join(err, fmt.Errorf("slice %s is of %s", s.Name, s.Labels[v1alpha1.LabelSourceCluster]))
				}
			}
			return err
		})
	}
	if now := e.imported(w.last(), nil); !slices.Equal(now.Spec.IPs, last.Spec.IPs) {
		t.Errorf("addresses were %v and are %v", last.Spec.IPs, now.Spec.IPs)
	}
	e.delete("c2", exports[1])
	for _, c := range w.names {
		e.gone(c)
	}
}

// A cluster imports where the namespace is, and as soon as it is; an exporter whose namespace goes exports no more.
func namespaces(t *testing.T, w *world) {
	e := w.scene(t, "c1")
	far := w.last()
	e.service("c1")
	e.backends("c1", "web-1", 1)
	e.export("c1")
	e.imported("c1", fromClusters("c1"))
	for range 2 {
		e.makeNamespace(far)
		e.imported(far, fromClusters("c1"))
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: e.ns}}
		e.delete(far, namespace)
		eventually(t, "the namespace's end", func(ctx context.Context) error {
			if there, err := e.exists(ctx, far, namespace); there || err != nil {
				return fmt.Errorf("%v: %w", namespace.Status, errors.Join(err, errors.New("it is there")))
			}
			return nil
		})
	}
	e.makeNamespace(far)
	e.imported(far, fromClusters("c1"))
	e.delete("c1", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: e.ns}})
	e.gone(far)
}

// ClusterIP, NodePort and LoadBalancer become ClusterSetIP, without a cluster IP Headless and without addresses.
func serviceTypes(t *testing.T, w *world) {
	for _, kind := range []struct {
		name   string
		change changeService
		want   mcsv1beta1.ServiceImportType
	}{
		{"ClusterIP", func(*corev1.Service) {}, mcsv1beta1.ClusterSetIP},
		{"NodePort", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, mcsv1beta1.ClusterSetIP},
		{"LoadBalancer", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }, mcsv1beta1.ClusterSetIP},
		{"Headless", headless, mcsv1beta1.Headless},
	} {
		t.Run(kind.name, func(t *testing.T) {
			e := w.scene(t)
			s := e.service("c1", kind.change)
			e.export("c1")
			for _, c := range w.names {
				i := e.imported(c, nil)
				if i.Spec.Type != kind.want || !slices.Equal(i.Spec.IPFamilies, s.Spec.IPFamilies) {
					t.Errorf("%s: type %s, families %v, want %s, %v", c, i.Spec.Type, i.Spec.IPFamilies, kind.want, s.Spec.IPFamilies)
				}
				if want := len(s.Spec.IPFamilies); kind.want == mcsv1beta1.ClusterSetIP && len(i.Spec.IPs) != want || kind.want == mcsv1beta1.Headless && len(i.Spec.IPs) != 0 {
					t.Errorf("%s: addresses %v", c, i.Spec.IPs)
				}
			}
		})
	}
}

func externalName(t *testing.T, w *world) {
	e := w.scene(t)
	s := &corev1.Service{ObjectMeta: e.meta(web), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}}
	e.create("c1", s)
	e.export("c1")
	e.conditions("c1", "Valid=False/InvalidServiceType", "Ready=False/Failed", agreement)
	for _, c := range w.names {
		if err := e.nothing(t.Context(), c); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	// It becomes one that can be exported.
	change(e, "c1", s, func(s *corev1.Service) {
		s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{servicePort("http", 80)}}
	})
	e.conditions("c1", valid, exported, agreement)
	e.imported(w.last(), nil)
}

func missingService(t *testing.T, w *world) {
	e := w.scene(t)
	e.export("c1")
	e.conditions("c1", "Valid=False/NoService", "Ready=False/Pending", agreement)
	s := e.service("c1")
	e.conditions("c1", valid, exported, agreement)
	e.imported(w.last(), nil)
	e.delete("c1", s)
	e.conditions("c1", "Valid=False/NoService", "Ready=False/Pending", agreement)
	for _, c := range w.names {
		e.gone(c)
	}
}

// A change of the export that leaves its conditions as they are moves observedGeneration and not the times; a change of backends
// moves nothing at all.
func conditionTimes(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1")
	e.export("c1")
	before := e.conditions("c1", valid, exported, agreement)
	e.backends("c1", "web-1", 1)
	e.serves(w.last(), "c1:http")
	after := e.conditions("c1", valid, exported, agreement)
	if before.ResourceVersion != after.ResourceVersion {
		t.Errorf("a new backend changed the export:\n%+v\n%+v", before.Status, after.Status)
	}
	change(e, "c1", e.newExport(), func(x *mcsv1beta1.ServiceExport) { x.Spec.ExportedLabels = map[string]string{"a": "b"} })
	e.imported(w.last(), func(i *mcsv1beta1.ServiceImport) error {
		if i.Labels["a"] != "b" {
			return errors.New("no label a")
		}
		return nil
	})
	after = e.conditions("c1", valid, exported, agreement)
	for _, kind := range []string{"Valid", "Conflict"} {
		was, is := meta.FindStatusCondition(before.Status.Conditions, kind), meta.FindStatusCondition(after.Status.Conditions, kind)
		if !was.LastTransitionTime.Equal(&is.LastTransitionTime) {
			t.Errorf("%s moved from %v to %v", kind, was.LastTransitionTime, is.LastTransitionTime)
		}
	}
}

// Type, ports, addresses in the order of families, affinity, policies, exported labels and annotations (and no others), clusters,
// conditions, endpointSliceObjects; the derived Service has the same, a name by rule, and no selector.
func importFields(t *testing.T, w *world) {
	e := w.scene(t)
	s := e.service("c1", func(s *corev1.Service) {
		s.Labels, s.Annotations = map[string]string{"own": "label"}, map[string]string{"own": "annotation"}
		s.Spec.Ports = []corev1.ServicePort{servicePort("http", 80), {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, servicePort("h2", 81)}
		s.Spec.Ports[2].AppProtocol = ptr("kubernetes.io/h2c")
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(60))}}
		s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.TrafficDistribution = ptr(corev1.ServiceTrafficDistributionPreferClose)
	})
	e.export("c1", func(x *mcsv1beta1.ServiceExport) {
		x.Labels, x.Annotations = map[string]string{"exports": "own"}, map[string]string{"exports": "own"}
		x.Spec.ExportedLabels, x.Spec.ExportedAnnotations = map[string]string{"team": "shop"}, map[string]string{"note": "read me"}
	})
	for _, c := range w.names {
		i := e.imported(c, nil)
		var problems []string
		expect := func(ok bool, what string) {
			if !ok {
				problems = append(problems, what)
			}
		}
		expect(i.Spec.Type == mcsv1beta1.ClusterSetIP, "type")
		expect(len(i.Spec.Ports) == 3 && i.Spec.Ports[0].Name == "http" && i.Spec.Ports[0].Port == 80 && i.Spec.Ports[0].Protocol == corev1.ProtocolTCP &&
			i.Spec.Ports[1].Protocol == corev1.ProtocolUDP && *i.Spec.Ports[2].AppProtocol == "kubernetes.io/h2c", "ports")
		expect(slices.Equal(i.Spec.IPFamilies, s.Spec.IPFamilies) && len(i.Spec.IPs) == len(i.Spec.IPFamilies), "families")
		for n, ip := range i.Spec.IPs {
			address, err := netip.ParseAddr(ip)
			expect(err == nil && familyOf(address.String()) == i.Spec.IPFamilies[n], "order of addresses")
		}
		expect(i.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && *i.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == 60, "sessionAffinity")
		expect(i.Spec.InternalTrafficPolicy != nil && *i.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal, "internalTrafficPolicy")
		expect(i.Spec.TrafficDistribution != nil && *i.Spec.TrafficDistribution == corev1.ServiceTrafficDistributionPreferClose, "trafficDistribution")
		expect(i.Labels["team"] == "shop" && i.Annotations["note"] == "read me", "exported labels and annotations")
		expect(i.Labels["own"]+i.Annotations["own"]+i.Labels["exports"]+i.Annotations["exports"] == "", "labels or annotations that were not exported")
		expect(slices.Equal(clustersOf(i), []string{"c1"}), "status.clusters")
		expect(i.Status.EndpointSliceObjects == mcsv1beta1.EndpointSliceObjectsPresent, "endpointSliceObjects")
		ready := meta.FindStatusCondition(i.Status.Conditions, "Ready")
		expect(ready != nil && ready.Status == metav1.ConditionTrue && ready.Reason == "Ready" && ready.ObservedGeneration == i.Generation, "condition Ready")

		name := i.Annotations["multicluster.kubernetes.io/derived-service"]
		expect(name == e.derivedName() && len(name) == len("derived-")+10 && len(validation.IsDNS1035Label(name)) == 0, "name of the derived Service")
		d, err := e.derived(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		expect(len(d.Spec.Selector) == 0, "derived: selector")
		expect(slices.Equal(d.Spec.ClusterIPs, i.Spec.IPs), "derived: addresses")
		expect(len(d.Spec.Ports) == 3 && d.Spec.Ports[2].Port == 81 && *d.Spec.Ports[2].AppProtocol == "kubernetes.io/h2c", "derived: ports")
		expect(d.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && *d.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == 60, "derived: sessionAffinity")
		expect(*d.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal && *d.Spec.TrafficDistribution == corev1.ServiceTrafficDistributionPreferClose, "derived: policies")
		if len(problems) > 0 {
			t.Errorf("%s: %s\nimport %+v %+v\nderived %+v", c, strings.Join(problems, ", "), i.Spec, i.Status, d.Spec)
		}
	}
}

// What users change in a ServiceImport is put back, and so is one that they delete.
func oursToWrite(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1")
	e.export("c1")
	far := w.last()
	before := e.imported(far, nil)
	e.delete(far, before.DeepCopy())
	e.imported(far, func(i *mcsv1beta1.ServiceImport) error {
		if i.UID == before.UID || !slices.Equal(i.Spec.IPs, before.Spec.IPs) {
			return errors.New("not made anew with its addresses")
		}
		return nil
	})
	change(e, far, &mcsv1beta1.ServiceImport{ObjectMeta: e.meta(web)}, func(i *mcsv1beta1.ServiceImport) { i.Spec.Ports[0].Port = 8080 })
	e.imported(far, func(i *mcsv1beta1.ServiceImport) error {
		if i.Spec.Ports[0].Port != 80 {
			return errors.New("the port is somebody else's")
		}
		return nil
	})
}

// Addresses stay for the life of an import: through a change of the Service, and when somebody deletes the derived Service.
func stableIPs(t *testing.T, w *world) {
	e := w.scene(t)
	s := e.service("c1")
	e.export("c1")
	far := w.last()
	ips := e.imported(far, nil).Spec.IPs
	change(e, "c1", s, func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, servicePort("admin", 81)) })
	i := e.imported(far, func(i *mcsv1beta1.ServiceImport) error {
		if len(i.Spec.Ports) != 2 {
			return errors.New("one port")
		}
		return nil
	})
	if !slices.Equal(i.Spec.IPs, ips) {
		t.Errorf("a new port: %v, were %v", i.Spec.IPs, ips)
	}
	d, err := e.derived(t.Context(), far)
	if err != nil {
		t.Fatal(err)
	}
	e.delete(far, d.DeepCopy())
	eventually(t, "a new derived Service with the old addresses", func(ctx context.Context) error {
		now, err := e.derived(ctx, far)
		if err == nil && (now.UID == d.UID || !slices.Equal(now.Spec.ClusterIPs, ips)) {
			err = fmt.Errorf("%v", now.Spec.ClusterIPs)
		}
		return err
	})
}

// The oldest export wins, and every constituent export is told, with field, winner and losers. c2 is the oldest, so that age is seen
// to come before the order of IDs.
func conflicts(t *testing.T, w *world) {
	type service = changeService
	type export = changeExport
	asIs, plain := func(*corev1.Service) {}, func(*mcsv1beta1.ServiceExport) {}
	sticky := func(seconds int32) service {
		return func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}
	}
	labels := func(x *mcsv1beta1.ServiceExport) { x.Spec.ExportedLabels = map[string]string{"a": "b", "c": "d"} }
	someLabels := func(x *mcsv1beta1.ServiceExport) { x.Spec.ExportedLabels = map[string]string{"a": "b"} }
	annotations := func(x *mcsv1beta1.ServiceExport) { x.Spec.ExportedAnnotations = map[string]string{"a": "b"} }
	for _, c := range []struct {
		reason            string
		oldest, young     service
		oldestX, youngX   export
		field, has, other string
		check             func(*mcsv1beta1.ServiceImport) bool
	}{
		{"PortConflict", asIs, withPorts(servicePort("http", 80), servicePort("admin", 81)), plain, plain, "ports", "http 80/TCP", "c1 (admin 81/TCP, http 80/TCP)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return len(i.Spec.Ports) == 2 && i.Spec.Ports[0].Name == "http" && i.Spec.Ports[1].Name == "admin"
			}},
		{"TypeConflict", headlessIn(w), asIs, plain, plain, "type", "Headless", "c1 (ClusterSetIP)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return i.Spec.Type == mcsv1beta1.Headless && len(i.Spec.IPs) == 0
			}},
		{"SessionAffinityConflict", sticky(50), asIs, plain, plain, "sessionAffinity", "ClientIP", "c1 (None)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return i.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
			}},
		{"SessionAffinityConfigConflict", sticky(50), sticky(60), plain, plain, "sessionAffinityConfig", "50 seconds", "c1 (60 seconds)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return *i.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == 50
			}},
		{"InternalTrafficPolicyConflict", asIs, func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }, plain, plain,
			"internalTrafficPolicy", "Cluster", "c1 (Local)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return i.Spec.InternalTrafficPolicy == nil || *i.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyCluster
			}},
		{"TrafficDistributionConflict", func(s *corev1.Service) {
			s.Spec.TrafficDistribution = ptr(corev1.ServiceTrafficDistributionPreferClose)
		}, asIs, plain, plain,
			"trafficDistribution", "PreferClose", "c1 (none)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return i.Spec.TrafficDistribution != nil && *i.Spec.TrafficDistribution == corev1.ServiceTrafficDistributionPreferClose
			}},
		{"LabelsConflict", asIs, asIs, someLabels, labels, "exportedLabels", `a="b"`, `c1 (a="b" c="d")`,
			func(i *mcsv1beta1.ServiceImport) bool { return i.Labels["a"] == "b" && i.Labels["c"] == "" }},
		{"AnnotationsConflict", asIs, asIs, plain, annotations, "exportedAnnotations", "none", `c1 (a="b")`,
			func(i *mcsv1beta1.ServiceImport) bool { return i.Annotations["a"] == "" }},
		// Two at once, joined by a comma and no space.
		{"TypeConflict,LabelsConflict", headlessIn(w), asIs, plain, someLabels, "type", "Headless", "c1 (ClusterSetIP)",
			func(i *mcsv1beta1.ServiceImport) bool {
				return i.Spec.Type == mcsv1beta1.Headless && i.Labels["a"] == ""
			}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			t.Parallel()
			e := w.scene(t)
			all := []string{"c1", "c2"}
			e.service("c2", c.oldest)
			oldest := e.export("c2", c.oldestX)
			e.service("c1", c.young)
			youngest := e.exportAfter(oldest, "c1", c.youngX)
			if len(w.names) > 2 { // one that agrees with the oldest is told too
				e.service("c3", c.oldest)
				e.exportAfter(oldest, "c3", c.oldestX)
				all = w.names
			}
			for _, cluster := range all {
				x := e.conditions(cluster, valid, exported, "Conflict=True/"+c.reason)
				message := meta.FindStatusCondition(x.Status.Conditions, "Conflict").Message
				want := fmt.Sprintf("%s: c2, exported first, has %s; different in %s", c.field, c.has, c.other)
				if !strings.Contains(message, want) {
					t.Errorf("%s says\n  %s, want\n  %s", cluster, message, want)
				}
				if i := e.imported(cluster, fromClusters(all...)); !c.check(i) {
					t.Errorf("%s: the oldest does not win: %+v", cluster, i)
				}
			}
			// Without the one that differs all agree.
			e.delete("c1", youngest)
			for _, cluster := range all[1:] {
				e.conditions(cluster, valid, exported, agreement)
			}
		})
	}
}

func equalAge(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1")
	e.service("c2", headlessIn(w))
	eventually(t, "two exports of one second", func(context.Context) error {
		second, first := e.export("c2"), e.export("c1")
		if second.CreationTimestamp.Equal(&first.CreationTimestamp) {
			return nil
		}
		e.delete("c1", first)
		e.delete("c2", second)
		return fmt.Errorf("%v and %v", first.CreationTimestamp, second.CreationTimestamp)
	})
	for _, c := range w.names {
		e.imported(c, func(i *mcsv1beta1.ServiceImport) error {
			if err := fromClusters("c1", "c2")(i); err != nil || i.Spec.Type != mcsv1beta1.ClusterSetIP {
				return errors.Join(err, errors.New("want c1's type"))
			}
			return nil
		})
	}
	for _, c := range []string{"c1", "c2"} {
		e.conditions(c, "Conflict=True/TypeConflict")
	}
}

// The union goes by name first (unnamed is one), then by protocol and number. Each slice has the ports that its cluster exposes with
// that number, under the union's names, and nothing else.
func portsAreUnited(t *testing.T, w *world) {
	for _, c := range []struct {
		name           string
		oldest, young  []corev1.ServicePort
		union, serving string
	}{
		{"OneMore", []corev1.ServicePort{servicePort("http", 80)}, []corev1.ServicePort{servicePort("http", 80), servicePort("admin", 81)}, "http:80 admin:81", "c1:admin c1:http"},
		{"ATakenName", []corev1.ServicePort{servicePort("http", 80)}, []corev1.ServicePort{servicePort("http", 8080), servicePort("admin", 81)}, "http:80 admin:81", "c1:admin c2:http"},
		{"ATakenNumber", []corev1.ServicePort{servicePort("http", 80)}, []corev1.ServicePort{servicePort("www", 80), servicePort("admin", 81)}, "http:80 admin:81", "c1:admin c1:http"},
		{"UnnamedIsAName", []corev1.ServicePort{servicePort("", 80)}, []corev1.ServicePort{servicePort("", 81)}, ":80", "c2:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := w.scene(t)
			e.service("c2", withPorts(c.oldest...))
			e.backends("c2", "web-1", 1)
			oldest := e.export("c2")
			e.service("c1", withPorts(c.young...))
			e.backends("c1", "web-1", 1)
			e.exportAfter(oldest, "c1")
			e.imported("c1", func(i *mcsv1beta1.ServiceImport) error {
				var got []string
				for _, p := range i.Spec.Ports {
					got = append(got, fmt.Sprintf("%s:%d", p.Name, p.Port))
				}
				if strings.Join(got, " ") != c.union {
					return fmt.Errorf("ports %v, want %s", got, c.union)
				}
				return nil
			})
			// c1 has local backends, which come first for every port that it has.
			e.serves("c1", c.serving)
			for _, cluster := range []string{"c1", "c2"} {
				e.conditions(cluster, "Conflict=True/PortConflict")
			}
		})
	}
}

// Slices are in the namespace of the import, in the exporter too; of one source cluster each; known to the Multi-Cluster Services API
// and not to cluster.local; with what the source's slice says.
func endpointSlices(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1", headless)
	e.service("c2", headless)
	e.backends("c1", "web-1", 3, func(s *discoveryv1.EndpointSlice) {
		s.Endpoints[0].Hostname, s.Endpoints[0].Zone, s.Endpoints[0].NodeName = ptr("first"), ptr("zone-a"), ptr("node-a")
		s.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
		s.Endpoints[2].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(false)}
	})
	e.backends("c2", "web-1", 1)
	e.export("c1")
	e.export("c2")
	for _, c := range w.names {
		eventually(t, "slices of both clusters in "+c, func(ctx context.Context) error {
			all, err := e.importedSlices(ctx, c)
			if err != nil {
				return err
			}
			if len(all) != 2 || all[0].Labels[v1alpha1.LabelSourceCluster] != "c1" || all[1].Labels[v1alpha1.LabelSourceCluster] != "c2" {
				return fmt.Errorf("%d slices", len(all))
			}
			for _, s := range all {
				if s.Labels["multicluster.kubernetes.io/service-name"] != web || s.Labels[discoveryv1.LabelServiceName] != "" || s.Labels[discoveryv1.LabelManagedBy] == "endpointslice-controller.k8s.io" ||
					len(s.Ports) != 1 || *s.Ports[0].Name != "http" || *s.Ports[0].Port != 8080 {
					return fmt.Errorf("labels %v, ports %v", s.Labels, s.Ports)
				}
			}
			ends := all[0].Endpoints
			if len(ends) != 3 || *ends[0].Hostname != "first" || *ends[0].Zone != "zone-a" || !*ends[0].Conditions.Ready ||
				*ends[1].Conditions.Ready || !*ends[1].Conditions.Serving || !*ends[1].Conditions.Terminating ||
				*ends[2].Conditions.Ready || *ends[2].Conditions.Serving || *ends[2].Conditions.Terminating {
				return fmt.Errorf("endpoints %+v", ends)
			}
			return nil
		})
	}
	// cluster.local is as it was: behind the Service's name there are its own slices alone.
	for _, c := range []string{"c1", "c2"} {
		var list discoveryv1.EndpointSliceList
		if err := e.api[c].List(t.Context(), &list, client.InNamespace(e.ns), client.MatchingLabels{discoveryv1.LabelServiceName: web}); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != 1 || list.Items[0].Name != "web-1" {
			t.Errorf("%s: slices of web in cluster.local: %v", c, list.Items)
		}
	}
}

// However the source cuts its slices, an import has at most 100 endpoints in one, and no more slices than that needs.
func hundredEndpoints(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1")
	e.backends("c1", "web-1", 250)
	e.export("c1")
	for _, c := range w.names {
		eventually(t, "250 endpoints in "+c, func(ctx context.Context) error {
			all, err := e.importedSlices(ctx, c)
			if err != nil {
				return err
			}
			sizes, seen := []int{}, map[string]bool{}
			for _, s := range all {
				sizes = append(sizes, len(s.Endpoints))
				for _, end := range s.Endpoints {
					seen[end.Addresses[0]] = true
				}
			}
			slices.Sort(sizes)
			if !slices.Equal(sizes, []int{50, 100, 100}) || len(seen) != 250 {
				return fmt.Errorf("slices of %v, %d addresses", sizes, len(seen))
			}
			return nil
		})
	}
}

// Ports, affinity and policies of the derived Service follow the import when they change.
func derivedFollows(t *testing.T, w *world) {
	e := w.scene(t)
	s := e.service("c1")
	e.export("c1")
	for _, c := range w.names {
		e.imported(c, nil)
	}
	change(e, "c1", s, func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{servicePort("http", 8080), servicePort("admin", 81)}
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.TrafficDistribution = ptr(corev1.ServiceTrafficDistributionPreferClose)
	})
	derived := func(c string, check func(corev1.ServiceSpec) bool) {
		t.Helper()
		eventually(t, "the derived Service in "+c, func(ctx context.Context) error {
			d, err := e.derived(ctx, c)
			if err == nil && !check(d.Spec) {
				err = fmt.Errorf("%+v", d.Spec)
			}
			return err
		})
	}
	for _, c := range w.names {
		derived(c, func(d corev1.ServiceSpec) bool {
			return len(d.Ports) == 2 && d.Ports[0].Port == 8080 && d.Ports[1].Name == "admin" && d.SessionAffinity == corev1.ServiceAffinityClientIP &&
				*d.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal && d.TrafficDistribution != nil
		})
	}
	change(e, "c1", s, func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{servicePort("http", 8080)}
		s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
		s.Spec.InternalTrafficPolicy, s.Spec.TrafficDistribution = ptr(corev1.ServiceInternalTrafficPolicyCluster), nil
	})
	for _, c := range w.names {
		derived(c, func(d corev1.ServiceSpec) bool {
			return len(d.Ports) == 1 && d.SessionAffinity == corev1.ServiceAffinityNone && d.SessionAffinityConfig == nil &&
				*d.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyCluster && d.TrafficDistribution == nil
		})
	}
}

// Under the policy Local a remote backend must not pass for one of the node: its node's name is left out, the exporter's own stays.
func trafficPolicyLocal(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) })
	e.backends("c1", "web-1", 1, func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].NodeName = ptr("node-a") })
	e.export("c1")
	for _, c := range w.names {
		eventually(t, "the slice in "+c, func(ctx context.Context) error {
			all, err := e.importedSlices(ctx, c)
			if err == nil && (len(all) != 1 || (all[0].Endpoints[0].NodeName != nil) != (c == "c1")) {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
	}
}

func zoneHints(t *testing.T, w *world) {
	e := w.scene(t)
	s := e.service("c1", func(s *corev1.Service) {
		s.Spec.TrafficDistribution = ptr(corev1.ServiceTrafficDistributionPreferClose)
	})
	e.backends("c1", "web-1", 1, func(s *discoveryv1.EndpointSlice) {
		s.Endpoints[0].Zone = ptr("zone-a")
		s.Endpoints[0].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "zone-a"}}}
	})
	e.export("c1")
	hinted := func(c string, want bool) {
		t.Helper()
		eventually(t, "hints in "+c, func(ctx context.Context) error {
			all, err := e.importedSlices(ctx, c)
			if err != nil {
				return err
			}
			if len(all) != 1 {
				return fmt.Errorf("%d slices", len(all))
			}
			hints := all[0].Endpoints[0].Hints
			if got := hints != nil && len(hints.ForZones) == 1 && hints.ForZones[0].Name == "zone-a"; got != want {
				return fmt.Errorf("hints %v", hints)
			}
			return nil
		})
	}
	for _, c := range w.names {
		hinted(c, true)
	}
	change(e, "c1", s, func(s *corev1.Service) { s.Spec.TrafficDistribution = nil })
	hinted(w.last(), false)
}

// Behind the clusterset IP stand the local backends while any is ready, else all others; annotations ask for something else.
func affinity(t *testing.T, w *world) {
	e := w.scene(t)
	var of []*discoveryv1.EndpointSlice
	for _, c := range []string{"c1", "c2"} {
		e.service(c)
		of = append(of, e.backends(c, "web-1", 1))
		e.export(c)
	}
	say := func(pairs ...string) {
		change(e, "c2", e.newExport(), annotated(pairs...))
	}
	e.serves("c1", "c1:http")
	e.serves("c2", "c2:http")
	say("fastnet.dev/affinity", "none")
	e.serves("c1", "c1:http c2:http")
	say("fastnet.dev/affinity", "remote")
	e.serves("c1", "c2:http")
	e.serves("c2", "c1:http")
	// An order of clusters alone leaves affinity local.
	say("fastnet.dev/prefer", "c2,c1")
	e.serves("c1", "c1:http")
	say("fastnet.dev/affinity", "none", "fastnet.dev/prefer", "c2,c1")
	e.serves("c1", "c2:http")
	say()
	e.serves("c1", "c1:http")
	change(e, "c1", of[0], func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = ptr(false) })
	e.serves("c1", "c2:http")
	if len(w.names) > 2 {
		e.serves("c3", "c2:http")
	}
	change(e, "c1", of[0], func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = ptr(true) })
	e.serves("c1", "c1:http")
	if len(w.names) > 2 {
		e.serves("c3", "c1:http c2:http")
	}
}

func wrongAnnotations(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c1")
	e.export("c1", annotated("fastnet.dev/affinity", "sideways", "fastnet.dev/weight", "-1", "fastnet.dev/prefer", "c1,nobody"))
	x := e.conditions("c1", valid, exported, agreement)
	message := meta.FindStatusCondition(x.Status.Conditions, "Valid").Message
	for _, want := range []string{`"sideways" is not one of`, `"-1" is not a whole number`, "names nobody, not in the clusterset"} {
		if !strings.Contains(message, want) {
			t.Errorf("%q is not told: %s", want, message)
		}
	}
	eventually(t, "an event", func(ctx context.Context) error {
		var events corev1.EventList
		if err := e.api["c1"].List(ctx, &events, client.InNamespace(e.ns)); err != nil {
			return err
		}
		if !slices.ContainsFunc(events.Items, func(event corev1.Event) bool {
			return event.Reason == "InvalidAnnotation" && event.InvolvedObject.Name == web
		}) {
			return fmt.Errorf("%d others", len(events.Items))
		}
		return nil
	})
}

func clusterProperties(t *testing.T, w *world) {
	for _, c := range w.names {
		for name, want := range map[string]string{"cluster.clusterset.k8s.io": c, "clusterset.k8s.io": "clusterset"} {
			property := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "about.k8s.io/v1alpha1", "kind": "ClusterProperty"}}
			if err := w.api[c].Get(t.Context(), client.ObjectKey{Name: name}, property); err != nil {
				t.Fatal(err)
			}
			if got, _, err := unstructured.NestedString(property.Object, "spec", "value"); got != want || err != nil {
				t.Errorf("%s: %s is %q, want %q (%v)", c, name, got, want, err)
			}
		}
	}
}

// Both versions are served, v1beta1 is stored, and an export of v1alpha1 is as good.
func apiVersions(t *testing.T, w *world) {
	for _, name := range []string{"serviceexports.multicluster.x-k8s.io", "serviceimports.multicluster.x-k8s.io"} {
		var definition apiextensionsv1.CustomResourceDefinition
		if err := w.api["c1"].Get(t.Context(), client.ObjectKey{Name: name}, &definition); err != nil {
			t.Fatal(err)
		}
		served := map[string]bool{}
		for _, v := range definition.Spec.Versions {
			served[v.Name] = v.Served
			if v.Storage && v.Name != "v1beta1" {
				t.Errorf("%s stores %s", name, v.Name)
			}
		}
		if !served["v1alpha1"] || !served["v1beta1"] {
			t.Errorf("%s serves %v", name, served)
		}
	}
	e := w.scene(t)
	e.service("c1")
	e.create("c1", &unstructured.Unstructured{Object: map[string]any{"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
		"metadata": map[string]any{"namespace": e.ns, "name": web}}})
	ips := e.imported(w.last(), nil).Spec.IPs
	old := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport"}}
	if err := w.api[w.last()].Get(t.Context(), e.key(web), old); err != nil {
		t.Fatal(err)
	}
	if got, _, err := unstructured.NestedStringSlice(old.Object, "spec", "ips"); err != nil || !slices.Equal(got, ips) {
		t.Errorf("as v1alpha1 it has %v, as v1beta1 %v (%v)", got, ips, err)
	}
}

// Where exports differ in families, traffic of one reaches only those that have it, and all are told.
func familyConflict(t *testing.T, w *world) {
	e := w.scene(t)
	e.service("c2")
	oldest := e.export("c2")
	e.service("c1", onlyOf(corev1.IPv6Protocol))
	e.exportAfter(oldest, "c1")
	for _, c := range []string{"c1", "c2"} {
		x := e.conditions(c, valid, exported, "Conflict=True/IPFamilyConflict")
		if message := meta.FindStatusCondition(x.Status.Conditions, "Conflict").Message; !strings.Contains(message, "ipFamilies: c2, exported first, has IPv4,IPv6; different in c1 (IPv6)") {
			t.Error(message)
		}
	}
}

func onlyOf(family corev1.IPFamily) changeService {
	return func(s *corev1.Service) {
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = ptr(corev1.IPFamilyPolicySingleStack), []corev1.IPFamily{family}
	}
}

// headlessIn makes a Service headless, with the families that others have there. Without a selector it would have both even in a cluster
// that has one: that would be a conflict besides.
func headlessIn(w *world) changeService {
	return func(s *corev1.Service) {
		headless(s)
		if len(w.families) == 1 {
			onlyOf(w.families[0])(s)
		}
	}
}

// A service of one family has one address, of that family, in dual-stack clusters; when it gets the second, so do they.
func oneFamily(t *testing.T, w *world) {
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		t.Run(string(family), func(t *testing.T) {
			e := w.scene(t)
			s := e.service("c1", onlyOf(family))
			e.export("c1")
			for _, c := range w.names {
				i := e.imported(c, nil)
				if !slices.Equal(i.Spec.IPFamilies, []corev1.IPFamily{family}) || len(i.Spec.IPs) != 1 || familyOf(i.Spec.IPs[0]) != family {
					t.Errorf("%s: families %v, addresses %v", c, i.Spec.IPFamilies, i.Spec.IPs)
				}
			}
			change(e, "c1", s, func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack) })
			for _, c := range w.names {
				e.imported(c, func(i *mcsv1beta1.ServiceImport) error {
					if len(i.Spec.IPs) != 2 || i.Spec.IPFamilies[0] != family {
						return errors.New("want two")
					}
					return nil
				})
			}
		})
	}
}

// A cluster without any of a service's families says so. The member with the other family is on the broker alone: its records are
// written with the credentials of its invitation.
func familyNotSupported(t *testing.T, w *world) {
	e := w.scene(t)
	if _, err := w.teller.Output(t.Context(), "kubectl fastnet --context c1 broker invite c6 -o other.join"); err != nil {
		t.Fatal(err)
	}
	other := corev1.IPv6Protocol
	if w.has(other) {
		other = corev1.IPv4Protocol
	}
	records := fmt.Sprintf(`
apiVersion: fastnet.dev/v1alpha1
kind: ExportedService
metadata: {name: c6.web.%[1]s, namespace: fastnet-c6, labels: {multicluster.kubernetes.io/source-cluster: c6}}
spec: {namespace: %[1]s, name: web, type: ClusterSetIP, exportedAt: "2026-01-01T00:00:00Z", ports: [{name: http, protocol: TCP, port: 80}], ipFamilies: [%[2]s], addresses: ["%[3]s"]}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedEndpoints
metadata: {name: c6.web-1.%[1]s, namespace: fastnet-c6, labels: {multicluster.kubernetes.io/source-cluster: c6}}
spec: {namespace: %[1]s, service: web, ipFamily: %[2]s, ports: [{name: http, protocol: TCP, port: 8080}], backends: [{addresses: ["%[4]s"], ready: true}]}
`, e.ns, other, address("c6", other, 79), address("c6", other, 0))
	if _, err := w.teller.Output(t.Context(), "kubectl --kubeconfig other.join create -f - <<'END'\n"+records+"END\n"); err != nil {
		t.Fatal(err)
	}
	for _, c := range w.names {
		e.imported(c, func(i *mcsv1beta1.ServiceImport) error {
			ready := meta.FindStatusCondition(i.Status.Conditions, "Ready")
			if ready == nil || ready.Status != metav1.ConditionFalse || ready.Reason != "IPFamilyNotSupported" || len(i.Spec.IPs) > 0 || !slices.Equal(i.Spec.IPFamilies, []corev1.IPFamily{other}) {
				return errors.New("want IPFamilyNotSupported, and no address")
			}
			return nil
		})
	}
	if _, err := w.teller.Output(t.Context(), "kubectl fastnet --context c1 broker remove c6"); err != nil {
		t.Fatal(err)
	}
	for _, c := range w.names {
		eventually(t, "a removed member's import goes in "+c, func(ctx context.Context) error {
			err := e.api[c].Get(ctx, e.key(web), &mcsv1beta1.ServiceImport{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, errors.New("it is there"))
		})
	}
}
