package wireguard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// loadKey reads the private key, and makes it where there is none. It is made once in the life of a gateway node: peers
// know the node by it. A file that holds no key is an error, never a reason to make another one.
func loadKey(path string) (wgtypes.Key, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return wgtypes.Key{}, fmt.Errorf("private key: %s may be read by others (mode %04o): set it to 0600, or remove it to have a new one made", path, info.Mode().Perm())
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil || key == (wgtypes.Key{}) {
		// The parser's own error could quote the file.
		return wgtypes.Key{}, fmt.Errorf("private key: %s is damaged: put the right one back, or remove it to have a new one made", path)
	}
	return key, nil
}

// makeKey writes a new key beside its place and links it there, whole or not at all. Of two processes that do so at
// once, one wins, and both go on with its key.
func makeKey(path string) (wgtypes.Key, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	file, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(key.String() + "\n")
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	err = os.Link(file.Name(), path)
	if errors.Is(err, os.ErrExist) {
		return loadKey(path)
	}
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return wgtypes.Key{}, fmt.Errorf("private key: %w", err)
	}
	return key, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
