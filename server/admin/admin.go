// Package admin is what people, and the tools that act for them, ask of the cluster: it implements the API's Cluster. Requests
// become commands of the catalog; status answers what only looks.
package admin

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/status"
)

// Cluster is the cluster as the API sees it from this node. Its fields are set before its methods are called, which may be
// called concurrently.
type Cluster struct {
	*status.View
	Commands       Commands
	Desk           Desk
	Verifier       Verifier
	ProvisionLimit int // of requests to this node, in percent of what the stores hold; 0: none
}

var _ api.Cluster = (*Cluster)(nil)

// Commands brings commands to the catalog's leader. *control.Controller implements it, and says what its methods promise.
type Commands interface {
	Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error)
}

// Desk is where the right to use volumes is got and given up. *session.Desk implements it, and says what its methods promise.
type Desk interface {
	Attach(ctx context.Context, cmd catalog.Attach) (storage.Attachment, error)
	Detach(ctx context.Context, cmd catalog.Detach) error
}

// Verifier verifies volumes. *verify.Verifier implements it.
type Verifier interface {
	VerifyVolume(ctx context.Context, s api.VerifyStep) (api.Verified, error)
}

// propose brings a command to the catalog's leader. One whose caller has left before it was sent is KindCanceled: nothing was
// done, while KindUnavailable would say that it is not known.
func (c *Cluster) propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error) {
	if err := ctx.Err(); err != nil {
		return catalog.Result{}, storage.E("ask the catalog", storage.KindCanceled, "", err)
	}
	return c.Commands.Propose(ctx, cmd)
}

// CreateVolume implements api.Cluster.
func (c *Cluster) CreateVolume(ctx context.Context, nv api.NewVolume) (api.Volume, error) {
	ready, err := c.readyGroups(ctx, nv.Groups)
	if err != nil {
		return api.Volume{}, err
	}
	if nv.Groups > ready {
		return api.Volume{}, storage.E("create", storage.KindInvalid, "volume "+nv.Name,
			fmt.Errorf("it cannot be striped over %d groups: %d are ready; use a power of two up to that, or leave it out", nv.Groups, ready))
	}
	groups := nv.Groups
	if groups == 0 {
		groups = catalog.StripeGroups(nv.SizeBytes)
	}
	// The proposal may be sent again after a lost answer, and must then find what it has made, whoever asks.
	id := cmp.Or(nv.RequestID, rand.Text())
	r, err := c.propose(ctx, catalog.CreateVolume{Name: nv.Name, SizeBytes: nv.SizeBytes, RequestID: id, At: time.Now().UTC(),
		Groups: groups, Limits: nv.Limits, Labels: nv.Labels, ProvisionPercent: c.provisionPercent(nv.Overcommit)})
	if err != nil {
		return api.Volume{}, err
	}
	return status.Volume(*r.Volume, nil, nil), nil
}

// provisionPercent is the limit that a request is held to; 0: none. While nodes may not know the limit, nothing is held to it.
func (c *Cluster) provisionPercent(overcommit bool) (percent int) {
	c.Catalog.View(func(s *catalog.State) {
		if !overcommit && s.InForce() >= catalog.ProvisionVersion {
			percent = c.ProvisionLimit
		}
	})
	return percent
}

// readyGroups counts the groups that a volume may be striped over. This node's copy may be old: only when it has fewer than are
// asked for the leader is asked.
func (c *Cluster) readyGroups(ctx context.Context, wanted int) (n int, err error) {
	count := func(s *catalog.State) {
		n = 0
		for _, g := range s.Groups() {
			if g.State == storage.GroupReady {
				n++
			}
		}
	}
	if c.Catalog.View(count); n < wanted {
		err = c.Catalog.Read(ctx, count)
	}
	return n, err
}

// ResizeVolume implements api.Cluster.
func (c *Cluster) ResizeVolume(ctx context.Context, name string, size api.NewSize) (api.Volume, error) {
	r, err := c.propose(ctx, catalog.ResizeVolume{Volume: storage.ByName(name), SizeBytes: size.Bytes,
		ProvisionPercent: c.provisionPercent(size.Overcommit)})
	if err != nil {
		return api.Volume{}, err
	}
	return status.Volume(*r.Volume, nil, nil), nil
}

// ModifyVolume implements api.Cluster.
func (c *Cluster) ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change api.VolumeChange) (api.Volume, error) {
	ref, _, err := c.refer(ctx, "modify", storage.VolumeRef{Name: name, ID: id})
	if err != nil {
		return api.Volume{}, err
	}
	var r catalog.Result
	if !change.Labels.IsZero() { // before the limits: only labels may be refused for what the volume has
		r, err = c.propose(ctx, catalog.SetVolumeLabels{Volume: ref, LabelChange: change.Labels})
	}
	if err == nil && (change.Limits != (storage.LimitsChange{}) || change.Labels.IsZero()) {
		r, err = c.propose(ctx, catalog.SetVolumeLimits{Volume: ref, LimitsChange: change.Limits})
	}
	if err != nil {
		return api.Volume{}, err
	}
	return status.Volume(*r.Volume, nil, nil), nil
}

// DeleteVolume implements api.Cluster.
func (c *Cluster) DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error {
	ref, _, err := c.refer(ctx, "delete", storage.VolumeRef{Name: name, ID: id})
	if err != nil {
		return err
	}
	_, err = c.propose(ctx, catalog.DeleteVolume{Volume: ref})
	return err
}

// VerifyVolume implements api.Cluster.
func (c *Cluster) VerifyVolume(ctx context.Context, s api.VerifyStep) (api.Verified, error) {
	return c.Verifier.VerifyVolume(ctx, s)
}

// Attach implements api.Cluster.
func (c *Cluster) Attach(ctx context.Context, n api.NewAttachment) (api.Attachment, error) {
	ref, name, err := c.refer(ctx, "attach", n.Volume)
	if err != nil {
		return api.Attachment{}, err
	}
	if n.Access == "" {
		n.Access = storage.AccessExclusive
	}
	n.ReadOnly = n.ReadOnly || n.Access == storage.AccessReaders
	a, err := c.Desk.Attach(ctx, catalog.Attach{Volume: ref,
		Holder: n.Holder, Access: n.Access, ReadOnly: n.ReadOnly, TakeOver: n.TakeOver, IfGeneration: n.IfGeneration})
	if err != nil {
		return api.Attachment{}, err
	}
	return status.Attachment(a, name), nil
}

// refer finds the volume that is meant, as the catalog's leader knows it: from then on it is meant by its id. This node's copy
// would not do, whatever it has: of a name that was given again it may know the volume before, and not the one that is meant.
func (c *Cluster) refer(ctx context.Context, op string, r storage.VolumeRef) (storage.VolumeRef, string, error) {
	var found storage.Volume
	var ok bool
	err := c.Catalog.Read(ctx, func(s *catalog.State) {
		if r.Name != "" {
			found, ok = s.VolumeByName(r.Name)
		} else {
			found, ok = s.Volume(r.ID)
		}
	})
	switch {
	case err != nil:
		return storage.VolumeRef{}, "", catalog.NotKnown(op, r.String(), err)
	case ok && r.ID != 0 && found.ID != r.ID:
		return storage.VolumeRef{}, "", storage.E(op, storage.KindNotFound, r.String(), errors.New("the volume of that name is another one now"))
	case !ok:
		return storage.VolumeRef{}, "", storage.E(op, storage.KindNotFound, r.String(),
			errors.New("there is no such volume; `storagectl volume list` shows those there are"))
	}
	return storage.ByID(found.ID), found.Name, nil
}

// Detach implements api.Cluster.
func (c *Cluster) Detach(ctx context.Context, d api.Detachment) error {
	ref, _, err := c.refer(ctx, "detach", d.Volume)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // what is not there is not attached
	}
	if err != nil {
		return err
	}
	return c.Desk.Detach(ctx, catalog.Detach{Volume: ref, Holder: d.HolderID, Attachment: d.Attachment, Machine: d.Machine})
}

// Upgrade implements api.Cluster. The catalog's leader checks that every node knows the version.
func (c *Cluster) Upgrade(ctx context.Context, version int) (inForce int, err error) {
	if version == 0 {
		s, err := c.Status(ctx)
		if err != nil {
			return 0, err
		}
		version = cmp.Or(s.VersionKnown, catalog.Version) // with a node that was not heard the leader refuses it, and says which
	}
	if _, err := c.propose(ctx, catalog.RaiseVersion{To: version}); err != nil {
		return 0, err
	}
	err = c.Catalog.Read(ctx, func(s *catalog.State) { inForce = s.InForce() })
	return inForce, err
}

// BackupCatalog implements api.Cluster. This node's copy is taken once it has all that the leader had committed.
func (c *Cluster) BackupCatalog(ctx context.Context) ([]byte, error) {
	var state *catalog.State
	if err := c.Catalog.Read(ctx, func(s *catalog.State) { state = s.Clone() }); err != nil {
		return nil, storage.E("back up", storage.KindOf(err), "catalog", err)
	}
	return state.Snapshot()
}

// SetNodeIntent implements api.Cluster.
func (c *Cluster) SetNodeIntent(ctx context.Context, id storage.NodeID, change api.IntentChange) error {
	const op = "set intent"
	if left := time.Until(change.Until); change.Intent == storage.IntentMaintenance && (left <= 0 || left > catalog.MaxMaintenance) {
		return storage.E(op, storage.KindInvalid, "node "+id.String(), fmt.Errorf("maintenance would end in %v; choose more than nothing, and at most %v",
			left.Round(time.Second), catalog.MaxMaintenance))
	}
	_, err := c.propose(ctx, catalog.SetNodeIntent{Node: id, Intent: change.Intent, Until: change.Until.UTC(), From: change.From})
	var e *storage.Error
	if errors.As(err, &e) && e.Op == "set node intent" { // say what was asked for
		return storage.E(op, e.Kind, e.Subject, e.Err)
	}
	return err
}

// RemoveNode implements api.Cluster.
func (c *Cluster) RemoveNode(ctx context.Context, id storage.NodeID) error {
	_, err := c.propose(ctx, catalog.SetNodeState{Node: id, State: storage.NodeRemoved})
	var e *storage.Error
	if errors.As(err, &e) && e.Op == "set node state" { // say what was asked for
		return storage.E("remove", e.Kind, e.Subject, e.Err)
	}
	return err
}
