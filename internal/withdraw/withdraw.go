// Package withdraw takes away what Fastnet's daemons wrote into API servers, when a cluster leaves its clusterset: imported
// services in the cluster itself, its records on the broker. `kubectl fastnet leave` and the hook of `helm uninstall` share it.
//
//	StopDaemons    first: what runs would write anew what is taken away
//	RemoveImports  in the cluster: everything of ours, known by its labels, and nothing else
//	RemoveRecords  on the broker: everything in this member's namespace
//
// It asks no API server for the kinds that it knows, and waits for none longer than the context allows. It speaks of kinds that
// the API server does not have as of kinds without objects: half an installation must go away as well.
package withdraw

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

const (
	// requestTimeout bounds one request: what does not answer by then is asked again, or given up.
	requestTimeout = 5 * time.Second
	// workers delete side by side. One after the other, the objects of some thousand services would take a minute.
	workers = 16
	// look is how often it is looked whether pods are gone, and how long a server that refused is left alone.
	look = 250 * time.Millisecond
)

// mcs are the versions of the Multi-Cluster Services API, the one that is asked for first in front. Every object is in each.
var mcs = []schema.GroupVersion{
	{Group: "multicluster.x-k8s.io", Version: "v1beta1"},
	{Group: "multicluster.x-k8s.io", Version: "v1alpha1"},
}

var (
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	daemonSets  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	services    = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	slices      = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
	leases      = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	endpoints   = v1alpha1.GroupVersion.WithResource("endpoints")
	gateways    = v1alpha1.GroupVersion.WithResource("gateways")
)

// daemons are what writes, and what runs it, in the namespace fastnet-system. Their pods bear the name as a label.
var daemons = []struct {
	name string
	by   schema.GroupVersionResource
}{
	{"fastnet-agent", deployments}, {"fastnet-gateway", daemonSets}, {"fastnet-routeagent", daemonSets},
}

// Labels by which objects are known as ours.
const (
	byUs      = "app.kubernetes.io/managed-by=" + v1alpha1.ManagedBy
	sliceByUs = discoveryv1.LabelManagedBy + "=" + v1alpha1.ManagedBy
	podName   = "app.kubernetes.io/name"
)

// Server is one API server, the cluster's own or the broker.
type Server struct {
	objects metadata.Interface
	host    string
}

// New is the server of a client configuration. It does no I/O yet.
func New(config *rest.Config) (*Server, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.Timeout = requestTimeout
	config.WarningHandler = rest.NoWarnings{}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	return &Server{objects, config.Host}, nil
}

// StopDaemons deletes what runs, and waits until the pods are gone, as long as the context lasts. Note is told what is waited for.
// The daemons go while they have their rights: a gateway or route agent takes what it set up off its node when it sees that its
// DaemonSet is gone. A pod that does not go, on a node that hangs say, is in the error.
func (s *Server) StopDaemons(ctx context.Context, note func(string)) error {
	err := again(ctx, func() error {
		var failed []error
		for _, d := range daemons {
			background := metav1.DeletePropagationBackground
			err := s.objects.Resource(d.by).Namespace(v1alpha1.Namespace).Delete(ctx, d.name, metav1.DeleteOptions{PropagationPolicy: &background})
			if err != nil && !apierrors.IsNotFound(err) {
				failed = append(failed, fmt.Errorf("delete %s: %w", d.name, err))
			}
		}
		return errors.Join(failed...)
	})
	if err != nil {
		return err
	}
	var names []string
	for _, d := range daemons {
		names = append(names, d.name)
	}
	running := metav1.ListOptions{LabelSelector: podName + " in (" + strings.Join(names, ",") + ")"}
	left := ""
	for {
		list, err := s.objects.Resource(pods).Namespace(v1alpha1.Namespace).List(ctx, running)
		switch {
		case err == nil && len(list.Items) == 0, apierrors.IsNotFound(err):
			return nil
		case err == nil:
			var still []string
			for _, pod := range list.Items {
				still = append(still, pod.Name)
			}
			left = fmt.Sprintf("%d pods still stopping: %s", len(still), strings.Join(still, ", "))
			note(left)
		case !mayPass(err):
			return fmt.Errorf("list pods: %w", err)
		case ctx.Err() == nil:
			left = err.Error()
		}
		if !pause(ctx) {
			return errors.New(left)
		}
	}
}

// RemoveImports takes away what the daemons wrote into the cluster, and their word on the exports of users, which stay.
func (s *Server) RemoveImports(ctx context.Context) error {
	return again(ctx, func() error {
		api, err := s.servedMCS(ctx)
		if err != nil {
			return err
		}
		exports, imports := api.WithResource("serviceexports"), api.WithResource("serviceimports")
		return errors.Join(
			// What announces an address goes before what is behind it.
			s.deleteAll(ctx, imports, "", byUs),
			// Those of Services that ask for it by annotation. Users' own stay, and nobody is left to say that they are ready.
			s.deleteAll(ctx, exports, "", byUs+","+v1alpha1.LabelGlobal),
			s.forget(ctx, exports),
			s.deleteAll(ctx, slices, "", sliceByUs),
			// The second label as well: the first is one that people put on Services of their own.
			s.deleteAll(ctx, services, "", byUs+","+v1alpha1.LabelServiceName),
			s.deleteAll(ctx, endpoints, v1alpha1.Namespace, ""),
			s.deleteAll(ctx, gateways, v1alpha1.Namespace, ""),
		)
	})
}

// RemoveRecords deletes what this member wrote on the broker, with the member's own rights, in its namespace there. A broker that
// no longer takes these credentials has removed the member, and its records with it.
func (s *Server) RemoveRecords(ctx context.Context, namespace string) error {
	err := again(ctx, func() error {
		var failed []error
		for _, resource := range []string{"exportedservices", "exportedendpoints", "endpoints"} {
			failed = append(failed, s.deleteAll(ctx, v1alpha1.GroupVersion.WithResource(resource), namespace, ""))
		}
		// The word that it is there goes last: a broker of before has given no right to take it back, and it runs out by itself.
		if err := errors.Join(failed...); err != nil {
			return err
		}
		err := s.objects.Resource(leases).Namespace(namespace).Delete(ctx, v1alpha1.LeaseName, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
			return nil
		}
		return err
	})
	switch {
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return nil
	case err != nil:
		return fmt.Errorf("the records on the broker at %s stay: %w", s.host, err)
	}
	return nil
}

// servedMCS is a version of the Multi-Cluster Services API that the server has, or any where it has none.
func (s *Server) servedMCS(ctx context.Context) (schema.GroupVersion, error) {
	for _, version := range mcs {
		_, err := s.objects.Resource(version.WithResource("serviceexports")).List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			return version, nil
		}
		if !apierrors.IsNotFound(err) {
			return version, fmt.Errorf("list ServiceExports: %w", err)
		}
	}
	return mcs[0], nil
}

// deleteAll deletes every object of a kind that the labels select, in a namespace or, where it is empty, in all. They go one by
// one: not every API server deletes collections of Services.
func (s *Server) deleteAll(ctx context.Context, kind schema.GroupVersionResource, namespace, labels string) error {
	return s.each(ctx, kind, namespace, labels, "delete", func(ctx context.Context, object *metav1.PartialObjectMetadata) error {
		uid := object.UID
		return s.objects.Resource(kind).Namespace(object.Namespace).Delete(ctx, object.Name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	})
}

// forget takes the conditions off the ServiceExports.
func (s *Server) forget(ctx context.Context, exports schema.GroupVersionResource) error {
	return s.each(ctx, exports, "", "", "clear the status of", func(ctx context.Context, object *metav1.PartialObjectMetadata) error {
		_, err := s.objects.Resource(exports).Namespace(object.Namespace).Patch(ctx, object.Name, types.MergePatchType,
			[]byte(`{"status":{"conditions":null}}`), metav1.PatchOptions{}, "status")
		return err
	})
}

// each does something to every object of a kind that is not on its way out. One that is gone meanwhile, or another one by now, is
// none of ours any more.
func (s *Server) each(ctx context.Context, kind schema.GroupVersionResource, namespace, labels, verb string, do func(context.Context, *metav1.PartialObjectMetadata) error) error {
	list, err := s.objects.Resource(kind).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", kind.Resource, err)
	}
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range list.Items {
		object := &list.Items[i]
		if object.DeletionTimestamp != nil {
			continue
		}
		group.Go(func() error {
			err := do(ctx, object)
			if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
				return nil
			}
			return fmt.Errorf("%s %s %s/%s: %w", verb, kind.Resource, object.Namespace, object.Name, err)
		})
	}
	return group.Wait()
}

// again does something until it succeeds, it fails for a reason that stays, or the context ends.
func again(ctx context.Context, do func() error) error {
	var last error
	for {
		err := do()
		if err == nil || ctx.Err() == nil && !mayPass(err) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err // one that says more than that time is up
		}
		if !pause(ctx) {
			return last
		}
	}
}

// pause waits a little. It reports false where the context has ended.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(look)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// mayPass says whether an error is one that another attempt may not meet: no answer, or one of an API server that is busy.
func mayPass(err error) bool {
	if network := net.Error(nil); errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	return apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
