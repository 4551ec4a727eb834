package table

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

const (
	// maxLiveSessions bounds the sessions of one volume in one group.
	maxLiveSessions = 1024
	// keptWindows is how many closed sessions of a volume keep their window, for closes that are asked again.
	keptWindows = 16

	volumeVersion  = 2 // 1 is that of volumes whose mapped blocks are not known
	volumeFixedLen = 1 + 1 + 4*8 + 2 + 1
	mappedLen      = 8 // follows what is fixed, from version 2 on
	sessionLen     = 8 + op.WindowLen
	volumeDeleted  = 1
)

// Volume is the small state that a group keeps of a volume. Whether an entry is applied or refused is decided from it
// alone, so that all replicas decide the same whatever their extents are like. Its owner's lock guards it.
type Volume struct {
	epoch      storage.Epoch // of a deleted one: the index of the catalog that its deletion was made from
	generation storage.Generation
	maxSession storage.SessionID // highest ever opened or closed; none at or below is opened
	evicted    storage.SessionID // highest closed one whose window is no longer kept; < the oldest of closed
	deleted    bool              // for ever; then there are no sessions
	live       map[storage.SessionID]*op.Window
	closed     []closedSession // in the order of closing, at most keptWindows
	// mapped is the number of blocks that the newest versions of the group's extents map; unknownMapped if it was not counted
	// from the beginning. Nothing is decided from it.
	mapped int64
}

// unknownMapped is the count of volumes that were written to before there was one.
const unknownMapped = -1

// BumpMapped counts n more blocks as mapped.
func (v *Volume) BumpMapped(n int64) {
	if v.mapped != unknownMapped {
		v.mapped += n
	}
}

// Mapped returns the number of blocks that the newest versions of the group's extents map; -1 where it is not known.
func (v *Volume) Mapped() int64 { return v.mapped }

// Deleted reports whether the volume is a tombstone.
func (v *Volume) Deleted() bool { return v.deleted }

type closedSession struct {
	id     storage.SessionID
	window op.Window
}

// SessionState is what a group knows of one session.
type SessionState struct {
	ID     storage.SessionID
	Window op.Window
}

// VolumeState is a copy of what a group knows of a volume.
type VolumeState struct {
	Epoch      storage.Epoch
	Generation storage.Generation
	MaxSession storage.SessionID // highest ever opened or closed
	Sessions   []SessionState    // the open ones, in ascending order
	Closed     []SessionState    // the last ones closed, oldest first
	Mapped     int64             // blocks that the newest versions of its extents in the group map; -1: not known
	Deleted    bool
}

// FloorVolume is an id that no volume has. Its state holds for all volumes that the group does not know, because they may have
// been deleted and forgotten. Two of its numbers count: epoch is the index of the catalog up to which requests for unknown
// volumes are refused, and maxSession is the session up to which none is opened.
const FloorVolume storage.VolumeID = 0

// NewVolume returns the state of a volume of which nothing was said yet.
func NewVolume() *Volume { return &Volume{live: map[storage.SessionID]*op.Window{}} }

// State returns a copy of what is known of the volume.
func (v *Volume) State() VolumeState {
	s := VolumeState{Epoch: v.epoch, Generation: v.generation, MaxSession: v.maxSession, Deleted: v.deleted, Mapped: v.mapped}
	for _, id := range slices.Sorted(maps.Keys(v.live)) {
		s.Sessions = append(s.Sessions, SessionState{id, *v.live[id]})
	}
	for _, c := range v.closed {
		s.Closed = append(s.Closed, SessionState{c.id, c.window})
	}
	return s
}

func refuse(kind storage.Kind, detail uint64, format string, args ...any) op.Result {
	return op.Result{Kind: kind, Detail: detail, Text: fmt.Sprintf(format, args...)}
}

// admit decides on a Write or Clear of the entry's term, and notes its number if it is to be applied: the result's
// kind is KindNone and Duplicate is not set. A refused request leaves everything as it was, its number included.
func (v *Volume) admit(o *op.Op, term uint64) op.Result {
	if v.deleted {
		return refuse(storage.KindNotFound, 0, "volume %d is deleted", o.Volume)
	}
	window := v.live[o.Session]
	switch {
	case window == nil:
		// Guards I3: a closed session's requests are refused, so no old copy lands after its successor's writes.
		return refuse(storage.KindFenced, 0, "session %d is not open", o.Session)
	case window.Applied(o.Seq):
		// Guards I3: a request that was applied is not applied again.
		return op.Result{Duplicate: true}
	case !window.InWindow(o.Seq):
		return refuse(storage.KindInvalid, 0, "number %d of session %d is more than %d after %d, the last before which all were applied",
			o.Seq, o.Session, storage.SessionWindow, window.Low)
	case o.Generation < v.generation:
		// Guards I2: what an earlier owner sent does not land after the takeover.
		return refuse(storage.KindFenced, uint64(v.generation), "generation %d of volume %d is over, %d is current",
			o.Generation, o.Volume, v.generation)
	case o.Epoch < v.epoch:
		// Guards I4: a finished snapshot does not change.
		return refuse(storage.KindFenced, uint64(v.epoch), "epoch %d of volume %d is over, %d is current", o.Epoch, o.Volume, v.epoch)
	case o.ReadTerm != 0 && o.ReadTerm != term:
		// Guards I3: the rest of a merged block may have changed since another leader read it.
		return refuse(storage.KindConflict, 0, "the rest of the block was read in term %d, the Entry is of term %d", o.ReadTerm, term)
	case !o.Aligned():
		return refuse(storage.KindInvalid, 0, "the range at %d of %d bytes is not whole blocks", o.Offset, o.Length)
	}
	window.Mark(o.Seq)
	v.raise(o)
	return op.Result{}
}

// raise takes over a higher epoch and generation: the catalog has committed them, or nobody would send them.
func (v *Volume) raise(o *op.Op) {
	v.epoch = max(v.epoch, o.Epoch)
	v.generation = max(v.generation, o.Generation)
}

func (v *Volume) openSession(o *op.Op) op.Result {
	switch {
	case v.deleted:
		return refuse(storage.KindNotFound, 0, "volume %d is deleted", o.Volume)
	case v.live[o.Session] != nil:
		return op.Result{Duplicate: true}
	case o.Session <= v.maxSession:
		return refuse(storage.KindFenced, 0, "session %d is over, %d was opened or closed since", o.Session, v.maxSession)
	case o.Generation < v.generation:
		return refuse(storage.KindFenced, uint64(v.generation), "generation %d of volume %d is over, %d is current",
			o.Generation, o.Volume, v.generation)
	case len(v.live) >= maxLiveSessions:
		return refuse(storage.KindConflict, 0, "volume %d has %d open sessions", o.Volume, len(v.live))
	}
	v.raise(o)
	v.maxSession = o.Session
	v.live[o.Session] = &op.Window{}
	return op.Result{}
}

// closeSession ends a session and answers with its window, again and again: the gateway decides by it what to send
// under its next session.
func (v *Volume) closeSession(o *op.Op) op.Result {
	if v.deleted {
		return refuse(storage.KindNotFound, 0, "volume %d is deleted", o.Volume)
	}
	if w := v.live[o.Session]; w != nil {
		delete(v.live, o.Session)
		v.keepClosed(o.Session, *w)
		return op.Result{Window: w}
	}
	for i := range v.closed {
		if c := v.closed[i]; c.id == o.Session {
			return op.Result{Duplicate: true, Window: &c.window}
		}
	}
	if o.Session <= v.evicted {
		return refuse(storage.KindConflict, 0, "what session %d applied is no longer known", o.Session)
	}
	v.keepClosed(o.Session, op.Window{}) // never opened here: from now on it cannot be
	return op.Result{Window: &op.Window{}}
}

func (v *Volume) keepClosed(id storage.SessionID, w op.Window) {
	v.maxSession = max(v.maxSession, id)
	if len(v.closed) == keptWindows {
		v.evicted = max(v.evicted, v.closed[0].id)
		v.closed = slices.Delete(v.closed, 0, 1)
	}
	v.closed = append(v.closed, closedSession{id, w})
}

func (v *Volume) setEpoch(o *op.Op) op.Result {
	if v.deleted {
		return refuse(storage.KindNotFound, 0, "volume %d is deleted", o.Volume)
	}
	if o.Epoch <= v.epoch {
		return op.Result{Duplicate: true, Detail: uint64(v.epoch)}
	}
	v.epoch = o.Epoch
	return op.Result{}
}

func (v *Volume) setGeneration(o *op.Op) op.Result {
	switch {
	case v.deleted:
		return refuse(storage.KindNotFound, 0, "volume %d is deleted", o.Volume)
	case o.Generation < v.generation:
		return refuse(storage.KindFenced, uint64(v.generation), "generation %d of volume %d is over, %d is current",
			o.Generation, o.Volume, v.generation)
	case o.Generation == v.generation:
		return op.Result{Duplicate: true}
	}
	v.generation = o.Generation
	return op.Result{}
}

func (v *Volume) deleteVolume(o *op.Op) op.Result {
	if v.deleted {
		return op.Result{Duplicate: true}
	}
	v.deleted, v.mapped, v.epoch = true, 0, storage.Epoch(o.Seq)
	v.live, v.closed = map[storage.SessionID]*op.Window{}, nil
	return op.Result{}
}

// checkRead decides on a read or status request. A request without a session is judged by its generation alone.
func (v *Volume) checkRead(id storage.VolumeID, session storage.SessionID, generation storage.Generation) error {
	var r op.Result
	switch {
	case v.deleted:
		r = refuse(storage.KindNotFound, 0, "volume %d is deleted", id)
	case session != 0 && v.live[session] == nil:
		r = refuse(storage.KindFenced, 0, "session %d is not open", session)
	case generation < v.generation:
		r = refuse(storage.KindFenced, uint64(v.generation), "generation %d of volume %d is over, %d is current", generation, id, v.generation)
	}
	if r.Kind == storage.KindNone {
		return nil
	}
	return r.Err("read", "volume "+id.String())
}

// AppendValue appends the value under which the volume is stored at key. The encoding of equal states is equal.
func (v *Volume) AppendValue(dst, key []byte) []byte {
	base := len(dst)
	le := binary.LittleEndian
	var flags byte
	if v.deleted {
		flags = volumeDeleted
	}
	version := byte(volumeVersion)
	if v.mapped == unknownMapped {
		version = 1
	}
	dst = append(dst, version, flags)
	dst = le.AppendUint64(dst, uint64(v.epoch))
	dst = le.AppendUint64(dst, uint64(v.generation))
	dst = le.AppendUint64(dst, uint64(v.maxSession))
	dst = le.AppendUint64(dst, uint64(v.evicted))
	dst = le.AppendUint16(dst, uint16(len(v.live)))
	dst = append(dst, byte(len(v.closed)))
	if v.mapped != unknownMapped {
		dst = le.AppendUint64(dst, uint64(v.mapped))
	}
	for _, id := range slices.Sorted(maps.Keys(v.live)) {
		dst = le.AppendUint64(dst, uint64(id))
		dst = v.live[id].Append(dst)
	}
	for i := range v.closed {
		dst = le.AppendUint64(dst, uint64(v.closed[i].id))
		dst = v.closed[i].window.Append(dst)
	}
	return append(dst[:base], Seal(key, dst[base:])...)
}

// StoredVolume decodes what lies in the tables under a volume's key.
func StoredVolume(key, value []byte) (storage.VolumeID, *Volume, error) {
	if len(key) != VolumeKeyLen {
		return 0, nil, Corrupt("decode volume", "a key of %d bytes, not %d", len(key), VolumeKeyLen)
	}
	v, err := decodeVolume(key, value)
	return ParseVolumeKey(key), v, err
}

// decodeVolume decodes the value stored at key.
func decodeVolume(key, value []byte) (*Volume, error) {
	body, err := Unseal(key, value)
	if err != nil {
		return nil, Corrupt("decode volume", "%w", err)
	}
	if len(body) < volumeFixedLen || body[0] < 1 || body[0] > volumeVersion || body[1]&^volumeDeleted != 0 {
		return nil, Corrupt("decode volume", "%d bytes with an unknown beginning", len(body))
	}
	le := binary.LittleEndian
	v := &Volume{
		deleted:    body[1] == volumeDeleted,
		epoch:      storage.Epoch(le.Uint64(body[2:])),
		generation: storage.Generation(le.Uint64(body[10:])),
		maxSession: storage.SessionID(le.Uint64(body[18:])),
		evicted:    storage.SessionID(le.Uint64(body[26:])),
		mapped:     unknownMapped,
	}
	nLive, nClosed := int(le.Uint16(body[34:])), int(body[36])
	rest := body[volumeFixedLen:]
	if body[0] >= 2 {
		if len(rest) < mappedLen {
			return nil, Corrupt("decode volume", "%d bytes, of version %d", len(body), body[0])
		}
		if v.mapped = int64(le.Uint64(rest)); v.mapped < 0 || v.deleted && v.mapped > 0 {
			return nil, Corrupt("decode volume", "it maps %d blocks (deleted: %v)", v.mapped, v.deleted)
		}
		rest = rest[mappedLen:]
	}
	if nLive > maxLiveSessions || nClosed > keptWindows || len(rest) != (nLive+nClosed)*sessionLen {
		return nil, Corrupt("decode volume", "%d bytes for %d open and %d closed sessions", len(rest), nLive, nClosed)
	}
	if v.deleted && nLive+nClosed > 0 {
		return nil, Corrupt("decode volume", "it is deleted and has sessions")
	}
	v.live = make(map[storage.SessionID]*op.Window, nLive)
	for i := range nLive + nClosed {
		id := storage.SessionID(le.Uint64(rest[i*sessionLen:]))
		w, err := op.DecodeWindow(rest[i*sessionLen+8:])
		if err != nil {
			return nil, Corrupt("decode volume", "session %d: %w", id, err)
		}
		if id == 0 || id > v.maxSession || v.live[id] != nil {
			return nil, Corrupt("decode volume", "session %d of at most %d", id, v.maxSession)
		}
		if i < nLive {
			v.live[id] = &w
		} else {
			v.closed = append(v.closed, closedSession{id, w})
		}
	}
	return v, nil
}
