package runner

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/peer"
)

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

// simulated starts nodes that can reach each other, without replicas.
func simulated(t *testing.T, nodes int) (ps []*peer.Transport, rs []*Dispatcher, stop func()) {
	n := simnet.New(simnet.Config{Seed: 1, Link: simnet.Link{Delay: 100 * time.Microsecond}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	addr := func(id storage.NodeID) string { return "n" + id.String() + ":1" }
	for i := range nodes {
		id := storage.NodeID(i + 1)
		self := n.Machine("n" + id.String())
		l, err := self.Listen(addr(id))
		if err != nil {
			t.Fatal(err)
		}
		p, err := peer.New(peer.Config{Cluster: storage.ClusterID{0xcc}, Self: id, Listener: l,
			Dial:    func(ctx context.Context, addr string) (net.Conn, error) { return self.Dial(ctx, addr) },
			Resolve: func(id storage.NodeID) (string, bool) { return addr(id), true }})
		if err != nil {
			t.Fatal(err)
		}
		ps, rs = append(ps, p), append(rs, NewDispatcher(p, span, nil))
		running.Go(func() { _ = p.Run(ctx) })
	}
	return ps, rs, func() {
		for _, r := range rs {
			r.Close()
		}
		cancel()
		running.Wait()
	}
}

// twoTransports connects two transports without Raft: what arrives is taken from b's consumer.
func twoTransports(t *testing.T) (a, b *Transport, stop func()) {
	ps, rs, end := simulated(t, 2)
	var ts []*Transport
	for i, p := range ps {
		id := storage.NodeID(i + 1)
		ts = append(ts, NewTransport(TransportConfig{Group: 9, Self: raft.ServerID(id.String()), Node: id, Peers: p, Dispatcher: rs[i], HeartbeatTimeout: span}))
	}
	return ts[0], ts[1], func() {
		for _, tr := range ts {
			_ = tr.Close()
		}
		end()
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
		b.instance.Store(&Instance{Observed: observed{term: 3}})
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

// TestVoteIsHeldUntilItMayLeave: a vote that a promise forbids leaves when the promise ends, in the same election.
// Without the wait of Transport.mayVote (tried) the election fails, and the next one is up to a second later.
func TestVoteIsHeldUntilItMayLeave(t *testing.T) {
	for name, held := range map[string]func(a, b *Transport) *Transport{
		"its own":   func(a, _ *Transport) *Transport { return a },
		"another's": func(_, b *Transport) *Transport { return b },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, stop := twoTransports(t)
				defer stop()
				<-time.After(time.Second) // past the promises of the start
				go func() {
					rpc := <-b.Consumer()
					rpc.Respond(&raft.RequestVoteResponse{Term: 7, Granted: true}, nil)
				}()
				bound := held(a, b)
				bound.promise.success(6, time.Now())
				began := time.Now()
				var resp raft.RequestVoteResponse
				err := a.RequestVote("2", "2", &raft.RequestVoteRequest{RPCHeader: headerOf(1), Term: 7}, &resp)
				if err != nil || !resp.Granted {
					t.Fatalf("%+v, %v", resp, err)
				}
				if took := time.Since(began); took < span {
					t.Errorf("the vote left after %v, the promise stands for %v", took, span)
				}
			})
		})
	}
}

// TestVoteIsNotHeldForALivingLeader: a promise that is renewed ends the wait for it.
func TestVoteIsNotHeldForALivingLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, stop := twoTransports(t)
		defer stop()
		<-time.After(time.Second)
		end := time.Now().Add(5 * time.Second)
		go func() {
			for time.Now().Before(end) {
				a.promise.success(6, time.Now())
				<-time.After(100 * time.Millisecond)
			}
		}()
		synctest.Wait()
		began := time.Now()
		if a.mayVote(7, true, false) || time.Since(began) > span {
			t.Errorf("a vote against a leader that is heard waited for %v", time.Since(began))
		}
		<-time.After(time.Until(end))
	})
}

func headerOf(n storage.NodeID) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.String()), Addr: []byte(NodeAddress(n))}
}

// observed is a follower of a term, without the library.
type observed struct {
	Observed
	term uint64
}

func (observed) State() raft.RaftState { return raft.Follower }
func (o observed) CurrentTerm() uint64 { return o.term }

// TestTimeoutNowOfALostTerm guards I1: what a deposed leader still asks for is of the term that it led, whose lease it gives up, and
// is refused (tried: the current term in Transport.TimeoutNow).
func TestTimeoutNowOfALostTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, stop := twoTransports(t)
		defer stop()
		a.leads(3)
		a.lease.begin(5) // another leads; it is heard
		for _, tr := range []*Transport{a, b} {
			tr.instance.Store(&Instance{Observed: observed{term: 5}})
		}
		go func() { // the library would become a candidate
			select {
			case rpc := <-b.Consumer():
				t.Error("a TimeoutNow of a deposed leader was accepted")
				rpc.Respond(nil, nil)
			case <-b.ctx.Done():
			}
		}()
		<-time.After(time.Second) // there is a connection
		err := a.TimeoutNow("2", "2", &raft.TimeoutNowRequest{RPCHeader: headerOf(1)}, nil)
		if err == nil {
			t.Error("a TimeoutNow of a deposed leader was answered")
		}
		if a.lease.transferred {
			t.Errorf("a replica that led term 3 gave up the lease of term %d", a.lease.term)
		}
	})
}

// TestClosedPipelineEndsItsReader guards pipeline.end: where the library's sender was parked, nobody tells the reader of the answers
// to stop. The last answer, which is no Success, ends it.
func TestClosedPipelineEndsItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, stop := twoTransports(t)
		defer stop()
		p, err := a.AppendEntriesPipeline("2", "2")
		if err == nil {
			err = p.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		select {
		case f := <-p.Consumer():
			if f.Error() == nil || f.Response().Success {
				t.Errorf("the last answer is %+v, %v", f.Response(), f.Error())
			}
		default:
			t.Error("a pipeline that is closed gives no last answer")
		}
	})
}
