package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd/internal/wire"
)

const (
	// maxStatusExtents bounds the descriptors of one metadata context in one reply; the protocol allows 2^20.
	maxStatusExtents = 1 << 16
	// minHoleBytes is the smallest hole that is worth a chunk of its own.
	minHoleBytes = 4 << 10
)

// serve executes a request and queues its reply.
func (c *conn) serve(r *request) {
	err := c.execute(r)
	if err != nil {
		c.replyError(r, err)
	}
	c.srv.metrics.observe(r.Cmd, r.Length, time.Since(r.start), err != nil)
	c.queueReply(r)
}

// execute calls the export and builds the reply of a success.
func (c *conn) execute(r *request) error {
	if r.refused != nil {
		return r.refused
	}
	off, n := int64(r.Offset), int64(r.Length)
	if n == 0 && r.Cmd != wire.CmdFlush && r.Cmd != wire.CmdResize {
		c.replyDone(r)
		return nil
	}
	var err error
	switch r.Cmd {
	case wire.CmdRead:
		return c.read(r)
	case wire.CmdBlockStatus:
		return c.blockStatus(r)
	case wire.CmdWrite:
		err = c.export.WriteAt(c.ctx, r.buf.b, off)
	case wire.CmdFlush:
		err = c.flush(r)
	case wire.CmdTrim:
		err = c.export.Trim(c.ctx, off, n)
	case wire.CmdCache:
		err = c.export.Cache(c.ctx, off, n)
	case wire.CmdWriteZeroes:
		err = c.writeZeroes(r)
	case wire.CmdResize:
		err = c.resize(r)
	}
	if err == nil {
		c.replyDone(r)
	}
	return err
}

// flush waits for what the connection had in flight before, and then for the export.
func (c *conn) flush(r *request) error {
	if r.after != nil {
		select {
		case <-r.after:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
	return c.export.Flush(c.ctx)
}

func (c *conn) writeZeroes(r *request) error {
	if r.Flags&wire.CmdFlagFastZero != 0 {
		if b := c.bounds(); !b.fastZeroes(r.RequestHeader) {
			return refuse(wire.ErrnoNotSup, "zeroing this range is not faster than writing it")
		}
	}
	return c.export.WriteZeroes(c.ctx, int64(r.Offset), int64(r.Length), r.Flags&wire.CmdFlagNoHole != 0)
}

// resize asks for a size of r.offset bytes.
func (c *conn) resize(r *request) error {
	if err := c.resizer.Resize(c.ctx, r.Offset); err != nil {
		return err
	}
	c.sizeBytes.Store(c.export.Info().SizeBytes)
	return nil
}

// read fills the buffer and builds one chunk, or several if there are holes and the client lets us.
func (c *conn) read(r *request) error {
	if c.sparse != nil && c.features.Chunked() && r.Flags&wire.CmdFlagDF == 0 {
		holes, err := c.sparse.ReadSparse(c.ctx, r.buf.b, int64(r.Offset))
		if err != nil {
			return err
		}
		if err := checkHoles(holes, len(r.buf.b)); err != nil {
			return err
		}
		holes = clearSmallHoles(holes, r.buf.b)
		if len(holes) > 0 {
			c.replySparse(r, holes)
			return nil
		}
	} else if err := c.export.ReadAt(c.ctx, r.buf.b, int64(r.Offset)); err != nil {
		return err
	}
	head := r.head[:0]
	if c.features.Chunked() {
		head = wire.AppendChunk(head, r.RequestHeader, c.features.Extended, wire.ChunkFlagDone, wire.ChunkOffsetData, 8+len(r.buf.b))
		head = binary.BigEndian.AppendUint64(head, r.Offset)
	} else {
		head = wire.AppendSimpleReply(head, r.Cookie, 0)
	}
	r.parts = append(r.two[:0], head, r.buf.b)
	return nil
}

func checkHoles(holes []Hole, n int) error {
	end := 0
	for _, h := range holes {
		if h.Start < end || h.End <= h.Start || h.End > n {
			return storage.E("read", storage.KindInternal, "export", fmt.Errorf("bad hole [%d,%d)", h.Start, h.End))
		}
		end = h.End
	}
	return nil
}

// clearSmallHoles zeroes the holes that are not worth a chunk and returns the others.
func clearSmallHoles(holes []Hole, p []byte) []Hole {
	worth := holes[:0]
	for _, h := range holes {
		if h.End-h.Start < minHoleBytes {
			clear(p[h.Start:h.End])
		} else {
			worth = append(worth, h)
		}
	}
	return worth
}

// replySparse builds alternating chunks of data and holes; the last one is marked done.
func (c *conn) replySparse(r *request, holes []Hole) {
	p, end := r.buf.b, 0
	heads := make([]byte, 0, (2*len(holes)+1)*(wire.ExtendedReplyBytes+12))
	parts := r.two[:0]
	data := func(from, to int, flags uint16) {
		start := len(heads)
		heads = wire.AppendChunk(heads, r.RequestHeader, c.features.Extended, flags, wire.ChunkOffsetData, 8+to-from)
		heads = binary.BigEndian.AppendUint64(heads, r.Offset+uint64(from))
		parts = append(parts, heads[start:], p[from:to])
	}
	for i, h := range holes {
		if h.Start > end {
			data(end, h.Start, 0)
		}
		end = h.End
		flags := uint16(0)
		if i == len(holes)-1 && end == len(p) {
			flags = wire.ChunkFlagDone
		}
		start := len(heads)
		heads = wire.AppendChunk(heads, r.RequestHeader, c.features.Extended, flags, wire.ChunkOffsetHole, 12)
		heads = binary.BigEndian.AppendUint64(heads, r.Offset+uint64(h.Start))
		heads = binary.BigEndian.AppendUint32(heads, uint32(h.End-h.Start))
		parts = append(parts, heads[start:])
	}
	if end < len(p) {
		data(end, len(p), wire.ChunkFlagDone)
	}
	r.parts = parts
}

// blockStatus builds one chunk for each context.
func (c *conn) blockStatus(r *request) error {
	var parts [][]byte
	for _, mc := range c.features.Contexts {
		if r.ids != nil && !slices.Contains(r.ids, mc.Id) {
			continue
		}
		extents, err := c.export.Status(c.ctx, int64(r.Offset), int64(r.Length), mc.Name)
		if err != nil {
			return err
		}
		limit := extentLimits{lengthBytes: r.Length, restBytes: max(c.sizeBytes.Load(), r.Offset+r.Length) - r.Offset,
			one: r.Flags&wire.CmdFlagReqOne != 0, compact: !c.features.Extended}
		extents, err = limit.apply(extents)
		if err != nil {
			return err
		}
		parts = append(parts, c.statusChunk(r, mc.Id, extents))
	}
	last := parts[len(parts)-1]
	binary.BigEndian.PutUint16(last[4:], wire.ChunkFlagDone)
	r.parts = parts
	return nil
}

// statusChunk is a whole chunk without the flag done.
func (c *conn) statusChunk(r *request, id uint32, extents []Extent) []byte {
	if c.features.Extended {
		n := 8 + 16*len(extents)
		b := wire.AppendChunk(make([]byte, 0, wire.ExtendedReplyBytes+n), r.RequestHeader, true, 0, wire.ChunkBlockStatusExt, n)
		b = binary.BigEndian.AppendUint32(b, id)
		b = binary.BigEndian.AppendUint32(b, uint32(len(extents)))
		for _, e := range extents {
			b = binary.BigEndian.AppendUint64(b, e.LengthBytes)
			b = binary.BigEndian.AppendUint64(b, uint64(e.Flags))
		}
		return b
	}
	n := 4 + 8*len(extents)
	b := wire.AppendChunk(make([]byte, 0, wire.StructuredReplyBytes+n), r.RequestHeader, false, 0, wire.ChunkBlockStatus, n)
	b = binary.BigEndian.AppendUint32(b, id)
	for _, e := range extents {
		b = binary.BigEndian.AppendUint32(b, uint32(e.LengthBytes))
		b = binary.BigEndian.AppendUint32(b, e.Flags)
	}
	return b
}

// extentLimits says what a list of extents must keep to.
type extentLimits struct {
	lengthBytes uint64 // of the request
	restBytes   uint64 // to the end of the export; at least lengthBytes
	one         bool   // one extent, not longer than the request
	compact     bool   // lengths have 32 bits
}

// apply merges neighbours of equal flags and cuts the list to the limits. It works in place.
func (l extentLimits) apply(in []Extent) ([]Extent, error) {
	out := in[:0]
	var total uint64 // of out; every extent but the last ends before lengthBytes
	for _, e := range in {
		if e.LengthBytes == 0 {
			return nil, storage.E("block status", storage.KindInternal, "export", errors.New("an empty extent"))
		}
		if total >= l.lengthBytes {
			break
		}
		e.LengthBytes = min(e.LengthBytes, l.restBytes-total)
		if n := len(out); n > 0 && out[n-1].Flags == e.Flags {
			out[n-1].LengthBytes += e.LengthBytes
		} else if n == maxStatusExtents || n == 1 && l.one {
			break
		} else {
			out = append(out, e)
		}
		total += e.LengthBytes
	}
	if len(out) == 0 {
		return nil, storage.E("block status", storage.KindInternal, "export", errors.New("no extent"))
	}
	if l.one {
		out[0].LengthBytes = min(out[0].LengthBytes, l.lengthBytes)
	}
	if l.compact {
		for i := range out {
			if out[i].LengthBytes > math.MaxUint32 {
				out[i].LengthBytes = wire.MaxCompactExtentBytes
				return out[:i+1], nil // the client asks again behind it
			}
		}
	}
	return out, nil
}

// replyDone builds a success without payload.
func (c *conn) replyDone(r *request) {
	head := r.head[:0]
	if c.features.Extended || c.features.Structured && (r.Cmd == wire.CmdRead || r.Cmd == wire.CmdBlockStatus) {
		head = wire.AppendChunk(head, r.RequestHeader, c.features.Extended, wire.ChunkFlagDone, wire.ChunkNone, 0)
	} else {
		head = wire.AppendSimpleReply(head, r.Cookie, 0)
	}
	r.parts = append(r.two[:0], head)
}

// replyError builds a failure. Clients that know chunks are told why.
func (c *conn) replyError(r *request, err error) {
	errno := Errno(err)
	var ref *refusal
	if errors.As(err, &ref) {
		errno = ref.errno
	}
	if !c.features.Chunked() {
		r.parts = append(r.two[:0], wire.AppendSimpleReply(r.head[:0], r.Cookie, errno))
		return
	}
	text := truncate(err.Error(), wire.MaxMessageBytes)
	b := make([]byte, 0, wire.ExtendedReplyBytes+6+len(text))
	b = wire.AppendChunk(b, r.RequestHeader, c.features.Extended, wire.ChunkFlagDone, wire.ChunkError, 6+len(text))
	b = binary.BigEndian.AppendUint32(b, errno)
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	r.parts = append(r.two[:0], append(b, text...))
}

// queueReply queues a reply, and writes what is queued unless somebody does already.
func (c *conn) queueReply(r *request) {
	c.mu.Lock()
	if r.barrier != nil {
		r.barrier.leave()
	}
	c.pending = append(c.pending, r)
	if c.writing {
		c.mu.Unlock()
		return
	}
	c.writing = true
	others := c.unanswered > len(c.pending)
	c.mu.Unlock()
	if others {
		runtime.Gosched() // let those that are ready now queue theirs: one system call for all
	}
	c.writeReplies()
}

// writeReplies writes until nothing is queued. One goroutine is in it at a time.
func (c *conn) writeReplies() {
	var batch []*request
	for {
		c.mu.Lock()
		if batch != nil {
			c.spare = batch[:0]
		}
		batch = c.pending
		if len(batch) == 0 {
			c.writing = false
			c.mu.Unlock()
			return
		}
		c.pending, c.spare = c.spare[:0], nil
		c.mu.Unlock()

		err := c.writeBatch(batch)
		if err != nil {
			c.end(fmt.Errorf("write replies: %w", err))
		} else {
			c.mu.Lock()
			c.unanswered -= len(batch) // before running.Done: finish looks at it then
			c.mu.Unlock()
		}
		for i, r := range batch {
			c.finishRequest(r, err == nil)
			batch[i] = nil
		}
	}
}

// finishRequest gives back what a request held. answered: its reply was written.
func (c *conn) finishRequest(r *request, answered bool) {
	if answered {
		c.srv.metrics.requestsNow.Dec()
	}
	c.giveBack(r)
	c.running.Done()
}

// writeBatch writes the replies of a batch with as few system calls as possible. After an error nothing more can be
// written, for the stream may have ended in the middle of a reply.
func (c *conn) writeBatch(batch []*request) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	c.srv.metrics.batch.Observe(float64(len(batch)))
	out := c.outArray[:0]
	for _, r := range batch {
		for _, part := range r.parts {
			for len(part) > wire.StallBytes { // so that each piece is watched for itself
				out = append(out, part[:wire.StallBytes])
				part = part[wire.StallBytes:]
			}
			out = append(out, part)
		}
	}
	err := c.writeParts(out)
	clear(out)
	c.outArray = out[:0]
	return err
}

// writeParts writes pieces of at most about stallBytes together.
func (c *conn) writeParts(parts [][]byte) error {
	defer c.writeSince.Store(0)
	for len(parts) > 0 {
		n, size := 0, 0
		for n < len(parts) && (n == 0 || size+len(parts[n]) <= wire.StallBytes) {
			size += len(parts[n])
			n++
		}
		c.writeSince.Store(c.in.Now())
		if err := c.out.Write(c.nc, parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

// truncate cuts a text to n bytes without splitting a character.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
