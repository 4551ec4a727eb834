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
}

func newFakeKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{sysfs: t.TempDir(), changed: make(chan struct{}, 16)}
}

func (k *fakeKernel) dir() string { return filepath.Join(k.sysfs, "block/nbd5") }

func (k *fakeKernel) available() error { return nil }

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
	k.orders, k.sockets = append(k.orders, o), take(o)
	err := os.MkdirAll(k.dir(), 0o755)
	for name, text := range map[string]string{"backend": o.backend + "\n", "pid": "1\n", "size": strconv.FormatUint(o.sizeBytes/512, 10)} {
		err = errors.Join(err, os.WriteFile(filepath.Join(k.dir(), name), []byte(text), 0o644))
	}
	return 5, err
}

func (k *fakeKernel) reconfigure(o nbdOrder) error {
	k.mu.Lock()
	defer k.mu.Unlock()
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

func (k *fakeKernel) disconnect(nbdOrder) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.sockets {
		if c != nil {
			_ = c.Close()
		}
	}
	return os.Remove(filepath.Join(k.dir(), "pid"))
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
	driver, err := NewNBD(Config{Helper: []string{"false"}})
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
	if order.sizeBytes != 1<<20 || order.blockBytes != 512 || order.timeout != 10*time.Second || order.dead != time.Hour ||
		order.backend != "storaged/db" || len(order.sockets) != 2 || order.serverFlags&1 == 0 {
		t.Errorf("the kernel was told %+v", order)
	}
	first, err := driver.Resume(t.Context(), r) // a successor, while the kernel has noticed that its sockets are dead
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		<-kernel.changed
		if got := kernel.read(t, i, 4096, 5); string(got) != "hello" {
			t.Errorf("connection %d: %q", i, got)
		}
	}
	kernel.drop(1)
	<-kernel.changed // replaced by itself
	if got := kernel.read(t, 1, 4096, 5); string(got) != "hello" {
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
	for i := range 2 {
		if got := kernel.read(t, i, 4096, 5); string(got) != "hello" {
			t.Errorf("connection %d: %q", i, got)
		}
	}
	dev.Stop(t.Context())
	kernel.drop(0)
	kernel.drop(1)
	return kernel.orders[0]
}
