package volume

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// Config configures a Gateway. The zero value of every field but Cluster stands for its default.
type Config struct {
	// Cluster routes the gateway's requests. Required.
	Cluster Cluster

	// AttemptTimeout is how long one attempt of a request may take before it is repeated (default 1.5 s, plus up to
	// an eighth). It bounds how long a caller waits after its context has ended.
	AttemptTimeout time.Duration
	// RetryMin and RetryMax bound the pause between attempts, which doubles from one to the other and is scattered
	// by up to a half (defaults 5 ms and 250 ms).
	RetryMin, RetryMax time.Duration
	// UnreadableTimeout is how long a request is repeated whose block no replica of its group can read, as their leader
	// says, before it is answered with an error of KindIO (default 5 s).
	UnreadableTimeout time.Duration
	// OrphanTimeout is how long requests whose callers have left may hold back others before their session is
	// closed (default 1 s).
	OrphanTimeout time.Duration

	// VolumeBytes bounds the bytes in flight of one volume (default 64 MiB).
	VolumeBytes int64
	// GatewayBytes bounds the bytes in flight of all volumes together (default 512 MiB), beside an entry's worth (1 MiB)
	// that each open volume has to itself, so that volumes that are stuck do not hold up the others.
	GatewayBytes int64
	// GroupRequests bounds the mutations of one volume in flight in one group (default and at most SessionWindow).
	GroupRequests int
	// RequestParallel bounds the parts of one large request that are in flight together (default 8).
	RequestParallel int

	// Jitter returns a number in [0, 1) (default rand.Float64).
	Jitter func() float64
	// Logger receives one line per event an operator would act on (default: discard).
	Logger *slog.Logger
	// Metrics registers the gateway's metrics (default: none).
	Metrics prometheus.Registerer
}

// requestOverheadBytes is what a request without payload counts towards the bytes in flight.
const requestOverheadBytes = storage.BlockSize

// volumeShareBytes is what each volume may have in flight whatever the others hold: the largest piece of a request.
const volumeShareBytes = storage.MaxEntryPayloadBytes

func (c *Config) fillDefaults() {
	setDefault(&c.AttemptTimeout, 1500*time.Millisecond)
	setDefault(&c.RetryMin, 5*time.Millisecond)
	setDefault(&c.RetryMax, max(250*time.Millisecond, c.RetryMin))
	setDefault(&c.UnreadableTimeout, 5*time.Second)
	setDefault(&c.OrphanTimeout, time.Second)
	setDefault(&c.VolumeBytes, 64<<20)
	setDefault(&c.GatewayBytes, max(512<<20, c.VolumeBytes))
	setDefault(&c.GroupRequests, storage.SessionWindow)
	setDefault(&c.RequestParallel, 8)
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns every problem of the configuration at once, with defaults filled in.
func (c Config) Validate() error {
	c.fillDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Cluster != nil, "Cluster is missing")
	check(c.AttemptTimeout > 0, "AttemptTimeout %v is not positive", c.AttemptTimeout)
	check(c.RetryMin > 0 && c.RetryMax >= c.RetryMin, "RetryMin %v and RetryMax %v: want 0 < RetryMin <= RetryMax", c.RetryMin, c.RetryMax)
	check(c.UnreadableTimeout > 0, "UnreadableTimeout %v is not positive", c.UnreadableTimeout)
	check(c.OrphanTimeout > 0, "OrphanTimeout %v is not positive", c.OrphanTimeout)
	check(c.VolumeBytes >= storage.MaxEntryPayloadBytes, "VolumeBytes %d is less than one entry's %d", c.VolumeBytes, storage.MaxEntryPayloadBytes)
	check(c.GatewayBytes >= c.VolumeBytes, "GatewayBytes %d is less than VolumeBytes %d", c.GatewayBytes, c.VolumeBytes)
	check(c.GroupRequests >= 1 && c.GroupRequests <= storage.SessionWindow, "GroupRequests %d: want 1 to %d", c.GroupRequests, storage.SessionWindow)
	check(c.RequestParallel >= 1, "RequestParallel %d is not positive", c.RequestParallel)
	if len(errs) == 0 {
		return nil
	}
	return storage.E("configure gateway", storage.KindInvalid, "", errors.Join(errs...))
}
