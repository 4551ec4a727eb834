package volume_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
)

// On a host that goes down, users get an error when the cluster has not answered for the given time. How long they had waited before
// does not matter, and nobody waits after that. What the cluster answers in time lands, also when it was away for most of that time.
// The lines are the comparisons with patience in failIfStuck. Tried: without them the test hangs.
func TestStuckVolumeFails(t *testing.T) {
	const patience = 30 * time.Second
	away := func(method volumetest.Method) func(volumetest.Call) volumetest.Fault {
		return func(call volumetest.Call) volumetest.Fault {
			if call.Method == method {
				return volumetest.Fault{Err: volumetest.Unavailable("scripted")}
			}
			return volumetest.Fault{}
		}
	}
	write := func(t *testing.T, v *volume.Volume) error { return v.WriteAt(t.Context(), make([]byte, block), 0) }
	read := func(t *testing.T, v *volume.Volume) error { return v.ReadAt(t.Context(), make([]byte, block), 0) }
	for name, tc := range map[string]struct {
		method volumetest.Method
		do     func(*testing.T, *volume.Volume) error
	}{"writes": {volumetest.Propose, write}, "reads": {volumetest.Read, read}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *volumetest.Cluster) {
				v := open(t, start(t, c, nil), "data")
				mustWrite(t, v, pattern(block, 1), 0)
				for i := range 3 { // each time it comes back in time
					c.SetFault(away(tc.method))
					var wg sync.WaitGroup
					wg.Go(func() {
						if err := tc.do(t, v); err != nil {
							t.Errorf("the cluster came back in time: %v", err)
						}
					})
					if i == 0 {
						time.Sleep(time.Minute) // nobody minded
					}
					v.FailIfStuck(patience, "the host goes down")
					time.Sleep(patience * 3 / 4)
					c.SetFault(nil)
					wg.Wait()
				}
				time.Sleep(time.Hour) // nothing is asked for
				c.SetFault(away(tc.method))
				begun := time.Now()
				err := tc.do(t, v)
				if took := time.Since(begun); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "the host goes down") || took < patience || took > patience*5/4 {
					t.Errorf("after %v: %v", took, err)
				}
				if err := errors.Join(write(t, v), v.Err()); !errors.Is(err, storage.ErrUnavailable) || time.Since(begun) > patience*5/4 {
					t.Errorf("afterwards, %v later: %v", time.Since(begun), err)
				}
				c.SetFault(nil)
				synctest.Wait()
			})
		})
	}
}
