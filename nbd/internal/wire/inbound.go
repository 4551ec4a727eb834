package wire

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

const (
	handshakeBufferBytes    = 4 << 10
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
	// since is when a transfer that must not stop began, as now says it; 0 between requests.
	since atomic.Int64
	begun time.Time
}

// NewInbound reads src, with a small buffer until Grow.
func NewInbound(src io.Reader) *Inbound {
	return &Inbound{Src: src, buf: make([]byte, handshakeBufferBytes), begun: time.Now()}
}

// Now is the time since the beginning, in nanoseconds, never 0. It is not the time of day: to set that forward must not
// make a transfer look stalled.
func (in *Inbound) Now() int64 { return int64(time.Since(in.begun)) + 1 }

// Grow makes the buffer as large as the transmission phase wants it, keeping what is unread.
func (in *Inbound) Grow() {
	buf := make([]byte, transmissionBufferBytes)
	in.w = copy(buf, in.buf[in.r:in.w])
	in.buf, in.r = buf, 0
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

// fill reads until n bytes are buffered.
func (in *Inbound) fill(n int) error {
	in.w = copy(in.buf, in.buf[in.r:in.w])
	in.r = 0
	for in.w < n {
		if in.w > 0 && in.since.Load() == 0 {
			in.since.Store(in.Now())
		}
		m, err := in.Src.Read(in.buf[in.w:])
		in.w += m
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
