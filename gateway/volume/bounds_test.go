package volume_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
	"github.com/storaged/storaged/replication/op"
)

// Guards I5: bytes that were damaged on their way to the gateway are asked for once more, and never returned.
// Line: copyOut (read.go) calls Verify. Tried: without it the damaged bytes are returned.
func TestDamagedReadIsRetriedOnceAndNeverReturned(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		mustWrite(t, v, pattern(3*block, 1), 0)
		isRead := func(call volumetest.Call) bool { return call.Method == volumetest.Read }
		c.SetFault(once(isRead, volumetest.Fault{FlipBit: true}))
		wantBytes(t, v, pattern(3*block, 1), 0)
		reads := 0
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if isRead(call) {
				reads++
			}
			return volumetest.Fault{FlipBit: true}
		})
		if err := v.ReadAt(t.Context(), make([]byte, 3*block), 0); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("damaged twice: %v", err)
		}
		if reads != 2 {
			t.Errorf("%d attempts", reads)
		}
	})
}

// A caller that leaves while reads get no answer is let go.
func TestReadEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if call.Method == volumetest.Read || call.Method == volumetest.Status {
				return volumetest.Fault{Err: volumetest.Unavailable("scripted")}
			}
			return volumetest.Fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := v.ReadAt(ctx, make([]byte, block), 0); !errors.Is(err, storage.ErrCanceled) {
			t.Errorf("read: %v", err)
		}
		if _, err := v.Status(ctx, 0, block, 1); !errors.Is(err, storage.ErrCanceled) {
			t.Errorf("status: %v", err)
		}
	})
}

// Guards I9: the bytes in flight of a volume, and those of all volumes of a gateway, are bounded.
// Line: send and readPart call acquire. Tried: without it all requests are sent at once.
func TestBytesInFlightAreBounded(t *testing.T) {
	for _, tc := range []struct {
		name            string
		volume, gateway int64
		want            int
	}{{"volume", 2 << 20, 64 << 20, 2}, {"gateway", 3 << 20, 3 << 20, 5 /* three that are common, and one of each volume */}} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *volumetest.Cluster) {
				c.CreateVolume("more", 64<<20, 4)
				g := start(t, c, func(config *volume.Config) { config.VolumeBytes, config.GatewayBytes = tc.volume, tc.gateway })
				volumes := []*volume.Volume{open(t, g, "data")}
				if tc.name == "gateway" {
					volumes = append(volumes, open(t, g, "more"))
				}
				for _, v := range volumes {
					mustWrite(t, v, pattern(block, 1), 0)
				}
				var mu sync.Mutex
				sent := 0
				hold := make(chan struct{})
				c.SetFault(func(call volumetest.Call) volumetest.Fault {
					if isWrite(call) {
						mu.Lock()
						defer mu.Unlock()
						sent++
					}
					return volumetest.Fault{Hold: hold}
				})
				var wg sync.WaitGroup
				for i := range 8 {
					wg.Go(func() {
						if err := volumes[i%len(volumes)].WriteAt(t.Context(), make([]byte, 4<<20), 0); err != nil {
							t.Error(err)
						}
					})
				}
				synctest.Wait()
				mu.Lock()
				if sent != tc.want {
					t.Errorf("%d requests of 1 MiB are in flight, want %d", sent, tc.want)
				}
				mu.Unlock()
				close(hold)
				wg.Wait()
			})
		})
	}
}

// Guards I9: the parts of one request in flight together, and the requests in one group, are bounded.
func TestRequestsInFlightAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, func(config *volume.Config) { config.ClearParallel, config.GroupRequests = 5, 3 }), "data")
		for x := range int64(8) { // what holds nothing is not cleared
			mustWrite(t, v, pattern(block, 1), x*extent)
		}
		var mu sync.Mutex
		sent := map[storage.GroupID]int{}
		hold := make(chan struct{})
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if call.Method != volumetest.Propose {
				return volumetest.Fault{}
			}
			mu.Lock()
			defer mu.Unlock()
			sent[call.Group]++
			return volumetest.Fault{Hold: hold}
		})
		done := make(chan error, 1)
		go func() { done <- v.WriteZeroes(t.Context(), 0, v.SizeBytes(), false) }()
		synctest.Wait()
		mu.Lock()
		if sent[1] != 3 || sent[1]+sent[2]+sent[3] != 5 {
			t.Errorf("in flight by group: %v", sent)
		}
		mu.Unlock()
		close(hold)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Clears carry no data, and those in flight together share syncs. So many are in flight, but of one volume never more than a bound
// and one for each request. (With eight at a time, as for data, each sync would serve only a few.)
func TestClearsInFlightAreMany(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		const extents, requests = 400, 3
		var groups []storage.GroupID // many, because an answer of the fake names few extents
		for g := range storage.GroupID(64) {
			groups = append(groups, g+1)
		}
		c.CreateVolume("large", extents*extent, groups...)
		v := open(t, start(t, c, func(config *volume.Config) { config.ClearParallel = 100 }), "large")
		for x := range int64(extents) {
			mustWrite(t, v, pattern(block, 1), x*extent)
		}
		var sent atomic.Int64
		hold := make(chan struct{})
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if call.Method != volumetest.Propose {
				return volumetest.Fault{}
			}
			sent.Add(1)
			return volumetest.Fault{Hold: hold}
		})
		var wg sync.WaitGroup
		for i := range int64(requests) {
			wg.Go(func() {
				const part = extents / requests * extent
				if err := v.Discard(t.Context(), i*part, part); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := sent.Load(); n < 100 || n > 99+requests {
			t.Errorf("%d clears are in flight together", n)
		}
		close(hold)
		wg.Wait()
		if n := sent.Load(); n != extents/requests*requests {
			t.Errorf("%d clears, want one for each extent", n)
		}
	})
}

// What was never written is discarded and zeroed by a question to each group, whatever its size; of what was, only the
// extents that hold something are cleared. Line: clearAll (clear.go); mutateAll in its place clears 2.6 million extents.
func TestClearOfNothingCostsNothing(t *testing.T) {
	c := fake(t)
	c.CreateVolume("huge", 10<<40, 1, 2, 3, 1)
	r := record(c)
	var questions atomic.Int64
	c.SetFault(func(call volumetest.Call) volumetest.Fault {
		if call.Method == volumetest.MappedExtents {
			questions.Add(1)
		}
		return volumetest.Fault{}
	})
	v := open(t, start(t, c, nil), "huge")
	if err := v.Discard(t.Context(), 0, 10<<40); err != nil {
		t.Fatal(err)
	}
	if err := v.WriteZeroes(t.Context(), extent, 9<<40, false); err != nil {
		t.Fatal(err)
	}
	clears, _, _ := r.count(op.Clear)
	if n := questions.Load(); clears != 0 || n != 6 {
		t.Errorf("%d clears and %d questions to 3 groups for two requests", clears, n)
	}

	for _, x := range []int64{0, 1, 5, 6, 7, 8, 9, 10, 4000, 2<<20 - 1} {
		mustWrite(t, v, pattern(2*block, byte(x)), x*extent+3*block)
	}
	if err := v.WriteZeroes(t.Context(), 4*block-5, 4000*extent, false); err != nil {
		t.Fatal(err)
	}
	zeroed, _, _ := r.count(op.Clear)
	writes, _, _ := r.count(op.Write)
	if zeroed != 9 || writes != 10+2 {
		t.Errorf("%d clears and %d writes; 9 extents of the range hold something, and it has two edges", zeroed, writes)
	}
	wantBytes(t, v, append(pattern(2*block, 0)[:block-5], make([]byte, 10*block)...), 3*block)
	wantBytes(t, v, append(make([]byte, extent), make([]byte, 3*block)...), 4000*extent-extent)
	if err := v.Discard(t.Context(), 0, 10<<40); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, v, make([]byte, 8*block), 0)
	wantBytes(t, v, make([]byte, extent), 2<<20*extent-extent)
	if all, _, _ := r.count(op.Clear); all-zeroed != 3 {
		t.Errorf("%d clears for a discard of 3 extents that hold something", all-zeroed)
	}
}

// A clear that finds nothing to clear still follows the rules: it fails for a volume that was taken over, and waits for requests
// of an ended connection that are on their way, which must not land afterwards.
func TestClearOfNothingKeepsTheRules(t *testing.T) {
	t.Run("taken over", func(t *testing.T) {
		bubble(t, func(t *testing.T, c *volumetest.Cluster) {
			v := open(t, start(t, c, nil), "data")
			c.TakeOver("data")
			ctx, cancel := within(t)
			defer cancel()
			if err := v.Discard(ctx, 0, 8*extent); !errors.Is(err, storage.ErrFenced) {
				t.Errorf("got %v, want fenced", err)
			}
		})
	})
	t.Run("late copies", func(t *testing.T) {
		bubble(t, func(t *testing.T, c *volumetest.Cluster) {
			g := start(t, c, nil)
			old := open(t, g, "data")
			hold := make(chan struct{})
			c.SetFault(func(call volumetest.Call) volumetest.Fault {
				if call.Method == volumetest.Propose && call.Op.Kind == op.Write {
					return volumetest.Fault{Hold: hold}
				}
				return volumetest.Fault{}
			})
			ctx, cancel := context.WithCancel(t.Context())
			written := make(chan error, 1)
			go func() { written <- old.WriteAt(ctx, pattern(block, 1), extent) }()
			synctest.Wait()
			cancel()
			old.Detach()
			v := open(t, g, "data")
			if err := v.Discard(t.Context(), 0, 8*extent); err != nil {
				t.Fatal(err)
			}
			close(hold)
			<-written
			<-time.After(time.Minute)
			wantBytes(t, v, make([]byte, block), extent)
		})
	})
}

// slowLooks is a cluster whose leaders look at one extent for each question.
type slowLooks struct {
	*volumetest.Node
	questions atomic.Int64
	asked     func(n int64)
}

func (c *slowLooks) MappedExtents(_ context.Context, _ storage.GroupID, req op.MappedRequest) (op.MappedResponse, error) {
	c.asked(c.questions.Add(1))
	return op.MappedResponse{Next: req.First + 1}, nil
}

// A clear ends with its context, however much is left to be looked at, and holds up nobody afterwards. Line: ctx.Err in
// clearAll.
func TestClearEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		c.CreateVolume("huge", 1<<40, 1, 2, 3, 1)
		ctx, cancel := context.WithCancel(t.Context())
		slow := &slowLooks{Node: c.Start(1), asked: func(n int64) {
			if n == 30 {
				cancel()
			}
		}}
		g := start(t, c, func(config *volume.Config) { config.Cluster = slow })
		v := open(t, g, "huge")
		if err := v.Discard(ctx, 0, 1<<40); !errors.Is(err, storage.ErrCanceled) {
			t.Errorf("got %v, want canceled", err)
		}
		if n := slow.questions.Load(); n > 33 {
			t.Errorf("%d questions, though nobody waited any more after 30", n)
		}
		mustWrite(t, v, pattern(block, 1), 0)
	})
}

// Flush waits for what had started before it, and not for what starts later.
func TestFlushIsABarrier(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		g := start(t, c, nil)
		v, other := open(t, g, "data"), open(t, g, "data")
		mustWrite(t, v, pattern(block, 1), 0)
		first, second := make(chan struct{}), make(chan struct{})
		hold := first
		c.SetFault(func(call volumetest.Call) volumetest.Fault { return volumetest.Fault{Hold: hold} })
		done := make(chan string, 3)
		do := func(name string, f func() error) {
			go func() {
				if err := f(); err != nil {
					t.Error(err)
				}
				done <- name
			}()
			synctest.Wait()
		}
		do("first", func() error { return v.WriteAt(t.Context(), pattern(block, 2), 0) })
		do("flush", func() error { return other.Flush(t.Context()) })
		hold = second
		do("second", func() error { return v.WriteAt(t.Context(), pattern(block, 3), block) })
		if len(done) != 0 {
			t.Errorf("%s ended early", <-done)
		}
		close(first)
		synctest.Wait()
		if len(done) != 2 {
			t.Errorf("%d requests ended, want the first write and the flush", len(done))
		}
		close(second)
	})
}

// The buffer of a write belongs to its caller again when WriteAt returns, also when it returns early.
// Line: detach (write.go) clones the payload. Tried: without the clone the scribbles are written.
func TestBufferIsTheCallersAfterReturn(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		mustWrite(t, v, pattern(block, 9), block)
		n := 0
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if !isWrite(call) { // the volume is watched, too
				return volumetest.Fault{}
			}
			if n++; n < 4 {
				return volumetest.Fault{Err: volumetest.Unavailable("scripted")}
			}
			return volumetest.Fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		p := pattern(block, 1)
		if err := v.WriteAt(ctx, p, 0); !errors.Is(err, storage.ErrCanceled) {
			t.Fatal(err)
		}
		clear(p)
		wantBytes(t, v, pattern(block, 1), 0) // waits for the orphan
	})
}

func TestConfigIsChecked(t *testing.T) {
	_, err := volume.New(volume.Config{VolumeBytes: 1, GroupRequests: 5000, RetryMin: 2, RetryMax: 1, ClearParallel: -1, AttemptTimeout: -1})
	if !errors.Is(err, storage.ErrInvalid) {
		t.Fatal(err)
	}
	for _, name := range []string{"Cluster", "VolumeBytes", "GroupRequests", "RetryMin", "ClearParallel", "AttemptTimeout"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not name %s", err, name)
		}
	}
}

// TestSeriesAreBounded: hundreds of volumes have ten series each, as docs/operations.md says, and those that are asked for two
// histograms more, up to a limit; closed volumes have none.
func TestSeriesAreBounded(t *testing.T) {
	c := fake(t)
	registry := prometheus.NewPedanticRegistry()
	g := start(t, c, func(config *volume.Config) { config.Metrics, config.LatencyOf = registry, []string{"pvc-2*", "none"} })
	series := func() (byVolume map[string]int, others, histograms int) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		byVolume = map[string]int{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				n, of := 1, ""
				if h := m.GetHistogram(); h != nil {
					n = len(h.GetBucket()) + 3 // +Inf, sum, count
				}
				for _, l := range m.GetLabel() {
					if l.GetName() == "volume" {
						of = l.GetValue()
					}
				}
				switch {
				case of == "":
					others += n
				case n > 1:
					histograms++
				default:
					byVolume[of] += n
				}
			}
		}
		return byVolume, others, histograms
	}
	var open300 []*volume.Volume
	for i := range 300 {
		name := fmt.Sprintf("pvc-%d", i)
		c.CreateVolume(name, 1<<20, 1)
		v := open(t, g, name)
		open300 = append(open300, v)
		mustWrite(t, v, pattern(block, byte(i)), 0)
		if err := errors.Join(v.ReadAt(t.Context(), make([]byte, block), 0), v.Flush(t.Context()), v.Discard(t.Context(), 0, block)); err != nil {
			t.Fatal(err)
		}
	}
	byVolume, others, histograms := series()
	if len(byVolume) != 300 || others > 200 || histograms != 2*32 {
		t.Errorf("%d volumes, %d series of all together, %d histograms by volume", len(byVolume), others, histograms)
	}
	for name, n := range byVolume {
		if n != volume.SeriesPerVolume {
			t.Fatalf("volume %s has %d series, want %d", name, n, volume.SeriesPerVolume)
		}
	}
	for _, v := range open300 {
		if err := v.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if byVolume, _, histograms = series(); len(byVolume) > 0 || histograms > 0 {
		t.Errorf("closed volumes have series: %d, %d histograms", len(byVolume), histograms)
	}
	v := open(t, g, "pvc-299")
	mustWrite(t, v, pattern(block, 1), 0)
	if _, _, histograms = series(); histograms != 2 {
		t.Errorf("there is room for latencies again, and %d histograms", histograms)
	}
}

func TestMetrics(t *testing.T) {
	c := fake(t)
	registry := prometheus.NewPedanticRegistry()
	g := start(t, c, func(config *volume.Config) { config.Metrics = registry })
	v := open(t, g, "data")
	c.SetFault(once(isWrite, volumetest.Fault{LoseAnswer: true}))
	mustWrite(t, v, pattern(block, 1), 0)
	c.Expire("data")
	mustWrite(t, v, pattern(block, 2), 0)
	sum := func(name string) (total float64, found bool) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == name {
					found = true
					total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
		return total, found
	}
	for name, want := range map[string]float64{
		"storage_volume_requests_total": 2, "storage_volume_bytes_total": 2 * block, "storage_volume_request_seconds": 2, "storage_volume_errors_total": 0,
		"storage_volume_retries_total": 2, "storage_volume_session_rotations_total": 1, "storage_volume_sessions_total": 2,
		"storage_volume_in_flight_requests": 0, "storage_volume_in_flight_bytes": 0,
	} {
		if got, _ := sum(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if err := v.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, found := sum("storage_volume_requests_total"); found {
		t.Error("the series of a closed volume are left")
	}
	if _, err := volume.New(volume.Config{Cluster: c.Start(9), Metrics: registry}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("two gateways in one registry: %v", err)
	}
}

func TestListAndStat(t *testing.T) {
	c := fake(t)
	c.CreateVolume("a", block, 1)
	g := start(t, c, nil)
	list, err := g.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[1].SizeBytes != 8*extent {
		t.Errorf("%v, %v", list, err)
	}
	if info, err := g.Stat(t.Context(), "data"); err != nil || info.SizeBytes != 8*extent {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := g.Stat(t.Context(), "b"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

func benchmark(b *testing.B, n int, f func(v *volume.Volume, p []byte, off int64) error) {
	c := fake(b)
	v := open(b, start(b, c, nil), "data")
	image := pattern(int(v.SizeBytes()), 1)
	mustWrite(b, v, image, 0)
	p := pattern(n, 2)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if err := f(v, p, i*int64(n)%v.SizeBytes()); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkWriteAt4KiB(b *testing.B) {
	benchmark(b, block, func(v *volume.Volume, p []byte, off int64) error { return v.WriteAt(b.Context(), p, off) })
}

func BenchmarkReadAt4KiB(b *testing.B) {
	benchmark(b, block, func(v *volume.Volume, p []byte, off int64) error { return v.ReadAt(b.Context(), p, off) })
}

func BenchmarkWriteAt1MiB(b *testing.B) {
	benchmark(b, 1<<20, func(v *volume.Volume, p []byte, off int64) error { return v.WriteAt(b.Context(), p, off) })
}

func BenchmarkReadAt1MiB(b *testing.B) {
	benchmark(b, 1<<20, func(v *volume.Volume, p []byte, off int64) error { return v.ReadAt(b.Context(), p, off) })
}

// TestSeriesOfFailedOpenings: a volume that could not be opened has no series, and takes no place among those whose latencies are
// kept apart. Here the groups do not close the earlier instance's session before the client gives up.
func TestSeriesOfFailedOpenings(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		crashed, err := volume.New(volume.Config{Cluster: c.Start(7)})
		if err != nil {
			t.Fatal(err)
		}
		name := func(i int) string { return fmt.Sprintf("pvc-%d", i) }
		for i := range 33 {
			c.CreateVolume(name(i), 1<<20, 1)
			mustWrite(t, open(t, crashed, name(i)), pattern(block, 1), 0)
		}
		defer crashed.Close(context.Background()) // its sessions are left to the next instance
		registry := prometheus.NewPedanticRegistry()
		g, err := volume.New(volume.Config{Cluster: c.Start(7), Metrics: registry, LatencyOf: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close(context.Background())
		ofVolumes := func(family string) (n int) {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetName() == "volume" && (family == "" || f.GetName() == family) {
							n++
						}
					}
				}
			}
			return n
		}
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if call.Method != volumetest.Propose {
				return volumetest.Fault{}
			}
			return volumetest.Fault{Err: volumetest.Unavailable("the groups have no leaders")}
		})
		for i := range 33 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := g.Open(ctx, name(i), volume.OpenOptions{Access: storage.AccessShared}); err == nil {
				t.Fatal("it was opened: the test shows nothing")
			}
			cancel()
		}
		if n := ofVolumes(""); n > 0 {
			t.Errorf("volumes that are not open have %d series", n)
		}
		c.SetFault(nil)
		mustWrite(t, open(t, g, name(32)), pattern(block, 2), 0)
		if n := ofVolumes("storage_volume_latency_seconds"); n == 0 {
			t.Error("there is no room for the latencies of the only volume that is open")
		}
	})
}
