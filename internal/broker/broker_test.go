package broker

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
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

// A broker may be restored from a backup between two probes. Its versions can be above the last that a probe saw by the next, and our
// Lease older than the backup; what is left to see it by is that its watches could not be reconnected at once.
func TestBrokerThatNoProbeMissedIsListedAnew(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	var failure error
	server := interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).
		WithIndex(&coordinationv1.Lease{}, metav1.ObjectNameField, func(o client.Object) []string { return []string{o.GetName()} }).Build(), interceptor.Funcs{
		Watch: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) (watch.Interface, error) {
			if failure != nil {
				return nil, failure
			}
			return c.Watch(ctx, list)
		},
	})
	b := &Broker{Records: NewRecords("member-c1", func(Change) {}), client: server, lease: &renewal{client: server, namespace: "member-c1"}}
	b.sources = newSources(b)
	relisted := func() (n int) {
		b.probeOnce(t.Context())
		for _, s := range b.sources {
			if len(s.again) > 0 {
				<-s.again
				n++
				listOnce(t, s)
			}
		}
		return n
	}
	for _, s := range b.sources {
		listOnce(t, s)
	}
	var options metav1.ListOptions
	watches := func(sources []*source, err error) {
		failure = err
		for _, s := range sources {
			if w, err := s.WatchWithContext(t.Context(), options); err == nil {
				w.Stop()
			}
		}
		failure = nil
	}
	one := b.sources[1:2]
	for _, step := range []struct {
		what string
		do   func()
		want int
	}{
		{"nothing", func() { watches(b.sources, nil) }, 0},
		{"a watch that nobody answers, and the others go on", func() { watches(one, syscall.ECONNREFUSED) }, 0},
		{"that watch again", func() { watches(one, nil) }, 1},
		{"nothing since", func() { watches(one, nil) }, 0},
		{"an API server that refuses", func() {
			watches(b.sources, apierrors.NewForbidden(schema.GroupResource{}, "", nil))
			watches(b.sources, nil)
		}, 4}, // those that had not been watched anew since the loss
		{"and again", func() {
			watches(b.sources, apierrors.NewForbidden(schema.GroupResource{}, "", nil))
			watches(b.sources, nil)
		}, 0},
		{"no watch could be had, and then all is told by new ones", func() {
			watches(b.sources, syscall.ECONNREFUSED)
			options.SendInitialEvents = new(true) // as reflectors ask for a list that is streamed: it takes a while
			watches(b.sources, nil)
			options.SendInitialEvents = nil
		}, 0},
		{"all has been told", func() {
			for _, s := range b.sources {
				listOnce(t, s)
			}
		}, 0},
		{"no watch could be had", func() {
			watches(b.sources, syscall.ECONNREFUSED)
			watches(b.sources, nil)
		}, len(b.sources)},
	} {
		step.do()
		if got := relisted(); got != step.want || !b.Connected() {
			t.Errorf("%s: %d kinds are listed anew, want %d; connected: %t", step.what, got, step.want, b.Connected())
		}
	}
}

// listOnce does what a reflector does first.
func listOnce(t *testing.T, s *source) {
	t.Helper()
	all, err := s.ListWithContext(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	items, err := meta.ExtractList(all)
	if err != nil {
		t.Fatal(err)
	}
	objects := make([]any, len(items))
	for i := range items {
		objects[i] = items[i]
	}
	if err := s.Replace(objects, ""); err != nil {
		t.Fatal(err)
	}
}

// A member says by its Lease when the broker has of it what it should have, and says it again when another asks.
func TestWhoIsAskedAnswersWhenAllIsRight(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	version := 100
	var lease coordinationv1.Lease
	leases := 0
	server := interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).
		WithIndex(&coordinationv1.Lease{}, metav1.ObjectNameField, func(o client.Object) []string { return []string{o.GetName()} }).Build(), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			err := c.List(ctx, list, options...)
			list.SetResourceVersion(strconv.Itoa(version))
			return err
		},
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			leases++
			return c.Create(ctx, object, options...)
		},
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			leases++
			return c.Update(ctx, object, options...)
		},
	})
	b, settled := &Broker{Records: NewRecords("member-c1", func(Change) {}), client: server, asked: make(chan struct{}, 1),
		lease: &renewal{client: server, namespace: "member-c1"}}, false
	b.Settled = func(time.Time) bool { return settled }
	b.sources = newSources(b)
	check := func(when string, wantLeases int, wantSettled, wantAwaits string) {
		t.Helper()
		b.probeOnce(t.Context())
		if err := server.Get(t.Context(), client.ObjectKey{Namespace: "member-c1", Name: v1alpha1.LeaseName}, &lease); err != nil {
			t.Fatal(err)
		}
		if got := lease.Annotations; leases != wantLeases || got[v1alpha1.AnnotationSettled] != wantSettled || got[v1alpha1.AnnotationAwaits] != wantAwaits {
			t.Errorf("%s: %d writes and %v, want %d, settled %q, awaits %q", when, leases, got, wantLeases, wantSettled, wantAwaits)
		}
	}
	asks := func(since string) {
		other := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "member-c2", Name: v1alpha1.LeaseName, Annotations: map[string]string{v1alpha1.AnnotationAwaits: since}}}
		if err := b.sources[len(b.sources)-1].Update(other); err != nil {
			t.Fatal(err)
		}
		select {
		case <-b.asked:
			b.answering = true
		default:
		}
	}
	check("at the start", 1, "", "100")
	for _, s := range b.sources {
		listOnce(t, s)
	}
	check("listed, and nothing done yet", 1, "", "100")
	settled, version = true, 110
	check("all is right", 2, "110", "")
	version = 120
	check("nothing is new", 2, "110", "")
	asks("105")
	check("asked for what it has said", 2, "110", "")
	asks("nonsense")
	check("asked for nothing that can be read", 2, "110", "")
	asks("115")
	check("asked", 3, "120", "")
	asks("115")
	check("asked again, by whoever has not heard yet", 3, "120", "")
	settled = false
	asks("121")
	check("asked while something is not right", 3, "120", "")
	settled, version = true, 130
	check("when it is", 4, "130", "")
	version = 50
	check("the broker is restored", 5, "", "")
	check("and not listed anew yet", 5, "", "")
	for _, s := range b.sources {
		listOnce(t, s)
	}
	check("it is listed", 6, "50", "")
	version = 60
	asks("55")
	check("asked after it was restored", 7, "60", "")
}
