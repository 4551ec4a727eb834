//go:build upgrade

package upgrade

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/workload"
)

// hostGateway is a `storaged gateway` with one block device.
type hostGateway struct {
	*hostclient.Client
	args   []string
	log    *os.File
	cmd    *exec.Cmd
	device string
}

// startHost starts the gateway of a host, which ends with the test, and attaches the clients' volume there.
func (u *upgrade) startHost(r *release) {
	u.Helper()
	dir := u.TempDir()
	var endpoints []string
	for _, n := range u.cluster.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	socket := filepath.Join(dir, "gateway.sock")
	g := &hostGateway{args: []string{"gateway", "--endpoint", strings.Join(endpoints, ","), "--state-dir", filepath.Join(dir, "state"),
		"--socket", socket, "--link-dir", filepath.Join(dir, "disk"), "--host-id", "host"}}
	var err error
	if g.log, err = os.Create(filepath.Join(dir, "gateway.log")); err != nil {
		u.Fatal(err)
	}
	if g.Client, err = hostclient.New(socket); err != nil {
		u.Fatal(err)
	}
	u.host = g
	u.runHost(r)
	u.Cleanup(func() { u.endHost() })
	a, err := g.Attach(u.Context(), host.Request{Volume: trafficVolume, Access: storage.AccessShared, Via: host.ViaFUSE})
	if err != nil {
		u.Fatal(err)
	}
	g.device = a.Device
	u.step("the gateway of a host runs %s and has the volume %s as %s", r.version, trafficVolume, a.Device)
}

// runHost starts the gateway's process and waits until it answers.
func (u *upgrade) runHost(r *release) {
	u.Helper()
	g := u.host
	g.cmd = exec.Command(r.storaged, g.args...)
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	if err := g.cmd.Start(); err != nil {
		u.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.Context()), patience)
	defer cancel()
	if testcluster.Poll(ctx, 10*time.Millisecond, func() bool { _, err := g.Info(ctx); return err == nil }) != nil {
		u.Fatal("the gateway of the host does not answer")
	}
}

// stopHost ends the gateway's process in order.
func (u *upgrade) stopHost(g *hostGateway) {
	u.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		u.Error(err)
	}
	if err := g.cmd.Wait(); err != nil {
		u.Errorf("the gateway of the host ended with %v", err)
	}
}

// restartHost restarts the gateway with a release, while its device is in use.
func (u *upgrade) restartHost(r *release) {
	u.Helper()
	if u.host == nil {
		return
	}
	began := time.Now()
	u.stopHost(u.host)
	u.runHost(r)
	list, err := u.host.Attachments(u.Context())
	if err != nil || len(list) != 1 || list[0].Device != u.host.device {
		u.Fatalf("the gateway of the host has %+v, %v; it had %s", list, err, u.host.device)
	}
	u.step("the gateway of the host runs %s after %.1f s; %s", r.version, time.Since(began).Seconds(), u.traffic.progress(u.T))
}

// endHost removes the device and ends the gateway, unless that was done.
func (u *upgrade) endHost() {
	g := u.host
	if g == nil {
		return
	}
	u.host = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.Context()), patience)
	defer cancel()
	if err := g.Detach(ctx, trafficVolume, u.Failed()); err != nil {
		u.Errorf("detach: %v", err)
	}
	_ = g.Close()
	u.stopHost(g)
	if text, err := os.ReadFile(g.log.Name()); err == nil && u.Failed() {
		u.Logf("the gateway of the host:\n%s", text)
	}
	_ = g.log.Close() // it was read
}

// disk is an open block device, past the host's cache: others share the volume.
type disk struct {
	*os.File
	buf []byte // aligned
}

func (g *hostGateway) open() (workload.Device, error) {
	f, err := os.OpenFile(g.device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 2*storage.BlockSize)
	return &disk{f, b[-int(uintptr(unsafe.Pointer(&b[0])))&(storage.BlockSize-1):][:storage.BlockSize]}, nil
}

func (d *disk) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.File.ReadAt(d.buf[:len(p)], off)
	copy(p, d.buf)
	return err
}

func (d *disk) WriteAt(_ context.Context, p []byte, off int64) error {
	_, err := d.File.WriteAt(d.buf[:copy(d.buf, p)], off)
	return err
}

func (d *disk) WriteZeroes(_ context.Context, off, n int64, _ bool) error {
	return d.clear("BLKZEROOUT", unix.BLKZEROOUT, off, n)
}

func (d *disk) Trim(_ context.Context, off, n int64) error {
	return d.clear("BLKDISCARD", unix.BLKDISCARD, off, n)
}

func (d *disk) clear(name string, request uint, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), uintptr(request), uintptr(unsafe.Pointer(&span))); errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	return nil
}
