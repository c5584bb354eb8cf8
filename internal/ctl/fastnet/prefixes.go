package fastnet

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

// addressFacts are all the places where a cluster says which ranges it uses. None of them is there in every cluster.
type addressFacts struct {
	nodes        []corev1.Node
	system       []corev1.Pod               // of kube-system: the command lines of the control plane
	serviceCIDRs []networkingv1.ServiceCIDR // Kubernetes 1.33 and newer
	kubeadm      string                     // ClusterConfiguration of the ConfigMap kubeadm-config
}

// ranges are what a cluster uses, and where that was read.
type ranges struct {
	pods, services []netip.Prefix
	podsFrom       string
	servicesFrom   string
}

func (r ranges) prefixes() []netip.Prefix { return compact(slices.Concat(r.pods, r.services)) }

func (c *cluster) addressFacts(ctx context.Context) (addressFacts, error) {
	var facts addressFacts
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return facts, ctl.Explain("list nodes", err)
	}
	facts.nodes = nodes.Items
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(metav1.NamespaceSystem)); err != nil {
		return facts, ctl.Explain("list the pods of kube-system", err)
	}
	facts.system = pods.Items
	var serviceCIDRs networkingv1.ServiceCIDRList
	if err := c.List(ctx, &serviceCIDRs); err != nil && !meta.IsNoMatchError(err) {
		return facts, ctl.Explain("list ServiceCIDRs", err)
	}
	facts.serviceCIDRs = serviceCIDRs.Items
	var kubeadm corev1.ConfigMap
	err := c.Get(ctx, types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "kubeadm-config"}, &kubeadm)
	if err != nil && !apierrors.IsNotFound(err) {
		return facts, ctl.Explain("read kubeadm-config", err)
	}
	facts.kubeadm = kubeadm.Data["ClusterConfiguration"]
	return facts, nil
}

// discover finds the ranges. What a source says that cannot be read as prefixes counts as not said.
func discover(facts addressFacts) ranges {
	var kubeadm struct {
		Networking struct {
			PodSubnet     string `json:"podSubnet"`
			ServiceSubnet string `json:"serviceSubnet"`
		} `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(facts.kubeadm), &kubeadm); err != nil {
		kubeadm.Networking.PodSubnet, kubeadm.Networking.ServiceSubnet = "", ""
	}
	var onNodes, inObjects []netip.Prefix
	for _, node := range facts.nodes {
		perNode := node.Spec.PodCIDRs
		if len(perNode) == 0 && node.Spec.PodCIDR != "" {
			perNode = []string{node.Spec.PodCIDR}
		}
		onNodes = append(onNodes, parsePrefixes(strings.Join(perNode, ","))...)
	}
	for _, object := range facts.serviceCIDRs {
		inObjects = append(inObjects, parsePrefixes(strings.Join(object.Spec.CIDRs, ","))...)
	}

	var found ranges
	type source struct {
		name     string
		prefixes []netip.Prefix
	}
	for _, from := range []source{
		{"--cluster-cidr of the control plane", parsePrefixes(flagOf(facts.system, "--cluster-cidr"))},
		{"kubeadm-config", parsePrefixes(kubeadm.Networking.PodSubnet)},
	} {
		if len(found.pods) == 0 && len(from.prefixes) > 0 {
			found.pods, found.podsFrom = compact(from.prefixes), from.name
		}
	}
	// Each node's own range is a fact whatever a flag says. Alone, it tells nothing of nodes to come.
	var outside []netip.Prefix
	for _, prefix := range onNodes {
		if !slices.ContainsFunc(found.pods, func(wide netip.Prefix) bool { return covers(wide, prefix) }) {
			outside = append(outside, prefix)
		}
	}
	switch {
	case len(outside) > 0 && len(found.pods) == 0:
		found.pods, found.podsFrom = compact(outside), "the nodes' podCIDRs, one by one: nodes added later lie outside"
	case len(outside) > 0:
		found.pods = compact(slices.Concat(found.pods, outside))
		found.podsFrom += " and the nodes' podCIDRs"
	}
	for _, from := range []source{
		{"ServiceCIDR objects", inObjects},
		{"--service-cluster-ip-range of the control plane", parsePrefixes(flagOf(facts.system, "--service-cluster-ip-range"))},
		{"kubeadm-config", parsePrefixes(kubeadm.Networking.ServiceSubnet)},
	} {
		if len(found.services) == 0 && len(from.prefixes) > 0 {
			found.services, found.servicesFrom = compact(from.prefixes), from.name
		}
	}
	return found
}

// flagOf is the value of a flag on the command line of any pod.
func flagOf(pods []corev1.Pod, flag string) string {
	for _, pod := range pods {
		for _, container := range pod.Spec.Containers {
			words := slices.Concat(container.Command, container.Args)
			for i, word := range words {
				if value, ok := strings.CutPrefix(word, flag+"="); ok {
					return value
				}
				if word == flag && i+1 < len(words) {
					return words[i+1]
				}
			}
		}
	}
	return ""
}

// parsePrefixes reads a list with commas, and gives none where any of it is no prefix.
func parsePrefixes(list string) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, text := range strings.Split(list, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	return prefixes
}

// givenPrefixes reads the user's list, and is strict.
func givenPrefixes(list []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, text := range list {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		switch {
		case err != nil:
			return nil, ctl.Usagef("--prefixes: %q is no CIDR, as in 10.8.0.0/16 or fd00:8::/48", text)
		case prefix != prefix.Masked():
			return nil, ctl.Usagef("--prefixes: %s has bits set behind its length; did you mean %s?", prefix, prefix.Masked())
		case prefix.Bits() == 0:
			return nil, ctl.Usagef("--prefixes: %s is everything", prefix)
		}
		prefixes = append(prefixes, prefix)
	}
	return compact(prefixes), nil
}

func covers(wide, narrow netip.Prefix) bool {
	return wide.Bits() <= narrow.Bits() && wide.Contains(narrow.Addr())
}

// compact sorts, IPv4 first, and drops what another prefix covers.
func compact(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var kept []netip.Prefix
	for _, prefix := range sorted {
		if !slices.ContainsFunc(kept, func(wide netip.Prefix) bool { return covers(wide, prefix) }) {
			kept = append(kept, prefix)
		}
	}
	return kept
}

// overlaps names every overlap of our prefixes with those of other clusters, a line each. A cluster's gateways all
// publish the same prefixes.
func overlaps(id string, ours []netip.Prefix, endpoints []v1alpha1.Endpoint) []string {
	var lines []string
	for _, endpoint := range endpoints {
		if endpoint.Spec.ClusterID == id {
			continue
		}
		for _, theirs := range parsePrefixes(strings.Join(endpoint.Spec.Prefixes, ",")) {
			for _, mine := range ours {
				if mine.Overlaps(theirs) {
					lines = append(lines, fmt.Sprintf("%s of this cluster overlaps %s of cluster %s", mine, theirs, endpoint.Spec.ClusterID))
				}
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func prefixStrings(prefixes []netip.Prefix) []string {
	list := make([]string, 0, len(prefixes))
	for _, prefix := range prefixes {
		list = append(list, prefix.String())
	}
	return list
}

// dnsAddress is the address that a kubelet's clusterDNS has by custom: the tenth of the service range.
func dnsAddress(services netip.Prefix) (netip.Addr, bool) {
	address := services.Addr()
	for range 10 {
		address = address.Next()
	}
	return address, services.Contains(address)
}
