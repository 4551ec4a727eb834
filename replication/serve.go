package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/aligned"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

// Propose asks this node's replica of a group, which must lead it, to run one operation. data is the operation's
// header and payload in pieces; it is not referred to after the return. Errors: KindNotLeader (with a hint, see
// op.LeaderHint), KindUnavailable (the outcome may be unknown: send the same number again), KindNoSpace, KindInvalid and
// KindIO (nothing was proposed; the last one: a block that it changes in part cannot be read by any replica). A refusal by the state machine is no error but the result's kind.
func (rs *Replicas) Propose(ctx context.Context, id storage.GroupID, data [][]byte) (op.Result, error) {
	g, err := rs.group(id)
	if err != nil {
		return op.Result{}, err
	}
	joined := join(data) // the log keeps it
	return within(ctx, "propose", id, func() (op.Result, error) { return g.propose(ctx, joined) }, func(op.Result) {})
}

// join returns the data of an operation in one piece, its blocks where the log can write them from.
func join(data [][]byte) []byte {
	n := 0
	for _, part := range data {
		n += len(part)
	}
	body := op.BlocksOf(n)
	if body == 0 {
		return bytes.Join(data, nil)
	}
	joined := aligned.Before(n-body, body)
	at := 0
	for _, part := range data {
		at += copy(joined[at:], part)
	}
	return joined
}

// layoutPropose is the peer.Layout of operations.
func layoutPropose(_ []byte, payloadBytes int) [][]byte {
	body := op.BlocksOf(payloadBytes)
	if body == 0 {
		return nil
	}
	return [][]byte{aligned.Before(payloadBytes-body, body)}
}

// within runs f, and returns what it returns or, when ctx is done first, an error of KindUnavailable. f goes on then until the
// disk or the library answers, and dropped gets what it has returned too late.
func within[T any](ctx context.Context, what string, id storage.GroupID, f func() (T, error), dropped func(T)) (v T, err error) {
	if ctx.Done() == nil {
		return f()
	}
	type outcome struct {
		v   T
		err error
	}
	done := make(chan outcome)
	go func() {
		v, err := f()
		select {
		case done <- outcome{v, err}:
		case <-ctx.Done():
			if err == nil {
				dropped(v)
			}
		}
	}()
	select {
	case o := <-done:
		return o.v, o.err
	case <-ctx.Done():
		return v, storage.E(what, storage.KindUnavailable, "group "+id.String(), ctx.Err())
	}
}

// Leader returns the node that leads a group, as far as this node's replica of it knows; 0 for none.
func (rs *Replicas) Leader(id storage.GroupID) storage.NodeID {
	g, err := rs.group(id)
	if err != nil {
		return 0
	}
	return g.leader()
}

// Read answers a read from this node's replica of a group, which must lead it. The caller releases the answer. When ctx is
// done first it returns, and what it has taken is given back when the disk has answered.
func (rs *Replicas) Read(ctx context.Context, id storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	return within(ctx, "read", id, func() (*op.ReadData, error) { return rs.read(ctx, id, req) }, (*op.ReadData).Release)
}

func (rs *Replicas) read(ctx context.Context, id storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	g, err := rs.group(id)
	if err != nil {
		return nil, err
	}
	if err := req.Validate(); err != nil {
		return nil, err
	}
	_, n := req.Blocks()
	// Guards I9: a request of a few bytes has an extent read, and a peer that sends many need not take the answers.
	size := int64(n) * storage.BlockSize
	if err := acquireWithin(ctx, g.disk.reads, size); err != nil {
		return nil, storage.E("read", storage.KindUnavailable, "group "+id.String(), err)
	}
	buf := getBuffer(n * storage.BlockSize)
	buf.room = g.disk.reads
	resp := op.ReadResponse{Sums: make([]uint32, n), Holes: make([]bool, n)}
	if err := g.read(ctx, req, buf.b, &resp); err != nil {
		buf.put()
		return nil, err
	}
	payload := buf.b[:resp.PayloadLen()]
	return op.NewReadData(resp, payload, buf.put), nil
}

// BlockStatus says which blocks of a range are mapped, from this node's replica, which must lead the group.
func (rs *Replicas) BlockStatus(ctx context.Context, id storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	g, err := rs.group(id)
	if err != nil {
		return nil, err
	}
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return g.status(ctx, req)
}

// MappedExtents says which extents of a range hold anything, from this node's replica, which must lead the group.
func (rs *Replicas) MappedExtents(ctx context.Context, id storage.GroupID, req op.MappedRequest) (op.MappedResponse, error) {
	g, err := rs.group(id)
	if err != nil {
		return op.MappedResponse{}, err
	}
	if err := req.Validate(); err != nil {
		return op.MappedResponse{}, err
	}
	// I1: what a gateway is told to be empty it does not clear, and formats. Take this out, and it skips what a later leader
	// holds. A lease is not enough: it trusts a clock, and what is destroyed by a wrong answer stays so (ADR 23).
	if err := g.confirmRead(ctx, op.ReadQuorum); err != nil {
		return op.MappedResponse{}, err
	}
	return g.extents.MappedExtents(req)
}

func (rs *Replicas) servePropose(in *peer.Inbound) {
	g, err := rs.group(in.Group)
	if err != nil {
		in.ReplyError(err)
		return
	}
	if in.Client {
		if err := mayPropose(in.Payload); err != nil {
			refuse(in, err)
			return
		}
	}
	result, err := g.propose(in.Context(), in.TakePayload())
	if err != nil {
		refuse(in, err)
		return
	}
	in.Reply(result.Append(nil), nil)
}

// refuse answers a proposal with an error, and has the sender counted when it was damaged on its way.
func refuse(in *peer.Inbound, err error) {
	if errors.Is(err, errDamagedRequest) {
		in.ReplyDamaged(err)
		return
	}
	in.ReplyError(err)
}

// mayPropose returns why a gateway outside of the nodes may not have an operation run: generations, epochs and deletions
// are the catalog's to set.
func mayPropose(data []byte) error {
	o, _, err := op.DecodeHeader(data)
	if errors.Is(err, storage.ErrCorrupt) {
		return storage.E("propose", storage.KindCorrupt, "request", fmt.Errorf("%w: %w", errDamagedRequest, err))
	}
	if err != nil {
		return err
	}
	switch o.Kind {
	case op.Write, op.Clear, op.OpenSession, op.CloseSession:
		return nil
	}
	return storage.E("propose", storage.KindPermission, "", fmt.Errorf("operation %d is not for gateways", o.Kind))
}

func (rs *Replicas) serveRead(in *peer.Inbound) {
	req, err := op.DecodeReadRequest(in.Header)
	if err != nil {
		in.ReplyError(err)
		return
	}
	data, err := rs.read(in.Context(), in.Group, req) // who does not wait any more is gone, or has a limit of its own
	if err != nil {
		in.ReplyError(err)
		return
	}
	in.ReplyThen(data.Header.Append(nil), [][]byte{data.Payload}, data.Release)
}

func (rs *Replicas) serveStatus(in *peer.Inbound) {
	req, err := op.DecodeStatusRequest(in.Header)
	var resp op.StatusResponse
	if err == nil {
		resp.Runs, err = rs.BlockStatus(in.Context(), in.Group, req)
	}
	in.Answer(resp.Append(nil), nil, err)
}

func (rs *Replicas) serveMapped(in *peer.Inbound) {
	req, err := op.DecodeMappedRequest(in.Header)
	var resp op.MappedResponse
	if err == nil {
		resp, err = rs.MappedExtents(in.Context(), in.Group, req)
	}
	in.Answer(resp.Append(nil), nil, err)
}

// buffer is a pooled read buffer. Pools are by size class: powers of two from one block to one extent.
type buffer struct {
	b     []byte
	class int
	room  *semaphore.Weighted // that len(b) bytes were taken of
}

var bufferPools [bufferClasses]sync.Pool

const bufferClasses = 11 // 4 KiB << 10 = 4 MiB

func getBuffer(n int) *buffer {
	class := bits.Len(uint((n+storage.BlockSize-1)/storage.BlockSize - 1))
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		b.b = b.b[:n]
		return b
	}
	return &buffer{b: make([]byte, storage.BlockSize<<class)[:n], class: class}
}

func (b *buffer) put() {
	b.room.Release(int64(len(b.b)))
	b.room = nil
	bufferPools[b.class].Put(b)
}

// MappedBlocks returns how many blocks of each volume this node's replica of the group maps; -1 for one that was written to
// before blocks were counted, 0 for one that the group has not heard of. It is exact on the leader, and behind by what is
// not applied yet elsewhere; a replica that is being pulled knows little. KindNotLeader without a replica.
func (rs *Replicas) MappedBlocks(id storage.GroupID, volumes []storage.VolumeID) ([]int64, error) {
	g, err := rs.group(id)
	if err != nil {
		return nil, err
	}
	return g.extents.MappedBlocks(volumes), nil
}
