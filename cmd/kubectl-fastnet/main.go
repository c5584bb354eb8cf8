// Command kubectl-fastnet is the kubectl plugin `kubectl fastnet`: it sets up a broker, lets clusters join and leave a
// clusterset, and shows what is connected.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/ctl/fastnet"
)

// version is set when the program is linked: -ldflags "-X main.version=v0.1.0".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	code := ctl.Main(ctx, fastnet.NewCommand(streams, version), streams, os.Args[1:])
	stop()
	os.Exit(code)
}
