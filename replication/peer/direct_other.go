//go:build !linux

package peer

import (
	"io"
	"syscall"
)

// directWriter does not exist here: every frame is written by writeLoop.
type directWriter struct{}

func newDirectWriter(syscall.Conn) *directWriter { return nil }

func (*directWriter) write([][]byte) int { return 0 }

// directReader does not exist here: the runtime reads.
type directReader struct{}

func newDirectReader(syscall.Conn) *directReader { return nil }

func (*directReader) Read([]byte) (int, error) { return 0, io.EOF }
