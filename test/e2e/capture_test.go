//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fastnet-io/fastnet/test/lab"
)

// capture is a tcpdump on the network between the clusters.
type capture struct {
	file    string
	command *exec.Cmd
	errors  bytes.Buffer
}

// startCapture writes the head of every packet that the WAN sees to a file in dir, from when it returns.
func startCapture(ctx context.Context, l *lab.Lab, dir string) (*capture, error) {
	c := &capture{file: filepath.Join(dir, "wan.pcap")}
	// Buffered by packet, so that what is captured is in the file when tcpdump is asked to end.
	c.command = l.WAN().Command(ctx, "tcpdump", "-i", "any", "-n", "-s", "96", "-U", "-B", "16384", "-Z", "root", "-w", c.file)
	ready, err := c.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	// tcpdump says "listening on ..." once it listens.
	line := make([]byte, 1)
	for !strings.Contains(c.errors.String(), "listening on") {
		if _, err := ready.Read(line); err != nil {
			return nil, fmt.Errorf("tcpdump: %w: %s", err, c.errors.String())
		}
		c.errors.Write(line)
	}
	go c.errors.ReadFrom(ready)
	return c, nil
}

// stop ends the capture.
func (c *capture) stop() error {
	if err := syscall.Kill(-c.command.Process.Pid, syscall.SIGINT); err != nil {
		return err
	}
	return c.command.Wait()
}

// packets are those captured that a filter matches, as tcpdump prints them.
func (c *capture) packets(ctx context.Context, filter string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "tcpdump", "-n", "-r", c.file, filter).Output()
	if err != nil {
		return nil, fmt.Errorf("tcpdump %q: %w", filter, err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), nil
}

// clearFilter matches packets between the two clusters of which either end is a pod or a service: such a packet belongs in
// the tunnel. Traffic within one cluster, which shares a wire with the WAN's bridge, does not match.
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
