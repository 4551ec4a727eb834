package segment

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"testing"

	storage "github.com/storaged/storaged"
)

var sampleHeader = recordHeader{kind: kindEntry, version: recordVersion, payload: 4200, position: PositionOf(7, 4096+640),
	key: GroupKey{Group: 3, Incarnation: 2}, term: 5, index: 1 << 40, durable: PositionOf(7, 4096), sum: 0xdeadbeef}

// TestGoldenBytes holds the formats still: docs/format/segment.md describes exactly these bytes.
func TestGoldenBytes(t *testing.T) {
	salt := headerSalt(testStore)
	b := make([]byte, recordHeaderBytes)
	sampleHeader.encode(b, salt)
	const record = "53454752" + "01" + "01" + "0000" + "68100000" + "07000000" + "80120000" + "03000000" + "02000000" +
		"efbeadde" + "0500000000000000" + "0000000000010000" + "0010000007000000" + "00000000"
	if got := hex.EncodeToString(b[:60]); got != record {
		t.Errorf("record header\n got %s\nwant %s", got, record)
	}
	padded := sampleHeader
	padded.padding = 0x0abc
	padded.encode(b, salt)
	if got, want := hex.EncodeToString(b[:60]), record[:8]+"02"+"01"+"bc0a"+record[16:]; got != want {
		t.Errorf("padded record header\n got %s\nwant %s", got, want)
	}
	h := segmentHeader{no: 9, store: testStore, stream: StreamHot, sizeBytes: 64 << 20, logStart: PositionOf(3, 4096)}
	block := make([]byte, segmentHeaderBytes)
	h.encode(block)
	const segment = "534c4f4753454748" + "01000000" + "09000000" + "01020300000000000000000000000000" + "01000000" +
		"00000004" + "0010000003000000" + "000000000000000000000000"
	if got := hex.EncodeToString(block[:60]); got != segment {
		t.Errorf("segment header\n got %s\nwant %s", got, segment)
	}
}

func headerSum(b []byte, salt uint32) uint32 { return crc32.Update(salt, castagnoli, b[:60]) }

// TestRecordHeader: a header is valid only unchanged, in its place and in its store.
func TestRecordHeader(t *testing.T) {
	salt := headerSalt(testStore)
	b := make([]byte, recordHeaderBytes)
	sampleHeader.encode(b, salt)
	if h, ok := decodeRecordHeader(b, salt, sampleHeader.position); !ok || h != sampleHeader {
		t.Fatalf("got %+v, %v", h, ok)
	}
	for bit := range recordHeaderBytes * 8 {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		if _, ok := decodeRecordHeader(c, salt, sampleHeader.position); ok {
			t.Errorf("valid with bit %d changed", bit)
		}
	}
	for _, at := range []Position{PositionOf(6, 4096+640), PositionOf(7, 4096)} {
		if _, ok := decodeRecordHeader(b, salt, at); ok {
			t.Errorf("valid at %s", at)
		}
	}
	if _, ok := decodeRecordHeader(b, headerSalt(storage.StoreID{4}), sampleHeader.position); ok {
		t.Error("valid in another store")
	}
	if _, ok := decodeRecordHeader(make([]byte, recordHeaderBytes), 0, 0); ok {
		t.Error("zeroes are valid")
	}
	padded := sampleHeader
	for _, n := range []uint16{1, 64, pageBytes - 1, pageBytes, 1<<16 - 1} {
		padded.version, padded.padding = paddedVersion, n
		padded.encode(b, salt)
		h, ok := decodeRecordHeader(b, salt, padded.position)
		if ok != (n < pageBytes) || ok && (h != padded || h.size() != alignedBytes(int(h.payload)+int(n)) || !h.known()) {
			t.Errorf("padding of %d: %+v, %v", n, h, ok)
		}
	}
	later := sampleHeader
	later.encode(b, salt)
	b[4], b[6] = paddedVersion+1, 1
	binary.LittleEndian.PutUint32(b[60:], headerSum(b, salt))
	if h, ok := decodeRecordHeader(b, salt, later.position); !ok || h.known() {
		t.Errorf("a record of a later version: %+v, %v", h, ok)
	}
	long := sampleHeader
	long.payload = maxPayloadBytes + 1
	long.encode(b, salt)
	if _, ok := decodeRecordHeader(b, salt, long.position); ok {
		t.Error("an impossible length is valid")
	}
}

func FuzzRecordHeader(f *testing.F) {
	salt := headerSalt(testStore)
	b := make([]byte, recordHeaderBytes)
	sampleHeader.encode(b, salt)
	f.Add(b, uint64(sampleHeader.position))
	f.Add([]byte{}, uint64(0))
	padded := sampleHeader
	padded.padding = 77
	c := make([]byte, recordHeaderBytes)
	padded.encode(c, salt)
	f.Add(c, uint64(padded.position))
	f.Fuzz(func(t *testing.T, b []byte, at uint64) {
		h, ok := decodeRecordHeader(b, salt, Position(at))
		if !ok {
			return
		}
		if h.payload > maxPayloadBytes || h.position != Position(at) || h.padding >= pageBytes || h.size() > alignedBytes(maxPayloadBytes+pageBytes) {
			t.Fatalf("accepted %+v at %s", h, Position(at))
		}
		again := make([]byte, recordHeaderBytes)
		h.encode(again, salt)
		if h.version == recordVersion && !bytes.Equal(again[:6], b[:6]) || h.padding > 0 && !bytes.Equal(again[:8], b[:8]) {
			t.Fatalf("%x encodes to %x", b[:recordHeaderBytes], again)
		}
	})
}

func FuzzEntryPrefix(f *testing.F) {
	p := entryPrefix{kind: 3, extensions: 84, appendedAt: -1}
	b := p.encode()
	f.Add(append(b[:], make([]byte, 84)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := decodeEntryPrefix(b); ok && int64(p.extensions) > int64(len(b)-prefixBytes) {
			t.Fatalf("accepted %+v of %d bytes", p, len(b))
		}
	})
}

// FuzzParts: whatever prefix and lengths a record has, what is before the padding and what is after it are its payload, or it is
// refused.
func FuzzParts(f *testing.F) {
	p := entryPrefix{kind: 3, extensions: 84}
	b := p.encode()
	f.Add(append(b[:], make([]byte, 200)...), uint8(kindEntry), uint16(50))
	f.Add(append(b[:], make([]byte, 200)...), uint8(kindData), uint16(0))
	f.Add([]byte{1}, uint8(kindSeal), uint16(1))
	f.Fuzz(func(t *testing.T, body []byte, kind uint8, padding uint16) {
		h := recordHeader{kind: recordKind(kind), padding: padding % pageBytes}
		if int(h.padding) > len(body) {
			return
		}
		h.payload = uint32(len(body)) - uint32(h.padding)
		front, data, ok := h.parts(body)
		if !ok {
			return
		}
		if len(front)+len(data) != int(h.payload) || !bytes.Equal(append(bytes.Clone(front), data...), append(bytes.Clone(body[:len(front)]), body[len(front)+int(h.padding):]...)) {
			t.Fatalf("%d bytes of kind %d and %d of padding: %d and %d", len(body), kind, h.padding, len(front), len(data))
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	block := make([]byte, segmentHeaderBytes)
	(&segmentHeader{no: 1, store: testStore, stream: StreamHot, sizeBytes: 1 << 20}).encode(block)
	f.Add(block[:segmentHeaderUsed])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := decodeSegmentHeader(b)
		if !ok || h.version != segmentVersion {
			return
		}
		again := make([]byte, segmentHeaderBytes)
		h.encode(again)
		if _, ok := decodeSegmentHeader(again); !ok {
			t.Fatalf("%+v does not survive encoding", h)
		}
	})
}
