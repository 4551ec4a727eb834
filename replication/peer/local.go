package peer

import (
	"context"
	"errors"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
)

// localCalls are the requests of this node to itself. They pass the same limits and handlers as any other, without
// a socket; bytes are copied, so that the rules of who owns them are the same too.
type localCalls struct {
	mu      sync.Mutex // guards what follows
	pending map[uint64]*call
	closed  bool
}

func (l *localCalls) add(cl *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.pending[cl.id] = cl
	return true
}

// take removes a call; nil if it has ended.
func (l *localCalls) take(id uint64) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	cl := l.pending[id]
	delete(l.pending, id)
	return cl
}

// drop fails what is left when the transport has closed.
func (l *localCalls) drop(t *Transport) {
	l.mu.Lock()
	l.closed = true
	left := make([]*call, 0, len(l.pending))
	for _, cl := range l.pending {
		left = append(left, cl)
	}
	clear(l.pending)
	l.mu.Unlock()
	for _, cl := range left {
		t.finish(cl, nil, sendError(t.cfg.Self, true, errTransportClosed))
	}
}

func (t *Transport) callLocal(ctx context.Context, lane Lane, req *Request, size int64) (*Response, error) {
	b, charge := &t.self.budgets[lane], size+int64(req.ReplyBytes)
	if err := b.wait(ctx, charge); err != nil {
		return nil, canceledError(ctx, t.cfg.Self, false)
	}
	cl := t.newCall(charge, b, nil)
	id := cl.id
	if err := t.sendLocal(lane, req, size, cl); err != nil {
		t.forget(cl)
		return nil, err
	}
	var gaveUp error
	select {
	case <-cl.ended:
	case <-ctx.Done():
		gaveUp = canceledError(ctx, t.cfg.Self, true)
	case <-t.ctx.Done():
		gaveUp = sendError(t.cfg.Self, true, errTransportClosed)
	}
	if gaveUp != nil {
		if t.local.take(id) == cl {
			t.forget(cl)
			return nil, gaveUp
		}
		<-cl.ended
	}
	resp, err := cl.resp, cl.err
	t.recycleCall(cl)
	return resp, err
}

func (t *Transport) goLocal(lane Lane, req *Request, size int64, done func(*Response, error)) error {
	b, charge := &t.self.budgets[lane], size+int64(req.ReplyBytes)
	if !b.try(charge) {
		return sendError(t.cfg.Self, false, errInFlight)
	}
	cl := t.newCall(charge, b, done)
	err := t.sendLocal(lane, req, size, cl)
	if err != nil {
		t.forget(cl)
	}
	return err
}

// sendLocal copies a request and dispatches it; on an error the call is not outstanding.
func (t *Transport) sendLocal(lane Lane, req *Request, size int64, cl *call) error {
	self := "node " + t.cfg.Self.String()
	hd := t.handlers[req.Method]
	if hd == nil {
		return storage.E("call", storage.KindUnsupported, self, errors.New("the method is not known here"))
	}
	if err := t.selfIn.admit(&t.cfg, lane, hd.Order, req.Group, size); err != nil {
		return sendError(t.cfg.Self, false, err)
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.wg.Add(1) // so that dispatch may add to it
	}
	t.mu.Unlock()
	if closed || !t.local.add(cl) {
		if !closed {
			t.wg.Done()
		}
		return sendError(t.cfg.Self, false, errTransportClosed)
	}
	defer t.wg.Done()
	buf, n := t.buffers.copyOf(req.Header, req.Payload), len(req.Header)
	t.dispatch(t.selfIn, &Inbound{From: t.cfg.Self, Lane: lane, Method: req.Method, Group: req.Group,
		Header: buf.data[:n:n], Payload: buf.data[n:], OwnSums: req.OwnSums, Received: time.Now(),
		usage: &t.selfIn.lanes[lane], handler: hd, id: cl.id, buf: buf, size: size})
	return nil
}

// answerLocal ends a call of this node to itself, unless it has ended.
func (t *Transport) answerLocal(id uint64, kind frameKind, header []byte, payload [][]byte) {
	cl := t.local.take(id)
	if cl == nil {
		return
	}
	if kind == kindError {
		t.finish(cl, nil, parseError(t.cfg.Self, header))
		return
	}
	t.finish(cl, newResponse(t.buffers.copyOf(header, payload), len(header)), nil)
}
