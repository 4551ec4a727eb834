package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/route"
	"github.com/storaged/storaged/server/volume"
)

// cluster is what this node's gateway sees: groups through the router, sessions and volumes through the catalog. It
// implements volume.Cluster.
type cluster struct {
	*route.Router
	control  metadata
	self     storage.NodeID
	name     string // of the node
	instance string // new at every start

	mu       sync.Mutex
	sessions map[storage.SessionID]bool     // named in every report, which keeps them alive; guarded by mu
	held     map[storage.AttachmentID]*held // what Attach has answered and nobody has given up; guarded by mu
	busy     map[string]chan struct{}       // volumes, by name, that are being attached or detached; closed when that ends; guarded by mu
}

// metadata is what a gateway asks of the catalog. *control.Controller implements it, and says what its methods promise.
type metadata interface {
	Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error)
	Attach(ctx context.Context, cmd catalog.Attach) (catalog.Attachment, error)
	Detach(ctx context.Context, cmd catalog.Detach) error
	View(fn func(*catalog.State)) control.Freshness
	Read(ctx context.Context, fn func(*catalog.State)) error
	Changed() (index uint64, next <-chan struct{})
}

// held is an attachment of this node for plain NBD clients.
type held struct {
	refs    int
	unclean bool // something of it may be on its way
}

var _ volume.Cluster = (*cluster)(nil)

func newCluster(r *route.Router, c metadata, self storage.NodeID, name, instance string) *cluster {
	return &cluster{Router: r, control: c, self: self, name: name, instance: instance, sessions: map[storage.SessionID]bool{},
		held: map[storage.AttachmentID]*held{}, busy: map[string]chan struct{}{}}
}

// OpenSession implements volume.Cluster.
func (c *cluster) OpenSession(ctx context.Context, name string, req volume.SessionRequest) (volume.SessionInfo, error) {
	r, err := c.control.Propose(ctx, catalog.OpenSession{Volume: catalog.ByName(name), Gateway: catalog.Gateway{Node: c.self},
		Attachment: req.Attachment, Instance: c.instance, After: req.After, ReadOnly: req.ReadOnly, At: time.Now().UTC()})
	if err != nil {
		return volume.SessionInfo{}, err
	}
	if r.Session == nil || r.Volume == nil {
		return volume.SessionInfo{}, storage.E("open session", storage.KindInternal, "volume "+name, errors.New("the catalog's answer is incomplete"))
	}
	c.mu.Lock()
	c.sessions[r.Session.ID] = true
	c.mu.Unlock()
	info := volume.SessionInfo{ID: r.Session.ID, Volume: r.Volume.ID, SizeBytes: r.Volume.SizeBytes, Groups: r.Volume.Groups,
		Epoch: r.Volume.Epoch, Generation: r.Session.Generation, Limits: r.Volume.Limits, Revision: r.Volume.Revision}
	for _, p := range r.Predecessors {
		info.Predecessors = append(info.Predecessors, p.ID)
	}
	return info, nil
}

// CloseSession implements volume.Cluster. The session is not named in reports any more, whatever the catalog answers:
// one that it has not heard of the close of expires, instead of keeping its volume open for ever.
func (c *cluster) CloseSession(ctx context.Context, session storage.SessionID) error {
	c.mu.Lock()
	delete(c.sessions, session)
	c.mu.Unlock()
	_, err := c.control.Propose(ctx, catalog.CloseSession{Session: session})
	return err
}

func (c *cluster) liveSessions() []storage.SessionID {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]storage.SessionID, 0, len(c.sessions))
	for id := range c.sessions {
		out = append(out, id)
	}
	return out
}

// WatchVolume implements volume.Cluster.
func (c *cluster) WatchVolume(ctx context.Context, id storage.VolumeID, attachment storage.AttachmentID, after uint64) (volume.VolumeState, error) {
	for {
		_, changed := c.control.Changed()
		var v catalog.Volume
		var ok bool
		var lost string
		fresh := c.control.View(func(s *catalog.State) {
			v, ok = s.Volume(id)
			lost = s.Lost(id, attachment)
		})
		switch {
		case !ok:
			// This node's copy may lag behind the leader that opened the volume: only one that does not can say so.
			if err := c.control.Read(ctx, func(s *catalog.State) { v, ok = s.Volume(id) }); err != nil {
				return volume.VolumeState{}, err
			}
			if ok {
				continue
			}
			return volume.VolumeState{Revision: fresh.Index, Deleted: true}, nil
		case v.Revision > after:
			return volume.VolumeState{Revision: v.Revision, SizeBytes: v.SizeBytes, Epoch: v.Epoch, Generation: v.Generation,
				Limits: v.Limits, Deleted: v.State == catalog.VolumeDeleting, Lost: lost}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return volume.VolumeState{}, storage.E("watch", storage.KindCanceled, "volume "+id.String(), ctx.Err())
		}
	}
}

// Volume implements volume.Cluster. It asks the catalog's leader, so that a volume can be opened on any node as soon
// as it was made on one; without a leader it answers from this node's copy.
func (c *cluster) Volume(ctx context.Context, name string) (volume.VolumeInfo, error) {
	var v catalog.Volume
	var ok bool
	find := func(s *catalog.State) { v, ok = s.VolumeByName(name) }
	c.control.View(find)
	if !ok {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := c.control.Read(ctx, find); err != nil && !errors.Is(err, storage.ErrUnavailable) {
			return volume.VolumeInfo{}, err
		}
	}
	if !ok {
		return volume.VolumeInfo{}, storage.E("find", storage.KindNotFound, "volume "+name, nil)
	}
	return volume.VolumeInfo{Name: v.Name, ID: v.ID, SizeBytes: v.SizeBytes}, nil
}

// Volumes implements volume.Cluster, from this node's copy of the catalog.
func (c *cluster) Volumes(context.Context) ([]volume.VolumeInfo, error) {
	var out []volume.VolumeInfo
	c.control.View(func(s *catalog.State) {
		for _, v := range volumesByName(s) {
			out = append(out, volume.VolumeInfo{Name: v.Name, ID: v.ID, SizeBytes: v.SizeBytes})
		}
	})
	return out, nil
}

// controlPeers carries the catalog's requests. It implements control.Peers.
type controlPeers struct{ peers *peer.Transport }

// Call implements control.Peers.
func (p controlPeers) Call(ctx context.Context, to storage.NodeID, m control.Method, body []byte) ([]byte, error) {
	resp, err := p.peers.Call(ctx, to, peer.Control, &peer.Request{Method: peer.Method(m), Payload: [][]byte{body}})
	if err != nil {
		return nil, err
	}
	defer resp.Release()
	return append([]byte(nil), resp.Payload...), nil
}

// registerControl enters the methods that other nodes' control loops, and joining nodes, call.
func registerControl(peers *peer.Transport, c *control.Controller) {
	for _, m := range []control.Method{control.MethodPropose, control.MethodRead, control.MethodReport, control.MethodJoin} {
		peers.Handle(peer.Method(m), peer.Concurrent, func(in *peer.Inbound) {
			answer := c.Serve(in.Context(), in.From, m, in.Payload)
			in.Reply(nil, [][]byte{answer})
		})
	}
}
