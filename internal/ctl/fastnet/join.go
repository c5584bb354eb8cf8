package fastnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/deploy/crds"
	"github.com/fastnet-io/fastnet/deploy/helm"
	"github.com/fastnet-io/fastnet/internal/cables"
	"github.com/fastnet-io/fastnet/internal/ctl"
)

// joinFlags are the command line of join.
type joinFlags struct {
	clusterID    string
	prefixes     []string
	gatewayNodes []string
	dns          string
	drivers      []string
	// allowUnencrypted is nil where it is not given.
	allowUnencrypted *bool
	imageRegistry    string
	imageTag         string
	waitFlags
}

// prefixesAuto is the --prefixes that asks for discovery.
const prefixesAuto = "auto"

func newJoin(o *options) *cobra.Command {
	var flags joinFlags
	var unencrypted bool
	command := &cobra.Command{
		Use:   "join FILE",
		Short: "Make this cluster a member of a clusterset",
		Long: `Make this cluster a member of a clusterset, with the join file that kubectl fastnet broker invite wrote ("-" reads
it from standard input). It installs the CRDs and the chart fastnet, and makes the cluster's DNS answer the clusterset's
names. Running it again upgrades; what is not given then stays as it is.

DNS (--dns):
  standalone  a DNS of its own for clusterset.local, to which the cluster's CoreDNS is made to forward
  cluster     the cluster's own CoreDNS becomes Fastnet's, which is CoreDNS with one plugin more
  none        none; do it yourself
kubectl fastnet leave puts the cluster's DNS back as it was.

Every node with the label fastnet.dev/gateway=true is a gateway: it needs to reach the gateways of other clusters by UDP.
Where no node has the label, join picks one.`,
		Example: `  kubectl fastnet join c1.yaml
  kubectl fastnet join c1.yaml --prefixes 10.8.0.0/16,10.88.0.0/16 --gateway-node worker-1 --dns cluster --wait`,
		Args: ctl.Args(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			if command.Flags().Changed("allow-unencrypted") {
				flags.allowUnencrypted = &unencrypted
			}
			if err := flags.validate(); err != nil {
				return err
			}
			file, err := o.read(args[0])
			if err != nil {
				return fmt.Errorf("read the join file: %w", err)
			}
			return o.join(command.Context(), file, flags)
		},
	}
	command.Flags().StringVar(&flags.clusterID, "cluster-id", "", "Refuse a join file for any cluster but this")
	command.Flags().StringSliceVar(&flags.prefixes, "prefixes", nil, `The cluster's pod and service ranges, as CIDRs with commas, or "auto" to find them (default: auto, or those of the last join)`)
	command.Flags().StringSliceVar(&flags.gatewayNodes, "gateway-node", nil, "Node to make a gateway; may be given more than once")
	command.Flags().StringVar(&flags.dns, "dns", "", `DNS for the clusterset's names: cluster, standalone or none (default "standalone", or that of the last join)`)
	command.Flags().StringSliceVar(&flags.drivers, "driver", nil, `Drivers of the tunnels, the preferred first: wireguard, ipsec, vxlan (default "wireguard", or those of the last join)`)
	command.Flags().BoolVar(&unencrypted, "allow-unencrypted", false, "Allow the driver vxlan, which sends the packets of pods unencrypted (default: as at the last join)")
	command.Flags().StringVar(&flags.imageRegistry, "image-registry", "", `Where the images are (default "fastnet.dev")`)
	command.Flags().StringVar(&flags.imageTag, "image-tag", "", `Tag of the images (default "dev")`)
	command.Flags().BoolVar(&flags.wait, "wait", false, "Wait until the agent, the gateways, the route agents and the DNS are ready")
	command.Flags().DurationVar(&flags.timeout, "timeout", 5*time.Minute, "How long --wait waits")
	return command
}

func (f joinFlags) validate() error {
	if f.dns != "" && !slices.Contains([]string{dnsCluster, dnsStandalone, dnsNone}, f.dns) {
		return ctl.Usagef("--dns %q: want cluster, standalone or none", f.dns)
	}
	if len(f.drivers) > 0 {
		// Where the flag is not given the last join's word counts, see checkDrivers.
		if err := cables.CheckDrivers(f.drivers, f.allowUnencrypted == nil || *f.allowUnencrypted); err != nil {
			return ctl.Usagef("--driver: %v", err)
		}
	}
	if f.clusterID != "" {
		if err := checkClusterID(f.clusterID); err != nil {
			return err
		}
	}
	if len(f.prefixes) > 0 && !f.discover() {
		_, err := givenPrefixes(f.prefixes)
		return err
	}
	return nil
}

func (f joinFlags) discover() bool { return len(f.prefixes) == 1 && f.prefixes[0] == prefixesAuto }

func (o *options) read(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(o.In)
	}
	return os.ReadFile(path)
}

// membership is what a join file gives: who this cluster is, and where its records go.
type membership struct {
	file       []byte
	clusterID  string
	clusterset string
	namespace  string // on the broker
	broker     *cluster
}

// openJoinFile reads a join file. It does no I/O yet.
func openJoinFile(file []byte) (*membership, error) {
	const advice = "it is not one that kubectl fastnet broker invite wrote"
	config, err := clientcmd.Load(file)
	if err != nil {
		return nil, fmt.Errorf("the join file: %s (%w)", advice, err)
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || current.Namespace == "" || !clusterID.MatchString(config.CurrentContext) {
		return nil, fmt.Errorf("the join file: %s", advice)
	}
	broker, err := connect(clientcmd.NewDefaultClientConfig(*config, &clientcmd.ConfigOverrides{}))
	if err != nil {
		return nil, fmt.Errorf("the join file: %s (%w)", advice, err)
	}
	return &membership{file: file, clusterID: config.CurrentContext, namespace: current.Namespace, broker: broker}, nil
}

// check asks the broker whether the file still stands, and learns the clusterset's name.
func (m *membership) check(ctx context.Context) error {
	var set v1alpha1.ClusterSet
	err := m.broker.Get(ctx, types.NamespacedName{Name: v1alpha1.ClusterSetName}, &set)
	switch {
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return fmt.Errorf("the broker at %s does not accept the join file: it has run out, or the cluster was removed; ask for a new one (kubectl fastnet broker invite %s)",
			m.broker.config.Host, m.clusterID)
	case err != nil:
		return ctl.Explain("reach the broker at "+m.broker.config.Host, err)
	}
	rostered := slices.ContainsFunc(set.Spec.Members, func(member v1alpha1.Member) bool {
		return member.ClusterID == m.clusterID && member.Namespace == m.namespace
	})
	if !rostered {
		return fmt.Errorf("%s is not on the roster of clusterset %s: ask for a new invitation (kubectl fastnet broker invite %s)",
			m.clusterID, set.Spec.Name, m.clusterID)
	}
	m.clusterset = set.Spec.Name
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: m.namespace, Verb: "create", Group: v1alpha1.GroupVersion.Group, Resource: "exportedservices",
		},
	}}
	if err := m.broker.Create(ctx, review); err != nil {
		return ctl.Explain("ask the broker for this cluster's rights", err)
	}
	if !review.Status.Allowed {
		return fmt.Errorf("the broker does not let %s write its records in namespace %s: kubectl fastnet broker deploy repairs that", m.clusterID, m.namespace)
	}
	return nil
}

// endpoints of all clusters on the broker.
func (m *membership) endpoints(ctx context.Context) ([]v1alpha1.Endpoint, error) {
	var list v1alpha1.EndpointList
	if err := m.broker.List(ctx, &list); err != nil {
		return nil, ctl.Explain("read the Endpoints on the broker", err)
	}
	// A broker that is a member too holds its gateways' own Endpoints beside the records.
	return slices.DeleteFunc(list.Items, func(endpoint v1alpha1.Endpoint) bool { return endpoint.Namespace == v1alpha1.Namespace }), nil
}

// checkIdentity refuses an ID that another cluster uses, and a cluster that is somebody else already.
func checkIdentity(m *membership, uid string, endpoints []v1alpha1.Endpoint, properties map[string]string) error {
	for _, endpoint := range endpoints {
		if endpoint.Namespace == m.namespace && endpoint.Spec.ClusterUID != uid {
			return fmt.Errorf("cluster ID %s is in use by another cluster (its kube-system has UID %s, with gateway node %s; this one's has %s): "+
				"invite this cluster under another ID, or, if that cluster is gone, kubectl fastnet broker remove %s and invite it again",
				m.clusterID, endpoint.Spec.ClusterUID, endpoint.Spec.Node, uid, m.clusterID)
		}
	}
	if is := properties[v1alpha1.ClusterPropertyID]; is != "" && is != m.clusterID {
		return fmt.Errorf("this cluster is %s already (ClusterProperty %s), and the join file is for %s: kubectl fastnet leave first, or use an invitation for %s",
			is, v1alpha1.ClusterPropertyID, m.clusterID, is)
	}
	if is := properties[v1alpha1.ClusterPropertyClusterSet]; is != "" && is != m.clusterset {
		return fmt.Errorf("this cluster is in clusterset %s already (ClusterProperty %s), and the join file is for %s: kubectl fastnet leave first",
			is, v1alpha1.ClusterPropertyClusterSet, m.clusterset)
	}
	return nil
}

func (o *options) join(ctx context.Context, file []byte, flags joinFlags) error {
	m, err := openJoinFile(file)
	if err != nil {
		return err
	}
	if flags.clusterID != "" && flags.clusterID != m.clusterID {
		return fmt.Errorf("the join file is for %s, not %s: ask for an invitation (kubectl fastnet broker invite %s)", m.clusterID, flags.clusterID, flags.clusterID)
	}
	c, err := o.local(ctx)
	if err != nil {
		return err
	}
	var endpoints []v1alpha1.Endpoint
	err = o.progress.Step(ctx, "Check the broker at "+m.broker.config.Host, func(ctx context.Context, _ func(string)) error {
		if err := m.check(ctx); err != nil {
			return err
		}
		if endpoints, err = m.endpoints(ctx); err != nil {
			return err
		}
		uid, err := c.uid(ctx)
		if err != nil {
			return ctl.Explain("read namespace kube-system", err)
		}
		properties, err := c.properties(ctx)
		if err != nil {
			return err
		}
		return checkIdentity(m, uid, endpoints, properties)
	})
	if err != nil {
		return err
	}
	releases, err := c.releases(v1alpha1.Namespace)
	if err != nil {
		return err
	}
	before, _, err := releases.values(helm.Member)
	if err != nil {
		return err
	}
	facts, err := c.addressFacts(ctx)
	if err != nil {
		return err
	}
	found := discover(facts)
	prefixes, err := o.choosePrefixes(flags, found, before)
	if err != nil {
		return err
	}
	if lines := overlaps(m.clusterID, prefixes, endpoints); len(lines) > 0 {
		return fmt.Errorf("address ranges overlap, which this version cannot join: %s", strings.Join(lines, "; "))
	}
	values := memberValues(before, m, flags, prefixes)
	if err := checkDrivers(values); err != nil {
		return err
	}
	mode := dnsMode(values)
	dns, err := c.clusterDNS(ctx)
	if err != nil {
		return err
	}
	if err := dns.check(mode); err != nil {
		return err
	}
	// From here on things change.
	definitions, err := crds.Member()
	if err != nil {
		return err
	}
	err = o.progress.Step(ctx, "Apply the CRDs", func(ctx context.Context, note func(string)) error {
		return c.applyCRDs(ctx, definitions, note)
	})
	if err != nil {
		return err
	}
	if err := o.chooseGateways(ctx, c, flags.gatewayNodes, facts.nodes); err != nil {
		return err
	}
	err = o.progress.Step(ctx, "Install the chart fastnet (DNS: "+mode+")", func(ctx context.Context, note func(string)) error {
		labels := map[string]string{
			"app.kubernetes.io/part-of": "fastnet",
			// The gateways and route agents are on the host's network, which no stricter level allows.
			"pod-security.kubernetes.io/enforce": "privileged",
		}
		if err := c.ensureNamespace(ctx, v1alpha1.Namespace, labels, note); err != nil {
			return err
		}
		return o.installMember(ctx, c, releases, values, dnsMode(before), found)
	})
	if err != nil {
		return err
	}
	if flags.wait {
		err := o.progress.Step(ctx, "Wait until everything is ready", func(ctx context.Context, note func(string)) error {
			return ctl.Await(ctx, flags.timeout, note, func(ctx context.Context) (string, error) { return c.unready(ctx, mode) })
		})
		if err != nil {
			return fmt.Errorf("cluster %s has joined, but: %w", m.clusterID, err)
		}
	}
	fmt.Fprintf(o.Out, "Cluster %s has joined clusterset %s with %s.\n", m.clusterID, m.clusterset, strings.Join(prefixStrings(prefixes), ", "))
	fmt.Fprintln(o.Out, "Next: kubectl fastnet show connections; kubectl service export NAME -n NAMESPACE")
	return nil
}

// installMember installs the chart and switches the cluster's DNS over to what its values say.
func (o *options) installMember(ctx context.Context, c *cluster, releases *releases, values map[string]any, before string, found ranges) error {
	mode := dnsMode(values)
	if before == dnsCluster && mode != dnsCluster {
		said, err := c.giveBack(ctx)
		if err != nil {
			return err
		}
		if said != "" {
			o.progress.Say("  %s", said)
		}
	}
	if before == dnsStandalone && mode != dnsStandalone {
		if err := c.unforward(ctx); err != nil {
			return err
		}
	}
	if mode == dnsCluster {
		dns, err := c.takeOver(ctx, found)
		if err != nil {
			return err
		}
		merged := maps.Clone(section(values, "dns"))
		maps.Copy(merged, dns)
		values["dns"] = merged
	}
	if err := releases.install(ctx, helm.Member, values); err != nil {
		return err
	}
	if mode == dnsStandalone {
		byHand, err := c.forward(ctx)
		if err != nil {
			return err
		}
		if byHand != "" {
			o.progress.Say("  %s", byHand)
		}
	}
	return nil
}

// section is a map within values, empty where there is none.
func section(values map[string]any, name string) map[string]any {
	if found, ok := values[name].(map[string]any); ok {
		return found
	}
	return map[string]any{}
}

func dnsMode(values map[string]any) string {
	mode, _ := section(values, "dns")["mode"].(string)
	return mode
}

// memberValues are the chart's values: those of the last join, changed by what is given now.
func memberValues(before map[string]any, m *membership, flags joinFlags, prefixes []netip.Prefix) map[string]any {
	values := maps.Clone(before)
	if values == nil {
		values = map[string]any{}
	}
	set := func(sectionName, key, value, otherwise string) {
		changed := maps.Clone(section(values, sectionName))
		if is, _ := changed[key].(string); value == "" && is == "" {
			value = otherwise
		}
		if value != "" {
			changed[key] = value
			values[sectionName] = changed
		}
	}
	values["clusterID"], values["clusterset"] = m.clusterID, m.clusterset
	values["broker"] = map[string]any{"kubeconfig": string(m.file)}
	list := make([]any, 0, len(prefixes))
	for _, prefix := range prefixes {
		list = append(list, prefix.String())
	}
	values["prefixes"] = list
	set("dns", "mode", flags.dns, dnsStandalone)
	set("gateway", "driver", strings.Join(flags.drivers, ","), "")
	if flags.allowUnencrypted != nil {
		changed := maps.Clone(section(values, "gateway"))
		changed["allowUnencrypted"] = *flags.allowUnencrypted
		values["gateway"] = changed
	}
	set("image", "registry", flags.imageRegistry, "")
	set("image", "tag", flags.imageTag, "")
	return values
}

// checkDrivers refuses what the gateways would refuse to start with.
func checkDrivers(values map[string]any) error {
	driver, _ := section(values, "gateway")["driver"].(string)
	allowed, _ := section(values, "gateway")["allowUnencrypted"].(bool)
	if driver == "" {
		return nil
	}
	if err := cables.CheckDrivers(strings.Split(driver, ","), allowed); err != nil {
		return ctl.Usagef("--driver: %v", err)
	}
	return nil
}

// choosePrefixes takes what the user gave, else what the last join had, else what can be found.
func (o *options) choosePrefixes(flags joinFlags, found ranges, before map[string]any) ([]netip.Prefix, error) {
	if len(flags.prefixes) > 0 && !flags.discover() {
		return givenPrefixes(flags.prefixes)
	}
	if list, ok := before["prefixes"].([]any); ok && len(list) > 0 && !flags.discover() {
		var texts []string
		for _, entry := range list {
			texts = append(texts, fmt.Sprint(entry))
		}
		return givenPrefixes(texts)
	}
	if len(found.pods) == 0 || len(found.services) == 0 {
		missing := "pod ranges"
		if len(found.pods) > 0 {
			missing = "service ranges"
		}
		return nil, fmt.Errorf("nothing in this cluster says what its %s are: give both with --prefixes, as in --prefixes 10.8.0.0/16,10.88.0.0/16", missing)
	}
	o.progress.Say("  Pods: %s (from %s)", strings.Join(prefixStrings(found.pods), ", "), found.podsFrom)
	o.progress.Say("  Services: %s (from %s)", strings.Join(prefixStrings(found.services), ", "), found.servicesFrom)
	return found.prefixes(), nil
}

// annotationGatewayLabel on a Node says that join set the gateway label, so that leave may take it off.
const annotationGatewayLabel = "fastnet.dev/gateway-labelled-by"

// chooseGateways labels the nodes that were asked for, or one, where none has the label.
func (o *options) chooseGateways(ctx context.Context, c *cluster, asked []string, nodes []corev1.Node) error {
	byName := map[string]corev1.Node{}
	var labelled []string
	for _, node := range nodes {
		byName[node.Name] = node
		if node.Labels[v1alpha1.LabelGatewayNode] == "true" {
			labelled = append(labelled, node.Name)
		}
	}
	for _, name := range asked {
		if _, ok := byName[name]; !ok {
			return fmt.Errorf("there is no node %s (--gateway-node)", name)
		}
	}
	if len(asked) == 0 && len(labelled) == 0 {
		name, ok := pickGateway(nodes)
		if !ok {
			o.progress.Say("* No node can be a gateway yet. Label one later: kubectl label node NODE %s=true", v1alpha1.LabelGatewayNode)
			return nil
		}
		asked = []string{name}
		o.progress.Say("* No node has the label %s=true: taking %s as the gateway", v1alpha1.LabelGatewayNode, name)
	}
	for _, name := range asked {
		if slices.Contains(labelled, name) {
			continue
		}
		node := byName[name]
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:"true"},"annotations":{%q:%q}}}`, v1alpha1.LabelGatewayNode, annotationGatewayLabel, createdByJoin)
		if err := c.Patch(ctx, &node, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
			return ctl.Explain("label node "+name, err)
		}
	}
	return nil
}

// pickGateway prefers a ready worker; the first by name, so that a second try picks the same.
func pickGateway(nodes []corev1.Node) (string, bool) {
	best, bestRank := "", 0
	for _, node := range nodes {
		rank := 1
		if !isControlPlane(node) {
			rank += 2
		}
		if isReady(node) && !node.Spec.Unschedulable {
			rank += 4
		}
		if rank > bestRank || rank == bestRank && node.Name < best {
			best, bestRank = node.Name, rank
		}
	}
	return best, best != ""
}

func isControlPlane(node corev1.Node) bool {
	_, is := node.Labels["node-role.kubernetes.io/control-plane"]
	return is
}

func isReady(node corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(condition corev1.NodeCondition) bool {
		return condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue
	})
}

// clusterProperty is the kind of about.k8s.io that holds a cluster's identity.
func clusterProperty() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "about.k8s.io", Version: "v1alpha1", Kind: "ClusterProperty"}
}

// properties are the values of all ClusterProperties, by name. None where the kind is unknown.
func (c *cluster) properties(ctx context.Context) (map[string]string, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(clusterProperty())
	err := c.List(ctx, list)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, ctl.Explain("list ClusterProperties", err)
	}
	values := map[string]string{}
	for _, item := range list.Items {
		value, _, err := unstructured.NestedString(item.Object, "spec", "value")
		if err != nil {
			return nil, fmt.Errorf("ClusterProperty %s: %w", item.GetName(), err)
		}
		values[item.GetName()] = value
	}
	return values, nil
}

// unready says what is not ready yet of what the chart installed, or nothing.
func (c *cluster) unready(ctx context.Context, dns string) (string, error) {
	var waiting []string
	deployment := func(label string, key types.NamespacedName) error {
		var live appsv1.Deployment
		if err := c.Get(ctx, key, &live); err != nil {
			return err
		}
		want := int32(1)
		if live.Spec.Replicas != nil {
			want = *live.Spec.Replicas
		}
		status := live.Status
		if status.ObservedGeneration < live.Generation || status.UpdatedReplicas < want || status.AvailableReplicas < want || status.Replicas > want {
			waiting = append(waiting, fmt.Sprintf("%s %d/%d", label, min(status.AvailableReplicas, status.UpdatedReplicas), want))
		}
		return nil
	}
	daemonSet := func(label, name string) error {
		var live appsv1.DaemonSet
		if err := c.Get(ctx, types.NamespacedName{Namespace: v1alpha1.Namespace, Name: name}, &live); err != nil {
			return err
		}
		status := live.Status
		if status.ObservedGeneration < live.Generation || status.DesiredNumberScheduled == 0 ||
			status.UpdatedNumberScheduled < status.DesiredNumberScheduled || status.NumberReady < status.DesiredNumberScheduled {
			waiting = append(waiting, fmt.Sprintf("%s %d/%d", label, status.NumberReady, status.DesiredNumberScheduled))
		}
		return nil
	}
	err := errors.Join(
		deployment("agent", types.NamespacedName{Namespace: v1alpha1.Namespace, Name: "fastnet-agent"}),
		daemonSet("gateways", "fastnet-gateway"),
		daemonSet("route agents", "fastnet-routeagent"),
	)
	switch dns {
	case dnsCluster:
		err = errors.Join(err, deployment("DNS", dnsName("coredns")))
	case dnsStandalone:
		err = errors.Join(err, deployment("DNS", types.NamespacedName{Namespace: v1alpha1.Namespace, Name: "fastnet-dns"}))
	}
	if err != nil || len(waiting) == 0 {
		return "", err
	}
	left := "ready so far: " + strings.Join(waiting, ", ")
	if reason := c.podTrouble(ctx); reason != "" {
		left += " (" + reason + ")"
	}
	return left, nil
}

// podTrouble is the first reason why a container of ours does not run, such as ErrImagePull.
func (c *cluster) podTrouble(ctx context.Context) string {
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(v1alpha1.Namespace)); err != nil {
		return ""
	}
	for _, pod := range pods.Items {
		for _, status := range pod.Status.ContainerStatuses {
			if waiting := status.State.Waiting; waiting != nil && waiting.Reason != "" && waiting.Reason != "ContainerCreating" {
				return "pod " + pod.Name + ": " + waiting.Reason
			}
		}
	}
	return ""
}
