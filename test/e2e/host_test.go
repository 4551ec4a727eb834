//go:build e2e && devices

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// Bounds of what an application on a host sees.
const (
	pauseOfNode    = 3 * time.Second
	pauseOfGateway = 3 * time.Second // its start included
)

// startHost starts the gateway of a host, with the given name and more flags.
func startHost(t *testing.T, c *testcluster.Cluster, name string, more ...string) *hosttest.Host {
	t.Helper()
	return hosttest.Start(t, c, hosttest.Options{Binary: *storagedFlag, Name: name, Args: more})
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// journal appends records to a file and syncs each, until it is stopped.
type journal struct {
	mu      sync.Mutex
	records int           // written and synced
	longest time.Duration // of one record, since the last look
	err     error
	stop    chan struct{}
	done    chan struct{}
}

const recordBytes = 4096

func startJournal(t *testing.T, path string) *journal {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(j.done)
		defer func() { _ = f.Close() }()
		for n := 0; ; n++ {
			select {
			case <-j.stop:
				return
			default:
			}
			begun := time.Now()
			_, err := f.Write(record(n))
			err = errors.Join(err, f.Sync())
			j.mu.Lock()
			if err == nil {
				j.records, j.longest = n+1, max(j.longest, time.Since(begun))
			}
			j.err = err
			j.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return j
}

func record(n int) []byte {
	return append([]byte(fmt.Sprintf("%015d\n", n)), bytes.Repeat([]byte{byte(n)}, recordBytes-16)...)
}

// await waits for more records and returns the longest time that one took since the last call.
func (j *journal) await(t *testing.T, more int) time.Duration {
	t.Helper()
	j.mu.Lock()
	want := j.records + more
	j.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := testcluster.Poll(ctx, time.Millisecond, func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.err != nil || j.records >= want
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil || j.err != nil {
		t.Fatalf("after %d records the application saw %v (%v)", j.records, j.err, err)
	}
	longest := j.longest
	j.longest = 0
	return longest
}

func (j *journal) end() int {
	close(j.stop)
	<-j.done
	return j.records
}

// mounted makes a file system on an attached volume and returns where it is mounted.
func mounted(t *testing.T, a host.Attachment) (at string) {
	t.Helper()
	at = t.TempDir()
	run(t, "mkfs.ext4", "-q", a.Device)
	run(t, "mount", a.Device, at)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", at).Run() }) // unmounted already, unless the test failed
	return at
}

// TestMountedFileSystem: a node that dies, and a gateway that is killed, are pauses to a mounted, busy file system. Every
// record that was synced is there afterwards, and the file system is clean.
func TestMountedFileSystem(t *testing.T) {
	c := startWithVolume(t, nil)
	g := startHost(t, c, "host-a")
	a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	at := mounted(t, a)
	j := startJournal(t, filepath.Join(at, "journal"))
	j.await(t, 200)
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		pause := j.await(t, 200)
		t.Logf("%s killed: the application paused for %v", n.Name, pause.Round(time.Millisecond))
		checkStall(t, pause, pauseOfNode)
		if err := c.StartNode(t.Context(), indexOf(c, n)); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitFull(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		g.End(t, sig)
		g.Start(t)
		pause := j.await(t, 200)
		t.Logf("gateway ended by %v and started: the application paused for %v", sig, pause.Round(time.Millisecond))
		checkStall(t, pause, pauseOfGateway)
	}
	records := j.end()
	run(t, "umount", at)
	if err := g.Detach(t.Context(), volumeName, false); err != nil {
		t.Fatal(err)
	}
	a = g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	run(t, "e2fsck", "-fn", a.Device)
	run(t, "mount", "-o", "ro", a.Device, at)
	data, err := os.ReadFile(filepath.Join(at, "journal"))
	if err != nil || len(data) < records*recordBytes {
		t.Fatalf("%d records were synced, %d bytes are there: %v", records, len(data), err)
	}
	for n := range records {
		if !bytes.Equal(data[n*recordBytes:][:recordBytes], record(n)) {
			t.Fatalf("record %d of %d is not as it was written", n, records)
		}
	}
	run(t, "umount", at)
}

func indexOf(c *testcluster.Cluster, n *testcluster.Node) int {
	for i, o := range c.Nodes() {
		if o == n {
			return i
		}
	}
	return -1
}

// TestHeldCopies: first copies of writes sit in the sockets of a frozen node while their gateway is killed, its successor
// sends the writes once more, and newer ones after them. When the node goes on, nothing old appears (I3; docs/design.md
// section 9). It shows the whole way on a real kernel, and stays green without the line that closes earlier sessions
// (device.closePredecessors): TestFirstCopyIsHeld guards that.
func TestHeldCopies(t *testing.T) {
	c := startWithVolume(t, nil)
	g := startHost(t, c, "host-a")
	a := g.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	disk, err := os.OpenFile(a.Device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	const blocks = 64 // in as many extents, and so in all groups
	value := uint64(0)
	write := func() error {
		value++
		return writeBlocks(disk, blocks, value)
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() { wrote <- write() }()
		time.AfterFunc(100*time.Millisecond, func() { _ = g.Cmd.Process.Kill() }) // with writes at the frozen node
		_ = g.Cmd.Wait()
		g.Start(t)
		if err := <-wrote; err != nil {
			t.Fatalf("the application saw an error: %v", err)
		}
		if err := write(); err != nil { // newer
			t.Fatal(err)
		}
		if err := n.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitFull(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			if got := readBlock(t, disk, i); got != value {
				t.Fatalf("%s: block %d holds write %d, the newest is %d", n.Name, i, got, value)
			}
		}
	}
}

// aligned returns a buffer for direct I/O.
func aligned() []byte {
	b := make([]byte, 2*storage.BlockSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (storage.BlockSize - 1)
	return b[skip:][:storage.BlockSize]
}

// writeBlocks writes a value into the first block of each of n extents, all at a time.
func writeBlocks(disk *os.File, n int, value uint64) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			b := aligned()
			binary.LittleEndian.PutUint64(b, value)
			_, errs[i] = disk.WriteAt(b, int64(i)*storage.ExtentSize)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func readBlock(t *testing.T, disk *os.File, i int) uint64 {
	t.Helper()
	b := aligned()
	if _, err := disk.ReadAt(b, int64(i)*storage.ExtentSize); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b)
}

// TestTakeoverBetweenHosts: a second host is refused and told who has the volume; it takes over, the first one's device
// reports errors, and its gateway says why.
func TestTakeoverBetweenHosts(t *testing.T) {
	c := startWithVolume(t, nil)
	first, second := startHost(t, c, "host-a"), startHost(t, c, "host-b")
	a := first.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	disk, err := os.OpenFile(a.Device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	if err := writeBlocks(disk, 8, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Attach(t.Context(), host.Request{Volume: volumeName}); !errors.Is(err, storage.ErrConflict) ||
		!strings.Contains(err.Error(), "host-a") || !strings.Contains(err.Error(), "--take-over") {
		t.Fatalf("a second attach: %v; want KindConflict, the holder and what to do", err)
	}
	begun := time.Now()
	b := second.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE, TakeOver: true})
	t.Logf("taken over in %v", time.Since(begun).Round(time.Millisecond))
	if err := writeBlocks(disk, 8, 2); err == nil {
		t.Error("the first host still writes")
	}
	other, err := os.OpenFile(b.Device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for i := range 8 {
		if got := readBlock(t, other, i); got != 1 {
			t.Errorf("block %d holds write %d, want 1", i, got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var list []host.Attachment
	if testcluster.Poll(ctx, 20*time.Millisecond, func() bool {
		list, err = first.Attachments(ctx)
		return err == nil && len(list) == 1 && list[0].State == host.StateFailed
	}) != nil || !strings.Contains(list[0].Reason, "host-b") {
		t.Errorf("the first gateway says %+v, %v; want a failed device and that host-b has the volume", list, err)
	}
}
