package op_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Every decoder: no panic, and what it accepts encodes to the same bytes.

// fixHeaderSum makes the header's checksum right, which would keep the fuzzer out.
func fixHeaderSum(data []byte) {
	if len(data) < op.HeaderFixedLen {
		return
	}
	n := op.HeaderFixedLen + 4*int(binary.LittleEndian.Uint16(data[4:]))
	if len(data) < n {
		return
	}
	covered := append(bytes.Clone(data[:op.HeaderFixedLen-4]), data[op.HeaderFixedLen:n]...)
	binary.LittleEndian.PutUint32(data[op.HeaderFixedLen-4:], op.Sum(covered))
}

func FuzzDecode(f *testing.F) {
	o := write(4000, pattern(5000))
	f.Add(append(o.AppendHeader(nil), pattern(5000)...))
	c := op.Op{Kind: op.CloseSession, Volume: 1, Session: 2}
	f.Add(c.AppendHeader(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.Clone(data)
		fixHeaderSum(data)
		o, payload, err := op.Decode(data)
		if err != nil {
			return
		}
		if got := append(o.AppendHeader(nil), payload...); !bytes.Equal(got, data) {
			t.Errorf("%x encodes as %x", data, got)
		}
		_ = o.Verify(payload)
	})
}

func FuzzDecodeResult(f *testing.F) {
	r := op.Result{Window: &op.Window{Low: 9}, Text: "text", Kind: 3}
	f.Add(r.Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := op.DecodeResult(data)
		if err != nil {
			return
		}
		if got := r.Append(nil); !bytes.Equal(got, data) {
			t.Errorf("%x encodes as %x", data, got)
		}
	})
}

func FuzzDecodeReads(f *testing.F) {
	rr := op.ReadRequest{Volume: 1, Length: 4096}
	f.Add(rr.Append(nil))
	ra := op.ReadResponse{Sums: []uint32{1, 2}, Holes: []bool{true, false}}
	f.Add(ra.Append(nil))
	sr := op.StatusRequest{ReadRequest: op.ReadRequest{Volume: 1, Length: 4096}, Dirty: true}
	f.Add(sr.Append(nil))
	mr := op.MappedRequest{Volume: 1, End: 2}
	f.Add(mr.Append(nil))
	ma := op.MappedResponse{Next: 9, Extents: []storage.ExtentIndex{1, 8}}
	f.Add(ma.Append(nil))
	sa := op.StatusResponse{Runs: []op.Run{{Length: 4096, Flags: op.RunHole}}}
	f.Add(sa.Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		same := func(got []byte) {
			if !bytes.Equal(got, data) {
				t.Errorf("%x encodes as %x", data, got)
			}
		}
		if r, err := op.DecodeReadRequest(data); err == nil {
			same(r.Append(nil))
		}
		var answer op.ReadResponse
		if err := answer.Decode(data); err == nil {
			same(answer.Append(nil))
		}
		if r, err := op.DecodeStatusRequest(data); err == nil {
			same(r.Append(nil))
		}
		if r, err := op.DecodeStatusResponse(data); err == nil {
			same(r.Append(nil))
		}
		if r, err := op.DecodeMappedRequest(data); err == nil {
			same(r.Append(nil))
		}
		if r, err := op.DecodeMappedResponse(data); err == nil {
			same(r.Append(nil))
		}
	})
}
