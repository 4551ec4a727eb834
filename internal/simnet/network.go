// Package simnet is a network in memory for simulations: hosts with listeners and stream connections, links with
// delay and limited rate, one-way cuts, isolation, frozen and crashed hosts.
//
// It keeps what TCP keeps: a connection delivers its bytes in order and without a gap, or fails. A cut loses packets
// silently: bytes on their way wait at the sender, whose buffer fills until it blocks, both ends look alive, and
// healing delivers what waited (call Reset before Heal to have the connections die instead). It models neither
// congestion nor the time-outs of a kernel: nothing fails by itself, however long a cut lasts.
//
// Everything blocks on condition variables and timers only, so it works in a testing/synctest bubble on virtual
// time; a Network belongs to the bubble it was made in. Random choices (jitter) come from the seed and do not depend
// on how goroutines are scheduled. All methods may be used concurrently. The package is for tests: memory is bounded
// by the buffers of open connections.
package simnet

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Config describes a network. Zero values take the default in brackets.
type Config struct {
	Seed        uint64
	BufferBytes int  // bytes that one direction of a connection holds before its writer blocks [256 KiB]
	Link        Link // every link that SetLink did not change
}

// backlog is how many connections wait to be accepted by one listener.
const backlog = 128

// Link describes one direction between two hosts.
type Link struct {
	Delay          time.Duration // from the end of a write to the arrival of its bytes
	Jitter         time.Duration // at most so much is added to Delay at random
	BytesPerSecond int64         // of each connection; 0: no limit
}

// Network is a set of hosts and the links between them. One lock guards everything in it.
type Network struct {
	cfg Config

	mu      sync.Mutex // guards what follows, and all fields of hosts, listeners, connections and pipes
	changed sync.Cond  // on mu; broadcast when a link or a host changed
	hosts   map[string]*Host
	links   map[linkKey]*linkState
	conns   map[*Conn]struct{} // not closed at both ends
}

type linkKey struct{ from, to string }

type linkState struct {
	Link
	cut   bool
	dials uint64 // connections ever made over it
}

// New makes a network without hosts.
func New(cfg Config) *Network {
	if cfg.BufferBytes <= 0 {
		cfg.BufferBytes = 256 << 10
	}
	n := &Network{cfg: cfg, hosts: make(map[string]*Host), links: make(map[linkKey]*linkState),
		conns: make(map[*Conn]struct{})}
	n.changed.L = &n.mu
	return n
}

// Host returns the host of a name, making it if it is new.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hostLocked(name)
}

func (n *Network) hostLocked(name string) *Host {
	h := n.hosts[name]
	if h == nil {
		h = &Host{n: n, name: name, listeners: make(map[int]*Listener), nextPort: 49152}
		n.hosts[name] = h
	}
	return h
}

func (n *Network) linkLocked(from, to string) *linkState {
	key := linkKey{from, to}
	l := n.links[key]
	if l == nil {
		l = &linkState{Link: n.cfg.Link}
		n.links[key] = l
	}
	return l
}

// change lets do alter links and hosts: what arrived until now stays arrived, and everybody looks again.
func (n *Network) change(do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.eachPipeLocked(func(p *pipe) {
		p.arriveLocked(now)
		p.wasStalled = p.stalledLocked()
	})
	do()
	n.eachPipeLocked(func(p *pipe) {
		if p.wasStalled && !p.stalledLocked() {
			p.resendLocked(now)
		}
		p.readable.Broadcast()
		p.writable.Broadcast()
	})
	n.changed.Broadcast()
}

func (n *Network) eachPipeLocked(do func(*pipe)) {
	for c := range n.conns {
		do(c.out) // the other direction is the out of the other end
	}
}

// SetLink sets delay and rate of one direction, for bytes written from now on.
func (n *Network) SetLink(from, to string, l Link) {
	n.change(func() { n.linkLocked(from, to).Link = l })
}

// Cut loses every packet from one host to the other, silently. The other direction works.
func (n *Network) Cut(from, to string) { n.change(func() { n.linkLocked(from, to).cut = true }) }

// Heal ends Cut.
func (n *Network) Heal(from, to string) { n.change(func() { n.linkLocked(from, to).cut = false }) }

// CutBoth loses every packet between two hosts.
func (n *Network) CutBoth(a, b string) {
	n.change(func() { n.linkLocked(a, b).cut, n.linkLocked(b, a).cut = true, true })
}

// HealBoth ends CutBoth.
func (n *Network) HealBoth(a, b string) {
	n.change(func() { n.linkLocked(a, b).cut, n.linkLocked(b, a).cut = false, false })
}

// Isolate loses every packet from and to a host, but those to itself.
func (n *Network) Isolate(host string) { n.change(func() { n.hostLocked(host).isolated = true }) }

// Rejoin ends Isolate.
func (n *Network) Rejoin(host string) { n.change(func() { n.hostLocked(host).isolated = false }) }

// HealAll ends every cut and isolation. Frozen hosts stay frozen.
func (n *Network) HealAll() {
	n.change(func() {
		for _, l := range n.links {
			l.cut = false
		}
		for _, h := range n.hosts {
			h.isolated = false
		}
	})
}

// Freeze stops a host as SIGSTOP stops a process. Its calls of the network return only with an error, after their deadline.
// Nothing leaves it. What is sent to it goes into its buffers until they are full.
func (n *Network) Freeze(host string) { n.change(func() { n.hostLocked(host).frozen = true }) }

// Thaw ends Freeze.
func (n *Network) Thaw(host string) {
	n.change(func() {
		n.hostLocked(host).frozen = false
		for c := range n.conns {
			if c.host.name == host && c.closed {
				c.speakLocked()
			}
		}
	})
}

// Reset makes all connections between two hosts fail at both ends now, cut or not.
func (n *Network) Reset(a, b string) {
	n.change(func() {
		for c := range n.conns {
			if c.host.name == a && c.remote.name == b || c.host.name == b && c.remote.name == a {
				c.out.err, c.in.err = syscall.ECONNRESET, syscall.ECONNRESET
			}
		}
	})
}

// Crash ends a host's process: its listeners and connections are closed, and the other ends are reset once the news
// reaches them. The host may Listen and Dial again.
func (n *Network) Crash(host string) { n.end(host, true) }

// PowerOff is Crash without a word to anyone: the other ends stay open until the host listens again, which answers
// what they send with a reset.
func (n *Network) PowerOff(host string) { n.end(host, false) }

func (n *Network) end(host string, tell bool) {
	n.change(func() {
		h := n.hostLocked(host)
		h.off = !tell
		h.frozen = false
		for _, l := range h.listeners {
			l.closeLocked()
		}
		for c := range n.conns {
			if c.host == h {
				c.endLocked(tell)
			}
		}
	})
}

// pathLocked reports whether packets pass from one host to another. Whether they are frozen does not matter.
func (n *Network) pathLocked(from, to *Host) bool {
	return from == to || !from.isolated && !to.isolated && !n.linkLocked(from.name, to.name).cut
}

// Host is a machine with a name.
type Host struct {
	n    *Network
	name string

	isolated, frozen, off bool
	listeners             map[int]*Listener
	nextPort              int
}

// Listen opens a listener at "name:port" or ":port"; port 0 chooses one.
func (h *Host) Listen(addr string) (net.Listener, error) {
	name, port, err := splitAddr(addr)
	if err == nil && name != "" && name != h.name {
		err = syscall.EADDRNOTAVAIL
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: simAddr(addr), Err: err}
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if port == 0 {
		port = h.portLocked()
	}
	if h.listeners[port] != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: simAddr(addr), Err: syscall.EADDRINUSE}
	}
	l := &Listener{h: h, port: port}
	l.arrived.L = &h.n.mu
	h.listeners[port] = l
	if h.off {
		h.off = false
		for c := range h.n.conns { // left over from before PowerOff
			if c.host == h && c.closed && c.in.silent {
				c.speakLocked()
				c.out.sendLocked(segment{err: syscall.ECONNRESET})
			}
		}
		h.n.changed.Broadcast()
	}
	return l, nil
}

func (h *Host) portLocked() int {
	for h.listeners[h.nextPort] != nil {
		h.nextPort++
	}
	h.nextPort++
	return h.nextPort - 1
}

// Dial connects to a listener at "name:port". While packets do not pass both ways, or the host is off, it waits for
// ctx.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := h.dial(ctx, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "sim", Addr: simAddr(addr), Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, addr string) (*Conn, error) {
	name, port, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	n := h.n
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.hosts[name]
	if to == nil {
		return nil, fmt.Errorf("no host %q", name)
	}
	for {
		for ctx.Err() == nil && (h.frozen || to.off || !n.pathLocked(h, to) || !n.pathLocked(to, h)) {
			n.changed.Wait()
		}
		if err := n.roundTripLocked(ctx, h, to); err != nil {
			return nil, err
		}
		if h.frozen || to.off || !n.pathLocked(h, to) || !n.pathLocked(to, h) {
			continue // lost; the kernel tries again
		}
		l := to.listeners[port]
		if l == nil {
			return nil, syscall.ECONNREFUSED
		}
		if len(l.backlog) < backlog {
			return n.connectLocked(h, l), nil
		}
		n.changed.Wait()
	}
}

// roundTripLocked waits for as long as a packet travels there and back.
func (n *Network) roundTripLocked(ctx context.Context, a, b *Host) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d := n.linkLocked(a.name, b.name).Delay + n.linkLocked(b.name, a.name).Delay
	if d <= 0 {
		return nil
	}
	n.mu.Unlock()
	defer n.mu.Lock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connectLocked makes a connection from h to l and leaves l's end in the backlog.
func (n *Network) connectLocked(h *Host, l *Listener) *Conn {
	there, back := n.newPipeLocked(h, l.h), n.newPipeLocked(l.h, h)
	local, remote := addrOf(h.name, h.portLocked()), addrOf(l.h.name, l.port)
	a := &Conn{n: n, host: h, remote: l.h, out: there, in: back, local: local, peer: remote}
	b := &Conn{n: n, host: l.h, remote: h, out: back, in: there, local: remote, peer: local}
	a.other, b.other = b, a
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	l.backlog = append(l.backlog, b)
	l.arrived.Signal()
	return a
}

func (n *Network) newPipeLocked(from, to *Host) *pipe {
	link := n.linkLocked(from.name, to.name)
	link.dials++
	f := fnv.New64a()
	fmt.Fprintf(f, "%s>%s#%d", from.name, to.name, link.dials)
	p := &pipe{n: n, from: from, to: to, link: link, random: rand.New(rand.NewPCG(n.cfg.Seed, f.Sum64()))}
	p.readable.L, p.writable.L = &n.mu, &n.mu
	return p
}

// Listener is an address at which a host accepts connections.
type Listener struct {
	h       *Host
	port    int
	arrived sync.Cond // on Network.mu; signalled when backlog grew, broadcast when closed or a host changed
	backlog []*Conn
	closed  bool
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	n := l.h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for !l.closed && (len(l.backlog) == 0 || l.h.frozen) {
		if l.h.frozen {
			n.changed.Wait()
		} else {
			l.arrived.Wait()
		}
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "sim", Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := l.backlog[0]
	l.backlog = l.backlog[1:]
	n.changed.Broadcast() // someone may dial into the room
	return c, nil
}

// Close implements net.Listener. Connections nobody has accepted are reset.
func (l *Listener) Close() error {
	l.h.n.mu.Lock()
	defer l.h.n.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *Listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.h.listeners, l.port)
	for _, c := range l.backlog {
		c.endLocked(true)
	}
	l.backlog = nil
	l.arrived.Broadcast()
	l.h.n.changed.Broadcast()
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addrOf(l.h.name, l.port) }

type simAddr string

func addrOf(host string, port int) simAddr {
	return simAddr(net.JoinHostPort(host, strconv.Itoa(port)))
}

func (simAddr) Network() string  { return "sim" }
func (a simAddr) String() string { return string(a) }

func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(p)
	if err == nil && (port < 0 || port > 1<<16-1) {
		err = fmt.Errorf("port %d is out of range", port)
	}
	return host, port, err
}
