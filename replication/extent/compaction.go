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
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// unsavedFor is how long a replica may have moved blocks that no checkpoint has taken. After that it counts as one that writes
	// none, and its blocks are left alone.
	unsavedFor = time.Minute
	// roomPatience bounds the wait for checkpoints before blocks are moved.
	roomPatience = 5 * time.Second
	// sweepPages are looked at in one scan of a sweep.
	sweepPages = 256
	// pagesAtOnce are loaded at once, and looked at under one hold of the group's lock.
	pagesAtOnce = 64
	// trimSegments are given back each second, and a trimShare of what is too much if that is more: whatever was deleted, most of it is given
	// back within a few minutes.
	trimSegments, trimShare = 4, 30
	// burstShare is which part of the capacity is kept at most for a burst.
	burstShare = 16
)

// compaction is what compact.Worker sees of a store.
type compaction struct {
	*Store
	m *compactionMetrics
}

func (c compaction) Room() compact.Room {
	space := c.Space()
	used, _ := c.log.Space()
	alive, written := c.live.Blocks()
	return compact.Room{Free: space.FreeBytes, Reserve: space.ReserveBytes, Used: used,
		SegmentBytes: c.cfg.SegmentBytes,
		Goal:         c.cfg.FreeGoalBytes, LiveBlocks: alive, WrittenBlocks: written}
}

func (c compaction) Segments(fn func(segment.SegmentNo, live.Segment)) { c.live.Segments(fn) }

func (c compaction) References(no segment.SegmentNo) int64 { return c.live.References(no) }

func (c compaction) SyncLatency() time.Duration { return c.log.SyncLatency(segment.Compaction) }

func (c compaction) Checkpoint(groups map[segment.GroupKey]struct{}) {
	for key := range groups {
		if g := c.Group(key); g != nil {
			g.RequestCheckpoint()
		}
	}
}

// Trim keeps what the reserve and the segments that are written ahead take, and some for a burst.
func (c compaction) Trim() {
	space := c.Space()
	_, free := c.log.Space()
	if n := toTrim(free, space.ReserveBytes, space.CapacityBytes, 4*int64(c.cfg.Segment.FreeSegments)*c.cfg.SegmentBytes, c.cfg.SegmentBytes); n > 0 {
		c.m.trimmed.Add(float64(c.log.GiveBack(n)) / float64(c.cfg.SegmentBytes))
	}
}

// toTrim returns how many bytes of free segments are given back to the file system within a second.
func toTrim(free, reserve, capacity, burst, segment int64) int64 {
	over := free - reserve - min(burst, capacity/burstShare)
	return max(0, min(over, max(trimSegments*segment, over/trimShare)))
}

func (c compaction) MayEmpty(no segment.SegmentNo) error {
	if err := c.Failed(); err != nil {
		return err
	}
	if _, err := c.log.Sealed(no); err != nil {
		return err
	}
	for _, id := range c.live.ReferredBy(no) {
		if g := (purges{c.Store}).replicaOf(id); g == nil || !g.mayMove() {
			return storage.E("compact", storage.KindConflict, "segment "+no.String(), errors.New("a pull, or a replica that writes no checkpoints, has blocks there"))
		}
	}
	return nil
}

// mayMove reports whether blocks of the replica may be moved: checkpoints are written of it.
func (g *Group) mayMove() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return !g.removed && g.damage == nil && (g.movedAt.IsZero() || time.Since(g.movedAt) < unsavedFor)
}

// found are pages of a replica's tables.
type found struct {
	g     *Group
	pages map[table.PageKey]struct{}
}

// leads are the pages to which the records of a segment lead, of all replicas.
type leads struct {
	of  map[storage.GroupID][]*found
	all []*found
}

func (s *Store) newLeads() *leads {
	l := &leads{of: map[storage.GroupID][]*found{}}
	for _, key := range s.Groups() {
		if g := s.Group(key); g != nil {
			f := &found{g, map[table.PageKey]struct{}{}}
			l.all = append(l.all, f)
			l.of[key.Group] = append(l.of[key.Group], f)
		}
	}
	return l
}

// add takes from a record only of which pages there are blocks, and returns how many: where these lie, the pages say.
func (l *leads) add(r *segment.SealedRecord) (n int) {
	v, x, first, n := blocksOf(r)
	for b := first - first%table.BlocksPerPage; b < first+n; b += table.BlocksPerPage {
		for _, f := range l.of[r.Group] {
			f.pages[table.PageKey{Volume: v, Extent: x, Page: uint8(b / table.BlocksPerPage)}] = struct{}{}
		}
	}
	return n
}

// blocks returns the blocks of these pages that lie in a segment.
func (l *leads) blocks(no segment.SegmentNo) (blocks []compact.Block, err error) {
	for _, f := range l.all {
		for part := range slices.Chunk(slices.SortedFunc(maps.Keys(f.pages), table.PageKey.Compare), pagesAtOnce) {
			in, err := f.g.blocksIn(part, map[segment.SegmentNo]struct{}{no: {}})
			if err != nil {
				return nil, err
			}
			blocks = append(blocks, in...)
		}
	}
	return blocks, nil
}

func (c compaction) Find(no segment.SegmentNo) (blocks []compact.Block, err error) {
	l := c.newLeads()
	err = c.log.ReadSealed(no, func(r segment.SealedRecord) error {
		sched.Yield()
		l.add(&r)
		return nil
	})
	if storage.KindOf(err) == storage.KindIO {
		c.scrubber.Ask(no)
		err = fmt.Errorf("%w: %w", compact.ErrUnreadable, err)
	}
	if err != nil {
		return nil, err
	}
	return l.blocks(no)
}

// blocksOf returns which blocks a record has; none if it has no blocks.
func blocksOf(r *segment.SealedRecord) (v storage.VolumeID, x storage.ExtentIndex, first, n int) {
	if r.Head == nil {
		h := &r.Header
		first, n = int(h.FirstBlock), r.Bytes/storage.BlockSize
		if first+n > storage.BlocksPerExtent {
			return 0, 0, 0, 0
		}
		return h.Volume, h.Extent, first, n
	}
	o, _, err := op.DecodeHeader(r.Head)
	if err != nil || o.Kind != op.Write { // not everything in a group's log is an operation
		return 0, 0, 0, 0
	}
	first, n = o.Blocks()
	return o.Volume, o.Extent, first, n
}

// blocksIn returns the blocks of pages, in any version, that lie in one of the segments; each place once, in the order of blocks. The
// pages must be in ascending order.
func (g *Group) blocksIn(pages []table.PageKey, nos map[segment.SegmentNo]struct{}) (blocks []compact.Block, err error) {
	_, err = g.eachPage(pages, func(set table.SetID, k table.PageKey, versions []*page) {
		blocks = g.blocksOfPage(blocks, set, k, versions, func(e table.Entry) bool {
			_, in := nos[e.Segment]
			return in
		})
	})
	return blocks, err
}

// eachPage calls fn with pages of the tables and all versions of each, whole, in ascending order of epoch, as they all are at one moment, and
// returns which set that is. The pages must be in ascending order. fn runs with mu held for reading; it may have been called for some pages
// when there is an error.
func (g *Group) eachPage(pages []table.PageKey, fn func(set table.SetID, k table.PageKey, versions []*page)) (set table.SetID, err error) {
	for {
		g.mu.RLock()
		set, persists, unknown := g.set.id, g.cache.persists, g.cache.unknown(pages)
		g.mu.RUnlock()
		stored, err := g.loadAll(set, unknown)
		if err != nil {
			return set, err
		}
		g.mu.RLock()
		if g.set.id != set || g.cache.persists != persists || !g.cache.knows(pages, stored) {
			g.mu.RUnlock()
			continue
		}
		for _, k := range unknown {
			if cp := g.cache.pages[k]; cp != nil {
				cp.noteStored(stored[k])
			}
		}
		for _, k := range pages {
			var versions []*page
			if versions, err = g.cache.versions(k, stored[k]); err != nil {
				break
			}
			fn(set, k, versions)
		}
		g.mu.RUnlock()
		return set, err
	}
}

// blocksOfPage appends the blocks of a page's versions that are wanted; each place once.
func (g *Group) blocksOfPage(blocks []compact.Block, set table.SetID, k table.PageKey, versions []*page, wanted func(table.Entry) bool) []compact.Block {
	before := len(blocks)
	for _, p := range versions {
		for at, e := range p.Entries {
			if e.Mapped() && wanted(e) {
				blocks = append(blocks, compact.Block{Group: g.key, Set: set, Page: k, At: at, Epoch: p.Epoch, From: e})
			}
		}
	}
	of := blocks[before:]
	slices.SortStableFunc(of, func(a, b compact.Block) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.From.Position(), b.From.Position()))
	})
	of = slices.CompactFunc(of, func(a, b compact.Block) bool { return a.At == b.At && a.From == b.From })
	return blocks[:before+len(of)]
}

// Sweep looks at the pages that Pebble holds. What is in memory only is found once it is stored.
func (c compaction) Sweep(ctx context.Context, nos map[segment.SegmentNo]struct{}, fn func([]compact.Block) error) error {
	for _, key := range c.Groups() {
		g := c.Group(key)
		if g == nil {
			continue
		}
		g.mu.RLock()
		set := g.set.id
		g.mu.RUnlock()
		prefix := table.SetPrefix(table.KeyPage, set)
		for from := prefix; from != nil; {
			keys, next, err := c.pagesIn(from, table.AfterPrefix(prefix), nos)
			if err != nil {
				return err
			}
			from = next
			for part := range slices.Chunk(keys, pagesAtOnce) {
				blocks, err := g.blocksIn(part, nos)
				if err == nil && len(blocks) > 0 {
					err = fn(blocks)
				}
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// pagesIn returns which of the next pages in Pebble store an entry that lies in one of the segments, and where to go on; nil at the end.
func (c compaction) pagesIn(from, to []byte, nos map[segment.SegmentNo]struct{}) (keys []table.PageKey, next []byte, err error) {
	n := 0
	err = c.db.Scan(from, to, func(k, v []byte) (bool, error) {
		if n++; n > sweepPages {
			next = slices.Clone(k)
			return false, nil
		}
		var p table.Page
		if err := p.Decode(k, v); err != nil {
			return false, err
		}
		_, version, _ := table.ParsePageKey(k)
		if m := len(keys); m > 0 && keys[m-1] == version.PageKey {
			return true, nil
		}
		for _, e := range p.Entries {
			if _, in := nos[e.Segment]; in {
				keys = append(keys, version.PageKey)
				break
			}
		}
		return true, nil
	})
	return keys, next, err
}

// tablesOf names the tables of a replica.
type tablesOf struct {
	key segment.GroupKey
	set table.SetID
}

func (c compaction) Move(ctx context.Context, blocks []compact.Block) error {
	if err := c.roomFor(ctx, blocks); err != nil {
		return err
	}
	// I1: from before a block is in a segment until it is counted, the segment is not recycled.
	defer c.live.HoldFrom(c.log.Durable().Segment())()
	moves := map[tablesOf][]Move{}
	end, unread, err := c.copyBlocks(blocks, moves)
	if err != nil {
		return err
	}
	// I1: a checkpoint waits for its entries only, and a copy lies behind them. Without this wait it could name what a power cut takes.
	if err := c.log.Wait(ctx, end); err != nil {
		return err
	}
	for t, ms := range moves {
		if g := c.Group(t.key); g != nil {
			n, err := g.Repoint(t.set, ms)
			c.m.moved.Add(float64(n))
			if err != nil {
				return err
			}
		}
	}
	return unread
}

// roomFor returns when pages of so many blocks may be changed: they are in memory until a checkpoint.
func (c compaction) roomFor(ctx context.Context, blocks []compact.Block) error {
	if !c.Crowded() {
		return nil
	}
	groups := map[segment.GroupKey]struct{}{}
	for _, b := range blocks {
		groups[b.Group] = struct{}{}
	}
	c.Checkpoint(groups)
	ctx, cancel := context.WithTimeout(ctx, roomPatience)
	defer cancel()
	return c.AwaitRoom(ctx)
}

// copyBlocks appends copies to the log and notes where they are. It stops at a block that cannot be read: unread says why.
func (c compaction) copyBlocks(blocks []compact.Block, moves map[tablesOf][]Move) (end segment.Position, unread, err error) {
	for len(blocks) > 0 && unread == nil {
		var n int
		var payload []byte
		if n, payload, unread = c.readRun(blocks); n == 0 {
			break
		}
		first := &blocks[0]
		h := segment.DataHeader{Group: first.Group.Group, Volume: first.Page.Volume, Extent: first.Page.Extent, Epoch: first.Epoch, FirstBlock: uint16(first.BlockNo())}
		var data segment.Position
		if data, end, err = c.log.AppendData(h, payload); err != nil {
			return 0, nil, err
		}
		c.m.copied.Add(float64(len(payload)))
		for i, b := range blocks[:n] {
			t := tablesOf{b.Group, b.Set}
			moves[t] = append(moves[t], Move{b.Page, b.At, b.From, data + segment.Position(i*storage.BlockSize)})
		}
		blocks = blocks[n:]
	}
	return end, unread, nil
}

// readRun reads the first blocks that follow each other in an extent: what one record may hold.
func (c compaction) readRun(blocks []compact.Block) (n int, payload []byte, err error) {
	first := &blocks[0]
	for n = 1; n < min(len(blocks), compact.RecordBlocks(c.cfg.SegmentBytes)); n++ {
		b := &blocks[n]
		if b.Group != first.Group || b.Set != first.Set || b.Page.ID() != first.Page.ID() || b.BlockNo() != first.BlockNo()+n {
			break
		}
	}
	payload = make([]byte, n*storage.BlockSize)
	for i := range n {
		sched.Yield()
		b, part := &blocks[i], payload[i*storage.BlockSize:][:storage.BlockSize]
		err := c.log.ReadAt(b.From.Position(), part)
		// I5: damage is not copied under a new checksum, nor does the last trace of it go.
		if err == nil && op.Sum(part) != b.From.Sum {
			c.metrics.corrupt.Inc()
			err = storage.E("compact", storage.KindCorrupt, b.From.Position().String(), errors.New("checksum mismatch"))
		}
		if k := storage.KindOf(err); k == storage.KindIO || k == storage.KindCorrupt {
			c.scrubber.Ask(b.From.Segment) // which has all that is bad there written anew, so that the segment can be emptied
			err = fmt.Errorf("%w: %w", compact.ErrUnreadable, err)
		}
		if err != nil {
			return i, payload[:i*storage.BlockSize], err
		}
	}
	return n, payload, nil
}
