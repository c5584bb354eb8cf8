package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// scope is what a round looks at: one service, or, where both its parts are empty, the gateways' Endpoints, which belong to no
// service. A plan of everything is the plans of all scopes, one beside the other: no object belongs to two.
//
// A scope with a namespace and no name holds slices of ours that somebody took the labels from.
type scope = clusterset.Key

// gateways is the scope of what belongs to no service.
var gateways scope

func nameOfScope(of scope) string {
	if of == gateways {
		return "gateways"
	}
	return fmt.Sprintf("service %s", of)
}

// indexSlices is the name of the index by which a round finds the slices of its scope.
const indexSlices = "fastnet.dev/scope"

// What the index holds: of a Service's own slices the name of the Service, of ours that of the import, and of those that only
// kube-proxy reads that of the derived Service.
func ofService(name string) string { return "service/" + name }
func ofImport(name string) string  { return "import/" + name }
func ofDerived(name string) string { return "derived/" + name }

func indexOfSlice(object client.Object) []string {
	labels := object.GetLabels()
	service := labels[discoveryv1.LabelServiceName]
	switch {
	case labels[discoveryv1.LabelManagedBy] != v1alpha1.ManagedBy && service == "":
		return nil
	case labels[discoveryv1.LabelManagedBy] != v1alpha1.ManagedBy:
		return []string{ofService(service)}
	case labels[v1alpha1.LabelServiceName] == "" && service != "":
		return []string{ofDerived(service)}
	}
	return []string{ofImport(labels[v1alpha1.LabelServiceName])}
}

// scopeOf is the scope that an object belongs to. It reports false for one that changes nothing for anybody.
func scopeOf(object client.Object) (scope, bool) {
	of := scope{Namespace: object.GetNamespace(), Name: object.GetName()}
	switch object := object.(type) {
	case *corev1.Service:
		if key, derived := derivedFor(object); derived {
			return key, true
		}
	case *discoveryv1.EndpointSlice:
		of.Name = object.Labels[discoveryv1.LabelServiceName]
		if object.Labels[discoveryv1.LabelManagedBy] == v1alpha1.ManagedBy {
			of.Name = object.Labels[v1alpha1.LabelServiceName]
			if of.Name == "" {
				of.Name = object.Annotations[annotationImport]
			}
			return of, true
		}
		return of, of.Name != ""
	case *v1alpha1.Endpoint:
		return gateways, true
	}
	return of, true
}

// scopes are all that there are.
func (a *Agent) scopes() []scope {
	all := sets.New(gateways)
	all.Insert(a.config.Records.Services()...)
	s, err := a.everything(context.Background())
	if err != nil {
		a.config.Log.Error("reading the caches failed", "error", err) // they are in memory: a kind that nobody watches
	}
	for key := range s.Exports {
		all.Insert(key)
	}
	for key, known := range s.Imports {
		if ours(known) {
			all.Insert(key)
		}
	}
	for key, service := range s.Services {
		if derived, is := derivedFor(service); is {
			all.Insert(derived)
		}
		if asksForExport(service) {
			all.Insert(key)
		}
	}
	for _, of := range s.OwnSlices {
		for _, slice := range of {
			key, _ := scopeOf(slice)
			all.Insert(key)
		}
	}
	return all.UnsortedList()
}

// Watch starts the watches of the agent's own cluster, and has every change poke what it belongs to. It is called once, before
// Run and before the cache starts. It fails where a kind is unknown to the scheme or to the API server.
func (a *Agent) Watch(ctx context.Context, objects cache.Cache) error {
	if err := objects.IndexField(ctx, &discoveryv1.EndpointSlice{}, indexSlices, indexOfSlice); err != nil {
		return fmt.Errorf("index EndpointSlices: %w", err)
	}
	for _, kind := range []client.Object{&corev1.Namespace{}, &corev1.Service{}, &discoveryv1.EndpointSlice{},
		&mcsv1beta1.ServiceExport{}, &mcsv1beta1.ServiceImport{}, &v1alpha1.Endpoint{}, &v1alpha1.Gateway{}} {
		informer, err := objects.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
		// The resync period 0 turns the informer's own off: the loops have timers.
		if _, err := informer.AddEventHandlerWithResyncPeriod(a.handler(), time.Duration(0)); err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	return nil
}

func (a *Agent) handler() toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    a.changed,
		UpdateFunc: func(before, after any) { a.changed(before); a.changed(after) }, // it may have changed hands
		DeleteFunc: func(object any) {
			if last, missed := object.(toolscache.DeletedFinalStateUnknown); missed {
				object = last.Obj
			}
			a.changed(object)
		},
	}
}

// changed pokes what a changed object of the agent's own cluster belongs to.
func (a *Agent) changed(object any) {
	switch object := object.(type) {
	case *v1alpha1.Gateway:
		if a.reach.observe(context.Background()) {
			a.Poke()
		}
	case *corev1.Namespace:
		var inside []scope
		for _, of := range a.scopes() {
			if of.Namespace == object.Name || of == gateways {
				inside = append(inside, of)
			}
		}
		a.poke(inside...)
	case *corev1.Service:
		if object.Namespace == kubernetesService.Namespace && object.Name == kubernetesService.Name {
			a.Poke()
		}
		a.pokeFor(object)
	case client.Object:
		a.pokeFor(object)
	}
}

// pokeFor asks for a round of what an object of the agent's own cluster belongs to. What was imported says nothing about
// exports: the agent writes it itself, so that half of all events would lead to a round of the other loop for nothing.
func (a *Agent) pokeFor(object client.Object) {
	of, ok := scopeOf(object)
	switch {
	case !ok:
	case imported(object):
		a.importer.Poke(of)
	default:
		a.poke(of)
	}
}

// imported says whether an object is of those that import makes.
func imported(object client.Object) bool {
	switch object := object.(type) {
	case *corev1.Service:
		_, derived := derivedFor(object)
		return derived
	case *discoveryv1.EndpointSlice:
		return object.Labels[discoveryv1.LabelManagedBy] == v1alpha1.ManagedBy
	case *mcsv1beta1.ServiceImport:
		return true
	}
	return false
}

// BrokerChanged pokes what a change on the broker belongs to.
func (a *Agent) BrokerChanged(change broker.Change) {
	switch {
	case change.All:
		a.tellOfSilence()
		a.Poke()
	case change.Gateways:
		a.poke(gateways)
	case change.Theirs:
		a.importer.Poke(change.Service)
	default:
		a.poke(change.Service)
	}
}

// tellOfSilence logs whose records have ceased to count, and whose count again.
func (a *Agent) tellOfSilence() {
	silent := a.config.Records.Gateways().Expired
	a.mu.Lock()
	before := a.silent
	a.silent = silent
	a.mu.Unlock()
	for _, cluster := range silent {
		if !slices.Contains(before, cluster) {
			a.config.Log.Warn("a member has been silent for too long: its services and its tunnels are taken away", "cluster", cluster)
		}
	}
	for _, cluster := range before {
		if !slices.Contains(silent, cluster) {
			a.config.Log.Info("a member is no longer silent", "cluster", cluster)
		}
	}
}
