package agent

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/clusterset"
)

// TestSettle is told as what the Gateways say, at which second, and what counts then. "-" is no Gateways at all, "none" is
// Gateways without a cable that is up; the last column is when to ask again.
func TestSettle(t *testing.T) {
	for name, story := range map[string]string{
		"what is there from the start counts at once": `
			0    c2,c3   | c2,c3          |`,
		"a cluster that was never lost counts at once": `
			0    none    | none           |
			1    c2      | c2             |`,
		"lost at once, back after 5 s": `
			0    c2,c3   | c2,c3          |
			10   c2      | c2             |
			11   c2,c3   | c2 ~c3         | 16
			15.9 c2,c3   | c2 ~c3         | 16
			16   c2,c3   | c2,c3          |`,
		"a cable that flaps starts anew": `
			0    c2,c3   | c2,c3          |
			10   c2      | c2             |
			11   c2,c3   | c2 ~c3         | 16
			13   c2      | c2             |
			14   c2,c3   | c2 ~c3         | 19
			18   c2,c3   | c2 ~c3         | 19
			19   c2,c3   | c2,c3          |`,
		"two return one after the other": `
			0    c2,c3,c4 | c2,c3,c4      |
			10   c4       | c4            |
			11   c2,c4    | c4 ~c2        | 16
			12   c2,c3,c4 | c4 ~c2,c3     | 16
			16   c2,c3,c4 | c2,c4 ~c3     | 17
			17   c2,c3,c4 | c2,c3,c4      |`,
		"all at once are kept for 30 s": `
			0    c2,c3   | c2,c3          |
			10   none    | c2,c3 suspect  | 40
			39   none    | c2,c3 suspect  | 40
			40   none    | none           |
			50   c2      | ~c2            | 55
			55   c2      | c2             |`,
		"all within a second are": `
			0    c2,c3   | c2,c3          |
			10   c3      | c3             |
			10.9 none    | c2,c3 suspect  | 40.9`,
		"not all within a second are not": `
			0    c2,c3   | c2,c3          |
			10   c3      | c3             |
			11.1 none    | none           |`,
		"of three, those that were lost last": `
			0    c2,c3,c4 | c2,c3,c4      |
			5    c3,c4    | c3,c4         |
			10   none     | c3,c4 suspect | 40`,
		"the only remote cluster is simply lost": `
			0    c2      | c2             |
			10   none    | none           |`,
		"suspicion ends with the first that is up, which never ceased to count": `
			0    c2,c3   | c2,c3          |
			10   none    | c2,c3 suspect  | 40
			12   c2      | c2             |
			13   c2,c3   | c2 ~c3         | 18`,
		"those that were there before are no news after a suspicion": `
			0    c2,c3   | c2,c3          |
			10   none    | c2,c3 suspect  | 40
			12   c2,c3   | c2,c3          |`,
		"a start with none is no suspicion": `
			0    none    | none           |`,
		"without gateways everything counts, and the past is forgotten": `
			0    c2,c3   | c2,c3          |
			10   c2      | c2             |
			11   -       | everything     |
			12   c2,c3   | c2,c3          |`,
	} {
		t.Run(name, func(t *testing.T) {
			var state reachState
			for line := range strings.Lines(strings.TrimSpace(story)) {
				at, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				columns := strings.Split(rest, "|")
				r, again := state.settle(upOf(strings.TrimSpace(columns[0])), second(t, at))
				if got, want := settledText(r), strings.TrimSpace(columns[1]); got != want {
					t.Errorf("at %s: %s, want %s", at, got, want)
				}
				want := time.Time{}
				if text := strings.TrimSpace(columns[2]); text != "" {
					want = second(t, text)
				}
				if !again.Equal(want) {
					t.Errorf("at %s: asks again at %v, want %v", at, again, want)
				}
			}
		})
	}
}

func upOf(text string) map[string]bool {
	switch text {
	case "-":
		return nil
	case "none":
		return map[string]bool{}
	}
	up := map[string]bool{}
	for cluster := range strings.SplitSeq(text, ",") {
		up[cluster] = true
	}
	return up
}

func second(t *testing.T, text string) time.Time {
	d, err := time.ParseDuration(text + "s")
	if err != nil {
		t.Fatal(err)
	}
	return start.Add(d)
}

func settledText(r Reachability) string {
	if r.Clusters == nil {
		return "everything"
	}
	text := strings.Join(r.names(clusterset.Reachable), ",")
	if returning := r.names(clusterset.Returning); len(returning) > 0 {
		text += " ~" + strings.Join(returning, ",")
	}
	if text == "" {
		text = "none"
	}
	if r.Suspect {
		text += " suspect"
	}
	return strings.TrimSpace(text)
}

// TestSettleOfRandomGateways: whatever comes, what is not up counts only on suspicion, what is up is never unreachable, and
// whoever asks again when told to ends up with what is up.
func TestSettleOfRandomGateways(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var state reachState
		now := start
		up := map[string]bool{}
		var suspect time.Time
		for range 30 {
			now = now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
			up = map[string]bool{}
			for _, cluster := range []string{"c2", "c3", "c4"} {
				if r.IntN(3) > 0 {
					up[cluster] = true
				}
			}
			if r.IntN(4) == 0 {
				clear(up)
			}
			settled, again := state.settle(up, now)
			for _, cluster := range []string{"c2", "c3", "c4"} {
				switch is := settled.Of(cluster); {
				case up[cluster] && is == clusterset.Unreachable:
					t.Fatalf("seed %d: %s is up and unreachable", seed, cluster)
				case !up[cluster] && is != clusterset.Unreachable && !settled.Suspect:
					t.Fatalf("seed %d: %s is not up and %v", seed, cluster, is)
				}
			}
			if settled.Suspect && len(up) > 0 {
				t.Fatalf("seed %d: suspicion though %v are up", seed, up)
			}
			if !settled.Suspect {
				suspect = time.Time{}
			} else if suspect.IsZero() {
				suspect = now
			}
			if settled.Suspect && now.Sub(suspect) >= suspicionLasts {
				t.Fatalf("seed %d: suspicion for %s", seed, now.Sub(suspect))
			}
			if !again.IsZero() && !again.After(now) {
				t.Fatalf("seed %d: asks again in the past", seed)
			}
		}
		for asked := 0; ; asked++ {
			settled, again := state.settle(up, now)
			if again.IsZero() {
				if got, want := fmt.Sprint(settled.names(clusterset.Reachable)), fmt.Sprint((Reachability{Clusters: reachOf(up)}).names(clusterset.Reachable)); got != want {
					t.Fatalf("seed %d: %s count in the end, %s are up", seed, got, want)
				}
				break
			}
			if now = again; asked > 5 {
				t.Fatalf("seed %d: asks again and again", seed)
			}
		}
	}
}

func reachOf(up map[string]bool) map[string]clusterset.Reach {
	all := map[string]clusterset.Reach{}
	for cluster := range up {
		all[cluster] = clusterset.Reachable
	}
	return all
}

// TestReachInTime runs an agent in virtual time: two clusters export, and the Gateway loses them one by one and all at once.
func TestReachInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server("c1", dual, decode(t, w.scheme, []byte(inEveryCluster))...)
		w.server("broker", dual, decode(t, w.scheme, []byte(twoExport))...)
		gateway := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.Namespace, Name: "w1"}}
		if err := s.Create(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		says := func(clusters ...string) {
			gateway.Status.Cables = nil
			for _, cluster := range clusters {
				gateway.Status.Cables = append(gateway.Status.Cables, v1alpha1.Cable{ClusterID: cluster, Endpoint: cluster + ".w1", State: v1alpha1.CableUp})
			}
			if err := s.Update(t.Context(), gateway); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		serve := func(when, want string) {
			t.Helper()
			var list discoveryv1.EndpointSliceList
			if err := s.List(t.Context(), &list); err != nil {
				t.Fatal(err)
			}
			var behind []string
			for _, slice := range list.Items {
				if slice.Labels[discoveryv1.LabelServiceName] != "" {
					behind = append(behind, slice.Labels[v1alpha1.LabelSourceCluster])
				}
			}
			if got := strings.Join(behind, " "); got != want {
				t.Errorf("%s %q serve, want %q", when, got, want)
			}
		}
		says("c2", "c3")
		w.run(t, "c1")
		defer w.stopAll()
		synctest.Wait()
		serve("at first", "c2 c3")

		says("c2")
		serve("when c3 is lost", "c2")
		says("c2", "c3")
		serve("when c3 is back", "c2")
		time.Sleep(returnAfter - time.Millisecond)
		synctest.Wait()
		serve("just before 5 s", "c2")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		serve("after 5 s", "c2 c3")

		says()
		serve("when all are lost at once", "c2 c3")
		if got := w.agents["c1"].Shown(); !strings.Contains(got, "reachable: c2,c3 (all were lost at once, and count for now)") {
			t.Errorf("/debug/plan does not say so:\n%s", got)
		}
		time.Sleep(suspicionLasts - time.Millisecond)
		synctest.Wait()
		serve("just before 30 s", "c2 c3")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		serve("after 30 s", "")
		says("c3")
		serve("when c3 is the first to return, and nothing else could serve", "c3")
	})
}

const twoExport = onTheBroker + `  - {clusterID: c3, namespace: member-c3}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedService
metadata: {name: c2.web.sample, namespace: member-c2, labels: {multicluster.kubernetes.io/source-cluster: c2}}
spec: {namespace: sample, name: web, type: ClusterSetIP, exportedAt: "2026-01-01T00:00:00Z", ports: [{name: http, protocol: TCP, port: 80}], ipFamilies: [IPv4]}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedEndpoints
metadata: {name: c2.web-1.sample, namespace: member-c2, labels: {multicluster.kubernetes.io/source-cluster: c2}}
spec: {namespace: sample, service: web, ipFamily: IPv4, ports: [{name: http, protocol: TCP, port: 8080}], backends: [{addresses: [10.9.1.4]}]}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedService
metadata: {name: c3.web.sample, namespace: member-c3, labels: {multicluster.kubernetes.io/source-cluster: c3}}
spec: {namespace: sample, name: web, type: ClusterSetIP, exportedAt: "2026-01-01T00:00:00Z", ports: [{name: http, protocol: TCP, port: 80}], ipFamilies: [IPv4]}
---
apiVersion: fastnet.dev/v1alpha1
kind: ExportedEndpoints
metadata: {name: c3.web-1.sample, namespace: member-c3, labels: {multicluster.kubernetes.io/source-cluster: c3}}
spec: {namespace: sample, service: web, ipFamily: IPv4, ports: [{name: http, protocol: TCP, port: 8080}], backends: [{addresses: [10.10.1.4]}]}
`
