package replication

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
)

func TestRangesSerialiseOverlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRanges()
		ctx := context.Background()
		a, _ := r.acquire(ctx, 1, 2, 0, 4)
		b, err := r.acquire(ctx, 1, 2, 4, 4) // beside, not over
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 3)
		for _, c := range []struct {
			name     string
			first, n int
		}{{"c", 3, 2}, {"d", 4, 1}} {
			go func() {
				h, _ := r.acquire(ctx, 1, 2, c.first, c.n)
				order <- c.name
				r.release(h)
			}()
			synctest.Wait()
		}
		other, err := r.acquire(ctx, 1, 3, 0, 1024) // another extent
		if err != nil {
			t.Fatal(err)
		}
		r.release(other)
		r.release(b)
		synctest.Wait()
		if len(order) != 0 {
			t.Fatal("c ran beside a, or d overtook c")
		}
		r.release(a)
		if got := <-order + <-order; got != "cd" {
			t.Fatalf("order %q, want cd", got)
		}
		cancelled, cancel := context.WithCancel(ctx)
		h, _ := r.acquire(ctx, 1, 2, 0, 1)
		cancel()
		if _, err := r.acquire(cancelled, 1, 2, 0, 1); err == nil {
			t.Fatal("acquired what is held")
		}
		r.release(h)
		if len(r.extents) != 0 {
			t.Fatalf("%d extents left behind", len(r.extents))
		}
	})
}

func TestRangesUnderLoad(t *testing.T) {
	r := newRanges()
	const blocks = 16
	var held [blocks]int // written only under the range lock: the race detector is the check
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for range 500 {
				first := rng.IntN(blocks)
				n := 1 + rng.IntN(blocks-first)
				h, err := r.acquire(context.Background(), 1, 0, first, n)
				if err != nil {
					t.Error(err)
					return
				}
				for i := first; i < first+n; i++ {
					held[i]++
				}
				for i := first; i < first+n; i++ {
					if held[i]--; held[i] != 0 {
						t.Errorf("block %d is held twice", i)
					}
				}
				r.release(h)
			}
		})
	}
	wg.Wait()
	if len(r.extents) != 0 {
		t.Fatalf("%d extents left behind", len(r.extents))
	}
}
