package doors

import (
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors keeps some of a process's file descriptors free of connections: without one a disk cannot be used. The zero
// value keeps none free.
//
// The kernel gives out the lowest number that is free. So a connection with a number of limit-reserve or above says, without
// anything being counted, that as many descriptors are in use; it is closed at once.
type Descriptors struct {
	limit   atomic.Uint64 // written once, and by tests
	reserve uint64
	logger  *slog.Logger
	refused atomic.Int64
	told    atomic.Int64 // when a refusal was last logged, in Unix seconds
}

// KeepDescriptors returns a Descriptors with the process's present limit (RLIMIT_NOFILE; Go has raised it to the hard one),
// of which reserve stay free, or a half if that is less.
func KeepDescriptors(reserve uint64, logger *slog.Logger) *Descriptors {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return &Descriptors{logger: logger}
	}
	d := &Descriptors{reserve: min(reserve, r.Cur/2), logger: logger}
	d.limit.Store(r.Cur)
	return d
}

// Limit returns how many descriptors the process may have; 0: not known.
func (d *Descriptors) Limit() uint64 { return d.limit.Load() }

// Room returns how many of them connections may have.
func (d *Descriptors) Room() uint64 { return d.limit.Load() - d.reserve }

// Refused returns how many connections were closed for want of descriptors.
func (d *Descriptors) Refused() int64 { return d.refused.Load() }

// Guard returns the listener, of TCP or a Unix socket, so that it accepts while there are descriptors.
func (d *Descriptors) Guard(l net.Listener) net.Listener {
	switch l := l.(type) {
	case *net.TCPListener:
		return &tcpGuard{l, d}
	case *net.UnixListener:
		return &unixGuard{l, d}
	}
	return l
}

type tcpGuard struct {
	*net.TCPListener
	d *Descriptors
}

// Accept implements net.Listener.
func (g *tcpGuard) Accept() (net.Conn, error) { return g.d.accept(g.TCPListener.Accept) }

type unixGuard struct {
	*net.UnixListener
	d *Descriptors
}

// Accept implements net.Listener.
func (g *unixGuard) Accept() (net.Conn, error) { return g.d.accept(g.UnixListener.Accept) }

func (d *Descriptors) accept(next func() (net.Conn, error)) (net.Conn, error) {
	for {
		c, err := next()
		if err != nil || d.Limit() == 0 || descriptorOf(c) < d.Room() {
			return c, err
		}
		d.refused.Add(1) // before the client sees it
		_ = c.Close()
		now := time.Now().Unix()
		if last := d.told.Load(); now-last >= 60 && d.told.CompareAndSwap(last, now) {
			d.logger.Warn("connections are refused: the process has few file descriptors left; raise its limit (LimitNOFILE= in systemd, ulimit -n)",
				"limit", d.Limit(), "kept_free", d.reserve, "refused", d.refused.Load(), "last_from", c.RemoteAddr())
		}
	}
}

// descriptorOf returns the number of a connection's descriptor; 0 if it has none.
func descriptorOf(c net.Conn) (n uint64) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { n = uint64(fd) }) // a closed one has none
	}
	return n
}
