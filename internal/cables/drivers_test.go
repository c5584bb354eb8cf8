package cables

import (
	"slices"
	"strings"
	"testing"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Whoever asks: two gateways meet on one driver, that of the smaller cluster ID's order, and have a device of it, or both say
// why not.
func TestDriversMeet(t *testing.T) {
	const noCable = ": no cable; let both clusters have one in common (kubectl fastnet join --driver)"
	for _, test := range []struct {
		c1, c2, want string
		c1Says       string
	}{
		{"wireguard", "wireguard", "wireguard", ""},
		{"wireguard,vxlan", "vxlan,wireguard", "wireguard", ""},
		{"vxlan,wireguard", "wireguard,vxlan", "vxlan", ""},
		{"vxlan,wireguard", "wireguard", "wireguard", ""},
		{"ipsec,wireguard", "vxlan,ipsec", "ipsec", ""},
		{"vxlan", "wireguard", "", "cluster c2: Endpoint c2.b has the drivers wireguard, this gateway has vxlan" + noCable},
		{"carrier-pigeon,wireguard", "carrier-pigeon,wireguard", "wireguard", ""}, // of a version to come
	} {
		t.Run(test.c1+" and "+test.c2, func(t *testing.T) {
			a, b := endpoint("c1.a", 1), endpoint("c2.b", 1)
			a.Spec.Drivers, b.Spec.Drivers = drivers(test.c1), drivers(test.c2)
			all := []v1alpha1.Endpoint{a, b}
			for _, side := range []struct{ own, ownDrivers, other string }{{"c1.a", test.c1, "c2.b"}, {"c2.b", test.c2, "c1.a"}} {
				byEndpoint := Decide(Input{ClusterID: side.own[:2], Node: side.own[3:], Endpoints: all})
				given := Decide(Input{ClusterID: side.own[:2], Node: side.own[3:], Drivers: strings.Split(side.ownDrivers, ","), Endpoints: all})
				for _, plan := range []Plan{byEndpoint, given} {
					r := plan.Clusters[0].Gateways[0]
					if r.Driver != test.want || (r.Link != "") != (test.want != "") || r.Via.IsValid() != (test.want == VXLAN || test.want == IPsec) {
						t.Errorf("%s meets %+v", side.own, r)
					}
					if test.want != "" && (r.Link != LinkName(test.want, side.other) || r.PublicKey != "key of "+test.want) {
						t.Errorf("%s meets %+v", side.own, r)
					}
					if (len(plan.Problems) > 0) != (test.want == "") {
						t.Errorf("%s has the problems %v", side.own, plan.Problems)
					}
					if !slices.Equal(plan.Problems, plan.NoCommonDriver) {
						t.Errorf("%s has the problems %v, of which %v are of drivers", side.own, plan.Problems, plan.NoCommonDriver)
					}
					if side.own == "c1.a" && test.c1Says != "" && !slices.Contains(plan.Problems, test.c1Says) {
						t.Errorf("%s has the problems %v, want %s", side.own, plan.Problems, test.c1Says)
					}
				}
			}
			other := Decide(Input{ClusterID: "c1", Node: "worker", Endpoints: all})
			if r := other.Clusters[0].Gateways[0]; r.Link != "" || len(other.Problems) > 0 {
				t.Errorf("a node that is no gateway has %+v, %v", r, other.Problems)
			}
		})
	}
}

func drivers(names string) (drivers []v1alpha1.EndpointDriver) {
	for _, name := range strings.Split(names, ",") {
		drivers = append(drivers, v1alpha1.EndpointDriver{Name: name, PublicKey: "key of " + name})
	}
	return drivers
}

func TestCheckDrivers(t *testing.T) {
	for text, want := range map[string]string{
		"wireguard": "", "vxlan,wireguard": "", "": "is none of", "pigeon": `"pigeon" is none of`, "wireguard,wireguard": "twice",
	} {
		err := CheckDrivers(strings.Split(text, ","), true)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
	if err := CheckDrivers([]string{WireGuard, VXLAN}, false); err == nil || !strings.Contains(err.Error(), "--allow-unencrypted") {
		t.Errorf("vxlan unasked: %v", err)
	}
	if CheckDrivers(nil, true) == nil {
		t.Error("no driver will do")
	}
}

func TestEndsDiffer(t *testing.T) {
	a, b := EndOf("c1.a"), EndOf("c2.b")
	if a == b || a.MAC == b.MAC || a != EndOf("c1.a") || !a.Addr.IsLinkLocalUnicast() {
		t.Errorf("ends are %v and %v", a, b)
	}
	if SegmentID("c1.a", "c2.b") != SegmentID("c2.b", "c1.a") || SegmentID("c1.a", "c2.b") == SegmentID("c1.a", "c2.c") || SegmentID("c1.a", "c2.b") >= 1<<24 {
		t.Error("segments have other IDs")
	}
}
