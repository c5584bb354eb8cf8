package helm_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/fastnet-io/fastnet/deploy/helm"
)

var update = flag.Bool("update", false, "write the golden files anew")

type values = map[string]any

// render is `helm template`: the manifest, hooks included, with the notes after it.
func render(t *testing.T, chart, namespace string, with values) (manifest, notes string, err error) {
	t.Helper()
	loaded, err := helm.Chart(chart)
	if err != nil {
		t.Fatal(err)
	}
	install := action.NewInstall(action.NewConfiguration())
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = chart, namespace
	install.KubeVersion = &common.KubeVersion{Version: "v1.36.3", Major: "1", Minor: "36"}
	made, err := install.RunWithContext(t.Context(), loaded, with)
	if err != nil {
		return "", "", err
	}
	rendered, ok := made.(*release.Release)
	if !ok {
		t.Fatalf("a release of type %T", made)
	}
	manifest = rendered.Manifest
	for _, hook := range rendered.Hooks {
		manifest += "---\n# Source: " + hook.Path + "\n" + hook.Manifest + "\n"
	}
	return manifest, rendered.Info.Notes, nil
}

func member(more values) values {
	with := values{
		"clusterID": "c1", "prefixes": []any{"10.8.0.0/16", "10.88.0.0/16", "fd00:8::/48"},
		"broker": values{"kubeconfig": "apiVersion: v1\nkind: Config\n"},
	}
	for key, value := range more {
		with[key] = value
	}
	return with
}

var members = values{"members": []any{
	values{"clusterID": "c1"}, values{"clusterID": "east.prod"}, values{"clusterID": "system"}, values{"clusterID": strings.Repeat("a", 63)},
}}

func TestRenderedCharts(t *testing.T) {
	for _, test := range []struct {
		golden, chart, namespace string
		with                     values
	}{
		{"broker-empty", helm.Broker, "fastnet-broker", values{}},
		{"broker", helm.Broker, "fastnet-broker", members},
		{"broker-dns", helm.Broker, "fastnet-broker", values{"balance": "dns", "expireAfter": "1h30m", "members": []any{values{"clusterID": "c1"}}}},
		{"member-standalone", helm.Member, "fastnet-system", member(nil)},
		{"member-cluster-dns", helm.Member, "fastnet-system", member(values{
			"dns": values{"mode": "cluster", "clusterIPs": []any{"10.88.0.10", "fd00:88::a"}},
		})},
		{"member-no-dns", helm.Member, "fastnet-system", member(values{
			"gateway": values{"driver": "vxlan,ipsec,wireguard", "allowUnencrypted": true, "ipsecPort": 4510},
			"dns":     values{"mode": "none"}, "broker": values{"existingSecret": "join"}, "networkPolicy": values{"enabled": false},
			"image": values{"registry": "registry.example/fastnet", "tag": "v1", "pullSecrets": []any{values{"name": "regcred"}}},
		})},
	} {
		t.Run(test.golden, func(t *testing.T) {
			manifest, notes, err := render(t, test.chart, test.namespace, test.with)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.golden+".yaml", manifest)
			golden(t, test.golden+".notes.txt", notes)
			golden(t, test.golden+".rbac.txt", rights(t, manifest))
		})
	}
}

// The errors that a user of plain helm meets.
func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name, chart, namespace string
		with                   values
		want                   string
	}{
		{"broker elsewhere", helm.Broker, "default", values{}, "--namespace fastnet-broker"},
		{"member elsewhere", helm.Member, "default", member(nil), "--namespace fastnet-system"},
		{"no ID", helm.Member, "fastnet-system", member(values{"clusterID": ""}), "clusterID is empty"},
		{"no prefixes", helm.Member, "fastnet-system", member(values{"prefixes": []any{}}), "prefixes is empty"},
		{"no broker", helm.Member, "fastnet-system", member(values{"broker": values{}}), "broker.kubeconfig is empty"},
		{"three labels", helm.Member, "fastnet-system", member(values{"clusterID": "a.b.c"}), "clusterID"},
		{"capitals", helm.Broker, "fastnet-broker", values{"members": []any{values{"clusterID": "C1"}}}, "clusterID"},
		{"no duration", helm.Broker, "fastnet-broker", values{"expireAfter": "a day"}, "expireAfter"},
		{"unknown value", helm.Member, "fastnet-system", member(values{"clusterId": "c1"}), "clusterId"},
		{"unencrypted unasked", helm.Member, "fastnet-system", member(values{"gateway": values{"driver": "wireguard,vxlan"}}), "allowUnencrypted"},
		{"unknown driver", helm.Member, "fastnet-system", member(values{"gateway": values{"driver": "wireguard, vxlan"}}), "driver"},
		{"unknown DNS mode", helm.Member, "fastnet-system", member(values{"dns": values{"mode": "auto"}}), "mode"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := render(t, test.chart, test.namespace, test.with)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v does not say %q", err, test.want)
			}
		})
	}
}

func TestLint(t *testing.T) {
	for chart, with := range map[string]values{helm.Broker: members, helm.Member: member(nil)} {
		lint := action.NewLint()
		lint.Strict = true
		lint.Namespace = map[string]string{helm.Broker: "fastnet-broker", helm.Member: "fastnet-system"}[chart]
		result := lint.Run([]string{chart}, with)
		for _, err := range result.Errors {
			t.Errorf("%s: %v", chart, err)
		}
	}
}

// A chart's crds directory is a copy, made by deploy/crds/sync.sh.
func TestCRDsAreCurrent(t *testing.T) {
	copies, err := filepath.Glob("*/crds/*.yaml")
	if err != nil || len(copies) == 0 {
		t.Fatalf("no copies: %v", err)
	}
	for _, path := range copies {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("..", "crds", filepath.Base(path)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what deploy/crds holds: run deploy/crds/sync.sh\n%s", path, diff)
		}
	}
}

// rights lists who may do what, a line a rule, and fails on a wildcard or a right that gives further rights.
func rights(t *testing.T, manifest string) string {
	t.Helper()
	roles := map[string][]rbacv1.PolicyRule{}
	var bindings []rbacv1.RoleBinding
	for _, document := range strings.Split(manifest, "\n---\n") {
		var object rbacv1.RoleBinding // a ClusterRoleBinding looks the same
		var role rbacv1.Role          // and so does a ClusterRole
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			continue // an object of another kind, whose fields of those names differ
		}
		switch role.Kind {
		case "Role", "ClusterRole":
			roles[role.Kind+" "+role.Namespace+"/"+role.Name] = role.Rules
		case "RoleBinding", "ClusterRoleBinding":
			if err := yaml.Unmarshal([]byte(document), &object); err != nil {
				t.Fatal(err)
			}
			bindings = append(bindings, object)
		}
	}
	var out strings.Builder
	for _, binding := range bindings {
		where, key := "in every namespace", binding.RoleRef.Kind+" "+binding.Namespace+"/"+binding.RoleRef.Name
		if binding.Kind == "RoleBinding" {
			where = "in " + binding.Namespace
		}
		rules, ok := roles[key]
		if !ok {
			t.Errorf("%s %s refers to %s, which is not there", binding.Kind, binding.Name, key)
		}
		for _, subject := range binding.Subjects {
			for _, rule := range rules {
				line := strings.Join(rule.Verbs, ",") + "  " + resources(rule) + "  " + where
				out.WriteString(subject.Namespace + "/" + subject.Name + "  " + line + "\n")
				for _, forbidden := range []string{"*", "secrets", "token", "escalate", "bind,", "impersonate", "roles"} {
					if strings.Contains(line, forbidden) {
						t.Errorf("a right that nobody here may have (%s): %s", forbidden, line)
					}
				}
			}
		}
	}
	return out.String()
}

func resources(rule rbacv1.PolicyRule) string {
	var names []string
	for _, resource := range rule.Resources {
		group := strings.Join(rule.APIGroups, "|")
		if group != "" {
			resource += "." + strings.Trim(group, "|")
		}
		if len(rule.ResourceNames) > 0 {
			resource += "[" + strings.Join(rule.ResourceNames, ",") + "]"
		}
		names = append(names, resource)
	}
	return strings.Join(names, ",")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got = strings.TrimLeft(got, "\n")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); -update rewrites it\n%s", path, diff)
	}
}
