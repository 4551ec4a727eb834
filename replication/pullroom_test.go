package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
)

// TestPullWaitsForRoom: a step of a pull that finds no room is repeated for a while, and nothing of what was pulled is given up; what
// goes on for longer, and any other error, ends it.
//
// Line: the loop in withRoom.
func TestPullWaitsForRoom(t *testing.T) {
	full, other := storage.E("stage blocks", storage.KindNoSpace, "store", nil), errors.New("another")
	for _, tc := range []struct {
		name  string
		comes time.Duration // when there is room
		after error         // what the step says then
		want  error
		took  time.Duration
	}{
		{"at once", 0, nil, nil, 0},
		{"in time", 5 * time.Second, nil, nil, 5 * time.Second},
		{"another error", 5 * time.Second, other, other, 5 * time.Second},
		{"too late", time.Hour, nil, storage.ErrNoSpace, pullRoomPatience},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				err := withRoom(t.Context(), func() error {
					if time.Since(begun) < tc.comes {
						return full
					}
					return tc.after
				})
				if took := time.Since(begun); !errors.Is(err, tc.want) || took < tc.took || took > tc.took+2*pullRoomLook {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := withRoom(ctx, func() error { return full }); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("stopped: %v", err)
	}
}
