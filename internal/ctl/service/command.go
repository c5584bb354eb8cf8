// Package service is the kubectl plugin kubectl-service: it exports services to the clusterset and takes them back.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/mcsapi"
)

const userAgent = "kubectl-service"

const group = mcsapi.Group

// options are what every subcommand gets.
type options struct {
	genericiooptions.IOStreams
	flags    *genericclioptions.ConfigFlags
	progress ctl.Progress
	now      func() time.Time
}

// NewCommand is the whole plugin. The version is what `version` prints.
func NewCommand(streams genericiooptions.IOStreams, version string) *cobra.Command {
	o := &options{
		IOStreams: streams, flags: genericclioptions.NewConfigFlags(false),
		progress: ctl.Progress{Out: streams.ErrOut}, now: time.Now,
	}
	root := &cobra.Command{
		Use:         "kubectl-service",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl service"},
		Short:       "Export services to the clusterset",
		Long: `Export services to the clusterset: a service exported in one cluster is found in all of them, where its namespace
exists, as NAME.NAMESPACE.svc.clusterset.local. These commands write ServiceExports of the Multi-Cluster Services API and
work with any implementation of it.

Exit codes: 0 done, 1 failed, 2 a mistake on the command line.`,
		Args: ctl.Subcommands,
		RunE: ctl.Help,
	}
	o.flags.AddFlags(root.PersistentFlags())
	root.AddCommand(newExport(o), newUnexport(o), newList(o), newVersion(o, version))
	if err := root.RegisterFlagCompletionFunc("namespace", o.completeNamespaces); err != nil {
		// Only for a flag that does not exist: the tests would tell.
		fmt.Fprintln(streams.ErrOut, err)
	}
	return root
}

func newVersion(o *options, version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  ctl.Args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(o.Out, "kubectl-service %s\n", version)
			return nil
		},
	}
}

// target is the cluster and namespace that the flags name.
type target struct {
	client.Client
	namespace string
	versions  map[string]string // of the Multi-Cluster Services API that the cluster serves, by kind; nil where that was not asked for
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	return scheme, nil
}

// connect reaches the cluster, without asking it for anything.
func (o *options) connect() (*target, error) {
	loader := o.flags.ToRawKubeConfigLoader()
	config, err := ctl.Config(loader, userAgent)
	if err != nil {
		return nil, err
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	made, err := ctl.Client(config, scheme)
	if err != nil {
		return nil, err
	}
	return &target{Client: made, namespace: namespace}, nil
}

// open also finds the versions of the Multi-Cluster Services API that the cluster serves: v1beta1, else v1alpha1.
func (o *options) open() (*target, error) {
	t, err := o.connect()
	if err != nil {
		return nil, err
	}
	t.versions = map[string]string{}
	for _, kind := range []string{"ServiceExport", "ServiceImport"} {
		for _, version := range mcsapi.Versions { // one at a time: a mapper that misses one of several has none
			_, err := t.RESTMapper().RESTMapping(schema.GroupKind{Group: group, Kind: kind}, version)
			if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, ctl.Explain("reach the cluster", err)
			}
			t.versions[kind] = version
			break
		}
	}
	if t.versions["ServiceExport"] == "" {
		return nil, errors.New("this cluster has no Multi-Cluster Services API (no CRD serviceexports.multicluster.x-k8s.io): let it join a clusterset first, with kubectl fastnet join")
	}
	return t, nil
}

func (t *target) kind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: group, Version: cmp.Or(t.versions[kind], mcsapi.Versions[0]), Kind: kind}
}

func (t *target) get(ctx context.Context, kind, name string) (*unstructured.Unstructured, error) {
	object := &unstructured.Unstructured{}
	if t.versions[kind] == "" { // no such CRD
		return object, apierrors.NewNotFound(schema.GroupResource{Group: group, Resource: kind}, name)
	}
	object.SetGroupVersionKind(t.kind(kind))
	err := t.Get(ctx, client.ObjectKey{Namespace: t.namespace, Name: name}, object)
	return object, err
}

// convert reads an object of either version into the types of v1beta1: what is read here is the same in both.
func convert(from *unstructured.Unstructured, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(from.Object, into); err != nil {
		return fmt.Errorf("%s %s/%s: %w", from.GetKind(), from.GetNamespace(), from.GetName(), err)
	}
	return nil
}

// Ways of --dry-run, as kubectl's.
const (
	dryRunNone   = "none"
	dryRunClient = "client"
	dryRunServer = "server"
)

// writeFlags are those of the commands that write.
type writeFlags struct {
	dryRun  string
	wait    bool
	timeout time.Duration
}

func (f *writeFlags) add(command *cobra.Command, until string) {
	command.Flags().StringVar(&f.dryRun, "dry-run", dryRunNone, `"none", "client" (change nothing, ask the API server for nothing but what is there) or "server" (let it check, and change nothing)`)
	command.Flags().Lookup("dry-run").NoOptDefVal = dryRunClient
	command.Flags().BoolVar(&f.wait, "wait", false, "Wait until "+until)
	command.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "How long --wait waits, for each service")
}

func (f *writeFlags) validate() error {
	switch f.dryRun {
	case dryRunNone, dryRunClient, dryRunServer:
	default:
		return ctl.Usagef("--dry-run %q: want none, client or server", f.dryRun)
	}
	if f.timeout <= 0 {
		return ctl.Usagef("--timeout %s: want more than nothing", f.timeout)
	}
	return nil
}

func (f *writeFlags) dry() bool { return f.dryRun != dryRunNone }

// done is what kubectl puts behind an object's name.
func (f *writeFlags) done(what string) string {
	switch f.dryRun {
	case dryRunClient:
		return what + " (dry run)"
	case dryRunServer:
		return what + " (server dry run)"
	}
	return what
}

// printer prints an object in the way of -o, or as "KIND/NAME what was done".
func printer(flags *genericclioptions.PrintFlags, done string) (printers.ResourcePrinter, error) {
	if err := flags.Complete("%s"); err != nil {
		return nil, err
	}
	flags.NamePrintFlags.Operation = done
	made, err := flags.ToPrinter()
	if err != nil {
		return nil, ctl.UsageError{Err: err}
	}
	return made, nil
}

func (o *options) completeNamespaces(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return o.complete(command, &corev1.NamespaceList{}, false)
}

func (o *options) completeServices(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return o.complete(command, &corev1.ServiceList{}, true)
}

func (o *options) completeExports(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return o.completeKinds(command, "ServiceExport")
}

func (o *options) completeExportsAndImports(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return o.completeKinds(command, "ServiceExport", "ServiceImport")
}

// completeKinds gives the names of all objects of some kinds of the Multi-Cluster Services API.
func (o *options) completeKinds(command *cobra.Command, kinds ...string) ([]string, cobra.ShellCompDirective) {
	t, err := o.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var all []string
	for _, kind := range kinds {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(t.kind(kind))
		names, directive := o.complete(command, list, true)
		if directive == cobra.ShellCompDirectiveError {
			return nil, directive
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
}

// complete gives the names of all objects of a kind; the shell keeps those that fit.
func (o *options) complete(command *cobra.Command, list client.ObjectList, namespaced bool) ([]string, cobra.ShellCompDirective) {
	t, err := o.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var options []client.ListOption
	if namespaced {
		options = append(options, client.InNamespace(t.namespace))
	}
	if err := t.List(command.Context(), list, options...); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	objects, err := meta.ExtractList(list)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, object := range objects {
		if named, ok := object.(client.Object); ok {
			names = append(names, named.GetName())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
