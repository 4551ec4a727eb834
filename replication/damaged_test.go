package replication

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
)

// flip inverts the first byte of a pattern in the log of a node that does not run.
func (n *simNode) flip(pattern []byte) {
	t := n.h.t
	t.Helper()
	names, err := n.disk.List("store/log")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := n.disk.PathJoin("store/log", name)
		f, err := n.disk.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(b, pattern)
		if at >= 0 {
			if _, err := f.WriteAt([]byte{^pattern[0]}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			return
		}
	}
	t.Fatalf("node %d: the log holds nothing of it", n.id)
}

// TestDamagedReplicaStaysOutAndComesBackAsANewMember is I7: a replica whose log lost an acknowledged record helps
// nobody to a majority, is shown as damaged, and is dropped and made anew under the next incarnation.
func TestDamagedReplicaStaysOutAndComesBackAsANewMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		if err := h.nodes[1].replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		h.grow(1, 2, 3)
		for i := range uint32(8) {
			c.write(i*storage.BlockSize, block(byte(0xe0+i)))
		}
		h.eventually("node 3 to apply all", func() bool {
			leader := h.leaderOf(1)
			return leader != 0 && h.nodes[3].replicas.Status()[0].AppliedIndex >= h.nodes[leader].replicas.Status()[0].CommitIndex
		})
		h.nodes[3].crash()
		h.nodes[3].flip(block(0xe3))
		h.nodes[1].crash() // node 2 is the only one that knows all
		h.nodes[3].start()
		s := h.nodes[3].replicas.Status()
		if len(s) != 1 || s[0].Role != "damaged" || s[0].Self != ServerID(storeID(3), 3) || !strings.Contains(s[0].Reason, "damaged") {
			t.Fatalf("status %+v", s)
		}
		<-time.After(30 * time.Second)
		if leader := h.leaderOf(1); leader != 0 {
			t.Fatalf("node %d leads with the vote of a damaged replica", leader)
		}
		ctx := context.Background()
		if err := h.nodes[3].replicas.CreateReplica(ctx, 1, storeID(3), 4, 2); storage.KindOf(err) != storage.KindConflict {
			t.Fatalf("a new replica beside the damaged one: %v, want a conflict", err)
		}

		h.nodes[1].start()
		h.change(1, runner.RemoveServer, 3, 3)
		for range 2 { // again is no error
			if err := h.nodes[3].replicas.RemoveReplica(context.Background(), 1, storeID(3), 3); err != nil {
				t.Fatal(err)
			}
		}
		if s := h.nodes[3].replicas.Status(); len(s) != 0 {
			t.Fatalf("status after the drop: %+v", s)
		}
		if err := h.nodes[3].replicas.CreateReplica(ctx, 1, storeID(3), 4, h.awaitLeader(1)); err != nil {
			t.Fatal(err)
		}
		h.change(1, runner.AddNonvoter, 3, 4)
		h.change(1, runner.AddVoter, 3, 4)
		h.nodes[3].crash() // and the new one is sound after a restart, beside the old damage
		h.nodes[3].start()
		h.nodes[1].crash()
		for i := range uint32(8) {
			h.equal(c.read(i*storage.BlockSize, storage.BlockSize), block(byte(0xe0+i)), "through the new member")
		}
	})
}
