package main

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are at most 1/32 of their value wide, from 1 ns to 292 years in 16 KiB.
// It is used by one goroutine.
type histogram struct {
	counts [buckets]uint64
	total  uint64
	sum    time.Duration
	max    time.Duration
}

// Below 64 ns a bucket is one value; above, every power of two has 32 buckets.
const buckets = 64 + (63-6)*32

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(d)]++
	h.total++
	h.sum += d
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// quantile returns a duration that the share q of all is at or below, at most 1/32 too large.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	if rank >= h.total {
		return h.max
	}
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen > rank {
			return min(bucketEnd(i), h.max)
		}
	}
	return h.max
}

func (h *histogram) mean() time.Duration {
	if h.total == 0 {
		return 0
	}
	return h.sum / time.Duration(h.total)
}

func bucketOf(d time.Duration) int {
	v := uint64(d)
	if v < 64 {
		return int(v)
	}
	shift := bits.Len64(v) - 6 // v >> shift is in [32, 64)
	return 64 + (shift-1)*32 + int(v>>shift) - 32
}

// bucketEnd is the largest duration in bucket i.
func bucketEnd(i int) time.Duration {
	if i < 64 {
		return time.Duration(i)
	}
	shift := (i-64)/32 + 1
	return time.Duration((uint64((i-64)%32+32)+1)<<shift - 1)
}
