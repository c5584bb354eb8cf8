#!/bin/sh
# Brings the custom resource definitions together, from the directory that holds this script:
#
#   multicluster.x-k8s.io_*   copied from the module sigs.k8s.io/mcs-api in the version of go.mod; not edited here
#   fastnet.dev_*             made by controller-gen from api/v1alpha1, before this script runs
#   about.k8s.io_*            written by hand
#
# and copies what a chart needs into its crds directory, so that plain `helm install` finds it there.
set -eu
cd "$(dirname "$0")"

module=$(go list -m -f '{{.Dir}}' sigs.k8s.io/mcs-api)
version=$(go list -m -f '{{.Version}}' sigs.k8s.io/mcs-api)
for name in multicluster.x-k8s.io_serviceexports multicluster.x-k8s.io_serviceimports; do
	{
		echo "# Vendored from sigs.k8s.io/mcs-api $version, config/crd/$name.yaml, by sync.sh. DO NOT EDIT."
		cat "$module/config/crd/$name.yaml"
	} >"$name.yaml"
done

copy() {
	chart=../helm/$1/crds
	shift
	rm -rf "$chart"
	mkdir -p "$chart"
	cp "$@" "$chart/"
}
copy fastnet-broker fastnet.dev_clustersets.yaml fastnet.dev_endpoints.yaml \
	fastnet.dev_exportedendpoints.yaml fastnet.dev_exportedservices.yaml
copy fastnet about.k8s.io_clusterproperties.yaml fastnet.dev_endpoints.yaml fastnet.dev_gateways.yaml \
	multicluster.x-k8s.io_serviceexports.yaml multicluster.x-k8s.io_serviceimports.yaml
