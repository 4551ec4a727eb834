package runner

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

// What is decoded here came from a peer. Each fuzz test wants no panic, and that what is taken is encoded again to what
// is decoded to the same.

func sampleHeader() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("store/3"), Addr: []byte("3")}
}

// again fails unless encoding and decoding v gives v.
func again[T any](t *testing.T, v T, encode func(T) []byte, decode func([]byte) (T, error)) {
	t.Helper()
	got, err := decode(encode(v))
	if err != nil || !reflect.DeepEqual(got, v) {
		t.Fatalf("%+v becomes %+v, %v", v, got, err)
	}
}

func onePart(b []byte) [][]byte {
	if len(b) == 0 {
		return nil
	}
	return [][]byte{b}
}

func FuzzAppend(f *testing.F) {
	conf := raft.EncodeConfiguration(voters("a", "b"))
	h, p := encodeAppend("store/1", &raft.AppendEntriesRequest{RPCHeader: sampleHeader(), Term: 7, PrevLogEntry: 41, PrevLogTerm: 6,
		LeaderCommitIndex: 40, Entries: []*raft.Log{
			{Index: 42, Term: 7, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("x"), AppendedAt: time.Unix(5, 6)},
			{Index: 43, Term: 7, Type: raft.LogNoop}, {Index: 44, Term: 7, Type: raft.LogConfiguration, Data: conf}}})
	f.Add(h, bytes.Join(p, nil))
	h, _ = encodeAppend("store/1", &raft.AppendEntriesRequest{RPCHeader: sampleHeader(), Term: 7})
	f.Add(h, []byte(nil))
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		to, r, err := decodeAppend(header, onePart(payload))
		if err != nil {
			return
		}
		var cut dec // a payload that is laid out decodes to the same
		cut.b = payload
		var parts [][]byte
		for _, part := range (&Dispatcher{blocks: func(n int) int { return n / 2 }}).layoutAppend(header, len(payload)) {
			copy(part, cut.take(len(part)))
			parts = append(parts, part)
		}
		if _, laid, err := decodeAppend(header, parts); cut.bad || len(cut.b) != 0 || err != nil || !reflect.DeepEqual(laid, r) {
			t.Fatalf("laid out: %+v becomes %+v, %v", r, laid, err)
		}
		h, p := encodeAppend(to, r)
		to2, r2, err := decodeAppend(h, p)
		if err != nil || to2 != to || !reflect.DeepEqual(r2, r) {
			t.Fatalf("%+v becomes %+v, %v", r, r2, err)
		}
	})
}

func FuzzAppendResponse(f *testing.F) {
	f.Add(encodeAppendResponse(&raft.AppendEntriesResponse{RPCHeader: sampleHeader(), Term: 7, LastLog: 9, Success: true}, 1<<40))
	f.Fuzz(func(t *testing.T, header []byte) {
		var r raft.AppendEntriesResponse
		free, err := decodeAppendResponse(header, &r)
		if err != nil {
			return
		}
		again(t, r, func(r raft.AppendEntriesResponse) []byte { return encodeAppendResponse(&r, free) },
			func(b []byte) (r raft.AppendEntriesResponse, err error) {
				_, err = decodeAppendResponse(b, &r)
				return r, err
			})
	})
}

func FuzzVotes(f *testing.F) {
	f.Add(encodeVote("store/1", &raft.RequestVoteRequest{RPCHeader: sampleHeader(), Term: 7, LastLogIndex: 9, LastLogTerm: 6, LeadershipTransfer: true}))
	f.Add(encodePreVote("store/1", &raft.RequestPreVoteRequest{RPCHeader: sampleHeader(), Term: 7, LastLogIndex: 9, LastLogTerm: 6}))
	f.Add(encodeVerdict(sampleHeader(), 7, true))
	f.Add(encodeTimeoutNow("store/1", timeoutNow{sampleHeader(), 7}))
	f.Fuzz(func(t *testing.T, header []byte) {
		if to, r, err := decodePreVote(header); err == nil {
			again(t, r, func(r *raft.RequestPreVoteRequest) []byte { return encodePreVote(to, r) },
				func(b []byte) (*raft.RequestPreVoteRequest, error) { _, r, err := decodePreVote(b); return r, err })
		}
		if to, r, err := decodeVote(header); err == nil {
			r.ID = nil // never encoded: see anonymous
			again(t, r, func(r *raft.RequestVoteRequest) []byte { return encodeVote(to, r) },
				func(b []byte) (*raft.RequestVoteRequest, error) { _, r, err := decodeVote(b); return r, err })
		}
		if h, term, granted, err := decodeVerdict("vote", header); err == nil {
			again(t, h, func(h raft.RPCHeader) []byte { return encodeVerdict(h, term, granted) },
				func(b []byte) (raft.RPCHeader, error) { h, _, _, err := decodeVerdict("vote", b); return h, err })
		}
		if to, m, err := decodeTimeoutNow(header); err == nil {
			again(t, m, func(m timeoutNow) []byte { return encodeTimeoutNow(to, m) },
				func(b []byte) (timeoutNow, error) { _, m, err := decodeTimeoutNow(b); return m, err })
		}
	})
}

func FuzzInstall(f *testing.F) {
	conf := raft.EncodeConfiguration(voters("a", "b", "c"))
	req := &raft.InstallSnapshotRequest{RPCHeader: sampleHeader(), SnapshotVersion: SnapshotVersion, Term: 7, LastLogIndex: 100,
		LastLogTerm: 6, Configuration: conf, ConfigurationIndex: 90}
	f.Add(encodeInstall("store/1", installPart{req: req, manifest: "1-100-1", last: true}))
	f.Add(encodeInstall("store/1", installPart{req: req, stream: 77, offset: 4 << 20}))
	f.Fuzz(func(t *testing.T, header []byte) {
		if to, part, err := decodeInstall(header); err == nil {
			again(t, part, func(part installPart) []byte { return encodeInstall(to, part) },
				func(b []byte) (installPart, error) { _, part, err := decodeInstall(b); return part, err })
		}
	})
}

func FuzzHeartbeats(f *testing.F) {
	hb := heartbeat{group: 4, to: "store/1", req: &raft.AppendEntriesRequest{RPCHeader: sampleHeader(), Term: 7}}
	f.Add(encodeHeartbeats([]heartbeat{hb, hb}))
	f.Add(encodeHeartbeatAnswers([]heartbeatAnswer{{}, {present: true, freeBytes: 5,
		resp: raft.AppendEntriesResponse{RPCHeader: sampleHeader(), Term: 7, LastLog: 9, Success: true}}}))
	f.Fuzz(func(t *testing.T, header []byte) {
		if hs, err := decodeHeartbeats(header); err == nil {
			again(t, hs, encodeHeartbeats, decodeHeartbeats)
		}
		if as, err := decodeHeartbeatAnswers(header); err == nil {
			again(t, as, encodeHeartbeatAnswers, decodeHeartbeatAnswers)
		}
	})
}

func FuzzNodeAddress(f *testing.F) {
	f.Add("7")
	f.Fuzz(func(t *testing.T, a string) {
		if n, err := ParseNodeAddress(raft.ServerAddress(a)); err == nil {
			again(t, n, func(n storage.NodeID) []byte { return []byte(NodeAddress(n)) },
				func(b []byte) (storage.NodeID, error) { return ParseNodeAddress(raft.ServerAddress(b)) })
		}
	})
}

// TestDecodeParts: entries are found in parts that end where entries do, and in no others.
func TestDecodeParts(t *testing.T) {
	header, payload := encodeAppend("store/1", &raft.AppendEntriesRequest{RPCHeader: sampleHeader(), Term: 7, PrevLogEntry: 41, Entries: []*raft.Log{
		{Index: 42, Term: 7, Data: []byte("first")}, {Index: 43, Term: 7, Type: raft.LogNoop}, {Index: 44, Term: 7, Data: []byte("second")}}})
	all := bytes.Join(payload, nil)
	for cut := range len(all) + 1 {
		_, r, err := decodeAppend(header, [][]byte{all[:cut], all[cut:]})
		if sound := cut == len("first"); sound != (err == nil) || sound && string(r.Entries[2].Data) != "second" {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	for _, parts := range [][][]byte{nil, {all[:5]}, {append(bytes.Clone(all), 0)}, {all[:5], append(bytes.Clone(all[5:]), 0)}, {all, {0}}} {
		if _, _, err := decodeAppend(header, parts); err == nil {
			t.Errorf("%d parts of another length were taken", len(parts))
		}
	}
}
