package replication

import (
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
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
	pulled map[pulledManifest]time.Time // until when the log is kept from there; at most maxOpenManifests
	looked time.Time
}

// pulledManifest is a manifest by the last entry that it holds, and who pulled it; 0: a follower that Raft sent to it.
type pulledManifest struct {
	index uint64
	by    storage.NodeID
}

// add keeps the log from a manifest on.
func (b *behind) add(m pulledManifest, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pulled == nil {
		b.pulled = map[pulledManifest]time.Time{}
	}
	b.pulled[m] = now.Add(behindFor)
	if len(b.pulled) > maxOpenManifests {
		oldest := m
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
	for m, until := range b.pulled {
		if !now.Before(until) {
			delete(b.pulled, m)
		} else if first == 0 || m.index < first {
			first = m.index
		}
	}
	return first
}

// acked forgets the manifests that a node pulled whose replica has got on from there by itself.
func (b *behind) acked(by storage.NodeID, index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for m := range b.pulled {
		if m.by == by && index > m.index {
			delete(b.pulled, m)
		}
	}
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
	var members uint64
	if in := g.inst.Load(); in != nil && in.Leads() {
		last := in.LastIndex()
		for _, m := range in.log.newest().servers {
			acked := in.Acked(m.ID)
			if acked == 0 || m.ID == g.self {
				continue
			}
			if node, err := runner.ParseNodeAddress(m.Address); err == nil {
				g.behind.acked(node, acked)
			}
			if acked < last && (members == 0 || acked < members) {
				members = acked
			}
		}
	}
	from := g.behind.from(time.Now())
	if from == 0 || members > 0 && members < from {
		from = members
	}
	g.extents.Log().SetHold(from)
}
