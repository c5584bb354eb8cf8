package traffic

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inbox is the socket of a sink for UDP, both families. The kernel says when a packet came in, however late this process gets a
// processor, and keeps some seconds of them meanwhile; so they are taken many at a time.
type inbox struct {
	socket   int
	headers  [batch]multiHeader
	vectors  [batch]unix.Iovec
	packets  [batch][64]byte
	controls [batch][64]byte
}

// batch of packets that one call takes.
const batch = 64

// multiHeader is struct mmsghdr.
type multiHeader struct {
	unix.Msghdr
	length uint32
	_      [4]byte
}

func newInbox() (*inbox, error) {
	socket, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(socket, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.Bind(socket, &unix.SockaddrInet6{Port: Port}))
	// Beyond the system's limit a buffer takes a privilege: without it the limit has to do.
	if unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		err = errors.Join(err, unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sink: %w", err), unix.Close(socket))
	}
	return &inbox{socket: socket}, nil
}

func (b *inbox) close() { _ = unix.Close(b.socket) }

// wait until there is something, or for a while.
func (b *inbox) wait() {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(b.socket), Events: unix.POLLIN}}, int(time.Second/time.Millisecond))
}

// read what there is, up to a batch, and say whether there may be more.
func (b *inbox) read(arrive func(packet []byte, at time.Time)) (more bool, err error) {
	for i := range b.headers {
		b.vectors[i].Base = &b.packets[i][0]
		b.vectors[i].SetLen(len(b.packets[i]))
		h := &b.headers[i]
		h.Iov, h.Control = &b.vectors[i], &b.controls[i][0]
		h.SetIovlen(1)
		h.SetControllen(len(b.controls[i]))
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(b.socket), uintptr(unsafe.Pointer(&b.headers[0])), batch, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return false, errno
	}
	for i := range int(n) {
		if h := &b.headers[i]; h.length == messageSize {
			arrive(b.packets[i][:messageSize], stamp(b.controls[i][:h.Controllen]))
		}
	}
	return n == batch, nil
}
