package remote

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
)

// Control is what a Service needs of the node's catalog. *control.Controller implements it.
type Control interface {
	Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error)
	// View shows the node's own copy, Read one that is at least as new as everything committed before the call.
	View(fn func(*catalog.State)) control.Freshness
	Read(ctx context.Context, fn func(*catalog.State)) error
	// Changed returns the copy's index and a channel that is closed when it has moved on.
	Changed() (index uint64, changed <-chan struct{})
}

const (
	// askTimeout bounds a question to the catalog: the gateway asks another node, or again, long before.
	askTimeout = 10 * time.Second
	// heardFor is how long a session is named in the node's reports after its gateway was last heard of. The gateway
	// asks every followFor, here or elsewhere.
	heardFor = 3 * followFor
	// maxHeard bounds the sessions that one node keeps alive.
	maxHeard = 1 << 17
)

// Service answers gateways outside of the nodes. It is made by NewService.
type Service struct {
	control Control
	now     func() time.Time

	mu    sync.Mutex
	heard map[storage.SessionID]time.Time // when a gateway last named it; guarded by mu
}

// NewService returns the service of a node.
func NewService(c Control) *Service {
	return &Service{control: c, now: time.Now, heard: map[storage.SessionID]time.Time{}}
}

// Register enters the service's methods. To be called before the peers run.
func (s *Service) Register(peers *peer.Transport) {
	handle(peers, peer.MethodGatewayOpen, s.open)
	handle(peers, peer.MethodGatewayClose, s.close)
	handle(peers, peer.MethodGatewayFollow, s.follow)
}

// handle registers a method whose request and answer are JSON.
func handle[Q, A any](peers *peer.Transport, m peer.Method, serve func(context.Context, Q) (A, error)) {
	peers.Handle(m, peer.Concurrent, func(in *peer.Inbound) {
		var q Q
		err := decode(in.Payload, maxRequestBytes, &q)
		if r, ok := any(&q).(*openRequest); ok {
			r.from = in.RemoteAddr()
		}
		if err == nil {
			var answer A
			ctx, cancel := context.WithTimeout(in.Context(), askTimeout)
			answer, err = serve(ctx, q)
			cancel()
			var body []byte
			if err == nil {
				if body, err = encode(answer); err == nil {
					in.Reply(nil, [][]byte{body})
					return
				}
			}
		}
		in.ReplyError(err)
	})
}

// Sessions returns the sessions whose gateways were heard of lately: those that the node names in its report.
func (s *Service) Sessions() []storage.SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	out := make([]storage.SessionID, 0, len(s.heard))
	for id, at := range s.heard {
		if now.Sub(at) > heardFor {
			delete(s.heard, id)
			continue
		}
		out = append(out, id)
	}
	return out
}

func (s *Service) hear(ids ...storage.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, id := range ids {
		if _, known := s.heard[id]; known || len(s.heard) < maxHeard {
			s.heard[id] = now
		}
	}
}

func (s *Service) open(ctx context.Context, q openRequest) (openAnswer, error) {
	if err := q.check(); err != nil {
		return openAnswer{}, storage.E("open session", storage.KindInvalid, "volume "+q.Volume, err)
	}
	r, err := s.control.Propose(ctx, catalog.OpenSession{Volume: catalog.ByName(q.Volume), Gateway: catalog.Gateway{Host: q.Host},
		Attachment: q.Attachment, Instance: q.Instance, Machine: q.Machine, From: q.whence(), After: q.After, ReadOnly: q.ReadOnly, At: s.now().UTC()})
	if err != nil {
		return openAnswer{}, err
	}
	if r.Session == nil || r.Volume == nil {
		return openAnswer{}, storage.E("open session", storage.KindInternal, "volume "+q.Volume, errIncomplete)
	}
	s.hear(r.Session.ID)
	a := openAnswer{Session: r.Session.ID, Volume: r.Volume.ID, SizeBytes: r.Volume.SizeBytes, Groups: r.Volume.Groups,
		Epoch: r.Volume.Epoch, Generation: r.Session.Generation,
		Limits: r.Volume.Limits, Revision: r.Volume.Revision}
	for _, p := range r.Predecessors {
		a.Predecessors = append(a.Predecessors, p.ID)
	}
	return a, nil
}

// whence is the host's name and address, for people.
func (r *openRequest) whence() string {
	if r.from == "" {
		return r.Name
	}
	return strings.TrimSpace(r.Name + " at " + r.from)
}

func (s *Service) close(ctx context.Context, q closeRequest) (struct{}, error) {
	s.mu.Lock()
	delete(s.heard, q.Session)
	s.mu.Unlock()
	_, err := s.control.Propose(ctx, catalog.CloseSession{Session: q.Session})
	return struct{}{}, err
}

// follow answers when something is new to the gateway, or after the time that it waits for.
func (s *Service) follow(ctx context.Context, q followRequest) (followAnswer, error) {
	if err := q.check(); err != nil {
		return followAnswer{}, storage.E("follow", storage.KindInvalid, "host "+q.Host, err)
	}
	s.hear(q.Sessions...)
	ctx, cancel := context.WithTimeout(ctx, max(0, min(q.Wait, followFor)))
	defer cancel()
	for {
		_, changed := s.control.Changed()
		answer, absent := s.news(q)
		if len(absent) > 0 {
			answer.Volumes = append(answer.Volumes, s.confirmAbsent(ctx, absent)...)
		}
		if len(answer.Volumes) > 0 || answer.Routes != nil {
			return answer, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return followAnswer{}, nil
		}
	}
}

// news compares what the gateway knows with this node's copy of the catalog. absent are the volumes that are not in it.
func (s *Service) news(q followRequest) (answer followAnswer, absent []watchKey) {
	s.control.View(func(st *catalog.State) {
		for _, f := range q.Volumes {
			v, ok := st.Volume(f.Volume)
			switch {
			case !ok:
				absent = append(absent, f.watchKey)
			case v.Revision > f.Revision:
				answer.Volumes = append(answer.Volumes, stateOf(st, v, f.watchKey))
			}
		}
		if r := routesOf(st); r.Version != q.Routes && len(r.Nodes) > 0 {
			answer.Routes = &r
		}
	})
	return answer, absent
}

func stateOf(st *catalog.State, v catalog.Volume, key watchKey) volumeState {
	return volumeState{watchKey: key, Revision: v.Revision, SizeBytes: v.SizeBytes, Epoch: v.Epoch, Generation: v.Generation,
		Limits: v.Limits, Deleted: v.State == catalog.VolumeDeleting, Lost: st.Lost(v.ID, key.Attachment)}
}

// confirmAbsent says of volumes that they are deleted, if a current copy of the catalog says so: this node's may lag
// behind the one that opened them.
func (s *Service) confirmAbsent(ctx context.Context, absent []watchKey) (out []volumeState) {
	_ = s.control.Read(ctx, func(st *catalog.State) { // without an answer nothing is known, and nothing is said
		for _, key := range absent {
			if v, ok := st.Volume(key.Volume); ok {
				out = append(out, stateOf(st, v, key))
			} else {
				out = append(out, volumeState{watchKey: key, Revision: st.Applied(), Deleted: true})
			}
		}
	})
	return out
}

func routesOf(st *catalog.State) routes {
	r := routes{Nodes: map[storage.NodeID]string{}, Groups: map[storage.GroupID][]storage.NodeID{}, HeartbeatTimeout: st.Cluster().HeartbeatTimeout}
	for _, n := range st.Nodes() {
		if n.State != catalog.NodeRemoved && n.Addrs.Peer != "" {
			r.Nodes[n.ID] = n.Addrs.Peer
		}
	}
	for _, g := range st.Groups() {
		for _, m := range g.Replicas {
			if m.Role == catalog.RoleVoter {
				r.Groups[g.ID] = append(r.Groups[g.ID], m.Node)
			}
		}
	}
	h := fnv.New64a()
	_ = json.NewEncoder(h).Encode(r) // maps are written in the order of their keys; a hash takes everything
	r.Version = h.Sum64()
	return r
}
