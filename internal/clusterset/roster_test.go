package clusterset

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func roster(t testing.TB) Roster {
	t.Helper()
	r, err := NewRoster([]v1alpha1.Member{{ClusterID: "eu", Namespace: "member-eu"}, {ClusterID: "eu.west", Namespace: "member-eu-west"}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func meta(namespace, name, label string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1alpha1.LabelSourceCluster: label}}
}

func says(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestWhoseRecord(t *testing.T) {
	for _, test := range []struct {
		name string
		meta metav1.ObjectMeta
		want string
	}{
		{"right", meta("member-eu", "eu.web.shop", "eu"), ""},
		{"right, of two labels", meta("member-eu-west", "eu.west.web.shop", "eu.west"), ""},
		{"no member's namespace", meta("default", "eu.web.shop", "eu"), "belongs to no member"},
		{"another's label", meta("member-eu", "eu.web.shop", "eu.west"), "label"},
		{"another's name", meta("member-eu", "us.web.shop", "eu"), "does not begin"},
		{"a name that only begins alike", meta("member-eu", "eu-2.web.shop", "eu"), "does not begin"},
		{"the name of a member whose ID begins alike", meta("member-eu", "eu.west.web.shop", "eu"), `one of member "eu.west"`},
		{"another service's name", meta("member-eu", "eu.db.shop", "eu"), "the name is not"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := exported("x", 0)
			_, err := roster(t).Export(&v1alpha1.ExportedService{ObjectMeta: test.meta, Spec: c.Export})
			says(t, err, test.want)
		})
	}
}

func TestRosterLeavesOutWhatIsAmbiguous(t *testing.T) {
	r, err := NewRoster([]v1alpha1.Member{
		{ClusterID: "a", Namespace: "one"}, {ClusterID: "a", Namespace: "two"}, {ClusterID: "b", Namespace: "three"},
		{ClusterID: "c", Namespace: "four"}, {ClusterID: "d", Namespace: "four"}, {ClusterID: "UP", Namespace: "five"}, {ClusterID: "a.b.c", Namespace: "six"},
	})
	for _, want := range []string{`member "a"`, `member "c"`, `member "d"`, `"UP"`, `"a.b.c"`} {
		says(t, err, want)
	}
	for namespace, want := range map[string]string{"one": "", "two": "", "three": "b", "four": "", "five": "", "six": ""} {
		if got := r.Member(namespace); got != want {
			t.Errorf("member of %s: %q, want %q", namespace, got, want)
		}
	}
}

func TestCheckExport(t *testing.T) {
	type spec = v1alpha1.ExportedServiceSpec
	for want, change := range map[string]func(*spec){
		"":                          func(*spec) {},
		"name":                      func(e *spec) { e.Name = "Web" },
		"namespace":                 func(e *spec) { e.Namespace = strings.Repeat("a", 64) },
		"type is":                   func(e *spec) { e.Type = "LoadBalancer" },
		"no exportedAt":             func(e *spec) { e.ExportedAt = metav1.Time{} },
		"port number 0":             func(e *spec) { e.Ports[0].Port = 0 },
		"port number 70000":         func(e *spec) { e.Ports[0].Port = 70000 },
		"protocol is":               func(e *spec) { e.Ports[0].Protocol = "ICMP" },
		"port name":                 func(e *spec) { e.Ports[0].Name = "a_b" },
		`two ports named "http"`:    ports("http:1/TCP", "http:2/TCP"),
		"two ports 1/TCP":           ports("a:1/TCP", "b:1/TCP"),
		"no ports":                  func(e *spec) { e.Ports = nil },
		"ipFamilies are":            func(e *spec) { e.IPFamilies = nil },
		"ipFamily is":               func(e *spec) { e.IPFamilies = []string{"IPX"} },
		`address "10.0.0.256"`:      func(e *spec) { e.Addresses = []string{"10.0.0.256"} },
		`address "127.0.0.1"`:       func(e *spec) { e.Addresses = []string{"127.0.0.1"} },
		"two addresses of one":      func(e *spec) { e.Addresses = []string{"10.0.0.1", "10.0.0.2"} },
		"sessionAffinity is":        func(e *spec) { e.SessionAffinity = "Sometimes" },
		"TimeoutSeconds is 0":       func(e *spec) { e.SessionAffinityTimeoutSeconds = ptr(int32(0)) },
		"internalTrafficPolicy is":  func(e *spec) { e.InternalTrafficPolicy = ptr("Nowhere") },
		"trafficDistribution is":    func(e *spec) { e.TrafficDistribution = ptr("PreferFar") },
		"exported label":            func(e *spec) { e.ExportedLabels = map[string]string{"a": "b c"} },
		"exported annotation":       func(e *spec) { e.ExportedAnnotations = map[string]string{"a b": ""} },
		"bytes of exported labels":  func(e *spec) { e.ExportedAnnotations = map[string]string{"a": strings.Repeat("x", 1<<17)} },
		"101 ports":                 func(e *spec) { e.Ports = make([]v1alpha1.ServicePort, 101) },
		`appProtocol "a b"`:         func(e *spec) { e.Ports[0].AppProtocol = ptr("a b") },
		`address "fe80::1"`:         func(e *spec) { e.Addresses = []string{"fe80::1"} },
		`address "::ffff:10.0.0.1"`: func(e *spec) { e.Addresses = []string{"::ffff:10.0.0.1"} },
		`address "fd00:0:0::1"`:     func(e *spec) { e.Addresses = []string{"fd00:0:0::1"} },
		"affinity is":               func(e *spec) { e.Affinity = "far" },
		"balance is":                func(e *spec) { e.Balance = "luck" },
		"weight is -1":              func(e *spec) { e.Weight = ptr(int32(-1)) },
		"minLocalPercent is 101":    func(e *spec) { e.MinLocalPercent = ptr(int32(101)) },
		"prefer: cluster a comes":   func(e *spec) { e.Prefer = []string{"a", "b", "a"} },
		`address "255.255.255.255"`: func(e *spec) { e.Addresses = []string{"255.255.255.255"} },
	} {
		t.Run(want, func(t *testing.T) {
			c := exported("x", 0, change)
			says(t, CheckExport(&c.Export), want)
		})
	}
}

func TestCheckBackends(t *testing.T) {
	type spec = v1alpha1.ExportedEndpointsSpec
	for want, change := range map[string]func(*spec){
		"":                      func(*spec) {},
		"ipFamily is":           func(b *spec) { b.IPFamily = "FQDN" },
		`address "fd00::1"`:     func(b *spec) { b.Backends[0].Addresses = []string{"fd00::1"} },
		`address "224.0.0.1"`:   func(b *spec) { b.Backends[0].Addresses = []string{"224.0.0.1"} },
		`address "169.254.1.1"`: func(b *spec) { b.Backends[0].Addresses = []string{"169.254.1.1"} },
		"with 0 addresses":      func(b *spec) { b.Backends[0].Addresses = nil },
		"hostname":              func(b *spec) { b.Backends[0].Hostname = "a.b" },
		"zone":                  func(b *spec) { b.Backends[0].Zone = ptr("a b") },
		"nodeName":              func(b *spec) { b.Backends[0].NodeName = ptr("A") },
		"101 backends":          func(b *spec) { b.Backends = make([]v1alpha1.Backend, 101) },
		"port number -1":        func(b *spec) { b.Ports = []v1alpha1.BackendPort{{Protocol: "TCP", Port: -1}} },
	} {
		t.Run(want, func(t *testing.T) {
			b := spec{Namespace: "shop", Service: "web", IPFamily: "IPv4", Backends: []v1alpha1.Backend{{Addresses: []string{"10.0.0.1"}}}}
			change(&b)
			says(t, CheckBackends(&b), want)
		})
	}
}

func TestCheckEndpoint(t *testing.T) {
	for want, change := range map[string]func(*v1alpha1.Endpoint){
		"":               func(*v1alpha1.Endpoint) {},
		"clusterID is":   func(e *v1alpha1.Endpoint) { e.Spec.ClusterID = "us" },
		"no drivers":     func(e *v1alpha1.Endpoint) { e.Spec.Drivers = nil },
		"driver is":      func(e *v1alpha1.Endpoint) { e.Spec.Drivers[0].Name = "gre" },
		"there twice":    func(e *v1alpha1.Endpoint) { e.Spec.Drivers = append(e.Spec.Drivers, e.Spec.Drivers[0]) },
		"port is 0":      func(e *v1alpha1.Endpoint) { e.Spec.Port = 0 },
		"no addresses":   func(e *v1alpha1.Endpoint) { e.Spec.Addresses = nil },
		`address "x"`:    func(e *v1alpha1.Endpoint) { e.Spec.Addresses = []string{"x"} },
		"prefix":         func(e *v1alpha1.Endpoint) { e.Spec.Prefixes = []string{"10.0.0.1/8"} },
		"does not begin": func(e *v1alpha1.Endpoint) { e.Name = "us.n1" },
	} {
		t.Run(want, func(t *testing.T) {
			e := &v1alpha1.Endpoint{ObjectMeta: meta("member-eu", "eu.n1", "eu"), Spec: v1alpha1.EndpointSpec{
				ClusterID: "eu", Node: "n1", Drivers: []v1alpha1.EndpointDriver{{Name: "wireguard"}}, Addresses: []string{"192.0.2.1", "2001:db8::1"}, Port: 51820, Prefixes: []string{"10.0.0.0/8", "fd00::/16"},
			}}
			change(e)
			_, err := roster(t).Endpoint(e)
			says(t, err, want)
		})
	}
}

func TestNames(t *testing.T) {
	// echo -n sample/whereami-cs | openssl dgst -sha256 -binary | basenc --base32hex | head -c 10
	if got, want := DerivedName(Key{Namespace: "sample", Name: "whereami-cs"}), "derived-flgvlr2q1g"; got != want {
		t.Errorf("derived name %s, want %s", got, want)
	}
	seen := map[string]string{}
	for _, slice := range []string{"web-1", "web-2", strings.Repeat("s", 250), strings.Repeat("s", 251)} {
		for part := range 3 {
			name := BackendsName("eu.west", slice, "shop", part)
			if len(name) > 253 || !strings.HasPrefix(name, "eu.west.") {
				t.Errorf("name %q of slice %q, part %d", name, slice, part)
			}
			from := fmt.Sprint(slice, part)
			if other := seen[name]; other != "" {
				t.Errorf("%s and %s share the name %s", other, from, name)
			}
			seen[name] = from
		}
	}
	if a, b := SliceName("web", "eu", "eu.west.x"), SliceName("web", "eu.west", "eu.west.x"); a == b {
		t.Errorf("two clusters share the slice name %s", a)
	}
}

// FuzzAddress: what passes is what the API server takes for an endpoint's address, in its one usual form.
func FuzzAddress(f *testing.F) {
	for _, seed := range []string{"10.0.0.1", "fd00::1", "127.0.0.1", "::", "10.0.0.01", "fe80::1%eth0", "::ffff:1.2.3.4", "1.2.3", "example.org", "10.0.0.1/8", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		var c checker
		c.address(address, "")
		if c.err() != nil {
			return
		}
		a := netip.MustParseAddr(address)
		if a.String() != address || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || FamilyOf(address) == "" {
			t.Errorf("%q passed", address)
		}
	})
}
