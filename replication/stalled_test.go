package replication

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/segment"
)

// sealedSegments returns how many segments of the node's log are full and not recycled.
func (n *simNode) sealedSegments() (count int) {
	for _, s := range n.store.Log().Segments() {
		if s.State == segment.SegmentSealed {
			count++
		}
	}
	return count
}

// TestStalledGroupDoesNotHoldTheDisk: two of three nodes are away, and what a client has written meanwhile waits in the log of the
// third. Another group of that disk, which has a majority, writes the same MiB again and again: the log is recycled all the same. The
// power goes; what waited is there, and is committed when the others are back.
//
// Guards, in package reclaim: copyHeld in advanceIdle; in extent: the format in replica.Copy. The first was taken out once, and 39
// segments were held; without the second a store has copies that an earlier build takes for damage.
func TestStalledGroupDoesNotHoldTheDisk(t *testing.T) {
	for _, format := range []int{storedir.FirstFormat, storedir.PagesByEpoch} {
		synctest.Test(t, func(t *testing.T) {
			h := newHarness(t, 3)
			defer h.close()
			h.retainBytes, h.holdBytes = -1, -1
			h.store = func(c *extent.Config) { c.CheckpointBytes = 8 << 20 }
			for _, n := range h.nodes {
				n.start()
				if err := n.replicas.RaiseFormat(format); err != nil {
					t.Fatal(err)
				}
			}
			h.bootstrapVoters(1, 1, 2, 3)
			h.bootstrapVoters(2, 1)
			c, other := h.open(1, 7, 1), h.open(2, 8, 2)
			c.write(0, block(1))
			n := h.nodes[1]
			h.eventually("node 1 leads", func() bool {
				l := h.leaderOf(1)
				if l > 1 {
					_ = h.nodes[l].replicas.TransferLeadership(context.Background(), 1, string(ServerID(storeID(1), 1)), 1)
				}
				return l == 1
			})
			h.nodes[2].shutdown()
			h.nodes[3].shutdown()
			g := n.replicas.mustGroup(1)
			ended := make(chan error)
			const waiting = 5
			for i := range uint32(waiting) {
				o := c.writeOp((1+i)*storage.BlockSize, block(byte(2+i)))
				go func() {
					_, err := n.replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), block(byte(2 + i))})
					ended <- err
				}()
			}
			for range waiting {
				if err := <-ended; !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrNotLeader) {
					t.Fatalf("committed by one of three: %v", err)
				}
			}
			applied, _ := g.extents.Applied()
			last := g.extents.Log().LastIndex()
			if last < applied+waiting {
				t.Fatalf("the log ends at %d, %d is applied: nothing waits", last, applied)
			}
			var want []segment.Entry
			for i := last - waiting + 1; i <= last; i++ {
				e, err := g.extents.Log().Get(i)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, e)
			}
			big := bytes.Repeat(block(9), 256)
			most := 0
			for range 120 {
				other.write(0, big)
				time.Sleep(5 * time.Millisecond)
				most = max(most, n.sealedSegments())
			}
			t.Logf("format %d: at most %d sealed segments of 4 MiB", format, most)
			if held := most > 16; held != (format < storedir.PagesByEpoch) {
				t.Errorf("format %d: %d segments are held", format, most)
			}
			n.crash()
			n.start()
			log := n.replicas.mustGroup(1).extents.Log()
			for _, e := range want {
				got, err := log.Get(e.Index)
				if err != nil || got.Term != e.Term || !bytes.Equal(got.Data, e.Data) {
					t.Fatalf("entry %d after a power cut: term %d, want %d; %v", e.Index, got.Term, e.Term, err)
				}
			}
			h.nodes[2].start() // no majority without node 1, which has more in its log
			for i := range uint32(waiting) {
				if !bytes.Equal(c.read((1+i)*storage.BlockSize, storage.BlockSize), block(byte(2+i))) {
					t.Errorf("what waited at block %d is lost", 1+i)
				}
			}
			h.nodes[3].start()
			c.write(0, block(1))
		})
	}
}
