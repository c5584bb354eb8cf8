package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// Snapshot is everything that a plan is made from. The objects in it belong to the caches: nobody writes to them.
type Snapshot struct {
	ClusterID       string
	BrokerNamespace string

	// Broker is what all members published, and Connected whether the broker answers now.
	Broker    broker.View
	Connected bool
	// Refused holds what the broker last said to a write of ours, by kind and name, as refusal makes it.
	Refused map[string]string

	// Namespaces that exist and are not being deleted.
	Namespaces map[string]bool
	Exports    map[clusterset.Key]*mcsv1beta1.ServiceExport
	Imports    map[clusterset.Key]*mcsv1beta1.ServiceImport
	Services   map[clusterset.Key]*corev1.Service
	// Slices are all EndpointSlices but our own, by the Service that they belong to. OwnSlices are ours, by the import that
	// they belong to; those that are there for kube-proxy alone belong to none, the name is empty.
	Slices    map[clusterset.Key][]*discoveryv1.EndpointSlice
	OwnSlices map[clusterset.Key][]*discoveryv1.EndpointSlice
	// Endpoints of the namespace fastnet-system.
	Endpoints []*v1alpha1.Endpoint
	// Reach is which clusters count as reachable, by the Gateways of that namespace and by what they said before.
	Reach Reachability
}

// snapshot reads the local cluster and the broker.
func (a *Agent) snapshot(ctx context.Context) (*Snapshot, error) {
	started := time.Now()
	defer func() { a.metrics.snapshotSeconds.Observe(time.Since(started).Seconds()) }()
	s := &Snapshot{
		ClusterID:       a.config.ClusterID,
		BrokerNamespace: a.config.BrokerNamespace,
		Broker:          a.config.View(),
		Connected:       a.config.Connected(),
		Namespaces:      map[string]bool{},
		Exports:         map[clusterset.Key]*mcsv1beta1.ServiceExport{},
		Imports:         map[clusterset.Key]*mcsv1beta1.ServiceImport{},
		Services:        map[clusterset.Key]*corev1.Service{},
		Slices:          map[clusterset.Key][]*discoveryv1.EndpointSlice{},
		OwnSlices:       map[clusterset.Key][]*discoveryv1.EndpointSlice{},
	}
	a.mu.Lock()
	s.Refused = maps.Clone(a.refused)
	a.mu.Unlock()

	var (
		namespaces corev1.NamespaceList
		services   corev1.ServiceList
		slices     discoveryv1.EndpointSliceList
		exports    mcsv1beta1.ServiceExportList
		imports    mcsv1beta1.ServiceImportList
		gateways   v1alpha1.GatewayList
		endpoints  v1alpha1.EndpointList
	)
	// The caches' own objects, not copies: at thousands of slices the copies would be most of a round's work.
	shared := client.UnsafeDisableDeepCopy
	system := client.InNamespace(v1alpha1.Namespace)
	var problems []error
	list := func(into client.ObjectList, options ...client.ListOption) {
		if err := a.config.Reader.List(ctx, into, append(options, shared)...); err != nil {
			problems = append(problems, fmt.Errorf("read %T: %w", into, err))
		}
	}
	// Exports before Services: who makes both makes the Service first, and should not be told that there is none.
	list(&exports)
	list(&namespaces)
	list(&services)
	list(&slices)
	list(&imports)
	list(&endpoints, system)
	var err error
	if s.Reach, err = a.reach.observe(ctx, &gateways, system, shared); err != nil {
		problems = append(problems, fmt.Errorf("read %T: %w", &gateways, err))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}

	for i := range namespaces.Items {
		if namespaces.Items[i].DeletionTimestamp.IsZero() {
			s.Namespaces[namespaces.Items[i].Name] = true
		}
	}
	for i := range services.Items {
		s.Services[client.ObjectKeyFromObject(&services.Items[i])] = &services.Items[i]
	}
	for i := range slices.Items {
		slice := &slices.Items[i]
		if slice.Labels[discoveryv1.LabelManagedBy] == v1alpha1.ManagedBy {
			key := clusterset.Key{Namespace: slice.Namespace, Name: slice.Labels[v1alpha1.LabelServiceName]}
			s.OwnSlices[key] = append(s.OwnSlices[key], slice)
		} else if service := slice.Labels[discoveryv1.LabelServiceName]; service != "" {
			key := clusterset.Key{Namespace: slice.Namespace, Name: service}
			s.Slices[key] = append(s.Slices[key], slice)
		}
	}
	for i := range exports.Items {
		s.Exports[client.ObjectKeyFromObject(&exports.Items[i])] = &exports.Items[i]
	}
	for i := range imports.Items {
		s.Imports[client.ObjectKeyFromObject(&imports.Items[i])] = &imports.Items[i]
	}
	for i := range endpoints.Items {
		s.Endpoints = append(s.Endpoints, &endpoints.Items[i])
	}
	return s, nil
}
