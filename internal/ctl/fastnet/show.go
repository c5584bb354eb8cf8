package fastnet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

// view is what show prints: of -o json and yaml, these are the fields.
type view struct {
	Clusters    []clusterRow    `json:"clusters,omitempty"`
	Gateways    []gatewayRow    `json:"gateways,omitempty"`
	Connections []connectionRow `json:"connections,omitempty"`
	Routes      []routeRow      `json:"routes,omitempty"`
	Exports     []exportRow     `json:"exports,omitempty"`
	Imports     []importRow     `json:"imports,omitempty"`
	Problems    []string        `json:"problems,omitempty"`
}

type clusterRow struct {
	ClusterID string   `json:"clusterID"`
	Local     bool     `json:"local,omitempty"`
	State     string   `json:"state"` // local, or that of its best cable
	Gateways  []string `json:"gateways"`
	Prefixes  []string `json:"prefixes"`
}

type gatewayRow struct {
	Node      string   `json:"node"`
	State     string   `json:"state"` // active, draining, drained, silent where it no longer reports, or unknown where it never has
	Driver    string   `json:"driver,omitempty"`
	Addresses []string `json:"addresses"`
	CablesUp  int      `json:"cablesUp"`
	Cables    int      `json:"cables"`
}

type connectionRow struct {
	Gateway         string      `json:"gateway"` // the local node
	ClusterID       string      `json:"clusterID"`
	Endpoint        string      `json:"endpoint"`
	Driver          string      `json:"driver"`
	PeerAddress     string      `json:"peerAddress,omitempty"`
	State           string      `json:"state"`
	RTTMilliseconds string      `json:"rttMilliseconds,omitempty"`
	LossPercent     string      `json:"lossPercent,omitempty"`
	Draining        bool        `json:"draining,omitempty"` // the other side is
	Since           metav1.Time `json:"since"`
}

type exportRow struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Valid     string `json:"valid"`
	Ready     string `json:"ready"`
	Conflict  string `json:"conflict"`
}

type importRow struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	IPs       []string `json:"ips,omitempty"`
	Ports     []string `json:"ports,omitempty"`
	Clusters  []string `json:"clusters"`
}

func newShow(o *options) *cobra.Command {
	var output string
	things := []string{"clusters", "gateways", "connections", "routes", "services", "all"}
	command := &cobra.Command{
		Use:   "show [clusters|gateways|connections|routes|services|all]",
		Short: "Show the clusterset as this cluster sees it",
		Long: `Show the clusterset as this cluster sees it.

  clusters     the clusters known here: their gateways, their ranges, and whether a tunnel to them is up
  gateways     this cluster's gateways: whether they carry, and how many of their tunnels are up
  connections  every tunnel of this cluster's gateways: state, round-trip time, loss, since when
  routes       every node's ways to other clusters: by which gateway, directly or through a tunnel, whether they live, and which are used
  services     what this cluster exports and imports
  all          all of these but routes, for which every node is asked (the default)`,
		ValidArgs: things,
		Args:      ctl.Args(cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs)),
		RunE: func(command *cobra.Command, args []string) error {
			if !slices.Contains([]string{"", "json", "yaml"}, output) {
				return ctl.Usagef("--output %q: want json or yaml", output)
			}
			what := "all"
			if len(args) > 0 {
				what = args[0]
			}
			ctx := command.Context()
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			seen, err := c.look(ctx, what, time.Now())
			if err != nil {
				return err
			}
			return seen.print(o.Out, o.ErrOut, what, output, time.Now())
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "", "Output format: json or yaml")
	return command
}

// look gathers what there is to show.
func (c *cluster) look(ctx context.Context, what string, now time.Time) (view, error) {
	var seen view
	properties, err := c.properties(ctx)
	if err != nil {
		return seen, err
	}
	id := properties[v1alpha1.ClusterPropertyID]
	if id == "" {
		return seen, fmt.Errorf("this cluster is in no clusterset: kubectl fastnet join")
	}
	var endpoints v1alpha1.EndpointList
	var gateways v1alpha1.GatewayList
	var exports mcsv1beta1.ServiceExportList
	var imports mcsv1beta1.ServiceImportList
	for _, list := range []struct {
		kind    string
		objects client.ObjectList
		options []client.ListOption
	}{
		{"Endpoints", &endpoints, []client.ListOption{client.InNamespace(v1alpha1.Namespace)}},
		{"Gateways", &gateways, []client.ListOption{client.InNamespace(v1alpha1.Namespace)}},
		{"ServiceExports", &exports, nil},
		{"ServiceImports", &imports, nil},
	} {
		if err := c.List(ctx, list.objects, list.options...); err != nil {
			if meta.IsNoMatchError(err) {
				return seen, fmt.Errorf("the CRD for %s is missing from this cluster: kubectl fastnet join brings it", list.kind)
			}
			return seen, ctl.Explain("list "+list.kind, err)
		}
	}
	silent := disbelieve(gateways.Items, now)
	if what == "clusters" || what == "all" {
		seen.Clusters = clusterRows(id, endpoints.Items, gateways.Items)
	}
	if what == "gateways" || what == "all" {
		seen.Gateways = gatewayRows(id, endpoints.Items, gateways.Items, silent)
	}
	if what == "connections" || what == "all" {
		seen.Connections, seen.Problems = connectionRows(gateways.Items, silent)
	}
	if what == "routes" {
		var err error
		if seen.Routes, seen.Problems, err = c.routes(ctx); err != nil {
			return seen, err
		}
	}
	if what == "services" || what == "all" {
		seen.Exports, seen.Imports = exportRows(exports.Items), importRows(imports.Items)
	}
	return seen, nil
}

// silentAfter is how long a gateway may be silent, which writes every 30 s, before nothing that it last said is shown as true. Others of its
// cluster delete its Gateway by then; the last one's is there for as long as nobody is left to do that.
const silentAfter = 2 * time.Minute

// disbelieve makes unknown all cables of gateways that no longer report, and says for how long they have not.
func disbelieve(gateways []v1alpha1.Gateway, now time.Time) map[string]string {
	silent := map[string]string{}
	for _, gateway := range gateways {
		if renewed := gateway.Status.Renewed; renewed != nil && now.Sub(renewed.Time) > silentAfter {
			silent[gateway.Name] = ctl.Age(*renewed, now)
			for i := range gateway.Status.Cables {
				gateway.Status.Cables[i].State = "unknown"
			}
		}
	}
	return silent
}

func clusterRows(local string, endpoints []v1alpha1.Endpoint, gateways []v1alpha1.Gateway) []clusterRow {
	best := map[string]v1alpha1.CableState{}
	rank := map[v1alpha1.CableState]int{v1alpha1.CableDown: 1, v1alpha1.CableConnecting: 2, v1alpha1.CableUp: 3}
	for _, gateway := range gateways {
		for _, cable := range gateway.Status.Cables {
			if rank[cable.State] > rank[best[cable.ClusterID]] {
				best[cable.ClusterID] = cable.State
			}
		}
	}
	rows := map[string]*clusterRow{}
	row := func(id string) *clusterRow {
		if rows[id] == nil {
			rows[id] = &clusterRow{ClusterID: id, State: "unknown", Gateways: []string{}, Prefixes: []string{}}
			if state := best[id]; state != "" {
				rows[id].State = string(state)
			}
		}
		return rows[id]
	}
	row(local).Local, row(local).State = true, "local"
	prefixes := map[string][]netip.Prefix{}
	for _, endpoint := range endpoints {
		id := endpoint.Spec.ClusterID
		r := row(id)
		r.Gateways = append(r.Gateways, endpoint.Spec.Node)
		prefixes[id] = append(prefixes[id], parsePrefixes(strings.Join(endpoint.Spec.Prefixes, ","))...)
	}
	var sorted []clusterRow
	for id, r := range rows {
		slices.Sort(r.Gateways)
		r.Prefixes = prefixStrings(compact(prefixes[id]))
		sorted = append(sorted, *r)
	}
	slices.SortFunc(sorted, func(a, b clusterRow) int { return strings.Compare(a.ClusterID, b.ClusterID) })
	return sorted
}

func gatewayRows(local string, endpoints []v1alpha1.Endpoint, gateways []v1alpha1.Gateway, silent map[string]string) []gatewayRow {
	rows := map[string]*gatewayRow{}
	row := func(node string) *gatewayRow {
		if rows[node] == nil {
			rows[node] = &gatewayRow{Node: node, State: "unknown", Addresses: []string{}}
		}
		return rows[node]
	}
	for _, endpoint := range endpoints {
		if endpoint.Spec.ClusterID == local {
			row(endpoint.Spec.Node).Addresses = endpoint.Spec.Addresses
		}
	}
	for _, gateway := range gateways {
		r := row(gateway.Name)
		r.State, r.Driver, r.Cables = "active", gateway.Status.Driver, len(gateway.Status.Cables)
		if gateway.Status.Drain != "" {
			r.State = gateway.Status.Drain
		}
		if silent[gateway.Name] != "" {
			r.State = "silent"
		}
		for _, cable := range gateway.Status.Cables {
			if cable.State == v1alpha1.CableUp {
				r.CablesUp++
			}
		}
	}
	var sorted []gatewayRow
	for _, node := range slices.Sorted(maps.Keys(rows)) {
		sorted = append(sorted, *rows[node])
	}
	return sorted
}

func connectionRows(gateways []v1alpha1.Gateway, silent map[string]string) (rows []connectionRow, problems []string) {
	for _, gateway := range gateways {
		if age := silent[gateway.Name]; age != "" {
			problems = append(problems, gateway.Name+": it has not reported for "+age+": kubectl -n "+v1alpha1.Namespace+" get pods -o wide")
		}
		for _, problem := range gateway.Status.Problems {
			problems = append(problems, gateway.Name+": "+problem)
		}
		for _, cable := range gateway.Status.Cables {
			rows = append(rows, connectionRow{
				Gateway: gateway.Name, ClusterID: cable.ClusterID, Endpoint: cable.Endpoint, Driver: cable.Driver,
				PeerAddress: cable.PeerAddress, State: string(cable.State), RTTMilliseconds: cable.RTTMilliseconds, LossPercent: cable.LossPercent,
				Draining: cable.Draining, Since: cable.Since,
			})
		}
	}
	slices.SortFunc(rows, func(a, b connectionRow) int {
		return strings.Compare(a.Gateway+" "+a.ClusterID+" "+a.Endpoint, b.Gateway+" "+b.ClusterID+" "+b.Endpoint)
	})
	slices.Sort(problems)
	return rows, problems
}

func exportRows(exports []mcsv1beta1.ServiceExport) []exportRow {
	var rows []exportRow
	for _, export := range exports {
		rows = append(rows, exportRow{
			Namespace: export.Namespace, Name: export.Name,
			Valid:    ctl.ConditionCell(export.Status.Conditions, string(mcsv1beta1.ServiceExportConditionValid), metav1.ConditionTrue),
			Ready:    ctl.ConditionCell(export.Status.Conditions, string(mcsv1beta1.ServiceExportConditionReady), metav1.ConditionTrue),
			Conflict: ctl.ConditionCell(export.Status.Conditions, string(mcsv1beta1.ServiceExportConditionConflict), metav1.ConditionFalse),
		})
	}
	return rows
}

func importRows(imports []mcsv1beta1.ServiceImport) []importRow {
	var rows []importRow
	for _, imported := range imports {
		rows = append(rows, importRow{
			Namespace: imported.Namespace, Name: imported.Name, Type: string(imported.Spec.Type), IPs: imported.Spec.IPs,
			Ports: ctl.Ports(imported.Spec.Ports), Clusters: ctl.Clusters(imported.Status.Clusters),
		})
	}
	return rows
}

// print writes the tables, each under a heading where there are several, or the one document that was asked for.
func (v view) print(out, errOut io.Writer, what, output string, now time.Time) error {
	switch output {
	case "json":
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", text)
		return err
	case "yaml":
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = out.Write(text)
		return err
	}
	first := true
	table := func(empty, header string, rows [][]string) error {
		if len(rows) == 0 {
			fmt.Fprintln(errOut, empty)
			return nil
		}
		if !first {
			fmt.Fprintln(out)
		}
		first = false
		return ctl.Table(out, header, rows)
	}
	if what == "clusters" || what == "all" {
		var rows [][]string
		for _, r := range v.Clusters {
			rows = append(rows, []string{r.ClusterID, r.State, ctl.List(r.Gateways), ctl.List(r.Prefixes)})
		}
		if err := table("No clusters.", "CLUSTER\tSTATE\tGATEWAYS\tCIDRS", rows); err != nil {
			return err
		}
	}
	if what == "gateways" || what == "all" {
		var rows [][]string
		for _, r := range v.Gateways {
			rows = append(rows, []string{r.Node, r.State, ctl.Dash(r.Driver), ctl.List(r.Addresses), fmt.Sprintf("%d/%d up", r.CablesUp, r.Cables)})
		}
		if err := table("No gateways: no node of this cluster runs one.", "GATEWAY\tSTATE\tDRIVER\tADDRESSES\tCABLES", rows); err != nil {
			return err
		}
	}
	if what == "connections" || what == "all" {
		var rows [][]string
		for _, r := range v.Connections {
			rtt := "-"
			if r.RTTMilliseconds != "" {
				rtt = r.RTTMilliseconds + "ms"
			}
			loss, state := "-", r.State
			if r.LossPercent != "" {
				loss = r.LossPercent + "%"
			}
			if r.Draining {
				state += " (draining)"
			}
			rows = append(rows, []string{r.Gateway, r.ClusterID, r.Endpoint, r.Driver, ctl.Dash(r.PeerAddress), state, rtt, loss, ctl.Age(r.Since, now)})
		}
		if err := table("No connections: no gateway of this cluster has found one of another.", "GATEWAY\tCLUSTER\tENDPOINT\tDRIVER\tPEER\tSTATE\tRTT\tLOSS\tSINCE", rows); err != nil {
			return err
		}
		for _, problem := range v.Problems {
			fmt.Fprintln(out, "Problem at gateway "+problem)
		}
	}
	if what == "routes" {
		var rows [][]string
		for _, r := range v.Routes {
			rows = append(rows, r.cells(now))
		}
		if err := table("No routes: no other cluster is known, or no route agent answers.", routeHeader, rows); err != nil {
			return err
		}
		for _, problem := range v.Problems {
			fmt.Fprintln(out, "Problem on node "+problem)
		}
	}
	if what == "services" || what == "all" {
		var exports, imports [][]string
		for _, r := range v.Exports {
			exports = append(exports, []string{r.Namespace, r.Name, r.Valid, r.Ready, r.Conflict})
		}
		for _, r := range v.Imports {
			imports = append(imports, []string{r.Namespace, r.Name, r.Type, ctl.List(r.IPs), ctl.List(r.Clusters), ctl.List(r.Ports)})
		}
		if err := table("No service is exported from this cluster.", "NAMESPACE\tEXPORT\tVALID\tREADY\tCONFLICT", exports); err != nil {
			return err
		}
		return table("No service is imported into this cluster.", "NAMESPACE\tIMPORT\tTYPE\tIPS\tCLUSTERS\tPORTS", imports)
	}
	return nil
}
