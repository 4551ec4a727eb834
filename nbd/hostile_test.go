package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gonbd "github.com/pojntfx/go-nbd/pkg/client"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// rawRequest is a compact header.
func rawRequest(flags, cmd uint16, cookie, offset uint64, length uint32) []byte {
	b := be32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	return be32(b, length)
}

func rawOption(id uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, 0x49484156454F5054)
	return append(be32(be32(b, id), uint32(len(data))), data...)
}

// goRaw enters the transmission phase by hand, with simple replies.
func goRaw(t testing.TB, nc net.Conn) {
	t.Helper()
	goRawTo(t, nc, "v")
}

func goRawTo(t testing.TB, nc net.Conn, export string) {
	t.Helper()
	b := make([]byte, 18)
	if _, err := io.ReadFull(nc, b); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write(append([]byte{0, 0, 0, 3}, rawOption(1, []byte(export))...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, b[:10]); err != nil {
		t.Fatal(err)
	}
}

// closedAfter reports how long it takes until the server closes nc.
func closedAfter(nc net.Conn) time.Duration {
	start := time.Now()
	_, _ = io.Copy(io.Discard, nc)
	return time.Since(start)
}

// TestSlowHandshake: a client that does not come to the point within the time-out is disconnected, however busy it
// keeps the server meanwhile.
func TestSlowHandshake(t *testing.T) {
	for name, talk := range map[string]func(nc net.Conn){
		"silent": func(net.Conn) {},
		"a byte a second": func(nc net.Conn) {
			for _, c := range append([]byte{0, 0, 0, 3}, rawOption(7, make([]byte, 1000))...) {
				if _, err := nc.Write([]byte{c}); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		},
		"options for ever": func(nc net.Conn) {
			_, _ = nc.Write([]byte{0, 0, 0, 3})
			for {
				if _, err := nc.Write(rawOption(3, nil)); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, func(c *nbd.Config) { c.HandshakeTimeout = 20 * time.Second })
				nc := f.pipe()
				var wg sync.WaitGroup
				wg.Go(func() { talk(nc) })
				if d := closedAfter(nc); d != 20*time.Second {
					t.Errorf("closed after %v, want 20s", d)
				}
				_ = nc.Close()
				wg.Wait()
			})
		})
	}
}

func TestTooManyOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		nc := f.pipe()
		var wg sync.WaitGroup
		wg.Go(func() { closedAfter(nc) })
		_, _ = nc.Write([]byte{0, 0, 0, 3})
		n := 0
		for ; n < 10000; n++ {
			if _, err := nc.Write(rawOption(99, nil)); err != nil {
				break
			}
		}
		wg.Wait()
		if n != 256 {
			t.Errorf("closed after %d options, want 256", n)
		}
	})
}

// TestStalls: a client that stops in the middle of a request, or does not take its replies, is disconnected, and what
// it held is free. A client that is merely silent is not.
func TestStalls(t *testing.T) {
	const timeout = time.Minute
	for name, tc := range map[string]struct {
		send   []byte
		closed bool
	}{
		"silent":                   {nil, false},
		"half a header":            {rawRequest(0, 0, 1, 0, 512)[:20], true},
		"no payload":               {rawRequest(0, 1, 1, 0, 1<<20), true},
		"half a payload":           {append(rawRequest(0, 1, 1, 0, 1<<20), make([]byte, 1<<19)...), true},
		"does not read":            {rawRequest(0, 0, 1, 0, 1<<20), true},
		"half of the second":       {append(rawRequest(0, 1, 1, 0, 4), 1, 2, 3, 4, 5), true},
		"a refused one's payload?": {append(rawRequest(0, 1, 1, 1<<40, 8), 1, 2, 3), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, func(c *nbd.Config) { c.StallTimeout = timeout })
				nc := f.pipe()
				goRaw(t, nc)
				if _, err := nc.Write(tc.send); err != nil {
					t.Fatal(err)
				}
				<-time.After(2 * timeout)
				if name == "half of the second" {
					_, _ = io.ReadFull(nc, make([]byte, 16))
				}
				synctest.Wait()
				if closed := f.volume.Closed() == 1; closed != tc.closed {
					t.Errorf("closed: %v, want %v", closed, tc.closed)
				}
				_ = nc.Close()
				f.conns.Wait()
				if f.volume.Closed() != 1 {
					t.Error("the export is still open")
				}
			})
		})
	}
}

// TestStalledPayloadsDoNotBlockOthers: what a stalled client has reserved comes back.
func TestStalledPayloadsDoNotBlockOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *nbd.Config) {
			c.MaxPayloadBytes, c.MaxServerBytes = 1<<20, 1<<20
		})
		nc := f.pipe()
		goRaw(t, nc)
		if _, err := nc.Write(rawRequest(0, 1, 1, 0, 1<<20)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c := f.client(nbdclient.Config{})
		if err := c.WriteAt(bg, make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
		_ = nc.Close()
	})
}

// TestManyConnections: thousands of connections that say nothing cost little, and those over the limit are closed.
func TestManyConnections(t *testing.T) {
	f := newFixture(t, func(c *nbd.Config) { c.MaxConnections = 500 })
	cfg := f.listen("unix")
	before := heap()
	var conns []net.Conn
	defer func() {
		for _, nc := range conns {
			_ = nc.Close()
		}
	}()
	var refused int
	for range 2000 {
		nc, err := net.Dial(cfg.Network, cfg.Address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
			refused++
			_ = nc.Close()
			continue
		}
		conns = append(conns, nc)
	}
	if refused != 1500 {
		t.Errorf("%d of 2000 connections were refused, want 1500", refused)
	}
	if grown := heap() - before; grown > 16<<20 {
		t.Errorf("500 silent connections take %d bytes", grown)
	}
	for _, nc := range conns {
		_ = nc.Close()
	}
	conns = nil
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := nbdclient.Dial(bg, cfg)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no connection after the others have gone: %v", err)
		}
		runtime.Gosched()
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestManyBadRequests: refusals are answered one by one while their number in flight stays bounded, also when the
// client reads its replies late.
func TestManyBadRequests(t *testing.T) {
	f := newFixture(t, nil)
	cfg := f.listen("unix")
	nc, err := net.Dial(cfg.Network, cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	goRaw(t, nc)
	const n = 20000
	var sent sync.WaitGroup
	sent.Go(func() {
		b := bytes.Repeat(rawRequest(0, 0x7777, 7, 0, 0), 100)
		for range n / 100 {
			if _, err := nc.Write(b); err != nil {
				t.Error(err)
				return
			}
		}
	})
	reply := make([]byte, 16)
	for i := range n {
		if _, err := io.ReadFull(nc, reply); err != nil {
			t.Fatal(err)
		}
		if binary.BigEndian.Uint32(reply[4:]) != 22 {
			t.Fatalf("reply %d: %x", i, reply)
		}
	}
	sent.Wait()
}

// TestBytesBehindStartTLS: what was sent before TLS does not count as sent over it.
func TestBytesBehindStartTLS(t *testing.T) {
	serverTLS, _ := certificate(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *nbd.Config) { c.TLS = serverTLS })
		nc := f.pipe()
		var got bytes.Buffer
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(&got, nc) })
		_, _ = nc.Write([]byte{0, 0, 0, 3})
		_, _ = nc.Write(append(rawOption(5, nil), rawOption(1, []byte("v"))...))
		wg.Wait()
		if got.Len() != 18 {
			t.Errorf("the server answered %x", got.Bytes()[18:])
		}
	})
}

// TestBadExport: an export that breaks its contract costs its client an error, nothing more.
func TestBadExport(t *testing.T) {
	f := newFixture(t, nil)
	f.volume.Before(func(c nbdtest.Call) error { return errors.New("no kind") })
	c := f.client(nbdclient.Config{Contexts: []string{nbd.ContextAllocation}})
	if _, err := c.Status(bg, 0, 4096, nbd.ContextAllocation); err == nil {
		t.Error("no error")
	}
	if err := c.ReadAt(bg, make([]byte, 1), 0); err == nil {
		t.Error("no error")
	}
}

// TestGoNBDClient: an independent client reads our LIST. (It looks at the first export only.)
func TestGoNBDClient(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		f := newFixture(t, nil)
		cfg := f.listen(network)
		nc, err := net.Dial(cfg.Network, cfg.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		names, err := gonbd.List(nc)
		if err != nil || len(names) != 1 || names[0] != "v" {
			t.Errorf("%s: List = %q, %v", network, names, err)
		}
	}
}
