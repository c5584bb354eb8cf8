package lighthouse

import (
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestTable walks at random beside a map, with names that lie in their links, that do not, and that begin alike; now and
// then in edits. It looks at an older table, which no change may reach.
func TestTable(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	var names []string
	for length := range 70 {
		names = append(names, strings.Repeat("a", length), strings.Repeat("a", length)+"b")
	}
	now, want := newTable[int](), map[string]int{}
	old, oldWant := now, map[string]int{}
	for n := range 20_000 {
		switch n % 1000 {
		case 300:
			now = now.edit()
		case 700:
			now = now.done()
		}
		name := names[chance.IntN(len(names))]
		if chance.IntN(3) == 0 {
			now = now.without(name)
			delete(want, name)
		} else {
			now, want[name] = now.with(name, &n), n
		}
		name = names[chance.IntN(len(names))]
		wanted, exists := want[name]
		if got := now.get(name); (got != nil) != exists || exists && *got != wanted {
			t.Fatalf("%q is %v, want %d, %t", name, got, wanted, exists)
		}
		if n%250 == 0 {
			got := map[string]int{}
			for name, value := range old.all() {
				got[name] = *value
			}
			if !maps.Equal(got, oldWant) {
				t.Fatalf("a table has changed to %v, want %v", got, oldWant)
			}
			if now.own == nil {
				old, oldWant = now, maps.Clone(want)
			}
		}
	}
}
