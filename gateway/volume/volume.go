package volume

import (
	"context"
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
)

// Volume is one handle of an open volume, for one connection or one program. Handles of the same volume at one
// gateway share a session and see each other's writes.
//
// All methods may be called concurrently. Ranges must lie within SizeBytes and not be empty: KindInvalid otherwise.
// They need no alignment; whole blocks cost least. When a context ends, the waiting ends at the latest one AttemptTimeout
// later, with KindCanceled. A mutation whose context ended may or may not be applied. It is never applied after a request
// that started later was answered. Use one context per connection: each new one costs an allocation. Reads and mutations
// wait for the volume's limits before they begin; Flush and Status do not, nor do they wait for those that wait. KindFenced
// and KindNotFound are final: the volume was taken over by another holder or detached, and the error says by whom and when,
// or deleted. KindNoSpace says that the stores are full.
type Volume struct {
	trunk *trunk
	name  string

	// Guarded by trunk.mu.
	closed  bool
	active  int             // requests of this handle in flight
	watched <-chan struct{} // the Done channel that endCaller waits for; the last one seen
	unwatch func() bool     // stops that
}

// Attachment returns the attachment that the volume is used under.
func (v *Volume) Attachment() storage.AttachmentID { return v.trunk.attachment.ID }

// Generation returns the generation that its requests carry.
func (v *Volume) Generation() storage.Generation { return v.trunk.generation }

// Name returns the name under which the volume was opened.
func (v *Volume) Name() string { return v.name }

// ReadOnly reports whether the handle refuses mutations.
func (v *Volume) ReadOnly() bool { return v.trunk.key.ReadOnly }

// SizeBytes returns the volume's size as last heard of; it only grows.
func (v *Volume) SizeBytes() int64 { return v.trunk.sizeBytes.Load() }

// Err returns why the volume failed for good at this gateway; nil while it has not.
func (v *Volume) Err() error {
	v.trunk.mu.Lock()
	defer v.trunk.mu.Unlock()
	return v.trunk.failure
}

// ReadAt fills p from off. No byte of it failed its checksum (KindCorrupt otherwise).
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) (err error) {
	m := &v.trunk.metrics.read
	defer m.end(m.begin(), int64(len(p)), &err)
	if err := v.check("read", off, int64(len(p))); err != nil {
		return err
	}
	if err := v.trunk.pace(ctx, int64(len(p))); err != nil {
		return err
	}
	if err := v.trunk.beginRead(ctx, v); err != nil {
		return err
	}
	defer v.trunk.endRead(v)
	return v.readAll(ctx, p, off)
}

// WriteAt stores p at off, durably. p must not be modified until it returns; afterwards it is not used any more.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off int64) (err error) {
	m := &v.trunk.metrics.write
	defer m.end(m.begin(), int64(len(p)), &err)
	n := int64(len(p))
	if err := v.checkMutation("write", off, n); err != nil {
		return err
	}
	if err := v.trunk.pace(ctx, n); err != nil {
		return err
	}
	if first := nextData(off, off+n); int(first.length) == len(p) {
		return v.mutateOne(ctx, first, p)
	}
	return v.mutateAll(ctx, off, off+n, nextData, func(part part) []byte {
		return p[part.end()-int64(part.length)-off:][:part.length]
	})
}

// WriteZeroes makes n bytes from off read as zeroes, durably. Whole blocks become holes unless noHole is set:
// then zeroes are written to all of them like other data, so that they stay allocated, at the cost of other data.
func (v *Volume) WriteZeroes(ctx context.Context, off, n int64, noHole bool) (err error) {
	m := &v.trunk.metrics.zero
	defer m.end(m.begin(), n, &err)
	if err := v.checkMutation("write zeroes", off, n); err != nil {
		return err
	}
	if noHole { // zeroes that stay allocated are written like other data
		if err := v.trunk.pace(ctx, n); err != nil {
			return err
		}
		return v.mutateAll(ctx, off, off+n, nextData, zeroPayload)
	}
	if err := v.trunk.pace(ctx, 0); err != nil {
		return err
	}
	first, end := blockCeil(off), blockFloor(off+n)
	if end-first <= storage.ExtentSize {
		return v.mutateAll(ctx, off, off+n, nextZero, zeroPayload)
	}
	if off < first {
		if err := v.mutateOne(ctx, nextData(off, first), zeroes[:first-off]); err != nil {
			return err
		}
	}
	if err := v.clearAll(ctx, first, end); err != nil {
		return err
	}
	if end < off+n {
		return v.mutateOne(ctx, nextData(end, off+n), zeroes[:off+n-end])
	}
	return nil
}

// Discard says that n bytes from off are not needed any more. Whole blocks among them read as zeroes afterwards; what
// lies in blocks that the range covers in part stays as it is.
func (v *Volume) Discard(ctx context.Context, off, n int64) (err error) {
	m := &v.trunk.metrics.discard
	defer m.end(m.begin(), n, &err)
	if err := v.checkMutation("discard", off, n); err != nil {
		return err
	}
	first, end := blockCeil(off), blockFloor(off+n)
	if first >= end {
		return nil
	}
	if err := v.trunk.pace(ctx, 0); err != nil {
		return err
	}
	return v.clearAll(ctx, first, end)
}

// Flush waits until every mutation that had started on this volume at this gateway is answered. What was
// acknowledged is durable already.
func (v *Volume) Flush(ctx context.Context) (err error) {
	m := &v.trunk.metrics.flush
	defer m.end(m.begin(), 0, &err)
	return v.trunk.flush(ctx, v)
}

// Status describes a prefix of the n bytes from off in at least one and at most limit runs (limit at least 1).
func (v *Volume) Status(ctx context.Context, off, n int64, limit int) (runs []Run, err error) {
	m := &v.trunk.metrics.status
	defer m.end(m.begin(), 0, &err)
	if err := v.check("status", off, n); err != nil {
		return nil, err
	}
	if limit < 1 {
		return nil, storage.E("status", storage.KindInvalid, v.trunk.subject, fmt.Errorf("a limit of %d runs", limit))
	}
	if err := v.trunk.beginRead(ctx, v); err != nil {
		return nil, err
	}
	defer v.trunk.endRead(v)
	return v.status(ctx, off, off+n, limit)
}

// Allocated reports whether any block of the volume is mapped: was written, and not discarded since. It includes every write
// that was acknowledged before it began.
func (v *Volume) Allocated(ctx context.Context) (found bool, err error) {
	m := &v.trunk.metrics.status
	defer m.end(m.begin(), 0, &err)
	if err := v.trunk.beginRead(ctx, v); err != nil {
		return false, err
	}
	defer v.trunk.endRead(v)
	for looks := v.trunk.looksOf(0, v.SizeBytes()); len(looks) > 0; {
		if err := v.lookAll(ctx, looks); err != nil {
			return false, err
		}
		if slices.ContainsFunc(looks, func(l *look) bool { return len(l.extents) > 0 }) {
			return true, nil
		}
		looks = slices.DeleteFunc(looks, func(l *look) bool { return l.next >= l.end })
	}
	return false, nil
}

// Detach ends the use of the handle without waiting: new requests are refused. Mutations that it still has in flight
// hold back everything that starts afterwards, on whichever handle, until their outcome is known or their
// session is closed in every group. When it was the last handle, the session is closed in the background.
func (v *Volume) Detach() { v.leave() }

// Close is Detach, and waits until the handle's requests have ended and, if it was the last handle, until the session
// is closed in every group. What ctx does not wait for goes on in the background until the Gateway is closed.
func (v *Volume) Close(ctx context.Context) error {
	retired := v.leave()
	t := v.trunk
	t.mu.Lock()
	err := t.awaitLocked(ctx, func() bool { return v.active == 0 })
	t.mu.Unlock()
	if err == nil && retired != nil {
		select {
		case <-retired:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return storage.E("close", storage.KindCanceled, t.subject, err)
	}
	return nil
}

// leave gives the handle up. It returns the end of the trunk's retirement if the handle was the last.
func (v *Volume) leave() <-chan struct{} {
	t := v.trunk
	t.mu.Lock()
	if v.closed {
		t.mu.Unlock()
		return nil
	}
	v.closed = true
	for r := t.first; r != nil; r = r.next {
		if r.volume == v {
			t.orphanLocked(r)
		}
	}
	if v.unwatch != nil {
		v.unwatch()
	}
	t.broadcastLocked()
	t.mu.Unlock()
	return t.gateway.release(t)
}

// watchLocked has the requests of a caller orphaned as soon as its context ends, while its goroutine may still wait for an attempt.
func (v *Volume) watchLocked(ctx context.Context) {
	done := ctx.Done()
	if done == nil || done == v.watched {
		return
	}
	v.watched = done
	v.unwatch = context.AfterFunc(ctx, v.endCaller)
}

// endCaller orphans the handle's requests whose context has ended.
func (v *Volume) endCaller() {
	t := v.trunk
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := t.first; r != nil; r = r.next {
		if r.volume == v && r.ctx.Err() != nil {
			t.orphanLocked(r)
		}
	}
}

func (v *Volume) checkMutation(what string, off, n int64) error {
	if v.ReadOnly() {
		return storage.E(what, storage.KindPermission, v.trunk.subject, fmt.Errorf("it is open read-only"))
	}
	return v.check(what, off, n)
}

func (v *Volume) check(what string, off, n int64) error {
	size := v.SizeBytes()
	if off < 0 || n < 1 || off > size || n > size-off {
		return storage.E(what, storage.KindInvalid, v.trunk.subject,
			fmt.Errorf("%d bytes at %d: the range is empty or leaves the volume's %d bytes", n, off, size))
	}
	return nil
}

// zeroes is what partial blocks are zeroed with, and whole ones when they shall stay allocated. Never written.
var zeroes [storage.MaxEntryPayloadBytes]byte

func zeroPayload(p part) []byte {
	if p.clear {
		return nil
	}
	return zeroes[:p.length]
}
