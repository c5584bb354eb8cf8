//go:build e2e

package mcs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	helmkube "helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/helm"
)

// leaveWithin is how long an uninstall may take, whatever is broken.
const leaveWithin = time.Minute

// leaving uninstalls two members by Helm alone: one whose broker swallows packets, and one whose agent does not run.
func leaving(t *testing.T, w *world) {
	e := w.scene(t)
	for _, c := range w.names {
		e.service(c)
		e.backends(c, "web-1", 1)
		e.export(c)
	}
	for _, c := range w.names {
		e.imported(c, fromClusters("c1", "c2", "c3"))
		e.conditions(c, valid, exported, agreement)
	}

	t.Run("TheBrokerIsSilent", func(t *testing.T) {
		e := e.on(t)
		if err := w.lab.Cut(t.Context(), "c1", "c3"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := w.lab.Heal(context.WithoutCancel(t.Context()), "c1", "c3"); err != nil {
				t.Error(err)
			}
		}()
		if log := e.uninstall(t, "c3"); !strings.Contains(log, "kubectl fastnet broker remove") {
			t.Errorf("its log does not say what stays on the broker:\n%s", log)
		}
		e.isClean(t, "c3")
		if got := e.records(t, "c3"); got.Len() == 0 {
			t.Error("the records of c3 are gone from a broker that it could not reach")
		}
	})

	t.Run("TheAgentDoesNotRun", func(t *testing.T) {
		e := e.on(t)
		if _, err := w.teller.Output(t.Context(), "kubectl --context c2 -n fastnet-system patch deployment fastnet-agent --type json "+
			`-p '[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--no-such-flag"}]'`); err != nil {
			t.Fatal(err)
		}
		eventually(t, "an agent that ends again and again", func(ctx context.Context) error {
			var pods corev1.PodList
			if err := w.api["c2"].List(ctx, &pods, client.InNamespace(v1alpha1.Namespace), client.MatchingLabels{"app.kubernetes.io/name": "fastnet-agent"}); err != nil {
				return err
			}
			for _, pod := range pods.Items {
				for _, c := range pod.Status.ContainerStatuses {
					if c.RestartCount > 0 && slices.Contains(pod.Spec.Containers[0].Args, "--no-such-flag") {
						return nil
					}
				}
			}
			return errors.New("none")
		})
		others := e.records(t, "c1").Union(e.records(t, "c3"))
		e.uninstall(t, "c2")
		e.isClean(t, "c2")
		if left := e.records(t, "c2"); left.Len() > 0 {
			t.Errorf("records on the broker: %v", sets.List(left))
		}
		if now := e.records(t, "c1").Union(e.records(t, "c3")); !now.Equal(others) {
			t.Errorf("other members' records were\n%v\nand are\n%v", sets.List(others), sets.List(now))
		}
		e.imported("c1", fromClusters("c1", "c3"))
		e.serves("c1", "c1:http")
	})

	// An administrator removes what the silent broker kept, and a cluster that joins with an ID in use is told what to do.
	t.Run("AnIDInUseIsRefused", func(t *testing.T) {
		e := e.on(t)
		ctx := t.Context()
		for _, line := range []string{
			"kubectl fastnet --context c1 broker remove c3",
			"kubectl fastnet --context c3 leave --yes",
			"kubectl fastnet --context c1 broker invite c1 -o again.join",
		} {
			if _, err := w.teller.Output(ctx, line); err != nil {
				t.Fatal(err)
			}
		}
		e.imported("c1", fromClusters("c1"))
		_, err := w.teller.Output(ctx, "kubectl fastnet --context c3 join again.join --dns none")
		if err == nil || !strings.Contains(err.Error(), "cluster ID c1 is in use by another cluster") || !strings.Contains(err.Error(), "invite this cluster under another ID") {
			t.Errorf("a second cluster under the ID c1: %v", err)
		}
	})
}

// uninstall is `helm uninstall fastnet`, with the log of its hook.
func (e *scene) uninstall(t *testing.T, cluster string) (log string) {
	t.Helper()
	flags := genericclioptions.NewConfigFlags(false)
	*flags.KubeConfig, *flags.Namespace, *flags.CacheDir = e.lab.Cluster(cluster).Kubeconfig(), v1alpha1.Namespace, t.TempDir()
	configuration := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := configuration.Init(flags, v1alpha1.Namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var out bytes.Buffer
	configuration.HookOutputFunc = func(string, string, string) io.Writer {
		return writerFunc(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return out.Write(p) })
	}
	uninstall := action.NewUninstall(configuration)
	uninstall.WaitStrategy, uninstall.DeletionPropagation, uninstall.Timeout = helmkube.HookOnlyStrategy, "background", 5*time.Minute
	began := time.Now()
	_, err := uninstall.Run(helm.Member)
	took := time.Since(began)
	mu.Lock()
	defer mu.Unlock()
	t.Logf("helm uninstall in %s: %.1f s\n%s", cluster, took.Seconds(), out.String())
	if err != nil {
		t.Fatal(err)
	}
	if took > leaveWithin {
		t.Errorf("it took %v, more than %v", took, leaveWithin)
	}
	return out.String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// isClean sees that a cluster holds nothing imported, in whatever namespace, and that what is its users' is there.
func (e *scene) isClean(t *testing.T, cluster string) {
	t.Helper()
	ctx, api := t.Context(), e.api[cluster]
	byUs := client.MatchingLabels{"app.kubernetes.io/managed-by": v1alpha1.ManagedBy}
	for _, kind := range []struct {
		list    client.ObjectList
		options []client.ListOption
	}{
		{&mcsv1beta1.ServiceImportList{}, nil},
		{&corev1.ServiceList{}, []client.ListOption{byUs}},
		{&discoveryv1.EndpointSliceList{}, []client.ListOption{client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy}}},
		{&v1alpha1.EndpointList{}, []client.ListOption{client.InNamespace(v1alpha1.Namespace)}},
		{&v1alpha1.GatewayList{}, []client.ListOption{client.InNamespace(v1alpha1.Namespace)}},
	} {
		if err := api.List(ctx, kind.list, kind.options...); err != nil {
			t.Fatal(err)
		}
		if names := namesOf(t, kind.list); len(names) > 0 {
			t.Errorf("%s holds %T %v", cluster, kind.list, names)
		}
	}
	var x mcsv1beta1.ServiceExport
	if err := api.Get(ctx, e.key(web), &x); err != nil || len(x.Status.Conditions) > 0 {
		t.Errorf("%s: the ServiceExport of a user: %v %v", cluster, err, x.Status.Conditions)
	}
	var s corev1.Service
	if err := api.Get(ctx, e.key(web), &s); err != nil {
		t.Errorf("%s: the Service of a user: %v", cluster, err)
	}
	for _, role := range []string{"clusterrole", "clusterrolebinding"} {
		if out, err := e.teller.Output(ctx, "kubectl --context "+cluster+" get "+role+" fastnet-withdraw --ignore-not-found -o name"); out != "" || err != nil {
			t.Errorf("%s: the hook's rights are there: %s %v", cluster, out, err)
		}
	}
}

// records are those of a member on the broker, by kind, name and version.
func (e *scene) records(t *testing.T, member string) sets.Set[string] {
	t.Helper()
	all := sets.New[string]()
	for _, list := range []client.ObjectList{&v1alpha1.ExportedServiceList{}, &v1alpha1.ExportedEndpointsList{}, &v1alpha1.EndpointList{}} {
		if err := e.api["c1"].List(t.Context(), list, client.InNamespace("fastnet-"+member)); err != nil {
			t.Fatal(err)
		}
		for _, name := range namesOf(t, list) {
			all.Insert(fmt.Sprintf("%T %s", list, name))
		}
	}
	return all
}

func namesOf(t *testing.T, list client.ObjectList) []string {
	t.Helper()
	var names []string
	err := eachItem(list, func(object metav1.Object) {
		names = append(names, object.GetNamespace()+"/"+object.GetName()+" "+string(object.GetUID()))
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func eachItem(list client.ObjectList, do func(metav1.Object)) error {
	return meta.EachListItem(list, func(item runtime.Object) error {
		object, err := meta.Accessor(item)
		if err == nil {
			do(object)
		}
		return err
	})
}
