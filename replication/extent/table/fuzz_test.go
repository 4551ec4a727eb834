package table

import (
	"bytes"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Every decoder: no panic, nothing allocated for lengths that are not there, and what is accepted encodes to the same
// bytes. The values of Pebble end with a checksum, which would keep the fuzzer out: it is made right for it.

func FuzzDecodePage(f *testing.F) {
	key := AppendPageKey(nil, 1, PageKey{Volume: 2, Extent: 3, Page: 4}, 5)
	p := Page{Epoch: 5, Index: 9}
	p.Set(7, Entry{Segment: 1, Offset: 2, Sum: 3}, Counts{})
	p.Set(63, Entry{Segment: 4, Offset: 5, Sum: 6}, Counts{})
	full := p.Fork(5, true)
	full.Chain = 0
	partly := p.Fork(5, true)
	partly.Set(8, Entry{Segment: 7, Offset: 8, Sum: 9}, Counts{})
	partly.Chain = MaxChain
	for _, v := range [][]byte{p.AppendValue(nil, key, false), p.AppendValue(nil, key, true), full.AppendValue(nil, key, true), partly.AppendValue(nil, key, true)} {
		f.Add(v[:len(v)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		value := Seal(key, bytes.Clone(body))
		var p Page
		err := p.Decode(key, value)
		if err == nil && !bytes.Equal(p.AppendValue(nil, key, p.Indexed), value) {
			t.Errorf("%x encodes differently", value)
		}
		if err == nil && (p.Own&^p.Bitmap() != 0 || p.Missing&p.Stored() != 0 || p.Chain > MaxChain || p.Chain == 0 && p.Missing != 0) {
			t.Errorf("%x is not sound: %+v", value, p)
		}
		_ = p.Decode(key, body)
	})
}

func FuzzDecodeVolume(f *testing.F) {
	v := NewVolume()
	v.openSession(&op.Op{Session: 4, Generation: 2})
	v.openSession(&op.Op{Session: 5, Generation: 2})
	v.closeSession(&op.Op{Session: 4})
	value := v.AppendValue(nil, nil)
	f.Add(value[:len(value)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := decodeVolume(nil, Seal(nil, bytes.Clone(body)))
		if err != nil {
			return
		}
		again, err := decodeVolume(nil, v.AppendValue(nil, nil))
		if err != nil || !bytes.Equal(again.AppendValue(nil, nil), v.AppendValue(nil, nil)) {
			t.Errorf("%x does not come back: %v", body, err)
		}
	})
}

func FuzzDecodeGroupRecord(f *testing.F) {
	r := GroupRecord{Set: 1, From: 2, Checkpoint: Checkpoint{Index: 3, Term: 4, ConfigIndex: 5, Config: []byte("c")}}
	value := r.AppendValue(nil, nil)
	f.Add(value[:len(value)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		value := Seal(nil, bytes.Clone(body))
		r, err := DecodeGroupRecord(nil, value)
		if err == nil && !bytes.Equal(r.AppendValue(nil, nil), value) {
			t.Errorf("%x encodes differently", value)
		}
	})
}

func FuzzDecodePull(f *testing.F) {
	h := ManifestHeader{Checkpoint: Checkpoint{Index: 3, Term: 4, Config: []byte("c")}, StateParts: 1}
	f.Add(h.Append(nil))
	f.Add(AppendRefs(nil, []Ref{{Volume: 1, Extent: 2, Epoch: 3}}))
	tab := Version{VersionID: VersionID{Epoch: 1}}
	tab.Pages[3] = &Page{Epoch: 1}
	tab.Pages[3].Entries[5] = Entry{Segment: 1, Offset: 2, Sum: 3}
	f.Add(tab.Encode())
	f.Add(tab.EncodeWhole(&Version{}))
	f.Add(AppendStatePart(nil, 7, NewVolume()))
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, err := DecodeManifestHeader(data); err == nil && !bytes.Equal(h.Append(nil), data) {
			t.Errorf("header %x encodes differently", data)
		}
		if refs, err := DecodeRefs(data); err == nil && !bytes.Equal(AppendRefs(nil, refs), data) {
			t.Errorf("list %x encodes differently", data)
		}
		_, missing, shared, err := DecodeVersion(VersionID{ExtentID: ExtentID{Volume: 1, Extent: 1}, Epoch: 1}, data)
		if err == nil && missing.Count()+shared.Count() > storage.BlocksPerExtent {
			t.Errorf("table %x has too many blocks", data)
		}
		_ = DecodeStatePart(data, func(storage.VolumeID, *Volume) error { return nil })
	})
}

func FuzzDecodeLive(f *testing.F) {
	key := LiveKey(1, 2)
	for _, v := range [][]byte{LiveValue(key, Count{3, 3}, false), LiveValue(key, Count{3, 0}, true)} {
		f.Add(key, v[:len(v)-4])
	}
	f.Fuzz(func(t *testing.T, key, body []byte) {
		if _, _, n, err := DecodeLive(key, Seal(key, bytes.Clone(body))); err == nil && (n.Refs < 1 || n.Own < 0 || n.Own > n.Refs) {
			t.Errorf("%+v", n)
		}
		_, _, _, _ = DecodeLive(key, body)
		ParsePageKey(key)
		ParseGroupKey(key)
	})
}
