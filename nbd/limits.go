package nbd

import (
	"math"

	"github.com/storaged/storaged/nbd/internal/wire"
)

// bounds is what a request of one connection is checked against.
type bounds struct {
	sizeBytes uint64      // of now
	info      *ExportInfo // with defaults; all but its SizeBytes
	features  wire.Features
}

// refusal is a request that is answered with an error without asking the export.
type refusal struct {
	errno uint32
	text  string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

func refuse(errno uint32, text string) *refusal { return &refusal{errno: errno, text: text} }

// discardLimitBytes is the longest payload of a refused request that is read and forgotten, so that the next
// request can be served; the connection of a client that announces more is ended.
const discardLimitBytes = 2 * DefaultMaxPayloadBytes

// payloadBytes is how many bytes follow the header.
func payloadBytes(h wire.RequestHeader, extended bool) uint64 {
	switch {
	case extended && h.Flags&wire.CmdFlagPayloadLen != 0, !extended && h.Cmd == wire.CmdWrite:
		return h.Length
	default:
		return 0
	}
}

// commandFlags are the flags that a command knows, beside FUA, which every command accepts.
var commandFlags = [wire.CmdEnd]uint16{
	wire.CmdRead:        wire.CmdFlagDF,
	wire.CmdWriteZeroes: wire.CmdFlagNoHole | wire.CmdFlagFastZero,
	wire.CmdBlockStatus: wire.CmdFlagReqOne,
}

// check returns why h must not be executed, or nil. BLOCK_STATUS with a payload is checked again when the payload,
// which holds its length, has been read.
func (b *bounds) check(h wire.RequestHeader) *refusal {
	if h.Cmd >= wire.CmdEnd {
		return refuse(wire.ErrnoInvalid, "unknown command")
	}
	if r := b.checkFlags(h); r != nil {
		return r
	}
	switch h.Cmd {
	case wire.CmdFlush:
		if h.Offset != 0 || h.Length != 0 {
			return refuse(wire.ErrnoInvalid, "a flush has no offset and no length")
		}
		return nil
	case wire.CmdResize:
		return b.checkResize(h)
	case wire.CmdRead, wire.CmdWrite:
		if h.Length > uint64(b.info.MaxPayloadBytes) {
			return b.tooLong(h)
		}
	case wire.CmdBlockStatus:
		if len(b.features.Contexts) == 0 {
			return refuse(wire.ErrnoInvalid, "no metadata context was negotiated")
		}
		if h.Flags&wire.CmdFlagPayloadLen != 0 {
			return nil
		}
		if h.Length == 0 {
			return refuse(wire.ErrnoInvalid, "the length is zero")
		}
	}
	if b.info.ReadOnly && mutates(h.Cmd) {
		return refuse(wire.ErrnoPerm, "the export is read-only")
	}
	return b.checkRange(h.Cmd, h.Offset, h.Length)
}

func (b *bounds) checkFlags(h wire.RequestHeader) *refusal {
	known := commandFlags[h.Cmd] | wire.CmdFlagFUA
	if !b.features.Chunked() {
		known &^= wire.CmdFlagDF
	}
	if b.features.Extended {
		switch h.Cmd {
		case wire.CmdWrite:
			known |= wire.CmdFlagPayloadLen
			if h.Flags&wire.CmdFlagPayloadLen == 0 {
				return refuse(wire.ErrnoInvalid, "a write needs its payload")
			}
		case wire.CmdBlockStatus:
			known |= wire.CmdFlagPayloadLen
		}
	}
	if h.Flags&^known != 0 {
		return refuse(wire.ErrnoInvalid, "unknown command flag")
	}
	return nil
}

func (b *bounds) checkResize(h wire.RequestHeader) *refusal {
	switch {
	case !b.info.Resizable:
		return refuse(wire.ErrnoInvalid, "the export does not resize on a client's request")
	case b.info.ReadOnly:
		return refuse(wire.ErrnoPerm, "the export is read-only")
	case h.Offset > math.MaxInt64 || h.Length != 0:
		return refuse(wire.ErrnoInvalid, "bad size")
	}
	return nil
}

func (b *bounds) tooLong(h wire.RequestHeader) *refusal {
	if h.Cmd == wire.CmdRead && b.features.Chunked() {
		return refuse(wire.ErrnoOverflow, "the read is longer than the maximum payload")
	}
	return refuse(wire.ErrnoInvalid, "the request is longer than the maximum payload")
}

// checkRange holds [offset, offset+length) against the size and the alignment.
func (b *bounds) checkRange(cmd uint16, offset, length uint64) *refusal {
	if b.behindEnd(offset, length) {
		if cmd == wire.CmdWrite || cmd == wire.CmdWriteZeroes {
			return refuse(wire.ErrnoNoSpace, "the request reaches behind the end of the export")
		}
		return refuse(wire.ErrnoInvalid, "the request reaches behind the end of the export")
	}
	if m := uint64(b.info.MinBlockBytes); m > 1 && (offset%m != 0 || length%m != 0) {
		return refuse(wire.ErrnoInvalid, "the request is not aligned to the minimum block size")
	}
	return nil
}

func (b *bounds) behindEnd(offset, length uint64) bool {
	return offset > b.sizeBytes || length > b.sizeBytes-offset
}

// fastZeroes reports whether zeroing the range is faster than writing it: it clears at least one whole block and
// need not allocate.
func (b *bounds) fastZeroes(h wire.RequestHeader) bool {
	if !b.info.FastZero || h.Flags&wire.CmdFlagNoHole != 0 {
		return false
	}
	p := uint64(b.info.PreferredBlockBytes)
	first := (h.Offset + p - 1) / p * p
	return first+p <= h.Offset+h.Length
}

// mutates reports whether a command changes the export.
func mutates(cmd uint16) bool {
	switch cmd {
	case wire.CmdWrite, wire.CmdTrim, wire.CmdWriteZeroes, wire.CmdResize:
		return true
	default:
		return false
	}
}
