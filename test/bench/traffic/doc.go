// Package traffic is the steady traffic of the network benchmarks, and the account of what became of it: a source that
// sends numbered UDP packets and TCP records at fixed times, a sink that knows for each flow what was lost and how long
// it was silent, and a resolver that asks one DNS name again and again. A bulk source sends as much as it can instead, and
// times pings.
//
// Each runs as a process in a network namespace, a pod's or a node's: the very program that uses them, started again with
// the role as its argument. It is asked on its standard input and answers on its standard output, a line of JSON each, so
// no network that is being broken lies between it and whoever measures; and it ends when that one does.
package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"time"
)

// Flow is a stream of one source. Its source port, given by whoever measures, is its name: no two flows of one measurement
// have the same.
type Flow struct {
	Port uint16     `json:"port"`
	TCP  bool       `json:"tcp,omitempty"`
	To   netip.Addr `json:"to"`
}

// Port of every sink.
const Port = 5300

// Intervals between packets of UDP flows, unless a source is told another one, and between records of TCP flows.
const (
	UDPInterval = time.Millisecond
	TCPInterval = 10 * time.Millisecond
)

// Account is what became of a flow since its window began.
type Account struct {
	// Received packets, or records.
	Received uint64 `json:"received"`
	// Lost packets: those sent before the last that was received, and not received.
	Lost uint64 `json:"lost"`
	// Run is the number of packets received since the last gap of 50 ms.
	Run uint64 `json:"run"`
	// Gap is the longest time between two arrivals, the silence that lasts included. Where nothing was lost in between it is
	// without the time for which the source was late to send.
	Gap time.Duration `json:"gap"`
	// Silent is the time since the last arrival.
	Silent time.Duration `json:"silent"`
	// Connections that the flow had so far, where it is TCP; each but the first took the place of a broken one.
	Connections int `json:"connections,omitempty"`
}

// Answers is what a resolver was told since its window began.
type Answers struct {
	// Sets by what was in the answer: the addresses, sorted, with commas; an rcode where there were none.
	Sets map[string]Seen `json:"sets"`
	// Changes from one set to another. Questions without an answer are none.
	Changes int `json:"changes"`
	// Timeouts are questions without an answer.
	Timeouts int `json:"timeouts"`
}

// Seen says how often, and when last.
type Seen struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// Roles by name: what a process does with the arguments of its role, until its standard input ends.
type Roles map[string]func(args []string, in io.Reader, out io.Writer) error

// Role turns the process into a source, a sink, a resolver or one of these when it was started as one, and never returns
// then. A main that measures calls it first.
func Role(others Roles) {
	if len(os.Args) < 3 || os.Args[1] != roleWord {
		return
	}
	roles := Roles{"source": source, "sink": sink, "resolver": resolver, "bulk-source": bulkSource, "bulk-sink": bulkSink}
	maps.Copy(roles, others)
	run, err := roles[os.Args[2]], error(nil)
	if run == nil {
		err = errors.New("there is no such role")
	} else {
		err = run(os.Args[3:], os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n", os.Args[1:], err)
		os.Exit(1)
	}
	os.Exit(0)
}

const roleWord = "traffic-role"

// Args are the command line of this program in a role.
func Args(role string, args ...string) ([]string, error) {
	self, err := os.Executable()
	return append([]string{self, roleWord, role}, args...), err
}

// Process is a source, a sink or a resolver that runs.
type Process struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
}

// Start starts a command made of [Args], with what it takes to get into a namespace before it.
func Start(command *exec.Cmd) (*Process, error) {
	in, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if command.Stderr == nil {
		command.Stderr = os.Stderr
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	p := &Process{command: command, in: in, out: json.NewDecoder(out)}
	// The first answer says that the role has its sockets.
	if err := p.call(nil, nil); err != nil {
		return nil, fmt.Errorf("start %v: %w", command.Args, err)
	}
	return p, nil
}

// Stop ends the process.
func (p *Process) Stop() error {
	return joined(p.in.Close(), p.command.Wait())
}

// Send has a source send these flows and no others.
func (p *Process) Send(flows []Flow) error { return p.call(flows, nil) }

// Window begins a new window of a sink, for these flows; it forgets all others.
func (p *Process) Window(flows []Flow) error {
	_, err := p.sinkCall(flows)
	return err
}

// Accounts of the window so far, by port. A flow that nothing ever came of is not in it.
func (p *Process) Accounts() (map[uint16]Account, error) { return p.sinkCall(nil) }

func (p *Process) sinkCall(window []Flow) (map[uint16]Account, error) {
	accounts := map[uint16]Account{}
	err := p.call(window, &accounts)
	return accounts, err
}

// Answers of a resolver since it was last asked for them.
func (p *Process) Answers() (Answers, error) {
	var answers Answers
	err := p.call(nil, &answers)
	return answers, err
}

// call asks one thing and waits for the answer: an error in words, and the value.
func (p *Process) call(request, value any) error {
	if err := json.NewEncoder(p.in).Encode(request); err != nil {
		return err
	}
	answer := struct {
		Error string `json:"error"`
		Value any    `json:"value"`
	}{Value: value}
	if err := p.out.Decode(&answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return fmt.Errorf("%s", answer.Error)
	}
	return nil
}

// Serve is the life of a role: it answers requests until there are no more. The first is null, and asks whether it is ready.
func Serve[T any](in io.Reader, out io.Writer, answer func(request T) (any, error)) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var request T
		reply := map[string]any{}
		err := json.Unmarshal(lines.Bytes(), &request)
		if err == nil {
			reply["value"], err = answer(request)
		}
		if err != nil {
			reply["error"] = err.Error()
		}
		if err := json.NewEncoder(out).Encode(reply); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Await asks again and again until done says yes. It fails with the last words when the time is over.
func Await(ctx context.Context, timeout time.Duration, what string, done func() error) error {
	return AwaitEvery(ctx, 20*time.Millisecond, timeout, what, done)
}

// AwaitEvery is Await for what costs too much to ask it all the time: it would take the processor from what is waited for.
func AwaitEvery(ctx context.Context, pause, timeout time.Duration, what string, done func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s until %s: %w", timeout, what, err)
		case <-ticker.C:
		}
	}
}
