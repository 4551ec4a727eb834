package noroom

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestIs(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{syscall.EIO, false},
		{syscall.EFBIG, false},
		{errors.New(syscall.ENOSPC.Error()), false},
		{syscall.ENOSPC, true},
		{fmt.Errorf("copy: %w", &fs.PathError{Op: "write", Path: "/mnt/x", Err: syscall.EDQUOT}), true},
		{errors.Join(syscall.EIO, syscall.ENOSPC), true},
	} {
		if got := Is(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}
