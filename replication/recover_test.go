package replication

import (
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/segment"
)

// opened opens the store of a node that does not run.
func (n *simNode) opened() *extent.Store {
	n.h.t.Helper()
	s, err := extent.Open(extent.Config{FS: n.disk, Dir: "store", Cluster: simCluster, Store: storeID(n.id), SegmentBytes: 4 << 20,
		Segment: segment.Config{FreeSegments: 1}, ReserveBytes: 1 << 20, CapacityBytes: 1 << 30})
	if err != nil {
		n.h.t.Fatal(err)
	}
	return s
}

// TestGroupGoesOnAlone: of three voters one is left. It becomes the only voter, whatever is cut off right after, and has everything that was
// acknowledged while it was heard; it leads by itself, and takes writes. Guards: the configuration that is appended and durable, and the term
// above the one that it has voted in.
func TestGroupGoesOnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, _ := three(t)
		defer h.close()
		for i := range uint32(8) {
			c.write(i*storage.BlockSize, block(byte(i)+1))
		}
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].shutdown()
		}
		n := h.nodes[2]
		store := n.opened()
		all, err := Survivors(store)
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		s := all[0]
		if s.Group != 1 || !s.Votes() || len(s.Voters) != 3 || s.Index == 0 || s.Term == 0 || s.Damaged != "" || s.Voters[1].Node != 2 {
			t.Fatalf("%+v", s)
		}
		for range 2 { // the second time changes nothing
			if err := LetLeadAlone(t.Context(), store, 2, s); err != nil {
				t.Fatal(err)
			}
			if all, err = Survivors(store); err != nil || len(all[0].Voters) != 1 || all[0].Index != s.Index+1 && len(s.Voters) == 3 {
				t.Fatalf("%+v, %v", all, err)
			}
			s = all[0]
		}
		left := n.disk.CrashClone(vfs.CrashCloneCfg{}) // what a power cut leaves
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		n.disk = left
		n.start()
		h.eventually("it leads", func() bool { return h.leaderOf(1) == 2 })
		for i := range uint32(8) {
			h.equal(c.read(i*storage.BlockSize, storage.BlockSize), block(byte(i)+1), "after the recovery")
		}
		c.write(0, block(99))
		h.equal(c.read(0, storage.BlockSize), block(99), "written after the recovery")
	})
}

// TestOnlyVotersGoOnAlone: a learner may lack most of what the group held.
func TestOnlyVotersGoOnAlone(t *testing.T) {
	s := Survivor{Group: 1, Key: storage.ReplicaKey{Store: storage.StoreID{1}, Incarnation: 4}, Index: 9,
		Voters: []SurvivingMember{{Node: 2, Key: storage.ReplicaKey{Store: storage.StoreID{2}, Incarnation: 1}}}}
	if err := LetLeadAlone(t.Context(), nil, 1, s); storage.KindOf(err) != storage.KindConflict {
		t.Errorf("a learner goes on alone: %v", err)
	}
	s.Key, s.Damaged = s.Voters[0].Key, "its log is damaged"
	if err := LetLeadAlone(t.Context(), nil, 2, s); storage.KindOf(err) != storage.KindConflict {
		t.Errorf("a damaged replica goes on alone: %v", err)
	}
}
