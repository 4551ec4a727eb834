//go:build !linux

package peer

import "syscall"

// directWriter does not exist here: every frame is written by writeLoop.
type directWriter struct{}

func newDirectWriter(syscall.Conn) *directWriter { return nil }

func (*directWriter) write([][]byte) int { return 0 }
