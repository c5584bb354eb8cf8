package ground

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
	"github.com/fastnet-io/fastnet/internal/ctl/fastnet"
	"github.com/fastnet-io/fastnet/internal/kube"
)

// Cluster is a control plane without nodes, as its administrator sees it.
type Cluster struct {
	client.Client
	Name       string
	Kubeconfig string

	ground *Ground
	config *rest.Config
	api    *apitest.Server
}

// Clusters starts clusters of these names, each with its ranges of Services, side by side.
func (g *Ground) Clusters(ranges map[string]string) (map[string]*Cluster, error) {
	defer Progress("starting the API servers of %s", strings.Join(slices.Sorted(maps.Keys(ranges)), ", "))()
	var (
		group errgroup.Group
		mu    sync.Mutex
		all   = map[string]*Cluster{}
	)
	for name, serviceCIDR := range ranges {
		group.Go(func() error {
			c, err := g.cluster(name, serviceCIDR)
			mu.Lock()
			defer mu.Unlock()
			all[name] = c
			return err
		})
	}
	return all, group.Wait()
}

// cluster starts etcd, a kube-apiserver and the controllers that finish deletions.
func (g *Ground) cluster(name, serviceCIDR string) (*Cluster, error) {
	c := &Cluster{Name: name, ground: g}
	err := g.starter.failing(func() { c.api = apitest.StartServer(g.starter, name, serviceCIDR) })
	if err != nil {
		return nil, err
	}
	c.Kubeconfig = c.api.Kubeconfig
	if c.config, err = kube.Config(c.Kubeconfig, "bench"); err != nil {
		return nil, err
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	c.Client, err = client.New(c.config, client.Options{Scheme: scheme})
	return c, err
}

// StopAPI kills the API server. Its data stay.
func (c *Cluster) StopAPI() { c.api.StopAPI(c.ground.starter) }

// StartAPI starts the API server again, and waits until it is ready.
func (c *Cluster) StartAPI() error {
	return c.ground.starter.failing(func() { c.api.StartAPI(c.ground.starter) })
}

// Port is that of the API server.
func (c *Cluster) Port() string {
	server, err := url.Parse(c.config.Host)
	if err != nil {
		return ""
	}
	return server.Port()
}

// Metrics is what the API server tells of itself.
func (c *Cluster) Metrics(ctx context.Context) (string, error) {
	transport, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return "", err
	}
	return get(ctx, transport, c.config.Host+"/metrics")
}

// MakeBroker makes this cluster the broker of these members.
func (c *Cluster) MakeBroker(ctx context.Context, members ...string) error {
	defer Progress("deploying the broker with %d members", len(members))()
	args := []string{"broker", "deploy"}
	for _, member := range members {
		args = append(args, "--member", member)
	}
	return c.kubectlFastnet(ctx, args...)
}

// Invite gives the path of a member's join file, which is its kubeconfig for this broker.
func (c *Cluster) Invite(ctx context.Context, member string) (string, error) {
	file := filepath.Join(c.ground.dir, member+".join.yaml")
	return file, c.kubectlFastnet(ctx, "broker", "invite", member, "--output", file, "--server", c.config.Host)
}

// Join makes this cluster a member, by all that kubectl fastnet join does. There are no nodes: of what it installs, nothing runs.
func (c *Cluster) Join(ctx context.Context, joinFile string, prefixes ...string) error {
	defer Progress("joining %s", c.Name)()
	return c.kubectlFastnet(ctx, "join", joinFile, "--dns", "none", "--prefixes", strings.Join(prefixes, ","))
}

func (c *Cluster) kubectlFastnet(ctx context.Context, args ...string) error {
	var output bytes.Buffer
	streams := genericiooptions.IOStreams{In: new(bytes.Buffer), Out: &output, ErrOut: &output}
	if code := ctl.Main(ctx, fastnet.NewCommand(streams, "bench"), streams, append(args, "--kubeconfig", c.Kubeconfig)); code != ctl.ExitOK {
		return fmt.Errorf("kubectl fastnet %s: exit code %d\n%s", strings.Join(args, " "), code, strings.TrimSpace(output.String()))
	}
	return nil
}

// Agent is a fastnet-agent.
type Agent struct {
	*Process
	address string
}

// Agent starts the agent of this cluster, with the rights that join gave to it. Build must have made it.
func (c *Cluster) Agent(ctx context.Context, joinFile string) (*Agent, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64((24 * time.Hour).Seconds()))}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: "fastnet-agent"}}
	if err := c.SubResource("token").Create(ctx, account, request); err != nil {
		return nil, fmt.Errorf("a token for the agent of %s: %w", c.Name, err)
	}
	file, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	for name := range file.AuthInfos {
		file.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	}
	kubeconfig := filepath.Join(c.ground.dir, c.Name+".agent.kubeconfig")
	if err := clientcmd.WriteToFile(*file, kubeconfig); err != nil {
		return nil, err
	}
	port, err := FreePort(Loopback())
	if err != nil {
		return nil, err
	}
	a := &Agent{address: Loopback() + ":" + port}
	a.Process, err = c.ground.Launch(c.Name+"-agent", c.ground.Binary("fastnet-agent"), "--cluster-id", c.Name,
		"--kubeconfig", kubeconfig, "--broker-kubeconfig", joinFile, "--http-address", a.address)
	return a, err
}

// Metrics is what the agent tells of itself.
func (a *Agent) Metrics(ctx context.Context) (string, error) {
	return get(ctx, plainHTTP(), "http://"+a.address+"/metrics")
}

// Get asks the agent's HTTP server for something, and gives what it says.
func (a *Agent) Get(ctx context.Context, path string) (string, error) {
	return get(ctx, plainHTTP(), "http://"+a.address+path)
}

// DNS starts a CoreDNS with lighthouse for this cluster, and gives the address at which it will answer. Build must have made it.
func (c *Cluster) DNS() (*Process, string, error) {
	port, err := FreePort(Loopback())
	if err != nil {
		return nil, "", err
	}
	corefile := filepath.Join(c.ground.dir, c.Name+".Corefile")
	text := fmt.Sprintf("clusterset.local:%s {\n\tbind %s\n\terrors\n\tlighthouse {\n\t\tkubeconfig %s\n\t}\n}\n", port, Loopback(), c.Kubeconfig)
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	p, err := c.ground.Launch(c.Name+"-dns", c.ground.Binary("coredns-build"), "-conf", corefile)
	return p, Loopback() + ":" + port, err
}

// Needs skips a test where the lab's Kubernetes is not built.
func Needs(t testing.TB) { apitest.Binary(t) }
