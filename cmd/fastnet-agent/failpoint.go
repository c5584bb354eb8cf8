//go:build failpoint

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// failpointVariable of the environment holds the number of the write, of those to both API servers, at which the process is to be killed:
// when it has been answered and nobody knows yet. To be killed before a write is to be killed after the one before it.
const failpointVariable = "FASTNET_FAILPOINT"

// written counts writes; it is one for the whole process.
var written atomic.Int64

// failing is the client, as one that kills the process.
func failing(c client.Client) client.Client {
	text := os.Getenv(failpointVariable)
	if text == "" {
		return c
	}
	at, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		fmt.Fprintf(os.Stderr, "fastnet-agent: %s=%q\n", failpointVariable, text)
		os.Exit(2)
	}
	return &failpoint{Client: c, at: at}
}

type failpoint struct {
	client.Client
	at int64
}

func (f *failpoint) write(send func() error) error {
	n := written.Add(1)
	err := send()
	if n == f.at {
		die()
	}
	return err
}

// die is what kill -9 does: nothing is tidied up, and no other goroutine gets any further.
func die() {
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}

// Create is the Writer's.
func (f *failpoint) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	return f.write(func() error { return f.Client.Create(ctx, object, options...) })
}

// Update is the Writer's.
func (f *failpoint) Update(ctx context.Context, object client.Object, options ...client.UpdateOption) error {
	return f.write(func() error { return f.Client.Update(ctx, object, options...) })
}

// Patch is the Writer's.
func (f *failpoint) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	return f.write(func() error { return f.Client.Patch(ctx, object, patch, options...) })
}

// Delete is the Writer's.
func (f *failpoint) Delete(ctx context.Context, object client.Object, options ...client.DeleteOption) error {
	return f.write(func() error { return f.Client.Delete(ctx, object, options...) })
}

// Status is the client's.
func (f *failpoint) Status() client.SubResourceWriter {
	return &failpointStatus{SubResourceWriter: f.Client.Status(), failpoint: f}
}

type failpointStatus struct {
	client.SubResourceWriter
	failpoint *failpoint
}

// Update is the SubResourceWriter's.
func (f *failpointStatus) Update(ctx context.Context, object client.Object, options ...client.SubResourceUpdateOption) error {
	return f.failpoint.write(func() error { return f.SubResourceWriter.Update(ctx, object, options...) })
}
