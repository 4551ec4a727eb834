package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
)

// Inbound is a request that arrived. Its handler answers it exactly once, then or later, from any goroutine, with
// Reply, ReplyThen or ReplyError; a second answer panics.
//
// Header and Payload are valid until the handler returns. Retain prolongs that until a Release for each Retain;
// TakePayload makes both the handler's own for ever. A payload that was received as Terms.Layout wanted it is not in
// Payload, unless it is one part: see TakeParts.
type Inbound struct {
	From     storage.NodeID // 0: a node without an id, or a client
	Client   bool           // the sender is a gateway outside of the nodes
	Lane     Lane
	Method   Method
	Group    storage.GroupID
	Header   []byte
	Payload  []byte
	OwnSums  bool      // the payload carries checksums of its own, which nobody has looked at yet; see Request.OwnSums
	Received time.Time // when its first bytes were read

	parts    [][]byte // the payload, where Terms.Layout wanted it; nil: in Payload
	conn     *conn    // nil: a request of this node to itself
	usage    *inLane
	handler  *handler
	id       uint64
	buf      *buffer
	size     int64
	answered atomic.Bool
}

// RemoteAddr returns the address that the request came from, without a port, for people; empty for this node's own.
func (in *Inbound) RemoteAddr() string {
	if in.conn == nil || in.conn.nc == nil || in.conn.nc.RemoteAddr() == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(in.conn.nc.RemoteAddr().String())
	if err != nil {
		return ""
	}
	return host
}

// Protocol returns the version of the peer protocol that the sender and this node speak with each other.
func (in *Inbound) Protocol() uint16 {
	if in.conn == nil {
		return in.handler.t.cfg.speaks.max
	}
	return in.conn.protocol
}

// Retain keeps Header and Payload valid until a matching Release.
func (in *Inbound) Retain() { in.buf.retain() }

// Release ends what one Retain began.
func (in *Inbound) Release() { in.buf.release() }

// TakePayload returns Payload and leaves it, and Header, to the caller for as long as it refers to them: they are
// not recycled. The memory behind them is at most a quarter larger than both. To be called before the handler
// returns or while retained.
func (in *Inbound) TakePayload() []byte {
	if in.parts == nil { // else the payload is not in the buffer
		in.buf.taken.Store(true)
	}
	return in.Payload
}

// TakeParts returns the payload in the parts that Terms.Layout gave, or else in one, none if it is empty. Like TakePayload it
// leaves them to the caller. To be called before the handler returns or while retained.
func (in *Inbound) TakeParts() [][]byte {
	switch {
	case in.parts != nil:
		return in.parts
	case len(in.Payload) == 0:
		return nil
	}
	return [][]byte{in.TakePayload()}
}

// Context is done when an answer can reach the sender no more, because its connections died or the Transport closes.
// Handlers that wait should then return.
func (in *Inbound) Context() context.Context {
	if in.conn == nil {
		return in.handler.t.ctx
	}
	return in.conn.set.ctx
}

// Reply answers the request. header is copied. payload and its bytes must not be modified any more. To learn when they may be, use
// ReplyThen. Use it also to answer with bytes of the request: Retain first, Release when written. It never blocks on the network.
// After the sender's connections died it does nothing.
func (in *Inbound) Reply(header []byte, payload [][]byte) { in.ReplyThen(header, payload, nil) }

// ReplyThen is Reply that calls written, exactly once and possibly before it returns, when the payload is not
// referenced any more, whether it reached the sender or not. written must not block.
func (in *Inbound) ReplyThen(header []byte, payload [][]byte, written func()) {
	if _, err := checkSize("reply", header, payload); err != nil {
		if written != nil {
			written()
		}
		in.ReplyError(storage.E("reply", storage.KindInternal, "", err))
		return
	}
	in.answer(kindResponse, header, payload, written)
}

// Answer is ReplyError if there is an error, otherwise Reply with the payload in one piece.
func (in *Inbound) Answer(header, payload []byte, err error) {
	if err != nil {
		in.ReplyError(err)
		return
	}
	in.Reply(header, [][]byte{payload})
}

// ReplyError answers with an error: it reaches the caller as a *storage.Error of the same kind, operation, subject
// and text (with *RemoteError as its cause). An err that is no storage.Error becomes one of storage.KindOf(err).
func (in *Inbound) ReplyError(err error) { in.answer(kindError, appendError(nil, err), nil, nil) }

// ReplyDamaged is ReplyError for a request whose payload does not have the checksums that it carries (Request.OwnSums):
// it is counted and logged with the sender's name, and when that continues the sender's connections are cut.
func (in *Inbound) ReplyDamaged(err error) {
	if in.conn != nil {
		in.conn.set.damagedFrame(in.Lane, in.Method, err)
	}
	in.ReplyError(err)
}

func (in *Inbound) answer(kind frameKind, header []byte, payload [][]byte, written func()) {
	if in.answered.Swap(true) {
		panic(fmt.Sprintf("peer: a request of method %d of node %v was answered twice", in.Method, in.From))
	}
	last := in.usage.unanswered.Add(-1) == 0
	if in.conn == nil {
		in.handler.t.answerLocal(in.id, kind, header, payload)
		if written != nil {
			written()
		}
		return
	}
	in.conn.reply(frameHeader{kind: kind, method: in.Method, group: in.Group, id: in.id, ownSums: in.handler.SumsInAnswers},
		header, payload, written, last)
}

// reply posts an answer. With eager it is written on this goroutine if possible.
func (c *conn) reply(h frameHeader, header []byte, payload [][]byte, written func(), eager bool) {
	f := c.set.t.frame()
	f.encode(h, header, payload)
	f.written = written
	if err := c.post(f, nil, eager); err != nil {
		c.set.t.recycle(f) // the sender is gone and knows it
	}
}

// handler is a registered method.
type handler struct {
	Terms
	t  *Transport
	fn func(*Inbound)
}

// inPeer is a node that sends us requests; it outlives its connections while their requests are being handled.
type inPeer struct {
	node  storage.NodeID
	lanes [laneCount]inLane

	mu     sync.Mutex // guards what follows
	groups map[storage.GroupID]*groupQueue
}

// inLane bounds what one peer occupies here by one lane.
type inLane struct {
	bytes      atomic.Int64 // of requests whose handlers have not returned
	unanswered atomic.Int64
}

// groupQueue holds the requests of one peer for one group in the order of arrival. It exists while a goroutine
// (runGroup) works on it.
type groupQueue struct {
	bytes   int64 // of waiting and of the requests being handled
	waiting []*Inbound
}

func newInPeer(node storage.NodeID) *inPeer {
	return &inPeer{node: node, groups: make(map[storage.GroupID]*groupQueue)}
}

// idle reports whether nothing of the peer's is left here.
func (p *inPeer) idle() bool {
	for i := range p.lanes {
		if p.lanes[i].bytes.Load() != 0 || p.lanes[i].unanswered.Load() != 0 {
			return false
		}
	}
	return true
}

// admit decides, before memory is given to a request, whether there is room for it.
func (p *inPeer) admit(cfg *Config, lane Lane, order Order, group storage.GroupID, size int64) error {
	l := &p.lanes[lane]
	if n := l.bytes.Load(); n > 0 && n+size > cfg.MaxInboundBytes {
		return errors.New("too many bytes of requests are being handled")
	}
	if l.unanswered.Load() >= int64(cfg.MaxUnanswered) {
		return errors.New("too many requests are unanswered")
	}
	if order == Ordered {
		p.mu.Lock()
		q := p.groups[group]
		full := q != nil && q.bytes > 0 && q.bytes+size > cfg.MaxGroupQueueBytes
		p.mu.Unlock()
		if full {
			return errors.New("the group's queue is full")
		}
	}
	return nil
}

// dispatch hands an admitted request to its handler. It is called by a goroutine that t.wg counts.
func (t *Transport) dispatch(p *inPeer, in *Inbound) {
	in.usage.bytes.Add(in.size)
	in.usage.unanswered.Add(1)
	if in.Client {
		t.clientBytes.Add(in.size)
	}
	if in.handler.Order == Concurrent {
		t.wg.Go(in.handle)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.groups[in.Group]
	if q == nil {
		q = &groupQueue{}
		t.wg.Go(func() { p.runGroup(in.Group, q) })
		p.groups[in.Group] = q
	}
	q.waiting = append(q.waiting, in)
	q.bytes += in.size
}

// runGroup handles the requests of a queue one after another until none is left.
func (p *inPeer) runGroup(group storage.GroupID, q *groupQueue) {
	var batch []*Inbound
	for {
		p.mu.Lock()
		batch, q.waiting = q.waiting, batch[:0]
		if len(batch) == 0 {
			delete(p.groups, group)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		for i, in := range batch {
			size := in.size
			in.handle()
			batch[i] = nil
			p.mu.Lock()
			q.bytes -= size
			p.mu.Unlock()
		}
	}
}

// handle runs the handler, unless nobody can hear the answer.
func (in *Inbound) handle() {
	if in.conn != nil && in.conn.set.ctx.Err() != nil {
		in.answered.Store(true)
		in.usage.unanswered.Add(-1)
	} else {
		in.handler.fn(in)
	}
	in.handledBytes()
}

func (in *Inbound) handledBytes() {
	in.usage.bytes.Add(-in.size)
	if in.Client {
		in.handler.t.clientBytes.Add(-in.size)
	}
	in.buf.release()
}

// readRequests reads the requests on an accepted connection until it fails.
func (c *conn) readRequests() error {
	t, s := c.set.t, c.set
	for {
		h, err := c.readHeader()
		if err != nil {
			return err
		}
		s.heard(c.lane)
		switch h.kind {
		case kindPing:
			// Answered on the control lane, which on any other one may not be there yet.
			if c.lane != Control {
				return fmt.Errorf("a ping on the %v lane", c.lane)
			}
			s.ping(kindPong)
			continue
		case kindRequest:
		default:
			return fmt.Errorf("frame of kind %d from the side that asks", h.kind)
		}
		hd, err := t.receivable(s, c.lane, h)
		if err != nil {
			t.metrics.refused.Add(1)
			if err := c.skipBody(h); err != nil {
				return err
			}
			c.reply(frameHeader{kind: kindError, method: h.method, group: h.group, id: h.id}, appendError(nil, err), nil, nil, false)
			c.awaitReplyRoom()
			continue
		}
		received := time.Now()
		body, err := c.readRequest(h, hd.Layout)
		if err != nil {
			return err
		}
		if err := h.verifyPayload(body.pieces()...); err != nil {
			body.buf.release()
			s.damagedFrame(c.lane, h.method, err)
			c.reply(frameHeader{kind: kindError, method: h.method, group: h.group, id: h.id}, appendError(nil, storage.E("call",
				storage.KindUnavailable, "node "+t.cfg.Self.String(), err)), nil, nil, false)
			c.awaitReplyRoom()
			continue
		}
		t.dispatch(s.in, &Inbound{
			From: s.node, Client: s.client, Lane: c.lane, Method: h.method, Group: h.group,
			Header: body.header, Payload: body.payload, parts: body.parts, Received: received,
			OwnSums: h.ownSums, conn: c, usage: &s.in.lanes[c.lane], handler: hd, id: h.id, buf: body.buf,
			size: int64(h.headerBytes+h.payloadBytes) + frameHeaderBytes,
		})
		c.awaitReplyRoom()
	}
}

// requestBody is what follows the fixed header of a request.
type requestBody struct {
	buf     *buffer // with one reference: the header, and the payload unless there are parts
	header  []byte
	payload []byte   // all of it in one piece; nil if there are several parts
	parts   [][]byte // of the handler's memory; nil: the payload is in buf
}

// pieces returns the payload.
func (b *requestBody) pieces() [][]byte {
	if b.parts != nil {
		return b.parts
	}
	return [][]byte{b.payload}
}

// readRequest reads the header and payload that follow h, the payload where the layout wants it.
func (c *conn) readRequest(h frameHeader, layout Layout) (requestBody, error) {
	if layout == nil || h.payloadBytes < layoutBytes {
		buf, err := c.readBody(h, h.headerBytes+h.payloadBytes)
		if err != nil {
			return requestBody{}, err
		}
		return requestBody{buf: buf, header: buf.data[:h.headerBytes:h.headerBytes], payload: buf.data[h.headerBytes:]}, nil
	}
	buf, err := c.readBody(h, h.headerBytes)
	if err != nil {
		return requestBody{}, err
	}
	parts, n := layout(buf.data, h.payloadBytes), 0
	for _, p := range parts {
		n += len(p)
	}
	if n != h.payloadBytes {
		parts = [][]byte{make([]byte, h.payloadBytes)}
	}
	for _, p := range parts {
		if _, err := io.ReadFull(c.br, p); err != nil {
			buf.release()
			return requestBody{}, err
		}
	}
	body := requestBody{buf: buf, header: buf.data, parts: parts}
	if len(parts) == 1 {
		body.payload = parts[0]
	}
	return body, nil
}

// receivable returns the handler of a request, or why it is refused.
func (t *Transport) receivable(s *connSet, lane Lane, h frameHeader) (*handler, error) {
	hd := t.handlers[h.method]
	switch {
	case hd == nil:
		return nil, storage.E("call", storage.KindUnsupported, "node "+t.cfg.Self.String(),
			fmt.Errorf("method %d is not known here", h.method))
	case s.client && hd.From&Gateways == 0:
		return nil, storage.E("call", storage.KindPermission, "node "+t.cfg.Self.String(),
			fmt.Errorf("method %d is not for gateways", h.method))
	case s.node == 0 && !s.client && hd.From&Strangers == 0:
		return nil, storage.E("call", storage.KindPermission, "node "+t.cfg.Self.String(),
			fmt.Errorf("method %d is for members of the cluster only", h.method))
	}
	if h.ownSums && h.payloadBytes > 0 && !hd.SumsInRequests {
		return nil, storage.E("call", storage.KindInvalid, "node "+t.cfg.Self.String(), fmt.Errorf("a payload of method %d without a checksum", h.method))
	}
	size := int64(h.headerBytes+h.payloadBytes) + frameHeaderBytes
	if n := t.clientBytes.Load(); s.client && n > 0 && n+size > t.cfg.MaxClientInboundBytes {
		return nil, storage.E("call", storage.KindUnavailable, "node "+t.cfg.Self.String(),
			errors.New("too many bytes of gateways' requests are being handled"))
	}
	if err := s.in.admit(&t.cfg, lane, hd.Order, h.group, size); err != nil {
		return nil, storage.E("call", storage.KindUnavailable, "node "+t.cfg.Self.String(), err)
	}
	return hd, nil
}
