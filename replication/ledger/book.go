package ledger

import (
	"slices"
	"sync"

	storage "github.com/storaged/storaged"
)

// Server is a member of a group's configuration.
type Server struct {
	ID    string
	Voter bool
}

// Book is what one replica has on its way to the others while it leads: bytes of log. Its methods may be called concurrently.
//
// Of each other member: on its way = reserved + cum(last) - max(what it has acknowledged, cum(first-1)), where cum(i) is the bytes of
// the entries up to i. What it lacks below the first entry of the log comes as a manifest, which stores take by rules of their own.
type Book struct {
	l    *Ledger
	self string

	mu       sync.Mutex // guards all below
	run      uint64     // counts terms that were begun and ended: a reservation belongs to one
	term     uint64     // that is being led; 0: none
	first    uint64     // index of the first entry in cums
	cums     []int64    // cum(first), cum(first+1), ...
	base     int64      // cum(first-1)
	reserved int64      // admitted and not appended yet
	members  []*member  // of the newest configuration, and those that were heard; the replica itself is one
}

type member struct {
	id      string
	account *account // nil: its name does not say which store it is on
	present bool     // in the newest configuration
	voter   bool
	acked   int64 // cum of what it has acknowledged in this run
	out     int64 // what of it is in the account
}

// Book returns the empty book of a replica.
func (l *Ledger) Book(self string) *Book { return &Book{l: l, self: self} }

// memberLocked returns what is known of a member, made at the first use.
func (b *Book) memberLocked(id string) *member {
	for _, m := range b.members {
		if m.id == id {
			return m
		}
	}
	m := &member{id: id, acked: b.base}
	if key, err := storage.ParseReplicaKey(id); err == nil {
		m.account = b.l.account(key.Store)
	}
	b.members = append(b.members, m)
	return m
}

// Told notes what a member's answer has said of its store.
func (b *Book) Told(id string, told int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.memberLocked(id).account; a != nil {
		a.note(told, b.l.now())
	}
}

// Opening is what the book of a term begins with: the newest configuration, and the sizes of the entries that the log holds from First on.
type Opening struct {
	Servers []Server
	First   uint64
	Sizes   []int64
}

// Begin opens the book of a term, unless it is open; only then opening is called. As far as is known the others have acknowledged
// nothing of what the log holds.
func (b *Book) Begin(term uint64, opening func() Opening) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term == term {
		return
	}
	b.endLocked()
	b.run++
	b.term = term
	o := opening()
	b.first = o.First
	for _, n := range o.Sizes {
		b.cums = append(b.cums, b.lastLocked()+n)
	}
	b.setServersLocked(o.Servers)
}

// SetServers follows a new configuration.
func (b *Book) SetServers(servers []Server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != 0 {
		b.setServersLocked(servers)
	}
}

func (b *Book) setServersLocked(servers []Server) {
	for _, m := range b.members {
		m.present = false
	}
	for _, s := range servers {
		m := b.memberLocked(s.ID)
		m.present, m.voter = true, s.Voter
	}
	b.members = slices.DeleteFunc(b.members, func(m *member) bool {
		if !m.present {
			m.put(0)
		}
		return !m.present
	})
	b.settleLocked()
}

// End closes the book: the replica leads no longer. What is on its way is from then on in the book of whoever leads.
func (b *Book) End() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endLocked()
}

func (b *Book) endLocked() {
	for _, m := range b.members {
		m.put(0)
		m.acked = 0
	}
	if b.term != 0 {
		b.run++
	}
	b.term, b.first, b.base, b.reserved = 0, 0, 0, 0
	b.cums = b.cums[:0]
}

// lastLocked is cum of the last entry.
func (b *Book) lastLocked() int64 {
	if n := len(b.cums); n > 0 {
		return b.cums[n-1]
	}
	return b.base
}

// put changes what of the member is in its store's account.
func (m *member) put(out int64) {
	if m.account != nil && out != m.out {
		m.account.out.Add(out - m.out)
		m.out = out
	}
}

// settleLocked brings the accounts in line with the book.
func (b *Book) settleLocked() {
	last := b.lastLocked()
	for _, m := range b.members {
		switch {
		case b.term == 0 || !m.present:
		case m.id == b.self:
			m.put(b.reserved) // what is in its log is in its free space
		default:
			m.put(b.reserved + last - max(m.acked, b.base))
		}
	}
}

// Appended notes an entry of the term that the log holds from now on, with its size. Of that reserved bytes were reserved.
func (b *Book) Appended(term, index uint64, bytes, reserved int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != term {
		return
	}
	if len(b.cums) == 0 {
		b.first = index
	}
	if index != b.first+uint64(len(b.cums)) { // never, while it leads
		b.endLocked()
		return
	}
	b.cums = append(b.cums, b.lastLocked()+bytes)
	b.reserved = max(0, b.reserved-reserved)
	b.settleLocked()
}

// Acked notes that a member holds all up to index durably.
func (b *Book) Acked(id string, term, index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != term || index < b.first || index >= b.first+uint64(len(b.cums)) {
		return
	}
	m := b.memberLocked(id)
	if cum := b.cums[index-b.first]; cum > m.acked {
		m.acked = cum
		b.settleLocked()
	}
}

// Dropped notes that the log begins at first now: whoever lacks what was before gets a manifest.
func (b *Book) Dropped(first uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term == 0 || first <= b.first {
		return
	}
	n := min(first-b.first, uint64(len(b.cums)))
	if n == 0 {
		return
	}
	b.base = b.cums[n-1]
	b.cums = b.cums[:copy(b.cums, b.cums[n:])]
	b.first += n
	b.settleLocked()
}

// Reservation is bytes that were admitted and are not in the log yet.
type Reservation struct {
	run   uint64
	bytes int64
}

// Room is what the fullest voter can take.
type Room struct {
	// Server is the voter, Told the bytes that its store has said, OutBytes those that are on their way there.
	Server         string
	Told, OutBytes int64
	// Exhausted: a store gets no more room by waiting.
	Exhausted bool
}

// LeftBytes is what of Told is left.
func (r Room) LeftBytes() int64 { return r.Told - r.OutBytes }

// Reserve admits n bytes, if each voter has at least floor bytes left then. own is what the replica's own store says. With
// allocates no store may be exhausted, either. A voter that was never heard, or not for long, refuses nothing. ok is false
// if it is refused; room says why. Every Reservation is appended or released.
//
// A voter that is displaced is like one that is down, which it will be when its log has taken the last of its room: what the others can
// take does not wait for it, as long as they are a majority. If they are not, nobody has room.
func (b *Book) Reserve(n, floor, own int64, allocates bool) (res Reservation, room Room, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term == 0 {
		return Reservation{}, Room{}, true // it leads no longer: nothing is proposed
	}
	b.reserved += n
	b.settleLocked() // first, so that of two groups that ask at once not both find room for one
	room, known := b.fullestLocked(n, own)
	if !known || room.LeftBytes()-n >= floor && !(allocates && room.Exhausted) {
		return Reservation{b.run, n}, room, true
	}
	b.reserved -= n
	b.settleLocked()
	return Reservation{}, room, false
}

// fullestLocked returns the voter that has the least room left, but for n bytes that are reserved just now; false if none has said any.
func (b *Book) fullestLocked(n, own int64) (room Room, known bool) {
	now := b.l.now()
	voters, displaced := 0, 0
	for _, m := range b.members {
		if !m.present || !m.voter || m.account == nil {
			continue
		}
		voters++
		told := own
		if m.id != b.self {
			heard := m.account.heard.Load()
			if heard == 0 || now-heard > int64(b.l.silentAfter) {
				continue
			}
			told = m.account.told.Load()
		}
		if told == Displaced {
			displaced++
			continue
		}
		bytes, exhausted := decode(told)
		exhausted = exhausted || room.Exhausted
		if r := (Room{Server: m.id, Told: bytes, OutBytes: m.account.out.Load() - n}); !known || r.LeftBytes() < room.LeftBytes() {
			room, known = r, true
		}
		room.Exhausted = exhausted
	}
	if displaced > 0 && 2*(voters-displaced) <= voters {
		return Room{Exhausted: true}, true
	}
	return room, known
}

// Release gives back a reservation of which nothing came into the log.
func (b *Book) Release(r Reservation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.run == b.run && b.term != 0 {
		b.reserved = max(0, b.reserved-r.bytes)
		b.settleLocked()
	}
}
