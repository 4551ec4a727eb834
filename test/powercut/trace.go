package powercut

import (
	"math/rand/v2"
	"os"
	"sync"
)

// Trace is what has reached a set of disks, in one order: each write and, when it was over, each flush. A point of it is the
// number of entries before it. It may be used concurrently.
type Trace struct {
	mu      sync.Mutex // guards what follows, and orders the writes of all disks
	data    *os.File   // what was written
	size    int64      // of data
	entries []entry
}

// entry is one write, or one flush.
type entry struct {
	disk   int
	kind   kind
	offset int64 // on the disk
	bytes  int64
	data   int64 // where in Trace.data a write's bytes begin
	covers int   // of a flush: the point at which it began; what was written before is on the medium
}

type kind uint8

const (
	wrote kind = iota + 1
	zeroed
	flushed
)

// NewTrace returns an empty trace, which keeps in a file what is written.
func NewTrace(data *os.File) *Trace { return &Trace{data: data} }

// Now returns the point after all that has happened.
func (t *Trace) Now() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries)
}

// between returns the entries from one point to another. They never change.
func (t *Trace) between(from, to int) []entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[from:to:to]
}

// write adds a write, and does it.
func (t *Trace) write(disk int, p []byte, offset int64, do func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	if _, err := t.data.WriteAt(p, t.size); err != nil {
		return err
	}
	t.entries = append(t.entries, entry{disk: disk, kind: wrote, offset: offset, bytes: int64(len(p)), data: t.size})
	t.size += int64(len(p))
	return nil
}

// zero adds a range that was zeroed, and does it.
func (t *Trace) zero(disk int, offset, bytes int64, do func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	t.entries = append(t.entries, entry{disk: disk, kind: zeroed, offset: offset, bytes: bytes})
	return nil
}

// flush adds a flush that began at a point and is over now.
func (t *Trace) flush(disk, began int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, entry{disk: disk, kind: flushed, covers: began})
}

// Unflushed returns how many writes no flush has covered at a point, on all disks.
func (t *Trace) Unflushed(point int) (writes int) {
	covered := map[int]int{}
	entries := t.between(0, point)
	for _, e := range entries {
		if e.kind == flushed {
			covered[e.disk] = max(covered[e.disk], e.covers)
		}
	}
	for i, e := range entries {
		if e.kind != flushed && i >= covered[e.disk] {
			writes++
		}
	}
	return writes
}

// Fate says what becomes of writes that no flush has covered when the power goes.
type Fate int

// Fates.
const (
	Lost    Fate = iota // none of them is on the disk
	Some                // each is, or is not
	Torn                // of each, each sector is, or is not
	fateEnd             // how many there are
)

// String returns the fate in a word.
func (f Fate) String() string { return [...]string{"lost", "some kept", "torn"}[f] }

// sectorBytes is what a disk writes whole or not at all.
const sectorBytes = 512

// Medium is what a disk is sure to hold at a point of a trace. The point moves forward only. It is not used concurrently.
type Medium struct {
	trace *Trace
	disk  int
	image *os.File
	bytes int64
	done  int // entries before it are on the image
	// honest is the point from which on the disk has lied: later flushes have covered nothing.
	honest int
}

// NewMedium returns the medium of a disk before anything was written, in an empty file. From the point honest on, the disk is
// taken for one that answers flushes without doing anything.
func NewMedium(trace *Trace, disk int, image *os.File, sizeBytes int64, honest int) (*Medium, error) {
	if err := image.Truncate(sizeBytes); err != nil {
		return nil, err
	}
	return &Medium{trace: trace, disk: disk, image: image, bytes: sizeBytes, honest: honest}, nil
}

// Cut returns the disk as a loss of power at a point has left it; the point is not before that of an earlier call. The medium
// must not move while the cut is in use.
func (m *Medium) Cut(point int, fate Fate, random *rand.Rand) (*Cut, error) {
	covered := m.done
	for i, e := range m.trace.between(m.done, point) {
		if e.kind == flushed && e.disk == m.disk && m.done+i < m.honest {
			covered = max(covered, e.covers)
		}
	}
	for _, e := range m.trace.between(m.done, covered) {
		if err := m.apply(e); err != nil {
			return nil, err
		}
	}
	m.done = covered
	c := &Cut{plain: plain{m.bytes}, image: m.image, pages: map[int64][]byte{}}
	if fate == Lost {
		return c, nil
	}
	for _, e := range m.trace.between(covered, point) {
		if err := m.mayKeep(c, e, fate, random); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (m *Medium) apply(e entry) error {
	if e.disk != m.disk || e.kind == flushed {
		return nil
	}
	p, err := m.trace.bytesOf(e, 0, e.bytes)
	if err == nil {
		_, err = m.image.WriteAt(p, e.offset)
	}
	return err
}

// mayKeep puts of a write on a disk what its fate leaves there.
func (m *Medium) mayKeep(c *Cut, e entry, fate Fate, random *rand.Rand) error {
	if e.disk != m.disk || e.kind == flushed {
		return nil
	}
	step := e.bytes
	if fate == Torn {
		step = sectorBytes
	}
	for at := int64(0); at < e.bytes; at += step {
		if random.IntN(2) == 0 {
			continue
		}
		p, err := m.trace.bytesOf(e, at, min(step, e.bytes-at))
		if err == nil {
			err = c.write(p, e.offset+at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bytesOf returns what a write, or a zeroing, has put into a part of its range.
func (t *Trace) bytesOf(e entry, from, bytes int64) ([]byte, error) {
	p := make([]byte, bytes)
	if e.kind == zeroed {
		return p, nil
	}
	_, err := t.data.ReadAt(p, e.data+from)
	return p, err
}
