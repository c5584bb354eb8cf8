package service

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/yaml"
)

// The tables: every state of exports and imports, narrow, wide, and of all namespaces.
func TestTables(t *testing.T) {
	read := func(documents string) []unstructured.Unstructured {
		var all []unstructured.Unstructured
		for document := range strings.SplitSeq(documents, "---\n") {
			var object unstructured.Unstructured
			if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
				t.Fatal(err)
			}
			all = append(all, object)
		}
		return all
	}
	exports := read(`
metadata: {namespace: shop, name: clash, creationTimestamp: "2026-01-02T03:00:00Z"}
status:
  conditions:
  - {type: Valid, status: "True", reason: Valid}
  - {type: Ready, status: "True", reason: Exported}
  - {type: Conflict, status: "True", reason: "PortConflict,TypeConflict", message: "ports: c1 wins, c2 has 81.\ntype: c1 wins"}
---
metadata: {namespace: shop, name: fresh, creationTimestamp: "2026-01-02T03:04:00Z"}
---
metadata: {namespace: shop, name: late, creationTimestamp: "2026-01-02T03:04:00Z"}
status:
  conditions:
  - {type: Valid, status: "False", reason: NoService, message: there is no Service}
  - {type: Ready, status: "False", reason: Pending, message: there is no Service}
  - {type: Conflict, status: "False", reason: NoConflicts, message: all clusters export the same}
---
metadata: {namespace: shop, name: web, creationTimestamp: "2026-01-01T03:04:00Z"}
status:
  conditions:
  - {type: Valid, status: "True", reason: Valid}
  - {type: Ready, status: "False", reason: Failed, message: the broker refuses}
  - {type: Conflict, status: "True", reason: PortConflict, message: "ports: c2 wins"}
`)
	imports := read(`
metadata: {namespace: shop, name: db, creationTimestamp: "2026-01-02T03:00:00Z"}
spec: {type: Headless, ports: [{port: 5432, protocol: TCP, name: pg}, {port: 53, protocol: UDP}]}
status:
  clusters: [{cluster: c2}, {cluster: c1}]
  conditions: [{type: Ready, status: "True", reason: Ready, message: can be used}]
---
metadata: {namespace: shop, name: six, creationTimestamp: "2026-01-02T03:00:00Z"}
spec: {type: ClusterSetIP, ports: []}
status:
  clusters: [{cluster: c3}]
  conditions: [{type: Ready, status: "False", reason: IPFamilyNotSupported, message: "IPv6 alone"}]
---
metadata: {namespace: shop, name: web, creationTimestamp: "2026-01-02T03:00:00Z"}
spec: {type: ClusterSetIP, ips: [10.0.0.1, "fd00::1"], ports: [{port: 80, protocol: TCP}]}
`)
	for _, test := range []struct {
		name  string
		flags listFlags
		wide  bool
		want  string
	}{
		{"narrow", listFlags{}, false, `
EXPORT   VALID               READY             CONFLICT                           AGE
clash    True                True              True (PortConflict,TypeConflict)   4m5s
fresh    -                   -                 -                                  5s
late     False (NoService)   False (Pending)   False                              5s
web      True                False (Failed)    True (PortConflict)                24h

IMPORT   TYPE           IPS                CLUSTERS   READY                          AGE
db       Headless       -                  c1,c2      True                           4m5s
six      ClusterSetIP   -                  c3         False (IPFamilyNotSupported)   4m5s
web      ClusterSetIP   10.0.0.1,fd00::1   -          -                              4m5s
`},
		{"wide, of all namespaces", listFlags{allNamespaces: true}, true, `
NAMESPACE   EXPORT   VALID               READY             CONFLICT                           AGE    MESSAGE
shop        clash    True                True              True (PortConflict,TypeConflict)   4m5s   ports: c1 wins, c2 has 81. type: c1 wins
shop        fresh    -                   -                 -                                  5s     -
shop        late     False (NoService)   False (Pending)   False                              5s     there is no Service
shop        web      True                False (Failed)    True (PortConflict)                24h    the broker refuses; ports: c2 wins

NAMESPACE   IMPORT   TYPE           IPS                CLUSTERS   READY                          AGE    PORTS                MESSAGE
shop        db       Headless       -                  c1,c2      True                           4m5s   pg:5432/TCP,53/UDP   -
shop        six      ClusterSetIP   -                  c3         False (IPFamilyNotSupported)   4m5s   -                    IPv6 alone
shop        web      ClusterSetIP   10.0.0.1,fd00::1   -          -                              4m5s   80/TCP               -
`},
		{"without headers", listFlags{noHeaders: true}, false, `
clash   True                True              True (PortConflict,TypeConflict)   4m5s
fresh   -                   -                 -                                  5s
late    False (NoService)   False (Pending)   False                              5s
web     True                False (Failed)    True (PortConflict)                24h

db    Headless       -                  c1,c2   True                           4m5s
six   ClusterSetIP   -                  c3      False (IPFamilyNotSupported)   4m5s
web   ClusterSetIP   10.0.0.1,fd00::1   -       -                              4m5s
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			streams, _, out, _ := genericiooptions.NewTestIOStreams()
			o := &options{IOStreams: streams, now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
			if err := o.printTables(exports, imports, test.flags, test.wide); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(test.want, "\n"), out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
