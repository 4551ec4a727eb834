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

// Catalog is what a Desk asks of the node's catalog. *control.Controller implements it, and says what its methods promise.
type Catalog interface {
	Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error)
	Attach(ctx context.Context, cmd catalog.Attach) (storage.Attachment, error)
	Detach(ctx context.Context, cmd catalog.Detach) error
	// View shows the node's own copy, Read one that is at least as new as everything committed before the call.
	View(fn func(*catalog.State)) catalog.Freshness
	Read(ctx context.Context, fn func(*catalog.State)) error
	// Changed returns the copy's index and a channel that is closed when it has moved on.
	Changed() (index uint64, next <-chan struct{})
}

const (
	// heardFor is how long a session of a host is named in the node's reports after its gateway was last heard of. The gateway
	// asks every FollowFor, here or elsewhere.
	heardFor = 3 * remote.FollowFor
	// maxHeard bounds the sessions of hosts that one node keeps alive.
	maxHeard = 1 << 17
)

// Desk answers gateways. It is made by NewDesk.
type Desk struct {
	catalog Catalog
	now     func() time.Time

	mu    sync.Mutex
	own   map[storage.SessionID]bool      // of this node's gateway; guarded by mu
	heard map[storage.SessionID]time.Time // when a host's gateway last named it; guarded by mu
}

// NewDesk returns the desk of a node.
func NewDesk(c Catalog) *Desk {
	return &Desk{catalog: c, now: time.Now, own: map[storage.SessionID]bool{}, heard: map[storage.SessionID]time.Time{}}
}

// Gateway is who asks.
type Gateway struct {
	catalog.Gateway
	Instance string          // new at every start
	Machine  storage.Machine // where a host's gateway runs
	From     string          // its name and address, for people
}

// Attach gives a holder the right to use a volume; see control.Controller.Attach.
func (d *Desk) Attach(ctx context.Context, cmd catalog.Attach) (storage.Attachment, error) {
	cmd.At = d.now().UTC()
	return d.catalog.Attach(ctx, cmd)
}

// Detach ends a holder's right to use a volume; see control.Controller.Detach.
func (d *Desk) Detach(ctx context.Context, cmd catalog.Detach) error {
	cmd.At = d.now().UTC()
	return d.catalog.Detach(ctx, cmd)
}

// Open opens a session of a volume for a gateway, under the attachment that the request names.
func (d *Desk) Open(ctx context.Context, g Gateway, name string, req volume.SessionRequest) (volume.SessionInfo, error) {
	r, err := d.catalog.Propose(ctx, catalog.OpenSession{Volume: storage.ByName(name), Gateway: g.Gateway, Attachment: req.Attachment,
		Instance: g.Instance, Machine: g.Machine, From: g.From, After: req.After, ReadOnly: req.ReadOnly, At: d.now().UTC()})
	if err != nil {
		return volume.SessionInfo{}, err
	}
	if r.Session == nil || r.Volume == nil {
		return volume.SessionInfo{}, storage.E("open session", storage.KindInternal, "volume "+name, errors.New("the catalog's answer is incomplete"))
	}
	d.keep(g, r.Session.ID)
	info := volume.SessionInfo{ID: r.Session.ID, Volume: r.Volume.ID, SizeBytes: r.Volume.SizeBytes, Groups: r.Volume.Groups,
		Epoch: r.Volume.Epoch, Generation: r.Session.Generation, Limits: r.Volume.Limits, Revision: r.Volume.Revision}
	for _, p := range r.Predecessors {
		info.Predecessors = append(info.Predecessors, p.ID)
	}
	return info, nil
}

// Close tells the catalog that a gateway has closed a session in every group. The session is not kept alive any more, whatever the
// catalog answers. If the catalog did not learn of the close, the session expires, instead of keeping its volume open for ever.
func (d *Desk) Close(ctx context.Context, g Gateway, id storage.SessionID) error {
	d.mu.Lock()
	if g.Host == "" {
		delete(d.own, id)
	} else {
		delete(d.heard, id)
	}
	d.mu.Unlock()
	_, err := d.catalog.Propose(ctx, catalog.CloseSession{Session: id})
	return err
}

// keep has sessions of a gateway named in reports.
func (d *Desk) keep(g Gateway, ids ...storage.SessionID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	for _, id := range ids {
		if _, known := d.heard[id]; g.Host == "" {
			d.own[id] = true
		} else if known || len(d.heard) < maxHeard {
			d.heard[id] = now
		}
	}
}

// Sessions returns the sessions that the node names in its report, which keeps them alive: its own gateway's, and those of hosts
// whose gateways were heard from lately.
func (d *Desk) Sessions() []storage.SessionID {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	out := make([]storage.SessionID, 0, len(d.own)+len(d.heard))
	for id := range d.own {
		out = append(out, id)
	}
	for id, at := range d.heard {
		if now.Sub(at) > heardFor {
			delete(d.heard, id)
			continue
		}
		out = append(out, id)
	}
	return out
}

// News returns the volumes that differ from what the caller knows of them, with the state of each as the holder of the attachment
// sees it. An error means that some volumes are missing from this node's copy of the catalog, and that no newer copy could be
// asked: the copy may lag behind the one that opened them. The news of the others is returned with the error.
func (d *Desk) News(ctx context.Context, known []remote.Followed) (news []remote.News, err error) {
	var missing []remote.Followed
	d.catalog.View(func(s *catalog.State) { news, missing = compare(s, known) })
	if len(missing) == 0 {
		return news, nil
	}
	err = d.catalog.Read(ctx, func(s *catalog.State) {
		more, gone := compare(s, missing)
		news = append(news, more...)
		for _, f := range gone {
			news = append(news, remote.News{Watch: f.Watch, VolumeState: volume.VolumeState{Revision: s.Applied(), Deleted: true}})
		}
	})
	return news, err
}

// compare returns what is newer in a copy of the catalog than it is known, and what is missing there.
func compare(s *catalog.State, known []remote.Followed) (news []remote.News, missing []remote.Followed) {
	for _, f := range known {
		v, ok := s.Volume(f.Volume)
		switch {
		case !ok:
			missing = append(missing, f)
		case v.Revision > f.Revision:
			news = append(news, remote.News{Watch: f.Watch, VolumeState: volume.VolumeState{Revision: v.Revision, SizeBytes: v.SizeBytes,
				Epoch: v.Epoch, Generation: v.Generation, Limits: v.Limits, Deleted: v.State == storage.VolumeDeleting,
				Lost: s.Lost(v.ID, f.Attachment)}})
		}
	}
	return news, missing
}
