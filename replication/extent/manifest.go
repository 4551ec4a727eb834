package extent

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// ManifestSilence is how long a manifest stays open when nobody asks it anything.
	ManifestSilence = 30 * time.Second
	// maxStatePartBytes bounds one part of a manifest's small state, but for a single volume that is larger.
	maxStatePartBytes = 1 << 20
)

// Manifest is a group's durable checkpoint, kept as it is for another replica to pull: its tables (a Pebble snapshot)
// and the segments they refer to. It closes itself after ManifestSilence without a call, and when the store is full
// (closeManifestForRoom). Its methods may be called concurrently.
type Manifest struct {
	table.ManifestHeader

	g       *Group
	opened  time.Time
	deleted map[storage.VolumeID]bool // their extents are not part of it
	parts   [][]byte

	// Whoever uses the tables is counted in users; Close waits for all of them before it lets go. No lock is held
	// meanwhile, because a user may wait long for the disk.
	*keptTables
	unhold   func() // lets the log go
	users    sync.WaitGroup
	released chan struct{} // closed by the first Close when everything is let go

	mu      sync.Mutex // guards what follows, and that users grows only while the manifest is open
	silence *time.Timer
	closed  bool
}

// keptTables are the durable tables of a replica as they were at one moment. Their segments are pinned until release.
type keptTables struct {
	set      table.SetID
	snapshot *tabledb.Snapshot
	segments []segment.SegmentNo
	unpin    []func()
}

// keepTables is called with commitMu held: no checkpoint is written meanwhile, so the segments are in use, and cannot be
// recycled, until they are pinned.
func (g *Group) keepTables() (*keptTables, error) {
	g.mu.RLock()
	set := g.set
	g.mu.RUnlock()
	snapshot, err := g.store.db.Snapshot()
	if err != nil {
		return nil, err
	}
	kept := &keptTables{set: set.id, snapshot: snapshot}
	for _, no := range set.live.DurableSegments() {
		kept.segments = append(kept.segments, no)
		kept.unpin = append(kept.unpin, g.store.log.Pin(no))
	}
	return kept, nil
}

func (k *keptTables) release() {
	k.snapshot.Close()
	for _, f := range k.unpin {
		f()
	}
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
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	record, live, removed := g.record, g.set.live, g.removed
	g.mu.RUnlock()
	if removed {
		return nil, storage.E("open manifest", storage.KindNotFound, "group "+g.key.String(), nil)
	}
	kept, err := g.keepTables()
	if err != nil {
		return nil, err
	}
	m := &Manifest{g: g, opened: time.Now(), keptTables: kept, deleted: map[storage.VolumeID]bool{}, released: make(chan struct{})}
	if err := m.readState(); err != nil {
		kept.release()
		return nil, err
	}
	m.unhold = g.log.HoldFrom(record.Index) // the last one that it has, too: Raft asks for it before it sends the next
	m.ManifestHeader = table.ManifestHeader{Checkpoint: record.Checkpoint, StateParts: uint32(len(m.parts)), TotalBytes: live.DurableBytes()}
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

// manifestLasts is for how long a manifest is kept at least, whatever it costs: the next pull has to find out first what has come already.
const manifestLasts = 5 * time.Minute

// closeManifestForRoom closes the oldest manifest if its segments hold more garbage than a quarter of the reserve, and reports whether it
// does. It is called while the store is below its reserve. Whoever pulls begins with another one, and shares from what has come.
//
// Guards I6: the segments of a manifest are pinned for as long as a pull takes, which is hours.
func (s *Store) closeManifestForRoom() bool {
	var oldest *Manifest
	s.mu.Lock()
	for m := range s.openMans {
		if oldest == nil || m.opened.Before(oldest.opened) {
			oldest = m
		}
	}
	s.mu.Unlock()
	if oldest == nil || time.Since(oldest.opened) < manifestLasts {
		return false
	}
	garbage := int64(0)
	for _, no := range oldest.segments {
		garbage += max(0, s.cfg.SegmentBytes-s.live.Live(no)*storage.BlockSize)
	}
	if garbage <= s.room.Space().ReserveBytes/4 {
		return false
	}
	s.logger.Info("a pull from this store begins with another manifest: the store is below its reserve, and the segments of this one hold garbage", "group", oldest.g.key,
		"open_for", time.Since(oldest.opened).Round(time.Second), "garbage_bytes", garbage)
	s.stopped.Go(oldest.Close) // it waits for reads
	return true
}

// readState encodes the small state of the snapshot.
func (m *Manifest) readState() error {
	prefix := table.SetPrefix(table.KeyVolume, m.set)
	var part []byte
	err := m.snapshot.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		id, vol, err := table.StoredVolume(k, v)
		if err != nil {
			return false, err
		}
		if vol.Deleted() {
			m.deleted[id] = true
		}
		before := len(part)
		part = table.AppendStatePart(part, id, vol)
		if before > 0 && len(part) > maxStatePartBytes+12 {
			m.parts, part = append(m.parts, part[:before:before]), slices.Clone(part[before:])
		}
		return true, nil
	})
	if len(part) > 0 {
		m.parts = append(m.parts, part)
	}
	if err != nil {
		return err
	}
	// A volume may be forgotten while its tables are still being removed.
	prefix = table.SetPrefix(table.KeyPurge, m.set)
	return m.snapshot.Scan(prefix, table.AfterPrefix(prefix), func(k, _ []byte) (bool, error) {
		if len(k) != table.VolumeKeyLen {
			return false, table.Corrupt("open manifest", "key %x", k)
		}
		m.deleted[table.ParseVolumeKey(k)] = true
		return true, nil
	})
}

// enter begins the use of the snapshot; leave ends it.
func (m *Manifest) enter() (leave func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, storage.E("read manifest", storage.KindNotFound, "group "+m.g.key.String(), errors.New("the manifest is closed: begin with another one"))
	}
	m.silence.Reset(ManifestSilence)
	m.users.Add(1)
	return m.users.Done, nil
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
	m.unhold()
	m.release()
	m.g.store.noteManifest(m, false)
	close(m.released)
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
func (m *Manifest) Extents(after table.Ref, limit int) ([]table.Ref, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	limit = max(1, min(limit, table.MaxRefs))
	var out []table.Ref
	next := table.ExtentID{Volume: after.Volume, Extent: after.Extent}
	for len(out) < limit {
		id, ok, err := m.nextExtent(next)
		if err != nil || !ok {
			return out, err
		}
		tables, err := tableset.Versions(m.snapshot, m.set, id)
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			ref := t.Ref()
			if ref.After(after) && len(out) < limit {
				out = append(out, ref)
			}
		}
		if next, ok = id.Next(); !ok {
			break
		}
	}
	return out, nil
}

// nextExtent returns the first extent at or after id that is not of a deleted volume.
func (m *Manifest) nextExtent(id table.ExtentID) (table.ExtentID, bool, error) {
	for {
		found, ok, err := tableset.FirstExtent(m.snapshot, m.set, id)
		if err != nil || !ok || !m.deleted[found.Volume] {
			return found, ok, err
		}
		if found.Volume == math.MaxUint64 {
			return table.ExtentID{}, false, nil
		}
		id = table.ExtentID{Volume: found.Volume + 1}
	}
}

// Table returns the encoded table of an extent version: which blocks it has, with their sums.
func (m *Manifest) Table(ref table.Ref) ([]byte, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	t, err := m.table(ref)
	if err != nil {
		return nil, err
	}
	if m.g.store.byEpoch() { // then whoever pulls knows it, too
		return t.Encode(), nil
	}
	older, err := tableset.Older(m.snapshot, m.set, ref.ID())
	if err != nil {
		return nil, err
	}
	return t.EncodeWhole(older), nil
}

// table returns a version's table.
func (m *Manifest) table(ref table.Ref) (*table.Version, error) {
	t, err := tableset.Version(m.snapshot, m.set, ref.ID())
	if err == nil && (t.Empty() || m.deleted[ref.Volume]) {
		err = storage.E("read manifest", storage.KindNotFound, ref.String(), nil)
	}
	return t, err
}

// Blocks returns the mapped blocks among n blocks from first on of an extent version, whole and in order, each with its
// checksum verified. Blocks that the disk does not give back are asked for elsewhere, if that is not nil.
func (m *Manifest) Blocks(ref table.Ref, first, n int, elsewhere Elsewhere) ([]byte, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if first < 0 || n < 1 || n > table.MaxRun || first+n > storage.BlocksPerExtent {
		return nil, storage.E("read manifest", storage.KindInvalid, ref.String(), fmt.Errorf("%d blocks from %d", n, first))
	}
	t, err := m.table(ref)
	if err != nil {
		return nil, err
	}
	payload := make([]byte, 0, n*storage.BlockSize)
	wanted := make([]wantedBlock, 0, n)
	for b := first; b < first+n; b++ {
		if e := t.At(b); e.Mapped() {
			payload = payload[:len(payload)+storage.BlockSize]
			wanted = append(wanted, wantedBlock{b, e, payload[len(payload)-storage.BlockSize:]})
		}
	}
	for _, w := range m.readSpans(wanted) {
		if err := m.readBlock(ref, w.no, w.e, w.dst); err != nil {
			u := Unreadable{ref.Volume, ref.Extent, ref.Epoch, w.no, w.e.Position(), w.e.Sum, err}
			if err = m.g.fromElsewhere(elsewhere, u, w.e, w.dst); err != nil {
				return nil, err
			}
		}
	}
	return payload, nil
}

// wantedBlock is a block of an extent, where it lies, and where it is to be read to.
type wantedBlock struct {
	no  int
	e   table.Entry
	dst []byte
}

const (
	// maxReadGap is what is read, and not used, rather than that another read begins.
	maxReadGap = 32 << 10
	// maxReadSpan bounds one read.
	maxReadSpan = 1 << 20
)

// readSpans reads blocks in the order in which they lie on the disk, and those that lie near to each other at once. It returns the others,
// and those that do not have their sums: they are for readBlock.
func (m *Manifest) readSpans(blocks []wantedBlock) (left []wantedBlock) {
	slices.SortFunc(blocks, func(a, b wantedBlock) int { return cmp.Compare(a.e.Position(), b.e.Position()) })
	var buf []byte
	for len(blocks) > 0 {
		n, size := spanOf(blocks)
		if buf == nil && n > 1 {
			buf = make([]byte, maxReadSpan)
		}
		from := blocks[0].e.Position()
		if n == 1 || m.g.store.log.ReadAt(from, buf[:size]) != nil {
			left, blocks = append(left, blocks[:n]...), blocks[n:]
			continue
		}
		for _, w := range blocks[:n] {
			if copy(w.dst, buf[w.e.Position()-from:]); op.Sum(w.dst) != w.e.Sum { // guards I5, with readBlock
				left = append(left, w)
			}
		}
		blocks = blocks[n:]
	}
	return left
}

// spanOf returns how many of the first blocks are read at once, and how many bytes that is. They are in the order in which they lie.
func spanOf(blocks []wantedBlock) (n int, size segment.Position) {
	from := blocks[0].e.Position()
	for n, size = 1, storage.BlockSize; n < len(blocks); n++ {
		at := blocks[n].e.Position()
		if at.Segment() != from.Segment() || at-from > size+maxReadGap || at-from+storage.BlockSize > maxReadSpan {
			break
		}
		size = at - from + storage.BlockSize
	}
	return n, size
}

func (m *Manifest) readBlock(ref table.Ref, b int, e table.Entry, dst []byte) error {
	if err := m.g.store.log.ReadAt(e.Position(), dst); err != nil {
		return storage.E("read manifest", storage.KindOf(err), ref.String(), err)
	}
	if op.Sum(dst) != e.Sum { // guards I5: damage is not handed on
		m.g.store.metrics.corrupt.Inc()
		return storage.E("read manifest", storage.KindCorrupt, ref.String(), fmt.Errorf("checksum mismatch in block %d at %s", b, e.Position()))
	}
	return nil
}
