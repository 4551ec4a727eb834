package table

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// State is the small state of a group: what it knows of volumes, and of their deletion. Make one with NewState. Its owner's
// lock guards it.
type State struct {
	volumes map[storage.VolumeID]*Volume
	changed map[storage.VolumeID]struct{} // or forgotten, since the last TakeChanged
}

// Change is what is to be stored under a key. Without a value, the key is to be removed.
type Change struct{ Key, Value []byte }

// NewState returns the state of a group to which nothing has happened.
func NewState() State {
	return State{volumes: map[storage.VolumeID]*Volume{}, changed: map[storage.VolumeID]struct{}{}}
}

// Volume returns what is known of a volume; nil if it was never mentioned.
func (s *State) Volume(id storage.VolumeID) *Volume { return s.volumes[id] }

// Put adds a volume as it is stored, or was received.
func (s *State) Put(id storage.VolumeID, v *Volume) { s.volumes[id] = v }

// TakeChanged returns what is to be stored in the set so that it holds the state as it is, if it held it as it was at the
// last call.
func (s *State) TakeChanged(set SetID) []Change {
	changes := make([]Change, 0, len(s.changed))
	for id := range s.changed {
		changes = append(changes, s.stored(set, id))
	}
	clear(s.changed)
	return changes
}

// MarkChanged says that what TakeChanged returned of the volume is not stored.
func (s *State) MarkChanged(id storage.VolumeID) { s.changed[id] = struct{}{} }

// All returns what is to be stored in a set that holds nothing.
func (s *State) All(set SetID) []Change {
	changes := make([]Change, 0, len(s.volumes))
	for id := range s.volumes {
		changes = append(changes, s.stored(set, id))
	}
	return changes
}

func (s *State) stored(set SetID, id storage.VolumeID) Change {
	c := Change{Key: VolumeKey(KeyVolume, set, id)}
	if v := s.volumes[id]; v != nil {
		c.Value = v.AppendValue(nil, c.Key)
	}
	return c
}

// CheckRead decides on a read or status request. One without a session is judged by its generation alone.
func (s *State) CheckRead(id storage.VolumeID, session storage.SessionID, generation storage.Generation) error {
	v := s.volumes[id]
	if v == nil && session == 0 {
		return nil
	} else if v == nil {
		v = NewVolume() // no session is open
	}
	return v.checkRead(id, session, generation)
}

// Decide makes the operation of a committed entry of that term take effect on the small state, or refuses it. effect says
// that table entries are to be set or cleared as well.
func (s *State) Decide(o *op.Op, term uint64) (result op.Result, effect bool) {
	if o.Kind == op.Noop || o.Kind == op.Digest {
		return op.Result{}, false
	}
	if o.Kind == op.ForgetDeleted {
		return s.forgetDeleted(o), false
	}
	v := s.volumes[o.Volume]
	fresh := v == nil
	if fresh {
		var decided bool
		if v, result, decided = s.unknown(o); decided {
			return result, false
		}
	}
	switch o.Kind {
	case op.Write, op.Clear:
		result = v.admit(o, term)
		effect = result.Kind == storage.KindNone && !result.Duplicate
	case op.OpenSession:
		result = v.openSession(o)
	case op.CloseSession:
		result = v.closeSession(o)
	case op.SetEpoch:
		result = v.setEpoch(o)
	case op.SetGeneration:
		result = v.setGeneration(o)
	case op.DeleteVolume:
		result = v.deleteVolume(o)
	}
	if result.Kind == storage.KindNone && !result.Duplicate {
		if fresh {
			s.volumes[o.Volume] = v
		}
		s.changed[o.Volume] = struct{}{}
	}
	return result, effect
}

// unknown decides on an operation on a volume that the group does not know. decided is false if the operation is the first
// of a new volume, v.
//
// Guards I3: the floor has passed the index and the session of every request for a volume that is deleted and forgotten. A
// request for a volume that is new here may be refused as well; it is repeated from a later index.
func (s *State) unknown(o *op.Op) (v *Volume, result op.Result, decided bool) {
	v = NewVolume()
	floor := s.volumes[FloorVolume]
	if floor == nil {
		return v, op.Result{}, false
	}
	v.maxSession = floor.maxSession
	passed := o.Seq <= uint64(floor.epoch)
	switch {
	case o.Kind == op.DeleteVolume && passed:
		return nil, op.Result{Duplicate: true}, true
	case (o.Kind == op.SetEpoch || o.Kind == op.SetGeneration) && passed:
		return nil, refuse(storage.KindUnavailable, 0, "volume %d is not known, and what was deleted up to index %d of the catalog is forgotten; "+
			"this was asked from index %d", o.Volume, floor.epoch, o.Seq), true
	case o.Kind == op.CloseSession && o.Session <= floor.maxSession: // it was never opened here, and cannot be
		return nil, op.Result{Duplicate: true, Window: &op.Window{}}, true
	}
	return v, op.Result{}, false
}

// forgetDeleted drops the tombstones of volumes that the catalog was deleting, or had deleted, at index o.Seq.
func (s *State) forgetDeleted(o *op.Op) op.Result {
	floor := s.volumes[FloorVolume]
	if floor == nil {
		floor = NewVolume()
	}
	changed := o.Seq > uint64(floor.epoch)
	if changed {
		floor.epoch, floor.maxSession = storage.Epoch(o.Seq), max(floor.maxSession, o.Session)
	}
	for id, v := range s.volumes {
		if v.deleted && v.epoch <= floor.epoch { // also when two volumes are deleted from one index
			delete(s.volumes, id)
			s.changed[id] = struct{}{}
			changed = true
		}
	}
	if !changed {
		return op.Result{Duplicate: true}
	}
	s.volumes[FloorVolume] = floor
	s.changed[FloorVolume] = struct{}{}
	return op.Result{}
}
