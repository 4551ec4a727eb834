package nbd

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd/internal/wire"
)

// errnoOfKind is the one table from error kinds to NBD error values. ENOTSUP and EOVERFLOW are not in it: the
// protocol keeps them for FAST_ZERO and for lengths. A server that is asked for something it cannot do says EINVAL.
var errnoOfKind = map[storage.Kind]uint32{
	storage.KindNone:        0,
	storage.KindInvalid:     wire.ErrnoInvalid,
	storage.KindNotFound:    wire.ErrnoIO,       // the volume was deleted under its client
	storage.KindExists:      wire.ErrnoInvalid,  // not expected on the data path
	storage.KindConflict:    wire.ErrnoPerm,     // held by another host
	storage.KindFenced:      wire.ErrnoShutdown, // this client's time with the volume is over
	storage.KindNotLeader:   wire.ErrnoIO,       // the gateway should have retried
	storage.KindUnavailable: wire.ErrnoIO,       // the gateway's patience ended
	storage.KindNoSpace:     wire.ErrnoNoSpace,
	storage.KindCorrupt:     wire.ErrnoIO,
	storage.KindIO:          wire.ErrnoIO,
	storage.KindPermission:  wire.ErrnoPerm,
	storage.KindCanceled:    wire.ErrnoShutdown, // the server stops
	storage.KindUnsupported: wire.ErrnoInvalid,
	storage.KindInternal:    wire.ErrnoIO,
}

// Errno is the NBD error value under which a client sees err; 0 for nil.
func Errno(err error) uint32 {
	errno, ok := errnoOfKind[storage.KindOf(err)]
	if !ok {
		return wire.ErrnoIO
	}
	return errno
}

// optionErrorOfKind is the table for the handshake. UNSUP is not in it: a client would take it for a server that
// does not know the option, and fall back to EXPORT_NAME, which cannot carry a reason.
var optionErrorOfKind = map[storage.Kind]uint32{
	storage.KindInvalid:     wire.RepErrInvalid,
	storage.KindNotFound:    wire.RepErrUnknown,
	storage.KindExists:      wire.RepErrInvalid,
	storage.KindConflict:    wire.RepErrPolicy,
	storage.KindFenced:      wire.RepErrPolicy,
	storage.KindNotLeader:   wire.RepErrShutdown,
	storage.KindUnavailable: wire.RepErrShutdown,
	storage.KindNoSpace:     wire.RepErrPolicy,
	storage.KindCorrupt:     wire.RepErrPolicy,
	storage.KindIO:          wire.RepErrPolicy,
	storage.KindPermission:  wire.RepErrPolicy,
	storage.KindCanceled:    wire.RepErrShutdown,
	storage.KindUnsupported: wire.RepErrPolicy,
	storage.KindInternal:    wire.RepErrPolicy,
}

// optionError is the reply type under which a client sees err during the handshake.
func optionError(err error) uint32 {
	if rep, ok := optionErrorOfKind[storage.KindOf(err)]; ok {
		return rep
	}
	return wire.RepErrPolicy
}
