//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"flag"
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
// some: -run 'TestLab/(0|1)'; the first makes the file system.
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
	if err := errors.Join(c.Start(t.Context()), c.WaitFull(contextFor(t, time.Minute)),
		c.CreateVolume(t.Context(), volume, 256<<20), c.CreateVolume(t.Context(), "raw", 64<<20)); err != nil {
		t.Fatal(err)
	}
	var endpoints []string
	for _, n := range c.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	l := &lab{cluster: c, endpoints: strings.Join(endpoints, ",")}
	l.a = boot(t, "server-a")
	l.a.gateway(t, l.endpoints)
	l.b = boot(t, "server-b")
	l.b.gateway(t, l.endpoints)
	return l
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
	reader := l.a.start(t, "reader", "sh", "-c", sum)
	if got := reader.wait(t); got != l.sum {
		t.Errorf("a new container reads files of sum %s, the one before had written %s", got, l.sum)
	}
	reader.remove(t)
	l.a.detach(t)
}

// follow is proof 2.
func (l *lab) follow(t *testing.T) {
	took := l.b.attach(t, "")
	reader := l.b.start(t, "reader", "sh", "-c", sum)
	if got := reader.wait(t); got != l.sum {
		t.Errorf("a container on server B reads files of sum %s, the one on server A had written %s", got, l.sum)
	}
	reader.remove(t)
	l.b.detach(t)
	t.Logf("attached on the other host in %v", took.Round(time.Millisecond))
}
