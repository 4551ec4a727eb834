package extent

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
)

// sharedFS is a file system of a size, on which other files lie too.
type sharedFS struct {
	vfs.FS
	total  uint64
	others atomic.Uint64
}

// GetDiskUsage counts files by their size.
func (f *sharedFS) GetDiskUsage(dir string) (vfs.DiskUsage, error) {
	used := f.others.Load()
	var walk func(dir string) error
	walk = func(dir string) error {
		names, err := f.List(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			path := f.PathJoin(dir, name)
			info, err := f.Stat(path)
			switch {
			case err != nil: // it was removed meanwhile
			case info.IsDir():
				if err := walk(path); err != nil {
					return err
				}
			default:
				used += uint64(info.Size())
			}
		}
		return nil
	}
	if err := walk(dir); err != nil {
		return vfs.DiskUsage{}, err
	}
	return vfs.DiskUsage{TotalBytes: f.total, AvailBytes: f.total - min(f.total, used), UsedBytes: used}, nil
}

// TestUsageAddsUp: what takes the room of a store, and what nothing takes, are all of it, and other files are told from the store's own.
// Guards, in room/room.go: the difference that is other; without any of its terms this fails.
func TestUsageAddsUp(t *testing.T) {
	for _, compacts := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacts %v", compacts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := &sharedFS{FS: vfs.NewCrashableMem(), total: 64 << 20}
				cfg := testConfig(fs)
				cfg.Compact = compacts
				r := newRig(t, cfg)
				r.ok(openSession(1))
				for range 20 {
					r.ok(r.write(0, 0, blocks(1, 32)))
				}
				r.checkpoint()
				const slack = 1 << 20 // small files, and segments that are written ahead just now
				for _, others := range []int64{0, 10 << 20} {
					fs.others.Store(uint64(others))
					time.Sleep(time.Second)
					space := r.s.Space()
					u := space.Usage()
					if sum := u.LogBytes + u.TableBytes + u.OtherBytes + u.UnusedBytes; sum != space.CapacityBytes || space.CapacityBytes != 64<<20 {
						t.Errorf("the parts are %d bytes of %d: %+v", sum, space.CapacityBytes, u)
					}
					if d := u.OtherBytes - others; d < 0 || d > slack {
						t.Errorf("others have %d bytes, it says %d", others, u.OtherBytes)
					}
					if want := int64(32 * storage.BlockSize); u.LiveBytes != want || u.GarbageBytes != u.LogBytes-cfg.SegmentBytes || u.GarbageBytes == 0 || u.NoRoom {
						t.Errorf("%+v, want %d bytes to live, and all segments but one to be garbage", u, want)
					}
					if u.ReserveBytes != space.ReserveBytes || u.UnusedBytes != space.FreeBytes || u.Fill <= 0 || u.Fill >= 1 || !u.Known() {
						t.Errorf("%+v, %+v", u, space)
					}
				}
			})
		})
	}
}

// TestNoRoomIsTold: a file system that refuses what is written although it says that it has room is told apart.
func TestNoRoomIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var on atomic.Bool
		fs := &fullFS{FS: &sharedFS{FS: vfs.NewCrashableMem(), total: 1 << 40}, full: func(name string, _ vfs.DiskWriteCategory) error {
			if on.Load() && strings.Contains(name, "meta") {
				return syscall.EDQUOT
			}
			return nil
		}}
		r, _ := smallTables(t, fs)
		on.Store(true)
		written := writeTables(r, 0, 200)
		time.Sleep(time.Minute)
		s := r.s.Space()
		u := s.Usage()
		if !u.NoRoom || u.Fill < 1 || u.UnusedBytes != 0 || s.WritableBytes() != 0 || u.OtherBytes > 64<<20 {
			t.Errorf("without room: %+v", u)
		}
		on.Store(false)
		<-written
		time.Sleep(time.Second)
		if u := r.s.Space().Usage(); u.NoRoom || u.Fill >= 1 || u.UnusedBytes == 0 {
			t.Errorf("with room again: %+v", u)
		}
	})
}

// TestSpaceMetrics: the series are what the store says of itself, and the state of compaction is one of them.
func TestSpaceMetrics(t *testing.T) {
	cfg := testConfig(memFS(t))
	registry := prometheus.NewRegistry()
	cfg.Metrics, cfg.CapacityBytes, cfg.Compact = registry, 64<<20, true
	r := newRig(t, cfg)
	r.ok(openSession(1))
	r.ok(r.write(0, 0, blocks(1, 32)))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "state" {
					name += " " + l.GetValue()
				}
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{"capacity_bytes": 64 << 20, "live_bytes": 32 * 4096, "written_bytes_total": 32 * 4096, "no_room": 0, "compaction_state idle": 1,
		"compaction_state off": 0,
		"reserve_bytes":        float64(r.s.Space().ReserveBytes)} {
		if v, ok := got["storage_store_"+name]; !ok || v != want {
			t.Errorf("%s: %v, want %v", name, v, want)
		}
	}
	parts := 0.0
	for _, name := range []string{"table_bytes", "other_bytes", "unused_bytes"} {
		parts += got["storage_store_"+name]
	}
	if parts += got["storage_segment_used_bytes"]; parts != 64<<20 {
		t.Errorf("the parts are %v bytes: %v", parts, got)
	}
}
