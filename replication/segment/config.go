package segment

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/storaged/storaged"
)

// Defaults of Config.
const (
	DefaultSegmentBytes = 64 << 20
	DefaultFreeSegments = 2
	DefaultMaxTailBytes = 64 << 20
	DefaultCacheBytes   = 64 << 20
	DefaultRetainBytes  = 16 << 20
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
}

func (c *Config) setDefaults() {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = DefaultSegmentBytes
	}
	if c.FreeSegments == 0 {
		c.FreeSegments = DefaultFreeSegments
	}
	if c.MaxTailBytes == 0 {
		c.MaxTailBytes = DefaultMaxTailBytes
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = DefaultCacheBytes
	}
	if c.RetainBytes == 0 {
		c.RetainBytes = DefaultRetainBytes
	}
	if c.IdleAfter == 0 {
		c.IdleAfter = DefaultIdleAfter
	}
	if c.PrewriteBelowBytes == 0 {
		c.PrewriteBelowBytes = DefaultPrewriteBelowBytes
	}
	if c.MaxOpenFiles == 0 {
		c.MaxOpenFiles = DefaultMaxOpenFiles
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.InUse == nil {
		c.InUse = func(SegmentNo) bool { return false }
	}
	if c.OnFailure == nil {
		c.OnFailure = func(error) {}
	}
}

// Validate returns every problem of the configuration at once, as one error of KindInvalid. Defaults must be set.
func (c *Config) Validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.FS == nil {
		bad("no file system")
	}
	if c.Dir == "" {
		bad("no directory")
	}
	if c.Store.IsZero() {
		bad("no store id")
	}
	if c.SegmentBytes%pageBytes != 0 || c.SegmentBytes < 16<<10 || c.SegmentBytes > 1<<30 {
		bad("segment size %d: want a multiple of %d from 16 KiB to 1 GiB", c.SegmentBytes, pageBytes)
	}
	if c.FreeSegments < 1 || c.FreeSegments > 1024 {
		bad("free segments %d: want 1 to 1024", c.FreeSegments)
	}
	if c.MaxTailBytes < 1 || c.CacheBytes < 1 || c.RetainBytes < -1 || c.IdleAfter < 0 || c.MaxOpenFiles < 1 {
		bad("a negative limit")
	}
	seen := make(map[GroupKey]bool, len(c.Groups))
	for _, g := range c.Groups {
		if seen[g.Key] {
			bad("group %s is given twice", g.Key)
		}
		seen[g.Key] = true
	}
	if err := errors.Join(problems...); err != nil {
		return storage.E("open segment log", storage.KindInvalid, c.Dir, err)
	}
	return nil
}

// maxRecordBytes is the size of the largest record that fits into a segment beside the seal.
func (c *Config) maxRecordBytes() int {
	return min(alignedBytes(maxPayloadBytes), int(c.SegmentBytes)-segmentHeaderBytes-recordHeaderBytes)
}
