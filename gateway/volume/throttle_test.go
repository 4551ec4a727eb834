package volume_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
)

// limit gives a volume its limits and waits until its gateways have heard.
func limit(c *volumetest.Cluster, iops, bytesPerSecond int64) {
	c.SetLimits("data", storage.VolumeLimits{MaxIOPS: iops, MaxBytesPerSecond: bytesPerSecond})
	synctest.Wait()
}

// took returns how long do takes n times, one after another.
func took(t *testing.T, n int, do func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for range n {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(begin).Round(time.Millisecond)
}

func TestLimits(t *testing.T) {
	p := make([]byte, 1<<20)
	read := func(v *volume.Volume) error { return v.ReadAt(context.Background(), p, 0) }
	write := func(v *volume.Volume) error { return v.WriteAt(context.Background(), p, 0) }
	for _, c := range []struct {
		name        string
		iops, bytes int64
		n           int
		do          func(*volume.Volume) error
		want        time.Duration
	}{
		{"no limit", 0, 0, 100, write, 0},
		{"writes", 100, 0, 110, write, time.Second}, // a tenth of a second's are free after a rest
		{"reads", 100, 0, 110, read, time.Second},
		{"written bytes", 0, 10 << 20, 21, write, 2 * time.Second},
		{"read bytes", 0, 10 << 20, 21, read, 2 * time.Second},
		{"what is above a burst begins with a full bucket", 0, 5 << 20, 2, write, time.Second / 5},
		{"the tighter of two, bytes", 1000, 10 << 20, 21, write, 2 * time.Second},
		{"the tighter of two, requests", 10, 100 << 20, 21, write, 2 * time.Second},
		{"flushes are free", 10, 1 << 20, 100, func(v *volume.Volume) error { return v.Flush(context.Background()) }, 0},
		{"so is status", 10, 1 << 20, 100, func(v *volume.Volume) error {
			_, err := v.Status(context.Background(), 0, storage.BlockSize, 1)
			return err
		}, 0},
		{"discards have no bytes", 100, 1 << 20, 110, func(v *volume.Volume) error { return v.Discard(context.Background(), 0, 1<<20) }, time.Second},
		{"nor have holes", 100, 1 << 20, 110, func(v *volume.Volume) error { return v.WriteZeroes(context.Background(), 0, 1<<20, false) }, time.Second},
		{"zeroes that stay allocated have", 0, 10 << 20, 21, func(v *volume.Volume) error { return v.WriteZeroes(context.Background(), 0, 1<<20, true) }, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, cluster *volumetest.Cluster) {
				v := open(t, start(t, cluster, nil), "data")
				limit(cluster, c.iops, c.bytes)
				if d := took(t, c.n, func() error { return c.do(v) }); d != c.want {
					t.Errorf("%d took %v, want %v", c.n, d, c.want)
				}
			})
		})
	}
}

// A volume that has limits when it is opened has them from its first request on, for all its handles together.
func TestLimitsFromTheStart(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		limit(c, 10, 0)
		g := start(t, c, nil)
		v, err := g.Open(t.Context(), "data", volume.OpenOptions{Access: storage.AccessShared})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close(context.Background())
		w, err := g.Open(t.Context(), "data", volume.OpenOptions{Access: storage.AccessShared, ReadOnly: true}) // a session of its own
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close(context.Background())
		p := make([]byte, storage.BlockSize)
		if d := took(t, 11, func() error {
			return errors.Join(v.WriteAt(t.Context(), p, 0), w.ReadAt(t.Context(), p, 0))
		}); d != 2100*time.Millisecond {
			t.Errorf("22 requests by two handles at 10 a second, one at once, took %v", d)
		}
	})
}

// A change reaches those that wait already: under a limit of 10 a second the last of 1,001 would wait for 100 seconds.
func TestLimitsChangeAtOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		iops int64
		want time.Duration // of the thousand that are left
	}{{"more", 1000, 900 * time.Millisecond}, {"none", 0, 0}, {"less, then none", 20, 0}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, cluster *volumetest.Cluster) {
				v := open(t, start(t, cluster, nil), "data")
				limit(cluster, 10, 0)
				var wg sync.WaitGroup
				for i := range 1001 {
					wg.Go(func() {
						if err := v.ReadAt(context.Background(), make([]byte, 1), int64(i)); err != nil {
							t.Error(err)
						}
					})
				}
				synctest.Wait() // one has begun
				begin := time.Now()
				limit(cluster, c.iops, 0)
				if c.iops == 20 {
					limit(cluster, 0, 0)
				}
				wg.Wait()
				if d := time.Since(begin); d < c.want-10*time.Millisecond || d > c.want+110*time.Millisecond {
					t.Errorf("the rest took %v under the new limit, want about %v", d, c.want)
				}
			})
		})
	}
}

// What a large request has had in advance is paid at the new rate: under the old one the next would wait for 8 seconds.
func TestDebtUnderNewLimits(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		want  time.Duration
	}{{8 << 20, time.Second}, {0, 0}} {
		bubble(t, func(t *testing.T, cluster *volumetest.Cluster) {
			v := open(t, start(t, cluster, nil), "data")
			limit(cluster, 0, 1<<20)
			mustWrite(t, v, make([]byte, 8<<20), 0)
			begin, done := time.Now(), make(chan time.Time)
			go func() {
				if err := v.WriteAt(context.Background(), make([]byte, storage.BlockSize), 0); err != nil {
					t.Error(err)
				}
				done <- time.Now()
			}()
			synctest.Wait()
			limit(cluster, 0, c.bytes)
			if d := (<-done).Sub(begin).Round(100 * time.Millisecond); d != c.want {
				t.Errorf("with %d bytes a second it waited for %v, want %v", c.bytes, d, c.want)
			}
		})
	}
}

// Requests begin in the order they came, and those that wait hold back no flush.
func TestThrottledOrder(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		limit(c, 10, 0)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := v.WriteAt(context.Background(), make([]byte, storage.BlockSize), 0); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			})
			synctest.Wait()
		}
		if d := took(t, 1, func() error { return v.Flush(context.Background()) }); d != 0 {
			t.Errorf("a flush waited %v for requests that have not begun", d)
		}
		wg.Wait()
		for i, n := range order {
			if i != n {
				t.Fatalf("began in the order %v", order)
			}
		}
	})
}

// A caller that leaves gives its place up, and one whose volume is gone is told at once, however long its turn is away.
func TestThrottledEnds(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		limit(c, 0, 1<<20)
		p := make([]byte, 1<<20)
		mustWrite(t, v, p, 0) // from now on the bucket is empty for a second
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		var wg sync.WaitGroup
		for range 3 { // one for the buckets, two for the turn
			wg.Go(func() {
				if err := v.WriteAt(ctx, p, 0); !errors.Is(err, storage.ErrCanceled) {
					t.Errorf("a caller that has left: %v", err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(begin); d != 100*time.Millisecond {
			t.Errorf("left after %v", d)
		}
		mustWrite(t, v, p, 0)
		if d := time.Since(begin).Round(10 * time.Millisecond); d != time.Second {
			t.Errorf("the next one began after %v: those that left have taken its tokens", d)
		}
		for range 3 {
			wg.Go(func() {
				if err := v.WriteAt(context.Background(), p, 0); !errors.Is(err, storage.ErrNotFound) {
					t.Errorf("a deleted volume: %v", err)
				}
			})
		}
		synctest.Wait()
		begin = time.Now()
		c.Delete("data")
		wg.Wait()
		if d := time.Since(begin); d > 10*time.Millisecond {
			t.Errorf("told after %v", d)
		}
	})
}

func TestThrottledMetrics(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		registry := prometheus.NewPedanticRegistry()
		v := open(t, start(t, c, func(config *volume.Config) { config.Metrics = registry }), "data")
		limit(c, 10, 0)
		p := make([]byte, storage.BlockSize)
		took(t, 21, func() error { return v.ReadAt(t.Context(), p, 0) })
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				got[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		if got["storage_volume_throttled_requests_total"] != 20 || got["storage_volume_throttled_waiting_requests"] != 0 {
			t.Errorf("20 of 21 requests waited; the metrics say %v", got)
		}
		if s := got["storage_volume_throttled_seconds_total"]; s < 1.99 || s > 2.01 {
			t.Errorf("they waited for 2 s; the metrics say %v", s)
		}
	})
}
