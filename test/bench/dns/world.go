package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/test/bench/ground"
)

// The zone of imports, and that of plain Services.
const (
	clustersetZone = "clusterset.local."
	clusterZone    = "cluster.local."
)

const (
	namespaces = 100
	// port of every service, named portName.
	port, portName = 80, "http"
	labelService   = "multicluster.kubernetes.io/service-name"
	labelCluster   = "multicluster.kubernetes.io/source-cluster"
)

// clusters that the backends come from.
var clusters = []string{"east", "west", "north"}

// service is one ServiceImport with what belongs to it.
type service struct {
	namespace, name string
	ip              netip.Addr   // the clusterset IP; none of a headless service
	cluster         string       // of all backends, which are one EndpointSlice
	backends        []netip.Addr // of a headless service
}

// fqdn is the service's name within a zone.
func (s *service) fqdn(zone string) string { return s.name + "." + s.namespace + ".svc." + zone }

// addresses are the right answer to a question for A.
func (s *service) addresses() []netip.Addr {
	if s.ip.IsValid() {
		return []netip.Addr{s.ip}
	}
	return s.backends
}

// world is what the API server holds, in groups that serve one purpose each.
type world struct {
	clusterIP   []*service // ClusterSetIP imports
	plain       []*service // Services of this cluster, under the names of the first imports
	headless10  []*service // headless imports with that many backends in one slice
	headless25  []*service
	headless100 []*service
	large       []*service // more headless imports of 100
}

// small is the world of most measurements: 10,000 ClusterSetIP services and a few headless ones.
func small() *world {
	w := &world{clusterIP: make([]*service, 10_000)}
	for i := range w.clusterIP {
		w.clusterIP[i] = &service{
			namespace: fmt.Sprintf("team-%02d", i%namespaces), name: fmt.Sprintf("service-%05d", i),
			ip: nth(netip.AddrFrom4([4]byte{10, 200, 0, 1}), i),
		}
	}
	for _, s := range w.clusterIP[:1000] {
		w.plain = append(w.plain, &service{namespace: s.namespace, name: s.name})
	}
	base := netip.AddrFrom4([4]byte{10, 16, 0, 1})
	w.headless10 = headless("web", 500, 10, base)
	w.headless25 = headless("cache", 100, 25, nth(base, 1<<16))
	w.headless100 = headless("queue", 20, 100, nth(base, 2<<16))
	return w
}

// grow adds 250,000 headless backends.
func (w *world) grow() {
	w.large = headless("store", 2500, 100, netip.AddrFrom4([4]byte{10, 32, 0, 1}))
}

func headless(name string, count, size int, base netip.Addr) []*service {
	services := make([]*service, count)
	for i := range services {
		s := &service{
			namespace: fmt.Sprintf("team-%02d", i%namespaces), name: fmt.Sprintf("%s-%04d", name, i),
			cluster: clusters[i%len(clusters)],
		}
		for n := range size {
			s.backends = append(s.backends, nth(base, i*size+n))
		}
		services[i] = s
	}
	return services
}

// nth is the address n after another, of the same family.
func nth(base netip.Addr, n int) netip.Addr {
	b := base.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// serviceImport is the service's import as it stands in the API server.
func (s *service) serviceImport() *mcsv1beta1.ServiceImport {
	object := &mcsv1beta1.ServiceImport{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name},
		Spec: mcsv1beta1.ServiceImportSpec{
			Type:  mcsv1beta1.Headless,
			Ports: []mcsv1beta1.ServicePort{{Name: portName, Protocol: corev1.ProtocolTCP, Port: port}},
		},
	}
	if s.ip.IsValid() {
		object.Spec.Type, object.Spec.IPs = mcsv1beta1.ClusterSetIP, []string{s.ip.String()}
	}
	return object
}

// endpointSlice is the slice of the service's backends, as an agent writes it: labels, conditions, zone. Every second
// service is a StatefulSet's, whose pods have names.
func (s *service) endpointSlice() *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, Name: s.name + "-" + s.cluster,
			Labels: map[string]string{labelService: s.name, labelCluster: s.cluster, discoveryv1.LabelManagedBy: "fastnet.dev"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(portName), Protocol: new(corev1.ProtocolTCP), Port: new(int32(port))}},
	}
	named := s.name[len(s.name)-1]%2 == 1
	for i, backend := range s.backends {
		endpoint := discoveryv1.Endpoint{
			Addresses:  []string{backend.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			Zone:       new("zone-a"),
		}
		if named {
			endpoint.Hostname = new(fmt.Sprintf("%s-%d", s.name, i))
		}
		slice.Endpoints = append(slice.Endpoints, endpoint)
	}
	return slice
}

// connect gives a client of the API server that knows every kind that is used here.
func connect(kubeconfig string) (client.Client, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config, err := kube.Config(kubeconfig, "bench-dns")
	if err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// prepare creates the definitions and the namespaces.
func prepare(ctx context.Context, api client.Client) error {
	definitions, err := crds.Member()
	if err != nil {
		return err
	}
	for _, definition := range definitions {
		if err := api.Create(ctx, definition); err != nil {
			return err
		}
	}
	for i := range namespaces {
		if err := api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%02d", i)}}); err != nil {
			return err
		}
	}
	// A definition is served some time after it was taken.
	return ground.Await(ctx, time.Minute, "the API server serves ServiceImports", func() error {
		return api.List(ctx, &mcsv1beta1.ServiceImportList{})
	})
}

// create writes services to the API server, several at once.
func create(ctx context.Context, api client.Client, services ...[]*service) error {
	var all []*service
	backends := 0
	for _, some := range services {
		all = append(all, some...)
		for _, s := range some {
			backends += len(s.backends)
		}
	}
	done := ground.Progress("creating %d ServiceImports and %d backends", len(all), backends)
	defer done()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for _, s := range all {
		group.Go(func() error {
			if err := api.Create(ctx, s.serviceImport()); err != nil || len(s.backends) == 0 {
				return err
			}
			return api.Create(ctx, s.endpointSlice())
		})
	}
	return group.Wait()
}

// createPlain creates Services of this cluster, and remembers their addresses.
func createPlain(ctx context.Context, api client.Client, services []*service) error {
	done := ground.Progress("creating %d Services", len(services))
	defer done()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for _, s := range services {
		group.Go(func() error {
			object := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name},
				Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{
					Name: portName, Port: port, TargetPort: intstr.FromInt32(port), Protocol: corev1.ProtocolTCP,
				}}},
			}
			err := api.Create(ctx, object)
			if err == nil {
				s.ip, err = netip.ParseAddr(object.Spec.ClusterIP)
			}
			return err
		})
	}
	return group.Wait()
}

// random gives the generator of one purpose; every run draws the same.
func random(purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(purpose, 0)) }
