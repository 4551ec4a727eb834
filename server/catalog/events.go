package catalog

import (
	"errors"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
)

// EventsVersion is the version that events came with: the leader stamps commands with its time, and states keep what has happened.
const EventsVersion = 9

// MaxEvents bounds the events that a state keeps.
const MaxEvents = 1024

// Stamped is a command that may tell an event (Tells), with the time at which the leader proposed it. Applied, it does what the command
// does, and keeps what has happened then. A command that changes nothing tells nothing, so that applying it again changes nothing.
//
// Only the catalog's leader stamps commands, once EventsVersion is in force.
type Stamped struct {
	Command
	At time.Time
}

// Tells reports whether a command may tell an event: only such a command can be stamped.
func Tells(c Command) bool {
	switch c.(type) {
	case AddNode, SetNodeState, SetNodeIntent, AddGroup, PlanReplica, SetReplica, RemoveReplica, CreateVolume, ResizeVolume, DeleteVolume, Attach, Detach:
		return true
	}
	return false
}

func (c Stamped) check() error {
	if !Tells(c.Command) || c.At.IsZero() {
		return storage.E(c.name(), storage.KindInvalid, "", errors.New("it tells no event, and must carry no time"))
	}
	return c.Command.check()
}

func (c Stamped) apply(s *State, res *Result) error {
	tell := s.observe(c.Command)
	if err := c.Command.apply(s, res); err != nil {
		return err
	}
	for _, e := range tell(res) {
		s.addEvent(c.At, e)
	}
	return nil
}

// Events returns the events that the state keeps, the oldest first. The caller must not change them.
func (s *State) Events() []storage.Event { return slices.Clip(s.events) }

// LastEvent returns the sequence number of the newest event; 0: there was none.
func (s *State) LastEvent() uint64 { return s.lastEvent }

// addEvent keeps an event, and forgets the oldest beyond MaxEvents. Clones share what is before the end of their lists.
func (s *State) addEvent(at time.Time, e storage.Event) {
	s.lastEvent++
	e.Seq, e.At = s.lastEvent, at.UTC()
	if n, ok := s.nodes[e.Node]; ok {
		e.NodeName = n.Name
	}
	if n, ok := s.nodes[e.Other]; ok {
		e.OtherName = n.Name
	}
	s.events = append(s.makeRoom(), e)
}

// makeRoom returns the events with room for one more: what there is most of, nodes, groups or volumes, loses its oldest. Otherwise volumes that come and go
// all day, or thousands of replicas that are made anew, would push out what happened to the nodes.
func (s *State) makeRoom() []storage.Event {
	if len(s.events) < MaxEvents {
		return s.events
	}
	var count [storage.EventClasses]int
	for _, e := range s.events {
		count[e.Class()]++
	}
	most := storage.EventClass(slices.Index(count[:], slices.Max(count[:])))
	at := slices.IndexFunc(s.events, func(e storage.Event) bool { return e.Class() == most })
	if at == 0 {
		return s.events[1:]
	}
	return slices.Concat(s.events[:at], s.events[at+1:]) // clones share the list
}

// told returns, after a command was applied, what has happened by it.
type told func(*Result) []storage.Event

// observe looks at what a command is about to change.
func (s *State) observe(c Command) told {
	switch c := c.(type) {
	case AddNode:
		before := s.lastNode
		return func(res *Result) []storage.Event {
			return when(s.lastNode != before, storage.Event{Kind: storage.EventNodeJoined, Node: res.Node})
		}
	case SetNodeState:
		return s.observeNode(c.Node)
	case SetNodeIntent:
		return s.observeNode(c.Node)
	case AddGroup:
		before := s.lastGroup
		return func(*Result) []storage.Event {
			return when(s.lastGroup != before, storage.Event{Kind: storage.EventGroupAdded, Group: c.Group, Node: c.Node, Store: c.Store})
		}
	case PlanReplica:
		return s.observeGroup(c.Group)
	case SetReplica:
		return s.observeGroup(c.Group)
	case RemoveReplica:
		return s.observeGroup(c.Group)
	case CreateVolume:
		before := s.lastVolume
		return func(res *Result) []storage.Event {
			return when(s.lastVolume != before, volumeEvent(storage.EventVolumeCreated, res.Volume))
		}
	case ResizeVolume:
		before, _ := s.volume("", c.Volume)
		return func(res *Result) []storage.Event {
			return when(res.Volume.SizeBytes != before.SizeBytes, volumeEvent(storage.EventVolumeResized, res.Volume))
		}
	case DeleteVolume:
		before, _ := s.volume("", c.Volume)
		return func(*Result) []storage.Event {
			return when(before.State == storage.VolumeReady, volumeEvent(storage.EventVolumeDeleted, &before))
		}
	case Attach:
		before, _ := s.volume("", c.Volume)
		return func(res *Result) []storage.Event {
			e := volumeEvent(storage.EventVolumeTaken, res.Volume)
			e.Holder = c.Holder.ID
			return when(res.Volume.Generation != before.Generation, e)
		}
	case Detach:
		before, _ := s.volume("", c.Volume)
		return func(res *Result) []storage.Event {
			return when(res.Volume != nil && res.Volume.Generation != before.Generation, volumeEvent(storage.EventVolumeDetached, res.Volume))
		}
	}
	return func(*Result) []storage.Event { return nil }
}

func when(happened bool, e storage.Event) []storage.Event {
	if !happened {
		return nil
	}
	return []storage.Event{e}
}

func volumeEvent(kind storage.EventKind, v *storage.Volume) storage.Event {
	if v == nil {
		return storage.Event{Kind: kind}
	}
	return storage.Event{Kind: kind, Volume: v.ID, VolumeName: v.Name, SizeBytes: v.SizeBytes}
}

// observeNode tells what becomes of a node's state and of what is wanted of it.
func (s *State) observeNode(id storage.NodeID) told {
	before := s.nodes[id]
	return func(*Result) []storage.Event {
		after := s.nodes[id]
		if before == nil || before == after {
			return nil
		}
		var events []storage.Event
		if before.State != after.State {
			kind := map[storage.NodeState]storage.EventKind{storage.NodeUp: storage.EventNodeBack, storage.NodeSuspect: storage.EventNodeSuspect,
				storage.NodeDown: storage.EventNodeDown, storage.NodeRemoved: storage.EventNodeRemoved}[after.State]
			events = append(events, storage.Event{Kind: kind, Node: id})
		}
		if after.State == storage.NodeRemoved {
			return events // what was wanted of it is over with it
		}
		switch {
		case after.Intent == storage.IntentMaintenance:
			events = append(events, when(before.Intent != after.Intent || !before.IntentUntil.Equal(after.IntentUntil),
				storage.Event{Kind: storage.EventMaintenanceBegun, Node: id, Until: after.IntentUntil})...)
		case before.Intent == after.Intent:
		case after.Intent == storage.IntentDrain:
			events = append(events, storage.Event{Kind: storage.EventDrainBegun, Node: id})
			events = append(events, when(len(s.groupsOnNode(after)) == 0, storage.Event{Kind: storage.EventDrained, Node: id})...)
		case before.Intent == storage.IntentDrain:
			events = append(events, storage.Event{Kind: storage.EventDrainEnded, Node: id})
		default:
			events = append(events, storage.Event{Kind: storage.EventMaintenanceEnded, Node: id})
		}
		return events
	}
}

// observeGroup tells which replicas of a group come and go, and when it has all that it needs again.
func (s *State) observeGroup(id storage.GroupID) told {
	before := s.groups[id]
	if before == nil {
		return func(*Result) []storage.Event { return nil }
	}
	whole := s.whole(*before)
	return func(*Result) []storage.Event {
		after := s.groups[id]
		if after == before {
			return nil
		}
		var events []storage.Event
		for _, r := range after.Replicas {
			old, had := before.Replica(r.Key)
			events = append(events, when(!had || old.Role != r.Role, s.replicaEvent(*before, r))...)
		}
		for _, r := range before.Replicas {
			if _, has := after.Replica(r.Key); !has {
				events = append(events, s.goneEvents(id, r)...)
			}
		}
		events = slices.DeleteFunc(events, func(e storage.Event) bool { return e.Kind == "" })
		return append(events, when(!whole && s.whole(*after), storage.Event{Kind: storage.EventGroupWhole, Group: id})...)
	}
}

// replicaEvent tells of a replica that has another role now; the kind is empty for roles that are not told.
func (s *State) replicaEvent(before storage.Group, r storage.Replica) storage.Event {
	e := storage.Event{Group: before.ID, Node: r.Node, Store: r.Key.Store}
	switch r.Role {
	case storage.RolePulling:
		e.Kind = storage.EventReplicaPlanned
		e.Cause, e.Other = s.causeOf(before, 0)
	case storage.RoleVoter:
		e.Kind = storage.EventReplicaAdded
		if old, _ := before.Replica(r.Key); old.Role == storage.RoleLeaving {
			e.Kind = storage.EventReplicaStays
		}
	case storage.RoleLeaving:
		e.Kind = storage.EventReplicaLeaving
		e.Cause, e.Other = s.causeOf(before, r.Node)
	}
	return e
}

// goneEvents tell of a replica that is no more.
func (s *State) goneEvents(group storage.GroupID, r storage.Replica) []storage.Event {
	kind := storage.EventReplicaRemoved
	if r.Role == storage.RolePulling {
		kind = storage.EventReplicaGivenUp
	}
	events := []storage.Event{{Kind: kind, Group: group, Node: r.Node, Store: r.Key.Store}}
	n := s.nodes[r.Node]
	drained := n != nil && n.Intent == storage.IntentDrain && len(s.groupsOnNode(n)) == 0
	return append(events, when(drained, storage.Event{Kind: storage.EventDrained, Node: r.Node})...)
}

// causeOf returns why a replica of a group comes, or why the one on the node leaving goes.
func (s *State) causeOf(g storage.Group, leaving storage.NodeID) (storage.EventCause, storage.NodeID) {
	for _, cause := range []struct {
		is   storage.EventCause
		test func(*storage.Node) bool
	}{
		{storage.CauseDown, func(n *storage.Node) bool { return n.State != storage.NodeUp }},
		{storage.CauseDrain, func(n *storage.Node) bool { return n.Intent == storage.IntentDrain }},
	} {
		for _, r := range g.Replicas {
			if n := s.nodes[r.Node]; n != nil && (leaving == 0 || leaving == r.Node) && cause.test(n) {
				return cause.is, n.ID
			}
		}
	}
	if leaving == 0 && !s.whole(g) {
		return storage.CauseMissing, 0
	}
	return storage.CauseBalance, 0
}

// whole reports whether a group has as many voters on nodes that are up as it is meant to have.
func (s *State) whole(g storage.Group) bool {
	up, usable := 0, 0
	for _, r := range g.Replicas {
		if n := s.nodes[r.Node]; r.Role == storage.RoleVoter && n != nil && n.State == storage.NodeUp {
			up++
		}
	}
	for _, n := range s.nodes {
		if n.Usable() {
			usable++
		}
	}
	return up >= s.cluster.Wanted(usable)
}
