//go:build e2e

package mcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/test/story"
)

// deploy runs one pod of an image of the lab.
func (e *scene) deploy(cluster, name, image string, command ...string) {
	e.t.Helper()
	e.create(cluster, e.deployment(name, image, command...))
}

func (e *scene) deployment(name, image string, command ...string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: e.meta(name), Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr(int64(1)),
			Containers: []corev1.Container{{
				Name: name, Image: "fastnet.dev/" + image + ":dev", Command: command,
				Env: []corev1.EnvVar{{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}},
			}},
		}},
	}}
}

// inClient runs a command line in the scene's client pod in c1.
func (e *scene) inClient(ctx context.Context, line string) (string, error) {
	return e.teller.Output(ctx, "kubectl --context c1 -n "+e.ns+" exec deploy/client -- "+line)
}

func (e *scene) client() { e.deploy("c1", "client", "toolbox", "sleep", "infinity") }

// asked waits until the answers to a DNS question are these, in any order.
func (e *scene) asked(question string, want ...string) {
	e.t.Helper()
	slices.Sort(want)
	eventually(e.t, "the answer to "+question, func(ctx context.Context) error {
		out, err := e.inClient(ctx, "dig +short +tries=1 +time=2 "+question)
		got := slices.Sorted(strings.SplitSeq(strings.TrimSpace(out), "\n"))
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%q, want %q", got, want)
		}
		return err
	})
}

func (e *scene) noSuchName(name string) {
	e.t.Helper()
	eventually(e.t, "no name "+name, func(ctx context.Context) error {
		out, err := e.inClient(ctx, "dig +tries=1 +time=2 "+name)
		if err == nil && !strings.Contains(out, "status: NXDOMAIN") {
			err = fmt.Errorf("the answer is\n%s", out)
		}
		return err
	})
}

// record is the type of a family's DNS records.
var record = map[corev1.IPFamily]string{corev1.IPv4Protocol: "A", corev1.IPv6Protocol: "AAAA"}

// answered waits until four requests in a row to a URL, over one family, are answered by pods of a cluster. It gives the last answer.
func (e *scene) answered(from func(ctx context.Context, line string) (string, error), family corev1.IPFamily, url, cluster string) story.Answer {
	e.t.Helper()
	flag := map[corev1.IPFamily]string{corev1.IPv4Protocol: "-4", corev1.IPv6Protocol: "-6"}[family]
	var a story.Answer
	eventually(e.t, "answers of "+cluster+" to "+url, func(ctx context.Context) error {
		out, err := from(ctx, fmt.Sprintf("sh -c 'for i in 1 2 3 4; do curl -sS %s --max-time 2 %s || exit 1; done'", flag, url))
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if err := json.Unmarshal([]byte(line), &a); err != nil || !strings.HasPrefix(a.Node, cluster+"-") {
				return fmt.Errorf("answered by %q (%v), want %s", a.Node, err, cluster)
			}
		}
		return nil
	})
	return a
}

func (e *scene) name(zone string) string { return fmt.Sprintf("%s.%s.svc.%s", web, e.ns, zone) }

// One cluster has the port http, another admin: the client finds both under one name and one address, and each connection goes to the
// cluster that has the port. The name in cluster.local is what it was: the cluster's own Service, or nothing.
func perPortRouting(t *testing.T, w *world) {
	e := w.scene(t)
	servers := map[string]corev1.ServicePort{"c2": servicePort("http", 80), w.names[(2)%len(w.names)]: servicePort("admin", 8080)}
	own := ""
	for c, port := range servers {
		port.TargetPort = intstr.FromInt32(80)
		e.deploy(c, "server", "whereami")
		s := e.service(c, withPorts(port), selecting("server"))
		e.export(c)
		if c == "c1" {
			own = s.Spec.ClusterIP
		}
	}
	e.client()
	i := e.imported("c1", fromClusters(sortedKeys(servers)...))
	for _, ip := range i.Spec.IPs {
		family := familyOf(ip)
		e.asked(e.name("clusterset.local")+" "+record[family], ip)
		for cluster, port := range servers {
			e.answered(e.inClient, family, fmt.Sprintf("http://%s:%d", e.name("clusterset.local"), port.Port), cluster)
		}
	}
	if own == "" {
		e.noSuchName(e.name("cluster.local"))
	} else {
		e.asked(e.name("cluster.local")+" "+record[familyOf(own)], own)
	}
	for c := range servers {
		e.delete(c, e.newExport())
	}
	e.noSuchName(e.name("clusterset.local"))
}

func sortedKeys(m map[string]corev1.ServicePort) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// A headless service is the ready backends of all its clusters, and each that has a host name has a name, with its cluster in it.
func headlessNames(t *testing.T, w *world) {
	e := w.scene(t)
	e.client()
	for _, c := range []string{"c1", "c2"} {
		s := e.service(c, headless)
		for _, family := range w.families {
			e.backendsOf(c, "web-"+strings.ToLower(string(family)), family, s, 2, func(s *discoveryv1.EndpointSlice) {
				s.Endpoints[0].Hostname = ptr("first")
				s.Endpoints[1].Hostname, s.Endpoints[1].Conditions.Ready = ptr("second"), ptr(false)
			})
		}
		e.export(c)
	}
	zone := e.name("clusterset.local")
	for _, family := range w.families {
		e.asked(zone+" "+record[family], address("c1", family, 0), address("c2", family, 0))
		e.asked("first.c2."+zone+" "+record[family], address("c2", family, 0))
	}
	e.noSuchName("third.c2." + zone)
}

// Pods, and processes on nodes whether gateway or not, reach what another cluster exports in every family that the clusters have: by
// the clusterset IP, and by the names of a headless service and of its pod. Pods are seen there under their own addresses.
func everyFamilyCarries(t *testing.T, w *world) {
	t.Run("ClusterSetIP", func(t *testing.T) {
		e := w.scene(t)
		e.deploy("c2", "server", "whereami")
		e.service("c2", selecting("server"))
		e.export("c2")
		e.clients()
		for _, ip := range e.imported("c1", fromClusters("c2")).Spec.IPs {
			e.reaches(familyOf(ip), ip, e.name("clusterset.local"))
		}
	})
	t.Run("Headless", func(t *testing.T) {
		e := w.scene(t)
		server := e.deployment("server", "whereami")
		server.Spec.Template.Spec.Hostname, server.Spec.Template.Spec.Subdomain = "first", web
		e.create("c2", server)
		e.service("c2", headless, selecting("server"))
		e.export("c2")
		e.clients()
		e.imported("c1", fromClusters("c2"))
		for _, ip := range e.podAddresses("c2", "server", len(w.families)) {
			for _, name := range []string{e.name("clusterset.local"), "first.c2." + e.name("clusterset.local")} {
				e.asked(name+" "+record[familyOf(ip)], ip)
				e.reaches(familyOf(ip), ip, name)
			}
		}
	})
}

// clients are the client pod, and a pod on every node: a node speaks to other clusters from the address that it has towards its pods,
// which with most CNIs it has only where there are any.
func (e *scene) clients() {
	e.t.Helper()
	e.client()
	for _, node := range e.lab.Cluster("c1").Nodes() {
		company := e.deployment("company-"+node.Role(), "toolbox", "sleep", "infinity")
		company.Spec.Template.Spec.NodeName = node.Name()
		e.create("c1", company)
	}
}

func selecting(app string) changeService {
	return func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": app} }
}

// reaches sees that c1 reaches c2 at an address of a family: the client by its name, and each node of c1 as it is.
func (e *scene) reaches(family corev1.IPFamily, ip, name string) {
	e.t.Helper()
	a := e.answered(e.inClient, family, "http://"+name, "c2")
	if client := e.podAddresses("c1", "client", len(e.families)); !slices.Contains(client, a.Caller) {
		e.t.Errorf("over %s the server saw %s, want the pod's own address, of %v", family, a.Caller, client)
	}
	for _, node := range e.lab.Cluster("c1").Nodes() {
		onNode := func(ctx context.Context, line string) (string, error) {
			out, err := node.Command(ctx, "sh", "-c", line).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("on %s: %w: %s", node.Name(), err, out)
			}
			return string(out), err
		}
		e.answered(onNode, family, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String(), "c2")
	}
}

// podAddresses waits until the one pod of a deployment has so many.
func (e *scene) podAddresses(cluster, app string, number int) (all []string) {
	e.t.Helper()
	eventually(e.t, fmt.Sprintf("%d addresses of the pod %s in %s", number, app, cluster), func(ctx context.Context) error {
		var pods corev1.PodList
		if err := e.api[cluster].List(ctx, &pods, client.InNamespace(e.ns), client.MatchingLabels{"app": app}); err != nil {
			return err
		}
		if len(pods.Items) != 1 || len(pods.Items[0].Status.PodIPs) != number {
			return fmt.Errorf("%d pods: %+v", len(pods.Items), pods.Items)
		}
		all = nil
		for _, ip := range pods.Items[0].Status.PodIPs {
			all = append(all, ip.IP)
		}
		return nil
	})
	return all
}

// What the tool shows is of the families that there are, and of no other: the ranges of clusters, the gateways' addresses, and the ways of
// every node, all of which are used and up.
func showKnowsTheFamilies(t *testing.T, w *world) {
	var all struct {
		Clusters []struct {
			ClusterID, State string
			Prefixes         []string
		}
		Gateways    []struct{ Addresses []string }
		Connections []struct{ State, PeerAddress string }
		Routes      []struct {
			Node, ClusterID, Family, State string
			Live, Used                     bool
		}
		Problems []string
	}
	show := func(ctx context.Context, what string) error {
		out, err := w.teller.Output(ctx, "kubectl fastnet --context c1 show "+what+" -o json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &all)
	}
	defer func() {
		if t.Failed() {
			for _, c := range w.names {
				out, err := w.teller.Output(context.WithoutCancel(t.Context()), "kubectl fastnet --context "+c+" show all; kubectl --context "+c+" -n fastnet-system logs daemonset/fastnet-gateway --tail=60")
				t.Logf("%s (%v):\n%s", c, err, out)
			}
		}
	}()
	eventually(t, "all ways up", func(ctx context.Context) error {
		all.Routes = nil
		if err := errors.Join(show(ctx, "all"), show(ctx, "routes")); err != nil {
			return err
		}
		if len(all.Problems) > 0 {
			return fmt.Errorf("problems %q", all.Problems)
		}
		ways := map[string]bool{}
		for _, r := range all.Routes {
			if !r.Live || !r.Used || r.State != "up" || !w.has(corev1.IPFamily(r.Family)) {
				return fmt.Errorf("way %+v", r)
			}
			ways[r.Node+" "+r.ClusterID+" "+r.Family] = true
		}
		if want := len(w.lab.Cluster("c1").Nodes()) * (len(w.names) - 1) * len(w.families); len(ways) != want {
			return fmt.Errorf("%d ways, want %d: %v", len(ways), want, ways)
		}
		return nil
	})
	if len(all.Clusters) != len(w.names) || len(all.Gateways) != 1 || len(all.Connections) != len(w.names)-1 {
		t.Errorf("%d clusters, %d gateways, %d connections: %+v", len(all.Clusters), len(all.Gateways), len(all.Connections), all)
	}
	for _, c := range all.Clusters {
		var want []string
		for _, prefix := range slices.Concat(w.lab.Cluster(c.ClusterID).Pods(), w.lab.Cluster(c.ClusterID).Services()) {
			want = append(want, prefix.String())
		}
		if slices.Sort(want); !slices.Equal(slices.Sorted(slices.Values(c.Prefixes)), want) {
			t.Errorf("%s has %v, want %v", c.ClusterID, c.Prefixes, want)
		}
	}
	for _, g := range all.Gateways {
		var want []string
		for _, address := range w.lab.Node("c1", "worker1").Addrs() {
			want = append(want, address.String())
		}
		if !slices.Equal(g.Addresses, want) {
			t.Errorf("the gateway has %v, want %v", g.Addresses, want)
		}
	}
	for _, c := range all.Connections {
		if peer, err := netip.ParseAddrPort(c.PeerAddress); err != nil || c.State != "up" || !w.has(familyOf(peer.Addr().String())) {
			t.Errorf("connection %+v (%v)", c, err)
		}
	}
}

// Without this the rest would prove little: nodes have no address, and no route of ours, of a family that their cluster has not. What
// the kernel gives itself (loopback, IPv6 link-local) does not count, nor does the anchor of our devices, which is in no packet.
func nodesHaveNoOtherFamily(t *testing.T, w *world) {
	for _, c := range w.lab.Clusters() {
		for _, node := range c.Nodes() {
			out, err := node.Command(t.Context(), "sh", "-c", "ip -o address show | awk '{print $2, $4}'; "+
				"for flag in -4 -6; do ip $flag -o route show table all type unicast | awk '{print \"route\", $1}'; done").Output()
			if err != nil {
				t.Fatal(err)
			}
			seen := map[corev1.IPFamily]bool{}
			for line := range strings.Lines(string(out)) {
				link, text, _ := strings.Cut(strings.TrimSpace(line), " ")
				prefix, err := netip.ParsePrefix(text)
				if address, e := netip.ParseAddr(text); e == nil { // a route to one address
					prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
				}
				if err != nil { // default, and words of multipath routes
					continue
				}
				address := prefix.Addr()
				if address.IsLoopback() || address.IsLinkLocalUnicast() && address.Is6() || address.IsMulticast() || prefix == cables.Anchor {
					continue
				}
				if seen[familyOf(text)] = true; !w.has(familyOf(text)) {
					t.Errorf("%s has %s on %s", node.Name(), prefix, link)
				}
			}
			if len(seen) != len(w.families) {
				t.Errorf("%s has addresses of %v, want %v", node.Name(), seen, w.families)
			}
		}
	}
}
