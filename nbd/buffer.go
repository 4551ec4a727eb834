package nbd

import (
	"math/bits"
	"sync"
)

// Payload buffers come in powers of two, so that a returned one fits the next request of its class.
const (
	minBufferShift = 12
	maxBufferShift = 26
	bufferClasses  = maxBufferShift - minBufferShift + 1
	maxBufferBytes = 1 << maxBufferShift
)

// buffer is a payload on loan from a bufferPool.
type buffer struct {
	b     []byte // the length that was asked for
	class int
}

// bufferPool lends buffers. It may be used concurrently.
type bufferPool struct {
	classes [bufferClasses]sync.Pool
}

// bufferClass is the smallest class that holds n bytes; n <= maxBufferBytes.
func bufferClass(n int) int {
	if n <= 1<<minBufferShift {
		return 0
	}
	return bits.Len(uint(n-1)) - minBufferShift
}

// bufferWeight is what a buffer of n bytes counts against the limits of bytes in flight.
func bufferWeight(n int) int64 { return 1 << (bufferClass(n) + minBufferShift) }

// get lends a buffer of n bytes with unspecified content.
func (p *bufferPool) get(n int) *buffer {
	class := bufferClass(n)
	b, ok := p.classes[class].Get().(*buffer)
	if !ok {
		b = &buffer{b: make([]byte, 1<<(class+minBufferShift)), class: class}
	}
	b.b = b.b[:n]
	return b
}

// put takes a buffer back. Nobody else may hold it.
func (p *bufferPool) put(b *buffer) {
	if b != nil {
		p.classes[b.class].Put(b)
	}
}
