package apitest

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/ctl/fastnet"
	"github.com/fastnet-io/fastnet/internal/ctl/service"
)

// Programs are the plugins, for scripts to run by name.
func Programs() map[string]func() {
	program := func(command func(genericiooptions.IOStreams, string) *cobra.Command) func() {
		return func() {
			streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
			os.Exit(ctl.Main(context.Background(), command(streams, "v0.0.0-test"), streams, os.Args[1:]))
		}
	}
	return map[string]func(){"kubectl-fastnet": program(fastnet.NewCommand), "kubectl-service": program(service.NewCommand)}
}

// Scripts runs every script of a folder, one after the other: they share the clusters, whose kubeconfigs are in the
// variables given, and each leaves them as it found them. Beside what testscript has, a script may say
//
//	fails CODE PROGRAM ARGS...   the program must end with that exit code
//	silent VARIABLE              sets it to the address of a server that takes connections and never says a word
//
// and with clusters there is kubectl.
func Scripts(t *testing.T, dir string, update bool, clusters map[string]string) {
	t.Helper()
	var kubectl string
	if len(clusters) > 0 {
		kubectl = t.TempDir()
		if err := os.Symlink(Binary(t), filepath.Join(kubectl, "kubectl")); err != nil {
			t.Fatal(err)
		}
	}
	var oneAtATime sync.Mutex // testscript runs its scripts side by side
	testscript.Run(t, testscript.Params{
		Dir: dir, UpdateScripts: update, RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			oneAtATime.Lock()
			env.Defer(oneAtATime.Unlock)
			for name, kubeconfig := range clusters {
				env.Setenv(name, kubeconfig)
			}
			if kubectl != "" {
				env.Setenv("PATH", kubectl+string(os.PathListSeparator)+env.Getenv("PATH"))
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"fails": fails, "silent": silent},
	})
}

func silent(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 1 {
		ts.Fatalf("usage: silent VARIABLE")
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(loopback().String(), "0")) // the kernel takes what comes
	ts.Check(err)
	ts.Defer(func() { listener.Close() })
	ts.Setenv(args[0], listener.Addr().String())
}

func fails(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: fails CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("ended with %v, want exit code %d", err, want)
	}
}
