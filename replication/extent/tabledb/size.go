package tabledb

import (
	"sync/atomic"
	"time"
)

// MaxTableFileBytes bounds the files of tables. Compactions are kept small by it, so that there is a bound to what they need
// beside the tables that they replace.
const MaxTableFileBytes = 16 << 20

// measure is the last that is known of the database's size.
type measure struct {
	asking         atomic.Bool
	bytes, inLevel atomic.Int64
}

// measurePatience is how long whoever asks for the size waits for a new one. Pebble gives none while it writes its manifest,
// which takes as long as the disk does.
const measurePatience = 10 * time.Millisecond

// DiskBytes returns the size of the database's files, and of the tables among them; 0 when it is closed or failed.
func (m *DB) DiskBytes() (all, tables int64) {
	if m.failure() == nil && m.measured.asking.CompareAndSwap(false, true) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer m.measured.asking.Store(false)
			m.measure()
		}()
		patience := time.NewTimer(measurePatience)
		defer patience.Stop()
		select {
		case <-done:
		case <-patience.C:
		}
	}
	if m.failure() != nil {
		return 0, 0
	}
	return m.measured.bytes.Load(), m.measured.inLevel.Load()
}

func (m *DB) measure() {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.usable() != nil {
		return
	}
	metrics := m.db.Metrics()
	var tables int64
	for i := range metrics.Levels {
		tables += metrics.Levels[i].TablesSize
	}
	m.measured.bytes.Store(int64(metrics.DiskSpaceUsage()))
	m.measured.inLevel.Store(tables)
}
