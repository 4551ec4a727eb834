package room

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/reclaim"
	"github.com/storaged/storaged/replication/extent/tabledb"
)

// TTL is how long the answer of the file system is used again.
const TTL = 100 * time.Millisecond

// Space says how full a store is, in bytes.
type Space struct {
	// CapacityBytes is all that the store may use.
	CapacityBytes int64
	// FreeBytes is what it may still use, free segments that are written ahead included. It is 0 while the tables, or the log,
	// want room that the file system does not give them, whatever it says of itself.
	FreeBytes int64
	// ReserveBytes: below it, writes that allocate should be refused before they are proposed. It is what Config says, or
	// what segments written ahead and the tables may need if that is more.
	ReserveBytes int64
	// NeedBytes of the reserve are what the store needs for itself, whoever writes: segments that are open, written ahead, or full of what
	// no checkpoint covers, and the tables. The rest is for what leaders send before they know.
	NeedBytes int64
	// Exhausted: what lives takes all that it may, or the store is Full and compaction has had nothing to win for some time. A write that
	// allocates finds no room by waiting; what overwrites may. Without compaction nothing finds any by waiting, and it is the same as Full.
	Exhausted bool
	// Displaced: the store is full because files of others take its room. It would not be, without them. Nothing that its users
	// do makes room, so it is no reason to refuse what a majority of others can take.
	Displaced bool

	writable int64
	usage    storage.StoreSpace
}

// Full reports whether writes that allocate should be refused.
func (s Space) Full() bool { return s.FreeBytes < s.ReserveBytes }

// WritableBytes is what can still be written: what is free above the reserve, or, with compaction, the blocks that may still come to
// live. It is the figure that users see.
func (s Space) WritableBytes() int64 { return s.writable }

// Usage says what takes the room.
func (s Space) Usage() storage.StoreSpace { return s.usage }

// WithCompaction returns s with what compaction does in what Usage says.
func (s Space) WithCompaction(state storage.CompactionState) Space {
	s.usage.Compaction = state
	return s
}

// taken is what takes the room of a store. Bytes, but for the blocks; other is what others have. vain: compaction makes no room.
type taken struct {
	log, tables, other, blocks, segmentBytes int64
	vain                                     bool
}

// judge fills in what follows from how full the store is. Of what segments and tables take or may take, but for the reserve, maxFill
// may live: the fuller, the more is written for each block.
func (s *Space) judge(t taken, maxFill float64) {
	packed := compact.PackedBytes(max(0, t.blocks), t.segmentBytes)
	s.usage = storage.StoreSpace{LogBytes: t.log, LiveBytes: max(0, t.blocks) * storage.BlockSize, GarbageBytes: max(0, t.log-packed),
		TableBytes: t.tables, UnusedBytes: s.FreeBytes, ReserveBytes: s.ReserveBytes, OtherBytes: max(0, t.other)}
	s.Exhausted, s.writable = s.Full(), max(0, s.FreeBytes-s.ReserveBytes)
	full, has := float64(t.log+t.tables+s.FreeBytes-s.ReserveBytes), t.log+t.tables
	if maxFill > 0 && s.FreeBytes < 1<<61 {
		full, has = full*maxFill, packed+t.tables
		left := int64(full) - has
		s.Exhausted, s.writable = left <= 0, compact.UnpackedBytes(max(0, left), t.segmentBytes)
		if t.vain && s.Full() {
			s.Exhausted, s.writable = true, 0
		}
	}
	s.usage.Fill = 1
	if full > 0 {
		s.usage.Fill = float64(has) / full
	}
}

// maxCompactionBytes is up to where Pebble adds tables to a compaction: 25 files.
const maxCompactionBytes = 25 * tabledb.MaxTableFileBytes

// tablesNeed is the room that the tables may need at once, beside what they have: for a compaction, which keeps the old
// tables until the new ones are written; and for a memtable that is written out, the log it is in, and the one after it.
func tablesNeed(tableBytes, memTableBytes int64) int64 {
	return min(tableBytes, maxCompactionBytes) + 3*memTableBytes
}

// LeastReserve is what a store keeps in reserve at least, as long as its tables are small: room for segments that are written
// ahead, which count as free and which tables cannot use, and what the tables need.
func LeastReserve(freeSegments int, segmentBytes int64, compacts bool) int64 {
	return leastReserve(freeSegments, segmentBytes, tablesNeed(0, tabledb.DefaultMemTableBytes), compacts)
}

// leastReserve is LeastReserve for tables that need so much. With compaction half of the reserve is for what overwrites, and the rest
// must have room for copies.
func leastReserve(freeSegments int, segmentBytes, need int64, compacts bool) int64 {
	least := int64(freeSegments)*segmentBytes + need
	if compacts {
		least = max(least, 4*compact.LeastSegments*segmentBytes)
	}
	return least
}

// Config is what a Room is made with. All in it is set but for InVain, sizes are in bytes.
type Config struct {
	// FS and Dir say where the store lies.
	FS  vfs.FS
	Dir string
	// SegmentBytes is the size of new segments, FreeSegments how many are written ahead.
	SegmentBytes int64
	FreeSegments int
	// CheckpointBytes is how much log may be written before a checkpoint is due, unless room is tight.
	CheckpointBytes int64
	// MemTableBytes is the size of the tables' memtables.
	MemTableBytes int64
	// ReserveBytes is kept in reserve at least.
	ReserveBytes int64
	// CapacityBytes bounds what the store uses of its file system. 0: all of it.
	CapacityBytes int64
	// MaxFill is which part of the room above the reserve may live. 0: all, because there is no compaction.
	MaxFill float64
	// InVain reports whether compaction has had nothing to win for some time; nil without compaction.
	InVain func() bool
	Logger *slog.Logger
}

// Log is what a Room sees of the segment log: *segment.Log.
type Log interface {
	Space() (usedBytes, freeSegmentBytes int64)
	Full() bool
	GiveBack(n int64) (given int64)
}

// Tables is what a Room sees of the tables' database: *tabledb.DB. Short says that it waits for room.
type Tables interface {
	DiskBytes() (all, tables int64)
	Short() bool
}

// Live is what a Room sees of what the tables refer to: *live.Index.
type Live interface {
	Blocks() (live, written int64)
}

// Room is what a store knows of the room on its disk, and decides from it.
type Room struct {
	cfg  Config
	db   Tables
	log  Log
	live Live
	// tight: there is less than twice the reserve. Checkpoints come more often then, so that less waits for them.
	tight atomic.Bool

	asks  chan struct{}             // has room for one, who asks the disk; no mutex, because the disk may wait for room, and virtual time for who waits
	asked atomic.Pointer[time.Time] // when the answer below was asked for; nil before the first

	mu              sync.Mutex // guards all below
	total, avail    int64
	inUse           int64 // of the file system, whoever uses it
	tables          int64 // all files of the database
	need            int64 // tablesNeed
	known, reported bool
}

// New returns the room of a store, of which nothing is known yet. It asks nobody.
func New(cfg Config, log Log, db Tables, live Live) *Room {
	return &Room{cfg: cfg, log: log, db: db, live: live, asks: make(chan struct{}, 1)}
}

// SetTight says whether there is less than twice the reserve, and reports whether that is new.
func (r *Room) SetTight(tight bool) (changed bool) { return r.tight.Swap(tight) != tight }

// tightPart is which part of the reserve may be log that no checkpoint covers while room is tight. A checkpoint writes each page that
// changed since the last one: with segments of a few MiB one for each would cost more than all else.
const tightPart = 16

// CheckpointBytes is how much log may be written before a checkpoint is due, which is less while room is tight.
func (r *Room) CheckpointBytes() int64 {
	if r.tight.Load() {
		return min(r.cfg.CheckpointBytes, max(r.cfg.SegmentBytes, r.cfg.ReserveBytes/tightPart))
	}
	return r.cfg.CheckpointBytes
}

// Space returns how full the store is. It costs a few hundred nanoseconds and may be as old as TTL. When nothing is known (a file system
// that does not say, and no configured capacity), it answers that there is plenty.
func (r *Room) Space() Space {
	r.refresh()
	used, free := r.log.Space()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Space{CapacityBytes: 1 << 62, FreeBytes: 1 << 62,
		ReserveBytes: max(r.cfg.ReserveBytes, leastReserve(r.cfg.FreeSegments, r.cfg.SegmentBytes, r.need, r.cfg.MaxFill > 0))}
	out.NeedBytes = r.needBytes(out.ReserveBytes)
	if r.known {
		out.CapacityBytes, out.FreeBytes = r.total, r.avail+free
	}
	if c := r.cfg.CapacityBytes; c > 0 {
		out.CapacityBytes = min(out.CapacityBytes, c)
		out.FreeBytes = min(out.FreeBytes, c-used-r.tables)
	}
	other := out.CapacityBytes - max(0, out.FreeBytes) - used - r.tables
	if r.log.Full() { // by a quota, perhaps, which the file system does not count
		out.FreeBytes = min(out.FreeBytes, free)
	}
	if out.FreeBytes < 0 || r.db.Short() {
		out.FreeBytes = 0
	}
	blocks, _ := r.live.Blocks()
	took := taken{used, r.tables, other, blocks, r.cfg.SegmentBytes, r.cfg.InVain != nil && r.cfg.InVain()}
	out.judge(took, r.cfg.MaxFill)
	if r.log.Full() || r.db.Short() { // the file system has no room: there is none for copies either
		out.Exhausted, out.writable = true, 0
		out.usage.NoRoom, out.usage.Fill = true, max(1, out.usage.Fill)
	}
	out.Displaced = r.displacedLocked(&out, took, free)
	return out
}

// displacedLocked reports whether a store that finds no room by waiting would, without the files of others. What else the node itself
// keeps, and a segment that is being made, is as good as nothing beside a reserve. A store that is only below its reserve has room again
// when what is garbage is cleared away.
func (r *Room) displacedLocked(s *Space, t taken, free int64) bool {
	if !r.known || !s.Exhausted || !s.Full() {
		return false
	}
	others := max(0, r.inUse-t.log-free-r.tables-r.cfg.SegmentBytes)
	without := *s
	without.FreeBytes = r.avail + free + others
	if c := r.cfg.CapacityBytes; c > 0 {
		without.FreeBytes = min(without.FreeBytes, c-t.log-r.tables)
	}
	without.judge(t, r.cfg.MaxFill)
	return !without.Exhausted
}

// needBytes is Space.NeedBytes. A sixteenth of the reserve at least is left: a small store cannot have all that is wanted.
func (r *Room) needBytes(reserve int64) int64 {
	segments := 1 + int64(r.cfg.FreeSegments) + 2*max(1, r.CheckpointBytes()/r.cfg.SegmentBytes)
	return min(segments*r.cfg.SegmentBytes+r.need, reserve-reserve/16)
}

// MakeRoom gives back segments that are free and wait to be used again when the file system has less left than the tables
// may need; all the same if they have found no room. It reports whether there is more room than before.
func (r *Room) MakeRoom(short bool) bool {
	r.refresh()
	r.mu.Lock()
	need, lacks := r.need, r.known && r.avail < r.need
	r.mu.Unlock()
	return (short || lacks) && r.log.GiveBack(need) > 0
}

// refresh asks the file system and the database again when the last answer is too old. One asks for all, who wait for its answer.
func (r *Room) refresh() {
	fresh := func() bool {
		at := r.asked.Load()
		return at != nil && time.Since(*at) < TTL
	}
	if fresh() {
		return
	}
	r.asks <- struct{}{}
	defer func() { <-r.asks }()
	if fresh() {
		return
	}
	now := time.Now()
	all, tables := r.db.DiskBytes()
	usage, err := r.cfg.FS.GetDiskUsage(r.cfg.Dir)

	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked.Store(&now)
	r.tables, r.need = all, tablesNeed(tables, r.cfg.MemTableBytes)
	if r.known = err == nil; r.known {
		r.total, r.avail, r.inUse = int64(usage.TotalBytes), int64(usage.AvailBytes), int64(usage.UsedBytes)
	} else if !r.reported && r.cfg.CapacityBytes == 0 {
		r.reported = true
		r.cfg.Logger.Warn("free space of the file system is not known", "dir", r.cfg.Dir, "error", err)
	}
}

// wastedShare is which part of the capacity is much to be garbage.
const wastedShare = 16

// Level makes room for the tables if they need it, and says how much there is for clients.
func (r *Room) Level() reclaim.Room {
	r.MakeRoom(false)
	switch space := r.Space(); {
	case space.Full():
		return reclaim.Full
	case space.FreeBytes < 2*space.ReserveBytes:
		return reclaim.Short
	default:
		used, _ := r.log.Space()
		blocks, _ := r.live.Blocks()
		if used-compact.PackedBytes(blocks, r.cfg.SegmentBytes) > space.CapacityBytes/wastedShare {
			return reclaim.Wasted
		}
	}
	return reclaim.Enough
}

// MayHold returns how many bytes of log may be kept for replicas that lag: half of what is free above twice the reserve. So it is the first
// to go when room gets short.
func (r *Room) MayHold() int64 {
	space := r.Space()
	return max(0, (space.FreeBytes-2*space.ReserveBytes)/2)
}

// errTablesFull is why something is refused.
var errTablesFull = errors.New("the file system has no room for the store's tables; discard, delete volumes or make room on it")

// MayGrow refuses what makes the store larger while there is no room for its tables: the caller would wait for room with
// locks held.
func (r *Room) MayGrow(op string) error {
	if r.db.Short() {
		return storage.E(op, storage.KindNoSpace, "store "+r.cfg.Dir, errTablesFull)
	}
	return nil
}

// MayTake refuses n bytes of a copy, which no client waits for, if less than the reserve would be left. If the copy makes
// room in the end, half of the reserve is enough.
func (r *Room) MayTake(op string, n int64, makesRoom bool) error {
	if err := r.MayGrow(op); err != nil {
		return err
	}
	space := r.Space()
	least := space.ReserveBytes
	if makesRoom {
		least /= 2
	}
	if space.FreeBytes-n >= least {
		return nil
	}
	return storage.E(op, storage.KindNoSpace, "store "+r.cfg.Dir, fmt.Errorf(
		"%d bytes are free and %d are kept in reserve; discard, delete volumes or make the file system larger", space.FreeBytes, least))
}
