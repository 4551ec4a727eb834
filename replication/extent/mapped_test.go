package extent

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
)

// mappedAll asks for a range until it is answered as a whole.
func mappedAll(g *Group, v storage.VolumeID, first, end storage.ExtentIndex) (all []storage.ExtentIndex, err error) {
	for first < end {
		answer, err := g.MappedExtents(op.MappedRequest{Volume: v, First: first, End: end, Generation: 100})
		if err != nil {
			return nil, err
		}
		if answer.Next <= first || answer.Next > end {
			return nil, fmt.Errorf("the answer to [%d, %d) goes on at %d", first, end, answer.Next)
		}
		if _, err := op.DecodeMappedResponse(answer.Append(nil)); err != nil {
			return nil, err
		}
		all, first = append(all, answer.Extents...), answer.Next
	}
	return all, nil
}

// What was written and not cleared is named and nothing else, wherever its pages are: in memory only, frozen, in Pebble
// only, or in both and different.
func TestMappedExtents(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t, testConfig(memFS(t)))
		defer func() { _ = r.s.Close() }()
		r.propose(openSession(1))
		mapped := map[storage.ExtentIndex]map[uint32]bool{}
		epoch := storage.Epoch(1)
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				x, b := extentOf(rt), blockOf(rt)
				q := r.write(x, b*storage.BlockSize, blocks(uint64(x)+1, 1))
				q.o.Epoch = epoch
				r.propose(q)
				if mapped[x] == nil {
					mapped[x] = map[uint32]bool{}
				}
				mapped[x][b] = true
			},
			"clear": func(rt *rapid.T) {
				x, b := extentOf(rt), blockOf(rt)
				n := rapid.SampledFrom([]uint32{1, storage.BlocksPerExtent}).Draw(rt, "blocks")
				if n > 1 {
					b = 0
				}
				q := r.clear(x, b*storage.BlockSize, n*storage.BlockSize)
				q.o.Epoch = epoch
				r.propose(q)
				if delete(mapped[x], b); n > 1 {
					delete(mapped, x)
				}
			},
			"snapshot":   func(*rapid.T) { epoch++ },
			"checkpoint": func(*rapid.T) { r.checkpoint() },
			"forget":     func(*rapid.T) { r.s.cached.Set(2, 2) },
			"": func(rt *rapid.T) {
				var want []storage.ExtentIndex
				for x, m := range mapped {
					if len(m) > 0 {
						want = append(want, x)
					}
				}
				slices.Sort(want)
				got, err := mappedAll(r.g, 1, 0, 1<<26)
				if err != nil || !slices.Equal(got, want) {
					rt.Fatalf("mapped are %v, want %v; %v", got, want, err)
				}
				from, _ := slices.BinarySearch(want, 5)
				if got, err := mappedAll(r.g, 1, 5, 1000); err != nil || !slices.Equal(got, below(want[from:], 1000)) {
					rt.Fatalf("mapped from 5 to 1000 are %v of %v; %v", got, want, err)
				}
			},
		})
	})
}

func below(xs []storage.ExtentIndex, end storage.ExtentIndex) []storage.ExtentIndex {
	i, _ := slices.BinarySearch(xs, end)
	return xs[:i]
}

func extentOf(rt *rapid.T) storage.ExtentIndex {
	return storage.ExtentIndex(rapid.SampledFrom([]uint32{0, 1, 2, 5, 6, 999, 1000, 1<<16 - 1, 1 << 16, 1<<26 - 1}).Draw(rt, "extent"))
}

func blockOf(rt *rapid.T) uint32 {
	return rapid.SampledFrom([]uint32{0, 63, 64, storage.BlocksPerExtent - 1}).Draw(rt, "block")
}

// checkMapped compares the answers about a volume with what its tables hold.
func checkMapped(g *Group, v storage.VolumeID, extents int) error {
	if st, ok := g.Volume(v); !ok || st.Deleted {
		return nil
	}
	var want []storage.ExtentIndex
	for x := range storage.ExtentIndex(extents) {
		entries := make([]table.Entry, storage.BlocksPerExtent)
		if err := g.lookup(v, x, op.HeadEpoch, 0, entries); err != nil {
			return err
		}
		if slices.ContainsFunc(entries, table.Entry.Mapped) {
			want = append(want, x)
		}
	}
	got, err := mappedAll(g, v, 0, storage.ExtentIndex(extents))
	if err == nil && !slices.Equal(got, want) {
		err = fmt.Errorf("mapped extents of volume %d are said to be %v, and are %v", v, got, want)
	}
	return err
}

// An answer is bounded however much is mapped, and goes on where it has ended; pages that were cleared count as looked at.
func TestMappedExtentsAreBounded(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	r.propose(openSession(1))
	const n = 2600
	var want []storage.ExtentIndex
	for x := range storage.ExtentIndex(n) {
		r.propose(r.write(3*x, 0, blocks(1, 1)))
		if x%2 == 0 || x > n/2 {
			want = append(want, 3*x)
		}
		if x == n/2 {
			r.checkpoint()
		}
	}
	for x := storage.ExtentIndex(1); x <= n/2; x += 2 {
		r.propose(r.clear(3*x, 0, storage.ExtentSize))
	}
	r.s.cached.Set(2, 2)
	for range 2 {
		answer, err := r.g.MappedExtents(op.MappedRequest{Volume: 1, End: 1 << 26, Generation: 1})
		if err != nil || len(answer.Extents) > op.MaxMappedExtents || answer.Next == 1<<26 {
			t.Errorf("one answer names %d extents up to %d: %v", len(answer.Extents), answer.Next, err)
		}
		if got, err := mappedAll(r.g, 1, 0, 1<<17); err != nil || !slices.Equal(got, want) {
			t.Errorf("%d extents are named, want %d: %v", len(got), len(want), err)
		}
		r.checkpoint()
	}
}

// Whoever may not read may not ask either.
func TestMappedExtentsAreFenced(t *testing.T) {
	r := newRig(t, testConfig(memFS(t)))
	r.propose(openSession(1), request{o: op.Op{Kind: op.SetGeneration, Volume: 1, Generation: 2}})
	for _, c := range []struct {
		req  op.MappedRequest
		kind storage.Kind
	}{
		{op.MappedRequest{Volume: 1, End: 1, Generation: 1}, storage.KindFenced},
		{op.MappedRequest{Volume: 1, End: 1, Generation: 2, Session: 7}, storage.KindFenced},
		{op.MappedRequest{Volume: 1, End: 1, Generation: 2}, storage.KindNone},
		{op.MappedRequest{Volume: 1, Generation: 2}, storage.KindInvalid},
	} {
		if _, err := r.g.MappedExtents(c.req); storage.KindOf(err) != c.kind {
			t.Errorf("%+v: %v, want %v", c.req, err, c.kind)
		}
	}
	r.propose(request{o: op.Op{Kind: op.DeleteVolume, Volume: 1}})
	if _, err := r.g.MappedExtents(op.MappedRequest{Volume: 1, End: 1, Generation: 2}); storage.KindOf(err) != storage.KindNotFound {
		t.Errorf("a deleted volume: %v", err)
	}
}
