package agent

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// Warning is something that the user of an object should know.
type Warning struct {
	// Service whose annotations it is about.
	Service clusterset.Key
	Message string
}

// globals adds the ServiceExports of Services that are exported by an annotation of their own: they are labelled as ours, and
// go with the annotation. A ServiceExport that somebody else made is never touched, whatever the Service says.
func (p *Plan) globals(s *Snapshot) {
	var asking []clusterset.Key
	for key, service := range s.Services {
		if asksForExport(service) {
			asking = append(asking, key)
		}
	}
	slices.SortFunc(asking, compareKeys)
	for _, key := range asking {
		service := s.Services[key]
		global, problem := boolean(service.Annotations, v1alpha1.AnnotationGlobal, false)
		shared, other := boolean(service.Annotations, v1alpha1.AnnotationShared, true)
		problems := slices.Concat(problem, other)
		if len(problems) > 0 {
			p.Warnings = append(p.Warnings, Warning{key, strings.Join(problems, "; ")})
		}
		known := s.Exports[key]
		if known != nil && madeByUs(known) && len(problems) > 0 {
			// It was exported, and then somebody mistyped: that is no word to take it away.
			p.GlobalExports = append(p.GlobalExports, known)
			continue
		}
		_, derived := derivedFor(service)
		if !global || !shared || derived || !service.DeletionTimestamp.IsZero() || !s.Namespaces[key.Namespace] || known != nil && !madeByUs(known) {
			continue
		}
		export := &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: key.Name,
			Labels: map[string]string{labelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelGlobal: "true"},
		}}
		for _, annotation := range clusterset.PolicyAnnotations() {
			if value, ok := service.Annotations[annotation]; ok {
				set(&export.Annotations, annotation, value)
			}
		}
		p.GlobalExports = append(p.GlobalExports, export)
	}
}

// asksForExport says whether a Service has an annotation of those that globals reads.
func asksForExport(service *corev1.Service) bool {
	_, global := service.Annotations[v1alpha1.AnnotationGlobal]
	_, shared := service.Annotations[v1alpha1.AnnotationShared]
	return global || shared
}

// madeByUs says whether a ServiceExport is one that globals made. The label managed-by alone is one that people put on objects
// of their own.
func madeByUs(e *mcsv1beta1.ServiceExport) bool {
	return ours(e) && e.Labels[v1alpha1.LabelGlobal] != ""
}

// boolean reads an annotation that is "true" or "false". One that is neither counts as not there, and is told of.
func boolean(annotations map[string]string, key string, byDefault bool) (value bool, problems []string) {
	text, ok := annotations[key]
	if !ok {
		return byDefault, nil
	}
	value, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(text)))
	if err != nil {
		return byDefault, []string{fmt.Sprintf("%s is ignored: %.60q is neither true nor false", key, text)}
	}
	return value, nil
}

// adoptExport copies the annotations by which a Service says who serves. What a user adds to the export beside them stays.
func adoptExport(have, want *mcsv1beta1.ServiceExport) {
	annotations := maps.Clone(have.Annotations)
	for _, key := range clusterset.PolicyAnnotations() {
		if value, ok := want.Annotations[key]; ok {
			set(&annotations, key, value)
		} else {
			delete(annotations, key)
		}
	}
	have.Annotations = annotations
}
