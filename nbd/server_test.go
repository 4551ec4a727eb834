package nbd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
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

var bg = context.Background()

// TestAgainstModel does random operations over every transport and reply layout and compares with an array.
func TestAgainstModel(t *testing.T) {
	serverTLS, clientTLS := certificate(t)
	layouts := map[string]nbdclient.Config{"simple": {SimpleReplies: true}, "structured": {CompactHeaders: true},
		"extended": {}}
	for _, transport := range []string{"tcp", "unix", "tls"} {
		for layout, want := range layouts {
			t.Run(transport+"/"+layout, func(t *testing.T) {
				f := newFixture(t, func(c *nbd.Config) { c.TLS = serverTLS })
				network := "tcp"
				if transport == "unix" {
					network = transport
				}
				cfg := f.listen(network)
				cfg.SimpleReplies, cfg.CompactHeaders = want.SimpleReplies, want.CompactHeaders
				if transport == "tls" {
					cfg.TLS = clientTLS
				}
				model(t, f.dial(cfg), rand.New(rand.NewPCG(1, 2)))
			})
		}
	}
}

// model changes ranges of one client's export and of an array alike. Operations that are in flight together touch
// different quarters of the export.
func model(t *testing.T, c *nbdclient.Client, random *rand.Rand) {
	const quarter = testSize / 4
	want := make([]byte, testSize)
	for range 60 {
		var wg sync.WaitGroup
		for q := range 4 {
			off := random.IntN(quarter - 1)
			n := 1 + random.IntN(quarter-off)
			if random.IntN(2) == 0 {
				n = min(n, 10000)
			}
			off += q * quarter
			op, seed := random.IntN(4), byte(random.Uint32())
			wg.Go(func() {
				var err error
				switch op {
				case 0:
					p := pattern(n, seed)
					copy(want[off:], p)
					err = c.WriteAt(bg, p, int64(off))
				case 1:
					clear(want[off : off+n])
					err = c.WriteZeroes(bg, int64(off), int64(n), seed&1 == 0)
				case 2:
					clear(want[off : off+n]) // this backend's trim zeroes
					err = c.Trim(bg, int64(off), int64(n))
				default:
					p := make([]byte, n)
					err = c.ReadAt(bg, p, int64(off))
					wantBytes(t, "read", p, want[off:off+n])
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	got := make([]byte, testSize)
	if err := c.ReadAt(bg, got, 0); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "all", got, want)
	if err := errors.Join(c.Flush(bg), c.Cache(bg, 0, testSize), c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestClientInfoAndList(t *testing.T) {
	f := newFixture(t, nil)
	f.backend.Add("second", 4096)
	cfg := f.listen("tcp")
	names, err := nbdclient.List(bg, cfg)
	if err != nil || !slices.Equal(names, []string{"v", "second"}) {
		t.Errorf("List = %q, %v", names, err)
	}
	cfg.Contexts = []string{nbd.ContextAllocation, "nowhere:nothing"}
	i := f.dial(cfg).Info()
	if i.Name != "v" || i.Description != "volume v" || i.SizeBytes != testSize || i.MinBlockBytes != 1 ||
		i.PreferredBlockBytes != 4096 || i.MaxPayloadBytes != 32<<20 || !i.MultiConn || !i.FastZero || i.ReadOnly ||
		!slices.Equal(i.Contexts, []string{nbd.ContextAllocation}) {
		t.Errorf("Info = %+v", i)
	}
	cfg.Export = "absent"
	if _, err := nbdclient.Dial(bg, cfg); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("dialling an absent export: %v, want not found", err)
	}
}

func TestStatus(t *testing.T) {
	for name, compact := range map[string]bool{"structured": true, "extended": false} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			f.volume.Store(pattern(8192, 1), 0)
			f.volume.MarkClean()
			f.volume.Store(pattern(4096, 2), 16384)
			c := f.client(nbdclient.Config{CompactHeaders: compact,
				Contexts: []string{nbd.ContextAllocation, nbd.ContextDirty}})
			const hole = nbd.FlagHole | nbd.FlagZero
			for _, tc := range []struct {
				context string
				want    []nbd.Extent
			}{
				{nbd.ContextAllocation, []nbd.Extent{{8192, 0}, {8192, hole}, {4096, 0}, {testSize - 20480, hole}}},
				{nbd.ContextDirty, []nbd.Extent{{16384, 0}, {4096, nbd.FlagDirty}, {testSize - 20480, 0}}},
			} {
				got, err := c.Status(bg, 0, testSize, tc.context)
				if err != nil || !slices.Equal(got, tc.want) {
					t.Errorf("%s: %v, %v; want %v", tc.context, got, err, tc.want)
				}
			}
		})
	}
}

// hold makes the named operations of a volume wait until release is called, and counts those that wait.
type hold struct {
	waiting  atomic.Int64
	released chan struct{}
	canceled atomic.Int64
	calls    sync.Map // name -> true
}

func newHold(v *nbdtest.Volume, names ...string) *hold {
	h := &hold{released: make(chan struct{})}
	v.Before(func(c nbdtest.Call) error {
		h.calls.Store(c.Name, true)
		if !slices.Contains(names, c.Name) {
			return nil
		}
		h.waiting.Add(1)
		defer h.waiting.Add(-1)
		select {
		case <-h.released:
			return nil
		case <-c.Ctx.Done():
			h.canceled.Add(1)
			return c.Ctx.Err()
		}
	})
	return h
}

func (h *hold) called(name string) bool {
	_, ok := h.calls.Load(name)
	return ok
}

func TestRequestsRunConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		h := newHold(f.volume, "write", "read")
		c := f.client(nbdclient.Config{})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				p := make([]byte, 4096)
				err := c.ReadAt(bg, p, int64(i)*4096)
				if i%2 == 0 {
					err = c.WriteAt(bg, p, int64(i)*4096)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := h.waiting.Load(); n != 20 {
			t.Errorf("%d requests run at the same time, want 20", n)
		}
		close(h.released)
		wg.Wait()
	})
}

// TestFlushIsABarrier: a flush is called after the mutations that were in flight before it, and reads do not matter.
func TestFlushIsABarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		h := newHold(f.volume, "write", "trim", "zero", "read")
		c := f.client(nbdclient.Config{})
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.ReadAt(bg, make([]byte, 512), 0) })
		synctest.Wait()
		wg.Go(func() { _ = c.Flush(bg) })
		synctest.Wait()
		if !h.called("flush") {
			t.Error("a flush waits for a read")
		}
		h.calls.Clear()
		wg.Go(func() { _ = c.WriteAt(bg, make([]byte, 512), 0) })
		synctest.Wait()
		for range 2 { // the second has no mutation of its own to wait for
			wg.Go(func() { _ = c.Flush(bg) })
			synctest.Wait()
			if h.called("flush") {
				t.Error("a flush does not wait for a write")
			}
		}
		close(h.released)
		wg.Wait()
		if !h.called("flush") {
			t.Error("no flush")
		}
		h.calls.Clear()
		if err := c.Flush(bg); err != nil || !h.called("flush") {
			t.Errorf("a flush after everything: %v", err)
		}
	})
}

// TestUnanswered: the export learns whether a connection ended with requests unanswered, and their context ends.
func TestUnanswered(t *testing.T) {
	for _, tc := range []struct {
		name string
		want int64
		end  func(f *fixture, nc net.Conn, c *nbdclient.Client)
	}{
		{"vanish", 1, func(_ *fixture, nc net.Conn, _ *nbdclient.Client) { _ = nc.Close() }},
		{"disconnect by the backend", 1, func(f *fixture, _ net.Conn, _ *nbdclient.Client) { f.volume.Disconnect() }},
		{"DISC", 1, func(_ *fixture, _ net.Conn, c *nbdclient.Client) { _ = c.Close() }}, // after DrainTimeout
		{"drained in vain", 1, func(f *fixture, _ net.Conn, _ *nbdclient.Client) { f.stop() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				h := newHold(f.volume, "write")
				nc := f.pipe()
				c, err := nbdclient.New(bg, nc, nbdclient.Config{Export: "v"})
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := c.WriteAt(bg, make([]byte, 4096), 0); err == nil {
						t.Error("the write was answered")
					}
				})
				synctest.Wait()
				tc.end(f, nc, c)
				f.conns.Wait()
				wg.Wait()
				_ = c.Close()
				if n := h.canceled.Load(); n != 1 {
					t.Errorf("%d writes were cancelled, want 1", n)
				}
				if f.volume.Closed() != 1 || f.volume.Unanswered() != tc.want {
					t.Errorf("%d exports closed, %d with requests unanswered; want 1, %d", f.volume.Closed(),
						f.volume.Unanswered(), tc.want)
				}
			})
		})
	}
}

// eventually waits until cond holds, for ten seconds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited until %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// TestHangUpWhileFull: nothing is read from a client whose requests in flight take all the room. When it leaves, that is seen at
// once, and not only when one of them is answered.
func TestHangUpWhileFull(t *testing.T) {
	for name, change := range map[string]func(*nbd.Config){
		"connection": func(c *nbd.Config) { c.MaxConnRequests = 2 },
		// Who holds two requests leaves room for six times as many; for a third there would have to be 21.
		"server": func(c *nbd.Config) { c.MaxPayloadBytes, c.MaxServerBytes = 4096, 14*4096 },
	} {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(name+"/"+network, func(t *testing.T) {
				f := newFixture(t, change)
				h := newHold(f.volume, "write")
				defer close(h.released)
				cfg := f.listen(network)
				nc, err := net.Dial(cfg.Network, cfg.Address)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				goRaw(t, nc)
				for i := range uint64(4) {
					if _, err := nc.Write(append(rawRequest(0, 1, i, i*4096, 4096), make([]byte, 4096)...)); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, "the connection is full", func() bool { return h.waiting.Load() == 2 })
				_ = nc.Close()
				eventually(t, "the requests' context has ended", func() bool { return h.canceled.Load() == 2 })
				eventually(t, "the export is closed", func() bool { return f.volume.Closed() == 1 })
				if n := f.volume.Unanswered(); n != 1 {
					t.Errorf("%d exports closed with requests unanswered, want 1", n)
				}
			})
		}
	}
}

// TestAnswered: what was answered is not reported, however the connection ends.
func TestAnswered(t *testing.T) {
	for name, end := range map[string]func(f *fixture, nc net.Conn, c *nbdclient.Client){
		"vanish": func(_ *fixture, nc net.Conn, _ *nbdclient.Client) { _ = nc.Close() },
		"DISC":   func(_ *fixture, _ net.Conn, c *nbdclient.Client) { _ = c.Close() },
		"drain":  func(f *fixture, _ net.Conn, _ *nbdclient.Client) { f.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				nc := f.pipe()
				c, err := nbdclient.New(bg, nc, nbdclient.Config{Export: "v"})
				if err != nil {
					t.Fatal(err)
				}
				if err := c.WriteAt(bg, make([]byte, 4096), 0); err != nil {
					t.Fatal(err)
				}
				end(f, nc, c)
				f.conns.Wait()
				_ = c.Close()
				if f.volume.Closed() != 1 || f.volume.Unanswered() != 0 {
					t.Errorf("%d exports closed, %d with requests unanswered; want 1, 0", f.volume.Closed(),
						f.volume.Unanswered())
				}
			})
		})
	}
}

// TestDrain: stopping the server answers what is in flight and takes nothing new.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		h := newHold(f.volume, "write")
		c := f.client(nbdclient.Config{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.WriteAt(bg, make([]byte, 4096), 0); err != nil {
				t.Errorf("the write in flight: %v", err)
			}
		})
		synctest.Wait()
		f.stop()
		synctest.Wait()
		close(h.released)
		wg.Wait()
		f.conns.Wait()
		if f.volume.Unanswered() != 0 || f.volume.Closed() != 1 {
			t.Errorf("unanswered %d, closed %d", f.volume.Unanswered(), f.volume.Closed())
		}
		if err := c.ReadAt(bg, make([]byte, 1), 0); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a read after the end: %v, want unavailable", err)
		}
	})
}

// TestBytesInFlightAreBounded: requests over the limits wait until others are answered.
func TestBytesInFlightAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		change   func(*nbd.Config)
		clients  int
		requests int // by each client
		bytes    int
		want     int64 // that run at a time
	}{
		"connection bytes":    {func(c *nbd.Config) { c.MaxConnBytes = 256 << 10 }, 1, 8, 64 << 10, 4},
		"connection requests": {func(c *nbd.Config) { c.MaxConnRequests = 3 }, 1, 8, 512, 3},
		// The first may always, and leaves three times as much to the others; so may the second, of which all of the export
		// leave twice as much; with a third they would not.
		"server bytes": {func(c *nbd.Config) { c.MaxServerBytes = 512 << 10 }, 3, 3, 64 << 10, 2},
		"rounded up":   {func(c *nbd.Config) { c.MaxServerBytes = 1 << 20 }, 1, 8, 33 << 10, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, func(c *nbd.Config) {
					c.MaxPayloadBytes = 64 << 10
					tc.change(c)
				})
				h := newHold(f.volume, "write", "read")
				var wg sync.WaitGroup
				for range tc.clients {
					c := f.client(nbdclient.Config{})
					for i := range tc.requests {
						wg.Go(func() {
							err := c.WriteAt(bg, make([]byte, tc.bytes), int64(i)<<16)
							if i%2 == 0 {
								err = c.ReadAt(bg, make([]byte, tc.bytes), int64(i)<<16)
							}
							if err != nil {
								t.Error(err)
							}
						})
					}
				}
				synctest.Wait()
				if n := h.waiting.Load(); n != tc.want {
					t.Errorf("%d requests run at a time, want %d", n, tc.want)
				}
				close(h.released)
				wg.Wait()
			})
		})
	}
}

// TestStrangersDoNotLockOut: clients that say nothing take a part of the connections of a server, if they are of one address,
// and others are served beside them. Line: handshakes in Server.admit.
func TestStrangersDoNotLockOut(t *testing.T) {
	f := newFixture(t, func(c *nbd.Config) { c.MaxConnections, c.HandshakeTimeout = 8, time.Hour })
	cfg := f.listen("tcp")
	strangers := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	greeted := 0
	for range 16 {
		nc, err := strangers.Dial("tcp", cfg.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.ReadFull(nc, make([]byte, 18)); err == nil {
			greeted++
		}
	}
	if greeted != 2 {
		t.Errorf("%d of them are greeted, want 2", greeted)
	}
	for range 6 {
		if err := f.dial(cfg).ReadAt(bg, make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMaxConnections(t *testing.T) {
	f := newFixture(t, func(c *nbd.Config) { c.MaxConnections = 2 })
	cfg := f.listen("tcp")
	a, b := f.dial(cfg), f.dial(cfg)
	if _, err := nbdclient.Dial(bg, cfg); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("the third connection: %v, want unavailable", err)
	}
	if err := errors.Join(a.Flush(bg), b.Flush(bg)); err != nil {
		t.Error(err)
	}
}

func TestErrorsReachTheClient(t *testing.T) {
	for _, simple := range []bool{false, true} {
		f := newFixture(t, nil)
		var kind storage.Kind
		f.volume.Before(func(c nbdtest.Call) error {
			return storage.E("write", kind, "volume v", errors.New("the reason"))
		})
		c := f.client(nbdclient.Config{SimpleReplies: simple})
		for _, tc := range []struct{ server, client storage.Kind }{
			{storage.KindNoSpace, storage.KindNoSpace}, {storage.KindIO, storage.KindIO},
			{storage.KindFenced, storage.KindUnavailable}, {storage.KindInvalid, storage.KindInvalid},
			{storage.KindPermission, storage.KindPermission}, {storage.KindCorrupt, storage.KindIO},
		} {
			kind = tc.server
			err := c.WriteAt(bg, make([]byte, 10), 0)
			if storage.KindOf(err) != tc.client {
				t.Errorf("%v becomes %v (%v), want %v", tc.server, storage.KindOf(err), err, tc.client)
			}
			if err := c.ReadAt(bg, make([]byte, 10), 0); storage.KindOf(err) != tc.client {
				t.Errorf("read: %v becomes %v, want %v", tc.server, err, tc.client)
			}
		}
		kind = storage.KindNone
	}
}

func TestGrowth(t *testing.T) {
	f := newFixture(t, nil)
	c := f.client(nbdclient.Config{})
	p := pattern(4096, 9)
	if err := c.WriteAt(bg, p, testSize); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("writing behind the end: %v, want no space", err)
	}
	f.volume.SetInfo(func(i *nbd.ExportInfo) { i.SizeBytes *= 2 })
	if err := c.WriteAt(bg, p, testSize); err != nil {
		t.Errorf("writing to the new bytes: %v", err)
	}
	if err := c.Resize(bg, testSize*3); err != nil {
		t.Error(err)
	}
	if err := c.WriteAt(bg, p, testSize*5/2); err != nil {
		t.Errorf("writing after a resize: %v", err)
	}
	f.volume.SetInfo(func(i *nbd.ExportInfo) { i.Resizable = false })
	if err := f.client(nbdclient.Config{}).Resize(bg, 1); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("resizing what does not resize: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	f := newFixture(t, nil)
	f.volume.SetInfo(func(i *nbd.ExportInfo) { i.ReadOnly = true })
	c := f.client(nbdclient.Config{})
	if err := c.WriteAt(bg, make([]byte, 5000), 0); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("write: %v, want permission denied", err)
	}
	if err := c.Trim(bg, 0, 4096); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("trim: %v, want unsupported", err)
	}
	if err := errors.Join(c.ReadAt(bg, make([]byte, 5000), 0), c.Flush(bg)); err != nil {
		t.Error(err)
	}
}

func TestFastZero(t *testing.T) {
	f := newFixture(t, nil)
	f.volume.Store(pattern(testSize, 1), 0)
	c := f.client(nbdclient.Config{})
	if err := c.FastZero(bg, 1, 8191); err != nil {
		t.Errorf("a range with a whole block: %v", err)
	}
	if err := c.FastZero(bg, 16385, 4096); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("a range without a whole block: %v, want unsupported", err)
	}
	got := make([]byte, 4096)
	f.volume.Contents(got, 16385)
	if got[0] == 0 {
		t.Error("a refused zeroing changed the export")
	}
}

func TestTLSIsRequired(t *testing.T) {
	serverTLS, clientTLS := certificate(t)
	f := newFixture(t, func(c *nbd.Config) { c.TLS, c.RequireTLS = serverTLS, true })
	cfg := f.listen("tcp")
	if _, err := nbdclient.Dial(bg, cfg); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("without TLS: %v, want permission denied", err)
	}
	if _, err := nbdclient.List(bg, cfg); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("LIST without TLS: %v, want permission denied", err)
	}
	cfg.TLS = clientTLS
	c := f.dial(cfg)
	if err := c.WriteAt(bg, pattern(100000, 1), 3); err != nil {
		t.Error(err)
	}
	if names, err := nbdclient.List(bg, cfg); err != nil || len(names) != 1 {
		t.Errorf("LIST with TLS: %q, %v", names, err)
	}
	if c := f.dial(f.listen("unix")); c.Flush(bg) != nil {
		t.Error("a unix socket needs no TLS")
	}
	cfg.TLS = &tls.Config{ServerName: "localhost"}
	if _, err := nbdclient.Dial(bg, cfg); err == nil {
		t.Error("a client without the authority trusts the server")
	}
	f2 := newFixture(t, nil)
	cfg = f2.listen("tcp")
	cfg.TLS = clientTLS
	if _, err := nbdclient.Dial(bg, cfg); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("a server without certificate: %v", err)
	}
}

func TestPeer(t *testing.T) {
	f := newFixture(t, nil)
	c1, c2 := f.client(nbdclient.Config{}), f.client(nbdclient.Config{})
	var ids sync.Map
	f.volume.Before(func(c nbdtest.Call) error { ids.Store(c.Peer.ID, c.Peer); return nil })
	if err := errors.Join(c1.Flush(bg), c2.Flush(bg)); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uint64{1, 2} {
		if _, ok := ids.Load(id); !ok {
			t.Errorf("no peer %d", id)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	err := nbd.Config{MaxPayloadBytes: 1, MaxConnBytes: 1, MaxServerBytes: -1, RequireTLS: true,
		StallTimeout: -1}.Validate()
	if !errors.Is(err, storage.ErrInvalid) {
		t.Fatalf("Validate = %v", err)
	}
	for _, want := range []string{"Backend", "RequireTLS", "MaxPayloadBytes", "MaxConnBytes", "MaxServerBytes",
		"StallTimeout"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

// TestDrainDuringHandshake: a client that is still negotiating does not hold up a server that stops.
func TestDrainDuringHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		nc := f.pipe()
		if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		f.stop()
		f.conns.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("the server stopped after %v", d)
		}
	})
}

// slowBackend opens exports when its time is over, or so much later.
type slowBackend struct {
	*nbdtest.Backend
	opening chan struct{}
	after   time.Duration
}

func (b *slowBackend) Open(ctx context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	close(b.opening)
	<-ctx.Done()
	<-time.After(b.after)
	return b.Backend.Open(ctx, name, peer) // too late, but not told apart from in time
}

// TestOpenTooLate: an export that was opened when the time for the handshake was over is closed again.
func TestOpenTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &slowBackend{nbdtest.NewBackend(), make(chan struct{}), time.Minute}
		v := b.Add("v", 4096)
		s, err := nbd.NewServer(nbd.Config{Backend: b})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.ServeConn(bg, theirs); err == nil {
				t.Error("a connection that never was ended well")
			}
		})
		if _, err := nbdclient.New(bg, ours, nbdclient.Config{Export: "v"}); err == nil {
			t.Error("connected")
		}
		wg.Wait()
		<-b.opening
		if v.Opened() != 1 || v.Closed() != 1 || v.Unanswered() != 0 {
			t.Errorf("opened %d, closed %d, unanswered %d", v.Opened(), v.Closed(), v.Unanswered())
		}
	})
}

// TestIdleWorkersLeave: the goroutines of a burst do not stay with a connection that is idle.
func TestIdleWorkersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		h := newHold(f.volume, "read")
		c := f.client(nbdclient.Config{})
		before := runtime.NumGoroutine()
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() { _ = c.ReadAt(bg, make([]byte, 1), 0) })
		}
		synctest.Wait()
		close(h.released)
		wg.Wait()
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n < 30 {
			t.Errorf("%d workers are kept for the next burst", n)
		}
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n > 5 {
			t.Errorf("%d goroutines stay with an idle connection", n)
		}
		if err := c.ReadAt(bg, make([]byte, 1), 0); err != nil {
			t.Error(err)
		}
	})
}

// TestCanceledCall: a call whose context ends takes its connection with it, and says why.
func TestCanceledCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		newHold(f.volume, "write")
		c := f.client(nbdclient.Config{MaxRequests: 1})
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		if err := c.WriteAt(ctx, make([]byte, 10), 0); !errors.Is(err, storage.ErrCanceled) {
			t.Errorf("%v, want canceled", err)
		}
		if err := c.Flush(bg); err == nil {
			t.Error("the connection is still in use")
		}
	})
}

// lostListener fails once as if the process were out of file descriptors, and then for good.
type lostListener struct {
	net.Listener
	errs chan error
}

func (l *lostListener) Accept() (net.Conn, error) { return nil, <-l.errs }
func (l *lostListener) Close() error              { return nil }
func (l *lostListener) Addr() net.Addr            { return &net.UnixAddr{} }

func TestServeOutlivesAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		l := &lostListener{errs: make(chan error)}
		done := make(chan error)
		go func() { done <- f.server.Serve(bg, l) }()
		start := time.Now()
		for range 20 {
			l.errs <- errors.New("too many open files")
		}
		if d := time.Since(start); d < 5*time.Second || d > 20*time.Second {
			t.Errorf("20 failures took %v: no back-off, or too much", d)
		}
		l.errs <- net.ErrClosed
		if err := <-done; !errors.Is(err, storage.ErrIO) {
			t.Errorf("Serve = %v, want an i/o error", err)
		}
	})
}
