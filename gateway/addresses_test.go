package gateway

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func TestPeerAddresses(t *testing.T) {
	own := []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"},
		{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}, {Type: corev1.NodeExternalIP, Address: "n.example.org"},
	}
	balancer := func(name string, kind corev1.ServiceType, ingress ...corev1.LoadBalancerIngress) corev1.Service {
		return corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Type: kind},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: ingress}}}
	}
	for _, c := range []struct {
		name, annotation string
		balancers        []corev1.Service
		want, problem    string
	}{
		{name: "the node's own", want: "203.0.113.1 192.0.2.1 2001:db8::1"},
		{name: "an annotation", annotation: "2001:db8::9, 203.0.113.9", want: "2001:db8::9 203.0.113.9 203.0.113.1 192.0.2.1 2001:db8::1"},
		{name: "one that is there already", annotation: "192.0.2.1", want: "192.0.2.1 203.0.113.1 2001:db8::1"},
		{name: "one that is none", annotation: "gw.example.org", want: "203.0.113.1 192.0.2.1 2001:db8::1", problem: `annotation fastnet.dev/gateway-addresses of the node: "gw.example.org" is no IP address`},
		{name: "load balancers", balancers: []corev1.Service{
			balancer("lb-6", corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{IP: "2001:db8::7"}),
			balancer("lb-4", corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{IP: "198.51.100.7"}),
		}, want: "198.51.100.7 2001:db8::7 203.0.113.1 192.0.2.1 2001:db8::1"},
		{name: "without an address yet", balancers: []corev1.Service{balancer("lb", corev1.ServiceTypeLoadBalancer)},
			want: "203.0.113.1 192.0.2.1 2001:db8::1", problem: "Service lb has no address from its load balancer yet"},
		{name: "with a name", balancers: []corev1.Service{balancer("lb", corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{Hostname: "lb.example.org"})},
			want:    "203.0.113.1 192.0.2.1 2001:db8::1",
			problem: `the load balancer of Service lb has the name "lb.example.org" and no address: put its addresses into the annotation fastnet.dev/gateway-addresses of the node`},
		{name: "of another type", balancers: []corev1.Service{balancer("lb", corev1.ServiceTypeNodePort)},
			want: "203.0.113.1 192.0.2.1 2001:db8::1", problem: "Service lb has the label fastnet.dev/gateway-address-of and is no LoadBalancer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := &corev1.Node{Status: corev1.NodeStatus{Addresses: own}}
			if c.annotation != "" {
				node.Annotations = map[string]string{v1alpha1.AnnotationAddresses: c.annotation}
			}
			addresses, problems := peerAddresses(node, c.balancers)
			if diff := cmp.Diff(c.want, strings.Trim(fmt.Sprint(addresses), "[]")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(c.problem, strings.Join(problems, "; ")); diff != "" {
				t.Errorf("problems: -want +got:\n%s", diff)
			}
		})
	}
}
