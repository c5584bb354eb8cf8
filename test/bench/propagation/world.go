package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/test/bench/ground"
)

const (
	namespaces = 50
	// ready is how many backends of a service are ready; one more is about to be.
	ready = 10
	// writers is how many requests for the setup are under way at once.
	writers = 16
)

// service is a Service of the source cluster with its EndpointSlice. Every second one is headless, and of each kind every
// second one is IPv6.
type service struct {
	namespace, name string
	headless        bool
	family          corev1.IPFamily

	mu       sync.Mutex // a slice has one writer
	backends []netip.Addr
}

// world makes services, and addresses that no backend had before: an answer that holds one is new for sure.
type world struct {
	services []*service // exported all the time
	spare    []*service // not exported, until it is measured how long that takes
	mu       sync.Mutex
	next     uint32
}

func newWorld(count, spare int) *world {
	w := &world{}
	for i := range count + spare {
		s := &service{namespace: fmt.Sprintf("team-%02d", i%namespaces), name: fmt.Sprintf("service-%05d", i), headless: i%2 == 0, family: corev1.IPv4Protocol}
		if i/2%2 == 1 {
			s.family = corev1.IPv6Protocol
		}
		for range ready + 1 {
			s.backends = append(s.backends, w.address(s.family))
		}
		if i < count {
			w.services = append(w.services, s)
		} else {
			w.spare = append(w.spare, s)
		}
	}
	return w
}

// headless are the services whose backends DNS shows.
func (w *world) headless() []*service {
	return slices.DeleteFunc(slices.Clone(w.services), func(s *service) bool { return !s.headless })
}

func (w *world) address(family corev1.IPFamily) netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	if family == corev1.IPv6Protocol {
		a := netip.MustParseAddr("fd00:128::").As16()
		binary.BigEndian.PutUint32(a[12:], w.next)
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, 128 | byte(w.next>>16), byte(w.next >> 8), byte(w.next)})
}

// question is what a client of the other cluster asks.
func (s *service) question() *dns.Msg {
	m := new(dns.Msg)
	qtype := dns.TypeA
	if s.family == corev1.IPv6Protocol {
		qtype = dns.TypeAAAA
	}
	m.SetQuestion(s.name+"."+s.namespace+".svc.clusterset.local.", qtype)
	m.SetEdns0(4096, false)
	return m
}

func (s *service) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: s.namespace, Name: s.name}
}

func (s *service) object() *corev1.Service {
	object := &corev1.Service{ObjectMeta: s.meta(), Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": s.name}, IPFamilies: []corev1.IPFamily{s.family},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}},
	}}
	if s.headless {
		object.Spec.ClusterIP = corev1.ClusterIPNone
	}
	return object
}

// slice is the service's EndpointSlice as Kubernetes' own controller writes it. The last of the backends is not ready yet.
func (s *service) slice(changed time.Time) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, Name: s.name + "-x7k2p",
			Labels: map[string]string{
				discoveryv1.LabelServiceName: s.name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
			},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: changed.UTC().Format(time.RFC3339Nano)},
		},
		AddressType: discoveryv1.AddressType(s.family),
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(8080))}},
	}
	if s.headless {
		slice.Labels[corev1.IsHeadlessService] = ""
	}
	for i, backend := range s.backends {
		isReady := i < len(s.backends)-1
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{backend.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(isReady), Serving: new(isReady), Terminating: new(false)},
			NodeName:   new("worker-1"), Zone: new("zone-a"),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: s.namespace, Name: s.name + "-" + backend.String()},
		})
	}
	return slice
}

func (s *service) export() *mcsv1beta1.ServiceExport {
	return &mcsv1beta1.ServiceExport{ObjectMeta: s.meta()}
}

// makeReady makes the backend ready that was not, as happens in a rolling update: the oldest one leaves, and a new one comes
// that is not ready yet. It returns when the API server has acknowledged that; sending is called with the address just before.
func (w *world) makeReady(ctx context.Context, api client.Client, s *service, sending func(netip.Addr)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	address := s.backends[len(s.backends)-1]
	s.backends = append(s.backends[1:], w.address(s.family))
	object := s.slice(time.Now())
	sending(address)
	return api.Update(ctx, object)
}

// each does something for every service, several at once.
func each(ctx context.Context, services []*service, do func(context.Context, *service) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for _, s := range services {
		group.Go(func() error { return do(ctx, s) })
	}
	return group.Wait()
}

// create writes the namespaces to both clusters, and to the source cluster the services, most of them exported.
func (w *world) create(ctx context.Context, source, target client.Client) error {
	defer ground.Progress("creating %d services, %d of them exported", len(w.services)+len(w.spare), len(w.services))()
	for i := range namespaces {
		for _, api := range []client.Client{source, target} {
			if err := api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%02d", i)}}); err != nil {
				return err
			}
		}
	}
	err := each(ctx, append(slices.Clone(w.services), w.spare...), func(ctx context.Context, s *service) error {
		if err := source.Create(ctx, s.object()); err != nil {
			return err
		}
		return source.Create(ctx, s.slice(time.Now()))
	})
	if err != nil {
		return err
	}
	return each(ctx, w.services, func(ctx context.Context, s *service) error { return source.Create(ctx, s.export()) })
}
