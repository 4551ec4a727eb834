package extent

import (
	"sync"
	"time"
)

// spaceTTL is how long the file system's answer about its free space is used again.
const spaceTTL = 100 * time.Millisecond

// Space says how full a store is, in bytes.
type Space struct {
	// CapacityBytes is all that the store may use.
	CapacityBytes int64
	// FreeBytes is what it may still use, free segments that are written ahead included.
	FreeBytes int64
	// ReserveBytes: below it, writes that allocate should be refused before they are proposed.
	ReserveBytes int64
}

// Full reports whether writes that allocate should be refused.
func (s Space) Full() bool { return s.FreeBytes < s.ReserveBytes }

type spaceCache struct {
	mu              sync.Mutex // guards all below; held across the file system's answer so that one asks for all
	asked           time.Time
	total, avail    int64
	tables          int64
	known, reported bool
}

// Space returns how full the store is. It costs a few hundred nanoseconds and may be 100 ms old. When nothing is known
// (a file system that does not say, and no configured capacity), it answers that there is plenty.
func (s *Store) Space() Space {
	s.space.refresh(s)
	used, free := s.log.Space()
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	out := Space{CapacityBytes: 1 << 62, FreeBytes: 1 << 62, ReserveBytes: s.cfg.ReserveBytes}
	if s.space.known {
		out.CapacityBytes, out.FreeBytes = s.space.total, s.space.avail+free
	}
	if c := s.cfg.CapacityBytes; c > 0 {
		out.CapacityBytes = min(out.CapacityBytes, c)
		out.FreeBytes = min(out.FreeBytes, c-used-s.space.tables)
	}
	out.FreeBytes = max(out.FreeBytes, 0)
	return out
}

func (c *spaceCache) refresh(s *Store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asked.IsZero() && time.Since(c.asked) < spaceTTL {
		return
	}
	c.asked = time.Now()
	c.tables = s.meta.diskBytes()
	usage, err := s.cfg.FS.GetDiskUsage(s.cfg.Dir)
	if c.known = err == nil; c.known {
		c.total, c.avail = int64(usage.TotalBytes), int64(usage.AvailBytes)
	} else if !c.reported && s.cfg.CapacityBytes == 0 {
		c.reported = true
		s.logger.Warn("free space of the file system is not known", "dir", s.cfg.Dir, "err", err)
	}
}
