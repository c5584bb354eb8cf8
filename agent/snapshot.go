package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// Snapshot is everything that a plan is made from: of one scope, or of all. The objects in it belong to the caches: nobody writes to them.
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
	// Told are Exports as we have written them last, where the watch does not tell of that yet. What their status says is from there: a
	// round on the one before would take back what was said.
	Told     map[clusterset.Key]*mcsv1beta1.ServiceExport
	Imports  map[clusterset.Key]*mcsv1beta1.ServiceImport
	Services map[clusterset.Key]*corev1.Service
	// Slices are all EndpointSlices but our own, by the Service that they belong to. OwnSlices are ours, by the import that
	// they belong to; those that are there for kube-proxy alone belong to none, the name is empty.
	Slices    map[clusterset.Key][]*discoveryv1.EndpointSlice
	OwnSlices map[clusterset.Key][]*discoveryv1.EndpointSlice
	// Endpoints of the namespace fastnet-system.
	Endpoints []*v1alpha1.Endpoint
	// Reach is which clusters count as reachable, by the Gateways of that namespace and by what they said before.
	Reach Reachability
}

// heard says whether what the broker has of a member is known to be its word.
func (s *Snapshot) heard(cluster string) bool {
	return s.Broker.Synced && !slices.Contains(s.Broker.Awaited, cluster)
}

// imported says whether the cluster holds anything that came from the broker.
func (s *Snapshot) imported() bool {
	for _, known := range s.Imports {
		if ours(known) {
			return true
		}
	}
	return slices.ContainsFunc(s.Endpoints, func(e *v1alpha1.Endpoint) bool { return mirrored(s.ClusterID, e) })
}

// kubernetesService is the Service whose families are those that every Service of a cluster can have.
var kubernetesService = clusterset.Key{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}

// The caches' own objects, not copies: at thousands of slices the copies would be most of a round's work.
const shared = client.UnsafeDisableDeepCopy

// snapshot reads what belongs to one scope from the local caches and the broker's, or everything where there is none.
func (a *Agent) snapshot(ctx context.Context, of *scope) (*Snapshot, error) {
	if of == nil {
		s, err := a.everything(ctx)
		if err != nil {
			return nil, err
		}
		s.Broker = a.config.Records.View()
		s.Refused = map[string]string{}
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, refused := range a.refused {
			maps.Copy(s.Refused, refused)
		}
		return s, nil
	}
	s := a.newSnapshot()
	read := reader{Reader: a.config.Reader}
	var err error
	if *of == gateways {
		s.Broker = a.config.Records.Gateways()
		read.namespace(ctx, s, v1alpha1.Namespace)
		read.endpoints(ctx, s)
	} else {
		s.Broker = a.config.Records.Service(*of)
		read.namespace(ctx, s, of.Namespace)
		read.service(ctx, s, *of)
		if e := s.Exports[*of]; e != nil {
			if told, ok := a.local.unseen(e).(*mcsv1beta1.ServiceExport); ok {
				s.Told = map[clusterset.Key]*mcsv1beta1.ServiceExport{*of: told}
			}
		}
		s.Reach, err = a.reach.settled(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Refused = a.refused[*of] // never written to again
	return s, errors.Join(err, read.err())
}

func (a *Agent) newSnapshot() *Snapshot {
	return &Snapshot{
		ClusterID:       a.config.ClusterID,
		BrokerNamespace: a.config.BrokerNamespace,
		Connected:       a.config.Connected(),
		Namespaces:      map[string]bool{},
		Exports:         map[clusterset.Key]*mcsv1beta1.ServiceExport{},
		Imports:         map[clusterset.Key]*mcsv1beta1.ServiceImport{},
		Services:        map[clusterset.Key]*corev1.Service{},
		Slices:          map[clusterset.Key][]*discoveryv1.EndpointSlice{},
		OwnSlices:       map[clusterset.Key][]*discoveryv1.EndpointSlice{},
	}
}

// everything is all that the local cluster holds. The snapshot is without the broker.
func (a *Agent) everything(ctx context.Context) (*Snapshot, error) {
	s := a.newSnapshot()
	read := reader{Reader: a.config.Reader}
	var (
		namespaces corev1.NamespaceList
		services   corev1.ServiceList
		exports    mcsv1beta1.ServiceExportList
		imports    mcsv1beta1.ServiceImportList
	)
	// Exports before Services: who makes both makes the Service first, and should not be told that there is none.
	read.list(ctx, &exports)
	read.list(ctx, &namespaces)
	read.list(ctx, &services)
	read.slices(ctx, s)
	read.list(ctx, &imports)
	read.endpoints(ctx, s)
	var err error
	s.Reach, err = a.reach.settled(ctx)
	for i := range namespaces.Items {
		s.addNamespace(&namespaces.Items[i])
	}
	for i := range services.Items {
		s.Services[client.ObjectKeyFromObject(&services.Items[i])] = &services.Items[i]
	}
	for i := range exports.Items {
		s.Exports[client.ObjectKeyFromObject(&exports.Items[i])] = &exports.Items[i]
	}
	for i := range imports.Items {
		s.Imports[client.ObjectKeyFromObject(&imports.Items[i])] = &imports.Items[i]
	}
	return s, errors.Join(err, read.err())
}

func (s *Snapshot) addNamespace(namespace *corev1.Namespace) {
	if namespace.DeletionTimestamp.IsZero() {
		s.Namespaces[namespace.Name] = true
	}
}

func (s *Snapshot) addSlice(slice *discoveryv1.EndpointSlice) {
	if slice.Labels[discoveryv1.LabelManagedBy] == v1alpha1.ManagedBy {
		key := clusterset.Key{Namespace: slice.Namespace, Name: slice.Labels[v1alpha1.LabelServiceName]}
		s.OwnSlices[key] = append(s.OwnSlices[key], slice)
	} else if service := slice.Labels[discoveryv1.LabelServiceName]; service != "" {
		key := clusterset.Key{Namespace: slice.Namespace, Name: service}
		s.Slices[key] = append(s.Slices[key], slice)
	}
}

// reader reads into a snapshot and gathers what goes wrong.
type reader struct {
	client.Reader
	problems []error
}

func (r *reader) err() error { return errors.Join(r.problems...) }

func (r *reader) list(ctx context.Context, into client.ObjectList, options ...client.ListOption) {
	if err := r.List(ctx, into, append(options, shared)...); err != nil {
		r.problems = append(r.problems, fmt.Errorf("read %T: %w", into, err))
	}
}

// get reports whether there is such an object.
func (r *reader) get(ctx context.Context, key client.ObjectKey, into client.Object) bool {
	err := r.Get(ctx, key, into, shared)
	if client.IgnoreNotFound(err) != nil {
		r.problems = append(r.problems, fmt.Errorf("read %T %s: %w", into, key, err))
	}
	return err == nil
}

func (r *reader) namespace(ctx context.Context, s *Snapshot, name string) {
	var namespace corev1.Namespace
	if r.get(ctx, client.ObjectKey{Name: name}, &namespace) {
		s.addNamespace(&namespace)
	}
}

func (r *reader) endpoints(ctx context.Context, s *Snapshot) {
	var endpoints v1alpha1.EndpointList
	r.list(ctx, &endpoints, client.InNamespace(v1alpha1.Namespace))
	for i := range endpoints.Items {
		s.Endpoints = append(s.Endpoints, &endpoints.Items[i])
	}
}

func (r *reader) slices(ctx context.Context, s *Snapshot, options ...client.ListOption) {
	var slices discoveryv1.EndpointSliceList
	r.list(ctx, &slices, options...)
	for i := range slices.Items {
		s.addSlice(&slices.Items[i])
	}
}

// service reads everything that a plan of one service needs.
func (r *reader) service(ctx context.Context, s *Snapshot, of scope) {
	derived := clusterset.DerivedName(of)
	if of.Name != "" {
		// Exports before Services, as in everything.
		if e := new(mcsv1beta1.ServiceExport); r.get(ctx, of, e) {
			s.Exports[of] = e
		}
		if i := new(mcsv1beta1.ServiceImport); r.get(ctx, of, i) {
			s.Imports[of] = i
		}
		for _, key := range []clusterset.Key{of, {Namespace: of.Namespace, Name: derived}, kubernetesService} {
			if service := new(corev1.Service); r.get(ctx, key, service) {
				s.Services[key] = service
			}
		}
	}
	for _, of := range [][2]string{{of.Namespace, ofService(of.Name)}, {of.Namespace, ofImport(of.Name)}, {of.Namespace, ofDerived(derived)}} {
		r.slices(ctx, s, client.InNamespace(of[0]), client.MatchingFields{indexSlices: of[1]})
	}
}
