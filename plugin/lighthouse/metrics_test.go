package lighthouse

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	promclient "github.com/prometheus/client_model/go"
)

// ownMetrics gathers what the plugin measures.
func ownMetrics(t *testing.T) (own []*promclient.MetricFamily) {
	t.Helper()
	all, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		if strings.HasPrefix(family.GetName(), "coredns_lighthouse_") {
			own = append(own, family)
		}
	}
	return own
}

// TestMetrics: named as Prometheus wants them, all in the manual, and no label has values that a client or another cluster
// could make up.
func TestMetrics(t *testing.T) {
	l := newTestPlugin(newTestWorld(t, shop))
	series := func() (n int) {
		for _, family := range ownMetrics(t) {
			n += len(family.Metric)
		}
		return n
	}
	ask(t, l, "web.shop.svc."+testZone, dns.TypeA)
	before := series()
	for i := range 100 {
		ask(t, l, fmt.Sprintf("x-%d.y-%[1]d.svc.%s", i, testZone), dns.TypeA)
		ask(t, l, fmt.Sprintf("_p-%d._tcp.db.shop.svc.%s", i, testZone), uint16(i))
		l.world.setSlice(newSliceObject(parseObjects(t, fmt.Sprintf("slice shop/db c-%d ports=p-%[1]d/tcp/%d x=10.7.0.%[1]d", i, i+1)).slices[0]))
	}
	if after := series(); after != before {
		t.Errorf("%d series, and %d after names, ports and clusters that came from outside", before, after)
	}

	manual, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	own := ownMetrics(t)
	if len(own) < 8 {
		t.Errorf("%d metrics", len(own))
	}
	for _, family := range own {
		if !strings.Contains(string(manual), "`"+family.GetName()) {
			t.Errorf("README.md does not have %s", family.GetName())
		}
	}
	problems, err := promlint.NewWithMetricFamilies(own).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
