package extent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

const (
	// ManifestSilence is how long a manifest stays open when nobody asks it anything.
	ManifestSilence = 30 * time.Second
	// MaxStatePartBytes bounds one part of a manifest's small state, but for a single volume that is larger.
	MaxStatePartBytes = 1 << 20
	// MaxBlocksPerRead bounds the blocks of one Manifest.Blocks: the payload of one entry.
	MaxBlocksPerRead = storage.MaxEntryPayloadBytes / storage.BlockSize
	// MaxExtentsPerList bounds one answer of Manifest.Extents.
	MaxExtentsPerList = 4096
)

// Manifest is a group's durable checkpoint, kept as it is for another replica to pull: its tables (a Pebble snapshot)
// and the segments they refer to. It closes itself after ManifestSilence without a call. Its methods may be called
// concurrently.
type Manifest struct {
	ManifestHeader

	g       *Group
	set     setID
	deleted map[storage.VolumeID]bool // their extents are not part of it
	parts   [][]byte

	// snapshot and release are used while users counts the caller, and let go when nobody is left. No lock is held
	// meanwhile: a user may wait for a disk for as long as that takes.
	snapshot *pebble.Snapshot
	release  []func()
	users    sync.WaitGroup
	released chan struct{} // closed by the first Close when everything is let go

	mu      sync.Mutex // guards what follows, and that users grows only while the manifest is open
	silence *time.Timer
	closed  bool
}

// OpenManifest keeps the durable checkpoint for a pull, and the log from there on.
func (g *Group) OpenManifest() (*Manifest, error) {
	m, err := g.keepManifest()
	if err != nil {
		return nil, err
	}
	if !g.store.noteManifest(m, true) {
		m.Close()
		return nil, storage.E("open manifest", storage.KindUnavailable, "group "+g.key.String(), errors.New("the store is closed"))
	}
	return m, nil
}

func (g *Group) keepManifest() (*Manifest, error) {
	// No checkpoint is written meanwhile, so the snapshot's segments are in use, and cannot be recycled, until pinned.
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	record, set, removed := g.record, g.set, g.removed
	g.mu.RUnlock()
	if removed {
		return nil, storage.E("open manifest", storage.KindNotFound, "group "+g.key.String(), nil)
	}
	snapshot, err := g.store.meta.snapshot()
	if err != nil {
		return nil, err
	}
	m := &Manifest{g: g, set: set.id, deleted: map[storage.VolumeID]bool{}, snapshot: snapshot, released: make(chan struct{})}
	m.release = append(m.release, func() { _ = snapshot.Close() }) // its only error is to be closed already
	if err := m.readState(); err != nil {
		m.releaseAll()
		return nil, err
	}
	for _, no := range set.live.durableSegments() {
		m.release = append(m.release, g.store.log.Pin(no))
	}
	m.release = append(m.release, g.log.HoldFrom(record.Index+1))
	m.ManifestHeader = ManifestHeader{Checkpoint: record.Checkpoint, StateParts: uint32(len(m.parts)), TotalBytes: set.live.durableBytes()}
	m.mu.Lock()
	m.silence = time.AfterFunc(ManifestSilence, m.Close)
	m.mu.Unlock()
	return m, nil
}

// noteManifest remembers or forgets an open manifest, so that Close finds it; false if the store is closed.
func (s *Store) noteManifest(m *Manifest, open bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !open {
		delete(s.openMans, m)
		return true
	}
	if !s.closed {
		s.openMans[m] = struct{}{}
	}
	return !s.closed
}

// readState encodes the small state of the snapshot.
func (m *Manifest) readState() error {
	prefix := setPrefix(keyVolume, m.set)
	var part []byte
	err := m.g.store.meta.scanOn(m.snapshot, prefix, afterPrefix(prefix), func(k, v []byte) (bool, error) {
		vol, err := decodeVolume(k, v)
		if err != nil {
			return false, err
		}
		id := parseVolumeKey(k)
		if vol.deleted {
			m.deleted[id] = true
		}
		value := vol.appendValue(nil, nil)
		if len(part) > 0 && len(part)+len(value) > MaxStatePartBytes {
			m.parts, part = append(m.parts, part), nil
		}
		part = be.AppendUint64(part, uint64(id))
		part = be.AppendUint32(part, uint32(len(value)))
		part = append(part, value...)
		return true, nil
	})
	if len(part) > 0 {
		m.parts = append(m.parts, part)
	}
	if err != nil {
		return err
	}
	// A volume may be forgotten while its tables are still being removed.
	prefix = setPrefix(keyPurge, m.set)
	return m.g.store.meta.scanOn(m.snapshot, prefix, afterPrefix(prefix), func(k, _ []byte) (bool, error) {
		if len(k) != 17 {
			return false, corrupt("open manifest", "key %x", k)
		}
		m.deleted[parseVolumeKey(k)] = true
		return true, nil
	})
}

// decodeStatePart calls fn with each volume of a part.
func decodeStatePart(part []byte, fn func(storage.VolumeID, *volume) error) error {
	for len(part) > 0 {
		if len(part) < 12 {
			return corrupt("decode state", "%d bytes are left over", len(part))
		}
		id, n := storage.VolumeID(be.Uint64(part)), be.Uint32(part[8:])
		if uint64(n) > uint64(len(part)-12) {
			return corrupt("decode state", "%d bytes for a volume of %d", len(part)-12, n)
		}
		v, err := decodeVolume(nil, part[12:12+n])
		if err != nil {
			return err
		}
		if err := fn(id, v); err != nil {
			return err
		}
		part = part[12+n:]
	}
	return nil
}

// enter begins the use of the snapshot; leave ends it.
func (m *Manifest) enter() (leave func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, storage.E("read manifest", storage.KindNotFound, "group "+m.g.key.String(), errors.New("the manifest is closed"))
	}
	m.silence.Reset(ManifestSilence)
	m.users.Add(1)
	return m.users.Done, nil
}

// Touch says that the puller is still there.
func (m *Manifest) Touch() error {
	leave, err := m.enter()
	if err == nil {
		leave()
	}
	return err
}

// Close refuses further calls, waits for those under way, and lets the checkpoint and its segments go. It may be called
// again, and returns when that is done, whoever does it: the store is closed right after.
func (m *Manifest) Close() {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.silence.Stop()
	m.mu.Unlock()
	if !first {
		<-m.released
		return
	}
	m.users.Wait()
	m.releaseAll()
	m.g.store.noteManifest(m, false)
	close(m.released)
}

func (m *Manifest) releaseAll() {
	for _, f := range slices.Backward(m.release) {
		f()
	}
	m.release = nil
}

// StatePart returns part i of the small state, 0 <= i < StateParts.
func (m *Manifest) StatePart(i int) ([]byte, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if i < 0 || i >= len(m.parts) {
		return nil, storage.E("read manifest", storage.KindInvalid, "part", fmt.Errorf("%d of %d", i, len(m.parts)))
	}
	return m.parts[i], nil
}

// Extents returns up to limit extent versions after the given one, in ascending order of volume, extent and epoch; the
// zero ExtentRef is before all. An empty answer is the end.
func (m *Manifest) Extents(after ExtentRef, limit int) ([]ExtentRef, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	limit = max(1, min(limit, MaxExtentsPerList))
	var out []ExtentRef
	next := extentID{after.Volume, after.Extent}
	for len(out) < limit {
		id, ok, err := m.nextExtent(next)
		if err != nil || !ok {
			return out, err
		}
		tables, err := m.g.store.meta.loadTables(m.snapshot, m.set, id)
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			ref := t.ref()
			if ref.after(after) && len(out) < limit {
				out = append(out, ref)
			}
		}
		if next, ok = id.next(); !ok {
			break
		}
	}
	return out, nil
}

// nextExtent returns the first extent at or after id that is not of a deleted volume.
func (m *Manifest) nextExtent(id extentID) (extentID, bool, error) {
	for {
		found, ok, err := m.g.store.meta.firstExtent(m.snapshot, m.set, id)
		if err != nil || !ok || !m.deleted[found.volume] {
			return found, ok, err
		}
		if found.volume == math.MaxUint64 {
			return extentID{}, false, nil
		}
		id = extentID{volume: found.volume + 1}
	}
}

// Table returns the encoded table of an extent version: which blocks it has, with their sums.
func (m *Manifest) Table(ref ExtentRef) ([]byte, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	t, older, err := m.table(ref)
	if err != nil {
		return nil, err
	}
	return t.encode(older), nil
}

// table returns a version's table and the older ones of the extent.
func (m *Manifest) table(ref ExtentRef) (*table, []*table, error) {
	tables, err := m.g.store.meta.loadTables(m.snapshot, m.set, extentID{ref.Volume, ref.Extent})
	if err != nil {
		return nil, nil, err
	}
	for i, t := range tables {
		if t.epoch == ref.Epoch && !m.deleted[ref.Volume] {
			return t, tables[:i], nil
		}
	}
	return nil, nil, storage.E("read manifest", storage.KindNotFound, ref.String(), nil)
}

// Blocks returns the mapped blocks among n blocks from first on of an extent version, whole and in order, each with
// its checksum verified.
func (m *Manifest) Blocks(ref ExtentRef, first, n int) ([]byte, error) {
	return m.BlocksWith(ref, first, n, nil)
}

// BlocksWith is Blocks, but for blocks that the disk does not give back: those are asked for elsewhere.
func (m *Manifest) BlocksWith(ref ExtentRef, first, n int, elsewhere Elsewhere) ([]byte, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if first < 0 || n < 1 || n > MaxBlocksPerRead || first+n > storage.BlocksPerExtent {
		return nil, storage.E("read manifest", storage.KindInvalid, ref.String(), fmt.Errorf("%d blocks from %d", n, first))
	}
	t, _, err := m.table(ref)
	if err != nil {
		return nil, err
	}
	payload := make([]byte, 0, n*storage.BlockSize)
	for b := first; b < first+n; b++ {
		e := t.at(b)
		if !e.mapped() {
			continue
		}
		payload = payload[:len(payload)+storage.BlockSize]
		block := payload[len(payload)-storage.BlockSize:]
		if err := m.readBlock(ref, b, e, block); err != nil {
			if err = elsewhere.get(Unreadable{ref.Volume, ref.Extent, ref.Epoch, b, e.position(), e.crc, err}, block); err != nil {
				return nil, err
			}
		}
	}
	return payload, nil
}

func (m *Manifest) readBlock(ref ExtentRef, b int, e entry, dst []byte) error {
	if err := m.g.store.log.ReadAt(e.position(), dst); err != nil {
		return storage.E("read manifest", storage.KindOf(err), ref.String(), err)
	}
	if op.Sum(dst) != e.crc { // guards I5: damage is not handed on
		m.g.store.metrics.corrupt.Inc()
		return storage.E("read manifest", storage.KindCorrupt, ref.String(), fmt.Errorf("checksum mismatch in block %d at %s", b, e.position()))
	}
	return nil
}

// ManifestHeader is what a puller learns first.
type ManifestHeader struct {
	Checkpoint
	StateParts uint32 // number of parts of the small state
	TotalBytes uint64 // of all blocks, for progress
}

const (
	manifestVersion   = 1
	manifestFixedLen  = 1 + 3*8 + 4 + 8 + 4
	maxStateParts     = 1 << 16
	extentListVersion = 1
)

// Append appends the encoding of the header.
func (h *ManifestHeader) Append(dst []byte) []byte {
	dst = append(dst, manifestVersion)
	for _, n := range []uint64{h.Index, h.Term, h.ConfigIndex} {
		dst = binary.LittleEndian.AppendUint64(dst, n)
	}
	dst = binary.LittleEndian.AppendUint32(dst, h.StateParts)
	dst = binary.LittleEndian.AppendUint64(dst, h.TotalBytes)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(h.Config)))
	return append(dst, h.Config...)
}

// DecodeManifestHeader decodes a header that fills data. It does not keep data.
func DecodeManifestHeader(data []byte) (h ManifestHeader, err error) {
	if len(data) < manifestFixedLen || data[0] != manifestVersion {
		return h, invalid("decode manifest", "%d bytes with an unknown beginning", len(data))
	}
	le := binary.LittleEndian
	h.Index, h.Term, h.ConfigIndex = le.Uint64(data[1:]), le.Uint64(data[9:]), le.Uint64(data[17:])
	h.StateParts, h.TotalBytes = le.Uint32(data[25:]), le.Uint64(data[29:])
	n := le.Uint32(data[37:])
	if n > MaxConfigBytes || len(data) != manifestFixedLen+int(n) || h.StateParts > maxStateParts {
		return ManifestHeader{}, invalid("decode manifest", "%d bytes for a configuration of %d and %d parts", len(data), n, h.StateParts)
	}
	if n > 0 {
		h.Config = slices.Clone(data[manifestFixedLen:])
	}
	return h, nil
}

// ExtentRef names one version of an extent's table: the pages that were written at Epoch.
type ExtentRef struct {
	Volume storage.VolumeID
	Extent storage.ExtentIndex
	Epoch  storage.Epoch
	Index  uint64 // of the last log entry that changed it
	Digest Digest
}

const extentRefLen = 8 + 4 + 8 + 8 + digestLen

// String names the version for people.
func (r ExtentRef) String() string {
	return fmt.Sprintf("extent %d of volume %d at epoch %d", r.Extent, r.Volume, r.Epoch)
}

func (r ExtentRef) after(o ExtentRef) bool {
	switch {
	case r.Volume != o.Volume:
		return r.Volume > o.Volume
	case r.Extent != o.Extent:
		return r.Extent > o.Extent
	default:
		return r.Epoch > o.Epoch
	}
}

// AppendExtents appends the encoding of a list.
func AppendExtents(dst []byte, refs []ExtentRef) []byte {
	le := binary.LittleEndian
	dst = append(dst, extentListVersion)
	for _, r := range refs {
		dst = le.AppendUint64(dst, uint64(r.Volume))
		dst = le.AppendUint32(dst, uint32(r.Extent))
		dst = le.AppendUint64(dst, uint64(r.Epoch))
		dst = le.AppendUint64(dst, r.Index)
		dst = append(dst, r.Digest[:]...)
	}
	return dst
}

// DecodeExtents decodes a list that fills data, of at most MaxExtentsPerList.
func DecodeExtents(data []byte) ([]ExtentRef, error) {
	if len(data) < 1 || data[0] != extentListVersion || (len(data)-1)%extentRefLen != 0 || (len(data)-1)/extentRefLen > MaxExtentsPerList {
		return nil, invalid("decode extents", "%d bytes", len(data))
	}
	le := binary.LittleEndian
	refs := make([]ExtentRef, 0, (len(data)-1)/extentRefLen)
	for p := data[1:]; len(p) > 0; p = p[extentRefLen:] {
		r := ExtentRef{Volume: storage.VolumeID(le.Uint64(p)), Extent: storage.ExtentIndex(le.Uint32(p[8:])),
			Epoch: storage.Epoch(le.Uint64(p[12:])), Index: le.Uint64(p[20:])}
		copy(r.Digest[:], p[28:])
		refs = append(refs, r)
	}
	return refs, nil
}

// BlockRun is a run of blocks of an extent.
type BlockRun struct{ First, N int }

// runsOf turns a set of blocks into runs of at most MaxBlocksPerRead.
func runsOf(m *blockSet) (runs []BlockRun) {
	for b := range storage.BlocksPerExtent {
		if m[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		if k := len(runs) - 1; k >= 0 && runs[k].First+runs[k].N == b && runs[k].N < MaxBlocksPerRead {
			runs[k].N++
		} else {
			runs = append(runs, BlockRun{b, 1})
		}
	}
	return runs
}

// blockSet is one bit for each block of an extent.
type blockSet [pagesPerExtent]uint64

func (m *blockSet) count() (n int) {
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

func invalid(op, format string, args ...any) error {
	return &storage.Error{Op: op, Kind: storage.KindInvalid, Err: fmt.Errorf(format, args...)}
}
