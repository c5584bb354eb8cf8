package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// peerAddresses are those at which others reach this node, the preferred first: what its annotation says, those of load balancers
// before it, then its own, from outside and from inside. Peers try one after the other, so a wrong one costs time and nothing else.
func peerAddresses(node *corev1.Node, balancers []corev1.Service) (addresses []netip.Addr, problems []string) {
	add := func(text string) error {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err == nil && !slices.Contains(addresses, addr) {
			addresses = append(addresses, addr)
		}
		return err
	}
	if given, ok := node.Annotations[v1alpha1.AnnotationAddresses]; ok {
		for text := range strings.SplitSeq(given, ",") {
			if err := add(text); err != nil {
				problems = append(problems, fmt.Sprintf("annotation %s of the node: %q is no IP address", v1alpha1.AnnotationAddresses, text))
			}
		}
	}
	slices.SortFunc(balancers, func(a, b corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	for _, service := range balancers {
		if service.Spec.Type != corev1.ServiceTypeLoadBalancer {
			problems = append(problems, fmt.Sprintf("Service %s has the label %s and is no LoadBalancer", service.Name, v1alpha1.LabelGatewayAddress))
			continue
		}
		if len(service.Status.LoadBalancer.Ingress) == 0 {
			problems = append(problems, fmt.Sprintf("Service %s has no address from its load balancer yet", service.Name))
		}
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			if err := add(ingress.IP); err != nil {
				problems = append(problems, fmt.Sprintf("the load balancer of Service %s has the name %q and no address: put its addresses into the annotation %s of the node",
					service.Name, ingress.Hostname, v1alpha1.AnnotationAddresses))
			}
		}
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
		for _, address := range node.Status.Addresses {
			if address.Type == kind {
				_ = add(address.Address) // a node may have names here
			}
		}
	}
	return addresses, problems
}
