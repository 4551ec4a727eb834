package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd/internal/wire"
)

func TestErrnoOfEveryKind(t *testing.T) {
	allowed := []uint32{wire.ErrnoPerm, wire.ErrnoIO, wire.ErrnoInvalid, wire.ErrnoNoSpace, wire.ErrnoShutdown}
	for _, kind := range storage.Kinds() {
		errno, ok := errnoOfKind[kind]
		if !ok || !slices.Contains(allowed, errno) {
			t.Errorf("%v has error value %d, in the table: %v", kind, errno, ok)
		}
		if got := Errno(fmt.Errorf("wrapped: %w", storage.E("op", kind, "", nil))); got != errno {
			t.Errorf("Errno(%v) = %d, want %d", kind, got, errno)
		}
		rep, ok := optionErrorOfKind[kind]
		if !ok || rep&wire.RepErrBit == 0 || rep == wire.RepErrUnsup {
			t.Errorf("%v has option reply %#x, in the table: %v", kind, rep, ok)
		}
		if _, ok := wire.KindOfOptionError[rep]; !ok {
			t.Errorf("the client does not know option reply %#x", rep)
		}
		if _, ok := wire.KindOfErrno[errno]; !ok {
			t.Errorf("the client does not know error value %d", errno)
		}
	}
	for err, want := range map[error]uint32{nil: 0, errors.New("plain"): wire.ErrnoIO, context.Canceled: wire.ErrnoShutdown} {
		if got := Errno(err); got != want {
			t.Errorf("Errno(%v) = %d, want %d", err, got, want)
		}
	}
	if len(errnoOfKind) != len(storage.Kinds())+1 || len(optionErrorOfKind) != len(storage.Kinds()) {
		t.Error("a table has a kind that does not exist")
	}
}

// TestExtentLimits compares apply with what the protocol asks, on random lists.
func TestExtentLimits(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		l := extentLimits{lengthBytes: 1 + random.Uint64N(64), one: random.IntN(3) == 0, compact: random.IntN(2) == 0}
		if random.IntN(4) == 0 {
			l.lengthBytes <<= 30
		}
		l.restBytes = l.lengthBytes + random.Uint64N(64)
		var in []Extent
		for range 1 + random.IntN(12) {
			in = append(in, Extent{LengthBytes: 1 + random.Uint64N(l.lengthBytes), Flags: random.Uint32N(3)})
		}
		out, err := l.apply(slices.Clone(in))
		if err != nil {
			t.Fatalf("%+v.apply(%v): %v", l, in, err)
		}
		checkExtents(t, l, in, out)
	}
	for _, in := range [][]Extent{nil, {{0, 1}}, {{5, 0}, {0, 1}}} {
		if _, err := (extentLimits{lengthBytes: 10, restBytes: 10}).apply(in); storage.KindOf(err) != storage.KindInternal {
			t.Errorf("apply(%v) = %v, want an internal error", in, err)
		}
	}
}

func checkExtents(t *testing.T, l extentLimits, in, out []Extent) {
	t.Helper()
	var total uint64
	for i, e := range out {
		if e.LengthBytes == 0 || l.compact && e.LengthBytes >= 1<<32 {
			t.Fatalf("%+v: %v has an extent of %d bytes", l, out, e.LengthBytes)
		}
		if i < len(out)-1 && total+e.LengthBytes >= l.lengthBytes {
			t.Fatalf("%+v: %v goes on behind the request", l, out)
		}
		if i > 0 && out[i-1].Flags == e.Flags {
			t.Fatalf("%+v: %v has equal neighbours", l, out)
		}
		if e.Flags != flagsAt(in, total) || e.Flags != flagsAt(in, total+e.LengthBytes-1) {
			t.Fatalf("%+v: %v says something else than %v", l, out, in)
		}
		total += e.LengthBytes
	}
	if total == 0 || total > l.restBytes || l.one && (len(out) != 1 || total > l.lengthBytes) {
		t.Fatalf("%+v: %v", l, out)
	}
}

func flagsAt(extents []Extent, at uint64) uint32 {
	for _, e := range extents {
		if at < e.LengthBytes {
			return e.Flags
		}
		at -= e.LengthBytes
	}
	return 99
}

func TestFastZeroes(t *testing.T) {
	b := bounds{info: &ExportInfo{FastZero: true, PreferredBlockBytes: 4096}}
	for _, tc := range []struct {
		offset, length uint64
		flags          uint16
		want           bool
	}{
		{0, 4096, 0, true}, {0, 4095, 0, false}, {1, 8190, 0, false}, {1, 8191, 0, true}, {4096, 8192, 0, true},
		{0, 4096, wire.CmdFlagNoHole, false},
	} {
		h := wire.RequestHeader{Offset: tc.offset, Length: tc.length, Flags: tc.flags}
		if got := b.fastZeroes(h); got != tc.want {
			t.Errorf("%+v: %v, want %v", tc, got, tc.want)
		}
	}
	b.info.FastZero = false
	if b.fastZeroes(wire.RequestHeader{Length: 4096}) {
		t.Error("an export that is not fast")
	}
}

func TestMinBlock(t *testing.T) {
	b := bounds{sizeBytes: 1 << 20, info: &ExportInfo{MinBlockBytes: 512, MaxPayloadBytes: 1 << 20}}
	for _, h := range []wire.RequestHeader{{Cmd: wire.CmdRead, Offset: 1, Length: 512}, {Cmd: wire.CmdWrite, Offset: 512, Length: 511},
		{Cmd: wire.CmdTrim, Offset: 100, Length: 412}} {
		if r := b.check(h); r == nil || r.errno != wire.ErrnoInvalid {
			t.Errorf("%+v: %v, want invalid", h, r)
		}
	}
	if r := b.check(wire.RequestHeader{Cmd: wire.CmdWrite, Offset: 512, Length: 1024}); r != nil {
		t.Error(r)
	}
}

func TestBufferClasses(t *testing.T) {
	var pool bufferPool
	for _, n := range []int{1, 4095, 4096, 4097, 8192, 1 << 20, 1<<20 + 1, DefaultMaxPayloadBytes} {
		b := pool.get(n)
		if len(b.b) != n || int64(cap(b.b)) != bufferWeight(n) || n > 4096 && cap(b.b) >= 2*n {
			t.Errorf("a buffer for %d bytes has %d of %d, weighs %d", n, len(b.b), cap(b.b), bufferWeight(n))
		}
		pool.put(b)
	}
	pool.put(nil)
}

// TestInbound reads a stream in random pieces from a source that delivers random pieces.
func TestInbound(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	stream := make([]byte, 1<<20)
	for i := range stream {
		stream[i] = byte(random.Uint32())
	}
	sources := map[string]io.Reader{"whole": bytes.NewReader(stream), "bytes": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves": iotest.HalfReader(bytes.NewReader(stream)), "with end": iotest.DataErrReader(bytes.NewReader(stream))}
	for name, src := range sources {
		in, rest := wire.NewInbound(src), stream
		for len(rest) > 200000 {
			n := 1 + random.IntN(28)
			var err error
			var got []byte
			switch random.IntN(4) {
			case 0:
				n = random.IntN(150000)
				err = in.Discard(uint64(n))
				got = rest[:n]
			case 1:
				n = random.IntN(150000)
				got = make([]byte, n)
				err = in.Full(got)
			default:
				got, err = in.Next(n)
			}
			if err != nil || !bytes.Equal(got, rest[:n]) {
				t.Fatalf("%s: %d bytes differ, or %v", name, n, err)
			}
			rest = rest[n:]
			if random.IntN(50) == 0 {
				in.Grow()
			}
			if in.StalledSince() != 0 {
				t.Fatalf("%s: a transfer is said to be in progress", name)
			}
		}
		if err := in.Discard(uint64(len(rest)) - 1); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Next(2); err != io.ErrUnexpectedEOF {
			t.Errorf("%s: an end in the middle: %v", name, err)
		}
		if err := in.Full(make([]byte, 2)); err != io.ErrUnexpectedEOF {
			t.Errorf("%s: an end in the middle of a payload: %v", name, err)
		}
	}
	in := wire.NewInbound(bytes.NewReader(nil))
	if _, err := in.Next(1); err != io.EOF {
		t.Errorf("an end at the beginning: %v", err)
	}
}

// scriptedReader gives one piece for each read, as far as there is room, and notes how much room there was.
type scriptedReader struct {
	pieces [][]byte
	room   []int
}

func (s *scriptedReader) Read(b []byte) (int, error) {
	s.room = append(s.room, len(b))
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

// TestInboundWaitsWithASmallBuffer: a connection reads much at once while much arrives, and does not keep the memory for it when it
// waits for the next request. Tried: without the second case of resize it does.
func TestInboundWaitsWithASmallBuffer(t *testing.T) {
	src := &scriptedReader{pieces: [][]byte{make([]byte, 100), make([]byte, 100_000), make([]byte, 28), make([]byte, 28)}}
	in := wire.NewInbound(src)
	in.Grow()
	read := func(n int) {
		t.Helper()
		for range n / 4 {
			if _, err := in.Next(4); err != nil {
				t.Fatal(err)
			}
		}
	}
	read(100 + 100_000)
	if largest := slices.Max(src.room); largest < 32<<10 {
		t.Errorf("%d bytes at most were read at once", largest)
	}
	read(28)
	before := len(src.room)
	read(28)
	if len(src.room) == before || slices.Max(src.room[before:]) > 8<<10 {
		t.Errorf("a connection waits with room for %d bytes", src.room[before:])
	}
	// A payload that is read past the buffer leaves nothing behind it that is known of.
	src.pieces = [][]byte{make([]byte, 28+64<<10), make([]byte, 28)}
	read(28)
	if err := in.Full(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	before = len(src.room)
	read(28)
	if slices.Max(src.room[before:]) > 8<<10 {
		t.Errorf("after a payload a connection waits with room for %d bytes", src.room[before:])
	}
}

func TestTruncate(t *testing.T) {
	for _, tc := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abc", 2, "ab"}, {"aé", 2, "a"}, {"é", 1, ""}} {
		if got := truncate(tc.s, tc.n); got != tc.want {
			t.Errorf("truncate(%q, %d) = %q, want %q", tc.s, tc.n, got, tc.want)
		}
	}
}

func TestMatchContexts(t *testing.T) {
	offered := []string{"base:allocation", "storaged:dirty", "storaged:dirty:monday"}
	for _, tc := range []struct {
		queries []string
		set     bool
		want    []string
	}{
		{nil, false, offered},
		{nil, true, nil},
		{[]string{"storaged:"}, false, offered[1:]},
		{[]string{"storaged:"}, true, nil},
		{[]string{"storaged:dirty", "base:allocation", "base:allocation"}, true, offered[:2]},
		{[]string{"base:other", "x:y"}, false, nil},
	} {
		if got := matchContexts(offered, tc.queries, tc.set); !slices.Equal(got, tc.want) {
			t.Errorf("%q, set %v: %q, want %q", tc.queries, tc.set, got, tc.want)
		}
	}
}
