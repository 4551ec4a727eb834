package runner

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

// Raft's messages travel as frame headers of replication/peer, little-endian, laid out in docs/format/raft.md. The
// data of entries is the frame's payload, one entry after the other, by reference.
//
// Everything decoded here came from a peer and is checked before it is used.

// MaxEntriesPerCall bounds the entries of one request of the library.
const MaxEntriesPerCall = 1024

// SnapshotVersion is what protocol version 3 of the library writes.
const SnapshotVersion raft.SnapshotVersion = 1

const (
	maxIDBytes        = 128
	maxExtensionBytes = 1 << 10
	maxConfigBytes    = 32 << 10
)

// enc appends fields to a header.
type enc struct{ b []byte }

func (e *enc) u8(v uint8)   { e.b = append(e.b, v) }
func (e *enc) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *enc) u64(vs ...uint64) {
	for _, v := range vs {
		e.b = binary.LittleEndian.AppendUint64(e.b, v)
	}
}
func (e *enc) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}
func (e *enc) bytes(v []byte) {
	e.b = binary.LittleEndian.AppendUint16(e.b, uint16(len(v)))
	e.b = append(e.b, v...)
}
func (e *enc) rpcHeader(h raft.RPCHeader) {
	e.u8(uint8(h.ProtocolVersion))
	e.bytes(h.ID)
	e.bytes(h.Addr)
}

// request begins a message of about that many bytes to the replica named to; response begins its answer.
func request(bytes int, to raft.ServerID, h raft.RPCHeader) enc {
	e := enc{make([]byte, 0, bytes)}
	e.bytes([]byte(to))
	e.rpcHeader(h)
	return e
}

func response(h raft.RPCHeader) enc {
	e := enc{make([]byte, 0, 64)}
	e.rpcHeader(h)
	return e
}

// dec takes fields off a header; the first field that does not fit sets bad, and all later ones are zero.
type dec struct {
	b   []byte
	bad bool
}

func (d *dec) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}
func (d *dec) u8() uint8 {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}
func (d *dec) u32() uint32 {
	if v := d.take(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}
func (d *dec) u64() uint64 {
	if v := d.take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}
func (d *dec) bool() bool { return d.u8() == 1 }
func (d *dec) bytes(limit int) []byte {
	v := d.take(2)
	if v == nil {
		return nil
	}
	n := int(binary.LittleEndian.Uint16(v))
	if n > limit {
		d.bad = true
		return nil
	}
	return append([]byte(nil), d.take(n)...) // header buffers are pooled: copy what is kept
}
func (d *dec) rpcHeader() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(d.u8()), ID: d.bytes(maxIDBytes),
		Addr: d.bytes(maxIDBytes)}
}
func (d *dec) done(what string) error {
	if d.bad {
		return storage.E("decode "+what, storage.KindInvalid, "", fmt.Errorf("the message is cut short or a length is out of range"))
	}
	if len(d.b) != 0 {
		return storage.E("decode "+what, storage.KindInvalid, "", fmt.Errorf("%d bytes too many", len(d.b)))
	}
	return nil
}

// encodeAppend encodes a request for the replica named to, with the entries' data beside it.
func encodeAppend(to raft.ServerID, r *raft.AppendEntriesRequest) (header []byte, payload [][]byte) {
	e := request(128+len(r.Entries)*32, to, r.RPCHeader)
	e.u64(r.Term, r.PrevLogEntry, r.PrevLogTerm, r.LeaderCommitIndex)
	e.u32(uint32(len(r.Entries)))
	if len(r.Entries) > 0 {
		payload = make([][]byte, 0, len(r.Entries))
	}
	for _, l := range r.Entries {
		e.u64(l.Index, l.Term)
		e.u8(uint8(l.Type))
		var at int64
		if !l.AppendedAt.IsZero() {
			at = l.AppendedAt.UnixNano()
		}
		e.u64(uint64(at))
		e.u32(uint32(len(l.Data)))
		e.bytes(l.Extensions)
		if len(l.Data) > 0 {
			payload = append(payload, l.Data)
		}
	}
	return e.b, payload
}

// appendHead takes what precedes the entries off the header of an AppendEntries, and returns how many there are.
func (d *dec) appendHead() (to raft.ServerID, r *raft.AppendEntriesRequest, entries int) {
	to = raft.ServerID(d.bytes(maxIDBytes))
	r = &raft.AppendEntriesRequest{RPCHeader: d.rpcHeader(), Term: d.u64(), PrevLogEntry: d.u64(),
		PrevLogTerm: d.u64(), LeaderCommitIndex: d.u64()}
	r.Leader = r.RPCHeader.Addr
	n := d.u32()
	if n > MaxEntriesPerCall || int(n)*31 > len(d.b) {
		d.bad = true
		n = 0
	}
	return to, r, int(n)
}

// entry takes an entry off the header, without its data, of which there are size bytes.
func (d *dec) entry(l *raft.Log) (size uint32) {
	l.Index, l.Term, l.Type = d.u64(), d.u64(), raft.LogType(d.u8())
	if at := int64(d.u64()); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	size = d.u32()
	l.Extensions = d.bytes(maxExtensionBytes)
	return size
}

// decodeAppend is the inverse of encodeAppend. The payload is in one part or more, and no entry's data is in two. The entries'
// Data point into it.
func decodeAppend(header []byte, payload [][]byte) (to raft.ServerID, r *raft.AppendEntriesRequest, err error) {
	d := dec{b: header}
	to, r, n := d.appendHead()
	if n > 0 {
		logs := make([]raft.Log, n)
		r.Entries = make([]*raft.Log, n)
		var p dec // the part that the next entry's data is taken from
		for i := range logs {
			l := &logs[i]
			if size := d.entry(l); size > 0 {
				if len(p.b) == 0 && len(payload) > 0 {
					p.b, payload = payload[0], payload[1:]
				}
				l.Data = p.take(int(size))
			}
			if l.Index != r.PrevLogEntry+uint64(i)+1 || l.Index == 0 || !validType(l.Type) {
				d.bad = true
			}
			if l.Type == raft.LogConfiguration && !ValidConfiguration(l.Data) {
				d.bad = true // DecodeConfiguration panics on what it cannot read
			}
			r.Entries[i] = l
		}
		d.bad = d.bad || p.bad || len(p.b) != 0
	}
	if len(payload) != 0 {
		d.bad = true
	}
	return to, r, d.done("append entries")
}

// validType reports whether a leader of this protocol version appends such entries. The library stores others, and does
// not start again with them.
func validType(t raft.LogType) bool {
	return t == raft.LogCommand || t == raft.LogNoop || t == raft.LogBarrier || t == raft.LogConfiguration
}

// ValidConfiguration reports whether raft.DecodeConfiguration can read data.
func ValidConfiguration(data []byte) (ok bool) {
	if len(data) > maxConfigBytes {
		return false
	}
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	raft.DecodeConfiguration(data)
	return true
}

func encodeAppendResponse(r *raft.AppendEntriesResponse, freeBytes int64) []byte {
	e := response(r.RPCHeader)
	e.u64(r.Term, r.LastLog)
	e.bool(r.Success)
	e.bool(r.NoRetryBackoff)
	e.u64(uint64(freeBytes))
	return e.b
}

func decodeAppendResponse(header []byte, r *raft.AppendEntriesResponse) (freeBytes int64, err error) {
	d := dec{b: header}
	*r, freeBytes = d.appendResponse()
	return freeBytes, d.done("append entries response")
}

func (d *dec) appendResponse() (r raft.AppendEntriesResponse, freeBytes int64) {
	return raft.AppendEntriesResponse{RPCHeader: d.rpcHeader(), Term: d.u64(), LastLog: d.u64(), Success: d.bool(),
		NoRetryBackoff: d.bool()}, int64(d.u64())
}

// anonymous is a candidate's header without its ID. hashicorp/raft refuses a vote to a candidate that the voter's own
// configuration does not have as a voter. Raft has no such rule, and with it a group of three is stuck when the leader
// dies after AddVoter was committed by itself and the new voter: the third holds neither entry nor vote for the new
// one, and its own log is too short to be elected. Without an ID the library leaves the check out (in a pre-vote it
// does not: see Transport.servePreVote). What it is meant for, removed servers that disturb, pre-votes and the check
// for a present leader keep off.
func anonymous(h raft.RPCHeader) raft.RPCHeader {
	h.ID = nil
	return h
}

func encodeVote(to raft.ServerID, r *raft.RequestVoteRequest) []byte {
	e := candidacy(to, anonymous(r.RPCHeader), r.Term, r.LastLogIndex, r.LastLogTerm)
	e.bool(r.LeadershipTransfer)
	return e.b
}

func decodeVote(header []byte) (to raft.ServerID, r *raft.RequestVoteRequest, err error) {
	d := dec{b: header}
	to = raft.ServerID(d.bytes(maxIDBytes))
	r = &raft.RequestVoteRequest{RPCHeader: d.rpcHeader(), Term: d.u64(), LastLogIndex: d.u64(), LastLogTerm: d.u64(),
		LeadershipTransfer: d.bool()}
	r.Candidate = r.RPCHeader.Addr
	return to, r, d.done("request vote")
}

// encodeVerdict encodes the answer to a vote, a pre-vote or a snapshot.
func encodeVerdict(h raft.RPCHeader, term uint64, yes bool) []byte {
	e := response(h)
	e.u64(term)
	e.bool(yes)
	return e.b
}

func decodeVerdict(what string, header []byte) (h raft.RPCHeader, term uint64, yes bool, err error) {
	d := dec{b: header}
	h, term, yes = d.rpcHeader(), d.u64(), d.bool()
	return h, term, yes, d.done(what)
}

func encodePreVote(to raft.ServerID, r *raft.RequestPreVoteRequest) []byte {
	return candidacy(to, r.RPCHeader, r.Term, r.LastLogIndex, r.LastLogTerm).b
}

// candidacy encodes what votes and pre-votes begin with.
func candidacy(to raft.ServerID, h raft.RPCHeader, term, lastIndex, lastTerm uint64) enc {
	e := request(128, to, h)
	e.u64(term, lastIndex, lastTerm)
	return e
}

func decodePreVote(header []byte) (to raft.ServerID, r *raft.RequestPreVoteRequest, err error) {
	d := dec{b: header}
	to = raft.ServerID(d.bytes(maxIDBytes))
	r = &raft.RequestPreVoteRequest{RPCHeader: d.rpcHeader(), Term: d.u64(), LastLogIndex: d.u64(),
		LastLogTerm: d.u64()}
	return to, r, d.done("request pre-vote")
}

// timeoutNow is the library's message with the leader's term, which it lacks.
type timeoutNow struct {
	header raft.RPCHeader
	term   uint64
}

func encodeTimeoutNow(to raft.ServerID, m timeoutNow) []byte {
	e := request(64, to, m.header)
	e.u64(m.term)
	return e.b
}

func decodeTimeoutNow(header []byte) (to raft.ServerID, m timeoutNow, err error) {
	d := dec{b: header}
	to, m = raft.ServerID(d.bytes(maxIDBytes)), timeoutNow{d.rpcHeader(), d.u64()}
	return to, m, d.done("timeout now")
}

// installPart is what travels of a snapshot with one request: the name of the manifest that the receiver is to pull,
// or a chunk of the content, which is the frame's payload.
type installPart struct {
	req      *raft.InstallSnapshotRequest
	manifest string
	stream   uint64 // chunks of one snapshot have the same
	offset   uint64 // of the chunk in the content
	last     bool   // hand it to Raft
}

func encodeInstall(to raft.ServerID, part installPart) []byte {
	r := part.req
	e := request(256, to, r.RPCHeader)
	e.u8(uint8(r.SnapshotVersion))
	e.u64(r.Term, r.LastLogIndex, r.LastLogTerm)
	e.bytes(r.Configuration)
	e.u64(r.ConfigurationIndex)
	e.bytes([]byte(part.manifest))
	e.u64(part.stream, part.offset)
	e.bool(part.last)
	return e.b
}

func decodeInstall(header []byte) (to raft.ServerID, part installPart, err error) {
	d := dec{b: header}
	to = raft.ServerID(d.bytes(maxIDBytes))
	r := &raft.InstallSnapshotRequest{RPCHeader: d.rpcHeader(), SnapshotVersion: raft.SnapshotVersion(d.u8()),
		Term: d.u64(), LastLogIndex: d.u64(), LastLogTerm: d.u64(), Configuration: d.bytes(maxConfigBytes),
		ConfigurationIndex: d.u64()}
	r.Leader = r.RPCHeader.Addr
	part = installPart{req: r, manifest: string(d.bytes(maxIDBytes)), stream: d.u64(), offset: d.u64(), last: d.bool()}
	if r.SnapshotVersion != SnapshotVersion || !ValidConfiguration(r.Configuration) {
		d.bad = true
	}
	return to, part, d.done("install snapshot")
}

// A heartbeat is an AppendEntries without entries, previous entry and commit index; those of all groups between two
// nodes travel together.

// heartbeat is one group's part of a merged frame.
type heartbeat struct {
	group storage.GroupID
	to    raft.ServerID
	req   *raft.AppendEntriesRequest
}

// maxHeartbeatsPerFrame bounds a merged frame within the header limit of replication/peer.
const maxHeartbeatsPerFrame = 256

func encodeHeartbeats(hs []heartbeat) []byte {
	e := enc{make([]byte, 0, 4+len(hs)*160)}
	e.u32(uint32(len(hs)))
	for i := range hs {
		e.u32(uint32(hs[i].group))
		e.bytes([]byte(hs[i].to))
		e.rpcHeader(hs[i].req.RPCHeader)
		e.u64(hs[i].req.Term)
	}
	return e.b
}

func decodeHeartbeats(header []byte) ([]heartbeat, error) {
	d := dec{b: header}
	n := d.u32()
	if n > maxHeartbeatsPerFrame {
		d.bad, n = true, 0
	}
	hs := make([]heartbeat, n)
	for i := range hs {
		hs[i] = heartbeat{group: storage.GroupID(d.u32()), to: raft.ServerID(d.bytes(maxIDBytes))}
		hs[i].req = &raft.AppendEntriesRequest{RPCHeader: d.rpcHeader(), Term: d.u64()}
		hs[i].req.Leader = hs[i].req.RPCHeader.Addr
	}
	return hs, d.done("heartbeats")
}

// heartbeatAnswer is the answer to one heartbeat; missing when the replica is not here or keeps silent.
type heartbeatAnswer struct {
	present   bool
	resp      raft.AppendEntriesResponse
	freeBytes int64
}

func encodeHeartbeatAnswers(as []heartbeatAnswer) []byte {
	e := enc{make([]byte, 0, 4+len(as)*96)}
	e.u32(uint32(len(as)))
	for i := range as {
		e.bool(as[i].present)
		if as[i].present {
			e.b = append(e.b, encodeAppendResponse(&as[i].resp, as[i].freeBytes)...)
		}
	}
	return e.b
}

func decodeHeartbeatAnswers(header []byte) ([]heartbeatAnswer, error) {
	d := dec{b: header}
	n := d.u32()
	if n > maxHeartbeatsPerFrame {
		d.bad, n = true, 0
	}
	as := make([]heartbeatAnswer, n)
	for i := range as {
		if as[i].present = d.bool(); !as[i].present {
			continue
		}
		as[i].resp, as[i].freeBytes = d.appendResponse()
	}
	return as, d.done("heartbeat answers")
}
