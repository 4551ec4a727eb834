package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// Every kind has a row, every row's wire kind is its own, and an error of every kind arrives as it was sent.
func TestEveryKindBothWays(t *testing.T) {
	wires := map[pb.ErrorKind]bool{}
	for _, kind := range storage.Kinds() {
		sent := fmt.Errorf("outer: %w", storage.E("grow volume", kind, "volume web", errors.New("the cause")))
		got := ErrorFromStatus(StatusError(sent), "ignored", "ignored")
		var e *storage.Error
		if !errors.As(got, &e) || e.Kind != kind || e.Op != "grow volume" || e.Subject != "volume web" || e.Err.Error() != "the cause" {
			t.Errorf("%v arrived as %#v", kind, got)
		}
		bare := ErrorFromStatus(StatusError(storage.E("", kind, "", nil)), "ignored", "ignored")
		if !errors.As(bare, &e) || *e != (storage.Error{Kind: kind}) {
			t.Errorf("bare %v arrived as %#v", kind, bare)
		}
		rows := 0
		for _, r := range kindTable {
			if r.kind == kind {
				rows++
				wires[r.wire] = true
				if r.code == codes.OK || r.wire == pb.ErrorKind_ERROR_KIND_UNSPECIFIED {
					t.Errorf("%v is sent as %v, %v", kind, r.code, r.wire)
				}
			}
		}
		if rows != 1 {
			t.Errorf("%v has %d rows, want 1", kind, rows)
		}
	}
	if want := len(pb.ErrorKind_name) - 1; len(wires) != want || len(wires) != len(storage.Kinds()) {
		t.Errorf("%d kinds, %d of %d on the wire", len(storage.Kinds()), len(wires), want)
	}
}

// Without a detail the code alone decides; every code that gRPC has means something.
func TestCodesWithoutDetail(t *testing.T) {
	want := map[codes.Code]storage.Kind{
		codes.OK: storage.KindNone, codes.Canceled: storage.KindCanceled, codes.Unknown: storage.KindInternal,
		codes.InvalidArgument: storage.KindInvalid, codes.DeadlineExceeded: storage.KindCanceled,
		codes.NotFound: storage.KindNotFound, codes.AlreadyExists: storage.KindExists,
		codes.PermissionDenied: storage.KindPermission, codes.ResourceExhausted: storage.KindNoSpace,
		codes.FailedPrecondition: storage.KindConflict, codes.Aborted: storage.KindFenced,
		codes.OutOfRange: storage.KindInvalid, codes.Unimplemented: storage.KindUnsupported,
		codes.Internal: storage.KindInternal, codes.Unavailable: storage.KindUnavailable,
		codes.DataLoss: storage.KindCorrupt, codes.Unauthenticated: storage.KindPermission,
	}
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		err := ErrorFromStatus(status.Error(code, "text"), "list nodes", "")
		if kind, ok := want[code]; !ok || storage.KindOf(err) != kind {
			t.Errorf("%v means %v, want %v", code, storage.KindOf(err), kind)
		}
		if Answered(status.Error(code, "text")) {
			t.Errorf("%v without detail counts as an answer", code)
		}
	}
	if err := ErrorFromStatus(status.Error(codes.Code(77), "new"), "x", ""); storage.KindOf(err) != storage.KindInternal {
		t.Errorf("a code of the future means %v", storage.KindOf(err))
	}
}

func TestErrorsOfOthers(t *testing.T) {
	if StatusError(nil) != nil || ErrorFromStatus(nil, "", "") != nil {
		t.Error("no error became one")
	}
	late := StatusError(storage.E("show volume", storage.KindUnavailable, "volume web", context.DeadlineExceeded))
	if status.Code(late) != codes.DeadlineExceeded || storage.KindOf(ErrorFromStatus(late, "", "")) != storage.KindUnavailable {
		t.Errorf("a deadline inside an error of ours: %v", late)
	}
	if err := ErrorFromStatus(StatusError(errors.New("no kind")), "", ""); storage.KindOf(err) != storage.KindInternal {
		t.Errorf("a foreign error is %v", storage.KindOf(err))
	}
	if err := ErrorFromStatus(StatusError(context.Canceled), "", ""); storage.KindOf(err) != storage.KindCanceled {
		t.Errorf("a canceled context is %v", storage.KindOf(err))
	}
	huge := storage.E(strings.Repeat("o", 1<<20), storage.KindCorrupt, "\xff\xfe", errors.New(strings.Repeat("c", 1<<20)))
	st, _ := status.FromError(StatusError(huge))
	if n := len(st.Message()); n > maxErrorTextBytes || len(st.Details()) != 1 {
		t.Errorf("a huge error travels with %d bytes of text and %d details", n, len(st.Details()))
	}
}

type hintError struct{}

func (hintError) Error() string          { return "node c leads" }
func (hintError) LeaderEndpoint() string { return "10.0.0.3:7000" }

func TestLeaderHintTravels(t *testing.T) {
	err := ErrorFromStatus(StatusError(storage.E("create volume", storage.KindNotLeader, "catalog", hintError{})), "", "")
	var hint LeaderHint
	if !errors.As(err, &hint) || hint.LeaderEndpoint() != "10.0.0.3:7000" || !strings.Contains(err.Error(), "node c leads") {
		t.Errorf("arrived as %v", err)
	}
	other := ErrorFromStatus(StatusError(storage.E("create volume", storage.KindConflict, "", hintError{})), "", "")
	if errors.As(other, &hint) {
		t.Error("an error of another kind carries a hint")
	}
}
