//go:build kube

package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/internal/testcluster"
)

// A machine is the lab's control plane or one of its nodes: a network namespace, and processes in it. Number 0 is the
// control plane, whose namespace holds the bridge too, so that nothing of the lab is in the network of this machine.
type machine struct {
	lab     *lab
	number  int
	running map[string]*process
}

// process is one that the lab started, and waits for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // after done
}

const networkPrefix = "storaged-kube-"

func (m *machine) namespace() string { return fmt.Sprintf("%s%d", networkPrefix, m.number) }

func (m *machine) address() string { return fmt.Sprintf("10.99.0.%d", m.number+1) }

func (m *machine) name() string {
	if m.number == 0 {
		return "control-plane"
	}
	return fmt.Sprintf("node%d", m.number)
}

// in returns the command that runs in the machine's network.
func (m *machine) in(command ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + m.namespace(), "--"}, command...)
}

// start starts a process of the machine; its output goes to a log of its name. It is ended with the lab.
func (m *machine) start(name string, command ...string) error {
	log, err := os.OpenFile(filepath.Join(m.lab.dir, "log", m.name()+"-"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: ctrl-C at the terminal reaches the test alone, which takes the lab down in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	m.running[name] = p
	return nil
}

// insideCommand returns the command in the node's namespaces: what a person on the machine would run.
func (m *machine) insideCommand(command ...string) ([]string, error) {
	kubelet, err := m.kubelet()
	if err != nil {
		return nil, err
	}
	return append([]string{"nsenter", "--target", strconv.Itoa(kubelet), "--mount", "--net", "--pid", "--"}, command...), nil
}

// inside runs a command in the node's namespaces.
func (m *machine) inside(ctx context.Context, command ...string) (string, error) {
	command, err := m.insideCommand(command...)
	if err != nil {
		return "", err
	}
	return run(ctx, command...)
}

// service starts a program of the machine's own as its service manager would: in a control group, and again however often it ends. It goes
// with the node.
func (m *machine) service(name, program string) error {
	command, err := m.insideCommand("sh", "-c", "while :; do "+program+"; sleep 0.1; done")
	if err != nil {
		return err
	}
	into := ""
	for _, c := range controllers() {
		group := filepath.Join(m.cgroup(c), name)
		into += "mkdir -p " + group + "; echo $$ >" + group + "/cgroup.procs; "
	}
	return m.start(name, append([]string{"sh", "-ec", into + `exec "$@"`, "service"}, command...)...)
}

// alive returns an error that names the process of the machine that has ended, and the end of what it said.
func (m *machine) alive() error {
	for name, p := range m.running {
		select {
		case <-p.done:
			return fmt.Errorf("%s of %s has ended (%v); it said:\n%s", name, m.name(), p.err,
				tail(filepath.Join(m.lab.dir, "log", m.name()+"-"+name+".log"), 20))
		default:
		}
	}
	return nil
}

// kill ends a process, and whatever is in its namespace of processes.
func (m *machine) kill(name string) error {
	p, ok := m.running[name]
	if !ok {
		return fmt.Errorf("%s of %s does not run", name, m.name())
	}
	delete(m.running, name)
	_ = p.cmd.Process.Kill() // it may have ended
	select {
	case <-p.done:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s of %s (process %d) does not end", name, m.name(), p.cmd.Process.Pid)
	}
}

func tail(path string, lines int) string {
	text, _ := os.ReadFile(path)
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// run runs a command and returns what it wrote; an error holds it too.
func run(ctx context.Context, command ...string) (string, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // what a shell has started, too
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(failed.String()+out.String()))
	}
	return out.String(), nil
}

// needs returns what is missing for the lab on this machine.
func needs() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root: it makes namespaces, mounts and block devices")
	}
	var missing []string
	for program, origin := range map[string]string{"containerd": "containerd", "ctr": "containerd", "runc": "runc", "etcd": "etcd-server", "ip": "iproute2",
		"iptables": "iptables", "busybox": "busybox-static", "nsenter": "util-linux", "unshare": "util-linux", "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, origin)
		}
	}
	if _, err := os.Stat(pluginDir + "/bridge"); err != nil {
		missing = append(missing, "containernetworking-plugins")
	}
	slices.Sort(missing)
	if missing = slices.Compact(missing); len(missing) > 0 {
		return fmt.Errorf("the lab needs programs that are not here; on Debian: apt-get install %s", strings.Join(missing, " "))
	}
	for _, device := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(device); err != nil {
			return fmt.Errorf("the lab needs %s: %w", device, err)
		}
	}
	return nil
}

// network makes the namespaces: a bridge in that of the control plane, and a wire from it to each node.
func (l *lab) network(ctx context.Context) error {
	zero := l.machines[0]
	commands := [][]string{
		{"ip", "netns", "add", zero.namespace()},
		zero.in("ip", "link", "set", "lo", "up"),
		zero.in("ip", "link", "add", "lab", "type", "bridge"),
		zero.in("ip", "addr", "add", zero.address()+"/24", "dev", "lab"),
		zero.in("ip", "link", "set", "lab", "up"),
		zero.in("sysctl", "-qw", "net.ipv4.ip_forward=1"),
	}
	for _, m := range l.nodes() {
		wire := fmt.Sprintf("node%d", m.number)
		commands = append(commands,
			[]string{"ip", "netns", "add", m.namespace()},
			zero.in("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", m.namespace()),
			zero.in("ip", "link", "set", wire, "master", "lab", "up"),
			m.in("ip", "link", "set", "lo", "up"),
			m.in("ip", "addr", "add", m.address()+"/24", "dev", "eth0"),
			m.in("ip", "link", "set", "eth0", "up"),
			m.in("ip", "route", "add", "default", "via", zero.address()),
			m.in("sysctl", "-qw", "net.ipv4.ip_forward=1"),
			zero.in("ip", "route", "add", m.podNetwork(), "via", m.address()))
		for _, other := range l.nodes() {
			if other != m {
				commands = append(commands, m.in("ip", "route", "add", other.podNetwork(), "via", other.address()))
			}
		}
	}
	for _, c := range commands {
		if _, err := run(ctx, c...); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) podNetwork() string { return fmt.Sprintf("10.244.%d.0/24", m.number) }

// controllers are the cgroup (v1) hierarchies, or "" alone where there is one for all (v2).
func controllers() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{""}
	}
	return []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"}
}

func (m *machine) cgroup(controller string) string {
	return filepath.Join("/sys/fs/cgroup", controller, m.namespace())
}

// cgroups makes the node's.
func (m *machine) cgroups() error {
	for _, c := range controllers() {
		if err := os.MkdirAll(m.cgroup(c), 0o755); err != nil {
			return err
		}
		switch c {
		case "cpuset":
			for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
				text, err := os.ReadFile("/sys/fs/cgroup/cpuset/" + name)
				if err == nil {
					err = os.WriteFile(filepath.Join(m.cgroup(c), name), text, 0)
				}
				if err != nil {
					return err
				}
			}
			if err := os.WriteFile(filepath.Join(m.cgroup(c), "cgroup.clone_children"), []byte("1"), 0); err != nil {
				return err
			}
		case "":
			for _, dir := range []string{"/sys/fs/cgroup", m.cgroup(c)} {
				if err := os.WriteFile(dir+"/cgroup.subtree_control", []byte("+cpu +cpuset +memory +io +pids"), 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// removeCgroups removes those of the node, the deepest first. Processes of killed containers may take a moment to go.
func (m *machine) removeCgroups() error {
	var failed error
	for _, c := range append(controllers(), "unified") { // runc makes those in a second hierarchy by itself
		deadline := time.Now().Add(10 * time.Second)
		for {
			var dirs []string
			_ = filepath.WalkDir(m.cgroup(c), func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs)
			failed = nil
			for _, dir := range dirs {
				if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
					failed = fmt.Errorf("remove the cgroup %s: %w", dir, err)
				}
			}
			if failed == nil || time.Now().After(deadline) {
				break
			}
			<-time.After(50 * time.Millisecond) // the kernel takes dead processes out of their cgroups in its own time
		}
	}
	return failed
}

// kubelet returns the number of the node's kubelet.
func (m *machine) kubelet() (int, error) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		arguments := strings.Split(string(text), "\x00")
		if arguments[0] == m.lab.bin+"/kubelet" && slices.Contains(arguments, m.name()) {
			return strconv.Atoi(strings.Split(f, "/")[2])
		}
	}
	return 0, fmt.Errorf("%s has no kubelet", m.name())
}

// fuseConnections returns the numbers of the FUSE connections of the node's gateway, as it has written down its devices: their file systems
// are mounted nowhere. When the node ends, the last of its processes may be a keeper. It then unmounts what is on a device whose
// connection it holds itself, and waits for itself, with a file system locked that every sync on this machine waits for. (A host's mounts
// do not end before the host.)
func (m *machine) fuseConnections() (numbers []string) {
	files, _ := filepath.Glob(m.dir("own/var/lib/storaged-gateway/attachments/*.json"))
	for _, f := range files {
		var record struct {
			Identity blockdev.Identity `json:"identity"`
		}
		if text, err := os.ReadFile(f); err != nil || json.Unmarshal(text, &record) != nil { // it was detached meanwhile
			continue
		}
		if record.Identity.FileDevice != 0 {
			numbers = append(numbers, strconv.FormatUint(uint64(unix.Minor(record.Identity.FileDevice)), 10))
		}
	}
	return numbers
}

// close takes the machine down: its processes, then what is left of it.
func (m *machine) close() error {
	var err error
	connections := m.fuseConnections()
	for name := range m.running {
		err = errors.Join(err, m.kill(name))
	}
	for _, c := range connections {
		_ = os.WriteFile("/sys/fs/fuse/connections/"+c+"/abort", []byte("1"), 0) // it has ended, if it is not there
	}
	if m.number > 0 {
		err = errors.Join(err, m.removeCgroups())
	}
	if _, statErr := os.Stat("/run/netns/" + m.namespace()); statErr == nil {
		_, delErr := run(context.Background(), "ip", "netns", "del", m.namespace())
		err = errors.Join(err, delErr)
	}
	return err
}

// releaseLoops gives back the loop devices of the lab's gateways, whose files went with the nodes.
func releaseLoops(before []string) error {
	var failed error
	for _, device := range loops() {
		if !slices.Contains(before, device) {
			if _, err := run(context.Background(), "losetup", "-d", device); err != nil {
				failed = errors.Join(failed, err)
			}
		}
	}
	return failed
}

// loops returns the loop devices that have a file of a gateway's behind them, for which the kernel shows "/disk". Those of gateways that
// this machine runs itself, for other tests, have their files elsewhere, and are left alone.
func loops() (list []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if name := strings.TrimSuffix(strings.TrimSpace(string(text)), " (deleted)"); err == nil && name == "/disk" {
			device := "/dev/" + strings.Split(f, "/")[3]
			if file := testcluster.LoopFile(device); file == "" || strings.HasPrefix(file, "/var/lib/storaged-gateway/") {
				list = append(list, device)
			}
		}
	}
	return list
}

// eventually calls f until it returns nil, or the time is over: then the last error is the test's.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("not within %v: %v", within, err)
		}
		<-time.After(200 * time.Millisecond) // between two looks at a condition that has a deadline
	}
}
