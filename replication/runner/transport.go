package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/peer"
)

const (
	// appendFrameBytes bounds the entry data of one frame; a larger AppendEntries travels as several requests.
	appendFrameBytes = 4 << 20
	// maxPipelined bounds the unanswered requests of one pipeline.
	maxPipelined = 128
	// appendWindowBytes bounds the entry data on its way to one follower. The receiver's queue of a group holds twice
	// as much (peer.Config.MaxGroupQueueBytes): without the window a follower that lags is sent what it must refuse, and
	// never catches up.
	appendWindowBytes = 8 << 20
	// roomPatience bounds the wait for room for the entries of a request, from its arrival: half of what its sender
	// waits for the answer.
	roomPatience = appendPatience / 2
	// appendPatience bounds the wait for the answer to a request with entries, and for room in the window.
	appendPatience = 10 * time.Second
)

// TransportConfig describes one group's transport.
type TransportConfig struct {
	Group            storage.GroupID
	Self             raft.ServerID  // this replica
	Node             storage.NodeID // this node; also Raft's address
	Peers            *peer.Transport
	Dispatcher       *Dispatcher // merged heartbeats; the transport is entered there
	HeartbeatTimeout time.Duration
	Logger           *slog.Logger

	// Gate says when the local log holds an entry; nil for a log store that is durable when StoreLogs returns.
	Gate Gate
	// Silent reports that this replica must not be heard (failed or hung disk); nil for never.
	Silent func() bool
	// FreeBytes is sent with every answer: what the leader's node may take for granted that this replica's store can take. Below zero it is the
	// complement of that, and says that waiting makes no more. Nil: unknown.
	FreeBytes func() int64
	// Told is told what a follower's answer has said so, and Acked, after it, that a follower holds the log of a term durably up to
	// index. Heard is told which node has sent what only leaders send. None of them may block; nil for nobody.
	Told  func(server raft.ServerID, bytes int64)
	Acked func(server raft.ServerID, term, index uint64)
	Heard func(leader storage.NodeID)
	// Room returns when entries may be taken, or why not before ctx is done; nil for always. It never waits for anything
	// that needs this transport.
	Room func(ctx context.Context) error
	// Checkpoint is the index of the durable checkpoint, below which the log store may hold nothing; nil for 0.
	Checkpoint func() uint64
	// Pull brings the named manifest of another node into a staging area and returns what Restore will be given.
	// Nil: snapshots travel inline, as the library reads and writes them.
	Pull func(ctx context.Context, from storage.NodeID, manifest string, req *raft.InstallSnapshotRequest) (string, error)
	// GiveUp forgets what Pull has brought, unless it was installed; nil for nothing.
	GiveUp func(name string)
	// Verify returns why the data of a command must not be stored: it does not have the checksums that it carries. Nil: it
	// carries none.
	Verify func(data []byte) error
	// OwnSums says that Verify covers every byte of a command: frames with nothing but commands go without a checksum.
	OwnSums bool
	// Damaged is told when an entry of this replica's own log fails Verify, after a follower has refused it; nil for nobody. It
	// must not block.
	Damaged func(error)
	// Trace notes where entries are; nil for nothing.
	Trace *Trace
	// Installed is called after a snapshot was installed by the library; nil for nothing.
	Installed func(req *raft.InstallSnapshotRequest)
}

// Transport is raft.Transport of one replica. It holds acknowledgements (gate), keeps promises (promise), books the
// leader's lease (lease), merges heartbeats (Dispatcher), and splits requests that are too long for a frame.
type Transport struct {
	cfg      TransportConfig
	promise  *promise
	lease    *lease
	consumer chan raft.RPC
	ctx      context.Context // done when the transport is closed
	cancel   context.CancelFunc
	instance atomic.Pointer[Instance] // once it runs
	beat     atomic.Pointer[func(raft.RPC)]
	windows  sync.Map                   // raft.ServerID -> *semaphore.Weighted: appendWindowBytes of each follower
	told     atomic.Pointer[leaderTold] // what leaders have told of their commit index; nil: nothing yet
	ledTerm  atomic.Uint64              // highest term in which this replica has sent an AppendEntries
	beatTerm sync.Map                   // raft.ServerID -> uint64: term of the last heartbeat to each follower

	beating chan struct{}  // capacity 1: asks runBeat to verify
	close   func()         // once
	wg      sync.WaitGroup // runBeat

	installing sync.Mutex // one snapshot at a time
	chunks     snapshotChunks
}

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
)

// NewTransport makes the transport of one replica and enters it in the dispatcher. Close takes it out again.
func NewTransport(cfg TransportConfig) *Transport {
	if cfg.Gate == nil {
		cfg.Gate = openGate
	}
	if cfg.Silent == nil {
		cfg.Silent = func() bool { return false }
	}
	if cfg.FreeBytes == nil {
		cfg.FreeBytes = func() int64 { return 0 }
	}
	if cfg.Told == nil {
		cfg.Told = func(raft.ServerID, int64) {}
	}
	if cfg.Acked == nil {
		cfg.Acked = func(raft.ServerID, uint64, uint64) {}
	}
	if cfg.Heard == nil {
		cfg.Heard = func(storage.NodeID) {}
	}
	if cfg.Room == nil {
		cfg.Room = func(context.Context) error { return nil }
	}
	if cfg.Checkpoint == nil {
		cfg.Checkpoint = func() uint64 { return 0 }
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	t := &Transport{cfg: cfg, promise: newPromise(cfg.HeartbeatTimeout, time.Now()),
		lease: newLease(cfg.HeartbeatTimeout), consumer: make(chan raft.RPC), beating: make(chan struct{}, 1)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.close = sync.OnceFunc(func() {
		t.cfg.Dispatcher.remove(t)
		t.cancel()
		t.wg.Wait()
	})
	cfg.Dispatcher.add(t)
	return t
}

// attach gives the transport its instance, once.
func (t *Transport) attach(i *Instance) {
	t.instance.Store(i)
	t.wg.Go(func() { t.runBeat(i) })
}

// runBeat has the library verify its leadership whenever beatOn asks, one request at a time: it then asks for a heartbeat
// to every follower at once, or as soon as the one on its way is answered. What it finds out by the answers it would also
// find out by those to the requests that it sends anyway.
func (t *Transport) runBeat(i *Instance) {
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-t.beating:
		}
		// No leader any more: nothing to do. No context: it ends with the lease, or with the instance.
		_, _ = Do(context.Background(), i, "verify leader", (*raft.Raft).VerifyLeader)
	}
}

// beatOn asks the library for the next heartbeats without a pause. It does not block.
func (t *Transport) beatOn() {
	select {
	case t.beating <- struct{}{}:
	default:
	}
}

// firstBeat notes the term of a heartbeat to a follower and reports whether it is the first of that term: a new leader
// is to be heard at once.
func (t *Transport) firstBeat(id raft.ServerID, term uint64) bool {
	last, _ := t.beatTerm.Swap(id, term)
	return last != term
}

// Close takes the transport out of the dispatcher and releases everyone who waits in it.
func (t *Transport) Close() error {
	t.close()
	return nil
}

// Consumer is the channel from which Raft takes requests.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr is the node's identifier in decimal.
func (t *Transport) LocalAddr() raft.ServerAddress { return NodeAddress(t.cfg.Node) }

// EncodePeer is the address as it stands.
func (t *Transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer is the inverse of EncodePeer.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler takes Raft's fast path for heartbeats.
func (t *Transport) SetHeartbeatHandler(fn func(raft.RPC)) { t.beat.Store(&fn) }

// ErrSilent is why a replica gives no answer.
var ErrSilent = errors.New("this replica keeps silent: its disk has failed or hangs")

func (t *Transport) unavailable(op string, err error) error {
	return storage.E(op, storage.KindUnavailable, "group "+t.cfg.Group.String(), err)
}

func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && r.LeaderCommitIndex == 0
}

// AppendEntries sends a request and waits for its answer, for a heartbeat twice the heartbeat time-out at most. resp is
// filled only when the answer came in time: the library uses it again.
//
// A request other than a heartbeat that gets no answer is turned into a probe, which is sent until it is answered or this
// replica leads the follower no longer. The library would pause instead, each time twice as long up to 10.24 s, and a
// follower that was away would not count for so long after it is back, although heartbeats reach it. The probe is the same
// request without its entries, which are the caller's to send again: a dead follower holds no memory.
func (t *Transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse) error {
	node, err := ParseNodeAddress(target)
	if err != nil {
		return err
	}
	t.leads(args.Term)
	beat := isHeartbeat(args)
	for n := 0; ; n++ {
		err := t.appendOnce(id, node, args, resp, beat)
		if err == nil || beat || !t.pauseProbe(id, args.Term, n) {
			return err
		}
		args.Entries = nil
		if !t.refresh(args) {
			return err
		}
	}
}

// refresh has a probe tell what is committed by now: the follower learns from it how far behind it is, and was ready at once when it was
// told what was committed when it went away. It reports whether this replica still leads the term.
//
// Guards I7: what was committed is read first. Of a replica that does not lead any more it may be another log's.
func (t *Transport) refresh(args *raft.AppendEntriesRequest) bool {
	i := t.instance.Load()
	if i == nil {
		return false
	}
	commit := i.CommitIndex()
	if !i.LeadsTerm(args.Term) {
		return false
	}
	args.LeaderCommitIndex = max(args.LeaderCommitIndex, commit)
	return true
}

// appendOnce is one attempt of AppendEntries.
func (t *Transport) appendOnce(id raft.ServerID, node storage.NodeID, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse, beat bool) error {
	done := make(chan error, 1)
	fn := func(err error) { done <- err }
	answer, patience := new(raft.AppendEntriesResponse), appendPatience
	if beat {
		patience = 2 * t.cfg.HeartbeatTimeout
		t.cfg.Dispatcher.heartbeat(t, node, id, args, answer, fn)
	} else {
		patience = max(patience, 4*t.cfg.HeartbeatTimeout)
		req := *args // its slice of entries is made anew for every request
		t.startAppend(id, node, &req, answer, fn)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		if err == nil {
			*resp = *answer
		}
		return err
	case <-timer.C:
		return t.unavailable("append entries", fmt.Errorf("no answer for %v", patience))
	case <-t.ctx.Done():
		return raft.ErrTransportShutdown
	}
}

// minProbePause is the pause before the second attempt to reach a follower; it doubles up to half a heartbeat time-out.
const minProbePause = 10 * time.Millisecond

// pauseProbe waits before attempt n+2 to reach a follower, and reports whether there is one to be: whether this replica
// still leads that term, with the follower in its configuration.
func (t *Transport) pauseProbe(id raft.ServerID, term uint64, n int) bool {
	if clock.Sleep(t.ctx, min(minProbePause<<min(n, 10), t.cfg.HeartbeatTimeout/2)) != nil {
		return false
	}
	i := t.instance.Load()
	if i == nil || !i.LeadsTerm(term) {
		return false
	}
	for _, s := range i.Configuration().Servers {
		if s.ID == id {
			return true
		}
	}
	return false
}

// awaitPeer returns when a follower has answered a heartbeat, or is not this leader's to reach any more: after a request
// that failed, so that the library does not repeat it, with ever longer pauses, while nobody is there.
func (t *Transport) awaitPeer(id raft.ServerID, target raft.ServerAddress, term uint64) {
	node, err := ParseNodeAddress(target)
	if err != nil {
		return
	}
	for n := 0; t.pauseProbe(id, term, n); n++ {
		if t.appendOnce(id, node, t.heartbeat(term), &raft.AppendEntriesResponse{}, true) == nil {
			return
		}
	}
}

// heartbeat returns one of this replica's, as the library makes them.
func (t *Transport) heartbeat(term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{Term: term, RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax,
		ID: []byte(t.cfg.Self), Addr: []byte(t.LocalAddr())}}
}

// leads notes that this replica leads the term.
func (t *Transport) leads(term uint64) {
	for old := t.ledTerm.Load(); term > old && !t.ledTerm.CompareAndSwap(old, term); {
		old = t.ledTerm.Load()
	}
}

// startAppend sends args and calls done once: with nil when resp is filled and may be counted by the library. It waits
// while appendWindowBytes are on their way to the follower.
func (t *Transport) startAppend(id raft.ServerID, node storage.NodeID, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse, done func(error)) {
	if t.cfg.Silent() {
		done(t.unavailable("append entries", ErrSilent))
		return
	}
	parts := splitAppend(args)
	join := &appendJoin{left: len(parts), resp: resp, done: func(err error) {
		if err == nil && resp.Success {
			t.cfg.Trace.passAll(atCounted, args.Entries)
		}
		done(err)
	}}
	for _, part := range parts {
		release, err := t.admitAppend(id, part)
		if err != nil {
			join.add(raft.AppendEntriesResponse{}, err)
			continue
		}
		sent := time.Now()
		header, payload := encodeAppend(id, part)
		req := &peer.Request{Method: methodRaftAppend, Group: t.cfg.Group, Header: header, Payload: payload,
			OwnSums: t.ownSums(part)}
		t.cfg.Trace.passAll(atSent, part.Entries)
		t.cfg.Peers.Go(node, peer.Data, req, func(r *peer.Response, err error) {
			release()
			if t.cfg.Trace != nil && err == nil && len(part.Entries) > 0 {
				t.cfg.Trace.tripped(node, time.Since(sent))
			}
			t.answered(id, part, sent, r, err, join)
		})
	}
}

// ownSums reports whether every byte of the request's entries is covered by checksums that the entries carry.
func (t *Transport) ownSums(r *raft.AppendEntriesRequest) bool {
	if t.cfg.Verify == nil || !t.cfg.OwnSums {
		return false
	}
	for _, l := range r.Entries {
		if l.Type != raft.LogCommand {
			return false
		}
	}
	return true
}

// verify returns why a request's entries must not be stored here: one of them is not what its proposer made.
func (t *Transport) verify(r *raft.AppendEntriesRequest) error {
	if t.cfg.Verify == nil {
		return nil
	}
	for _, l := range r.Entries {
		if l.Type != raft.LogCommand {
			continue
		}
		if err := t.cfg.Verify(l.Data); err != nil {
			return storage.E("append entries", storage.KindOf(err), "group "+t.cfg.Group.String(), fmt.Errorf("entry %d of term %d: %w", l.Index, l.Term, err))
		}
	}
	return nil
}

// refused looks at the entries that a follower has refused as damaged. On the way they are sent again. When they are
// damaged here, in this node's memory or log, no follower ever takes them: this replica must not lead any more, so that
// another one does, whose log does not hold them.
func (t *Transport) refused(req *raft.AppendEntriesRequest, err error) {
	if kind := storage.KindOf(err); kind != storage.KindCorrupt && kind != storage.KindInvalid && kind != storage.KindUnsupported {
		return
	}
	if own := t.verify(req); own != nil && t.cfg.Damaged != nil {
		t.cfg.Damaged(own)
	}
}

// admitAppend takes room for the request's data in the follower's window.
func (t *Transport) admitAppend(id raft.ServerID, r *raft.AppendEntriesRequest) (release func(), err error) {
	var n int64
	for _, l := range r.Entries {
		n += int64(len(l.Data))
	}
	if n == 0 {
		return func() {}, nil
	}
	n = min(n, appendWindowBytes)
	w, ok := t.windows.Load(id)
	if !ok {
		w, _ = t.windows.LoadOrStore(id, semaphore.NewWeighted(appendWindowBytes))
	}
	window := w.(*semaphore.Weighted)
	if !window.TryAcquire(n) {
		ctx, cancel := context.WithTimeout(t.ctx, appendPatience)
		defer cancel()
		if err := window.Acquire(ctx, n); err != nil {
			return nil, t.unavailable("append entries", fmt.Errorf("%d bytes are unanswered: %w", appendWindowBytes, err))
		}
	}
	return func() { window.Release(n) }, nil
}

// answered takes the answer to one part. A Success with entries is passed on only when this node's own log is
// durable up to the last of them: the leader's half of the held acknowledgement.
func (t *Transport) answered(id raft.ServerID, req *raft.AppendEntriesRequest, sent time.Time, r *peer.Response,
	err error, join *appendJoin) {
	var resp raft.AppendEntriesResponse
	if err == nil {
		var free int64
		if free, err = decodeAppendResponse(r.Header, &resp); err == nil {
			t.cfg.Told(id, free) // before Acked: what is acknowledged is part of it
		}
		r.Release()
	}
	if err != nil || !resp.Success {
		if err != nil {
			t.refused(req, err)
		}
		join.add(resp, err)
		return
	}
	n := len(req.Entries)
	if n == 0 {
		t.lease.success(id, req.Term, sent, 0)
		join.add(resp, nil)
		return
	}
	last := req.Entries[n-1]
	t.lease.success(id, req.Term, sent, last.Index)
	t.cfg.Acked(id, req.Term, last.Index)
	t.cfg.Trace.passAll(atAnswered, req.Entries)
	// I1: take the gate out, and a leader counts itself for what its disk does not hold.
	if !t.cfg.Gate(last.Index, last.Term, func(err error) { join.add(resp, err) }) {
		join.add(resp, t.unavailable("append entries", fmt.Errorf("entry %d of term %d is no longer in the log", last.Index, last.Term)))
	}
}

// appendJoin collects the answers to the parts of one request: the first failure, or the last Success.
type appendJoin struct {
	mu   sync.Mutex
	left int
	bad  bool
	err  error
	resp *raft.AppendEntriesResponse
	done func(error)
}

func (j *appendJoin) add(resp raft.AppendEntriesResponse, err error) {
	j.mu.Lock()
	j.left--
	if !j.bad {
		j.err = err
		j.bad = err != nil || !resp.Success
		if resp.LastLog >= j.resp.LastLog || j.bad {
			*j.resp = resp
		}
	}
	last := j.left == 0
	j.mu.Unlock()
	if last {
		j.done(j.err)
	}
}

// splitAppend cuts a request into consecutive ones whose data fits a frame.
func splitAppend(r *raft.AppendEntriesRequest) []*raft.AppendEntriesRequest {
	total := 0
	for _, l := range r.Entries {
		total += len(l.Data)
	}
	if total <= appendFrameBytes {
		return []*raft.AppendEntriesRequest{r}
	}
	var parts []*raft.AppendEntriesRequest
	prevIndex, prevTerm := r.PrevLogEntry, r.PrevLogTerm
	for first := 0; first < len(r.Entries); {
		n, size := first, 0
		for n < len(r.Entries) && (n == first || size+len(r.Entries[n].Data) <= appendFrameBytes) {
			size += len(r.Entries[n].Data)
			n++
		}
		part := *r
		part.Entries = r.Entries[first:n]
		part.PrevLogEntry, part.PrevLogTerm = prevIndex, prevTerm
		parts = append(parts, &part)
		prevIndex, prevTerm = r.Entries[n-1].Index, r.Entries[n-1].Term
		first = n
	}
	return parts
}

// bringIntoLine changes a request so that the library takes it for what it is.
//
// The library sets its commit index to the smaller of the leader's and its own last index. A request whose entries end
// below the follower's log says nothing about the rest of that log, which may be of a deposed leader, so the leader's
// index counts up to the request's own end only.
//
// A log store that was opened anew holds nothing at and below its checkpoint at c, and the library refuses a request
// whose preceding entry it cannot find. But everything up to c is committed, so every leader's log agrees with it:
// entries up to c are left out, and so is the check. Without this a follower that restarted is never brought up again
// while the leader's log reaches back to its beginning.
func (t *Transport) bringIntoLine(req *raft.AppendEntriesRequest) {
	end := req.PrevLogEntry + uint64(len(req.Entries))
	req.LeaderCommitIndex = min(req.LeaderCommitIndex, end)
	c := t.cfg.Checkpoint()
	if req.PrevLogEntry == 0 || req.PrevLogEntry > c {
		return
	}
	skip := min(c-req.PrevLogEntry, uint64(len(req.Entries)))
	req.Entries = req.Entries[skip:]
	req.PrevLogEntry, req.PrevLogTerm = 0, 0
}

// leaderTold is what leaders have told of their commit index. A value is not changed once it is shared.
type leaderTold struct {
	commit uint64
	at     time.Time
}

// noteCommit notes a leader's commit index, which the library caps by what the follower has. Requests of a group come one
// after another.
func (t *Transport) noteCommit(commit uint64, now time.Time) {
	if old := t.told.Load(); old != nil {
		commit = max(commit, old.commit)
	}
	t.told.Store(&leaderTold{commit, now})
}

// LeaderCommit returns the highest commit index that was told, and when one was last told.
func (t *Transport) LeaderCommit() (commit uint64, at time.Time) {
	if told := t.told.Load(); told != nil {
		return told.commit, told.at
	}
	return 0, time.Time{}
}

// serveAppend hands a leader's request to Raft and answers when the answer may leave.
func (t *Transport) serveAppend(in *peer.Inbound, req *raft.AppendEntriesRequest) {
	taken := time.Now()
	t.cfg.Heard(in.From)
	t.noteCommit(req.LeaderCommitIndex, taken)
	t.bringIntoLine(req)
	if in.OwnSums && !t.ownSums(req) {
		in.ReplyError(storage.E("append entries", storage.KindInvalid, "group "+t.cfg.Group.String(), errors.New(
			"entries without checksums in a frame without one")))
		return
	}
	// I1: take this out, and a replica acknowledges what it cannot apply, or cannot read.
	switch err := t.verify(req); {
	case errors.Is(err, storage.ErrUnsupported): // sound, and of a later version
		in.ReplyError(err)
		return
	case err != nil:
		in.ReplyDamaged(err)
		return
	}
	if err := t.awaitRoom(in, req); err != nil {
		in.ReplyError(err)
		return
	}
	out, err := t.deliver(t.ctx, raft.RPC{Command: req})
	if err != nil {
		in.ReplyError(err)
		return
	}
	resp := out.(*raft.AppendEntriesResponse)
	if !resp.Success {
		in.Reply(encodeAppendResponse(resp, t.cfg.FreeBytes()), nil)
		return
	}
	if len(req.Entries) == 0 {
		t.replySuccess(in, req.Term, resp, nil)
		return
	}
	last := req.Entries[len(req.Entries)-1]
	reply := func(err error) { t.replySuccess(in, req.Term, resp, err) }
	if t.cfg.Trace != nil {
		reply = t.timed(in.Received, taken, reply)
	}
	// I1: take the gate out, and a follower acknowledges what its disk does not hold.
	if !t.cfg.Gate(last.Index, last.Term, reply) {
		in.ReplyError(t.unavailable("append entries", fmt.Errorf("entry %d of term %d was replaced", last.Index, last.Term)))
	}
}

// timed returns reply with the stages booked of a request that was received and taken then, and that the library has stored now.
func (t *Transport) timed(received, taken time.Time, reply func(error)) func(error) {
	stored := time.Now()
	return func(err error) {
		durable := time.Now()
		reply(err)
		if err == nil {
			t.cfg.Trace.followed(received, taken, stored, durable)
		}
	}
}

// awaitRoom holds a request with entries back, or refuses it, while this replica cannot take more. The sender repeats it.
func (t *Transport) awaitRoom(in *peer.Inbound, req *raft.AppendEntriesRequest) error {
	if len(req.Entries) == 0 {
		return nil
	}
	ctx, cancel := context.WithDeadline(t.ctx, in.Received.Add(roomPatience))
	defer cancel()
	// I9: take this out, and a follower whose checkpoints are slow keeps changed pages without end.
	if err := t.cfg.Room(ctx); err != nil {
		return t.unavailable("append entries", err)
	}
	return nil
}

func (t *Transport) replySuccess(in *peer.Inbound, term uint64, resp *raft.AppendEntriesResponse, err error) {
	if err == nil && t.cfg.Silent() {
		err = t.unavailable("append entries", ErrSilent)
	}
	if err == nil && !t.promise.success(term, time.Now()) {
		err = t.unavailable("append entries", errors.New("this replica has voted in a later term"))
	}
	in.Answer(encodeAppendResponse(resp, t.cfg.FreeBytes()), nil, err)
}

// serveHeartbeat answers a heartbeat on Raft's fast path, beside its main loop, if that may be.
//
// I1: a heartbeat of another term than the replica's own goes through the main loop. On the fast path the library raises the
// term at once, while its main loop may still act as the leader of the old term. That leader's next entry would get the
// *new* term: there would be two different entries of one index and term, and no later check finds that.
func (t *Transport) serveHeartbeat(from storage.NodeID, req *raft.AppendEntriesRequest) (a heartbeatAnswer) {
	t.cfg.Heard(from)
	beat := t.beat.Load()
	if beat == nil || t.cfg.Silent() {
		return a
	}
	var resp *raft.AppendEntriesResponse
	if t.fastBeat(req.Term) {
		respCh := make(chan raft.RPCResponse, 1)
		(*beat)(raft.RPC{Command: req, RespChan: respCh})
		select {
		case out := <-respCh:
			if out.Error == nil {
				resp, _ = out.Response.(*raft.AppendEntriesResponse)
			}
		default: // the instance is shutting down and ignores the request
		}
	} else {
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.HeartbeatTimeout/2)
		defer cancel()
		if out, err := t.deliver(ctx, raft.RPC{Command: req}); err == nil {
			resp, _ = out.(*raft.AppendEntriesResponse)
		}
	}
	if resp == nil || resp.Success && !t.promise.success(req.Term, time.Now()) {
		return a
	}
	return heartbeatAnswer{present: true, resp: *resp, freeBytes: t.cfg.FreeBytes()}
}

// fastBeat reports whether a heartbeat of the term may pass by Raft's main loop: nothing but a follower's time of last
// contact changes.
func (t *Transport) fastBeat(term uint64) bool {
	i := t.instance.Load()
	return i != nil && i.CurrentTerm() == term && i.Follows()
}

// deliver hands a request to Raft's main loop and waits for its answer until ctx is done.
func (t *Transport) deliver(ctx context.Context, rpc raft.RPC) (any, error) {
	if t.cfg.Silent() {
		return nil, t.unavailable("deliver", ErrSilent)
	}
	respCh := make(chan raft.RPCResponse, 1)
	rpc.RespChan = respCh
	select {
	case t.consumer <- rpc:
	case <-ctx.Done():
		return nil, t.unavailable("deliver", ctx.Err())
	case <-t.ctx.Done():
		return nil, t.unavailable("deliver", raft.ErrTransportShutdown)
	}
	select {
	case out := <-respCh:
		if out.Error != nil {
			return nil, t.unavailable("deliver", out.Error)
		}
		return out.Response, nil
	case <-ctx.Done():
		return nil, t.unavailable("deliver", ctx.Err())
	case <-t.ctx.Done():
		return nil, t.unavailable("deliver", raft.ErrTransportShutdown)
	}
}

// deliverSoon is deliver for what its sender waits for during two heartbeat time-outs only.
func (t *Transport) deliverSoon(rpc raft.RPC) (any, error) {
	ctx, cancel := context.WithTimeout(t.ctx, 2*t.cfg.HeartbeatTimeout)
	defer cancel()
	return t.deliver(ctx, rpc)
}

// call sends one small request and returns the answer's header.
func (t *Transport) call(target raft.ServerAddress, lane peer.Lane, m peer.Method, header []byte,
	payload [][]byte, timeout time.Duration) ([]byte, error) {
	node, err := ParseNodeAddress(target)
	if err != nil {
		return nil, err
	}
	if t.cfg.Silent() {
		return nil, t.unavailable("call", ErrSilent)
	}
	ctx := t.ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	resp, err := t.cfg.Peers.Call(ctx, node, lane, &peer.Request{Method: m, Group: t.cfg.Group, Header: header,
		Payload: payload})
	if err != nil {
		return nil, err
	}
	defer resp.Release()
	return append([]byte(nil), resp.Header...), nil
}

// mayVote notes a vote that is about to leave and reports whether it may. One that a promise forbids waits for the end of
// the promise: refused, it would cost the whole election, and the group another half to whole heartbeat time-out or more.
// It does not wait for a promise that is renewed meanwhile, because the leader lives.
func (t *Transport) mayVote(term uint64, own, transfer bool) bool {
	for giveUp := time.Now().Add(t.cfg.HeartbeatTimeout); ; {
		now := time.Now()
		if t.promise.vote(term, own, transfer, now) {
			return true
		}
		end := t.promise.end()
		if own && transfer || end.After(giveUp) || !end.After(now) {
			return false
		}
		if clock.Sleep(t.ctx, end.Sub(now)) != nil {
			return false
		}
	}
}

// RequestVote asks for a vote, unless a promise forbids this replica to.
func (t *Transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest,
	resp *raft.RequestVoteResponse) error {
	if !t.mayVote(args.Term, true, args.LeadershipTransfer) {
		return t.unavailable("request vote", errors.New("a promise to the present leader stands"))
	}
	header, err := t.call(target, peer.Control, methodRaftVote, encodeVote(id, args), nil, t.cfg.HeartbeatTimeout*2)
	if err == nil {
		resp.RPCHeader, resp.Term, resp.Granted, err = decodeVerdict("vote response", header)
	}
	return err
}

func (t *Transport) serveVote(in *peer.Inbound, req *raft.RequestVoteRequest) {
	out, err := t.deliverSoon(raft.RPC{Command: req})
	if err != nil {
		in.ReplyError(err)
		return
	}
	resp := out.(*raft.RequestVoteResponse)
	if resp.Granted && !t.mayVote(req.Term, false, req.LeadershipTransfer) {
		in.ReplyError(t.unavailable("request vote", errors.New("a promise to the present leader stands")))
		return
	}
	in.Reply(encodeVerdict(resp.RPCHeader, resp.Term, resp.Granted), nil)
}

// RequestPreVote asks whether a vote would be given; it binds nobody.
func (t *Transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest,
	resp *raft.RequestPreVoteResponse) error {
	header, err := t.call(target, peer.Control, methodRaftPreVote, encodePreVote(id, args), nil, t.cfg.HeartbeatTimeout*2)
	if err == nil {
		resp.RPCHeader, resp.Term, resp.Granted, err = decodeVerdict("vote response", header)
	}
	return err
}

// servePreVote hands a pre-vote to the library under the name of a voter that it knows, for the reason given at
// anonymous: the library wants an ID here.
func (t *Transport) servePreVote(in *peer.Inbound, req *raft.RequestPreVoteRequest) {
	if i := t.instance.Load(); i != nil {
		for _, s := range i.Configuration().Servers {
			if s.Suffrage == raft.Voter {
				req.ID = []byte(s.ID)
				break
			}
		}
	}
	out, err := t.deliverSoon(raft.RPC{Command: req})
	if err != nil {
		in.ReplyError(err)
		return
	}
	resp := out.(*raft.RequestPreVoteResponse)
	in.Reply(encodeVerdict(resp.RPCHeader, resp.Term, resp.Granted), nil)
}

// TimeoutNow asks a follower to take over. From here on this leader has no lease. The term is the newest that this
// replica has led, not the newest it knows: a leader that is deposed while it hands over must not speak for its successor,
// who still has a lease.
func (t *Transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest,
	_ *raft.TimeoutNowResponse) error {
	term := t.ledTerm.Load()
	t.lease.giveUp(term)
	_, err := t.call(target, peer.Control, methodRaftTimeoutNow, encodeTimeoutNow(id, timeoutNow{args.RPCHeader, term}), nil,
		t.cfg.HeartbeatTimeout)
	return err
}

func (t *Transport) serveTimeoutNow(in *peer.Inbound, m timeoutNow) {
	if !t.promise.timeoutNow(m.term, t.currentTerm()) {
		in.ReplyError(t.unavailable("timeout now", fmt.Errorf("term %d is over", m.term)))
		return
	}
	_, err := t.deliverSoon(raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: m.header}})
	in.Answer(nil, nil, err)
}

func (t *Transport) currentTerm() uint64 {
	if i := t.instance.Load(); i != nil {
		return i.CurrentTerm()
	}
	return 0
}

// AppendEntriesPipeline opens a pipeline to a follower.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	node, err := ParseNodeAddress(target)
	if err != nil {
		return nil, err
	}
	return newPipeline(t, id, node), nil
}
