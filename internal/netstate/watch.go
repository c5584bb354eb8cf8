package netstate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Watch pokes when something changes in the kernel that an owner's plan looks at: links whose names begin with
// linkPrefix or that have addresses (without a carrier the kernel drops their nexthops), addresses that are not
// link-local, and routes of the table. Pods come and go on a node all the time; what that does to links does not poke. Watch returns when the context ends, or with an error when the kernel has dropped
// messages: the caller pokes and watches anew.
func Watch(ctx context.Context, linkPrefix string, table int, poke func()) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 3)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	if err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}),
		netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: fail}),
		netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail}),
	); err != nil {
		return fmt.Errorf("watch the kernel: %w", err)
	}
	known, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("watch the kernel: %w", err)
	}
	addressed := map[int]bool{}
	for _, addr := range known {
		addressed[addr.LinkIndex] = addressed[addr.LinkIndex] || !addr.IP.IsLinkLocalUnicast()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("watch the kernel: %w", err)
		case update, ok := <-links:
			if !ok {
				return errors.New("watch the kernel: links ended")
			}
			if strings.HasPrefix(update.Link.Attrs().Name, linkPrefix) || addressed[update.Link.Attrs().Index] {
				poke()
			}
		case update, ok := <-addrs:
			if !ok {
				return errors.New("watch the kernel: addresses ended")
			}
			if !update.LinkAddress.IP.IsLinkLocalUnicast() {
				addressed[update.LinkIndex] = true
				poke()
			}
		case update, ok := <-routes:
			if !ok {
				return errors.New("watch the kernel: routes ended")
			}
			if update.Table == table {
				poke()
			}
		}
	}
}

// KeepWatching watches until the context ends; after a failure it tells of it, pokes, since something may have been
// missed, and watches again a second later.
func KeepWatching(ctx context.Context, linkPrefix string, table int, poke func(), failed func(error)) {
	for ctx.Err() == nil {
		if err := Watch(ctx, linkPrefix, table, poke); err != nil {
			failed(err)
			poke()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
