package server

import (
	"context"
	"sync"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

// router brings a gateway's requests to the leaders of their groups, locally or over the peers. Each call is one
// attempt; what it learns about leaders it keeps for the next.
type router struct {
	self  storage.NodeID
	host  *replication.Host
	peers *peer.Transport
	// replicas returns the nodes that have a replica of a group, as the catalog knows them.
	replicas func(storage.GroupID) []storage.NodeID

	mu      sync.RWMutex
	leaders map[storage.GroupID]storage.NodeID // as last heard; guarded by mu
	next    map[storage.GroupID]int            // whom to ask when nobody is known; guarded by mu
}

func newRouter(self storage.NodeID, host *replication.Host, peers *peer.Transport,
	replicas func(storage.GroupID) []storage.NodeID) *router {
	return &router{self: self, host: host, peers: peers, replicas: replicas,
		leaders: map[storage.GroupID]storage.NodeID{}, next: map[storage.GroupID]int{}}
}

// target returns the node to ask.
func (r *router) target(group storage.GroupID) storage.NodeID {
	r.mu.RLock()
	n := r.leaders[group]
	r.mu.RUnlock()
	if n != 0 {
		return n
	}
	nodes := r.replicas(group)
	if len(nodes) == 0 {
		return r.self // which says that it has no replica
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.next[group] % len(nodes)
	r.next[group] = i + 1
	return nodes[i]
}

// learn keeps what an attempt at a node came to.
func (r *router) learn(group storage.GroupID, asked storage.NodeID, err error) {
	r.mu.RLock()
	known := r.leaders[group]
	r.mu.RUnlock()
	now := known
	switch kind := storage.KindOf(err); {
	case err == nil:
		now = asked
	case kind == storage.KindNotLeader:
		now = replication.LeaderHint(err)
		if now == asked { // it has just lost it
			now = 0
		}
	case kind == storage.KindUnavailable, kind == storage.KindIO, kind == storage.KindNotFound, kind == storage.KindCanceled:
		// No answer, or none of a leader: ask another next time. What a volume's state says (KindNotFound of an
		// operation) comes as a result, not as an error.
		now = 0
	}
	if now != known {
		r.mu.Lock()
		r.leaders[group] = now
		r.mu.Unlock()
	}
}

// Propose asks the group's leader to apply an operation.
func (r *router) Propose(ctx context.Context, group storage.GroupID, data [][]byte) (op.Result, error) {
	node := r.target(group)
	result, err := r.proposeAt(ctx, node, group, data)
	r.learn(group, node, err)
	return result, err
}

func (r *router) proposeAt(ctx context.Context, node storage.NodeID, group storage.GroupID, data [][]byte) (op.Result, error) {
	if node == r.self {
		return r.host.Propose(ctx, group, data)
	}
	resp, err := r.peers.Call(ctx, node, peer.Data, &peer.Request{Method: peer.MethodPropose, Group: group, Payload: data})
	if err != nil {
		return op.Result{}, err
	}
	defer resp.Release()
	return op.DecodeResult(resp.Header)
}

// Read asks the group's leader for blocks.
func (r *router) Read(ctx context.Context, group storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	node := r.target(group)
	data, err := r.readAt(ctx, node, group, req)
	r.learn(group, node, err)
	return data, err
}

func (r *router) readAt(ctx context.Context, node storage.NodeID, group storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	if node == r.self {
		return r.host.Read(ctx, group, req)
	}
	resp, err := r.peers.Call(ctx, node, peer.Data, &peer.Request{Method: peer.MethodRead, Group: group,
		Header: req.Append(make([]byte, 0, op.ReadRequestLen)), ReplyBytes: replyBytes(req)})
	if err != nil {
		return nil, err
	}
	var header op.ReadResponse
	if err := header.Decode(resp.Header); err != nil {
		resp.Release()
		return nil, err
	}
	return op.NewReadData(header, resp.Payload, resp.Release), nil
}

// replyBytes is how much the answer to a read may carry.
func replyBytes(req op.ReadRequest) int {
	_, n := req.Blocks()
	return n * storage.BlockSize
}

// Status asks the group's leader which blocks are mapped.
func (r *router) Status(ctx context.Context, group storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	node := r.target(group)
	runs, err := r.statusAt(ctx, node, group, req)
	r.learn(group, node, err)
	return runs, err
}

func (r *router) statusAt(ctx context.Context, node storage.NodeID, group storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	if node == r.self {
		return r.host.BlockStatus(ctx, group, req)
	}
	resp, err := r.peers.Call(ctx, node, peer.Data, &peer.Request{Method: peer.MethodStatus, Group: group,
		Header: req.Append(make([]byte, 0, op.StatusRequestLen))})
	if err != nil {
		return nil, err
	}
	defer resp.Release()
	answer, err := op.DecodeStatusResponse(resp.Header)
	return answer.Runs, err
}
