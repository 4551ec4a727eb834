// Package doors bounds what strangers can take of a listener: connections in all, and of each address, so that one host
// does not lock out the others. It does not know what is spoken on them.
//
// A connection over a bound is closed at once. To leave it in the kernel's queue instead, as netutil.LimitListener does, would
// keep everybody waiting behind it. Everything may be used concurrently.
package doors

import (
	"net"
	"sync"
)

// Shares counts what is taken, by address, within a bound in all and one for each.
type Shares struct {
	total, each int

	mu    sync.Mutex
	taken int            // guarded by mu; <= total
	by    map[string]int // guarded by mu; each <= each, none 0
}

// NewShares returns the bounds of a number of things, of which each address gets at most a part. An address that is empty, as
// behind a Unix socket, may take all of them: the socket's permissions have chosen who that is.
func NewShares(total, each int) *Shares {
	return &Shares{total: total, each: min(each, total), by: map[string]int{}}
}

// Enter takes one. It returns a function that gives it back, which may be called repeatedly; nil if none is left, in all or for this
// address.
func (s *Shares) Enter(address string) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.total || address != "" && s.by[address] >= s.each {
		return nil
	}
	s.taken++
	s.by[address]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken--
		if s.by[address]--; s.by[address] == 0 {
			delete(s.by, address)
		}
	})
}

// AddressOf returns the address that a connection's shares are counted by: that of the host, without the port; empty for a
// Unix socket. An IPv6 host has as many addresses as it likes in its network, so it is the network (/64) that counts.
func AddressOf(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	switch {
	case !ok:
		return ""
	case tcp.IP.To4() != nil:
		return tcp.IP.String()
	default:
		return tcp.IP.Mask(net.CIDRMask(64, 128)).String()
	}
}

// Door bounds the connections of one or more listeners.
type Door struct {
	Shares *Shares
	// Refused, if not nil, is told of each connection that is closed because there is no share for it.
	Refused func(net.Addr)
}

// Limit returns a listener that hands out connections within the shares and closes all others.
func (d Door) Limit(l net.Listener) net.Listener { return &listener{l, d} }

type listener struct {
	net.Listener
	door Door
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		leave := l.door.Shares.Enter(AddressOf(nc.RemoteAddr()))
		if leave != nil {
			return &conn{nc, leave}, nil
		}
		_ = nc.Close()
		if l.door.Refused != nil {
			l.door.Refused(nc.RemoteAddr())
		}
	}
}

type conn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
