package peer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
)

// Request is what a caller asks of a peer. Header is copied before Call or Go returns. Payload, and the bytes its
// slices point at, must not be modified until the request ended.
type Request struct {
	Method  Method
	Group   storage.GroupID
	Header  []byte   // at most MaxHeaderBytes
	Payload [][]byte // at most MaxPayloadBytes together; written by reference, one after another
	// OwnSums says that the payload carries checksums of its own, which the method's handler verifies (and answers with
	// Inbound.ReplyDamaged). Any other payload gets one on the wire: it takes one pass over the payload on each side.
	OwnSums bool
	// SumsInAnswer says that the answer's payload carries checksums of its own, which the caller verifies (Terms.SumsInAnswers). One
	// without them on the wire is refused as damaged otherwise.
	SumsInAnswer bool
	// ReplyBytes is how large the answer's payload may become. It counts as in flight, so that a peer is not asked
	// for more than it may keep for us (its MaxReplyBytes). 0: small.
	ReplyBytes int
}

// Response is a peer's answer. It is valid until Release.
type Response struct {
	Header  []byte
	Payload []byte
	buf     *buffer
}

// Release gives the response's memory back; neither it nor its bytes may be used afterwards. To be called at most
// once; a response that is never released is garbage collected, as is one that was not received (in tests).
func (r *Response) Release() {
	if r.buf != nil {
		r.buf.release()
	}
}

func newResponse(buf *buffer, headerBytes int) *Response {
	r := &buf.response
	r.Header = buf.data[:headerBytes:headerBytes]
	r.Payload = buf.data[headerBytes:]
	r.buf = buf
	return r
}

// call is a request that has not ended.
type call struct {
	id     uint64
	size   int64
	budget *budget
	done   func(*Response, error) // of Go; nil: of Call
	ended  chan struct{}          // of Call; capacity 1, gets one token when resp and err are set
	resp   *Response
	err    error
	frame  *outFrame // until it is written; guarded by conn.mu
	sent   bool      // set by conn.drop
	sums   bool      // Request.SumsInAnswer; set before it is posted
}

// finish ends a call. Nobody else refers to it any more, but the caller that waits for ended.
func (t *Transport) finish(cl *call, resp *Response, err error) {
	cl.budget.release(cl.size)
	if cl.done == nil {
		cl.resp, cl.err = resp, err
		cl.ended <- struct{}{}
		return
	}
	done := cl.done
	t.recycleCall(cl)
	done(resp, err)
}

func (t *Transport) newCall(size int64, b *budget, done func(*Response, error)) *call {
	cl, _ := t.calls.Get().(*call)
	if cl == nil {
		cl = &call{ended: make(chan struct{}, 1)}
	}
	cl.id, cl.size, cl.budget, cl.done = t.nextID.Add(1), size, b, done
	return cl
}

// forget ends a call that nobody answers and that is not outstanding.
func (t *Transport) forget(cl *call) {
	cl.budget.release(cl.size)
	t.recycleCall(cl)
}

func (t *Transport) recycleCall(cl *call) {
	*cl = call{ended: cl.ended}
	t.calls.Put(cl)
}

// budget bounds the requests in flight to one peer on one lane.
type budget struct {
	maxBytes int64
	maxCount int

	mu      sync.Mutex // guards what follows
	bytes   int64      // <= maxBytes, or of a single request
	count   int        // <= maxCount
	waiting []*budgetWaiter
}

type budgetWaiter struct {
	size  int64
	admit chan struct{} // closed by release when admitted
}

func (b *budget) admitLocked(size int64) bool {
	if b.count > 0 && (b.bytes+size > b.maxBytes || b.count >= b.maxCount) {
		return false
	}
	b.bytes += size
	b.count++
	return true
}

// try admits a request now or not at all.
func (b *budget) try(size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) == 0 && b.admitLocked(size)
}

// wait admits a request after those that waited before it.
func (b *budget) wait(ctx context.Context, size int64) error {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.admitLocked(size) {
		b.mu.Unlock()
		return nil
	}
	w := &budgetWaiter{size: size, admit: make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	select {
	case <-w.admit:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, w); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
		b.wakeLocked() // the next may be smaller
	} else {
		b.releaseLocked(size) // it was admitted meanwhile
	}
	return context.Cause(ctx)
}

func (b *budget) release(size int64) {
	b.mu.Lock()
	b.releaseLocked(size)
	b.mu.Unlock()
}

func (b *budget) releaseLocked(size int64) {
	b.bytes -= size
	b.count--
	b.wakeLocked()
}

func (b *budget) wakeLocked() {
	for len(b.waiting) > 0 && b.admitLocked(b.waiting[0].size) {
		close(b.waiting[0].admit)
		b.waiting[0] = nil
		b.waiting = b.waiting[1:]
	}
}

// outPeer is a node we send requests to.
type outPeer struct {
	t       *Transport
	node    storage.NodeID
	budgets [laneCount]budget
	set     atomic.Pointer[connSet] // nil or the complete, running set; changed under mu

	mu         sync.Mutex    // guards what follows
	connecting chan struct{} // not nil during an attempt, closed by connect at its end
	failures   int           // attempts failed in a row
	retryAt    time.Time     // no attempt before
	lastErr    error         // why the last attempt failed
}

func (t *Transport) newOutPeer(node storage.NodeID) *outPeer {
	p := &outPeer{t: t, node: node}
	for i := range p.budgets {
		p.budgets[i].maxBytes, p.budgets[i].maxCount = t.cfg.MaxInFlightBytes, t.cfg.MaxInFlight
	}
	return p
}

// connect starts an attempt to connect unless one is under way or it is too early for one. It returns the channel
// that is closed when the attempt ended, or why there is none.
func (p *outPeer) connect() (attempt <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.connecting != nil {
		return p.connecting, nil
	}
	if p.t.silent() {
		return nil, errSecond
	}
	if wait := time.Until(p.retryAt); wait > 0 {
		return nil, fmt.Errorf("no attempt to connect for %v: %w", wait.Round(time.Millisecond), p.lastErr)
	}
	ended := make(chan struct{})
	if !p.t.start(func() { p.attempt(ended) }) {
		return nil, errTransportClosed
	}
	p.connecting = ended
	return ended, nil
}

// connected returns the peer's running set, connecting first if there is none. A failed attempt is not repeated. The
// error is one of Call's.
func (p *outPeer) connected(ctx context.Context) (*connSet, error) {
	if s := p.set.Load(); s != nil {
		return s, nil
	}
	attempt, err := p.connect()
	if err != nil {
		return nil, sendError(p.node, false, err)
	}
	select {
	case <-attempt:
	case <-ctx.Done():
		return nil, canceledError(ctx, p.node, false)
	}
	if s := p.set.Load(); s != nil {
		return s, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lastErr == nil {
		return nil, sendError(p.node, false, errors.New("the connection ended at once"))
	}
	return nil, sendError(p.node, false, p.lastErr)
}

// attempt connects once and, if that succeeds, runs the set to its end.
func (p *outPeer) attempt(ended chan struct{}) {
	s, err := p.dialSet()
	p.mu.Lock()
	p.connecting, p.lastErr = nil, err
	if err == nil {
		p.failures = 0
		p.set.Store(s)
	} else {
		p.failures++
		p.retryAt = time.Now().Add(p.backoff())
	}
	failures := p.failures
	p.mu.Unlock()
	close(ended)
	if err != nil {
		if failures == 1 && p.t.ctx.Err() == nil {
			p.t.cfg.Logger.Warn("peer not reached", "node", p.node, "error", err)
		}
		p.t.metrics.dialFailures.Add(1)
		return
	}
	p.t.cfg.Logger.Info("peer connected", "node", p.node, "addr", s.addr)
	p.t.metrics.connected.Add(1)
	s.run()
	p.mu.Lock()
	p.set.CompareAndSwap(s, nil)
	p.mu.Unlock()
	p.t.metrics.connected.Add(-1)
	if p.t.ctx.Err() == nil {
		p.t.metrics.lost.Add(1)
		p.t.cfg.Logger.Warn("peer lost", "node", p.node, "addr", s.addr, "error", context.Cause(s.ctx))
	}
	s.dropCalls()
}

// backoff returns the pause after p.failures failures.
func (p *outPeer) backoff() time.Duration {
	d := p.t.cfg.BackoffMin << min(p.failures-1, 20)
	if d > p.t.cfg.BackoffMax || d <= 0 {
		d = p.t.cfg.BackoffMax
	}
	return d - time.Duration(p.t.cfg.Random()%uint64(d/2+1))
}

// dialSet opens and greets on every lane of a new set.
func (p *outPeer) dialSet() (*connSet, error) {
	p.mu.Lock()
	failures := p.failures
	p.mu.Unlock()
	addr, ok := p.t.address(p.node, failures)
	if !ok {
		return nil, errors.New("the node's address is not known")
	}
	ctx, cancel := context.WithTimeout(p.t.ctx, p.t.cfg.DialTimeout)
	defer cancel()
	s := p.t.newSet(p.node, addr, p.t.cfg.Random(), true, false)
	for lane := Lane(0); lane < laneCount; lane++ {
		err := s.t.dialLane(ctx, s, lane)
		if err == nil {
			continue
		}
		s.fail(err)
		s.run() // closes what was opened
		return nil, err
	}
	s.lastHeard.Store(p.t.now())
	return s, nil
}

// send posts a request on the set; on an error the call is not outstanding and cl may be used again.
func (s *connSet) send(lane Lane, req *Request, cl *call) error {
	f := s.t.frame()
	cl.sums = req.SumsInAnswer
	f.encode(frameHeader{kind: kindRequest, method: req.Method, group: req.Group, id: cl.id, ownSums: req.OwnSums}, req.Header, req.Payload)
	err := s.conns[lane].post(f, cl, true)
	if err != nil {
		s.t.recycle(f)
		return fmt.Errorf("%w: %w", err, context.Cause(s.ctx))
	}
	return nil
}

// await waits for a call posted on c. It returns with ctx's error only when no byte of the request is referenced
// any more.
func (c *conn) await(ctx context.Context, cl *call) (*Response, error) {
	select {
	case <-cl.ended:
	case <-ctx.Done():
		if abandoned, sent := c.abandon(cl); abandoned {
			c.set.t.forget(cl)
			return nil, canceledError(ctx, c.set.node, sent)
		}
		<-cl.ended // it ended meanwhile
	}
	resp, err := cl.resp, cl.err
	c.set.t.recycleCall(cl)
	return resp, err
}

// abandon gives a call up, unless it is ending. A frame that is just being written is waited for.
func (c *conn) abandon(cl *call) (abandoned, sent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.pending[cl.id] == cl {
		f := cl.frame
		switch {
		case f == nil:
			delete(c.pending, cl.id)
			return true, true
		case f.state == frameQueued:
			delete(c.pending, cl.id)
			c.queuedBytes.Add(-f.size)
			f.state, f.call, f.payload, f.size = frameDead, nil, nil, 0
			cl.frame = nil
			return true, false
		}
		c.waiters++
		c.changed.Wait()
		c.waiters--
	}
	return false, false
}

// skipUnawaitedBytes is the size from which an answer is read only after a look whether someone still awaits it.
const skipUnawaitedBytes = 32 << 10

// readAnswers reads the answers on a dialled connection until it fails.
func (c *conn) readAnswers() error {
	for {
		h, err := c.readHeader()
		if err != nil {
			return err
		}
		c.set.heard(c.lane)
		switch h.kind {
		case kindPong:
			c.set.pinging.Store(false)
			continue
		case kindResponse, kindError:
		default:
			return fmt.Errorf("frame of kind %d from the side that answers", h.kind)
		}
		if h.headerBytes+h.payloadBytes > skipUnawaitedBytes && !c.awaited(h.id) {
			if err := c.skipBody(h); err != nil {
				return err
			}
			continue
		}
		buf, err := c.readBody(h, h.headerBytes+h.payloadBytes)
		if err != nil {
			return err
		}
		if err := h.verifyPayload(buf.data[h.headerBytes:]); err != nil || h.ownSums && h.payloadBytes > 0 && !c.sumsIn(h.id) {
			if err == nil {
				err = errNoPayloadCRC
			}
			c.set.damagedFrame(c.lane, h.method, err)
			h.damage = err
		}
		if err := c.answer(h, buf); err != nil {
			return err
		}
	}
}

func (c *conn) awaited(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[id] != nil
}

// sumsIn reports whether the answer to a request may come without a checksum on the wire. Nobody reads one that is not awaited.
func (c *conn) sumsIn(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.pending[id]
	return cl == nil || cl.sums
}

// answer ends the call that buf answers, if it is still outstanding.
func (c *conn) answer(h frameHeader, buf *buffer) error {
	c.mu.Lock()
	cl := c.pending[h.id]
	if cl != nil {
		if f := cl.frame; f != nil {
			if f.state == frameQueued {
				c.mu.Unlock()
				buf.release()
				return fmt.Errorf("an answer to request %d, which was not sent", h.id)
			}
			f.call, cl.frame = nil, nil
		}
		delete(c.pending, h.id)
	}
	c.mu.Unlock()
	switch {
	case cl == nil:
		buf.release()
	case h.damage != nil:
		buf.release()
		c.set.t.finish(cl, nil, sendError(c.set.node, true, h.damage))
	case h.kind == kindError:
		err := parseError(c.set.node, buf.data)
		buf.release()
		c.set.t.finish(cl, nil, err)
	default:
		c.set.t.finish(cl, newResponse(buf, h.headerBytes), nil)
	}
	return nil
}
