package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

var errSilent = errors.New("nothing was heard from the peer")

// connSet is the set of connections between two nodes, one a lane (or a single one for a lone call), all made by the
// same side. It is owned by the goroutine in run: fail only tells it to end.
type connSet struct {
	t       *Transport
	node    storage.NodeID // the other side; 0: a node without an id
	addr    string
	nonce   uint64
	dialled bool    // we send the requests, the other side answers
	lone    bool    // consists of the control lane only
	client  bool    // of an accepted set: the other side is a gateway outside of the nodes
	in      *inPeer // of an accepted set

	ctx  context.Context // done when the set failed; context.Cause says why
	fail context.CancelCauseFunc

	lastHeard atomic.Int64 // Transport.now() when something arrived on the control lane, or a lane was opened
	pinging   atomic.Bool  // a ping is not answered yet

	wg sync.WaitGroup // the goroutines of conns
	mu sync.Mutex     // guards what follows
	// damaged counts the damaged frames since damagedSince; <= maxDamagedFrames
	damaged      int
	damagedSince time.Time
	conns        [laneCount]*conn
	ended        bool // no connection may be added any more
}

func (t *Transport) newSet(node storage.NodeID, addr string, nonce uint64, dialled, lone bool) *connSet {
	s := &connSet{t: t, node: node, addr: addr, nonce: nonce, dialled: dialled, lone: lone}
	s.ctx, s.fail = context.WithCancelCause(t.ctx)
	s.lastHeard.Store(t.now())
	return s
}

// add makes nc, whose ends have agreed on a version of the protocol, the set's connection of a lane and starts its goroutines;
// false if there is one already or the set has ended. release is called when the connection has ended.
func (s *connSet) add(lane Lane, nc net.Conn, protocol uint16, release func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.conns[lane] != nil {
		return false
	}
	c := newConn(s, lane, nc)
	c.protocol, c.release = protocol, release
	s.conns[lane] = c
	s.lastHeard.Store(s.t.now())
	s.wg.Go(c.writeLoop)
	s.wg.Go(func() {
		read := c.readRequests
		if s.dialled {
			read = c.readAnswers
		}
		s.fail(fmt.Errorf("read from the %v lane: %w", lane, read()))
	})
	return true
}

func (s *connSet) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lane, c := range s.conns {
		if c == nil && (lane == int(Control) || !s.lone) {
			return false
		}
	}
	return true
}

// run keeps the set alive and watches it until it fails, then closes everything and waits for the set's goroutines.
func (s *connSet) run() {
	cfg := &s.t.cfg
	tick := clock.NewTimer(cfg.PingInterval)
	defer tick.Stop()
	begun := s.t.now()
	for s.ctx.Err() == nil {
		select {
		case <-s.ctx.Done():
		case <-tick.C:
			tick.Again()
			if now := s.t.now(); !s.complete() { // the side that dials says nothing until it is
				if now-begun > int64(cfg.HandshakeTimeout) {
					s.fail(errors.New("the peer did not open all lanes"))
				}
			} else if err := s.check(now); err != nil {
				s.fail(err)
			} else if s.dialled && now-s.lastHeard.Load() > int64(cfg.PingInterval)/2 && !s.pinging.Swap(true) {
				s.ping(kindPing)
			}
		}
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	for _, c := range s.conns { // not changed any more
		if c != nil {
			c.close()
		}
	}
	s.wg.Wait()
	for _, c := range s.conns {
		if c != nil {
			c.release()
		}
	}
}

// check returns why the set must be given up, nil if it need not.
func (s *connSet) check(now int64) error {
	if silent := now - s.lastHeard.Load(); silent > int64(s.t.cfg.KeepaliveTimeout) {
		return fmt.Errorf("%w for %v", errSilent, time.Duration(silent).Round(time.Millisecond))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if c == nil {
			continue
		}
		if since := c.writeSince.Load(); since != 0 && now-since > int64(s.t.cfg.StallTimeout) {
			return fmt.Errorf("a write to the %v lane is stuck for %v", c.lane,
				time.Duration(now-since).Round(time.Millisecond))
		}
	}
	return nil
}

// One frame that was damaged on its way is an accident, and is sent again. A path that goes on damaging frames is given
// up: the next connections may take another one.
const (
	maxDamagedFrames = 3
	damageWindow     = time.Minute
)

// damagedFrame counts a frame whose payload was not what its checksums say, and cuts the connections at the third within
// a minute.
func (s *connSet) damagedFrame(lane Lane, method Method, err error) {
	s.t.metrics.damaged.Add(1)
	s.t.cfg.Logger.Warn("a peer's frame was damaged on its way and is refused; worry when it goes on: a network card, a switch or memory is ill",
		"node", s.node, "addr", s.addr, "lane", lane, "method", method, "error", err)
	now := time.Now()
	s.mu.Lock()
	if s.damaged == 0 || now.Sub(s.damagedSince) > damageWindow {
		s.damaged, s.damagedSince = 0, now
	}
	s.damaged++
	cut := s.damaged >= maxDamagedFrames
	s.mu.Unlock()
	if cut {
		s.fail(fmt.Errorf("%d frames were damaged within %v: %w", maxDamagedFrames, damageWindow, err))
	}
}

// ping sends a ping or pong on the control lane. A failure shows elsewhere.
func (s *connSet) ping(kind frameKind) {
	f := s.t.frame()
	f.encode(frameHeader{kind: kind}, nil, nil)
	if err := s.conns[Control].post(f, nil, true); err != nil {
		s.t.recycle(f)
	}
}

// heard notes that something arrived on a lane.
func (s *connSet) heard(lane Lane) {
	if lane == Control {
		s.lastHeard.Store(s.t.now())
	}
}

// dropCalls fails every request of an ended set that has no answer.
func (s *connSet) dropCalls() {
	cause := context.Cause(s.ctx)
	for _, c := range s.conns {
		if c == nil {
			continue
		}
		for _, cl := range c.drop() {
			s.t.finish(cl, nil, sendError(s.node, cl.sent, cause))
		}
	}
}
