//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

var (
	storagedFlag = flag.String("storaged", "", "the storaged `binary`")
	imageFlag    = flag.String("image", "", "`directory` of the hosts' kernel and initramfs (image.sh)")
	rootFlag     = flag.String("root", "", "`directory` that is laid over the hosts' root: storaged, storagectl and journal, static")
	accelFlag    = flag.String("accel", "tcg,thread=multi,tb-size=256", "QEMU's accelerator: tcg or kvm")
)

const volume = "db"

// lab is a cluster on this machine, and two hosts.
type lab struct {
	cluster   *testcluster.Cluster
	endpoints string
	a, b      *machine
	sum       string // of the files that proof 1 has written
}

// TestLab runs the proofs one after the other: each finds the volume detached, with a file system, and leaves it so. To run
// some: -run 'TestLab/(0|1|4)'; the first makes the file system.
func TestLab(t *testing.T) {
	l := newLab(t)
	if !t.Run("0: a device by the kernel's NBD client", l.device) {
		return
	}
	for _, proof := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"1: files outlive their container", l.outlive},
		{"2: files follow to another host", l.follow},
		{"4: a host is frozen in the middle of writing, another takes over", l.takeOver},
		{"6: a node dies, and the gateway, under a busy file system", l.survive},
		{"5: a raw volume is written and read on both hosts", l.shareRaw},
		{"7: a mounted volume grows", l.grow},
		{"3: two containers share a volume", l.shareFiles},
		{"10: a host is cut off, and its gateway frozen", l.cutOff},
		{"11: a gateway is killed in the middle of attaching and detaching", l.killed},
		{"8: plain NBD clients", l.plain},
		{"9: the gateway is in a container, which is replaced", l.gatewayPod},
	} {
		if !t.Run(proof.name, proof.run) {
			return // what it has left behind is looked at, and nothing runs on it
		}
	}
}

// newLab starts the cluster and the hosts, each with its gateway.
func newLab(t *testing.T) *lab {
	t.Helper()
	if *storagedFlag == "" || *imageFlag == "" || *rootFlag == "" {
		t.Fatal("-storaged, -image and -root say what to run (make lab does)")
	}
	overlay(t)
	l := &lab{}
	l.cluster, l.endpoints = startCluster(t, map[string]int64{volume: 256 << 20, "raw": 64 << 20, "plain": 64 << 20})
	l.a = boot(t, "server-a", "")
	l.a.gateway(t, l.endpoints)
	l.b = boot(t, "server-b", "")
	l.b.gateway(t, l.endpoints)
	return l
}

// startCluster starts three nodes on this machine, which hosts in QEMU reach, with volumes of so many bytes. It returns the
// nodes' API addresses too.
func startCluster(t *testing.T, volumes map[string]int64) (*testcluster.Cluster, string) {
	t.Helper()
	address := reachable(t)
	c, err := testcluster.New(testcluster.Config{Command: []string{*storagedFlag}, Dir: t.TempDir(), Host: func(int) string { return address }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes() {
				t.Logf("the end of %s:\n%s", n.LogPath, n.LogTail(30))
			}
		}
		if err := c.Stop(contextFor(t, 15*time.Second)); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(c.Start(t.Context()), c.WaitFull(contextFor(t, 2*time.Minute))); err != nil {
		t.Fatal(err)
	}
	for name, size := range volumes {
		if err := c.CreateVolume(t.Context(), name, size); err != nil {
			t.Fatal(err)
		}
	}
	var endpoints []string
	for _, n := range c.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	return c, strings.Join(endpoints, ",")
}

// overlay appends what is laid over the hosts' root to the initramfs; the kernel unpacks both.
func overlay(t *testing.T) {
	t.Helper()
	base, err := os.ReadFile(filepath.Join(*imageFlag, "initramfs.cpio"))
	if err != nil {
		t.Fatal(err)
	}
	pack := exec.Command("sh", "-c", "find . -mindepth 1 | cpio -o -H newc --quiet -R 0:0")
	pack.Dir = *rootFlag
	over, err := pack.Output()
	if err == nil {
		err = os.WriteFile(filepath.Join(*imageFlag, "lab.cpio"), bytes.Join([][]byte{base, over}, nil), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// contextFor returns a context that ends after d, also while a test is cleaned up.
func contextFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

// reachable returns an address of this machine that hosts in QEMU's user network reach: any but loopback.
func reachable(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	t.Fatal("this machine has no IPv4 address but loopback; give it one: ip addr add 192.0.2.1/32 dev lo")
	return ""
}

// attach attaches a volume on a host and mounts it, and returns how long the attaching took.
func (m *machine) attach(t *testing.T, flags string) time.Duration {
	t.Helper()
	begun := time.Now()
	m.run(t, "storagectl attach "+volume+" --via nbd "+flags)
	took := time.Since(begun)
	m.run(t, "mkdir -p /srv/"+volume+" && mount /dev/storaged/"+volume+" /srv/"+volume)
	return took
}

// detach is the other way round; the file system is checked in between.
func (m *machine) detach(t *testing.T) {
	t.Helper()
	m.run(t, "umount /srv/"+volume+" && e2fsck -fn /dev/storaged/"+volume+" && storagectl detach "+volume)
}

// device: a volume becomes a device by netlink, holds a file system, and is given back.
func (l *lab) device(t *testing.T) {
	if at := l.a.run(t, "storagectl attach db --via nbd"); at != "/dev/nbd0" {
		t.Fatalf("attached as %q, want /dev/nbd0", at)
	}
	l.a.run(t, "mkfs.ext4 -q /dev/storaged/db && mount /dev/storaged/db /mnt && echo hello >/mnt/file && sync && umount /mnt")
	l.a.run(t, "storagectl detach db && storagectl attach db --via nbd && mount /dev/storaged/db /mnt && test $(cat /mnt/file) = hello && umount /mnt")
	l.a.run(t, "storagectl detach db && test ! -e /dev/storaged/db")
}

// sum prints one sum of the files that a container finds in its volume.
const sum = "cd /data && cat one two | sha256sum"

// outlive is proof 1.
func (l *lab) outlive(t *testing.T) {
	l.a.attach(t, "")
	writer := l.a.start(t, "writer", "sh", "-c",
		"cd /data && dd if=/dev/urandom of=one bs=64k count=32 2>/dev/null && echo two >two && sync && "+sum)
	l.sum = writer.wait(t)
	writer.remove(t)
	l.a.run(t, forget)
	reader := l.a.start(t, "reader", "sh", "-c", sum)
	if got := reader.wait(t); got != l.sum {
		t.Errorf("a new container reads files of sum %s, the one before had written %s", got, l.sum)
	}
	reader.remove(t)
	l.a.detach(t)
}

// follow is proof 2: while one host has the volume the other one does not get it, and then it does.
func (l *lab) follow(t *testing.T) {
	l.a.attach(t, "")
	if said, err := l.b.try(t.Context(), "storagectl attach "+volume+" --via nbd 2>&1"); err == nil || !strings.Contains(said, "server-a") {
		t.Fatalf("server B attaches what server A has, or is not told who has it: %v: %s", err, said)
	}
	l.a.detach(t)
	took := l.b.attach(t, "")
	reader := l.b.start(t, "reader", "sh", "-c", sum)
	if got := reader.wait(t); got != l.sum {
		t.Errorf("a container on server B reads files of sum %s, the one on server A had written %s", got, l.sum)
	}
	reader.remove(t)
	l.b.detach(t)
	t.Logf("attached on the other host in %v", took.Round(time.Millisecond))
}

// journal starts a container that appends to the volume's journal, and returns when it does.
func (m *machine) journal(t *testing.T, name, writer string) container {
	t.Helper()
	c := m.start(t, name, "journal", "append", writer, "/data/journal", "/status/journal")
	c.await(t, 10)
	return c
}

// count is what a run of records of one writer is.
type count struct {
	writer  string
	records int
}

// forget has a host's kernel drop what it keeps of files and devices, so that they are read from their volumes.
const forget = "sync && echo 3 >/proc/sys/vm/drop_caches"

// check returns what the journal in a mounted volume holds.
func (m *machine) check(t *testing.T) (counts []count) {
	t.Helper()
	for line := range strings.Lines(m.run(t, forget+" && journal check /srv/"+volume+"/journal")) {
		var c count
		if _, err := fmt.Sscan(line, &c.writer, &c.records); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		counts = append(counts, c)
	}
	return counts
}

// takeOver is proof 4.
func (l *lab) takeOver(t *testing.T) {
	l.a.attach(t, "")
	l.a.run(t, "rm -f /srv/db/journal")
	old := l.a.journal(t, "old", "a")
	l.a.run(t, `cd /srv/db && dd if=/dev/urandom of=load bs=256k count=4 2>/dev/null && sync
(while dd if=/dev/urandom of=load bs=256k count=4 oflag=direct conv=notrunc; do :; done) >/dev/null 2>&1 3<&- & # writes are always under way`)
	old.await(t, 50)
	l.a.freeze(t)
	begun := time.Now()
	took := l.b.attach(t, "--take-over")
	next := l.b.journal(t, "next", "b")
	back := time.Since(begun)
	const loaded = forget + " && sha256sum </srv/db/load"
	before := l.b.run(t, loaded)
	l.a.thaw(t)
	const never = 1 << 30
	end := old.await(t, never)
	if end.failure == "-" {
		t.Error("the old host's application goes on")
	}
	// The device may answer errors, because the groups refuse it, before the gateway has heard why.
	reason := l.a.run(t, "while [ $SECONDS -lt 30 ] && ! storagectl attachments | grep -q server-b; do sleep 0.2; done; storagectl attachments")
	if !strings.Contains(reason, "server-b") {
		t.Errorf("the old host's gateway does not say who has the volume: %s", reason)
	}
	next.await(t, 20)
	if l.b.run(t, loaded) != before {
		t.Error("late writes of the old host have landed")
	}
	own := next.stop(t)
	counts := l.b.check(t)
	t.Logf("taken over in %v, the next container had written 10 records after %v; the old one had synced %d records and then got %q; found: %v",
		took.Round(time.Millisecond), back.Round(time.Millisecond), end.synced, end.failure, counts)
	if len(counts) != 2 || counts[0].writer != "a" || counts[1].writer != "b" {
		t.Errorf("the journal holds %v, want records of a, then of b", counts)
	} else if counts[0].records < end.synced || counts[0].records+counts[1].records != own.synced {
		t.Errorf("the journal holds %v; a had synced %d, and b %d in all", counts, end.synced, own.synced)
	}
	l.b.detach(t)
	old.remove(t)
	l.a.run(t, "umount -l /srv/db; storagectl detach db --force")
}

// survive is proof 6.
func (l *lab) survive(t *testing.T) {
	l.a.attach(t, "")
	l.a.run(t, "rm -f /srv/db/journal")
	c := l.a.journal(t, "busy", "a")
	for i, n := range l.cluster.Nodes() {
		c.forget(t)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s killed: the application paused for %v", n.Name, c.goesOn(t))
		if err := errors.Join(l.cluster.StartNode(t.Context(), i), l.cluster.WaitFull(contextFor(t, 2*time.Minute))); err != nil {
			t.Fatal(err)
		}
	}
	c.forget(t)
	l.a.run(t, "kill -9 $(cat /run/gateway.pid)")
	l.a.gateway(t, l.endpoints)
	t.Logf("the gateway killed and started: the application paused for %v", c.goesOn(t))
	end := c.stop(t)
	if counts := l.a.check(t); len(counts) != 1 || counts[0].records != end.synced {
		t.Errorf("the journal holds %v, %d records were synced", counts, end.synced)
	}
	l.a.detach(t)
}

// gatewayPod is proof 9: a gateway in a container, as Kubernetes runs it, takes the kernel's NBD where it is without being told, and what is on
// its devices outlives the container.
func (l *lab) gatewayPod(t *testing.T) {
	l.a.run(t, "kill $(cat /run/gateway.pid)")
	l.a.podOfGateway(t, l.endpoints)
	if device := l.a.run(t, "storagectl attach "+volume); !strings.HasPrefix(device, "/dev/nbd") {
		t.Errorf("on a host with nbd the gateway makes %s", device)
	}
	l.a.run(t, "mkdir -p /srv/db && mount /dev/storaged/db /srv/db && rm -f /srv/db/journal")
	c := l.a.journal(t, "pods", "a")
	c.forget(t)
	l.a.endPodOfGateway(t)
	l.a.podOfGateway(t, l.endpoints)
	t.Logf("the gateway's container killed and replaced: the application paused for %v", c.goesOn(t))
	end := c.stop(t)
	if counts := l.a.check(t); len(counts) != 1 || counts[0].records != end.synced {
		t.Errorf("the journal holds %v, %d records were synced", counts, end.synced)
	}
	l.a.detach(t)
	l.a.endPodOfGateway(t)
	l.a.gateway(t, l.endpoints)
}

// goesOn returns how long the journal has paused since it was told to forget; it fails the test when it has seen an error.
func (c container) goesOn(t *testing.T) time.Duration {
	t.Helper()
	s := c.await(t, 30)
	if s.failure != "-" {
		t.Fatalf("the application sees an error: %s", s.failure)
	}
	return s.longest
}

// shareRaw is proof 5.
func (l *lab) shareRaw(t *testing.T) {
	hosts := []*machine{l.a, l.b}
	for _, m := range hosts {
		m.run(t, "storagectl attach raw --via nbd --access shared")
	}
	for round := range 5 {
		read := fmt.Sprintf("dd if=/dev/storaged/raw bs=16k skip=%d count=1 iflag=direct 2>/dev/null | sha256sum", round)
		for i, m := range hosts {
			before := hosts[1-i].run(t, read) // what might be kept somewhere is kept now
			want := m.run(t, "dd if=/dev/urandom of=/run/block bs=4k count=4 2>/dev/null; "+
				fmt.Sprintf("dd if=/run/block of=/dev/storaged/raw bs=16k seek=%d oflag=direct 2>/dev/null; sha256sum </run/block", round))
			if got := hosts[1-i].run(t, read); got != want || got == before {
				t.Fatalf("round %d: %s has written %s, the other host reads %s, and before %s", round, m.name, want, got, before)
			}
		}
	}
	for _, m := range hosts {
		m.run(t, "storagectl detach raw")
	}
}

// grow is proof 7. Directories of a file system's root are spread over it, so some of the files lie where it has grown.
func (l *lab) grow(t *testing.T) {
	l.a.attach(t, "")
	c := l.a.journal(t, "growing", "a")
	c.forget(t)
	begun := time.Now()
	l.a.run(t, "storagectl --endpoint "+l.endpoints+` volume resize db --size 512M
while [ $SECONDS -lt 60 ] && [ $(blockdev --getsize64 /dev/storaged/db) != $((512 << 20)) ]; do sleep 0.1; done
resize2fs /dev/storaged/db
[ $(df -k /srv/db | awk 'END {print $2}') -gt 400000 ]`)
	t.Logf("volume, device and file system grown in %v; the application paused for %v", time.Since(begun).Round(time.Millisecond), c.goesOn(t))
	c.stop(t)
	const files = "cat /srv/db/dir*/file | sha256sum"
	written := l.a.run(t, "for i in $(seq 100 163); do mkdir /srv/db/dir$i && dd if=/dev/urandom of=/srv/db/dir$i/file bs=64k count=4 2>/dev/null; done; "+files)
	if read := l.a.run(t, forget+" && "+files); read != written {
		t.Errorf("files of the grown file system have the sum %s, and had %s when they were written", read, written)
	}
	l.a.detach(t)
	l.a.attach(t, "")
	if read := l.a.run(t, "[ $(blockdev --getsize64 /dev/storaged/db) = $((512 << 20)) ] && "+files); read != written {
		t.Errorf("attached again, they have the sum %s", read)
	}
	l.a.detach(t)
}

// shareFiles is proof 3. Whoever starts a container asks for its volume, and gives it up afterwards: asked for again it is the
// same device, and nobody takes it away from a container that uses it.
func (l *lab) shareFiles(t *testing.T) {
	l.a.attach(t, "")
	device := l.a.run(t, "readlink -f /dev/storaged/db")
	if again := l.a.run(t, "storagectl attach db --via nbd"); again != device {
		t.Fatalf("attached again as %s, it is %s", again, device)
	}
	talk := func(mine, theirs string) container {
		return l.a.start(t, "talker-"+mine, "sh", "-c", "cd /data && echo hello from "+mine+" >"+mine+
			"; until [ -s "+theirs+" ]; do sleep 0.1; done; cat "+theirs)
	}
	one, two := talk("x", "y"), talk("y", "x")
	if got := one.wait(t) + ", " + two.wait(t); got != "hello from y, hello from x" {
		t.Errorf("the containers read %q", got)
	}
	one.remove(t)
	user := l.a.journal(t, "user", "a")
	if said, err := l.a.try(t.Context(), "storagectl detach db 2>&1"); err == nil || !strings.Contains(said, "in use") {
		t.Errorf("a volume that a container uses is detached, or it is not said why it is not: %v: %s", err, said)
	}
	user.goesOn(t)
	two.remove(t)
	user.stop(t)
	l.a.detach(t)
	l.a.attach(t, "")
	if got := l.a.run(t, "cat /srv/db/x /srv/db/y"); got != "hello from x\nhello from y" {
		t.Errorf("the volume holds %q of the two containers", got)
	}
	l.a.detach(t)
}

// longCut is longer than the cluster keeps a session of a host that it hears nothing of.
const longCut = 40 * time.Second

// cutOff is proof 10: to whoever writes, a frozen gateway and a network that is cut are pauses. Commands have an answer meanwhile, and
// what they could not finish neither stays, nor stands in the way of the next one.
func (l *lab) cutOff(t *testing.T) {
	l.a.attach(t, "")
	l.a.run(t, "rm -f /srv/db/journal")
	c := l.a.journal(t, "cut", "a")
	pause := func(what string, begin, end func()) {
		c.forget(t)
		begin()
		<-time.After(longCut)
		end()
		t.Logf("%s for %v: the application paused for %v", what, longCut, c.goesOn(t))
	}
	pause("the gateway frozen", func() { l.a.run(t, "kill -STOP $(cat /run/gateway.pid)") }, func() { l.a.run(t, "kill -CONT $(cat /run/gateway.pid)") })
	pause("the network cut", func() { l.a.network(t, "off") }, func() { l.a.network(t, "on") })
	end := c.stop(t)
	if counts := l.a.check(t); len(counts) != 1 || counts[0].records != end.synced {
		t.Errorf("the journal holds %v, %d records were synced", counts, end.synced)
	}

	l.a.run(t, "umount /srv/db")
	l.a.network(t, "off")
	l.a.fails(t, "storagectl detach db", "device is removed")
	l.a.run(t, "storagectl attachments | grep '^db  *- ' && test ! -e /dev/storaged/db")
	l.a.network(t, "on")
	l.a.clean(t) // by itself

	l.a.network(t, "off")
	l.a.fails(t, "storagectl attach db --via nbd", "")
	l.a.network(t, "on")
	l.a.run(t, "until storagectl attach db --via nbd || [ $SECONDS -ge 60 ]; do sleep 0.5; done") // the first may still find no way
	l.a.attach(t, "")
	c = l.a.journal(t, "forced", "c")
	l.a.network(t, "off")
	c.await(t, 0) // the host answers
	l.a.fails(t, "storagectl detach db", "in use")
	l.a.fails(t, "storagectl detach db --force", "device is removed")
	l.b.attach(t, "--take-over")
	next := l.b.journal(t, "next", "b")
	l.a.network(t, "on")
	last := c.await(t, 1<<30)
	if last.failure == "-" {
		t.Error("the application on a device that was removed sees no error")
	}
	c.remove(t)
	l.a.run(t, "umount -l /srv/db")
	l.a.clean(t)
	own := next.stop(t)
	if counts := l.b.check(t); len(counts) != 3 || counts[0].records+counts[1].records < last.synced ||
		counts[0].records+counts[1].records+counts[2].records != own.synced {
		t.Errorf("the journal holds %v; %d were synced before it was taken over, and %d in all", counts, last.synced, own.synced)
	}
	l.b.detach(t)
	l.a.clean(t)
}

// fails runs a command that cannot succeed, and must say so in time, with these words.
func (m *machine) fails(t *testing.T, command, words string) {
	t.Helper()
	begun := time.Now()
	said, err := m.try(t.Context(), "! "+command+" 2>&1")
	if err != nil || !strings.Contains(said, words) {
		t.Fatalf("%s says %q (%v), want an error with %q", command, said, err, words)
	}
	t.Logf("%s: %v, %s", command, time.Since(begun).Round(100*time.Millisecond), strings.TrimSpace(said))
}

// clean waits until nothing is attached to the host, and fails the test if something is left of what was.
func (m *machine) clean(t *testing.T) {
	t.Helper()
	m.run(t, fmt.Sprintf(`while storagectl attachments | grep -q '^[a-z]*  ' && [ $SECONDS -lt %d ]; do sleep 0.2; done
storagectl attachments | grep 'Nothing is attached' || { storagectl attachments; tail -n 20 /run/gateway.log; exit 1; }
! ls /dev/storaged/* 2>/dev/null
! grep -H storaged /sys/block/nbd*/backend 2>/dev/null
for p in /proc/[0-9]*; do # nobody waits for a device for ever
  [ -s $p/cmdline ] || continue
  i=0
  while read -r _ _ state _ <$p/stat && [ "$state" = D ]; do
    [ $((i += 1)) -lt 100 ] || { cat $p/cmdline $p/stack; exit 1; }
    sleep 0.1
  done 2>/dev/null
done`, awaitSeconds))
}

// killed is proof 11: a gateway that is killed at any moment leaves nothing that keeps the next one from doing what it is asked for.
func (l *lab) killed(t *testing.T) {
	for _, after := range []string{"0.02", "0.05", "0.1", "0.15", "0.2", "0.3", "0.5"} {
		for _, do := range []string{"attach db --via nbd", "detach db"} {
			l.a.run(t, "(storagectl "+do+" >/run/said 2>&1 3<&- &); sleep "+after+`; kill -9 $(cat /run/gateway.pid)
while [ -e /proc/$(cat /run/gateway.pid) ]; do sleep 0.05; done`)
			l.a.gateway(t, l.endpoints)
			l.a.run(t, "while storagectl attachments | grep -q connecting && [ $SECONDS -lt 60 ]; do sleep 0.1; done; storagectl "+do)
			if do != "detach db" {
				l.a.run(t, "dd if=/dev/storaged/db of=/dev/null bs=4k count=1 iflag=direct && [ $(ls /sys/block/*/backend | wc -l) = 1 ]")
			}
		}
		l.a.clean(t)
	}
}

// plain is proof 8: clients that know nothing of gateways, each at another node. Their connections attach the volume, and give
// it up.
func (l *lab) plain(t *testing.T) {
	export := func(node int) (host, port string) {
		host, port, err := net.SplitHostPort(l.cluster.Node(node).NBD)
		if err != nil {
			t.Fatal(err)
		}
		return host, port
	}
	host, port := export(0)
	vm := boot(t, "guest", "nbd://"+net.JoinHostPort(host, port)+"/plain")
	vm.run(t, "mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && echo from the drive >/mnt/file && umount /mnt")
	host, port = export(1)
	connect := fmt.Sprintf("nbd-client %s %s /dev/nbd5 -N ", host, port)
	if said, err := l.a.try(t.Context(), connect+"plain"); err == nil {
		t.Fatalf("nbd-client has got a volume that a drive has: %s", said)
	}
	vm.cut()
	l.a.run(t, connect+"plain && mount /dev/nbd5 /mnt && cat /mnt/file >/run/read && echo from the client >>/mnt/file && umount /mnt && "+
		"grep -qx 'from the drive' /run/read && e2fsck -fn /dev/nbd5 && nbd-client -d /dev/nbd5")
	l.a.run(t, connect+"'plain?access=shared&read-only' && test $(cat /sys/block/nbd5/ro) = 1")
	host, port = export(2)
	vm = boot(t, "guest", "nbd://"+net.JoinHostPort(host, port)+"/plain%3Faccess=shared&read-only,readonly=on")
	both := "mount -o ro,noload /dev/%s /mnt && cat /mnt/file && umount /mnt"
	if a, b := l.a.run(t, fmt.Sprintf(both, "nbd5")), vm.run(t, fmt.Sprintf(both, "vda")); a != b || a != "from the drive\nfrom the client" {
		t.Errorf("nbd-client's file is %q, the drive's %q", a, b)
	}
	l.a.run(t, "nbd-client -d /dev/nbd5")
}
