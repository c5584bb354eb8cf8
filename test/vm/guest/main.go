// Command guest is the first process of the machine of test/vm: it makes the host's files its root, runs the tests that the
// host has laid out, and powers off. Host and guest meet in the types of package plan.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastnet-io/fastnet/test/vm/plan"
)

func main() {
	err := run()
	if err != nil {
		fmt.Println("guest:", err) // on the console, which the host shows when a run ends without a verdict
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("guest: power off:", err)
	}
	select {} // the kernel panics when its first process ends
}

func run() error {
	text, err := os.ReadFile("/" + plan.File)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return fmt.Errorf("%s: %w", plan.File, err)
	}
	if err := root(p.Modules); err != nil {
		return err
	}
	for name, value := range map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", plan.Env: "1",
		"GOGC": "400", // there is memory enough, and time is what there is not
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	// The kernel loads modules as it needs them. It does not for these: a device node, and a sysctl.
	if out, err := exec.Command("modprobe", "-a", "tun", "br_netfilter").CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe: %w: %s", err, out)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	report, err := rawTTY("/dev/ttyS1")
	if err != nil {
		return err
	}
	return errors.Join(tests(report, p), drain(report))
}

// mount and its folder, which is made.
func mount(source, target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// root makes the host's files, with a layer in memory above them, the root of this process and of all that it starts.
func root(modules []string) error {
	for _, module := range modules {
		file, err := os.Open(module)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(file.Fd()), "", 0)
		if err := errors.Join(err, file.Close()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", module, err)
		}
	}
	const share = "trans=virtio,version=9p2000.L,cache=loose,msize=262144"
	if err := errors.Join(
		mount("host", "/host", "9p", unix.MS_RDONLY, share),
		mount("layer", "/layer", "tmpfs", 0, ""),
		os.MkdirAll("/layer/files", 0o755), os.MkdirAll("/layer/work", 0o755),
		mount("root", "/root", "overlay", 0, "lowerdir=/host,upperdir=/layer/files,workdir=/layer/work"),
		mount("proc", "/root/proc", "proc", 0, ""),
		mount("sys", "/root/sys", "sysfs", 0, ""),
		mount("dev", "/root/dev", "devtmpfs", 0, ""),
		mount("run", "/root/run", "tmpfs", 0, ""), // the host's has its own namespaces, sockets and locks
		mount(plan.Share, "/root"+plan.Folder, "9p", unix.MS_RDONLY, share),
		mount("/root"+plan.Folder+"/lib/modules", "/root/usr/lib/modules", "", unix.MS_BIND, ""),
	); err != nil {
		return err
	}
	return errors.Join(unix.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
}

// rawTTY opens a serial line on which bytes arrive as they are written.
func rawTTY(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	settings.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(file.Fd()), unix.TCSETS, settings); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

func drain(tty *os.File) error {
	return unix.IoctlSetInt(int(tty.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}

// tests runs one program after the other. What fails is in the report, not in the error.
func tests(report io.Writer, p plan.Plan) error {
	for _, program := range p.Programs {
		if _, err := fmt.Fprint(report, plan.Begin(program.Package)); err != nil {
			return err
		}
		verdict, err := test(report, program, p.Args)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprint(report, plan.End(program.Package, verdict)); err != nil {
			return err
		}
	}
	return nil
}

// test runs one, from a copy in memory: programs that run are then not read over the host's files again and again.
func test(report io.Writer, program plan.Program, args []string) (verdict string, err error) {
	path := filepath.Join("/", filepath.Base(program.Path)) // not in a folder that tests mount something on, such as /run
	if err := copyFile(path, filepath.Join(plan.Folder, program.Path)); err != nil {
		return "", err
	}
	defer os.Remove(path)
	command := exec.Command(path, args...)
	command.Dir = program.Dir
	command.WaitDelay = 5 * time.Second // for a pipe that a lost child holds
	output, err := command.StdoutPipe()
	if err != nil {
		return "", err
	}
	command.Stderr = command.Stdout
	if err := command.Start(); err != nil {
		return "", err
	}
	lines := bufio.NewReader(output)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			if _, err := io.WriteString(report, strings.TrimSuffix(line, "\n")+"\n"); err != nil {
				return "", err
			}
		}
		if err != nil {
			break
		}
	}
	if err := command.Wait(); err != nil {
		return err.Error(), nil
	}
	return plan.Passed, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fs.FileMode(0o755))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
