// Package keyfile keeps private keys on a node: each is made once in the life of a gateway node, since peers know the node
// by it, and never leaves it.
package keyfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fastnet-io/fastnet/internal/kept"
)

// Kind of key, as text in a file.
type Kind[K any] struct {
	// Make a new one.
	Make func() (text string, err error)
	// Parse what Make has made. Its error is not shown: it could quote the file.
	Parse func(text string) (K, error)
}

// Load reads the private key, and makes it where there is none. A file that holds no key is an error, never a reason to
// make another one: that would cut every cable.
func (kind Kind[K]) Load(path string) (K, error) {
	var none K
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return kind.create(path)
	}
	if err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return none, fmt.Errorf("private key: %s may be read by others (mode %04o): set it to 0600, or remove it to have a new one made", path, info.Mode().Perm())
	}
	key, err := kind.Parse(string(text))
	if err != nil {
		return none, fmt.Errorf("private key: %s is damaged: put the right one back, or remove it to have a new one made", path)
	}
	return key, nil
}

// create writes a new key beside its place and links it there, whole or not at all. Of two processes that do so at once,
// one wins, and both go on with its key.
func (kind Kind[K]) create(path string) (K, error) {
	var none K
	text, err := kind.Make()
	if err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	file, err := os.CreateTemp(dir, filepath.Base(path)+".*"+kept.Unfinished) // mode 0600
	if err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	if err = os.Link(file.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return none, fmt.Errorf("private key: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return none, fmt.Errorf("private key: %w", err)
	}
	return kind.Load(path)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove the key; it is no error where there is none.
func Remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
