//go:build lab

package lab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

var repoFlag = flag.String("repo", "", "`directory` of the sources: the units, the udev rules and docs/attach.md, whose commands are run")

// parametersFlag is for looking into a host: sysctl.kernel.hung_task_timeout_secs=20, say, or systemd.log_level=debug systemd.log_target=console.
var parametersFlag = flag.String("parameters", "", "more `parameters` of the kernel of the host with systemd")

// systemd is a host with systemd and udev, on which storaged is installed as docs/attach.md says. Its disk outlives its boots.
type systemd struct {
	owner       *testing.T // outlives the proofs, as a host that one of them boots does
	cluster     *testcluster.Cluster
	disk, tools string
	*machine
}

// TestSystemd installs the gateway by the documented commands, and takes a host with volumes in /etc/fstab through a day: a start
// and an orderly end of the host, of the gateway, and a loss of power. Each proof finds the host up.
func TestSystemd(t *testing.T) {
	s := newSystemd(t)
	for _, proof := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"0: installed as documented", s.install},
		{"0b: a plugin of Docker's that hangs, and programs that break, are started anew", s.startedAnew},
		{"1: devices are known to udev and systemd", s.known},
		{"2: mounted by /etc/fstab", s.mount},
		{"3: the gateway is restarted, and killed, under a busy file system", s.restart},
		{"3b: the gateway is killed again and again", s.killed},
		{"4: the gateway and its keeper are I/O flushers", s.flush},
		{"5: shut down and booted: unmounted in order, mounted again", s.reboot},
		{"6: a loss of power", s.powerLoss},
		{"7: the cluster is away while the host boots", s.late},
		{"8: the cluster is away while the host shuts down", s.gone},
		{"9: the cluster comes back while the host shuts down", s.back},
		{"10: the gateway was stopped when the host shuts down", s.stopped},
	} {
		t.Run(proof.name, proof.run)
		select {
		case <-s.exited: // the next one finds no host
			return
		default:
		}
	}
}

func newSystemd(t *testing.T) *systemd {
	t.Helper()
	if *storagedFlag == "" || *imageFlag == "" || *rootFlag == "" || *repoFlag == "" {
		t.Fatal("-storaged, -image, -root and -repo say what to run (make lab-systemd does)")
	}
	dir := t.TempDir()
	s := &systemd{owner: t, disk: filepath.Join(dir, "disk.qcow2"), tools: filepath.Join(dir, "tools.ext4")}
	for _, line := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(*imageFlag, "debian.ext4"), s.disk},
		{"mkdir", filepath.Join(dir, "tools")},
		{"cp", "-r", filepath.Join(*rootFlag, "bin/storaged"), filepath.Join(*rootFlag, "bin/storagectl"), filepath.Join(*rootFlag, "bin/journal"),
			filepath.Join(*repoFlag, "deploy"), filepath.Join(dir, "tools")},
		{"mke2fs", "-q", "-t", "ext4", "-d", filepath.Join(dir, "tools"), s.tools, "256M"},
	} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line[0], err, out)
		}
	}
	s.cluster, _ = startCluster(t, map[string]int64{"db": 256 << 20, "files": 512 << 20})
	s.boot(t)
	return s
}

// boot starts the host, and returns when it takes jobs: long before systemd has started everything.
func (s *systemd) boot(t *testing.T) {
	t.Helper()
	s.machine = power(s.owner, t, &machine{name: "host-s", disk: s.disk, tools: s.tools})
}

// documented returns the block of commands in docs/attach.md that follows a text.
func documented(t *testing.T, after string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(*repoFlag, "docs/attach.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), after)
	_, rest, fenced := strings.Cut(rest, "```sh\n")
	block, _, closed := strings.Cut(rest, "```")
	if !found || !fenced || !closed {
		t.Fatalf("docs/attach.md has no commands after %q", after)
	}
	return block
}

// fstab returns the documented line for a volume of that name, mount point and file system.
func fstab(t *testing.T, volume, fs string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(*repoFlag, "docs/attach.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^    /dev/storaged/db .*$`).FindString(string(text))
	if line == "" {
		t.Fatal("docs/attach.md has no line for /etc/fstab")
	}
	return strings.NewReplacer("/dev/storaged/db", "/dev/storaged/"+volume, "/srv/db", "/srv/"+volume, "ext4", fs).Replace(strings.TrimSpace(line))
}

// install is proof 0.
func (s *systemd) install(t *testing.T) {
	var endpoints []string
	for _, n := range s.cluster.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	s.run(t, "mkdir -p /mnt && mount -o ro /dev/vdb /mnt && cp -r /mnt /root/storaged && umount /mnt && cp /root/storaged/journal /usr/local/bin/")
	commands := strings.ReplaceAll(documented(t, "**On a host with systemd.**"), "storage-1,storage-2,storage-3", strings.Join(endpoints, ","))
	t.Logf("the documented commands:\n%s", commands)
	s.run(t, "cd /root/storaged\n"+commands)
	s.run(t, awaitIn("storagectl attachments"))
}

// awaitIn is a script that repeats a command until it succeeds.
func awaitIn(command string) string {
	return fmt.Sprintf("i=0; until %s; do i=$((i + 1)); [ $i -lt %d ] || { systemctl --no-pager status storaged-gateway; journalctl --no-pager -n 50; exit 1; }; sleep 0.5; done", command, 2*awaitSeconds)
}

// startedAnew is proof 0b. A stopped process is one that hangs; SIGQUIT ends a program as a panic does.
func (s *systemd) startedAnew(t *testing.T) {
	s.run(t, `install -m 644 /root/storaged/deploy/systemd/storaged-docker.service /etc/systemd/system/
systemctl daemon-reload && systemctl start storaged-docker`)
	restarted := func(unit string, times int) {
		s.run(t, awaitIn(fmt.Sprintf("[ \"$(systemctl show -p NRestarts --value %[1]s)\" = %[2]d ] && systemctl -q is-active %[1]s", unit, times)))
	}
	s.run(t, awaitIn("[ -S /run/docker/plugins/storaged.sock ]"))
	s.run(t, "systemctl kill --kill-whom=main -s STOP storaged-docker")
	restarted("storaged-docker", 1)
	s.run(t, "journalctl --no-pager -u storaged-docker | grep -qi watchdog")
	s.run(t, "systemctl kill --kill-whom=main -s QUIT storaged-docker")
	restarted("storaged-docker", 2)
	s.run(t, "systemctl kill --kill-whom=main -s QUIT storaged-gateway")
	restarted("storaged-gateway", 1)
	s.run(t, awaitIn("storagectl attachments")+"; systemctl stop storaged-docker")
}

// known is proof 1.
func (s *systemd) known(t *testing.T) {
	s.run(t, "storagectl attach db --via nbd && storagectl attach files --via fuse")
	for _, v := range []string{"db", "files"} {
		s.run(t, awaitIn("systemctl is-active dev-storaged-"+v+".device"))
		properties := s.run(t, "udevadm info --query=property /dev/storaged/"+v)
		if !strings.Contains(properties, "/dev/storaged/"+v) || !strings.Contains(properties, "TAGS=:systemd:") {
			t.Errorf("udev says of %s:\n%s", v, properties)
		}
	}
	// What is inside of a volume is its user's: nothing is assembled of it.
	s.run(t, `vgcreate guest /dev/storaged/db && lvcreate -q -n root -l 100%FREE guest && vgchange -an guest
udevadm trigger --settle /dev/storaged/db && sleep 2 && [ ! -e /dev/guest/root ] && systemctl --no-legend list-units 'lvm-activate-*' | grep guest && exit 1
vgchange -an guest; vgremove -qy guest && pvremove -qy /dev/storaged/db`)
}

// mount is proof 2.
func (s *systemd) mount(t *testing.T) {
	s.run(t, "mkfs.ext4 -q /dev/storaged/db && mkfs.xfs -q /dev/storaged/files && mkdir -p /srv/db /srv/files")
	s.run(t, "cat >>/etc/fstab <<'END'\n"+fstab(t, "db", "ext4")+"\n"+fstab(t, "files", "xfs")+"\nEND\nsystemctl daemon-reload && systemctl start remote-fs.target srv-db.mount srv-files.mount")
	s.run(t, "mountpoint /srv/db && mountpoint /srv/files && echo kept >/srv/db/kept && echo kept >/srv/files/kept && sync")
}

var both = []string{"db", "files"}

// busy starts an application on each volume that appends records and syncs each. Ordered ones are stopped before their file system is
// unmounted, as services are whose units say RequiresMountsFor.
func (s *systemd) busy(t *testing.T, ordered bool) {
	t.Helper()
	for _, v := range both {
		properties := ""
		if ordered {
			properties = "-p After=srv-" + v + ".mount"
		}
		s.run(t, fmt.Sprintf(`rm -f /srv/%[1]s/journal; mkdir -p /run/status/%[1]s
systemd-run -q --unit=app-%[1]s -p KillSignal=SIGTERM %[2]s /usr/local/bin/journal append w /srv/%[1]s/journal /run/status/%[1]s/journal`, v, properties))
		s.progress(t, v)
	}
}

// progress waits until the application on a volume has gone on without an error, and returns its longest pause since it was
// asked last.
func (s *systemd) progress(t *testing.T, v string) time.Duration {
	t.Helper()
	text := s.run(t, fmt.Sprintf(`f=/run/status/%[1]s/journal; n=-1; i=0
while [ $i -lt %[2]d ]; do
  i=$((i + 1))
  if [ -s $f ] && read -r now longest failure <$f; then
    [ $n -ge 0 ] || n=$now
    if [ "$failure" != - ]; then echo "$longest $failure"; journalctl --no-pager -o short-monotonic -n 80 -u storaged-gateway -u "srv-*.mount" -u "app-*" -u init.scope; dmesg | tail -n 20; exit 1; fi
    if [ $now -ge $((n + 30)) ]; then rm -f $f; echo $longest; exit 0; fi
  fi
  sleep 0.1
done
echo no progress; systemctl --no-pager status app-%[1]s; exit 1`, v, 10*awaitSeconds))
	var ms int64
	if _, err := fmt.Sscan(text, &ms); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return time.Duration(ms) * time.Millisecond
}

// idle stops the applications and checks what they have written.
func (s *systemd) idle(t *testing.T) {
	t.Helper()
	for _, v := range both {
		s.run(t, "systemctl stop app-"+v+"; journal check /srv/"+v+"/journal")
	}
}

// restart is proof 3. The guest's kernel sends a FUSE device's unanswered requests to nobody again: it has none while the gateway is
// killed, and until the next one serves, as the file system is frozen.
func (s *systemd) restart(t *testing.T) {
	s.busy(t, true)
	for _, how := range []struct{ name, command string }{
		{"restarted", "systemctl restart storaged-gateway"},
		{"killed", "fsfreeze -f /srv/files && systemctl kill --kill-whom=main -s KILL storaged-gateway && sleep 1 && " +
			awaitIn("storagectl attachments | grep files | grep -q ready") + " && fsfreeze -u /srv/files"},
		{"stopped, and started after 3 s", "systemctl stop storaged-gateway && sleep 3 && systemctl start storaged-gateway"},
	} {
		s.run(t, how.command)
		for _, v := range both {
			t.Logf("%s: the application on %s paused for %v", how.name, v, s.progress(t, v))
			s.run(t, "mountpoint -q /srv/"+v)
		}
	}
	s.idle(t)
}

// killed is proof 3b: a gateway that ends more often than systemd puts up with by default, five times in ten seconds, is started again. An
// emulated host is too slow for that, so its default is five times in ten minutes.
func (s *systemd) killed(t *testing.T) {
	const limit = "/run/systemd/system.conf.d/limit.conf"
	s.run(t, "mkdir -p /run/systemd/system.conf.d && printf '[Manager]\\nDefaultStartLimitIntervalSec=10min\\n' >"+limit+" && systemctl daemon-reload")
	s.run(t, "fsfreeze -f /srv/files") // as in restart
	s.run(t, `pid=0
for n in 1 2 3 4 5 6 7 8; do
  i=0
  until now=$(systemctl show -P MainPID storaged-gateway); [ $now != 0 ] && [ $now != $pid ]; do
    i=$((i + 1)); [ $i -lt 600 ] && ! systemctl is-failed -q storaged-gateway || { systemctl --no-pager status storaged-gateway; exit 1; }
    sleep 0.1
  done
  pid=$now
  [ $n = 8 ] || kill -9 $pid
done
[ $(systemctl show -P StartLimitIntervalUSec srv-db.mount) = 10min ]`)
	s.run(t, "rm "+limit+" && systemctl daemon-reload")
	s.run(t, awaitIn("storagectl attachments | grep -c ready | grep -q 2")+"; fsfreeze -u /srv/files")
	for _, v := range both {
		s.run(t, "mountpoint -q /srv/"+v+" && echo again >/srv/"+v+"/again && sync /srv/"+v+"/again")
	}
}

// flush is proof 4: whatever thread of the gateway, or of the keeper beside it, needs memory, the kernel does not wait there for dirty pages to
// be written, which may be those of the gateway's devices (PR_SET_IO_FLUSHER).
func (s *systemd) flush(t *testing.T) {
	threads := s.run(t, `for pid in $(cat /sys/fs/cgroup/system.slice/storaged-gateway.service/cgroup.procs); do
  for task in /proc/$pid/task/*; do
    read -r stat <$task/stat && set -- ${stat##*) } && echo $pid $(($7 & 0x80000)) # the ninth field of proc(5): PF_MEMALLOC_NOIO
  done
done`)
	pids := map[string]bool{}
	for line := range strings.Lines(threads) {
		f := strings.Fields(line)
		if pids[f[0]] = true; f[1] == "0" {
			t.Errorf("a thread of process %s may wait for the device", f[0])
		}
	}
	if len(pids) < 2 {
		t.Errorf("the service has these processes: %v; want the gateway and its keeper", pids)
	}
}

// off shuts the host down by a command and waits for its end.
func (s *systemd) off(t *testing.T) {
	t.Helper()
	s.offWithin(t, bootTimeout)
	console := s.consoleTail()
	for _, bad := range []string{"A stop job is running", "Failed unmounting", "I/O error", "timed out", "Could not unmount", "blocked for more than"} {
		if strings.Contains(console, bad) {
			t.Errorf("the console says %q:\n%s", bad, console)
			break
		}
	}
}

// mounted waits until the host has booted and both volumes are mounted by systemd.
func (s *systemd) mounted(t *testing.T) {
	t.Helper()
	begun := time.Now()
	for _, v := range both {
		s.run(t, awaitIn("systemctl is-active -q srv-"+v+".mount"))
	}
	t.Logf("both mounted %v after the host took jobs", time.Since(begun).Round(100*time.Millisecond))
	for _, v := range both {
		s.run(t, fmt.Sprintf(`[ "$(cat /srv/%[1]s/kept)" = kept ] && [ $(systemctl show -P ActiveEnterTimestampMonotonic srv-%[1]s.mount) -gt $(systemctl show -P ActiveEnterTimestampMonotonic storaged-gateway) ]`, v))
	}
	if failed := s.run(t, "systemctl --failed --no-legend --plain"); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
}

// reboot is proof 5: what was written and never synced before the shutdown is there afterwards.
func (s *systemd) reboot(t *testing.T) {
	s.busy(t, true)
	sums := s.run(t, "for v in db files; do head -c 8M /dev/urandom >/srv/$v/late; sha256sum </srv/$v/late; done")
	s.off(t)
	s.boot(t)
	s.mounted(t)
	if got := s.run(t, "sha256sum </srv/db/late; sha256sum </srv/files/late; journal check /srv/db/journal >&2; journal check /srv/files/journal >&2"); got != sums && !strings.HasPrefix(got, sums) {
		t.Errorf("after the shutdown the files are %s, before %s", got, sums)
	}
	s.run(t, "dmesg | grep -i 'recovering journal\\|recovery required\\|Starting recovery' && exit 1 || true")
}

// powerLoss is proof 6.
func (s *systemd) powerLoss(t *testing.T) {
	s.busy(t, true)
	s.run(t, "sync") // the host's own disk
	s.cut()
	s.boot(t)
	s.mounted(t)
	s.run(t, "journal check /srv/db/journal && journal check /srv/files/journal")
}

// late is proof 7: the host boots without waiting for what is not needed for it, and mounts when the cluster is there.
func (s *systemd) late(t *testing.T) {
	s.off(t)
	s.killNodes(t)
	s.boot(t)
	s.run(t, awaitIn("systemctl is-active -q multi-user.target"))
	s.startNodes(t)
	s.mounted(t)
}

func (s *systemd) startNodes(t *testing.T) {
	t.Helper()
	for i := range s.cluster.Nodes() {
		if err := s.cluster.LaunchNode(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.cluster.WaitFull(contextFor(t, 2*time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// gone is proof 8: a host whose cluster is away ends all the same, in bounded time: long before systemd would have given up the file
// systems (three times 90 s), whose umount gets errors; although applications use them that systemd does not stop before it unmounts.
func (s *systemd) gone(t *testing.T) {
	s.busy(t, false)
	s.dirty(t)
	s.killNodes(t)
	s.offWithin(t, bootTimeout)
	s.startNodes(t)
	s.boot(t)
	s.mounted(t)
}

// back is proof 9: what had not been written when the cluster went away is written when it comes back, although the host is being
// shut down already.
func (s *systemd) back(t *testing.T) {
	s.run(t, "echo 'host-down-timeout: 3m' >>/etc/storaged/gateway.yaml && systemctl restart storaged-gateway && "+awaitIn("storagectl attachments | grep -c ready | grep -q 2"))
	s.dirty(t)
	sums := s.run(t, "sha256sum </srv/db/dirty; sha256sum </srv/files/dirty")
	s.killNodes(t)
	s.run(t, "systemctl poweroff --no-block; "+awaitIn("systemctl is-system-running | grep -q stopping"))
	s.startNodes(t)
	s.awaitOff(t, bootTimeout)
	s.boot(t)
	s.mounted(t)
	if got := s.run(t, "sha256sum </srv/db/dirty; sha256sum </srv/files/dirty"); got != sums {
		t.Errorf("after the shutdown the files are %s, before %s", got, sums)
	}
}

// stopped is proof 10: nobody serves the devices while the host is shut down, because the gateway's unit was stopped before.
func (s *systemd) stopped(t *testing.T) {
	s.dirty(t)
	s.run(t, "systemctl stop storaged-gateway")
	s.offWithin(t, bootTimeout)
	s.boot(t)
	s.mounted(t)
}

// dirty writes a file on each volume that the kernel has not written out yet.
func (s *systemd) dirty(t *testing.T) {
	t.Helper()
	s.run(t, "for v in db files; do head -c 4M /dev/urandom >/srv/$v/dirty; done")
}

func (s *systemd) killNodes(t *testing.T) {
	t.Helper()
	for _, n := range s.cluster.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
}

// offWithin shuts the host down by a command, and waits for its end for so long.
func (s *systemd) offWithin(t *testing.T, limit time.Duration) {
	t.Helper()
	s.run(t, "systemctl poweroff --no-block")
	s.awaitOff(t, limit)
}

func (s *systemd) awaitOff(t *testing.T, limit time.Duration) {
	t.Helper()
	begun := time.Now()
	select {
	case <-s.exited:
		t.Logf("shut down in %v", time.Since(begun).Round(100*time.Millisecond))
	case <-time.After(limit):
		t.Fatalf("the host does not shut down within %v:\n%s", limit, s.consoleTail())
	}
}
