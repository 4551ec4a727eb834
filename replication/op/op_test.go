package op_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func write(offset uint32, payload []byte) op.Op {
	return op.Op{Kind: op.Write, Volume: 7, Extent: 3, Offset: offset, Length: uint32(len(payload)), Session: 9, Seq: 11,
		Epoch: 2, Generation: 5, ReadTerm: 4, Sums: op.AppendSums(nil, offset, payload)}
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

// golden compares got with the file as a hex dump: layouts on disk do not change by accident.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	dump := []byte(hex.Dump(got))
	if *update {
		if err := os.WriteFile(path, dump, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(dump)); diff != "" {
		t.Errorf("%s changed (-want +got):\n%s", name, diff)
	}
}

func TestGoldenBytes(t *testing.T) {
	w := write(4096, pattern(8192))
	golden(t, "write", w.AppendHeader(nil))
	c := op.Op{Kind: op.Clear, Flags: op.FlagNoHole, Volume: 1, Extent: 2, Offset: 8192, Length: 4096, Session: 3, Seq: 4, Epoch: 5, Generation: 6}
	golden(t, "clear", c.AppendHeader(nil))
	win := op.Window{Low: 40}
	win.Mark(42)
	r := op.Result{Kind: storage.KindFenced, Detail: 8, Text: "generation 7 is over", Window: &win}
	golden(t, "result", r.Append(nil))
	rr := op.ReadRequest{Volume: 1, Extent: 2, Offset: 512, Length: 4096, Session: 3, Generation: 4, Epoch: op.HeadEpoch, Mode: op.ReadQuorum}
	golden(t, "read-request", rr.Append(nil))
	ra := op.ReadResponse{Sums: []uint32{1, 0, 3}, Holes: []bool{false, true, false}}
	golden(t, "read-response", ra.Append(nil))
	sr := op.StatusRequest{ReadRequest: op.ReadRequest{Volume: 1, Extent: 2, Offset: 512, Length: 4096, Session: 3, Generation: 4, Epoch: 9}, Dirty: true, Since: 5}
	golden(t, "status-request", sr.Append(nil))
	sa := op.StatusResponse{Runs: []op.Run{{Length: 4096, Flags: op.RunAllocated | op.RunDirty}, {Length: 512, Flags: op.RunHole | op.RunZero}}}
	golden(t, "status-response", sa.Append(nil))
	mr := op.MappedRequest{Volume: 1, First: 2, End: 7, Session: 3, Generation: 4, Mode: op.ReadLease}
	golden(t, "mapped-request", mr.Append(nil))
	ma := op.MappedResponse{Next: 6, Extents: []storage.ExtentIndex{2, 5}}
	golden(t, "mapped-response", ma.Append(nil))
}

func TestOpRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name    string
		offset  uint32
		length  int
		pieces  int
		aligned bool
	}{
		{"one block", 0, 4096, 1, true},
		{"last block", storage.ExtentSize - 4096, 4096, 1, true},
		{"one byte", 4095, 1, 1, false},
		{"across an edge", 4095, 2, 2, false},
		{"largest", 4096, storage.MaxEntryPayloadBytes, 256, true},
		{"largest, shifted", 1, storage.MaxEntryPayloadBytes, 257, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			payload := pattern(tc.length)
			o := write(tc.offset, payload)
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			header := o.AppendHeader(nil)
			if len(header) != op.HeaderLen(op.Write, tc.pieces) || len(header) > op.MaxHeaderLen {
				t.Errorf("header of %d bytes", len(header))
			}
			got, gotPayload, err := op.Decode(append(header[:len(header):len(header)], payload...))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(gotPayload, payload) || !bytes.Equal(got.AppendHeader(nil), header) {
				t.Error("the decoded operation encodes differently")
			}
			if got.Aligned() != tc.aligned || got.NumSums() != tc.pieces {
				t.Errorf("aligned %v with %d sums", got.Aligned(), got.NumSums())
			}
			if err := got.Verify(gotPayload); err != nil {
				t.Error(err)
			}
			gotPayload[tc.length-1] ^= 1
			if err := got.Verify(gotPayload); !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("a flipped bit in the payload: %v", err)
			}
		})
	}
}

func TestOpRefused(t *testing.T) {
	base := write(0, pattern(4096))
	for _, tc := range []struct {
		name string
		edit func(*op.Op)
		kind storage.Kind
	}{
		{"kind zero", func(o *op.Op) { o.Kind = 0 }, storage.KindInvalid},
		{"kind unknown", func(o *op.Op) { o.Kind = 200 }, storage.KindUnsupported},
		{"flag unknown", func(o *op.Op) { o.Flags = 1 << 15 }, storage.KindUnsupported},
		{"no volume", func(o *op.Op) { o.Volume = 0 }, storage.KindInvalid},
		{"no session", func(o *op.Op) { o.Session = 0 }, storage.KindInvalid},
		{"no number", func(o *op.Op) { o.Seq = 0 }, storage.KindInvalid},
		{"empty", func(o *op.Op) { o.Length, o.Sums = 0, nil }, storage.KindInvalid},
		{"past the extent", func(o *op.Op) { o.Offset = storage.ExtentSize }, storage.KindInvalid},
		{"offset wraps", func(o *op.Op) { o.Offset = 1<<32 - 4096 }, storage.KindInvalid},
		{"a sum missing", func(o *op.Op) { o.Sums = nil }, storage.KindInvalid},
		{"too long", func(o *op.Op) { o.Length = storage.MaxEntryPayloadBytes + 4096; o.Sums = make([]uint32, 257) }, storage.KindInvalid},
		{"clear unaligned", func(o *op.Op) { o.Kind, o.Sums, o.Length = op.Clear, nil, 100 }, storage.KindInvalid},
		{"clear with sums", func(o *op.Op) { o.Kind = op.Clear }, storage.KindInvalid},
		{"close with a range", func(o *op.Op) { o.Kind, o.Sums = op.CloseSession, nil }, storage.KindInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := base
			tc.edit(&o)
			if err := o.Validate(); storage.KindOf(err) != tc.kind {
				t.Errorf("Validate: %v", err)
			}
			if _, _, err := op.Decode(append(o.AppendHeader(nil), make([]byte, o.Length%(1<<21))...)); storage.KindOf(err) != tc.kind {
				t.Errorf("Decode: %v", err)
			}
		})
	}
}

// Guards I5 at the header: a flipped bit anywhere in an operation's header is noticed (headerCRC in DecodeHeader).
func TestOpEveryFlippedHeaderBit(t *testing.T) {
	o := write(4096, pattern(8192))
	header := o.AppendHeader(nil)
	data := append(header, pattern(8192)...)
	for bit := range 8 * len(header) {
		data[bit/8] ^= 1 << (bit % 8)
		if _, _, err := op.Decode(data); err == nil {
			t.Errorf("bit %d flipped and not noticed", bit)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	for n := range len(data) {
		if _, _, err := op.Decode(data[:n]); err == nil {
			t.Errorf("cut to %d bytes and not noticed", n)
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	o := write(0, pattern(4096))
	data := append(o.AppendHeader(nil), pattern(4096)...)
	var sum uint32
	if n := testing.AllocsPerRun(100, func() {
		d, _, err := op.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		sum += d.SumAt(0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWindow(t *testing.T) {
	var w op.Window
	model := map[uint64]bool{}
	mark := func(s uint64) {
		t.Helper()
		if !w.InWindow(s) || w.Applied(s) {
			t.Fatalf("%d: in window %v, applied %v, low %d", s, w.InWindow(s), w.Applied(s), w.Low)
		}
		w.Mark(s)
		model[s] = true
	}
	check := func(low uint64) {
		t.Helper()
		if w.Low != low {
			t.Fatalf("low %d, want %d", w.Low, low)
		}
		for s := uint64(1); s < low+storage.SessionWindow+10; s++ {
			if w.Applied(s) != model[s] {
				t.Fatalf("%d applied: %v", s, w.Applied(s))
			}
		}
		d, err := op.DecodeWindow(w.Append(nil))
		if err != nil || d != w {
			t.Fatalf("round trip: %v", err)
		}
	}
	for s := uint64(storage.SessionWindow); s > 1; s-- { // all but the first, backwards
		mark(s)
	}
	check(0)
	if w.InWindow(storage.SessionWindow + 1) {
		t.Error("a number beyond the window is accepted")
	}
	if w.Count() != storage.SessionWindow-1 {
		t.Errorf("count %d", w.Count())
	}
	mark(1)
	check(storage.SessionWindow)
	for s := uint64(1025); s < 5000; s += 2 { // in pairs, swapped
		mark(s + 1)
		mark(s)
	}
	check(5000)
	mark(6000)
	check(5000)
}

func TestResultRoundTrip(t *testing.T) {
	for _, r := range []op.Result{
		{}, {Duplicate: true}, {Kind: storage.KindFenced, Detail: 1 << 60, Text: "epoch 4 is over"},
		{Window: &op.Window{Low: 3}}, {Kind: storage.KindInternal, Text: strings.Repeat("x", op.MaxTextBytes)},
	} {
		got, err := op.DecodeResult(r.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Error(diff)
		}
		if storage.KindOf(got.Err("write", "volume 3")) != r.Kind {
			t.Errorf("error %v", got.Err("write", "volume 3"))
		}
	}
	long := op.Result{Kind: storage.KindInvalid, Text: strings.Repeat("y", 10_000)}
	if got, err := op.DecodeResult(long.Append(nil)); err != nil || len(got.Text) != op.MaxTextBytes {
		t.Errorf("%d bytes of text: %v", len(got.Text), err)
	}
}

// TestKindsOfResults: every kind arrives as what it was, in the bytes that it always had; one that is not known here is refused, and in
// no case taken for KindNone, which says that the operation was applied.
func TestKindsOfResults(t *testing.T) {
	for _, kind := range storage.Kinds() {
		for _, text := range []string{"", "why", strings.Repeat("x", op.MaxTextBytes)} {
			r := op.Result{Kind: kind, Text: text}
			b := r.Append(nil)
			got, err := op.DecodeResult(b)
			if err != nil {
				t.Fatalf("%v: %v", kind, err)
			}
			if diff := cmp.Diff(r, got); diff != "" {
				t.Error(diff)
			}
			if packed := binary.LittleEndian.Uint16(b[2:]); kind < 16 && packed != uint16(len(text))<<4|uint16(kind) {
				t.Errorf("kind %v and %d bytes of text are %#x", kind, len(text), packed)
			}
		}
	}
	for kind := storage.KindLast + 1; kind < 64; kind++ {
		r := op.Result{Kind: kind, Text: "of a later version"}
		if got, err := op.DecodeResult(r.Append(nil)); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("kind %d is taken for %v: %v", kind, got.Kind, err)
		}
		if oldText := binary.LittleEndian.Uint16(r.Append(nil)[2:]) >> 4; kind > 15 && oldText <= op.MaxTextBytes {
			t.Errorf("kind %d: a version that knew of 4 bits for it would read %d bytes of text", kind, oldText)
		}
	}
}

func TestReadResponse(t *testing.T) {
	payload := pattern(3 * 4096)
	clear(payload[4096:8192])
	r := op.ReadResponse{Sums: op.AppendSums(nil, 0, payload), Holes: []bool{false, true, false}}
	r.Sums[1] = 0
	var got op.ReadResponse
	if err := got.Decode(r.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error(diff)
	}
	if err := got.Verify(payload); err != nil {
		t.Error(err)
	}
	payload[0] ^= 1
	if err := got.Verify(payload); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a flipped bit: %v", err)
	}
	if err := got.Verify(payload[:4096]); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("a short payload: %v", err)
	}
	holes := op.ReadResponse{Sums: make([]uint32, 2), Holes: []bool{true, true}}
	if err := holes.Verify(nil); err != nil || holes.PayloadLen() != 0 {
		t.Errorf("all holes: %v", err)
	}
}

func TestMappedExtents(t *testing.T) {
	for _, a := range []op.MappedResponse{{}, {Next: 1}, {Next: 1 << 26, Extents: []storage.ExtentIndex{0, 7, 1<<26 - 1}}} {
		got, err := op.DecodeMappedResponse(a.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, bad := range []op.MappedResponse{
		{Next: 4, Extents: []storage.ExtentIndex{4}}, {Next: 4, Extents: []storage.ExtentIndex{2, 2}}, {Next: 4, Extents: []storage.ExtentIndex{3, 1}},
		{Next: 1 << 20, Extents: make([]storage.ExtentIndex, op.MaxMappedExtents+1)},
	} {
		if _, err := op.DecodeMappedResponse(bad.Append(nil)); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, bad := range []op.MappedRequest{{End: 1}, {Volume: 1}, {Volume: 1, First: 3, End: 3}, {Volume: 1, End: 1, Mode: 9}} {
		if err := bad.Validate(); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
		if _, err := op.DecodeMappedRequest(bad.Append(nil)); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%+v decodes: %v", bad, err)
		}
	}
}

func TestReadDataReleasesOnce(t *testing.T) {
	n := 0
	d := op.NewReadData(op.ReadResponse{}, nil, func() { n++ })
	d.Release()
	d.Release()
	if n != 1 {
		t.Errorf("released %d times", n)
	}
	op.NewReadData(op.ReadResponse{}, nil, nil).Release()
}

// TestVerifyEntry guards what a replica stores: every flipped bit of an entry is found, and only whole blocks pass.
func TestVerifyEntry(t *testing.T) {
	entry := func(offset uint32, n int) []byte {
		o := write(offset, pattern(n))
		return append(o.AppendHeader(nil), pattern(n)...)
	}
	data := entry(4096, 2*storage.BlockSize)
	if err := op.VerifyEntry(data); err != nil {
		t.Fatal(err)
	}
	if got, want := op.EntrySums(data), data[op.HeaderFixedLen:op.HeaderFixedLen+8]; !bytes.Equal(got, want) {
		t.Errorf("sums %x, want %x", got, want)
	}
	for bit := 0; bit < 8*len(data); bit += 7 {
		data[bit/8] ^= 1 << (bit % 8)
		if err := op.VerifyEntry(data); err == nil {
			t.Errorf("bit %d flipped and not found", bit)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	if err := op.VerifyEntry(entry(100, 4096)); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("an entry of parts of blocks: %v", err)
	}
	c := op.Op{Kind: op.Clear, Volume: 1, Offset: 8192, Length: 4096, Session: 3, Seq: 4}
	clear := c.AppendHeader(nil)
	if err := op.VerifyEntry(clear); err != nil || op.EntrySums(clear) != nil {
		t.Errorf("a clear: %v, sums %x", err, op.EntrySums(clear))
	}
	for _, short := range [][]byte{nil, data[:10], data[:len(data)-1], entry(0, 100)} {
		if s := op.EntrySums(short); s != nil {
			t.Errorf("%d bytes have sums %x", len(short), s)
		}
	}
}

// TestBlocksOf: the length of an entry tells how many blocks it ends with, as EntrySums finds them in it.
func TestBlocksOf(t *testing.T) {
	for n := range op.MaxSums + 2 {
		data := make([]byte, op.HeaderFixedLen+n*(4+storage.BlockSize))
		data[0], data[1] = op.Version, byte(op.Write)
		binary.LittleEndian.PutUint16(data[4:], uint16(n))
		want := len(op.EntrySums(data)) / 4 * storage.BlockSize
		if want < op.AlignedBytes || n > op.MaxSums {
			want = 0
		}
		for d, want := range map[int]int{-1: 0, 0: want, 1: 0, 4: 0} {
			if got := op.BlocksOf(len(data) + d); got != want {
				t.Errorf("%d blocks and %d bytes: %d, want %d", n, d, got, want)
			}
		}
	}
	for _, n := range []int{-1, 0, 72, 1 << 20, 1 << 40} {
		if got := op.BlocksOf(n); got != 0 {
			t.Errorf("%d bytes: %d", n, got)
		}
	}
}
