package ctl

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// RequestTimeout bounds one request to an API server: what does not answer by then is down.
const RequestTimeout = 15 * time.Second

// Config is the client configuration that the flags, or a kubeconfig, name.
func Config(loader clientcmd.ClientConfig, userAgent string) (*rest.Config, error) {
	config, err := loader.ClientConfig()
	// kubectl's flags fall back on a server that nobody has asked for.
	if err == nil && config.Host == "http://localhost:8080" {
		if raw, rawErr := loader.RawConfig(); rawErr == nil && len(raw.Clusters) == 0 {
			err = clientcmd.ErrEmptyConfig
		}
	}
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("no cluster to talk to: set KUBECONFIG, or give --kubeconfig or --context")
	}
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config.UserAgent = userAgent
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	return config, nil
}

// Client talks to an API server about the kinds of the scheme. It does no I/O yet.
func Client(config *rest.Config, scheme *runtime.Scheme) (client.Client, error) {
	config = rest.CopyConfig(config)
	if config.Timeout == 0 {
		config.Timeout = RequestTimeout
	}
	made, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	return made, nil
}

// Getter is a genericclioptions.RESTClientGetter without the discovery cache on disk, which is hours old where it
// matters: right after a CRD was made.
type Getter struct {
	config *rest.Config
	loader clientcmd.ClientConfig
	cached discovery.CachedDiscoveryInterface
}

var _ genericclioptions.RESTClientGetter = &Getter{}

// NewGetter makes a Getter that does no I/O yet.
func NewGetter(config *rest.Config, loader clientcmd.ClientConfig) (*Getter, error) {
	plain, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	return &Getter{config: config, loader: loader, cached: memory.NewMemCacheClient(plain)}, nil
}

// ToRESTConfig gives a copy of the client configuration.
func (g *Getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.config), nil }

// ToDiscoveryClient gives a client whose cache lasts as long as this Getter.
func (g *Getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.cached, nil
}

// ToRESTMapper maps by the same cache.
func (g *Getter) ToRESTMapper() (meta.RESTMapper, error) {
	return restmapper.NewDeferredDiscoveryRESTMapper(g.cached), nil
}

// ToRawKubeConfigLoader gives the kubeconfig as it was named.
func (g *Getter) ToRawKubeConfigLoader() clientcmd.ClientConfig { return g.loader }
