package api

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// kindTable is the one translation of error kinds. Where kinds share a code, the first one is what the code means in a
// status without a detail; with a detail every kind arrives as itself.
var kindTable = []struct {
	kind storage.Kind
	wire pb.ErrorKind
	code codes.Code
}{
	{storage.KindInvalid, pb.ErrorKind_ERROR_KIND_INVALID, codes.InvalidArgument},
	{storage.KindNotFound, pb.ErrorKind_ERROR_KIND_NOT_FOUND, codes.NotFound},
	{storage.KindExists, pb.ErrorKind_ERROR_KIND_EXISTS, codes.AlreadyExists},
	{storage.KindConflict, pb.ErrorKind_ERROR_KIND_CONFLICT, codes.FailedPrecondition},
	{storage.KindFenced, pb.ErrorKind_ERROR_KIND_FENCED, codes.Aborted},
	{storage.KindUnavailable, pb.ErrorKind_ERROR_KIND_UNAVAILABLE, codes.Unavailable},
	{storage.KindNotLeader, pb.ErrorKind_ERROR_KIND_NOT_LEADER, codes.Unavailable},
	{storage.KindNoSpace, pb.ErrorKind_ERROR_KIND_NO_SPACE, codes.ResourceExhausted},
	{storage.KindCorrupt, pb.ErrorKind_ERROR_KIND_CORRUPT, codes.DataLoss},
	{storage.KindPermission, pb.ErrorKind_ERROR_KIND_PERMISSION, codes.PermissionDenied},
	{storage.KindCanceled, pb.ErrorKind_ERROR_KIND_CANCELED, codes.Canceled},
	{storage.KindUnsupported, pb.ErrorKind_ERROR_KIND_UNSUPPORTED, codes.Unimplemented},
	{storage.KindInternal, pb.ErrorKind_ERROR_KIND_INTERNAL, codes.Internal},
	{storage.KindIO, pb.ErrorKind_ERROR_KIND_IO, codes.Internal},
}

// kindOfCode says what a status without a detail means: one made by gRPC itself or by something between the two ends.
func kindOfCode(code codes.Code) storage.Kind {
	switch code { // the codes that no kind is sent as
	case codes.OK:
		return storage.KindNone
	case codes.DeadlineExceeded:
		return storage.KindCanceled
	case codes.OutOfRange:
		return storage.KindInvalid
	case codes.Unauthenticated:
		return storage.KindPermission
	}
	for _, r := range kindTable {
		if r.code == code {
			return r.kind
		}
	}
	return storage.KindInternal
}

// maxErrorTextBytes bounds each text of an ErrorDetail: details travel in headers, which the other end bounds too.
const maxErrorTextBytes = 1 << 10

// StatusError turns an error into the status that travels: nil stays nil, a storage.Error keeps operation, kind, subject
// and the text of its cause, anything else is KindInternal (KindCanceled for a context's error).
func StatusError(err error) error {
	if err == nil {
		return nil
	}
	var e *storage.Error
	if !errors.As(err, &e) {
		e = storage.E("", storage.KindOf(err), "", err)
	}
	wire, code := pb.ErrorKind_ERROR_KIND_INTERNAL, codes.Internal
	for _, r := range kindTable {
		if r.kind == e.Kind {
			wire, code = r.wire, r.code
		}
	}
	detail := &pb.ErrorDetail{Op: clip(e.Op), Kind: wire, Subject: clip(e.Subject)}
	if e.Err != nil {
		detail.Cause = clip(e.Err.Error())
	}
	var hint LeaderHint
	if e.Kind == storage.KindNotLeader && errors.As(err, &hint) {
		detail.LeaderEndpoint = clip(hint.LeaderEndpoint())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	st := status.New(code, clip(err.Error()))
	if with, err := st.WithDetails(detail); err == nil {
		st = with
	}
	return st.Err()
}

// ErrorFromStatus is the inverse of StatusError: it returns nil, or a storage.Error. A status that carries no detail is
// described by op and subject, which the caller knows.
func ErrorFromStatus(err error, op, subject string) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return storage.E(op, storage.KindOf(err), subject, err)
	}
	if detail := detailOf(st); detail != nil {
		return errorFromDetail(detail)
	}
	kind := kindOfCode(st.Code())
	switch st.Code() {
	case codes.DeadlineExceeded:
		return storage.E(op, kind, subject, context.DeadlineExceeded)
	case codes.Canceled:
		return storage.E(op, kind, subject, context.Canceled)
	default:
		return storage.E(op, kind, subject, errors.New(st.Message()))
	}
}

// Answered reports whether err, as gRPC returned it, is the considered answer of a Server, and not one that gRPC made
// because there was no answer.
func Answered(err error) bool {
	st, ok := status.FromError(err)
	return ok && detailOf(st) != nil
}

// detailOf returns the detail of a status; nil without one.
func detailOf(st *status.Status) *pb.ErrorDetail {
	for _, d := range st.Details() {
		if detail, ok := d.(*pb.ErrorDetail); ok {
			return detail
		}
	}
	return nil
}

func errorFromDetail(d *pb.ErrorDetail) error {
	e := storage.E(d.GetOp(), storage.KindInternal, d.GetSubject(), nil)
	for _, r := range kindTable {
		if r.wire == d.GetKind() {
			e.Kind = r.kind
		}
	}
	switch {
	case d.GetLeaderEndpoint() != "":
		e.Err = &remoteHint{text: d.GetCause(), endpoint: d.GetLeaderEndpoint()}
	case d.GetCause() != "":
		e.Err = errors.New(d.GetCause())
	}
	return e
}

// remoteHint is a LeaderHint that came over the wire.
type remoteHint struct{ text, endpoint string }

func (h *remoteHint) Error() string {
	if h.text == "" {
		return "ask " + h.endpoint
	}
	return h.text
}

func (h *remoteHint) LeaderEndpoint() string { return h.endpoint }

// clip shortens s to what may travel and makes it valid UTF-8, without which a message cannot be encoded.
func clip(s string) string {
	if len(s) > maxErrorTextBytes {
		s = s[:maxErrorTextBytes]
	}
	return toValidUTF8(s)
}
