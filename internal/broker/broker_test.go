package broker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func service(namespace, name string) *v1alpha1.ExportedService {
	return &v1alpha1.ExportedService{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

func names(v View) string {
	var all []string
	for _, s := range v.Services {
		all = append(all, s.Namespace+"/"+s.Name)
	}
	return fmt.Sprintf("%s held %d", strings.Join(all, " "), v.Held)
}

func TestAbsenceIsNotDeletion(t *testing.T) {
	now := time.Unix(0, 0)
	r := NewRecords("own", time.Minute, func() time.Time { return now })
	check := func(when, want string) {
		t.Helper()
		if got := names(r.View()); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	absent := func(s *v1alpha1.ExportedService) {
		r.OnDelete(toolscache.DeletedFinalStateUnknown{Key: s.Namespace + "/" + s.Name, Obj: s})
	}
	a, b, own := service("east", "a"), service("east", "b"), service("own", "c")
	r.OnAdd(b, true)
	r.OnAdd(a, true)
	r.OnAdd(own, true)
	check("all there, sorted", "east/a east/b own/c held 0")

	r.OnDelete(b)
	check("a deletion that was seen counts at once", "east/a own/c held 0")

	absent(a)
	absent(own)
	check("an absence is held, but not of what is ours to write again", "east/a held 1")
	now = now.Add(59 * time.Second)
	check("just before the end", "east/a held 1")
	now = now.Add(time.Second)
	check("held long enough", " held 0")

	r.OnAdd(a, false)
	absent(a)
	r.OnAdd(a, false)
	now = now.Add(time.Hour)
	check("back in time", "east/a held 0")

	absent(a)
	r.OnDelete(a)
	check("deleted while held", " held 0")
}

func TestViewSortsKindsApart(t *testing.T) {
	r := NewRecords("own", time.Minute, time.Now)
	r.OnAdd(&v1alpha1.ClusterSet{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, true)
	r.OnAdd(&v1alpha1.ClusterSet{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterSetName}}, true)
	r.OnAdd(&v1alpha1.ExportedEndpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "x"}}, true)
	r.OnAdd(&v1alpha1.Endpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "x"}}, true)
	r.OnUpdate(nil, service("n", "x"))
	r.OnDelete("no object")
	v := r.View()
	if v.ClusterSet == nil || v.ClusterSet.Name != v1alpha1.ClusterSetName || len(v.Endpoints) != 1 || len(v.Gateways) != 1 || len(v.Services) != 1 || v.Synced {
		t.Errorf("view %+v", v)
	}
}

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
