package catalog

import (
	"errors"
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
)

// Check verifies what the package comment promises of a state and returns every breach. Restore uses it on what it
// read; tests use it after every command.
func (s *State) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for id, n := range s.nodes {
		if id == 0 || id > s.lastNode {
			bad("node %s above the last id %s", id, s.lastNode)
		}
		for _, st := range n.Stores {
			if s.nodeByStore[st.ID] != id {
				bad("store %s of node %s is another node's too", st.ID, id)
			}
		}
		if n.State != storage.NodeRemoved && s.nodeByName[n.Name] != id {
			bad("name %s of node %s is another node's too", n.Name, id)
		}
	}
	for id, g := range s.groups {
		s.checkGroup(bad, id, g)
	}
	for id, v := range s.volumes {
		s.checkVolume(bad, id, v)
	}
	for id, x := range s.sessions {
		v, ok := s.volumes[x.Volume]
		switch {
		case id == 0 || id > s.lastSession:
			bad("session %s above the last id %s", id, s.lastSession)
		case !ok:
			bad("session %s of no volume", id)
		case x.Generation > v.Generation:
			bad("session %s has generation %s above its volume's %s", id, x.Generation, v.Generation)
		case v.State == storage.VolumeDeleting && x.State == SessionLive:
			bad("volume %s is being deleted under live session %s", v.ID, id)
		case x.State == SessionLive && x.Attachment != 0 && !s.backed(*x):
			bad("session %s lives without its attachment %s", id, x.Attachment)
		}
	}
	s.checkAttachments(bad)
	s.checkEvents(bad)
	indexed := 0
	for id, sessions := range s.sessionsByVolume {
		for _, x := range s.SessionsOf(id) {
			if x.Volume != id {
				bad("session %s is listed for volume %s", x.ID, id)
			}
		}
		if !slices.IsSorted(sessions) {
			bad("the sessions of volume %s are out of order", id)
		}
		indexed += len(sessions)
	}
	if indexed != len(s.sessions) {
		bad("%d of %d sessions are listed for their volumes", indexed, len(s.sessions))
	}
	return errors.Join(errs...)
}

// backed reports whether a live session's attachment stands, on terms that cover it.
func (s *State) backed(x Session) bool {
	a, ok := s.attachments[x.Attachment]
	return ok && a.Volume == x.Volume && a.Generation == x.Generation && (x.ReadOnly || !a.ReadOnly) && !a.Silent
}

func (s *State) checkAttachments(bad func(string, ...any)) {
	indexed := 0
	for id, attachments := range s.attachmentsByVolume {
		if !slices.IsSorted(attachments) {
			bad("the attachments of volume %s are out of order", id)
		}
		indexed += len(attachments)
		holders := map[storage.Holder]bool{}
		for _, a := range s.AttachmentsOf(id) {
			v, ok := s.volumes[id]
			h := storage.Holder{ID: a.Holder.ID, Node: a.Holder.Node}
			switch {
			case a.ID == 0 || a.ID > s.lastAttachment:
				bad("attachment %s above the last id %s", a.ID, s.lastAttachment)
			case a.Volume != id || !ok || v.State != storage.VolumeReady:
				bad("attachment %s of volume %s, which cannot be attached", a.ID, id)
			case a.Generation != v.Generation:
				bad("attachment %s has generation %s, its volume %s", a.ID, a.Generation, v.Generation)
			case a.Access == storage.AccessExclusive && len(attachments) > 1:
				bad("exclusive attachment %s of volume %s is one of %d", a.ID, id, len(attachments))
			case !a.Access.Beside(s.attachments[attachments[0]].Access) && len(attachments) > 1:
				bad("attachment %s (%s) of volume %s is beside one that is %s", a.ID, a.Access, id, s.attachments[attachments[0]].Access)
			case a.Access == storage.AccessReaders && !a.ReadOnly:
				bad("attachment %s of volume %s is a reader's and may write", a.ID, id)
			case holders[h]:
				bad("holder %s has volume %s twice", a.Holder.ID, id)
			}
			holders[h] = true
		}
	}
	if indexed != len(s.attachments) {
		bad("%d of %d attachments are listed for their volumes", indexed, len(s.attachments))
	}
}

func (s *State) checkEvents(bad func(string, ...any)) {
	if len(s.events) > MaxEvents {
		bad("%d events, above the limit", len(s.events))
	}
	last := uint64(0)
	for _, e := range s.events {
		if e.Seq <= last || e.Seq > s.lastEvent {
			bad("event %d after %d, the last is %d", e.Seq, last, s.lastEvent)
		}
		last = e.Seq
	}
}

func (s *State) checkGroup(bad func(string, ...any), id storage.GroupID, g *storage.Group) {
	if id == 0 || id > s.lastGroup {
		bad("group %s above the last id %s", id, s.lastGroup)
	}
	if g.Count(storage.RoleVoter) == 0 {
		bad("group %s has no voter", id)
	}
	if g.State == storage.GroupCreating && len(g.Replicas) != 1 {
		bad("group %s has %d replicas before it is ready", id, len(g.Replicas))
	}
	nodes := map[storage.NodeID]bool{}
	var last storage.Incarnation
	for _, r := range g.Replicas {
		if r.Key.Incarnation <= last || r.Key.Incarnation > g.LastIncarnation {
			bad("group %s: incarnation %d after %d, last %d", id, r.Key.Incarnation, last, g.LastIncarnation)
		}
		if nodes[r.Node] {
			bad("group %s has two replicas on node %s", id, r.Node)
		}
		if s.nodeByStore[r.Key.Store] != r.Node {
			bad("group %s: store %s is not node %s's", id, r.Key.Store, r.Node)
		}
		nodes[r.Node], last = true, r.Key.Incarnation
	}
}

func (s *State) checkVolume(bad func(string, ...any), id storage.VolumeID, v *storage.Volume) {
	if id == 0 || id > s.lastVolume {
		bad("volume %s above the last id %s", id, s.lastVolume)
	}
	if n := len(v.Groups); n == 0 || n&(n-1) != 0 || n > MaxVolumeGroups {
		bad("volume %s has %d groups, not a power of two", id, n)
	}
	for _, g := range v.Groups {
		if grp, ok := s.groups[g]; !ok || grp.State != storage.GroupReady {
			bad("volume %s uses group %s, which is not ready", id, g)
		}
	}
	if err := storage.CheckVolumeSize(v.SizeBytes); err != nil {
		bad("volume %s: %w", id, err)
	}
	if err := storage.CheckLabels(v.Labels); err != nil {
		bad("volume %s: %w", id, err)
	}
	if err := v.Limits.Check(); err != nil {
		bad("volume %s: %w", id, err)
	}
	if v.Fenced > v.Generation {
		bad("volume %s is fenced up to generation %s above its own %s", id, v.Fenced, v.Generation)
	}
	if v.State == storage.VolumeReady && s.volumeByName[v.Name] != id {
		bad("name %s of volume %s is another volume's too", v.Name, id)
	}
}
