package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
)

// A leader's disk hangs while clients only read: nothing waits to be written. Who reads gets an answer in time, another
// node leads, and has the data.
func TestDiskThatHangsWhileClientsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, l := unreadableBlocks(t, 4, nil)
		defer h.close()
		time.Sleep(time.Second) // everything is durable, the log has its closing record
		goOn := h.nodes[l].stall.stallReads()
		h.nodes[l].stall.begin() // nor does it sync
		const reads = 10
		answered := make(chan error, reads)
		for range reads {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				_, err := h.nodes[l].replicas.Read(ctx, 1, op.ReadRequest{Volume: 7, Length: storage.BlockSize, Epoch: op.HeadEpoch})
				answered <- err
			}()
		}
		late := time.After(4 * time.Second)
		for range reads {
			select {
			case err := <-answered:
				if err == nil {
					t.Error("a read that hangs was answered")
				}
			case <-late:
				t.Error("a read with a limit of 2 s has not returned")
				late = nil
				goOn()
			}
		}
		if late != nil {
			h.eventually("another leader", func() bool { n := h.leaderOf(1); return n != 0 && n != l })
			h.equal(c.read(0, storage.BlockSize), block(1), "at the other leader")
			goOn()
		}
		h.nodes[l].stall.end()
		h.eventually("the disk answers again", func() bool { return !h.nodes[l].replicas.disks[0].silent() })
		room, all := h.nodes[l].replicas.disks[0].reads, h.nodes[l].replicas.cfg.ReadBytes
		h.eventually("what the reads had is given back", func() bool { return room.TryAcquire(all) })
		room.Release(all)
	})
}

// The reads that hang at one disk of a node do not keep the others' room.
func TestEachDiskHasItsReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		h.nodes[1].start()
		defer h.close()
		config := h.nodes[1].replicas.cfg
		config.Stores = []*extent.Store{h.nodes[1].store, h.nodes[1].store}
		a, b := newDisk(config.Stores[0], &config), newDisk(config.Stores[1], &config)
		taken := int64(0)
		for a.reads.TryAcquire(storage.ExtentSize) {
			taken += storage.ExtentSize
		}
		if !b.reads.TryAcquire(storage.ExtentSize) || 2*taken > config.ReadBytes {
			t.Errorf("one disk's reads hold %d of %d bytes, and the other has none", taken, config.ReadBytes)
		}
	})
}
