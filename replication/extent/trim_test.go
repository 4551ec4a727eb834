package extent

import "testing"

// TestTrim: what is free beyond reserve and burst is given back within minutes, however much it is and however large the segments are;
// of a small store little is kept.
func TestTrim(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tc := range []struct {
		name                             string
		free, capacity, reserve, segment int64
		kept                             int64
	}{
		{"5 GiB", 4 * gib, 5 * gib, gib, 64 * mib, gib + 5*gib/16},
		{"1 TiB", 900 * gib, 1 << 40, gib, 64 * mib, 3 * gib},
		{"64 TiB", 60 << 40, 64 << 40, gib, 64 * mib, 3 * gib},
		{"small segments", 1900 * mib, 2 * gib, 128 * mib, 8 * mib, 128*mib + 2*gib/16},
		{"nothing to give", gib, 5 * gib, gib, 64 * mib, gib},
	} {
		t.Run(tc.name, func(t *testing.T) {
			free, seconds := tc.free, 0
			for ; seconds < 3600; seconds++ {
				n := toTrim(free, tc.reserve, tc.capacity, 32*tc.segment, tc.segment)
				if n == 0 {
					break
				}
				free -= n
			}
			if free != tc.kept || seconds > 360 {
				t.Errorf("%d bytes are kept, want %d, after %d s", free, tc.kept, seconds)
			}
		})
	}
}
