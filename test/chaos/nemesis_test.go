package chaos

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// journal is a target that writes down what is done to it.
type journal struct {
	broken int // faults that are not mended
	lines  []string
}

func (j *journal) note(what string, broken int) error {
	j.lines = append(j.lines, what)
	j.broken += broken
	return nil
}
func (j *journal) nodes() int                         { return 3 }
func (j *journal) kill(int) error                     { return j.note("kill", 1) }
func (j *journal) restart(context.Context, int) error { return j.note("restart", -1) }
func (j *journal) pause(int) error                    { return j.note("pause", 1) }
func (j *journal) resume(int) error                   { return j.note("resume", -1) }
func (j *journal) partitions() bool                   { return true }
func (j *journal) cut(a, b int) error                 { return j.link(a, b) }
func (j *journal) oneWay(from, to int) error          { return j.link(from, to) }
func (j *journal) isolate(int) error                  { return j.note("isolate", 1) }
func (j *journal) heal() error                        { return j.note("heal", -1) }
func (j *journal) leader(context.Context) int         { return 1 }
func (j *journal) link(a, b int) error {
	if a == b {
		return errors.New("a node was cut from itself")
	}
	return j.note("link", 1)
}

// TestTorment: faults come one at a time, are mended, every kind comes, and a seed gives the same faults again.
func TestTorment(t *testing.T) {
	runs := [2]journal{}
	for i := range runs {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if err := torment(ctx, &runs[i], 3, func(time.Time, time.Time) {}, t.Logf); err != nil {
				t.Error(err)
			}
		})
		if runs[i].broken != 0 {
			t.Errorf("%d faults were not mended", runs[i].broken)
		}
	}
	for _, what := range []string{"kill", "restart", "pause", "resume", "link", "isolate", "heal"} {
		if !slices.Contains(runs[0].lines, what) {
			t.Errorf("in five minutes there was no %s", what)
		}
	}
	if !slices.Equal(runs[0].lines, runs[1].lines) {
		t.Error("the same seed gave other faults")
	}
}
