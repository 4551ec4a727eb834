package extent

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/segment"
)

// Defaults of Config; bytes unless the name says something else.
const (
	DefaultCheckpointBytes = 256 << 20
	DefaultCacheBytes      = 32 << 20
	DefaultMaxFill         = 0.90
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
	// CheckpointBytes is how much log may be written on this disk, over all groups, before a checkpoint is due. While less than twice the
	// reserve is free, it is a sixteenth of ReserveBytes, and a segment at least.
	CheckpointBytes int64
	// CacheBytes bounds the table pages that are kept in memory and could be read again. Pages that no checkpoint holds yet
	// may take four times as much (AwaitRoom).
	CacheBytes int64
	// MemTableBytes and BlockCacheBytes are Pebble's.
	MemTableBytes   int64
	BlockCacheBytes int64
	// TableFiles bounds the files of tables that Pebble keeps open.
	TableFiles int
	// ReserveBytes is the free space below which allocating writes should be refused. 0: eight segments. It counts as more
	// where segments written ahead and the tables may need more (room.Space).
	ReserveBytes int64
	// CapacityBytes bounds what the store uses of its file system. 0: all of it.
	CapacityBytes int64
	// Compact has the store move live blocks out of segments that are full of dead ones. Without it these are not used again until all
	// in them is dead.
	Compact bool
	// MaxFill is which part of the room above the reserve may live with Compact.
	MaxFill float64
	// FreeGoalBytes is what compaction wants to be free above the reserve. 0: a twelfth of what does not live.
	FreeGoalBytes int64
	// ScrubInterval is how often a pass begins that reads all of the store and has mended what the disk does not give back. 0: none does,
	// and only segments are read in which something could not be.
	ScrubInterval time.Duration
	// OnCheckpointDue is called when a group should be checkpointed, once until its next Freeze. It is called by
	// the goroutine that applies or by one of the store's own, and must not block nor call back.
	OnCheckpointDue func(segment.GroupKey)
	// OnFailure is called once, when the disk has failed for good. It must not block nor call Close.
	OnFailure func(error)
	Logger    *slog.Logger
	Metrics   prometheus.Registerer
}

// room is what the store's room is made with.
func (c *Config) room() room.Config {
	r := room.Config{FS: c.FS, Dir: c.Dir, SegmentBytes: c.SegmentBytes, FreeSegments: c.Segment.FreeSegments, CheckpointBytes: c.CheckpointBytes,
		MemTableBytes: c.MemTableBytes, ReserveBytes: c.ReserveBytes, CapacityBytes: c.CapacityBytes, Logger: c.Logger}
	if c.Compact {
		r.MaxFill = c.MaxFill
	}
	return r
}

// tables is what the tables' database is opened with.
func (c *Config) tables(onFailure func(error)) tabledb.Config {
	return tabledb.Config{FS: c.FS, Dir: storedir.TablesDir(c.FS, c.Dir), MemTableBytes: c.MemTableBytes, BlockCacheBytes: c.BlockCacheBytes,
		TableFiles: c.TableFiles, OnFailure: onFailure, Logger: c.Logger}
}

func (c *Config) setDefaults() {
	c.SegmentBytes = cmp.Or(c.SegmentBytes, segment.DefaultSegmentBytes)
	c.CheckpointBytes = cmp.Or(c.CheckpointBytes, DefaultCheckpointBytes)
	c.CacheBytes = cmp.Or(c.CacheBytes, DefaultCacheBytes)
	c.MemTableBytes = cmp.Or(c.MemTableBytes, tabledb.DefaultMemTableBytes)
	c.BlockCacheBytes = cmp.Or(c.BlockCacheBytes, tabledb.DefaultBlockCacheBytes)
	c.TableFiles = cmp.Or(c.TableFiles, tabledb.DefaultTableFiles)
	c.Segment.FreeSegments = cmp.Or(c.Segment.FreeSegments, segment.DefaultFreeSegments)
	c.MaxFill = cmp.Or(c.MaxFill, DefaultMaxFill)
	c.ReserveBytes = cmp.Or(c.ReserveBytes, defaultReserveSegments*c.SegmentBytes)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.OnCheckpointDue == nil {
		c.OnCheckpointDue = func(segment.GroupKey) {}
	}
	if c.OnFailure == nil {
		c.OnFailure = func(error) {}
	}
}

// Validate returns every problem of the configuration at once, as one error of KindInvalid. Defaults must be set.
func (c *Config) Validate() error {
	var p storage.Problems
	p.Check(c.FS != nil, "no file system")
	p.Check(c.Dir != "", "no directory")
	for _, v := range []struct {
		name string
		n    int64
		low  int64
	}{
		{"checkpoint bytes", c.CheckpointBytes, 1}, {"cache bytes", c.CacheBytes, 1},
		{"memtable bytes", c.MemTableBytes, 64 << 10}, {"block cache bytes", c.BlockCacheBytes, 1},
		{"reserve bytes", c.ReserveBytes, 0}, {"capacity bytes", c.CapacityBytes, 0}, {"table files", int64(c.TableFiles), 1},
	} {
		p.Check(v.n >= v.low, "%s %d: want at least %d", v.name, v.n, v.low)
	}
	p.Check(c.ScrubInterval >= 0, "scrub interval %v: want at least 0", c.ScrubInterval)
	p.Check(c.MaxFill > 0 && c.MaxFill <= 0.97, "a fill of %v: want one above 0, at most 0.97", c.MaxFill)
	return p.Err("open store", c.Dir)
}
