package simnet

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is one end of a connection. It implements net.Conn.
type Conn struct {
	n               *Network
	machine, remote *Machine
	other           *Conn
	out, in         *pipe
	local, peer     simAddr

	// Guarded by Network.mu.
	closed                      bool
	readDeadline, writeDeadline deadline
}

// deadline is a time after which calls fail, and the timer that wakes them.
type deadline struct {
	at    time.Time // zero: none
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// setLocked moves the deadline and wakes those who wait on cond, now and when it passes.
func (d *deadline) setLocked(at time.Time, cond *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), func() {
			cond.L.Lock()
			defer cond.L.Unlock()
			cond.Broadcast()
		})
	}
	cond.Broadcast()
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	for p := c.in; ; p.readable.Wait() {
		switch {
		case c.closed:
			return 0, c.fail("read", net.ErrClosed)
		case c.readDeadline.passed():
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case c.machine.frozen:
			continue
		case p.err != nil:
			return 0, c.fail("read", p.err)
		case len(b) == 0:
			return 0, nil
		}
		if n, err := p.takeLocked(b); n > 0 || errors.Is(err, io.EOF) {
			return n, err
		} else if err != nil {
			p.err, c.out.err = err, err
			c.out.writable.Broadcast()
			return 0, c.fail("read", err)
		}
	}
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	for p := c.out; ; p.writable.Wait() {
		switch {
		case c.closed:
			return n, c.fail("write", net.ErrClosed)
		case c.writeDeadline.passed():
			return n, c.fail("write", os.ErrDeadlineExceeded)
		case c.machine.frozen:
			continue
		case p.err != nil:
			return n, c.fail("write", p.err)
		case p.deaf && !p.silent && !p.stalledLocked():
			return n, c.fail("write", syscall.EPIPE)
		}
		room := min(c.n.cfg.BufferBytes-p.bytes, len(b)-n)
		if room > 0 {
			p.sendLocked(segment{data: append([]byte(nil), b[n:n+room]...)})
			n += room
		}
		if n == len(b) {
			return n, nil
		}
	}
}

func (c *Conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "sim", Source: c.local, Addr: c.peer, Err: err}
}

// Close implements net.Conn: what was written is still delivered.
func (c *Conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.out.sendLocked(segment{err: io.EOF})
	c.shutLocked(c.machine.frozen)
	return nil
}

// endLocked closes the connection as the end of its process does: what has not left is lost.
func (c *Conn) endLocked(tell bool) {
	if c.closed {
		return
	}
	c.out.dropUnsentLocked()
	if tell {
		c.out.sendLocked(segment{err: syscall.ECONNRESET})
	}
	c.shutLocked(!tell)
}

// shutLocked closes this end; silent: the other side does not learn of it, until speakLocked.
func (c *Conn) shutLocked(silent bool) {
	c.closed = true
	c.in.deaf, c.in.silent = true, true
	if !silent {
		c.speakLocked()
	}
	c.readDeadline.setLocked(time.Time{}, &c.in.readable)
	c.writeDeadline.setLocked(time.Time{}, &c.out.writable)
	if c.other.closed {
		delete(c.n.conns, c)
		delete(c.n.conns, c.other)
		c.in.stopLocked()
		c.out.stopLocked()
	}
}

// speakLocked lets the other side find out, by writing, that this end is closed.
func (c *Conn) speakLocked() {
	c.in.silent = false
	c.in.segments, c.in.bytes = nil, 0
	c.in.writable.Broadcast()
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.peer }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readDeadline, &c.writeDeadline)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, &c.readDeadline, nil) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, nil, &c.writeDeadline) }

func (c *Conn) setDeadlines(t time.Time, read, write *deadline) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	if read != nil {
		read.setLocked(t, &c.in.readable)
	}
	if write != nil {
		write.setLocked(t, &c.out.writable)
	}
	return nil
}

// pipe is one direction of a connection. All fields are guarded by Network.mu.
type pipe struct {
	n        *Network
	from, to *Machine
	link     *linkState
	random   *rand.Rand
	readable sync.Cond // on Network.mu
	writable sync.Cond // on Network.mu

	segments   []segment // in order; those that arrived come first
	bytes      int       // in segments, <= Config.BufferBytes
	lineFree   time.Time // when the line has taken everything before
	err        error     // the connection failed, for both ends
	deaf       bool      // the reading end is closed
	silent     bool      // and nobody tells the writer
	wasStalled bool
	timer      *time.Timer // wakes readers when the next segment arrives
}

// segment is what one write put on the line, or the end of the stream.
type segment struct {
	data    []byte
	err     error // io.EOF or a reset, after all data
	at      time.Time
	arrived bool
}

// stalledLocked reports whether nothing of the pipe arrives at present.
func (p *pipe) stalledLocked() bool { return p.from.frozen || !p.n.pathLocked(p.from, p.to) }

// sendLocked puts a segment on the line.
func (p *pipe) sendLocked(s segment) {
	p.stampLocked(&s, time.Now())
	p.segments = append(p.segments, s)
	p.bytes += len(s.data)
	p.readable.Broadcast()
}

// stampLocked says when a segment that is sent now arrives.
func (p *pipe) stampLocked(s *segment, now time.Time) {
	if p.lineFree.Before(now) {
		p.lineFree = now
	}
	if rate := p.link.BytesPerSecond; rate > 0 {
		p.lineFree = p.lineFree.Add(time.Duration(float64(len(s.data)) / float64(rate) * float64(time.Second)))
	}
	s.at = p.lineFree.Add(p.link.Delay)
	if p.link.Jitter > 0 {
		s.at = s.at.Add(time.Duration(p.random.Int64N(int64(p.link.Jitter) + 1)))
	}
}

// resendLocked sends again what was lost on a stalled line.
func (p *pipe) resendLocked(now time.Time) {
	p.lineFree = now
	for i := range p.segments {
		if s := &p.segments[i]; !s.arrived {
			p.stampLocked(s, now)
		}
	}
}

// arriveLocked marks what has reached the reader's buffer. A segment never overtakes another.
func (p *pipe) arriveLocked(now time.Time) {
	if p.stalledLocked() {
		return
	}
	for i := range p.segments {
		if s := &p.segments[i]; !s.arrived {
			if s.at.After(now) {
				return
			}
			s.arrived = true
		}
	}
}

// dropUnsentLocked forgets what has not arrived.
func (p *pipe) dropUnsentLocked() {
	for i := range p.segments {
		if !p.segments[i].arrived {
			for _, s := range p.segments[i:] {
				p.bytes -= len(s.data)
			}
			p.segments = p.segments[:i]
			return
		}
	}
}

// takeLocked reads what has arrived. Without anything it returns 0 and nil, after seeing to it that readable is
// broadcast when something does.
func (p *pipe) takeLocked(b []byte) (n int, err error) {
	now := time.Now()
	p.arriveLocked(now)
	for n < len(b) && len(p.segments) > 0 && p.segments[0].arrived {
		s := &p.segments[0]
		if s.err != nil {
			if n == 0 {
				err = s.err
			}
			break
		}
		m := copy(b[n:], s.data)
		s.data = s.data[m:]
		n += m
		if len(s.data) == 0 {
			*s = segment{}
			p.segments = p.segments[1:]
		}
	}
	if n > 0 {
		p.bytes -= n
		p.writable.Broadcast()
	}
	if n == 0 && err == nil && len(p.segments) > 0 && !p.stalledLocked() {
		p.wakeAtLocked(p.segments[0].at.Sub(now))
	}
	return n, err
}

// wakeAtLocked broadcasts readable after d.
func (p *pipe) wakeAtLocked(d time.Duration) {
	if p.timer != nil {
		p.timer.Reset(d)
		return
	}
	p.timer = time.AfterFunc(d, func() {
		p.n.mu.Lock()
		defer p.n.mu.Unlock()
		p.readable.Broadcast()
	})
}

func (p *pipe) stopLocked() {
	if p.timer != nil {
		p.timer.Stop()
	}
}
