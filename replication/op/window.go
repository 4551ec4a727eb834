package op

import (
	"encoding/binary"
	"math/bits"

	storage "github.com/storaged/storaged"
)

// Window records which sequence numbers of a session were applied: all up to Low, and of the SessionWindow
// numbers after it those whose bit is set. The zero value is a session that has applied nothing.
type Window struct {
	Low uint64
	// Bits is a ring: number s, Low < s <= Low+SessionWindow, is bit s mod 64 of word (s/64) mod 16. Bit Low+1 is
	// never set (Low would have moved), nor is any bit of a number outside the window.
	Bits [storage.SessionWindow / 64]uint64
}

// WindowLen is the length in bytes of an encoded Window.
const WindowLen = 8 + storage.SessionWindow/8

// Applied reports whether seq was applied.
func (w *Window) Applied(seq uint64) bool {
	if seq <= w.Low {
		return true
	}
	return w.InWindow(seq) && w.Bits[seq/64%uint64(len(w.Bits))]&(1<<(seq%64)) != 0
}

// InWindow reports whether seq is above the low-water mark and may be applied now.
func (w *Window) InWindow(seq uint64) bool {
	return seq > w.Low && seq-w.Low <= storage.SessionWindow
}

// Mark notes that seq was applied. It must be InWindow.
func (w *Window) Mark(seq uint64) {
	n := uint64(len(w.Bits))
	if seq != w.Low+1 {
		w.Bits[seq/64%n] |= 1 << (seq % 64)
		return
	}
	w.Low++
	for next := w.Low + 1; w.Bits[next/64%n]&(1<<(next%64)) != 0; next++ {
		w.Bits[next/64%n] &^= 1 << (next % 64)
		w.Low = next
	}
}

// Count returns how many numbers above Low were applied.
func (w *Window) Count() int {
	n := 0
	for _, b := range w.Bits {
		n += bits.OnesCount64(b)
	}
	return n
}

// Append appends the encoding, of WindowLen bytes.
func (w *Window) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, w.Low)
	for _, b := range w.Bits {
		dst = binary.LittleEndian.AppendUint64(dst, b)
	}
	return dst
}

// DecodeWindow decodes the window at the beginning of data, which must have WindowLen bytes or more.
func DecodeWindow(data []byte) (w Window, err error) {
	if len(data) < WindowLen {
		return w, invalid("decode window", "%d bytes are too short", len(data))
	}
	w.Low = binary.LittleEndian.Uint64(data)
	for i := range w.Bits {
		w.Bits[i] = binary.LittleEndian.Uint64(data[8+8*i:])
	}
	if next := w.Low + 1; next == 0 || w.Bits[next/64%uint64(len(w.Bits))]&(1<<(next%64)) != 0 {
		return Window{}, invalid("decode window", "the low-water mark %d is not the highest", w.Low)
	}
	return w, nil
}
