package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// install puts Fastnet on the clusters the way its users do: with kubectl-fastnet, the broker in c1, one gateway node
// (worker1, else the control node) in each cluster.
func (l *Lab) install(ctx context.Context) error {
	for _, c := range l.clusters {
		gateway := c.nodes[min(1, len(c.nodes)-1)]
		err := l.run(ctx, filepath.Join("lab", "kube"), "kubectl", "--kubeconfig="+c.Kubeconfig(),
			"label", "--overwrite", "node", gateway.name, "fastnet.dev/gateway=true")
		if err != nil {
			return err
		}
	}
	broker := l.clusters[0]
	l.config.Progress("Fastnet: deploying the broker in " + broker.name)
	const tool = "bin/kubectl-fastnet"
	if err := l.run(ctx, tool, "broker", "deploy", "--kubeconfig="+broker.Kubeconfig()); err != nil {
		return err
	}
	for _, c := range l.clusters {
		l.config.Progress("Fastnet: " + c.name + " joins")
		invitation := filepath.Join(StateDir, c.name, "invitation.yaml")
		err := errors.Join(
			l.run(ctx, tool, "broker", "invite", c.name, "-o", invitation, "--kubeconfig="+broker.Kubeconfig()),
			l.run(ctx, tool, "join", invitation, "--kubeconfig="+c.Kubeconfig()),
			os.Remove(invitation)) // it holds a credential and has served its purpose
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// run runs a built program and gives the last line it printed if it fails.
func (l *Lab) run(ctx context.Context, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(l.config.Dist, program), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), args[0], err, lastLine(out))
	}
	return nil
}
