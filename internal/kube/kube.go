// Package kube is how Fastnet's daemons reach an API server: one scheme with every kind they read or write, one way to a
// client configuration, and caches that poke a loop.
package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Scheme knows the core kinds, EndpointSlices, Leases, the Multi-Cluster Services API (v1beta1) and Fastnet's own. It fails only
// where two of those claim one name, which no released combination does.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, coordinationv1.AddToScheme, discoveryv1.AddToScheme, mcsv1beta1.Install, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build scheme: %w", err)
		}
	}
	return scheme, nil
}

// Mapper knows the kinds that the daemons on nodes ask for. With it they need no API server to tell them what there is: theirs
// may be away when they start.
func Mapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	add := func(group schema.GroupVersion, kind, plural string, scope meta.RESTScope) {
		for _, kind := range []string{kind, kind + "List"} { // who lists asks by the list's kind
			mapper.AddSpecific(group.WithKind(kind), group.WithResource(plural), group.WithResource(strings.ToLower(kind)), scope)
		}
	}
	add(corev1.SchemeGroupVersion, "Node", "nodes", meta.RESTScopeRoot)
	add(corev1.SchemeGroupVersion, "Namespace", "namespaces", meta.RESTScopeRoot)
	add(corev1.SchemeGroupVersion, "Service", "services", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "Endpoint", "endpoints", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "Gateway", "gateways", meta.RESTScopeNamespace)
	return mapper
}

// Config is the client configuration from a kubeconfig file, or, where the path is empty, from the pod's service account.
// The client-side rate limiter is off: the API server's own fairness is the better judge, and a limiter between an event
// and its effect is a delay that nobody asked for.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("client configuration: %w", err)
	}
	config.UserAgent = userAgent
	config.QPS = -1
	return config, nil
}

// PokeOn calls poke for every change of the objects' kinds that the cache sees. Their watches begin with the
// cache, or at once where it runs. It fails where a kind is unknown to the scheme or to the mapper, and once the cache has stopped.
func PokeOn(ctx context.Context, objects cache.Cache, poke func(), kinds ...client.Object) error {
	handler := toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { poke() },
		UpdateFunc: func(any, any) { poke() },
		DeleteFunc: func(any) { poke() },
	}
	for _, kind := range kinds {
		informer, err := objects.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
		// The resync period 0 turns the informer's own off: the loop has a timer.
		if _, err := informer.AddEventHandlerWithResyncPeriod(handler, time.Duration(0)); err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	return nil
}
