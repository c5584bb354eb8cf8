package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/internal/ctl"
)

// listFlags are the command line of list.
type listFlags struct {
	allNamespaces bool
	noHeaders     bool
	print         *genericclioptions.PrintFlags
}

func newList(o *options) *cobra.Command {
	flags := listFlags{print: genericclioptions.NewPrintFlags("")}
	command := &cobra.Command{
		Use:   "list [NAME...]",
		Short: "List what this cluster exports and imports",
		Long: `List what this cluster exports and imports. A condition that is not as it should be is followed by its reason; -o wide
adds the words of the first one.`,
		Example: `  kubectl service list -n shop
  kubectl service list -A -o wide`,
		ValidArgsFunction: o.completeExports,
		RunE: func(command *cobra.Command, names []string) error {
			wide := *flags.print.OutputFormat == "wide"
			if *flags.print.OutputFormat != "" && !wide {
				if _, err := printer(flags.print, ""); err != nil {
					return err
				}
			}
			if flags.allNamespaces && len(names) > 0 {
				return ctl.Usagef("a service is named within a namespace: give -n instead of -A")
			}
			t, err := o.open()
			if err != nil {
				return err
			}
			if flags.allNamespaces {
				t.namespace = ""
			}
			return o.list(command.Context(), t, names, flags, wide)
		},
	}
	command.Flags().BoolVarP(&flags.allNamespaces, "all-namespaces", "A", false, "List the services of all namespaces")
	command.Flags().BoolVar(&flags.noHeaders, "no-headers", false, "Do not print headers")
	flags.print.AddFlags(command)
	command.Flags().Lookup("output").Usage = "Output format. One of: (wide, " + strings.Join(flags.print.AllowedFormats(), ", ") + ")."
	return command
}

func (o *options) list(ctx context.Context, t *target, names []string, flags listFlags, wide bool) error {
	exports, err := t.list(ctx, "ServiceExport", names)
	if err != nil {
		return err
	}
	imports, err := t.list(ctx, "ServiceImport", names)
	if err != nil {
		return err
	}
	var missing []error
	for _, name := range names {
		named := func(object unstructured.Unstructured) bool { return object.GetName() == name }
		if !slices.ContainsFunc(exports, named) && !slices.ContainsFunc(imports, named) {
			missing = append(missing, fmt.Errorf("service %q in namespace %q is neither exported nor imported", name, t.namespace))
		}
	}
	if *flags.print.OutputFormat != "" && !wide {
		if err := o.printObjects(flags.print, slices.Concat(exports, imports)); err != nil {
			return err
		}
		return errors.Join(missing...)
	}
	if err := o.printTables(exports, imports, flags, wide); err != nil {
		return err
	}
	if len(exports)+len(imports) == 0 && len(missing) == 0 {
		where := ""
		if t.namespace != "" {
			where = " in namespace " + t.namespace
		}
		fmt.Fprintf(o.ErrOut, "No exported or imported services%s.\n", where)
	}
	return errors.Join(missing...)
}

// list gives the objects of a kind, sorted, all or those of these names.
func (t *target) list(ctx context.Context, kind string, names []string) ([]unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(t.kind(kind))
	if err := t.List(ctx, list, client.InNamespace(t.namespace)); err != nil {
		return nil, ctl.Explain("list "+kind+" objects", err)
	}
	items := slices.DeleteFunc(list.Items, func(object unstructured.Unstructured) bool {
		return len(names) > 0 && !slices.Contains(names, object.GetName())
	})
	slices.SortFunc(items, func(a, b unstructured.Unstructured) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
	return items, nil
}

// printObjects prints a v1 List, as kubectl does, or name after name.
func (o *options) printObjects(flags *genericclioptions.PrintFlags, objects []unstructured.Unstructured) error {
	p, err := printer(flags, "")
	if err != nil {
		return err
	}
	for i := range objects {
		objects[i].SetManagedFields(nil)
	}
	if *flags.OutputFormat == "name" {
		for i := range objects {
			if err := p.PrintObj(&objects[i], o.Out); err != nil {
				return err
			}
		}
		return nil
	}
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{}}, Items: objects}
	return p.PrintObj(list, o.Out)
}

func (o *options) printTables(exports, imports []unstructured.Unstructured, flags listFlags, wide bool) error {
	var exported, imported [][]string
	for i := range exports {
		var export mcsv1beta1.ServiceExport
		if err := convert(&exports[i], &export); err != nil {
			return err
		}
		conditions := export.Status.Conditions
		row := []string{
			export.Name,
			ctl.ConditionCell(conditions, string(mcsv1beta1.ServiceExportConditionValid), metav1.ConditionTrue),
			ctl.ConditionCell(conditions, string(mcsv1beta1.ServiceExportConditionReady), metav1.ConditionTrue),
			ctl.ConditionCell(conditions, string(mcsv1beta1.ServiceExportConditionConflict), metav1.ConditionFalse),
			ctl.Age(export.CreationTimestamp, o.now()),
		}
		if wide {
			row = append(row, trouble(conditions))
		}
		exported = append(exported, o.row(export.Namespace, flags, row))
	}
	for i := range imports {
		var from mcsv1beta1.ServiceImport
		if err := convert(&imports[i], &from); err != nil {
			return err
		}
		row := []string{
			from.Name, string(from.Spec.Type), ctl.List(from.Spec.IPs), ctl.List(ctl.Clusters(from.Status.Clusters)),
			ctl.Age(from.CreationTimestamp, o.now()),
		}
		if wide {
			row = append(row, ctl.List(ctl.Ports(from.Spec.Ports)))
		}
		imported = append(imported, o.row(from.Namespace, flags, row))
	}
	header := func(text, more string) string {
		if flags.noHeaders {
			return ""
		}
		if wide {
			text += more
		}
		if flags.allNamespaces {
			text = "NAMESPACE\t" + text
		}
		return text
	}
	if len(exported) > 0 {
		if err := ctl.Table(o.Out, header("EXPORT\tVALID\tREADY\tCONFLICT\tAGE", "\tMESSAGE"), exported); err != nil {
			return err
		}
	}
	if len(exported) > 0 && len(imported) > 0 {
		fmt.Fprintln(o.Out)
	}
	if len(imported) > 0 {
		return ctl.Table(o.Out, header("IMPORT\tTYPE\tIPS\tCLUSTERS\tAGE", "\tPORTS"), imported)
	}
	return nil
}

func (o *options) row(namespace string, flags listFlags, row []string) []string {
	if flags.allNamespaces {
		return append([]string{namespace}, row...)
	}
	return row
}

// trouble is the message of the first condition that is not as it should be.
func trouble(conditions []metav1.Condition) string {
	for _, want := range []struct {
		kind string
		good metav1.ConditionStatus
	}{
		{string(mcsv1beta1.ServiceExportConditionValid), metav1.ConditionTrue},
		{string(mcsv1beta1.ServiceExportConditionReady), metav1.ConditionTrue},
		{string(mcsv1beta1.ServiceExportConditionConflict), metav1.ConditionFalse},
	} {
		if condition := meta.FindStatusCondition(conditions, want.kind); condition != nil && condition.Status != want.good {
			return ctl.Dash(condition.Message)
		}
	}
	return "-"
}
