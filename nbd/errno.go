package nbd

import (
	storage "github.com/storaged/storaged"
)

// errnoOfKind is the one table from error kinds to NBD error values. ENOTSUP and EOVERFLOW are not in it: the
// protocol keeps them for FAST_ZERO and for lengths. A server that is asked for something it cannot do says EINVAL.
var errnoOfKind = map[storage.Kind]uint32{
	storage.KindNone:        0,
	storage.KindInvalid:     errnoInvalid,
	storage.KindNotFound:    errnoIO,       // the volume was deleted under its client
	storage.KindExists:      errnoInvalid,  // not expected on the data path
	storage.KindConflict:    errnoPerm,     // held by another host
	storage.KindFenced:      errnoShutdown, // this client's time with the volume is over
	storage.KindNotLeader:   errnoIO,       // the gateway should have retried
	storage.KindUnavailable: errnoIO,       // the gateway's patience ended
	storage.KindNoSpace:     errnoNoSpace,
	storage.KindCorrupt:     errnoIO,
	storage.KindIO:          errnoIO,
	storage.KindPermission:  errnoPerm,
	storage.KindCanceled:    errnoShutdown, // the server stops
	storage.KindUnsupported: errnoInvalid,
	storage.KindInternal:    errnoIO,
}

// Errno is the NBD error value under which a client sees err; 0 for nil.
func Errno(err error) uint32 {
	errno, ok := errnoOfKind[storage.KindOf(err)]
	if !ok {
		return errnoIO
	}
	return errno
}

// kindOfErrno is the way back, for the client.
var kindOfErrno = map[uint32]storage.Kind{
	errnoPerm:     storage.KindPermission,
	errnoIO:       storage.KindIO,
	errnoNoMem:    storage.KindUnavailable,
	errnoInvalid:  storage.KindInvalid,
	errnoNoSpace:  storage.KindNoSpace,
	errnoOverflow: storage.KindInvalid,
	errnoNotSup:   storage.KindUnsupported,
	errnoShutdown: storage.KindUnavailable,
}

// optionErrorOfKind is the table for the handshake. UNSUP is not in it: a client would take it for a server that
// does not know the option, and fall back to EXPORT_NAME, which cannot carry a reason.
var optionErrorOfKind = map[storage.Kind]uint32{
	storage.KindInvalid:     repErrInvalid,
	storage.KindNotFound:    repErrUnknown,
	storage.KindExists:      repErrInvalid,
	storage.KindConflict:    repErrPolicy,
	storage.KindFenced:      repErrPolicy,
	storage.KindNotLeader:   repErrShutdown,
	storage.KindUnavailable: repErrShutdown,
	storage.KindNoSpace:     repErrPolicy,
	storage.KindCorrupt:     repErrPolicy,
	storage.KindIO:          repErrPolicy,
	storage.KindPermission:  repErrPolicy,
	storage.KindCanceled:    repErrShutdown,
	storage.KindUnsupported: repErrPolicy,
	storage.KindInternal:    repErrPolicy,
}

// optionError is the reply type under which a client sees err during the handshake.
func optionError(err error) uint32 {
	if rep, ok := optionErrorOfKind[storage.KindOf(err)]; ok {
		return rep
	}
	return repErrPolicy
}
