package peer

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	storage "github.com/storaged/storaged"
)

// SendError is the cause of an error of the transport itself: no answer came from the peer. Find it with errors.As.
type SendError struct {
	Node storage.NodeID
	// Sent is false when it is certain that the peer has not received the request whole.
	Sent bool
	Err  error
}

// Error implements error.
func (e *SendError) Error() string {
	if e.Sent {
		return fmt.Sprintf("the request was sent, its outcome is not known: %v", e.Err)
	}
	return fmt.Sprintf("the request was not sent: %v", e.Err)
}

// Unwrap returns the cause.
func (e *SendError) Unwrap() error { return e.Err }

// SecondProcessError is the cause of a refused greeting: another process, which is still heard, is this node too. Find it with
// errors.As.
type SecondProcessError struct {
	Node  storage.NodeID
	Other Speaker // the process that was there before
}

// Error implements error.
func (e *SecondProcessError) Error() string {
	return fmt.Sprintf("another process is node %v, too: instance %016x, %s, at %s", e.Node, e.Other.Instance,
		orUnknown(e.Other.Process), orUnknown(e.Other.Address))
}

func orUnknown(s string) string { return cmp.Or(s, "unknown") }

// RemoteError is the cause of an error that the peer's handler answered with. Find it with errors.As.
type RemoteError struct {
	Node storage.NodeID
	Text string
	// Detail is what the handler's error said by its method ErrorDetail, 0 without one: a leader's node id, say.
	Detail uint64
}

// Error implements error.
func (e *RemoteError) Error() string { return e.Text }

// ErrorDetail is Detail: it travels on when the error is handed on.
func (e *RemoteError) ErrorDetail() uint64 { return e.Detail }

// Detailer is implemented by errors which want a number to reach the caller as RemoteError.Detail.
type Detailer interface {
	error
	ErrorDetail() uint64
}

// sendError says that no answer came, for a reason on our side or the network's.
func sendError(node storage.NodeID, sent bool, cause error) error {
	return storage.E("call", storage.KindUnavailable, "node "+node.String(), &SendError{Node: node, Sent: sent, Err: cause})
}

// canceledError says that the caller gave up.
func canceledError(ctx context.Context, node storage.NodeID, sent bool) error {
	return storage.E("call", storage.KindCanceled, "node "+node.String(),
		&SendError{Node: node, Sent: sent, Err: context.Cause(ctx)})
}

// maxErrorPart bounds each text of an encoded error; longer ones are cut.
const maxErrorPart = 2 << 10

// appendError encodes err as the header of an error frame.
func appendError(b []byte, err error) []byte {
	kind, op, subject, text := storage.KindOf(err), "", "", ""
	var e *storage.Error
	if errors.As(err, &e) {
		op, subject = e.Op, e.Subject
	}
	switch {
	case err == nil:
		kind, text = storage.KindInternal, "an error reply without an error"
	case e == nil || err != error(e): //nolint:errorlint // wrapped is what is asked
		op, subject, text = "", "", err.Error() // wrapped from outside: its text says it all
	case e.Err != nil:
		text = e.Err.Error()
	}
	var d Detailer
	detail := uint64(0)
	if errors.As(err, &d) {
		detail = d.ErrorDetail()
	}
	b = append(b, byte(kind))
	b = binary.LittleEndian.AppendUint64(b, detail)
	for _, s := range [...]string{op, subject, text} {
		s = s[:min(len(s), maxErrorPart)]
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

// parseError decodes the header of an error frame from node. It always returns an error; a malformed one is of
// KindInternal.
func parseError(node storage.NodeID, b []byte) error {
	malformed := storage.E("call", storage.KindInternal, "node "+node.String(), errors.New("malformed error answer"))
	if len(b) < 9 {
		return malformed
	}
	number, detail := b[0], binary.LittleEndian.Uint64(b[1:])
	b = b[9:]
	var parts [3]string
	for i := range parts {
		if len(b) < 2 {
			return malformed
		}
		n := int(binary.LittleEndian.Uint16(b))
		if n > maxErrorPart || len(b) < 2+n {
			return malformed
		}
		parts[i], b = string(b[2:2+n]), b[2+n:]
	}
	if len(b) != 0 || number == byte(storage.KindNone) {
		return malformed
	}
	kind, text := storage.FailureOf(uint64(number)), parts[2]
	if text == "" {
		text = kind.String()
	}
	return storage.E(parts[0], kind, parts[1], &RemoteError{Node: node, Text: text, Detail: detail})
}
