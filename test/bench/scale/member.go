package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/agent"
	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/broker"
	"github.com/fastnet-io/fastnet/internal/clusterset"
	"github.com/fastnet-io/fastnet/internal/kube"
)

// service is one that a member exports, from a cluster that is not there. Every fourth one is headless, and every second one IPv6.
type service struct {
	namespace, name string
	headless        bool
	family          corev1.IPFamily
	address         netip.Addr // its cluster IP
	backends        []netip.Addr
}

func (s *service) key() types.NamespacedName {
	return types.NamespacedName{Namespace: s.namespace, Name: s.name}
}

// world is what the members export, member by member.
type world struct {
	size    int // backends of a service
	members [][]*service
	next    uint32
}

const namespaces = 50

func newWorld(members, services, size int) *world {
	w := &world{size: size, members: make([][]*service, members)}
	for i := range services {
		n := i / members // of this member
		s := &service{namespace: fmt.Sprintf("team-%02d", i%namespaces), name: fmt.Sprintf("service-%05d", i), headless: n%4 == 3, family: corev1.IPv4Protocol}
		if n%2 == 1 {
			s.family = corev1.IPv6Protocol
		}
		s.address = w.new(s.family)
		for range size {
			s.backends = append(s.backends, w.new(s.family))
		}
		w.members[i%members] = append(w.members[i%members], s)
	}
	return w
}

// new is an address that nobody had before.
func (w *world) new(family corev1.IPFamily) netip.Addr {
	w.next++
	if family == corev1.IPv6Protocol {
		a := netip.MustParseAddr("fd00:128::").As16()
		binary.BigEndian.PutUint32(a[12:], w.next)
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, 128 | byte(w.next>>16), byte(w.next >> 8), byte(w.next)})
}

// member is one that exports and listens as an agent does: its connection, its Lease, and what it takes for true are the agent's
// own (internal/broker), and so is what its records hold (agent.BuildPlan). It has no cluster to import into.
type member struct {
	*broker.Broker
	name, namespace string
	services        []*service

	changed chan struct{}
	mu      sync.Mutex
	dirty   map[*service]bool // not written as they are yet
}

func newMember(name, joinFile string, services []*service) (*member, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	config, namespace, err := broker.Config(joinFile, "fastnet-agent")
	if err != nil {
		return nil, err
	}
	m := &member{name: name, namespace: namespace, services: services, changed: make(chan struct{}, 1), dirty: map[*service]bool{}}
	m.change(services...)
	m.Broker, err = broker.New(config, namespace, scheme, func(broker.Change) { m.poke() })
	if err != nil {
		return nil, err
	}
	m.Settled = func(time.Time) bool { return m.done() }
	return m, nil
}

func (m *member) poke() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// change has the member write services anew.
func (m *member) change(services ...*service) {
	m.mu.Lock()
	for _, s := range services {
		m.dirty[s] = true
	}
	m.mu.Unlock()
	m.poke()
}

// done says whether all is written.
func (m *member) done() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.dirty) == 0
}

// run is the life of a member: it listens, and writes what changed, as soon as the broker answers.
func (m *member) run(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { m.Broker.Run(ctx) })
	for {
		err := m.write(ctx)
		var again <-chan time.Time
		if err != nil {
			again = time.After(100 * time.Millisecond) // as an agent that failed
		}
		select {
		case <-ctx.Done():
			return
		case <-m.changed:
		case <-again:
		}
	}
}

// write writes what changed, some at once, as the workers of an agent do.
func (m *member) write(ctx context.Context) error {
	m.mu.Lock()
	todo := make([]*service, 0, len(m.dirty))
	for s := range m.dirty {
		todo = append(todo, s)
	}
	m.mu.Unlock()
	if len(todo) == 0 || !m.Connected() || !m.Gateways().Synced {
		return nil
	}
	var group errgroup.Group
	group.SetLimit(8)
	for _, s := range todo {
		group.Go(func() error {
			if err := m.publish(ctx, s); err != nil {
				return err
			}
			m.mu.Lock()
			delete(m.dirty, s)
			m.mu.Unlock()
			return nil
		})
	}
	return group.Wait()
}

// publish writes the records of one service, where they differ from what the broker has.
func (m *member) publish(ctx context.Context, s *service) error {
	view := m.Service(s.key())
	plan := agent.BuildPlan(m.snapshot(s, view))
	if len(plan.ExportedServices) == 0 {
		return fmt.Errorf("%s cannot export %s: %s", m.name, s.key(), fmt.Sprint(plan.Exports))
	}
	have := map[string]client.Object{}
	for _, record := range view.Services {
		have["service/"+record.Name] = record
	}
	for _, record := range view.Endpoints {
		have["endpoints/"+record.Name] = record
	}
	var problems []error
	for _, record := range plan.ExportedEndpoints {
		problems = append(problems, m.put(ctx, have["endpoints/"+record.Name], record))
	}
	for _, record := range plan.ExportedServices {
		if have["service/"+record.Name] == nil {
			problems = append(problems, m.put(ctx, nil, record))
		}
	}
	return errors.Join(problems...)
}

func (m *member) put(ctx context.Context, have, want client.Object) error {
	version := ""
	if have != nil {
		version = have.GetAnnotations()[v1alpha1.AnnotationVersion]
		want.SetResourceVersion(have.GetResourceVersion())
	}
	annotations := map[string]string{v1alpha1.AnnotationVersion: broker.NextVersion(version, time.Now())}
	for key, value := range want.GetAnnotations() {
		annotations[key] = value
	}
	want.SetAnnotations(annotations)
	if have == nil {
		return m.Writer.Create(ctx, want)
	}
	return m.Writer.Update(ctx, want)
}

// snapshot is what the agent of a cluster with that service alone would see.
func (m *member) snapshot(s *service, view broker.View) *agent.Snapshot {
	key := s.key()
	meta := metav1.ObjectMeta{Namespace: s.namespace, Name: s.name, CreationTimestamp: metav1.Unix(1_750_000_000, 0)}
	spec := corev1.ServiceSpec{
		ClusterIP: s.address.String(), ClusterIPs: []string{s.address.String()}, IPFamilies: []corev1.IPFamily{s.family},
		SessionAffinity: corev1.ServiceAffinityNone,
		Ports:           []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
	}
	if s.headless {
		spec.ClusterIP, spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, Name: s.name + "-x7k2p", Labels: map[string]string{discoveryv1.LabelServiceName: s.name},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)},
		},
		AddressType: discoveryv1.AddressType(s.family),
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(8080))}},
	}
	for i, backend := range s.backends {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{backend.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			NodeName:   new(fmt.Sprintf("worker-%d", i%5)), Zone: new(fmt.Sprintf("zone-%d", i%3)),
		})
	}
	return &agent.Snapshot{
		ClusterID: m.name, BrokerNamespace: m.namespace, Broker: view, Connected: true,
		Namespaces: map[string]bool{s.namespace: true},
		Exports:    map[clusterset.Key]*mcsv1beta1.ServiceExport{key: {ObjectMeta: meta}},
		Services:   map[clusterset.Key]*corev1.Service{key: {ObjectMeta: meta, Spec: spec}},
		Slices:     map[clusterset.Key][]*discoveryv1.EndpointSlice{key: {slice}},
	}
}

// replace gives the place of a service's first backend to one that was not there before.
func (w *world) replace(s *service) { s.backends[0] = w.new(s.family) }

// knows says whether the member has heard of a service as it is: of its record, and that this holds every backend.
func (m *member) knows(s *service) bool {
	view := m.Service(s.key())
	return len(view.Services) == 1 && len(view.Endpoints) == 1 && view.Held == 0 &&
		slices.EqualFunc(view.Endpoints[0].Spec.Backends, s.backends, func(b v1alpha1.Backend, address netip.Addr) bool {
			return len(b.Addresses) == 1 && b.Addresses[0] == address.String()
		})
}
