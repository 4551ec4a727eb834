package replication

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/runner"
)

func (s *pullServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// lagging starts three voters that keep no log beyond a checkpoint, takes one away, writes n blocks and compacts the logs
// of the others.
func lagging(t *testing.T, n uint32) (h *harness, c *client, gone storage.NodeID) {
	h = newHarness(t, 3)
	h.retainBytes, h.holdBytes = -1, -1
	for id := storage.NodeID(1); id <= 3; id++ {
		h.nodes[id].start()
	}
	h.bootstrapVoters(1, 1, 2, 3)
	c = h.open(1, 7, 1)
	c.write(0, block(0xff))
	gone, _ = others(h.awaitLeader(1))
	h.nodes[gone].crash()
	for i := range n {
		c.write(i*storage.BlockSize, block(byte(i%250+1)))
	}
	h.compact(gone)
	return h, c, gone
}

// compact writes checkpoints at all nodes but one, and lets them drop their logs.
func (h *harness) compact(but storage.NodeID) {
	h.t.Helper()
	for id, n := range h.nodes {
		if id == but {
			continue
		}
		g := n.replicas.mustGroup(1)
		if err := g.checkpoint(context.Background()); err != nil {
			h.t.Fatal(err)
		}
		if first := g.extents.Log().FirstIndex(); first != 0 && first < 4 {
			h.t.Fatalf("node %d: the log begins at %d: the test shows nothing", id, first)
		}
	}
}

// has waits until a node has applied all, and reads every block at it as the leader.
func (h *harness) has(c *client, id storage.NodeID, n uint32) {
	h.t.Helper()
	h.eventually("the node to catch up", func() bool {
		leader := h.leaderOf(1)
		return leader != 0 && h.instance(id) != nil && h.instance(id).AppliedIndex() >= h.instance(leader).CommitIndex()
	})
	h.eventually("the node to lead", func() bool {
		leader := h.leaderOf(1)
		if leader != id && leader != 0 {
			_ = h.nodes[leader].replicas.TransferLeadership(context.Background(), 1, string(serverID(id)), id)
		}
		return leader == id
	})
	for i := range n {
		h.equal(c.read(i*storage.BlockSize, storage.BlockSize), block(byte(i%250+1)), "at the node that lagged")
	}
}

// TestLaggingReplicaPullsAManifest: the leader's log does not reach back to what a replica lacks. Writes go on meanwhile.
func TestLaggingReplicaPullsAManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, gone := lagging(t, 200)
		defer h.close()
		h.nodes[gone].start()
		for i := range uint32(50) {
			c.write(i*storage.BlockSize, block(byte(i%250+1)))
		}
		h.has(c, gone, 200)
		if at := h.nodes[gone].replicas.mustGroup(1).extents.Checkpointed().Index; at < 100 {
			t.Fatalf("it was brought up from the log, its checkpoint is of %d: the test shows nothing", at)
		}
		if n := h.nodes[1].replicas.pulls.count() + h.nodes[2].replicas.pulls.count() + h.nodes[3].replicas.pulls.count(); n != 0 {
			t.Errorf("%d manifests are open afterwards", n)
		}
		want := fmt.Sprintf(`# HELP storage_replication_pulled_bytes_total Bytes of blocks that replicas of the store were brought from other nodes. Its rate is that of making replicas anew. Worry when it stays while replicas are missing.
# TYPE storage_replication_pulled_bytes_total counter
storage_replication_pulled_bytes_total{store="%s"} %d
`, storeID(gone), 200*storage.BlockSize)
		if err := testutil.CollectAndCompare(&collector{h.nodes[gone].replicas}, strings.NewReader(want), "storage_replication_pulled_bytes_total"); err != nil {
			t.Error(err)
		}
	})
}

// TestPullWithASourceThatDies takes the leader away in the middle of a pull.
func TestPullWithASourceThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, gone := lagging(t, 400)
		defer h.close()
		source := h.awaitLeader(1)
		h.net.SetLink(nodeName(source), nodeName(gone), simnet.Link{Delay: 100 * time.Microsecond, BytesPerSecond: 2 << 20})
		h.nodes[gone].start()
		g := h.nodes[gone].replicas.mustGroup(1)
		h.eventually("the middle of the pull", func() bool { return g.pulled.Load() > 0 && g.pullTotal.Load() > 0 })
		if n := g.pulled.Load(); n >= 400*storage.BlockSize {
			t.Fatalf("all %d bytes came at once: the test shows nothing", n)
		}
		h.nodes[source].crash()
		h.nodes[source].start()
		h.has(c, gone, 400)
	})
}

// TestCrashBeforeRestoreLooksNotRestored guards I7: what was pulled counts only when it is installed (tried: a staged
// manifest in snapshotStore.List).
func TestCrashBeforeRestoreLooksNotRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, gone := lagging(t, 100)
		defer h.close()
		source := h.awaitLeader(1)
		h.net.CutBoth(nodeName(source), nodeName(gone)) // Raft is not to do it by itself
		third := 6 - source - gone
		h.nodes[gone].start()
		g := h.nodes[gone].replicas.mustGroup(1)
		before := g.extents.Checkpointed().Index
		var name string
		h.eventually("the pull", func() (ok bool) {
			var err error
			name, err = g.pull(context.Background(), third, "", nil)
			return err == nil
		})
		snaps := &snapshotStore{extents: g.extents, installing: func(uint64, raft.Configuration) {}}
		sink, err := snaps.Create(runner.SnapshotVersion, 100, 1, raft.Configuration{Servers: []raft.Server{{ID: "a"}}}, 1, nil)
		if err == nil {
			_, err = sink.Write([]byte(name))
		}
		if err == nil {
			err = sink.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		list, err := snaps.List()
		if err != nil || len(list) > 0 && list[0].Index != before {
			t.Fatalf("%+v, %v: the checkpoint is of %d", list, err, before)
		}
		h.nodes[gone].crash()
		h.nodes[gone].start()
		if at := h.nodes[gone].replicas.mustGroup(1).extents.Checkpointed().Index; at != before {
			t.Fatalf("restored to %d by a crash", at)
		}
		h.net.HealAll()
		h.has(c, gone, 100)
	})
}

// TestManifestBelowTheLogsEndReplacesTheInstance: a deposed leader's log ends beyond the manifest it is brought up with.
// Guards group.installed: without the restart (tried) the library goes on with a last index that the log does not have.
func TestManifestBelowTheLogsEndReplacesTheInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.retainBytes, h.holdBytes = -1, -1
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		old := h.awaitLeader(1)
		h.net.Isolate(nodeName(old))
		lost := &client{h: h, group: 1, volume: 7, session: 1}
		var answers []<-chan error
		for i := range uint32(200) {
			answers = append(answers, lost.pending(old, i*storage.BlockSize, block(0xee)))
		}
		for _, a := range answers {
			if err := <-a; err == nil {
				t.Fatal("acknowledged without a majority")
			}
		}
		instance, last := h.instance(old), h.instance(old).LastIndex()
		for i := range uint32(50) {
			c.write(i*storage.BlockSize, block(byte(i%250+1)))
		}
		h.compact(old)
		if at := h.nodes[h.awaitLeader(1)].replicas.mustGroup(1).extents.Checkpointed().Index; at >= last {
			t.Fatalf("the manifest is of %d, the old log ends at %d: the test shows nothing", at, last)
		}
		h.net.HealAll()
		h.has(c, old, 50)
		if h.instance(old) == instance {
			t.Fatal("the instance was not replaced")
		}
	})
}

// TestFollowerRestartedAtItsCheckpointCatchesUp guards Transport.bringIntoLine: without leaving out what the checkpoint
// holds (tried) the leader is refused for ever, because its log reaches back to the beginning and the follower's does not.
func TestFollowerRestartedAtItsCheckpointCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		for i := range uint32(20) {
			c.write(i*storage.BlockSize, block(byte(i%250+1)))
		}
		f, _ := others(leader)
		h.eventually("the follower to apply all", func() bool { return h.instance(f).AppliedIndex() == h.instance(leader).AppliedIndex() })
		h.nodes[f].shutdown() // with a checkpoint; the log is empty afterwards
		h.nodes[f].start()
		// As after answers that were lost: the leader sends what is below the follower's checkpoint.
		in := h.instance(leader)
		last := in.LastIndex()
		req := &raft.AppendEntriesRequest{RPCHeader: headerOf(leader), Term: in.CurrentTerm(), PrevLogEntry: last - 3, LeaderCommitIndex: last}
		for i := last - 3; i <= last; i++ {
			l := new(raft.Log)
			if err := in.log.GetLog(i, l); err != nil {
				t.Fatal(err)
			}
			if i == last-3 {
				req.PrevLogTerm = l.Term
				continue
			}
			req.Entries = append(req.Entries, l)
		}
		h.eventually("an answer", func() bool {
			var resp raft.AppendEntriesResponse
			err := in.transport.AppendEntries(serverID(f), runner.NodeAddress(f), req, &resp)
			if err == nil && !resp.Success {
				t.Fatalf("refused: %+v", resp)
			}
			return err == nil
		})
		h.has(c, f, 20)
	})
}

// TestManifestsOpenedAreBounded guards I9: a node that asks for manifests and never pulls.
func TestManifestsOpenedAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		s := h.nodes[leader].replicas.pulls
		refused := 0
		for range 3 * maxOpenManifests {
			if _, _, err := s.manifest(context.Background(), 2, 1, manifestOpen, "", 0, nil); err != nil {
				refused++
			}
		}
		if s.count() > maxOpenManifests || refused == 0 {
			t.Fatalf("%d are open, %d were refused", s.count(), refused)
		}
		<-time.After(manifestSilence + time.Second)
		if s.count() != 0 {
			t.Fatalf("%d are open after the silence", s.count())
		}
		if _, _, err := s.manifest(context.Background(), 2, 1, manifestOpen, "", 0, nil); err != nil {
			t.Fatal(err)
		}
	})
}

// TestManifestsOpenedAtOnceAreBounded guards I9: those that are being opened count (tried: only those that are open).
func TestManifestsOpenedAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		g := h.nodes[leader].replicas.mustGroup(1)
		if err := g.checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := h.nodes[leader].replicas.pulls
		var opened atomic.Int64
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 100 * maxOpenManifests {
			wg.Go(func() {
				<-begin
				if _, err := s.add(g, 0); err == nil {
					opened.Add(1)
				}
			})
		}
		close(begin)
		wg.Wait()
		if n := opened.Load(); n != maxOpenManifests || s.count() != maxOpenManifests {
			t.Errorf("%d were opened at once and %d are open, want %d", n, s.count(), maxOpenManifests)
		}
	})
}

// TestBootstrapGoesOnAfterACrash guards I8: the library stores the term and then the entry. Without the second half of
// group.bootstrap (tried) a power cut between them leaves a group that never has a leader.
func TestBootstrapGoesOnAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		defer h.close()
		n := h.nodes[1]
		n.start()
		g, err := n.replicas.openReplica(1, storeID(1), 1)
		if err == nil {
			err = g.disk.store.Stable(g.extents.Key()).Set([]byte("CurrentTerm"), []byte{7: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
		n.crash()
		n.start()
		for range 2 {
			if err := n.replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
				t.Fatal(err)
			}
		}
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		n.crash()
		n.start()
		if err := n.replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		h.equal(c.read(0, storage.BlockSize), block(1), "after a power cut")
	})
}

// TestCreateReplicaGoesOn guards I8: after a crash at any time of its making a replica is made by asking again.
func TestCreateReplicaGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 2)
		defer h.close()
		h.nodes[1].start()
		h.nodes[2].start()
		if err := h.nodes[1].replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		for i := range uint32(400) {
			c.write(i*storage.BlockSize, block(byte(i%250+1)))
		}
		create := func(ctx context.Context) error {
			return h.nodes[2].replicas.CreateReplica(ctx, 1, storeID(2), 2, 1)
		}
		if _, err := h.nodes[2].replicas.openReplica(1, storeID(2), 2); err != nil { // a crash right after the replica was entered
			t.Fatal(err)
		}
		h.nodes[2].crash()
		h.nodes[2].start()
		if s := h.nodes[2].replicas.Status(); len(s) != 1 || s[0].LastIndex != 0 {
			t.Fatalf("a replica that was not brought up is reported as one that was: %+v", s)
		}
		h.net.SetLink(nodeName(1), nodeName(2), simnet.Link{Delay: 100 * time.Microsecond, BytesPerSecond: 2 << 20})
		for _, patience := range []time.Duration{50 * time.Millisecond, 400 * time.Millisecond} { // and in the middle of the pull
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			if err := create(ctx); err == nil {
				t.Fatalf("created within %v: the test shows nothing", patience)
			}
			cancel()
			if s := h.nodes[2].replicas.Status(); len(s) != 1 || s[0].LastIndex != 0 {
				t.Fatalf("half pulled and reported as brought up: %+v", s)
			}
			h.nodes[2].crash()
			h.nodes[2].start()
		}
		h.net.SetLink(nodeName(1), nodeName(2), simnet.Link{Delay: 100 * time.Microsecond})
		h.eventually("the replica", func() bool { return create(context.Background()) == nil })
		h.nodes[2].crash()
		h.nodes[2].start()
		if err := create(context.Background()); err != nil {
			t.Fatal(err)
		}
		if s := h.nodes[2].replicas.Status(); s[0].LastIndex == 0 {
			t.Fatalf("%+v", s)
		}
		h.change(1, runner.AddNonvoter, 2, 2)
		h.change(1, runner.AddVoter, 2, 2)
		h.has(c, 2, 400)
	})
}
