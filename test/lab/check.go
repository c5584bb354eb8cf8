package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// programs that the lab needs and the Debian package each is from.
var needed = [][2]string{
	{"containerd", "containerd"}, {"containerd-shim-runc-v2", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"},
	{"iptables", "iptables"}, {"ip6tables", "iptables"}, {"ip", "iproute2"}, {"bridge", "iproute2"},
	{"nsenter", "util-linux"}, {"mount", "mount"},
	{"/usr/lib/cni/ptp", "containernetworking-plugins"}, {"/usr/lib/cni/host-local", "containernetworking-plugins"},
	{"/usr/lib/cni/portmap", "containernetworking-plugins"}, {"/usr/lib/cni/loopback", "containernetworking-plugins"},
}

// Memory, in MiB, to have free for each node. Measured: 350 on a control node and 90 on a worker, with pods; while they
// start, and with Fastnet and a test's pods on them, they need more.
const (
	controlMemory = 1000
	workerMemory  = 500
)

// Instances of inotify that the programs of a cluster have open (11 on the control node besides what every node has, and
// 8 on every node), and what the rest of the machine may need.
const (
	controlWatchers = 11
	nodeWatchers    = 8
	otherWatchers   = 20
)

// check says in one line each what is missing on this machine, before anything is started.
func check(config Config) error {
	var problems []error
	complain := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if os.Geteuid() != 0 {
		return errors.New("fastnet-lab needs root: run it with sudo")
	}
	if info, err := os.Stat("/dev/net/tun"); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		complain("/dev/net/tun is missing: load the module tun (modprobe tun), or give the container that device")
	}
	for _, program := range needed {
		if _, err := exec.LookPath(program[0]); err != nil {
			complain("%s is missing: apt-get install %s", program[0], program[1])
		}
	}
	for _, file := range []string{"lab/kube", "lab/pause", "bin/fastnet-lab"} {
		if _, err := os.Stat(filepath.Join(config.Dist, file)); err != nil {
			complain("%s is missing: run `make build lab`", filepath.Join(config.Dist, file))
		}
	}
	if available, err := availableMemory(); err == nil {
		if wanted := config.Clusters * (controlMemory + config.Workers*workerMemory); available < wanted && !nodesRunning() {
			complain("%d MiB of memory are free, %d are needed: end other programs, or ask for fewer clusters or workers",
				available, wanted)
		}
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(StateDir), &stat); err == nil && stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		complain("%s is on an overlay file system, on which containers' own cannot be: mount a volume there", filepath.Dir(StateDir))
	}
	// Each user's limit, 128 by default: enough for three clusters of three nodes, and not for four.
	wanted := config.Clusters*(controlWatchers+nodeWatchers*(config.Workers+1)) + otherWatchers
	if limit, err := readNumber("/proc/sys/fs/inotify/max_user_instances"); err == nil && limit < wanted {
		complain("%d inotify instances are allowed, %d are needed: sysctl -w fs.inotify.max_user_instances=%d",
			limit, wanted, max(512, wanted))
	}
	return errors.Join(problems...)
}

func readNumber(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// nodesRunning says whether (part of) a lab runs already, whose memory is then not free any more.
func nodesRunning() bool {
	spaces, err := ownedNamespaces()
	return err == nil && len(spaces) > 0
}

// availableMemory in MiB.
func availableMemory() (int, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
