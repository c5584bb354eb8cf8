//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fastnet-io/fastnet/test/lab"
)

// capture is what the network between the clusters saw: a tcpdump on each of the router's interfaces. An interface is the
// bridge that a cluster's nodes are plugged into, and sees what is sent to the router or comes from it; what nodes of one
// cluster send each other passes the bridge's ports alone.
type capture struct {
	files    []string
	commands []*exec.Cmd
}

// startCapture writes the head of every packet that the router sees to files in dir, from when it returns.
func startCapture(ctx context.Context, l *lab.Lab, dir string) (*capture, error) {
	c := &capture{}
	for _, cluster := range l.Clusters() {
		file := filepath.Join(dir, "wan-"+cluster.Name()+".pcap")
		// Not promiscuous (-p), or the bridge would hand over what passes by; buffered by packet (-U), so that what was
		// captured is in the file when tcpdump is asked to end.
		command := l.WAN().Command(ctx, "tcpdump", "-p", "-i", cluster.Name(), "-n", "-s", "96", "-U", "-B", "16384", "-Z", "root", "-w", file)
		messages, err := command.StderrPipe()
		if err != nil {
			return nil, err
		}
		if err := command.Start(); err != nil {
			return nil, err
		}
		lines := bufio.NewReader(messages)
		for listens := false; !listens; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return nil, fmt.Errorf("tcpdump: %w: %s", err, line)
			}
			listens = strings.Contains(line, "listening on")
		}
		go io.Copy(io.Discard, lines)
		c.files, c.commands = append(c.files, file), append(c.commands, command)
	}
	return c, nil
}

// stop ends the capture; what has ended stays so.
func (c *capture) stop() error {
	var problems []error
	for _, command := range c.commands {
		problems = append(problems, syscall.Kill(-command.Process.Pid, syscall.SIGINT), command.Wait())
	}
	c.commands = nil
	return errors.Join(problems...)
}

// packets are those captured that a filter matches, as tcpdump prints them.
func (c *capture) packets(ctx context.Context, filter string) ([]string, error) {
	var all []string
	for _, file := range c.files {
		out, err := exec.CommandContext(ctx, "tcpdump", "-n", "-r", file, filter).Output()
		if err != nil {
			return nil, fmt.Errorf("tcpdump %q: %w", filter, err)
		}
		all = append(all, strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })...)
	}
	return all, nil
}

// clearFilter matches packets between the two clusters of which either end is a pod or a service: such a packet belongs in
// the tunnel.
func clearFilter(l *lab.Lab) string {
	nets := func(ranges ...lab.Ranges) string {
		var parts []string
		for _, r := range ranges {
			for _, prefix := range r {
				parts = append(parts, "net "+prefix.String())
			}
		}
		return "(" + strings.Join(parts, " or ") + ")"
	}
	c1, c2 := l.Cluster("c1"), l.Cluster("c2")
	inner := func(c *lab.Cluster) string { return nets(c.Pods(), c.Services()) }
	all := func(c *lab.Cluster) string { return nets(c.Pods(), c.Services(), c.Underlay()) }
	return fmt.Sprintf("(%s and %s) or (%s and %s)", inner(c1), all(c2), all(c1), inner(c2))
}
