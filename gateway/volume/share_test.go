package volume_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
)

// Eight volumes lie in a group that has no leader, and have as much in flight as the gateway allows all together. A ninth,
// in a group that is well, is served.
func TestStuckVolumesLeaveOthersTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volumetest.New()
		defer c.Close()
		const stuckVolumes = 8
		for i := range stuckVolumes {
			c.CreateVolume(fmt.Sprint("stuck", i), 1<<30, 1)
		}
		c.CreateVolume("well", 1<<30, 2)
		var stuck atomic.Bool
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if stuck.Load() && call.Method == volumetest.Propose && call.Group == 1 {
				return volumetest.Fault{Err: volumetest.Unavailable("no leader")}
			}
			return volumetest.Fault{}
		})
		g, err := volume.New(volume.Config{Cluster: c.Start(1)})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close(context.Background())
		open := func(name string) *volume.Volume {
			v, err := g.Open(t.Context(), name, volume.OpenOptions{})
			if err == nil {
				err = v.WriteAt(t.Context(), make([]byte, 4096), 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		well := open("well")
		var writers sync.WaitGroup
		defer writers.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		defer stuck.Store(false)
		defer cancel()
		var all []*volume.Volume
		for i := range stuckVolumes {
			all = append(all, open(fmt.Sprint("stuck", i)))
		}
		stuck.Store(true)
		for _, v := range all {
			for j := range 70 {
				writers.Go(func() { _ = v.WriteAt(ctx, make([]byte, 1<<20), int64(j)<<20) })
			}
		}
		time.Sleep(time.Second)
		within, done := context.WithTimeout(t.Context(), 20*time.Second)
		defer done()
		var mine sync.WaitGroup
		for i := range 16 {
			mine.Go(func() {
				for j := range 8 {
					if err := well.WriteAt(within, make([]byte, 1<<20), int64(8*i+j)<<20); err != nil {
						t.Errorf("a write to a volume that is well: %v", err)
						return
					}
				}
				if err := well.ReadAt(within, make([]byte, 1<<20), int64(i)<<20); err != nil {
					t.Errorf("a read: %v", err)
				}
			})
		}
		mine.Wait()
	})
}
