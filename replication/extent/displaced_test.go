package extent

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

// othersFS is a file system of 64 MiB on which others have files, too. What the store itself has is counted by its caller.
type othersFS struct {
	vfs.FS
	own, others atomic.Int64
}

func (f *othersFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	const total = 64 << 20
	used := uint64(f.own.Load() + f.others.Load())
	return vfs.DiskUsage{TotalBytes: total, UsedBytes: used, AvailBytes: total - used}, nil
}

// TestDisplaced: a store is displaced when it is full and would not be without the files of others; one that has filled its file system,
// or all of its capacity, itself is not.
func TestDisplaced(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name                  string
		own, others, capacity int64
		full, displaced       bool
	}{
		{"room", 4 * mib, 8 * mib, 0, false, false},
		{"others", 4 * mib, 58 * mib, 0, true, true},
		{"to the last byte", 4 * mib, 60 * mib, 0, true, true},
		{"itself", 45 * mib, 0, 0, true, false},
		{"itself, beside a little", 45 * mib, 1 * mib, 0, true, false},
		{"its capacity", 4 * mib, 8 * mib, 8 * mib, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := &othersFS{FS: memFS(t)}
				fs.others.Store(tc.others)
				cfg := testConfig(fs)
				cfg.ReserveBytes, cfg.CapacityBytes, cfg.SegmentBytes = 6*mib, tc.capacity, mib
				r := newRig(t, cfg)
				r.ok(openSession(1))
				for i := int64(0); i < tc.own/mib; i++ {
					for at := uint32(0); at < mib; at += mib / 4 {
						r.ok(r.write(storage.ExtentIndex(i), at, blocks(uint64(i), mib/4/storage.BlockSize)))
					}
				}
				used, free := r.s.log.Space()
				fs.own.Store(used + free)
				time.Sleep(2 * spaceTTL)
				if s := r.s.Space(); s.Full() != tc.full || s.Displaced != tc.displaced {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}
