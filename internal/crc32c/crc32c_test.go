package crc32c_test

import (
	"math/rand/v2"
	"testing"

	"github.com/storaged/storaged/internal/crc32c"
)

func TestJoin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 3, 64, 4096} {
		j := crc32c.NewJoiner(n)
		for range 200 {
			b := make([]byte, r.IntN(300)+n)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			head, part := b[:len(b)-n], b[len(b)-n:]
			if got, want := j.Join(crc32c.Sum(head), crc32c.Sum(part)), crc32c.Sum(b); got != want {
				t.Fatalf("%d bytes and a part of %d: %08x, want %08x", len(head), n, got, want)
			}
		}
	}
}

// BenchmarkJoin compares a second pass over 1 MiB with the sums of its blocks put together.
func BenchmarkJoin(b *testing.B) {
	const block = 4096
	data := make([]byte, 1<<20)
	j := crc32c.NewJoiner(block)
	b.Run("pass", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			crc32c.Sum(data)
		}
	})
	b.Run("join", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var sum uint32
			for i := range len(data) / block {
				sum = j.Join(sum, uint32(i))
			}
		}
	})
}
