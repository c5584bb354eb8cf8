//go:build e2e

package mcs

import (
	"context"
	"encoding/json"
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

	"github.com/fastnet-io/fastnet/test/story"
)

// deploy runs one pod of an image of the lab.
func (e *scene) deploy(cluster, name, image string, command ...string) {
	e.t.Helper()
	labels := map[string]string{"app": name}
	e.create(cluster, &appsv1.Deployment{ObjectMeta: e.meta(name), Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr(int64(1)),
			Containers: []corev1.Container{{
				Name: name, Image: "fastnet.dev/" + image + ":dev", Command: command,
				Env: []corev1.EnvVar{{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}},
			}},
		}},
	}})
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
		s := e.service(c, withPorts(port), func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "server"} })
		e.export(c)
		if c == "c1" {
			own = s.Spec.ClusterIP
		}
	}
	e.client()
	i := e.imported("c1", fromClusters(sortedKeys(servers)...))
	families := []struct{ record, flag string }{{"A", "-4"}, {"AAAA", "-6"}}
	for n, ip := range i.Spec.IPs {
		e.asked(e.name("clusterset.local")+" "+families[n].record, ip)
		for cluster, port := range servers {
			eventually(t, "answers of "+cluster, func(ctx context.Context) error {
				out, err := e.inClient(ctx, fmt.Sprintf("sh -c 'for i in 1 2 3 4; do curl -sS %s --max-time 2 http://%s:%d || exit 1; done'",
					families[n].flag, e.name("clusterset.local"), port.Port))
				if err != nil {
					return err
				}
				for line := range strings.Lines(out) {
					var a story.Answer
					if err := json.Unmarshal([]byte(line), &a); err != nil || !strings.HasPrefix(a.Node, cluster+"-") {
						return fmt.Errorf("port %d answered by %q (%v), want %s", port.Port, a.Node, err, cluster)
					}
				}
				return nil
			})
		}
	}
	if own == "" {
		e.noSuchName(e.name("cluster.local"))
	} else {
		e.asked(e.name("cluster.local")+" A", own)
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
		e.service(c, headless)
		e.backends(c, "web-1", 2, func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Hostname = ptr("first")
			s.Endpoints[1].Hostname, s.Endpoints[1].Conditions.Ready = ptr("second"), ptr(false)
		}, apart(c))
		if w.dual {
			e.backends(c, "web-2", 1, func(s *discoveryv1.EndpointSlice) {
				s.AddressType = discoveryv1.AddressTypeIPv6
				s.Endpoints[0].Addresses = []string{address(c, s.AddressType, 0)}
				s.Endpoints[0].Hostname = ptr("first")
			})
		}
		e.export(c)
	}
	zone := e.name("clusterset.local")
	e.asked(zone+" A", "198.51.1.1", "198.51.2.1")
	e.asked("first.c2."+zone+" A", "198.51.2.1")
	if w.dual {
		e.asked(zone+" AAAA", canonical("2001:db8:1::1"), canonical("2001:db8:2::1"))
		e.asked("first.c1."+zone+" AAAA", canonical("2001:db8:1::1"))
	}
	e.noSuchName("third.c2." + zone)
}

// apart gives the backends of each cluster addresses of their own.
func apart(cluster string) changeSlice {
	return func(s *discoveryv1.EndpointSlice) {
		for i := range s.Endpoints {
			s.Endpoints[i].Addresses = []string{fmt.Sprintf("198.51.%s.%d", strings.TrimPrefix(cluster, "c"), i+1)}
		}
	}
}

func canonical(text string) string { return netip.MustParseAddr(text).String() }
