package mcsapi

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/internal/mcsapi/mcstest"
)

func established(all []*apiextensionsv1.CustomResourceDefinition, err error) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	for _, crd := range all {
		crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
	}
	return all, err
}

// What CRDs come to: the version, and what it lacks.
func TestRead(t *testing.T) {
	kinds := []*kind{{name: "ServiceExport", object: &mcsv1beta1.ServiceExport{}}, {name: "ServiceImport", object: &mcsv1beta1.ServiceImport{}}}
	serving := func(versions ...string) func() ([]*apiextensionsv1.CustomResourceDefinition, error) {
		return func() ([]*apiextensionsv1.CustomResourceDefinition, error) {
			return established(mcstest.Serving(versions...))
		}
	}
	for _, test := range []struct {
		name string
		crds func() ([]*apiextensionsv1.CustomResourceDefinition, error)
		want [2]string
	}{
		{"both versions", serving("v1alpha1", "v1beta1"), [2]string{"v1beta1", "v1beta1"}},
		{"the old version of the newest CRDs has every field", serving("v1alpha1"), [2]string{"v1alpha1", "v1alpha1"}},
		{"none", serving(), [2]string{
			"cannot be used: its CRD serves nothing, none of v1beta1, v1alpha1", "cannot be used: its CRD serves nothing, none of v1beta1, v1alpha1",
		}},
		{"not yet established", func() ([]*apiextensionsv1.CustomResourceDefinition, error) { return mcstest.Serving("v1beta1") }, [2]string{
			"cannot be used: its CRD is not established", "cannot be used: its CRD is not established",
		}},
		{"as it first was", func() ([]*apiextensionsv1.CustomResourceDefinition, error) { return established(mcstest.First()) }, [2]string{
			"v1alpha1, without spec, status.conditions.observedGeneration",
			"v1alpha1, without more than 1 of spec.ips, spec.ipFamilies, spec.internalTrafficPolicy, spec.trafficDistribution, status.endpointSliceObjects, status.conditions",
		}},
		{"a schema that keeps all", func() ([]*apiextensionsv1.CustomResourceDefinition, error) {
			all, err := established(mcstest.First())
			for _, crd := range all {
				crd.Spec.Versions[0].Schema.OpenAPIV3Schema = &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: new(true)}
			}
			return all, err
		}, [2]string{"v1alpha1", "v1alpha1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			all, err := test.crds()
			if err != nil {
				t.Fatal(err)
			}
			for i, k := range kinds {
				if diff := cmp.Diff(test.want[i], read(k, all[i]).String()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", k.name, diff)
				}
			}
		})
	}
}

// Fit takes out what a CRD lacks, and leaves what the object shares with others alone.
func TestFit(t *testing.T) {
	full := func() (*mcsv1beta1.ServiceExport, *mcsv1beta1.ServiceImport) {
		conditions := []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Ready", ObservedGeneration: 7}, {Type: "Valid", ObservedGeneration: 8}}
		return &mcsv1beta1.ServiceExport{
				ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 7, Labels: map[string]string{"a": "b"}},
				Spec:       mcsv1beta1.ServiceExportSpec{ExportedLabels: map[string]string{"c": "d"}},
				Status:     mcsv1beta1.ServiceExportStatus{Conditions: conditions},
			}, &mcsv1beta1.ServiceImport{
				Spec: mcsv1beta1.ServiceImportSpec{
					Type: mcsv1beta1.ClusterSetIP, IPs: []string{"10.0.0.1", "fd00::1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
					Ports: []mcsv1beta1.ServicePort{{Name: "http", Port: 80, AppProtocol: new("http")}}, TrafficDistribution: new("PreferClose"),
				},
				Status: mcsv1beta1.ServiceImportStatus{
					Clusters: []mcsv1beta1.ClusterStatus{{Cluster: "c1"}}, EndpointSliceObjects: mcsv1beta1.EndpointSliceObjectsPresent, Conditions: conditions,
				},
			}
	}
	a := &API{kinds: []*kind{{}, {}}}
	export, imported := full()
	for _, object := range []client.Object{export, imported, &corev1.Service{}} {
		before := object.DeepCopyObject()
		a.Fit(object)
		if diff := cmp.Diff(before, object); diff != "" {
			t.Errorf("nothing is known, and %T is changed: %s", object, diff)
		}
	}

	all, err := established(mcstest.First())
	if err != nil {
		t.Fatal(err)
	}
	a.kinds[0].now = read(&kind{object: export}, all[0])
	a.kinds[1].now = read(&kind{object: imported}, all[1])
	sharedExport, sharedImport := *export, *imported // with the same lists and maps
	a.Fit(export)
	a.Fit(imported)

	wantExport, wantImport := full()
	wantExport.Spec = mcsv1beta1.ServiceExportSpec{}
	for i := range wantExport.Status.Conditions {
		wantExport.Status.Conditions[i].ObservedGeneration = 0
	}
	wantImport.Spec.IPs, wantImport.Spec.IPFamilies, wantImport.Spec.TrafficDistribution = []string{"10.0.0.1"}, nil, nil
	wantImport.Status.EndpointSliceObjects, wantImport.Status.Conditions = "", nil
	if diff := cmp.Diff(wantExport, export); diff != "" {
		t.Errorf("export (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantImport, imported); diff != "" {
		t.Errorf("import (-want +got):\n%s", diff)
	}
	untouchedExport, untouchedImport := full()
	if diff := cmp.Diff(untouchedExport, &sharedExport) + cmp.Diff(untouchedImport, &sharedImport); diff != "" {
		t.Errorf("what is shared was changed:\n%s", diff)
	}
}
