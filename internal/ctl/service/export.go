package service

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

func newExport(o *options) *cobra.Command {
	var flags writeFlags
	printFlags := genericclioptions.NewPrintFlags("")
	command := &cobra.Command{
		Use:   "export NAME...",
		Short: "Export services of a namespace to the clusterset",
		Long: `Export services of a namespace to the clusterset. Each gets a ServiceExport of its name; one that is exported
already stays as it is.`,
		Example: `  # Export the service web of the namespace shop, and wait until others can use it
  kubectl service export web -n shop --wait

  # Only print the ServiceExport, to keep it beside the Service's own manifest
  kubectl service export web -n shop --dry-run=client -o yaml`,
		Args:              ctl.Args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: o.completeServices,
		RunE: func(command *cobra.Command, names []string) error {
			if err := flags.validate(); err != nil {
				return err
			}
			if _, err := printer(printFlags, ""); err != nil {
				return err
			}
			t, err := o.open()
			if err != nil {
				return err
			}
			return each(names, func(name string) error { return o.export(command.Context(), t, name, &flags, printFlags) })
		},
	}
	flags.add(command, "each export is ready")
	printFlags.AddFlags(command)
	return command
}

// each tries all names, and gives the errors of those that failed.
func each(names []string, do func(name string) error) error {
	var failed []error
	for _, name := range names {
		failed = append(failed, do(plainName(name)))
	}
	return errors.Join(failed...)
}

// plainName is a name without the kind before it, as kubectl prints it and many will paste it.
func plainName(name string) string {
	for _, prefix := range []string{"service/", "services/", "svc/"} {
		name = strings.TrimPrefix(name, prefix)
	}
	return name
}

func (o *options) export(ctx context.Context, t *target, name string, flags *writeFlags, printFlags *genericclioptions.PrintFlags) error {
	var service corev1.Service
	err := t.Get(ctx, client.ObjectKey{Namespace: t.namespace, Name: name}, &service)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("service %q not found in namespace %q", name, t.namespace)
	case err != nil:
		return ctl.Explain(fmt.Sprintf("read service %q in namespace %q", name, t.namespace), err)
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return fmt.Errorf("service %q in namespace %q is of type ExternalName, which cannot be exported: it has no addresses of its own", name, t.namespace)
	}
	export := &unstructured.Unstructured{}
	export.SetGroupVersionKind(t.kind("ServiceExport"))
	export.SetNamespace(t.namespace)
	export.SetName(name)

	done := "created"
	if flags.dryRun == dryRunClient {
		_, err = t.get(ctx, "ServiceExport", name)
		if err == nil {
			err = apierrors.NewAlreadyExists(schema.GroupResource{Group: group, Resource: "serviceexports"}, name)
		} else if apierrors.IsNotFound(err) {
			err = nil
		}
	} else {
		var options []client.CreateOption
		if flags.dryRun == dryRunServer {
			options = append(options, client.DryRunAll)
		}
		err = t.Create(ctx, export, append(options, client.FieldOwner(userAgent))...)
	}
	if apierrors.IsAlreadyExists(err) {
		done = "unchanged"
		export, err = t.get(ctx, "ServiceExport", name)
	}
	if err != nil {
		return ctl.Explain(fmt.Sprintf("export service %q", name), err)
	}
	if flags.wait && !flags.dry() {
		if err := o.awaitReady(ctx, t, export, flags); err != nil {
			return err
		}
		done += " and ready"
	}
	p, err := printer(printFlags, flags.done(done))
	if err != nil {
		return err
	}
	export.SetManagedFields(nil)
	return p.PrintObj(export, o.Out)
}

// awaitReady waits until the export is ready, and leaves it in export as it is then.
func (o *options) awaitReady(ctx context.Context, t *target, export *unstructured.Unstructured, flags *writeFlags) error {
	name := export.GetName()
	run := func(ctx context.Context, note func(string)) error {
		return ctl.Await(ctx, flags.timeout, note, func(ctx context.Context) (string, error) {
			live, err := t.get(ctx, "ServiceExport", name)
			if apierrors.IsNotFound(err) {
				return "", fmt.Errorf("the export of service %q was deleted meanwhile", name)
			}
			if err != nil {
				return "", ctl.Explain(fmt.Sprintf("read the export of service %q", name), err)
			}
			live.DeepCopyInto(export)
			var typed mcsv1beta1.ServiceExport
			if err := convert(live, &typed); err != nil {
				return "", err
			}
			return unready(typed)
		})
	}
	if err := o.progress.Step(ctx, fmt.Sprintf("Wait until %s is exported", name), run); err != nil {
		return fmt.Errorf("service %q: %w", name, err)
	}
	return nil
}

// unready says what keeps an export from being ready, or nothing. It fails where waiting would not help.
func unready(export mcsv1beta1.ServiceExport) (string, error) {
	conditions := export.Status.Conditions
	valid := meta.FindStatusCondition(conditions, string(mcsv1beta1.ServiceExportConditionValid))
	ready := meta.FindStatusCondition(conditions, string(mcsv1beta1.ServiceExportConditionReady))
	switch {
	case valid != nil && valid.Status == metav1.ConditionFalse && valid.Reason == string(mcsv1beta1.ServiceExportReasonInvalidServiceType):
		return "", fmt.Errorf("it cannot be exported: %s", valid.Message)
	// A CRD of old has no observedGeneration.
	case ready != nil && ready.Status == metav1.ConditionTrue && (ready.ObservedGeneration >= export.Generation || ready.ObservedGeneration == 0):
		return "", nil
	case valid == nil && ready == nil:
		return "no agent has looked at the export yet: does one run (kubectl get pods -n " + v1alpha1.Namespace + ")?", nil
	case valid != nil && valid.Status != metav1.ConditionTrue:
		return fmt.Sprintf("not valid: %s: %s", valid.Reason, valid.Message), nil
	case ready != nil:
		return fmt.Sprintf("not ready: %s: %s", ready.Reason, ready.Message), nil
	}
	return "not ready yet", nil
}

func newUnexport(o *options) *cobra.Command {
	var flags writeFlags
	var ignoreMissing bool
	printFlags := genericclioptions.NewPrintFlags("")
	command := &cobra.Command{
		Use:   "unexport NAME...",
		Short: "Take services of a namespace back from the clusterset",
		Long: `Take services of a namespace back from the clusterset. The service itself, and its exports in other clusters, stay as
they are.`,
		Example:           `  kubectl service unexport web -n shop`,
		Args:              ctl.Args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: o.completeExports,
		RunE: func(command *cobra.Command, names []string) error {
			if err := flags.validate(); err != nil {
				return err
			}
			if _, err := printer(printFlags, ""); err != nil {
				return err
			}
			t, err := o.open()
			if err != nil {
				return err
			}
			return each(names, func(name string) error {
				return o.unexport(command.Context(), t, name, ignoreMissing, &flags, printFlags)
			})
		},
	}
	flags.add(command, "the clusterset no longer has this cluster's part of each service")
	command.Flags().BoolVar(&ignoreMissing, "ignore-not-found", false, "A service that is not exported is no error")
	printFlags.AddFlags(command)
	return command
}

func (o *options) unexport(ctx context.Context, t *target, name string, ignoreMissing bool, flags *writeFlags, printFlags *genericclioptions.PrintFlags) error {
	export, err := t.get(ctx, "ServiceExport", name)
	if err == nil && flags.dryRun != dryRunClient {
		var options []client.DeleteOption
		if flags.dryRun == dryRunServer {
			options = append(options, client.DryRunAll)
		}
		err = t.Delete(ctx, export, options...)
	}
	if apierrors.IsNotFound(err) {
		if ignoreMissing {
			return nil
		}
		return fmt.Errorf("service %q in namespace %q is not exported", name, t.namespace)
	}
	if err != nil {
		return ctl.Explain(fmt.Sprintf("unexport service %q", name), err)
	}
	if flags.wait && !flags.dry() {
		if err := o.awaitGone(ctx, t, name, flags); err != nil {
			return err
		}
	}
	p, err := printer(printFlags, flags.done("deleted"))
	if err != nil {
		return err
	}
	export.SetManagedFields(nil)
	return p.PrintObj(export, o.Out)
}

// awaitGone waits until the export is deleted and the import, where others still export, no longer lists this cluster.
func (o *options) awaitGone(ctx context.Context, t *target, name string, flags *writeFlags) error {
	id, err := t.clusterID(ctx)
	if err != nil {
		return err
	}
	run := func(ctx context.Context, note func(string)) error {
		return ctl.Await(ctx, flags.timeout, note, func(ctx context.Context) (string, error) {
			if _, err := t.get(ctx, "ServiceExport", name); err == nil {
				return "the ServiceExport is still being deleted", nil
			} else if !apierrors.IsNotFound(err) {
				return "", ctl.Explain(fmt.Sprintf("read the export of service %q", name), err)
			}
			found, err := t.get(ctx, "ServiceImport", name)
			if apierrors.IsNotFound(err) {
				return "", nil
			}
			if err != nil {
				return "", ctl.Explain(fmt.Sprintf("read the import of service %q", name), err)
			}
			var imported mcsv1beta1.ServiceImport
			if err := convert(found, &imported); err != nil {
				return "", err
			}
			for _, cluster := range imported.Status.Clusters {
				if id == "" || cluster.Cluster == id {
					return "the ServiceImport still lists " + cluster.Cluster, nil
				}
			}
			return "", nil
		})
	}
	if err := o.progress.Step(ctx, fmt.Sprintf("Wait until %s is no longer exported", name), run); err != nil {
		return fmt.Errorf("service %q: %w", name, err)
	}
	return nil
}

// clusterID of the cluster, or nothing where it is not known.
func (t *target) clusterID(ctx context.Context) (string, error) {
	property := &unstructured.Unstructured{}
	property.SetGroupVersionKind(schema.GroupVersionKind{Group: "about.k8s.io", Version: "v1alpha1", Kind: "ClusterProperty"})
	err := t.Get(ctx, client.ObjectKey{Name: v1alpha1.ClusterPropertyID}, property)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) || apierrors.IsForbidden(err) {
		return "", nil
	}
	if err != nil {
		return "", ctl.Explain("read the cluster's ID", err)
	}
	value, _, err := unstructured.NestedString(property.Object, "spec", "value")
	return value, err
}
