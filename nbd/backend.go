package nbd

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/storaged/storaged/nbd/internal/wire"
)

// Sizes that an ExportInfo may leave at zero.
const (
	// DefaultPreferredBlockBytes is the advertised size of requests that need no merging.
	DefaultPreferredBlockBytes = 4 << 10
	// DefaultMaxPayloadBytes is the largest READ or WRITE, the size that every NBD client may rely on.
	DefaultMaxPayloadBytes = 32 << 20
)

// ContextAllocation is the metadata context that the NBD protocol itself defines: holes and zeroes.
const ContextAllocation = "base:allocation"

// ContextDirty is the metadata context of the blocks written since the volume's newest snapshot. Its flags are
// FlagDirty or none. An export may offer further contexts named ContextDirty + ":" + snapshot for older ones.
const ContextDirty = "storaged:dirty"

// Flags of an Extent, depending on the metadata context.
const (
	// FlagHole (ContextAllocation): nothing is allocated here, a write may fail for lack of space.
	FlagHole uint32 = 1 << 0
	// FlagZero (ContextAllocation): reads as zeroes.
	FlagZero uint32 = 1 << 1
	// FlagDirty (ContextDirty): may differ from the snapshot.
	FlagDirty uint32 = 1 << 0
)

// Backend finds exports. Its methods are called concurrently.
type Backend interface {
	// Exports lists what LIST shows. Only the names are used.
	Exports(ctx context.Context) ([]ExportInfo, error)
	// Stat describes an export without opening it (INFO, and the list of metadata contexts).
	Stat(ctx context.Context, name string, peer Peer) (ExportInfo, error)
	// Open makes an export ready for one connection. The empty name asks for the default export; a backend that
	// has none answers with storage.KindNotFound. The export is closed exactly once, when the connection has ended
	// and no call on it is running.
	Open(ctx context.Context, name string, peer Peer) (Export, error)
}

// Export is one export as one connection uses it. All methods but Close are called concurrently; the context ends
// when the connection does, and a call must then return soon. Offsets and lengths have been checked against
// Info().SizeBytes as it was (an export that shrinks checks for itself), are not negative and lengths are not zero; they
// need not be aligned to anything but Info().MinBlockBytes. Errors should be a *storage.Error; see Errno for what the client sees of them.
type Export interface {
	// Info describes the export. It is called at the start of the connection and again when a request reaches
	// behind the end, so that a volume that grew serves its new bytes at once.
	Info() ExportInfo
	// ReadAt fills p from off. p belongs to the export until the call returns.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt stores p at off. p must not be modified, and belongs to the export until the call returns. What
	// was written is durable when it returns nil, so that FUA needs nothing more.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush returns when everything that was answered, on whichever connection, before it was called is durable.
	// What the same connection had in flight has returned before it is called.
	Flush(ctx context.Context) error
	// Trim says that the n bytes at off are not needed any more. Durable as WriteAt.
	Trim(ctx context.Context, off, n int64) error
	// WriteZeroes makes the n bytes at off read as zeroes. noHole asks for allocated zeroes. Durable as WriteAt.
	WriteZeroes(ctx context.Context, off, n int64, noHole bool) error
	// Status describes a prefix of the n bytes at off, at least one byte of it, in the words of one of
	// Info().Contexts. The last extent may reach beyond off+n. It bounds by itself how many extents it returns.
	Status(ctx context.Context, off, n int64, metaContext string) ([]Extent, error)
	// Cache may bring the n bytes at off nearer to the reader.
	Cache(ctx context.Context, off, n int64) error
	// Close ends the connection's use of the export. unanswered reports whether the connection ended while a
	// request that the server had read was not answered: the client may send it again elsewhere, and the backend
	// must see to it that no old copy takes effect after a new one.
	Close(unanswered bool) error
}

// SparseReader is an Export that knows which parts of a read are holes. It is used for structured replies, where a
// hole costs a few bytes on the wire.
type SparseReader interface {
	// ReadSparse is ReadAt, except that it leaves the returned holes of p unwritten. Holes ascend, do not overlap
	// and lie within p. Returning none is always right.
	ReadSparse(ctx context.Context, p []byte, off int64) (holes []Hole, err error)
}

// Resizer is an Export that can change its size on request of its client (RESIZE).
type Resizer interface {
	// Resize makes the export sizeBytes long, durably.
	Resize(ctx context.Context, sizeBytes uint64) error
}

// Hole is a range of a read buffer that reads as zeroes: [Start, End) in bytes from the buffer's beginning.
type Hole struct{ Start, End int }

// Extent is a run of equal status.
type Extent struct {
	LengthBytes uint64 // not zero
	Flags       uint32 // as the metadata context defines
}

// ExportInfo describes an export.
type ExportInfo struct {
	Name        string // canonical, at most 4,096 bytes
	Description string // for people
	SizeBytes   uint64
	ReadOnly    bool
	// MultiConn: a flush on one connection covers what was answered on all others, and all see the same bytes.
	MultiConn bool
	// FastZero: WriteZeroes without noHole of whole blocks costs less than writing them.
	FastZero bool
	// Resizable: the export is a Resizer and this client may use it.
	Resizable bool
	// MinBlockBytes <= PreferredBlockBytes <= MaxPayloadBytes. Zero means 1, DefaultPreferredBlockBytes and
	// DefaultMaxPayloadBytes.
	MinBlockBytes       uint32
	PreferredBlockBytes uint32
	MaxPayloadBytes     uint32
	// Contexts names the metadata contexts that Status answers; "namespace:leaf".
	Contexts []string
}

// WithDefaults fills the sizes and bounds the payload by what the server allows.
func (i ExportInfo) WithDefaults(maxPayloadBytes uint32) ExportInfo {
	if i.MinBlockBytes == 0 {
		i.MinBlockBytes = 1
	}
	if i.PreferredBlockBytes == 0 {
		i.PreferredBlockBytes = max(DefaultPreferredBlockBytes, i.MinBlockBytes)
	}
	if i.MaxPayloadBytes == 0 || i.MaxPayloadBytes > maxPayloadBytes {
		i.MaxPayloadBytes = maxPayloadBytes
	}
	return i
}

// transmissionFlags is what the export can do for a client that negotiated these features.
func (i ExportInfo) transmissionFlags(f wire.Features) uint16 {
	flags := protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | wire.FlagSendFlush | wire.FlagSendFUA | wire.FlagSendCache
	if i.MultiConn {
		flags |= protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	}
	if f.Chunked() {
		flags |= wire.FlagSendDF
	}
	if f.Extended && len(f.Contexts) > 0 {
		flags |= wire.FlagBlockStatusPayload
	}
	if i.ReadOnly {
		return flags | wire.FlagReadOnly
	}
	flags |= wire.FlagSendTrim | wire.FlagSendWriteZeroes | wire.FlagSendFastZero
	if i.Resizable {
		flags |= wire.FlagSendResize
	}
	return flags
}

// Peer is who a connection belongs to.
type Peer struct {
	// ID counts the connections of this server from 1.
	ID         uint64
	RemoteAddr net.Addr
	LocalAddr  net.Addr
	// TLS is nil on a connection without TLS.
	TLS *tls.ConnectionState
	// Disconnect ends the connection as if the client had vanished. It does not wait: the export's Close, with
	// what was left unanswered, follows when the calls on it have returned. It may be called at any time, and
	// concurrently.
	Disconnect func()
}
