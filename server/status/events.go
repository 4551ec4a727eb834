package status

import (
	"context"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
)

// Events answers api.Cluster from this node's copy of the catalog.
func (v *View) Events(_ context.Context, f api.EventFilter) (out api.Events, err error) {
	v.Catalog.View(func(s *catalog.State) {
		if s.Cluster().ID.IsZero() {
			err = catalog.NotKnown("list", "events", catalog.ErrUnread)
			return
		}
		if out = f.Select(s.Events(), s.LastEvent()); s.LastEvent() == 0 {
			out.Kept = s.InForce() >= catalog.EventsVersion
		}
	})
	return out, err
}
