package route

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

// Own is what a Router asks of this node's own replicas. *replication.Replicas implements it.
type Own interface {
	// Leader returns the node that leads a group, as this node's replica knows it; 0 for none.
	Leader(group storage.GroupID) storage.NodeID
	Propose(ctx context.Context, group storage.GroupID, data [][]byte) (op.Result, error)
	Read(ctx context.Context, group storage.GroupID, req op.ReadRequest) (*op.ReadData, error)
	BlockStatus(ctx context.Context, group storage.GroupID, req op.StatusRequest) ([]op.Run, error)
	MappedExtents(ctx context.Context, group storage.GroupID, req op.MappedRequest) (op.MappedResponse, error)
}

// Peers is what a Router asks of the way to other nodes. *peer.Transport implements it.
type Peers interface {
	// Call sends a request and waits for the answer, which the caller releases. An error has a *peer.SendError in it
	// if no answer came.
	Call(ctx context.Context, to storage.NodeID, lane peer.Lane, req *peer.Request) (*peer.Response, error)
}

// Config is what a Router is made of. What has no default is required.
type Config struct {
	Self storage.NodeID
	// Own is nil in a process that has no replicas; Self is 0 then.
	Own   Own
	Peers Peers
	// Replicas returns the nodes that have a replica of a group, as the catalog knows them; none if it does not know the
	// group. It is called often and must not block.
	Replicas func(group storage.GroupID) []storage.NodeID
	// HeartbeatTimeout is the cluster's; 0: not known, and a node that was silent is left out for longer.
	HeartbeatTimeout time.Duration
}

// Router brings a gateway's requests to the leaders of their groups, locally or over the peers. Each call is one
// attempt; what it learns about leaders it keeps for the next. Its methods may be called concurrently.
type Router struct {
	cfg Config

	mu      sync.RWMutex
	leaders map[storage.GroupID]storage.NodeID // as last heard; 0 or absent: nobody is known; guarded by mu
	next    map[storage.GroupID]int            // whom to ask when nobody is known; guarded by mu
	// silentUntil is when a node that left a request unanswered is asked like others again; guarded by mu
	silentUntil map[storage.NodeID]time.Time
}

// New makes a router that knows of no leader yet.
func New(cfg Config) *Router {
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = silentFor // too long to be told by it that a leader lives
	}
	return &Router{cfg: cfg, leaders: map[storage.GroupID]storage.NodeID{}, next: map[storage.GroupID]int{},
		silentUntil: map[storage.NodeID]time.Time{}}
}

// SetHeartbeatTimeout says what the cluster's is, once it is known.
func (r *Router) SetHeartbeatTimeout(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d > 0 {
		r.cfg.HeartbeatTimeout = d // read in doubted, under the lock
	}
}

// target returns the node to ask: the leader as last heard, or as this node's own replica knows it, or each replica in
// turn. A node that has just left a request unanswered is asked last.
func (r *Router) target(group storage.GroupID) storage.NodeID {
	r.mu.RLock()
	n := r.leaders[group]
	r.mu.RUnlock()
	if n != 0 {
		return n
	}
	now, nodes := time.Now(), r.cfg.Replicas(group)
	if r.cfg.Own != nil {
		// After a recovery a replica may lead by itself that the catalog does not name: another one goes on.
		if n := r.cfg.Own.Leader(group); n != 0 && !r.doubted(n, now) && (len(nodes) == 0 || slices.Contains(nodes, n)) {
			return n
		}
	}
	if len(nodes) == 0 {
		return r.cfg.Self // whose Own says that it has no replica
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for range nodes {
		n = nodes[r.next[group]%len(nodes)]
		r.next[group]++
		if now.After(r.silentUntil[n]) {
			return n
		}
	}
	return n
}

// silentFor is how long a node that left a request unanswered is asked last.
const silentFor = 3 * time.Second

// doubted reports whether a node is not to be asked although a replica names it as its leader. A replica forgets a leader
// that it has not heard for a time between one and two heartbeat timeouts. So if a leader is still named two such timeouts
// after it left a request unanswered, the replica has heard from it since. Then it was only slow, or this node alone
// cannot reach it, and no other node would be a better choice. A leader that has died or is frozen is not named that long.
func (r *Router) doubted(n storage.NodeID, now time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	until, silent := r.silentUntil[n]
	return silent && now.Before(until.Add(min(0, 2*r.cfg.HeartbeatTimeout-silentFor)))
}

// learn keeps what an attempt at a node came to.
func (r *Router) learn(group storage.GroupID, asked storage.NodeID, err error) {
	r.mu.RLock()
	known, silent := r.leaders[group], !r.silentUntil[asked].IsZero()
	r.mu.RUnlock()
	now := known
	var unanswered bool
	switch kind := storage.KindOf(err); kind {
	case storage.KindNone:
		now = asked
	case storage.KindNotLeader:
		now = op.LeaderHint(err)
		if now == asked || r.doubted(now, time.Now()) { // it has just lost it, or does not answer
			now = 0
		}
	case storage.KindUnavailable, storage.KindIO, storage.KindNotFound, storage.KindCanceled:
		if errors.Is(err, context.Canceled) {
			return // the caller did not wait for the answer: nothing is known of who would have given it
		}
		// No answer, or none of a leader: ask another next time. What a volume's state says (KindNotFound of an
		// operation) comes as a result, not as an error.
		now = 0
		var send *peer.SendError
		unanswered = errors.As(err, &send)
	}
	if now == known && !unanswered && (err != nil || !silent) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaders[group] = now
	switch {
	case unanswered:
		r.silentUntil[asked] = time.Now().Add(silentFor)
		for g, n := range r.leaders { // nor will it answer for the other groups
			if n == asked {
				delete(r.leaders, g)
			}
		}
	case err == nil:
		delete(r.silentUntil, asked)
	}
}

// attempt asks the group's leader once: this node's own replica by a call, that of another node over the peers.
func attempt[T any](ctx context.Context, r *Router, group storage.GroupID, own func(Own) (T, error), request func() *peer.Request,
	decode func(*peer.Response) (T, error)) (answer T, err error) {
	node := r.target(group)
	switch {
	case node == r.cfg.Self && r.cfg.Own == nil:
		err = storage.E("ask group", storage.KindUnavailable, "", errors.New("it is not known yet where the group is"))
	case node == r.cfg.Self:
		answer, err = own(r.cfg.Own)
	default:
		req := request()
		req.Group = group
		var resp *peer.Response
		if resp, err = r.cfg.Peers.Call(ctx, node, peer.Data, req); err != nil {
			break
		}
		// The outcome of what cannot be decoded is not known here: it must not be taken for a refusal of the request.
		if answer, err = decode(resp); err != nil {
			err = storage.E("read the answer of", storage.KindInternal, "node "+node.String(), err)
		}
	}
	r.learn(group, node, err)
	return answer, err
}

// Propose asks the group's leader to apply an operation.
func (r *Router) Propose(ctx context.Context, group storage.GroupID, data [][]byte) (op.Result, error) {
	return attempt(ctx, r, group, func(own Own) (op.Result, error) { return own.Propose(ctx, group, data) },
		func() *peer.Request { return &peer.Request{Method: op.MethodPropose, Payload: data, OwnSums: true} },
		func(resp *peer.Response) (op.Result, error) {
			defer resp.Release()
			return op.DecodeResult(resp.Header)
		})
}

// Read asks the group's leader for blocks.
func (r *Router) Read(ctx context.Context, group storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	return attempt(ctx, r, group, func(own Own) (*op.ReadData, error) { return own.Read(ctx, group, req) },
		func() *peer.Request {
			_, blocks := req.Blocks()
			return &peer.Request{Method: op.MethodRead, Header: req.Append(make([]byte, 0, op.ReadRequestLen)),
				ReplyBytes: blocks * storage.BlockSize, SumsInAnswer: true}
		},
		func(resp *peer.Response) (*op.ReadData, error) {
			var header op.ReadResponse
			if err := header.Decode(resp.Header); err != nil {
				resp.Release()
				return nil, err
			}
			return op.NewReadData(header, resp.Payload, resp.Release), nil
		})
}

// Status asks the group's leader which blocks are mapped.
func (r *Router) Status(ctx context.Context, group storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	return attempt(ctx, r, group, func(own Own) ([]op.Run, error) { return own.BlockStatus(ctx, group, req) },
		func() *peer.Request {
			return &peer.Request{Method: op.MethodStatus, Header: req.Append(make([]byte, 0, op.StatusRequestLen))}
		},
		func(resp *peer.Response) ([]op.Run, error) {
			defer resp.Release()
			answer, err := op.DecodeStatusResponse(resp.Header)
			return answer.Runs, err
		})
}

// MappedExtents asks the group's leader which extents hold anything.
func (r *Router) MappedExtents(ctx context.Context, group storage.GroupID, req op.MappedRequest) (op.MappedResponse, error) {
	return attempt(ctx, r, group, func(own Own) (op.MappedResponse, error) { return own.MappedExtents(ctx, group, req) },
		func() *peer.Request {
			return &peer.Request{Method: op.MethodMappedExtents, Header: req.Append(make([]byte, 0, op.MappedRequestLen))}
		},
		func(resp *peer.Response) (op.MappedResponse, error) {
			defer resp.Release()
			return op.DecodeMappedResponse(resp.Header)
		})
}
