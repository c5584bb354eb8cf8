package lighthouse

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const pluginName = "lighthouse"

var log = clog.NewWithPlugin(pluginName)

// Every CoreDNS plugin announces itself so; a package that is linked in is a directive that exists.
func init() { plugin.Register(pluginName, setup) }

const (
	defaultTTL            = 5
	maxTTL                = 3600
	defaultMaxAnswers     = 500
	defaultStartupTimeout = 5 * time.Second
)

// stanza is what the Corefile says, as a whole.
type stanza struct {
	config
	source         sourceKey
	labels         labels.Selector // nil for all
	snapshot       string          // path, "" for none
	startupTimeout time.Duration
}

// sourceKey tells which API server to read. Stanzas with the same one share their watches.
type sourceKey struct{ kubeconfig, context string }

// snapshotOf is the key under which a Corefile's stanzas know whose snapshot a file holds.
type snapshotOf string

func setup(c *caddy.Controller) error {
	s, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	src, err := sharedSource(c, s.source)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	if s.clusterID == "" {
		src.followProperty()
	}
	if s.labels != nil {
		if s.selector, err = src.selector(s.labels); err != nil {
			return plugin.Error(pluginName, c.Errf("labels: %v", err))
		}
	}

	if s.snapshot != "" {
		if other, found := c.Get(snapshotOf(s.snapshot)).(*source); found && other != src {
			return plugin.Error(pluginName, c.Errf("snapshot: %s is another API server's, of another stanza", s.snapshot))
		}
		if err := src.keepSnapshot(s.snapshot); err != nil {
			return plugin.Error(pluginName, c.Errf("snapshot: %v", err))
		}
		c.Set(snapshotOf(s.snapshot), src)
	}

	l := &Lighthouse{config: s.config, world: src.world, counters: newCounters()}
	c.OnStartup(func() error {
		l.serverAddresses = serverAddresses(dnsserver.GetConfig(c).ListenHosts)
		holdStacks()
		src.start()
		if !src.waitSynced(s.startupTimeout) {
			log.Warningf("starting before everything has been read: SERVFAIL below svc in %v; waiting for %v", l.zones, src.world.waitingFor())
		}
		return nil
	})
	stop := func() error {
		src.stop()
		return nil
	}
	c.OnShutdown(stop)
	c.OnFinalShutdown(stop)
	// A reload that fails half-way, say because a port is taken, drops what it has started without a word to anybody. The
	// watches do not hold the plugin, so it becomes garbage, and takes them with it.
	runtime.AddCleanup(l, func(src *source) { go src.stop() }, src)

	config := dnsserver.GetConfig(c)
	if config.UDPDecorateWriterFunc == nil {
		config.UDPDecorateWriterFunc = boundWaiting
	}
	config.AddPlugin(func(next plugin.Handler) plugin.Handler {
		l.Next = next
		return l
	})
	return nil
}

// sharedSource gives the source that the stanzas of this Corefile share, made by the first of them.
func sharedSource(c *caddy.Controller, key sourceKey) (*source, error) {
	if src, found := c.Get(key).(*source); found {
		return src, nil
	}
	config, err := clientConfig(key)
	if err != nil {
		return nil, err
	}
	src, err := newSource(config)
	if err != nil {
		return nil, err
	}
	c.Set(key, src)
	return src, nil
}

// clientConfig reads the kubeconfig file, or without one the pod's service account.
func clientConfig(key sourceKey) (*rest.Config, error) {
	if key.kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig: not set, and not running in a pod: %w", err)
		}
		return config, nil
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: key.kubeconfig},
		&clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{}, CurrentContext: key.context},
	).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return config, nil
}

// parse reads the stanza. Every error names the property that it is about.
func parse(c *caddy.Controller) (*stanza, error) {
	var s *stanza
	for c.Next() {
		if s != nil {
			return nil, plugin.ErrOnce
		}
		s = &stanza{
			config:         config{ttl: defaultTTL, maxAnswers: defaultMaxAnswers},
			startupTimeout: defaultStartupTimeout,
		}
		args := c.RemainingArgs()
		s.zones = plugin.OriginsFromArgsOrServerBlock(args, c.ServerBlockKeys)
		// The function above leaves out, without a word, arguments that are no names.
		if len(s.zones) == 0 || len(s.zones) < len(args) {
			return nil, c.Errf("zones: not all of %q are names", args)
		}
		for _, zone := range s.zones {
			if dnsutil.IsReverse(zone) > 0 {
				return nil, c.Errf("zones: %s is a reverse zone; reverse names belong to the clusters' own zones", zone)
			}
		}
		seen := map[string]bool{}
		for c.NextBlock() {
			property := c.Val()
			if seen[property] {
				return nil, c.Errf("%s: given twice", property)
			}
			seen[property] = true
			if err := s.property(property, c.RemainingArgs()); err != nil {
				return nil, c.Errf("%s: %v", property, err)
			}
		}
	}
	return s, nil
}

// property takes one line of the block.
func (s *stanza) property(name string, args []string) error {
	one := func() (string, error) {
		if len(args) != 1 {
			return "", fmt.Errorf("wants one argument, not %d", len(args))
		}
		return args[0], nil
	}
	switch name {
	case "kubeconfig":
		if len(args) != 1 && len(args) != 2 {
			return fmt.Errorf("wants a file and maybe a context, not %d arguments", len(args))
		}
		s.source.kubeconfig = args[0]
		if len(args) == 2 {
			s.source.context = args[1]
		}

	case "cluster_id":
		id, err := one()
		if err != nil {
			return err
		}
		if !isClusterID(id) {
			return fmt.Errorf("%q is not one or two DNS labels, in lower case", id)
		}
		s.clusterID = id

	case "ttl":
		text, err := one()
		if err != nil {
			return err
		}
		ttl, err := strconv.ParseUint(text, 10, 32)
		if err != nil || ttl > maxTTL {
			return fmt.Errorf("%q is not a number of seconds from 0 to %d", text, maxTTL)
		}
		s.ttl = uint32(ttl)

	case "fallthrough":
		s.fall.SetZonesFromArgs(args)
		if len(s.fall.Zones) < len(args) {
			return fmt.Errorf("not all of %q are names", args)
		}

	case "namespaces":
		if len(args) == 0 {
			return errors.New("wants one or more namespaces")
		}
		s.namespaces = map[string]struct{}{}
		for _, arg := range args {
			if !isLabel(arg) {
				return fmt.Errorf("%q is not the name of a namespace", arg)
			}
			s.namespaces[arg] = struct{}{}
		}

	case "labels":
		if len(args) == 0 {
			return errors.New("wants a label selector")
		}
		// The Corefile has cut the selector at its blanks.
		selector, err := labels.Parse(strings.Join(args, " "))
		if err != nil {
			return err
		}
		s.labels = selector

	case "cluster_names":
		if len(args) != 0 {
			return errors.New("takes no argument")
		}
		s.clusterNames = true

	case "max_answers":
		text, err := one()
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n == 0 {
			return fmt.Errorf("%q is not a number of 1 or more", text)
		}
		s.maxAnswers = int(n)

	case "snapshot":
		file, err := one()
		if err != nil {
			return err
		}
		if s.snapshot, err = snapshotPath(file); err != nil {
			return err
		}

	case "startup_timeout":
		text, err := one()
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration of 0 or more, such as 5s", text)
		}
		s.startupTimeout = d

	default:
		return errors.New("unknown property")
	}
	return nil
}

// snapshotPath gives the absolute path of the snapshot, and refuses what could not be written there.
func snapshotPath(file string) (string, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil {
		return "", err
	} else if !info.IsDir() {
		return "", fmt.Errorf("%s is no folder", filepath.Dir(path))
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", path)
	}
	return path, nil
}

// isClusterID tells whether id may be a cluster's ID: one or two DNS labels.
func isClusterID(id string) bool {
	first, second := cutFirst(id)
	return isLabel(first) && (isLabel(second) || second == "" && first == id)
}

// serverAddresses gives the addresses under which the server is reached: those it is bound to, or where it is bound to
// all, those of the machine. Loopback addresses are of no use to others and are told only where there is nothing else.
func serverAddresses(hosts []string) []net.IP {
	var ips []net.IP
	for _, host := range hosts {
		ip := net.ParseIP(host)
		if ip != nil && !ip.IsUnspecified() {
			ips = append(ips, ip)
			continue
		}
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			log.Warningf("cannot tell the server's own addresses: %v", err)
			continue
		}
		for _, addr := range addrs {
			if n, ok := addr.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				ips = append(ips, n.IP)
			}
		}
	}
	var reachable []net.IP
	for _, ip := range ips {
		if !ip.IsLoopback() {
			reachable = append(reachable, ip)
		}
	}
	if len(reachable) == 0 {
		return ips
	}
	return reachable
}
