package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "fastnet.dev", Version: "v1alpha1"}

// AddToScheme makes a scheme know the kinds of this package. It never fails for a scheme that does not hold other types
// under the same names.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&ClusterSet{}, &ClusterSetList{},
		&ExportedService{}, &ExportedServiceList{},
		&ExportedEndpoints{}, &ExportedEndpointsList{},
		&Endpoint{}, &EndpointList{},
		&Gateway{}, &GatewayList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
