package extent

import (
	"bytes"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Every decoder: no panic, nothing allocated for lengths that are not there, and what is accepted encodes to the same
// bytes. The values of Pebble end with a checksum, which would keep the fuzzer out: it is made right for it.

func FuzzDecodePage(f *testing.F) {
	key := appendPageKey(nil, 1, pageKey{2, 3, 4}, 5)
	p := page{epoch: 5, index: 9}
	p.entries[7] = entry{1, 2, 3}
	p.entries[63] = entry{4, 5, 6}
	v := p.appendValue(nil, key)
	f.Add(v[:len(v)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		value := seal(key, bytes.Clone(body))
		p, err := decodePage(key, value)
		if err == nil && !bytes.Equal(p.appendValue(nil, key), value) {
			t.Errorf("%x encodes differently", value)
		}
		_, _ = decodePage(key, body)
	})
}

func FuzzDecodeVolume(f *testing.F) {
	v := newVolume()
	v.openSession(&op.Op{Session: 4, Generation: 2})
	v.openSession(&op.Op{Session: 5, Generation: 2})
	v.closeSession(&op.Op{Session: 4})
	value := v.appendValue(nil, nil)
	f.Add(value[:len(value)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := decodeVolume(nil, seal(nil, bytes.Clone(body)))
		if err != nil {
			return
		}
		again, err := decodeVolume(nil, v.appendValue(nil, nil))
		if err != nil || !bytes.Equal(again.appendValue(nil, nil), v.appendValue(nil, nil)) {
			t.Errorf("%x does not come back: %v", body, err)
		}
	})
}

func FuzzDecodeGroupRecord(f *testing.F) {
	r := groupRecord{set: 1, from: 2, Checkpoint: Checkpoint{Index: 3, Term: 4, ConfigIndex: 5, Config: []byte("c")}}
	value := r.appendValue(nil, nil)
	f.Add(value[:len(value)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		value := seal(nil, bytes.Clone(body))
		r, err := decodeGroupRecord(nil, value)
		if err == nil && !bytes.Equal(r.appendValue(nil, nil), value) {
			t.Errorf("%x encodes differently", value)
		}
	})
}

func FuzzDecodePull(f *testing.F) {
	h := ManifestHeader{Checkpoint: Checkpoint{Index: 3, Term: 4, Config: []byte("c")}, StateParts: 1}
	f.Add(h.Append(nil))
	f.Add(AppendExtents(nil, []ExtentRef{{Volume: 1, Extent: 2, Epoch: 3}}))
	tab := table{epoch: 1}
	tab.pages[3] = &page{epoch: 1}
	tab.pages[3].entries[5] = entry{1, 2, 3}
	f.Add(tab.encode(nil))
	v := newVolume()
	value := v.appendValue(nil, nil)
	f.Add(append(be.AppendUint32(be.AppendUint64(nil, 7), uint32(len(value))), value...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, err := DecodeManifestHeader(data); err == nil && !bytes.Equal(h.Append(nil), data) {
			t.Errorf("header %x encodes differently", data)
		}
		if refs, err := DecodeExtents(data); err == nil && !bytes.Equal(AppendExtents(nil, refs), data) {
			t.Errorf("list %x encodes differently", data)
		}
		_, missing, shared, err := decodeTable(extentID{1, 1}, 1, data)
		if err == nil && missing.count()+shared.count() > storage.BlocksPerExtent {
			t.Errorf("table %x has too many blocks", data)
		}
		_ = decodeStatePart(data, func(storage.VolumeID, *volume) error { return nil })
	})
}

func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(`{"magic":"storaged store","version":1,"cluster":"01020300-0000-0000-0000-000000000000","store":"09000000-0000-0000-0000-000000000000"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if id, err := parseIdentity(data); err == nil && (id.Cluster.IsZero() || id.Store.IsZero()) {
			t.Errorf("%q has no ids", data)
		}
	})
}

func FuzzDecodeLive(f *testing.F) {
	key := liveKey(1, 2)
	f.Add(key, liveValue(key, 3))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if _, _, n, err := decodeLive(key, value); err == nil && n <= 0 {
			t.Errorf("%d", n)
		}
		parsePageKey(key)
		parseGroupKey(key)
	})
}
