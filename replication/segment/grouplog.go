package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/aligned"
	"github.com/storaged/storaged/internal/crc32c"
)

// GroupLog is the Raft log of one group replica within the disk's segment log. Its entries are contiguous. All of
// it is guarded by the lock of the Log.
type GroupLog struct {
	l   *Log
	key GroupKey

	// entries holds first, first+1, ... ; base is the index before the first one or, when it is empty, before the
	// next one to be appended.
	entries []entry
	base    uint64

	applied, appliedTerm uint64   // of the last durable checkpoint
	need                 Position // recovery begins here for this group
	compactTo            uint64   // Compact allowed to drop up to here
	retained             int64    // bytes of entries at and below compactTo
	holds                map[*uint64]struct{}
	hold                 uint64 // of SetHold; 0: none
	// undone are truncations that may not be durable yet, in the order of the log.
	undone  []undone
	dropped bool
	damage  *Damage
}

// undone is a truncation. Until its record is durable, a power cut brings the entries back that it dropped.
type undone struct {
	from  Position // of the first entry that it dropped
	until Position // the end of its record
}

// entry is what is kept in memory of an entry.
type entry struct {
	term      uint64
	at        Position // of the record
	extBytes  uint32
	dataBytes uint32
	sum       uint32
	padding   uint16
	kind      uint8   // Entry.Type
	rec       *record // nil once the cache let go of it
}

func (e *entry) size() int64 {
	return int64(alignedBytes(prefixBytes + int(e.extBytes) + int(e.padding) + int(e.dataBytes)))
}

func (e *entry) dataAt() Position {
	return e.at + Position(recordHeaderBytes+prefixBytes) + Position(e.extBytes) + Position(e.padding)
}

func (e *entry) end() Position { return e.at + Position(e.size()) }

func newGroupLog(l *Log, s GroupStart) *GroupLog {
	return &GroupLog{l: l, key: s.Key, base: s.AppliedIndex, applied: s.AppliedIndex, appliedTerm: s.AppliedTerm,
		need: s.From, holds: make(map[*uint64]struct{})}
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Key returns the group and incarnation.
func (g *GroupLog) Key() GroupKey { return g.key }

// FirstIndex returns the index of the first entry that is kept; 0 if there is none.
func (g *GroupLog) FirstIndex() uint64 {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if len(g.entries) == 0 {
		return 0
	}
	return g.base + 1
}

// LastIndex returns the index of the last entry; 0 if there is none.
func (g *GroupLog) LastIndex() uint64 {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if len(g.entries) == 0 {
		return 0
	}
	return g.lastLocked()
}

// Sizes returns the index of the first entry that is kept, or will be, and how many bytes of the disk's log each takes.
func (g *GroupLog) Sizes() (first uint64, sizes []int64) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	sizes = make([]int64, len(g.entries))
	for i := range g.entries {
		sizes[i] = g.entries[i].size()
	}
	return g.base + 1, sizes
}

// lastLocked is the index before the next one to be appended.
func (g *GroupLog) lastLocked() uint64 { return g.base + uint64(len(g.entries)) }

// entryLocked returns the entry at the index, or nil.
func (g *GroupLog) entryLocked(index uint64) *entry {
	if index <= g.base || index > g.lastLocked() {
		return nil
	}
	return &g.entries[index-g.base-1]
}

// forgetLocked breaks the link from an entry to its record in memory.
func (g *GroupLog) forgetLocked(r *record) {
	if e := g.entryLocked(r.header.index); e != nil && e.rec == r {
		e.rec = nil
	}
}

// Append adds entries, which must continue the log, and returns the position after the last one: when everything
// before that is durable, so are they. It does not wait for the disk, except while Config.MaxTailBytes are not durable
// yet. Extensions and Data are kept by reference and must not be modified any more. Nothing is appended on an error:
// KindInvalid for a gap or an entry that is too large, KindCorrupt for a damaged group, KindConflict for a dropped
// one, KindIO when the disk has failed, KindUnavailable when the log is closed.
func (g *GroupLog) Append(entries []Entry) (end Position, err error) {
	if len(entries) == 0 {
		return 0, storage.E("append", storage.KindInvalid, "group "+g.key.String(), errors.New("no entries"))
	}
	records, total, err := g.prepare(entries)
	if err != nil {
		return 0, err
	}
	l := g.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admitLocked(total); err != nil {
		return 0, err
	}
	if err := g.writableLocked("append"); err != nil {
		return 0, err
	}
	if next := g.lastLocked() + 1; entries[0].Index != next {
		return 0, storage.E("append", storage.KindInvalid, "group "+g.key.String(),
			fmt.Errorf("entry %d does not continue the log; the next is %d", entries[0].Index, next))
	}
	now := l.now()
	for i := range records {
		r := &records[i]
		l.pushLocked(r, now)
		g.entries = append(g.entries, entry{term: r.header.term, at: r.header.position, sum: r.header.sum, padding: r.header.padding,
			extBytes: uint32(len(r.ext)), dataBytes: uint32(len(r.data)), kind: r.prefix[0], rec: r})
	}
	l.committed.Signal()
	return l.endLocked(), nil
}

// prepare makes the records of an append, without the lock.
func (g *GroupLog) prepare(entries []Entry) (records []record, total int64, err error) {
	records = make([]record, len(entries))
	refuse := func(format string, args ...any) ([]record, int64, error) {
		return nil, 0, storage.E("append", storage.KindInvalid, "group "+g.key.String(), fmt.Errorf(format, args...))
	}
	largest := g.l.cfg.maxRecordBytes()
	for i := range entries {
		e, r := &entries[i], &records[i]
		if e.Index != entries[0].Index+uint64(i) || e.Index == 0 {
			return refuse("entries %d and %d are not contiguous", entries[0].Index, e.Index)
		}
		payload := prefixBytes + len(e.Extensions) + len(e.Data)
		if len(e.Extensions) > largest || len(e.Data) > largest || alignedBytes(payload) > largest {
			return refuse("entry %d has %d bytes; a record has at most %d", e.Index, payload, largest)
		}
		r.group, r.ext, r.data = g, e.Extensions, e.Data
		r.follows = e.Cold
		r.cold = e.Cold && len(e.Data) >= coldBytes
		p := entryPrefix{kind: e.Type, extensions: uint32(len(e.Extensions)), appendedAt: e.AppendedAt}
		r.prefix = p.encode()
		if len(e.BlockSums)%4 != 0 || len(e.BlockSums)/4*storage.BlockSize > len(e.Data) {
			return refuse("entry %d has %d bytes, and %d of block sums", e.Index, len(e.Data), len(e.BlockSums))
		}
		if n := len(e.BlockSums) / 4 * storage.BlockSize; e.Cold && n >= g.l.cfg.alignedBytes && aligned.Is(e.Data[len(e.Data)-n:]) {
			r.blocks = n
		}
		sum := crc32.Update(0, castagnoli, r.prefix[:])
		sum = crc32.Update(sum, castagnoli, e.Extensions)
		sum = sumOfData(sum, e.Data, e.BlockSums)
		r.header = recordHeader{kind: kindEntry, payload: uint32(payload), key: g.key, term: e.Term, index: e.Index,
			sum: sum}
		total += int64(r.header.size())
	}
	return records, total, nil
}

// blockJoiner is made at the first use: it takes some microseconds.
var blockJoiner = sync.OnceValue(func() *crc32c.Joiner { return crc32c.NewJoiner(storage.BlockSize) })

// sumOfData goes on from a sum with data, whose blocks at the end have the given sums.
func sumOfData(sum uint32, data, blockSums []byte) uint32 {
	head := len(data) - len(blockSums)/4*storage.BlockSize
	sum = crc32c.Update(sum, data[:head])
	if len(blockSums) == 0 {
		return sum
	}
	j := blockJoiner()
	for ; len(blockSums) > 0; blockSums = blockSums[4:] {
		sum = j.Join(sum, binary.LittleEndian.Uint32(blockSums))
	}
	return sum
}

func (g *GroupLog) writableLocked(op string) error {
	switch {
	case g.dropped:
		return storage.E(op, storage.KindConflict, "group "+g.key.String(), errors.New("the group was dropped"))
	case g.damage != nil:
		return storage.E(op, storage.KindCorrupt, "group "+g.key.String(), errors.New(g.damage.Reason))
	}
	return nil
}

// Get returns an entry, from memory or from the disk and then checked. KindNotFound outside the range, KindCorrupt
// if its checksum fails, KindIO if it cannot be read.
func (g *GroupLog) Get(index uint64) (Entry, error) {
	g.l.mu.Lock()
	e := g.entryLocked(index)
	if e == nil {
		defer g.l.mu.Unlock()
		return Entry{}, storage.E("read log", storage.KindNotFound, "group "+g.key.String(),
			fmt.Errorf("entry %d; the log has %d to %d", index, g.base+1, g.lastLocked()))
	}
	if r := e.rec; r != nil {
		g.l.mu.Unlock()
		p, _ := decodeEntryPrefix(r.prefix[:]) // the lengths are those of the slices
		return Entry{Index: index, Term: r.header.term, Type: r.prefix[0], AppendedAt: p.appendedAt,
			Extensions: r.ext, Data: r.data}, nil
	}
	return g.l.readEntryUnlock(index, *e)
}

// TypeOf returns the term and the Entry.Type of an entry, and reads nothing from the disk for it. ok is false if there is no such entry.
func (g *GroupLog) TypeOf(index uint64) (term uint64, kind uint8, ok bool) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	e := g.entryLocked(index)
	if e == nil {
		return 0, 0, false
	}
	return e.term, e.kind, true
}

// Location returns where the data of an entry lies: the position of its first byte and its length in bytes, and the
// position that must be durable for the entry to be.
func (g *GroupLog) Location(index uint64) (term uint64, data Position, n int, end Position, ok bool) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	e := g.entryLocked(index)
	if e == nil {
		return 0, 0, 0, 0, false
	}
	return e.term, e.dataAt(), int(e.dataBytes), e.end(), true
}

// EndOf returns the position that must be durable for the entry to be. ok is false if there is no such entry with
// that term. Entries at or below the checkpoint are durable already: 0, true, whatever the term.
func (g *GroupLog) EndOf(index, term uint64) (end Position, ok bool) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if index <= g.applied {
		return 0, true
	}
	if e := g.entryLocked(index); e != nil && e.term == term {
		return e.end(), true
	}
	return 0, false
}

// TruncateSuffix removes the entries at and above from, at once; it becomes durable with what is appended next.
func (g *GroupLog) TruncateSuffix(from uint64) error {
	l := g.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := g.controlLocked("truncate log", recordHeader{kind: kindTruncate, index: from}); err != nil {
		return err
	}
	g.pruneUndoneLocked()
	if e := g.entryLocked(max(from, g.base+1)); e != nil {
		g.undone = append(g.undone, undone{from: e.at, until: l.endLocked()})
	}
	g.truncateLocked(from)
	return nil
}

// pruneUndoneLocked forgets the truncations that are durable.
func (g *GroupLog) pruneUndoneLocked() {
	n := 0
	for n < len(g.undone) && g.undone[n].until <= g.l.Durable() {
		n++
	}
	g.undone = append(g.undone[:0], g.undone[n:]...)
}

// controlLocked appends a record without payload.
func (g *GroupLog) controlLocked(op string, h recordHeader) error {
	h.key = g.key
	if err := g.l.admitLocked(int64(h.size())); err != nil {
		return err
	}
	if err := g.writableLocked(op); err != nil {
		return err
	}
	g.l.pushLocked(&record{header: h}, g.l.now())
	g.l.committed.Signal()
	return nil
}

// truncateLocked drops the entries at and above from. What a checkpoint holds stays held: the log never continues
// below it.
func (g *GroupLog) truncateLocked(from uint64) {
	if from <= g.base+1 || from <= g.applied {
		g.clearEntriesLocked()
		g.base = max(min(g.base, max(from, 1)-1), g.applied)
		return
	}
	if from > g.lastLocked() {
		return
	}
	keep := from - g.base - 1
	clear(g.entries[keep:])
	g.entries = g.entries[:keep]
	g.recountLocked()
}

func (g *GroupLog) clearEntriesLocked() {
	clear(g.entries)
	g.base = g.lastLocked()
	g.entries = nil
	g.retained = 0
}

// recountLocked brings compactTo and retained in line with what is left.
func (g *GroupLog) recountLocked() {
	g.compactTo = min(g.compactTo, g.lastLocked())
	g.retained = 0
	for i := g.base + 1; i <= g.compactTo; i++ {
		g.retained += g.entryLocked(i).size()
	}
}

// Reset empties the log after a manifest was installed, durably: the next entry is appliedIndex+1.
func (g *GroupLog) Reset(appliedIndex, appliedTerm uint64) error {
	l := g.l
	l.mu.Lock()
	defer l.mu.Unlock()
	h := recordHeader{kind: kindReset, index: appliedIndex, term: appliedTerm}
	if err := g.controlLocked("reset log", h); err != nil {
		return err
	}
	g.clearEntriesLocked()
	g.base, g.compactTo = appliedIndex, 0
	g.applied, g.appliedTerm = appliedIndex, appliedTerm
	return nil
}

// Compact allows the entries up to and including to to be dropped. They are kept while they are not covered by a
// durable checkpoint, while HoldFrom or SetHold asks for them within HoldBytes, and as long as RetainBytes allows and their segment is not
// recycled.
func (g *GroupLog) Compact(to uint64) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	to = min(to, g.lastLocked(), g.applied)
	for i := max(g.compactTo, g.base) + 1; i <= to; i++ {
		g.retained += g.entryLocked(i).size()
	}
	g.compactTo = max(g.compactTo, to)
	g.dropPrefixLocked(max(g.l.cfg.RetainBytes, 0), 0)
}

// dropPrefixLocked drops compacted entries that are not held until no more than budget bytes of them are left, and
// those that lie in segments up to and including through.
func (g *GroupLog) dropPrefixLocked(budget int64, through SegmentNo) {
	limit := g.unheldLocked(g.compactTo)
	n := uint64(0)
	for g.base+n < limit {
		e := &g.entries[n]
		if g.retained <= budget && e.at.Segment() > through {
			break
		}
		g.retained -= e.size()
		e.rec = nil
		n++
	}
	g.base += n
	g.entries = g.entries[n:]
	if len(g.entries) == 0 {
		g.entries = nil
	}
}

// SetHold keeps entries at and above index, as far as they are there and within HoldBytes, until it is called again; 0: none.
func (g *GroupLog) SetHold(index uint64) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if g.hold == index {
		return
	}
	g.hold = index
	// Guards I6: nobody compacts an idle group again, and what was held only then would stay for good.
	g.dropPrefixLocked(max(g.l.cfg.RetainBytes, 0), 0)
}

// HoldFrom keeps entries at and above index, as far as they are there and within HoldBytes, until release is called.
func (g *GroupLog) HoldFrom(index uint64) (release func()) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	h := &index
	g.holds[h] = struct{}{}
	return func() {
		g.l.mu.Lock()
		defer g.l.mu.Unlock()
		delete(g.holds, h)
		g.dropPrefixLocked(max(g.l.cfg.RetainBytes, 0), 0)
	}
}

// NextNeeded returns where recovery has to begin for this group if a checkpoint holds everything up to appliedIndex. That is
// the first record with a larger index; one that was truncated counts until the truncation is durable. If there is none, it is
// a durable position before all later records of the group. A damaged group needs what it needed before. Call it when the
// log is durable up to appliedIndex, and store the result with the checkpoint.
func (g *GroupLog) NextNeeded(appliedIndex uint64) Position {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if g.damage != nil {
		// Guards I7: a later position would hide the damage from the next start.
		return g.need
	}
	next := g.l.Durable()
	if e := g.entryLocked(appliedIndex + 1); e != nil {
		next = min(next, e.at)
	} else if appliedIndex < g.base {
		next = min(next, g.need)
	}
	// What a power cut brings back of a truncated suffix must be whole: its end alone, without its beginning, would look
	// like a log that has lost something.
	g.pruneUndoneLocked()
	for _, u := range g.undone {
		next = min(next, u.from)
	}
	return next
}

// needsLocked says in words why the group needs the segment; "" if it does not, and dropThroughLocked may be called.
// Entries that a checkpoint covers are there for followers that lag. While they are compacted, or lie more than a
// segment behind the end, they do not hold a segment: the trailing entries of an idle group would hold it for ever.
func (g *GroupLog) needsLocked(no SegmentNo) string {
	if g.need.Segment() <= no {
		return "no checkpoint covers it"
	}
	limit := g.applied
	if no+1 >= g.l.current.no {
		limit = min(limit, g.compactTo)
	}
	first := g.entryLocked(max(g.base, g.unheldLocked(limit)) + 1)
	if first != nil && first.at.Segment() <= no {
		return "the log has not been compacted past it"
	}
	return ""
}

// unheldLocked is the last index up to limit that is not held.
//
// Guards I6 and I9: what lies too far back is not, whoever asks for it. Who needs it needs a manifest then, and a part of the log would be of
// no use.
func (g *GroupLog) unheldLocked(limit uint64) uint64 {
	hold := func(from uint64) {
		if e := g.entryLocked(max(from, g.base+1)); e != nil && e.at.Segment() >= g.l.heldFromLocked() {
			limit = min(limit, max(from, 1)-1)
		}
	}
	for h := range g.holds {
		hold(*h)
	}
	if g.hold > 0 {
		hold(g.hold)
	}
	return limit
}

// dropThroughLocked drops the entries in segments up to and including no, which needsLocked has found not needed.
func (g *GroupLog) dropThroughLocked(no SegmentNo) {
	for i := max(g.compactTo, g.base) + 1; ; i++ {
		e := g.entryLocked(i)
		if e == nil || e.at.Segment() > no {
			break
		}
		g.retained += e.size()
		g.compactTo = i
	}
	g.dropPrefixLocked(1<<62, no)
}

// DurableCheckpoint tells that a checkpoint of the group is stored durably: entries at or below appliedIndex, and
// records before next, which NextNeeded returned for it, need not be read by recovery.
func (l *Log) DurableCheckpoint(key GroupKey, appliedIndex, appliedTerm uint64, next Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[key]
	if g == nil || g.damage != nil || appliedIndex < g.applied {
		return
	}
	g.applied, g.appliedTerm = appliedIndex, appliedTerm
	g.need = max(g.need, next)
}
