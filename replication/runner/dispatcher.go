package runner

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/aligned"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/peer"
)

// Dispatcher brings Raft's messages of all groups of a node to their transports, and merges the heartbeats of all groups
// between two nodes into one frame per tick. The ticks are multiples of the period on the wall clock (package clock), the
// same for all peers and groups, so that a node wakes once for all of them.
//
// The library would ask for a group's next heartbeat to a follower at a random time of its own, a tenth to a fifth of the
// heartbeat time-out after the answer to the last: one wake-up for each group and follower. So with every frame the
// groups in it are asked to verify their leadership, which makes the library ask for the next heartbeat as soon as this
// one is answered. That one waits here for the next tick. Where it does not come, the library's own timers go on as ever.
type Dispatcher struct {
	peers  *peer.Transport
	tick   time.Duration
	blocks func(n int) int // see NewDispatcher; not nil

	mu     sync.RWMutex
	groups map[storage.GroupID]*Transport // guarded by mu

	beatMu  sync.Mutex
	pending map[storage.NodeID]*beatQueue // guarded by beatMu
	closed  bool                          // guarded by beatMu
}

// beatQueue holds the heartbeats to one node that wait for the next frame.
type beatQueue struct {
	calls     []*beatCall
	timer     *time.Timer
	lastFlush time.Time
}

type beatCall struct {
	t    *Transport
	hb   heartbeat
	resp *raft.AppendEntriesResponse
	done func(error)
}

// NewDispatcher registers Raft's methods with peers, which must not run yet. Heartbeats travel every quarter of the heartbeat
// time-out. The lease holds for four fifths of it from the sending, so that a frame may come late by a quarter, or get
// lost, and the next still renews it.
//
// blocks returns how many bytes at the end of an entry's data, of n bytes in all, are to be received where a page of memory
// begins, so that they can be written to the disk from there; 0: none. Nil: none of any entry. Only the length is known then, so
// it may be wrong, which costs nothing but time.
func NewDispatcher(peers *peer.Transport, heartbeatTimeout time.Duration, blocks func(n int) int) *Dispatcher {
	if blocks == nil {
		blocks = func(int) int { return 0 }
	}
	r := &Dispatcher{peers: peers, tick: heartbeatTimeout / 4, blocks: blocks,
		groups: map[storage.GroupID]*Transport{}, pending: map[storage.NodeID]*beatQueue{}}
	peers.Handle(methodRaftAppend, peer.Terms{From: peer.Members, Order: peer.Ordered, SumsInRequests: true, Layout: r.layoutAppend}, r.serveAppend)
	peers.Handle(methodRaftHeartbeats, peer.Terms{From: peer.Members, Order: peer.Concurrent}, r.serveHeartbeats)
	peers.Handle(methodRaftVote, peer.Terms{From: peer.Members, Order: peer.Concurrent}, serving(r, decodeVote, (*Transport).serveVote))
	peers.Handle(methodRaftPreVote, peer.Terms{From: peer.Members, Order: peer.Concurrent}, serving(r, decodePreVote, (*Transport).servePreVote))
	peers.Handle(methodRaftTimeoutNow, peer.Terms{From: peer.Members, Order: peer.Concurrent}, serving(r, decodeTimeoutNow, (*Transport).serveTimeoutNow))
	peers.Handle(methodRaftInstallSnapshot, peer.Terms{From: peer.Members, Order: peer.Concurrent}, serving(r, decodeInstall, (*Transport).serveInstall))
	return r
}

func (r *Dispatcher) add(t *Transport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.groups[t.cfg.Group] = t
}

func (r *Dispatcher) remove(t *Transport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.groups[t.cfg.Group] == t {
		delete(r.groups, t.cfg.Group)
	}
}

// find returns the transport of a group if the message is meant for the replica that is here now.
func (r *Dispatcher) find(group storage.GroupID, to raft.ServerID) (*Transport, error) {
	r.mu.RLock()
	t := r.groups[group]
	r.mu.RUnlock()
	if t == nil {
		return nil, storage.E("route", storage.KindNotFound, "group "+group.String(), errors.New("no replica of it is here"))
	}
	if to != t.cfg.Self {
		return nil, storage.E("route", storage.KindNotFound, "group "+group.String(),
			errors.New("the replica "+string(to)+" is not here; "+string(t.cfg.Self)+" is"))
	}
	return t, nil
}

// layoutAppend is the peer.Layout of AppendEntries: every entry with blocks in memory of its own, which ends with them, and
// whatever is between two such entries in one piece.
func (r *Dispatcher) layoutAppend(header []byte, payloadBytes int) (parts [][]byte) {
	d := dec{b: header}
	_, _, n := d.appendHead()
	small := 0
	flush := func() {
		if small > 0 {
			parts = append(parts, make([]byte, small))
			small = 0
		}
	}
	for range n {
		var l raft.Log
		size := int(d.entry(&l))
		if payloadBytes -= size; d.bad || payloadBytes < 0 {
			return nil // nothing is allocated for lengths that cannot be
		}
		if body := r.blocks(size); body > 0 {
			flush()
			parts = append(parts, aligned.Before(size-body, body))
		} else {
			small += size
		}
	}
	flush()
	return parts
}

func (r *Dispatcher) serveAppend(in *peer.Inbound) {
	serving(r, func(header []byte) (raft.ServerID, *raft.AppendEntriesRequest, error) {
		return decodeAppend(header, in.TakeParts())
	}, (*Transport).serveAppend)(in)
}

// serving returns the handler of a message to one replica, whose transport serves it.
func serving[T any](r *Dispatcher, decode func(header []byte) (to raft.ServerID, msg T, err error), serve func(*Transport, *peer.Inbound, T)) func(*peer.Inbound) {
	return func(in *peer.Inbound) {
		to, msg, err := decode(in.Header)
		var t *Transport
		if err == nil {
			t, err = r.find(in.Group, to)
		}
		if err != nil {
			in.ReplyError(err)
			return
		}
		serve(t, in, msg)
	}
}

func (r *Dispatcher) serveHeartbeats(in *peer.Inbound) {
	hs, err := decodeHeartbeats(in.Header)
	if err != nil {
		in.ReplyError(err)
		return
	}
	answers := make([]heartbeatAnswer, len(hs))
	var slow sync.WaitGroup // a group whose main loop is busy must not keep the answers of the others
	for i := range hs {
		t, err := r.find(hs[i].group, hs[i].to)
		switch {
		case err != nil:
		case t.fastBeat(hs[i].req.Term):
			answers[i] = t.serveHeartbeat(in.From, hs[i].req)
		default:
			slow.Go(func() { answers[i] = t.serveHeartbeat(in.From, hs[i].req) })
		}
	}
	slow.Wait()
	in.Reply(encodeHeartbeatAnswers(answers), nil)
}

// heartbeat puts one heartbeat into the next frame to its node. done is called once.
func (r *Dispatcher) heartbeat(t *Transport, node storage.NodeID, id raft.ServerID, req *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse, done func(error)) {
	if t.cfg.Silent() {
		done(t.unavailable("heartbeat", ErrSilent))
		return
	}
	c := &beatCall{t: t, hb: heartbeat{group: t.cfg.Group, to: id, req: req}, resp: resp, done: done}
	r.beatMu.Lock()
	if r.closed {
		r.beatMu.Unlock()
		done(raft.ErrTransportShutdown)
		return
	}
	q := r.pending[node]
	if q == nil {
		q = &beatQueue{}
		r.pending[node] = q
	}
	q.calls = append(q.calls, c)
	switch first := t.firstBeat(id, req.Term); {
	case first, len(q.calls) == maxHeartbeatsPerFrame:
		r.setLocked(q, node, 0)
	case len(q.calls) == 1:
		now := time.Now()
		wait := clock.UntilNext(now, r.tick)
		if now.Sub(q.lastFlush) > r.tick+r.tick/8 { // a tick was missed because the answers were late
			wait = r.tick / catchUp
		}
		r.setLocked(q, node, wait)
	}
	r.beatMu.Unlock()
}

// catchUp is the part of a tick for which heartbeats that have missed theirs wait for each other.
const catchUp = 32

// setLocked sets the time of the next frame to a node. beatMu is held.
func (r *Dispatcher) setLocked(q *beatQueue, node storage.NodeID, wait time.Duration) {
	if q.timer == nil {
		q.timer = time.AfterFunc(wait, func() { r.flush(node, true) })
	} else {
		q.timer.Reset(wait)
	}
}

// FlushHeartbeats sends at once what waits: a quorum read needs the answers.
func (r *Dispatcher) FlushHeartbeats() {
	r.beatMu.Lock()
	nodes := make([]storage.NodeID, 0, len(r.pending))
	for n, q := range r.pending {
		if len(q.calls) > 0 {
			nodes = append(nodes, n)
		}
	}
	r.beatMu.Unlock()
	for _, n := range nodes {
		r.flush(n, false)
	}
}

// flush sends what waits for a node. At a tick the library is asked to go on at once.
func (r *Dispatcher) flush(node storage.NodeID, tick bool) {
	r.beatMu.Lock()
	q := r.pending[node]
	calls := q.calls
	q.calls = nil
	if len(calls) > maxHeartbeatsPerFrame {
		q.calls = append(q.calls, calls[maxHeartbeatsPerFrame:]...)
		calls = calls[:maxHeartbeatsPerFrame]
		r.setLocked(q, node, 0)
	}
	if len(calls) > 0 {
		q.lastFlush = time.Now()
	}
	r.beatMu.Unlock()
	if len(calls) == 0 {
		return
	}
	if tick {
		for _, c := range calls {
			c.t.beatOn()
		}
	}
	hs := make([]heartbeat, len(calls))
	for i, c := range calls {
		hs[i] = c.hb
	}
	sent := time.Now() // before the frame leaves: the lease counts from here
	req := &peer.Request{Method: methodRaftHeartbeats, Header: encodeHeartbeats(hs)}
	r.peers.Go(node, peer.Control, req, func(resp *peer.Response, err error) { finishHeartbeats(calls, sent, resp, err) })
}

func finishHeartbeats(calls []*beatCall, sent time.Time, resp *peer.Response, err error) {
	var answers []heartbeatAnswer
	if err == nil {
		answers, err = decodeHeartbeatAnswers(resp.Header)
		resp.Release()
		if err == nil && len(answers) != len(calls) {
			err = storage.E("heartbeat", storage.KindInvalid, "", errors.New("the number of answers is wrong"))
		}
	}
	for i, c := range calls {
		switch {
		case err != nil:
			c.done(err)
		case !answers[i].present:
			c.done(c.t.unavailable("heartbeat", errors.New("the replica gives no answer")))
		default:
			a := &answers[i]
			if a.resp.Success {
				c.t.lease.success(c.hb.to, c.hb.req.Term, sent, 0)
			}
			c.t.cfg.Told(c.hb.to, a.freeBytes)
			*c.resp = a.resp
			c.done(nil)
		}
	}
}

// Close drops what waits. Transports close on their own.
func (r *Dispatcher) Close() {
	r.beatMu.Lock()
	r.closed = true
	var calls []*beatCall
	for _, q := range r.pending {
		calls = append(calls, q.calls...)
		q.calls = nil
		if q.timer != nil {
			q.timer.Stop()
		}
	}
	r.beatMu.Unlock()
	for _, c := range calls {
		c.done(raft.ErrTransportShutdown)
	}
}
