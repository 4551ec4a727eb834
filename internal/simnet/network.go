// Package simnet is a network in memory for simulations: machines with listeners and stream connections, links with
// delay and limited rate, one-way cuts, isolation, frozen and crashed machines.
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

// Link describes one direction between two machines.
type Link struct {
	Delay          time.Duration // from the end of a write to the arrival of its bytes
	Jitter         time.Duration // at most so much is added to Delay at random
	BytesPerSecond int64         // of each connection; 0: no limit
}

// Network is a set of machines and the links between them. One lock guards everything in it.
type Network struct {
	cfg Config

	mu       sync.Mutex // guards what follows, and all fields of machines, listeners, connections and pipes
	changed  sync.Cond  // on mu; broadcast when a link or a machine changed
	machines map[string]*Machine
	links    map[linkKey]*linkState
	conns    map[*Conn]struct{} // not closed at both ends
}

type linkKey struct{ from, to string }

type linkState struct {
	Link
	cut   bool
	dials uint64 // connections ever made over it
}

// New makes a network without machines.
func New(cfg Config) *Network {
	if cfg.BufferBytes <= 0 {
		cfg.BufferBytes = 256 << 10
	}
	n := &Network{cfg: cfg, machines: make(map[string]*Machine), links: make(map[linkKey]*linkState),
		conns: make(map[*Conn]struct{})}
	n.changed.L = &n.mu
	return n
}

// Machine returns the machine of a name, making it if it is new.
func (n *Network) Machine(name string) *Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machineLocked(name)
}

func (n *Network) machineLocked(name string) *Machine {
	m := n.machines[name]
	if m == nil {
		m = &Machine{n: n, name: name, listeners: make(map[int]*Listener), nextPort: 49152}
		n.machines[name] = m
	}
	return m
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

// change lets do alter links and machines: what arrived until now stays arrived, and everybody looks again.
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

// Cut loses every packet from one machine to the other, silently. The other direction works.
func (n *Network) Cut(from, to string) { n.change(func() { n.linkLocked(from, to).cut = true }) }

// Heal ends Cut.
func (n *Network) Heal(from, to string) { n.change(func() { n.linkLocked(from, to).cut = false }) }

// CutBoth loses every packet between two machines.
func (n *Network) CutBoth(a, b string) {
	n.change(func() { n.linkLocked(a, b).cut, n.linkLocked(b, a).cut = true, true })
}

// HealBoth ends CutBoth.
func (n *Network) HealBoth(a, b string) {
	n.change(func() { n.linkLocked(a, b).cut, n.linkLocked(b, a).cut = false, false })
}

// Isolate loses every packet from and to a machine, but those to itself.
func (n *Network) Isolate(machine string) {
	n.change(func() { n.machineLocked(machine).isolated = true })
}

// Rejoin ends Isolate.
func (n *Network) Rejoin(machine string) {
	n.change(func() { n.machineLocked(machine).isolated = false })
}

// HealAll ends every cut and isolation. Frozen machines stay frozen.
func (n *Network) HealAll() {
	n.change(func() {
		for _, l := range n.links {
			l.cut = false
		}
		for _, m := range n.machines {
			m.isolated = false
		}
	})
}

// Freeze stops a machine as SIGSTOP stops a process. Its calls of the network return only with an error, after their deadline.
// Nothing leaves it. What is sent to it goes into its buffers until they are full.
func (n *Network) Freeze(machine string) { n.change(func() { n.machineLocked(machine).frozen = true }) }

// Thaw ends Freeze.
func (n *Network) Thaw(machine string) {
	n.change(func() {
		n.machineLocked(machine).frozen = false
		for c := range n.conns {
			if c.machine.name == machine && c.closed {
				c.speakLocked()
			}
		}
	})
}

// Reset makes all connections between two machines fail at both ends now, cut or not.
func (n *Network) Reset(a, b string) {
	n.change(func() {
		for c := range n.conns {
			if c.machine.name == a && c.remote.name == b || c.machine.name == b && c.remote.name == a {
				c.out.err, c.in.err = syscall.ECONNRESET, syscall.ECONNRESET
			}
		}
	})
}

// Crash ends a machine's process: its listeners and connections are closed, and the other ends are reset once the news
// reaches them. The machine may Listen and Dial again.
func (n *Network) Crash(machine string) { n.end(machine, true) }

// PowerOff is Crash without a word to anyone: the other ends stay open until the machine listens again, which answers
// what they send with a reset.
func (n *Network) PowerOff(machine string) { n.end(machine, false) }

func (n *Network) end(machine string, tell bool) {
	n.change(func() {
		m := n.machineLocked(machine)
		m.off = !tell
		m.frozen = false
		for _, l := range m.listeners {
			l.closeLocked()
		}
		for c := range n.conns {
			if c.machine == m {
				c.endLocked(tell)
			}
		}
	})
}

// pathLocked reports whether packets pass from one machine to another. Whether they are frozen does not matter.
func (n *Network) pathLocked(from, to *Machine) bool {
	return from == to || !from.isolated && !to.isolated && !n.linkLocked(from.name, to.name).cut
}

// Machine is what the network connects: it has a name, listens and dials.
type Machine struct {
	n    *Network
	name string

	isolated, frozen, off bool
	listeners             map[int]*Listener
	nextPort              int
}

// Listen opens a listener at "name:port" or ":port"; port 0 chooses one.
func (m *Machine) Listen(addr string) (net.Listener, error) {
	name, port, err := splitAddr(addr)
	if err == nil && name != "" && name != m.name {
		err = syscall.EADDRNOTAVAIL
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: simAddr(addr), Err: err}
	}
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	if port == 0 {
		port = m.portLocked()
	}
	if m.listeners[port] != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: simAddr(addr), Err: syscall.EADDRINUSE}
	}
	l := &Listener{m: m, port: port}
	l.arrived.L = &m.n.mu
	m.listeners[port] = l
	if m.off {
		m.off = false
		for c := range m.n.conns { // left over from before PowerOff
			if c.machine == m && c.closed && c.in.silent {
				c.speakLocked()
				c.out.sendLocked(segment{err: syscall.ECONNRESET})
			}
		}
		m.n.changed.Broadcast()
	}
	return l, nil
}

func (m *Machine) portLocked() int {
	for m.listeners[m.nextPort] != nil {
		m.nextPort++
	}
	m.nextPort++
	return m.nextPort - 1
}

// Dial connects to a listener at "name:port". While packets do not pass both ways, or the machine is off, it waits for
// ctx.
func (m *Machine) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := m.dial(ctx, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "sim", Addr: simAddr(addr), Err: err}
	}
	return c, nil
}

func (m *Machine) dial(ctx context.Context, addr string) (*Conn, error) {
	name, port, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	n := m.n
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.machines[name]
	if to == nil {
		return nil, fmt.Errorf("no machine %q", name)
	}
	for {
		for ctx.Err() == nil && (m.frozen || to.off || !n.pathLocked(m, to) || !n.pathLocked(to, m)) {
			n.changed.Wait()
		}
		if err := n.roundTripLocked(ctx, m, to); err != nil {
			return nil, err
		}
		if m.frozen || to.off || !n.pathLocked(m, to) || !n.pathLocked(to, m) {
			continue // lost; the kernel tries again
		}
		l := to.listeners[port]
		if l == nil {
			return nil, syscall.ECONNREFUSED
		}
		if len(l.backlog) < backlog {
			return n.connectLocked(m, l), nil
		}
		n.changed.Wait()
	}
}

// roundTripLocked waits for as long as a packet travels there and back.
func (n *Network) roundTripLocked(ctx context.Context, a, b *Machine) error {
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
func (n *Network) connectLocked(m *Machine, l *Listener) *Conn {
	there, back := n.newPipeLocked(m, l.m), n.newPipeLocked(l.m, m)
	local, remote := addrOf(m.name, m.portLocked()), addrOf(l.m.name, l.port)
	a := &Conn{n: n, machine: m, remote: l.m, out: there, in: back, local: local, peer: remote}
	b := &Conn{n: n, machine: l.m, remote: m, out: back, in: there, local: remote, peer: local}
	a.other, b.other = b, a
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	l.backlog = append(l.backlog, b)
	l.arrived.Signal()
	return a
}

func (n *Network) newPipeLocked(from, to *Machine) *pipe {
	link := n.linkLocked(from.name, to.name)
	link.dials++
	f := fnv.New64a()
	fmt.Fprintf(f, "%s>%s#%d", from.name, to.name, link.dials)
	p := &pipe{n: n, from: from, to: to, link: link, random: rand.New(rand.NewPCG(n.cfg.Seed, f.Sum64()))}
	p.readable.L, p.writable.L = &n.mu, &n.mu
	return p
}

// Listener is an address at which a machine accepts connections.
type Listener struct {
	m       *Machine
	port    int
	arrived sync.Cond // on Network.mu; signalled when backlog grew, broadcast when closed or a machine changed
	backlog []*Conn
	closed  bool
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	n := l.m.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for !l.closed && (len(l.backlog) == 0 || l.m.frozen) {
		if l.m.frozen {
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
	l.m.n.mu.Lock()
	defer l.m.n.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *Listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.m.listeners, l.port)
	for _, c := range l.backlog {
		c.endLocked(true)
	}
	l.backlog = nil
	l.arrived.Broadcast()
	l.m.n.changed.Broadcast()
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addrOf(l.m.name, l.port) }

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
