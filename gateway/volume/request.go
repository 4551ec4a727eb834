package volume

import (
	"context"
	"sync/atomic"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// request is one mutation of a volume from its start until the outcome of everything that was sent for it is known.
type request struct {
	volume *Volume
	// ctx is the caller's. It is kept because whoever ends it (a connection) must be seen to have left while the
	// caller's goroutine is still inside an attempt.
	ctx context.Context

	// refs counts the caller, until it returns, and every piece that goes on without it. The request ends at zero.
	refs atomic.Int32
	// orphaned: the caller has left, or will not answer. Set once, under trunk.mu. From then on the request counts
	// in trunk.orphans until it ends, and what was not applied under its present number is dropped.
	orphaned atomic.Bool

	// The list of the trunk's requests in the order of their start; guarded by trunk.mu.
	prev, next *request
	start      uint64
}

// piece is the part of a request that goes to one group as one entry. It belongs to one goroutine at a time.
type piece struct {
	req     *request
	op      op.Op
	payload []byte // the caller's until the piece is detached from it
	weight  int64  // what it counts towards the bytes in flight

	header []byte
	data   [2][]byte // header and payload, as Propose takes them
	sums   []uint32
}

// fill makes the piece a clear of p's whole blocks, or a write of payload, which lies at p.
func (pc *piece) fill(req *request, p part, payload []byte) {
	pc.req, pc.payload = req, payload
	pc.op = op.Op{Kind: op.Clear, Volume: req.volume.trunk.id, Extent: p.extent, Offset: p.offset, Length: p.length}
	if !p.clear {
		pc.sums = op.AppendSums(pc.sums[:0], p.offset, payload)
		pc.op.Kind, pc.op.Sums = op.Write, pc.sums
	}
	pc.weight = max(int64(len(payload)), requestOverheadBytes)
}

// encode puts the numbers of this attempt into the header. It returns what Propose takes.
func (pc *piece) encode(session storage.SessionID, seq uint64, epoch storage.Epoch, generation storage.Generation) [][]byte {
	pc.op.Session, pc.op.Seq, pc.op.Epoch, pc.op.Generation = session, seq, epoch, generation
	pc.header = pc.op.AppendHeader(pc.header[:0])
	pc.data[0], pc.data[1] = pc.header, pc.payload
	if len(pc.payload) == 0 {
		return pc.data[:1]
	}
	return pc.data[:]
}

// release forgets what belongs to the caller, so that a pooled piece keeps nothing alive.
func (pc *piece) release() {
	pc.req, pc.payload, pc.data = nil, nil, [2][]byte{}
}
