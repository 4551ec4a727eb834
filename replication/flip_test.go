package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
)

// lead has a node lead group 1.
func (h *harness) lead(n storage.NodeID) {
	h.t.Helper()
	h.eventually("it to lead", func() bool {
		l := h.leaderOf(1)
		if l != n && l != 0 {
			_ = h.nodes[l].replicas.TransferLeadership(context.Background(), 1, string(serverID(n)), n)
		}
		return l == n
	})
}

// TestFlippedEntryIsNotAcknowledged guards I1 (tried: without Transport.verify in serveAppend a flip in the header is
// skipped by that replica's apply, which then answers with what was there before; a flip in the data is acknowledged, and
// cannot be read). A bit flips on its way to a follower; the leader sends the entry again.
func TestFlippedEntryIsNotAcknowledged(t *testing.T) {
	for _, c := range []struct {
		what    string
		at      int // in the entry
		persist int // how often it flips
	}{
		{"the operation's header", 30, 1}, {"the operation's kind", 1, 1}, {"the sums", 73, 1}, {"the data", 200, 1},
		{"the data again and again", 200, 4},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const volume = 0x0766554433221100
				h, _, leader := three(t)
				defer h.close()
				w := h.open(1, volume, 1)
				w.write(0, block(1))
				time.Sleep(time.Second)
				victim, _ := others(leader)
				var flips atomic.Int64
				mark := binary.LittleEndian.AppendUint64(nil, volume) // at 8 of the entry
				damage := func(to storage.NodeID, b []byte) {
					at := bytes.Index(b, mark) - 8
					if to != victim || at < 0 || at+c.at >= len(b) || flips.Load() == int64(c.persist) {
						return
					}
					flips.Add(1)
					b[at+c.at] ^= 4
				}
				h.damage.Store(&damage)
				w.write(0, block(2)) // acknowledged
				time.Sleep(5 * time.Second)
				if flips.Load() != int64(c.persist) {
					t.Fatalf("%d flips, want %d", flips.Load(), c.persist)
				}
				h.damage.Store(nil)
				h.lead(victim)
				h.equal(w.read(0, storage.BlockSize), block(2), "at the node to which the bits flipped")
				for id := range h.nodes {
					if s := h.nodes[id].replicas.Status()[0]; s.Role == "damaged" {
						t.Errorf("node %d: %+v", id, s)
					}
				}
			})
		})
	}
}

// TestUndecodableEntryStopsItsReplica guards I1 (tried: without Group.cannotApply the entry is skipped and the replica
// leads on with the block before the write): a bit flips in a follower's memory between the acknowledgement and apply.
// The replica stops for good, says why, and comes back as a new member.
func TestUndecodableEntryStopsItsReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		time.Sleep(2 * time.Second)
		victim, other := others(leader)
		g := h.nodes[victim].replicas.mustGroup(1)
		c.write(0, block(2))
		time.Sleep(time.Millisecond)
		index := g.extents.Log().LastIndex()
		if applied, _ := g.extents.Applied(); applied >= index {
			t.Fatalf("entry %d is applied already", index)
		}
		e, err := g.extents.Log().Get(index)
		if err != nil {
			t.Fatal(err)
		}
		e.Data[30] ^= 4
		g.extents.Log().LastIndex() // its lock tells the race detector that the flip comes first
		c.write(storage.BlockSize, block(3))
		h.eventually("the replica to be set aside", func() bool { return h.nodes[victim].replicas.Status()[0].Role == "damaged" })
		s := h.nodes[victim].replicas.Status()[0]
		if !strings.Contains(s.Reason, "checksum mismatch") || s.Self != serverID(victim) {
			t.Errorf("status %+v", s)
		}
		if applied, _ := g.extents.Applied(); applied != index-1 {
			t.Errorf("applied %d, want %d: nothing from entry %d on", applied, index-1, index)
		}
		if err := g.checkpoint(context.Background()); err != nil || g.extents.Checkpointed().Index >= index {
			t.Errorf("checkpoint %d: %v", g.extents.Checkpointed().Index, err)
		}
		h.nodes[other].crash() // one of three helps nobody to a majority
		time.Sleep(20 * time.Second)
		if l := h.leaderOf(1); l != 0 {
			t.Fatalf("node %d leads with the vote of a damaged replica", l)
		}
		h.nodes[other].start()
		h.change(1, runner.RemoveServer, victim, storage.Incarnation(victim))
		if err := h.nodes[victim].replicas.RemoveReplica(context.Background(), 1, storeID(victim), storage.Incarnation(victim)); err != nil {
			t.Fatal(err)
		}
		if err := h.nodes[victim].replicas.CreateReplica(context.Background(), 1, storeID(victim), 9, h.awaitLeader(1)); err != nil {
			t.Fatal(err)
		}
		h.change(1, runner.AddNonvoter, victim, 9)
		h.change(1, runner.AddVoter, victim, 9)
		h.nodes[other].crash()
		h.equal(c.read(0, 2*storage.BlockSize), append(block(2), block(3)...), "with the new member")
	})
}

// TestEntryThatNobodyTakes: an entry that is bad in the leader's own memory is refused by every follower. The leader
// finds out, and another one leads without it.
func TestEntryThatNobodyTakes(t *testing.T) {
	unknown := op.Op{Kind: op.Noop}
	later := unknown.AppendHeader(nil)
	later[0] = op.Version + 1
	for _, c := range []struct {
		what, role, reason string
		data               []byte
	}{
		{"damaged", "damaged", "too short", []byte("no operation")},
		{"of a later version", "stopped", "upgrade this node", later},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, w, leader := three(t)
				defer h.close()
				w.write(0, block(1))
				go apply(h.instance(leader), c.data)
				h.eventually("the leader to stop", func() bool { return h.nodes[leader].replicas.Status()[0].Role == c.role })
				if s := h.nodes[leader].replicas.Status()[0]; !strings.Contains(s.Reason, c.reason) {
					t.Errorf("status %+v", s)
				}
				w.write(storage.BlockSize, block(2))
				h.equal(w.read(0, 2*storage.BlockSize), append(block(1), block(2)...), "at the next leader")
			})
		})
	}
}
