package replication

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/peer"
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
	return h.nodes[n].host.mustGroup(1).inst.Load()
}

func serverID(n storage.NodeID) raft.ServerID { return ServerID(storeID(n), storage.Incarnation(n)) }

func headerOf(n storage.NodeID) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(serverID(n)), Addr: []byte(NodeAddress(n))}
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
		last, term := in.raft.LastIndex(), in.raft.CurrentTerm()
		in.transport.serveHeartbeat(&raft.AppendEntriesRequest{RPCHeader: headerOf(a), Term: term + 1, Leader: []byte(NodeAddress(a))})
		_ = in.raft.Apply([]byte("an entry of the old term"), 0).Error()
		var l raft.Log
		if err := in.log.GetLog(last+1, &l); err == nil && l.Term == term+1 && string(l.Data) == "an entry of the old term" {
			t.Fatal("a leader that is deposed appended an entry in the term of the new one")
		}
	})
}

// TestCommitIndexCountsUpToTheRequest guards I1: without the min of Transport.bringIntoLine (tried) a follower commits
// entries of a deposed leader beyond what the request has checked.
func TestCommitIndexCountsUpToTheRequest(t *testing.T) {
	tr := &Transport{cfg: TransportConfig{Checkpoint: func() uint64 { return 0 }}}
	for _, c := range []struct{ prev, entries, commit, want uint64 }{
		{10, 0, 13, 10}, {10, 2, 13, 12}, {10, 3, 13, 13}, {10, 4, 13, 13}, {0, 0, 13, 0},
	} {
		req := &raft.AppendEntriesRequest{PrevLogEntry: c.prev, LeaderCommitIndex: c.commit, Entries: make([]*raft.Log, c.entries)}
		tr.bringIntoLine(req)
		if req.LeaderCommitIndex != c.want {
			t.Errorf("%d entries after %d, commit %d: counts %d, want %d", c.entries, c.prev, c.commit, req.LeaderCommitIndex, c.want)
		}
	}
}

func TestEntriesBelowTheCheckpointAreLeftOut(t *testing.T) {
	tr := &Transport{cfg: TransportConfig{Checkpoint: func() uint64 { return 115 }}}
	for _, c := range []struct{ prev, entries, wantPrev, wantFirst, wantEntries uint64 }{
		{110, 10, 0, 116, 5}, {110, 5, 0, 0, 0}, {110, 2, 0, 0, 0}, {115, 3, 0, 116, 3}, {116, 3, 116, 117, 3}, {110, 0, 0, 0, 0},
	} {
		req := &raft.AppendEntriesRequest{PrevLogEntry: c.prev, PrevLogTerm: 3}
		for i := range c.entries {
			req.Entries = append(req.Entries, &raft.Log{Index: c.prev + 1 + i, Term: 3})
		}
		tr.bringIntoLine(req)
		if req.PrevLogEntry != c.wantPrev || uint64(len(req.Entries)) != c.wantEntries ||
			c.wantEntries > 0 && req.Entries[0].Index != c.wantFirst {
			t.Errorf("%d entries after %d: got %d after %d", c.entries, c.prev, len(req.Entries), req.PrevLogEntry)
		}
	}
}

// TestLateTimeoutNowElectsNobody guards I1: a TimeoutNow of a term that is over is refused (tried: without the
// comparison in promise.timeoutNow the follower becomes a candidate), and one that a deposed leader sends names the term
// that it led (tried: the current term in Transport.TimeoutNow).
func TestLateTimeoutNowElectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		c.write(0, block(1))
		old := h.instance(leader).raft.CurrentTerm()
		h.net.Isolate(nodeName(leader))
		var next storage.NodeID
		h.eventually("another leader", func() bool { next = h.leaderOf(1); return next != 0 && next != leader })
		h.net.HealAll()
		h.eventually("the old leader to follow", func() bool {
			return h.instance(leader).raft.CurrentTerm() > old && h.instance(leader).raft.State() == raft.Follower
		})
		term := h.instance(next).raft.CurrentTerm()
		third := 6 - leader - next
		// The old leader's library asks now for what it began in its own term.
		err := h.instance(leader).transport.TimeoutNow(serverID(third), NodeAddress(third), &raft.TimeoutNowRequest{RPCHeader: headerOf(leader)}, nil)
		if err == nil {
			t.Error("a TimeoutNow of a deposed leader was accepted")
		}
		if l := h.instance(leader).transport.lease; l.transferred && l.term != old {
			t.Errorf("a replica that led term %d gave up the lease of term %d", old, l.term)
		}
		<-time.After(2 * time.Second)
		if got := h.instance(next); got.raft.State() != raft.Leader || got.raft.CurrentTerm() != term {
			t.Errorf("the leader of term %d is %v in term %d now", term, got.raft.State(), got.raft.CurrentTerm())
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
		if err := h.nodes[leader].host.mustGroup(1).checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		for i := range uint32(8) {
			c.write(i*storage.BlockSize, block(byte(i)))
		}
		f, _ := others(leader)
		h.eventually("the follower to have it all", func() bool { return h.instance(f).raft.AppliedIndex() == h.instance(leader).raft.AppliedIndex() })
		before := h.instance(f)
		last := before.raft.LastIndex()
		meta, manifest, err := (&snapshotStore{extents: h.nodes[leader].host.mustGroup(1).extents, open: h.nodes[leader].host.mustGroup(1).openManifest}).Open(checkpointID)
		if err != nil {
			t.Fatal(err)
		}
		defer manifest.Close()
		if meta.Index >= last {
			t.Fatalf("the manifest is of index %d, the follower at %d: the test shows nothing", meta.Index, last)
		}
		var resp raft.InstallSnapshotResponse
		err = h.instance(leader).transport.InstallSnapshot(serverID(f), NodeAddress(f), &raft.InstallSnapshotRequest{RPCHeader: headerOf(leader),
			SnapshotVersion: snapshotVersion, Term: h.instance(leader).raft.CurrentTerm(), LastLogIndex: meta.Index, LastLogTerm: meta.Term,
			Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex}, &resp, manifest)
		if err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		h.eventually("the instance", func() bool { return h.instance(f) != nil })
		if got, _ := h.nodes[f].host.mustGroup(1).extents.Log().LastIndex(), 0; got < last || h.instance(f) != before {
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
		err := in.transport.InstallSnapshot(serverID(f), NodeAddress(f), &raft.InstallSnapshotRequest{RPCHeader: headerOf(leader),
			SnapshotVersion: snapshotVersion, Term: in.raft.CurrentTerm() - 1, LastLogIndex: 1000, LastLogTerm: 1,
			Configuration: raft.EncodeConfiguration(in.raft.GetConfiguration().Configuration()), ConfigurationIndex: 1}, &resp,
			strings.NewReader("1-1000-1"))
		if err != nil || resp.Success || resp.Term != in.raft.CurrentTerm() {
			t.Errorf("%+v, %v", resp, err)
		}
	})
}

// twoTransports connects two transports without Raft: what arrives is taken from b's consumer.
func twoTransports(t *testing.T) (a, b *Transport, stop func()) {
	n := simnet.New(simnet.Config{Seed: 1, Link: simnet.Link{Delay: 100 * time.Microsecond}})
	ctx, cancel := context.WithCancel(context.Background())
	var ended []chan struct{}
	var ts []*Transport
	var routers []*Router
	for id := storage.NodeID(1); id <= 2; id++ {
		self := n.Host(nodeName(id))
		l, err := self.Listen(nodeName(id) + ":1")
		if err != nil {
			t.Fatal(err)
		}
		p, err := peer.New(peer.Config{Cluster: simCluster, Self: id, Listener: l,
			Dial:    func(ctx context.Context, addr string) (net.Conn, error) { return self.Dial(ctx, addr) },
			Resolve: func(id storage.NodeID) (string, bool) { return nodeName(id) + ":1", true }})
		if err != nil {
			t.Fatal(err)
		}
		r := NewRouter(p, span, nil)
		ts = append(ts, NewTransport(TransportConfig{Group: 9, Self: raft.ServerID(fmt.Sprint(id)), Node: id, Peers: p, Router: r, HeartbeatTimeout: span}))
		routers = append(routers, r)
		end := make(chan struct{})
		ended = append(ended, end)
		go func() {
			defer close(end)
			_ = p.Run(ctx)
		}()
	}
	return ts[0], ts[1], func() {
		for i := range ts {
			ts[i].Close()
			routers[i].Close()
		}
		cancel()
		for _, end := range ended {
			<-end
		}
	}
}

// TestInlineSnapshotOfAnySize guards the catalog's way of catching up: with the snapshot in one frame (tried) one of more
// than 8 MiB is refused for ever.
func TestInlineSnapshotOfAnySize(t *testing.T) {
	for _, size := range []int{0, 1, snapshotChunkBytes, snapshotChunkBytes + 1, 100 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, stop := twoTransports(t)
				defer stop()
				content := make([]byte, size)
				for i := 0; i < size; i += 1000 {
					content[i] = byte(i / 1000)
				}
				go func() {
					rpc := <-b.Consumer()
					got, err := io.ReadAll(rpc.Reader)
					req := rpc.Command.(*raft.InstallSnapshotRequest)
					if err != nil || !bytes.Equal(got, content) || req.Size != int64(size) {
						t.Errorf("got %d bytes (size %d), %v", len(got), req.Size, err)
					}
					rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, nil)
				}()
				var resp raft.InstallSnapshotResponse
				err := a.InstallSnapshot("2", "2", &raft.InstallSnapshotRequest{RPCHeader: headerOf(1), SnapshotVersion: 1,
					Configuration: raft.EncodeConfiguration(voters("1", "2"))}, &resp, bytes.NewReader(content))
				if err != nil || !resp.Success {
					t.Fatalf("%+v, %v", resp, err)
				}
				b.chunks.mu.Lock()
				defer b.chunks.mu.Unlock()
				if b.chunks.bytes != 0 {
					t.Errorf("%d bytes are kept afterwards", b.chunks.bytes)
				}
			})
		})
	}
}

func TestChunksThatDoNotContinueAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c snapshotChunks
		add := func(from storage.NodeID, part installPart, n int) error {
			_, err := c.add(from, part, make([]byte, n))
			return err
		}
		if err := add(1, installPart{stream: 5}, 10); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"a gap":          add(1, installPart{stream: 5, offset: 11}, 1),
			"another stream": add(1, installPart{stream: 6, offset: 10}, 1),
			"another sender": add(2, installPart{stream: 5, offset: 10}, 1),
			"nothing":        add(1, installPart{stream: 5, offset: 10}, 0),
		} {
			if err == nil {
				t.Errorf("%s was taken", name)
			}
		}
		<-time.After(snapshotSilence + time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.bytes != 0 || c.content != nil {
			t.Error("an unfinished snapshot is kept for ever")
		}
	})
}

// TestAppendWindow guards that a follower which lags is brought up: without admitAppend (tried) more is sent at once than
// its queue takes, all of it again and again.
func TestAppendWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, stop := twoTransports(t)
		defer stop()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { // a follower that takes its time
			for {
				select {
				case rpc := <-b.Consumer():
					<-time.After(20 * time.Millisecond)
					rpc.Respond(&raft.AppendEntriesResponse{Success: true, Term: 3}, nil)
				case <-ctx.Done():
					return
				}
			}
		}()
		req := &raft.AppendEntriesRequest{RPCHeader: headerOf(1), Term: 3, PrevLogEntry: 4, PrevLogTerm: 3}
		data := make([]byte, 1<<20)
		for i := range uint64(64) {
			req.Entries = append(req.Entries, &raft.Log{Index: 5 + i, Term: 3, Data: data})
		}
		var resp raft.AppendEntriesResponse
		var err error
		for range 3 { // the first finds no connection
			if err = a.AppendEntries("2", "2", req, &resp); err == nil {
				break
			}
			<-time.After(time.Second)
		}
		if err != nil || !resp.Success {
			t.Fatalf("64 MiB in one request: %+v, %v", resp, err)
		}
	})
}

// TestHeartbeatWithoutAnswerEnds guards the leader's clock: without the timer of Transport.AppendEntries (tried) a
// heartbeat that the other node keeps holds back all later ones.
func TestHeartbeatWithoutAnswerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, stop := twoTransports(t)
		defer stop()
		block := make(chan struct{})
		defer close(block)
		hold := func(raft.RPC) { <-block }
		b.SetHeartbeatHandler(hold)
		b.SetInstance(Instance{Term: func() uint64 { return 3 }})
		for range 2 {
			start := time.Now()
			err := a.AppendEntries("2", "2", &raft.AppendEntriesRequest{RPCHeader: headerOf(1), Term: 3}, &raft.AppendEntriesResponse{})
			if err == nil || time.Since(start) > 3*span {
				t.Fatalf("ended after %v with %v", time.Since(start), err)
			}
			<-time.After(time.Second)
		}
	})
}
