// Package nbdclient is a client of NBD servers: a connection to an export, with many requests in flight, and the
// negotiation that the kernel's client leaves to others (Negotiate).
//
// It keeps no data and retries nothing: what a lost connection means is up to the caller. It believes no server: lengths
// are checked before anything is allocated, and a reply that does not fit its request ends the connection. No goroutine
// outlives Client.Close. A Client may be used concurrently. The tests of package nbd hold it too: each end tests the other.
package nbdclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/internal/wire"
)

// Config says what a Client connects to. ParseURI makes one from an NBD URI.
type Config struct {
	// Network and Address are as for net.Dial: "tcp" or "unix".
	Network, Address string
	// Export is the export's name; empty means the server's default.
	Export string
	// TLS makes the client insist on STARTTLS.
	TLS *tls.Config
	// Contexts are the metadata contexts that Status will ask for. Those that the server does not have are left
	// out of Info().Contexts; that is no error.
	Contexts []string
	// SimpleReplies does without structured replies, CompactHeaders without extended headers. Both are negotiated
	// otherwise, and done without if the server does not know them.
	SimpleReplies, CompactHeaders bool
	// MaxRequests bounds the requests in flight; further calls wait. 128.
	MaxRequests int
}

// Client is one connection to an export. Its methods may be called concurrently; their requests are then in flight
// together. A context that ends while its request is in flight ends the whole connection, for NBD cannot take a request
// back, and nobody knows whether it took effect.
//
// Errors are *storage.Error: KindUnavailable when the connection is lost (the outcome of what was in flight is not
// known), otherwise the kind that the server's error value stands for.
type Client struct {
	nc       net.Conn
	in       *wire.Inbound
	features wire.Features
	info     nbd.ExportInfo
	flags    uint16
	slots    chan struct{} // one element for each request in flight
	closed   chan struct{} // closed by receive when it ends

	mu      sync.Mutex
	idle    *sync.Cond       // signalled when writing becomes false; of mu
	calls   map[uint64]*call // guarded by mu; sent or to be sent, not answered
	cookie  uint64           // guarded by mu
	queue   [][]byte         // guarded by mu; to be written
	spare   [][]byte         // guarded by mu
	writing bool             // guarded by mu; somebody writes
	err     error            // guarded by mu; why the connection is over
	out     wire.Outbound    // owned by who writes
}

// goodbyeTimeout bounds how long Close waits for a server that does not read.
const goodbyeTimeout = time.Second

// call is a request in flight. Between the queueing and the closing of done it belongs to the receiver.
type call struct {
	wire.RequestHeader
	head    [wire.ExtendedRequestBytes]byte
	data    []byte // destination of a READ, source of a WRITE
	covered uint64 // bytes of a READ received
	context wire.MetaContext
	extents []nbd.Extent // answer to a BLOCK_STATUS
	err     error
	done    chan struct{}
}

// Dial connects to an export.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	nc, err := cfg.dial(ctx)
	if err != nil {
		return nil, storage.E("dial", storage.KindUnavailable, "NBD server "+cfg.Address, err)
	}
	return New(ctx, nc, cfg)
}

func (cfg Config) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, cfg.Network, cfg.Address)
}

// New negotiates on a connection, which it takes over: it is closed when negotiation fails. Network and
// Address of cfg are not used.
func New(ctx context.Context, nc net.Conn, cfg Config) (*Client, error) {
	h, err := negotiate(ctx, nc, cfg, (*handshake).enter)
	if err != nil {
		_ = nc.Close()
		return nil, clientError("open", cfg.Export, err)
	}
	cfg.MaxRequests = cmp.Or(cfg.MaxRequests, 128)
	c := &Client{nc: h.nc, in: h.in, features: h.features, info: h.info, flags: h.flags,
		slots: make(chan struct{}, cfg.MaxRequests), closed: make(chan struct{}), calls: make(map[uint64]*call)}
	c.idle = sync.NewCond(&c.mu)
	c.in.Grow()
	go c.receive()
	return c, nil
}

// clientError gives an error without a kind the one of a lost connection.
func clientError(op, export string, err error) error {
	if err == nil {
		return nil
	}
	kind := storage.KindOf(err)
	if kind == storage.KindInternal {
		kind = storage.KindUnavailable
	}
	return storage.E(op, kind, fmt.Sprintf("NBD export %q", export), err)
}

// Info is what the server says of the export.
func (c *Client) Info() nbd.ExportInfo { return c.info }

// ReadAt fills p from off.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	return c.each(len(p), func(from, to int) error {
		k := call{data: p[from:to]}
		k.Cmd, k.Offset, k.Length = wire.CmdRead, uint64(off)+uint64(from), uint64(to-from)
		return c.do(ctx, "read", &k)
	})
}

// WriteAt stores p at off. It is durable when the server says so of an answered write (as storaged does), or after
// Flush.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	return c.each(len(p), func(from, to int) error {
		k := call{data: p[from:to]}
		k.Cmd, k.Offset, k.Length = wire.CmdWrite, uint64(off)+uint64(from), uint64(to-from)
		if c.features.Extended {
			k.Flags = wire.CmdFlagPayloadLen
		}
		return c.do(ctx, "write", &k)
	})
}

// each splits n bytes into pieces that fit the server's maximum payload.
func (c *Client) each(n int, fn func(from, to int) error) error {
	for from := 0; from < n; {
		to := min(n, from+int(c.info.MaxPayloadBytes))
		if err := fn(from, to); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// Flush makes durable what was answered before, on all connections if the server says MultiConn.
func (c *Client) Flush(ctx context.Context) error {
	if c.flags&wire.FlagSendFlush == 0 {
		return nil // the server has no cache
	}
	k := call{}
	k.Cmd = wire.CmdFlush
	return c.do(ctx, "flush", &k)
}

// Trim gives the n bytes at off up; what they read as afterwards is not known.
func (c *Client) Trim(ctx context.Context, off, n int64) error {
	return c.ranged(ctx, "trim", wire.FlagSendTrim, wire.CmdTrim, 0, off, n)
}

// WriteZeroes makes the n bytes at off read as zeroes; noHole asks for allocated ones.
func (c *Client) WriteZeroes(ctx context.Context, off, n int64, noHole bool) error {
	var flags uint16
	if noHole {
		flags = wire.CmdFlagNoHole
	}
	return c.ranged(ctx, "write zeroes", wire.FlagSendWriteZeroes, wire.CmdWriteZeroes, flags, off, n)
}

// FastZero is WriteZeroes that fails with storage.KindUnsupported where it is not faster than writing.
func (c *Client) FastZero(ctx context.Context, off, n int64) error {
	return c.ranged(ctx, "fast zero", wire.FlagSendFastZero, wire.CmdWriteZeroes, wire.CmdFlagFastZero, off, n)
}

// Cache asks the server to bring the n bytes at off nearer.
func (c *Client) Cache(ctx context.Context, off, n int64) error {
	return c.ranged(ctx, "cache", wire.FlagSendCache, wire.CmdCache, 0, off, n)
}

// ranged sends a command without payload, split where its length does not fit the header.
func (c *Client) ranged(ctx context.Context, op string, need, cmd, flags uint16, off, n int64) error {
	if c.flags&need == 0 {
		return storage.E(op, storage.KindUnsupported, c.subject(), nil)
	}
	for n > 0 {
		part := n
		if !c.features.Extended {
			part = min(n, wire.MaxCompactExtentBytes)
		}
		k := call{}
		k.Cmd, k.Flags, k.Offset, k.Length = cmd, flags, uint64(off), uint64(part)
		if err := c.do(ctx, op, &k); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Resize asks the server to change the export's size. Info does not change.
func (c *Client) Resize(ctx context.Context, sizeBytes uint64) error {
	if c.flags&wire.FlagSendResize == 0 {
		return storage.E("resize", storage.KindUnsupported, c.subject(), nil)
	}
	k := call{}
	k.Cmd, k.Offset = wire.CmdResize, sizeBytes
	return c.do(ctx, "resize", &k)
}

// Status describes a prefix of the n bytes at off, at least one extent, in the words of a metadata context, which must
// be one of Info().Contexts. The last extent may reach beyond off+n.
func (c *Client) Status(ctx context.Context, off, n int64, metaContext string) ([]nbd.Extent, error) {
	k := call{}
	for _, mc := range c.features.Contexts {
		if mc.Name == metaContext {
			k.context = mc
		}
	}
	if k.context.Name == "" {
		return nil, storage.E("status", storage.KindUnsupported, c.subject(),
			fmt.Errorf("metadata context %q was not negotiated", metaContext))
	}
	if !c.features.Extended {
		n = min(n, wire.MaxCompactExtentBytes)
	}
	k.Cmd, k.Offset, k.Length = wire.CmdBlockStatus, uint64(off), uint64(n)
	if err := c.do(ctx, "status", &k); err != nil {
		return nil, err
	}
	return k.extents, nil
}

// Close says goodbye, closes the connection and waits for the client's goroutine. What is in flight fails. It may be
// called repeatedly.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.err == nil {
		c.err = net.ErrClosed
		for c.writing {
			c.idle.Wait()
		}
		c.mu.Unlock() // nobody writes any more: send refuses
		h := wire.RequestHeader{Magic: c.features.RequestMagic(), Cmd: wire.CmdDisc}
		_ = c.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
		_, _ = c.nc.Write(wire.AppendRequest(nil, h, c.features.Extended))
	} else {
		c.mu.Unlock()
	}
	err := c.nc.Close()
	<-c.closed
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (c *Client) subject() string { return fmt.Sprintf("NBD export %q", c.info.Name) }

// do sends a request and waits for its answer.
func (c *Client) do(ctx context.Context, op string, k *call) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return clientError(op, c.info.Name, ctx.Err())
	}
	defer func() { <-c.slots }()
	k.done = make(chan struct{})
	if err := c.send(k); err != nil {
		return clientError(op, c.info.Name, err)
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		c.fail(ctx.Err())
		<-k.done
	}
	return clientError(op, c.info.Name, k.err)
}

// send queues a request, and writes what is queued unless somebody does already.
func (c *Client) send(k *call) error {
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return err
	}
	c.cookie++
	k.Magic, k.Cookie = c.features.RequestMagic(), c.cookie
	c.calls[k.Cookie] = k
	c.queue = append(c.queue, wire.AppendRequest(k.head[:0], k.RequestHeader, c.features.Extended))
	if k.Cmd == wire.CmdWrite {
		c.queue = append(c.queue, k.data)
	}
	if c.writing {
		c.mu.Unlock()
		return nil
	}
	c.writing = true
	others := len(c.calls) > 1
	c.mu.Unlock()
	if others {
		runtime.Gosched() // let those that are ready now queue theirs: one system call for all
	}
	if c.writeQueued() {
		go c.writeRest()
	}
	return nil
}

// writeQueued writes what is queued now and reports whether more was queued meanwhile. c.writing is the caller's.
func (c *Client) writeQueued() (more bool) {
	c.mu.Lock()
	parts := c.queue
	c.queue, c.spare = c.spare[:0], nil
	c.mu.Unlock()
	whole := parts
	err := c.out.Write(c.nc, parts)
	clear(whole)
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spare = whole[:0]
	if len(c.queue) > 0 && c.err == nil {
		return true
	}
	c.writing = false
	c.idle.Broadcast()
	return false
}

// writeRest goes on writing for a caller who wants to see its own answer.
func (c *Client) writeRest() {
	for c.writeQueued() {
	}
}

// fail makes the connection end, for the reason of the first call.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	_ = c.nc.Close()
}

// receive reads replies until the connection ends, and then fails what is in flight. Buffers go back to their owners
// only when nobody reads into them or writes from them.
func (c *Client) receive() {
	defer close(c.closed)
	var err error
	for err == nil {
		err = c.receiveReply()
	}
	c.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing {
		c.idle.Wait()
	}
	for cookie, k := range c.calls {
		k.err = storage.E("", storage.KindUnavailable, "", fmt.Errorf("connection lost: %w", c.err))
		if kind := storage.KindOf(c.err); kind == storage.KindCanceled {
			k.err = c.err
		}
		delete(c.calls, cookie)
		close(k.done)
	}
}

// chunk is a reply's header of any layout.
type chunk struct {
	cookie uint64
	flags  uint16
	kind   uint16
	errno  uint32 // of a simple reply
	simple bool
	length uint64
}

// maxClientExtents bounds the extents of one answer; the protocol asks servers not to send more.
const maxClientExtents = 1 << 20

var errProtocol = errors.New("the server breaks the protocol")

// receiveReply reads one simple reply or one chunk.
func (c *Client) receiveReply() error {
	ch, err := c.receiveHeader()
	if err != nil {
		return err
	}
	c.mu.Lock()
	k := c.calls[ch.cookie]
	c.mu.Unlock()
	if k == nil {
		return fmt.Errorf("%w: a reply to nothing", errProtocol)
	}
	if ch.simple {
		if k.Cmd == wire.CmdRead && c.features.Chunked() {
			return fmt.Errorf("%w: a simple reply to a read", errProtocol)
		}
		if ch.errno != 0 {
			k.err = errnoError(ch.errno, "")
		} else if k.Cmd == wire.CmdRead {
			if err := c.in.Full(k.data); err != nil {
				return err
			}
			k.covered = k.Length
		}
		c.finish(k)
		return nil
	}
	if err := c.receiveChunk(k, ch); err != nil {
		return err
	}
	if ch.flags&wire.ChunkFlagDone != 0 {
		c.finish(k)
	}
	return nil
}

func (c *Client) receiveHeader() (chunk, error) {
	if c.features.Extended {
		b, err := c.in.Next(wire.ExtendedReplyBytes)
		if err != nil {
			return chunk{}, err
		}
		if magic := binary.BigEndian.Uint32(b); magic != wire.MagicExtendedReply {
			return chunk{}, fmt.Errorf("%w: magic %#x", errProtocol, magic)
		}
		return chunk{flags: binary.BigEndian.Uint16(b[4:]), kind: binary.BigEndian.Uint16(b[6:]),
			cookie: binary.BigEndian.Uint64(b[8:]), length: binary.BigEndian.Uint64(b[24:])}, nil
	}
	b, err := c.in.Next(wire.SimpleReplyBytes)
	if err != nil {
		return chunk{}, err
	}
	switch magic := binary.BigEndian.Uint32(b); {
	case magic == protocol.TRANSMISSION_MAGIC_REPLY:
		return chunk{simple: true, errno: binary.BigEndian.Uint32(b[4:]), cookie: binary.BigEndian.Uint64(b[8:])}, nil
	case magic == wire.MagicStructuredReply && c.features.Structured:
		ch := chunk{flags: binary.BigEndian.Uint16(b[4:]), kind: binary.BigEndian.Uint16(b[6:]),
			cookie: binary.BigEndian.Uint64(b[8:])}
		if b, err = c.in.Next(wire.StructuredReplyBytes - wire.SimpleReplyBytes); err != nil {
			return chunk{}, wire.NoEOF(err)
		}
		ch.length = uint64(binary.BigEndian.Uint32(b))
		return ch, nil
	default:
		return chunk{}, fmt.Errorf("%w: magic %#x", errProtocol, magic)
	}
}

// receiveChunk reads a chunk's payload.
func (c *Client) receiveChunk(k *call, ch chunk) error {
	bad := func(what string) error { return fmt.Errorf("%w: %s of %d bytes", errProtocol, what, ch.length) }
	switch {
	case ch.kind == wire.ChunkNone:
		if ch.length != 0 {
			return bad("an end")
		}
		return nil
	case ch.kind == wire.ChunkOffsetData && k.Cmd == wire.CmdRead:
		if ch.length <= 8 {
			return bad("a data chunk")
		}
		p, err := c.destination(k, ch.length-8)
		if err != nil {
			return err
		}
		return c.in.Full(p)
	case ch.kind == wire.ChunkOffsetHole && k.Cmd == wire.CmdRead:
		return c.receiveHole(k, ch)
	case (ch.kind == wire.ChunkBlockStatus || ch.kind == wire.ChunkBlockStatusExt) && k.Cmd == wire.CmdBlockStatus:
		return c.receiveStatus(k, ch)
	case ch.kind&wire.ChunkErrorBit != 0:
		return c.receiveError(k, ch)
	default:
		return bad(fmt.Sprintf("chunk type %d", ch.kind))
	}
}

// destination reads the offset of n bytes and returns where they go.
func (c *Client) destination(k *call, n uint64) ([]byte, error) {
	b, err := c.in.Next(8)
	if err != nil {
		return nil, wire.NoEOF(err)
	}
	start := binary.BigEndian.Uint64(b) - k.Offset
	if start > k.Length || n > k.Length-start || n > k.Length-k.covered {
		return nil, fmt.Errorf("%w: data outside of the request", errProtocol)
	}
	k.covered += n
	return k.data[start : start+n], nil
}

func (c *Client) receiveHole(k *call, ch chunk) error {
	if ch.length != 12 {
		return fmt.Errorf("%w: a hole of %d bytes", errProtocol, ch.length)
	}
	b, err := c.in.Next(12)
	if err != nil {
		return wire.NoEOF(err)
	}
	start, n := binary.BigEndian.Uint64(b)-k.Offset, uint64(binary.BigEndian.Uint32(b[8:]))
	if start > k.Length || n > k.Length-start || n > k.Length-k.covered {
		return fmt.Errorf("%w: a hole outside of the request", errProtocol)
	}
	k.covered += n
	clear(k.data[start : start+n])
	return nil
}

// receiveStatus reads the extents of one metadata context, and forgets those of contexts that were not asked for.
func (c *Client) receiveStatus(k *call, ch chunk) error {
	head, size := 4, 8
	if ch.kind == wire.ChunkBlockStatusExt {
		head, size = 8, 16
	}
	if ch.length < uint64(head+size) || (ch.length-uint64(head))%uint64(size) != 0 || ch.length > 8+16<<20 {
		return fmt.Errorf("%w: a block status of %d bytes", errProtocol, ch.length)
	}
	b, err := c.in.Next(head)
	if err != nil {
		return wire.NoEOF(err)
	}
	if binary.BigEndian.Uint32(b) != k.context.Id {
		return c.in.Discard(ch.length - uint64(head))
	}
	count := int(ch.length-uint64(head)) / size
	if count > maxClientExtents-len(k.extents) {
		return fmt.Errorf("%w: more than %d extents", errProtocol, maxClientExtents)
	}
	for range count {
		if b, err = c.in.Next(size); err != nil {
			return wire.NoEOF(err)
		}
		var e nbd.Extent
		if size == 16 {
			e = nbd.Extent{LengthBytes: binary.BigEndian.Uint64(b), Flags: uint32(binary.BigEndian.Uint64(b[8:]))}
		} else {
			e = nbd.Extent{LengthBytes: uint64(binary.BigEndian.Uint32(b)), Flags: binary.BigEndian.Uint32(b[4:])}
		}
		if e.LengthBytes == 0 || e.LengthBytes > math.MaxInt64 {
			return fmt.Errorf("%w: an extent of %d bytes", errProtocol, e.LengthBytes)
		}
		k.extents = append(k.extents, e)
	}
	return nil
}

func (c *Client) receiveError(k *call, ch chunk) error {
	if ch.length < 6 || ch.length > 6+wire.MaxStringBytes+8 {
		return fmt.Errorf("%w: an error of %d bytes", errProtocol, ch.length)
	}
	b := make([]byte, ch.length)
	if err := c.in.Full(b); err != nil {
		return wire.NoEOF(err)
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n > len(b)-6 {
		return fmt.Errorf("%w: an error text of %d bytes", errProtocol, n)
	}
	if k.err == nil {
		k.err = errnoError(binary.BigEndian.Uint32(b), string(b[6:6+n]))
	}
	return nil
}

// finish ends a call whose last chunk was read.
func (c *Client) finish(k *call) {
	if k.err == nil && k.Cmd == wire.CmdRead && k.covered != k.Length {
		k.err = storage.E("", storage.KindIO, "", fmt.Errorf("%d of %d bytes were sent", k.covered, k.Length))
	}
	if k.err == nil && k.Cmd == wire.CmdBlockStatus && len(k.extents) == 0 {
		k.err = storage.E("", storage.KindIO, "", errors.New("no extent was sent"))
	}
	c.mu.Lock()
	delete(c.calls, k.Cookie)
	c.mu.Unlock()
	close(k.done)
}

// errnoError is the server's error value as an error.
func errnoError(errno uint32, text string) error {
	kind, ok := wire.KindOfErrno[errno]
	if !ok {
		kind = storage.KindInvalid // as the protocol asks
	}
	if text == "" {
		return storage.E("", kind, "", fmt.Errorf("the server answers error %d", errno))
	}
	return storage.E("", kind, "", fmt.Errorf("the server answers error %d: %s", errno, text))
}
