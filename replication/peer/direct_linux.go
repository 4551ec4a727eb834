package peer

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directWriter writes to a non-blocking socket as much as it takes at once. The runtime's own Write would park the
// caller when the socket's buffer is full. Used by one goroutine at a time.
type directWriter struct {
	raw  syscall.RawConn
	iov  [16]unix.Iovec
	used int
	n    int
	try  func(fd uintptr) bool // made once, so that a write allocates nothing
}

// newDirectWriter returns nil if the descriptor is not to be had.
func newDirectWriter(c syscall.Conn) *directWriter {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	w := &directWriter{raw: raw}
	w.try = func(fd uintptr) bool {
		if raceEnabled {
			_, _ = syscall.Write(int(fd), nil)
		}
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(w.used))
		if errno == 0 {
			w.n = int(n)
		}
		return true // never wait; an error shows again at the next blocking write
	}
	return w
}

// write returns how many bytes of parts were written, 0 also on an error.
func (w *directWriter) write(parts [][]byte) int {
	w.used, w.n = 0, 0
	for _, p := range parts {
		if w.used == len(w.iov) {
			break
		}
		if len(p) > 0 {
			w.iov[w.used].Base = &p[0]
			w.iov[w.used].SetLen(len(p))
			w.used++
		}
	}
	_ = w.raw.Write(w.try)
	clear(w.iov[:w.used])
	return w.n
}
