package fastnet

import (
	"context"
	"strconv"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcscrd "sigs.k8s.io/mcs-api/config/crd"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

// annotationCreatedBy on what join made where there was nothing (CRDs, labels of nodes) says that leave may take it away.
const annotationCreatedBy = "fastnet.dev/created-by"

const createdByJoin = "kubectl-fastnet"

// applyCRDs brings the definitions into the cluster and waits until the API server serves them. Helm itself installs
// those of a chart once and never upgrades them; this does. Fastnet's own are always applied; those of others only where
// they are older than ours.
func (c *cluster) applyCRDs(ctx context.Context, definitions []*apiextensionsv1.CustomResourceDefinition, note func(string)) error {
	for _, definition := range definitions {
		note(definition.Name)
		if err := c.applyCRD(ctx, definition); err != nil {
			return ctl.Explain("apply CRD "+definition.Name, err)
		}
	}
	return ctl.Await(ctx, time.Minute, note, func(ctx context.Context) (string, error) {
		for _, definition := range definitions {
			var live apiextensionsv1.CustomResourceDefinition
			if err := c.Get(ctx, client.ObjectKeyFromObject(definition), &live); err != nil {
				return "", err
			}
			if !established(live) {
				return "CRD " + live.Name + " is not established", nil
			}
		}
		return "", nil
	})
}

func (c *cluster) applyCRD(ctx context.Context, definition *apiextensionsv1.CustomResourceDefinition) error {
	definition = definition.DeepCopy()
	var live apiextensionsv1.CustomResourceDefinition
	err := c.Get(ctx, client.ObjectKeyFromObject(definition), &live)
	switch {
	case apierrors.IsNotFound(err):
		if definition.Annotations == nil {
			definition.Annotations = map[string]string{}
		}
		definition.Annotations[annotationCreatedBy] = createdByJoin
	case err != nil:
		return err
	case !shouldReplace(&live, definition):
		return nil
	case live.Annotations[annotationCreatedBy] != "":
		// Applying without it would take it away: it is this program's own field.
		if definition.Annotations == nil {
			definition.Annotations = map[string]string{}
		}
		definition.Annotations[annotationCreatedBy] = live.Annotations[annotationCreatedBy]
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(definition)
	if err != nil {
		return err
	}
	delete(object, "status")
	return c.apply(ctx, object)
}

func established(definition apiextensionsv1.CustomResourceDefinition) bool {
	for _, condition := range definition.Status.Conditions {
		if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
			return true
		}
	}
	return false
}

// shouldReplace says whether ours takes the place of the live definition of the same name.
func shouldReplace(live, ours *apiextensionsv1.CustomResourceDefinition) bool {
	switch ours.Spec.Group {
	case v1alpha1.GroupVersion.Group:
		return true
	case "multicluster.x-k8s.io":
		theirs, known := mcsRevision(live)
		if !known {
			// From before the labels, or another implementation's own: good as it is if it serves what we need.
			for _, served := range live.Spec.Versions {
				if served.Name == "v1beta1" && served.Served {
					return false
				}
			}
			return true
		}
		wanted, known := mcsRevision(ours)
		return known && theirs.less(wanted)
	}
	return false
}

// revision of a definition of the Multi-Cluster Services API: its labels order releases, and changes within one.
type revision struct {
	release *version.Version
	schema  int
}

func mcsRevision(definition *apiextensionsv1.CustomResourceDefinition) (revision, bool) {
	release, err := version.ParseSemantic(definition.Labels[mcscrd.ReleaseVersionLabel])
	if err != nil {
		return revision{}, false
	}
	schema, err := strconv.Atoi(definition.Labels[mcscrd.CustomResourceDefinitionSchemaRevisionLabel])
	if err != nil {
		return revision{}, false
	}
	return revision{release, schema}, true
}

func (r revision) less(other revision) bool {
	if r.release.EqualTo(other.release) {
		return r.schema < other.schema
	}
	return r.release.LessThan(other.release)
}
