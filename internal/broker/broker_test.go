package broker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: b, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: b, user: {tokenFile: token}}]
contexts: [{name: b, context: {cluster: b, user: b, namespace: member-east}}, {name: bare, context: {cluster: b, user: b}}]
current-context: `

func TestConfig(t *testing.T) {
	write := func(current string) string {
		dir := t.TempDir()
		for name, text := range map[string]string{"kubeconfig": kubeconfig + current + "\n", "token": "secret"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return filepath.Join(dir, "kubeconfig")
	}
	path := write("b")
	config, namespace, err := Config(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	if namespace != "member-east" || config.Host != "https://192.0.2.1:6443" || config.UserAgent != "test" {
		t.Errorf("namespace %s, config %v", namespace, config)
	}
	if want := filepath.Join(filepath.Dir(path), "token"); config.BearerTokenFile != want {
		t.Errorf("token file %s, want %s", config.BearerTokenFile, want)
	}
	if _, _, err := Config(write("bare"), "test"); err == nil || !strings.Contains(err.Error(), "names no namespace") {
		t.Errorf("a context without a namespace: error %v", err)
	}
	if _, _, err := Config("/nowhere", "test"); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("no file: error %v", err)
	}
}

func TestMapperKnowsOurPlurals(t *testing.T) {
	for kind, want := range map[string]string{
		"ExportedEndpoints": "exportedendpoints", "Gateway": "gateways", "GatewayList": "gateways", "Endpoint": "endpoints", "EndpointList": "endpoints",
	} {
		mapping, err := mapper().RESTMapping(schema.GroupKind{Group: "fastnet.dev", Kind: kind}, "v1alpha1")
		if err != nil {
			t.Fatal(err)
		}
		if got := mapping.Resource.Resource; got != want {
			t.Errorf("%s is %s, want %s", kind, got, want)
		}
	}
}
