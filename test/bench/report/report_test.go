package report

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	dir := t.TempDir()
	r := New("x",
		Want("fast", "x", Higher, 2, "peer"),
		Want("small", "MB", Lower, 10, ""),
		Want("late", "ms", Lower, 1, ""),
		Want("never", "ms", Lower, 1, ""))
	r.Set("fast", 2.00004, "two to one")
	r.Set("late", 1.5, "")
	r.Add(Row{Name: "more", Value: 123456, Unit: "1/s", Better: Higher})

	r.Set("small", 7, "")

	var table strings.Builder
	r.Print(&table)
	want := `       row    value       wanted  against
ok     fast   2 x         >= 2    peer
         two to one
ok     small  7 MB        <= 10
SHORT  late   1.5 ms      <= 1
       more   123500 1/s
not measured: never
short of what is wanted: late
`
	if table.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", table.String(), want)
	}
	path, err := r.Write(dir)
	if err != nil || path != filepath.Join(dir, "x.json") {
		t.Fatal(path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), `"wanted": 10`) || strings.Contains(string(text), "never") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestSample(t *testing.T) {
	s := Sample{5, 1, 3, 2, 4}
	if s.Median() != 3 || s.Quantile(0.25) != 2 || s.Quantile(1) != 5 || s.String() != "3 (1..5)" {
		t.Errorf("%v %v %v %s", s.Median(), s.Quantile(0.25), s.Quantile(1), s)
	}
	if got := s.Over(Sample{10, 0, 6}); !reflect.DeepEqual(got, Sample{0.5, 0.5}) {
		t.Errorf("ratios %v", got)
	}
}

// TestInterval compares with the ranks that tables of the sign test give.
func TestInterval(t *testing.T) {
	for n, rank := range map[int]int{1: 1, 5: 1, 6: 1, 9: 2, 10: 2, 20: 6, 25: 8, 50: 18, 100: 40} {
		var s Sample
		for i := range n {
			s = append(s, float64(n-i))
		}
		if low, high := s.Interval(); low != float64(rank) || high != float64(n+1-rank) {
			t.Errorf("of %d values: %v to %v, want rank %d from both ends", n, low, high, rank)
		}
	}
	if low, high := (Sample{}).Interval(); !math.IsNaN(low) || !math.IsNaN(high) {
		t.Errorf("of none: %v to %v", low, high)
	}
}

func TestRounds(t *testing.T) {
	var order []string
	got, err := Rounds(2, []string{"a", "b", "c"}, func(name string) (int, error) {
		order = append(order, name)
		return len(order), nil
	})
	if err != nil || strings.Join(order, " ") != "a b c b c a" || !reflect.DeepEqual(got["a"], []int{1, 6}) {
		t.Errorf("%v, %v, %v", order, got, err)
	}
}
