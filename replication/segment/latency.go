package segment

import (
	"math/bits"
	"time"
)

// latencies counts durations by size: four classes for each power of two of nanoseconds.
type latencies struct {
	classes [4 * 64]uint32
	n       uint32
}

func (c *latencies) add(d time.Duration) {
	c.classes[latencyClass(d)]++
	c.n++
}

func latencyClass(d time.Duration) int {
	n := uint64(max(d, 4))
	e := bits.Len64(n) - 3
	return 4*e + int(n>>e&3)
}

// p99 returns the upper end of the class that a hundredth of the durations is in or above; 0 if there is none.
func (c *latencies) p99() time.Duration {
	above := (c.n + 99) / 100
	for i := len(c.classes) - 1; i >= 0 && c.n > 0; i-- {
		if c.classes[i] >= above {
			return time.Duration(i%4+5) << (i / 4)
		}
		above -= c.classes[i]
	}
	return 0
}

// noteBatch notes how long a batch took to be written and synced. entries: some of its records are of groups' logs.
func (l *Log) noteBatch(d time.Duration, entries bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.batches {
		if entries || Asker(i) != Pull {
			l.batches[i].add(d)
		}
	}
}

// Asker is one of those who ask for SyncLatency.
type Asker uint8

// The askers.
const (
	Compaction Asker = iota
	Scrub
	Pull // asks for batches with entries only: its own, of nothing but data, say nothing of clients
	askers
)

// SyncLatency returns how long batches of records took to be written and synced since this one asked last: a hundredth of them took
// about so long or longer. It is 0 if there were none.
func (l *Log) SyncLatency(who Asker) (p99 time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p99 = l.batches[who].p99()
	l.batches[who] = latencies{}
	return p99
}
