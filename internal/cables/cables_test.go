package cables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func endpoint(name string, created int64, prefixes ...string) v1alpha1.Endpoint {
	cluster, node, _ := strings.Cut(name, ".")
	return v1alpha1.Endpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Time{Time: time.Unix(created, 0)}},
		Spec: v1alpha1.EndpointSpec{ClusterID: cluster, ClusterUID: "uid-" + cluster, Node: node, Driver: "wireguard",
			Addresses: []string{"192.0.2.1", "2001:db8::1"}, Port: 51820, PublicKey: "key", Prefixes: prefixes},
	}
}

func change(e v1alpha1.Endpoint, change func(*v1alpha1.Endpoint)) v1alpha1.Endpoint {
	change(&e)
	return e
}

func (p Plan) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "local %s on %s\n", p.Local, p.LocalNode)
	for _, r := range p.Remotes {
		fmt.Fprintf(&b, "%s of %s at %v: %v\n", r.Name, r.ClusterID, r.Addresses, r.Prefixes)
	}
	for _, problem := range p.Problems {
		b.WriteString(problem + "\n")
	}
	return b.String()
}

func TestDecide(t *testing.T) {
	const at = "[192.0.2.1:51820 [2001:db8::1]:51820]"
	for _, test := range []struct {
		name      string
		endpoints []v1alpha1.Endpoint
		want      string
	}{
		{"nobody", nil, "local  on \n"},
		{"one each, both families", []v1alpha1.Endpoint{endpoint("c1.a", 1, "10.8.0.0/16"), endpoint("c2.b", 1, "fd00:9::/32", "10.9.0.0/16")},
			"local c1.a on a\nc2.b of c2 at " + at + ": [10.9.0.0/16 fd00:9::/32]\n"},
		{"the lowest name carries, whatever came first", []v1alpha1.Endpoint{
			endpoint("c1.b", 1), endpoint("c1.a", 9), endpoint("c2.z", 1, "10.9.0.0/16"), endpoint("c2.y", 9, "10.9.0.0/16")},
			"local c1.a on a\nc2.y of c2 at " + at + ": [10.9.0.0/16]\nc2.z of c2 at " + at + ": []\n"},
		{"one that is being deleted does not count", []v1alpha1.Endpoint{
			change(endpoint("c2.y", 1, "10.9.0.0/16"), func(e *v1alpha1.Endpoint) { e.DeletionTimestamp = &metav1.Time{} }), endpoint("c2.z", 1, "10.9.0.0/16")},
			"local  on \nc2.z of c2 at " + at + ": [10.9.0.0/16]\n"},
		{"ours and our nodes' are refused", []v1alpha1.Endpoint{endpoint("c2.b", 1, "10.0.0.0/8", "172.18.0.0/16", "10.99.0.0/16", "fd00:8:5::/48")},
			"local  on \nc2.b of c2 at " + at + ": [10.99.0.0/16]\n" +
				"cluster c2: CIDR 10.0.0.0/8 of Endpoint c2.b overlaps this cluster's 10.8.0.0/16: refused\n" +
				"cluster c2: CIDR 172.18.0.0/16 of Endpoint c2.b covers this cluster's node address 172.18.0.2: refused\n" +
				"cluster c2: CIDR fd00:8:5::/48 of Endpoint c2.b overlaps this cluster's fd00:8::/32: refused\n"},
		{"of two clusters the older keeps the range", []v1alpha1.Endpoint{endpoint("c2.b", 5, "10.9.0.0/16"), endpoint("c3.c", 6, "10.9.4.0/24", "10.7.0.0/16")},
			"local  on \nc2.b of c2 at " + at + ": [10.9.0.0/16]\nc3.c of c3 at " + at + ": [10.7.0.0/16]\n" +
				"cluster c3: CIDR 10.9.4.0/24 of Endpoint c3.c overlaps 10.9.0.0/16 of cluster c2: refused\n"},
		{"a new gateway of the older cluster changes nothing in that", []v1alpha1.Endpoint{
			endpoint("c2.a", 9, "10.9.0.0/16"), endpoint("c2.b", 5, "10.9.0.0/16"), endpoint("c3.c", 6, "10.9.0.0/16")},
			"local  on \nc2.a of c2 at " + at + ": [10.9.0.0/16]\nc2.b of c2 at " + at + ": []\nc3.c of c3 at " + at + ": []\n" +
				"cluster c3: CIDR 10.9.0.0/16 of Endpoint c3.c overlaps 10.9.0.0/16 of cluster c2: refused\n"},
		{"of one age neither has it", []v1alpha1.Endpoint{endpoint("c2.b", 5, "10.9.0.0/16"), endpoint("c3.c", 5, "10.9.0.0/16")},
			"local  on \nc2.b of c2 at " + at + ": []\nc3.c of c3 at " + at + ": []\n" +
				"cluster c2: CIDR 10.9.0.0/16 of Endpoint c2.b overlaps 10.9.0.0/16 of cluster c3: refused\n" +
				"cluster c3: CIDR 10.9.0.0/16 of Endpoint c3.c overlaps 10.9.0.0/16 of cluster c2: refused\n"},
		{"what is refused anyway stands in nobody's way", []v1alpha1.Endpoint{
			endpoint("c2.b", 1, "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.9.0.0/16"), endpoint("c3.c", 1, "10.7.0.0/16", "fd00:7::/32")},
			"local  on \nc2.b of c2 at " + at + ": [10.9.0.0/16]\nc3.c of c3 at " + at + ": [10.7.0.0/16 fd00:7::/32]\n" +
				"cluster c2: CIDR 0.0.0.0/0 of Endpoint c2.b is a default route: refused\n" +
				"cluster c2: CIDR 10.0.0.0/8 of Endpoint c2.b overlaps this cluster's 10.8.0.0/16: refused\n" +
				"cluster c2: CIDR ::/0 of Endpoint c2.b is a default route: refused\n"},
		{"two clusters with one ID", []v1alpha1.Endpoint{endpoint("c2.b", 1, "10.9.0.0/16"),
			change(endpoint("c2.c", 1, "10.9.0.0/16"), func(e *v1alpha1.Endpoint) { e.Spec.ClusterUID = "another" })},
			"local  on \ncluster c2: Endpoints c2.b and c2.c come from two clusters with one ID: both refused\n"},
		{"peer addresses behind tunnels, or none at all", []v1alpha1.Endpoint{
			change(endpoint("c2.b", 1, "10.9.0.0/16"), func(e *v1alpha1.Endpoint) {
				e.Spec.Addresses = []string{"10.9.0.7", "10.8.0.7", "127.0.0.1", "nonsense", "192.0.2.7"}
			}),
			change(endpoint("c3.c", 1, "10.7.0.0/16"), func(e *v1alpha1.Endpoint) { e.Spec.Port = 0 })},
			"local  on \nc2.b of c2 at [192.0.2.7:51820]: [10.9.0.0/16]\nc3.c of c3 at []: [10.7.0.0/16]\n" +
				"cluster c2: Endpoint c2.b: \"127.0.0.1\" is no peer address\ncluster c2: Endpoint c2.b: \"nonsense\" is no peer address\n" +
				"cluster c2: Endpoint c2.b: peer address 10.8.0.7 lies in 10.8.0.0/16, behind the tunnel: refused\n" +
				"cluster c2: Endpoint c2.b: peer address 10.9.0.7 lies in 10.9.0.0/16, behind the tunnel: refused\n" +
				"cluster c3: Endpoint c3.c: 0 is no port\n"},
		{"overlaps within one Endpoint: the wider stays; host bits are cut", []v1alpha1.Endpoint{endpoint("c2.b", 1, "10.9.3.0/24", "10.9.0.1/16")},
			"local  on \nc2.b of c2 at " + at + ": [10.9.0.0/16]\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := Input{ClusterID: "c1", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/16"), netip.MustParsePrefix("fd00:8::/32")},
				Nodes: []netip.Addr{netip.MustParseAddr("172.18.0.2")}, Endpoints: test.endpoints}
			if diff := cmp.Diff(test.want, Decide(in).text()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for range 5 { // the order in which a cache lists is any
				in.Endpoints = append(in.Endpoints[len(in.Endpoints)/2:], in.Endpoints[:len(in.Endpoints)/2]...)
				if got := Decide(in).text(); got != test.want {
					t.Errorf("another order, another answer:\n%s", got)
				}
			}
		})
	}
}

func TestParsePrefixes(t *testing.T) {
	for text, want := range map[string]string{
		"10.8.0.0/16, fd00:8::/32": "", "10.8.0.1/16": "want 10.8.0.0/16", "10.8.0.0": "no CIDR", "10.8.0.0/16,10.8.4.0/24": "overlaps",
	} {
		_, err := ParsePrefixes(strings.Split(text, ","))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}
