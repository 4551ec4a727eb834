package main

import (
	"math"
	"testing"
)

func TestFormatSize(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 1 << 40: "1 TiB",
		3<<29 + 1: "1.5 GiB", 1<<30 - 1: "1 GiB", 1234567890: "1.15 GiB", 123456789012: "115 GiB", math.MaxInt64: "8 EiB", -1024: "-1 KiB",
		math.MinInt64: "-8 EiB",
	} {
		if got := formatSize(bytes); got != want {
			t.Errorf("%d is %q, want %q", bytes, got, want)
		}
	}
}
