package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Down ends the lab and removes everything it made. It goes by the marks alone, not by what was recorded, so it also
// clears up after an `up` that was killed. Without a lab it does nothing.
func Down(ctx context.Context, progress func(line string)) error {
	if os.Geteuid() != 0 {
		return errors.New("fastnet-lab needs root: run it with sudo")
	}
	if progress == nil {
		progress = func(string) {}
	}
	release, err := lock()
	if err != nil {
		return err
	}
	defer release()
	// The order matters: a process keeps its namespaces, mounts and groups alive; a namespace keeps its links.
	if err := endProcesses(ctx); err != nil {
		return err
	}
	progress("processes ended")
	if err := removeNetwork(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	progress("network removed")
	groups, err := readCgroups()
	if err != nil {
		return err
	}
	if err := groups.removeAll(ctx, ""); err != nil {
		return err
	}
	if err := removeMounts(); err != nil {
		return err
	}
	if err := os.RemoveAll(StateDir); err != nil {
		return err
	}
	_ = os.Remove(netnsDir) // if nobody else has namespaces there; it fails when somebody has
	progress("files and control groups removed")
	return nil
}

// Down ends the lab and removes everything it made; see the function [Down].
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.config.Progress) }

// ownedMounts lists mount points in the state folder, the deepest last. Nodes mount in namespaces of their own, so there
// are none unless somebody else made them.
func ownedMounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && (fields[4] == StateDir || strings.HasPrefix(fields[4], StateDir+"/")) {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, nil
}

func removeMounts() error {
	mounts, err := ownedMounts()
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", mounts[i], err)
		}
	}
	return nil
}

// Leftovers lists everything on the machine that bears a mark of the lab, one thing a line: after [Down], nothing.
func Leftovers() ([]string, error) {
	var found []string
	owned, err := ownedProcesses()
	if err != nil {
		return nil, err
	}
	for _, p := range owned {
		found = append(found, fmt.Sprintf("process %d %s", p.PID, strings.Join(p.args, " ")))
	}
	spaces, err := ownedNamespaces()
	if err != nil {
		return nil, err
	}
	for _, name := range spaces {
		found = append(found, "network namespace "+name)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if link.Attrs().Name == hostLink {
			found = append(found, "link "+hostLink)
		}
	}
	groups, err := readCgroups()
	if err != nil {
		return nil, err
	}
	for _, group := range groups.groups("") {
		found = append(found, "control group "+group)
	}
	mounts, err := ownedMounts()
	if err != nil {
		return nil, err
	}
	for _, mount := range mounts {
		found = append(found, "mount "+mount)
	}
	if entries, err := filepath.Glob(filepath.Join(StateDir, "*")); err == nil && len(entries) > 0 {
		found = append(found, "folder "+StateDir)
	}
	return found, nil
}
