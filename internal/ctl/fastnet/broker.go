package fastnet

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/deploy/helm"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

func newBroker(o *options) *cobra.Command {
	command := &cobra.Command{
		Use:   "broker",
		Short: "Set up the broker and its roster of members",
		Long: `Set up the broker and its roster of members. The broker is any cluster whose API server the members can
reach; it may be a member too. These commands run with an administrator's kubeconfig for it.`,
		Args: ctl.Subcommands,
		RunE: ctl.Help,
	}
	command.AddCommand(newBrokerDeploy(o), newBrokerInvite(o), newBrokerRemove(o), newBrokerUndeploy(o))
	return command
}

func newBrokerDeploy(o *options) *cobra.Command {
	var clusterset, balance string
	var members []string
	var expireAfter time.Duration
	command := &cobra.Command{
		Use:   "deploy",
		Short: "Make this cluster the broker of a clusterset",
		Long: `Make this cluster the broker of a clusterset: install the chart fastnet-broker in the namespace fastnet-broker,
with the CRDs that it needs. Running it again upgrades it and keeps the members.`,
		Example: `  kubectl fastnet broker deploy --clusterset production`,
		Args:    ctl.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			for _, member := range members {
				if err := checkClusterID(member); err != nil {
					return err
				}
			}
			if !slices.Contains([]string{"", v1alpha1.BalanceIP, v1alpha1.BalanceDNS}, balance) {
				return ctl.Usagef("--balance %q is neither %s nor %s", balance, v1alpha1.BalanceIP, v1alpha1.BalanceDNS)
			}
			if command.Flags().Changed("expire-after") && expireAfter < v1alpha1.MinExpireAfter {
				return ctl.Usagef("--expire-after %s is too short: %s at least", expireAfter, v1alpha1.MinExpireAfter)
			}
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			roster, err := c.roster()
			if err != nil {
				return err
			}
			if roster.deployed && clusterset != "" && clusterset != roster.clusterset {
				return fmt.Errorf("this broker already holds clusterset %s: take it away first (kubectl fastnet broker undeploy), or leave --clusterset out", roster.clusterset)
			}
			if clusterset != "" {
				roster.clusterset = clusterset
			}
			roster.balance, roster.expireAfter = balance, expireAfter
			for _, member := range members {
				roster.add(member)
			}
			if err := o.deployBroker(ctx, c, roster); err != nil {
				return err
			}
			fmt.Fprintf(o.Out, "The broker of clusterset %s is at %s, with members: %s.\n", roster.clusterset, c.config.Host, orNone(roster.members))
			fmt.Fprintln(o.Out, "Next: kubectl fastnet broker invite CLUSTER_ID -o FILE")
			return nil
		},
	}
	command.Flags().StringVar(&clusterset, "clusterset", "", `Name of the clusterset (default "clusterset", or the one there is)`)
	command.Flags().StringVar(&balance, "balance", "", `How services that do not say it themselves are balanced over clusters: "ip" or "dns" (default "ip", or as it is)`)
	command.Flags().DurationVar(&expireAfter, "expire-after", 0, "How long a member may be silent before the others take away its services and its tunnels (default 15m, or as it is)")
	command.Flags().StringArrayVar(&members, "member", nil, "ID of a cluster to put on the roster; may be given more than once")
	return command
}

func newBrokerInvite(o *options) *cobra.Command {
	var output, server string
	var ttl time.Duration
	command := &cobra.Command{
		Use:   "invite CLUSTER_ID",
		Short: "Put a cluster on the roster and write its join file",
		Long: `Put a cluster on the roster and write its join file: a kubeconfig for the broker with which the cluster may
write its own records and read everybody's. It holds a credential; keep it as you would a password.

The members reach the broker at the server of your own kubeconfig. Where that is an address that only you can reach, give
another with --server.`,
		Example: `  kubectl fastnet broker invite c1 -o c1.yaml
  kubectl fastnet broker invite c2 --server https://broker.example.net:6443 -o - | ssh c2 kubectl fastnet join -`,
		Args: ctl.Args(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			id := args[0]
			if err := checkClusterID(id); err != nil {
				return err
			}
			if ttl < 10*time.Minute {
				return ctl.Usagef("--ttl %s is too short: the API server gives tokens for 10m at least", ttl)
			}
			if output == "" {
				output = id + ".yaml"
			}
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			address, err := brokerServer(c.config, server)
			if err != nil {
				return err
			}
			roster, err := c.roster()
			if err != nil {
				return err
			}
			if !roster.deployed {
				return fmt.Errorf("there is no broker in the cluster at %s: kubectl fastnet broker deploy", c.config.Host)
			}
			if roster.add(id) {
				if err := o.deployBroker(ctx, c, roster); err != nil {
					return err
				}
			}
			file, expires, err := c.joinFile(ctx, id, address, ttl)
			if err != nil {
				return err
			}
			if err := o.writePrivate(output, file); err != nil {
				return err
			}
			to := ""
			if output != "-" {
				to = " is in " + output
			}
			o.progress.Say("The join file of %s%s; its credential lasts until %s.", id, to, expires.Format("2006-01-02 15:04 MST"))
			if output != "-" {
				o.progress.Say("Next: kubectl fastnet join %s --context CONTEXT_OF_%s", output, strings.ToUpper(strings.ReplaceAll(id, ".", "_")))
			}
			return nil
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "", `File to write, "-" for standard output (default CLUSTER_ID.yaml)`)
	command.Flags().StringVar(&server, "server", "", "URL at which the members reach the broker's API server (default: the server of the kubeconfig)")
	command.Flags().DurationVar(&ttl, "ttl", 365*24*time.Hour, "How long the credential lasts; the broker's API server may give it less")
	return command
}

func newBrokerRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "remove CLUSTER_ID",
		Short: "Take a cluster off the roster",
		Long: `Take a cluster off the roster: its credentials end at once, and its records go, so that every other member drops
its services and its tunnels. Run kubectl fastnet leave in the cluster itself, before or after.`,
		Args: ctl.Args(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			roster, err := c.roster()
			if err != nil {
				return err
			}
			if !roster.remove(args[0]) {
				return fmt.Errorf("%s is not on the roster: members: %s", args[0], orNone(roster.members))
			}
			if err := o.deployBroker(ctx, c, roster); err != nil {
				return err
			}
			fmt.Fprintf(o.Out, "%s is no longer a member; members: %s.\n", args[0], orNone(roster.members))
			return nil
		},
	}
}

func newBrokerUndeploy(o *options) *cobra.Command {
	var timeout time.Duration
	command := &cobra.Command{
		Use:   "undeploy",
		Short: "Take the broker away, with every member's records",
		Long: `Take the broker away, with every member's records and credentials. The members keep the tunnels they have until
each of them leaves.`,
		Args: ctl.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			c, err := o.local(ctx)
			if err != nil {
				return err
			}
			if err := o.undeployBroker(ctx, c, timeout); err != nil {
				return err
			}
			fmt.Fprintln(o.Out, "The broker is gone.")
			return nil
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "How long to wait for namespaces to go")
	return command
}

// roster is the part of the release's values that the commands here change. The rest stays as it is.
type roster struct {
	values     map[string]any
	deployed   bool
	clusterset string
	balance    string // "" leaves it as it is
	members    []string

	expireAfter time.Duration // 0 leaves it as it is
}

func (c *cluster) roster() (*roster, error) {
	releases, err := c.releases(v1alpha1.BrokerNamespace)
	if err != nil {
		return nil, err
	}
	values, deployed, err := releases.values(helm.Broker)
	if err != nil {
		return nil, err
	}
	r := &roster{values: values, deployed: deployed, clusterset: "clusterset"}
	if name, ok := values["clusterset"].(string); ok && name != "" {
		r.clusterset = name
	}
	list, _ := values["members"].([]any)
	for _, entry := range list {
		if member, ok := entry.(map[string]any); ok {
			if id, ok := member["clusterID"].(string); ok {
				r.members = append(r.members, id)
			}
		}
	}
	return r, nil
}

// add reports whether the member is new.
func (r *roster) add(id string) bool {
	if slices.Contains(r.members, id) {
		return false
	}
	r.members = append(r.members, id)
	return true
}

// remove reports whether the member was there.
func (r *roster) remove(id string) bool {
	before := len(r.members)
	r.members = slices.DeleteFunc(r.members, func(member string) bool { return member == id })
	return len(r.members) < before
}

func (r *roster) toValues() map[string]any {
	values := map[string]any{}
	for key, value := range r.values {
		values[key] = value
	}
	members := make([]any, 0, len(r.members))
	for _, id := range r.members {
		members = append(members, map[string]any{"clusterID": id})
	}
	values["clusterset"], values["members"] = r.clusterset, members
	if r.balance != "" {
		values["balance"] = r.balance
	}
	if r.expireAfter != 0 {
		values["expireAfter"] = r.expireAfter.String()
	}
	return values
}

func (o *options) deployBroker(ctx context.Context, c *cluster, roster *roster) error {
	definitions, err := crds.Broker()
	if err != nil {
		return err
	}
	err = o.progress.Step(ctx, "Apply the CRDs", func(ctx context.Context, note func(string)) error {
		return c.applyCRDs(ctx, definitions, note)
	})
	if err != nil {
		return err
	}
	return o.progress.Step(ctx, "Install the chart fastnet-broker", func(ctx context.Context, note func(string)) error {
		labels := map[string]string{"app.kubernetes.io/part-of": "fastnet", "pod-security.kubernetes.io/enforce": "restricted"}
		if err := c.ensureNamespace(ctx, v1alpha1.BrokerNamespace, labels, note); err != nil {
			return err
		}
		// A member that was removed a moment ago, and comes back: nothing can be made in a namespace on its way out.
		err := ctl.Await(ctx, time.Minute, note, func(ctx context.Context) (string, error) { return c.terminating(ctx, roster.members) })
		if err != nil {
			return err
		}
		releases, err := c.releases(v1alpha1.BrokerNamespace)
		if err != nil {
			return err
		}
		return releases.install(ctx, helm.Broker, roster.toValues())
	})
}

func (o *options) undeployBroker(ctx context.Context, c *cluster, timeout time.Duration) error {
	err := o.progress.Step(ctx, "Uninstall the chart fastnet-broker", func(context.Context, func(string)) error {
		releases, err := c.releases(v1alpha1.BrokerNamespace)
		if err != nil {
			return err
		}
		return releases.uninstall(ctx, helm.Broker)
	})
	if err != nil {
		return err
	}
	var member corev1.Namespace
	inMember := c.Get(ctx, types.NamespacedName{Name: v1alpha1.Namespace}, &member) == nil
	return o.progress.Step(ctx, "Remove the namespaces and CRDs", func(ctx context.Context, note func(string)) error {
		if err := c.deleteNamespace(ctx, v1alpha1.BrokerNamespace); err != nil {
			return err
		}
		err := ctl.Await(ctx, timeout, note, func(ctx context.Context) (string, error) {
			var namespaces corev1.NamespaceList
			if err := c.List(ctx, &namespaces); err != nil {
				return "", err
			}
			var left []string
			for _, namespace := range namespaces.Items {
				if namespace.Name == v1alpha1.BrokerNamespace || namespace.Labels[v1alpha1.LabelMember] != "" {
					left = append(left, namespace.Name)
				}
			}
			if len(left) == 0 {
				return "", nil
			}
			return "namespaces being deleted: " + strings.Join(left, ", "), nil
		})
		if err != nil {
			return err
		}
		definitions, err := crds.Broker()
		if err != nil {
			return err
		}
		var going []*apiextensionsv1.CustomResourceDefinition
		for _, definition := range definitions {
			if inMember && definition.Spec.Names.Plural == "endpoints" {
				continue // this cluster is a member too
			}
			if err := client.IgnoreNotFound(c.Delete(ctx, definition)); err != nil {
				return ctl.Explain("delete CRD "+definition.Name, err)
			}
			going = append(going, definition)
		}
		// A definition goes after its last object, which takes the API server a moment.
		return ctl.Await(ctx, timeout, note, func(ctx context.Context) (string, error) {
			for _, definition := range going {
				err := c.Get(ctx, client.ObjectKeyFromObject(definition), &apiextensionsv1.CustomResourceDefinition{})
				if err == nil {
					return "CRD being deleted: " + definition.Name, nil
				}
				if !apierrors.IsNotFound(err) {
					return "", err
				}
			}
			return "", nil
		})
	})
}

// terminating says which namespaces of these members are still being deleted, or nothing.
func (c *cluster) terminating(ctx context.Context, members []string) (string, error) {
	var namespaces corev1.NamespaceList
	if err := c.List(ctx, &namespaces, client.HasLabels{v1alpha1.LabelMember}); err != nil {
		return "", ctl.Explain("list the members' namespaces", err)
	}
	var left []string
	for _, namespace := range namespaces.Items {
		if namespace.DeletionTimestamp != nil && slices.Contains(members, namespace.Labels[v1alpha1.LabelMember]) {
			left = append(left, namespace.Name)
		}
	}
	if len(left) == 0 {
		return "", nil
	}
	return "namespaces of an earlier membership still being deleted: " + strings.Join(left, ", "), nil
}

func (c *cluster) deleteNamespace(ctx context.Context, name string) error {
	err := c.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	return ctl.Explain("delete namespace "+name, client.IgnoreNotFound(err))
}

// joinFile is a kubeconfig for the broker as one member sees it.
func (c *cluster) joinFile(ctx context.Context, id, server string, ttl time.Duration) ([]byte, time.Time, error) {
	var set v1alpha1.ClusterSet
	if err := c.Get(ctx, types.NamespacedName{Name: v1alpha1.ClusterSetName}, &set); err != nil {
		return nil, time.Time{}, ctl.Explain("read the roster", err)
	}
	at := slices.IndexFunc(set.Spec.Members, func(member v1alpha1.Member) bool { return member.ClusterID == id })
	if at < 0 {
		return nil, time.Time{}, fmt.Errorf("%s is not on the roster, although the release says so: kubectl fastnet broker deploy", id)
	}
	seconds := int64(ttl.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.BrokerNamespace, Name: id}}
	if err := c.SubResource("token").Create(ctx, account, request); err != nil {
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf("the ServiceAccount %s/%s is gone: kubectl fastnet broker deploy", account.Namespace, id)
		}
		return nil, time.Time{}, ctl.Explain("make a token for "+id, err)
	}
	config := rest.CopyConfig(c.config)
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, time.Time{}, fmt.Errorf("read the broker's certificate authority: %w", err)
	}
	serverName := config.ServerName
	if server != config.Host {
		serverName = ""
	}
	file := clientcmdapi.NewConfig()
	file.Clusters["fastnet-broker"] = &clientcmdapi.Cluster{
		Server: server, CertificateAuthorityData: config.CAData, TLSServerName: serverName,
	}
	file.AuthInfos[id] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	file.Contexts[id] = &clientcmdapi.Context{Cluster: "fastnet-broker", AuthInfo: id, Namespace: set.Spec.Members[at].Namespace}
	file.CurrentContext = id
	text, err := clientcmd.Write(*file)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("write the join file: %w", err)
	}
	return text, request.Status.ExpirationTimestamp.Time, nil
}

// brokerServer is the URL at which members reach the broker: the one asked for, else that of the kubeconfig, unless only
// this machine can reach that one.
func brokerServer(config *rest.Config, asked string) (string, error) {
	if asked != "" {
		parsed, err := url.Parse(asked)
		if err != nil || parsed.Scheme != "https" || parsed.Host == "" {
			return "", ctl.Usagef("--server %q is not a URL like https://broker.example.net:6443", asked)
		}
		return asked, nil
	}
	if config.Insecure {
		return "", fmt.Errorf("the kubeconfig does not verify the broker's certificate (insecure-skip-tls-verify); members must: use one with its certificate authority")
	}
	parsed, err := url.Parse(config.Host)
	if err != nil || parsed.Scheme != "https" {
		return "", fmt.Errorf("the kubeconfig's server %s is not an https URL: give the one that members reach with --server", config.Host)
	}
	if onlyHere(parsed.Hostname()) {
		return "", fmt.Errorf("the kubeconfig's server %s is this machine's own address, which members cannot reach: give one that they can with --server", config.Host)
	}
	return config.Host, nil
}

func onlyHere(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && (address.IsLoopback() || address.IsUnspecified() || address.IsLinkLocalUnicast())
}

// writePrivate writes a file that only its owner can read, whole or not at all.
func (o *options) writePrivate(path string, content []byte) error {
	if path == "-" {
		_, err := o.Out.Write(content)
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".fastnet-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}

var clusterID = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$`)

func checkClusterID(id string) error {
	if len(id) > 63 || !clusterID.MatchString(id) {
		return ctl.Usagef("%q is no cluster ID: one or two DNS labels (lower-case letters, digits, hyphens), as in c1 or east.prod, 63 characters at most", id)
	}
	return nil
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
