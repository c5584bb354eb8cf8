package lighthouse

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const balanced = `
namespace shop
import shop/web ClusterSetIP ports=http/tcp/80
address shop/web east ports=http/tcp/80 weight=3 10.1.0.1
address shop/web west ports=http/tcp/80,tcp/81 weight=1 10.2.0.1
address shop/web west ports=http/tcp/80,tcp/81 weight=1 fd00:2::1
address shop/web north ports=admin/tcp/8080 weight=1 10.3.0.1
address shop/web south ports=http/tcp/80 weight=9 !10.4.0.1
import shop/zero ClusterSetIP
address shop/zero east weight=0 10.1.0.2
address shop/zero west weight=-4 10.2.0.2
import shop/one ClusterSetIP
address shop/one east weight=0 10.1.0.3
address shop/one west weight=many 10.2.0.3
import shop/unready ClusterSetIP ports=http/tcp/80
address shop/unready west ports=http/tcp/80 !10.2.0.4
import shop/bare ClusterSetIP ports=http/tcp/80
`

// answers asks n times and gives the sorted data of each reply's answers.
func answers(t *testing.T, l *Lighthouse, question string, n int) []string {
	t.Helper()
	name, typeName, _ := strings.Cut(question, " ")
	var list []string
	for range n {
		m, _ := ask(t, l, name+".svc."+testZone, dns.StringToType[typeName])
		if m.Rcode != dns.RcodeSuccess {
			t.Fatalf("%s: %s", question, dns.RcodeToString[m.Rcode])
		}
		var data []string
		for _, rr := range append(slices.Clone(m.Answer), m.Extra...) {
			fields := strings.Fields(rr.String())
			data = append(data, strings.TrimSuffix(strings.Join(fields[4:], " "), ".svc."+testZone))
		}
		slices.Sort(data)
		list = append(list, strings.Join(data, ", "))
	}
	return list
}

func counts(list []string) map[string]int {
	n := map[string]int{}
	for _, s := range list {
		n[s]++
	}
	return n
}

// TestBalance has a case for each rule of DNS-balanced services. A round is as many questions as the weights add up to.
func TestBalance(t *testing.T) {
	for _, c := range []struct {
		rule, more, question string
		round                int
		want                 map[string]int
	}{
		{"weighted round robin, one address an answer", "", "web.shop A", 5,
			map[string]int{"10.1.0.1": 3, "10.2.0.1": 1, "10.3.0.1": 1}},
		{"clusters that have the asked family", "", "web.shop AAAA", 3, map[string]int{"fd00:2::1": 3}},
		{"local cluster first, never balanced away", "local west", "web.shop A", 5, map[string]int{"10.2.0.1": 5}},
		{"local cluster that lacks the family: NODATA", "local east", "web.shop AAAA", 2, map[string]int{"": 2}},
		{"local cluster that is not ready", "local south", "web.shop A", 5,
			map[string]int{"10.1.0.1": 3, "10.2.0.1": 1, "10.3.0.1": 1}},
		{"local cluster that does not export", "local elsewhere", "web.shop A", 5,
			map[string]int{"10.1.0.1": 3, "10.2.0.1": 1, "10.3.0.1": 1}},
		{"reachable clusters", "gateway gw up=west,north down=east", "web.shop A", 4,
			map[string]int{"10.2.0.1": 2, "10.3.0.1": 2}},
		{"none reachable: NODATA", "gateway gw down=east", "web.shop A", 2, map[string]int{"": 2}},
		{"none ready: NODATA", "", "unready.shop A", 2, map[string]int{"": 2}},
		{"no cluster at all: NODATA", "", "bare.shop A", 2, map[string]int{"": 2}},
		{"all of weight 0 or less: in turn", "", "zero.shop A", 4, map[string]int{"10.1.0.2": 2, "10.2.0.2": 2}},
		{"weight 0 while another is left; an unreadable weight is 1", "", "one.shop A", 3, map[string]int{"10.2.0.3": 3}},
		{"local first whatever its weight", "local east", "one.shop A", 3, map[string]int{"10.1.0.3": 3}},
		{"SRV: the chosen cluster's ports and glue", "", "web.shop SRV", 5, map[string]int{
			"0 3 80 web.shop, 10.1.0.1":                             3,
			"0 1 80 web.shop, 0 1 81 web.shop, 10.2.0.1, fd00:2::1": 1,
			"0 1 8080 web.shop, 10.3.0.1":                           1,
		}},
		{"SRV: local first", "local north", "web.shop SRV", 2, map[string]int{"0 1 8080 web.shop, 10.3.0.1": 2}},
		{"named port: among clusters that have it", "", "_http._tcp.web.shop SRV", 4, map[string]int{
			"0 3 80 web.shop, 10.1.0.1":            3,
			"0 1 80 web.shop, 10.2.0.1, fd00:2::1": 1,
		}},
		{"named port: the local one first", "local west", "_http._tcp.web.shop SRV", 4, map[string]int{
			"0 1 80 web.shop, 10.2.0.1, fd00:2::1": 4,
		}},
		{"named port that the local cluster lacks", "local north", "_http._tcp.web.shop SRV", 4, map[string]int{
			"0 3 80 web.shop, 10.1.0.1":            3,
			"0 1 80 web.shop, 10.2.0.1, fd00:2::1": 1,
		}},
		{"named port that no candidate has: NODATA", "", "_http._tcp.unready.shop SRV", 2, map[string]int{"": 2}},
	} {
		t.Run(strings.ReplaceAll(c.rule, " ", "_"), func(t *testing.T) {
			l := newTestPlugin(newTestWorld(t, balanced+c.more))
			for round := range 3 {
				got := counts(answers(t, l, c.question, c.round))
				if fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("round %d: got %v, want %v", round, got, c.want)
				}
			}
		})
	}
}

// TestBalanceTurns: each of A, AAAA and SRV takes its own turns, and a change of the service does not start them anew.
func TestBalanceTurns(t *testing.T) {
	w := newTestWorld(t, `
		namespace shop
		import shop/web ClusterSetIP ports=http/tcp/80
		address shop/web east ports=http/tcp/80 10.1.0.1 fd00:1::1
		address shop/web west ports=http/tcp/80 10.2.0.1 fd00:2::1
	`)
	l := newTestPlugin(w)
	var got []string
	for _, question := range []string{"web.shop A", "web.shop AAAA", "web.shop A", "web.shop AAAA"} {
		got = append(got, answers(t, l, question, 1)...)
	}
	want := []string{"10.1.0.1", "fd00:1::1", "10.2.0.1", "fd00:2::1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	first := answers(t, l, "web.shop A", 1)[0]
	serial := w.current.Load().serial
	o := parseObjects(t, "import shop/web ClusterSetIP ports=http/tcp/8080")
	w.setImport(newImportObject(o.imports[0]))
	if w.current.Load().serial == serial {
		t.Error("the serial did not rise with a change of records")
	}
	if second := answers(t, l, "web.shop A", 1)[0]; second == first {
		t.Errorf("%s twice in a row: the change took the turns back", second)
	}
}

// TestSpread: in any round every place comes once, and a cluster's turns are spread over the round.
func TestSpread(t *testing.T) {
	for total := uint32(1); total < 200; total++ {
		for _, start := range []uint32{0, 7, 1 << 31} {
			seen := make([]bool, total)
			for turn := range total {
				seen[spread(start+turn, total)] = true
			}
			if slices.Contains(seen, false) {
				t.Fatalf("total %d from turn %d: not every place in a round", total, start)
			}
		}
	}
	// Half of the wheel belongs to one cluster: it never comes more than twice in a row.
	const total = 100
	row := 0
	for turn := range uint32(1000) {
		if spread(turn, total) < total/2 {
			row++
		} else {
			row = 0
		}
		if row > 2 {
			t.Fatalf("%d times in a row at turn %d", row, turn)
		}
	}
}
