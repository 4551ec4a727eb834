// Package aligned gives memory for what is received from a socket and written to a disk from where it was received. Direct
// I/O (open(2), O_DIRECT) takes only memory that begins where a page does.
//
// The memory is the garbage collector's, and is not cleared: whoever asks for it fills all of it before anybody reads it. It is
// not lent and given back by counting. Raft's library, queues to peers and the log's cache refer to the same bytes, and the
// collector is the proof that none of them does any more (docs/adr/0039-direct-writes.md).
//
// It keeps nothing and may be used by any number of goroutines.
package aligned

import (
	"strings"
	"unsafe"
)

// Page is what addresses and lengths are multiples of, in bytes.
const Page = 4096

// Bytes returns n bytes of any content, which begin at a multiple of Page.
func Bytes(n int) []byte { return Before(0, n) }

// Before returns head+body bytes of any content, of which the last body begin at a multiple of Page. Both are at least 0.
func Before(head, body int) []byte {
	front := roundUp(head)
	b := uncleared(front + body)
	if !Is(b) {
		b = uncleared(front + body + Page - 1)
		b = b[roundUp(address(b))-address(b):]
	}
	return b[front-head : front+body : front+body]
}

// Is reports whether b begins at a multiple of Page. It holds for an empty slice.
func Is(b []byte) bool { return len(b) == 0 || address(b)%Page == 0 }

func roundUp(n int) int { return (n + Page - 1) &^ (Page - 1) }

func address(b []byte) int { return int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// uncleared returns n bytes as they are. To clear what is filled right after costs as much as to check its checksum. Nothing in
// Go's library gives such memory but a string that is being built: here nobody ever sees the string.
func uncleared(n int) []byte {
	if n == 0 {
		return nil
	}
	var b strings.Builder
	b.Grow(n)
	_ = b.WriteByte(0) // a string without bytes need not say where it lies; the error is always nil
	return unsafe.Slice(unsafe.StringData(b.String()), n)
}
