package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// programs that the lab needs and the Debian package each is from.
var needed = [][2]string{
	{"containerd", "containerd"}, {"containerd-shim-runc-v2", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"},
	{"iptables", "iptables"}, {"ip6tables", "iptables"}, {"ip", "iproute2"}, {"bridge", "iproute2"},
	{"nsenter", "util-linux"}, {"mount", "mount"},
	{"/usr/lib/cni/ptp", "containernetworking-plugins"}, {"/usr/lib/cni/host-local", "containernetworking-plugins"},
	{"/usr/lib/cni/portmap", "containernetworking-plugins"}, {"/usr/lib/cni/loopback", "containernetworking-plugins"},
}

// memory, in MiB, that a control node and a worker take once Kubernetes runs on them; measured, and rounded up.
const (
	controlMemory = 900
	workerMemory  = 300
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
	return errors.Join(problems...)
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
