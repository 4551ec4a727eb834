package segment

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	storage "github.com/storaged/storaged"
)

// Defaults of Config.
const (
	DefaultSegmentBytes = 64 << 20
	DefaultFreeSegments = 2
	DefaultMaxTailBytes = 64 << 20
	DefaultCacheBytes   = 64 << 20
	DefaultRetainBytes  = 16 << 20
	DefaultHoldBytes    = 1 << 30
	DefaultIdleAfter    = 100 * time.Millisecond
	DefaultMaxOpenFiles = 256
	// DefaultPrewriteBelowBytes: from about two entries of 4 KiB a sync on, writing everything twice costs more than the
	// journal commit of each sync.
	DefaultPrewriteBelowBytes = 8 << 10
)

// Config is what a log is opened with. Zero values mean the defaults above.
type Config struct {
	// FS and Dir say where the segments lie; Dir is created if it does not exist. Nothing else may use Dir.
	FS  vfs.FS
	Dir string
	// Store is the store's id; a segment of another store is refused.
	Store storage.StoreID
	// SegmentBytes is the size of new segments: a multiple of 4 KiB, from 16 KiB to 1 GiB. The largest record is
	// what fits into a segment, and never more than 2 MiB.
	SegmentBytes int64
	// FreeSegments is how many segments are kept ready.
	FreeSegments int
	// PrewriteBelowBytes says when new segments are filled with zeroes ahead of time: while a sync covers fewer bytes
	// than this on average. A sync into blocks that were never written costs a journal commit; large batches pay it
	// easily, and writing everything twice would cost them more. -1: never.
	PrewriteBelowBytes int64
	// MaxTailBytes bounds the memory for records that are not durable yet; Append blocks at the bound.
	MaxTailBytes int64
	// CacheBytes bounds the data of durable entries that is kept in memory for followers and apply, per disk.
	CacheBytes int64
	// RetainBytes bounds, per group, the entries that are kept although Compact allowed to drop them. -1 keeps none.
	RetainBytes int64
	// HoldBytes bounds how far back from its end the log is kept for those who ask for it (HoldFrom, SetHold), all groups together: what it
	// costs is the segments since, whoever wrote into them. 40 bytes of memory for each entry come to it. -1: nothing is kept for them.
	HoldBytes int64
	// Aligned allows records whose blocks begin where a page of the file does; see Log.Align. Earlier builds do not open a log
	// that holds one.
	Aligned bool
	// IdleAfter is how long nothing must have been appended before the closing record is written.
	IdleAfter time.Duration
	// MaxOpenFiles bounds the files that are kept open for reading.
	MaxOpenFiles int
	// Groups are the groups of the disk, as their checkpoints know them. Records of all others are ignored.
	Groups []GroupStart
	// InUse reports whether a table refers to the segment. It is asked in Open only, before a segment behind the
	// end of the log is used again. nil: none is in use.
	InUse func(SegmentNo) bool
	// OnFailure is called once, when the disk has failed for good. It must not block, nor call Close.
	OnFailure func(error)
	// Logger is told what an operator would act on; nil: nothing.
	Logger *slog.Logger
	// Metrics may be nil. For several logs in one registry wrap it with a label for each.
	Metrics prometheus.Registerer

	alignedBytes int // AlignedBytes, or what a test needs
}

func (c *Config) setDefaults() {
	c.SegmentBytes = cmp.Or(c.SegmentBytes, DefaultSegmentBytes)
	c.FreeSegments = cmp.Or(c.FreeSegments, DefaultFreeSegments)
	c.MaxTailBytes = cmp.Or(c.MaxTailBytes, DefaultMaxTailBytes)
	c.CacheBytes = cmp.Or(c.CacheBytes, DefaultCacheBytes)
	c.RetainBytes = cmp.Or(c.RetainBytes, DefaultRetainBytes)
	c.HoldBytes = cmp.Or(c.HoldBytes, DefaultHoldBytes)
	c.IdleAfter = cmp.Or(c.IdleAfter, DefaultIdleAfter)
	c.PrewriteBelowBytes = cmp.Or(c.PrewriteBelowBytes, DefaultPrewriteBelowBytes)
	c.MaxOpenFiles = cmp.Or(c.MaxOpenFiles, DefaultMaxOpenFiles)
	c.alignedBytes = cmp.Or(c.alignedBytes, AlignedBytes)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.InUse == nil {
		c.InUse = func(SegmentNo) bool { return false }
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
	p.Check(!c.Store.IsZero(), "no store id")
	p.Check(c.SegmentBytes%pageBytes == 0 && c.SegmentBytes >= 16<<10 && c.SegmentBytes <= 1<<30,
		"segment size %d: want a multiple of %d from 16 KiB to 1 GiB", c.SegmentBytes, pageBytes)
	p.Check(c.FreeSegments >= 1 && c.FreeSegments <= 1024, "free segments %d: want 1 to 1024", c.FreeSegments)
	p.Check(c.MaxTailBytes >= 1 && c.CacheBytes >= 1 && c.RetainBytes >= -1 && c.HoldBytes >= -1 && c.IdleAfter >= 0 && c.MaxOpenFiles >= 1, "a negative limit")
	seen := make(map[GroupKey]bool, len(c.Groups))
	for _, g := range c.Groups {
		p.Check(!seen[g.Key], "group %s is given twice", g.Key)
		seen[g.Key] = true
	}
	return p.Err("open segment log", c.Dir)
}

// maxRecordBytes is the size of the largest record that fits into a segment beside the seal.
func (c *Config) maxRecordBytes() int {
	return min(alignedBytes(maxPayloadBytes), int(c.SegmentBytes)-segmentHeaderBytes-recordHeaderBytes)
}
