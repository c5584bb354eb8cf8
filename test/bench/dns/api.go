package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/fastnet-io/fastnet/internal/ctl/apitest"
)

// startAPI starts etcd and a kube-apiserver, and gives the administrator's kubeconfig. They end with stop, and with this
// program however it ends.
func startAPI(ctx context.Context, dir string) (kubeconfig string, stop func(), err error) {
	t := &outsideTest{ctx: ctx, dir: dir}
	defer func() {
		if failure := recover(); failure != nil {
			t.end()
			failed, ours := failure.(testFailure)
			if !ours {
				panic(failure)
			}
			err = failed.error
		}
	}()
	return apitest.Start(t, "bench", "10.96.0.0/16"), t.end, nil
}

// outsideTest lets the starter of tests' API servers work in a program. What the starter does not use is not there.
type outsideTest struct {
	testing.TB
	ctx      context.Context
	dir      string
	cleanups []func()
}

type testFailure struct{ error }

func (t *outsideTest) Helper()                  {}
func (t *outsideTest) Context() context.Context { return t.ctx }
func (t *outsideTest) TempDir() string          { return t.dir }
func (t *outsideTest) Cleanup(f func())         { t.cleanups = append(t.cleanups, f) }
func (t *outsideTest) Fatal(args ...any)        { panic(testFailure{errors.New(fmt.Sprint(args...))}) }
func (t *outsideTest) Fatalf(format string, args ...any) {
	panic(testFailure{fmt.Errorf(format, args...)})
}
func (t *outsideTest) Skip(args ...any) { t.Fatal(args...) }
func (t *outsideTest) Errorf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (t *outsideTest) end() {
	for _, cleanup := range slices.Backward(t.cleanups) {
		cleanup()
	}
	t.cleanups = nil
}
