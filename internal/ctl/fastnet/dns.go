package fastnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/helm"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

// Ways to give a cluster the names of the clusterset.
const (
	dnsCluster    = "cluster"
	dnsStandalone = "standalone"
	dnsNone       = "none"
)

const zone = "clusterset.local"

// What Fastnet writes into a Corefile stands between these two lines.
const (
	blockBegin = "# BEGIN fastnet"
	blockEnd   = "# END fastnet"
)

// savedDNS is the ConfigMap, in kube-system, that holds what the cluster's DNS was before join took it over.
const savedDNS = "fastnet-saved-dns"

// Names of the cluster's own DNS, as kubeadm and most installers have them.
func dnsName(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: name}
}

// lighthouseBlock is the chart's own server block of the zone.
func lighthouseBlock() string {
	return zone + `:53 {
    errors
    prometheus :9153
    lighthouse ` + zone + ` {
        cluster_names
        snapshot /var/lib/lighthouse/snapshot
    }
    loadbalance
}`
}

// forwardBlock sends the zone's questions to the stand-alone DNS. It does not cache: answers follow the health of
// clusters.
func forwardBlock(addresses []string) string {
	return zone + `:53 {
    errors
    forward . ` + strings.Join(addresses, " ") + `
}`
}

// withBlock puts our block at the end of a Corefile, in place of one that is there.
func withBlock(corefile, block string) string {
	without := strings.TrimRight(withoutBlock(corefile), "\n")
	if without != "" {
		without += "\n"
	}
	return without + blockBegin + "\n" + strings.TrimSpace(block) + "\n" + blockEnd + "\n"
}

// withoutBlock takes our block out of a Corefile.
func withoutBlock(corefile string) string {
	var kept []string
	inside := false
	for _, line := range strings.SplitAfter(corefile, "\n") {
		switch strings.TrimSpace(line) {
		case blockBegin:
			inside = true
			continue
		case blockEnd:
			if inside {
				inside = false
				continue
			}
		}
		if !inside {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

var zoneKey = regexp.MustCompile(`(?m)^[^#\n{]*\b` + regexp.QuoteMeta(zone) + `\.?(:\d+)?[\s,{]`)

// checkCorefile refuses a Corefile in which somebody else serves the zone: CoreDNS would not start with two.
func checkCorefile(corefile string) error {
	if zoneKey.MatchString(withoutBlock(corefile)) {
		return fmt.Errorf("the Corefile of the cluster's DNS already has something for %s: take it out first (kubectl edit configmap coredns -n kube-system), or use --dns none", zone)
	}
	return nil
}

// clusterDNS is what there is of the cluster's own DNS. Nil where it is missing.
type clusterDNS struct {
	deployment *appsv1.Deployment
	config     *corev1.ConfigMap
	service    *corev1.Service
}

func (c *cluster) clusterDNS(ctx context.Context) (clusterDNS, error) {
	dns := clusterDNS{&appsv1.Deployment{}, &corev1.ConfigMap{}, &corev1.Service{}}
	found := func(name string, object client.Object) (bool, error) {
		err := c.Get(ctx, dnsName(name), object)
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return true, ctl.Explain("read the cluster's DNS", err)
	}
	if ok, err := found("coredns", dns.deployment); err != nil {
		return dns, err
	} else if !ok {
		dns.deployment = nil
	}
	if ok, err := found("coredns", dns.config); err != nil {
		return dns, err
	} else if !ok {
		dns.config = nil
	}
	if ok, err := found("kube-dns", dns.service); err != nil {
		return dns, err
	} else if !ok {
		dns.service = nil
	}
	return dns, nil
}

// check says why the cluster's DNS cannot be made to answer in this way.
func (d clusterDNS) check(mode string) error {
	if mode == dnsNone {
		return nil
	}
	if d.config != nil {
		if err := checkCorefile(d.config.Data["Corefile"]); err != nil {
			return err
		}
	}
	if mode == dnsStandalone {
		return nil
	}
	if d.service != nil && d.deployment == nil {
		return errors.New("the cluster has a Service kube-dns, but no Deployment coredns behind it in kube-system: use --dns standalone")
	}
	if d.deployment != nil {
		selector := d.deployment.Spec.Selector
		if selector == nil || len(selector.MatchExpressions) > 0 || !maps.Equal(selector.MatchLabels, map[string]string{"k8s-app": "kube-dns"}) {
			return errors.New("the Deployment coredns in kube-system selects its pods in a way of its own: use --dns standalone")
		}
	}
	return nil
}

func ours(object client.Object) bool {
	return object.GetAnnotations()["meta.helm.sh/release-name"] == helm.Member
}

// takeOver saves the cluster's own DNS as it is and gives the chart's values for taking it over. In a cluster without
// DNS there is nothing to save, and the addresses follow from the service ranges.
func (c *cluster) takeOver(ctx context.Context, found ranges) (map[string]any, error) {
	dns, err := c.clusterDNS(ctx)
	if err != nil {
		return nil, err
	}
	if err := dns.check(dnsCluster); err != nil {
		return nil, err
	}
	values := map[string]any{"mode": dnsCluster}
	if dns.deployment != nil && dns.deployment.Spec.Replicas != nil {
		values["replicas"] = int64(*dns.deployment.Spec.Replicas)
	}
	if dns.config != nil {
		values["corefile"] = withBlock(dns.config.Data["Corefile"], lighthouseBlock())
	}
	var addresses []any
	if dns.service != nil {
		for _, address := range dns.service.Spec.ClusterIPs {
			addresses = append(addresses, address)
		}
	} else {
		for _, prefix := range found.services {
			if address, ok := dnsAddress(prefix); ok {
				addresses = append(addresses, address.String())
			}
		}
	}
	values["clusterIPs"] = addresses
	if dns.deployment == nil || ours(dns.deployment) {
		return values, nil
	}
	return values, c.saveDNS(ctx, dns)
}

// savedDeployment is as much of a Deployment as can be put back.
type savedDeployment struct {
	Labels      map[string]string     `json:"labels,omitempty"`
	Annotations map[string]string     `json:"annotations,omitempty"`
	Spec        appsv1.DeploymentSpec `json:"spec"`
}

func (c *cluster) saveDNS(ctx context.Context, dns clusterDNS) error {
	text, err := json.MarshalIndent(savedDeployment{dns.deployment.Labels, dns.deployment.Annotations, dns.deployment.Spec}, "", "  ")
	if err != nil {
		return fmt.Errorf("save the cluster's DNS: %w", err)
	}
	data := map[string]string{"deployment.json": string(text)}
	if dns.config != nil {
		data["Corefile"] = withoutBlock(dns.config.Data["Corefile"])
	}
	saved := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: savedDNS,
			Labels: map[string]string{"app.kubernetes.io/part-of": "fastnet", "app.kubernetes.io/managed-by": v1alpha1.ManagedBy},
		},
		Data: data,
	}
	err = c.Create(ctx, saved)
	if apierrors.IsAlreadyExists(err) {
		return nil // from a join that did not get further: what it saved is the original
	}
	return ctl.Explain("save the cluster's DNS", err)
}

// giveBack puts the cluster's DNS back as it was saved. Where nothing was saved, the DNS that Fastnet brought stays, and
// only the clusterset's zone goes. It says what it did, or nothing.
func (c *cluster) giveBack(ctx context.Context) (string, error) {
	dns, err := c.clusterDNS(ctx)
	if err != nil {
		return "", err
	}
	var saved corev1.ConfigMap
	err = c.Get(ctx, dnsName(savedDNS), &saved)
	if apierrors.IsNotFound(err) {
		if dns.config == nil || !ours(dns.config) {
			return "", nil
		}
		changed, err := c.editCorefile(ctx, dns, withoutBlock)
		if err != nil || !changed {
			return "", err
		}
		return "The cluster's DNS stays, with Fastnet's image but without " + zone + ": there was none before.", nil
	}
	if err != nil {
		return "", ctl.Explain("read the saved DNS", err)
	}
	var original savedDeployment
	if err := json.Unmarshal([]byte(saved.Data["deployment.json"]), &original); err != nil {
		return "", fmt.Errorf("the saved DNS in ConfigMap kube-system/%s cannot be read: %w", savedDNS, err)
	}
	if dns.config != nil {
		if corefile, ok := saved.Data["Corefile"]; ok {
			dns.config.Data["Corefile"] = corefile
		}
		disown(dns.config)
		if err := c.Update(ctx, dns.config); err != nil {
			return "", ctl.Explain("restore the Corefile", err)
		}
	}
	if dns.deployment != nil {
		dns.deployment.Labels, dns.deployment.Annotations, dns.deployment.Spec = original.Labels, original.Annotations, original.Spec
		if err := c.Update(ctx, dns.deployment); err != nil {
			return "", ctl.Explain("restore the Deployment coredns", err)
		}
	}
	account := &corev1.ServiceAccount{}
	if err := c.Get(ctx, dnsName("coredns"), account); err == nil {
		disown(account)
		if err := c.Update(ctx, account); err != nil {
			return "", ctl.Explain("restore the ServiceAccount coredns", err)
		}
	}
	if dns.service != nil {
		disown(dns.service)
		if err := c.Update(ctx, dns.service); err != nil {
			return "", ctl.Explain("restore the Service kube-dns", err)
		}
	}
	for _, object := range []client.Object{
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "fastnet-cluster-dns"}},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "fastnet-cluster-dns"}},
		&saved,
	} {
		if err := client.IgnoreNotFound(c.Delete(ctx, object)); err != nil {
			return "", ctl.Explain("delete "+object.GetName(), err)
		}
	}
	return "The cluster's DNS is as it was before join.", nil
}

// disown takes the chart's labels and annotations off.
func disown(object client.Object) {
	labels, annotations := object.GetLabels(), object.GetAnnotations()
	for _, name := range []string{"app.kubernetes.io/part-of", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"} {
		delete(labels, name)
	}
	for _, name := range []string{"helm.sh/resource-policy", "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"} {
		delete(annotations, name)
	}
	object.SetLabels(labels)
	object.SetAnnotations(annotations)
}

// forward makes the cluster's DNS send the zone's questions to the stand-alone one. It says what is left to do by hand.
func (c *cluster) forward(ctx context.Context) (string, error) {
	var service corev1.Service
	if err := c.Get(ctx, types.NamespacedName{Namespace: v1alpha1.Namespace, Name: "fastnet-dns"}, &service); err != nil {
		return "", ctl.Explain("read the Service fastnet-dns", err)
	}
	block := forwardBlock(service.Spec.ClusterIPs)
	dns, err := c.clusterDNS(ctx)
	if err != nil {
		return "", err
	}
	if dns.config == nil || dns.deployment == nil {
		return "The cluster's DNS is no CoreDNS in kube-system. Make it forward " + zone + " to " + strings.Join(service.Spec.ClusterIPs, " or ") + ".", nil
	}
	_, err = c.editCorefile(ctx, dns, func(corefile string) string { return withBlock(corefile, block) })
	return "", err
}

// unforward takes the stub zone out of the cluster's DNS again.
func (c *cluster) unforward(ctx context.Context) error {
	dns, err := c.clusterDNS(ctx)
	if err != nil || dns.config == nil {
		return err
	}
	_, err = c.editCorefile(ctx, dns, withoutBlock)
	return err
}

// editCorefile changes the Corefile and restarts the cluster's DNS, if that makes a difference, and reports whether.
func (c *cluster) editCorefile(ctx context.Context, dns clusterDNS, edit func(string) string) (bool, error) {
	before := dns.config.Data["Corefile"]
	after := edit(before)
	if after == before {
		return false, nil
	}
	dns.config.Data["Corefile"] = after
	if err := c.Update(ctx, dns.config); err != nil {
		return false, ctl.Explain("change the Corefile of the cluster's DNS", err)
	}
	if dns.deployment == nil {
		return true, nil
	}
	// What kubectl rollout restart does: CoreDNS may lack the reload plugin, and with it takes up to two minutes.
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339))
	err := c.Patch(ctx, dns.deployment, client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
	return true, ctl.Explain("restart the cluster's DNS", err)
}
