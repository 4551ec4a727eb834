package peer

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// buffer holds the header and payload of one received frame. It goes back to its pool when the last reference is
// released, unless it was taken.
type buffer struct {
	data  []byte // len: what was received
	refs  atomic.Int32
	taken atomic.Bool
	pool  *sync.Pool // nil: garbage collected

	response Response // points into data while buf answers a call; here to save an allocation
}

func (b *buffer) retain() { b.refs.Add(1) }

func (b *buffer) release() {
	switch n := b.refs.Add(-1); {
	case n < 0:
		panic("peer: a received buffer was released more often than retained")
	case n == 0 && b.pool != nil && !b.taken.Load():
		b.pool.Put(b)
	}
}

// Size classes: four a power of two, each with an eighth on top, because payloads are powers of two and come with a
// header. The smallest is 256 bytes, the largest holds a frame of the maximal size.
const (
	classMinShift = 8
	classCount    = 4*(23-classMinShift) + 1
)

// classOf returns the class whose buffers hold n bytes, and their capacity; false if n is above the largest.
func classOf(n int) (class, capacity int, ok bool) {
	core := n - n/9 // the part without the eighth, rounded up
	if core <= 1<<classMinShift {
		return 0, 1<<classMinShift + 1<<classMinShift/8, true
	}
	shift := bits.Len(uint(core-1)) - 1             // core in (2^shift, 2^(shift+1)]
	quarter := (core - 1 - 1<<shift) >> (shift - 2) // 0..3
	class = 4*(shift-classMinShift) + quarter + 1
	capacity = 1<<shift + (quarter+1)<<(shift-2)
	return class, capacity + capacity/8, class < classCount
}

// bufferPool hands out buffers by size class. It belongs to one Transport.
type bufferPool struct {
	classes [classCount]sync.Pool
}

// get returns a buffer of n bytes with one reference. Its contents are whatever they are.
func (p *bufferPool) get(n int) *buffer {
	class, capacity, ok := classOf(n)
	var b *buffer
	if !ok {
		b = &buffer{data: make([]byte, n)}
	} else if b, _ = p.classes[class].Get().(*buffer); b == nil {
		b = &buffer{data: make([]byte, capacity), pool: &p.classes[class]}
	}
	b.data = b.data[:n]
	b.refs.Store(1)
	return b
}

// copyOf returns a buffer with a copy of a frame's header and payload.
func (p *bufferPool) copyOf(header []byte, payload [][]byte) *buffer {
	n := len(header)
	for _, part := range payload {
		n += len(part)
	}
	b := p.get(n)
	at := copy(b.data, header)
	for _, part := range payload {
		at += copy(b.data[at:], part)
	}
	return b
}
