package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestScripts runs agents of two clusters, c1 (IPv4 and IPv6) and c2 (IPv4), around a broker; all API servers are fakes.
//
//	apply SERVER FILE           create or update the objects of a file; SERVER is c1, c2 or broker
//	delete SERVER KIND NS/NAME  delete an object
//	eventually SERVER FILE      wait until what a cluster holds of Fastnet is what the file says; -update writes the file
//	broker away|back            the broker stops answering, or answers again
//	down, up CLUSTER            the agent's process
//	rest                        wait until nobody writes, then see that more rounds write nothing
//	events CLUSTER TEXT...      wait until there is such an event
func TestScripts(t *testing.T) {
	type key struct{}
	of := func(ts *testscript.TestScript) *world { return ts.Value(key{}).(*world) }
	ctx := context.Background()
	var mu sync.Mutex // over updates
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			w := newWorld(t)
			w.server("c1", []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, decode(t, w.scheme, []byte(inEveryCluster))...)
			w.server("c2", []corev1.IPFamily{corev1.IPv4Protocol}, decode(t, w.scheme, []byte(inEveryCluster))...)
			w.server("broker", []corev1.IPFamily{corev1.IPv4Protocol}, decode(t, w.scheme, []byte(onTheBroker))...)
			w.run(t, "c1")
			w.run(t, "c2")
			env.Values[key{}] = w
			env.Defer(w.stopAll)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"apply": func(ts *testscript.TestScript, _ bool, args []string) {
				w := of(ts)
				for _, object := range decode(t, w.scheme, []byte(ts.ReadFile(args[1]))) {
					ts.Check(applied(ctx, w.servers[args[0]], object))
				}
			},
			"delete": func(ts *testscript.TestScript, _ bool, args []string) {
				w := of(ts)
				for gvk := range w.scheme.AllKnownTypes() {
					if gvk.Kind != args[1] || gvk.Version == runtime.APIVersionInternal {
						continue
					}
					made, err := w.scheme.New(gvk)
					ts.Check(err)
					object, ok := made.(client.Object)
					if !ok {
						continue
					}
					namespace, name, found := strings.Cut(args[2], "/")
					if !found {
						namespace, name = "", namespace
					}
					object.SetNamespace(namespace)
					object.SetName(name)
					ts.Check(w.servers[args[0]].Delete(ctx, object))
					return
				}
				ts.Fatalf("no kind %s", args[1])
			},
			"eventually": func(ts *testscript.TestScript, _ bool, args []string) {
				w := of(ts)
				if *update && args[1] != "empty" {
					ts.Check(w.rest(t, ctx))
					text, err := w.shown(ctx, args[0])
					ts.Check(err)
					mu.Lock()
					defer mu.Unlock()
					file := filepath.Join("testdata/script", ts.Name()+".txtar")
					archive, err := txtar.ParseFile(file)
					ts.Check(err)
					ts.Check(setFile(archive, args[1], text, file))
					return
				}
				want := ts.ReadFile(args[1])
				ts.Check(w.eventually(func() error {
					text, err := w.shown(ctx, args[0])
					if diff := cmp.Diff(want, text); err == nil && diff != "" {
						err = fmt.Errorf("%s holds (-want +got):\n%s", args[0], diff)
					}
					return err
				}))
			},
			"broker": func(ts *testscript.TestScript, _ bool, args []string) {
				w := of(ts)
				w.mu.Lock()
				w.away = args[0] == "away"
				w.mu.Unlock()
				w.poke()
			},
			"down": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).stop(args[0]) },
			"up":   func(ts *testscript.TestScript, _ bool, args []string) { of(ts).run(t, args[0]) },
			"rest": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(of(ts).rest(t, ctx)) },
			"events": func(ts *testscript.TestScript, _ bool, args []string) {
				w, want := of(ts), strings.Join(args[1:], " ")
				ts.Check(w.eventually(func() error {
					w.mu.Lock()
					defer w.mu.Unlock()
					if all := strings.Join(w.servers[args[0]].events, "\n"); !strings.Contains(all, want) {
						return fmt.Errorf("no event %q among\n%s", want, all)
					}
					return nil
				}))
			},
		},
	})
}

func applied(ctx context.Context, s *server, object client.Object) error {
	// An agent may write a status in between.
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error { return applyOnce(ctx, s, object) })
}

func applyOnce(ctx context.Context, s *server, object client.Object) error {
	old := object.DeepCopyObject().(client.Object)
	err := s.Get(ctx, client.ObjectKeyFromObject(object), old)
	if apierrors.IsNotFound(err) {
		return s.Create(ctx, object)
	}
	if err != nil {
		return err
	}
	object.SetResourceVersion(old.GetResourceVersion())
	object.SetUID(old.GetUID())
	object.SetCreationTimestamp(old.GetCreationTimestamp())
	if service, ok := object.(*corev1.Service); ok {
		service.Spec.ClusterIP, service.Spec.ClusterIPs = old.(*corev1.Service).Spec.ClusterIP, old.(*corev1.Service).Spec.ClusterIPs
		service.Spec.IPFamilies = old.(*corev1.Service).Spec.IPFamilies
	}
	return s.Update(ctx, object)
}

// rest stops the agents, runs rounds by hand until nothing changes, which must come soon, and starts new agents. It shows
// that an agent which has nothing to do writes nothing, freshly started too.
func (w *world) rest(t *testing.T, ctx context.Context) error {
	w.mu.Lock()
	clusters := slices.Sorted(maps.Keys(w.agents))
	w.mu.Unlock()
	agents := map[string]*Agent{}
	for _, cluster := range clusters {
		w.mu.Lock()
		heard := w.agents[cluster].config.Records // what the process has heard stays
		w.mu.Unlock()
		w.stop(cluster)
		agents[cluster] = w.agent(t, cluster)
		agents[cluster].config.Records = heard
	}
	defer func() {
		for _, cluster := range clusters {
			w.run(t, cluster)
		}
	}()
	var err error
	for range 10 {
		before := w.written()
		for _, cluster := range clusters {
			err = agents[cluster].rounds(ctx)
		}
		if w.written() == before {
			return nil // a broker that is away is no reason to be restless
		}
	}
	return errors.Join(errors.New("the agents do not come to rest"), err)
}

// rounds runs both rounds of every scope.
func (a *Agent) rounds(ctx context.Context) error {
	var problems []error
	for _, of := range a.scopes() {
		for _, round := range []func(context.Context, scope) (time.Duration, error){a.importRound, a.exportRound} {
			_, err := round(ctx, of)
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func (w *world) written() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum := 0
	for _, s := range w.servers {
		sum += s.writes
	}
	return sum
}

const inEveryCluster = `
apiVersion: v1
kind: Namespace
metadata: {name: sample}
---
apiVersion: v1
kind: Namespace
metadata: {name: fastnet-system}
---
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ipFamilies: [IPv4], ports: [{name: https, port: 443}]}
`

const onTheBroker = `
apiVersion: fastnet.dev/v1alpha1
kind: ClusterSet
metadata: {name: clusterset}
spec:
  name: demo
  members:
  - {clusterID: c1, namespace: member-c1}
  - {clusterID: c2, namespace: member-c2}
`
