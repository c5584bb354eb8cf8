package gateway

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/converge"
	"github.com/fastnet-io/fastnet/internal/debug"
	"github.com/fastnet-io/fastnet/internal/kept"
	"github.com/fastnet-io/fastnet/internal/kube"
	"github.com/fastnet-io/fastnet/internal/liveness"
	"github.com/fastnet-io/fastnet/internal/netstate"
	"github.com/fastnet-io/fastnet/internal/uninstall"
)

// DaemonSet that runs the gateway, in the namespace fastnet-system.
const DaemonSet = "fastnet-gateway"

// Times of the daemon.
const (
	resync  = 10 * time.Second
	backoff = 200 * time.Millisecond
	// asking is how long one request to the API server may take. It is never in the way of the cables: they come first
	// in every round.
	asking = 5 * time.Second
	// renewEvery is how often the Gateway is written when nothing else changes: for the RTTs, and as a sign of life.
	renewEvery = 30 * time.Second
	// parting is how long the daemon may take, once told to stop, to find out whether it will come back and to clean up
	// if not: well inside the 30 seconds that a pod has.
	parting = 20 * time.Second
)

// Config of the daemon.
type Config struct {
	// Kubeconfig file; empty is the pod's service account.
	Kubeconfig string
	ClusterID  string
	// Node is this node's name.
	Node string
	// Prefixes are this cluster's pod and service CIDRs, both families.
	Prefixes []string
	// Drivers of cables, the preferred first; vxlan needs AllowUnencrypted.
	Drivers          []string
	AllowUnencrypted bool
	// NodeProbePort (UDP) at which nodes of this cluster ask how this gateway is, see package nodeprobe.
	NodeProbePort uint16
	// Port (UDP) is the first of those at which peers are awaited, each at one of its own.
	Port uint16
	// IPsecPort (UDP) is that of IKE and of ESP, with the driver ipsec.
	IPsecPort uint16
	// StateDir holds the private key, the peers' ports, and what was last known.
	StateDir string
	// Addresses for peers; empty takes those of the Node.
	Addresses   []string
	HTTPAddress string
	// Renew is how often the Gateway is written when nothing changes; 0 is renewEvery. Only tests are in more of a hurry.
	Renew time.Duration
	Log   *slog.Logger
}

// Validate reports every problem of the configuration.
func (c Config) Validate() error {
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.ClusterID == "" {
		problem("--cluster-id is empty")
	}
	if c.Node == "" {
		problem("--node is empty, and so is NODE_NAME")
	}
	if len(c.Prefixes) == 0 {
		problem("--prefixes is empty")
	}
	if _, err := cables.ParsePrefixes(c.Prefixes); err != nil {
		problem("--prefixes: %w", err)
	}
	if err := cables.CheckDrivers(c.Drivers, c.AllowUnencrypted); err != nil {
		problem("--driver: %w", err)
	}
	if c.Port == 0 {
		problem("--port is 0")
	}
	if c.IPsecPort == 0 && slices.Contains(c.Drivers, cables.IPsec) {
		problem("--ipsec-port is 0")
	}
	if c.NodeProbePort == 0 {
		problem("--node-probe-port is 0")
	}
	if c.StateDir == "" {
		problem("--state-dir is empty")
	}
	if _, err := parseAddresses(c.Addresses); err != nil {
		problem("--addresses: %w", err)
	}
	if c.Log == nil {
		problem("no log")
	}
	return errors.Join(problems...)
}

func parseAddresses(texts []string) (addresses []netip.Addr, err error) {
	for _, text := range texts {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address", text)
		}
		addresses = append(addresses, addr)
	}
	return addresses, nil
}

// Run keeps this node's cables until the context ends. Then it finds out whether the gateway was removed for good, and
// takes everything away if so; else all stays for the next process.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if c.Renew == 0 {
		c.Renew = renewEvery
	}
	prefixes, err := cables.ParsePrefixes(c.Prefixes)
	if err != nil {
		return err
	}
	addresses, err := parseAddresses(c.Addresses)
	if err != nil {
		return err
	}
	config, err := kube.Config(c.Kubeconfig, "fastnet-gateway")
	if err != nil {
		return err
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	api, err := client.New(config, client.Options{Scheme: scheme, Mapper: kube.Mapper()})
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	objects, err := cache.New(config, cache.Options{
		Scheme:                      scheme,
		Mapper:                      kube.Mapper(),
		ReaderFailOnMissingInformer: true,
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.Endpoint{}: {Namespaces: map[string]cache.Config{v1alpha1.Namespace: {}}},
			&v1alpha1.Gateway{}:  {Namespaces: map[string]cache.Config{v1alpha1.Namespace: {}}},
			&corev1.Node{}:       {Field: fields.OneTermEqualSelector("metadata.name", c.Node), Transform: slimNode},
			&corev1.Service{}: {Namespaces: map[string]cache.Config{v1alpha1.Namespace: {}},
				Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelGatewayAddress: c.Node})},
		},
	})
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	drivers := newDrivers(c)
	g := newGateway(c, prefixes, addresses, drivers, api, objects)
	loop, err := converge.New(converge.Config{Name: "cables", Round: g.round, Resync: min(resync, c.Renew), Backoff: min(backoff, c.Renew), Log: c.Log})
	if err != nil {
		return err
	}
	g.prober = newProber(func() { g.tellNodes(); poke(g.news); loop.Poke() }, c.Log)
	if g.ports, err = loadPorts(g.portsFile()); err != nil {
		c.Log.Error("peers are told new ports", "error", err)
	}
	tell, stopTelling, err := recorder(context.WithoutCancel(ctx), config, scheme, c.Node)
	if err != nil {
		return err
	}
	defer stopTelling()
	g.event = tell
	g.recall()
	c.Log.Info("gateway starts", "cluster", c.ClusterID, "node", c.Node, "prefixes", prefixes, "drivers", c.Drivers, "port", c.Port)
	if slices.Contains(c.Drivers, cables.VXLAN) {
		c.Log.Warn("cables of the driver vxlan are not encrypted")
	}
	if err := drivers.sweep(ctx, c); err != nil {
		c.Log.Warn("what drivers have left that are no longer configured", "error", err)
	}

	// When it is told to stop the gateway first has the traffic moved away.
	within, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { g.leave(within, loop.Poke); stop() })()
	group, running := errgroup.WithContext(within)
	// Before they start: a cache that has been told to stop by now takes no handler.
	if err := kube.PokeOn(running, objects, loop.Poke, &v1alpha1.Endpoint{}, &corev1.Node{}, &corev1.Service{}); err != nil {
		return err
	}
	// Of Gateways only the rounds of the timer want to know.
	if err := kube.PokeOn(running, objects, func() {}, &v1alpha1.Gateway{}); err != nil {
		return err
	}
	group.Go(func() error { return objects.Start(running) })
	registry, err := newRegistry(g)
	if err != nil {
		return err
	}
	server := debug.Server{Address: c.HTTPAddress, Gatherer: registry, Ready: g.ready, Plan: g.text}
	group.Go(func() error { return server.Run(running) })
	group.Go(func() error { g.prober.run(running); return nil })
	group.Go(func() error { g.answerNodes(running); return nil })
	group.Go(func() error { g.tellNews(running); return nil })
	group.Go(func() error { g.watchTraffic(running, loop.Poke); return nil })
	group.Go(func() error {
		netstate.KeepWatching(running, "fastnet-", 0, loop.Poke, func(err error) { c.Log.Warn("lost sight of the kernel", "error", err) })
		return nil
	})
	group.Go(func() error {
		// Not one cable is touched before all that is known has arrived, or was recalled: what an earlier process has made stays.
		if g.wait(running, objects.WaitForCacheSync, loop.Poke) {
			loop.Run(running)
		}
		return nil
	})
	err = group.Wait()
	if ctx.Err() == nil {
		return errors.Join(err, drivers.close()) // failed: a new process will go on with what is there
	}
	return part(config, c, drivers, api)
}

// part decides what the end of the process means.
func part(config *rest.Config, c Config, drivers drivers, api client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), parting)
	defer cancel()
	question, stop := context.WithTimeout(ctx, parting/2)
	defer stop()
	reason, err := uninstall.Reason(question, config, uninstall.Question{DaemonSet: DaemonSet, Node: c.Node, NodeLabel: v1alpha1.LabelGatewayNode})
	if reason == "" {
		c.Log.Info("gateway ends, its devices stay", "error", err)
		return drivers.close()
	}
	c.Log.Info("gateway is uninstalled", "reason", reason)
	// Peers should stop sending before the device goes; that the API server has forgotten us is expected here.
	if err := forget(ctx, api, c); err != nil {
		c.Log.Info("objects could not be removed", "error", err)
	}
	gateway := EndpointName(c.ClusterID, c.Node)
	files, err := files(c.StateDir, gateway)
	return errors.Join(err, drivers.remove(ctx), removeFiles(files...))
}

// forget deletes this gateway's objects.
func forget(ctx context.Context, api client.Client, c Config) error {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: name}
	}
	return errors.Join(
		client.IgnoreNotFound(api.Delete(ctx, &v1alpha1.Endpoint{ObjectMeta: meta(EndpointName(c.ClusterID, c.Node))})),
		client.IgnoreNotFound(api.Delete(ctx, &v1alpha1.Gateway{ObjectMeta: meta(c.Node)})),
	)
}

// Cleanup takes everything away that a gateway has ever made on this node: the devices, and the files of the gateway that
// the configuration names, or, where it names none, every gateway's.
func Cleanup(ctx context.Context, c Config) error {
	name := "*"
	if c.ClusterID != "" && c.Node != "" {
		name = EndpointName(c.ClusterID, c.Node)
	}
	files, err := files(c.StateDir, name)
	if err != nil {
		return err
	}
	if err := errors.Join(drivers(nil).sweep(ctx, c), removeFiles(files...)); err != nil {
		return err
	}
	c.Log.Info("node cleaned", "files", files)
	return nil
}

// gateway is the running daemon.
type gateway struct {
	config    Config
	prefixes  []netip.Prefix
	addresses []netip.Addr // given; else those of the node
	drivers   drivers
	api       client.Client // straight to the API server
	objects   client.Reader // the cache
	prober    *prober
	traffic   traffic
	view      chan struct{} // the view for nodes may have changed
	mtu       func(peer []netip.Addr) int
	event     func(about runtime.Object, e event)
	answered  atomic.Bool // the API server has, once

	// Only the loop's round touches these.
	known    *kept.File
	recalled []v1alpha1.Endpoint // count until the API server has answered
	ports    Ports
	node     nodeFacts
	seeded   bool
	witness  witness

	news    chan struct{}    // the health of a cable has changed
	telling sync.Mutex       // guards object and writeAt
	object  v1alpha1.Gateway // as the API server has it
	writeAt time.Time

	mu   sync.Mutex // guards last
	last outcome
}

// nodeFacts are what the API server knows of this node.
type nodeFacts struct {
	known      bool
	uid        types.UID
	clusterUID string
	addresses  []netip.Addr
	drain      bool // it is cordoned, or annotated
	problems   []string
}

type outcome struct {
	at       time.Time
	desired  Desired
	report   cable.Report
	status   v1alpha1.GatewayStatus
	err      error
	done     bool
	attempts map[string]int
}

func newGateway(c Config, prefixes []netip.Prefix, addresses []netip.Addr, drivers drivers, api client.Client, objects client.Reader) *gateway {
	return &gateway{config: c, prefixes: prefixes, addresses: addresses, drivers: drivers, api: api, objects: objects, mtu: underlayMTU,
		known: kept.At(knownFile(c.StateDir, EndpointName(c.ClusterID, c.Node))), view: make(chan struct{}, 1), news: make(chan struct{}, 1)}
}

// round makes cables first and talks about them after: the API server may be away.
func (g *gateway) round(ctx context.Context) error {
	now, answered := time.Now(), g.answered.Load()
	var nodeErr error
	if answered {
		nodeErr = g.readNode(ctx)
	}
	if !g.node.known {
		return g.ended(outcome{at: now, err: nodeErr})
	}
	g.traffic.drainNode(g.node.drain)
	g.sayDraining()
	if answered {
		g.seed(ctx)
	}
	endpoints, err := g.endpoints(ctx, answered)
	if err != nil {
		return g.ended(outcome{at: now, err: errors.Join(nodeErr, err)})
	}
	snapshot, err := g.snapshot(endpoints, now)
	if err != nil {
		return g.ended(outcome{at: now, err: errors.Join(nodeErr, err)})
	}
	desired := Plan(snapshot)
	desired.Problems = append(desired.Problems, g.node.problems...)
	// A port is kept before anybody is told of it.
	if !reflect.DeepEqual(desired.Ports, g.ports) {
		if err := savePorts(g.portsFile(), desired.Ports); err != nil {
			return g.ended(outcome{at: now, desired: desired, err: err})
		}
		g.ports = desired.Ports
	}
	applyErr := g.drivers.apply(ctx, desired.Cables)
	if applyErr != nil {
		desired.Problems = append(desired.Problems, strings.ReplaceAll(applyErr.Error(), "\n", "; "))
	}
	report, reportErr := g.drivers.report(ctx)
	findTranslated(report.Cables, endpoints)
	if reportErr == nil {
		g.prober.set(report)
		g.tellNodes()
	}
	if !answered {
		status := status(desired, report, g.prober.health(), g.traffic.state(), nil, now)
		return g.ended(outcome{at: now, desired: desired, report: report, status: status, attempts: snapshot.Attempts, err: errors.Join(applyErr, reportErr)})
	}
	keepErr := g.keep(endpoints)
	publishErr := g.publish(ctx, desired.Endpoint)
	status, statusErr := g.tell(ctx, desired, report, now)
	sweepErr := g.sweep(ctx, now)
	return g.ended(outcome{
		at: now, desired: desired, report: report, status: status, attempts: snapshot.Attempts,
		err: errors.Join(applyErr, reportErr, nodeErr, keepErr, publishErr, statusErr, sweepErr), done: applyErr == nil && reportErr == nil && publishErr == nil,
	})
}

func (g *gateway) probeKeyFile() string {
	return keyFile(g.config.StateDir, nodeProbe, EndpointName(g.config.ClusterID, g.config.Node))
}

func (g *gateway) portsFile() string {
	return portsFile(g.config.StateDir, EndpointName(g.config.ClusterID, g.config.Node))
}

func (g *gateway) ended(o outcome) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(o.desired.Problems, g.last.desired.Problems) {
		g.config.Log.Info("problems changed", "problems", o.desired.Problems)
	}
	o.done = o.done || g.last.done
	g.last = o
	return o.err
}

// readNode looks at this node's object. An old answer is as good as none is bad: only without any there can be no round.
func (g *gateway) readNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	var node corev1.Node
	if err := g.objects.Get(ctx, client.ObjectKey{Name: g.config.Node}, &node); err != nil {
		return fmt.Errorf("read node %s: %w", g.config.Node, err)
	}
	var balancers corev1.ServiceList
	if err := g.objects.List(ctx, &balancers, client.InNamespace(v1alpha1.Namespace)); err != nil {
		return fmt.Errorf("list load balancers: %w", err)
	}
	facts := nodeFacts{
		known: true, uid: node.UID, clusterUID: g.node.clusterUID,
		drain: node.Spec.Unschedulable || node.Annotations[v1alpha1.AnnotationDrain] == "true",
	}
	facts.addresses, facts.problems = peerAddresses(&node, balancers.Items)
	if facts.clusterUID == "" {
		var namespace corev1.Namespace
		if err := g.api.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &namespace); err != nil {
			facts.problems = append(facts.problems, fmt.Sprintf("the UID of this cluster is unknown: %v", err))
		}
		facts.clusterUID = string(namespace.UID)
	}
	g.node = facts
	return nil
}

// slimNode keeps of a Node what readNode reads.
func slimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	slim := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
		Spec:       corev1.NodeSpec{Unschedulable: node.Spec.Unschedulable},
		Status:     corev1.NodeStatus{Addresses: node.Status.Addresses},
	}
	for _, key := range []string{v1alpha1.AnnotationDrain, v1alpha1.AnnotationAddresses} {
		if value, ok := node.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&slim.ObjectMeta, key, value)
		}
	}
	return slim, nil
}

// seed reads once what the process before has written.
func (g *gateway) seed(ctx context.Context) {
	if g.seeded {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	var object v1alpha1.Gateway
	err := g.api.Get(ctx, client.ObjectKey{Namespace: v1alpha1.Namespace, Name: g.config.Node}, &object)
	switch {
	case err == nil:
		g.prober.seed(object.Status.Cables)
		g.telling.Lock()
		g.object.Status.Conditions = object.Status.Conditions // since when they are as they are
		g.telling.Unlock()
	case !apierrors.IsNotFound(err):
		return // next round
	}
	g.seeded = true
}

func (g *gateway) snapshot(endpoints []v1alpha1.Endpoint, now time.Time) (Snapshot, error) {
	specs, err := g.drivers.endpoint()
	if err != nil {
		return Snapshot{}, err
	}
	probeKey, err := loadProbeKey(g.probeKeyFile())
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{
		ClusterID: g.config.ClusterID, ClusterUID: g.node.clusterUID, Node: g.config.Node, Prefixes: g.prefixes,
		Addresses: g.addresses, Ports: g.ports, BasePort: g.config.Port, Now: now, Drivers: specs,
		ProbeKey: base64.StdEncoding.EncodeToString(probeKey.PublicKey().Bytes()), Endpoints: endpoints, UnderlayMTU: map[string]int{}, NoRoute: map[netip.Addr]bool{},
		Attempts: map[string]int{}, Leaving: map[string]bool{},
	}
	if len(s.Addresses) == 0 {
		s.Addresses = g.node.addresses
	}
	for endpoint, health := range g.prober.health() {
		s.Attempts[endpoint], s.Leaving[endpoint] = health.Attempts, health.Draining && !health.Translated
	}
	for _, endpoint := range endpoints {
		var peer []netip.Addr
		for _, text := range endpoint.Spec.Addresses {
			if addr, err := netip.ParseAddr(text); err == nil {
				peer = append(peer, addr)
				s.NoRoute[addr] = !hasRoute(addr)
			}
		}
		s.UnderlayMTU[endpoint.Name] = g.mtu(peer)
	}
	return s, nil
}

// findTranslated marks the cables to peers that are seen elsewhere than where their Endpoints say that they are.
func findTranslated(found []cable.Cable, endpoints []v1alpha1.Endpoint) {
	for i := range found {
		peer := slices.IndexFunc(endpoints, func(e v1alpha1.Endpoint) bool { return e.Name == found[i].Endpoint })
		seen := found[i].PeerAddress
		found[i].Translated = peer >= 0 && seen.IsValid() && !slices.ContainsFunc(endpoints[peer].Spec.Addresses, func(text string) bool {
			addr, err := netip.ParseAddr(text)
			return err == nil && addr == seen.Addr()
		})
	}
}

// status of the Gateway object, whose conditions have been so far.
func status(desired Desired, report cable.Report, health map[string]Health, drain string, conditions []metav1.Condition, now time.Time) v1alpha1.GatewayStatus {
	renewed := metav1.NewTime(now.Truncate(time.Second))
	status := v1alpha1.GatewayStatus{Driver: report.Driver, Drain: drain, Problems: desired.Problems, Conditions: slices.Clone(conditions), Renewed: &renewed}
	agreed := metav1.Condition{
		Type: v1alpha1.ConditionDriverAgreed, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDriverAgreed, LastTransitionTime: renewed,
		Message: "this gateway has a driver in common with each gateway of other clusters",
	}
	if n := len(desired.NoCommonDriver); n > 0 {
		agreed.Status, agreed.Reason, agreed.Message = metav1.ConditionFalse, v1alpha1.ReasonNoCommonDriver, desired.NoCommonDriver[0]
		if n > 1 {
			agreed.Message += fmt.Sprintf(" (and %d more, see problems)", n-1)
		}
	}
	apimeta.SetStatusCondition(&status.Conditions, agreed)
	address, driver := map[string]string{}, map[string]string{}
	for _, c := range report.Cables {
		driver[c.Endpoint] = c.Driver
		if c.PeerAddress.IsValid() {
			address[c.Endpoint] = c.PeerAddress.String()
		}
	}
	for _, peer := range desired.Cables.Peers {
		h, ok := health[peer.Endpoint]
		if !ok {
			h = Health{State: v1alpha1.CableConnecting, Since: now}
		}
		c := v1alpha1.Cable{
			ClusterID: peer.ClusterID, Endpoint: peer.Endpoint, Driver: cmp.Or(driver[peer.Endpoint], peer.Driver), PeerAddress: address[peer.Endpoint],
		}
		setHealth(&c, h)
		status.Cables = append(status.Cables, c)
	}
	return status
}

func setHealth(c *v1alpha1.Cable, h Health) {
	c.State, c.Draining, c.Since = h.State, h.Draining, metav1.NewTime(h.Since.Truncate(time.Second))
	c.LossPercent, c.RTTMilliseconds = "", ""
	if h.State == v1alpha1.CableUp {
		c.LossPercent = strconv.FormatFloat(100*h.Loss, 'f', 1, 64)
	}
	if h.RTT > 0 && h.State == v1alpha1.CableUp {
		c.RTTMilliseconds = strconv.FormatFloat(float64(h.RTT)/float64(time.Millisecond), 'f', 3, 64)
	}
}

// meta of this gateway's objects. The Node owns them: when it is deleted, Kubernetes deletes them, and the next gateway
// carries.
func (g *gateway) meta(name string) metav1.ObjectMeta {
	meta := metav1.ObjectMeta{
		Namespace: v1alpha1.Namespace, Name: name,
		Labels: map[string]string{v1alpha1.LabelSourceCluster: g.config.ClusterID, "app.kubernetes.io/managed-by": v1alpha1.ManagedBy},
	}
	if g.node.uid != "" {
		meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: g.config.Node, UID: g.node.uid}}
	}
	return meta
}

// publish writes the Endpoint where it is not what it should be.
func (g *gateway) publish(ctx context.Context, spec v1alpha1.EndpointSpec) error {
	if len(spec.Addresses) == 0 {
		return errors.New("publish endpoint: no address")
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	want := &v1alpha1.Endpoint{ObjectMeta: g.meta(EndpointName(spec.ClusterID, spec.Node)), Spec: spec}
	var have v1alpha1.Endpoint
	err := g.objects.Get(ctx, client.ObjectKeyFromObject(want), &have)
	switch {
	case apierrors.IsNotFound(err):
		// The cache may be a moment behind our own write.
		if err = g.api.Create(ctx, want); apierrors.IsAlreadyExists(err) {
			return nil
		}
	case err == nil && reflect.DeepEqual(have.Spec, want.Spec) && reflect.DeepEqual(have.OwnerReferences, want.OwnerReferences) &&
		reflect.DeepEqual(have.Labels, want.Labels):
		return nil
	case err == nil:
		want.ResourceVersion = have.ResourceVersion
		err = g.api.Update(ctx, want)
	}
	if err != nil {
		return fmt.Errorf("publish endpoint: %w", err)
	}
	g.config.Log.Info("endpoint published", "addresses", spec.Addresses, "port", spec.Port)
	return nil
}

// tellNews writes at once that a cable has come or gone, whatever the round under way is busy with: others wait for it to leave a
// lost cluster out of their answers. What it cannot write, the next round does.
func (g *gateway) tellNews(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.news:
		}
		if err := g.tellHealth(ctx); err != nil {
			g.config.Log.Warn("the state of cables is not told at once", "error", err)
		}
	}
}

// Cables to one cluster that die together are known to be dead one after the other, as long after each other as they were asked, and as answers
// of each were late before. Each write takes time, more of it where so much happens at once, and what the others wait for is the last one:
// so the first cable's end is not told while another one to that cluster has been silent for silence, for deciding at most.
const (
	silence  = 150 * time.Millisecond
	deciding = 400 * time.Millisecond
)

// decided gives the health of all cables, once it is time to tell of it.
func (g *gateway) decided(ctx context.Context) map[string]Health {
	end := time.Now().Add(deciding)
	for {
		health := g.prober.health()
		if !undecided(g.object.Status.Cables, health) || time.Now().After(end) {
			return health
		}
		select {
		case <-ctx.Done():
			return health
		case <-time.After(liveness.HastyPace):
		}
	}
}

// undecided says whether a cable has been lost since what was told, and another to the same cluster may be about to be.
func undecided(told []v1alpha1.Cable, health map[string]Health) bool {
	lost := map[string]bool{}
	for _, c := range told {
		if h, known := health[c.Endpoint]; known && c.State == v1alpha1.CableUp && h.State == v1alpha1.CableDown {
			lost[c.ClusterID] = true
		}
	}
	for _, h := range health {
		if lost[h.ClusterID] && h.State == v1alpha1.CableUp && h.Silent > silence+h.RTT {
			return true
		}
	}
	return false
}

func (g *gateway) tellHealth(ctx context.Context) error {
	g.telling.Lock()
	defer g.telling.Unlock()
	status, health, changed := g.object.Status.DeepCopy(), g.decided(ctx), false
	for i := range status.Cables {
		c := &status.Cables[i]
		// What comes up the first time is the round's to tell, which is on its way and knows the peer's address too.
		if h, known := health[c.Endpoint]; known && h.State != c.State && (h.State != v1alpha1.CableUp || c.PeerAddress != "") {
			setHealth(c, h)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	have := g.object.ObjectMeta
	return g.writeStatus(ctx, *status, metav1.ObjectMeta{Namespace: have.Namespace, Name: have.Name, Labels: have.Labels, OwnerReferences: have.OwnerReferences}, time.Now())
}

// tell says all that a round has found. The health is that of now: what was told meanwhile is not taken back.
func (g *gateway) tell(ctx context.Context, desired Desired, report cable.Report, now time.Time) (v1alpha1.GatewayStatus, error) {
	g.telling.Lock()
	defer g.telling.Unlock()
	status := status(desired, report, g.decided(ctx), g.traffic.state(), g.object.Status.Conditions, now)
	return status, g.writeStatus(ctx, status, g.meta(g.config.Node), now)
}

// writeStatus writes on a change, and every renewEvery, to the object with this name and owner.
func (g *gateway) writeStatus(ctx context.Context, status v1alpha1.GatewayStatus, meta metav1.ObjectMeta, now time.Time) error {
	before := g.object.Status
	if !g.writeAt.IsZero() && reflect.DeepEqual(settled(status), settled(before)) && now.Sub(g.writeAt) < g.config.Renew {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	object := g.object.DeepCopy()
	write := func() error {
		object.Status = status
		return g.api.Status().Update(ctx, object)
	}
	var err error
	// Nobody else writes it, so what was written last is most likely what is there.
	known := object.ResourceVersion != "" && reflect.DeepEqual(object.OwnerReferences, meta.OwnerReferences)
	if known {
		err = write()
	}
	if !known || apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		object = &v1alpha1.Gateway{}
		err = g.api.Get(ctx, client.ObjectKey{Namespace: meta.Namespace, Name: meta.Name}, object)
		if apierrors.IsNotFound(err) {
			object = &v1alpha1.Gateway{ObjectMeta: meta}
			err = g.api.Create(ctx, object)
		}
		if err == nil && !reflect.DeepEqual(object.OwnerReferences, meta.OwnerReferences) {
			object.OwnerReferences = meta.OwnerReferences
			err = g.api.Update(ctx, object)
		}
		if err == nil {
			err = write()
		}
	}
	if err != nil {
		return fmt.Errorf("write gateway: %w", err)
	}
	for _, c := range status.Cables {
		i := slices.IndexFunc(before.Cables, func(old v1alpha1.Cable) bool { return old.Endpoint == c.Endpoint })
		if i < 0 || before.Cables[i].State != c.State {
			g.config.Log.Info("cable "+string(c.State), "endpoint", c.Endpoint, "peer", c.PeerAddress)
		}
	}
	for _, e := range events(before, status) {
		g.event(object, e)
	}
	object.Status = status // as it was meant: what came back may be of an older CRD
	g.object, g.writeAt = *object, now
	return nil
}

// settled is the status without what changes all the time.
func settled(s v1alpha1.GatewayStatus) v1alpha1.GatewayStatus {
	s.Cables, s.Renewed = slices.Clone(s.Cables), nil
	for i := range s.Cables {
		if s.Cables[i].RTTMilliseconds != "" {
			s.Cables[i].RTTMilliseconds = "known"
		}
		s.Cables[i].LossPercent = ""
	}
	return s
}

func (g *gateway) ready() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.last.done {
		return errors.Join(errors.New("no round has succeeded yet"), g.last.err)
	}
	return nil
}

// text is the debug page.
func (g *gateway) text() string {
	health := g.prober.health()
	g.mu.Lock()
	defer g.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "# last round %s, error: %v\n\n# desired\n%s\n# observed: %s\n", g.last.at.Format(time.RFC3339Nano), g.last.err, g.last.desired, g.last.report.Driver)
	for _, c := range g.last.report.Cables {
		h := health[c.Endpoint]
		fmt.Fprintf(&b, "cable %s: %s since %s, peer %s, rtt %s, last handshake %s, sent %d, received %d, attempts %d\n", c.Endpoint, h.State,
			h.Since.Format(time.RFC3339), c.PeerAddress, h.RTT, c.LastHandshake.Format(time.RFC3339), c.Sent, c.Received, h.Attempts)
	}
	return b.String()
}
