package wire

import storage "github.com/storaged/storaged"

// KindOfErrno is what error values of a server stand for.
var KindOfErrno = map[uint32]storage.Kind{
	ErrnoPerm:     storage.KindPermission,
	ErrnoIO:       storage.KindIO,
	ErrnoNoMem:    storage.KindUnavailable,
	ErrnoInvalid:  storage.KindInvalid,
	ErrnoNoSpace:  storage.KindNoSpace,
	ErrnoOverflow: storage.KindInvalid,
	ErrnoNotSup:   storage.KindUnsupported,
	ErrnoShutdown: storage.KindUnavailable,
}

// KindOfOptionError is what option errors of a server stand for.
var KindOfOptionError = map[uint32]storage.Kind{
	RepErrUnsup: storage.KindUnsupported, RepErrPolicy: storage.KindPermission, RepErrInvalid: storage.KindInvalid,
	RepErrTLSReqd: storage.KindPermission, RepErrUnknown: storage.KindNotFound, RepErrShutdown: storage.KindUnavailable,
	RepErrTooBig: storage.KindInvalid, RepErrExtHdrReqd: storage.KindUnsupported,
}
