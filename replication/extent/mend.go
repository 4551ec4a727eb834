package extent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/live"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// maxMends bounds the blocks that wait to be written anew, each with its bytes. One that finds no place is mended when it is read again.
const maxMends = 64

// maxBadSegments bounds the segments that an Install has read again. What lies in others the next pass of the scrub finds.
const maxBadSegments = 1024

// mends are blocks that the disk did not give back, and another replica did. They are written anew, and the tables are made to refer to
// where they are then, as compaction does. Until that a read asks elsewhere each time, and one copy fewer is there than people think.
type mends struct {
	queue chan mend

	mu      sync.Mutex
	waiting map[segment.Position]struct{} // where blocks of the queue lie; guarded by mu
	// bad are segments in which blocks lay that were written anew since the start, at most maxBadSegments; guarded by mu.
	bad map[segment.SegmentNo]struct{}
}

// mend is a block as it must be: data has the sum that the entry says.
type mend struct {
	g     *Group
	page  table.PageKey
	at    int // which entry of the page
	entry table.Entry
	data  []byte
}

func newMends() mends {
	return mends{queue: make(chan mend, maxMends), waiting: map[segment.Position]struct{}{}, bad: map[segment.SegmentNo]struct{}{}}
}

// mendLater notes a block that was brought from elsewhere, unless it is noted already or too many are.
func (g *Group) mendLater(u Unreadable, e table.Entry, data []byte) {
	s := &g.store.mends
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.waiting[e.Position()]; known {
		return
	}
	m := mend{g: g, page: table.PageKey{Volume: u.Volume, Extent: u.Extent, Page: uint8(u.Block / table.BlocksPerPage)},
		at: u.Block % table.BlocksPerPage, entry: e, data: slices.Clone(data)}
	select {
	case s.queue <- m:
		s.waiting[e.Position()] = struct{}{}
	default:
	}
}

// runMends writes noted blocks anew until ctx ends.
func (s *Store) runMends(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-s.mends.queue:
			_, err := s.mend(ctx, m)
			s.mends.mu.Lock()
			delete(s.mends.waiting, m.entry.Position())
			s.mends.mu.Unlock()
			if err != nil && ctx.Err() == nil {
				s.logger.Warn("a block that the disk does not give back is not written anew yet; it is when it is read again", "store", s.identity.Store,
					"group", m.g.key, "volume", m.page.Volume, "at", m.entry.Position().String(), "error", err)
			}
		}
	}
}

// mend writes a block anew, and returns how many stored entries refer to it now; 0 if it was overwritten or moved meanwhile.
func (s *Store) mend(ctx context.Context, m mend) (n int, err error) {
	if op.Sum(m.data) != m.entry.Sum { // I5
		return 0, storage.E("mend", storage.KindCorrupt, m.entry.Position().String(), errors.New("the copy changed in memory"))
	}
	// Compaction works with what is left of the reserve.
	if s.Space().Full() {
		return 0, storage.E("mend", storage.KindNoSpace, "store "+s.identity.Store.String(), errors.New("its free space is below the reserve"))
	}
	blocks, err := m.g.blocksIn([]table.PageKey{m.page}, map[segment.SegmentNo]struct{}{m.entry.Segment: {}})
	if err != nil {
		return 0, err
	}
	at := slices.IndexFunc(blocks, func(b compact.Block) bool { return b.At == m.at && b.From == m.entry })
	if at < 0 {
		return 0, nil // it was overwritten, or moved
	}
	b := blocks[at]
	if err := s.compaction.roomFor(ctx, blocks[at:at+1]); err != nil {
		return 0, err
	}
	// I1: as when compaction moves a block (compaction.Move).
	defer s.live.HoldFrom(s.log.Durable().Segment())()
	data, end, err := s.log.AppendData(segment.DataHeader{Group: b.Group.Group, Volume: b.Page.Volume, Extent: b.Page.Extent, Epoch: b.Epoch,
		FirstBlock: uint16(b.BlockNo())}, m.data)
	if err != nil {
		return 0, err
	}
	if err := s.log.Wait(ctx, end); err != nil {
		return 0, err
	}
	n, err = m.g.Repoint(b.Set, []Move{{b.Page, b.At, b.From, data}})
	if n > 0 {
		s.noteBad(m.entry.Segment)
		s.metrics.mended.Inc()
		s.logger.Info("a block that the disk did not give back was written anew, from another replica", "store", s.identity.Store, "group", m.g.key,
			"volume", m.page.Volume, "extent", m.page.Extent, "block", b.BlockNo(), "at", m.entry.Position().String(), "now_at", data.String())
	}
	return n, err
}

// noteBad notes that a block of the segment was written anew.
func (s *Store) noteBad(no segment.SegmentNo) {
	s.mends.mu.Lock()
	defer s.mends.mu.Unlock()
	if len(s.mends.bad) >= maxBadSegments {
		maps.DeleteFunc(s.mends.bad, func(no segment.SegmentNo, _ struct{}) bool { return !s.live.InUse(no) })
	}
	if len(s.mends.bad) < maxBadSegments {
		s.mends.bad[no] = struct{}{}
	}
}

// mendAgain has those segments read soon in which blocks were bad, and to which a set refers that was installed: a pull may have taken a
// place over before its block was written anew.
func (s *Store) mendAgain(set *live.Set) {
	s.mends.mu.Lock()
	bad := slices.Collect(maps.Keys(s.mends.bad))
	s.mends.mu.Unlock()
	for _, no := range bad {
		if set.InUse(no) {
			s.scrubber.Ask(no)
		}
	}
}
