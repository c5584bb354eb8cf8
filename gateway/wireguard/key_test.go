package wireguard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestDamagedKeyIsNeverReplaced(t *testing.T) {
	for name, text := range map[string]string{"cut short": "AAAA", "zero": wgtypes.Key{}.String()} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "wireguard.key")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := New(Config{KeyFile: path}).PublicKey(); err == nil || !strings.Contains(err.Error(), "is damaged") {
				t.Errorf("error %v, want that it is damaged", err)
			}
			if left, err := os.ReadFile(path); err != nil || string(left) != text {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

func TestProbeAddressesAreLinkLocalAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		key, err := wgtypes.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		addr := ProbeAddress(key)
		if !addr.IsLinkLocalUnicast() || seen[addr.String()] || addr != ProbeAddress(key) {
			t.Errorf("address %s is not link-local, or not the key's own", addr)
		}
		seen[addr.String()] = true
	}
}
