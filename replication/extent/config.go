package extent

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// Defaults of Config, in bytes.
const (
	DefaultCheckpointBytes = 256 << 20
	DefaultCacheBytes      = 32 << 20
	DefaultMemTableBytes   = 8 << 20
	DefaultBlockCacheBytes = 16 << 20
	defaultReserveSegments = 8
)

// Config is what a store is opened with. Zero values mean the defaults above.
type Config struct {
	// FS and Dir say where the store lies. Dir is created if it does not exist; nothing else may use it.
	FS  vfs.FS
	Dir string
	// Cluster is the cluster the store belongs to. Zero: whatever its identity file says, and a new store is refused.
	Cluster storage.ClusterID
	// Store is the id of a new store. Zero: a random one. An existing store keeps its id, and a different one here is
	// an error.
	Store storage.StoreID
	// SegmentBytes is the size of new segments.
	SegmentBytes int64
	// Segment holds further settings of the segment log (FreeSegments, MaxTailBytes, CacheBytes, RetainBytes,
	// IdleAfter, MaxOpenFiles); all else in it is set by Open.
	Segment segment.Config
	// CheckpointBytes is how much log may be written on this disk, over all groups, before a checkpoint is due.
	CheckpointBytes int64
	// CacheBytes bounds the table pages kept in memory beside those that no checkpoint holds yet. Of these AwaitRoom lets
	// in four times as much.
	CacheBytes int64
	// MemTableBytes and BlockCacheBytes are Pebble's.
	MemTableBytes   int64
	BlockCacheBytes int64
	// ReserveBytes is the free space below which allocating writes should be refused. 0: eight segments.
	ReserveBytes int64
	// CapacityBytes bounds what the store uses of its file system. 0: all of it.
	CapacityBytes int64
	// OnCheckpointDue is called when a group should be checkpointed, once until its next Freeze. It is called by
	// the goroutine that applies, and must not block nor call back.
	OnCheckpointDue func(segment.GroupKey)
	// OnFailure is called once, when the disk has failed for good. It must not block nor call Close.
	OnFailure func(error)
	Logger    *slog.Logger
	Metrics   prometheus.Registerer
}

func (c *Config) setDefaults() {
	set := func(v *int64, def int64) {
		if *v == 0 {
			*v = def
		}
	}
	set(&c.SegmentBytes, segment.DefaultSegmentBytes)
	set(&c.CheckpointBytes, DefaultCheckpointBytes)
	set(&c.CacheBytes, DefaultCacheBytes)
	set(&c.MemTableBytes, DefaultMemTableBytes)
	set(&c.BlockCacheBytes, DefaultBlockCacheBytes)
	set(&c.ReserveBytes, defaultReserveSegments*c.SegmentBytes)
	if c.OnCheckpointDue == nil {
		c.OnCheckpointDue = func(segment.GroupKey) {}
	}
	if c.OnFailure == nil {
		c.OnFailure = func(error) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Validate returns every problem of the configuration at once, as one error of KindInvalid. Defaults must be set.
func (c *Config) Validate() error {
	var problems []error
	if c.FS == nil {
		problems = append(problems, errors.New("no file system"))
	}
	if c.Dir == "" {
		problems = append(problems, errors.New("no directory"))
	}
	for _, v := range []struct {
		name string
		n    int64
		low  int64
	}{
		{"checkpoint bytes", c.CheckpointBytes, 1}, {"cache bytes", c.CacheBytes, 1},
		{"memtable bytes", c.MemTableBytes, 64 << 10}, {"block cache bytes", c.BlockCacheBytes, 1},
		{"reserve bytes", c.ReserveBytes, 0}, {"capacity bytes", c.CapacityBytes, 0},
	} {
		if v.n < v.low {
			problems = append(problems, fmt.Errorf("%s %d: want at least %d", v.name, v.n, v.low))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return storage.E("open store", storage.KindInvalid, c.Dir, err)
	}
	return nil
}
