package netstate

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// This file is the one place where errno has a meaning.

// gone: what should be removed is not there.
func gone(err error) bool {
	var noLink netlink.LinkNotFoundError
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.As(err, &noLink)
}

// noGroup: there is no such nexthop group.
func noGroup(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) }

// notNow: the device of a nexthop is gone, down or without carrier, or its gateway is on no segment of it any more.
func notNow(err error) bool {
	return gone(err) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
}

// present: what should be made is there.
func present(err error) bool { return errors.Is(err, unix.EEXIST) }

// unsupported: the kernel has no such thing, or it is switched off there.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOTSUP)
}

// ignoring returns nil for errors of the kind, and otherwise names what failed.
func ignoring(kind func(error) bool, err error, format string, args ...any) error {
	if err == nil || kind(err) {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// whole repeats a dump that a change in the kernel has interrupted; after a few times it takes the error.
func whole[T any](dump func() ([]T, error)) (values []T, err error) {
	for range 5 {
		if values, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return values, err
}
