package story

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	serviceA = "whereami-cs.sample.svc.clusterset.local"
	serviceB = "whereami-ss.sample.svc.clusterset.local"
)

// family of addresses: the type of its DNS record, and curl's flag.
type family struct{ name, record, flag string }

// familyOf an address.
func familyOf(address netip.Addr) family {
	if address.Is4() {
		return family{"IPv4", "A", "-4"}
	}
	return family{"IPv6", "AAAA", "-6"}
}

// curl is a command line in c1's client pod that asks a name a number of times.
func curl(flag, host string, times int) string {
	one := fmt.Sprintf("curl -sS %s --max-time 1 http://%s", flag, host)
	if times == 1 {
		return inClient("c1", one)
	}
	return inClient("c1", fmt.Sprintf("sh -c 'for i in $(seq %d); do %s; done'", times, one))
}

func dig(host, record string) string {
	return inClient("c1", "dig +short "+host+" "+record)
}

// run and until are Run and Until as steps; until with a name notes how long it took.
func (t *Teller) run(ctx context.Context, line string) step {
	return func() error { return t.Run(ctx, line) }
}

func (t *Teller) until(ctx context.Context, note, line string, check func(string) error) step {
	return func() error {
		took, err := t.Until(ctx, line, check)
		if err == nil && note != "" {
			t.note(note, took)
		}
		return err
	}
}

func (t *Teller) title(text string) step {
	return func() error { t.Title(text); return nil }
}

type step func() error

// inOrder runs steps until one fails.
func inOrder(steps ...step) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// addresses of what a command prints, separated by white space.
func (t *Teller) addresses(ctx context.Context, line string) ([]string, error) {
	out, err := t.Output(ctx, line)
	if err != nil {
		return nil, err
	}
	for _, text := range strings.Fields(out) {
		if _, err := netip.ParseAddr(text); err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
	}
	return strings.Fields(out), nil
}

// Again takes away what an earlier telling left in the clusters, so that the stories can be told twice.
func (t *Teller) Again(ctx context.Context) error {
	for _, cluster := range []string{"c1", "c2"} {
		if _, err := t.Output(ctx, "kubectl --context "+cluster+" delete namespace sample --ignore-not-found --timeout 60s"); err != nil {
			return err
		}
	}
	return nil
}

// Prepare makes the namespace in both clusters, the servers in c2 and the client in c1, and waits for their pods.
func (t *Teller) Prepare(ctx context.Context) error {
	return inOrder(
		t.title("A1. A Deployment of three pods and a Service, in c2; a client in c1"),
		t.run(ctx, "kubectl --context c1 create namespace sample"),
		t.run(ctx, "kubectl --context c2 create namespace sample"),
		t.run(ctx, "kubectl --context c2 apply -f whereami.yaml"),
		t.run(ctx, "kubectl --context c1 apply -f client.yaml"),
		t.run(ctx, "kubectl --context c2 -n sample rollout status deployment/whereami --timeout 60s"),
		t.run(ctx, "kubectl --context c1 -n sample rollout status deployment/client --timeout 60s"),
		t.run(ctx, "kubectl --context c2 -n sample get pods -o wide"),
	)
}

// Export exports the service in c2, and sees what both clusters show for it.
func (t *Teller) Export(ctx context.Context) error {
	return inOrder(
		t.title("A2. Export it in c2"),
		t.run(ctx, "kubectl service --context c2 -n sample export whereami-cs --wait"),
		t.until(ctx, "a new export answered in the other cluster", dig(serviceA, t.families[0].record), func(out string) error {
			_, err := netip.ParseAddr(strings.TrimSpace(out))
			return err
		}),
		t.until(ctx, "", "kubectl --context c2 -n sample get serviceexports whereami-cs "+
			`-o jsonpath='{range .status.conditions[*]}{.type}={.status} {end}{"\n"}'`, has("Valid=True", "Ready=True", "Conflict=False")),
		t.until(ctx, "", "kubectl --context c1 -n sample get serviceimports", has("whereami-cs", "ClusterSetIP")),
		t.until(ctx, "", "kubectl --context c2 -n sample get serviceimports", has("whereami-cs", "ClusterSetIP")),
	)
}

// Reach asks the service by name from c1: the answers come from c2's pods, and they see the client pod's own address.
func (t *Teller) Reach(ctx context.Context) error {
	client, err := t.addresses(ctx, "kubectl --context c1 -n sample get pods -l app=client -o jsonpath='{.items[*].status.podIPs[*].ip}'")
	if err != nil {
		return err
	}
	imported, err := t.addresses(ctx, "kubectl --context c1 -n sample get serviceimport whereami-cs -o jsonpath='{.spec.ips[*]}'")
	if err != nil {
		return err
	}
	if len(client) != len(t.families) || len(imported) != len(t.families) {
		return fmt.Errorf("the client has addresses %q and the import %q: want one of each family", client, imported)
	}
	var names []string
	for _, family := range t.families {
		names = append(names, family.name)
	}
	steps := []step{
		t.title("A3. From a pod in c1: the name resolves, c2's pods answer and see the pod's own address, over " + strings.Join(names, " and ")),
		t.until(ctx, "", inClient("c1", "nslookup "+serviceA), has(imported...)),
	}
	for n, family := range t.families {
		steps = append(steps,
			t.until(ctx, "", dig(serviceA, family.record), lines(imported[n])),
			t.until(ctx, "", curl(family.flag, serviceA, 6), from("c2", client...)))
	}
	return inOrder(steps...)
}

// LocalFirst exports the same service in c1 too: its own pods answer, as long as there are any.
func (t *Teller) LocalFirst(ctx context.Context) error {
	client, err := t.addresses(ctx, "kubectl --context c1 -n sample get pods -l app=client -o jsonpath='{.items[*].status.podIPs[*].ip}'")
	if err != nil {
		return err
	}
	steps := []step{
		t.title("A4. The same in c1: local pods come first, and when they go, c2's take over"),
		t.run(ctx, "kubectl --context c1 apply -f whereami.yaml"),
		t.run(ctx, "kubectl --context c1 -n sample rollout status deployment/whereami --timeout 60s"),
		t.run(ctx, "kubectl service --context c1 -n sample export whereami-cs --wait"),
	}
	for _, family := range t.families {
		steps = append(steps,
			t.until(ctx, "", curl(family.flag, serviceA, 6), from("c1", client...)),
			// A cluster's own address of the service is balanced there, by its kube-proxy, which may put its node's address
			// in the place of the caller's.
			t.until(ctx, "", curl(family.flag, "c2."+serviceA, 3), inCluster("c2")))
	}
	steps = append(steps, t.run(ctx, "kubectl --context c1 -n sample scale deployment/whereami --replicas 0"))
	steps = append(steps, t.until(ctx, "local pods scaled away, the other cluster's answer", curl(t.families[0].flag, serviceA, 1), from("c2", client...)))
	for _, family := range t.families {
		steps = append(steps, t.until(ctx, "", curl(family.flag, serviceA, 6), from("c2", client...)))
	}
	steps = append(steps,
		t.run(ctx, "kubectl --context c1 -n sample scale deployment/whereami --replicas 3"),
		t.run(ctx, "kubectl --context c1 -n sample rollout status deployment/whereami --timeout 60s"))
	for _, family := range t.families {
		steps = append(steps, t.until(ctx, "", curl(family.flag, serviceA, 6), from("c1", client...)))
	}
	return inOrder(steps...)
}

// Affinity has c2's pods serve c1 though c1 has its own, is told of a mistake, and goes back to local first. Both clusters
// export.
func (t *Teller) Affinity(ctx context.Context) error {
	const annotate = "kubectl --context c2 -n sample annotate serviceexport whereami-cs "
	each := func(check func(string) error) (steps []step) {
		for _, family := range t.families {
			steps = append(steps, t.until(ctx, "", curl(family.flag, serviceA, 6), check))
		}
		return steps
	}
	return inOrder(slices.Concat(
		[]step{t.title("Affinity remote: c2's pods answer, though c1 has its own"), t.run(ctx, annotate+"fastnet.dev/affinity=remote")},
		each(inCluster("c2")),
		[]step{
			t.run(ctx, annotate+"--overwrite fastnet.dev/affinity=sideways"),
			t.until(ctx, "", "kubectl --context c2 -n sample get serviceexport whereami-cs -o jsonpath='{.status.conditions[*].message}'",
				has("fastnet.dev/affinity is ignored")),
			t.until(ctx, "", "kubectl --context c2 -n sample get events", has("InvalidAnnotation")),
		},
		each(inCluster("c1")),
		[]step{t.run(ctx, annotate+"fastnet.dev/affinity-")},
	)...)
}

// BalancedByDNS changes the clusterset over to DNS and back. Both clusters export, and the local one is answered while it has
// pods.
func (t *Teller) BalancedByDNS(ctx context.Context) error {
	own := map[string][]string{}
	for _, cluster := range []string{"c1", "c2"} {
		var err error
		own[cluster], err = t.addresses(ctx, "kubectl --context "+cluster+" -n sample get service whereami-cs -o jsonpath='{.spec.clusterIPs[*]}'")
		if err != nil {
			return err
		}
		if len(own[cluster]) != len(t.families) {
			return fmt.Errorf("the service in %s has the addresses %q", cluster, own[cluster])
		}
	}
	const ips = "kubectl --context c1 -n sample get serviceimport whereami-cs -o jsonpath='{.spec.ips[*]}'"
	served := func(cluster string) (steps []step) {
		for _, family := range t.families {
			for _, address := range own[cluster] {
				if strings.Contains(address, ":") == (family.record == "AAAA") {
					steps = append(steps, t.until(ctx, "", dig(serviceA, family.record), lines(address)))
				}
			}
			steps = append(steps, t.until(ctx, "", curl(family.flag, serviceA, 3), inCluster(cluster)))
		}
		return steps
	}
	steps := []step{
		t.title("C. Balanced by DNS: the name answers an exporting cluster's own address, the local one first"),
		t.run(ctx, "kubectl fastnet --context c1 broker deploy --balance dns"),
		t.until(ctx, "", ips, lines()),
	}
	steps = append(steps, served("c1")...)
	steps = append(steps, t.run(ctx, "kubectl --context c1 -n sample scale deployment/whereami --replicas 0"))
	steps = append(steps, served("c2")...)
	steps = append(steps,
		t.run(ctx, "kubectl --context c1 -n sample scale deployment/whereami --replicas 3"),
		t.run(ctx, "kubectl --context c1 -n sample rollout status deployment/whereami --timeout 60s"))
	steps = append(steps, served("c1")...)
	steps = append(steps,
		t.run(ctx, "kubectl fastnet --context c1 broker deploy --balance ip"),
		t.until(ctx, "", ips, func(out string) error {
			if n := len(strings.Fields(out)); n != len(t.families) {
				return fmt.Errorf("%d clusterset IPs", n)
			}
			return nil
		}))
	for _, family := range t.families {
		steps = append(steps, t.until(ctx, "", curl(family.flag, serviceA, 3), inCluster("c1")))
	}
	return inOrder(steps...)
}

// Unexport takes the exports back, one after the other.
func (t *Teller) Unexport(ctx context.Context) error {
	steps := []step{
		t.title("A5. Un-export in c2: c1's pods remain. Un-export in c1: the name is gone"),
		t.run(ctx, "kubectl service --context c2 -n sample unexport whereami-cs"),
		t.until(ctx, "", "kubectl --context c1 -n sample get serviceimport whereami-cs -o jsonpath='{.status.clusters[*].cluster}'", lines("c1")),
		t.until(ctx, "", dig("c2."+serviceA, t.families[0].record), lines()),
	}
	for _, family := range t.families {
		steps = append(steps, t.until(ctx, "", curl(family.flag, serviceA, 6), inCluster("c1")))
	}
	return inOrder(append(steps,
		t.run(ctx, "kubectl service --context c1 -n sample unexport whereami-cs"),
		t.until(ctx, "the last export withdrawn, the name gone", inClient("c1", "dig "+serviceA+" A"), has("status: NXDOMAIN", "SOA")),
		t.until(ctx, "", inClient("c1", "dig "+serviceA+" AAAA"), has("status: NXDOMAIN", "SOA")),
		t.until(ctx, "", "kubectl --context c1 -n sample get serviceimports,services,endpointslices "+
			"-l 'multicluster.kubernetes.io/service-name=whereami-cs' -o name", lines()),
		t.until(ctx, "", "kubectl --context c2 -n sample get serviceimports -o name", lines()),
		t.run(ctx, "kubectl --context c1 -n sample delete -f whereami.yaml"),
	)...)
}

// Headless exports a headless service over a StatefulSet in c2: its name gives all pods, and each pod has a name.
func (t *Teller) Headless(ctx context.Context) error {
	if err := inOrder(
		t.title("B. A headless Service over a StatefulSet in c2: every pod has a name of its own in c1"),
		t.run(ctx, "kubectl --context c2 apply -f statefulset.yaml"),
		t.run(ctx, "kubectl --context c2 -n sample rollout status statefulset/whereami --timeout 60s"),
		t.run(ctx, "kubectl service --context c2 -n sample export whereami-ss --wait"),
		t.until(ctx, "", "kubectl --context c1 -n sample get serviceimport whereami-ss -o jsonpath='{.spec.type} {.spec.ips}'", lines("Headless")),
	); err != nil {
		return err
	}
	client, err := t.addresses(ctx, "kubectl --context c1 -n sample get pods -l app=client -o jsonpath='{.items[*].status.podIPs[*].ip}'")
	if err != nil {
		return err
	}
	var steps []step
	for n, family := range t.families {
		pods, err := t.addresses(ctx, fmt.Sprintf("kubectl --context c2 -n sample get pods -l app=whereami-ss "+
			"-o jsonpath='{.items[*].status.podIPs[%d].ip}'", n))
		if err != nil {
			return err
		}
		steps = append(steps, t.until(ctx, "", dig(serviceB, family.record), lines(pods...)))
		for pod, address := range pods {
			name := fmt.Sprintf("whereami-%d", pod)
			host := name + ".c2." + serviceB
			steps = append(steps,
				t.until(ctx, "", dig(host, family.record), lines(address)),
				t.until(ctx, "", curl(family.flag, host, 1), answers(func(a Answer) error {
					if a.Pod != name {
						return fmt.Errorf("%s answered, want %s", a.Pod, name)
					}
					return a.saw(client)
				})))
		}
	}
	return inOrder(append(steps, t.until(ctx, "", dig("_http._tcp."+serviceB, "SRV"),
		has("80 whereami-0.c2."+serviceB+".", "80 whereami-1.c2."+serviceB+".", "80 whereami-2.c2."+serviceB+".")))...)
}

// HeadlessGone takes story B's export back.
func (t *Teller) HeadlessGone(ctx context.Context) error {
	return inOrder(
		t.run(ctx, "kubectl service --context c2 -n sample unexport whereami-ss"),
		t.until(ctx, "", inClient("c1", "dig "+serviceB+" A"), has("status: NXDOMAIN")),
	)
}
