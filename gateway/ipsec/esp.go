package ipsec

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// esp is who encrypts: the kernel where it can, else charon itself.
type esp string

const (
	unknownESP   esp = ""
	kernelESP    esp = "ipsec" // as Report says it
	userspaceESP esp = "ipsec (userspace ESP)"
)

// What is ours in the kernel's IPsec, which is one for the whole node, is known by two numbers.
const (
	// ifID ("FNES") marks every policy and state that charon makes for us. They count for the device of the same number alone, so no packet
	// of anybody else's meets them, and ours meet nobody else's. The device itself drops what no policy is for.
	ifID uint32 = 0x464e4553
	// spiMin to spiMax are the numbers (SPI) of our tunnels' ends. While charon makes a tunnel, the kernel keeps the number with no other mark
	// and no key; one with a key and without the mark is somebody else's.
	spiMin, spiMax uint32 = 0xfa570000, 0xfa57ffff
)

// detectESP finds out whether the kernel has all that tunnels need: by making a device and an end of a tunnel over each family, the only
// way that is always right (it may load modules). Where it has not, the second result says what it said.
func detectESP(device string) (esp, error, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	link := &netlink.Xfrmi{LinkAttrs: attrs, Ifid: ifID - 1} // there is one device for a number, and ours may be there
	if err := netlink.LinkAdd(link); err != nil && !errors.Is(err, unix.EEXIST) {
		return absent("an xfrm device", err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return unknownESP, nil, fmt.Errorf("try the kernel's ESP: remove %s: %w", device, err)
	}
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		state := &netlink.XfrmState{
			Src: net.ParseIP(addr), Dst: net.ParseIP(addr), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Spi: int(spiMin), Ifid: int(ifID),
			Aead:  &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 32+4), ICVLen: 128},
			Encap: &netlink.XfrmStateEncap{Type: netlink.XFRM_ENCAP_ESPINUDP, SrcPort: DefaultPort, DstPort: DefaultPort, OriginalAddress: net.IPv4zero},
		}
		if err := netlink.XfrmStateAdd(state); err != nil && !errors.Is(err, unix.EEXIST) {
			return absent("AES-GCM in UDP over "+addr, err)
		}
		if err := netlink.XfrmStateDel(state); err != nil {
			return unknownESP, nil, fmt.Errorf("try the kernel's ESP: %w", err)
		}
	}
	return kernelESP, nil, nil
}

// absent tells what the kernel has not from what went wrong.
func absent(what string, err error) (esp, error, error) {
	err = fmt.Errorf("%s: %w", what, err)
	// In turn: no such device; no xfrm or no ESP; no such cipher; no ESP in UDP over IPv6; no IPv6.
	for _, lacking := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.ENOENT, unix.ENOSYS, unix.EINVAL, unix.EAFNOSUPPORT} {
		if errors.Is(err, lacking) {
			return userspaceESP, err, nil
		}
	}
	return unknownESP, nil, fmt.Errorf("try the kernel's ESP: %w", err)
}

// sweepESP takes our policies and states out of the kernel: those of a charon that was killed. Policies go first: one without its state
// would have the kernel ask for it.
func sweepESP() error {
	policies, err := dump(netlink.XfrmPolicyList, netlink.FAMILY_V6) // the inner addresses'
	var problems []error
	for _, policy := range policies {
		if uint32(policy.Ifid) == ifID {
			problems = append(problems, unlessGone(netlink.XfrmPolicyDel(&policy)))
		}
	}
	states, stateErr := dump(netlink.XfrmStateList, netlink.FAMILY_ALL)
	for _, state := range states {
		spi, larval := uint32(state.Spi), state.Aead == nil && state.Crypt == nil && state.Auth == nil
		if uint32(state.Ifid) == ifID || larval && spi >= spiMin && spi <= spiMax {
			problems = append(problems, unlessGone(netlink.XfrmStateDel(&state)))
		}
	}
	if err := errors.Join(append(problems, err, stateErr)...); err != nil {
		return fmt.Errorf("take what is ours out of the kernel's IPsec: %w", err)
	}
	return nil
}

// dump a list, which is empty where the kernel has no IPsec. One that was interrupted is asked for again.
func dump[T any](list func(int) ([]T, error), family int) (all []T, err error) {
	for range 5 {
		if all, err = list(family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	return all, err
}

func unlessGone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
