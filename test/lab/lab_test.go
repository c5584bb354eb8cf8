package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLayout(t *testing.T) {
	var text strings.Builder
	for _, config := range []Config{DefaultConfig("dist"), {Clusters: 1, Workers: 1, Families: IPv4}, {Clusters: 1, Workers: 1, Families: IPv6}} {
		l := newLab(config)
		for _, c := range l.Clusters() {
			fmt.Fprintf(&text, "%s pods %s services %s server %s\n", c.Name(), c.Pods(), c.Services(), c.server())
			for _, n := range c.Nodes() {
				fmt.Fprintf(&text, "  %s %s %v %v\n", n.Name(), n.Role(), n.Addrs(), n.Pods())
			}
		}
	}
	golden(t, "layout.txt", text.String())
}

// TestSpec shows what runs on a node and with what flags; keys and certificates are left out.
func TestSpec(t *testing.T) {
	l := newLab(DefaultConfig("/dist"))
	ca, err := makeAuthority(t.TempDir(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"control", "worker1"} {
		spec, err := l.spec(l.Node("c1", role), ca)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		fmt.Fprintf(&text, "# %s, /var is %s\n", spec.Hostname, spec.Var)
		for _, p := range spec.Programs {
			fmt.Fprintf(&text, "\n%s (%s) after %v\n", p.Name, p.Path, p.Wait)
			for _, arg := range append(slices.Clone(p.Env), p.Args...) {
				fmt.Fprintf(&text, "  %s\n", arg)
			}
		}
		for _, file := range spec.Files {
			fmt.Fprintf(&text, "\n--- %s %v\n", file.Path, file.Mode)
			if !strings.HasPrefix(file.Path, "/etc/kubernetes/") || strings.HasSuffix(file.Path, ".json") {
				text.WriteString(file.Text)
			}
			if secret := strings.Contains(file.Text, "PRIVATE KEY") || strings.Contains(file.Text, "client-key-data"); secret && file.Mode != 0o600 {
				t.Errorf("%s holds a key and has mode %v", file.Path, file.Mode)
			}
		}
		golden(t, "spec-"+role+".txt", text.String())
	}
}

// TestSpecOfOneFamily: nothing on a node of a lab of one family knows an address of the other, but for loopback.
func TestSpecOfOneFamily(t *testing.T) {
	address := regexp.MustCompile(`[0-9a-f]*(:[0-9a-f]*){2,}|\d+(\.\d+){3}`)
	for _, families := range []Families{IPv4, IPv6} {
		config := DefaultConfig("/dist")
		config.Families = families
		l := newLab(config)
		ca, err := makeAuthority(t.TempDir(), "c1")
		if err != nil {
			t.Fatal(err)
		}
		spec, err := l.spec(l.Node("c1", "control"), ca)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, word := range address.FindAllString(string(text), -1) {
			addr, err := netip.ParseAddr(word)
			if err != nil || addr.IsLoopback() {
				continue
			}
			if found++; addr.Is4() != (families == IPv4) {
				t.Errorf("%s: %s", families, addr)
			}
		}
		if found < 10 {
			t.Errorf("%s: only %d addresses found in\n%s", families, found, text)
		}
	}
}

// TestAuthority: a second `up` goes on with the keys of the first.
func TestAuthority(t *testing.T) {
	folder := t.TempDir()
	made, err := openAuthority(folder, "c1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := openAuthority(folder, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if !made.cert.Equal(again.cert) || !made.key.Equal(again.key) || string(made.accountKey) != string(again.accountKey) {
		t.Error("the authority was made anew")
	}
	if _, err := newAPI("https://127.0.0.1:6443", again); err != nil {
		t.Error(err)
	}
}

func TestParseTarget(t *testing.T) {
	l := newLab(DefaultConfig("dist"))
	for text, want := range map[string]string{
		"c1/worker1":         "c1-worker1",
		"c1/c1-worker1":      "c1-worker1",
		"c2/control:kubelet": "c2-control kubelet",
		"c3/worker1":         `no cluster "c3": there are c1, c2`,
		"c1":                 `"c1" names no node: give CLUSTER/NODE, such as c1/control`,
		"c1/worker9":         `no node "worker9" in c1: there are control, worker1, worker2`,
	} {
		parsed, err := l.parseTarget(text)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = strings.TrimSpace(parsed.node.name + " " + parsed.detail)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	for _, targets := range [][]string{{}, {"c1"}, {"c1", "c1"}, {"c1", "c9"}, {"c1/worker1", "c2"}, {"c1/worker1:eth1"}} {
		if err := l.Cut(t.Context(), targets...); err == nil {
			t.Errorf("cut %q passes", targets)
		}
	}
}

func TestParsePorts(t *testing.T) {
	const text = `5: c1-control@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 master c1 state forwarding priority 32 cost 2
7: c1-worker1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 master c1 state disabled priority 32 cost 2
9: c1-worker2@if2: <BROADCAST,MULTICAST> mtu 1500 master c1 state disabled priority 32 cost 2
`
	want := map[string]string{"c1-control": "whole", "c1-worker1": "cut", "c1-worker2": "link down"}
	if diff := cmp.Diff(want, parsePorts(text)); diff != "" {
		t.Error(diff)
	}
}

func TestDNSObjects(t *testing.T) {
	for _, test := range []struct {
		families Families
		want     map[string]any // of the Service
	}{
		{Dual, map[string]any{"clusterIP": "10.88.0.10", "clusterIPs": []any{"10.88.0.10", "fd00:10:88::a"},
			"ipFamilies": []any{"IPv4", "IPv6"}, "ipFamilyPolicy": "RequireDualStack"}},
		{IPv4, map[string]any{"clusterIP": "10.88.0.10", "clusterIPs": []any{"10.88.0.10"},
			"ipFamilies": []any{"IPv4"}, "ipFamilyPolicy": "SingleStack"}},
		{IPv6, map[string]any{"clusterIP": "fd00:10:88::a", "clusterIPs": []any{"fd00:10:88::a"},
			"ipFamilies": []any{"IPv6"}, "ipFamilyPolicy": "SingleStack"}},
	} {
		config := DefaultConfig("dist")
		config.Families = test.families
		objects, err := newLab(config).Cluster("c1").dnsObjects()
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]bool{}
		for _, object := range objects {
			kinds[object.Kind] = true
			if collections[object.Kind] == "" || object.Metadata.Name == "" {
				t.Errorf("%s %q cannot be applied", object.Kind, object.Metadata.Name)
			}
			if object.Kind == "Service" {
				spec, ok := object.all["spec"].(map[string]any)
				if !ok {
					t.Fatal("the Service has no spec")
				}
				for field, want := range test.want {
					if diff := cmp.Diff(want, spec[field]); diff != "" {
						t.Errorf("%s: %s: %s", test.families, field, diff)
					}
				}
			}
		}
		if len(kinds) != len(collections) {
			t.Errorf("kinds %v, want %v", slices.Sorted(maps.Keys(kinds)), slices.Sorted(maps.Keys(collections)))
		}
	}
}
