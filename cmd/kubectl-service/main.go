// Command kubectl-service is the kubectl plugin `kubectl service`: it exports services to the clusterset and takes them
// back.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/ctl/service"
)

// version is set when the program is linked: -ldflags "-X main.version=v0.1.0".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	code := ctl.Main(ctx, service.NewCommand(streams, version), streams, os.Args[1:])
	stop()
	os.Exit(code)
}
