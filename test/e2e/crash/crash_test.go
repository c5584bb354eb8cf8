//go:build e2e

// Package crash kills an agent at each of its writes, one after the other, and looks at what comes of it.
package crash

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/internal/kube"
)

var (
	update = flag.Bool("update", false, "write the states of the story anew")
	from   = flag.Int("from", 1, "kill first at this write")
	limit  = flag.Int("writes", 1000, "kill at no later write than this")
	stride = flag.Int("stride", 1, "kill at every so many writes")
)

const (
	// patience is the longest that a state may take to come where nobody was killed, on a machine that does a lot else.
	patience = time.Minute
	// recovery is the longest from a kill until all is as it would be without.
	recovery = 5 * time.Second
	golden   = "testdata/story.txtar"
)

// TestKilledAtEveryWrite tells a story of exports, changes and withdrawals in two clusters, again and again. In the n-th telling c1's
// agent, a real process, is killed when its n-th write has been answered, and started anew. After each step both clusters, their DNS and the
// broker must come to be as they are when nobody is killed, within recovery of the kill. Meanwhile no slice and no answer of DNS may get
// an address that nobody offers, and no ServiceImport may name an address that no derived Service has.
func TestKilledAtEveryWrite(t *testing.T) {
	ctrllog.SetLogger(logr.Discard()) // else it asks for one, with a stack
	w := newWorld(t)
	archive, err := txtar.ParseFile(golden)
	if err != nil && !*update {
		t.Fatal(err)
	}
	w.want = map[string]string{}
	if archive != nil {
		for _, file := range archive.Files {
			w.want[file.Name] = string(file.Data)
		}
	}
	w.start("c2", "")
	w.tell("undisturbed", "")
	if *update {
		archive := &txtar.Archive{Comment: []byte("What both clusters and the broker hold after each step of the story.\n")}
		for _, step := range story {
			archive.Files = append(archive.Files, txtar.File{Name: step.name, Data: []byte(w.want[step.name])})
		}
		if err := os.WriteFile(golden, txtar.Format(archive), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var slowest time.Duration
	kills := 0
	for n := *from; n <= *limit; n += *stride {
		took, killed := w.tell(fmt.Sprintf("killed-%d", n), strconv.Itoa(n))
		if !killed {
			if n < 10 {
				t.Errorf("the story makes no more than %d writes", n-1)
			}
			break
		}
		kills++
		slowest = max(slowest, took)
		if took > recovery {
			t.Errorf("killed after write %d, all as it should be %v later, want at most %v", n, took.Round(time.Millisecond), recovery)
		}
		t.Logf("killed after write %d, all as it should be %v later", n, took.Round(time.Millisecond))
	}
	t.Logf("killed %d times; the longest from a kill until all was as it should be: %v", kills, slowest.Round(time.Millisecond))
}

// step is a piece of the story, told in a namespace of its own.
type step struct {
	name string
	do   func(w *world, namespace string) error
}

var story = []step{
	{"1 c2 exports", func(w *world, ns string) error {
		return errors.Join(w.service("c2", ns, "web", 80), w.slice("c2", ns, "web", "10.2.0.1"), w.slice("c2", ns, "web", "fd00:2::1"), w.export("c2", ns, "web"))
	}},
	{"2 c1 exports too, and has a port more", func(w *world, ns string) error {
		return errors.Join(w.service("c1", ns, "web", 80), w.slice("c1", ns, "web", "10.1.0.1"), w.slice("c1", ns, "web", "fd00:1::1"), w.export("c1", ns, "web"))
	}},
	{"3 backends change in both", func(w *world, ns string) error {
		return errors.Join(w.slice("c2", ns, "web", "10.2.0.2", "10.2.0.3"), w.slice("c1", ns, "web", "10.1.0.2"))
	}},
	{"4 all clusters serve", func(w *world, ns string) error {
		return w.change("c1", &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web"}}, func(o client.Object) {
			o.SetAnnotations(map[string]string{v1alpha1.AnnotationAffinity: v1alpha1.AffinityNone})
		})
	}},
	{"5 c1 has a global headless service, and a gateway", func(w *world, ns string) error {
		return errors.Join(w.service("c1", ns, "db", 0), w.slice("c1", ns, "db", "10.1.0.9"), w.gateway("c1", ns), w.gateway("c2", ns))
	}},
	{"6 c1 withdraws", func(w *world, ns string) error {
		return errors.Join(w.unexport("c1", ns, "web"), w.ungateway("c1", ns),
			w.change("c1", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "db"}}, func(o client.Object) { o.SetAnnotations(nil) }))
	}},
	{"7 c2 withdraws", func(w *world, ns string) error {
		return errors.Join(w.unexport("c2", ns, "web"), w.ungateway("c2", ns))
	}},
}

// world is two clusters, of which c1 is the broker too.
type world struct {
	t        *testing.T
	ctx      context.Context
	dir      string
	program  string
	clusters map[string]*cluster
	want     map[string]string // state by step

	mu      sync.Mutex
	offered map[string]map[string]bool // addresses by namespace
	telling string                     // the namespace of the telling that goes on
}

type cluster struct {
	client.WithWatch
	kubeconfig, broker string // paths; broker's has the namespace of this member
	dns                string // address of its DNS server
	agent              *process
	held               map[client.ObjectKey][]string // addresses by slice, as the watch has told
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, ctx: t.Context(), dir: t.TempDir(), clusters: map[string]*cluster{}, offered: map[string]map[string]bool{}}
	w.program = filepath.Join(w.dir, "fastnet-agent")
	build := exec.CommandContext(w.ctx, "go", "build", "-tags", "failpoint", "-o", w.program, "github.com/fastnet-io/fastnet/cmd/fastnet-agent")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	scheme, err := kube.Scheme()
	w.must(err)
	w.must(apiextensionsv1.AddToScheme(scheme))
	member, err := crds.Member()
	w.must(err)
	hub, err := crds.Broker()
	w.must(err)
	c1 := apitest.Start(t, "c1", "10.97.0.0/16,fd00:97::/108")
	for id, kubeconfig := range map[string]string{"c1": c1, "c2": apitest.Start(t, "c2", "10.98.0.0/16,fd00:98::/108")} {
		config, err := kube.Config(kubeconfig, "test")
		w.must(err)
		c := &cluster{kubeconfig: kubeconfig, broker: filepath.Join(w.dir, id+".join"), held: map[client.ObjectKey][]string{}}
		c.WithWatch, err = client.NewWithWatch(config, client.Options{Scheme: scheme})
		w.must(err)
		text, err := os.ReadFile(c1)
		w.must(err)
		joined := strings.Replace(string(text), "user: admin}}", "user: admin, namespace: fastnet-"+id+"}}", 1)
		w.must(os.WriteFile(c.broker, []byte(joined), 0o600))
		w.clusters[id] = c
		for _, crd := range append(member, hub...) {
			w.must(client.IgnoreAlreadyExists(c.Create(w.ctx, crd.DeepCopy())))
		}
		w.namespace(c, v1alpha1.Namespace)
		w.namespace(c, "fastnet-c1")
		w.namespace(c, "fastnet-c2")
	}
	w.eventually("the CRDs are served", func() error {
		for _, c := range w.clusters {
			for _, list := range []client.ObjectList{&mcsv1beta1.ServiceExportList{}, &mcsv1beta1.ServiceImportList{}, &v1alpha1.EndpointList{}, &v1alpha1.ClusterSetList{}} {
				if err := c.List(w.ctx, list); err != nil {
					return err
				}
			}
		}
		return client.IgnoreAlreadyExists(w.clusters["c1"].Create(w.ctx, &v1alpha1.ClusterSet{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterSetName},
			Spec:       v1alpha1.ClusterSetSpec{Name: "demo", Members: []v1alpha1.Member{{ClusterID: "c1", Namespace: "fastnet-c1"}, {ClusterID: "c2", Namespace: "fastnet-c2"}}},
		}))
	})
	program := w.buildDNS()
	for id, c := range w.clusters {
		c.dns = w.serveDNS(id, program)
		w.follow(id)
		w.eventually(id+"'s DNS answers", func() error {
			_, none, err := asked(c.dns, "web", "nowhere", dns.TypeA)
			if err == nil && none != "NXDOMAIN" {
				err = errors.New(none)
			}
			return err
		})
		w.listen(id)
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) namespace(c *cluster, name string) {
	w.t.Helper()
	w.must(client.IgnoreAlreadyExists(c.Create(w.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})))
}

func (w *world) eventually(what string, try func() error) {
	w.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(50*time.Millisecond) // each look is a dozen lists
	defer tick.Stop()
	for err := try(); err != nil; err = try() {
		select {
		case <-deadline:
			w.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// process is an agent.
type process struct {
	command *exec.Cmd
	ended   chan struct{} // closed when it has
	address string
}

// start starts a cluster's agent and returns when it is ready, or has been killed.
func (w *world) start(id, failpoint string) {
	w.t.Helper()
	c := w.clusters[id]
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	address := listener.Addr().String()
	w.must(listener.Close())
	log, err := os.OpenFile(filepath.Join(w.dir, id+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	w.must(err)
	defer log.Close()
	p := &process{ended: make(chan struct{}), address: address}
	p.command = exec.Command(w.program, "--cluster-id", id, "--kubeconfig", c.kubeconfig, "--broker-kubeconfig", c.broker, "--http-address", address)
	p.command.Env = append(os.Environ(), "FASTNET_FAILPOINT="+failpoint)
	p.command.Stdout, p.command.Stderr = log, log
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	w.must(p.command.Start())
	go func() { _ = p.command.Wait(); close(p.ended) }()
	w.t.Cleanup(func() { _ = p.command.Process.Kill(); <-p.ended })
	c.agent = p
	w.eventually(id+"'s agent is ready", func() error {
		if p.dead() {
			return nil
		}
		response, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

func (p *process) dead() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// tell tells the story once, and says how long it took from the kill until the step was done, and whether there was one.
func (w *world) tell(namespace, failpoint string) (took time.Duration, killed bool) {
	w.t.Helper()
	w.start("c1", failpoint)
	agent := w.clusters["c1"].agent
	w.mu.Lock()
	w.offered[namespace] = map[string]bool{}
	w.telling = namespace
	w.mu.Unlock()
	for _, c := range w.clusters {
		w.namespace(c, namespace)
	}
	var died time.Time
	for _, step := range story {
		w.must(step.do(w, namespace))
		what := namespace + ", step " + step.name
		again := func() {
			if agent.dead() && !killed {
				killed, died = true, time.Now()
				w.start("c1", "")
			}
		}
		if *update && failpoint == "" {
			w.want[step.name] = w.quiet(namespace)
		}
		w.eventually(what, func() error {
			again()
			got, err := w.shown(namespace)
			if diff := gocmp.Diff(w.want[step.name], got); err == nil && diff != "" {
				err = fmt.Errorf("(-want +got):\n%s", diff)
			}
			return err
		})
		if !died.IsZero() && took == 0 {
			took = time.Since(died)
		}
	}
	if !killed && agent.dead() { // at the very last write: nothing is left to be done
		return 0, true
	}
	last := w.clusters["c1"].agent
	w.must(last.command.Process.Signal(syscall.SIGTERM))
	<-last.ended
	return took, killed
}

// quiet is the state when it has not changed for a while; for -update alone.
func (w *world) quiet(namespace string) string {
	last, since := "", time.Now()
	for time.Since(since) < 3*time.Second {
		now, err := w.shown(namespace)
		w.must(err)
		if now != last {
			last, since = now, time.Now()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return last
}

// offer has addresses count as offered, or no longer.
func (w *world) offer(namespace string, yes bool, addresses ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, address := range addresses {
		w.offered[namespace][address] = yes
	}
}

// service makes a Service with both families; without a port a headless one, which is global.
func (w *world) service(id, ns, name string, port int32) error {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       corev1.ServiceSpec{IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack), Ports: []corev1.ServicePort{{Name: "http", Port: port}}},
	}
	if id == "c1" && port != 0 { // a conflict, in which both serve the port that they share
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: "more", Port: port + 1})
	}
	if port == 0 {
		service.Annotations = map[string]string{v1alpha1.AnnotationGlobal: "true"}
		service.Spec.ClusterIP, service.Spec.Ports[0].Port = corev1.ClusterIPNone, 5432
	}
	err := w.clusters[id].Create(w.ctx, service)
	w.offer(ns, true, service.Spec.ClusterIPs...)
	return err
}

// slice makes the backends of a Service, of one family, these; what was there before is no longer offered.
func (w *world) slice(id, ns, service string, addresses ...string) error {
	c := w.clusters[id]
	want := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: service + "-4", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
	}
	if id == "c1" && service == "web" {
		want.Ports = append(want.Ports, discoveryv1.EndpointPort{Name: new("more"), Port: new(int32(8081)), Protocol: new(corev1.ProtocolTCP)})
	}
	if strings.Contains(addresses[0], ":") {
		want.Name, want.AddressType = service+"-6", discoveryv1.AddressTypeIPv6
	}
	for i, address := range addresses {
		want.Endpoints = append(want.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}, Hostname: new(fmt.Sprintf("%s-%d", service, i))})
	}
	w.offer(ns, true, addresses...)
	have := want.DeepCopy()
	err := c.Get(w.ctx, client.ObjectKeyFromObject(want), have)
	if apierrors.IsNotFound(err) {
		return c.Create(w.ctx, want)
	}
	if err != nil {
		return err
	}
	before := have.Endpoints
	have.Endpoints = want.Endpoints
	if err := c.Update(w.ctx, have); err != nil {
		return err
	}
	for _, endpoint := range before {
		if !slices.Contains(addresses, endpoint.Addresses[0]) {
			w.offer(ns, false, endpoint.Addresses...)
		}
	}
	return nil
}

func (w *world) export(id, ns, name string) error {
	return w.clusters[id].Create(w.ctx, &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
}

// unexport takes an export back: nothing of it is offered from then on.
func (w *world) unexport(id, ns, name string) error {
	if err := w.clusters[id].Delete(w.ctx, &mcsv1beta1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}); err != nil {
		return err
	}
	var service corev1.Service
	if err := w.clusters[id].Get(w.ctx, client.ObjectKey{Namespace: ns, Name: name}, &service); err != nil {
		return err
	}
	w.offer(ns, false, service.Spec.ClusterIPs...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for address := range w.offered[ns] {
		if prefix := strings.TrimPrefix(id, "c"); strings.HasPrefix(address, "10."+prefix+".") || strings.HasPrefix(address, "fd00:"+prefix+"::") {
			w.offered[ns][address] = false
		}
	}
	return nil
}

func (w *world) change(id string, object client.Object, change func(client.Object)) error {
	var err error
	for range 10 { // the agent writes to it as well
		if err = w.clusters[id].Get(w.ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		change(object)
		if err = w.clusters[id].Update(w.ctx, object); !apierrors.IsConflict(err) {
			return err
		}
	}
	return err
}

func gatewayOf(id, ns string) *v1alpha1.Endpoint {
	return &v1alpha1.Endpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: id + "." + ns, Labels: map[string]string{v1alpha1.LabelSourceCluster: id}},
		Spec: v1alpha1.EndpointSpec{
			ClusterID: id, ClusterUID: id, Node: ns, Drivers: []v1alpha1.EndpointDriver{{Name: "wireguard"}}, Addresses: []string{"192.0.2.1", "2001:db8::1"}, Port: 4500, Prefixes: []string{"10.200.0.0/16"},
		},
	}
}

func (w *world) gateway(id, ns string) error {
	return w.clusters[id].Create(w.ctx, gatewayOf(id, ns))
}

func (w *world) ungateway(id, ns string) error {
	return w.clusters[id].Delete(w.ctx, gatewayOf(id, ns))
}

// follow watches what a cluster's agent makes, for what it may never make.
func (w *world) follow(id string) {
	c := w.clusters[id]
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	w.t.Cleanup(func() { stop(); running.Wait() })
	follow := func(list client.ObjectList, take func(watch.Event), options ...client.ListOption) {
		open := func() watch.Interface {
			events, err := c.Watch(ctx, list, options...)
			if err != nil && ctx.Err() == nil {
				w.t.Errorf("%s: %v", id, err)
			}
			return events
		}
		events := open()
		running.Go(func() {
			for events != nil {
				select {
				case <-ctx.Done():
					events.Stop()
					return
				case event, ok := <-events.ResultChan():
					if ok {
						take(event)
						continue
					}
					events = nil
					if ctx.Err() == nil {
						events = open() // begins with all that there is
					}
				}
			}
		})
	}
	follow(&discoveryv1.EndpointSliceList{}, func(event watch.Event) {
		if slice, ok := event.Object.(*discoveryv1.EndpointSlice); ok {
			w.sawSlice(id, slice, event.Type == watch.Deleted)
		}
	}, client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy})
	follow(&mcsv1beta1.ServiceImportList{}, func(event watch.Event) {
		if imported, ok := event.Object.(*mcsv1beta1.ServiceImport); ok && event.Type != watch.Deleted {
			w.sawImport(ctx, id, imported)
		}
	})
}

// sawSlice complains of an address that comes to a cluster though nobody offers it. One that was there may stay for a while.
func (w *world) sawSlice(id string, slice *discoveryv1.EndpointSlice, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.clusters[id]
	var now []string
	for _, endpoint := range slice.Endpoints {
		now = append(now, endpoint.Addresses...)
	}
	if gone {
		delete(c.held, client.ObjectKeyFromObject(slice))
		return
	}
	had := map[string]bool{}
	for key, addresses := range c.held {
		for _, address := range addresses {
			had[address] = had[address] || key.Namespace == slice.Namespace
		}
	}
	c.held[client.ObjectKeyFromObject(slice)] = now
	for _, address := range now {
		if offered, known := w.offered[slice.Namespace][address]; !had[address] && !offered {
			w.t.Errorf("%s: %s/%s gets %s, which nobody offers (any more: %v)", id, slice.Namespace, slice.Name, address, known)
		}
	}
}

// sawImport complains of an import that names addresses without a derived Service that has them: a Service comes before the
// import that names it, and goes after.
func (w *world) sawImport(ctx context.Context, id string, imported *mcsv1beta1.ServiceImport) {
	if len(imported.Spec.IPs) == 0 {
		return
	}
	c := w.clusters[id]
	has := func() error {
		var service corev1.Service
		err := c.Get(ctx, client.ObjectKey{Namespace: imported.Namespace, Name: imported.Annotations[v1alpha1.AnnotationDerivedService]}, &service)
		if err == nil && !slices.Equal(slices.Sorted(slices.Values(service.Spec.ClusterIPs)), slices.Sorted(slices.Values(imported.Spec.IPs))) {
			err = fmt.Errorf("its derived Service has %v", service.Spec.ClusterIPs)
		}
		return err
	}
	problem := has()
	if problem == nil {
		return
	}
	// The event may be old, and both gone meanwhile.
	var live mcsv1beta1.ServiceImport
	err := c.Get(ctx, client.ObjectKeyFromObject(imported), &live)
	if ctx.Err() != nil || err != nil || live.UID != imported.UID || !slices.Equal(live.Spec.IPs, imported.Spec.IPs) {
		return
	}
	if problem = has(); problem != nil && ctx.Err() == nil {
		w.t.Errorf("%s: ServiceImport %s/%s has %v: %v", id, imported.Namespace, imported.Name, imported.Spec.IPs, problem)
	}
}

// shown is what both clusters and the broker hold of one telling, as text in which nothing is left that differs from one to the next.
func (w *world) shown(ns string) (string, error) {
	var text strings.Builder
	var problems []error
	for _, id := range slices.Sorted(maps.Keys(w.clusters)) {
		c := w.clusters[id]
		var lines []string
		line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
		read := func(list client.ObjectList, options ...client.ListOption) {
			problems = append(problems, c.List(w.ctx, list, options...))
		}
		var (
			services  corev1.ServiceList
			slices_   discoveryv1.EndpointSliceList
			exports   mcsv1beta1.ServiceExportList
			imports   mcsv1beta1.ServiceImportList
			endpoints v1alpha1.EndpointList
		)
		read(&imports, client.InNamespace(ns))
		read(&services, client.InNamespace(ns))
		read(&slices_, client.InNamespace(ns), client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.ManagedBy})
		read(&exports, client.InNamespace(ns))
		read(&endpoints, client.InNamespace(v1alpha1.Namespace))
		// Addresses that API servers gave out are called by their Service.
		names := map[string]string{}
		for _, s := range services.Items {
			for _, address := range s.Spec.ClusterIPs {
				names[address] = fmt.Sprintf("<%s of %s>", family(address), cmp.Or(derivedOf(&s), s.Name))
			}
		}
		for _, other := range w.clusters { // cluster-address slices have those of other clusters
			var theirs corev1.ServiceList
			problems = append(problems, other.List(w.ctx, &theirs, client.InNamespace(ns)))
			for _, s := range theirs.Items {
				for _, address := range s.Spec.ClusterIPs {
					if names[address] == "" && derivedOf(&s) == "" {
						names[address] = fmt.Sprintf("<%s of %s elsewhere>", family(address), s.Name)
					}
				}
			}
		}
		called := func(addresses []string) string {
			var all []string
			for _, address := range addresses {
				all = append(all, cmp.Or(names[address], address))
			}
			return cmp.Or(strings.Join(all, ","), "-")
		}
		for _, s := range services.Items {
			if of := derivedOf(&s); of != "" {
				line("derived Service of %s: %s, ports %s", of, called(s.Spec.ClusterIPs), ports(s.Spec.Ports))
			}
		}
		for _, s := range slices_.Items {
			var backends, on []string
			for _, endpoint := range s.Endpoints {
				backends = append(backends, called(endpoint.Addresses))
			}
			for _, port := range s.Ports {
				on = append(on, fmt.Sprint(*port.Name, ":", *port.Port))
			}
			serves := ""
			if s.Labels[discoveryv1.LabelServiceName] != "" {
				serves = ", serves"
			}
			line("EndpointSlice of %s from %s%s: %s %s, ports %s%s", s.Labels[v1alpha1.LabelServiceName], s.Labels[v1alpha1.LabelSourceCluster],
				map[bool]string{true: ", its own address"}[s.Labels[v1alpha1.LabelClusterAddress] != ""], s.AddressType, strings.Join(backends, " "), cmp.Or(strings.Join(on, ","), "-"), serves)
		}
		for _, i := range imports.Items {
			var from, on []string
			for _, cluster := range i.Status.Clusters {
				from = append(from, cluster.Cluster)
			}
			for _, port := range i.Spec.Ports {
				on = append(on, fmt.Sprint(port.Name, ":", port.Port))
			}
			line("ServiceImport %s: %s %s, ports %s, clusters %s%s", i.Name, i.Spec.Type, called(i.Spec.IPs), strings.Join(on, ","), strings.Join(from, ","), conditions(i.Status.Conditions))
		}
		for _, e := range exports.Items {
			line("ServiceExport %s:%s", e.Name, conditions(e.Status.Conditions))
		}
		for _, e := range endpoints.Items {
			if e.Spec.Node == ns {
				line("Endpoint of %s", e.Spec.ClusterID)
			}
		}
		answers, err := w.answers(id, ns, called)
		problems = append(problems, err)
		lines = append(lines, answers...)
		if id == "c1" {
			lines = append(lines, w.published(ns, called, &problems)...)
		}
		slices.Sort(lines)
		fmt.Fprintf(&text, "%s\n", id)
		for _, l := range lines {
			fmt.Fprintf(&text, "  %s\n", l)
		}
	}
	return text.String(), errors.Join(problems...)
}

// published is what the broker holds.
func (w *world) published(ns string, called func([]string) string, problems *[]error) []string {
	var lines []string
	var services v1alpha1.ExportedServiceList
	var endpoints v1alpha1.ExportedEndpointsList
	var gateways v1alpha1.EndpointList
	for _, list := range []client.ObjectList{&services, &endpoints, &gateways} {
		*problems = append(*problems, w.clusters["c1"].List(w.ctx, list))
	}
	for _, s := range services.Items {
		if s.Spec.Namespace == ns {
			lines = append(lines, fmt.Sprintf("broker, %s: ExportedService %s %s %s%s", s.Namespace, s.Spec.Name, s.Spec.Type, called(s.Spec.Addresses), withdrawn(s.Spec.Withdrawn)))
		}
	}
	for _, e := range endpoints.Items {
		if e.Spec.Namespace == ns {
			var backends []string
			for _, b := range e.Spec.Backends {
				backends = append(backends, strings.Join(b.Addresses, ","))
			}
			lines = append(lines, fmt.Sprintf("broker, %s: ExportedEndpoints %s %s %s%s", e.Namespace, e.Spec.Service, e.Spec.IPFamily, cmp.Or(strings.Join(backends, " "), "-"), withdrawn(e.Spec.Withdrawn)))
		}
	}
	for _, e := range gateways.Items {
		if e.Namespace != v1alpha1.Namespace && e.Spec.Node == ns {
			lines = append(lines, fmt.Sprintf("broker, %s: Endpoint of %s", e.Namespace, e.Spec.ClusterID))
		}
	}
	return lines
}

func withdrawn(yes bool) string {
	if yes {
		return ", withdrawn"
	}
	return ""
}

// derivedOf is the import whose derived Service this is, "" for any other.
func derivedOf(service *corev1.Service) string { return service.Labels[v1alpha1.LabelServiceName] }

func family(address string) string {
	if strings.Contains(address, ":") {
		return "IPv6"
	}
	return "IPv4"
}

func ports(all []corev1.ServicePort) string {
	var texts []string
	for _, port := range all {
		texts = append(texts, fmt.Sprint(port.Name, ":", port.Port))
	}
	return strings.Join(texts, ",")
}

func conditions(all []metav1.Condition) string {
	var texts []string
	for _, c := range all {
		texts = append(texts, fmt.Sprintf(" %s=%s/%s", c.Type, c.Status, c.Reason))
	}
	slices.Sort(texts)
	return strings.Join(texts, "")
}
