//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
)

// nodeProcess is a process on a node of c1, by its role.
type nodeProcess struct{ node, pid string }

func corednsProcesses(ctx context.Context) (found []nodeProcess) { return processesOf(ctx, "coredns") }

func processesOf(ctx context.Context, program string) (found []nodeProcess) {
	for _, n := range world.lab.Cluster("c1").Nodes() {
		out, err := n.Command(ctx, "pgrep", "-x", program).Output()
		if err != nil {
			continue // pgrep's way to say that there is none
		}
		for _, pid := range strings.Fields(string(out)) {
			found = append(found, nodeProcess{n.Role(), pid})
		}
	}
	return found
}

// dig asks the cluster's DNS from within the client pod of c1, without the help of an API server; "" is no answer.
func dig(ctx context.Context, name string) string {
	for _, p := range processesOf(ctx, "sleep") {
		out, err := world.lab.Node("c1", p.node).Command(ctx, "nsenter", "--target", p.pid, "--mount", "--net", "--",
			"sh", "-c", fmt.Sprintf("test -x /usr/bin/dig && dig +short +tries=1 +time=1 %s", name)).Output()
		if answer := strings.TrimSpace(string(out)); err == nil && answer != "" && !strings.Contains(answer, ";") {
			return answer
		}
	}
	return ""
}
