// Command vm runs tests of packages on a full kernel: Debian's own, in a machine that qemu emulates, with this machine's
// files (README.md).
//
//	vm [-run REGEXP] [-json] [-timeout DURATION] [-dist FOLDER] PACKAGE...
//
// It prints what the tests print, or the events of `go test -json`, and exits with 1 when a test failed.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fastnet-io/fastnet/test/vm/plan"
)

// options of the command line.
type options struct {
	run, dist string
	json      bool
	timeout   time.Duration
	packages  []string
}

func main() {
	var o options
	flag.StringVar(&o.run, "run", "", "run only tests whose names match this `regexp`")
	flag.BoolVar(&o.json, "json", false, "print events as `go test -json` does")
	flag.DurationVar(&o.timeout, "timeout", 40*time.Minute, "time for the machine, from power-on")
	flag.StringVar(&o.dist, "dist", "dist", "`folder` of what is built; the kernel is in its folder vm")
	flag.Parse()
	if o.packages = flag.Args(); len(o.packages) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		if o.json { // who counts must not take what never ran for nothing
			fmt.Println(`{"Action":"fail","Package":"github.com/fastnet-io/fastnet/test/vm"}`)
		}
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	folder, err := filepath.Abs(filepath.Join(o.dist, "vm"))
	if err != nil {
		return err
	}
	version, err := os.ReadFile(filepath.Join(folder, "boot", "version"))
	if err != nil {
		return fmt.Errorf("there is no kernel: run test/prepare vm: %w", err)
	}
	kernel := strings.TrimSpace(string(version))
	p, err := compile(ctx, folder, o)
	if err != nil {
		return err
	}
	files, modules, err := needed(filepath.Join(folder, "lib/modules", kernel), "virtio_pci", "9pnet_virtio", "9p", "overlay")
	if err != nil {
		return err
	}
	p.Modules = modules
	if files["init"], err = os.ReadFile(filepath.Join(folder, "guest")); err != nil {
		return err
	}
	if files[plan.File], err = json.Marshal(p); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "initramfs"), archive(files), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done within %s", o.timeout))
	defer cancel()
	return boot(ctx, folder, o.json, len(p.Programs))
}

// compile builds the guest and the tests of all packages that have some.
func compile(ctx context.Context, folder string, o options) (plan.Plan, error) {
	// Inside the machine other limits hold for a test: its clock does not know how slow it is. The host's limit is enough.
	p := plan.Plan{Args: []string{"-test.v", "-test.timeout=0", "-test.paniconexit0"}}
	if o.json {
		p.Args[0] += "=test2json"
	}
	if o.run != "" {
		p.Args = append(p.Args, "-test.run="+o.run)
	}
	list, err := command(ctx, "go", append([]string{"list", "-f", "{{.ImportPath}}\t{{.Dir}}"}, o.packages...)...).Output()
	if err != nil {
		return p, fmt.Errorf("go list: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		name, dir, _ := strings.Cut(strings.TrimSpace(line), "\t")
		program := plan.Program{Package: name, Dir: dir, Path: path.Join("tests", strings.ReplaceAll(name, "/", "-"))}
		if err := command(ctx, "go", "test", "-c", "-ldflags=-s -w", "-o", filepath.Join(folder, program.Path), name).Run(); err != nil {
			return p, fmt.Errorf("go test -c %s: %w", name, err)
		}
		if _, err := os.Stat(filepath.Join(folder, program.Path)); err == nil { // else it has no tests
			p.Programs = append(p.Programs, program)
		}
	}
	const guest = "github.com/fastnet-io/fastnet/test/vm/guest"
	if err := command(ctx, "go", "build", "-o", filepath.Join(folder, "guest"), guest).Run(); err != nil {
		return p, fmt.Errorf("go build %s: %w", guest, err)
	}
	return p, nil
}

// command that ends with the context, and with this process. It is static if it compiles: the guest runs it alone.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// boot starts the machine and prints its report until it powers off.
func boot(ctx context.Context, folder string, asJSON bool, programs int) error {
	console := filepath.Join(folder, "console.log")
	machine := command(ctx, "qemu-system-x86_64", append(hardware(),
		"-kernel", filepath.Join(folder, "boot", "kernel"), "-initrd", filepath.Join(folder, "initramfs"),
		// The console is for the kernel's own words, the second line for the report. What is turned off only takes time here.
		"-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off init_on_alloc=0 lsm= audit=0 nokaslr nowatchdog tsc=reliable",
		"-serial", "file:"+console, "-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report",
		"-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
		"-virtfs", "local,path="+folder+",mount_tag="+plan.Share+",security_model=none,readonly=on",
	)...)
	report, err := machine.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := machine.Start(); err != nil {
		return fmt.Errorf("%w: run test/prepare vm", err)
	}
	done, failed, err := read(ctx, report, asJSON, func(what string) {
		fmt.Fprintf(os.Stderr, "vm: %s %s after power-on\n", what, time.Since(start).Round(100*time.Millisecond))
	})
	err = errors.Join(err, machine.Wait())
	usage, _ := machine.ProcessState.SysUsage().(*syscall.Rusage)
	fmt.Fprintf(os.Stderr, "vm: off after %s, %s of processor time\n", time.Since(start).Round(100*time.Millisecond),
		(time.Duration(usage.Utime.Nano()) + time.Duration(usage.Stime.Nano())).Round(100*time.Millisecond))
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil || done < programs {
		said, _ := os.ReadFile(console) // for people; without it the error below is all there is
		return errors.Join(fmt.Errorf("%d of %d programs of tests ended; the console says:\n%s", done, programs, lastLines(said, 40)), err)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d programs of tests failed", failed, programs)
	}
	return nil
}

// hardware of the machine. The processor counts instructions for time: one is a nanosecond, however long this machine, which is
// busy with other things as well, takes for it. So a second of the guest is a second of work for it, and tests may ask for
// times. While it has nothing to do its clock is ours. It is of an old kind: what newer ones have (XSAVE, SMAP) costs an emulator
// more than it saves, and so do a second processor and what the kernel does against attackers.
func hardware() []string {
	return []string{"-M", "pc", "-accel", "tcg", "-cpu", "Nehalem,+rdrand", "-icount", "shift=0,sleep=on", "-m", "3072", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"}
}

// read prints the report, says on standard error how far it is, and counts.
func read(ctx context.Context, report io.Reader, asJSON bool, say func(string)) (done, failed int, err error) {
	out, closeOut := io.WriteCloser(os.Stdout), func() error { return nil }
	defer func() { err = errors.Join(err, closeOut()) }()
	for lines := bufio.NewReader(report); ; {
		line, readErr := lines.ReadString('\n')
		word, name, verdict := plan.Parse(line)
		switch word {
		case "begin":
			say(name + " begins")
			if asJSON {
				if out, closeOut, err = events(ctx, name); err != nil {
					return done, failed, err
				}
			}
		case "end":
			say(name + " " + verdict)
			done++
			if verdict != plan.Passed {
				failed++
				fmt.Fprintf(out, "%s\nFAIL\n", verdict)
			}
			if err := closeOut(); err != nil {
				return done, failed, err
			}
			out, closeOut = os.Stdout, func() error { return nil }
		default:
			if _, err := io.WriteString(out, line); err != nil {
				return done, failed, err
			}
		}
		if errors.Is(readErr, io.EOF) {
			return done, failed, nil
		}
		if readErr != nil {
			return done, failed, readErr
		}
	}
}

// events turns the output of a program of tests into events. What ends without a verdict has failed.
func events(ctx context.Context, name string) (io.WriteCloser, func() error, error) {
	converter := command(context.WithoutCancel(ctx), "go", "tool", "test2json", "-t", "-p", name)
	converter.Stdout = os.Stdout
	in, err := converter.StdinPipe()
	if err == nil {
		err = converter.Start()
	}
	return in, func() error { return errors.Join(in.Close(), converter.Wait()) }, err
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// needed reads the named modules and all that they need, for the initial file system, and gives the order to load them in.
func needed(folder string, names ...string) (files map[string][]byte, order []string, err error) {
	index, err := os.ReadFile(filepath.Join(folder, "modules.dep"))
	if err != nil {
		return nil, nil, err
	}
	files = map[string][]byte{}
	for _, name := range names {
		i := slices.IndexFunc(strings.Split(string(index), "\n"), func(line string) bool {
			file, _, _ := strings.Cut(line, ":")
			return path.Base(file) == name+".ko"
		})
		if i < 0 {
			return nil, nil, fmt.Errorf("the kernel has no module %s", name)
		}
		own, others, _ := strings.Cut(strings.Split(string(index), "\n")[i], ":")
		chain := append([]string{own}, strings.Fields(others)...) // each before what it needs
		for _, file := range slices.Backward(chain) {
			in := "modules/" + path.Base(file)
			if files[in] != nil {
				continue
			}
			if files[in], err = os.ReadFile(filepath.Join(folder, file)); err != nil {
				return nil, nil, err
			}
			order = append(order, "/"+in)
		}
	}
	return files, order, nil
}

// archive is the initial file system with these files, and a folder for consoles: a cpio archive of the kind "newc".
func archive(files map[string][]byte) []byte {
	var out bytes.Buffer
	inode := 0
	add := func(name string, mode, major, minor int, content []byte) {
		inode++
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
		out.Write(make([]byte, -out.Len()&3))
		out.Write(content)
		out.Write(make([]byte, -out.Len()&3))
	}
	folders := map[string]bool{".": true}
	add("dev", 0o040755, 0, 0, nil)
	add("dev/console", 0o020600, 5, 1, nil) // where what the first process prints goes
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if dir := path.Dir(name); !folders[dir] {
			folders[dir] = true
			add(dir, 0o040755, 0, 0, nil)
		}
		add(name, 0o100755, 0, 0, files[name])
	}
	add("TRAILER!!!", 0, 0, 0, nil)
	return out.Bytes()
}
