package clusterset

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func ptr[T any](v T) *T { return &v }

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// exported is a contribution of shop/web that is seconds older than epoch plus age.
func exported(cluster string, age int, change ...func(*v1alpha1.ExportedServiceSpec)) Contribution {
	spec := v1alpha1.ExportedServiceSpec{
		Namespace: "shop", Name: "web", Type: "ClusterSetIP", ExportedAt: metav1.NewTime(epoch.Add(time.Duration(age) * time.Second)),
		Ports:      []v1alpha1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}},
		IPFamilies: []string{"IPv4"},
	}
	for _, c := range change {
		c(&spec)
	}
	return Contribution{Cluster: cluster, Export: spec}
}

func ports(ports ...string) func(*v1alpha1.ExportedServiceSpec) {
	return func(e *v1alpha1.ExportedServiceSpec) {
		e.Ports = nil
		for _, p := range ports {
			var port v1alpha1.ServicePort
			port.Name, p, _ = strings.Cut(p, ":")
			fmt.Sscanf(strings.Replace(p, "/", " ", 1), "%d %s", &port.Port, &port.Protocol)
			e.Ports = append(e.Ports, port)
		}
	}
}

func reasons(s Service) string {
	var all []string
	for _, c := range s.Conflicts {
		all = append(all, string(c.Reason))
	}
	return strings.Join(all, ",")
}

func merged(t *testing.T, contributions ...Contribution) Service {
	t.Helper()
	service, ok := Merge(contributions)
	if !ok {
		t.Fatal("nothing was merged")
	}
	return service
}

func TestEveryConflict(t *testing.T) {
	type spec = v1alpha1.ExportedServiceSpec
	clientIP := func(seconds int32) func(*spec) {
		return func(e *spec) { e.SessionAffinity = "ClientIP"; e.SessionAffinityTimeoutSeconds = &seconds }
	}
	none := func(*spec) {}
	for _, test := range []struct {
		name       string
		old, young func(*spec)
		want       string
		message    string
	}{
		{"the same", none, none, "", ""},
		{"another port", none, ports("http:80/TCP", "admin:81/TCP"), "PortConflict", "ports: east, exported first, has http 80/TCP; different in west (admin 81/TCP, http 80/TCP)"},
		{"another number", none, ports("http:8080/TCP"), "PortConflict", ""},
		{"another name", none, ports("web:80/TCP"), "PortConflict", ""},
		{"another appProtocol", none, func(e *spec) { e.Ports[0].AppProtocol = ptr("h2c") }, "PortConflict", ""},
		{"ports in another order", ports("a:1/TCP", "b:2/UDP"), ports("b:2/UDP", "a:1/TCP"), "", ""},
		{"headlessness", none, func(e *spec) { e.Type = "Headless" }, "TypeConflict", "type: east, exported first, has ClusterSetIP; different in west (Headless)"},
		{"affinity", none, clientIP(10), "SessionAffinityConflict", "sessionAffinity: east, exported first, has None; different in west (ClientIP)"},
		{"affinity the other way", clientIP(10), none, "SessionAffinityConflict", ""},
		{"affinity not set is None", none, func(e *spec) { e.SessionAffinity = "None" }, "", ""},
		{"affinity config", clientIP(10), clientIP(20), "SessionAffinityConfigConflict", "sessionAffinityConfig: east, exported first, has 10 seconds; different in west (20 seconds)"},
		{"affinity config not set is 3 hours", clientIP(10800), func(e *spec) { e.SessionAffinity = "ClientIP" }, "", ""},
		{"internal traffic policy", none, func(e *spec) { e.InternalTrafficPolicy = ptr("Local") }, "InternalTrafficPolicyConflict", "internalTrafficPolicy: east, exported first, has Cluster; different in west (Local)"},
		{"internal traffic policy not set is Cluster", none, func(e *spec) { e.InternalTrafficPolicy = ptr("Cluster") }, "", ""},
		{"traffic distribution", func(e *spec) { e.TrafficDistribution = ptr("PreferClose") }, none, "TrafficDistributionConflict", ""},
		{"labels", func(e *spec) { e.ExportedLabels = map[string]string{"a": "b"} }, none, "LabelsConflict", `exportedLabels: east, exported first, has a="b"; different in west (none)`},
		{"annotations", none, func(e *spec) { e.ExportedAnnotations = map[string]string{"a": "b"} }, "AnnotationsConflict", ""},
		{"families", none, func(e *spec) { e.IPFamilies = []string{"IPv4", "IPv6"} }, "IPFamilyConflict", ""},
		{"families in another order", func(e *spec) { e.IPFamilies = []string{"IPv6", "IPv4"} }, func(e *spec) { e.IPFamilies = []string{"IPv4", "IPv6"} }, "", ""},
		{"two at once", none, func(e *spec) { e.Type = "Headless"; e.Ports = nil }, "PortConflict,TypeConflict", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			service := merged(t, exported("west", 2, test.young), exported("east", 1, test.old))
			if got := reasons(service); got != test.want {
				t.Errorf("conflicts %q, want %q", got, test.want)
			}
			if test.message != "" && service.Conflicts[0].Message != test.message {
				t.Errorf("message\n  %s, want\n  %s", service.Conflicts[0].Message, test.message)
			}
			// Whatever differs, the import is the older one's, ports and families apart.
			alone := merged(t, exported("east", 1, test.old))
			got, want := service.Spec, alone.Spec
			got.Ports, got.IPFamilies, want.Ports, want.IPFamilies = nil, nil, nil, nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the younger export shows in the import:\n%s", diff)
			}
			if diff := cmp.Diff(alone.Labels, service.Labels) + cmp.Diff(alone.Annotations, service.Annotations); diff != "" {
				t.Errorf("labels or annotations are not the older export's:\n%s", diff)
			}
		})
	}
}

func TestEqualAgeIsSettledByClusterID(t *testing.T) {
	headless := func(e *v1alpha1.ExportedServiceSpec) { e.Type = "Headless" }
	if got := merged(t, exported("b", 1), exported("a", 1, headless)).Spec.Type; got != mcsv1beta1.Headless {
		t.Errorf("type %s, want that of cluster a", got)
	}
}

func TestUnionOfPorts(t *testing.T) {
	for _, test := range []struct {
		name       string
		old, young []string
		want       string
		names      string // on the derived Service
	}{
		{"one more", []string{"http:80/TCP"}, []string{"http:80/TCP", "admin:81/TCP"}, "http:80/TCP admin:81/TCP", "http admin"},
		{"a taken name", []string{"http:80/TCP"}, []string{"http:8080/TCP"}, "http:80/TCP", "http"},
		{"a taken number", []string{"http:80/TCP"}, []string{"web:80/TCP"}, "http:80/TCP", "http"},
		{"a number of another protocol is not taken", []string{"dns:53/TCP"}, []string{"dns-udp:53/UDP"}, "dns:53/TCP dns-udp:53/UDP", "dns dns-udp"},
		{"unnamed is a name", []string{":80/TCP"}, []string{":81/TCP"}, ":80/TCP", ""},
		{"unnamed beside a named one", []string{":80/TCP"}, []string{"admin:81/TCP"}, ":80/TCP admin:81/TCP", "unnamed admin"},
		{"unnamed beside one of that name", []string{":80/TCP"}, []string{"unnamed:81/TCP"}, ":80/TCP unnamed:81/TCP", "unnamed-2 unnamed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := merged(t, exported("young", 2, ports(test.young...)), exported("old", 1, ports(test.old...))).Spec
			var got []string
			for _, p := range spec.Ports {
				got = append(got, fmt.Sprintf("%s:%d/%s", p.Name, p.Port, p.Protocol))
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("ports %q, want %q", text, test.want)
			}
			if text := strings.Join(PortNames(spec), " "); text != test.names {
				t.Errorf("names on the derived Service %q, want %q", text, test.names)
			}
		})
	}
}

// A cluster's backends serve a port of the import where the cluster has that protocol and number, under whatever name.
func TestPortsOfSlices(t *testing.T) {
	backends := func(cluster string, ports ...v1alpha1.BackendPort) []Backends {
		return []Backends{{Record: cluster + ".web-1.shop", Spec: v1alpha1.ExportedEndpointsSpec{
			Namespace: "shop", Service: "web", IPFamily: "IPv4", Ports: ports, Backends: []v1alpha1.Backend{{Addresses: []string{"10.0.0.1"}}},
		}}}
	}
	port := func(name string, number int32) v1alpha1.BackendPort {
		return v1alpha1.BackendPort{Name: name, Protocol: "TCP", Port: number}
	}
	old := exported("old", 1, ports("http:80/TCP"))
	old.Backends = backends("old", port("http", 8080))
	young := exported("young", 2, ports("web:80/TCP", "http:81/TCP", "admin:82/TCP"))
	young.Backends = backends("young", port("web", 9090), port("http", 9091), port("admin", 9092), port("stray", 9093))
	all := []Contribution{young, old}
	want := []Slice{
		{Cluster: "old", Record: "old.web-1.shop", Family: "IPv4", Ports: []v1alpha1.BackendPort{port("http", 8080)}, Backends: old.Backends[0].Spec.Backends},
		{Cluster: "young", Record: "young.web-1.shop", Family: "IPv4", Ports: []v1alpha1.BackendPort{port("http", 9090), port("admin", 9092)}, Backends: young.Backends[0].Spec.Backends},
	}
	if diff := cmp.Diff(want, merged(t, all...).Slices(all)); diff != "" {
		t.Error(diff)
	}
}

// random makes up to five contributions that hold every kind of difference. All of them pass CheckExport.
func random(r *rand.Rand) []Contribution {
	pick := func(values ...string) string { return values[r.IntN(len(values))] }
	var all []Contribution
	for _, i := range r.Perm(5)[:1+r.IntN(5)] {
		cluster := fmt.Sprintf("c%d", i)
		c := exported(cluster, r.IntN(3), func(e *v1alpha1.ExportedServiceSpec) {
			e.Type = pick("ClusterSetIP", "ClusterSetIP", "Headless")
			e.IPFamilies = [][]string{{"IPv4"}, {"IPv6"}, {"IPv4", "IPv6"}, {"IPv6", "IPv4"}}[r.IntN(4)]
			e.SessionAffinity = pick("", "None", "ClientIP")
			if r.IntN(2) == 0 {
				e.SessionAffinityTimeoutSeconds = ptr(int32(1 + r.IntN(2)))
			}
			if r.IntN(2) == 0 {
				e.InternalTrafficPolicy = ptr(pick("Cluster", "Local"))
			}
			e.Affinity, e.Balance = pick("", "", "local", "none"), pick("", "", "ip", "dns")
			e.Prefer = [][]string{nil, nil, {"c1"}, {"c2", "c1"}}[r.IntN(4)]
			e.MinLocalPercent = []*int32{nil, nil, ptr(int32(0)), ptr(int32(50))}[r.IntN(4)]
			e.Weight = []*int32{nil, ptr(int32(0)), ptr(int32(5))}[r.IntN(3)]
			if r.IntN(2) == 0 {
				e.TrafficDistribution = ptr(pick("PreferClose", "PreferSameNode"))
			}
			if r.IntN(2) == 0 {
				e.ExportedLabels = map[string]string{pick("a", "b"): pick("x", "y")}
			}
			if r.IntN(2) == 0 {
				e.ExportedAnnotations = map[string]string{pick("a", "b"): pick("x", "y")}
			}
			e.Ports = nil
			for _, name := range []string{"http", "admin", "dns"}[r.IntN(3):] {
				port := v1alpha1.ServicePort{Name: name, Protocol: pick("TCP", "UDP"), Port: int32(80 + r.IntN(3))}
				if !slices.ContainsFunc(e.Ports, func(p v1alpha1.ServicePort) bool { return p.Port == port.Port && p.Protocol == port.Protocol }) {
					e.Ports = append(e.Ports, port)
				}
			}
			if len(e.Ports) == 1 && r.IntN(2) == 0 {
				e.Ports[0].Name = ""
			}
		})
		for n := range r.IntN(4) {
			b := Backends{Record: fmt.Sprintf("%s.web-%d.shop", cluster, n), Spec: v1alpha1.ExportedEndpointsSpec{
				Namespace: "shop", Service: "web", IPFamily: c.Export.IPFamilies[r.IntN(len(c.Export.IPFamilies))],
			}}
			for _, p := range c.Export.Ports {
				b.Spec.Ports = append(b.Spec.Ports, v1alpha1.BackendPort{Name: p.Name, Protocol: p.Protocol, Port: 8000 + p.Port})
			}
			for k := range r.IntN(3) {
				b.Spec.Backends = append(b.Spec.Backends, v1alpha1.Backend{
					Addresses: []string{map[string]string{"IPv4": "10.0.0.", "IPv6": "fd00::"}[b.Spec.IPFamily] + fmt.Sprint(1+k)},
					Ready:     []*bool{nil, ptr(true), ptr(false), ptr(false)}[r.IntN(4)],
				})
			}
			c.Backends = append(c.Backends, b)
		}
		all = append(all, c)
	}
	return all
}

func TestMergeOfRandomExports(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		all := random(r)
		for _, c := range all {
			if err := CheckExport(&c.Export); err != nil {
				t.Fatalf("seed %d: a made-up export is wrong: %v", seed, err)
			}
		}
		service := merged(t, all...)
		for range 3 {
			shuffled := slices.Clone(all)
			r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			if diff := cmp.Diff(service, merged(t, shuffled...)); diff != "" {
				t.Fatalf("seed %d: the order of arrival shows:\n%s", seed, diff)
			}
		}

		names, numbers := map[string]bool{}, map[string]bool{}
		for _, p := range service.Spec.Ports {
			number := fmt.Sprint(p.Port, p.Protocol)
			if names[p.Name] || numbers[number] {
				t.Fatalf("seed %d: port %v twice in %v", seed, p, service.Spec.Ports)
			}
			names[p.Name], numbers[number] = true, true
		}
		for _, c := range all {
			if !slices.Contains(service.Clusters, c.Cluster) {
				t.Fatalf("seed %d: cluster %s is not in %v", seed, c.Cluster, service.Clusters)
			}
			for _, p := range c.Export.Ports {
				if !names[p.Name] && !numbers[fmt.Sprint(p.Port, p.Protocol)] {
					t.Fatalf("seed %d: port %v of %s is in no way taken and not in the union", seed, p, c.Cluster)
				}
			}
			for _, family := range c.Export.IPFamilies {
				if !slices.Contains(service.Spec.IPFamilies, corev1.IPFamily(family)) {
					t.Fatalf("seed %d: family %s is missing", seed, family)
				}
			}
		}
		if unique := PortNames(service.Spec); len(slices.Compact(slices.Sorted(slices.Values(unique)))) != len(unique) {
			t.Fatalf("seed %d: names %q for the derived Service", seed, unique)
		}

		// The oldest alone has no conflict, and neither has it with its own double.
		oldest := slices.MinFunc(all, func(a, b Contribution) int {
			if c := a.Export.ExportedAt.Compare(b.Export.ExportedAt.Time); c != 0 {
				return c
			}
			return strings.Compare(a.Cluster, b.Cluster)
		})
		double := oldest
		double.Cluster = "z"
		if got := reasons(merged(t, double, oldest)); got != "" {
			t.Fatalf("seed %d: equal exports conflict: %s", seed, got)
		}
		if len(service.Conflicts) > 0 && len(all) == 1 {
			t.Fatalf("seed %d: one export conflicts with itself: %s", seed, reasons(service))
		}
		if string(service.Spec.Type) != oldest.Export.Type {
			t.Fatalf("seed %d: type %s, want %s", seed, service.Spec.Type, oldest.Export.Type)
		}
	}
}
