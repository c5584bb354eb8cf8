package traffic

import (
	"testing"
	"time"
)

func TestAccount(t *testing.T) {
	const ms = time.Millisecond
	start := time.Unix(1000, 0)
	type packet struct {
		sequence    uint64
		at, stalled time.Duration
	}
	steady := func(from, to int, shift time.Duration) (packets []packet) {
		for n := from; n <= to; n++ {
			packets = append(packets, packet{uint64(n), time.Duration(n)*ms + shift, 0})
		}
		return packets
	}
	join := func(parts ...[]packet) (packets []packet) {
		for _, part := range parts {
			packets = append(packets, part...)
		}
		return packets
	}
	for name, c := range map[string]struct {
		before, after []packet // the window's beginning
		now           time.Duration
		want          Account
	}{
		"steady":              {steady(1, 10, 0), steady(11, 110, 0), 111 * ms, Account{Received: 100, Run: 109, Gap: ms, Silent: ms}},
		"one lost":            {steady(1, 10, 0), join(steady(11, 20, 0), steady(22, 30, 0)), 31 * ms, Account{Received: 19, Lost: 1, Run: 28, Gap: 2 * ms, Silent: ms}},
		"outage":              {steady(1, 10, 0), join(steady(11, 20, 0), steady(321, 330, 0)), 331 * ms, Account{Received: 20, Lost: 300, Run: 9, Gap: 301 * ms, Silent: ms}},
		"outage that lasts":   {steady(1, 10, 0), steady(11, 20, 0), 500 * ms, Account{Received: 10, Run: 0, Gap: 480 * ms, Silent: 480 * ms}},
		"outage from before":  {steady(1, 10, 0), steady(211, 220, 0), 221 * ms, Account{Received: 10, Lost: 200, Run: 9, Gap: 201 * ms, Silent: ms}},
		"all late, none lost": {steady(1, 10, 0), steady(11, 20, 200*ms), 221 * ms, Account{Received: 10, Run: 9, Gap: 201 * ms, Silent: ms}},
		// Those that took the longer path arrive after those that took the new one.
		"overtaken": {steady(1, 10, 0), []packet{{13, 13 * ms, 0}, {11, 14 * ms, 0}, {12, 15 * ms, 0}, {14, 16 * ms, 0}}, 17 * ms,
			Account{Received: 4, Run: 13, Gap: 3 * ms, Silent: ms}},
		"source late by 80 ms":             {steady(1, 10, 0), []packet{{11, 91 * ms, 80 * ms}}, 92 * ms, Account{Received: 1, Run: 10, Gap: ms, Silent: ms}},
		"source late while packets vanish": {steady(1, 10, 0), []packet{{111, 191 * ms, 80 * ms}}, 192 * ms, Account{Received: 1, Lost: 100, Gap: 181 * ms, Silent: ms}},
		"nothing":                          {steady(1, 1, 0), nil, 2 * ms, Account{Gap: ms, Silent: ms}},
	} {
		t.Run(name, func(t *testing.T) {
			flow := &tally{}
			for _, p := range c.before {
				flow.arrive(p.sequence, p.stalled, start.Add(p.at))
			}
			flow.window()
			for _, p := range c.after {
				flow.arrive(p.sequence, p.stalled, start.Add(p.at))
			}
			if got := flow.account(start.Add(c.now)); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	buffer := make([]byte, messageSize)
	putMessage(buffer, 65535, 1<<63+5, 3*time.Hour)
	if port, sequence, stalled := readMessage(buffer); port != 65535 || sequence != 1<<63+5 || stalled != 3*time.Hour {
		t.Errorf("read %d %d %s", port, sequence, stalled)
	}
}
