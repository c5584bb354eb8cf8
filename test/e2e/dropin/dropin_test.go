//go:build e2e

// Package dropin is our CoreDNS image in the places of CoreDNS's own, and what others make of its answers, in a lab of its own:
// the tests run in the order in which they stand here.
package dropin

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fastnet-io/fastnet/test/lab"
	"github.com/fastnet-io/fastnet/test/story"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// world is what one test hands to the next.
var world struct {
	lab    *lab.Lab
	teller *story.Teller
	dir    string
	told   bytes.Buffer
	broken string // the test that failed
}

func TestMain(m *testing.M) {
	code := m.Run()
	if world.lab != nil && os.Getenv("FASTNET_KEEP_LAB") == "" {
		if err := lab.Down(context.Background(), func(string) {}); err != nil {
			fmt.Fprintln(os.Stderr, "dropin:", err)
			code = 1
		}
	}
	if world.dir != "" {
		if err := os.RemoveAll(world.dir); err != nil {
			fmt.Fprintln(os.Stderr, "dropin:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// stage begins a test that stands on those before it.
func stage(t *testing.T) {
	t.Helper()
	if world.broken != "" {
		t.Fatalf("%s failed, and this stands on it", world.broken)
	}
	world.told.Reset()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what was told:\n%s", world.told.String())
		}
	})
}

// output is what a command line prints.
func output(t *testing.T, line string) string {
	t.Helper()
	out, err := world.teller.Output(t.Context(), line)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// apply brings a manifest to c1, with some words replaced.
func apply(t *testing.T, name string, replace ...string) {
	t.Helper()
	text, err := manifests.ReadFile("manifests/" + name)
	if err != nil {
		t.Fatal(err)
	}
	applyText(t, strings.NewReplacer(replace...).Replace(string(text)))
}

func applyText(t *testing.T, text string) {
	t.Helper()
	command := world.teller.Command(t.Context(), "kubectl --context c1 apply -f -")
	command.Stdin = strings.NewReader(text)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// inClient is a command line that runs in c1's client pod.
func inClient(line string) string {
	return "kubectl --context c1 -n sample exec deploy/client -- " + line
}

// TestUp starts the lab, joins the clusters, and exports the services of the demo.
func TestUp(t *testing.T) {
	stage(t)
	ctx := t.Context()
	t.Cleanup(func() {
		if t.Failed() {
			world.broken = t.Name()
		}
	})
	if _, err := lab.Open(); err == nil {
		t.Fatal("a lab is running on this machine, and these tests need one of their own: run `make demo-down` first")
	}
	dist, err := filepath.Abs("../../../dist")
	if err != nil {
		t.Fatal(err)
	}
	config := lab.DefaultConfig(dist)
	config.Progress = func(line string) { fmt.Fprintln(&world.told, line) }
	world.lab = &lab.Lab{} // from here on there is something to take down
	if world.lab, err = lab.Up(ctx, config); err != nil {
		t.Fatal(err)
	}
	if world.dir, err = os.MkdirTemp("", "fastnet-dropin-"); err != nil {
		t.Fatal(err)
	}
	if world.teller, err = story.New(world.lab, dist, filepath.Join(world.dir, "story"), &world.told); err != nil {
		t.Fatal(err)
	}
	for _, part := range []func(context.Context) error{world.teller.Connect, world.teller.Prepare, world.teller.Export, world.teller.Headless} {
		if err := part(ctx); err != nil {
			t.Fatal(err)
		}
	}
	output(t, "kubectl --context c1 create namespace stock")
	deployStock(t)
}

// The stock Deployments: CoreDNS as kubeadm sets it up; the same with lighthouse and its ClusterRole; and with lighthouse,
// without the ClusterRole.
const (
	plain      = "plain"
	clusterset = "clusterset"
	refused    = "refused"
)

func deployStock(t *testing.T) {
	t.Helper()
	const stanza = "lighthouse clusterset.local {\n            cluster_names\n        }"
	apply(t, "stock.yaml", "NAME", plain, "        CLUSTERSET\n", "")
	apply(t, "stock.yaml", "NAME", clusterset, "CLUSTERSET", stanza)
	apply(t, "stock.yaml", "NAME", refused, "CLUSTERSET", stanza)

	// The ClusterRole as the plugin's manual has it.
	text, err := os.ReadFile("../../../plugin/lighthouse/README.md")
	if err != nil {
		t.Fatal(err)
	}
	roles := regexp.MustCompile(`(?s)~~~ yaml\n(.*?kind: ClusterRole\n.*?)~~~`).FindAllStringSubmatch(string(text), -1)
	if len(roles) != 1 {
		t.Fatalf("the plugin's manual has %d ClusterRoles, want 1", len(roles))
	}
	name := regexp.MustCompile(`(?m)^  name: (\S+)$`).FindStringSubmatch(roles[0][1])
	if name == nil {
		t.Fatal("the ClusterRole of the plugin's manual has no name")
	}
	applyText(t, roles[0][1])
	applyText(t, `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: stock-clusterset-lighthouse}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: `+name[1]+`}
subjects: [{kind: ServiceAccount, name: clusterset, namespace: stock}]
`)
	for _, name := range []string{plain, clusterset, refused} {
		if err := world.teller.Run(t.Context(), "kubectl --context c1 -n stock rollout status deployment/"+name+" --timeout 90s"); err != nil {
			out, _ := world.teller.Output(t.Context(), "kubectl --context c1 -n stock get pods -o wide; kubectl --context c1 -n stock logs deployment/"+name)
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// addresses of a service in the namespace stock, one of each family.
func addresses(t *testing.T, service string) []string {
	t.Helper()
	all := strings.Fields(output(t, "kubectl --context c1 -n stock get service "+service+" -o jsonpath='{.spec.clusterIPs[*]}'"))
	if len(all) != 2 {
		t.Fatalf("%s has addresses %q", service, all)
	}
	return all
}

// reply is what dig tells of one: its rcode, and its answers, sorted, without their TTLs.
type reply struct {
	status  string
	answers []string
}

func (r reply) equal(other reply) bool {
	return r.status == other.status && slices.Equal(r.answers, other.answers)
}

// asked is a question.
type asked struct {
	name, record, status string
	answers              int // at least
}

// dig asks a server questions, one after the other, by UDP or TCP.
func dig(t *testing.T, server, flag string, questions []asked) []reply {
	t.Helper()
	var line strings.Builder
	fmt.Fprintf(&line, "dig @%s %s +tries=3 +time=2 +noall +comments +answer", server, flag)
	for _, q := range questions {
		fmt.Fprintf(&line, " %s %s", q.name, q.record)
	}
	out := output(t, inClient(line.String()))
	var replies []reply
	for text := range strings.Lines(out) {
		fields := strings.Fields(text)
		if _, after, found := strings.Cut(text, ", status: "); found {
			status, _, _ := strings.Cut(after, ",")
			replies = append(replies, reply{status: status})
		} else if len(fields) > 4 && !strings.HasPrefix(text, ";") && len(replies) > 0 {
			last := &replies[len(replies)-1]
			last.answers = append(last.answers, strings.Join(append(fields[:1:1], fields[3:]...), " "))
			slices.Sort(last.answers)
		}
	}
	if len(replies) != len(questions) {
		t.Fatalf("%d replies to %d questions to %s:\n%s", len(replies), len(questions), server, out)
	}
	return replies
}

// expect asks, and compares with what the questions want.
func expect(t *testing.T, server, flag string, questions []asked) []reply {
	t.Helper()
	replies := dig(t, server, flag, questions)
	for n, q := range questions {
		if r := replies[n]; r.status != q.status || len(r.answers) < q.answers || q.answers == 0 && len(r.answers) > 0 {
			t.Errorf("%s %s from %s %s: %s %q, want %s and %d answers", q.name, q.record, server, flag, r.status, r.answers, q.status, q.answers)
		}
	}
	return replies
}

const (
	serviceA = "whereami-cs.sample.svc.clusterset.local"
	serviceB = "whereami-ss.sample.svc.clusterset.local"
)

var transports = []string{"+notcp", "+tcp"}

// ofTheCluster are questions about the cluster's own zone.
var ofTheCluster = []asked{
	{"kubernetes.default.svc.cluster.local", "A", "NOERROR", 1},
	{"plain.stock.svc.cluster.local", "A", "NOERROR", 1},
	{"plain.stock.svc.cluster.local", "AAAA", "NOERROR", 1},
	{"_dns._udp.plain.stock.svc.cluster.local", "SRV", "NOERROR", 1},
	{"nothing.stock.svc.cluster.local", "A", "NXDOMAIN", 0},
}

// ofTheClusterset are questions about all that the demo has exported.
var ofTheClusterset = func() []asked {
	questions := []asked{
		{serviceA, "A", "NOERROR", 1},
		{serviceA, "AAAA", "NOERROR", 1},
		{serviceA, "SRV", "NOERROR", 1},
		{"_http._tcp." + serviceA, "SRV", "NOERROR", 1},
		{"c2." + serviceA, "A", "NOERROR", 1},
		{"c2." + serviceA, "AAAA", "NOERROR", 1},
		{"_http._tcp.c2." + serviceA, "SRV", "NOERROR", 1},
		{serviceA, "TXT", "NOERROR", 0},
		{"_tcp." + serviceA, "A", "NOERROR", 0},
		{serviceB, "A", "NOERROR", 3},
		{serviceB, "AAAA", "NOERROR", 3},
		{serviceB, "SRV", "NOERROR", 3},
		{"_http._tcp." + serviceB, "SRV", "NOERROR", 3},
		{"c2." + serviceB, "A", "NOERROR", 3},
		{"dns-version.clusterset.local", "TXT", "NOERROR", 1},
		{"sample.svc.clusterset.local", "A", "NOERROR", 0},
		{"nothing.sample.svc.clusterset.local", "A", "NXDOMAIN", 0},
		{"nothing.sample.svc.clusterset.local", "SRV", "NXDOMAIN", 0},
		{"whereami-9.c2." + serviceB, "A", "NXDOMAIN", 0},
		{"c9." + serviceA, "A", "NXDOMAIN", 0},
		{"_other._tcp." + serviceA, "SRV", "NXDOMAIN", 0},
		{"nowhere.clusterset.local", "A", "NXDOMAIN", 0},
	}
	for pod := range 3 {
		name := fmt.Sprintf("whereami-%d.c2.%s", pod, serviceB)
		questions = append(questions, asked{name, "A", "NOERROR", 1}, asked{name, "AAAA", "NOERROR", 1})
	}
	return questions
}()

// TestStockDeployment: kubeadm's Deployment with our image answers for the cluster, over both families, by UDP and TCP.
func TestStockDeployment(t *testing.T) {
	stage(t)
	for _, server := range addresses(t, plain) {
		for _, transport := range transports {
			expect(t, server, transport, ofTheCluster)
		}
	}
}

// TestStockDeploymentWithLighthouse: with the stanza, and the ClusterRole of the plugin's manual, it answers for the clusterset too.
func TestStockDeploymentWithLighthouse(t *testing.T) {
	stage(t)
	for _, server := range addresses(t, clusterset) {
		for _, transport := range transports {
			expect(t, server, transport, ofTheCluster)
			expect(t, server, transport, ofTheClusterset)
		}
	}
}

// TestStockDeploymentWithoutRights: without the ClusterRole the clusterset is SERVFAIL, and nothing else is worse for it; the pod is ready.
func TestStockDeploymentWithoutRights(t *testing.T) {
	stage(t)
	for _, server := range addresses(t, refused) {
		for _, transport := range transports {
			expect(t, server, transport, ofTheCluster)
			expect(t, server, transport, []asked{{serviceA, "A", "SERVFAIL", 0}, {serviceB, "SRV", "SERVFAIL", 0}, {"dns-version.clusterset.local", "TXT", "NOERROR", 1}})
		}
	}
	if out := output(t, "kubectl --context c1 -n stock logs deployment/"+refused); !strings.Contains(out, "plugin/lighthouse: serviceimports") || !strings.Contains(out, "forbidden") {
		t.Errorf("the log does not say what is refused:\n%s", out)
	}
}

// TestBareImage: the image with nothing else serves port 53 as CoreDNS does without a Corefile: it says who asks.
func TestBareImage(t *testing.T) {
	stage(t)
	apply(t, "bare.yaml")
	for _, pod := range []string{"bare", "restricted"} {
		output(t, "kubectl --context c1 -n stock wait --for=condition=Ready pod/"+pod+" --timeout 60s")
		for _, server := range strings.Fields(output(t, "kubectl --context c1 -n stock get pod "+pod+" -o jsonpath='{.status.podIPs[*].ip}'")) {
			for _, transport := range transports {
				out := output(t, inClient("dig @"+server+" "+transport+" +tries=3 +time=2 any.example.org A"))
				record := regexp.MustCompile(`(?m)^any\.example\.org\.\s+0\s+IN\s+(A|AAAA)\s+\S+$`)
				service := regexp.MustCompile(`(?m)^_(udp|tcp)\.any\.example\.org\.\s+0\s+IN\s+SRV\s+0 0 \d+ \.$`)
				if !strings.Contains(out, "status: NOERROR") || !record.MatchString(out) || !service.MatchString(out) {
					t.Errorf("%s at %s %s:\n%s", pod, server, transport, out)
				}
			}
		}
	}
}

// TestUnbound: a resolver with the zone as a stub, which minimises the names that it asks for, finds all that the server has, and
// finds it the same.
func TestUnbound(t *testing.T) {
	stage(t)
	servers := addresses(t, clusterset)
	apply(t, "unbound.yaml", "SERVER4", servers[0], "SERVER6", servers[1])
	output(t, "kubectl --context c1 -n stock wait --for=condition=Ready pod/unbound --timeout 60s")
	direct := expect(t, servers[0], "+notcp", ofTheClusterset)
	for _, resolver := range strings.Fields(output(t, "kubectl --context c1 -n stock get pod unbound -o jsonpath='{.status.podIPs[*].ip}'")) {
		for _, transport := range transports {
			for n, r := range expect(t, resolver, transport, ofTheClusterset) {
				if !r.equal(direct[n]) {
					t.Errorf("%s %s: from unbound at %s %+v, from the server %+v", ofTheClusterset[n].name, ofTheClusterset[n].record, resolver, r, direct[n])
				}
			}
		}
	}
}

// TestDNSPerf: the load generator that people measure with loses nothing and gets nothing unexpected, from the server and from
// unbound before it.
func TestDNSPerf(t *testing.T) {
	stage(t)
	const rounds = 200
	var queries strings.Builder
	want := map[string]int{}
	for _, q := range ofTheClusterset {
		fmt.Fprintf(&queries, "%s %s\n", q.name, q.record)
		want[q.status] += rounds
	}
	command := world.teller.Command(t.Context(), strings.Replace(inClient("sh -c 'cat >/tmp/queries'"), "exec ", "exec -i ", 1))
	command.Stdin = strings.NewReader(queries.String())
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, server := range append(addresses(t, clusterset), output(t, "kubectl --context c1 -n stock get pod unbound -o jsonpath='{.status.podIP}'")) {
		for _, mode := range []string{"udp", "tcp"} {
			out := output(t, inClient(fmt.Sprintf("dnsperf -s %s -m %s -d /tmp/queries -n %d -c 4 -q 50 -t 5", server, mode, rounds)))
			got := map[string]int{}
			for _, match := range regexp.MustCompile(`([A-Z]+) (\d+) \(`).FindAllStringSubmatch(out, -1) {
				count, err := strconv.Atoi(match[2])
				if err != nil {
					t.Fatal(err)
				}
				got[match[1]] += count
			}
			if !regexp.MustCompile(`Queries lost: +0 `).MatchString(out) || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s by %s: want none lost and %v:\n%s", server, mode, want, out)
			}
			t.Logf("%s by %s: %s", server, mode, regexp.MustCompile(`Queries per second: +(\S+)`).FindString(out))
		}
	}
}
