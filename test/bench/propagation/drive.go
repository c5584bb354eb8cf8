package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fastnet-io/fastnet/test/bench/report"
)

// drive makes changes at fixed times, whatever comes of those before, and returns when all are acknowledged. One that is sent
// late, because this machine cannot keep up, still counts from when it was sent.
func drive(ctx context.Context, rate, count int, make func(context.Context, int, *change) error) ([]*change, error) {
	var (
		under sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	all := []*change{}
	began := time.Now()
	for n := range count {
		c := &change{due: began.Add(time.Duration(n) * time.Second / time.Duration(rate))}
		all = append(all, c)
		if early := time.Until(c.due); early > 0 {
			pause(early)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		under.Go(func() {
			err := make(ctx, n, c)
			c.acknowledged = time.Now()
			if err != nil {
				mu.Lock()
				first = errors.Join(first, err)
				mu.Unlock()
			}
		})
	}
	under.Wait()
	if first != nil {
		text, _, more := strings.Cut(first.Error(), "\n")
		if more {
			text += " (and others)"
		}
		return nil, errors.New(text)
	}
	return all, nil
}

// round is what was measured at one rate in one go.
type round struct {
	changes []*change
	took    time.Duration
	cpu     map[string]time.Duration // processor time meanwhile, by program
}

// millis are the times from the API server's acknowledgement, or from when the change was sent, to the first answer.
func millis(changes []*change, from func(*change) time.Time) report.Sample {
	var sample report.Sample
	for _, c := range changes {
		sample = append(sample, c.answered.Sub(from(c)).Seconds()*1e3)
	}
	return sample
}

func fromAcknowledged(c *change) time.Time { return c.acknowledged }
func fromSent(c *change) time.Time         { return c.sent }

// late is by how much changes were sent after they were due.
func late(changes []*change) report.Sample {
	var sample report.Sample
	for _, c := range changes {
		sample = append(sample, c.sent.Sub(c.due).Seconds()*1e3)
	}
	return sample
}

// between is the time between two questions about the same change, on average: so late an answer may be noticed.
func between(changes []*change) float64 {
	var waited time.Duration
	asked := 0
	for _, c := range changes {
		waited += c.answered.Sub(c.sent)
		asked += c.asked
	}
	if asked == 0 {
		return 0
	}
	return waited.Seconds() * 1e3 / float64(asked)
}

// bounds of the histogram's bins, in ms. What is above the last has a bin of its own.
var bounds = []float64{1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 250, 500, 1000, 2000, 5000, 10000}

// histogram counts a sample by bin.
func histogram(s report.Sample) []int {
	bins := make([]int, len(bounds)+1)
	for _, value := range s {
		at := 0
		for at < len(bounds) && value > bounds[at] {
			at++
		}
		bins[at]++
	}
	return bins
}

// bars draws a histogram, a line for each bin between the first and the last that hold something.
func bars(bins []int) string {
	first, last, most, total := -1, 0, 0, 0
	for at, n := range bins {
		if n > 0 {
			if first < 0 {
				first = at
			}
			last = at
		}
		most, total = max(most, n), total+n
	}
	if total == 0 {
		return ""
	}
	var text strings.Builder
	for at := first; at <= last; at++ {
		label := fmt.Sprintf("> %g", bounds[len(bounds)-1])
		if at < len(bounds) {
			label = fmt.Sprintf("<= %g", bounds[at])
		}
		fmt.Fprintf(&text, "    %8s ms %6d %5.1f %%  %s\n", label, bins[at], 100*float64(bins[at])/float64(total), strings.Repeat("#", (bins[at]*50+most-1)/most))
	}
	return text.String()
}

// listed is a histogram on one line: "<=20 3, <=30 12".
func listed(bins []int) string {
	var parts []string
	for at, n := range bins {
		switch {
		case n == 0:
		case at < len(bounds):
			parts = append(parts, fmt.Sprintf("<=%g %d", bounds[at], n))
		default:
			parts = append(parts, fmt.Sprintf(">%g %d", bounds[len(bounds)-1], n))
		}
	}
	return strings.Join(parts, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
