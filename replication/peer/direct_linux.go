package peer

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directWriter writes to a non-blocking socket as much as it takes at once. The runtime's own Write would park the
// caller when the socket's buffer is full. Used by one goroutine at a time.
type directWriter struct {
	raw  syscall.RawConn
	iov  [64]unix.Iovec
	used int
	size int
	n    int
	try  func(fd uintptr) bool // made once, so that a write allocates nothing
}

// newDirectWriter returns nil if the descriptor is not available.
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
		// The socket does not block, so the runtime need not hear of the call; see directReader.
		call := unix.RawSyscall
		if w.size > rawBytes {
			call = unix.Syscall
		}
		n, _, errno := call(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(w.used))
		if errno == 0 {
			w.n = int(n)
		}
		return true // never wait; an error shows again at the next blocking write
	}
	return w
}

// write returns how many bytes of parts were written, 0 also on an error.
func (w *directWriter) write(parts [][]byte) int {
	w.used, w.size, w.n = 0, 0, 0
	for _, p := range parts {
		if w.used == len(w.iov) {
			break
		}
		if len(p) > 0 {
			w.iov[w.used].Base = &p[0]
			w.iov[w.used].SetLen(len(p))
			w.used++
			w.size += len(p)
		}
	}
	_ = w.raw.Write(w.try)
	clear(w.iov[:w.used])
	return w.n
}

// directReader reads from a non-blocking socket. It differs from the runtime's own Read in one thing: the runtime is
// not told of the system call, which does not block. If it were told, an idle process would wake its monitor thread
// (runtime.sysmon), which then checks the processors every 20 us until all are idle again. A node that only exchanged
// heartbeats spent most of its CPU time on that, and a request at depth 1 waited for the wake-up. Used by one
// goroutine at a time.
type directReader struct {
	raw syscall.RawConn
	b   []byte
	n   int
	err error
	try func(fd uintptr) bool // made once, so that a read allocates nothing
}

// newDirectReader returns nil if the descriptor is not available.
func newDirectReader(c syscall.Conn) *directReader {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	r := &directReader{raw: raw}
	r.try = func(fd uintptr) bool {
		call := unix.RawSyscall
		if len(r.b) > rawBytes {
			call = unix.Syscall
		}
		for {
			n, _, errno := call(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&r.b[0])), uintptr(len(r.b)))
			switch errno {
			case 0:
				r.n = int(n)
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false // the runtime waits until the socket is readable
			default:
				r.err = os.NewSyscallError("read", errno)
			}
			if raceEnabled {
				_, _ = syscall.Read(int(fd), nil)
			}
			return true
		}
	}
	return r
}

// Read is io.Reader.
func (r *directReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	r.b, r.n, r.err = b, 0, nil
	err := r.raw.Read(r.try)
	r.b = nil
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, r.err
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}
