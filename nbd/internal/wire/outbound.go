package wire

import (
	"net"
)

// Outbound writes pieces of memory to a connection with one system call. One goroutine uses it at a time.
type Outbound struct {
	vector net.Buffers
	joined []byte // scratch for connections without writev
}

// maxJoinedBytes is the scratch that is kept for the next time.
const maxJoinedBytes = 256 << 10

// Write writes parts, which it may overwrite; not what they point to.
func (o *Outbound) Write(nc net.Conn, parts [][]byte) error {
	if len(parts) == 1 {
		_, err := nc.Write(parts[0])
		return err
	}
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
		o.vector = parts
		_, err := o.vector.WriteTo(nc)
		o.vector = nil
		return err
	}
	o.joined = o.joined[:0]
	for _, part := range parts {
		o.joined = append(o.joined, part...)
	}
	_, err := nc.Write(o.joined)
	if cap(o.joined) > maxJoinedBytes {
		o.joined = nil
	}
	return err
}
