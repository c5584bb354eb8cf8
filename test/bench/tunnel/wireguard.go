package main

import (
	"errors"
	"fmt"
	"io"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/fastnet-io/fastnet/test/bench/traffic"
)

// wireguardMTU is that of our tunnels over links of 1500 bytes.
const wireguardMTU = 1420

// wireguard is a role: nothing but wireguard-go with one peer.
func wireguard(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 3 {
		return errors.New("give a private key, the peer's public key, and the peer's address")
	}
	link, err := tun.CreateTUN(wireguardLink, wireguardMTU)
	if err != nil {
		return err
	}
	d := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, wireguardLink+": "))
	defer d.Close()
	config := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		args[0], wireguardPort, args[1], args[2])
	if err := d.IpcSet(config); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	return traffic.Serve(in, out, func(struct{}) (any, error) { return nil, nil })
}
