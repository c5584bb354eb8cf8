package lab

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

//go:embed dns.yaml
var dnsManifests string

// coreDNSImage is the project's own CoreDNS build, which without our plugin in its Corefile is CoreDNS as it comes.
const coreDNSImage = "fastnet.dev/coredns:dev"

// hasDNSImage says whether the archive with the CoreDNS image has been built.
func (l *Lab) hasDNSImage() bool {
	_, err := os.Stat(filepath.Join(l.config.Dist, "images", "coredns.tar"))
	return err == nil
}

// collections is where the objects of dns.yaml live.
var collections = map[string]string{
	"ServiceAccount":     "/api/v1/namespaces/kube-system/serviceaccounts",
	"ConfigMap":          "/api/v1/namespaces/kube-system/configmaps",
	"Service":            "/api/v1/namespaces/kube-system/services",
	"Deployment":         "/apis/apps/v1/namespaces/kube-system/deployments",
	"ClusterRole":        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
	"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}

// deployDNS gives a cluster the DNS that kubeadm would give it.
func (c *Cluster) deployDNS(ctx context.Context, a *api) error {
	objects, err := c.dnsObjects()
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.Kind == "ConfigMap" {
			// A Corefile that is there may have been given more since, as by joining a clusterset.
			if err := a.get(ctx, collections[object.Kind]+"/"+object.Metadata.Name, &struct{}{}); !isNotFound(err) {
				if err != nil {
					return fmt.Errorf("cluster DNS: %w", err)
				}
				continue
			}
		}
		if err := a.apply(ctx, collections[object.Kind], object.Metadata.Name, object.all); err != nil {
			return fmt.Errorf("cluster DNS: %w", err)
		}
	}
	return nil
}

type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	all      map[string]any
}

func (c *Cluster) dnsObjects() ([]manifest, error) {
	parsed, err := template.New("dns.yaml").Parse(dnsManifests)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	values := map[string]any{
		"Image": coreDNSImage, "Addrs": each(c.services, dnsAddr),
	}
	if err := parsed.Execute(&text, values); err != nil {
		return nil, err
	}
	var objects []manifest
	for part := range strings.SplitSeq(text.String(), "\n---\n") {
		var object manifest
		if err := yaml.Unmarshal([]byte(part), &object); err != nil {
			return nil, fmt.Errorf("dns.yaml: %w", err)
		}
		if err := yaml.Unmarshal([]byte(part), &object.all); err != nil {
			return nil, fmt.Errorf("dns.yaml: %w", err)
		}
		objects = append(objects, object)
	}
	return objects, nil
}

// dnsAvailable says whether the cluster DNS answers for its cluster.
func dnsAvailable(ctx context.Context, a *api) (bool, error) {
	var deployment struct {
		Status struct{ AvailableReplicas int }
	}
	err := a.get(ctx, collections["Deployment"]+"/coredns", &deployment)
	if isNotFound(err) {
		return false, nil
	}
	return deployment.Status.AvailableReplicas > 0, err
}
