package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
)

// badStore fails one of its operations from a moment on, like a disk that refuses it.
type badStore struct {
	*raft.InmemStore
	op    string
	bad   atomic.Bool
	mu    sync.Mutex
	calls int // since it is bad; guarded by mu
}

var errDisk = errors.New("input/output error")

func (s *badStore) fault(op string) error {
	full := s.op == "full" && (op == "store" || op == "term")
	if !s.bad.Load() || op != s.op && !full {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if full {
		return &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}
	}
	return errDisk
}

func (s *badStore) StoreLogs(ls []*raft.Log) error {
	if err := s.fault("store"); err != nil {
		return err
	}
	return s.InmemStore.StoreLogs(ls)
}

// GetLog flips the lowest bit of the first digit in a command: "flip" in one from before entries were sealed, "rot" in one of
// today.
func (s *badStore) GetLog(index uint64, l *raft.Log) error {
	if err := s.InmemStore.GetLog(index, l); err != nil || l.Type != raft.LogCommand {
		return err
	}
	flip, rot := s.fault("flip") != nil, s.fault("rot") != nil
	if !flip && !rot {
		return nil
	}
	if flip {
		l.Extensions = nil
	}
	l.Data = bytes.Clone(l.Data)
	if at := bytes.IndexAny(l.Data[8:], "0123456789"); at >= 0 {
		l.Data[8+at] ^= 1
	}
	return nil
}

func (s *badStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *badStore) Set(k, v []byte) error {
	if err := s.fault("term"); string(k) == "CurrentTerm" && err != nil {
		return err
	}
	return s.InmemStore.Set(k, v)
}

// TestFailedDisk: whatever the disk of the catalog refuses, on the leader or on a follower, the node ends with KindIO and not with
// a panic of the library. The disk is not asked again, and the other nodes go on.
func TestFailedDisk(t *testing.T) {
	for _, c := range []struct {
		op     string
		leader bool
	}{{"store", true}, {"store", false}, {"term", true}, {"term", false}} {
		name := c.op + " of a follower"
		if c.leader {
			name = c.op + " of the leader"
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { failDisk(t, c.op, c.leader) })
		})
	}
}

// badStores has the nodes that are started next keep their logs in stores whose operation op can be made bad, and count in told the
// failures that they report.
func (k *cluster) badStores(op string, told *atomic.Int32) map[storage.NodeID]*badStore {
	stores := map[storage.NodeID]*badStore{}
	k.tune = func(cfg *Config) {
		id := storage.NodeID(len(stores) + 1)
		if stores[id] == nil && cfg.Stores != nil {
			s := &badStore{InmemStore: cfg.Stores.Log.(*raft.InmemStore), op: op}
			stores[id] = s
			cfg.Stores = &RaftStores{Log: s, Stable: s, Snapshots: cfg.Stores.Snapshots}
			cfg.OnFailure = func(error) { told.Add(1) }
		}
	}
	return stores
}

// TestDamagedEntryHaltsTheCopy guards I1 for the catalog (tried: with the entry skipped in fsm.Apply, the node goes on and
// answers from a catalog that lacks a volume): a bit of a command flips on a follower's disk. That node stops, with an error that
// says so, and applies and stores nothing from there on; the others go on.
func TestDamagedEntryHaltsTheCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		var told atomic.Int32
		stores := k.badStores("flip", &told)
		k.three()
		victim := k.leader()%3 + 1
		c := k.running()[victim]
		stores[victim].bad.Store(true)
		before, _ := c.fsm.next()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		leader := k.running()[k.leader()]
		for _, name := range []string{"first", "second"} {
			if _, err := leader.Propose(ctx, catalog.CreateVolume{Name: name, SizeBytes: 4096, At: time.Now().UTC()}); err != nil {
				t.Fatal(err)
			}
		}
		k.until("the node notices", func() bool { return c.Failed() != nil })
		if err := c.Failed(); !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "join again with an empty data directory") {
			t.Errorf("it failed with %v", err)
		}
		k.mu.Lock()
		ended := k.nodes[victim].ended
		k.mu.Unlock()
		if err := <-ended; !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("Run ended with %v", err)
		}
		if after, _ := c.fsm.next(); after != before {
			t.Errorf("it applied %d to %d beside the damaged entry", before, after)
		}
		if _, err := c.fsm.Snapshot(); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("a snapshot of it: %v", err)
		}
		if told.Load() != 1 {
			t.Errorf("the node was told %d times", told.Load())
		}
		k.stopNode(victim) // Close returns
		if _, err := leader.Propose(ctx, catalog.CreateVolume{Name: "third", SizeBytes: 4096, At: time.Now().UTC()}); err != nil {
			t.Errorf("the others: %v", err)
		}
	})
}

func failDisk(t *testing.T, op string, ofLeader bool) {
	k := newCluster(t, "")
	stores := map[storage.NodeID]*badStore{}
	var told atomic.Int32
	k.tune = func(cfg *Config) {
		id := storage.NodeID(len(stores) + 1)
		if stores[id] == nil && cfg.Stores != nil {
			s := &badStore{InmemStore: cfg.Stores.Log.(*raft.InmemStore), op: op}
			stores[id] = s
			cfg.Stores = &RaftStores{Log: s, Stable: s, Snapshots: cfg.Stores.Snapshots}
			cfg.OnFailure = func(error) { told.Add(1) }
		}
	}
	k.three()
	victim := k.leader()
	if !ofLeader {
		victim = victim%3 + 1
	}
	other := victim%3 + 1
	c := k.running()[victim]
	stores[victim].bad.Store(true)
	if op == "term" { // it hears of a later one when it is back
		k.isolate(victim, true)
		<-time.After(5 * time.Second)
		k.isolate(victim, false)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, _ = k.running()[other].Propose(ctx, catalog.CreateVolume{Name: "first", SizeBytes: 4096, At: time.Now().UTC()}) // it may go to the victim
	k.until("the node notices", func() bool { return c.Failed() != nil })
	if err := c.Failed(); !errors.Is(err, storage.ErrIO) || !errors.Is(err, errDisk) {
		t.Errorf("it failed with %v", err)
	}
	k.isolate(victim, true) // as its transport falls silent
	k.mu.Lock()
	m := k.nodes[victim]
	ended := m.ended
	k.mu.Unlock()
	if err := <-ended; !errors.Is(err, storage.ErrIO) {
		t.Errorf("Run ended with %v, want the disk's error", err)
	}
	if _, err := c.Propose(ctx, catalog.CreateVolume{Name: "none", SizeBytes: 4096, At: time.Now().UTC()}); !errors.Is(err, storage.ErrIO) {
		t.Errorf("a command on the failed node: %v", err)
	}
	k.stopNode(victim) // Close returns
	k.until("another node leads", func() bool {
		for id, c := range k.running() {
			if id != victim && c.leading() != nil {
				return true
			}
		}
		return false
	})
	k.propose(k.running()[other], catalog.CreateVolume{Name: "after", SizeBytes: 4096, At: time.Now().UTC()})
	if n := told.Load(); n != 1 {
		t.Errorf("the failure was told %d times", n)
	}
	stores[victim].mu.Lock()
	defer stores[victim].mu.Unlock()
	if stores[victim].calls != 1 {
		t.Errorf("the disk was asked %d times after it had failed", stores[victim].calls-1)
	}
}

// TestFullDisk: the file system under the catalog of one node is full, of the leader or of a follower. The others go on; the node
// itself does not fail, and follows again when there is room. Guards await, and that a leader refuses instead (tried: a leader
// that waits keeps its leadership, and the catalog of the whole cluster stands still).
func TestFullDisk(t *testing.T) {
	for name, ofLeader := range map[string]bool{"leader": true, "follower": false} {
		for _, closing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, closed meanwhile %v", name, closing), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { fillDisk(t, ofLeader, closing) })
			})
		}
	}
}

func fillDisk(t *testing.T, ofLeader, closing bool) {
	k := newCluster(t, "")
	var told atomic.Int32
	stores := k.badStores("full", &told)
	k.three()
	victim := k.leader()
	if !ofLeader {
		victim = victim%3 + 1
	}
	other := victim%3 + 1
	c := k.running()[victim]
	stores[victim].bad.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, _ = k.running()[other].Propose(ctx, catalog.CreateVolume{Name: "first", SizeBytes: 4096, At: time.Now().UTC()}) // it may go to the victim
	k.until("another node leads", func() bool {
		for id, c := range k.running() {
			if id != victim && c.leading() != nil {
				return true
			}
		}
		return false
	})
	k.propose(k.running()[other], catalog.CreateVolume{Name: "second", SizeBytes: 4096, At: time.Now().UTC()})
	time.Sleep(time.Minute)
	if err := c.Failed(); err != nil || told.Load() != 0 {
		t.Fatalf("the node has failed: %v", err)
	}
	stores[victim].mu.Lock()
	calls := stores[victim].calls
	stores[victim].mu.Unlock()
	if calls == 0 || calls > 1000 {
		t.Errorf("%d writes found no room", calls)
	}
	if mine, others := c.WithoutRoom(), k.running()[other].WithoutRoom(); !mine || others {
		t.Errorf("the node says that it is without room: %v; another: %v", mine, others)
	}
	if closing {
		k.stopNode(victim)
		return
	}
	stores[victim].bad.Store(false)
	k.until("the node follows again", func() (ok bool) {
		c.View(func(s *catalog.State) { _, ok = s.VolumeByName("second") })
		return ok
	})
	if time.Sleep(refusedFor); c.WithoutRoom() {
		t.Error("with room it says still that there is none")
	}
}

// TestFullDiskIsSaid: a leader by itself that refused what it was to store says for a while that there is no room.
//
// Guards withoutRoom; each half was taken out once, and failed here or in TestFullDisk.
func TestFullDiskIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(&RaftStores{}, runner.New(runner.Config{}), func(error) {}, slog.New(slog.DiscardHandler))
		if d.withoutRoom() {
			t.Error("nothing was refused yet")
		}
		d.refused.Store(time.Now().UnixNano())
		time.Sleep(refusedFor - time.Second)
		if !d.withoutRoom() {
			t.Error("it was refused, and does not say so")
		}
		time.Sleep(2 * time.Second)
		if d.withoutRoom() {
			t.Error("it was refused long ago")
		}
	})
}

// TestSeals guards the log and the votes of the catalog in a file without checksums (tried: without the comparisons a flipped bit in
// a configuration, a term or a vote is taken for what was written). What earlier versions wrote is read as it is.
func TestSeals(t *testing.T) {
	store := raft.NewInmemStore()
	d := newDisk(&RaftStores{Log: store, Stable: store}, runner.New(runner.Config{}), func(error) {}, slog.New(slog.DiscardHandler))
	entry := &raft.Log{Index: 7, Term: 3, Type: raft.LogConfiguration, Data: []byte("configuration")}
	if err := d.StoreLog(entry); err != nil || len(entry.Extensions) > 0 {
		t.Fatalf("%v; the library's own entry became %+v", err, entry)
	}
	var got raft.Log
	if err := d.GetLog(7, &got); err != nil || got.Term != 3 || string(got.Data) != "configuration" || len(got.Extensions) > 0 {
		t.Fatalf("%+v: %v", got, err)
	}
	var kept raft.Log
	if err := store.GetLog(7, &kept); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(l *raft.Log){
		"data": func(l *raft.Log) { l.Data[3] ^= 4 }, "term": func(l *raft.Log) { l.Term ^= 1 }, "type": func(l *raft.Log) { l.Type = raft.LogCommand },
		"index": func(l *raft.Log) { l.Index = 8 }, "seal": func(l *raft.Log) { l.Extensions[5] ^= 1 }, "no seal": func(l *raft.Log) { l.Extensions = []byte("x") },
	} {
		l := kept
		l.Data, l.Extensions = bytes.Clone(kept.Data), bytes.Clone(kept.Extensions)
		damage(&l)
		if err := unsealEntry(7, &l); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("damaged %s: %v", name, err)
		}
	}
	if err := unsealEntry(7, &raft.Log{Index: 7, Data: []byte("old")}); err != nil {
		t.Errorf("an entry from before: %v", err)
	}

	term := []byte("CurrentTerm")
	if _, err := d.GetUint64(term); err == nil || err.Error() != "not found" {
		t.Errorf("no term yet: %v; the library knows only \"not found\"", err)
	}
	if err := d.SetUint64(term, 1<<40+5); err != nil {
		t.Fatal(err)
	}
	if n, err := d.GetUint64(term); err != nil || n != 1<<40+5 {
		t.Errorf("term %d: %v", n, err)
	}
	if err := d.Set([]byte("LastVoteCand"), []byte("3")); err != nil {
		t.Fatal(err)
	}
	if v, err := d.Get([]byte("LastVoteCand")); err != nil || string(v) != "3" {
		t.Errorf("vote %q: %v", v, err)
	}
	sealed, err := store.Get(term)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(sealed) {
		b := bytes.Clone(sealed)
		b[bit/8] ^= 1 << (bit % 8)
		if n, err := unsealNumber(term, b); err == nil {
			t.Errorf("bit %d of the term flipped: %d", bit, n)
		}
	}
	if _, err := unsealValue([]byte("LastVoteTerm"), sealed); err == nil {
		t.Error("a term is taken for another value")
	}
	if n, err := unsealNumber(term, []byte{0, 0, 0, 0, 0, 0, 1, 2}); err != nil || n != 258 {
		t.Errorf("a term from before: %d, %v", n, err)
	}
}

// TestRottenLogStopsTheNode: the node that reads a damaged entry ends with an error that says so, before it applies it.
func TestRottenLogStopsTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { rotDisk(t) })
}

func rotDisk(t *testing.T) {
	k := newCluster(t, "")
	stores := map[storage.NodeID]*badStore{}
	k.tune = func(cfg *Config) {
		id := storage.NodeID(len(stores) + 1)
		if stores[id] == nil && cfg.Stores != nil {
			s := &badStore{InmemStore: cfg.Stores.Log.(*raft.InmemStore), op: "rot"}
			stores[id] = s
			cfg.Stores = &RaftStores{Log: s, Stable: s, Snapshots: cfg.Stores.Snapshots}
		}
	}
	k.three()
	victim := k.leader()%3 + 1
	c := k.running()[victim]
	stores[victim].bad.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := k.running()[k.leader()].Propose(ctx, catalog.CreateVolume{Name: "first", SizeBytes: 4096, At: time.Now().UTC()}); err != nil {
		t.Fatal(err)
	}
	k.until("the node notices", func() bool { return c.Failed() != nil })
	if err := c.Failed(); !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("it failed with %v", err)
	}
	k.stopNode(victim)
}

// TestFullDiskKeepsMembers: the library takes a change of the catalog's members for its configuration whether the entry could be stored or
// not. What it believes and no log holds would be the base of the next change: two changes at once, from which two majorities that do not
// know each other can come. So a leader without room does not begin one, and one that finds out too late ends.
func TestFullDiskKeepsMembers(t *testing.T) {
	for name, ask := range map[string]func(ctx context.Context, c *Controller, gone storage.NodeID) error{
		"as it is asked": func(ctx context.Context, c *Controller, gone storage.NodeID) error {
			return c.leading().changeCatalog(ctx, serverChange{runner.RemoveServer, gone}, 0)
		},
		"found out too late": func(ctx context.Context, c *Controller, gone storage.NodeID) error {
			_, err := runner.Do(ctx, c.inst, "remove", func(r *raft.Raft) raft.IndexFuture { return r.RemoveServer(ServerID(gone), 0, time.Second) })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newCluster(t, "")
				var told atomic.Int32
				stores := k.badStores("full", &told)
				k.three()
				victim := k.leader()
				c := k.running()[victim]
				stores[victim].bad.Store(true)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if err := ask(ctx, c, victim%3+1); err == nil {
					t.Fatal("there was room: the test shows nothing")
				}
				synctest.Wait()
				if got := c.Voters(); got != 3 && c.Failed() == nil {
					t.Errorf("refused, and the node believes in %d voters", got)
				}
				stores[victim].bad.Store(false)
				time.Sleep(10 * time.Second)
				if c.Failed() != nil {
					if !errors.Is(c.Failed(), storage.ErrNoSpace) || name == "as it is asked" {
						t.Errorf("it failed with %v", c.Failed())
					}
					return // it begins again from what its log holds
				}
				if got := c.Voters(); got != 3 {
					t.Errorf("the node believes in %d voters; its log, and the others, have 3", got)
				}
			})
		})
	}
}
