package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
)

// readAt asks one node, which may not lead, for a block's first byte.
func (c *client) readAt(n storage.NodeID, block uint32, mode op.ReadMode) (byte, error) {
	d, err := c.h.nodes[n].replicas.Read(context.Background(), c.group, op.ReadRequest{Volume: c.volume, Offset: block * storage.BlockSize,
		Length: storage.BlockSize, Epoch: op.HeadEpoch, Mode: mode})
	if err != nil {
		return 0, err
	}
	defer d.Release()
	if d.Header.AllHoles() {
		return 0, nil
	}
	return d.Payload[0], nil
}

// TestShrinkToOneVoterWaitsForItsDisk guards I1: without the LogConfiguration condition of logStore.StoreLogs (tried) the
// library commits all that the last voter has, durable or not, on the return of StoreLogs.
func TestShrinkToOneVoterWaitsForItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 2)
		defer h.close()
		h.nodes[1].start()
		h.nodes[2].start()
		h.bootstrapVoters(1, 1, 2)
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		leader := h.awaitLeader(1)
		other := 3 - leader
		h.net.Isolate(nodeName(other))
		n := h.nodes[leader]
		n.stall.begin()
		done := c.pending(leader, 0, block(2))
		synctest.Wait()
		changed := make(chan error, 1)
		replicas := n.replicas
		go func() {
			changed <- replicas.ChangeMembership(context.Background(), 1, runner.RemoveServer, string(serverID(other)), other, 0)
		}()
		<-time.After(300 * time.Millisecond)
		select {
		case err := <-done:
			t.Fatalf("answered (%v) before the disk of the last voter was", err)
		case err := <-changed:
			t.Fatalf("changed (%v) before the disk of the last voter was", err)
		default:
		}
		n.stall.end()
		if err := <-changed; err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		n.crash()
		n.start()
		h.equal(c.read(0, storage.BlockSize), block(2), "after a power cut")
	})
}

// TestGrowthKeepsWhatWasAcknowledged grows a group 1 -> 2 -> 3 while disks stall, one after another, cuts the power of the
// newest leader each time, and has one node out of reach. It guards I1 together with the waits of StoreLogs.
func TestGrowthKeepsWhatWasAcknowledged(t *testing.T) {
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
		want := byte(0)
		write := func() {
			want++
			c.write(0, block(want))
		}
		powerCut := func(n storage.NodeID) {
			h.nodes[n].crash()
			h.nodes[n].start()
			h.equal(c.read(0, storage.BlockSize), block(want), "after a power cut")
			c.session, c.seq = c.session+1, 0
			if r := c.do(op.Op{Kind: op.OpenSession, Volume: c.volume, Session: c.session}, nil); r.Kind != storage.KindNone {
				t.Fatalf("%+v", r)
			}
		}
		write()
		for _, n := range []storage.NodeID{2, 3} {
			leader := h.awaitLeader(1)
			if err := h.nodes[n].replicas.CreateReplica(context.Background(), 1, storeID(n), storage.Incarnation(n), leader); err != nil {
				t.Fatal(err)
			}
			h.change(1, runner.AddNonvoter, n, storage.Incarnation(n))
			write()
			h.nodes[leader].stall.begin()
			release := time.AfterFunc(150*time.Millisecond, h.nodes[leader].stall.end)
			h.change(1, runner.AddVoter, n, storage.Incarnation(n))
			write()
			release.Stop()
			h.nodes[leader].stall.end()
			powerCut(h.awaitLeader(1))
		}
		leader := h.awaitLeader(1)
		a, b := others(leader)
		h.net.Isolate(nodeName(a))
		write()
		h.net.Isolate(nodeName(leader))
		h.net.Rejoin(nodeName(a))
		h.equal(c.read(0, storage.BlockSize), block(want), "with the leader out of reach")
		h.net.HealAll()
		powerCut(b)
	})
}

// TestPartialWriteWaitsForTheFullOneBesideIt guards I3: without ranges.acquire in group.propose (tried) the partial
// write is merged with what the full one, acknowledged first, has replaced.
func TestPartialWriteWaitsForTheFullOneBesideIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		h.nodes[leader].stall.begin()
		full := c.pending(leader, 0, block(2))
		synctest.Wait() // proposed, and not committed while the leader's disk waits
		partial := c.pending(leader, 100, []byte("partial"))
		<-time.After(100 * time.Millisecond)
		h.nodes[leader].stall.end()
		if err := errors.Join(<-full, <-partial); err != nil {
			t.Fatal(err)
		}
		want := block(2)
		copy(want[100:], "partial")
		h.equal(c.read(0, storage.BlockSize), want, "both writes")
	})
}

// TestDuplicateAfterALaterWriteIsNotApplied guards I3: without the window of the session (tried: Duplicate never set in
// extent's admit) the old copy lands on the later write.
func TestDuplicateAfterALaterWriteIsNotApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		old := c.writeOp(0, block(1))
		send := func(n storage.NodeID, o op.Op, data []byte) op.Result {
			r, err := h.nodes[n].replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), data})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if r := send(leader, old, block(1)); r.Kind != storage.KindNone || r.Duplicate {
			t.Fatalf("%+v", r)
		}
		c.write(0, block(2))
		if r := send(leader, old, block(1)); r.Kind != storage.KindNone || !r.Duplicate {
			t.Fatalf("%+v", r)
		}
		h.equal(c.read(0, storage.BlockSize), block(2), "after the duplicate")
		h.nodes[leader].crash()
		next := h.awaitLeader(1)
		if r := send(next, old, block(1)); r.Kind != storage.KindNone || !r.Duplicate {
			t.Fatalf("at the next leader: %+v", r)
		}
		h.equal(c.read(0, storage.BlockSize), block(2), "after the duplicate at the next leader")
		h.nodes[leader].start()
	})
}

// TestDeposedLeaderAnswersNothingStale guards I1: an isolated leader answers its clients while its lease stands and not
// after (tried: lease.valid always true), and what it answers is never older than what was acknowledged elsewhere.
func TestDeposedLeaderAnswersNothingStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		h.net.Isolate(nodeName(leader))
		cut := time.Now()
		if _, err := c.readAt(leader, 0, op.ReadLease); err != nil {
			t.Fatalf("a live lease answers: %v", err)
		}
		acknowledged := make(chan time.Time, 1)
		h.eventually("another leader", func() bool {
			if _, err := c.readAt(leader, 0, op.ReadLease); err == nil && time.Since(cut) > span*8/10 {
				t.Fatalf("answered %v after the cut", time.Since(cut))
			}
			next := h.leaderOf(1)
			return next != 0 && next != leader
		})
		c.write(0, block(2))
		acknowledged <- time.Now()
		for range 100 {
			if b, err := c.readAt(leader, 0, op.ReadLease); err == nil && b != 2 {
				t.Fatalf("read %d after 2 was acknowledged", b)
			}
			<-time.After(10 * time.Millisecond)
		}
	})
}

// TestDeposedLeaderNamesNothingEmpty guards I1 for clears: a gateway does not clear what a leader says is empty, so a leader that
// was deposed must not say it of what another has. Guards confirmRead in MappedExtents (tried without).
func TestDeposedLeaderNamesNothingEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		ask := func(n storage.NodeID) (op.MappedResponse, error) {
			return h.nodes[n].replicas.MappedExtents(context.Background(), 1, op.MappedRequest{Volume: c.volume, End: 9, Generation: 1})
		}
		if a, err := ask(leader); err != nil || a.Next != 9 || len(a.Extents) != 0 {
			t.Fatalf("an empty volume: %+v, %v", a, err)
		}
		h.net.Isolate(nodeName(leader))
		h.eventually("another leader", func() bool { n := h.leaderOf(1); return n != 0 && n != leader })
		c.write(0, block(2))
		for range 100 {
			if a, err := ask(leader); err == nil && len(a.Extents) == 0 {
				t.Fatal("said to be empty after a write was acknowledged")
			}
			<-time.After(10 * time.Millisecond)
		}
		if a, err := ask(h.leaderOf(1)); err != nil || len(a.Extents) != 1 {
			t.Errorf("the new leader: %+v, %v", a, err)
		}
	})
}

// TestNothingIsDestroyedByALease guards I1 where a clock is not what a lease takes it for (a virtual machine that was paused goes on
// with the time it had): by a lease a leader may answer a read too late, and that is all. What it says is empty is not cleared,
// and is formatted by whoever asks because of that, so it says so only when a majority has confirmed it since. Guards
// ReadQuorum in MappedExtents (tried with ReadDefault).
func TestNothingIsDestroyedByALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		ask := func(mode op.ReadMode) error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
			defer cancel()
			_, err := h.nodes[leader].replicas.MappedExtents(ctx, 1, op.MappedRequest{Volume: c.volume, End: 9, Generation: 1, Mode: mode})
			return err
		}
		h.net.Isolate(nodeName(leader))
		for _, mode := range []op.ReadMode{op.ReadDefault, op.ReadLease, op.ReadQuorum} {
			if _, err := c.readAt(leader, 0, op.ReadLease); err != nil {
				t.Fatalf("it has no lease any more: %v", err)
			}
			if err := ask(mode); err == nil {
				t.Errorf("mode %d: said by a leader that nobody has confirmed since it was asked", mode)
			}
		}
		h.net.Rejoin(nodeName(leader))
		h.eventually("an answer", func() bool { return ask(op.ReadDefault) == nil || h.leaderOf(1) != leader })
	})
}

// TestLeaseCountsFromTheSendTime guards I1: a leader whose answers come late (frozen and thawed, or far away) has no lease
// from them. Tried: time.Now() for sent in finishHeartbeats and answered.
func TestLeaseCountsFromTheSendTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, _ := three(t)
		defer h.close()
		c.write(0, block(1))
		for from := range h.nodes {
			for to := range h.nodes {
				h.net.SetLink(nodeName(from), nodeName(to), simnet.Link{Delay: 210 * time.Millisecond})
			}
		}
		<-time.After(2 * time.Second)
		led := 0 // looks at a leader, whoever it is: one whose answers come so late may lose the next election
		for looks := 0; led < 100 && looks < 6000; looks++ {
			for id := range h.nodes {
				if h.instance(id).State() == raft.Leader {
					led++
				}
				if h.nodes[id].replicas.mustGroup(1).leaseValid() {
					t.Fatal("a lease, though every answer is to a request of more than 0.8 heartbeat time-outs ago")
				}
			}
			<-time.After(10 * time.Millisecond)
		}
		if led < 100 {
			t.Fatal("hardly anybody led: the test shows nothing")
		}
	})
}

// TestQuorumReads: they are answered by a leader, and not at all by one that is cut off.
func TestQuorumReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		for range 10 {
			if b, err := c.readAt(leader, 0, op.ReadQuorum); err != nil || b != 1 {
				t.Fatalf("%d, %v", b, err)
			}
		}
		h.net.Isolate(nodeName(leader))
		if b, err := c.readAt(leader, 0, op.ReadQuorum); err == nil {
			t.Fatalf("a leader without followers answered %d", b)
		}
	})
}

// TestHungDiskFallsSilent: a disk that does not answer makes its replicas keep silent, others lead, and it comes back.
// Guards disk.silent: without hung in it (tried) the leader keeps its followers and nobody can write.
func TestHungDiskFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		h.nodes[leader].stall.begin()
		pending := c.pending(leader, storage.BlockSize, block(9))
		start := time.Now()
		h.eventually("another leader", func() bool { n := h.leaderOf(1); return n != 0 && n != leader })
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("another leads after %v", took)
		}
		c.write(0, block(2))
		if _, err := c.readAt(leader, 0, op.ReadDefault); err == nil {
			t.Error("a silent replica answered a read")
		}
		h.nodes[leader].stall.end()
		<-pending
		h.eventually("the hung node to follow", func() bool {
			n := h.leaderOf(1)
			return n != 0 && h.instance(leader).AppliedIndex() >= h.instance(n).CommitIndex()
		})
		h.equal(c.read(0, storage.BlockSize), block(2), "after the disk came back")
	})
}

// TestFailedDiskStopsItsReplicas: an error of the disk, under the log or under the terms and votes, is for good. The
// replicas stop, others lead, and the process lives and ends in order. Guards the stop of a failed disk's groups (tried: no
// onFail).
func TestFailedDiskStopsItsReplicas(t *testing.T) {
	for name, path := range map[string]string{"log": "store/log/", "everything": "store/"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, c, leader := three(t)
				defer h.close()
				c.write(0, block(1))
				h.nodes[leader].stall.breaks(path)
				_ = <-c.pending(leader, storage.BlockSize, block(9))
				h.eventually("another leader", func() bool { n := h.leaderOf(1); return n != 0 && n != leader })
				c.write(0, block(2))
				h.eventually("the replica to stop", func() bool { return h.instance(leader) == nil })
				h.equal(c.read(0, storage.BlockSize), block(2), "with a failed disk")
				h.nodes[leader].crash() // the power goes, and the disk is itself again
				h.nodes[leader].stall.breaks("")
				h.nodes[leader].start()
				h.eventually("the node to catch up", func() bool {
					n := h.leaderOf(1)
					return n != 0 && h.instance(leader).AppliedIndex() >= h.instance(n).CommitIndex()
				})
			})
		})
	}
}

// TestUnreadableLogStopsAtOnce: a leader that cannot read its log for its followers stops, and the node's stop does not
// wait for what the library has left running. The line is the last answer that pipeline.end gives (tried: without it the
// reader of the pipeline's answers stays, the stop takes stopPatience, and the bubble never ends).
func TestUnreadableLogStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.cacheBytes = 1
		for _, n := range h.nodes {
			n.start()
		}
		defer h.close()
		h.bootstrapVoters(1, 1, 2, 3)
		leader := h.awaitLeader(1)
		c := h.open(1, 1, 1)
		for i := range byte(5) {
			c.write(0, block(i))
		}
		<-time.After(time.Second) // the followers are sent pipelines
		h.nodes[leader].stall.unreadable("store/log/")
		h.eventually("another leader", func() bool {
			if n := h.leaderOf(1); n != leader {
				return n != 0
			}
			_ = <-c.pending(leader, storage.BlockSize, block(9)) // what is sent before it is written is not read from the disk
			return false
		})
		stopping := h.nodes[leader].replicas
		h.eventually("the replica to stop", func() bool { return stopping.Status()[0].Role == "damaged" })
		began := time.Now()
		h.nodes[leader].shutdown()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the node took %v to stop", took)
		}
		h.equal(c.read(0, storage.BlockSize), block(4), "with two of three")
	})
}

// TestVotingOnABrokenStore: the library's main loop is in the store of terms and votes when the disk fails, and the node still stops.
// Guards group.park (tried: without Goexit the error reaches the library, which panics).
func TestVotingOnABrokenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		a, _ := others(leader)
		h.nodes[a].stall.breaks("store/meta")
		go h.instance(leader).transport.AppendEntries(serverID(a), runner.NodeAddress(a), &raft.AppendEntriesRequest{ // there is no answer
			RPCHeader: headerOf(leader), Term: h.instance(a).CurrentTerm() + 1}, &raft.AppendEntriesResponse{})
		h.eventually("the replica to stop", func() bool { return h.instance(a) == nil })
		h.equal(c.read(0, storage.BlockSize), block(1), "with two of three")
	})
}

// TestStartOnABrokenStore: a replica whose store fails while the library starts is reported, and nobody hangs.
func TestStartOnABrokenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		a, _ := others(leader)
		g := h.nodes[a].replicas.mustGroup(1)
		h.nodes[a].stall.breaks("store/meta")
		g.restart()
		if h.instance(a) != nil {
			t.Fatal("started without a store of votes")
		}
		h.equal(c.read(0, storage.BlockSize), block(1), "with two of three")
	})
}

// TestLocalFailureIsNoDecision: what only this replica came to is answered as unknown, so that the gateway sends the same
// number again (tried: without the kinds in group.resultOf the number counts as refused and is used for something else).
func TestLocalFailureIsNoDecision(t *testing.T) {
	g := &group{id: 1}
	for _, k := range []storage.Kind{storage.KindIO, storage.KindInternal, storage.KindCorrupt} {
		if r, err := g.resultOf(&op.Result{Kind: k}); storage.KindOf(err) != storage.KindUnavailable {
			t.Errorf("%v: %+v, %v", k, r, err)
		}
	}
	for _, k := range []storage.Kind{storage.KindNone, storage.KindFenced, storage.KindInvalid} {
		if r, err := g.resultOf(&op.Result{Kind: k}); err != nil || r.Kind != k {
			t.Errorf("%v: %+v, %v", k, r, err)
		}
	}
}

// TestBytesProposedAreBounded guards I9: without admission.acquire in group.propose (tried) everything that arrives goes into
// the log of a leader that cannot commit.
func TestBytesProposedAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.configure = func(c *Config) { c.GroupInFlightBytes = 128 << 10 }
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		leader := h.awaitLeader(1)
		before := h.instance(leader).LastIndex()
		h.nodes[leader].stall.begin()
		var answers []<-chan error
		for i := range uint32(500) {
			answers = append(answers, c.pending(leader, i*storage.BlockSize, block(2)))
		}
		<-time.After(200 * time.Millisecond)
		if n := h.instance(leader).LastIndex() - before; n == 0 || n*(storage.BlockSize+overheadBytes) > 128<<10 {
			t.Errorf("%d entries of a block are proposed and not applied, within 128 KiB", n)
		}
		h.nodes[leader].stall.end()
		for _, a := range answers {
			if err := <-a; err != nil && storage.KindOf(err) != storage.KindUnavailable {
				t.Fatal(err)
			}
		}
	})
}

// TestBytesReadAreBounded guards I9: without acquireWithin in Replicas.Read (tried) every request gets a buffer, whoever holds
// the answers to the others.
func TestBytesReadAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		h.configure = func(c *Config) { c.ReadBytes = storage.ExtentSize }
		defer h.close()
		n := h.nodes[1]
		n.start()
		if err := n.replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		c.write(0, block(1))
		read := func(ctx context.Context, length uint32) (*op.ReadData, error) {
			return n.replicas.Read(ctx, 1, op.ReadRequest{Volume: 7, Length: length, Epoch: op.HeadEpoch})
		}
		whole, err := read(t.Context(), storage.ExtentSize)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := read(ctx, 1); storage.KindOf(err) != storage.KindUnavailable {
			t.Errorf("beside an answer that takes all the room: %v", err)
		}
		whole.Release()
		if d, err := read(t.Context(), storage.ExtentSize); err != nil {
			t.Error(err)
		} else {
			d.Release()
		}
		if _, err := n.replicas.Read(t.Context(), 1, op.ReadRequest{Volume: 7, Length: 1, Generation: 0, Session: 99}); err == nil {
			t.Error("read under a session that is not open")
		}
		if d, err := read(t.Context(), storage.ExtentSize); err != nil { // what was refused holds no room
			t.Error(err)
		} else {
			d.Release()
		}
	})
}

// TestCorruptBlockIsNeverReturned guards I5 at the leader: rot below the checkpoint, which no recovery reads.
func TestCorruptBlockIsNeverReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, c := alone(t)
		defer h.close()
		c.write(0, block(0xe7))
		c.write(storage.BlockSize, block(1))
		n.shutdown() // with a checkpoint
		n.flip(block(0xe7))
		n.start()
		h.equal(c.read(storage.BlockSize, storage.BlockSize), block(1), "the block beside it")
		if b, err := c.readAt(1, 0, op.ReadDefault); storage.KindOf(err) != storage.KindCorrupt {
			t.Fatalf("read %#x, %v", b, err)
		}
		o := c.writeOp(100, []byte("partial"))
		if _, err := n.replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), []byte("partial")}); storage.KindOf(err) != storage.KindIO {
			t.Fatalf("a partial write beside bytes that are lost: %v", err)
		}
		c.write(0, block(3))
		h.equal(c.read(0, storage.BlockSize), block(3), "written anew")
	})
}
