package wireguard

import (
	"errors"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/fastnet-io/fastnet/gateway/keyfile"
)

// loadKey reads the private key, and makes it where there is none.
func loadKey(path string) (wgtypes.Key, error) {
	return keyfile.Kind[wgtypes.Key]{
		Make: func() (string, error) {
			key, err := wgtypes.GeneratePrivateKey()
			return key.String() + "\n", err
		},
		Parse: func(text string) (wgtypes.Key, error) {
			key, err := wgtypes.ParseKey(strings.TrimSpace(text))
			if err == nil && key == (wgtypes.Key{}) {
				err = errors.New("zero")
			}
			return key, err
		},
	}.Load(path)
}
