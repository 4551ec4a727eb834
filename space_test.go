package storage

import "testing"

// TestWaits: a write waits when it would leave less than the reserve; of a node that does not tell nothing is said.
func TestWaits(t *testing.T) {
	for _, c := range []struct {
		space StoreSpace
		want  bool
	}{
		{StoreSpace{Compaction: CompactionIdle, UnusedBytes: 10, ReserveBytes: 7}, false},
		{StoreSpace{Compaction: CompactionIdle, UnusedBytes: 9, ReserveBytes: 7}, true},
		{StoreSpace{UnusedBytes: 9, ReserveBytes: 7}, false},
	} {
		if got := c.space.Waits(3); got != c.want {
			t.Errorf("%+v: %v", c.space, got)
		}
	}
}

// TestWorks: three of the states make room.
func TestWorks(t *testing.T) {
	for s, want := range map[CompactionState]bool{CompactionOff: false, CompactionIdle: false, CompactionRunning: true, CompactionBraked: true,
		CompactionBehind: true, CompactionNothingToWin: false, CompactionNoRoom: false, "": false} {
		if s.Works() != want {
			t.Errorf("%q: %v", s, s.Works())
		}
	}
}
