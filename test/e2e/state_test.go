//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fastnet-io/fastnet/test/lab"
)

// nodeState is all that Fastnet might leave on a node, as text. What others keep changing there stays out: the links of
// pods, kube-proxy's rules and those of the CNI plugins.
const nodeState = `
echo "# links"; ip -o link | cut -d: -f2 | grep -v veth | sort
for family in -4 -6; do
	echo "# rules $family"; ip $family rule
	echo "# routes $family"; ip $family route show table all | grep -v veth | sed 's/ *$//' | sort
done
for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
	echo "# $tool"; $tool-save 2>/dev/null | grep -v -e ^# -e KUBE- -e CNI- | sed 's/\[.*\]//'
done
echo "# sets"; ipset list -n 2>/dev/null
echo "# nft tables"; nft list tables 2>/dev/null | sort
echo "# sysctls"; for f in /proc/sys/net/ipv[46]/conf/*/* /proc/sys/net/ipv4/*; do
	case $f in *veth*|*fib_*hash*) ;; *) [ -f $f ] && [ -r $f ] && echo "$f $(cat $f 2>/dev/null)" ;; esac
done | grep -e rp_filter -e forwarding -e accept_local -e src_valid -e ip_forward -e accept_ra | sort
# The folder itself is the kubelet's: it made the mount point, and no container can remove its own.
echo "# files"; find /var/lib/fastnet /run/fastnet -mindepth 1 2>/dev/null | sort
`

// stateOf is the state of every node of a lab, by name.
func stateOf(ctx context.Context, l *lab.Lab) (map[string]string, error) {
	states := map[string]string{}
	for _, c := range l.Clusters() {
		for _, n := range c.Nodes() {
			out, err := n.Command(ctx, "sh", "-c", nodeState).CombinedOutput()
			if err != nil {
				return nil, fmt.Errorf("state of %s: %w\n%s", n.Name(), err, out)
			}
			states[n.Name()] = string(out)
		}
	}
	return states, nil
}

// machineState is what a lab might leave on the machine itself, as text. The namespaces of test/netns stay out: those tests
// may run at the same time.
func machineState(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "sh", "-c", `
echo "# links"; ip -o link | cut -d: -f2 | sort
echo "# namespaces"; ip netns | grep -v fastnet-test- | sort
for family in -4 -6; do
	echo "# rules $family"; ip $family rule
	echo "# routes $family"; ip $family route show table all | sed 's/expires [0-9]*sec//' | sort
done
for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
	echo "# $tool"; $tool-save 2>/dev/null | grep -v ^# | sed 's/\[.*\]//'
done
echo "# mounts"; cut -d' ' -f5- /proc/self/mountinfo | grep -v fastnet-test- | sort
echo "# sysctls"; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
`).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("state of the machine: %w\n%s", err, out)
	}
	groups, err := cgroups()
	return string(out) + "# cgroups\n" + strings.Join(groups, "\n"), err
}

// cgroups lists the groups that the machine has at the top of each hierarchy, and below that those with our name.
func cgroups() ([]string, error) {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/*fastnet*", "/sys/fs/cgroup/*/*fastnet*", "/sys/fs/cgroup/*/*/*fastnet*", "/sys/fs/cgroup/*/kubepods*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if info, err := os.Stat(name); err == nil && info.IsDir() {
				found = append(found, name)
			}
		}
	}
	slices.Sort(found)
	return found, nil
}

// difference is the lines that only one of two texts has, with a sign before each.
func difference(before, after string) string {
	had, has := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, line := range had {
		if !slices.Contains(has, line) {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	for _, line := range has {
		if !slices.Contains(had, line) {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	return b.String()
}
