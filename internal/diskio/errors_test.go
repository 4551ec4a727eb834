package diskio

import (
	"fmt"
	"syscall"
	"testing"
)

// TestNoSpace: a write that finds no room may be repeated, a sync that says so may not: nobody knows what it left behind.
func TestNoSpace(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{syscall.EIO, false},
		{fmt.Errorf("write: %w", syscall.ENOSPC), true},
		{fmt.Errorf("write: %w", syscall.EDQUOT), true},
		{Synced(nil), false},
		{fmt.Errorf("close: %w", Synced(syscall.ENOSPC)), false},
	} {
		if got := NoSpace(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}
