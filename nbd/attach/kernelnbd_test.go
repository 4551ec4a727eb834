//go:build linux

package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// fakeKernel holds devices as the kernel does, and shows them in a directory that stands for /sys.
type fakeKernel struct {
	sysfs string

	mu      sync.Mutex
	orders  []nbdOrder // connect and reconfigure
	sockets []net.Conn // nil: dead
	changed chan struct{}
	users   int  // who have the device open
	gone    bool // it was disconnected; it stays while it has users
	closing bool // it goes with its last user
}

func newFakeKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{sysfs: t.TempDir(), changed: make(chan struct{}, 16)}
}

func (k *fakeKernel) dir() string { return filepath.Join(k.sysfs, "block/nbd5") }

func (k *fakeKernel) available() error { return nil }

func (k *fakeKernel) do(command uint8, o nbdOrder) (uint32, error) {
	switch command {
	case nbdCmdConnect:
		return k.connect(o)
	case nbdCmdReconfigure:
		return 0, k.reconfigure(o)
	}
	return 0, k.disconnect()
}

// take duplicates the descriptors of an order, as the kernel does.
func take(o nbdOrder) (conns []net.Conn) {
	for _, fd := range o.sockets {
		dup, err := unix.Dup(int(fd))
		if err != nil {
			panic(err)
		}
		f := os.NewFile(uintptr(dup), "")
		c, err := net.FileConn(f)
		if err != nil {
			panic(err)
		}
		_ = f.Close()
		conns = append(conns, c)
	}
	return conns
}

func (k *fakeKernel) connect(o nbdOrder) (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.orders, k.sockets, k.gone, k.closing = append(k.orders, o), take(o), false, false
	err := os.MkdirAll(filepath.Join(k.dir(), "queue"), 0o755)
	for name, text := range map[string]string{"queue/io_timeout": "30000\n", "backend": o.backend + "\n", "pid": "1\n", "size": strconv.FormatUint(o.sizeBytes/512, 10)} {
		err = errors.Join(err, os.WriteFile(filepath.Join(k.dir(), name), []byte(text), 0o644))
	}
	return 5, err
}

func (k *fakeKernel) reconfigure(o nbdOrder) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := os.Stat(filepath.Join(k.dir(), "pid")); err != nil || k.gone {
		return unix.EINVAL
	}
	if o.hasClosing {
		k.closing = o.closing
	}
	if len(o.sockets) == 0 {
		return nil
	}
	for i, c := range k.sockets {
		if c == nil && len(o.sockets) == 1 {
			k.orders = append(k.orders, o)
			k.sockets[i] = take(o)[0]
			k.changed <- struct{}{}
			return nil
		}
	}
	return unix.ENOSPC
}

func (k *fakeKernel) disconnect() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.disconnectLocked()
}

func (k *fakeKernel) disconnectLocked() error {
	k.gone = true
	for _, c := range k.sockets {
		if c != nil {
			_ = c.Close()
		}
	}
	if k.users > 0 {
		return nil
	}
	return os.Remove(filepath.Join(k.dir(), "pid"))
}

// open and close are what a user of the device does.
func (k *fakeKernel) open() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users++
}

func (k *fakeKernel) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users--; k.users == 0 && (k.closing || k.gone) {
		return k.disconnectLocked()
	}
	return nil
}

// drop ends a connection, as the kernel does when an answer does not come.
func (k *fakeKernel) drop(i int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.sockets[i].Close()
	k.sockets[i] = nil
}

// read sends a READ as the kernel does and returns the bytes.
func (k *fakeKernel) read(t *testing.T, i int, off uint64, n uint32) []byte {
	t.Helper()
	k.mu.Lock()
	c := k.sockets[i]
	k.mu.Unlock()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	req := binary.BigEndian.AppendUint32(nil, 0x25609513)
	req = binary.BigEndian.AppendUint32(req, 0) // READ
	req = binary.BigEndian.AppendUint64(req, 77)
	req = binary.BigEndian.AppendUint64(req, off)
	req = binary.BigEndian.AppendUint32(req, n)
	if _, err := c.Write(req); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 16+n)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatal(err)
	}
	if binary.BigEndian.Uint32(answer) != 0x67446698 || binary.BigEndian.Uint32(answer[4:]) != 0 || binary.BigEndian.Uint64(answer[8:]) != 77 {
		t.Fatalf("answer %x", answer[:16])
	}
	return answer[16:]
}

func TestKernelNBD(t *testing.T) {
	backend := nbdtest.NewBackend()
	backend.Add("db", 1<<20)
	kernel := newFakeKernel(t)
	driver, err := NewNBD(Config{Dir: t.TempDir(), Helper: []string{"false"}})
	if err != nil {
		t.Fatal(err)
	}
	driver.kernel, driver.sysfs = kernel, kernel.sysfs
	r := Request{Name: "db", Open: func(ctx context.Context) (nbd.Export, error) {
		e, err := backend.Open(ctx, "db", nbd.Peer{})
		return e, err
	}}
	if _, err := driver.Resume(t.Context(), r); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("resume what is not there: %v", err)
	}
	d, err := driver.newDevice(r)
	if err != nil {
		t.Fatal(err)
	}
	d.Stop(t.Context())

	v, err := backend.Open(t.Context(), "db", nbd.Peer{})
	if err == nil {
		err = v.WriteAt(t.Context(), []byte("hello"), 4096)
	}
	if err != nil {
		t.Fatal(err)
	}
	order := connectFake(t, driver, kernel, r)
	if order.sizeBytes != 1<<20 || order.blockBytes != 512 || order.dead != time.Hour ||
		order.backend != "storaged/db" || len(order.sockets) != 1 || order.serverFlags&1 == 0 {
		t.Errorf("the kernel was told %+v", order)
	}
	first, err := driver.Resume(t.Context(), r) // a successor, while the kernel has noticed that its sockets are dead
	if err != nil {
		t.Fatal(err)
	}
	<-kernel.changed
	if got := kernel.read(t, 0, 4096, 5); string(got) != "hello" {
		t.Errorf("the successor's connection: %q", got)
	}
	kernel.drop(0)
	<-kernel.changed // replaced by itself
	if got := kernel.read(t, 0, 4096, 5); string(got) != "hello" {
		t.Errorf("the new connection: %q", got)
	}
	if err := first.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	<-first.Ended()
	if _, err := driver.Resume(t.Context(), r); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("after detach: %v", err)
	}
}

// connectFake makes a device by a first process, which ends, and returns what the kernel was told.
func connectFake(t *testing.T, driver *NBD, kernel *fakeKernel, r Request) nbdOrder {
	t.Helper()
	dev, err := driver.connect(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if got := kernel.read(t, 0, 4096, 5); string(got) != "hello" {
		t.Errorf("the connection: %q", got)
	}
	dev.Stop(t.Context())
	kernel.drop(0)
	return kernel.orders[0]
}

// usedDevice is a device of the fake kernel, served by its driver.
func usedDevice(t *testing.T, helper ...string) (*NBD, *fakeKernel, *nbdDevice) {
	t.Helper()
	backend := nbdtest.NewBackend()
	backend.Add("db", 1<<20)
	kernel := newFakeKernel(t)
	driver, err := NewNBD(Config{Dir: t.TempDir(), Helper: helper})
	if err != nil {
		t.Fatal(err)
	}
	driver.kernel, driver.sysfs = kernel, kernel.sysfs
	r := Request{Name: "db", Open: func(ctx context.Context) (nbd.Export, error) { return backend.Open(ctx, "db", nbd.Peer{}) }}
	dev, err := driver.connect(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Stop(context.WithoutCancel(t.Context())) })
	return driver, kernel, dev
}

// A device that is removed by force while it is mounted stays in sysfs until it is unmounted. It does not count all the same: the
// detach would disconnect it again and again until its deadline, and nobody could attach the volume anew. The line is the one in
// find that asks the kernel.
func TestForcedDetachOfUsedDevice(t *testing.T) {
	driver, kernel, dev := usedDevice(t, "false")
	kernel.open()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := dev.Detach(ctx, true); err != nil {
		t.Fatalf("detach: %v", err)
	}
	if _, found := driver.find("db"); found {
		t.Error("what was disconnected is found again")
	}
	if err := kernel.close(); err != nil {
		t.Error(err)
	}
}

// A device that somebody has open, if only to read it, is not removed: it is in use, whether or not it was opened so that
// nobody else may. The line is the one in letGo that has the kernel decide; without it the device is cut off from a program
// that writes to it.
func TestDetachOfOpenDevice(t *testing.T) {
	driver, kernel, dev := usedDevice(t, "true") // whose sync succeeds: it is not mounted
	kernel.open()
	if err := dev.Detach(t.Context(), false); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("detach of an open device: %v", err)
	}
	if _, found := driver.find("db"); !found || kernel.closing {
		t.Fatalf("the device is there: %t; it goes with its user: %t", found, kernel.closing)
	}
	if err := kernel.close(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the helper, which opens and closes it
		for {
			kernel.mu.Lock()
			closing := kernel.closing
			kernel.mu.Unlock()
			if closing {
				kernel.open()
				_ = kernel.close() // it was closed by force if this fails, which is then seen
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	if err := dev.Detach(t.Context(), false); err != nil {
		t.Errorf("detach of a free device: %v", err)
	}
	close(stop)
	wg.Wait()
	<-dev.Ended()
}

// A process that was killed in the middle of a detach has left a device that goes with its last user. Served by the next one, it stays:
// its user may be a file system that nobody wanted to lose it. The line is the one in Resume that calls setClosing.
func TestKilledWhileDetaching(t *testing.T) {
	driver, kernel, dev := usedDevice(t, "false")
	kernel.open()
	if err := dev.setClosing(true); err != nil {
		t.Fatal(err)
	}
	dev.Stop(t.Context())
	kernel.drop(0)
	backend := nbdtest.NewBackend()
	backend.Add("db", 1<<20)
	next, err := driver.Resume(t.Context(), Request{Name: "db", Open: func(ctx context.Context) (nbd.Export, error) { return backend.Open(ctx, "db", nbd.Peer{}) }})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Stop(t.Context())
	if err := kernel.close(); err != nil {
		t.Fatal(err)
	}
	if _, found := driver.find("db"); !found {
		t.Error("the device has gone with its user")
	}
}

// A device that is gone already, because the helper of a process that was killed has closed it last, say, is detached. The line is the
// one in letGo that looks for it.
func TestDetachOfLostDevice(t *testing.T) {
	driver, kernel, dev := usedDevice(t, "true")
	if err := kernel.disconnect(); err != nil {
		t.Fatal(err)
	}
	if err := dev.Detach(t.Context(), false); err != nil {
		t.Errorf("detached: %v", err)
	}
	if driver.Left(Request{Name: "db"}) {
		t.Error("something is left")
	}
}

// TestPace: while a device is served, the kernel looks at unanswered requests after ResendAfter; whoever gets its index
// next finds the queue as it was. The line is the one in begin that calls setPace; without it an application waits for half
// a minute when a gateway is killed. The lab shows how long it does.
func TestPace(t *testing.T) {
	shell := `[ "$1" = io-timeout ] && [ "$3" = 200ms ] && echo 200 > "$2"`
	_, kernel, dev := usedDevice(t, "sh", "-c", shell, "helper")
	file := filepath.Join(kernel.dir(), "queue/io_timeout")
	until := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; {
			text, err := os.ReadFile(file)
			if err == nil && string(text) == want+"\n" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("io_timeout is %q (%v), want %s", text, err, want)
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	until("200")
	if err := setTimeout(file, 200*time.Millisecond); err != nil { // as it is: nothing is written
		t.Error(err)
	}
	if err := dev.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	until("30000")
	if err := Helper(t.Context(), []string{"io-timeout", file, "250ms"}, io.Discard); err != nil {
		t.Error(err)
	}
	if err := Helper(t.Context(), []string{"io-timeout", filepath.Join(kernel.dir(), "none"), "250ms"}, io.Discard); err == nil {
		t.Error("a queue that has no time-out was given one")
	}
	if text, err := os.ReadFile(file); err != nil || string(text[:4]) != "250\n" {
		t.Errorf("io_timeout is %q, %v", text, err)
	}
}

// A device whose number the kernel has given to somebody else's connection is not taken for this one. The line is the
// comparison in nbdDevice.Check.
func TestNBDLostToAnother(t *testing.T) {
	_, kernel, dev := usedDevice(t, "false")
	if err := dev.Check(); err != nil || dev.Identity().Backend != "storaged/db" {
		t.Fatalf("%v, identity %q", err, dev.Identity())
	}
	for _, backend := range []string{"storaged/other", ""} {
		if err := os.WriteFile(filepath.Join(kernel.dir(), "backend"), []byte(backend+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := dev.Check(); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("connected to %q: %v", backend, err)
		}
	}
}
