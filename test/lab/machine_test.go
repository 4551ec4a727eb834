//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is a host in QEMU. One script runs in it at a time.
type machine struct {
	name   string
	dir    string
	qemu   *exec.Cmd
	exited chan struct{} // closed when QEMU has ended
	drive  string        // NBD URI of its drive; empty: none
	disk   string        // qcow2 file that it boots systemd from; empty: it has no disk
	tools  string        // file system with what is installed there, read only
	jobs   *os.File      // lines to the host
	lines  chan string   // lines from the host; closed by its reader
}

const (
	// Hosts are emulated, beside other work: waiting has an end, and it is far away. No proof depends on these.
	bootTimeout   = 4 * time.Minute
	scriptTimeout = 3 * time.Minute // above what scripts wait by themselves
	awaitSeconds  = 120             // what a script waits for
)

// boot starts a host, with what is laid over its root, and returns when it takes scripts. A drive is an NBD URI, or empty. It
// ends with the test.
func boot(t *testing.T, name, drive string) *machine {
	t.Helper()
	return power(t, t, &machine{name: name, drive: drive})
}

// power starts a host that is described. It ends with owner, which may be t or a test around it.
func power(owner, t *testing.T, m *machine) *machine {
	t.Helper()
	m.dir, m.exited, m.lines = owner.TempDir(), make(chan struct{}), make(chan string)
	for _, end := range []string{"job.in", "job.out"} {
		if err := syscall.Mkfifo(filepath.Join(m.dir, end), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if m.jobs, err = os.OpenFile(filepath.Join(m.dir, "job.in"), os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	answers, err := os.OpenFile(filepath.Join(m.dir, "job.out"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.qemu = exec.Command("qemu-system-x86_64", m.arguments()...)
	log, err := os.Create(filepath.Join(m.dir, "qemu.log"))
	if err != nil {
		t.Fatal(err)
	}
	m.qemu.Stdout, m.qemu.Stderr = log, log
	if err := m.qemu.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.exited)
		_ = m.qemu.Wait() // it is killed, or the log says why
		_ = log.Close()
	}()
	read := make(chan struct{})
	go func() { defer close(read); m.read(answers) }()
	owner.Cleanup(func() {
		m.cut()
		_ = answers.Close()
		_ = m.jobs.Close()
		<-read
		if owner.Failed() {
			owner.Logf("console of %s:\n%s", m.name, m.consoleTail())
		}
	})
	begun := time.Now()
	if line, err := m.line(t.Context(), bootTimeout); err != nil || line != "READY" {
		t.Fatalf("%s does not come up: %q, %v", m.name, line, err)
	}
	t.Logf("%s is up after %v", m.name, time.Since(begun).Round(100*time.Millisecond))
	return m
}

// cut ends the host as a loss of power does. It may be repeated.
func (m *machine) cut() {
	_ = m.qemu.Process.Kill() // it may have ended
	<-m.exited
}

func (m *machine) arguments() []string {
	cpu := "qemu64"
	if strings.HasPrefix(*accelFlag, "kvm") {
		cpu = "host"
	}
	initrd, parameters := "lab.cpio", "quiet loglevel=5 hostname="+m.name
	if m.disk != "" {
		initrd, parameters = "initramfs.cpio", "disk=/dev/vda net.ifnames=0 loglevel=4 systemd.show_status=true "+*parametersFlag
	}
	arguments := []string{"-M", "pc,usb=off,hpet=off", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", *accelFlag, "-cpu", cpu, "-m", "768",
		"-kernel", filepath.Join(*imageFlag, "vmlinux"), "-initrd", filepath.Join(*imageFlag, initrd),
		"-append", "console=ttyS0 panic=-1 mitigations=off nokaslr audit=0 random.trust_cpu=on " + parameters,
		"-serial", "file:" + filepath.Join(m.dir, "console.log"),
		"-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,romfile=,netdev=net",
		"-monitor", "unix:" + filepath.Join(m.dir, "monitor") + ",server=on,wait=off",
		"-device", "virtio-serial-pci", "-chardev", "pipe,id=job,path=" + filepath.Join(m.dir, "job"),
		"-device", "virtserialport,chardev=job,name=job", "-device", "virtio-rng-pci"}
	if m.disk != "" {
		arguments = append(arguments, "-drive", "file="+m.disk+",format=qcow2,if=virtio", "-drive", "file="+m.tools+",format=raw,if=virtio,readonly=on")
	}
	if m.drive != "" {
		arguments = append(arguments, "-drive", "file="+m.drive+",format=raw,if=virtio")
	}
	return arguments
}

// read passes on what the host says, until the pipe is closed.
func (m *machine) read(answers *os.File) {
	defer close(m.lines)
	for r := bufio.NewReaderSize(answers, 1<<16); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		select {
		case m.lines <- strings.TrimSpace(line):
		case <-m.exited:
			return
		}
	}
}

// line returns the next line that the host says.
func (m *machine) line(ctx context.Context, within time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	select {
	case line, ok := <-m.lines:
		if !ok {
			return "", errors.New("the pipe is closed")
		}
		return line, nil
	case <-m.exited:
		return "", fmt.Errorf("QEMU has ended; see %s", m.dir)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// try runs a script in the host and returns what it prints; an error when it does not exit with 0. After a script that gives
// no answer in time, the host takes no more.
func (m *machine) try(ctx context.Context, script string) (string, error) {
	if _, err := fmt.Fprintln(m.jobs, base64.StdEncoding.EncodeToString([]byte(script))); err != nil {
		return "", err
	}
	line, err := m.line(ctx, scriptTimeout)
	if err != nil {
		return "", fmt.Errorf("%s, running %q: %w", m.name, script, err)
	}
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "DONE" {
		return "", fmt.Errorf("%s answers %q", m.name, line)
	}
	var output []byte
	if len(words) > 2 {
		if output, err = base64.StdEncoding.DecodeString(words[2]); err != nil {
			return "", err
		}
	}
	if code, err := strconv.Atoi(words[1]); err != nil || code != 0 {
		return string(output), fmt.Errorf("%s: %q exits with %s: %s", m.name, script, words[1], bytes.TrimSpace(output))
	}
	return string(output), nil
}

// run is try for a script that must succeed.
func (m *machine) run(t *testing.T, script string) string {
	t.Helper()
	output, err := m.try(t.Context(), "set -e\n"+script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(output)
}

// freeze stops the host with all that it has under way; thaw lets it go on.
func (m *machine) freeze(t *testing.T) { m.signal(t, syscall.SIGSTOP) }
func (m *machine) thaw(t *testing.T)   { m.signal(t, syscall.SIGCONT) }

func (m *machine) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := m.qemu.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// network cuts the host off, or connects it again, as a switch that loses its packets would.
func (m *machine) network(t *testing.T, state string) {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(m.dir, "monitor"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(bootTimeout)); err != nil {
		t.Fatal(err)
	}
	const prompt = "(qemu) "
	said := ""
	for _, say := range []string{"", "set_link net " + state + "\n"} {
		if _, err := io.WriteString(conn, say); err != nil {
			t.Fatal(err)
		}
		said = ""
		for b := make([]byte, 256); !strings.HasSuffix(said, prompt); {
			n, err := conn.Read(b)
			if said += string(b[:n]); err != nil {
				t.Fatalf("QEMU's monitor says %q: %v", said, err)
			}
		}
	}
	if strings.Contains(said, "not found") || strings.Contains(said, "Error") {
		t.Fatalf("QEMU's monitor says %q", said)
	}
}

func (m *machine) consoleTail() string {
	text, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// gateway starts the host's gateway, and returns when it answers.
func (m *machine) gateway(t *testing.T, endpoints string) {
	t.Helper()
	m.run(t, `storaged gateway --endpoint `+endpoints+` --host-id `+m.name+` >>/run/gateway.log 2>&1 3<&- &
echo $! >/run/gateway.pid
while [ $SECONDS -lt `+strconv.Itoa(awaitSeconds)+` ]; do storagectl attachments >/dev/null 2>&1 && exit 0; sleep 0.1; done
cat /run/gateway.log; exit 1`)
}

// podOfGateway starts the host's gateway in a container, with what the chart's pod has: all rights, the host's network and processes, its
// devices, and the state and the socket at the host's paths.
func (m *machine) podOfGateway(t *testing.T, endpoints string) {
	t.Helper()
	type object = map[string]any
	bind := func(path string) object {
		return object{"destination": path, "type": "bind", "source": path, "options": []string{"rbind", "rw"}}
	}
	var all []string
	for _, c := range strings.Fields("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE " +
		"NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE " +
		"SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND") {
		all = append(all, "CAP_"+c)
	}
	config, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"root":       object{"path": "/run/podroot"},
		"process": object{"args": []string{"/storaged", "gateway", "--endpoint=" + endpoints, "--host-id=" + m.name, "--keeper-on-host"}, "cwd": "/",
			"env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0},
			"capabilities": object{"bounding": all, "effective": all, "permitted": all, "inheritable": all}},
		"mounts": []object{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
			bind("/dev"), bind("/run/storaged"), bind("/var/lib/storaged-gateway")},
		"linux": object{"namespaces": []object{{"type": "mount"}, {"type": "ipc"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.run(t, fmt.Sprintf(`mkdir -p /run/bundle/gateway /run/podroot /run/storaged /var/lib/storaged-gateway
[ -e /run/podroot/storaged ] || cp "$(command -v storaged)" /run/podroot/storaged
cat >/run/bundle/gateway/config.json <<'END'
%s
END
(cd /run/bundle/gateway; crun --cgroup-manager=disabled run gateway >/run/gateway.log 2>&1 3<&- &)
while [ $SECONDS -lt %d ]; do storagectl attachments >/dev/null 2>&1 && exit 0; sleep 0.1; done
cat /run/gateway.log; exit 1`, config, awaitSeconds))
}

// endPodOfGateway kills what runs in the gateway's container, and removes it.
func (m *machine) endPodOfGateway(t *testing.T) {
	t.Helper()
	m.run(t, "crun delete --force gateway; rm -rf /run/bundle/gateway")
}

// container is a container of a host: its root holds busybox and the journal, a volume is mounted at /data and a directory of
// the host at /status.
type container struct {
	name string
	on   *machine
}

// start starts a container that runs a command.
func (m *machine) start(t *testing.T, name string, command ...string) container {
	t.Helper()
	type object = map[string]any
	var namespaces []object
	for _, n := range []string{"pid", "ipc", "uts", "mount", "network"} {
		namespaces = append(namespaces, object{"type": n})
	}
	bind := func(from, at string) object {
		return object{"destination": at, "type": "bind", "source": from, "options": []string{"bind", "rw"}}
	}
	config, err := json.Marshal(object{
		"ociVersion": "1.0.2", "hostname": name,
		"root": object{"path": "/containers/root", "readonly": true},
		"process": object{"args": command, "cwd": "/", "env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0},
			"capabilities": object{}},
		"mounts": []object{{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"mode=755"}},
			bind("/srv/"+volume, "/data"), bind("/run/status/"+name, "/status")},
		"linux": object{"namespaces": namespaces},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.run(t, fmt.Sprintf(`mkdir -p /run/status/%[1]s /run/bundle/%[1]s
cat >/run/bundle/%[1]s/config.json <<'END'
%[2]s
END
(cd /run/bundle/%[1]s
 (crun --cgroup-manager=disabled run %[1]s; echo $? >/run/bundle/%[1]s/exit) >/run/bundle/%[1]s/log 2>&1 3<&- &)`, name, config))
	return container{name, m}
}

// wait returns when the container's command has exited with 0, and what it has printed.
func (c container) wait(t *testing.T) string {
	t.Helper()
	return c.on.run(t, fmt.Sprintf(`cd /run/bundle/%s
while [ $SECONDS -lt %d ] && [ ! -s exit ]; do sleep 0.1; done
cat log; [ "$(cat exit)" = 0 ]`, c.name, awaitSeconds))
}

// stop ends the container's journal by SIGTERM, removes the container, and returns the journal's last status.
func (c container) stop(t *testing.T) status {
	t.Helper()
	c.on.run(t, "crun kill "+c.name+" TERM")
	c.wait(t)
	s := c.await(t, 0)
	c.remove(t)
	return s
}

// remove deletes the container, running or not. What of it still waits for a device that was taken away is left behind.
func (c container) remove(t *testing.T) {
	t.Helper()
	c.on.run(t, fmt.Sprintf(`crun delete --force %[1]s || true
while [ $SECONDS -lt 10 ] && [ ! -s /run/bundle/%[1]s/exit ]; do sleep 0.1; done
rm -rf /run/bundle/%[1]s /run/status/%[1]s`, c.name))
}

// status is what a container's journal says of itself.
type status struct {
	synced  int           // records
	longest time.Duration // that one took, since the last forget
	failure string
}

// forget has the journal measure anew.
func (c container) forget(t *testing.T) {
	t.Helper()
	c.on.run(t, "rm -f /run/status/"+c.name+"/journal")
	c.await(t, 1)
}

// await returns the journal's status when it has synced that many more records, or has failed.
func (c container) await(t *testing.T, more int) status {
	t.Helper()
	text := c.on.run(t, fmt.Sprintf(`cd /run/status/%[1]s
n=-1
while [ $SECONDS -lt %[3]d ]; do
  if [ -s journal ]; then
    read -r now longest failure <journal || continue
    [ $n -ge 0 ] || n=$now
    if [ "$failure" != - ] || [ $now -ge $((n + %[2]d)) ]; then cat journal; exit 0; fi
  fi
  sleep 0.1
done
echo "no progress"; cat journal /run/bundle/%[1]s/log /run/gateway.log; exit 1`, c.name, more, awaitSeconds))
	s := status{}
	var ms int64
	if _, err := fmt.Sscan(text, &s.synced, &ms, &s.failure); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	s.longest = time.Duration(ms) * time.Millisecond
	if _, why, found := strings.Cut(text, " "+s.failure); found {
		s.failure += why
	}
	return s
}
