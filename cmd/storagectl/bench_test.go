package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// slowContent answers after a time of the virtual clock, and hangs once.
type slowContent struct {
	latency time.Duration
	hangAt  time.Duration // since the beginning; for a second
	began   time.Time
}

func (c *slowContent) SizeBytes() int64 { return 1 << 20 }
func (c *slowContent) wait(ctx context.Context) error {
	wait := c.latency
	if at := time.Since(c.began); c.hangAt > 0 && at >= c.hangAt && at < c.hangAt+time.Second {
		wait = c.hangAt + time.Second - at
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
func (c *slowContent) ReadAt(ctx context.Context, _ []byte, _ int64) error  { return c.wait(ctx) }
func (c *slowContent) WriteAt(ctx context.Context, _ []byte, _ int64) error { return c.wait(ctx) }
func (c *slowContent) WriteZeroes(ctx context.Context, _, _ int64) error    { return c.wait(ctx) }
func (c *slowContent) Flush(ctx context.Context) error                      { return c.wait(ctx) }
func (c *slowContent) Close() error                                         { return nil }
func (c *slowContent) Runs(_ context.Context, _, n int64) ([]transfer.Stretch, error) {
	return []transfer.Stretch{{Bytes: n}}, nil
}

// The figures are those of the volume: its rate, its latencies, and the time in which it hung.
func TestBenchMeasures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{job: "randread", block: new(int64(4096)), depth: 4, seconds: 10, readPercent: 70, connections: 1, seed: 1}
		if err := b.check(); err != nil {
			t.Fatal(err)
		}
		b.content, b.slots = &slowContent{latency: 10 * time.Millisecond, hangAt: 3 * time.Second, began: time.Now()}, 256
		v, err := b.measure(context.Background(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if v.Requests < 3590 || v.Requests > 3610 || v.Write != nil || v.Read.Requests != v.Requests { // nine seconds of 400 a second
			t.Errorf("%+v", v)
		}
		if v.IOPS < 358 || v.IOPS > 362 || v.MBPerS < 1.46 || v.MBPerS > 1.49 {
			t.Errorf("%.1f requests and %.2f MB a second, want 360 and 1.47", v.IOPS, v.MBPerS)
		}
		if v.LongestStallMS < 990 || v.LongestStallMS > 1020 {
			t.Errorf("longest stall %.0f ms, want one second", v.LongestStallMS)
		}
		if l := v.Read; l.P50US < 10000 || l.P50US > 10400 || l.P99US > 10400 || l.P999US < 900_000 || l.MaxUS > 1_020_000 {
			t.Errorf("latencies %+v", l)
		}
	})
}

func TestBenchEndToEnd(t *testing.T) {
	for job, c := range map[string]struct{ reads, writes bool }{
		"randread": {true, false}, "randwrite": {false, true}, "randrw": {true, true}, "read": {true, false},
		"write": {false, true}, "rw": {true, true},
	} {
		t.Run(job, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			v := r.create("web", 1<<20)
			v.Store(noise(1, 1<<20), 0)
			var seen record
			seen.watch(v)
			args := []string{"bench", "web", "--job", job, "--depth", "4", "--seconds", "1", "--span", "512K", "--connections", "2"}
			if c.writes {
				wantCode(t, r.run(args...), storage.KindInvalid)
				if seen.count("write") != 0 {
					t.Fatal("it wrote without being allowed to")
				}
				args = append(args, "--yes-destroy-data")
			}
			var got benchView
			if err := json.Unmarshal([]byte(r.must(append(args, "-o", "json")...)), &got); err != nil {
				t.Fatal(err)
			}
			if (got.Read != nil) != c.reads || (got.Write != nil) != c.writes || got.Requests == 0 || got.IOPS <= 0 {
				t.Errorf("%+v", got)
			}
			if (seen.count("read") > 0) != c.reads || (seen.count("write") > 0) != c.writes {
				t.Errorf("%d reads and %d writes", seen.count("read"), seen.count("write"))
			}
			if slices.ContainsFunc(seen.calls, func(c nbdtest.Call) bool { return c.Off+c.N > 512<<10 || c.N != 4096 && c.N != 0 }) {
				t.Error("a request is not a block of the span")
			}
		})
	}
}

func TestBenchForPeople(t *testing.T) {
	v := benchView{Job: "randrw", BlockSizeBytes: 4096, Depth: 32, Connections: 2, Seconds: 10, IOPS: 20000, MBPerS: 81.92, LongestStallMS: 1234,
		Read:  &benchLatency{IOPS: 14000, MBPerS: 57.3, MeanUS: 900, P50US: 850, P99US: 2345, P999US: 15600, MaxUS: 1_234_000},
		Write: &benchLatency{IOPS: 6000, MBPerS: 24.6, MeanUS: 3000, P50US: 2900, P99US: 9999, P999US: 99999, MaxUS: 999_999}}
	var out strings.Builder
	v.write(&out)
	want := `randrw of 4 KiB, depth 32, 2 connections for 10.0 s

       IOPS   MB/S  MEAN     P50      P99       P99.9     MAX
read   14000  57.3  900 us   850 us   2.35 ms   15.6 ms   1.23 s
write  6000   24.6  3.00 ms  2.90 ms  10.00 ms  100.0 ms  1000.0 ms
both   20000  81.9

longest time without an answer: 1.23 s
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

// Quantiles are at most 1/32 above the exact ones, and merging loses nothing.
func TestHistogram(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var whole histogram
	var parts [3]histogram
	var exact []time.Duration
	for range 20000 {
		d := time.Duration(random.ExpFloat64() * float64(time.Millisecond))
		exact = append(exact, d)
		whole.add(d)
		parts[random.IntN(3)].add(d)
	}
	slices.Sort(exact)
	var merged histogram
	for i := range parts {
		merged.merge(&parts[i])
	}
	if merged != whole {
		t.Error("merged histograms differ from one of all")
	}
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999} {
		want := exact[int(q*float64(len(exact)))]
		if got := whole.quantile(q); got < want || float64(got) > float64(want)*33/32+1 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if whole.quantile(1) != exact[len(exact)-1] || whole.max != exact[len(exact)-1] {
		t.Errorf("the largest is %v, want %v", whole.quantile(1), exact[len(exact)-1])
	}
	var none histogram
	if none.quantile(0.5) != 0 || none.mean() != 0 {
		t.Error("a histogram of nothing has figures")
	}
	for i, d := range []time.Duration{0, 1, 63, 64, 65, 127, 128, 1 << 20, 1<<40 - 1, 1<<63 - 1} {
		at := bucketOf(d)
		if at < 0 || at >= buckets || bucketEnd(at) < d || at > 0 && bucketEnd(at-1) >= d {
			t.Errorf("%d: %d is in bucket %d, which ends at %d", i, d, at, bucketEnd(at))
		}
	}
}
