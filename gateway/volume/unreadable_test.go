package volume_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
)

// unreadableCluster is a volume of one group whose leader says that no replica can read block 0, if it is to be read or
// changed in part.
func unreadableCluster(t *testing.T, fault func(volumetest.Call) volumetest.Fault) *volume.Volume {
	c := volumetest.New()
	c.CreateVolume("v", 1<<30, 1)
	c.SetFault(fault)
	g, err := volume.New(volume.Config{Cluster: c.Start(1)})
	if err != nil {
		t.Fatal(err)
	}
	v, err := g.Open(t.Context(), "v", volume.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.SetFault(nil)
		_ = v.Close(context.Background())
		_ = g.Close(context.Background())
		c.Close()
	})
	return v
}

var errUnreadable = storage.E("read", storage.KindIO, "block 0", errors.New("input/output error"))

func hitsBlock0(c volumetest.Call) bool {
	return c.Method == volumetest.Read && c.Read.Volume != 0 && c.Read.Offset == 0 && c.Read.Extent == 0 || c.Op.Offset == 10 && c.Op.Length == 10
}

// A block that no replica can read is an error for who asks for it, after a while, and for nobody else.
func TestUnreadableBlockIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := unreadableCluster(t, func(c volumetest.Call) volumetest.Fault {
			if hitsBlock0(c) {
				return volumetest.Fault{Err: errUnreadable}
			}
			return volumetest.Fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		begun := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := v.ReadAt(ctx, make([]byte, 4096), 0); !errors.Is(err, storage.ErrIO) {
				t.Errorf("read: %v", err)
			}
		})
		wg.Go(func() {
			if err := v.WriteAt(ctx, make([]byte, 10), 10); !errors.Is(err, storage.ErrIO) {
				t.Errorf("partial write: %v", err)
			}
		})
		var written atomic.Int64
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					if err := v.WriteAt(ctx, make([]byte, 4096), 1<<20); err != nil {
						t.Errorf("a write to another block: %v", err)
						return
					}
					written.Add(1)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > 10*time.Second || written.Load() != 8000 {
			t.Errorf("%d of 8000 writes to other blocks, and all is answered after %v", written.Load(), took)
		}
		if err := v.WriteAt(ctx, make([]byte, 4096), 0); err != nil {
			t.Errorf("the block is written whole: %v", err)
		}
	})
}

// It may pass: a replica that has the block is back before patience ends.
func TestUnreadableBlockComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var until atomic.Pointer[time.Time]
		v := unreadableCluster(t, func(c volumetest.Call) volumetest.Fault {
			if end := until.Load(); end != nil && hitsBlock0(c) && time.Now().Before(*end) {
				return volumetest.Fault{Err: errUnreadable}
			}
			return volumetest.Fault{}
		})
		end := time.Now().Add(3 * time.Second)
		until.Store(&end)
		if err := v.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
			t.Errorf("read: %v", err)
		}
		end = time.Now().Add(3 * time.Second)
		if err := v.WriteAt(t.Context(), make([]byte, 10), 10); err != nil {
			t.Errorf("partial write: %v", err)
		}
	})
}

// The first attempt of a partial write is applied and its answer lost; then the block cannot be read any more. The number is
// not free: what is written next must not be taken for a repetition.
func TestUnreadableAfterALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int64
		v := unreadableCluster(t, func(c volumetest.Call) volumetest.Fault {
			if c.Op.Offset != 10 || c.Op.Length != 10 {
				return volumetest.Fault{}
			}
			if attempts.Add(1) == 1 {
				return volumetest.Fault{LoseAnswer: true}
			}
			return volumetest.Fault{Err: errUnreadable}
		})
		if err := v.WriteAt(t.Context(), []byte("0123456789"), 10); err != nil {
			t.Errorf("the session's window says that it was applied: %v", err)
		}
		want := make([]byte, 4096)
		want[7] = 7
		if err := v.WriteAt(t.Context(), want, 8192); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4096)
		if err := v.ReadAt(t.Context(), got, 8192); err != nil || got[7] != 7 {
			t.Errorf("what was written next is not there: %v", err)
		}
	})
}
