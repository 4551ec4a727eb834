package session

import (
	"context"
	"errors"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/remote"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/server/catalog"
)

// How long a plain NBD client waits for a volume that others have, and how often it is looked at meanwhile.
const (
	// leavePatience outlasts two times: the one in which another node's gateway detaches a volume that its last client has left,
	// and the silence after which a dead node is suspected and its attachments give way (control.Config.SuspectAfter).
	leavePatience = 5 * time.Second
	leavePoll     = 100 * time.Millisecond
)

// tidyInterval is how often a node looks for attachments of its own that none of its clients needs.
const tidyInterval = time.Second

// Local is the desk's end for this node's own gateway. With a route.Router it implements volume.Cluster. It is made by NewLocal.
type Local struct {
	desk    *Desk
	gateway Gateway
	name    string // of the node

	mu   sync.Mutex
	held map[storage.AttachmentID]*held // what Attach has answered and nobody has given up; guarded by mu
	busy map[string]chan struct{}       // volumes, by name, that are being attached or detached; closed when that ends; guarded by mu
}

// held is an attachment of this node for plain NBD clients.
type held struct {
	refs    int
	unclean bool // something of it may be on its way
}

// NewLocal returns the end of the gateway of a node. instance is new at every start.
func NewLocal(d *Desk, node storage.NodeID, name, instance string) *Local {
	return &Local{desk: d, gateway: Gateway{Gateway: catalog.Gateway{Node: node}, Instance: instance}, name: name,
		held: map[storage.AttachmentID]*held{}, busy: map[string]chan struct{}{}}
}

// OpenSession implements volume.Cluster.
func (l *Local) OpenSession(ctx context.Context, name string, req volume.SessionRequest) (volume.SessionInfo, error) {
	return l.desk.Open(ctx, l.gateway, name, req)
}

// CloseSession implements volume.Cluster.
func (l *Local) CloseSession(ctx context.Context, id storage.SessionID) error {
	return l.desk.Close(ctx, l.gateway, id)
}

// WatchVolume implements volume.Cluster.
func (l *Local) WatchVolume(ctx context.Context, id storage.VolumeID, attachment storage.AttachmentID, after uint64) (volume.VolumeState, error) {
	known := []remote.Followed{{Watch: remote.Watch{Volume: id, Attachment: attachment}, Revision: after}}
	for {
		_, changed := l.desk.catalog.Changed()
		news, err := l.desk.News(ctx, known)
		if err != nil {
			return volume.VolumeState{}, err
		}
		if len(news) > 0 {
			return news[0].VolumeState, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return volume.VolumeState{}, storage.E("watch", storage.KindCanceled, "volume "+id.String(), ctx.Err())
		}
	}
}

// Volume implements volume.Cluster. If this node's copy lacks the volume, it asks the catalog's leader, so that a volume can be
// opened on any node as soon as it was made on one. Without a leader it does not deny that the volume exists.
func (l *Local) Volume(ctx context.Context, name string) (v storage.Volume, err error) {
	var ok bool
	find := func(s *catalog.State) { v, ok = s.VolumeByName(name) }
	l.desk.catalog.View(find)
	if !ok {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := l.desk.catalog.Read(ctx, find); err != nil { // it may have been made since: only the leader can say that it was not
			return v, catalog.NotKnown("find", "volume "+name, err)
		}
	}
	if !ok {
		return v, storage.E("find", storage.KindNotFound, "volume "+name, nil)
	}
	return v, nil
}

// Volumes implements volume.Cluster, from this node's copy of the catalog.
func (l *Local) Volumes(context.Context) (out []storage.Volume, err error) {
	read := false
	l.desk.catalog.View(func(s *catalog.State) {
		read = s.Initialised()
		out = s.VolumesByName()
	})
	if !read {
		return nil, catalog.NotKnown("list", "volumes", catalog.ErrUnread)
	}
	return out, nil
}

// Attach implements volume.Cluster: it attaches a volume for the plain NBD clients of this node.
func (l *Local) Attach(ctx context.Context, name string, options volume.OpenOptions) (storage.Attachment, error) {
	cmd := catalog.Attach{Volume: storage.ByName(name), Holder: storage.NBDHolder(l.gateway.Node, l.name, options.ReadOnly), Access: options.Access,
		ReadOnly: options.ReadOnly}
	if options.Client != "" {
		cmd.Holder = cmd.Holder.ForClient(options.Client)
	}
	for until := time.Now().Add(leavePatience); ; {
		a, err := l.attachOnce(ctx, name, cmd)
		if !errors.Is(err, storage.ErrConflict) || time.Now().After(until) || !l.mayLeave(name) {
			return a, err
		}
		select {
		case <-time.After(leavePoll):
		case <-ctx.Done():
			return storage.Attachment{}, err
		}
	}
}

func (l *Local) attachOnce(ctx context.Context, name string, cmd catalog.Attach) (storage.Attachment, error) {
	done, err := l.occupy(ctx, name)
	if err != nil {
		return storage.Attachment{}, err
	}
	defer done()
	a, err := l.desk.Attach(ctx, cmd)
	if err != nil {
		return storage.Attachment{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[a.ID]
	if h == nil {
		h = &held{}
		l.held[a.ID] = h
	}
	h.refs++
	return a, nil
}

// mayLeave reports whether a volume that could not be attached may soon be left by those who have it: plain NBD clients.
// A host keeps what it has attached.
func (l *Local) mayLeave(name string) bool {
	may := true
	l.desk.catalog.View(func(s *catalog.State) {
		v, _ := s.VolumeByName(name)
		for _, a := range s.AttachmentsOf(v.ID) {
			may = may && a.Holder.Kind == storage.HolderNBD
		}
	})
	return may
}

// occupy waits until nothing else is attached or detached under the name: a detach must not end the attachment that a later
// attach has returned. done ends the occupation.
func (l *Local) occupy(ctx context.Context, name string) (done func(), err error) {
	for {
		l.mu.Lock()
		other := l.busy[name]
		if other == nil {
			mine := make(chan struct{})
			l.busy[name] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.busy, name)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, storage.E("attach", storage.KindCanceled, "volume "+name, ctx.Err())
		}
	}
}

// Detach implements volume.Cluster. What it does not achieve, Tidy does.
func (l *Local) Detach(ctx context.Context, name string, a storage.Attachment, closed bool) error {
	done, err := l.occupy(ctx, name)
	if err != nil {
		l.drop(a.ID, false)
		return err
	}
	defer done()
	last, clean := l.drop(a.ID, closed)
	if !last {
		return nil
	}
	return l.detach(ctx, a, clean)
}

// drop gives up one use of an attachment, and reports whether it was the last, and whether all ended cleanly.
func (l *Local) drop(id storage.AttachmentID, closed bool) (last, clean bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[id]
	if h == nil {
		return false, false
	}
	h.refs--
	h.unclean = h.unclean || !closed
	if h.refs > 0 {
		return false, false
	}
	delete(l.held, id)
	return true, !h.unclean
}

func (l *Local) detach(ctx context.Context, a storage.Attachment, clean bool) error {
	return l.desk.Detach(ctx, catalog.Detach{Volume: storage.ByID(a.Volume), Attachment: a.ID, Closed: clean})
}

// Tidy detaches, until ctx is done, volumes that this node has attached for clients that it no longer has: those of an earlier
// instance, and those whose detach has failed.
func (l *Local) Tidy(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for name, strays := range l.strays() {
			for _, a := range strays {
				l.tidyOne(ctx, name, a)
			}
		}
	}
}

// strays returns the attachments of this node that no client of it is known to need, by the names of their volumes.
func (l *Local) strays() map[string][]storage.Attachment {
	found := map[string][]storage.Attachment{}
	l.desk.catalog.View(func(s *catalog.State) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, a := range s.AttachmentsBy(l.gateway.Node) {
			v, _ := s.Volume(a.Volume)
			if l.held[a.ID] == nil && l.busy[v.Name] == nil {
				found[v.Name] = append(found[v.Name], a)
			}
		}
	})
	return found
}

func (l *Local) tidyOne(ctx context.Context, name string, a storage.Attachment) {
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	done, err := l.occupy(ctx, name)
	if err != nil {
		return // the next round sees to it
	}
	defer done()
	l.mu.Lock()
	needed := l.held[a.ID] != nil
	l.mu.Unlock()
	if !needed {
		_ = l.detach(ctx, a, false) // the next round sees to what is left
	}
}
