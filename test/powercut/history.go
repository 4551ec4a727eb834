package powercut

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
)

// never is the point at which what is not acknowledged is acknowledged.
const never = math.MaxInt

// History is what was written to the sectors of a volume, with the points of a trace before which it was asked for and after
// which it was acknowledged. Of the writes to one sector, each is asked for after the one before has ended. It may be used
// concurrently.
type History struct {
	mu      sync.Mutex
	writes  uint64
	acked   []int      // the points of all acknowledgements
	sectors [][]*Write // guarded by mu; in the order in which they were asked for
}

// Write is one request to the volume.
type Write struct {
	id            uint64 // what its sectors say; not 0
	zero          bool   // its sectors are zeroes instead
	asked, answer int    // points
}

// NewHistory returns the history of a volume of zeroes.
func NewHistory(volumeBytes int64) *History {
	return &History{sectors: make([][]*Write, volumeBytes/sectorBytes)}
}

// Ask notes a write of count sectors, or of zeroes, that is about to be sent.
func (h *History) Ask(first, count int64, zero bool, now int) *Write {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes++
	w := &Write{id: h.writes, zero: zero, asked: now, answer: never}
	for s := first; s < first+count; s++ {
		h.sectors[s] = append(h.sectors[s], w)
	}
	return w
}

// Acknowledge notes that a write was answered.
func (h *History) Acknowledge(w *Write, now int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.answer = now
	h.acked = append(h.acked, now)
}

// Acknowledged returns the points of all acknowledgements, in the order in which they were noted.
func (h *History) Acknowledged() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]int(nil), h.acked...)
}

// Stamp returns what count sectors hold after a write.
func (w *Write) Stamp(first, count int64) []byte {
	p := make([]byte, count*sectorBytes)
	if w.zero {
		return p
	}
	for i := range count {
		stamp(p[i*sectorBytes:][:sectorBytes], w.id, first+i)
	}
	return p
}

// stamp fills a sector with words that follow from the write, from the sector's number and from their place. The first says
// which write it is.
func stamp(p []byte, id uint64, sector int64) {
	binary.LittleEndian.PutUint64(p, id)
	x := id<<32 ^ uint64(sector)
	for at := 8; at < len(p); at += 8 {
		x = (x ^ x>>31) * 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(p[at:], x+uint64(at))
	}
}

// Check returns what is wrong with a sector as it was read after a cut at a point; nil if it holds the last write that was
// acknowledged by then, or one that was asked for since.
func (h *History) Check(sector int64, p []byte, point int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	writes := h.sectors[sector]
	last := -1
	for i, w := range writes {
		if w.answer <= point {
			last = i
		}
	}
	id := binary.LittleEndian.Uint64(p)
	want := make([]byte, sectorBytes)
	if id != 0 {
		stamp(want, id, sector)
	}
	if string(want) != string(p) {
		return fmt.Errorf("sector %d holds what nobody has written: %x", sector, p[:32])
	}
	if id == 0 && last < 0 {
		return nil
	}
	for i := max(last, 0); i < len(writes) && writes[i].asked <= point; i++ {
		if w := writes[i]; w.zero && id == 0 || !w.zero && w.id == id {
			return nil
		}
	}
	if last < 0 {
		return fmt.Errorf("sector %d holds write %d, and none was acknowledged", sector, id)
	}
	return fmt.Errorf("sector %d holds write %d (0: zeroes), although write %d was acknowledged %d entries before the cut",
		sector, id, writes[last].id, point-writes[last].answer)
}
