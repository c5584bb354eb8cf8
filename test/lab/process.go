package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process, told apart from a later one of the same id by its start time (clock ticks since boot).
type process struct {
	PID   int
	Start uint64
}

// processInfo is what /proc says of a process.
type processInfo struct {
	process
	state  byte     // R, S, D, T (stopped), Z (ended, not yet waited for), ...
	parent int      // process id
	args   []string // argv
}

// readProcess fails when there is no such process.
func readProcess(pid int) (processInfo, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processInfo{}, err
	}
	return parseStat(pid, string(text))
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)). The second field is the name in parentheses and may hold anything,
// parentheses and blanks too.
func parseStat(pid int, stat string) (processInfo, error) {
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	if end < 0 || len(fields) < 20 {
		return processInfo{}, fmt.Errorf("/proc/%d/stat: unexpected text %q", pid, stat)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return processInfo{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64) // field 22 of the whole line
	if err != nil {
		return processInfo{}, err
	}
	return processInfo{process: process{pid, start}, state: fields[0][0], parent: parent}, nil
}

// alive says whether that very process is there and has not ended.
func (p process) alive() bool {
	info, err := readProcess(p.PID)
	return err == nil && info.Start == p.Start && info.state != 'Z' && info.state != 'X'
}

// signal sends a signal to that very process and to no other that has its id now.
func (p process) signal(signal unix.Signal) error {
	handle, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer unix.Close(handle)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(handle, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	return nil
}

// processes lists the living processes but this one for which match says yes. It is given the folder /proc/PID.
func processes(match func(folder string) bool) ([]processInfo, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []processInfo
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		folder := filepath.Join("/proc", entry.Name())
		if !match(folder) {
			continue
		}
		info, err := readProcess(pid)
		if err != nil || info.state == 'Z' || info.state == 'X' {
			continue // ended meanwhile
		}
		args, _ := os.ReadFile(filepath.Join(folder, "cmdline"))
		info.args = strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")
		found = append(found, info)
	}
	return found, nil
}

// ownedProcesses lists all processes of the lab by its marks: those in its control groups and those in its network
// namespaces, in this order of certainty. Processes in a pod's network namespace are in the control groups.
func ownedProcesses() ([]processInfo, error) {
	names, err := ownedNamespaces()
	if err != nil {
		return nil, err
	}
	spaces := map[uint64]bool{}
	for _, name := range names {
		if inode, err := inode(filepath.Join(netnsDir, name)); err == nil {
			spaces[inode] = true
		}
	}
	if own, err := inode("/proc/self/ns/net"); err == nil {
		delete(spaces, own) // never the machine's own, should a leftover file name no other namespace
	}
	return processes(func(folder string) bool {
		groups, _ := os.ReadFile(filepath.Join(folder, "cgroup"))
		if inOwnGroup(string(groups)) {
			return true
		}
		for space := range spaces {
			if inNetwork(folder, space) {
				return true
			}
		}
		return false
	})
}

// inNetwork says whether a process, given by its folder in /proc, is in the network namespace of that inode.
func inNetwork(folder string, space uint64) bool {
	own, err := inode(filepath.Join(folder, "ns/net"))
	return err == nil && own == space
}

// inOwnGroup looks for a group of the lab in the text of /proc/PID/cgroup.
func inOwnGroup(text string) bool {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && slices.Contains(strings.Split(parts[2], "/"), cgroupName) {
			return true
		}
	}
	return false
}

func inode(path string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}

// endProcesses kills everything of the lab and waits until it is gone.
func endProcesses(ctx context.Context) error { return endAll(ctx, ownedProcesses) }

// endAll kills the processes that list gives, and waits until it gives none.
func endAll(ctx context.Context, list func() ([]processInfo, error)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var left []processInfo
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		var err error
		if left, err = list(); err != nil || len(left) == 0 {
			return len(left) == 0, err
		}
		var errs []error
		for _, p := range left {
			errs = append(errs, p.signal(unix.SIGKILL))
		}
		return false, errors.Join(errs...)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%d processes do not end, the first is %d %v", len(left), left[0].PID, left[0].args)
	}
	return err
}

// groupProcesses lists everything in a node's control groups, pods too, the init first.
func groupProcesses(node string) ([]processInfo, error) {
	return processes(func(folder string) bool { return inNodeGroup(folder, node) })
}

// inNodeGroup says whether a process, given by its folder in /proc, is in a control group of that node.
func inNodeGroup(folder, node string) bool {
	text, err := os.ReadFile(filepath.Join(folder, "cgroup"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(strings.TrimSpace(line)+"/", "/"+cgroupName+"/"+node+"/") {
			return true
		}
	}
	return false
}

// memory is the process's proportional set size in KiB: its own pages, and its part of those it shares.
func (p process) memory() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ := strconv.Atoi(strings.Fields(value)[0])
			return kib
		}
	}
	return 0
}
