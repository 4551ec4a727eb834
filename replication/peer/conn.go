package peer

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	readBufferBytes = 64 << 10
	// One write takes at most so many bytes (or one frame) and frames from the queue, so that its progress shows.
	maxBatchBytes  = 1 << 20
	maxBatchFrames = 256
	// coalesceBytes bounds the copy made for connections that cannot writev (TLS, simulated networks); larger
	// parts are written by themselves.
	coalesceBytes = 32 << 10
	// rawBytes bounds what a system call that the runtime does not hear of (directReader) may copy: some tens of
	// microseconds.
	rawBytes = 64 << 10
)

var (
	errClosed     = errors.New("the connection is closed")
	errSlowReader = errors.New("the peer does not read its answers")
)

// conn is one lane of a connection set: a socket, the goroutine that reads it, and the frames that wait to be
// written to it. Whoever sets writing owns the write side: the goroutine in writeLoop, or a caller of post that found
// it idle and writes its own frame without waking anyone.
type conn struct {
	set    *connSet
	lane   Lane
	nc     net.Conn
	br     *bufio.Reader
	direct *directWriter // nil: the socket cannot be written without blocking
	// protocol is the version of the peer protocol that both ends speak here.
	protocol uint16
	// release ends the claim that the other side is the process of its node.
	release func()
	wake    chan struct{} // capacity 1; a token hands writing over to writeLoop; never closed

	queuedBytes atomic.Int64 // of frames posted and not finished; changed under mu
	writeSince  atomic.Int64 // Transport.now() when the write in progress began, 0 when none is

	mu        sync.Mutex // guards what follows
	changed   sync.Cond  // on mu; broadcast when frames were finished or the connection closed, if anyone waits
	waiters   int
	queue     []*outFrame // queue[queueHead:] waits; not empty only while writing
	queueHead int
	writing   bool
	byCaller  bool // writing, by a caller of post
	closed    bool
	rest      [][]byte         // what a caller could not write of restOf without blocking
	restOf    *outFrame        // nil or the frame that rest belongs to
	pending   map[uint64]*call // requests sent on a dialled connection and not ended

	// Owned by whoever owns writing.
	batch []*outFrame
	parts [][]byte
	out   net.Buffers // the window of parts that is not written yet
	flat  []byte
}

func newConn(set *connSet, lane Lane, nc net.Conn) *conn {
	c := &conn{set: set, lane: lane, nc: nc, wake: make(chan struct{}, 1), pending: make(map[uint64]*call)}
	c.changed.L = &c.mu
	var from io.Reader = nc
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
		c.direct = newDirectWriter(nc.(syscall.Conn))
		if r := newDirectReader(nc.(syscall.Conn)); r != nil {
			from = r
		}
	}
	c.br = bufio.NewReaderSize(from, readBufferBytes)
	return c
}

// post sends f. With eager it is written at once when nobody else writes and the socket takes it without blocking,
// otherwise by writeLoop. post itself never blocks on the network. On an error nothing was kept of f.
func (c *conn) post(f *outFrame, cl *call, eager bool) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return errClosed
	}
	if cl != nil {
		cl.frame, f.call = f, cl
		c.pending[cl.id] = cl
		eager = eager && len(c.pending) == 1
	}
	queued := c.queuedBytes.Add(f.size)
	if eager && !c.writing && c.direct != nil {
		c.writing, c.byCaller = true, true
		f.state = frameWriting
		c.mu.Unlock()
		c.writeDirect(f)
		return nil
	}
	f.state = frameQueued
	c.queue = append(c.queue, f)
	if !c.writing {
		c.writing = true
		c.wake <- struct{}{}
	}
	c.mu.Unlock()
	if !c.set.dialled && queued > 4*c.set.t.cfg.MaxReplyBytes {
		c.set.fail(errSlowReader)
	}
	return nil
}

// writeDirect writes f on the caller's goroutine as far as the socket takes it, and leaves the rest to writeLoop.
func (c *conn) writeDirect(f *outFrame) {
	c.parts = append(append(c.parts[:0], f.head), f.payload...)
	n := c.direct.write(c.parts)
	whole := int64(n) == f.size
	if whole {
		clear(c.parts)
		c.set.t.metrics.sent(c.lane, f.size)
	}
	c.mu.Lock()
	c.byCaller = false
	if whole {
		c.finishLocked(f)
	} else {
		c.rest, c.restOf = advance(c.parts, n), f
	}
	if whole && c.queueHead == len(c.queue) {
		c.writing = false
	} else {
		c.wake <- struct{}{}
	}
	if c.waiters > 0 || c.closed {
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	if whole {
		c.set.t.recycle(f)
	}
}

// advance returns what is left of parts after n bytes.
func advance(parts [][]byte, n int) [][]byte {
	for len(parts) > 0 && n >= len(parts[0]) {
		n -= len(parts[0])
		parts = parts[1:]
	}
	if n > 0 {
		parts[0] = parts[0][n:]
	}
	return parts
}

// finishLocked ends the transport's interest in f's bytes. The caller recycles f after unlocking.
func (c *conn) finishLocked(f *outFrame) {
	c.queuedBytes.Add(-f.size)
	if f.call != nil {
		f.call.frame, f.call = nil, nil
	}
}

// writeLoop writes what is queued whenever it is handed the write side, until the set fails.
func (c *conn) writeLoop() {
	done := c.set.ctx.Done()
	for {
		select {
		case <-done:
			return
		case <-c.wake:
		}
		for {
			if c.lane != Control {
				// Those who are about to post get to do so first: at depth 32 eight frames share a write
				// instead of one each, which halves the CPU time of a call.
				runtime.Gosched()
			}
			if !c.takeBatch() {
				break
			}
			err := c.writeBatch()
			c.finishBatch()
			if err != nil {
				c.set.fail(fmt.Errorf("write to the %v lane: %w", c.lane, err))
				return
			}
		}
	}
}

// takeBatch moves frames from the queue to c.batch; without any it gives up writing and returns false.
func (c *conn) takeBatch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batch, c.parts = c.batch[:0], c.parts[:0]
	if c.restOf != nil {
		c.batch = append(c.batch, c.restOf)
		c.parts = append(c.parts, c.rest...) // c.rest is a suffix of c.parts: moved down
		c.rest, c.restOf = nil, nil
	}
	for size := int64(0); c.queueHead < len(c.queue) && len(c.batch) < maxBatchFrames; {
		f := c.queue[c.queueHead]
		if size += f.size; size > maxBatchBytes && len(c.batch) > 0 {
			break
		}
		c.queue[c.queueHead] = nil
		c.queueHead++
		c.batch = append(c.batch, f)
		if f.state != frameDead {
			f.state = frameWriting
			c.parts = append(append(c.parts, f.head), f.payload...)
		}
	}
	if c.queueHead == len(c.queue) {
		c.queue, c.queueHead = c.queue[:0], 0
	}
	c.writing = len(c.batch) > 0
	return c.writing
}

// writeBatch writes c.parts.
func (c *conn) writeBatch() error {
	t := c.set.t
	c.writeSince.Store(t.now())
	defer c.writeSince.Store(0)
	size := int64(0)
	for _, p := range c.parts {
		size += int64(len(p))
	}
	t.metrics.sent(c.lane, size)
	if c.direct != nil {
		if raceEnabled {
			_, _ = c.nc.Write(nil)
		}
		c.out = c.parts
		for n := 1; n > 0 && size <= rawBytes; {
			if n = c.direct.write(c.out); n > 0 {
				c.out = advance(c.out, n)
			}
			if len(c.out) == 0 {
				return nil
			}
		}
		_, err := c.out.WriteTo(c.nc)
		return err
	}
	c.flat = c.flat[:0]
	for _, p := range c.parts {
		if len(c.flat)+len(p) > coalesceBytes {
			if err := c.flush(); err != nil {
				return err
			}
		}
		if len(p) > coalesceBytes {
			if _, err := c.nc.Write(p); err != nil {
				return err
			}
			continue
		}
		c.flat = append(c.flat, p...)
	}
	return c.flush()
}

func (c *conn) flush() error {
	if len(c.flat) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.flat)
	c.flat = c.flat[:0]
	return err
}

// finishBatch ends the transport's interest in the frames of c.batch, written or not.
func (c *conn) finishBatch() {
	clear(c.parts)
	c.mu.Lock()
	for _, f := range c.batch {
		c.finishLocked(f)
	}
	if c.waiters > 0 {
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	for i, f := range c.batch {
		c.batch[i] = nil
		c.set.t.recycle(f)
	}
}

// close makes every later post fail and everybody who waits look again. It does not wait.
func (c *conn) close() {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	c.nc.Close()
}

// drop ends what is left after the goroutines of a closed connection have ended: it returns the requests without an
// answer, each with call.sent set.
func (c *conn) drop() []*call {
	c.mu.Lock()
	for c.byCaller {
		c.changed.Wait()
	}
	calls := make([]*call, 0, len(c.pending))
	for _, cl := range c.pending {
		cl.sent = cl.frame == nil || cl.frame.state == frameWriting
		calls = append(calls, cl)
	}
	clear(c.pending)
	left := append([]*outFrame(nil), c.queue[c.queueHead:]...)
	if c.restOf != nil {
		left = append(left, c.restOf)
	}
	c.queue, c.queueHead, c.rest, c.restOf = nil, 0, nil, nil
	for _, f := range left {
		c.finishLocked(f)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	for _, f := range left {
		c.set.t.recycle(f)
	}
	return calls
}

// readHeader reads and checks the fixed header of the next frame.
func (c *conn) readHeader() (frameHeader, error) {
	b, err := c.br.Peek(frameHeaderBytes)
	if err != nil {
		if errors.Is(err, io.EOF) && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return frameHeader{}, err
	}
	h, err := parseFrame(b)
	if err != nil {
		return h, err
	}
	_, err = c.br.Discard(frameHeaderBytes)
	c.set.t.metrics.received(c.lane, int64(frameHeaderBytes+h.headerBytes+h.payloadBytes))
	return h, err
}

// readBody reads the n bytes that follow h, the header or header and payload, into a buffer with one reference.
func (c *conn) readBody(h frameHeader, n int) (*buffer, error) {
	buf := c.set.t.buffers.get(n)
	if _, err := io.ReadFull(c.br, buf.data); err != nil {
		buf.release()
		return nil, err
	}
	if crc32.Checksum(buf.data[:h.headerBytes], castagnoli) != h.headerCRC {
		buf.release()
		return nil, errHeaderCRC
	}
	return buf, nil
}

// skipBody reads past the header and payload that follow h, without memory for them.
func (c *conn) skipBody(h frameHeader) error {
	_, err := c.br.Discard(h.headerBytes + h.payloadBytes)
	return err
}

// awaitReplyRoom waits while too many reply bytes wait to be read by the peer.
func (c *conn) awaitReplyRoom() {
	limit := c.set.t.cfg.MaxReplyBytes
	if c.queuedBytes.Load() <= limit {
		return
	}
	c.mu.Lock()
	c.waiters++
	for !c.closed && c.queuedBytes.Load() > limit {
		c.changed.Wait()
	}
	c.waiters--
	c.mu.Unlock()
}
