package op

import (
	"encoding/binary"
	"fmt"

	storage "github.com/storaged/storaged"
)

// MaxTextBytes bounds the explanation in a result.
const MaxTextBytes = 512

// Result is what applying an operation came to. It is the same on every replica.
type Result struct {
	// Kind is KindNone when the operation was applied (now or, if Duplicate, before); otherwise why it was refused.
	Kind storage.Kind
	// Duplicate: the number had been applied before; this time nothing was changed.
	Duplicate bool
	// Detail is, for KindFenced, the epoch or generation that the group has; otherwise zero.
	Detail uint64
	// Window is the closed session's, and only CloseSession's result carries it.
	Window *Window
	// Text explains a refusal to people.
	Text string
}

const (
	resultFixedLen  = 12
	resultDuplicate = 1
	resultWindow    = 2

	// A result has 16 bits for its kind and the length of its text: the kind's low 4 bits, 10 of the length, the kind's high 2 bits.
	// Versions that knew of 4 bits for the kind and 12 for the length find a text that is too long in a result of a kind above 15, and
	// refuse it.
	maxResultKind = 1<<6 - 1
	textLenBits   = 10
)

// These do not compile when a kind, or a text, does not fit.
const (
	_ = maxResultKind - storage.KindLast
	_ = uint(1<<textLenBits - 1 - MaxTextBytes)
)

func packKind(k storage.Kind, textLen int) uint16 {
	return uint16(k)>>4<<(4+textLenBits) | uint16(textLen)<<4 | uint16(k)&15
}

func unpackKind(packed uint16) (k storage.Kind, textLen int) {
	return storage.Kind(packed>>(4+textLenBits)<<4 | packed&15), int(packed >> 4 & (1<<textLenBits - 1))
}

// Err returns nil if the operation was applied, otherwise an error of the result's kind.
func (r *Result) Err(op, subject string) error {
	if r.Kind == storage.KindNone {
		return nil
	}
	if r.Text == "" {
		return storage.E(op, r.Kind, subject, nil)
	}
	return storage.E(op, r.Kind, subject, fmt.Errorf("%s", r.Text))
}

// Append appends the encoding of the result. Text beyond MaxTextBytes is cut.
func (r *Result) Append(dst []byte) []byte {
	text := r.Text[:min(len(r.Text), MaxTextBytes)]
	var flags byte
	if r.Duplicate {
		flags |= resultDuplicate
	}
	if r.Window != nil {
		flags |= resultWindow
	}
	dst = append(dst, Version, flags)
	dst = binary.LittleEndian.AppendUint16(dst, packKind(r.Kind, len(text)))
	dst = binary.LittleEndian.AppendUint64(dst, r.Detail)
	if r.Window != nil {
		dst = r.Window.Append(dst)
	}
	return append(dst, text...)
}

// DecodeResult decodes a result that fills data. It does not keep data.
func DecodeResult(data []byte) (r Result, err error) {
	if err := checkAnswer("decode result", data, resultFixedLen); err != nil {
		return r, err
	}
	flags, packed := data[1], binary.LittleEndian.Uint16(data[2:])
	if flags&^(resultDuplicate|resultWindow) != 0 {
		return Result{}, invalid("decode result", "unknown flags %#x", flags)
	}
	kind, textLen := unpackKind(packed)
	r = Result{
		Kind:      kind,
		Duplicate: flags&resultDuplicate != 0,
		Detail:    binary.LittleEndian.Uint64(data[4:]),
	}
	if r.Kind > storage.KindLast {
		return Result{}, invalid("decode result", "unknown kind %d", r.Kind)
	}
	rest := data[resultFixedLen:]
	if flags&resultWindow != 0 {
		w, err := DecodeWindow(rest)
		if err != nil {
			return Result{}, err
		}
		r.Window, rest = &w, rest[WindowLen:]
	}
	if textLen > MaxTextBytes || len(rest) != textLen {
		return Result{}, invalid("decode result", "the text has %d bytes, the header says %d", len(rest), textLen)
	}
	r.Text = string(rest)
	return r, nil
}
