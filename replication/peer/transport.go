package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/doors"
)

var errTransportClosed = errors.New("the transport is closed")

// Transport is one node's end of the peer protocol: it sends requests to other nodes and hands theirs to handlers.
type Transport struct {
	cfg       Config
	serverTLS *tls.Config // nil: plain
	clientTLS *tls.Config
	metrics   metrics
	handlers  map[Method]*handler // not changed after Run
	begun     time.Time
	nextID    atomic.Uint64
	buffers   bufferPool
	frames    sync.Pool // *outFrame
	calls     sync.Pool // *call
	self      *outPeer
	selfIn    *inPeer
	local     localCalls

	ctx    context.Context // done when the transport closes
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // every goroutine; added to under mu, or by one of them

	accepting   atomic.Int64 // connections accepted and not closed
	handshakes  *doors.Shares
	clientBytes atomic.Int64 // of clients' requests whose handlers have not returned

	mu     sync.Mutex // guards what follows
	closed bool
	peers  map[storage.NodeID]*outPeer
	inSets map[setKey]*connSet // accepted and running
	// clientConns counts the connections of inSets' clients; <= MaxClientConnections
	clientConns int
	inFrom      map[storage.NodeID]*inPeer
	places      map[storage.NodeID]*whereabouts // at most maxPlaces
	second      *SecondProcessError             // why this process was silent last
	silentUntil time.Time
	saidSecond  time.Time // when it was logged
	refuser     string    // address of the node that refused this process last, until it was asked again; empty: none
	asking      bool      // askRefuser runs
}

// setKey names an accepted set.
type setKey struct {
	node   storage.NodeID // 0: of a stranger or a client
	client bool
	nonce  uint64
}

// New checks the configuration and makes a Transport. It opens nothing. Errors: KindInvalid.
func New(cfg Config) (*Transport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	t := &Transport{cfg: cfg, handlers: make(map[Method]*handler), begun: time.Now(),
		peers: make(map[storage.NodeID]*outPeer), inSets: make(map[setKey]*connSet),
		places: make(map[storage.NodeID]*whereabouts),
		inFrom: make(map[storage.NodeID]*inPeer), selfIn: newInPeer(cfg.Self)}
	if t.cfg.Speaker.Instance == 0 {
		t.cfg.Speaker.Instance = max(1, t.cfg.Random())
	}
	t.handshakes = doors.NewShares(t.cfg.MaxHandshakes, max(min(2*int(laneCount), t.cfg.MaxHandshakes), t.cfg.MaxHandshakes/8))
	t.local.pending = make(map[uint64]*call)
	t.self = t.newOutPeer(cfg.Self)
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	if cfg.TLS != nil {
		t.clientTLS, t.serverTLS = cfg.TLS.Clone(), cfg.TLS.Clone()
		t.serverTLS.ClientAuth = tls.RequireAndVerifyClientCert
		t.clientTLS.MinVersion = max(t.clientTLS.MinVersion, tls.VersionTLS13)
		t.serverTLS.MinVersion = max(t.serverTLS.MinVersion, tls.VersionTLS13)
	}
	if err := t.metrics.register(cfg.Metrics); err != nil {
		return nil, storage.E("configure peers", storage.KindInvalid, "", err)
	}
	return t, nil
}

// Handle registers the handler of a method, and who may call it. To be called before Run and before the first request to this node
// itself. A handler of an Ordered method holds up the requests of its (peer, group) until it returns. Handlers that
// wait must heed Inbound.Context.
func (t *Transport) Handle(m Method, terms Terms, fn func(*Inbound)) {
	if m == 0 || terms.From&Members == 0 || terms.Order != Ordered && terms.Order != Concurrent || fn == nil || t.handlers[m] != nil {
		panic(fmt.Sprintf("peer: handler of method %d: registered twice, without an order, or not for members", m))
	}
	t.handlers[m] = &handler{t: t, Terms: terms, fn: fn}
}

// Methods returns the methods that have handlers, and who may call each.
func (t *Transport) Methods() map[Method]Audience {
	methods := make(map[Method]Audience, len(t.handlers))
	for m, hd := range t.handlers {
		methods[m] = hd.From
	}
	return methods
}

// Run accepts other nodes' connections until ctx is done or Close is called, then closes the Transport. It returns
// nil, or why the listener failed.
func (t *Transport) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, t.shut)
	defer stop()
	var err error
	if l := t.cfg.Listener; l == nil {
		<-t.ctx.Done()
	} else {
		err = t.accept(l)
	}
	return errors.Join(err, t.Close())
}

// Close closes every connection, fails every outstanding request and waits for all goroutines, handlers included.
// It may be called more than once, but not from a handler or a done callback.
func (t *Transport) Close() error {
	t.shut()
	t.wg.Wait()
	t.local.drop(t)
	return nil
}

// shut starts closing without waiting.
func (t *Transport) shut() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel(errTransportClosed)
	if t.cfg.Listener != nil {
		t.cfg.Listener.Close()
	}
}

// start runs f on a goroutine that Close waits for; false if the transport is closed.
func (t *Transport) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

// now returns nanoseconds since New, never 0, on the monotonic clock.
func (t *Transport) now() int64 { return int64(time.Since(t.begun)) + 1 }

func (t *Transport) frame() *outFrame {
	if f, _ := t.frames.Get().(*outFrame); f != nil {
		return f
	}
	return &outFrame{}
}

// recycle ends a frame.
func (t *Transport) recycle(f *outFrame) {
	written := f.written
	*f = outFrame{head: f.head[:0]}
	t.frames.Put(f)
	if written != nil {
		written()
	}
}

// peer returns the node's outgoing side.
func (t *Transport) peer(node storage.NodeID) *outPeer {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[node]
	if p == nil {
		p = t.newOutPeer(node)
		t.peers[node] = p
	}
	return p
}

// Call sends a request and waits for its answer. It connects first if necessary (one attempt) and waits while too
// much is in flight. When it returns, no byte of req is referenced any more. So after ctx is done it may return only when a write
// in progress has ended, at most KeepaliveTimeout later while the peer is frozen.
//
// Errors: those the peer's handler answered with (errors.As to *RemoteError); KindUnavailable when no answer came
// and KindCanceled when ctx was done first (both errors.As to *SendError, which says whether the request was sent);
// KindInvalid when it is too large.
func (t *Transport) Call(ctx context.Context, to storage.NodeID, lane Lane, req *Request) (*Response, error) {
	size, err := checkSize("call", req.Header, req.Payload)
	if err != nil {
		return nil, err
	}
	if err := t.checkTarget(to); err != nil {
		return nil, err
	}
	if to == t.cfg.Self {
		return t.callLocal(ctx, lane, req, size)
	}
	p := t.peer(to)
	s, err := p.connected(ctx)
	if err != nil {
		return nil, err
	}
	return t.callOn(ctx, s, &p.budgets[lane], lane, req, size)
}

func (t *Transport) callOn(ctx context.Context, s *connSet, b *budget, lane Lane, req *Request, size int64) (*Response, error) {
	size += int64(req.ReplyBytes)
	if err := b.wait(ctx, size); err != nil {
		return nil, canceledError(ctx, s.node, false)
	}
	cl := t.newCall(size, b, nil)
	if err := s.send(lane, req, cl); err != nil {
		t.forget(cl)
		return nil, sendError(s.node, false, err)
	}
	return s.conns[lane].await(ctx, cl)
}

// checkTarget returns why no request can be sent to a node at all.
func (t *Transport) checkTarget(to storage.NodeID) error {
	switch {
	case t.cfg.Self == 0 && !t.cfg.Client:
		return storage.E("call", storage.KindInvalid, "node "+to.String(), errors.New("this node has no id yet"))
	case to == 0:
		return storage.E("call", storage.KindInvalid, "", errors.New("no node given"))
	}
	return nil
}

// Go sends a request without waiting and calls done exactly once with its answer or error, as Call would return
// them. Requests that Go sends on one lane leave in the order of the calls. Where Call would wait, because there is
// no connection (an attempt is started) or too much is in flight, done gets KindUnavailable at once.
//
// done runs on the goroutine that reads the connection, or on one that failed the request, never inside Go. It must not block and
// must be quick, because it delays all answers of the lane.
func (t *Transport) Go(to storage.NodeID, lane Lane, req *Request, done func(*Response, error)) {
	if err := t.goRequest(to, lane, req, done); err != nil && !t.start(func() { done(nil, err) }) {
		go done(nil, err) // Close does not wait for what began after it
	}
}

// goRequest is Go, but returns the error of a request that was not sent instead of calling done with it.
func (t *Transport) goRequest(to storage.NodeID, lane Lane, req *Request, done func(*Response, error)) error {
	size, err := checkSize("call", req.Header, req.Payload)
	if err != nil {
		return err
	}
	if err := t.checkTarget(to); err != nil {
		return err
	}
	if to == t.cfg.Self {
		return t.goLocal(lane, req, size, done)
	}
	p := t.peer(to)
	s := p.set.Load()
	if s == nil {
		if _, err := p.connect(); err != nil {
			return sendError(to, false, err)
		}
		return sendError(to, false, errors.New("not connected"))
	}
	b := &p.budgets[lane]
	size += int64(req.ReplyBytes)
	if !b.try(size) {
		return sendError(to, false, errInFlight)
	}
	cl := t.newCall(size, b, done)
	if err := s.send(lane, req, cl); err != nil {
		t.forget(cl)
		return sendError(to, false, err)
	}
	return nil
}

var errInFlight = errors.New("too many requests are in flight")

// Connected reports whether requests to a node can be sent without connecting first.
func (t *Transport) Connected(node storage.NodeID) bool {
	return node == t.cfg.Self || t.peer(node).set.Load() != nil
}

// CallAddr makes one call to whatever node answers at an address, on a connection of its own: how a node without an
// id asks to join. Errors are those of Call.
func (t *Transport) CallAddr(ctx context.Context, addr string, req *Request) (*Response, error) {
	size, err := checkSize("call", req.Header, req.Payload)
	if err != nil {
		return nil, err
	}
	fail := func(err error) error {
		return storage.E("call", storage.KindUnavailable, addr, &SendError{Err: err})
	}
	if t.silent() {
		return nil, fail(errSecond)
	}
	s := t.newSet(0, addr, t.cfg.Random(), true, true)
	defer s.fail(errors.New("the call has ended"))
	dialCtx, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	defer cancel()
	if err := t.dialLane(dialCtx, s, Control); err != nil {
		if ctx.Err() != nil {
			return nil, storage.E("call", storage.KindCanceled, addr, &SendError{Err: err})
		}
		return nil, fail(err)
	}
	s.lastHeard.Store(t.now())
	if !t.start(func() { s.run(); s.dropCalls() }) {
		s.fail(errTransportClosed)
		s.run()
		return nil, fail(errTransportClosed)
	}
	b := &budget{maxBytes: t.cfg.MaxInFlightBytes, maxCount: 1}
	return t.callOn(ctx, s, b, Control, req, size)
}

// dialLane opens a connection, greets and adds it to the set.
func (t *Transport) dialLane(ctx context.Context, s *connSet, lane Lane) error {
	code := helloPart
	switch {
	case s.lone:
		code = helloLone
	case t.cfg.Client:
		code = helloClient
	}
	sent := t.hello(lane, code, s.node, s.nonce)
	if t.barred(s.addr) {
		return errSecond
	}
	nc, answer, err := t.dial(ctx, s.addr, sent)
	if err == nil {
		if err = t.accepted(s, lane, nc, sent, answer); err != nil {
			nc.Close()
		}
	}
	t.dialled(s.addr, err)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("greet %s on the %v lane: %w", s.addr, lane, err)
	}
	return nil
}

// accepted adds a dialled connection to its set, if the answer accepts the greeting and comes from the process that is the node.
func (t *Transport) accepted(s *connSet, lane Lane, nc net.Conn, sent, answer hello) error {
	if err := answer.refusal(sent); err != nil {
		if second := (*SecondProcessError)(nil); errors.As(err, &second) && sent.from != 0 {
			t.beSilent(second, s.addr)
		}
		return err
	}
	release := func() {}
	if sent.from != 0 {
		var err error
		if release, err = t.claim(answer.from, answer.speaker); err != nil {
			return err
		}
	}
	if !s.add(lane, nc, answer.speaks.max, release) {
		release()
		return errClosed
	}
	return nil
}

// hello returns what this node says first on a connection.
func (t *Transport) hello(lane Lane, code helloCode, to storage.NodeID, nonce uint64) hello {
	return hello{layout: helloLayout, lane: lane, code: code, cluster: t.cfg.Cluster, from: t.cfg.Self, to: to,
		nonce: nonce, speaker: t.cfg.Speaker, speaks: t.cfg.speaks, recovery: t.cfg.Recovery}
}

// dial opens a connection to an address and exchanges hellos. It closes the connection on an error, and not when the answer
// is a refusal.
func (t *Transport) dial(ctx context.Context, addr string, sent hello) (net.Conn, hello, error) {
	raw, err := t.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, hello{}, fmt.Errorf("dial %s: %w", addr, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	nc := raw
	if t.clientTLS != nil {
		cfg := t.clientTLS
		if cfg.ServerName == "" {
			cfg = cfg.Clone()
			cfg.ServerName, _, _ = net.SplitHostPort(addr)
		}
		nc = tls.Client(raw, cfg)
	}
	answer, err := t.greet(nc, sent)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, hello{}, err
	}
	return nc, answer, nil
}

func (t *Transport) greet(nc net.Conn, sent hello) (answer hello, err error) {
	if err = writeHello(nc, sent, helloMagic); err == nil {
		answer, err = readHello(nc, answerMagic)
	}
	if err != nil {
		err = suspectTLS(err, t.clientTLS != nil)
	}
	return answer, err
}

// suspectTLS adds to the error of a greeting that came to no answer what an operator would look at: whether both ends speak
// TLS, and have certificates of the same authority.
func suspectTLS(err error, overTLS bool) error {
	var alert tls.AlertError
	var remote *net.OpError // how crypto/tls wraps the other end's alert
	var header tls.RecordHeaderError
	switch {
	case !overTLS && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)):
		return fmt.Errorf("%w: the peer has hung up; this side speaks no TLS (--peer-tls-cert), does the peer?", err)
	case overTLS && errors.As(err, &header):
		return fmt.Errorf("%w: the peer does not speak TLS (--peer-tls-cert), this side does", err)
	case overTLS && (errors.As(err, &alert) || errors.As(err, &remote) && remote.Op == "remote error"):
		return fmt.Errorf("%w: the peer refuses this side's certificate (--peer-tls-cert)", err)
	case overTLS && (errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(x509.HostnameError))):
		return fmt.Errorf("%w: this side refuses the peer's certificate (--peer-tls-ca)", err)
	}
	return err
}

// accept takes connections until the listener is closed.
func (t *Transport) accept(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if t.ctx.Err() != nil {
				return nil //nolint:nilerr // Close has closed the listener
			}
			if t.passing(t.ctx, err) {
				continue
			}
			return storage.E("accept peers", storage.KindIO, l.Addr().String(), err)
		}
		leave := t.handshakes.Enter(doors.AddressOf(nc.RemoteAddr()))
		if leave == nil || t.accepting.Load() >= int64(t.cfg.MaxConnections) {
			t.refuse(nc)
			if leave != nil {
				leave()
			}
			continue
		}
		if !t.start(func() { t.welcome(nc, leave) }) { // the Transport closes
			leave()
			nc.Close()
			continue
		}
		t.accepting.Add(1)
	}
}

// refuse closes a connection for which there is no room.
func (t *Transport) refuse(nc net.Conn) {
	t.metrics.crowded.Add(1) // before the other side sees it
	if t.cfg.Refused != nil {
		t.cfg.Refused(nc.RemoteAddr())
	}
	nc.Close()
}

// passing reports whether accepting failed for a reason that passes (out of descriptors, say), after a pause for it.
func (t *Transport) passing(ctx context.Context, err error) bool {
	var temporary interface{ Temporary() bool }
	if !errors.As(err, &temporary) || !temporary.Temporary() {
		return false
	}
	t.cfg.Logger.Warn("connection of a peer not accepted", "error", err)
	_ = clock.Sleep(ctx, t.cfg.BackoffMin) // when ctx ends, so does accepting
	return true
}

// welcome reads an accepted connection's hello and adds the connection to its set.
// leave ends its part in the handshakes.
func (t *Transport) welcome(nc net.Conn, leave func()) {
	err := t.answerHello(nc, false)
	leave()
	if err != nil {
		t.accepting.Add(-1)
		nc.Close()
		if t.ctx.Err() == nil {
			t.metrics.rejected.Add(1)
			t.cfg.Logger.Warn("connection of a peer refused", "from", nc.RemoteAddr(), "error", err)
		}
	}
}

// maxForeignHello bounds what is read of a hello of another layout.
const maxForeignHello = 4 << 10

func (t *Transport) answerHello(raw net.Conn, lobby bool) error {
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	nc := raw
	if t.serverTLS != nil {
		nc = tls.Server(raw, t.serverTLS)
	}
	h, err := readHello(nc, helloMagic)
	if err != nil {
		return err
	}
	code := h.judge(t.cfg.Cluster, t.cfg.Self, t.cfg.speaks)
	if code == helloAccepted {
		code = h.follows(t.cfg.Recovery) // I7
	}
	if code == helloAccepted && h.code != helloClient && forClients(nc) {
		code = helloClientsOnly
	}
	if code == helloAccepted && lobby {
		code = helloWithoutRoom
	}
	release := func() {}
	answer := t.hello(h.lane, code, h.from, h.nonce)
	protocol := t.cfg.speaks.common(h.speaks)
	if code != helloWrongVersion {
		answer.speaks = versions{min: protocol, max: protocol}
	}
	if code == helloAccepted && h.from != 0 {
		if t.Second() != nil {
			answer.code = helloSilent
		} else if release, err = t.claim(h.from, h.speaker); err != nil {
			second := (*SecondProcessError)(nil)
			errors.As(err, &second)
			answer.code, answer.speaker = helloSecondProcess, second.Other
		}
		code = answer.code
	}
	if err := writeHello(nc, answer, answerMagic); err != nil {
		if code == helloAccepted {
			release()
		}
		return err
	}
	if code == helloWrongVersion {
		// Closing with bytes unread would reset the connection, and the answer might not arrive.
		_, _ = io.Copy(io.Discard, io.LimitReader(nc, maxForeignHello))
		return versionsError(t.cfg.speaks, h.speaks)
	}
	if code == helloOtherRecovery {
		return &RecoveryError{Own: t.cfg.Recovery, Peer: h.recovery}
	}
	if code != helloAccepted {
		return fmt.Errorf("hello with code %d: cluster %v, from node %v to node %v", code, h.cluster, h.from, h.to)
	}
	if !stop() {
		release()
		return context.Cause(ctx)
	}
	if err := t.join(h, nc, protocol, release); err != nil {
		release()
		return err
	}
	if h.code == helloPart && h.lane == Control {
		t.heardOf(h.from)
	}
	return nil
}

// heardOf connects to a node that has just connected to this one, if there were requests to it before: it is there, so
// pauses after failed attempts are over.
func (t *Transport) heardOf(node storage.NodeID) {
	t.mu.Lock()
	p := t.peers[node]
	t.mu.Unlock()
	if p == nil || p.set.Load() != nil {
		return
	}
	p.tryNow()
	_, _ = p.connect() // whoever needs the connection learns what came of it
}

// join adds a greeted connection to its set. A node has one set here, the newest: what it sends on a new one comes
// from a process, or an attempt, that has given the old one up.
func (t *Transport) join(h hello, nc net.Conn, protocol uint16, release func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errTransportClosed
	}
	lone, client := h.code == helloLone, h.code == helloClient
	if client && t.clientConns >= t.cfg.MaxClientConnections {
		return fmt.Errorf("%d connections of gateways are open, the limit", t.clientConns)
	}
	key := setKey{h.from, client, h.nonce}
	s := t.inSets[key]
	if s == nil {
		for k, old := range t.inSets {
			if k.node == h.from && !client && !lone && !old.lone {
				old.fail(errors.New("the peer has opened newer connections"))
			}
		}
		s = t.newSet(h.from, nc.RemoteAddr().String(), h.nonce, false, lone)
		if s.client = client; client {
			s.in = newInPeer(0)
		} else if s.in = t.inFrom[h.from]; s.in == nil {
			s.in = newInPeer(h.from)
			t.inFrom[h.from] = s.in
		}
		t.inSets[key] = s
		t.wg.Go(func() { t.serve(key, s) })
	}
	if !s.add(h.lane, nc, protocol, release) {
		s.fail(fmt.Errorf("the %v lane was opened twice", h.lane))
		return fmt.Errorf("the %v lane was opened twice", h.lane)
	}
	if client {
		t.clientConns++
	}
	return nil
}

// serve runs an accepted set to its end.
func (t *Transport) serve(key setKey, s *connSet) {
	s.run()
	s.dropCalls()
	t.mu.Lock()
	delete(t.inSets, key)
	gone := !s.client && s.in.idle()
	for k := range t.inSets {
		gone = gone && (k.node != key.node || k.client)
	}
	if gone {
		delete(t.inFrom, key.node)
	}
	for _, c := range s.conns {
		if c != nil {
			t.accepting.Add(-1)
			if s.client {
				t.clientConns--
			}
		}
	}
	t.mu.Unlock()
}

// ClientUnit is the organizational unit in the subject of a gateway's certificate. The same authority signs the certificates of
// nodes and of gateways. Whoever has a certificate with this unit can do what gateways do and nothing else.
const ClientUnit = "storaged-gateway"

// forClients reports whether the certificate that the other side has shown is one of gateways only.
func forClients(nc net.Conn) bool {
	c, ok := nc.(*tls.Conn)
	if !ok {
		return false
	}
	certs := c.ConnectionState().PeerCertificates
	return len(certs) > 0 && slices.Contains(certs[0].Subject.OrganizationalUnit, ClientUnit)
}
