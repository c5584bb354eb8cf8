// Package kept is what a daemon on a node keeps in its state directory of the objects it plans from, so that after a restart
// it can plan before any API server has answered: the machine that was cut off, or whose cluster's control plane is gone, has
// its tunnels and routes again. What is kept is the last thing known, not the truth: as soon as the API server answers it counts
// no more.
package kept

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Patience is how long a daemon that starts gives its API server to answer before it goes by what it has kept: in the usual case
// the first plan is made of what is true.
const Patience = time.Second

// Wait until the API server has answered, or, where there is something recalled to go by, for Patience at most. Answered is called when
// it has, late where that is after Wait has returned. It returns false when the context has ended.
func Wait(ctx context.Context, synced func(context.Context) bool, recalled bool, answered func(late bool)) bool {
	patience := ctx
	if recalled {
		var stop context.CancelFunc
		patience, stop = context.WithTimeout(ctx, Patience)
		defer stop()
	}
	if synced(patience) {
		answered(false)
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	go func() {
		if synced(ctx) {
			answered(true)
		}
	}()
	return true
}

// File on the node.
type File struct {
	path string
	last []byte // as it is on disk
}

// At a path. It does no I/O.
func At(path string) *File { return &File{path: path} }

// Read what an earlier process has kept; found is false, without an error, where there is nothing.
func (f *File) Read(into any) (found bool, err error) {
	text, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", f.path, err)
	}
	f.last = text
	return true, nil
}

// Write a value, where it is not what is there, in one step: a crash leaves the old file or the new one. Nobody but root may
// read it.
func (f *File) Write(value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("keep %s: %w", f.path, err)
	}
	text = append(text, '\n')
	if bytes.Equal(text, f.last) {
		return nil
	}
	if err := write(f.path, text); err != nil {
		return fmt.Errorf("keep %s: %w", f.path, err)
	}
	f.last = text
	return nil
}

// Unfinished is at the end of the name of a file that is being written. A process that is killed leaves it.
const Unfinished = ".new"

// Find the files that bear a name or pattern (filepath.Match), unfinished ones too.
func Find(pattern string) (paths []string, err error) {
	for _, pattern := range []string{pattern, pattern + Unfinished, pattern + ".*" + Unfinished} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		paths = append(paths, found...)
	}
	return paths, nil
}

func write(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	temporary := path + Unfinished
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) { // of a crash, with whatever mode
		return err
	}
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	// On the disk before it has the name: else a machine that loses power may find an empty file there.
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// Endpoints with what plans read of them and nothing else, sorted, so that the file changes when a plan could.
func Endpoints(all []v1alpha1.Endpoint) []v1alpha1.Endpoint {
	slim := []v1alpha1.Endpoint{}
	for _, endpoint := range all {
		slim = append(slim, v1alpha1.Endpoint{
			ObjectMeta: metav1.ObjectMeta{
				Name: endpoint.Name, Namespace: endpoint.Namespace, CreationTimestamp: endpoint.CreationTimestamp, DeletionTimestamp: endpoint.DeletionTimestamp,
			},
			Spec: endpoint.Spec,
		})
	}
	slices.SortFunc(slim, func(a, b v1alpha1.Endpoint) int { return strings.Compare(a.Name, b.Name) })
	return slim
}
