package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// install puts Fastnet on the clusters the way its users do: with kubectl-fastnet, the broker in c1, the first workers (or
// the control node, where it is the only one) as gateways in each cluster.
func (l *Lab) install(ctx context.Context) error {
	for _, c := range l.clusters {
		first := min(1, len(c.nodes)-1)
		for _, gateway := range c.nodes[first : first+l.config.Gateways] {
			err := l.run(ctx, filepath.Join("lab", "kube"), "kubectl", "--kubeconfig="+c.Kubeconfig(),
				"label", "--overwrite", "node", gateway.name, "fastnet.dev/gateway=true")
			if err != nil {
				return err
			}
		}
	}
	broker := l.clusters[0]
	l.config.Progress("Fastnet: deploying the broker in " + broker.name)
	const tool = "bin/kubectl-fastnet"
	if err := l.run(ctx, tool, "broker", "deploy", "--kubeconfig="+broker.Kubeconfig()); err != nil {
		return err
	}
	// The roster has one writer, so invitations go one by one; the clusters then join side by side.
	invitations := make([]string, len(l.clusters))
	for i, c := range l.clusters {
		invitations[i] = filepath.Join(StateDir, c.name, "invitation.yaml")
		defer os.Remove(invitations[i]) // it holds a credential and has then served its purpose
		err := l.run(ctx, tool, "broker", "invite", c.name, "--output="+invitations[i], "--kubeconfig="+broker.Kubeconfig())
		if err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range l.clusters {
		group.Go(func() error {
			l.config.Progress("Fastnet: " + c.name + " joins")
			args := []string{"join", invitations[i], "--kubeconfig=" + c.Kubeconfig(), "--wait", "--prefixes=" + c.pods.String() + "," + c.services.String()}
			err := l.run(ctx, tool, append(args, l.config.Join...)...)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			l.config.Progress("Fastnet: " + c.name + " has joined")
			return nil
		})
	}
	return group.Wait()
}

// run runs a built program and gives the last line it printed if it fails.
func (l *Lab) run(ctx context.Context, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(l.config.Dist, program), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), args[0], err, lastLine(out))
	}
	return nil
}
