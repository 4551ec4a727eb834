package storage

import (
	"context"
	"errors"
	"strings"
)

// Kind says what class of failure an error is. Kinds are shared by every node and client. Their numbers travel between nodes and lie in
// the catalog's log (docs/format), so a number never changes its meaning and none is used again. A new kind gets the next one, and
// an entry in every table that translates kinds: gRPC status (api, api/csi), NBD's error values and option errors (nbd),
// exit codes (cmd/storagectl). Tests of theirs, and of every place where kinds travel, go through Kinds.
type Kind uint8

// The kinds. KindNone is not a failure and never stored in an Error.
const (
	KindNone Kind = 0
	// KindInvalid: the request can never succeed as it stands.
	KindInvalid Kind = 1
	// KindNotFound: the object does not exist.
	KindNotFound Kind = 2
	// KindExists: an object of that name exists already.
	KindExists Kind = 3
	// KindConflict: the object is in a state that forbids the request (in use, held by another host).
	KindConflict Kind = 4
	// KindFenced: the sender's session or generation is over; it must not retry with the same one.
	KindFenced Kind = 5
	// KindNotLeader: another replica leads; ask there. Nothing was changed by this request.
	KindNotLeader Kind = 6
	// KindUnavailable: no answer now (no majority, no connection, overloaded); the same request may succeed later.
	// Whether it took effect is not known, unless the message says so.
	KindUnavailable Kind = 7
	// KindNoSpace: the stores are full up to their reserve.
	KindNoSpace Kind = 8
	// KindCorrupt: stored bytes fail their checksum, or a file is damaged.
	KindCorrupt Kind = 9
	// KindIO: a disk refused a read, a write or a sync; the store is failed until the process starts again.
	KindIO Kind = 10
	// KindPermission: the peer is not allowed to do this.
	KindPermission Kind = 11
	// KindCanceled: the caller gave up, or its deadline passed.
	KindCanceled Kind = 12
	// KindUnsupported: this version or this host cannot do it.
	KindUnsupported Kind = 13
	// KindInternal: a defect of storaged.
	KindInternal Kind = 14

	// KindLast is the kind with the highest number.
	KindLast = KindInternal
)

var kindNames = [...]string{
	KindNone: "ok", KindInvalid: "invalid", KindNotFound: "not found", KindExists: "exists", KindConflict: "conflict",
	KindFenced: "fenced", KindNotLeader: "not leader", KindUnavailable: "unavailable", KindNoSpace: "no space",
	KindCorrupt: "corrupt", KindIO: "i/o error", KindPermission: "permission denied", KindCanceled: "canceled",
	KindUnsupported: "unsupported", KindInternal: "internal error",
}

// String returns the kind in words, as shown to people.
func (k Kind) String() string {
	if k <= KindLast {
		return kindNames[k]
	}
	return "unknown error"
}

// Kinds returns every kind that an Error may carry, so that translation tables can be tested for all of them.
func Kinds() []Kind {
	ks := make([]Kind, 0, KindLast)
	for k := KindNone + 1; k <= KindLast; k++ {
		ks = append(ks, k)
	}
	return ks
}

// FailureOf returns the kind of the failure with a number that another process has told: KindInternal for KindNone, which is none,
// and for a number that is not known here, of a later version.
func FailureOf(number uint64) Kind {
	if number == uint64(KindNone) || number > uint64(KindLast) {
		return KindInternal
	}
	return Kind(number)
}

// Error is the one error type that crosses package borders.
//
// It reads "operation subject: cause", or "operation subject: kind" without a cause.
type Error struct {
	Op      string // what was being done: "create volume"
	Kind    Kind   // what class of failure it is
	Subject string // the object: "volume web-data", "group 3", "store /var/lib/storaged"
	Err     error  // the cause; may be nil
}

// E makes an Error. The cause may be nil.
func E(op string, kind Kind, subject string, cause error) *Error {
	return &Error{Op: op, Kind: kind, Subject: subject, Err: cause}
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Subject != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Subject)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		b.WriteString(e.Kind.String())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error of the same kind with no operation, subject and cause, so that
// errors.Is(err, storage.ErrNotFound) tests for a kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Op == "" && t.Subject == "" && t.Err == nil && t.Kind == e.Kind
}

// Sentinels for errors.Is, one a kind.
var (
	ErrInvalid     = &Error{Kind: KindInvalid}
	ErrNotFound    = &Error{Kind: KindNotFound}
	ErrExists      = &Error{Kind: KindExists}
	ErrConflict    = &Error{Kind: KindConflict}
	ErrFenced      = &Error{Kind: KindFenced}
	ErrNotLeader   = &Error{Kind: KindNotLeader}
	ErrUnavailable = &Error{Kind: KindUnavailable}
	ErrNoSpace     = &Error{Kind: KindNoSpace}
	ErrCorrupt     = &Error{Kind: KindCorrupt}
	ErrIO          = &Error{Kind: KindIO}
	ErrPermission  = &Error{Kind: KindPermission}
	ErrCanceled    = &Error{Kind: KindCanceled}
	ErrUnsupported = &Error{Kind: KindUnsupported}
	ErrInternal    = &Error{Kind: KindInternal}
)

// KindOf returns the kind of the outermost Error in err's chain; KindNone for nil, KindCanceled for a context's
// error, KindInternal for anything else.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return KindNone
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return KindCanceled
	default:
		return KindInternal
	}
}

// Cause returns the cause of the outermost Error in err's chain, without its operation and subject; err itself where there is none.
func Cause(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
}
