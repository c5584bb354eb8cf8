package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/test/bench/ground"
)

// bare is the name of the cluster that gets what the agent wrote from a client that thinks nothing.
const bare = "bare"

// workers is how many writes an agent has under way at a time.
const workers = 8

// bareJoin writes what the agent has written to another, empty cluster, with as many workers and no agent. What is left of the time
// is the API server's: no agent could be faster on this machine by writing less than nothing of it.
func (b *bench) bareJoin(g *ground.Ground) error {
	imported := &imports{}
	if err := imported.read(b.ctx, b.cluster); err != nil {
		return err
	}
	clusters, err := g.Clusters(map[string]string{bare: "10.96.0.0/16,fd00:96::/112"})
	if err != nil {
		return err
	}
	cluster := clusters[bare]
	defer cluster.StopAPI()
	file, err := b.broker.Invite(b.ctx, bare)
	if err != nil {
		return err
	}
	if err := cluster.Join(b.ctx, file, "10.64.0.0/16", "fd00:64::/64", "10.96.0.0/16", "fd00:96::/112"); err != nil {
		return err
	}
	if err := makeNamespaces(b.ctx, cluster); err != nil {
		return err
	}
	defer ground.Progress("a client without an agent writes the same")()
	before, err := ground.CPU()
	if err != nil {
		return err
	}
	start := time.Now()
	writes, err := imported.write(b.ctx, cluster)
	if err != nil {
		return err
	}
	took := time.Since(start)
	after, err := ground.CPU()
	if err != nil {
		return err
	}
	b.report.Set("join.vs-bare", b.joined.Seconds()/took.Seconds(), "join-s against the time in which a plain client with %d workers makes the same objects with the same %d writes in another cluster: %.1f s; processor s meanwhile: API servers %.1f, etcds %.1f",
		workers, writes, took.Seconds(), (after["kube-apiserver"] - before["kube-apiserver"]).Seconds(), (after["etcd"] - before["etcd"]).Seconds())
	return nil
}

// imports is what an agent has written into its cluster.
type imports struct {
	services map[client.ObjectKey]*corev1.Service
	slices   map[client.ObjectKey][]*discoveryv1.EndpointSlice
	imports  []mcsv1beta1.ServiceImport
}

func (i *imports) read(ctx context.Context, from client.Reader) error {
	var services corev1.ServiceList
	var all discoveryv1.EndpointSliceList
	var imported mcsv1beta1.ServiceImportList
	if err := from.List(ctx, &services); err != nil {
		return err
	}
	if err := from.List(ctx, &all, client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
		return err
	}
	if err := from.List(ctx, &imported); err != nil {
		return err
	}
	i.imports = imported.Items
	i.services = map[client.ObjectKey]*corev1.Service{}
	for n := range services.Items {
		s := &services.Items[n]
		i.services[client.ObjectKeyFromObject(s)] = s
	}
	i.slices = map[client.ObjectKey][]*discoveryv1.EndpointSlice{}
	for n := range all.Items {
		s := &all.Items[n]
		key := client.ObjectKey{Namespace: s.Namespace, Name: s.Labels[v1alpha1.LabelServiceName]}
		i.slices[key] = append(i.slices[key], s)
	}
	return nil
}

// write makes it all anew, in the order in which an agent does, and says with how many writes.
func (i *imports) write(ctx context.Context, to client.Client) (writes int, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for n := range i.imports {
		imported := &i.imports[n]
		derived := i.services[client.ObjectKey{Namespace: imported.Namespace, Name: imported.Annotations[v1alpha1.AnnotationDerivedService]}]
		own := i.slices[client.ObjectKeyFromObject(imported)]
		writes += len(own) + 2
		if derived != nil {
			writes++
		}
		group.Go(func() error {
			if derived != nil {
				if err := to.Create(ctx, anew(derived)); err != nil {
					return err
				}
			}
			for _, slice := range own {
				if err := to.Create(ctx, anew(slice)); err != nil {
					return err
				}
			}
			made := anew(imported)
			if err := to.Create(ctx, made); err != nil {
				return err
			}
			made.Status = imported.Status
			return to.Status().Update(ctx, made)
		})
	}
	return writes, group.Wait()
}

// anew is an object as it was before it was written.
func anew[T client.Object](object T) T {
	made := object.DeepCopyObject().(T)
	made.SetResourceVersion("")
	made.SetUID("")
	made.SetManagedFields(nil)
	made.SetCreationTimestamp(metav1.Time{})
	return made
}

func makeNamespaces(ctx context.Context, in client.Client) error {
	for i := range namespaces {
		if err := in.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%02d", i)}}); err != nil {
			return err
		}
	}
	return nil
}

// bareHerd has as many plain clients as there are members list what is on the broker, once and all at once, after its API server was
// started anew: what every member has to ask that cannot know whether the broker was restored.
func (b *bench) bareHerd() error {
	b.endMembers()
	b.agent.Stop()
	config, _, err := broker.Config(b.joinFile, "bench")
	if err != nil {
		return err
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	b.broker.StopAPI()
	if err := b.broker.StartAPI(); err != nil {
		return err
	}
	defer ground.Progress("%d plain clients list all", len(b.members)+1)()
	before, err := ground.CPU()
	if err != nil {
		return err
	}
	start := time.Now()
	group, ctx := errgroup.WithContext(b.ctx)
	for range len(b.members) + 1 {
		group.Go(func() error {
			c, err := client.New(config, client.Options{Scheme: scheme, Mapper: b.broker.RESTMapper()})
			if err != nil {
				return err
			}
			for _, list := range []client.ObjectList{&v1alpha1.ClusterSetList{}, &v1alpha1.ExportedServiceList{}, &v1alpha1.ExportedEndpointsList{}, &v1alpha1.EndpointList{}} {
				if err := c.List(ctx, list); err != nil {
					return err
				}
			}
			return c.List(ctx, &coordinationv1.LeaseList{}, client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector(metav1.ObjectNameField, v1alpha1.LeaseName)})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	took := time.Since(start)
	after, err := ground.CPU()
	if err != nil {
		return err
	}
	self := filepath.Base(selfName)
	b.report.Set("herd.vs-bare", b.herded.Seconds()/took.Seconds(), "herd-s against the time in which as many plain clients list all records once, after the same restart: %.1f s; processor s meanwhile: API servers %.1f, the clients %.1f",
		took.Seconds(), (after["kube-apiserver"] - before["kube-apiserver"]).Seconds(), (after[self] - before[self]).Seconds())
	return nil
}
