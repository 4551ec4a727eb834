package replication

import (
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/ledger"
)

// leaderAge is for how long a node counts as one that leads groups on a disk after it was heard from.
const leaderAge = 10 * time.Second

// diskRoom is the room on a disk as it was looked at last, and who has a part in it.
type diskRoom struct {
	free      atomic.Int64
	appended  atomic.Int64 // to the log, before free was asked for
	exhausted atomic.Bool  // waiting makes no room for what allocates
	displaced atomic.Bool  // files of others take the room
	writable  atomic.Int64 // above the reserve
	reserve   atomic.Int64
	need      atomic.Int64 // room.Space.NeedBytes
	leaders   atomic.Int64 // nodes that lead groups on the disk, at least 1
	begun     time.Time

	mu    sync.RWMutex                     // guards heard
	heard map[storage.NodeID]*atomic.Int64 // nodes that lead, and when each was heard last, in nanoseconds since begun
}

// note takes what was found out. appended is the log's AppendedBytes from before that.
func (r *diskRoom) note(s room.Space, appended int64, now time.Time) {
	r.free.Store(s.FreeBytes)
	r.appended.Store(appended) // after free: see grant
	r.exhausted.Store(s.Exhausted)
	r.displaced.Store(s.Displaced)
	r.reserve.Store(s.ReserveBytes)
	r.need.Store(s.NeedBytes)
	r.writable.Store(s.WritableBytes())
	r.mu.Lock()
	defer r.mu.Unlock()
	for node, at := range r.heard {
		if int64(now.Sub(r.begun))-at.Load() > int64(leaderAge) {
			delete(r.heard, node)
		}
	}
	r.leaders.Store(int64(max(1, len(r.heard))))
}

// hear notes that a node leads a group on the disk.
func (r *diskRoom) hear(node storage.NodeID) {
	r.mu.RLock()
	at := r.heard[node]
	r.mu.RUnlock()
	if at == nil {
		at = r.newLeader(node)
	}
	at.Store(int64(time.Since(r.begun)))
}

// newLeader enters a node, and has the next answer say less.
func (r *diskRoom) newLeader(node storage.NodeID) *atomic.Int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.heard[node]
	if at == nil {
		if r.heard == nil {
			r.heard = map[storage.NodeID]*atomic.Int64{}
		}
		at = new(atomic.Int64)
		r.heard[node] = at
		r.leaders.Store(int64(len(r.heard)))
	}
	return at
}

// grant is what each node that leads groups on the disk is told, in bytes; the complement when waiting makes no more room, and
// ledger.Displaced when files of others take it. A leader compares it with the reserve, so the reserve is always part of it:
//
//   - Above the reserve a leader gets its part of what is free beyond what the disk needs for itself, and never more than all
//     that is free. So all of them together cannot fill the disk, whatever of theirs is still on its way.
//   - From half of the reserve up to it what overwrites is let in, and gets its part of what lies between. Less than that is told as it is.
//
// appended is the log's AppendedBytes now: what was appended since free was asked for is not free.
func (r *diskRoom) grant(appended int64) int64 {
	if r.displaced.Load() {
		return ledger.Displaced
	}
	since := r.appended.Load() // before free: of two looks it is the older one, then
	free := max(0, r.free.Load()-max(0, appended-since))
	reserve, k := r.reserve.Load(), r.leaders.Load()
	told := free
	switch half := reserve / 2; {
	case free >= reserve:
		told = reserve + min((free-r.need.Load())/k, free-reserve)
	case free >= half:
		told = half + (free-half)/k
	}
	if r.exhausted.Load() {
		return ^told
	}
	return told
}
