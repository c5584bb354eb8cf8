// Package mcstest gives tests a cluster's Multi-Cluster Services API in the forms that clusters have it in.
package mcstest

import (
	"context"
	"fmt"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/fastnet-io/fastnet/deploy/crds"
)

// first is the API as it first was: v1alpha1 alone, an export without a spec, an import with one address at most, no families, no
// policies and no conditions, and conditions of exports without a generation.
var first = []string{`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: serviceexports.multicluster.x-k8s.io}
spec:
  group: multicluster.x-k8s.io
  scope: Namespaced
  names: {kind: ServiceExport, listKind: ServiceExportList, plural: serviceexports, singular: serviceexport}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          status:
            type: object
            properties:
              conditions:
                type: array
                items:
                  type: object
                  required: [status, type]
                  properties:
                    lastTransitionTime: {type: string, format: date-time}
                    message: {type: string}
                    reason: {type: string}
                    status: {type: string, enum: ["True", "False", "Unknown"]}
                    type: {type: string}
`, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: serviceimports.multicluster.x-k8s.io}
spec:
  group: multicluster.x-k8s.io
  scope: Namespaced
  names: {kind: ServiceImport, listKind: ServiceImportList, plural: serviceimports, singular: serviceimport}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [ports, type]
            properties:
              ips: {type: array, maxItems: 1, items: {type: string}}
              ports:
                type: array
                items:
                  type: object
                  required: [port]
                  properties:
                    appProtocol: {type: string}
                    name: {type: string}
                    port: {type: integer, format: int32}
                    protocol: {type: string}
              sessionAffinity: {type: string}
              sessionAffinityConfig:
                type: object
                properties:
                  clientIP:
                    type: object
                    properties:
                      timeoutSeconds: {type: integer, format: int32}
              type: {type: string, enum: [ClusterSetIP, Headless]}
          status:
            type: object
            properties:
              clusters:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [cluster]
                items:
                  type: object
                  required: [cluster]
                  properties:
                    cluster: {type: string}
`}

// First are the CRDs of the API as it first was.
func First() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	var all []*apiextensionsv1.CustomResourceDefinition
	for _, text := range first {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict([]byte(text), crd); err != nil {
			return nil, fmt.Errorf("read CRD: %w", err)
		}
		all = append(all, crd)
	}
	return all, nil
}

// Serving are the CRDs of the API as it is now, with no version served but those given.
func Serving(versions ...string) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	ours, err := crds.Member()
	if err != nil {
		return nil, err
	}
	var all []*apiextensionsv1.CustomResourceDefinition
	for _, crd := range ours {
		if crd.Spec.Group != "multicluster.x-k8s.io" {
			continue
		}
		for i := range crd.Spec.Versions {
			version := &crd.Spec.Versions[i]
			version.Served = false
			for _, served := range versions {
				version.Served = version.Served || version.Name == served
			}
		}
		all = append(all, crd)
	}
	return all, nil
}

// Put makes the CRDs of a cluster these.
func Put(ctx context.Context, c client.Client, all []*apiextensionsv1.CustomResourceDefinition) error {
	for _, crd := range all {
		var live apiextensionsv1.CustomResourceDefinition
		err := c.Get(ctx, client.ObjectKeyFromObject(crd), &live)
		if apierrors.IsNotFound(err) {
			if err := c.Create(ctx, crd.DeepCopy()); err != nil {
				return fmt.Errorf("create CRD: %w", err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read CRD: %w", err)
		}
		live.Spec = crd.Spec
		if err := c.Update(ctx, &live); err != nil {
			return fmt.Errorf("update CRD: %w", err)
		}
	}
	return nil
}

// Remove deletes the CRDs of a cluster, and with them all objects, and returns when they are gone.
func Remove(ctx context.Context, c client.Client, all []*apiextensionsv1.CustomResourceDefinition) error {
	for _, crd := range all {
		if err := client.IgnoreNotFound(c.Delete(ctx, crd.DeepCopy())); err != nil {
			return fmt.Errorf("delete CRD: %w", err)
		}
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, crd := range all {
		for {
			err := c.Get(ctx, client.ObjectKeyFromObject(crd), &apiextensionsv1.CustomResourceDefinition{})
			if apierrors.IsNotFound(err) {
				break
			}
			if err != nil {
				return fmt.Errorf("read CRD: %w", err)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
	return nil
}
