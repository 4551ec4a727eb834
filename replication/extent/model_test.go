package extent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// model is a group as plain as can be: everything in maps, nothing on a disk.
type model struct {
	volumes map[storage.VolumeID]*modelVolume
}

type modelVolume struct {
	epoch      storage.Epoch
	generation storage.Generation
	max        storage.SessionID
	deleted    bool
	live       map[storage.SessionID]map[uint64]bool
	closed     map[storage.SessionID]map[uint64]bool
	order      []storage.SessionID // of closing
	blocks     map[modelBlock][]modelVersion
	buf        []byte // of compareExtent
}

var zeroes [storage.BlockSize]byte // nobody writes to it

type modelBlock struct {
	extent storage.ExtentIndex
	block  int
}

type modelVersion struct {
	epoch storage.Epoch
	data  []byte // nil: a hole
}

func newModel() *model { return &model{volumes: map[storage.VolumeID]*modelVolume{}} }

func low(applied map[uint64]bool) uint64 {
	n := uint64(0)
	for applied[n+1] {
		n++
	}
	return n
}

// apply returns the kind and whether it was a duplicate.
func (m *model) apply(q request, term uint64) (storage.Kind, bool) {
	o := q.o
	if o.Kind == op.Noop || o.Kind == op.Digest {
		return storage.KindNone, false
	}
	v, known := m.volumes[o.Volume], true
	if v == nil {
		known = false
		v = &modelVolume{live: map[storage.SessionID]map[uint64]bool{}, closed: map[storage.SessionID]map[uint64]bool{}, blocks: map[modelBlock][]modelVersion{}}
	}
	kind, dup := v.apply(q, term)
	if !known && kind == storage.KindNone && !dup {
		m.volumes[o.Volume] = v
	}
	return kind, dup
}

func (v *modelVolume) apply(q request, term uint64) (storage.Kind, bool) {
	o := q.o
	if v.deleted {
		if o.Kind == op.DeleteVolume {
			return storage.KindNone, true
		}
		return storage.KindNotFound, false
	}
	switch o.Kind {
	case op.Write, op.Clear:
		applied := v.live[o.Session]
		switch {
		case applied == nil:
			return storage.KindFenced, false
		case applied[o.Seq]:
			return storage.KindNone, true
		case o.Seq > low(applied)+storage.SessionWindow:
			return storage.KindInvalid, false
		case o.Generation < v.generation, o.Epoch < v.epoch:
			return storage.KindFenced, false
		case o.ReadTerm != 0 && o.ReadTerm != term:
			return storage.KindConflict, false
		}
		applied[o.Seq] = true
		v.epoch, v.generation = max(v.epoch, o.Epoch), max(v.generation, o.Generation)
		v.set(o, q.payload)
	case op.OpenSession:
		switch {
		case v.live[o.Session] != nil:
			return storage.KindNone, true
		case o.Session <= v.max, o.Generation < v.generation:
			return storage.KindFenced, false
		}
		v.live[o.Session], v.max = map[uint64]bool{}, o.Session
		v.epoch, v.generation = max(v.epoch, o.Epoch), max(v.generation, o.Generation)
	case op.CloseSession:
		return v.close(o.Session)
	case op.SetEpoch:
		if o.Epoch <= v.epoch {
			return storage.KindNone, true
		}
		v.epoch = o.Epoch
	case op.SetGeneration:
		if o.Generation < v.generation {
			return storage.KindFenced, false
		}
		dup := o.Generation == v.generation
		v.generation = o.Generation
		return storage.KindNone, dup
	case op.DeleteVolume:
		v.deleted = true
	}
	return storage.KindNone, false
}

func (v *modelVolume) close(id storage.SessionID) (storage.Kind, bool) {
	if v.live[id] != nil {
		v.closed[id] = v.live[id]
		delete(v.live, id)
	} else if i := slices.Index(v.order, id); i >= 0 {
		if i < len(v.order)-16 {
			return storage.KindConflict, false
		}
		return storage.KindNone, true
	} else if n := len(v.order) - 16; n > 0 && id <= slices.Max(v.order[:n]) {
		return storage.KindConflict, false
	} else {
		v.closed[id] = map[uint64]bool{}
	}
	v.max = max(v.max, id)
	v.order = append(v.order, id)
	return storage.KindNone, false
}

func (v *modelVolume) set(o op.Op, payload []byte) {
	first, n := o.Blocks()
	for i := range n {
		b := modelBlock{o.Extent, first + i}
		ver := modelVersion{epoch: o.Epoch}
		if o.Kind == op.Write {
			ver.data = payload[i*storage.BlockSize:][:storage.BlockSize]
		}
		vs := v.blocks[b]
		if k := len(vs); k > 0 && vs[k-1].epoch == o.Epoch {
			vs = vs[:k-1]
		}
		v.blocks[b] = append(slices.Clone(vs), ver)
	}
}

// at returns a block as of an epoch; nil for a hole.
func (v *modelVolume) at(b modelBlock, epoch storage.Epoch) []byte {
	vs := v.blocks[b]
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].epoch <= epoch {
			return vs[i].data
		}
	}
	return nil
}

// compare returns the first difference between the group and the model, in all versions of all blocks.
func (m *model) compare(g *Group, extents storage.ExtentIndex, blocksEach int) error {
	for id, v := range m.volumes {
		if err := v.compareState(g, id); err != nil {
			return err
		}
		if v.deleted {
			continue
		}
		for x := range extents {
			for e := storage.Epoch(0); e <= v.epoch+1; e++ {
				if e == v.epoch+1 {
					e = op.HeadEpoch
				}
				if err := v.compareExtent(g, id, x, e, blocksEach); err != nil {
					return err
				}
				if e == op.HeadEpoch {
					break
				}
			}
		}
	}
	return nil
}

func (v *modelVolume) compareState(g *Group, id storage.VolumeID) error {
	s, ok := g.Volume(id)
	if !ok || s.Deleted != v.deleted {
		return fmt.Errorf("volume %d: known %v, deleted %v", id, ok, s.Deleted)
	}
	if v.deleted {
		return nil
	}
	if s.Epoch != v.epoch || s.Generation != v.generation || s.MaxSession != v.max || len(s.Sessions) != len(v.live) {
		return fmt.Errorf("volume %d: %+v, want epoch %d generation %d session %d", id, s, v.epoch, v.generation, v.max)
	}
	mapped := int64(0)
	for b := range v.blocks {
		if v.at(b, op.HeadEpoch) != nil {
			mapped++
		}
	}
	if s.Mapped != mapped {
		return fmt.Errorf("volume %d: %d blocks are said to be mapped, want %d", id, s.Mapped, mapped)
	}
	for _, session := range s.Sessions {
		applied := v.live[session.ID]
		if session.Window.Low != low(applied) {
			return fmt.Errorf("session %d: low %d, want %d", session.ID, session.Window.Low, low(applied))
		}
		for seq := range applied {
			if !session.Window.Applied(seq) {
				return fmt.Errorf("session %d: %d is forgotten", session.ID, seq)
			}
		}
	}
	return nil
}

func (v *modelVolume) compareExtent(g *Group, id storage.VolumeID, x storage.ExtentIndex, e storage.Epoch, n int) error {
	req := op.ReadRequest{Volume: id, Extent: x, Length: uint32(n) * storage.BlockSize, Generation: v.generation, Epoch: e}
	v.buf = slices.Grow(v.buf[:0], n*storage.BlockSize)[:n*storage.BlockSize] // with what was read before: holes are written, too
	dst, sums, holes := v.buf, make([]uint32, n), make([]bool, n)
	if err := g.Read(req, dst, sums, holes, nil); err != nil {
		return err
	}
	for b := range n {
		want := v.at(modelBlock{x, b}, e)
		got := dst[b*storage.BlockSize:][:storage.BlockSize]
		switch {
		case (want == nil) != holes[b]:
			return fmt.Errorf("volume %d extent %d block %d epoch %d: hole %v", id, x, b, e, holes[b])
		case want == nil && !bytes.Equal(got, zeroes[:]):
			return fmt.Errorf("volume %d extent %d block %d epoch %d: a hole is not zero", id, x, b, e)
		case want != nil && !bytes.Equal(got, want):
			return fmt.Errorf("volume %d extent %d block %d epoch %d: wrong bytes", id, x, b, e)
		}
	}
	return nil
}

// pagesNow returns the versions of all pages as they are now, wherever they are, and those that Pebble holds. Entries may be missing.
func pagesNow(g *Group) (now, durable map[table.VersionKey]*table.Page, err error) {
	g.mu.RLock()
	now, durable = map[table.VersionKey]*table.Page{}, map[table.VersionKey]*table.Page{}
	if g.frozen != nil {
		for k, p := range g.frozen.pages {
			now[k] = &p.Page
		}
	}
	for k, p := range g.cache.dirty {
		now[k] = &p.Page
	}
	set := g.set.id
	g.mu.RUnlock()
	prefix := table.SetPrefix(table.KeyPage, set)
	err = g.store.db.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		p := new(table.Page)
		if err := p.Decode(k, v); err != nil {
			return false, err
		}
		_, key, _ := table.ParsePageKey(k)
		durable[key] = p
		if now[key] == nil {
			now[key] = p
		}
		return true, nil
	})
	return now, durable, err
}

func countPages(pages map[table.VersionKey]*table.Page) table.Counts {
	c := table.Counts{}
	for _, p := range pages {
		c.Count(p, 1)
	}
	return c
}

// checkLive compares the live counts with all tables, those in memory and those in Pebble.
func checkLive(g *Group) error {
	pages, saved, err := pagesNow(g)
	if err != nil {
		return err
	}
	walked, durable := countPages(pages), countPages(saved)
	g.mu.RLock()
	set := g.set
	g.mu.RUnlock()
	if now := set.live.Now(); !maps.Equal(now, walked) {
		return fmt.Errorf("live counts %v, tables say %v", now, walked)
	}
	if n := g.LiveBytes(); n != ownBytes(walked) {
		return fmt.Errorf("%d bytes are said to live, tables say %d", n, ownBytes(walked))
	}
	all := maps.Clone(walked)
	for _, k := range g.store.staged {
		counts, err := checkStaged(k, g.store)
		if err != nil {
			return err
		}
		all.Add(counts)
	}
	total := table.Counts{}
	g.store.live.Segments(func(no segment.SegmentNo, s live.Segment) { total[no] = s.Count })
	if len(g.store.Groups()) == 1 && g.store.Pulls() == 0 && !maps.Equal(total, all) {
		return fmt.Errorf("all sets together refer to %v, tables say %v", total, all)
	}
	stored, err := tableset.Live(g.store.db, set.id)
	if err != nil {
		return err
	}
	if !maps.Equal(stored, durable) || !maps.Equal(set.live.Durable(), durable) {
		return fmt.Errorf("durable live counts %v, in memory %v, tables say %v", stored, set.live.Durable(), durable)
	}
	return nil
}

// checkStaged compares the counts of what a pull has left with its tables.
func checkStaged(k *staged, s *Store) (table.Counts, error) {
	walked := table.Counts{}
	prefix := table.SetPrefix(table.KeyPage, k.set.id)
	err := s.db.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		var p table.Page
		err := p.Decode(k, v)
		walked.Count(&p, 1)
		return true, err
	})
	stored, err2 := tableset.Live(s.db, k.set.id)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	if now := k.set.live.Now(); !maps.Equal(now, walked) || !maps.Equal(stored, walked) || !maps.Equal(k.set.live.Durable(), walked) {
		return nil, fmt.Errorf("staged set %d: live counts %v, stored %v, tables say %v", k.set.id, now, stored, walked)
	}
	return walked, nil
}

// liveBlocks returns how many blocks there are, each counted once.
func liveBlocks(t testing.TB, g *Group) int {
	t.Helper()
	pages, _, err := pagesNow(g)
	if err != nil {
		t.Fatal(err)
	}
	blocks, _ := placesOf(pages)
	return len(blocks)
}

// placesOf returns where the blocks of the pages lie, and how many entries are stored.
func placesOf(pages map[table.VersionKey]*table.Page) (blocks map[segment.Position]bool, stored int64) {
	blocks = map[segment.Position]bool{}
	for _, p := range pages {
		for m := p.Stored(); m != 0; m &= m - 1 {
			blocks[p.Entries[bits.TrailingZeros64(m)].Position()] = true
			stored++
		}
	}
	return blocks, stored
}

// checkOwn compares the live counts of a store that has written by epoch from the beginning with what they are to mean: own
// counts each block once, refs each entry that is stored.
func checkOwn(g *Group) error {
	pages, _, err := pagesNow(g)
	if err != nil {
		return err
	}
	blocks, stored := placesOf(pages)
	var sum table.Count
	for _, n := range g.set.live.Now() {
		sum = sum.Plus(n)
	}
	if want := (table.Count{Refs: stored, Own: int64(len(blocks))}); sum != want {
		return fmt.Errorf("counted are %+v, there are %+v", sum, want)
	}
	return nil
}

// ownBytes is how many bytes of blocks live by counts.
func ownBytes(c table.Counts) (n int64) {
	for _, of := range c {
		n += of.Own * storage.BlockSize
	}
	return n
}
