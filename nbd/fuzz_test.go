package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// fuzzServer sends bytes to a fresh server and reads until it closes the connection, which it must.
func fuzzServer(t *testing.T, input []byte) {
	f := newFixture(t, func(c *nbd.Config) {
		c.MaxPayloadBytes, c.MaxConnBytes, c.MaxServerBytes = 64<<10, 64<<10, 64<<10
		c.DrainTimeout = 10 * time.Second
	})
	f.volume.Store(pattern(8192, 1), 4096)
	nc := f.pipe()
	var received sync.WaitGroup
	var got bytes.Buffer
	received.Go(func() { _, _ = io.Copy(&got, io.LimitReader(nc, 64<<20)) })
	_, _ = nc.Write(input)
	// The end of the stream is the last thing the client says. Until the server has taken everything in, Write does
	// not return, so nothing is cut off.
	_ = nc.Close()
	received.Wait()
	f.conns.Wait()
	if f.volume.Opened() != f.volume.Closed() {
		t.Errorf("%d exports were opened, %d closed", f.volume.Opened(), f.volume.Closed())
	}
	checkStream(t, got.Bytes())
}

// checkStream holds what a server sent against the protocol as far as one can without knowing the requests: the
// handshake and chunks are delimited.
func checkStream(t *testing.T, b []byte) {
	if len(b) < 18 {
		return // the client was gone before the greeting was out
	}
	if !bytes.HasPrefix(b, []byte("NBDMAGICIHAVEOPT")) {
		t.Fatalf("greeting %x", b[:18])
	}
	for b = b[18:]; len(b) >= 20; {
		if binary.BigEndian.Uint64(b) != 0x3e889045565a9 {
			return // transmission, perhaps of simple replies
		}
		n := int(binary.BigEndian.Uint32(b[16:]))
		if n > 5000 {
			t.Fatalf("an option reply of %d bytes", n)
		}
		b = b[min(len(b), 20+n):]
	}
}

// FuzzHandshake sends anything in place of a handshake.
func FuzzHandshake(f *testing.F) {
	for _, session := range transcriptSessions(f) {
		f.Add(session)
	}
	f.Add([]byte{0, 0, 0, 3})
	f.Add(append([]byte{0, 0, 0, 1}, rawOption(7, []byte("\xff\xff\xff\xff"))...))
	f.Add(append([]byte{0, 0, 0, 1}, rawOption(10, []byte("\x00\x00\x00\x01v\xff\xff\xff\xff\xff\xff\xff\xff"))...))
	f.Fuzz(func(t *testing.T, input []byte) { fuzzServer(t, input) })
}

// FuzzTransmission sends anything after a handshake that chose a layout of replies.
func FuzzTransmission(f *testing.F) {
	f.Add(byte(0), append(rawRequest(0, 1, 1, 0, 4), "data"...))
	f.Add(byte(0), append(rawRequest(0, 0, 1, 4000, 10000), rawRequest(0, 2, 0, 0, 0)...))
	f.Add(byte(1), append(rawRequest(4, 0, 1, 4000, 10000), rawRequest(8, 7, 2, 0, 1<<20)...))
	f.Add(byte(1), rawRequest(0, 1, 1, 0, 1<<31))
	f.Add(byte(0), append(rawRequest(0, 1, 1, 1<<40, 100000), rawRequest(0, 3, 2, 0, 0)...))
	f.Add(byte(2), extendedRequest(32, 7, 1, 0, append(binary.BigEndian.AppendUint64(nil, 4096), 0, 0, 0, 1)))
	f.Add(byte(2), extendedRequest(32, 1, 1, 0, []byte("data")))
	f.Add(byte(2), append(extendedRequest(32, 1, 1, 0, nil), extendedRequest(0, 6, 1, 1<<63, nil)...))
	f.Fuzz(func(t *testing.T, layout byte, input []byte) {
		session := []byte{0, 0, 0, 3}
		switch layout % 3 {
		case 1:
			session = append(session, rawOption(8, nil)...)
		case 2:
			session = append(session, rawOption(11, nil)...)
		}
		if layout%3 > 0 {
			meta := be32(str(nil, "v"), 2)
			session = append(session, rawOption(10, str(str(meta, "base:allocation"), "storaged:dirty"))...)
		}
		session = append(session, rawOption(7, append(str(nil, "v"), 0, 0))...)
		fuzzServer(t, append(session, input...))
	})
}

func extendedRequest(flags, cmd uint16, cookie, offset uint64, payload []byte) []byte {
	b := be32(nil, 0x21e41c71)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	return append(binary.BigEndian.AppendUint64(b, uint64(len(payload))), payload...)
}

// FuzzClient lets a server say anything to a Client that does one of everything.
func FuzzClient(f *testing.F) {
	for _, session := range serverSessions(f) {
		f.Add(session)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		ctx, cancel := context.WithTimeout(bg, 10*time.Second)
		defer cancel()
		ours, theirs := net.Pipe()
		var server sync.WaitGroup
		server.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
		server.Go(func() {
			_, _ = theirs.Write(input)
			_ = theirs.Close()
		})
		defer server.Wait()
		defer func() { _ = theirs.Close() }()
		c, err := nbdclient.New(ctx, ours, nbdclient.Config{Export: "v",
			Contexts: []string{nbd.ContextAllocation}})
		if err != nil {
			if storage.KindOf(err) == storage.KindInternal {
				t.Errorf("an internal error: %v", err)
			}
			return
		}
		p := make([]byte, 16384)
		_ = c.ReadAt(ctx, p, 0)
		_, _ = c.Status(ctx, 0, 1<<20, nbd.ContextAllocation)
		_ = c.WriteAt(ctx, p, 0)
		_ = c.Close()
	})
}

// transcriptSessions are what the clients of the transcripts send.
func transcriptSessions(f *testing.F) (sessions [][]byte) {
	each(f, func(script string) {
		client, server := net.Pipe()
		var sent bytes.Buffer
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(&sent, server) })
		p := &peer{conn: client, reads: make(map[uint64]int)}
		for line := range strings.Lines(script) {
			if strings.Contains(line, "EXTENDED_HEADERS") && strings.HasPrefix(line, ">") {
				p.extended = true
			}
			if command, ok := strings.CutPrefix(line, "> "); ok && !strings.Contains(line, "33554433") {
				_ = p.send(strings.TrimSpace(command))
			}
		}
		_ = client.Close()
		wg.Wait()
		sessions = append(sessions, sent.Bytes())
	})
	return sessions
}

// serverSessions are what a server says to the client of FuzzClient in each layout.
func serverSessions(f *testing.F) (sessions [][]byte) {
	for _, cfg := range []nbdclient.Config{{}, {CompactHeaders: true}, {SimpleReplies: true}} {
		fx := newFixture(f, nil)
		fx.volume.Store(pattern(8192, 1), 4096)
		var heard bytes.Buffer
		nc := &recorder{Conn: fx.pipe(), heard: &heard}
		cfg.Export, cfg.Contexts = "v", []string{nbd.ContextAllocation}
		c, err := nbdclient.New(bg, nc, cfg)
		if err != nil {
			f.Fatal(err)
		}
		p := make([]byte, 16384)
		_ = c.ReadAt(bg, p, 0)
		_, _ = c.Status(bg, 0, 1<<20, nbd.ContextAllocation)
		_ = c.WriteAt(bg, p, 0)
		_ = c.Close()
		sessions = append(sessions, heard.Bytes())
	}
	return sessions
}

// recorder keeps what was read.
type recorder struct {
	net.Conn
	heard *bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.heard.Write(p[:n])
	return n, err
}

func each(f *testing.F, fn func(script string)) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		script, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		fn(string(script))
	}
}

// TestMemoryIsBounded: clients that ask for as much as they can get no more than the limits allow.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 64 << 20
	f := newFixture(t, func(c *nbd.Config) { c.MaxServerBytes = limit })
	f.volume.SetInfo(func(i *nbd.ExportInfo) { i.SizeBytes = 1 << 40 })
	cfg := f.listen("unix")
	before := heap()
	var conns []net.Conn
	for range 50 {
		nc, err := net.Dial(cfg.Network, cfg.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		goRaw(t, nc)
		// A read and a write of 32 MiB each, of which no reply is taken and no payload sent.
		b := append(rawRequest(0, 0, 1, 0, 32<<20), rawRequest(0, 0, 2, 0, 32<<20)...)
		if _, err := nc.Write(append(b, rawRequest(0, 1, 3, 0, 32<<20)...)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, nc)
	}
	deadline := time.Now().Add(10 * time.Second)
	for f.volume.Opened() < 50 && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if grown := heap() - before; grown > limit+limit/2 {
		t.Errorf("the heap grew by %d bytes, the limit is %d", grown, limit)
	}
	for _, nc := range conns {
		_ = nc.Close()
	}
}
