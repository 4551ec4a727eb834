package aligned_test

import (
	"runtime"
	"testing"

	"github.com/storaged/storaged/internal/aligned"
)

// TestBefore: what was asked for is there, to be written to, and its end begins at a page. Small sizes come from where Go keeps
// small things, which begin anywhere: take the second attempt out of Before, and they are not aligned.
func TestBefore(t *testing.T) {
	var keep [][]byte
	for _, body := range []int{0, 1, 100, 4095, 4096, 4097, 64 << 10, 1 << 20} {
		for _, head := range []int{0, 1, 72, 76, 1100, 4095, 4096, 5000} {
			b := aligned.Before(head, body)
			if len(b) != head+body || cap(b) != head+body {
				t.Fatalf("%d+%d: %d bytes of %d", head, body, len(b), cap(b))
			}
			if !aligned.Is(b[head:]) {
				t.Errorf("%d+%d: the body does not begin at a page", head, body)
			}
			for i := range b {
				b[i] = byte(head + body)
			}
			keep = append(keep, b)
		}
	}
	runtime.GC()
	for _, b := range keep {
		for i := range b {
			if b[i] != b[0] {
				t.Fatal("memory was given out twice")
			}
		}
	}
}

// TestNotShared: memory that is referred to in any part is not given out again, however much else is, and the collector takes
// what is not.
func TestNotShared(t *testing.T) {
	const n = 64 << 10
	held := aligned.Before(100, n)[n/2 : n/2+1] // a byte in the middle
	held[0] = 0xa5
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 1000 {
		b := aligned.Before(100, n)
		for i := range b {
			b[i] = 0xdb // poison
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held[0] != 0xa5 {
		t.Error("memory was given out again while a part of it was referred to")
	}
	if after.HeapAlloc > before.HeapAlloc+100*n {
		t.Errorf("%d bytes are left of 1000 buffers", after.HeapAlloc-before.HeapAlloc)
	}
}

func TestIs(t *testing.T) {
	b := aligned.Bytes(8192)
	for at, want := range map[int]bool{0: true, 1: false, 512: false, 4096: true, 8192: true} {
		if aligned.Is(b[at:]) != want {
			t.Errorf("at %d: %v", at, !want)
		}
	}
	if aligned.Is(nil) != true {
		t.Error("nothing is not aligned")
	}
}

// BenchmarkBytes compares memory that is cleared first with memory as it is.
func BenchmarkBytes(b *testing.B) {
	const n = 1<<20 + 4096
	var keep [64][]byte
	fill := make([]byte, n)
	for name, get := range map[string]func() []byte{
		"cleared":   func() []byte { return make([]byte, n) },
		"uncleared": func() []byte { return aligned.Bytes(n) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(n)
			for i := range b.N {
				m := get()
				copy(m, fill)
				keep[i%len(keep)] = m
			}
		})
	}
}
