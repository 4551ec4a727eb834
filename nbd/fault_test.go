package nbd_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// brokenConn fails once armed: the first write in the middle. It counts the writes after that.
type brokenConn struct {
	net.Conn
	armed, broken atomic.Bool
	after         atomic.Int64
}

func (c *brokenConn) Write(p []byte) (int, error) {
	switch {
	case c.broken.Load():
		c.after.Add(1)
	case c.armed.Load():
		c.broken.Store(true)
		n, _ := c.Conn.Write(p[:len(p)/2])
		return n, errors.New("half of it is lost")
	default:
		return c.Conn.Write(p)
	}
	return 0, net.ErrClosed
}

// TestNothingFollowsAFailedWrite: once a reply may be incomplete, further ones would be taken for its rest.
func TestNothingFollowsAFailedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		h := newHold(f.volume, "write")
		ours, theirs := net.Pipe()
		broken := &brokenConn{Conn: theirs}
		f.conns.Go(func() { _ = f.server.ServeConn(f.ctx, broken) })
		c, err := nbdclient.New(bg, ours, nbdclient.Config{Export: "v"})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _ = c.WriteAt(bg, make([]byte, 10), 0) })
		}
		synctest.Wait()
		broken.armed.Store(true)
		_ = c.ReadAt(bg, make([]byte, 10), 0)
		wg.Wait()
		f.conns.Wait()
		_ = c.Close()
		if n := broken.after.Load(); n != 0 {
			t.Errorf("%d writes after a failed one", n)
		}
		if h.canceled.Load() != 3 || f.volume.Unanswered() != 1 {
			t.Errorf("%d requests were cancelled, unanswered: %d", h.canceled.Load(), f.volume.Unanswered())
		}
	})
}

// TestTLSForgets: what was negotiated in the clear does not hold under TLS, for somebody else may have sent it.
func TestTLSForgets(t *testing.T) {
	serverTLS, clientTLS := certificate(t)
	f := newFixture(t, func(c *nbd.Config) { c.TLS = serverTLS })
	cfg := f.listen("tcp")
	raw, err := net.Dial(cfg.Network, cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	p := &peer{conn: raw}
	expect := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(p.conn, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	send := func(line string) {
		if err := p.send(line); err != nil {
			t.Fatal(err)
		}
	}
	expect(18)
	send("flags 3")
	send("option STRUCTURED_REPLY")
	expect(20)
	send("option STARTTLS")
	expect(20)
	p.conn = tls.Client(raw, clientTLS)
	send("name v")
	const df = 1 << 7
	if flags := binary.BigEndian.Uint16(expect(10)[8:]); flags&df != 0 {
		t.Errorf("flags %#x under TLS", flags)
	}
}

// TestDrainWhileOpening: a backend that cannot open its export now does not hold up a server that stops.
func TestDrainWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &slowBackend{nbdtest.NewBackend(), make(chan struct{}), 0}
		v := b.Add("v", 4096)
		s, err := nbd.NewServer(nbd.Config{Backend: b})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(bg)
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.ServeConn(ctx, theirs); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { _, _ = nbdclient.New(bg, ours, nbdclient.Config{Export: "v"}) })
		<-b.opening
		start := time.Now()
		cancel()
		wg.Wait()
		if d := time.Since(start); d != 0 || v.Opened() != v.Closed() {
			t.Errorf("stopped after %v; opened %d, closed %d", d, v.Opened(), v.Closed())
		}
	})
}

// TestDrainTakesNothingNew: requests that are waiting in the buffer when the server stops are not begun.
func TestDrainTakesNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *nbd.Config) { c.MaxConnRequests = 1 })
		h := newHold(f.volume, "read")
		var calls atomic.Int64
		nc := f.pipe()
		goRaw(t, nc)
		var b []byte
		for i := range 10 {
			b = append(b, rawRequest(0, 0, uint64(i), 0, 512)...)
		}
		if _, err := nc.Write(b); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f.stop()
		synctest.Wait()
		close(h.released)
		n, _ := io.Copy(io.Discard, nc)
		calls.Store(n / (16 + 512))
		f.conns.Wait()
		if calls.Load() < 1 || calls.Load() > 2 { // the second had been read
			t.Errorf("%d requests were answered after the stop, want those already read", calls.Load())
		}
	})
}

// badBackend exports what claims impossible holes.
type badBackend struct {
	*nbdtest.Backend
	holes []nbd.Hole
}

type badExport struct {
	nbd.Export
	holes []nbd.Hole
}

func (b *badBackend) Open(ctx context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	e, err := b.Backend.Open(ctx, name, peer)
	return &badExport{e, b.holes}, err
}

func (e *badExport) ReadSparse(context.Context, []byte, int64) ([]nbd.Hole, error) {
	return e.holes, nil
}

func TestImpossibleHoles(t *testing.T) {
	for _, holes := range [][]nbd.Hole{{{0, 0}}, {{-1, 5000}}, {{5000, 4000}}, {{0, 8193}}, {{0, 5000}, {4000, 8192}}} {
		b := &badBackend{nbdtest.NewBackend(), holes}
		b.Add("v", 1<<20)
		s, err := nbd.NewServer(nbd.Config{Backend: b})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.ServeConn(bg, theirs) })
		c, err := nbdclient.New(bg, ours, nbdclient.Config{Export: "v"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ReadAt(bg, make([]byte, 8192), 0); !errors.Is(err, storage.ErrIO) {
			t.Errorf("%v: %v, want an i/o error", holes, err)
		}
		_ = c.Close()
		wg.Wait()
	}
}

// gateConn holds writes back, even when it is closed.
type gateConn struct {
	net.Conn
	closed atomic.Bool // the gate
	open   chan struct{}
}

func (c *gateConn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		<-c.open
	}
	return c.Conn.Write(p)
}

// TestBuffersComeBackLate: a cancelled call does not return while its buffer is still being written from.
func TestBuffersComeBackLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		gate := &gateConn{Conn: f.pipe(), open: make(chan struct{})}
		c, err := nbdclient.New(bg, gate, nbdclient.Config{Export: "v"})
		if err != nil {
			t.Fatal(err)
		}
		gate.closed.Store(true)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(bg)
		var returned atomic.Int64
		write := func() { // the first writes for itself, the others are written by a goroutine of the client
			_ = c.WriteAt(ctx, make([]byte, 10), 0)
			returned.Add(1)
		}
		wg.Go(write)
		synctest.Wait()
		wg.Go(write)
		wg.Go(write)
		synctest.Wait()
		gate.open <- struct{}{} // the first request
		synctest.Wait()
		if returned.Load() != 1 {
			t.Fatalf("%d calls returned, want the first", returned.Load())
		}
		cancel()
		synctest.Wait()
		if returned.Load() != 1 {
			t.Errorf("%d calls returned while their buffers are in use", returned.Load()-1)
		}
		close(gate.open)
		wg.Wait()
		_ = c.Close()
	})
}
