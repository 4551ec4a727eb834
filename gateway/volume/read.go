package volume

import (
	"context"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// readRefusedTries bounds how often a read is repeated that is refused although the catalog knows no reason: its copy
// may be behind the group's.
const readRefusedTries = 20

// readAll fills p from off, a bounded number of parts at a time.
func (v *Volume) readAll(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	if first := nextData(off, end); first.end() == end {
		return v.readPart(ctx, first, p)
	}
	cut := cutter{next: nextData, off: off, end: end}
	parts := int64(len(p)/storage.MaxEntryPayloadBytes + 2)
	return cut.each(ctx, "read", v.trunk.subject, helpers{n: min(requestParallel, parts) - 1}, func(part part) error {
		at := part.end() - int64(part.length) - off
		return v.readPart(ctx, part, p[at:][:part.length])
	})
}

// readPart fills dst with one part of an extent.
func (v *Volume) readPart(ctx context.Context, p part, dst []byte) error {
	t := v.trunk
	weight := max(int64(p.length), requestOverheadBytes)
	if err := t.acquire(ctx, weight); err != nil {
		return err
	}
	defer t.giveBack(weight)
	req := op.ReadRequest{Volume: t.id, Extent: p.extent, Offset: p.offset, Length: p.length, Generation: t.generation, Epoch: op.HeadEpoch}
	return t.insistRead(ctx, "read", func(attempt context.Context) error {
		data, err := t.gateway.config.Cluster.Read(attempt, t.groups[t.laneOf(p.extent)], req)
		if err != nil {
			return err
		}
		defer data.Release()
		return copyOut(dst, &req, data)
	})
}

// insistRead repeats once until it succeeds, or fails for good, or ctx or the trunk has ended. Bytes that fail
// their checksum are asked for once more.
func (t *trunk) insistRead(ctx context.Context, what string, once func(attempt context.Context) error) error {
	corrupt, refused := 0, 0
	var unreadable unreadable
	for n := 0; ; n++ {
		err := once(t.attempts.context())
		kind := storage.KindOf(err)
		switch {
		case err == nil:
			return nil
		case t.ctx.Err() != nil:
			return t.ended()
		case kind == storage.KindCorrupt && corrupt == 0:
			corrupt++
			t.metrics.retry(kind)
			t.gateway.config.Logger.Warn("read failed its checksum; trying once more", "volume", t.key.name, "error", err)
			continue
		case (kind == storage.KindFenced || kind == storage.KindNotFound) && refused < readRefusedTries:
			refused++
			if !t.refresh(t.attempts.context()) {
				return t.ended()
			}
		case kind == storage.KindIO && unreadable.past(unreadableTimeout), !retryable(kind):
			return storage.E(what, kind, t.subject, err)
		}
		if ctx.Err() != nil {
			return storage.E(what, storage.KindCanceled, t.subject, ctx.Err())
		}
		t.metrics.retry(kind)
		if kind != storage.KindNotLeader || n > 0 {
			t.pause(ctx, n, nil)
		}
	}
}

// unreadable follows a request whose block cannot be read, as its group's leader says (KindIO): it asked the other replicas
// as well. That may be otherwise soon, when another replica is back; after a while the client is told.
type unreadable struct{ since time.Time }

// past notes another such answer, and reports whether the first is longer ago than patience.
func (u *unreadable) past(patience time.Duration) bool {
	if u.since.IsZero() {
		u.since = time.Now()
	}
	return time.Since(u.since) >= patience
}

// copyOut checks the answer to req and copies the range asked for to dst. Holes are not copied, whatever the payload
// holds there.
func copyOut(dst []byte, req *op.ReadRequest, data *op.ReadData) error {
	_, blocks := req.Blocks()
	if len(data.Header.Sums) != blocks || len(data.Header.Holes) != blocks {
		return storage.E("read", storage.KindInternal, "", fmt.Errorf("the answer has %d blocks, want %d", len(data.Header.Sums), blocks))
	}
	// The blocks are checked here, after the network, and not only where they were read from the disk.
	if err := data.Header.Verify(data.Payload); err != nil {
		return err
	}
	skip := int(req.Offset % storage.BlockSize)
	if len(data.Payload) == 0 {
		clear(dst)
		return nil
	}
	copy(dst, data.Payload[skip:])
	for i, hole := range data.Header.Holes {
		if hole {
			clear(dst[max(i*storage.BlockSize-skip, 0):min((i+1)*storage.BlockSize-skip, len(dst))])
		}
	}
	return nil
}
