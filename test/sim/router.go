package sim

import (
	"context"
	"sync"
	"sync/atomic"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

// router brings a gateway's requests to the leaders of their groups, locally or over the peers, one attempt a call. It
// does what the server's does.
type router struct {
	self  storage.NodeID
	host  *replication.Host
	peers *peer.Transport
	dead  *atomic.Bool // the process was killed
	nodes []storage.NodeID

	mu      sync.Mutex
	leaders map[storage.GroupID]storage.NodeID // as last heard; guarded by mu
	next    map[storage.GroupID]int            // whom to ask when nobody is known; guarded by mu
}

func newRouter(self storage.NodeID, host *replication.Host, peers *peer.Transport, dead *atomic.Bool, nodes []storage.NodeID) *router {
	return &router{self: self, host: host, peers: peers, dead: dead, nodes: nodes,
		leaders: map[storage.GroupID]storage.NodeID{}, next: map[storage.GroupID]int{}}
}

func (r *router) target(group storage.GroupID) storage.NodeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.leaders[group]; n != 0 {
		return n
	}
	i := r.next[group] % len(r.nodes)
	r.next[group] = i + 1
	return r.nodes[i]
}

func (r *router) learn(group storage.GroupID, asked storage.NodeID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind := storage.KindOf(err); {
	case err == nil:
		r.leaders[group] = asked
	case kind == storage.KindNotLeader:
		hint := replication.LeaderHint(err)
		if hint == asked { // it has just lost it
			hint = 0
		}
		r.leaders[group] = hint
	case kind == storage.KindUnavailable || kind == storage.KindIO:
		r.leaders[group] = 0
	}
}

// Propose implements volume.Cluster.
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

// Read implements volume.Cluster.
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
		Header: req.Append(make([]byte, 0, op.ReadRequestLen))})
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

// Status implements volume.Cluster.
func (r *router) Status(ctx context.Context, group storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	return r.host.BlockStatus(ctx, group, req)
}
