package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/route"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/server/catalog"
)

// clusterCatalog is the catalog of the simulated cluster: the real state machine behind a lock instead of a Raft group
// of its own. Its answers take a while and are sometimes lost.
type clusterCatalog struct {
	mu      sync.Mutex
	state   *catalog.State // guarded by mu, as all below
	index   uint64
	random  *rand.Rand
	changed chan struct{} // closed and replaced at every command
}

func newCatalog(random *rand.Rand) *clusterCatalog {
	return &clusterCatalog{state: catalog.New(), random: random, changed: make(chan struct{})}
}

// apply runs a command at once.
func (c *clusterCatalog) apply(command catalog.Command) (catalog.Result, error) {
	b, err := catalog.Encode(command)
	if err != nil {
		return catalog.Result{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	r := c.state.Apply(c.index, b)
	close(c.changed)
	c.changed = make(chan struct{})
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

// fate says how long a command waits, and whether it gets lost before or after it is applied.
func (c *clusterCatalog) fate() (wait time.Duration, before, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.random.IntN(20)
	return time.Duration(c.random.Int64N(int64(10 * time.Millisecond))), lost == 0, lost == 1
}

func lost(what string) error {
	return storage.E(what, storage.KindUnavailable, "catalog", errors.New("no answer"))
}

// propose is apply as a node sees it.
func (c *clusterCatalog) propose(ctx context.Context, what string, command catalog.Command) (catalog.Result, error) {
	wait, before, after := c.fate()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return catalog.Result{}, storage.E(what, storage.KindUnavailable, "catalog", ctx.Err())
	}
	if before {
		return catalog.Result{}, lost(what)
	}
	r, err := c.apply(command)
	if err == nil && after {
		err = lost(what)
	}
	return r, err
}

// view reads the state and returns what is closed when it changes.
func (c *clusterCatalog) view(read func(*catalog.State)) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	read(c.state)
	return c.changed
}

// gatewayView is volume.Cluster of one gateway: groups through the router, the rest through the catalog.
type gatewayView struct {
	*route.Router
	p        *process
	catalog  *clusterCatalog
	instance string
}

var _ volume.Cluster = (*gatewayView)(nil)

func (v *gatewayView) at() catalog.Gateway { return catalog.Gateway{Node: v.p.n.id} }

// gone is the answer to a process that was killed.
func (v *gatewayView) gone(what string) error {
	if v.p.dead.Load() {
		return storage.E(what, storage.KindUnavailable, "catalog", errors.New("this process was killed"))
	}
	return nil
}

// holder is the gateway as who may use volumes, beside the other gateways.
func (v *gatewayView) holder() storage.Holder {
	return storage.NBDHolder(v.p.n.id, fmt.Sprint("node-", v.p.n.id), false)
}

// Attach implements volume.Cluster. The simulated clients use a volume through several gateways at once.
func (v *gatewayView) Attach(ctx context.Context, name string, options volume.OpenOptions) (storage.Attachment, error) {
	if err := v.gone("attach"); err != nil {
		return storage.Attachment{}, err
	}
	r, err := v.catalog.propose(ctx, "attach", catalog.Attach{Volume: storage.ByName(name), Holder: v.holder(), Access: options.Access,
		ReadOnly: options.ReadOnly, At: time.Now().UTC()})
	if errors.Is(err, storage.ErrConflict) { // in the middle of a takeover: the volume will be left
		return storage.Attachment{}, storage.E("attach", storage.KindUnavailable, "volume "+name, err)
	}
	if err != nil {
		return storage.Attachment{}, err
	}
	return *r.Attachment, nil
}

// Detach implements volume.Cluster. Attachments stay: the gateways are restarted, and opened again, all the time.
func (v *gatewayView) Detach(context.Context, string, storage.Attachment, bool) error { return nil }

// OpenSession implements volume.Cluster.
func (v *gatewayView) OpenSession(ctx context.Context, name string, req volume.SessionRequest) (volume.SessionInfo, error) {
	if err := v.gone("open session"); err != nil {
		return volume.SessionInfo{}, err
	}
	r, err := v.catalog.propose(ctx, "open session", catalog.OpenSession{Volume: storage.ByName(name), Gateway: v.at(),
		Attachment: req.Attachment, Instance: v.instance, After: req.After, ReadOnly: req.ReadOnly, At: time.Now().UTC()})
	if err != nil {
		return volume.SessionInfo{}, err
	}
	info := volume.SessionInfo{ID: r.Session.ID, Volume: r.Volume.ID, SizeBytes: r.Volume.SizeBytes, Groups: r.Volume.Groups,
		Epoch: r.Volume.Epoch, Generation: r.Session.Generation}
	for _, p := range r.Predecessors {
		info.Predecessors = append(info.Predecessors, p.ID)
	}
	return info, nil
}

// CloseSession implements volume.Cluster.
func (v *gatewayView) CloseSession(ctx context.Context, session storage.SessionID) error {
	if err := v.gone("close session"); err != nil {
		return err
	}
	_, err := v.catalog.propose(ctx, "close session", catalog.CloseSession{Session: session})
	return err
}

// WatchVolume implements volume.Cluster.
func (v *gatewayView) WatchVolume(ctx context.Context, id storage.VolumeID, attachment storage.AttachmentID, after uint64) (volume.VolumeState, error) {
	for {
		var at storage.Volume
		var ok bool
		var lost string
		changed := v.catalog.view(func(s *catalog.State) {
			at, ok = s.Volume(id)
			lost = s.Lost(id, attachment)
		})
		if !ok {
			return volume.VolumeState{}, storage.E("watch", storage.KindNotFound, "volume "+id.String(), nil)
		}
		if at.Revision > after {
			return volume.VolumeState{Revision: at.Revision, SizeBytes: at.SizeBytes, Epoch: at.Epoch,
				Generation: at.Generation, Lost: lost}, nil
		}
		select {
		case <-changed:
			if d := v.p.n.r.plan.newsDelay(); d > 0 {
				v.p.n.r.sleep(ctx, d)
			}
		case <-ctx.Done():
			return volume.VolumeState{}, storage.E("watch", storage.KindCanceled, "volume "+id.String(), ctx.Err())
		}
	}
}

// Volume implements volume.Cluster.
func (v *gatewayView) Volume(_ context.Context, name string) (found storage.Volume, err error) {
	err = storage.E("find", storage.KindNotFound, "volume "+name, nil)
	v.catalog.view(func(s *catalog.State) {
		if at, ok := s.VolumeByName(name); ok {
			found, err = at, nil
		}
	})
	return found, err
}

// Volumes implements volume.Cluster.
func (v *gatewayView) Volumes(context.Context) ([]storage.Volume, error) { return nil, nil }

func volumeName(i int) string { return fmt.Sprintf("vol-%d", i) }
