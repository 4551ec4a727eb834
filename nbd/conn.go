package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd/internal/wire"
)

// How a connection may end, beside an error.
var (
	errDisconnect = errors.New("the client disconnected")          // DISC or ABORT
	errDrained    = errors.New("the server stops")                 // drain
	errStalled    = errors.New("the client stalled")               // checkUp
	errDismissed  = errors.New("the backend ended the connection") // Peer.Disconnect
)

// maxIdleWorkers bounds the goroutines that a connection keeps for its next burst of requests.
const maxIdleWorkers = 64

// conn is one client's connection.
//
// One goroutine reads requests, checks them and hands them to workers; a worker calls the export and queues the
// reply; the first worker to queue one while nobody writes becomes the writer of all that is queued meanwhile. So a
// single request is answered by the goroutine that served it, and under load one system call carries many replies.
// Before it writes, the writer lets others run if more requests are in flight: at depth 32 that is worth 40 %
// (BenchmarkServer). Serving a lone request in the reader's own goroutine was tried and gains nothing over the worker,
// which runs on the same thread as soon as the reader waits for the socket.
//
// What bounds it: a request is read only when the connection and the server have room for its payload
// (Config.MaxConnBytes, MaxConnRequests, Budget); the room is given back when its reply was written.
type conn struct {
	srv    *Server
	id     uint64
	raw    net.Conn // as accepted
	nc     net.Conn // raw, or TLS over it
	in     *wire.Inbound
	unix   bool
	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc

	negotiated func() // ends the connection's part in Server.handshakes

	// Fixed when the handshake ends.
	features wire.Features
	noZeroes bool // no padding behind EXPORT_NAME's answer
	export   Export
	sparse   SparseReader // nil if the export does not know holes
	resizer  Resizer      // nil if the export does not resize
	info     ExportInfo

	sizeBytes atomic.Uint64 // grows when the export does
	room      *semaphore.Weighted
	share     *share // of the server's budget
	minWeight int64

	work    chan *request  // closed by closeWork; nil requests end idle workers
	idle    atomic.Int64   // workers waiting on work
	running sync.WaitGroup // requests begun and not finished, and workers
	served  atomic.Uint64  // requests begun
	check   *time.Timer    // runs until the connection ends
	seen    uint64         // served, as the last check saw it

	writeSince atomic.Int64 // when the write in progress began, as in.now says it; 0 when none is
	draining   atomic.Bool
	waiting    atomic.Bool // the reader waits for room and does not read
	look       *time.Timer // runs while waiting
	// transmitting is set before the reader looks at draining, and looked at after draining is set: one of drain and
	// the reader sees the other.
	transmitting atomic.Bool

	mu         sync.Mutex
	pending    []*request    // guarded by mu; replies to be written
	spare      []*request    // guarded by mu; the other array of pending
	writing    bool          // guarded by mu; somebody is in writeReplies
	workClosed bool          // guarded by mu
	unanswered int           // guarded by mu; requests begun whose reply was not written
	barrier    *barrier      // guarded by mu; where mutations are counted
	out        wire.Outbound // owned by the writer
	outArray   [][]byte      // owned by the writer
}

// request is one request on its way. It belongs to the reader, then to a worker, then to the writer.
type request struct {
	wire.RequestHeader
	buf          *buffer  // payload of a WRITE or a READ; nil else
	ids          []uint32 // contexts that a BLOCK_STATUS asks for; nil means all
	refused      *refusal // not to be executed
	connWeight   int64
	serverWeight int64
	start        time.Time
	barrier      *barrier      // of a mutation: where it counts
	after        chan struct{} // of a FLUSH: closed when earlier mutations have returned; nil if there are none

	head  [64]byte  // the reply's header
	parts [][]byte  // the reply
	two   [2][]byte // backs parts in the common case
}

func newConn(s *Server, id uint64, nc net.Conn, share *share) *conn {
	c := &conn{srv: s, id: id, raw: nc, nc: nc, in: wire.NewInbound(nc), work: make(chan *request), share: share,
		room: semaphore.NewWeighted(s.cfg.MaxConnBytes), barrier: &barrier{},
		minWeight: max(1, s.cfg.MaxConnBytes/int64(s.cfg.MaxConnRequests))}
	_, c.unix = nc.LocalAddr().(*net.UnixAddr)
	c.look = time.AfterFunc(hangUpEvery, c.lookForClient)
	c.look.Stop()
	c.check = time.AfterFunc(s.cfg.StallTimeout, c.checkUp)
	c.check.Stop()
	return c
}

// end makes the connection end, for the reason of the first call. It does not wait. Calls to the export see their
// context end, and the client an end of the stream.
func (c *conn) end(cause error) {
	c.cancel(cause)
	_ = c.raw.Close()
}

// drain makes the connection end once what is in flight has been answered; at once if that is nothing yet, because the
// client is still negotiating.
func (c *conn) drain() {
	c.draining.Store(true)
	if !c.transmitting.Load() {
		c.end(errDrained)
		return
	}
	_ = c.raw.SetReadDeadline(time.Unix(1, 0))
}

// peer describes the connection to the backend.
func (c *conn) peer() Peer {
	p := Peer{ID: c.id, RemoteAddr: c.raw.RemoteAddr(), LocalAddr: c.raw.LocalAddr(),
		Disconnect: func() { c.end(errDismissed) }}
	if t, ok := c.nc.(*tls.Conn); ok {
		state := t.ConnectionState()
		p.TLS = &state
	}
	return p
}

// run serves the connection to its end and returns why it ended; errDisconnect and errDrained are clean ends.
func (c *conn) run() error {
	c.check.Reset(c.srv.cfg.StallTimeout / 4)
	defer c.check.Stop()
	err := c.handshake()
	c.negotiated()
	if err != nil {
		if !errors.Is(err, errDisconnect) && !errors.Is(err, io.EOF) {
			c.srv.metrics.handshakes.Inc()
		}
		err = c.cause(err)
		c.end(err)
		return err
	}
	c.share.join(c.srv, c.info.Name, c.raw.RemoteAddr())
	c.transmitting.Store(true)
	c.in.Grow()
	err = c.cause(c.readRequests())
	c.closeWork()
	return c.finish(err)
}

// cause prefers the reason that somebody gave for ending the connection to the error it led to.
func (c *conn) cause(err error) error {
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	if c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return errDrained
	}
	return err
}

// finish waits for the requests in flight, tells the export, and closes the connection. After a clean end the
// requests may complete; after any other they are cancelled.
func (c *conn) finish(err error) error {
	if errors.Is(err, errDisconnect) || errors.Is(err, errDrained) {
		patience := time.AfterFunc(c.srv.cfg.DrainTimeout, func() { c.end(err) })
		c.running.Wait()
		patience.Stop()
		_ = c.nc.Close() // says goodbye on TLS
	}
	c.end(err)
	c.running.Wait()

	c.mu.Lock()
	unanswered := c.unanswered
	c.mu.Unlock()
	if cerr := c.export.Close(unanswered > 0); cerr != nil {
		c.srv.cfg.Logger.Warn("close NBD export", "export", c.info.Name, "connection", c.id, "error", cerr)
	}
	c.srv.metrics.requestsNow.Sub(float64(unanswered))
	return err
}

// checkUp is what check does, again and again until the connection has ended: it ends the connection when its client stalls in the
// middle of a transfer, and lets go of workers that an idle connection does not need.
func (c *conn) checkUp() {
	timeout := c.srv.cfg.StallTimeout
	limit := c.in.Now() - int64(timeout)
	for _, since := range []int64{c.in.StalledSince(), c.writeSince.Load()} {
		if since != 0 && since <= limit {
			c.end(errStalled)
		}
	}
	if now := c.served.Load(); now != c.seen {
		c.seen = now
	} else {
		c.dismissIdle()
	}
	if c.ctx.Err() == nil {
		c.check.Reset(timeout / 4)
	}
}

// readRequests reads, checks and dispatches requests until the connection ends.
func (c *conn) readRequests() error {
	for !c.draining.Load() {
		b, err := c.in.Next(c.features.RequestBytes())
		if err != nil {
			return err
		}
		h := wire.DecodeRequest(b, c.features.Extended)
		if h.Magic != c.features.RequestMagic() {
			return c.violation("wrong magic %#x of a request", h.Magic)
		}
		if h.Cmd == wire.CmdDisc {
			return errDisconnect
		}
		r, err := c.accept(h)
		if err != nil {
			return err
		}
		c.begin(r)
		c.dispatch(r)
	}
	return errDrained
}

func (c *conn) violation(format string, args ...any) error {
	return storage.E("serve", storage.KindInvalid, "NBD connection", fmt.Errorf(format, args...))
}

// bounds is what requests are checked against now.
func (c *conn) bounds() bounds {
	return bounds{sizeBytes: c.sizeBytes.Load(), info: &c.info, features: c.features}
}

// boundsFor is bounds, for a range that may be part of what the export has grown by.
func (c *conn) boundsFor(offset, length uint64) bounds {
	b := c.bounds()
	if b.behindEnd(offset, length) {
		c.sizeBytes.Store(c.export.Info().SizeBytes)
		b.sizeBytes = c.sizeBytes.Load()
	}
	return b
}

// accept checks a request, waits for room, and reads its payload. An error ends the connection; a request that
// must not be executed is returned with its refusal, its payload skipped.
func (c *conn) accept(h wire.RequestHeader) (*request, error) {
	payload := payloadBytes(h, c.features.Extended)
	if payload > discardLimitBytes {
		return nil, c.violation("a payload of %d bytes", payload)
	}
	b := c.boundsFor(h.Offset, h.Length)
	r := c.srv.newRequest(h)
	r.refused = b.check(h)

	var size int // of the buffer
	if r.refused == nil && (h.Cmd == wire.CmdRead || h.Cmd == wire.CmdWrite) {
		size = int(h.Length)
	}
	if err := c.admit(r, size); err != nil {
		return nil, err
	}
	if err := c.readPayload(r, b, payload); err != nil {
		c.giveBack(r)
		return nil, err
	}
	return r, nil
}

// admit waits for room and lends the buffer.
func (c *conn) admit(r *request, size int) error {
	weight := c.minWeight
	if size > 0 {
		weight = max(weight, bufferWeight(size))
	}
	if err := c.acquire(c.room, weight); err != nil {
		return err
	}
	r.connWeight = weight
	if size == 0 {
		return nil
	}
	weight = bufferWeight(size)
	if err := c.acquire(c.share, weight); err != nil {
		c.giveBack(r)
		return err
	}
	r.serverWeight = weight
	c.srv.metrics.bytesNow.Add(float64(weight))
	r.buf = c.srv.buffers.get(size)
	return nil
}

// hangUpEvery is how often a connection that is not read from is asked whether its client is still there.
const hangUpEvery = 20 * time.Millisecond

// room is what a request takes part of: what its connection may have in flight, or all connections.
type room interface {
	TryAcquire(n int64) bool
	Acquire(ctx context.Context, n int64) error
	Release(n int64)
}

// acquire waits for room. Nobody reads from the socket meanwhile, and what is in flight, for whose end it waits, may take
// as long as a group has no leader; so it looks whether the client has hung up.
func (c *conn) acquire(room room, weight int64) error {
	if room.TryAcquire(weight) {
		return nil
	}
	// Guards I3: what a client sends on its next connection is ordered after what it has left on this one only from
	// when it is known here that it has left it.
	c.waiting.Store(true)
	c.look.Reset(hangUpEvery)
	err := room.Acquire(c.ctx, weight)
	c.waiting.Store(false)
	c.look.Stop()
	return err
}

// lookForClient is what look does.
func (c *conn) lookForClient() {
	switch {
	case !c.waiting.Load():
	case hungUp(c.raw):
		c.end(io.EOF)
	default:
		c.look.Reset(hangUpEvery)
	}
}

// giveBack returns what admit took, and the request itself.
func (c *conn) giveBack(r *request) {
	c.srv.buffers.put(r.buf)
	if r.serverWeight > 0 {
		c.share.Release(r.serverWeight)
		c.srv.metrics.bytesNow.Sub(float64(r.serverWeight))
	}
	c.room.Release(r.connWeight)
	c.srv.freeRequest(r)
}

func (c *conn) readPayload(r *request, b bounds, payload uint64) error {
	switch {
	case payload == 0:
		return nil
	case r.refused != nil:
		return c.in.Discard(payload)
	case r.Cmd == wire.CmdWrite:
		return c.in.Full(r.buf.b)
	default: // check lets only BLOCK_STATUS through
		return c.readStatusPayload(r, b, payload)
	}
}

// readStatusPayload reads which contexts a BLOCK_STATUS is about: 64 bits of length, then 32 bits per context.
func (c *conn) readStatusPayload(r *request, b bounds, payload uint64) error {
	if payload < 8 || payload%4 != 0 || payload > uint64(8+4*len(b.features.Contexts)) {
		r.refused = refuse(wire.ErrnoInvalid, "bad list of metadata contexts")
		return c.in.Discard(payload)
	}
	raw, err := c.in.Next(int(payload))
	if err != nil {
		return wire.NoEOF(err)
	}
	r.Length = binary.BigEndian.Uint64(raw)
	r.ids = make([]uint32, 0, len(b.features.Contexts))
	for raw = raw[8:]; len(raw) > 0; raw = raw[4:] {
		id := binary.BigEndian.Uint32(raw)
		if id == 0 || id > uint32(len(b.features.Contexts)) || slices.Contains(r.ids, id) {
			r.refused = refuse(wire.ErrnoInvalid, "unknown or repeated metadata context")
			return nil
		}
		r.ids = append(r.ids, id)
	}
	if r.Length == 0 || len(r.ids) == 0 {
		r.refused = refuse(wire.ErrnoInvalid, "a status of nothing")
		return nil
	}
	b = c.boundsFor(r.Offset, r.Length)
	r.refused = b.checkRange(r.Cmd, r.Offset, r.Length)
	return nil
}

// begin counts a request that has been read completely.
func (c *conn) begin(r *request) {
	r.start = time.Now()
	c.running.Add(1)
	c.served.Add(1)
	c.srv.metrics.requestsNow.Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unanswered++
	if r.refused != nil {
		return
	}
	switch {
	case mutates(r.Cmd):
		c.barrier.left++
		r.barrier = c.barrier
	case r.Cmd == wire.CmdFlush && c.barrier.left > 0:
		sealed := c.barrier
		c.barrier = sealed.seal()
		r.after = sealed.done
	}
}

// dispatch hands a request to an idle worker or a new one. Requests in flight are bounded by room, so are workers.
func (c *conn) dispatch(r *request) {
	select {
	case c.work <- r:
	default:
		c.running.Add(1)
		go c.worker(r)
	}
}

// worker serves r and then what it is handed, until the connection ends or it is superfluous.
func (c *conn) worker(r *request) {
	defer c.running.Done()
	for r != nil {
		c.serve(r)
		if c.idle.Add(1) > maxIdleWorkers {
			c.idle.Add(-1)
			return
		}
		r = <-c.work
		c.idle.Add(-1)
	}
}

// closeWork ends the workers once they have nothing to do. The reader has dispatched its last request.
func (c *conn) closeWork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workClosed = true
	close(c.work)
}

// dismissIdle ends the workers that wait for work now.
func (c *conn) dismissIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range maxIdleWorkers {
		if c.workClosed {
			return
		}
		select {
		case c.work <- nil:
		default:
			return
		}
	}
}

// barrier counts the mutations between two flushes. Guarded by conn.mu.
type barrier struct {
	left int           // mutations that have not returned, plus one while the barrier before is not done
	next *barrier      // set when sealed
	done chan struct{} // set when sealed; closed when left reaches 0
}

// seal ends the barrier's counting and returns the one that follows.
func (b *barrier) seal() *barrier {
	b.next = &barrier{left: 1}
	b.done = make(chan struct{})
	return b.next
}

// leave counts a mutation as returned.
func (b *barrier) leave() {
	for ; b != nil; b = b.next {
		if b.left--; b.left > 0 || b.done == nil {
			return
		}
		close(b.done)
	}
}
