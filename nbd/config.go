package nbd

import (
	"cmp"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// Config says how a Server serves. The zero value of every field but Backend means its default.
type Config struct {
	// Backend finds the exports.
	Backend Backend
	// TLS serves STARTTLS; nil refuses it.
	TLS *tls.Config
	// RequireTLS refuses every option but STARTTLS and ABORT on connections without TLS. Unix sockets are exempt:
	// there the permissions of the file say who may connect.
	RequireTLS bool

	// MaxConnections bounds the connections served at a time, handshakes included; more are closed at once. 1,024.
	MaxConnections int
	// MaxPayloadBytes bounds a READ or WRITE; at most 32 MiB, the default.
	MaxPayloadBytes uint32
	// MaxConnBytes bounds the payloads that one connection has in flight: read from the socket and not answered.
	// A connection that reaches it is not read from until something is answered. 64 MiB.
	MaxConnBytes int64
	// MaxConnRequests bounds the requests that one connection has in flight. 256.
	MaxConnRequests int
	// MaxServerBytes bounds the payloads of all connections. 512 MiB.
	MaxServerBytes int64
	// Budget bounds the payloads of all connections of all servers that are given it, instead of MaxServerBytes; nil makes
	// one of MaxServerBytes for MaxConnections.
	Budget *Budget

	// HandshakeTimeout bounds the time from the first byte to the transmission phase. 10 s. The backend has four fifths of it: after that
	// the client is told what it waits for.
	HandshakeTimeout time.Duration
	// StallTimeout ends a connection whose client stops in the middle of a request, or does not take its replies,
	// for so long. Between requests a client may be silent for ever. 60 s.
	StallTimeout time.Duration
	// DrainTimeout bounds how long requests in flight are waited for when the server stops, or when the client
	// said DISC. 5 s.
	DrainTimeout time.Duration

	// Refused is called with the address of each connection that is closed at once because there are too many, in all or of
	// its address; nil: nothing is.
	Refused func(net.Addr)
	// Logger receives one line per event an operator would act on; nil discards.
	Logger *slog.Logger
	// Metrics receives the metrics; nil means none.
	Metrics prometheus.Registerer
}

func (c *Config) setDefaults() {
	c.MaxConnections = cmp.Or(c.MaxConnections, 1024)
	c.MaxPayloadBytes = cmp.Or(c.MaxPayloadBytes, DefaultMaxPayloadBytes)
	c.MaxConnBytes = cmp.Or(c.MaxConnBytes, 64<<20)
	c.MaxConnRequests = cmp.Or(c.MaxConnRequests, 256)
	c.MaxServerBytes = cmp.Or(c.MaxServerBytes, 512<<20)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 10*time.Second)
	c.StallTimeout = cmp.Or(c.StallTimeout, time.Minute)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 5*time.Second)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// minPayloadBytes is the smallest MaxPayloadBytes that may be configured.
const minPayloadBytes = 4 << 10

// budget returns the Budget, or makes it.
func (c Config) budget() (*Budget, error) {
	if c.Budget != nil {
		return c.Budget, nil
	}
	return NewBudget(c.MaxServerBytes, c.MaxConnections)
}

// Validate returns every problem of the configuration at once, as an error of storage.KindInvalid.
func (c Config) Validate() error {
	c.setDefaults()
	var p storage.Problems
	p.Check(c.Backend != nil, "Backend is missing")
	p.Check(!c.RequireTLS || c.TLS != nil, "RequireTLS needs TLS")
	p.Check(c.MaxConnections > 0, "MaxConnections %d is not positive", c.MaxConnections)
	p.Check(c.MaxPayloadBytes >= minPayloadBytes && c.MaxPayloadBytes <= DefaultMaxPayloadBytes,
		"MaxPayloadBytes %d is not between %d and %d", c.MaxPayloadBytes, minPayloadBytes, DefaultMaxPayloadBytes)
	p.Check(c.MaxConnRequests > 0, "MaxConnRequests %d is not positive", c.MaxConnRequests)
	largest := bufferWeight(int(min(c.MaxPayloadBytes, DefaultMaxPayloadBytes)))
	p.Check(c.MaxConnBytes >= largest, "MaxConnBytes %d does not hold one payload of %d", c.MaxConnBytes, largest)
	budget, err := c.budget()
	p.Check(err == nil, "MaxServerBytes %d: %v", c.MaxServerBytes, err)
	if err == nil {
		p.Check(budget.poolBytes >= largest, "MaxServerBytes or Budget: %d bytes, beside %d for each of %d connections, do not hold one payload of %d",
			budget.poolBytes, budget.floorBytes, budget.connections, largest)
	}
	for name, d := range map[string]time.Duration{"HandshakeTimeout": c.HandshakeTimeout,
		"StallTimeout": c.StallTimeout, "DrainTimeout": c.DrainTimeout} {
		p.Check(d > 0, "%s %v is not positive", name, d)
	}
	return p.Err("configure", "NBD server")
}
