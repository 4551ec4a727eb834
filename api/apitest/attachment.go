package apitest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// findLocked returns the volume that is meant.
func (c *Cluster) findLocked(op string, r storage.VolumeRef) (api.Volume, error) {
	for name, v := range c.volumes {
		if (r.Name == "" || r.Name == name) && (r.ID == 0 || r.ID == v.ID) {
			return v, nil
		}
	}
	return api.Volume{}, storage.E(op, storage.KindNotFound, r.String(), errors.New("there is no such volume"))
}

// Attach implements api.Cluster.
func (c *Cluster) Attach(ctx context.Context, n api.NewAttachment) (api.Attachment, error) {
	const op = "attach"
	return call(ctx, c, op, func() (api.Attachment, error) {
		v, err := c.findLocked(op, n.Volume)
		if err != nil {
			return api.Attachment{}, err
		}
		if n.Access == "" {
			n.Access = storage.AccessExclusive
		}
		n.ReadOnly = n.ReadOnly || n.Access == storage.AccessReaders
		mine, others := c.split(v, n)
		same := mine.ID != 0 && mine.Access == n.Access && mine.ReadOnly == n.ReadOnly
		switch {
		case same && (!n.TakeOver || len(others) == 0 || n.IfGeneration != 0 && v.Generation == n.IfGeneration+1):
			return mine, nil
		case n.TakeOver && n.IfGeneration != 0 && n.IfGeneration != v.Generation:
			return api.Attachment{}, storage.E(op, storage.KindConflict, "volume "+v.Name,
				fmt.Errorf("its generation is %s and no longer %s", v.Generation, n.IfGeneration))
		case n.TakeOver:
			if len(v.Attachments) > 0 {
				v.Generation++
			}
			v.Attachments, v.Sessions = nil, nil
		case mine.ID != 0:
			return api.Attachment{}, storage.E(op, storage.KindConflict, "volume "+v.Name,
				fmt.Errorf("%s has it on other terms; detach it there first", mine.Holder.ID))
		}
		for _, a := range v.Attachments {
			if n.Access != a.Access || n.Access == storage.AccessExclusive {
				return api.Attachment{}, storage.E(op, storage.KindConflict, "volume "+v.Name,
					fmt.Errorf("it is attached %s by host %s since %s; detach it there, or take it over with --take-over", a.Access,
						a.Holder.ID, a.Since.UTC().Format("2006-01-02T15:04:05Z07:00")))
			}
		}
		c.lastAttachment++
		a := api.Attachment{Attachment: storage.Attachment{ID: c.lastAttachment, Volume: v.ID, Holder: n.Holder, Access: n.Access, ReadOnly: n.ReadOnly,
			Generation: v.Generation, Since: c.now()}, VolumeName: v.Name}
		v.Attachments = append(slices.Clone(v.Attachments), a)
		c.volumes[v.Name] = v
		return a, nil
	})
}

// split returns the holder's own attachment, whose ID is 0 if it has none, and the others'.
func (c *Cluster) split(v api.Volume, n api.NewAttachment) (mine api.Attachment, others []api.Attachment) {
	for _, a := range v.Attachments {
		if a.Holder.ID == n.Holder.ID {
			mine = a
		} else {
			others = append(others, a)
		}
	}
	return mine, others
}

// Detach implements api.Cluster.
func (c *Cluster) Detach(ctx context.Context, d api.Detachment) error {
	const op = "detach"
	return c.do(ctx, op, func() error {
		v, err := c.findLocked(op, d.Volume)
		if errors.Is(err, storage.ErrNotFound) {
			return nil // what is not there is not attached
		}
		if err != nil {
			return err
		}
		var kept []api.Attachment
		for _, a := range v.Attachments {
			if a.Holder.ID != d.HolderID || d.Attachment != 0 && a.ID != d.Attachment {
				kept = append(kept, a)
				continue
			}
			if a.Access == storage.AccessExclusive {
				v.Generation++
			}
			v.Sessions = slices.DeleteFunc(slices.Clone(v.Sessions), func(s api.Session) bool { return s.Attachment == a.ID })
		}
		v.Attachments = kept
		c.volumes[v.Name] = v
		return nil
	})
}

// Attachments implements api.Cluster.
func (c *Cluster) Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error) {
	return call(ctx, c, "list attachments", func() ([]api.Attachment, error) {
		var list []api.Attachment
		for name, v := range c.volumes {
			for _, a := range v.Attachments {
				if (f.Volume == "" || f.Volume == name) && (f.HolderID == "" || f.HolderID == a.Holder.ID) && a.ID > after {
					list = append(list, a)
				}
			}
		}
		slices.SortFunc(list, func(a, b api.Attachment) int { return cmp.Compare(a.ID, b.ID) })
		return list[:min(limit, len(list))], nil
	})
}
