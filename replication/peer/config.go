package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// Config says who a Transport is, how it reaches others and what it may use. Zero values of limits and times take
// the default in brackets.
type Config struct {
	// Cluster is the cluster that this node belongs to. It may be zero while Self is.
	Cluster storage.ClusterID
	// Self is this node; 0 while it has no id yet: then only CallAddr works.
	Self storage.NodeID
	// Recovery is the recovery of the cluster that this node follows, 0: none. Members that follow another one are refused on both sides.
	Recovery uint32
	// Client makes this the Transport of a gateway outside of the nodes: Self is 0, there is no Listener, Cluster is
	// required. It may call the methods that serve gateways, at any node.
	Client bool
	// Speaker is what every hello tells of this process. An Instance of 0 is chosen at random.
	Speaker Speaker
	// Listener accepts other nodes' connections; nil: none are accepted. The Transport closes it.
	Listener net.Listener
	// Dial opens a connection; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Resolve returns the address at which a node is reached now. It is asked for every attempt and must not block.
	Resolve func(storage.NodeID) (addr string, ok bool)
	// TLS, when given, protects every connection both ways. It needs Certificates (or the callbacks), RootCAs to verify
	// those we dial, and ClientCAs to verify those who dial us. A client without a certificate is refused.
	TLS *tls.Config

	// MaxInFlightBytes bounds the requests sent and not ended, a peer and lane [64 MiB]. Over it Call waits and Go
	// fails.
	MaxInFlightBytes int64
	// MaxInFlight bounds their number, a peer and lane [8192].
	MaxInFlight int
	// MaxGroupQueueBytes bounds the requests of Ordered methods that wait for or are in the handler, a peer and
	// group [16 MiB]. Requests over it are refused with KindUnavailable; a single one is always admitted.
	MaxGroupQueueBytes int64
	// MaxInboundBytes bounds the requests received whose handlers have not returned, a peer and lane [128 MiB].
	// Requests over it are refused with KindUnavailable.
	MaxInboundBytes int64
	// MaxUnanswered bounds the requests received and not answered, a peer and lane [16384]. Requests over it are
	// refused with KindUnavailable.
	MaxUnanswered int
	// MaxClientInboundBytes bounds the requests received from all clients together whose handlers have not returned
	// [512 MiB]. Requests over it are refused with KindUnavailable.
	MaxClientInboundBytes int64
	// MaxReplyBytes bounds the replies that the peer has not read yet, for each connection [32 MiB]. Above it nothing more
	// is read from the connection; above four times this bound the connection set is closed.
	MaxReplyBytes int64
	// MaxConnections bounds the connections accepted and not closed [4096], MaxClientConnections those of them that are
	// of clients [3072]: clients never take a node's place.
	MaxConnections, MaxClientConnections int
	// MaxHandshakes bounds the connections that have not said who they are [512, and half of MaxConnections at most]. One
	// address may have an eighth of them, or as many as two nodes there have lanes. So strangers do not take the place of
	// the others.
	MaxHandshakes int
	// Refused is called with the address of each connection that is closed at once for lack of room; nil: nothing is.
	Refused func(net.Addr)

	// DialTimeout bounds one attempt to connect all lanes of a peer, HandshakeTimeout what an accepted connection
	// may take to say hello and a set to become complete [3 s, 3 s].
	DialTimeout, HandshakeTimeout time.Duration
	// BackoffMin and BackoffMax bound the pause after a failed attempt to connect; it doubles with every failure
	// and is shortened at random by up to a half [50 ms, 1 s].
	BackoffMin, BackoffMax time.Duration
	// PingInterval is the time between checks of a peer. If nothing was heard from it on the control lane for half of
	// this time, it is sent a ping there. If nothing arrived on that lane for KeepaliveTimeout, the peer is given up.
	// [375 ms, which is three ticks of heartbeats at their default; 1.5 s]
	PingInterval, KeepaliveTimeout time.Duration
	// StallTimeout is how long one write (at most 1 MiB or one frame) may block before the set is closed [10 s].
	StallTimeout time.Duration

	// Random returns a random number for jitter and nonces; nil: math/rand/v2. It is called concurrently.
	Random func() uint64
	// Logger gets one line per event an operator would act on; nil: none.
	Logger *slog.Logger
	// Metrics registers storage_peer_...; nil: none.
	Metrics prometheus.Registerer

	speaks versions // of the protocol; tests pretend others than those known
}

// setDefaults fills in every zero value that has a default.
func (c *Config) setDefaults() {
	c.MaxInFlightBytes = cmp.Or(c.MaxInFlightBytes, 64<<20)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 8192)
	c.MaxGroupQueueBytes = cmp.Or(c.MaxGroupQueueBytes, 16<<20)
	c.MaxInboundBytes = cmp.Or(c.MaxInboundBytes, 128<<20)
	c.MaxUnanswered = cmp.Or(c.MaxUnanswered, 16384)
	c.MaxReplyBytes = cmp.Or(c.MaxReplyBytes, 32<<20)
	c.MaxClientInboundBytes = cmp.Or(c.MaxClientInboundBytes, 512<<20)
	c.MaxConnections = cmp.Or(c.MaxConnections, 4096)
	c.MaxHandshakes = cmp.Or(c.MaxHandshakes, min(512, max(1, c.MaxConnections/2)))
	c.MaxClientConnections = cmp.Or(c.MaxClientConnections, 3072)
	c.DialTimeout = cmp.Or(c.DialTimeout, 3*time.Second)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 3*time.Second)
	c.BackoffMin = cmp.Or(c.BackoffMin, 50*time.Millisecond)
	c.BackoffMax = cmp.Or(c.BackoffMax, time.Second)
	c.PingInterval = cmp.Or(c.PingInterval, 375*time.Millisecond)
	c.KeepaliveTimeout = cmp.Or(c.KeepaliveTimeout, 1500*time.Millisecond)
	c.StallTimeout = cmp.Or(c.StallTimeout, 10*time.Second)
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	if c.Resolve == nil {
		c.Resolve = func(storage.NodeID) (string, bool) { return "", false }
	}
	if c.Random == nil {
		c.Random = rand.Uint64
	}
	c.speaks = cmp.Or(c.speaks, known)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// Validate returns every problem of the configuration at once, as one error of KindInvalid.
func (c Config) Validate() error {
	var p storage.Problems
	refuse := func(bad bool, format string, args ...any) { p.Check(!bad, format, args...) }
	refuse(c.Self != 0 && c.Cluster.IsZero(), "a node with an id needs a cluster id")
	refuse(c.Self == 0 && c.Listener != nil, "a node without an id cannot accept connections")
	refuse(len(c.Speaker.Address) > MaxAddressBytes, "the address of the node has more than %d bytes", MaxAddressBytes)
	refuse(c.Client && c.Self != 0, "a client has no node's id")
	refuse(c.Client && c.Cluster.IsZero(), "a client needs a cluster id")
	for name, n := range map[string]int64{
		"MaxInFlightBytes": c.MaxInFlightBytes, "MaxInFlight": int64(c.MaxInFlight),
		"MaxGroupQueueBytes": c.MaxGroupQueueBytes, "MaxInboundBytes": c.MaxInboundBytes,
		"MaxUnanswered": int64(c.MaxUnanswered), "MaxReplyBytes": c.MaxReplyBytes,
		"MaxConnections": int64(c.MaxConnections), "MaxClientConnections": int64(c.MaxClientConnections),
		"MaxHandshakes":         int64(c.MaxHandshakes),
		"MaxClientInboundBytes": c.MaxClientInboundBytes, "DialTimeout": int64(c.DialTimeout),
		"HandshakeTimeout": int64(c.HandshakeTimeout), "BackoffMin": int64(c.BackoffMin),
		"BackoffMax": int64(c.BackoffMax), "PingInterval": int64(c.PingInterval),
		"KeepaliveTimeout": int64(c.KeepaliveTimeout), "StallTimeout": int64(c.StallTimeout),
	} {
		refuse(n < 0, "%s is negative", name)
	}
	if t := c.TLS; t != nil {
		refuse(!c.Client && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil,
			"TLS has no certificate for those who dial us")
		refuse(len(t.Certificates) == 0 && t.GetClientCertificate == nil, "TLS has no certificate for those we dial")
		refuse(!c.Client && t.ClientCAs == nil, "TLS has no ClientCAs to verify those who dial us")
		refuse(t.RootCAs == nil, "TLS has no RootCAs to verify those we dial")
		refuse(t.InsecureSkipVerify && t.VerifyConnection == nil && t.VerifyPeerCertificate == nil,
			"TLS skips verification")
	}
	return p.Err("configure peers", "")
}
