package csi

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
)

// codeTable translates kinds of errors to the codes that the CSI specification gives a meaning to. It differs from the
// API's own table: ABORTED means "the same volume is being worked on" there, and UNIMPLEMENTED "no such call".
var codeTable = map[storage.Kind]codes.Code{
	storage.KindInvalid:     codes.InvalidArgument,
	storage.KindNotFound:    codes.NotFound,
	storage.KindExists:      codes.AlreadyExists,
	storage.KindConflict:    codes.FailedPrecondition,
	storage.KindFenced:      codes.FailedPrecondition,
	storage.KindNotLeader:   codes.Unavailable,
	storage.KindUnavailable: codes.Unavailable,
	storage.KindNoSpace:     codes.ResourceExhausted,
	storage.KindCorrupt:     codes.DataLoss,
	storage.KindIO:          codes.Internal,
	storage.KindPermission:  codes.PermissionDenied,
	storage.KindCanceled:    codes.Canceled,
	storage.KindUnsupported: codes.FailedPrecondition,
	storage.KindInternal:    codes.Internal,
}

// StatusError turns what a service returns into what travels (the Server does it). A status stays what it is: the service chose its code.
func StatusError(err error) error {
	if err == nil {
		return nil
	}
	var chosen interface{ GRPCStatus() *status.Status }
	if errors.As(err, &chosen) {
		return err
	}
	code, ok := codeTable[storage.KindOf(err)]
	if !ok {
		code = codes.Internal
	}
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	return status.Error(code, err.Error())
}

func refuse(code codes.Code, format string, args ...any) error {
	return status.Error(code, fmt.Sprintf(format, args...))
}

func invalid(format string, args ...any) error { return refuse(codes.InvalidArgument, format, args...) }

func noVolume(id string) error {
	return refuse(codes.NotFound, "volume %q: there is no such volume; `storagectl volume list` shows those there are", id)
}

// messageOf is what an error says without its code.
func messageOf(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}
