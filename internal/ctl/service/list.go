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
adds the messages, which say of a conflict what is in it and who wins.`,
		Example: `  kubectl service list -n shop

  # Every service of the cluster, with what is wrong with it
  kubectl service list -A -o wide

  # The exports that are in conflict with those of other clusters
  kubectl service list -A -o json | jq '.items[] | select(any(.status.conditions[]?; .type == "Conflict" and .status == "True"))'`,
		ValidArgsFunction: o.completeExportsAndImports,
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
			for i := range names {
				names[i] = plainName(names[i])
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
	if t.versions[kind] == "" {
		return nil, nil // no such CRD
	}
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
		exported = append(exported, o.row(&export, exportState.cells(export.Status.Conditions), exportState.messages(export.Status.Conditions), flags, wide))
	}
	for i := range imports {
		var from mcsv1beta1.ServiceImport
		if err := convert(&imports[i], &from); err != nil {
			return err
		}
		conditions := from.Status.Conditions
		row := append([]string{string(from.Spec.Type), ctl.List(from.Spec.IPs), ctl.List(ctl.Clusters(from.Status.Clusters))}, importState.cells(conditions)...)
		imported = append(imported, o.row(&from, row, ctl.List(ctl.Ports(from.Spec.Ports))+"\t"+importState.messages(conditions), flags, wide))
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
		return ctl.Table(o.Out, header("IMPORT\tTYPE\tIPS\tCLUSTERS\tREADY\tAGE", "\tPORTS\tMESSAGE"), imported)
	}
	return nil
}

// row is an object's, with its name before the cells, its age after them, and more at the end where it is wide.
func (o *options) row(object client.Object, cells []string, more string, flags listFlags, wide bool) []string {
	var row []string
	if flags.allNamespaces {
		row = append(row, object.GetNamespace())
	}
	row = append(append(row, object.GetName()), cells...)
	row = append(row, ctl.Age(object.GetCreationTimestamp(), o.now()))
	if wide {
		row = append(row, more)
	}
	return row
}

// state is the conditions of a kind, each with the status that is good.
type state []struct {
	condition string
	good      metav1.ConditionStatus
}

var (
	exportState = state{
		{string(mcsv1beta1.ServiceExportConditionValid), metav1.ConditionTrue},
		{string(mcsv1beta1.ServiceExportConditionReady), metav1.ConditionTrue},
		{string(mcsv1beta1.ServiceExportConditionConflict), metav1.ConditionFalse},
	}
	importState = state{{string(mcsv1beta1.ServiceImportConditionReady), metav1.ConditionTrue}}
)

func (s state) cells(conditions []metav1.Condition) []string {
	var cells []string
	for _, want := range s {
		cells = append(cells, ctl.ConditionCell(conditions, want.condition, want.good))
	}
	return cells
}

// messages are those of the conditions that are not as they should be, on one line.
func (s state) messages(conditions []metav1.Condition) string {
	var messages []string
	for _, want := range s {
		condition := meta.FindStatusCondition(conditions, want.condition)
		if condition == nil || condition.Status == want.good || condition.Message == "" || slices.Contains(messages, condition.Message) {
			continue
		}
		messages = append(messages, condition.Message)
	}
	return ctl.Dash(strings.Join(strings.Fields(strings.Join(messages, "; ")), " "))
}
