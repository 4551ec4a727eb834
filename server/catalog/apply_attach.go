package catalog

import (
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

func (c Attach) apply(s *State, res *Result) error {
	const op = "attach"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return err
	}
	subject := "volume " + v.Name
	if v.State != storage.VolumeReady {
		return refuse(op, storage.KindNotFound, subject, "it is being deleted")
	}
	if err := s.mayOpen(op, subject, Gateway{Node: c.Holder.Node}); err != nil {
		return err
	}
	mine, others := s.attachmentsFor(v.ID, c.Holder)
	elsewhere := false
	if mine != nil {
		var x Session
		if x, elsewhere = s.usedElsewhere(*mine, c.Holder.Machine); elsewhere && !c.TakeOver {
			return refuse(op, storage.KindConflict, subject, "%s", x.twoMachines(c.Holder.Machine, ""))
		}
	}
	if mine != nil && !elsewhere && c.again(v, *mine, others) {
		res.Volume, res.Attachment = &v, mine
		return nil
	}
	if c.TakeOver && c.IfGeneration != 0 && c.IfGeneration != v.Generation {
		return refuse(op, storage.KindConflict, subject, "its generation is %s and no longer %s: %s. Look again, then decide",
			v.Generation, c.IfGeneration, s.whoHas(v))
	}
	ending, err := c.displaced(s, op, v, mine, others)
	if err != nil {
		return err
	}
	if err := s.roomForAttachment(op, subject, v.ID); err != nil {
		return err
	}
	for _, a := range ending {
		s.endAttachment(a)
	}
	if len(ending) > 0 {
		v = moveGeneration(v, storage.Move{By: c.Holder, At: c.At.UTC()})
	}
	s.lastAttachment++
	a := storage.Attachment{ID: s.lastAttachment, Volume: v.ID, Holder: c.Holder, Access: c.Access, ReadOnly: c.ReadOnly,
		Generation: v.Generation, Since: c.At.UTC()}
	s.putAttachment(a)
	v = s.changeVolume(v)
	res.Volume, res.Attachment = &v, &a
	return nil
}

// again reports whether the holder has what the command asks for: it attached on these terms before, and nobody is to
// be displaced. Of a takeover that is repeated the generation is one above the one it was from.
func (c Attach) again(v storage.Volume, mine storage.Attachment, others []storage.Attachment) bool {
	if mine.Access != c.Access || mine.ReadOnly != c.ReadOnly || !mine.Holder.Machine.Kept(c.Holder.Machine) {
		return false
	}
	if !c.TakeOver || len(others) == 0 {
		return true
	}
	return c.IfGeneration != 0 && v.Generation == c.IfGeneration+1
}

// displaced returns the attachments that end when the command is applied, or why it is refused.
func (c Attach) displaced(s *State, op string, v storage.Volume, mine *storage.Attachment, others []storage.Attachment) ([]storage.Attachment, error) {
	subject := "volume " + v.Name
	if c.TakeOver {
		if mine != nil {
			others = append(others, *mine)
		}
		return others, nil
	}
	var weak []storage.Attachment
	switch {
	case mine != nil && !mine.Holder.Machine.Kept(c.Holder.Machine):
		// Another machine has the host's name now, and the first is silent: what it sends after all is refused.
		weak = append(weak, *mine)
	case mine != nil:
		return nil, refuse(op, storage.KindConflict, subject,
			"%s has it already, %s since %s; detach it there, then attach it on other terms", c.Holder, terms(*mine), since(*mine))
	}
	for _, a := range others {
		if c.Access.Beside(a.Access) {
			continue
		}
		if !s.givesWay(a) {
			return nil, refuse(op, storage.KindConflict, subject,
				"it is attached %s by %s since %s; detach it there, or take it over with --take-over", terms(a), a.Holder, since(a))
		}
		weak = append(weak, a)
	}
	return weak, nil
}

// attachmentsFor splits a volume's attachments into the holder's own and the others'.
func (s *State) attachmentsFor(id storage.VolumeID, h storage.Holder) (mine *storage.Attachment, others []storage.Attachment) {
	for _, a := range s.AttachmentsOf(id) {
		if a.Holder.Same(h) {
			mine = &a
		} else {
			others = append(others, a)
		}
	}
	return mine, others
}

// givesWay reports whether an attachment ends as soon as anybody else wants the volume. That is so when it was made
// automatically, for the plain NBD clients of a node, and that node was not heard from lately. Those clients have nobody
// to detach for them.
func (s *State) givesWay(a storage.Attachment) bool {
	if a.Holder.Kind != storage.HolderNBD {
		return false
	}
	n, ok := s.nodes[a.Holder.Node]
	return a.Silent || !ok || n.State == storage.NodeSuspect || n.State == storage.NodeDown || n.State == storage.NodeRemoved
}

// inUse reports whether an attachment has a live session.
func (s *State) inUse(a storage.Attachment) bool {
	return slices.ContainsFunc(s.sessionsUnder(a), func(x Session) bool { return x.State == SessionLive })
}

// usedElsewhere returns the newest live session under an attachment at another machine than the one that asks.
func (s *State) usedElsewhere(a storage.Attachment, m storage.Machine) (Session, bool) {
	for _, x := range slices.Backward(s.sessionsUnder(a)) {
		if x.elsewhere(m) {
			return x, true
		}
	}
	return Session{}, false
}

// endAttachment drops an attachment and begins to close its sessions.
func (s *State) endAttachment(a storage.Attachment) {
	for _, x := range s.sessionsUnder(a) {
		if x.State == SessionLive {
			x.State = SessionClosing
			s.putSession(x)
		}
	}
	s.dropAttachment(a.ID)
}

// moveGeneration returns the volume under its next generation, which no group knows of yet. This guards I2: without it
// a holder whose attachment has ended could go on writing.
func moveGeneration(v storage.Volume, m storage.Move) storage.Volume {
	v.Generation++
	v.Moved = &m
	return v
}

func (s *State) roomForAttachment(op, subject string, id storage.VolumeID) error {
	if n := len(s.attachmentsByVolume[id]); n >= MaxAttachmentsPerVolume {
		return refuse(op, storage.KindConflict, subject, "it is attached %d times, the limit; detach it somewhere", n)
	}
	if len(s.attachments) >= MaxAttachments {
		return refuse(op, storage.KindNoSpace, subject, "the cluster has %d attachments, the limit; detach volumes first",
			MaxAttachments)
	}
	return nil
}

// terms returns "exclusively", "shared, read-only," or "for readers only".
func terms(a storage.Attachment) string {
	terms := "exclusively"
	switch a.Access {
	case storage.AccessShared:
		terms = "shared"
	case storage.AccessReaders:
		return "for readers only"
	}
	if a.ReadOnly {
		terms += ", read-only,"
	}
	return terms
}

func since(a storage.Attachment) string { return a.Since.Format(time.RFC3339) }

// whoHas says in words who has the volume now, for those who do not have it any more.
func (s *State) whoHas(v storage.Volume) string {
	list := s.AttachmentsOf(v.ID)
	switch {
	case len(list) > 0:
		last := list[len(list)-1]
		return "it is attached by " + last.Holder.String() + " since " + since(last)
	case v.Moved != nil && v.Moved.By.ID == "":
		return "it was detached at " + v.Moved.At.Format(time.RFC3339)
	case v.Moved != nil:
		return v.Moved.By.String() + " took it over at " + v.Moved.At.Format(time.RFC3339) + ", and has left it"
	}
	return "it was detached"
}

// Lost says in words why an attachment of the volume is gone, and who has had the volume since. It is empty while the
// attachment exists, and while this state does not know of it yet.
func (s *State) Lost(volume storage.VolumeID, id storage.AttachmentID) string {
	if a, ok := s.attachments[id]; ok && a.Volume == volume || id > s.lastAttachment {
		return ""
	}
	v, ok := s.volumes[volume]
	if !ok {
		return "the volume is deleted"
	}
	return "attachment " + id.String() + " has ended: " + s.whoHas(*v)
}

// mayUse returns the attachment that a session is asked for under.
func (s *State) mayUse(op string, v storage.Volume, c OpenSession) (storage.Attachment, error) {
	subject := "volume " + v.Name
	a, ok := s.Attachment(c.Attachment)
	switch {
	case c.Attachment > s.lastAttachment:
		return a, refuse(op, storage.KindInvalid, subject, "attachment %s was never made", c.Attachment)
	case !ok || a.Volume != v.ID:
		return a, refuse(op, storage.KindFenced, subject, "%s", s.Lost(v.ID, c.Attachment))
	case a.Holder.Node != c.Gateway.Node || c.Gateway.Node == 0 && a.Holder.ID != c.Gateway.Host:
		return a, refuse(op, storage.KindPermission, subject, "attachment %s is that of %s, not of %s", a.ID, a.Holder, c.Gateway)
	case a.ReadOnly && !c.ReadOnly:
		return a, refuse(op, storage.KindPermission, subject, "it is attached read-only")
	case v.Fenced < v.Generation:
		// Guards I2: until every group refuses older generations, what was sent under them may land.
		return a, refuse(op, storage.KindUnavailable, subject, "its former holder is being fenced; try again in a moment")
	}
	return a, nil
}

func (c Detach) apply(s *State, res *Result) error {
	const op = "detach"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return nil //nolint:nilerr // what is not there is not attached
	}
	for _, a := range s.AttachmentsOf(v.ID) {
		if c.Holder != "" && a.Holder.ID != c.Holder || c.Attachment != 0 && a.ID != c.Attachment {
			continue
		}
		if _, is := s.usedElsewhere(a, c.Machine); is || !a.Holder.Machine.Kept(c.Machine) {
			continue // a copy of the machine that has it gives up what it never had
		}
		quiet := c.Closed && len(s.sessionsUnder(a)) == 0
		s.endAttachment(a)
		if a.Access == storage.AccessExclusive && !quiet {
			v = moveGeneration(v, storage.Move{At: c.At.UTC()})
		}
		v = s.changeVolume(v)
	}
	res.Volume, res.Predecessors = &v, s.Orphans(v.ID)
	return nil
}

// sessionsUnder returns the sessions of an attachment, in whatever state.
func (s *State) sessionsUnder(a storage.Attachment) []Session {
	return s.pickSessions(a.Volume, func(x *Session) bool { return x.Attachment == a.ID })
}

// Orphans returns the sessions of a volume whose attachment has ended, by ascending id.
func (s *State) Orphans(id storage.VolumeID) []Session {
	return s.pickSessions(id, func(x *Session) bool { return s.attachments[x.Attachment] == nil })
}

func (c SetFenced) apply(s *State, res *Result) error {
	const op = "fence"
	v, ok := s.Volume(c.Volume)
	switch {
	case !ok && c.Volume > 0 && c.Volume <= s.lastVolume:
		return nil // deleted
	case !ok:
		return refuse(op, storage.KindNotFound, "volume "+c.Volume.String(), "there never was such a volume")
	case c.Generation > v.Generation:
		return refuse(op, storage.KindInvalid, "volume "+v.Name, "it has not come to generation %s, only to %s", c.Generation,
			v.Generation)
	}
	if c.Generation > v.Fenced {
		v.Fenced = c.Generation
		v = s.changeVolume(v)
	}
	res.Volume = &v
	return nil
}
