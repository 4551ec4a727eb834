package server

import (
	"context"
	"errors"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/volume"
)

// How long a plain NBD client waits for a volume that others have, and how often it is looked at meanwhile.
const (
	// leavePatience outlasts the time in which another node's gateway detaches a volume that its last client has left, and
	// the silence after which a node that died counts as such and gives way (control.Config.SuspectAfter).
	leavePatience = 5 * time.Second
	leavePoll     = 100 * time.Millisecond
)

// tidyInterval is how often a node looks for attachments of its own that none of its clients needs.
const tidyInterval = time.Second

// Attach implements volume.Cluster: it attaches a volume for the plain NBD clients of this node.
func (c *cluster) Attach(ctx context.Context, name string, terms volume.Terms) (volume.Attachment, error) {
	cmd := catalog.Attach{Volume: catalog.ByName(name), Holder: catalog.NBDHolder(c.self, c.name, terms.ReadOnly), Access: catalog.Exclusive,
		ReadOnly: terms.ReadOnly}
	switch {
	case terms.Shared:
		cmd.Access = catalog.Shared
	case terms.Client != "":
		cmd.Holder = cmd.Holder.ForClient(terms.Client)
	}
	for until := time.Now().Add(leavePatience); ; {
		a, err := c.attachOnce(ctx, name, cmd)
		if !errors.Is(err, storage.ErrConflict) || time.Now().After(until) || !c.mayLeave(name) {
			return a, err
		}
		select {
		case <-time.After(leavePoll):
		case <-ctx.Done():
			return volume.Attachment{}, err
		}
	}
}

func (c *cluster) attachOnce(ctx context.Context, name string, cmd catalog.Attach) (volume.Attachment, error) {
	done, err := c.occupy(ctx, name)
	if err != nil {
		return volume.Attachment{}, err
	}
	defer done()
	cmd.At = time.Now().UTC()
	a, err := c.control.Attach(ctx, cmd)
	if err != nil {
		return volume.Attachment{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[a.ID]
	if h == nil {
		h = &held{}
		c.held[a.ID] = h
	}
	h.refs++
	return volume.Attachment{ID: a.ID, Name: name, Volume: a.Volume}, nil
}

// mayLeave reports whether a volume that could not be attached may soon be left by those who have it: plain NBD clients.
// A host keeps what it has attached.
func (c *cluster) mayLeave(name string) bool {
	may := true
	c.control.View(func(s *catalog.State) {
		v, _ := s.VolumeByName(name)
		for _, a := range s.AttachmentsOf(v.ID) {
			may = may && a.Holder.Kind == catalog.HolderNBD
		}
	})
	return may
}

// occupy waits until nothing else is attached or detached under the name: a detach must not end what an attach that
// came after it was answered with. done ends the occupation.
func (c *cluster) occupy(ctx context.Context, name string) (done func(), err error) {
	for {
		c.mu.Lock()
		other := c.busy[name]
		if other == nil {
			mine := make(chan struct{})
			c.busy[name] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.busy, name)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, storage.E("attach", storage.KindCanceled, "volume "+name, ctx.Err())
		}
	}
}

// Detach implements volume.Cluster. What it does not achieve, tidy does.
func (c *cluster) Detach(ctx context.Context, a volume.Attachment, closed bool) error {
	done, err := c.occupy(ctx, a.Name)
	if err != nil {
		c.drop(a.ID, false)
		return err
	}
	defer done()
	last, clean := c.drop(a.ID, closed)
	if !last {
		return nil
	}
	return c.detach(ctx, a, clean)
}

// drop gives up one use of an attachment, and reports whether it was the last, and whether all ended cleanly.
func (c *cluster) drop(id storage.AttachmentID, closed bool) (last, clean bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[id]
	if h == nil {
		return false, false
	}
	h.refs--
	h.unclean = h.unclean || !closed
	if h.refs > 0 {
		return false, false
	}
	delete(c.held, id)
	return true, !h.unclean
}

func (c *cluster) detach(ctx context.Context, a volume.Attachment, clean bool) error {
	return c.control.Detach(ctx, catalog.Detach{Volume: catalog.ByID(a.Volume), Attachment: a.ID, Closed: clean, At: time.Now().UTC()})
}

// tidy detaches, until ctx is done, what this node has attached for clients that it does not have: an earlier instance's,
// and what a detach did not achieve.
func (c *cluster) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, a := range c.strays() {
			c.tidyOne(ctx, a)
		}
	}
}

// strays returns the attachments of this node that no client of it is known to need.
func (c *cluster) strays() []volume.Attachment {
	var found []volume.Attachment
	c.control.View(func(s *catalog.State) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, a := range s.AttachmentsBy(c.self) {
			v, _ := s.Volume(a.Volume)
			if c.held[a.ID] == nil && c.busy[v.Name] == nil {
				found = append(found, volume.Attachment{ID: a.ID, Name: v.Name, Volume: v.ID})
			}
		}
	})
	return found
}

func (c *cluster) tidyOne(ctx context.Context, a volume.Attachment) {
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	done, err := c.occupy(ctx, a.Name)
	if err != nil {
		return // the next round sees to it
	}
	defer done()
	c.mu.Lock()
	needed := c.held[a.ID] != nil
	c.mu.Unlock()
	if !needed {
		_ = c.detach(ctx, a, false) // the next round sees to what is left
	}
}
