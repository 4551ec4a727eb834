//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

// TestDiscardOfMuch: a volume that holds a block in each of many extents is discarded, a gigabyte a request, as kernels do. The
// log says how long that took (docs/performance.md).
func TestDiscardOfMuch(t *testing.T) {
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 3})
	const extents, request = 2048, 1 << 30
	if err := c.CreateVolume(t.Context(), "v", extents<<22); err != nil {
		t.Fatal(err)
	}
	client := connect(t, c.Node(0), "v")
	block := random(4096)
	inEach := func(do func(at int64) error) {
		const workers = 64
		var running sync.WaitGroup
		for w := range int64(workers) {
			running.Go(func() {
				for x := w; x < extents; x += workers {
					if err := do(x << 22); err != nil {
						t.Errorf("extent %d: %v", x, err)
						return
					}
				}
			})
		}
		running.Wait()
	}
	inEach(func(at int64) error { return client.WriteAt(t.Context(), block, at) })
	begun := time.Now()
	for at := int64(0); at < extents<<22; at += request {
		if err := client.Trim(t.Context(), at, request); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(begun)
	t.Logf("%d extents discarded in %v: %.0f a second", extents, took.Round(time.Millisecond), extents/took.Seconds())
	zeroes := make([]byte, len(block))
	inEach(func(at int64) error {
		got := bytes.Clone(block)
		if err := client.ReadAt(t.Context(), got, at); err != nil {
			return err
		}
		if !bytes.Equal(got, zeroes) {
			return errors.New("it holds something after its discard")
		}
		return nil
	})
}
