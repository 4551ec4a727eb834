package replication

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// rounds says which members keep up with a leader, however busy their group is: by the rounds of Raft. A round of a member ends when it
// has acknowledged what was the leader's last entry when the round began, and the next one begins. Who ends them within a heartbeat time-out is
// as far behind as that, and a group is not held up for longer by waiting for it. A number of entries does not say so: of small ones hundreds
// are always on their way, and a few large ones take seconds. The zero value knows of none.
type rounds struct {
	mu   sync.Mutex
	term uint64                   // guarded by mu, like of
	of   map[raft.ServerID]*round // of members in that term
}

// round is a member's present round, and how long the one before took.
type round struct {
	target uint64 // the leader's last entry when it began
	begun  time.Time
	ended  bool // there was one before
	took   time.Duration
}

// acked notes that a member has acknowledged all up to index, durably, to the leader of the term, whose log ends at last.
func (r *rounds) acked(server raft.ServerID, term, index, last uint64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if term < r.term {
		return
	}
	if term > r.term || r.of == nil {
		r.term, r.of = term, map[raft.ServerID]*round{}
	}
	o := r.of[server]
	switch {
	case o == nil:
		r.of[server] = &round{target: last, begun: now}
	case index >= o.target:
		*o = round{target: last, begun: now, ended: true, took: now.Sub(o.begun)}
	}
}

// keepsUp reports whether a member's last round in the term has ended, and took no longer than within, and the present one has not either.
func (r *rounds) keepsUp(server raft.ServerID, term uint64, now time.Time, within time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.of[server]
	return r.term == term && o != nil && o.ended && o.took <= within && now.Sub(o.begun) <= within
}
