package extent

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// idleSegments is how many segments a group's recovery position may lie behind the end of the log before it is moved
// forward although the group has nothing new.
const idleSegments = 2

// afterCheckpoint does what a new durable state makes possible.
func (s *Store) afterCheckpoint(purges bool) {
	if purges {
		s.wakePurge()
	}
	s.advanceIdle()
	s.recycle()
}

// advanceIdle moves the recovery positions of groups that had nothing to do for long, so that they do not hold the
// log: a group with nothing above its checkpoint gets its position moved, others are asked for a checkpoint.
func (s *Store) advanceIdle() {
	s.mu.Lock()
	groups := make([]*Group, 0, len(s.groups))
	for _, g := range s.groups {
		groups = append(groups, g)
	}
	s.mu.Unlock()
	now := s.log.Durable().Segment()
	late := max(idleSegments, segment.SegmentNo(s.cfg.CheckpointBytes/s.cfg.SegmentBytes))
	for _, g := range groups {
		g.mu.RLock()
		from := g.record.from.Segment()
		g.mu.RUnlock()
		if now < from+idleSegments {
			continue
		}
		moved, err := g.advance()
		if err != nil {
			s.logger.Warn("recovery position not moved", "group", g.key, "err", err)
			return
		}
		// Once for every segment that the log has gone on: what holds the position may be an entry that nobody commits
		// (a follower that is cut off), and a checkpoint that changes nothing would ask for the next one for ever.
		if !moved && now >= from+late && g.askedAt.Swap(uint32(now)) != uint32(now) {
			g.wantCheckpoint()
		}
	}
}

// advance stores a later recovery position with the checkpoint as it is, if there is one.
func (g *Group) advance() (moved bool, err error) {
	g.commitMu.Lock()
	defer g.commitMu.Unlock()
	g.mu.RLock()
	record, removed := g.record, g.removed
	g.mu.RUnlock()
	next := g.log.NextNeeded(record.Index)
	if removed || next.Segment() <= record.from.Segment() {
		return false, nil
	}
	record.from = next
	err = g.store.meta.commit(func(b *pebble.Batch) error {
		k := groupKeyBytes(keyGroup, g.key)
		return b.Set(k, record.appendValue(nil, k), nil)
	})
	if err != nil {
		return false, err
	}
	g.mu.Lock()
	g.record = record
	g.mu.Unlock()
	g.store.log.DurableCheckpoint(g.key, record.Index, record.Term, next)
	return true, nil
}

// recycle offers every sealed segment to which no table refers to the log, which refuses those that it needs, or that
// somebody reads.
func (s *Store) recycle() {
	for _, info := range s.log.Segments() {
		if info.State != segment.SegmentSealed || s.segmentInUse(info.No) {
			continue // most are, and need not hold up the log
		}
		// Guards I1: a segment is recycled only when neither memory nor a durable checkpoint refers to it, at a
		// moment when the log does not need it any more.
		err := s.log.RecycleUnless(info.No, func() bool { return s.segmentInUse(info.No) })
		if err != nil && !errors.Is(err, storage.ErrConflict) && !errors.Is(err, storage.ErrNotFound) {
			s.logger.Warn("segment not recycled", "segment", info.No, "err", err)
			return
		}
	}
}
