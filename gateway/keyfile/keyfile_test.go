package keyfile

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func kind() Kind[string] {
	return Kind[string]{
		Make: func() (string, error) { return "key " + rand.Text(), nil },
		Parse: func(text string) (string, error) {
			if !strings.HasPrefix(text, "key ") || len(text) != len("key "+rand.Text()) {
				return "", errors.New("no key: " + text)
			}
			return text, nil
		},
	}
}

func TestKeyIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "some.key")
	keys := make([]string, 8)
	var group sync.WaitGroup
	for i := range keys { // even where many begin at once
		group.Go(func() {
			key, err := kind().Load(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	group.Wait()
	for _, key := range keys {
		if key != keys[0] || key == "" {
			t.Fatalf("more than one key was made, or none")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v (%v), want mode 0600", info, err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("files %v (%v), want the key alone", files, err)
	}
}

func TestDamagedKeyIsNeverReplaced(t *testing.T) {
	good, err := kind().Make()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"empty":             {"", 0o600, "is damaged"},
		"cut short":         {good[:20], 0o600, "is damaged"},
		"readable by group": {good, 0o640, "may be read by others"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "some.key")
			if err := os.WriteFile(path, []byte(test.text), test.mode); err != nil {
				t.Fatal(err)
			}
			_, err := kind().Load(path)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q and the path", err, test.want)
			}
			if err != nil && test.text != "" && strings.Contains(err.Error(), test.text) {
				t.Error("the error quotes the file")
			}
			if left, err := os.ReadFile(path); err != nil || string(left) != test.text {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}
