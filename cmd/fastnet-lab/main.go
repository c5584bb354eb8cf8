// Command fastnet-lab runs Kubernetes clusters in network namespaces of one Linux machine. Its manual is
// test/lab/README.md; all it does is in package lab.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fastnet-lab:", err)
		stop()
		os.Exit(1)
	}
}
