package wire

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	handshakeBufferBytes = 4 << 10
	// idleBufferBytes is what a connection waits with: a request that writes 4 KiB, and some.
	idleBufferBytes = 8 << 10
	// transmissionBufferBytes is what it has while more has arrived than that.
	transmissionBufferBytes = 64 << 10
	// StallBytes is how much must cross the socket within Config.StallTimeout once a transfer has begun.
	StallBytes = 1 << 20
)

// Inbound reads a socket through a buffer, so that a system call fetches many requests. One goroutine uses it;
// StalledSince may be called by any.
type Inbound struct {
	Src  io.Reader
	buf  []byte
	r, w int // unread bytes are buf[r:w]
	// idle is buf, or what it becomes again; large is buf, or nil.
	idle  []byte
	large *[transmissionBufferBytes]byte
	grows bool // large may be taken
	more  bool // the last read filled all the room that it had: more is likely to be there
	// since is when a transfer that must not stop began, as now says it; 0 between requests.
	since atomic.Int64
	begun time.Time
}

// NewInbound reads src, with a small buffer until Grow.
func NewInbound(src io.Reader) *Inbound {
	idle := make([]byte, handshakeBufferBytes)
	return &Inbound{Src: src, buf: idle, idle: idle, begun: time.Now()}
}

// largeBuffers are those that no connection has.
var largeBuffers = sync.Pool{New: func() any { return new([transmissionBufferBytes]byte) }}

// Now is the time since the beginning, in nanoseconds, never 0. It is not the time of day: to set that forward must not
// make a transfer look stalled.
func (in *Inbound) Now() int64 { return int64(time.Since(in.begun)) + 1 }

// Grow makes the buffer as large as the transmission phase wants it, keeping what is unread. From then on it is larger still while more
// has arrived than it holds. Of a thousand connections that wait for requests each would keep that otherwise.
func (in *Inbound) Grow() {
	if in.grows {
		return
	}
	idle := make([]byte, idleBufferBytes)
	in.w = copy(idle, in.buf[in.r:in.w])
	in.buf, in.idle, in.r, in.grows = idle, idle, 0, true
}

// resize takes a large buffer when more is likely to be there than the other holds, and gives it up before a read that is likely to wait.
// n bytes are wanted; unread bytes stay.
func (in *Inbound) resize(n int) {
	switch unread := in.w - in.r; {
	case in.large == nil && in.grows && (in.more || n > len(in.buf)):
		in.large = largeBuffers.Get().(*[transmissionBufferBytes]byte)
		in.w = copy(in.large[:], in.buf[in.r:in.w])
		in.buf, in.r = in.large[:], 0
	case in.large != nil && !in.more && max(n, unread) <= len(in.idle):
		in.w = copy(in.idle, in.buf[in.r:in.w])
		in.buf, in.r = in.idle, 0
		largeBuffers.Put(in.large)
		in.large = nil
	}
}

// Buffered is the number of bytes that can be read without a system call.
func (in *Inbound) Buffered() int { return in.w - in.r }

// StalledSince is when the transfer in progress began, or 0.
func (in *Inbound) StalledSince() int64 { return in.since.Load() }

// Next returns the next n bytes, n <= handshakeBufferBytes; they are valid until the following call. An end before
// the first byte is io.EOF, a later one io.ErrUnexpectedEOF.
func (in *Inbound) Next(n int) ([]byte, error) {
	if in.w-in.r < n {
		if err := in.fill(n); err != nil {
			return nil, err
		}
	}
	b := in.buf[in.r : in.r+n]
	in.r += n
	return b, nil
}

// fill reads until n bytes are buffered. The buffer holds as many.
func (in *Inbound) fill(n int) error {
	in.resize(n)
	in.w = copy(in.buf, in.buf[in.r:in.w])
	in.r = 0
	for in.w < n {
		if in.w > 0 && in.since.Load() == 0 {
			in.since.Store(in.Now())
		}
		m, err := in.Src.Read(in.buf[in.w:])
		in.w += m
		in.more = in.w == len(in.buf)
		if in.w < n && err != nil {
			if err == io.EOF && in.w > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	in.since.Store(0)
	return nil
}

// Full fills p.
func (in *Inbound) Full(p []byte) error {
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	p = p[n:]
	for len(p) > 0 {
		chunk := p[:min(len(p), StallBytes)]
		in.since.Store(in.Now())
		if len(chunk) >= len(in.buf) {
			if _, err := io.ReadFull(in.Src, chunk); err != nil {
				return NoEOF(err)
			}
			in.more = false // it is not known
		} else {
			if err := in.fill(len(chunk)); err != nil {
				return NoEOF(err)
			}
			in.r = copy(chunk, in.buf[:in.w])
		}
		p = p[len(chunk):]
	}
	in.since.Store(0)
	return nil
}

// Discard reads n bytes and forgets them.
func (in *Inbound) Discard(n uint64) error {
	for n > 0 {
		m := int(min(n, uint64(len(in.buf))))
		if in.w-in.r < m {
			if err := in.fill(m); err != nil {
				return NoEOF(err)
			}
		}
		in.r += m
		n -= uint64(m)
	}
	return nil
}

// NoEOF turns an end in the middle of a message into what it is.
func NoEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
