package nbd

import "math"

// bounds is what a request of one connection is checked against.
type bounds struct {
	sizeBytes       uint64
	maxPayloadBytes uint32
	minBlockBytes   uint32
	readOnly        bool
	fastZero        bool
	preferredBytes  uint32
	resizable       bool
	features        features
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
func payloadBytes(h requestHeader, extended bool) uint64 {
	switch {
	case extended && h.flags&cmdFlagPayloadLen != 0, !extended && h.cmd == cmdWrite:
		return h.length
	default:
		return 0
	}
}

// commandFlags are the flags that a command knows, beside FUA, which every command accepts.
var commandFlags = [cmdEnd]uint16{
	cmdRead:        cmdFlagDF,
	cmdWriteZeroes: cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagReqOne,
}

// check returns why h must not be executed, or nil. BLOCK_STATUS with a payload is checked again when the payload,
// which holds its length, has been read.
func (b *bounds) check(h requestHeader) *refusal {
	if h.cmd >= cmdEnd {
		return refuse(errnoInvalid, "unknown command")
	}
	if r := b.checkFlags(h); r != nil {
		return r
	}
	switch h.cmd {
	case cmdFlush:
		if h.offset != 0 || h.length != 0 {
			return refuse(errnoInvalid, "a flush has no offset and no length")
		}
		return nil
	case cmdResize:
		return b.checkResize(h)
	case cmdRead, cmdWrite:
		if h.length > uint64(b.maxPayloadBytes) {
			return b.tooLong(h)
		}
	case cmdBlockStatus:
		if len(b.features.contexts) == 0 {
			return refuse(errnoInvalid, "no metadata context was negotiated")
		}
		if h.flags&cmdFlagPayloadLen != 0 {
			return nil
		}
		if h.length == 0 {
			return refuse(errnoInvalid, "the length is zero")
		}
	}
	if b.readOnly && mutates(h.cmd) {
		return refuse(errnoPerm, "the export is read-only")
	}
	return b.checkRange(h.cmd, h.offset, h.length)
}

func (b *bounds) checkFlags(h requestHeader) *refusal {
	known := commandFlags[h.cmd] | cmdFlagFUA
	if !b.features.chunked() {
		known &^= cmdFlagDF
	}
	if b.features.extended {
		switch h.cmd {
		case cmdWrite:
			known |= cmdFlagPayloadLen
			if h.flags&cmdFlagPayloadLen == 0 {
				return refuse(errnoInvalid, "a write needs its payload")
			}
		case cmdBlockStatus:
			known |= cmdFlagPayloadLen
		}
	}
	if h.flags&^known != 0 {
		return refuse(errnoInvalid, "unknown command flag")
	}
	return nil
}

func (b *bounds) checkResize(h requestHeader) *refusal {
	switch {
	case !b.resizable:
		return refuse(errnoInvalid, "the export does not resize on a client's request")
	case b.readOnly:
		return refuse(errnoPerm, "the export is read-only")
	case h.offset > math.MaxInt64 || h.length != 0:
		return refuse(errnoInvalid, "bad size")
	}
	return nil
}

func (b *bounds) tooLong(h requestHeader) *refusal {
	if h.cmd == cmdRead && b.features.chunked() {
		return refuse(errnoOverflow, "the read is longer than the maximum payload")
	}
	return refuse(errnoInvalid, "the request is longer than the maximum payload")
}

// checkRange holds [offset, offset+length) against the size and the alignment.
func (b *bounds) checkRange(cmd uint16, offset, length uint64) *refusal {
	if b.behindEnd(offset, length) {
		if cmd == cmdWrite || cmd == cmdWriteZeroes {
			return refuse(errnoNoSpace, "the request reaches behind the end of the export")
		}
		return refuse(errnoInvalid, "the request reaches behind the end of the export")
	}
	if m := uint64(b.minBlockBytes); m > 1 && (offset%m != 0 || length%m != 0) {
		return refuse(errnoInvalid, "the request is not aligned to the minimum block size")
	}
	return nil
}

func (b *bounds) behindEnd(offset, length uint64) bool {
	return offset > b.sizeBytes || length > b.sizeBytes-offset
}

// fastZeroes reports whether zeroing the range is faster than writing it: it clears at least one whole block and
// need not allocate.
func (b *bounds) fastZeroes(h requestHeader) bool {
	if !b.fastZero || h.flags&cmdFlagNoHole != 0 {
		return false
	}
	p := uint64(b.preferredBytes)
	first := (h.offset + p - 1) / p * p
	return first+p <= h.offset+h.length
}

// mutates reports whether a command changes the export.
func mutates(cmd uint16) bool {
	switch cmd {
	case cmdWrite, cmdTrim, cmdWriteZeroes, cmdResize:
		return true
	default:
		return false
	}
}
