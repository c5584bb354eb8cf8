// Package broker is the agent's way to its two API servers: its own cluster's, and the broker's, which may be away for as
// long as it likes. Reads come from watches; writes go straight through.
package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

// Config reads the kubeconfig of a broker. The namespace of its current context is the one that this member writes in.
func Config(kubeconfig, userAgent string) (config *rest.Config, namespace string, err error) {
	loaded := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}, &clientcmd.ConfigOverrides{})
	if config, err = loaded.ClientConfig(); err != nil {
		return nil, "", fmt.Errorf("broker kubeconfig: %w", err)
	}
	raw, err := loaded.RawConfig()
	if err != nil {
		return nil, "", fmt.Errorf("broker kubeconfig: %w", err)
	}
	if current := raw.Contexts[raw.CurrentContext]; current != nil {
		namespace = current.Namespace
	}
	if namespace == "" {
		// "default" would be the answer of kubectl; here it would mean that a member writes where it does not belong.
		return nil, "", fmt.Errorf("broker kubeconfig %s: the current context names no namespace", kubeconfig)
	}
	config.UserAgent = userAgent
	config.QPS = -1
	return config, namespace, nil
}

// mapper knows the kinds that the agent uses, so that nothing has to be asked of an API server that may be away.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	add := func(gv schema.GroupVersion, kind, singular, plural string, scope meta.RESTScope) {
		m.AddSpecific(gv.WithKind(kind), gv.WithResource(plural), gv.WithResource(singular), scope)
	}
	add(v1alpha1.GroupVersion, "ClusterSet", "clusterset", "clustersets", meta.RESTScopeRoot)
	add(v1alpha1.GroupVersion, "ExportedService", "exportedservice", "exportedservices", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "ExportedEndpoints", "exportedendpoints", "exportedendpoints", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "Endpoint", "endpoint", "endpoints", meta.RESTScopeNamespace)
	add(v1alpha1.GroupVersion, "Gateway", "gateway", "gateways", meta.RESTScopeNamespace)
	add(corev1.SchemeGroupVersion, "Namespace", "namespace", "namespaces", meta.RESTScopeRoot)
	add(corev1.SchemeGroupVersion, "Service", "service", "services", meta.RESTScopeNamespace)
	add(corev1.SchemeGroupVersion, "Event", "event", "events", meta.RESTScopeNamespace)
	add(discoveryv1.SchemeGroupVersion, "EndpointSlice", "endpointslice", "endpointslices", meta.RESTScopeNamespace)
	add(schema.GroupVersion(mcsv1beta1.GroupVersion), "ServiceExport", "serviceexport", "serviceexports", meta.RESTScopeNamespace)
	add(schema.GroupVersion(mcsv1beta1.GroupVersion), "ServiceImport", "serviceimport", "serviceimports", meta.RESTScopeNamespace)
	return kinds{m}
}

// kinds maps the list kinds too, by which a cache of one namespace asks.
type kinds struct{ *meta.DefaultRESTMapper }

func (k kinds) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	kind.Kind = strings.TrimSuffix(kind.Kind, "List")
	return k.DefaultRESTMapper.RESTMapping(kind, versions...)
}

// Local makes the cache and the writing client of the agent's own cluster.
func Local(config *rest.Config, scheme *runtime.Scheme) (cache.Cache, client.WithWatch, error) {
	own := cache.ByObject{Namespaces: map[string]cache.Config{v1alpha1.Namespace: {}}}
	objects, err := cache.New(config, cache.Options{
		Scheme: scheme, Mapper: mapper(), DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{&v1alpha1.Endpoint{}: own, &v1alpha1.Gateway{}: own},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("cache of the local cluster: %w", err)
	}
	writer, err := client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper()})
	if err != nil {
		return nil, nil, fmt.Errorf("client of the local cluster: %w", err)
	}
	return objects, writer, nil
}

// Broker is a connection to the broker. Make it with New; it does nothing until Run.
type Broker struct {
	// Writer writes to the broker, past the watches.
	Writer client.Client

	records   *Records
	cache     cache.Cache
	poke      func()
	handlers  []toolscache.ResourceEventHandlerRegistration
	synced    atomic.Bool
	connected atomic.Bool
}

// Times of a connection.
const (
	// HoldFor is how long an object that vanished while nobody watched is held: time for its owner's agent to notice, to
	// come back from a restart if need be, and to write it again.
	HoldFor = 2 * time.Minute
	// probeEvery and probeTimeout bound how late a change of the connection is noticed.
	probeEvery   = 5 * time.Second
	probeTimeout = 5 * time.Second
)

// New makes a connection. Poke is called on every change of what View says.
func New(config *rest.Config, namespace string, scheme *runtime.Scheme, poke func()) (*Broker, error) {
	objects, err := cache.New(config, cache.Options{Scheme: scheme, Mapper: mapper(), DefaultTransform: cache.TransformStripManagedFields()})
	if err != nil {
		return nil, fmt.Errorf("cache of the broker: %w", err)
	}
	writer, err := client.New(config, client.Options{Scheme: scheme, Mapper: mapper()})
	if err != nil {
		return nil, fmt.Errorf("client of the broker: %w", err)
	}
	return &Broker{Writer: writer, records: NewRecords(namespace, HoldFor, time.Now), cache: objects, poke: poke}, nil
}

// Run watches the broker until the context ends, however often the broker goes away and comes back.
func (b *Broker) Run(ctx context.Context) error {
	for _, kind := range []client.Object{&v1alpha1.ClusterSet{}, &v1alpha1.ExportedService{}, &v1alpha1.ExportedEndpoints{}, &v1alpha1.Endpoint{}} {
		informer, err := b.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T on the broker: %w", kind, err)
		}
		handler, err := informer.AddEventHandler(poking{b.records, b.poke})
		if err != nil {
			return fmt.Errorf("watch %T on the broker: %w", kind, err)
		}
		b.handlers = append(b.handlers, handler)
	}
	go b.probe(ctx)
	go b.waitForSync(ctx)
	return b.cache.Start(ctx)
}

// waitForSync sets synced when every handler has seen every object of the first lists.
func (b *Broker) waitForSync(ctx context.Context) {
	for _, handler := range b.handlers {
		if !toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
			return
		}
	}
	b.synced.Store(true)
	b.poke()
}

func (b *Broker) probe(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		b.probeOnce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (b *Broker) probeOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := b.Writer.Get(ctx, client.ObjectKey{Name: v1alpha1.ClusterSetName}, &v1alpha1.ClusterSet{})
	answered := err == nil || apierrors.IsNotFound(err)
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	if b.connected.Swap(answered) != answered {
		b.poke()
	}
}

// View is what the broker holds, as far as this process knows.
func (b *Broker) View() View {
	view := b.records.View()
	view.Synced = b.synced.Load()
	return view
}

// Connected says whether the broker answered the last probe.
func (b *Broker) Connected() bool { return b.connected.Load() }

// poking pokes after the records have taken each event.
type poking struct {
	*Records
	poke func()
}

func (p poking) OnAdd(object any, initial bool) { p.Records.OnAdd(object, initial); p.poke() }
func (p poking) OnUpdate(old, object any)       { p.Records.OnUpdate(old, object); p.poke() }
func (p poking) OnDelete(object any)            { p.Records.OnDelete(object); p.poke() }
