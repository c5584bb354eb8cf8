package kept

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func TestWhatIsKeptIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "c1.gw.json")
	var got []v1alpha1.Endpoint
	if found, err := At(path).Read(&got); found || err != nil {
		t.Fatalf("without a file: %t, %v", found, err)
	}
	created := metav1.NewTime(time.Unix(1000000, 0))
	endpoint := func(name string) v1alpha1.Endpoint {
		e := v1alpha1.Endpoint{Spec: v1alpha1.EndpointSpec{ClusterID: "c2", Ports: map[string]int32{"c1.gw": 51820}, Prefixes: []string{"10.9.0.0/16"}}}
		e.Name, e.CreationTimestamp = name, created
		return e
	}
	rich := endpoint("c2.b")
	rich.ResourceVersion, rich.Annotations = "7", map[string]string{"who": "cares"}
	f := At(path)
	if err := f.Write(Endpoints([]v1alpha1.Endpoint{rich, endpoint("c2.a")})); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil || before.Mode().Perm() != 0o600 {
		t.Fatalf("file is %v, %v", before, err)
	}
	f = At(path)
	if found, err := f.Read(&got); !found || err != nil || !reflect.DeepEqual(got, []v1alpha1.Endpoint{endpoint("c2.a"), endpoint("c2.b")}) {
		t.Errorf("read %t, %v, %v", found, err, got)
	}
	// Another version of the same is no change, and writes nothing.
	rich.ResourceVersion = "8"
	if err := f.Write(Endpoints([]v1alpha1.Endpoint{endpoint("c2.a"), rich})); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again: %v", err)
	}
	// What a crash left beside it is in nobody's way.
	if err := os.WriteFile(path+".new", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.Write(Endpoints(nil)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || os.SameFile(before, after) || after.Mode().Perm() != 0o600 {
		t.Errorf("not written: %v, %v", after, err)
	}
}

func TestADamagedFileIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c1.gw.json")
	for _, text := range []string{"", "{", `{"spec": 7}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var got []v1alpha1.Endpoint
		if found, err := At(path).Read(&got); found || err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q gives %t, %v", text, found, err)
		}
	}
}
