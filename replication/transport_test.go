package replication

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
)

// three starts three voters and returns the harness, a client and the leader.
func three(t *testing.T) (h *harness, c *client, leader storage.NodeID) {
	h = newHarness(t, 3)
	for id := storage.NodeID(1); id <= 3; id++ {
		h.nodes[id].start()
	}
	h.bootstrapVoters(1, 1, 2, 3)
	c = h.open(1, 7, 1)
	return h, c, h.awaitLeader(1)
}

func (h *harness) instance(n storage.NodeID) *instance {
	return h.nodes[n].replicas.mustGroup(1).inst.Load()
}

func serverID(n storage.NodeID) raft.ServerID { return ServerID(storeID(n), storage.Incarnation(n)) }

func headerOf(n storage.NodeID) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(serverID(n)), Addr: []byte(runner.NodeAddress(n))}
}

// beat brings a heartbeat of a term from one node to another.
func (h *harness) beat(from, to storage.NodeID, term uint64) {
	h.t.Helper()
	h.eventually("a heartbeat to arrive", func() bool {
		req := &raft.AppendEntriesRequest{RPCHeader: headerOf(from), Term: term}
		return h.instance(from).transport.AppendEntries(serverID(to), runner.NodeAddress(to), req, &raft.AppendEntriesResponse{}) == nil
	})
}

// TestDeposedLeaderAppendsNothingInItsSuccessorsTerm guards I1: without Transport.fastBeat (tried: always true) the
// library raises the term beside its main loop, which then appends the proposal in the term of the new leader.
func TestDeposedLeaderAppendsNothingInItsSuccessorsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		a, _ := others(leader)
		in := h.instance(leader)
		last, term := in.LastIndex(), in.CurrentTerm()
		h.beat(a, leader, term+1)
		_ = apply(in, []byte("an entry of the old term"))
		var l raft.Log
		if err := in.log.GetLog(last+1, &l); err == nil && l.Term == term+1 && string(l.Data) == "an entry of the old term" {
			t.Fatal("a leader that is deposed appended an entry in the term of the new one")
		}
	})
}

// TestLateTimeoutNowElectsNobody guards I1: a TimeoutNow of a term that is over is refused (tried: without the
// comparison in promise.timeoutNow the follower becomes a candidate).
func TestLateTimeoutNowElectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		old := h.instance(leader).CurrentTerm()
		h.net.Isolate(nodeName(leader))
		var next storage.NodeID
		h.eventually("another leader", func() bool { next = h.leaderOf(1); return next != 0 && next != leader })
		h.net.HealAll()
		h.eventually("the old leader to follow", func() bool {
			return h.instance(leader).CurrentTerm() > old && h.instance(leader).State() == raft.Follower
		})
		term := h.instance(next).CurrentTerm()
		third := 6 - leader - next
		// The old leader's library asks now for what it began in its own term.
		err := h.instance(leader).transport.TimeoutNow(serverID(third), runner.NodeAddress(third), &raft.TimeoutNowRequest{RPCHeader: headerOf(leader)}, nil)
		if err == nil {
			t.Error("a TimeoutNow of a deposed leader was accepted")
		}
		<-time.After(2 * time.Second)
		if got := h.instance(next); got.State() != raft.Leader || got.CurrentTerm() != term {
			t.Errorf("the leader of term %d is %v in term %d now", term, got.State(), got.CurrentTerm())
		}
	})
}

// TestInstallOfWhatIsHeldGivesNothingUp guards I7: without Transport.holds (tried) a leader's older manifest makes a
// replica forget what it has acknowledged after it.
func TestInstallOfWhatIsHeldGivesNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		if err := h.nodes[leader].replicas.mustGroup(1).checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		for i := range uint32(8) {
			c.write(i*storage.BlockSize, block(byte(i)))
		}
		f, _ := others(leader)
		h.eventually("the follower to have it all", func() bool { return h.instance(f).AppliedIndex() == h.instance(leader).AppliedIndex() })
		before := h.instance(f)
		last := before.LastIndex()
		meta, manifest, err := (&snapshotStore{extents: h.nodes[leader].replicas.mustGroup(1).extents, open: h.nodes[leader].replicas.mustGroup(1).openManifest}).Open(checkpointID)
		if err != nil {
			t.Fatal(err)
		}
		defer manifest.Close()
		if meta.Index >= last {
			t.Fatalf("the manifest is of index %d, the follower at %d: the test shows nothing", meta.Index, last)
		}
		var resp raft.InstallSnapshotResponse
		err = h.instance(leader).transport.InstallSnapshot(serverID(f), runner.NodeAddress(f), &raft.InstallSnapshotRequest{RPCHeader: headerOf(leader),
			SnapshotVersion: runner.SnapshotVersion, Term: h.instance(leader).CurrentTerm(), LastLogIndex: meta.Index, LastLogTerm: meta.Term,
			Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex}, &resp, manifest)
		if err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		h.eventually("the instance", func() bool { return h.instance(f) != nil })
		if got, _ := h.nodes[f].replicas.mustGroup(1).extents.Log().LastIndex(), 0; got < last || h.instance(f) != before {
			t.Fatalf("the log ends at %d, it did at %d", got, last)
		}
	})
}

// TestNothingIsPulledForADeposedLeader: its request is answered with the new term, whatever manifest it names. Without the
// look at the term in Transport.install (tried) the whole of it is pulled first.
func TestNothingIsPulledForADeposedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		f, _ := others(leader)
		in := h.instance(leader)
		var resp raft.InstallSnapshotResponse
		err := in.transport.InstallSnapshot(serverID(f), runner.NodeAddress(f), &raft.InstallSnapshotRequest{RPCHeader: headerOf(leader),
			SnapshotVersion: runner.SnapshotVersion, Term: in.CurrentTerm() - 1, LastLogIndex: 1000, LastLogTerm: 1,
			Configuration: raft.EncodeConfiguration(in.Configuration()), ConfigurationIndex: 1}, &resp,
			strings.NewReader("1-1000-1"))
		if err != nil || resp.Success || resp.Term != in.CurrentTerm() {
			t.Errorf("%+v, %v", resp, err)
		}
	})
}
