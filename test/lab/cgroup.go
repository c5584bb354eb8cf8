package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupName is the one control group, in every hierarchy, below which all groups of the lab are.
const cgroupName = "fastnet-lab"

// cgroupMode is how a machine has its control groups set up.
type cgroupMode string

const (
	cgroupV1     cgroupMode = "v1"     // one hierarchy a controller
	cgroupHybrid cgroupMode = "hybrid" // v1 hierarchies, and beside them a v2 one (without controllers) for systemd
	cgroupV2     cgroupMode = "v2"     // one hierarchy
)

// cgroups is the hierarchies of this machine.
type cgroups struct {
	mode      cgroupMode
	unified   string              // mount point of the v2 hierarchy, if any
	separate  []string            // mount points of the v1 hierarchies
	hierarchy map[string][]string // v1 mount point to its controllers (or name=systemd)
}

// parseCgroups finds the hierarchies in the text of /proc/self/mountinfo (see proc_pid_mountinfo(5)).
func parseCgroups(mountinfo string) (cgroups, error) {
	found := cgroups{hierarchy: map[string][]string{}}
	seen := map[string]bool{}
	lines := bufio.NewScanner(strings.NewReader(mountinfo))
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(tail) < 3 {
			continue
		}
		mountPoint, kind, super := fields[4], tail[0], tail[2]
		switch kind {
		case "cgroup2":
			if found.unified == "" {
				found.unified = mountPoint
			}
		case "cgroup":
			var controllers []string
			for option := range strings.SplitSeq(super, ",") {
				switch option {
				case "rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods":
				default:
					if !strings.HasPrefix(option, "release_agent=") {
						controllers = append(controllers, option)
					}
				}
			}
			key := strings.Join(controllers, ",")
			if seen[key] { // the same hierarchy mounted once more elsewhere
				continue
			}
			seen[key] = true
			found.separate = append(found.separate, mountPoint)
			found.hierarchy[mountPoint] = controllers
		}
	}
	switch {
	case len(found.separate) > 0 && found.unified != "":
		found.mode = cgroupHybrid
	case len(found.separate) > 0:
		found.mode = cgroupV1
	case found.unified != "":
		found.mode = cgroupV2
	default:
		return cgroups{}, errors.New("no control groups are mounted: mount cgroup2 at /sys/fs/cgroup")
	}
	return found, nil
}

func readCgroups() (cgroups, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, err
	}
	return parseCgroups(string(text))
}

// mounts is the mount points of all hierarchies.
func (c cgroups) mounts() []string {
	if c.unified == "" {
		return c.separate
	}
	return append(slices.Clone(c.separate), c.unified)
}

// cgroupStep is one thing to do in the file system of control groups: make a group (Write is empty), or write Write to
// the file Path; Copy names a file whose text is written to Path while Path is empty.
type cgroupStep struct {
	Path, Write, Copy string
}

// plan is what to do so that processes can be in the group fastnet-lab/NODE/system and kubelet can have its groups below
// fastnet-lab/NODE.
//
// In v1 a group is a folder in each hierarchy; one of cpuset takes no process before it has processors and memory nodes,
// which are the parent's. In v2 a group hands controllers to its children only when told so, and only while it holds no
// process itself: so processes are in leaves alone.
func (c cgroups) plan(node string) []cgroupStep {
	var steps []cgroupStep
	groups := []string{cgroupName, cgroupName + "/" + node, cgroupName + "/" + node + "/system"}
	for _, mount := range c.separate {
		parent := mount
		for _, group := range groups {
			path := filepath.Join(mount, group)
			steps = append(steps, cgroupStep{Path: path})
			if slices.Contains(c.hierarchy[mount], "cpuset") {
				for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
					steps = append(steps, cgroupStep{Path: filepath.Join(path, file), Copy: filepath.Join(parent, file)})
				}
			}
			parent = path
		}
	}
	if c.unified == "" {
		return steps
	}
	parent := c.unified
	for _, group := range groups {
		if c.mode == cgroupV2 {
			steps = append(steps, cgroupStep{Path: filepath.Join(parent, "cgroup.subtree_control"),
				Copy: filepath.Join(parent, "cgroup.controllers")})
		}
		parent = filepath.Join(c.unified, group)
		steps = append(steps, cgroupStep{Path: parent})
	}
	return steps
}

// applyCgroups carries out a plan; what is there already stays.
func applyCgroups(steps []cgroupStep) error {
	for _, step := range steps {
		if step.Copy == "" {
			if err := os.MkdirAll(step.Path, 0o755); err != nil {
				return fmt.Errorf("make control group: %w", err)
			}
			continue
		}
		text, err := os.ReadFile(step.Copy)
		if err != nil {
			return fmt.Errorf("read control group: %w", err)
		}
		if filepath.Base(step.Path) == "cgroup.subtree_control" {
			if err := enableControllers(step.Path, strings.Fields(string(text))); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(step.Path, []byte(strings.TrimSpace(string(text))), 0o644); err != nil {
			return fmt.Errorf("set up control group: %w", err)
		}
	}
	return nil
}

// enableControllers hands controllers to the children of a v2 group, one by one, since one that cannot be handed on
// (a realtime process under cpu, say) must not keep back the others.
func enableControllers(file string, controllers []string) error {
	for _, needed := range controllers {
		err := os.WriteFile(file, []byte("+"+needed), 0o644)
		if err != nil && slices.Contains([]string{"cpu", "memory", "pids", "cpuset"}, needed) {
			return fmt.Errorf("hand the controller %s to child groups: %w (does %s hold processes itself? inside a "+
				"container, start the lab from a child group)", needed, err, filepath.Dir(file))
		}
	}
	return nil
}

// procsFiles is the files to write a process id to, so that the process is in the node's group of daemons.
func (c cgroups) procsFiles(node string) []string {
	var files []string
	for _, mount := range c.mounts() {
		files = append(files, filepath.Join(mount, cgroupName, node, "system", "cgroup.procs"))
	}
	return files
}

// groups is those of the lab's groups that exist, one a hierarchy: a node's, or the top ones for node "".
func (c cgroups) groups(node string) []string {
	var existing []string
	for _, mount := range c.mounts() {
		path := filepath.Join(mount, cgroupName, node)
		if _, err := os.Stat(path); err == nil {
			existing = append(existing, path)
		}
	}
	return existing
}

// remove takes away all groups of a node, or of the lab for node "", the deepest first. Groups whose last process has
// just ended may be busy for a moment: the caller tries again.
func (c cgroups) remove(node string) error {
	var errs []error
	for _, top := range c.groups(node) {
		var folders []string
		err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return nil // a group that vanished meanwhile is what we want
		})
		if err != nil {
			errs = append(errs, err)
		}
		for _, folder := range slices.Backward(folders) {
			if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove control group: %w", err))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// removeAll is remove, again and again until it is done.
func (c cgroups) removeAll(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var last error
	if err := poll(ctx, pollInterval, func() (bool, error) { last = c.remove(node); return last == nil, nil }); err != nil {
		return errors.Join(err, last)
	}
	return nil
}
