package control

import (
	"context"
	"errors"
	"fmt"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/server/catalog"
)

// Attach gives a holder the right to use a volume, on whatever node this is. When it returns without an error after
// attachments had to end, every group of the volume refuses what their holders have sent. It tries again until ctx is
// done; interrupted, it is finished by the next call, or by the catalog's leader. KindConflict: others are in the way,
// or were faster.
func (c *Controller) Attach(ctx context.Context, cmd catalog.Attach) (storage.Attachment, error) {
	r, err := c.Propose(ctx, cmd)
	if err != nil {
		return storage.Attachment{}, err
	}
	if r.Attachment == nil || r.Volume == nil {
		return storage.Attachment{}, storage.E("attach", storage.KindInternal, cmd.Volume.String(), errors.New("the catalog's answer is incomplete"))
	}
	v := *r.Volume
	if v.Fenced == v.Generation {
		return *r.Attachment, nil
	}
	if err := c.fence(ctx, v, r.Index); err != nil {
		return storage.Attachment{}, err
	}
	// Another takeover may have come meanwhile: then this one lost.
	var lost string
	if err := c.Read(ctx, func(s *catalog.State) { lost = s.Lost(v.ID, r.Attachment.ID) }); err != nil {
		return storage.Attachment{}, err
	}
	if lost != "" {
		return storage.Attachment{}, storage.E("attach", storage.KindConflict, "volume "+v.Name, errors.New(lost))
	}
	return *r.Attachment, nil
}

// Detach ends a holder's attachment, on whatever node this is. When it returns without an error, nothing that the holder
// has sent can land any more. It is repeated and finished like Attach.
func (c *Controller) Detach(ctx context.Context, cmd catalog.Detach) error {
	r, err := c.Propose(ctx, cmd)
	if err != nil || r.Volume == nil {
		return err
	}
	v := *r.Volume
	if v.State != storage.VolumeReady {
		return nil // its groups refuse it as a whole
	}
	if v.Fenced < v.Generation {
		if err := c.fence(ctx, v, r.Index); err != nil {
			return err
		}
	}
	for _, x := range r.Predecessors {
		// Those of an older generation are refused already: the catalog's leader closes them when it finds the time.
		if x.Generation == v.Generation {
			if err := c.closeEverywhere(ctx, v, x.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// fence has every group of a volume refuse generations below the volume's, and writes down in the catalog that they do. v is the
// volume as of a command at index.
func (c *Controller) fence(ctx context.Context, v storage.Volume, index uint64) error {
	// Guards I2: only when every group has refused the older generations may the new holder read or write.
	err := c.inGroups(ctx, v, func(ctx context.Context, g storage.GroupID) error {
		at, ready := c.readyAt(v.ID, index)
		if !ready {
			return nil // its groups refuse a deleted volume as a whole
		}
		return c.cfg.Actions.SetGeneration(ctx, g, v.ID, v.Generation, at)
	})
	if err != nil {
		return storage.E("fence the former holder of", storage.KindOf(err), "volume "+v.Name, err)
	}
	_, err = c.Propose(ctx, catalog.SetFenced{Volume: v.ID, Generation: v.Generation})
	return err
}

// readyAt returns the newest index of the catalog at which this node knows the volume to be there; it was at the given one. A
// group that has forgotten deleted volumes, and does not know this one, accepts only a newer index. false: the volume is being
// deleted.
func (c *Controller) readyAt(id storage.VolumeID, index uint64) (at uint64, ready bool) {
	c.fsm.view(func(s *catalog.State) {
		if at = s.Applied(); at <= index {
			at, ready = index, true // this node's copy lags
			return
		}
		v, ok := s.Volume(id)
		ready = ok && v.State == storage.VolumeReady
	})
	return at, ready
}

// closeEverywhere closes a session in every group of its volume, and then in the catalog.
func (c *Controller) closeEverywhere(ctx context.Context, v storage.Volume, id storage.SessionID) error {
	err := c.inGroups(ctx, v, func(ctx context.Context, g storage.GroupID) error {
		return c.cfg.Actions.CloseSession(ctx, g, v.ID, id)
	})
	if err != nil {
		return storage.E("close session "+id.String()+" of", storage.KindOf(err), "volume "+v.Name, err)
	}
	_, err = c.Propose(ctx, catalog.CloseSession{Session: id})
	return err
}

// inGroups asks every group of a volume at the same time, each until it has decided or ctx is done.
func (c *Controller) inGroups(ctx context.Context, v storage.Volume, ask func(context.Context, storage.GroupID) error) error {
	groups := make(map[storage.GroupID]bool, len(v.Groups))
	for _, g := range v.Groups {
		groups[g] = true
	}
	var mu sync.Mutex // guards errs
	var errs []error
	var wg sync.WaitGroup
	for g := range groups {
		wg.Go(func() {
			if err := c.insist(ctx, func(ctx context.Context) error { return ask(ctx, g) }); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, storage.E("ask", storage.KindOf(err), "group "+g.String(), err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// insist repeats what may be repeated until it is decided or ctx is done.
func (c *Controller) insist(ctx context.Context, do func(context.Context) error) error {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		attempt, cancel := context.WithTimeout(ctx, c.cfg.GroupTimeout)
		err := do(attempt)
		cancel()
		switch storage.KindOf(err) {
		case storage.KindNotLeader, storage.KindUnavailable, storage.KindCanceled, storage.KindIO, storage.KindInternal:
		default:
			return err
		}
		if stop := clock.Sleep(ctx, jitter(pause)); stop != nil {
			return storage.E("ask", storage.KindUnavailable, "", fmt.Errorf("%w: %w", stop, err))
		}
	}
}
