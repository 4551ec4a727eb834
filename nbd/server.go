package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/nbd/internal/wire"
)

// Server serves the exports of one Backend. Its methods may be called concurrently.
type Server struct {
	cfg     Config
	metrics *metrics
	buffers bufferPool
	budget  *Budget // of payload in flight
	// handshakes are the connections that are negotiating. An address has a part of them, so that clients that say nothing
	// do not take the place of others; once they use an export, they have a name.
	handshakes *doors.Shares
	unused     sync.Pool // of *request

	mu     sync.Mutex
	conns  map[*conn]struct{} // guarded by mu
	lastID uint64             // guarded by mu
}

// handshakePart: the connections of one address that are negotiating are at most one part in so many of all connections.
const handshakePart = 4

// NewServer makes a server. It starts nothing.
func NewServer(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, storage.E("register", storage.KindInvalid, "NBD metrics", err)
	}
	budget, err := cfg.budget()
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, metrics: m, budget: budget, conns: make(map[*conn]struct{}),
		handshakes: doors.NewShares(cfg.MaxConnections, max(1, cfg.MaxConnections/handshakePart))}, nil
}

// Serve accepts connections from ln, which it closes, until ctx ends. Then connections are drained: no further
// request is read, those in flight are answered within Config.DrainTimeout, and Serve returns nil once all of its
// connections have ended. An error means that ln failed; the connections are drained all the same.
//
// Several listeners may be served at a time; limits and metrics are common to them.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer func() { _ = ln.Close() }()

	var delay time.Duration
	for {
		nc, err := ln.Accept()
		if err == nil {
			delay = 0
			wg.Go(func() { _ = s.ServeConn(ctx, nc) })
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return storage.E("accept", storage.KindIO, ln.Addr().String(), err)
		}
		// Out of file descriptors, or the client gave up: the next one may succeed.
		if delay == 0 {
			s.cfg.Logger.Warn("accept NBD connection", "address", ln.Addr(), "error", err)
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		_ = clock.Sleep(ctx, delay) // the next turn sees the end
	}
}

// ServeConn serves one connection, which it closes, until it ends; see Serve for what the end of ctx does. It
// returns why the connection ended, and nil if the client said goodbye or the server was stopped.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	c := s.admit(ctx, nc)
	if c == nil {
		_ = nc.Close()
		s.metrics.connections.WithLabelValues("refused").Inc()
		if s.cfg.Refused != nil {
			s.cfg.Refused(nc.RemoteAddr())
		}
		return storage.E("serve", storage.KindUnavailable, "NBD connection", errors.New("too many connections"))
	}
	s.metrics.open.Inc()
	stop := context.AfterFunc(ctx, func() {
		c.drain()
	})
	err := c.run()
	stop()
	s.metrics.open.Dec()
	c.share.leave()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	return s.report(c, err)
}

// admit counts the connection, or returns nil when there are too many.
func (s *Server) admit(ctx context.Context, nc net.Conn) *conn {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.cfg.MaxConnections {
		return nil
	}
	negotiated := s.handshakes.Enter(doors.AddressOf(nc.RemoteAddr()))
	if negotiated == nil {
		return nil
	}
	share := s.budget.enter()
	if share == nil {
		negotiated()
		return nil
	}
	s.lastID++
	c := newConn(s, s.lastID, nc, share)
	c.negotiated = negotiated
	// Requests in flight outlive ctx: they are drained.
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.conns[c] = struct{}{}
	return c
}

// report counts and logs how a connection ended.
func (s *Server) report(c *conn, err error) error {
	end := "error"
	switch {
	case errors.Is(err, errDisconnect):
		end, err = "disconnect", nil
	case errors.Is(err, errDrained):
		end, err = "drained", nil
	case errors.Is(err, io.EOF):
		end, err = "closed", storage.E("serve", storage.KindCanceled, "NBD connection", err)
	case errors.Is(err, errStalled):
		end = "stalled"
	}
	s.metrics.connections.WithLabelValues(end).Inc()
	if err != nil {
		c.mu.Lock()
		unanswered := c.unanswered
		c.mu.Unlock()
		level := slog.LevelInfo
		if end == "closed" && unanswered == 0 {
			level = slog.LevelDebug // the usual end of clients that do not say goodbye
		}
		s.cfg.Logger.Log(context.Background(), level, "NBD connection ended", "connection", c.id,
			"remote", c.raw.RemoteAddr(), "export", c.info.Name, "end", end, "unanswered", unanswered, "error", err)
	}
	return err
}

func (s *Server) newRequest(h wire.RequestHeader) *request {
	r, ok := s.unused.Get().(*request)
	if !ok {
		r = new(request)
	}
	r.RequestHeader = h
	return r
}

func (s *Server) freeRequest(r *request) {
	r.buf, r.ids, r.refused, r.barrier, r.after, r.parts = nil, nil, nil, nil, nil, nil
	r.two = [2][]byte{}
	r.connWeight, r.serverWeight = 0, 0
	s.unused.Put(r)
}
