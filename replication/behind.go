package replication

import (
	"sync"
	"time"
)

const (
	// behindFor is for how long the log is kept for a replica that has pulled a manifest from here and is no member yet, or has not answered.
	behindFor = 2 * time.Minute
	// behindEvery is how often what is kept is looked at when members answer.
	behindEvery = 100 * time.Millisecond
)

// behind is for whom a replica keeps its log beyond its checkpoints: without that, whoever has pulled a manifest of a busy group would find
// the log gone when it gets there, and have to pull another one. The log itself bounds how much that is (segment.Config.HoldBytes).
type behind struct {
	mu     sync.Mutex
	pulled map[uint64]time.Time // the last entries of manifests that were pulled, and until when the log is kept from there; at most maxOpenManifests
	looked time.Time
}

// add keeps the log from an entry on.
func (b *behind) add(index uint64, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pulled == nil {
		b.pulled = map[uint64]time.Time{}
	}
	b.pulled[index] = now.Add(behindFor)
	if len(b.pulled) > maxOpenManifests {
		oldest := index
		for i, until := range b.pulled {
			if until.Before(b.pulled[oldest]) {
				oldest = i
			}
		}
		delete(b.pulled, oldest)
	}
}

// from returns the first entry that is kept for those who have pulled; 0: none is.
func (b *behind) from(now time.Time) (first uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looked = now
	for i, until := range b.pulled {
		if !now.Before(until) {
			delete(b.pulled, i)
		} else if first == 0 || i < first {
			first = i
		}
	}
	return first
}

// due reports whether behindEvery has passed.
func (b *behind) due(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Sub(b.looked) >= behindEvery
}

// keepLog has the log kept from where the first of those is who are to get on from it: members of a group that is led here, by what they
// have acknowledged in this term, and those who have pulled. Raft asks for the entry before the one that it sends next: that is kept, too.
//
// Guards I6: for members that have all nothing is kept. The log of an idle group would hold its segments.
func (g *group) keepLog() {
	from := g.behind.from(time.Now())
	if in := g.inst.Load(); in != nil && in.Leads() {
		last := in.LastIndex()
		for _, m := range in.log.newest().servers {
			if acked := in.Acked(m.ID); acked > 0 && acked < last && m.ID != g.self && (from == 0 || acked < from) {
				from = acked
			}
		}
	}
	g.extents.Log().SetHold(from)
}
