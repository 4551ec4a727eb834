package catalog

import (
	"cmp"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

func (c OpenSession) apply(s *State, res *Result) error {
	const op = "open session"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return err
	}
	subject := "volume " + v.Name
	if v.State != storage.VolumeReady {
		return refuse(op, storage.KindNotFound, subject, "it is being deleted")
	}
	if err := s.mayOpen(op, subject, c.Gateway); err != nil {
		return err
	}
	a, err := s.mayUse(op, v, c)
	if err != nil {
		return err
	}
	if c.After > s.lastSession {
		return refuse(op, storage.KindInvalid, subject, "session %s, which it is to follow, was never given out", c.After)
	}
	others := s.sessionsAt(v.ID, c.Gateway)
	for _, o := range slices.Backward(others) { // the newest is whoever is there
		if o.elsewhere(c.Machine) {
			return refuse(op, storage.KindConflict, subject, "%s", o.twoMachines(c.Machine, c.From))
		}
	}
	x, again := c.reuse(others)
	if !again {
		if err := s.roomForSession(op, subject, v.ID); err != nil {
			return err
		}
		s.lastSession++
		x = Session{ID: s.lastSession, Volume: v.ID, Gateway: c.Gateway, Attachment: a.ID, Instance: c.Instance,
			Machine: c.Machine, From: c.From, Generation: v.Generation, ReadOnly: c.ReadOnly, State: SessionLive, OpenedAt: c.At.UTC()}
		s.putSession(x)
		if a.Silent {
			a.Silent = false
			s.putAttachment(a)
		}
	}
	for _, o := range others {
		if x.succeeds(o) {
			res.Predecessors = append(res.Predecessors, o)
		}
	}
	res.Volume, res.Session = &v, &x
	return nil
}

// reuse finds the session that the command opened when it was applied before.
func (c OpenSession) reuse(sessions []Session) (Session, bool) {
	for _, x := range sessions {
		if x.Instance == c.Instance && x.State == SessionLive && x.ID > c.After && x.ReadOnly == c.ReadOnly &&
			x.Attachment == c.Attachment {
			return x, true
		}
	}
	return Session{}, false
}

// elsewhere reports whether the session lives at another machine than the one that asks. A gateway that was started again on
// its machine follows its predecessor at once. Another machine waits until the first is not heard from any more. It then closes
// the first one's sessions in every group, as a takeover does.
func (x Session) elsewhere(m storage.Machine) bool {
	return x.State == SessionLive && !x.Machine.Same(m)
}

// twoMachines says in words that two machines call themselves the same host.
func (x Session) twoMachines(m storage.Machine, from string) string {
	what := "another machine"
	if x.Machine.Kept(m) {
		what = "another start, or a copy, of this machine"
	}
	if from != "" {
		from = " (this is " + from + ")"
	}
	return "it is open since " + x.OpenedAt.Format(time.RFC3339) + " at " + what + ", " + cmp.Or(x.From, "of an unknown address") + ", that calls itself " +
		x.Gateway.String() + " too" + from + "; give each host an id of its own (--host-id), and a copied machine an empty state directory. If the other is gone, " +
		"the volume is free half a minute after it was last heard of"
}

// succeeds reports whether o, of the same gateway and volume, is a predecessor of x.
func (x Session) succeeds(o Session) bool {
	sibling := o.Instance == x.Instance && o.State == SessionLive && o.ReadOnly != x.ReadOnly
	return o.ID != x.ID && !sibling
}

// sessionsAt returns the gateway's sessions on the volume by ascending id, whatever their instance and state.
func (s *State) sessionsAt(id storage.VolumeID, at Gateway) []Session {
	return s.pickSessions(id, func(x *Session) bool { return x.Gateway == at })
}

func (s *State) mayOpen(op, subject string, at Gateway) error {
	if at.Node == 0 {
		return nil
	}
	n, ok := s.nodes[at.Node]
	if !ok || n.State == storage.NodeRemoved {
		return refuse(op, storage.KindPermission, subject, "its gateway, node %s, is not a node of this cluster", at.Node)
	}
	return nil
}

func (s *State) roomForSession(op, subject string, id storage.VolumeID) error {
	if n := len(s.sessionsByVolume[id]); n >= MaxSessionsPerVolume {
		return refuse(op, storage.KindConflict, subject, "it is open %d times, the limit, at %s; disconnect it somewhere",
			n, listed(s.openAt(id)))
	}
	if len(s.sessions) >= MaxSessions {
		return refuse(op, storage.KindNoSpace, subject, "the cluster has %d sessions, the limit; disconnect volumes first",
			MaxSessions)
	}
	return nil
}

func (c CloseSession) apply(s *State, _ *Result) error {
	if _, ok := s.sessions[c.Session]; !ok {
		if c.Session == 0 || c.Session > s.lastSession {
			return refuse("close session", storage.KindNotFound, "session "+c.Session.String(), "there never was such a session")
		}
		return nil
	}
	s.dropSession(c.Session)
	return nil
}

func (c ExpireSessions) apply(s *State, _ *Result) error {
	for _, id := range c.Sessions {
		x, ok := s.Session(id)
		if !ok || x.State != SessionLive {
			continue
		}
		x.State = SessionClosing
		s.putSession(x)
		if a, ok := s.Attachment(x.Attachment); ok && !a.Silent && !s.inUse(a) {
			a.Silent = true
			s.putAttachment(a)
		}
	}
	return nil
}
