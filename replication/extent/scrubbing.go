package extent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/sched"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/scrub"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// tablesWindowBytes is about what sweepPages take.
const tablesWindowBytes = 256 << 10

// Source gets a block that this store's disk does not give back from another replica of its group, into dst. The error is of KindIO if
// every other member says that it cannot read the block either, or there is none, and of another kind if one may have it later.
type Source func(ctx context.Context, key segment.GroupKey, u Unreadable, dst []byte) error

// MendFrom says where blocks come from that the scrub finds damaged. Until it is called none is mended.
func (s *Store) MendFrom(from Source) { s.source.Store(&from) }

// Scrub says how the disk is, as far as it was scrubbed.
func (s *Store) Scrub() storage.StoreScrub { return s.scrubber.Report() }

// scrubbing is what scrub.Worker sees of a store.
type scrubbing struct{ *Store }

func (c scrubbing) Sealed() ([]segment.SegmentInfo, error) {
	if err := c.Failed(); err != nil {
		return nil, err
	}
	sealed := slices.DeleteFunc(c.log.Segments(), func(i segment.SegmentInfo) bool { return i.State != segment.SegmentSealed })
	slices.SortFunc(sealed, func(a, b segment.SegmentInfo) int { return cmp.Compare(a.No, b.No) })
	return sealed, nil
}

func (c scrubbing) Gone(no segment.SegmentNo) bool {
	_, err := c.log.Sealed(no)
	return errors.Is(err, storage.ErrNotFound)
}

func (c scrubbing) SyncLatency() time.Duration { return c.log.SyncLatency(segment.Scrub) }

func (c scrubbing) Load() ([]byte, error) { return storedir.ReadScrub(c.cfg.FS, c.cfg.Dir) }

func (c scrubbing) Save(state []byte) error { return storedir.WriteScrub(c.cfg.FS, c.cfg.Dir, state) }

func (c scrubbing) Check(no segment.SegmentNo, wait func(int64) error) (f scrub.Found, err error) {
	l := c.newLeads()
	sums := map[uint32]uint32{} // of the blocks in records that are sound, by their offset
	checked, readErr := c.log.CheckSealed(no, wait, func(r segment.SealedRecord, data []byte) error {
		n := l.add(&r)
		if data == nil {
			return nil
		}
		for at := len(data) - n*storage.BlockSize; at < len(data); at += storage.BlockSize {
			sched.Yield()
			sums[r.Data.Offset()+uint32(at)] = op.Sum(data[at:][:storage.BlockSize])
		}
		return nil
	})
	f.Bytes, f.DamagedRecords, f.StrayBytes = checked.Bytes, checked.DamagedRecords, checked.StrayBytes
	if readErr != nil && storage.KindOf(readErr) != storage.KindIO {
		return f, readErr
	}
	if !checked.Sound() { // entries that no checkpoint covers would be missing at a start
		for _, key := range c.Groups() {
			if g := c.Group(key); g != nil {
				g.RequestCheckpoint()
			}
		}
	}
	blocks, damaged, err := c.blocksOf(l, no)
	if err != nil {
		return f, err
	}
	for _, b := range blocks {
		sched.Yield()
		if sum, sound := sums[b.From.Offset]; sound && sum == b.From.Sum {
			continue
		}
		if err := wait(storage.BlockSize); err != nil {
			return f, err
		}
		if err := c.look(&f, b); err != nil {
			return f, err
		}
	}
	f.Blocks, f.DamagedPages = len(blocks), f.DamagedPages+damaged
	f.Doubtful = f.DamagedPages > 0 || int64(len(blocks)) < c.live.Live(no)
	return f, readErr
}

// blocksOf is leads.blocks without the pages that are damaged, and says how many these are.
func (c scrubbing) blocksOf(l *leads, no segment.SegmentNo) (blocks []compact.Block, damaged int, err error) {
	for _, f := range l.all {
		for part := range slices.Chunk(slices.SortedFunc(maps.Keys(f.pages), table.PageKey.Compare), pagesAtOnce) {
			in, n, err := c.soundBlocks(f.g, part, map[segment.SegmentNo]struct{}{no: {}})
			if err != nil {
				return nil, 0, err
			}
			blocks, damaged = append(blocks, in...), damaged+n
		}
	}
	return blocks, damaged, nil
}

// soundBlocks is blocksIn without the pages that are damaged, and says how many these are.
func (c scrubbing) soundBlocks(g *Group, pages []table.PageKey, nos map[segment.SegmentNo]struct{}) (blocks []compact.Block, damaged int, err error) {
	if blocks, err = g.blocksIn(pages, nos); err == nil || !c.tablesDamaged(err) {
		return blocks, 0, tablesError(err)
	}
	blocks = nil
	for _, k := range pages {
		in, err := g.blocksIn([]table.PageKey{k}, nos)
		switch {
		case err == nil:
			blocks = append(blocks, in...)
		case c.tablesDamaged(err):
			damaged++
		default:
			return nil, 0, tablesError(err)
		}
	}
	return blocks, damaged, nil
}

// tablesDamaged reports whether an error of the tables is that of a damaged part of them, and other parts may be sound: what is there cannot
// be decoded, or the disk does not give it back.
func (c scrubbing) tablesDamaged(err error) bool {
	kind := storage.KindOf(err)
	return kind == storage.KindCorrupt || kind == storage.KindIO && c.Failed() == nil
}

// tablesError is an error of the tables that says nothing of a segment.
func tablesError(err error) error {
	if err == nil {
		return nil
	}
	return storage.E("scrub", storage.KindUnavailable, "tables", err)
}

// look adds a block to what is bad if a table refers to it and the disk does not give it back.
func (c scrubbing) look(f *scrub.Found, b compact.Block) error {
	why := c.unreadable(&b)
	if k := storage.KindOf(why); why == nil || k == storage.KindUnavailable {
		return why
	}
	g := c.Group(b.Group)
	if g == nil {
		return nil
	}
	switch refers, err := g.refersTo(&b); {
	case err != nil && c.tablesDamaged(err):
		f.DamagedPages++
		return nil
	case err != nil:
		return tablesError(err)
	case !refers: // it was overwritten or moved meanwhile, and its place used again
		return nil
	}
	if errors.Is(why, storage.ErrCorrupt) {
		c.metrics.corrupt.Inc()
	}
	f.Bad = append(f.Bad, scrub.Bad{Block: b, Why: why})
	return nil
}

// unreadable returns why the disk does not give back a block; nil if it does.
func (c scrubbing) unreadable(b *compact.Block) error {
	var block [storage.BlockSize]byte
	err := c.log.ReadStored(b.From.Position(), block[:])
	if err == nil && op.Sum(block[:]) != b.From.Sum {
		err = storage.E("scrub", storage.KindCorrupt, b.From.Position().String(), errors.New("checksum mismatch"))
	}
	return err
}

// refersTo reports whether a block still lies where it was found, in a volume that is not deleted.
func (g *Group) refersTo(b *compact.Block) (bool, error) {
	g.mu.RLock()
	v := g.state.Volume(b.Page.Volume)
	lives := g.hasTables(b.Set) && v != nil && !v.Deleted()
	g.mu.RUnlock()
	if !lives {
		return false, nil
	}
	blocks, err := g.blocksIn([]table.PageKey{b.Page}, map[segment.SegmentNo]struct{}{b.From.Segment: {}})
	return slices.ContainsFunc(blocks, func(o compact.Block) bool { return o.At == b.At && o.From == b.From }), err
}

func (c scrubbing) Tables(from []byte, nos map[segment.SegmentNo]struct{}, wait func(int64) error) (f scrub.Found, next []byte, err error) {
	if err := wait(tablesWindowBytes); err != nil {
		return f, nil, err
	}
	if from == nil {
		from = []byte{table.KeyPage}
	}
	pages, next, err := c.scanPages(&f, from, nos)
	if err != nil {
		return f, nil, err
	}
	for set, of := range pages {
		g := (purges{c.Store}).replicaOf(set)
		if g == nil {
			continue // of a pull, which is looked at once it is installed
		}
		blocks, _, err := c.soundBlocks(g, of, nos) // the scan has counted what is damaged
		if err != nil {
			return f, nil, err
		}
		for _, b := range blocks {
			if err := errors.Join(wait(storage.BlockSize), c.look(&f, b)); err != nil {
				return f, nil, err
			}
		}
	}
	return f, next, nil
}

// scanPages looks at the next pages in the database, and returns those of each set that store an entry in one of the segments, and where to
// go on; nil at the end.
func (c scrubbing) scanPages(f *scrub.Found, from []byte, nos map[segment.SegmentNo]struct{}) (pages map[table.SetID][]table.PageKey, next []byte, err error) {
	pages, n := map[table.SetID][]table.PageKey{}, 0
	at := from
	err = c.db.Scan(from, []byte{table.KeyPage + 1}, func(k, v []byte) (bool, error) {
		if n++; n > sweepPages {
			next = slices.Clone(k)
			return false, nil
		}
		at = append(append(at[:0:0], k...), 0)
		f.Bytes += int64(len(k) + len(v))
		var p table.Page
		if err := p.Decode(k, v); err != nil {
			f.DamagedPages++
			c.logger.Error("a page of the tables is damaged", "store", c.identity.Store, "key", fmt.Sprintf("%x", k), "error", err)
			return true, nil
		}
		set, version, _ := table.ParsePageKey(k)
		if of := pages[set]; (len(of) == 0 || of[len(of)-1] != version.PageKey) && liesIn(&p, nos) {
			pages[set] = append(of, version.PageKey)
		}
		return true, nil
	})
	if err != nil && c.tablesDamaged(err) {
		f.DamagedPages++
		c.logger.Error("pages of the tables cannot be read", "store", c.identity.Store, "from", fmt.Sprintf("%x", at), "error", err)
		next, err = c.pastDamage(at)
	}
	return pages, next, tablesError(err)
}

// pastDamage returns from where on the tables' pages can be read again, about; nil if none can up to the end. What is damaged is a block of
// the database, which holds some dozen pages that follow each other, or a file of it. It costs a look for each power of two of pages
// between, twice.
func (c scrubbing) pastDamage(at []byte) ([]byte, error) {
	reads := func(key []byte) (bool, error) {
		_, _, _, err := c.db.First(key, []byte{table.KeyPage + 1})
		if err != nil && c.tablesDamaged(err) {
			return false, nil
		}
		return err == nil, err
	}
	step, bad, good := 0, at, at
	for ok := false; !ok; step++ {
		bad = good
		if good = table.PageKeyAfter(at, step); good == nil {
			return nil, nil
		}
		var err error
		if ok, err = reads(good); err != nil {
			return nil, err
		}
	}
	for step -= 3; step >= 0; step-- { // they are 2^step pages apart, twice
		between := table.PageKeyAfter(bad, step)
		switch ok, err := reads(between); {
		case err != nil:
			return nil, err
		case ok:
			good = between
		default:
			bad = between
		}
	}
	return good, nil
}

// liesIn reports whether the page stores an entry that lies in one of the segments.
func liesIn(p *table.Page, nos map[segment.SegmentNo]struct{}) bool {
	return len(nos) > 0 && slices.ContainsFunc(p.Entries[:], func(e table.Entry) bool {
		_, in := nos[e.Segment]
		return in
	})
}

func (c scrubbing) Mend(ctx context.Context, b compact.Block) (scrub.Outcome, error) {
	g := c.Group(b.Group)
	if g == nil {
		return scrub.Gone, nil
	}
	refers, err := g.refersTo(&b)
	if err != nil || !refers {
		return outcome(scrub.Gone, err)
	}
	why := c.unreadable(&b)
	if why == nil {
		return scrub.Gone, nil
	}
	from := c.source.Load()
	if from == nil {
		return scrub.Later, storage.E("mend", storage.KindUnavailable, "store "+c.identity.Store.String(), errors.New("its replicas do not run yet"))
	}
	data := make([]byte, storage.BlockSize)
	err = (*from)(ctx, b.Group, Unreadable{b.Page.Volume, b.Page.Extent, b.Epoch, b.BlockNo(), b.From.Position(), b.From.Sum, why}, data)
	if storage.KindOf(err) == storage.KindIO {
		return scrub.Lost, err
	}
	n := 0
	if err == nil {
		n, err = c.mend(ctx, mend{g, b.Page, b.At, b.From, data})
	}
	if n == 0 {
		return outcome(scrub.Gone, err)
	}
	return outcome(scrub.Mended, err)
}

// emptyBlocks are moved at once.
const emptyBlocks = 64

func (c scrubbing) Empty(ctx context.Context, no segment.SegmentNo, wait func(int64) error) error {
	if err := c.compaction.MayEmpty(no); err != nil {
		return err
	}
	// As compaction, it leaves the last room to the log.
	if s := c.Space(); s.Full() || s.FreeBytes < compact.LeastSegments*c.cfg.SegmentBytes {
		return storage.E("empty", storage.KindConflict, "segment "+no.String(), errors.New("there is no room for copies"))
	}
	groups := map[segment.GroupKey]struct{}{}
	move := func(blocks []compact.Block) error {
		for part := range slices.Chunk(blocks, emptyBlocks) {
			if err := wait(int64(len(part)) * storage.BlockSize); err != nil {
				return err
			}
			if err := c.compaction.Move(ctx, part); err != nil {
				return err
			}
			for _, b := range part {
				groups[b.Group] = struct{}{}
			}
		}
		return nil
	}
	blocks, err := c.compaction.Find(no)
	if err == nil {
		err = move(blocks)
	}
	if (err == nil || errors.Is(err, compact.ErrUnreadable)) && c.live.Live(no) > 0 { // what the records do not lead to
		err = c.compaction.Sweep(ctx, map[segment.SegmentNo]struct{}{no: {}}, move)
	}
	c.compaction.Checkpoint(groups)
	return err
}

// outcome is o, or Later with an error.
func outcome(o scrub.Outcome, err error) (scrub.Outcome, error) {
	if err != nil {
		return scrub.Later, err
	}
	return o, nil
}
