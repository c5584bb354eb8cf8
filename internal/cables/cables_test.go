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
		Spec: v1alpha1.EndpointSpec{ClusterID: cluster, ClusterUID: "uid-" + cluster, Node: node, Drivers: []v1alpha1.EndpointDriver{{Name: "wireguard", PublicKey: "key"}},
			Addresses: []string{"192.0.2.1", "2001:db8::1"}, Port: 51820, Prefixes: prefixes},
	}
}

func change(e v1alpha1.Endpoint, change func(*v1alpha1.Endpoint)) v1alpha1.Endpoint {
	change(&e)
	return e
}

func (p Plan) text() string {
	var b strings.Builder
	for _, l := range p.Locals {
		fmt.Fprintf(&b, "local %s on %s\n", l.Name, l.Node)
	}
	for _, c := range p.Clusters {
		fmt.Fprintf(&b, "%s: %v\n", c.ID, c.Prefixes)
		for _, r := range c.Gateways {
			fmt.Fprintf(&b, "  %s on %s at %v, awaits us at %d", r.Name, r.Node, r.Addresses, r.Ports["c1.a"])
			if r.Link != LinkName(WireGuard, r.Name) {
				fmt.Fprintf(&b, ", link %q", r.Link)
			}
			b.WriteString("\n")
		}
	}
	for _, problem := range p.Problems {
		b.WriteString(problem + "\n")
	}
	return b.String()
}

func TestDecide(t *testing.T) {
	const at = " at [192.0.2.1 2001:db8::1], awaits us at 0\n"
	for _, test := range []struct {
		name      string
		endpoints []v1alpha1.Endpoint
		want      string
	}{
		{"nobody", nil, ""},
		{"one each, both families", []v1alpha1.Endpoint{endpoint("c1.a", 1, "10.8.0.0/16"), endpoint("c2.b", 1, "fd00:9::/32", "10.9.0.0/16")},
			"local c1.a on a\nc2: [10.9.0.0/16 fd00:9::/32]\n  c2.b on b" + at},
		{"all gateways carry what any of the cluster claims", []v1alpha1.Endpoint{
			endpoint("c1.b", 1), endpoint("c1.a", 9), endpoint("c2.z", 1, "10.9.0.0/16"), endpoint("c2.y", 9, "10.9.0.0/16", "10.10.0.0/16")},
			"local c1.a on a\nlocal c1.b on b\nc2: [10.9.0.0/16 10.10.0.0/16]\n  c2.y on y" + at + "  c2.z on z" + at},
		{"ports, of which some are none", []v1alpha1.Endpoint{change(endpoint("c2.b", 1), func(e *v1alpha1.Endpoint) {
			e.Spec.Ports = map[string]int32{"c1.a": 51823, "c3.x": 0}
		})},
			"c2: []\n  c2.b on b at [192.0.2.1 2001:db8::1], awaits us at 51823\ncluster c2: Endpoint c2.b: 0, for c3.x, is no port\n"},
		{"one that is being deleted does not count", []v1alpha1.Endpoint{
			change(endpoint("c2.y", 1, "10.9.0.0/16"), func(e *v1alpha1.Endpoint) { e.DeletionTimestamp = &metav1.Time{} }), endpoint("c2.z", 1, "10.9.0.0/16")},
			"c2: [10.9.0.0/16]\n  c2.z on z" + at},
		{"ours and our nodes' are refused", []v1alpha1.Endpoint{endpoint("c2.b", 1, "10.0.0.0/8", "172.18.0.0/16", "10.99.0.0/16", "fd00:8:5::/48")},
			"c2: [10.99.0.0/16]\n  c2.b on b" + at +
				"cluster c2: CIDR 10.0.0.0/8 of Endpoint c2.b overlaps this cluster's 10.8.0.0/16: refused\n" +
				"cluster c2: CIDR 172.18.0.0/16 of Endpoint c2.b covers this cluster's node address 172.18.0.2: refused\n" +
				"cluster c2: CIDR fd00:8:5::/48 of Endpoint c2.b overlaps this cluster's fd00:8::/32: refused\n"},
		{"gateways' own addresses are refused", []v1alpha1.Endpoint{endpoint("c2.b", 1, "10.99.0.0/16", "fd40::/12")},
			"c2: [10.99.0.0/16]\n  c2.b on b" + at +
				"cluster c2: CIDR fd40::/12 of Endpoint c2.b overlaps fd46:4153:544e::/48, which gateways use among themselves: refused\n"},
		{"of two clusters the older keeps the range", []v1alpha1.Endpoint{endpoint("c2.b", 5, "10.9.0.0/16"), endpoint("c3.c", 6, "10.9.4.0/24", "10.7.0.0/16")},
			"c2: [10.9.0.0/16]\n  c2.b on b" + at + "c3: [10.7.0.0/16]\n  c3.c on c" + at +
				"cluster c3: CIDR 10.9.4.0/24 of Endpoint c3.c overlaps 10.9.0.0/16 of cluster c2: refused\n"},
		{"a new gateway of the older cluster changes nothing in that", []v1alpha1.Endpoint{
			endpoint("c2.a", 9, "10.9.0.0/16"), endpoint("c2.b", 5, "10.9.0.0/16"), endpoint("c3.c", 6, "10.9.0.0/16")},
			"c2: [10.9.0.0/16]\n  c2.a on a" + at + "  c2.b on b" + at + "c3: []\n  c3.c on c" + at +
				"cluster c3: CIDR 10.9.0.0/16 of Endpoint c3.c overlaps 10.9.0.0/16 of cluster c2: refused\n"},
		{"of one age neither has it", []v1alpha1.Endpoint{endpoint("c2.b", 5, "10.9.0.0/16"), endpoint("c3.c", 5, "10.9.0.0/16")},
			"c2: []\n  c2.b on b" + at + "c3: []\n  c3.c on c" + at +
				"cluster c2: CIDR 10.9.0.0/16 of Endpoint c2.b overlaps 10.9.0.0/16 of cluster c3: refused\n" +
				"cluster c3: CIDR 10.9.0.0/16 of Endpoint c3.c overlaps 10.9.0.0/16 of cluster c2: refused\n"},
		{"what is refused anyway stands in nobody's way", []v1alpha1.Endpoint{
			endpoint("c2.b", 1, "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.9.0.0/16"), endpoint("c3.c", 1, "10.7.0.0/16", "fd00:7::/32")},
			"c2: [10.9.0.0/16]\n  c2.b on b" + at + "c3: [10.7.0.0/16 fd00:7::/32]\n  c3.c on c" + at +
				"cluster c2: CIDR 0.0.0.0/0 of Endpoint c2.b is a default route: refused\n" +
				"cluster c2: CIDR 10.0.0.0/8 of Endpoint c2.b overlaps this cluster's 10.8.0.0/16: refused\n" +
				"cluster c2: CIDR ::/0 of Endpoint c2.b is a default route: refused\n"},
		{"two clusters with one ID", []v1alpha1.Endpoint{endpoint("c2.b", 1, "10.9.0.0/16"),
			change(endpoint("c2.c", 1, "10.9.0.0/16"), func(e *v1alpha1.Endpoint) { e.Spec.ClusterUID = "another" })},
			"cluster c2: Endpoints c2.b and c2.c come from two clusters with one ID: both refused\n"},
		{"peer addresses behind tunnels, or none at all", []v1alpha1.Endpoint{
			change(endpoint("c2.b", 1, "10.9.0.0/16"), func(e *v1alpha1.Endpoint) {
				e.Spec.Addresses = []string{"10.9.0.7", "10.8.0.7", "127.0.0.1", "nonsense", "192.0.2.7"}
			})},
			"c2: [10.9.0.0/16]\n  c2.b on b at [192.0.2.7], awaits us at 0\n" +
				"cluster c2: Endpoint c2.b: \"127.0.0.1\" is no peer address\ncluster c2: Endpoint c2.b: \"nonsense\" is no peer address\n" +
				"cluster c2: Endpoint c2.b: peer address 10.8.0.7 lies in 10.8.0.0/16, behind the tunnel: refused\n" +
				"cluster c2: Endpoint c2.b: peer address 10.9.0.7 lies in 10.9.0.0/16, behind the tunnel: refused\n"},
		{"overlaps within one cluster: the wider stays; host bits are cut", []v1alpha1.Endpoint{
			endpoint("c2.b", 1, "10.9.3.0/24"), endpoint("c2.c", 1, "10.9.0.1/16", "10.9.3.0/24")},
			"c2: [10.9.0.0/16]\n  c2.b on b" + at + "  c2.c on c" + at},
		{"of two with one link name the older has it", []v1alpha1.Endpoint{endpoint(twinName1, 5), endpoint(twinName2, 4)},
			"c2: []\n  " + twinName1 + " on " + twinName1[3:] + " at [192.0.2.1 2001:db8::1], awaits us at 0, link \"\"\n" +
				"  " + twinName2 + " on " + twinName2[3:] + at +
				"cluster c2: Endpoint " + twinName1 + " would have the link name of " + twinName2 + ", which is older: no cable, give its node another name\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := Input{ClusterID: "c1", Drivers: []string{WireGuard}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/16"), netip.MustParsePrefix("fd00:8::/32")},
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

// Two Endpoints whose links would have one name, found by trying.
const twinName1, twinName2 = "c2.n23982", "c2.n27021"

func TestLinkNames(t *testing.T) {
	if LinkName(WireGuard, twinName1) != LinkName(WireGuard, twinName2) {
		t.Errorf("%s and %s were to have one link name", twinName1, twinName2)
	}
	seen := map[string]string{}
	for i := range 1000 {
		endpoint := fmt.Sprintf("east.worker-%d", i)
		for _, driver := range Drivers() {
			link := LinkName(driver, endpoint)
			if len(link) > 15 || !strings.HasPrefix(link, LinkPrefix(driver)) || strings.HasPrefix(link, "fastnet-vx") || link != LinkName(driver, endpoint) || !IsLink(link) {
				t.Errorf("link of %s is %s", endpoint, link)
			}
			if other := seen[link]; other != "" {
				t.Errorf("%s and %s have one link name", endpoint, other)
			}
			seen[link] = endpoint
		}
	}
}
