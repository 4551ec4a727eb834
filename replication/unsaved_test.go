package replication

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// flood proposes one block each to pages of their own, by way of whoever leads, until it is told to stop; it returns how
// many were acknowledged. Sequence numbers are 2 to writers*each+1.
func (c *client) flood(ctx context.Context, writers, each int) *atomic.Int64 {
	var done atomic.Int64
	for w := range writers {
		go func() {
			for i := 0; i < each && ctx.Err() == nil; {
				n := i*writers + w // all go on about as fast: a number far after those that are not applied yet is refused
				o := op.Op{Kind: op.Write, Volume: c.volume, Extent: storage.ExtentIndex(n / 16), Offset: uint32(n%16) * 64 * storage.BlockSize,
					Length: storage.BlockSize, Session: c.session, Seq: uint64(n + 2), Sums: op.AppendSums(nil, 0, block(3))}
				if leader := c.h.leaderOf(c.group); leader != 0 {
					r, err := c.h.nodes[leader].replicas.Propose(ctx, c.group, [][]byte{o.AppendHeader(nil), block(3)})
					if err == nil && r.Kind == storage.KindNone {
						i++
						done.Add(1)
						continue
					}
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	return &done
}

// The tables' disk of a follower is slow while a busy group goes on. What waits for a checkpoint there stays bounded, and
// when the checkpoint is written everything goes on: its group catches up, and the other groups of the disk answer.
//
// Guards I9 and the rule that nothing blocks in Apply. Once Apply waited, at the limit, for the end of the checkpoint: the
// checkpoint waited for Raft's main loop, and that for the full queue of the state machine. All three stood still for ever,
// and with them every group of the disk.
func TestSlowCheckpointIsNotTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.tableBytes = 1 // 64 pages a group: two groups may have 512 that are not saved
		h.configure = func(c *Config) { c.MaxAppendEntries = 4 }
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		defer h.close()
		h.bootstrapVoters(1, 1, 2, 3)
		for id := storage.NodeID(1); id <= 3; id++ {
			h.bootstrapVoters(storage.GroupID(1+id), id) // another group on each disk, led there
		}
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		victim, _ := others(h.awaitLeader(1))
		other := h.open(storage.GroupID(1+victim), 9, 1)
		v := h.nodes[victim]
		g := v.replicas.mustGroup(1)

		goOn := v.stall.stallTables()
		go func() { _ = g.checkpoint(context.Background()) }()
		time.Sleep(10 * time.Millisecond)
		const writers, each = 64, 24
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := c.flood(ctx, writers, each)
		time.Sleep(2 * time.Second)
		// Each entry changes a page of its own. Twice the room is for those that were taken before they were applied.
		if last := g.extents.Log().LastIndex(); last > 1024 {
			t.Errorf("the follower has taken %d entries, with room for 512 changed pages", last)
		}
		goOn()
		h.eventually("all is written", func() bool { return done.Load() == writers*each })
		c.seq = writers*each + 1
		h.eventually("the follower has caught up", func() bool {
			applied, _ := g.extents.Applied()
			last := h.nodes[h.awaitLeader(1)].replicas.mustGroup(1).extents.Log().LastIndex()
			return applied+4 >= last
		})
		other.write(0, block(5))
	})
}

// The same at a leader: proposals wait, and are refused, while its tables lag too far behind; afterwards all are taken.
func TestLeaderWithoutRoomRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		h.tableBytes = 1 // room for 256 changed pages
		h.nodes[1].start()
		defer h.close()
		h.bootstrapVoters(1, 1)
		c := h.open(1, 7, 1)
		goOn := h.nodes[1].stall.stallTables()
		const writers, each = 8, 100
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := c.flood(ctx, writers, each)
		time.Sleep(30 * time.Second)
		if n := done.Load(); n < 256 || n > 256+writers {
			t.Errorf("%d writes to pages of their own were taken, with room for 256", n)
		}
		o := op.Op{Kind: op.Write, Volume: 7, Extent: 1000, Length: storage.BlockSize, Session: 1, Seq: 1, Sums: op.AppendSums(nil, 0, block(3))}
		if _, err := h.nodes[1].replicas.Propose(ctx, 1, [][]byte{o.AppendHeader(nil), block(3)}); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("another write: %v", err)
		}
		goOn()
		h.eventually("all is written", func() bool { return done.Load() == writers*each })
	})
}
