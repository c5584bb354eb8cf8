// Package crds holds the custom resource definitions that Fastnet needs: its own, made from api/v1alpha1; those of the
// Multi-Cluster Services API, vendored; and ClusterProperty. See sync.sh for where each comes from.
package crds

import (
	"embed"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

//go:generate ./sync.sh

//go:embed *.yaml
var files embed.FS

// Broker are the definitions that the chart fastnet-broker needs.
func Broker() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	return read("fastnet.dev_clustersets.yaml", "fastnet.dev_endpoints.yaml",
		"fastnet.dev_exportedendpoints.yaml", "fastnet.dev_exportedservices.yaml")
}

// Member are the definitions that the chart fastnet needs.
func Member() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	return read("about.k8s.io_clusterproperties.yaml", "fastnet.dev_endpoints.yaml", "fastnet.dev_gateways.yaml",
		"multicluster.x-k8s.io_serviceexports.yaml", "multicluster.x-k8s.io_serviceimports.yaml")
}

func read(names ...string) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	definitions := make([]*apiextensionsv1.CustomResourceDefinition, 0, len(names))
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		definition := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(text, definition); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		definitions = append(definitions, definition)
	}
	return definitions, nil
}
