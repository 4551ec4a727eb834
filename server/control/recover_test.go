package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// threeStopped returns a catalog with three voters on real files, with a volume; all are stopped.
func threeStopped(t *testing.T) *cluster {
	t.Helper()
	k := newCluster(t, t.TempDir())
	k.addNode(1)
	k.until("the groups are ready", func() bool { return k.grown(1) })
	k.addNode(2)
	k.addNode(3)
	k.until("three nodes vote", func() bool { return k.running()[1].Voters() == 3 })
	k.until("every group has three voters", func() bool { return k.grown(3) })
	v := k.propose(k.running()[1], catalog.CreateVolume{Name: "v", SizeBytes: 1 << 30, At: time.Now()})
	for _, c := range k.running() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := c.fsm.wait(ctx, v.Index); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	for id := range k.running() {
		k.stopNode(id)
	}
	return k
}

func (k *cluster) path(id storage.NodeID) string { return filepath.Join(k.dir, id.String()) }

// wantBegun wants a node's catalog to be one snapshot and nothing else.
func (k *cluster) wantBegun(id storage.NodeID) {
	k.t.Helper()
	bolt, snaps, err := openFiles(k.path(id), hclog.NewNullLogger())
	if err != nil {
		k.t.Fatal(err)
	}
	defer bolt.Close()
	if first, err := bolt.FirstIndex(); err != nil || first != 0 {
		k.t.Errorf("the log still begins at %d, %v", first, err)
	}
	if list, err := snaps.List(); err != nil || len(list) != 1 || list[0].Index < 1<<32 {
		k.t.Errorf("snapshots %v, %v; want the one to begin with", list, err)
	}
}

// TestCatalogBeginsAnew: of three voters one is lost. The catalog begins anew on one of the others, which leads at once by itself, and the third
// gets it. What was made before is there, what is made next has numbers far ahead. Guards: the term that is stored (without it the node elects
// itself in a term that is over), and the end of older snapshots and of the log.
func TestCatalogBeginsAnew(t *testing.T) {
	k := threeStopped(t)
	c, err := ReadCopy(k.path(1))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Voters) != 3 || c.Index == 0 || c.Term == 0 || !c.Lost([]storage.NodeID{2, 3}) || c.Lost([]storage.NodeID{2}) {
		t.Fatalf("index %d, term %d, voters %v", c.Index, c.Term, c.Voters)
	}
	kept, err := c.Begin(k.path(1), c.State, []storage.NodeID{2}, 7, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(kept)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if s, err := ReadCopyFrom(old, c.Identity.Cluster); err != nil || s.Applied() != c.State.Applied() {
		t.Errorf("what is kept: %v", err)
	}
	k.wantBegun(1)
	if _, err := Follow(k.path(3), 7); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCopy(k.path(3)); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a node that follows has a catalog before it is sent one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(k.path(3), "before-recovery-00000007", logFile)); err != nil {
		t.Error(err)
	}
	first := k.startNode(1)
	k.until("it leads by itself", func() bool { return first.leading() != nil })
	if first.Term() <= c.Term || first.Voters() != 1 {
		t.Errorf("term %d after %d, %d voters", first.Term(), c.Term, first.Voters())
	}
	third := k.startNode(3)
	k.until("the third node has it", func() bool { return third.Freshness().Index > 1<<32 })
	v := k.propose(third, catalog.CreateVolume{Name: "w", SizeBytes: 1 << 30, At: time.Now()}).Volume
	if v.ID < 1<<32 {
		t.Errorf("the next volume has id %s", v.ID)
	}
	third.View(func(s *catalog.State) {
		if _, ok := s.VolumeByName("v"); !ok {
			t.Error("the volume of before is gone")
		}
		if n, _ := s.Node(2); n.State != storage.NodeRemoved {
			t.Errorf("the lost node is %s", n.State)
		}
	})
	k.stopNode(1) // and again from what it has now
	first = k.startNode(1)
	k.until("it leads again", func() bool { return first.leading() != nil })
	join := JoinResponse{Cluster: c.Identity.Cluster.String(), Node: 9, HeartbeatTimeout: time.Second, Recovery: 7}
	if id, err := SaveJoin(Config{Dir: "/d", FS: vfs.NewMem()}, join); err != nil || id.Recovery != 7 {
		t.Errorf("a new node follows %d, %v", id.Recovery, err)
	}
}

// TestUnfinishedRecovery: a directory in which a recovery was begun and did not end is no node's, and the recovery is run again. Guard:
// Identity.Usable in Open.
func TestUnfinishedRecovery(t *testing.T) {
	k := threeStopped(t)
	if err := MarkRecovery(k.path(1), 5); err != nil {
		t.Fatal(err)
	}
	id, err := LoadIdentity(vfs.Default, k.path(1))
	if err != nil || id.Recovery != 5 || !id.Unfinished || id.Bootstrap != nil {
		t.Fatalf("%+v, %v", id, err)
	}
	cfg := k.nodes[1].cfg
	_, cfg.Transport = raft.NewInmemTransport("1")
	cfg.Report = func() placement.NodeReport { return placement.NodeReport{} }
	if c, err := Open(cfg); !errors.Is(err, storage.ErrConflict) {
		if c != nil {
			err = c.Close()
		}
		t.Fatalf("it is opened: %v", err)
	}
	c, err := ReadCopy(k.path(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Begin(k.path(1), c.State, []storage.NodeID{2, 3}, 6, time.Now()); err != nil {
		t.Fatal(err)
	}
	// Again, as after an interruption right before the end.
	if err := MarkRecovery(k.path(1), 6); err != nil {
		t.Fatal(err)
	}
	if c, err = ReadCopy(k.path(1)); err != nil || len(c.Voters) != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := c.Begin(k.path(1), c.State, nil, 8, time.Now()); err != nil {
		t.Fatal(err)
	}
	first := k.startNode(1)
	k.until("it leads by itself", func() bool { return first.leading() != nil })
}

// TestBeginWithoutReadableFiles: a node whose catalog cannot be opened begins with a copy of another one's. What it had is set aside, and kept when that is
// repeated. One that has been through a recovery before is refused: it cannot tell which numbers were given out since.
func TestBeginWithoutReadableFiles(t *testing.T) {
	k := threeStopped(t)
	c, err := ReadCopy(k.path(3))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.path(1), logFile), []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCopy(k.path(1)); err == nil {
		t.Fatal("it is read")
	}
	unread, err := UnreadCopy(k.path(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unread.Begin(k.path(1), c.State, []storage.NodeID{2}, 7, time.Now()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(keptName(k.path(1), 7), logFile)); err != nil || string(b) != "no database" {
		t.Errorf("kept is %q, %v", b, err)
	}
	k.wantBegun(1)
	first := k.startNode(1)
	k.until("it leads by itself", func() bool { return first.leading() != nil })
	k.stopNode(1)
	if unread, err = UnreadCopy(k.path(1)); err != nil {
		t.Fatal(err)
	}
	if err := unread.MayBegin(c.State, []storage.NodeID{2}, time.Now()); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("after a recovery, without a copy of its own: %v", err)
	}
}

// TestFollowWhereItBegan: a directory in which a recovery began and did not end is not made one that follows it: nothing else has its catalog.
func TestFollowWhereItBegan(t *testing.T) {
	k := threeStopped(t)
	c, err := ReadCopy(k.path(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Begin(k.path(1), c.State, []storage.NodeID{2}, 7, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := MarkRecovery(k.path(1), 7); err != nil { // as right before the end
		t.Fatal(err)
	}
	if _, err := Follow(k.path(1), 7); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("it follows: %v", err)
	}
	if _, err := os.Stat(filepath.Join(k.path(1), logFile)); err != nil {
		t.Error(err)
	}
}

// TestBeginWithABackup: the node's own catalog is gone but for an old snapshot of a high term; a backup takes its place, and the old snapshot
// with its voters does not come back. Guards: the term above those of snapshots, and their end.
func TestBeginWithABackup(t *testing.T) {
	k := threeStopped(t)
	c, err := ReadCopy(k.path(1))
	if err != nil {
		t.Fatal(err)
	}
	bolt, snaps, err := openFiles(k.path(1), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	for _, term := range []uint64{90, 91} {
		sealed := sealedSnapshots{SnapshotStore: snaps, dir: filepath.Join(k.path(1), snapshotDir), noteConfig: func(uint64) {}}
		sink, err := sealed.Create(1, c.Index, term, raft.Configuration{Servers: []raft.Server{{ID: ServerID(2), Address: runner.NodeAddress(2)}, {ID: ServerID(3), Address: runner.NodeAddress(3)}}}, 1, encodesPeers{})
		if err == nil {
			err = fsmSnapshot{c.State}.Persist(sink)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(k.path(1), logFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCopy(k.path(1)); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("a catalog without a log: %v", err)
	}
	unread, err := UnreadCopy(k.path(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unread.Begin(k.path(1), c.State, []storage.NodeID{2, 3}, 9, time.Now()); err != nil {
		t.Fatal(err)
	}
	k.wantBegun(1)
	first := k.startNode(1)
	k.until("it leads by itself", func() bool { return first.leading() != nil })
	if first.Term() <= 91 || first.Voters() != 1 {
		t.Errorf("term %d, %d voters", first.Term(), first.Voters())
	}
}
