package main

import "testing"

func TestProcessors(t *testing.T) {
	for _, c := range []struct {
		cores int
		asked string
		want  int
	}{{1, "", 0}, {2, "", 1}, {3, "", 2}, {4, "", 3}, {5, "", 0}, {64, "", 0}, {2, "2", 0}} {
		if got := processors(c.cores, c.asked); got != c.want {
			t.Errorf("%d cores, GOMAXPROCS=%q: %d, want %d", c.cores, c.asked, got, c.want)
		}
	}
}
