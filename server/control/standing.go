package control

import (
	"context"
	"errors"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// removal returns an error with a *RemovedError in it if this node's copy of the catalog says that a node was removed. The
// copy may be old: a removal is committed before any copy has it, and is never taken back. nil for 0, which is no node.
func (c *Controller) removal(id storage.NodeID) (err error) {
	c.fsm.view(func(s *catalog.State) {
		if n, ok := s.Node(id); ok && n.State == storage.NodeRemoved {
			err = storage.E("serve", storage.KindPermission, "node "+id.String(), &RemovedError{Node: id, Name: n.Name})
		}
	})
	return err
}

// heed ends Run if err says that this node was removed.
func (c *Controller) heed(err error) {
	if e := (*RemovedError)(nil); !errors.As(err, &e) || e.Node != c.id.Node {
		return
	}
	select {
	case c.removed <- err:
	default: // it ends already
	}
}

// askStanding asks one node after the other whether this one was removed, one a call. A node that was removed while it was
// away hears of no leader, has no such entry in its log, and gets no votes: it has to ask.
func (c *Controller) askStanding(ctx context.Context, attempt int) {
	ids := slices.DeleteFunc(c.book.nodes(), func(id storage.NodeID) bool { return id == c.id.Node })
	if len(ids) == 0 {
		return
	}
	// askNode heeds the answer; no answer is none.
	_, _ = c.askNode(ctx, c.firstPatience(), ids[attempt%len(ids)], MethodRead, []byte(`{"standing":true}`))
}
