//go:build chaos && devices

package chaos

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// TestRolling restarts three nodes in turn, as an upgrade does: each is told to end, is started, and the next one's turn is when it says that
// it is ready. Eight writers on a host's device see no error meanwhile, and what they wrote last is there. How long the longest write of each
// restart took is reported; nothing is asserted of it.
func TestRolling(t *testing.T) {
	const writers, rounds = 8, 3
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Keep: *keepFlag})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	h := hosttest.Start(t, c, hosttest.Options{Binary: *storagedFlag, Name: "host-a"})
	a := h.MustAttach(t, host.Request{Volume: volumeName, Via: host.ViaFUSE})
	disk, err := os.OpenFile(a.Device, os.O_RDWR|syscall.O_DIRECT|syscall.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	var longest, answered atomic.Int64
	last := make([]uint64, writers)
	work, stop := context.WithCancel(t.Context())
	defer stop()
	var working sync.WaitGroup
	for i := range writers {
		working.Go(func() {
			block := page(t)
			at := int64(i) * volumeBytes / writers // each in an extent of its own
			for work.Err() == nil {
				binary.LittleEndian.PutUint64(block, last[i]+1)
				began := time.Now()
				if _, err := disk.WriteAt(block, at); err != nil {
					t.Errorf("writer %d sees after %d writes: %v", i, last[i], err)
					return
				}
				last[i]++
				answered.Add(1)
				for took := int64(time.Since(began)); ; {
					most := longest.Load()
					if took <= most || longest.CompareAndSwap(most, took) {
						break
					}
				}
			}
		})
	}
	pause(t.Context(), 2*time.Second)
	var stalls, ready []time.Duration
	for round := range rounds {
		for i, n := range c.Nodes() {
			longest.Store(0)
			began := time.Now()
			if err := n.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.StartNode(t.Context(), i); err != nil {
				t.Fatal(err)
			}
			ready = append(ready, time.Since(began))
			stalls = append(stalls, time.Duration(longest.Load()))
			t.Logf("round %d, %s: ready again after %v, the longest write took %v", round+1, n.Name, ready[len(ready)-1].Round(time.Millisecond),
				stalls[len(stalls)-1].Round(time.Millisecond))
		}
	}
	pause(t.Context(), time.Second)
	stop()
	working.Wait()
	t.Logf("%d restarts: ready again, %s; longest write, %s; %d writes", len(stalls), spread(ready), spread(stalls), answered.Load())
	block := page(t)
	for i := range writers {
		if _, err := disk.ReadAt(block, int64(i)*volumeBytes/writers); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(block); got != last[i] {
			t.Errorf("writer %d wrote %d last, and %d is there", i, last[i], got)
		}
	}
}

// page returns memory for one block that direct I/O takes.
func page(t *testing.T) []byte {
	p, err := unix.Mmap(-1, 0, storage.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(fmt.Errorf("map a page: %w", err))
	}
	t.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}
