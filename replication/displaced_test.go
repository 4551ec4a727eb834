package replication

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
)

// sharedFS is a file system of 100 MiB on which others have files, too.
type sharedFS struct {
	vfs.FS
	others atomic.Int64
}

func (f *sharedFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	const total, own = 100 << 20, 1 << 20
	used := uint64(own + f.others.Load())
	return vfs.DiskUsage{TotalBytes: total, UsedBytes: used, AvailBytes: total - used}, nil
}

// TestOthersFillOneDisk: files that are not the store's take the room on one disk of three. What a majority can take is taken; on two
// disks, it is refused. With room again all is as before.
//
// Line: in ledger.Book.Reserve, a voter that is displaced does not count; without it the first write is refused.
func TestOthersFillOneDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		disks := map[storage.StoreID]*sharedFS{}
		h.store = func(c *extent.Config) {
			disk := &sharedFS{FS: c.FS}
			disks[c.Store] = disk
			c.FS, c.SegmentBytes, c.ReserveBytes, c.MemTableBytes = disk, 128<<10, 16<<20, 64<<10
		}
		for _, n := range h.nodes {
			n.start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		leader := h.awaitLeader(1)
		fill := func(bytes int64, nodes ...int) {
			for _, n := range nodes {
				disks[storeID(storage.NodeID(n))].others.Store(bytes)
			}
			time.Sleep(2 * time.Second) // stores look at the file system, and leaders hear of it
		}
		follower := 1 + int(leader)%3
		refused := func() error {
			o := c.writeOp(storage.BlockSize, block(2))
			_, err := h.nodes[h.awaitLeader(1)].replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), block(2)})
			if err != nil {
				c.seq--
			}
			return err
		}
		for _, full := range []int{follower, int(leader)} {
			fill(90<<20, full)
			for i := range 10 {
				if err := refused(); err != nil {
					t.Fatalf("others fill the disk of node %d, %d leads; write %d: %v", full, leader, i, err)
				}
			}
			fill(0, full)
		}
		fill(90<<20, follower, int(leader))
		if err := refused(); !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("others fill two disks of three: %v", err)
		}
		fill(0, follower, int(leader))
		c.write(0, block(3))
		h.close()
	})
}
