package ctl

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

// Table prints rows under a header whose cells tabs divide, in columns as kubectl's. An empty header is left out.
func Table(out io.Writer, header string, rows [][]string) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if header != "" {
		fmt.Fprintln(w, header)
	}
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// List is a cell with several values.
func List(of []string) string { return Dash(strings.Join(of, ",")) }

// Dash is a cell, never empty.
func Dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// Age is a cell with the time since then.
func Age(since metav1.Time, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return duration.HumanDuration(now.Sub(since.Time))
}

// ConditionCell is a condition's status, and its reason where it is not the good one.
func ConditionCell(conditions []metav1.Condition, kind string, good metav1.ConditionStatus) string {
	condition := meta.FindStatusCondition(conditions, kind)
	switch {
	case condition == nil:
		return "-"
	case condition.Status == good:
		return string(condition.Status)
	}
	return string(condition.Status) + " (" + condition.Reason + ")"
}

// Ports of an import, as kubectl writes those of a Service: 80/TCP, http:80/TCP.
func Ports(ports []mcsv1beta1.ServicePort) []string {
	var texts []string
	for _, port := range ports {
		text := fmt.Sprintf("%d/%s", port.Port, port.Protocol)
		if port.Name != "" {
			text = port.Name + ":" + text
		}
		texts = append(texts, text)
	}
	return texts
}

// Clusters of an import, sorted.
func Clusters(clusters []mcsv1beta1.ClusterStatus) []string {
	ids := []string{}
	for _, cluster := range clusters {
		ids = append(ids, cluster.Cluster)
	}
	slices.Sort(ids)
	return ids
}
