package fastnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/deploy/helm"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

// helmTimeout bounds what Helm itself waits for. It is told to wait for nothing: the progress of a join is ours to show.
const helmTimeout = 2 * time.Minute

// releases are the Helm releases of a namespace. A release is named as its chart.
type releases struct {
	cluster       *cluster
	configuration *action.Configuration
	namespace     string
}

func (c *cluster) releases(namespace string) (*releases, error) {
	// Helm's log repeats, on stderr, what its errors say.
	configuration := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := configuration.Init(c.getter, namespace, "secret"); err != nil {
		return nil, fmt.Errorf("helm: %w", err)
	}
	return &releases{c, configuration, namespace}, nil
}

// values of the release, as they were given, and whether there is one.
func (r *releases) values(name string) (map[string]any, bool, error) {
	last, err := r.last(name)
	if err != nil || last == nil {
		return nil, false, err
	}
	return last.Config, true, nil
}

func (r *releases) last(name string) (*release.Release, error) {
	found, err := r.configuration.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, ctl.Explain("read the Helm release "+name, err)
	}
	last, ok := found.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("read the Helm release %s: a %T is not one", name, found)
	}
	return last, nil
}

// install installs the chart, or upgrades its release to these values.
func (r *releases) install(ctx context.Context, name string, values map[string]any) error {
	chart, err := helm.Chart(name)
	if err != nil {
		return err
	}
	last, err := r.last(name)
	if err != nil {
		return err
	}
	if last != nil && last.Info.Status != common.StatusUninstalled {
		if last.Info.Status.IsPending() {
			// A run that was ended in the middle: Helm would refuse from then on. Nothing else writes this release but
			// programs like this one, and what they apply is whole.
			last.SetStatus(common.StatusFailed, "given up by a later run of kubectl-fastnet")
			if err := r.configuration.Releases.Update(last); err != nil {
				return ctl.Explain("unlock the Helm release "+name, err)
			}
		}
		upgrade := action.NewUpgrade(r.configuration)
		upgrade.Namespace = r.namespace
		upgrade.WaitStrategy = kube.HookOnlyStrategy
		upgrade.Timeout = helmTimeout
		upgrade.ServerSideApply, upgrade.ForceConflicts, upgrade.TakeOwnership = "true", true, true
		upgrade.MaxHistory = 10
		_, err = upgrade.RunWithContext(ctx, name, chart, values)
		return ctl.Explain("upgrade the Helm release "+name, err)
	}
	install := action.NewInstall(r.configuration)
	install.ReleaseName, install.Namespace = name, r.namespace
	install.WaitStrategy = kube.HookOnlyStrategy
	install.Timeout = helmTimeout
	install.SkipCRDs = true // applied already, and better
	install.Replace = last != nil
	install.ServerSideApply, install.ForceConflicts, install.TakeOwnership = true, true, true
	_, err = install.RunWithContext(ctx, chart, values)
	return ctl.Explain("install the Helm chart "+name, err)
}

// uninstall takes the release away. There may be none. The chart's hook, which withdraws the cluster from the clusterset, is left
// out: leave does what it does, and says more. Helm knows no context, so it is left behind when that ends.
func (r *releases) uninstall(ctx context.Context, name string) error {
	uninstall := action.NewUninstall(r.configuration)
	uninstall.IgnoreNotFound, uninstall.DisableHooks = true, true
	uninstall.WaitStrategy = kube.HookOnlyStrategy
	uninstall.DeletionPropagation = "background"
	uninstall.Timeout = helmTimeout
	done := make(chan error, 1)
	go func() {
		_, err := uninstall.Run(name)
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil
	}
	return ctl.Explain("uninstall the Helm release "+name, err)
}

// apply is kubectl apply --server-side --force-conflicts.
func (c *cluster) apply(ctx context.Context, object map[string]any) error {
	return c.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: object}),
		client.FieldOwner(userAgent), client.ForceOwnership)
}

// ensureNamespace makes a namespace with these labels, or adds them to it. One that is on its way out is waited for.
func (c *cluster) ensureNamespace(ctx context.Context, name string, labels map[string]string, note func(string)) error {
	err := ctl.Await(ctx, time.Minute, note, func(ctx context.Context) (string, error) {
		var live corev1.Namespace
		err := c.Get(ctx, types.NamespacedName{Name: name}, &live)
		if apierrors.IsNotFound(err) {
			return "", nil
		}
		if err == nil && live.DeletionTimestamp != nil {
			return "namespace " + name + " is still being deleted", nil
		}
		return "", err
	})
	if err != nil {
		return err
	}
	namespace := map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": name, "labels": anyMap(labels)},
	}
	return ctl.Explain("create namespace "+name, c.apply(ctx, namespace))
}

func anyMap(from map[string]string) map[string]any {
	to := make(map[string]any, len(from))
	for key, value := range from {
		to[key] = value
	}
	return to
}

// uid of the cluster: that of its namespace kube-system.
func (c *cluster) uid(ctx context.Context) (string, error) {
	var namespace corev1.Namespace
	err := c.Get(ctx, types.NamespacedName{Name: metav1.NamespaceSystem}, &namespace)
	return string(namespace.UID), err
}
