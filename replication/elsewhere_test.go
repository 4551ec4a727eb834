package replication

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

// unreadableBlocks is a group of three whose first blocks are written, block i full of byte 1+i.
func unreadableBlocks(t *testing.T, blocks uint32, configure func(*Config)) (*harness, *client, storage.NodeID) {
	h := newHarness(t, 3)
	h.configure = configure
	return writtenBlocks(t, h, blocks)
}

func writtenBlocks(t *testing.T, h *harness, blocks uint32) (*harness, *client, storage.NodeID) {
	h.cacheBytes = 1
	for id := storage.NodeID(1); id <= 3; id++ {
		h.nodes[id].start()
	}
	h.bootstrapVoters(1, 1, 2, 3)
	c := h.open(1, 7, 1)
	for i := range blocks {
		c.write(i*storage.BlockSize, block(byte(1+i)))
	}
	for i := range uint32(8) {
		c.write((blocks+i)*storage.BlockSize, block(0)) // what was written last stays in memory
	}
	l := h.awaitLeader(1)
	h.eventually("all have all", func() bool {
		for _, n := range h.nodes {
			applied, _ := n.replicas.mustGroup(1).extents.Applied()
			if applied != h.nodes[l].replicas.mustGroup(1).extents.Log().LastIndex() {
				return false
			}
		}
		return true
	})
	return h, c, l
}

// loses makes the node's disk give back a block no more.
func (h *harness) loses(node storage.NodeID, block uint32) {
	h.t.Helper()
	h.nodes[node].stall.badSector(int64(h.locate(node, block).Offset()))
}

// rots changes a byte of a block on the node's disk.
func (h *harness) rots(node storage.NodeID, block uint32) {
	h.t.Helper()
	at := h.locate(node, block)
	f, err := h.nodes[node].disk.OpenReadWrite(fmt.Sprintf("store/log/%010d.seg", at.Segment()), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt([]byte("rot"), int64(at.Offset())+99)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// locate returns where a block lies on the node's disk.
func (h *harness) locate(node storage.NodeID, block uint32) segment.Position {
	h.t.Helper()
	n := h.nodes[node]
	var at extent.Unreadable
	n.stall.unreadable("store/log/")
	req := op.ReadRequest{Volume: 7, Offset: block * storage.BlockSize, Length: storage.BlockSize, Epoch: op.HeadEpoch}
	err := n.replicas.mustGroup(1).extents.Read(req, make([]byte, storage.BlockSize), make([]uint32, 1), make([]bool, 1),
		func(u extent.Unreadable, _ []byte) error { at = u; return u.Err })
	n.stall.unreadable("")
	if err == nil {
		h.t.Fatalf("block %d of node %d is in memory", block, node)
	}
	return at.At
}

func (h *harness) tryRead(node storage.NodeID, block uint32) (byte, error) {
	d, err := h.nodes[node].replicas.Read(context.Background(), 1, op.ReadRequest{Volume: 7, Offset: block * storage.BlockSize,
		Length: storage.BlockSize, Epoch: op.HeadEpoch})
	if err != nil {
		return 0, err
	}
	defer d.Release()
	return d.Payload[0], nil
}

func (c *client) partialWrite(node storage.NodeID, block uint32) error {
	p := []byte("0123456789")
	o := c.writeOp(block*storage.BlockSize+10, p)
	r, err := c.h.nodes[node].replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), p})
	if err != nil {
		c.seq-- // nothing was proposed
		return err
	}
	return r.Err("write", "")
}

// One sector of a leader's disk cannot be read. Two others have the block: it is read, and written in part, and the leader
// goes on leading. Then each replica has a bad block of its own: whoever leads serves all, and leadership stays where it is.
func TestUnreadableBlockIsReadElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, l := unreadableBlocks(t, 4, nil)
		defer h.close()
		a, b := others(l)
		h.loses(l, 0)
		h.loses(a, 1)
		h.loses(b, 2)
		term := h.instance(l).CurrentTerm()
		for i := range uint32(4) {
			if got, err := h.tryRead(l, i); err != nil || got != byte(1+i) {
				t.Errorf("block %d at the leader: %d, %v", i, got, err)
			}
		}
		if err := c.partialWrite(l, 0); err != nil {
			t.Errorf("a partial write: %v", err)
		}
		if err := h.nodes[l].replicas.TransferLeadership(context.Background(), 1, string(ServerID(storeID(a), storage.Incarnation(a))), a); err != nil {
			t.Fatal(err)
		}
		h.eventually("the other leads", func() bool { return h.leaderOf(1) == a })
		for i := range uint32(4) {
			if got, err := h.tryRead(a, i); err != nil || got != byte(1+i) {
				t.Errorf("block %d at another leader: %d, %v", i, got, err)
			}
		}
		time.Sleep(time.Minute)
		if h.leaderOf(1) != a || h.instance(a).CurrentTerm() != term+1 {
			t.Errorf("leadership has moved for it: node %d, term %d", h.leaderOf(1), h.instance(a).CurrentTerm())
		}
		for id, n := range h.nodes {
			if err := n.store.Failed(); err != nil {
				t.Errorf("node %d: failed for one block: %v", id, err)
			}
		}
	})
}

// No replica can read a block: who asks for it is told so in time, others are served.
func TestUnreadableEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, l := unreadableBlocks(t, 4, nil)
		defer h.close()
		for id := range h.nodes {
			h.loses(id, 0)
		}
		begun := time.Now()
		if _, err := h.tryRead(l, 0); !errors.Is(err, storage.ErrIO) {
			t.Errorf("read: %v", err)
		}
		if err := c.partialWrite(l, 0); !errors.Is(err, storage.ErrIO) {
			t.Errorf("partial write: %v", err)
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("told after %v", took)
		}
		if got, err := h.tryRead(l, 1); err != nil || got != 2 {
			t.Errorf("another block: %d, %v", got, err)
		}
		c.write(0, block(9))
		if got, err := h.tryRead(l, 0); err != nil || got != 9 {
			t.Errorf("after it was written whole: %d, %v", got, err)
		}
	})
}

// A replica is brought up from a leader that cannot read one of the blocks: it gets that from another.
func TestPullFromALeaderWithABadBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, l := unreadableBlocks(t, 4, nil)
		defer h.close()
		a, b := others(l)
		if err := h.nodes[l].replicas.mustGroup(1).checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		h.change(1, runner.RemoveServer, b, storage.Incarnation(b))
		if err := h.nodes[b].replicas.RemoveReplica(context.Background(), 1, storeID(b), storage.Incarnation(b)); err != nil {
			t.Fatal(err)
		}
		h.loses(l, 0)
		if err := h.nodes[b].replicas.CreateReplica(context.Background(), 1, storeID(b), 9, l); err != nil {
			t.Fatal(err)
		}
		_ = a
		h.equal(c.read(0, storage.BlockSize), block(1), "at the leader")
	})
}

// A disk that does not give back many blocks is failed, and another node leads. One that holds the only copy of anything is
// not.
func TestManyUnreadableBlocksFailTheDisk(t *testing.T) {
	for _, lone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h, c, l := unreadableBlocks(t, 20, func(c *Config) { c.UnreadableBlocks = 8 })
			defer h.close()
			if lone {
				h.bootstrapVoters(2, l)
				h.awaitLeader(2)
			}
			h.nodes[l].stall.unreadable("store/log/")
			for i := range uint32(20) {
				h.equal(c.read(i*storage.BlockSize, storage.BlockSize), block(byte(1+i)), "while the disk gets worse")
			}
			if failed := h.nodes[l].store.Failed() != nil; failed == lone {
				t.Errorf("failed: %v, with the only copy of a group: %v", failed, lone)
			}
			h.nodes[l].stall.unreadable("")
		})
	}
}

// TestScrubMendsEverywhere: a leader's block and a follower's are bad, and nobody reads them. Both are mended; a third, which all three
// replicas have lost, is listed by each, and one that only a node that is down may have waits for it.
//
// Guards I5: mendFrom for replicas that do not lead, and readCopy's KindIO, which is for unanimous answers only; with KindIO after the
// time is up, too, the last one was listed as lost.
func TestScrubMendsEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.store = func(c *extent.Config) { c.SegmentBytes, c.ScrubInterval = 64<<10, 10*time.Second }
		h, _, l := writtenBlocks(t, h, 40)
		defer h.close()
		f, down := others(l)
		for _, n := range []storage.NodeID{l, f, down} {
			if err := h.nodes[n].replicas.mustGroup(1).checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.rots(n, 3)
		}
		h.nodes[down].crash()
		h.rots(l, 1)
		h.rots(f, 2)
		h.rots(l, 4)
		h.rots(f, 4)
		ask := func(want storage.StoreScrub, nodes ...storage.NodeID) {
			t.Helper()
			for _, n := range nodes {
				h.eventually("the scrub", func() bool {
					got := h.nodes[n].store.Scrub()
					return got.MendedBlocks == want.MendedBlocks && got.WaitingBlocks == want.WaitingBlocks && got.LostBlocks == want.LostBlocks
				})
			}
		}
		ask(storage.StoreScrub{MendedBlocks: 1, WaitingBlocks: 2}, l, f)
		h.nodes[down].start()
		ask(storage.StoreScrub{MendedBlocks: 2, LostBlocks: 1}, l, f)
		for _, n := range []storage.NodeID{l, f} {
			if got := h.nodes[n].store.Scrub(); len(got.Lost) != 1 || got.Lost[0].Block != 3 {
				t.Errorf("node %d: %+v", n, got)
			}
		}
		h.lead(f)
		for _, b := range []uint32{1, 2, 4} {
			if got, err := h.tryRead(f, b); err != nil || got != byte(1+b) {
				t.Errorf("block %d: %d, %v", b, got, err)
			}
		}
		if _, err := h.tryRead(f, 3); storage.KindOf(err) != storage.KindCorrupt {
			t.Errorf("a lost block: %v", err)
		}
	})
}
