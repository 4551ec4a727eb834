package volume

import (
	"cmp"
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

	// VolumeBytes bounds the bytes in flight of one volume (default 64 MiB).
	VolumeBytes int64
	// GatewayBytes bounds the bytes in flight of all volumes together (default 512 MiB). Each open volume has room for one
	// more entry (1 MiB) to itself, so that stuck volumes do not block the others.
	GatewayBytes int64
	// GroupRequests bounds the mutations of one volume in flight in one group (default and at most SessionWindow).
	GroupRequests int
	// ClearParallel bounds the extents that are cleared together for one volume (default 128), beside one for each request that
	// clears. They carry no data; what they cost is a sync, and those that are in flight together share it.
	ClearParallel int

	// Jitter returns a number in [0, 1) (default rand.Float64).
	Jitter func() float64
	// Logger receives one line per event an operator would act on (default: discard).
	Logger *slog.Logger
	// LatencyOf names volumes, or patterns of names (path.Match), whose latencies are kept as histograms of their own in the
	// metrics; at most 32 volumes at once.
	LatencyOf []string
	// Metrics registers the gateway's metrics (default: none).
	Metrics prometheus.Registerer
}

const (
	// unreadableTimeout is how long a request is repeated when the leader says that no replica of the group can read a block
	// of it. After that it is answered with an error of KindIO.
	unreadableTimeout = 5 * time.Second
	// orphanTimeout is how long requests whose callers have left may hold back others before their session is closed.
	orphanTimeout = time.Second
	// requestParallel bounds the parts of one large request that are in flight together.
	requestParallel = 8
)

// requestOverheadBytes is what a request without payload counts towards the bytes in flight.
const requestOverheadBytes = storage.BlockSize

// volumeShareBytes is what each volume may have in flight whatever the others hold: the largest piece of a request.
const volumeShareBytes = storage.MaxEntryPayloadBytes

func (c *Config) setDefaults() {
	c.AttemptTimeout = cmp.Or(c.AttemptTimeout, 1500*time.Millisecond)
	c.RetryMin = cmp.Or(c.RetryMin, 5*time.Millisecond)
	c.RetryMax = cmp.Or(c.RetryMax, max(250*time.Millisecond, c.RetryMin))
	c.VolumeBytes = cmp.Or(c.VolumeBytes, 64<<20)
	c.GatewayBytes = cmp.Or(c.GatewayBytes, max(512<<20, c.VolumeBytes))
	c.GroupRequests = cmp.Or(c.GroupRequests, storage.SessionWindow)
	c.ClearParallel = cmp.Or(c.ClearParallel, 128)
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// Validate returns every problem of the configuration at once, with defaults filled in.
func (c Config) Validate() error {
	c.setDefaults()
	var p storage.Problems
	p.Check(c.Cluster != nil, "Cluster is missing")
	p.Check(c.AttemptTimeout > 0, "AttemptTimeout %v is not positive", c.AttemptTimeout)
	p.Check(c.RetryMin > 0 && c.RetryMax >= c.RetryMin, "RetryMin %v and RetryMax %v: want 0 < RetryMin <= RetryMax", c.RetryMin, c.RetryMax)
	p.Check(c.VolumeBytes >= storage.MaxEntryPayloadBytes, "VolumeBytes %d is less than one entry's %d", c.VolumeBytes, storage.MaxEntryPayloadBytes)
	p.Check(c.GatewayBytes >= c.VolumeBytes, "GatewayBytes %d is less than VolumeBytes %d", c.GatewayBytes, c.VolumeBytes)
	p.Check(c.GroupRequests >= 1 && c.GroupRequests <= storage.SessionWindow, "GroupRequests %d: want 1 to %d", c.GroupRequests, storage.SessionWindow)
	p.Check(c.ClearParallel >= 1, "ClearParallel %d is not positive", c.ClearParallel)
	return p.Err("configure gateway", "")
}
