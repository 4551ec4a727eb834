package segment

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"pgregory.net/rapid"
)

// script is a workload of appends, truncations, checkpoints, compactions, copies and recycling over three groups.
func (w *world) script(t tb, rng *rand.Rand, steps int) {
	for range steps {
		k := key(1 + rng.IntN(3))
		switch rng.IntN(15) {
		case 0:
			w.truncate(t, k, uint64(1+rng.IntN(3)))
		case 1, 2:
			w.checkpoint(t, k, uint64(rng.IntN(3)))
			w.recycle()
		case 3:
			w.waitAll(t)
		case 4:
			w.reset(t, k)
		case 5, 6:
			w.copy(t, k)
		case 7:
			w.adoptCopies(k)
			w.recycle()
		default:
			sizes := make([]int, 1+rng.IntN(3))
			for i := range sizes {
				sizes[i] = rng.IntN(6000)
			}
			w.append(t, k, sizes...)
		}
	}
	w.waitAll(t)
}

// TestPowerCutAtEveryCall cuts the power before every call of the file system that changes something. Whatever the
// disk kept of what was not synced, the log opens, holds what was reported durable and nothing torn; and what a
// recovery discarded does not come back after a second cut.
//
// It guards: the sync in committer.writeSegment, and that durable is set after it; the syncs of the directory in
// create and reuse; the seal and its sync in resume; the checksum of payloads in recovery.read; the position in
// decodeRecordHeader; needsLocked in Recycle; Durable() in NextNeeded; the truncation record; Durable() in Copies.Adopt.
func TestPowerCutAtEveryCall(t *testing.T) {
	for _, percent := range []int{0, 50, 90} {
		w := newWorld(3)
		calls, active := uint64(0), false
		fs := errorfs.Wrap(w.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
				return nil
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if active {
				calls++
				w.cut(panicTB{t}, percent, calls)
			}
			return nil
		}))
		w.cfg.FS = fs
		w.l = openLog(t, w.config(fs))
		w.mu.Lock()
		active = true
		w.mu.Unlock()
		w.script(t, rand.New(rand.NewPCG(1, uint64(percent))), 60)
		w.mu.Lock()
		active = false
		w.mu.Unlock()
		if calls < 50 {
			t.Fatalf("only %d calls", calls)
		}
		w.restart(t)
		_ = w.l.Close()
	}
}

// cut opens what a power cut would leave now, appends to it, cuts the power once more and opens it again. The lock is
// held.
func (w *world) cut(t tb, percent int, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 2))
	durable := w.durableOps(w.l.Durable()) // before the clone: the committer may go on meanwhile
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	l, held := w.check(t, clone, durable, "after a cut")
	after := &world{mem: clone, cfg: w.cfg, ops: w.ops, starts: maps.Clone(w.starts), term: w.term, serial: 1_000_000}
	after.cfg.FS = clone
	after.adopt(l, held)
	after.append(t, key(1+rng.IntN(3)), rng.IntN(200))
	after.waitAll(t)
	after.append(t, key(1+rng.IntN(3)), rng.IntN(9000))
	after.crash(t, percent, seed)
	_ = after.l.Close()
}

// TestModel does random operations, restarts and crashes and compares the log with a model of it after each.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(3)
		w.l = openLog(t, w.config(w.mem))
		group := func() GroupKey { return key(rapid.IntRange(1, 3).Draw(rt, "group")) }
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				w.append(rt, group(), rapid.SliceOfN(rapid.IntRange(0, 9000), 1, 4).Draw(rt, "sizes")...)
			},
			"truncate":   func(rt *rapid.T) { w.truncate(rt, group(), rapid.Uint64Range(1, 5).Draw(rt, "count")) },
			"reset":      func(rt *rapid.T) { w.reset(rt, group()) },
			"wait":       func(rt *rapid.T) { w.waitAll(rt) },
			"checkpoint": func(rt *rapid.T) { w.checkpoint(rt, group(), rapid.Uint64Range(0, 4).Draw(rt, "behind")) },
			"recycle":    func(rt *rapid.T) { w.recycle() },
			"copy":       func(rt *rapid.T) { w.copy(rt, group()) },
			"adopt":      func(rt *rapid.T) { w.adoptCopies(group()) },
			"restart":    func(rt *rapid.T) { w.restart(rt) },
			"crash": func(rt *rapid.T) {
				w.crash(rt, rapid.SampledFrom([]int{0, 30, 70, 100}).Draw(rt, "percent"), rapid.Uint64().Draw(rt, "seed"))
				w.cfg.FS = w.mem
			},
			"": func(rt *rapid.T) {
				for _, k := range w.keys() {
					if problem := w.compare(w.l, k, len(w.ops), true); problem != "" {
						rt.Fatalf("%s", problem)
					}
				}
			},
		})
		_ = w.l.Close()
	})
}
