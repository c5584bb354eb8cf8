package agent

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

// putImportStatus writes what an import's status lacks. The times of its conditions move only when their status does.
func (a *Agent) putImportStatus(ctx context.Context, r *round, current, want *mcsv1beta1.ServiceImport) {
	changed := current.DeepCopy()
	changed.Status.Clusters = want.Status.Clusters
	changed.Status.EndpointSliceObjects = want.Status.EndpointSliceObjects
	a.setConditions(&changed.Status.Conditions, want.Status.Conditions, current.Generation)
	r.trim(changed)
	if equality.Semantic.DeepEqual(current.Status, changed.Status) {
		return
	}
	changed = changed.DeepCopy()
	if r.do(ctx, updateStatus, changed, func(ctx context.Context) error { return r.writer.Status().Update(ctx, changed) }) {
		r.note(nameOf(changed), current.ResourceVersion, changed)
	}
}

// putExportStatus writes what an export's conditions lack, and tells of it in events.
func (a *Agent) putExportStatus(ctx context.Context, r *round, observed *mcsv1beta1.ServiceExport, want ExportStatus) {
	have, exists := current(r, observed, true, nameOf(observed))
	if !exists {
		return
	}
	changed := have.DeepCopy()
	a.setConditions(&changed.Status.Conditions, want.Conditions, observed.Generation)
	r.trim(changed)
	if equality.Semantic.DeepEqual(have.Status, changed.Status) {
		return
	}
	if !r.do(ctx, updateStatus, changed, func(ctx context.Context) error { return r.writer.Status().Update(ctx, changed) }) {
		return
	}
	r.note(nameOf(changed), have.ResourceVersion, changed)
	for _, c := range changed.Status.Conditions {
		before := meta.FindStatusCondition(have.Status.Conditions, c.Type)
		for _, notice := range want.Notices {
			if c.Type == string(mcsv1beta1.ServiceExportConditionValid) && (before == nil || !strings.Contains(before.Message, notice.Message)) {
				a.config.Event(changed, corev1.EventTypeWarning, notice.Reason, notice.Message)
			}
		}
		if before != nil && before.Status == c.Status && before.Reason == c.Reason || !worthAnEvent(before, c) {
			continue
		}
		kind := corev1.EventTypeNormal
		if bad := c.Type == string(mcsv1beta1.ServiceExportConditionConflict); bad == (c.Status == metav1.ConditionTrue) {
			kind = corev1.EventTypeWarning
		}
		a.config.Event(changed, kind, c.Reason, c.Message)
	}
}

// Reasons of events about what is wrong and keeps nothing from being exported: annotations that say nothing, or nothing that can be
// done, and pods whose names have no room in DNS.
const (
	reasonInvalidAnnotation = "InvalidAnnotation"
	reasonNameTooLong       = "NameTooLong"
)

// warn tells of what is wrong with the Service of a scope, each thing once. A Service has no status of ours to remember it by,
// so a new agent says it again.
func (a *Agent) warn(of scope, s *Snapshot, warnings []Warning) {
	told := ""
	for _, w := range warnings { // at most one: a scope has one Service
		a.mu.Lock()
		before := a.warned[of]
		a.mu.Unlock()
		if told = w.Message; told != before {
			a.config.Event(s.Services[w.Service].DeepCopy(), corev1.EventTypeWarning, reasonInvalidAnnotation, told)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if told == "" {
		delete(a.warned, of)
		return
	}
	a.warned[of] = told
}

// worthAnEvent leaves out the good news that nobody waits for: a first NoConflicts, and being on the way.
func worthAnEvent(before *metav1.Condition, now metav1.Condition) bool {
	return now.Reason != string(mcsv1beta1.ServiceExportReasonPending) &&
		(before != nil || now.Reason != string(mcsv1beta1.ServiceExportReasonNoConflicts))
}

func (a *Agent) setConditions(conditions *[]metav1.Condition, want []metav1.Condition, generation int64) {
	for _, c := range want {
		c.ObservedGeneration = generation
		c.LastTransitionTime = metav1.NewTime(a.config.Now())
		meta.SetStatusCondition(conditions, c)
	}
}
