package copies

import (
	"testing"

	"pgregory.net/rapid"
)

func TestFit(t *testing.T) {
	for _, c := range []struct {
		room   []int64
		copies int
		want   int64
	}{
		{nil, 3, 0},
		{[]int64{100}, 3, 100}, // as many copies as nodes
		{[]int64{100, 50}, 3, 50},
		{[]int64{100, 100, 100}, 3, 100},
		{[]int64{100, 100, 10}, 3, 10},
		{[]int64{100, 100, 100, 100}, 3, 133},
		{[]int64{1000, 60, 60}, 2, 120}, // one copy of all on the large one
		{[]int64{100, -5, 100}, 1, 200},
		{[]int64{1 << 62, 1 << 62, 1 << 62}, 3, 1 << 50},
	} {
		if got := Fit(c.room, c.copies); got != c.want {
			t.Errorf("%v with %d copies: %d, want %d", c.room, c.copies, got, c.want)
		}
	}
}

// The answer is the largest number that the definition allows.
func TestFitIsTheLargest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.SliceOfN(rapid.Int64Range(0, 40), 1, 6).Draw(t, "room")
		copies := rapid.IntRange(1, len(room)).Draw(t, "copies")
		fits := func(u int64) bool {
			var sum int64
			for _, r := range room {
				sum += min(r, u)
			}
			return sum >= int64(copies)*u
		}
		if u := Fit(room, copies); !fits(u) || fits(u+1) {
			t.Fatalf("%v with %d copies: %d", room, copies, u)
		}
	})
}
