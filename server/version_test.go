package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/server/catalog"
)

// changing is a copy of the catalog whose changes are told.
type changing struct {
	s    *catalog.State
	next chan struct{}
}

func (c *changing) Changed() (uint64, <-chan struct{}) { return c.s.Applied(), c.next }
func (c *changing) View(fn func(*catalog.State)) catalog.Freshness {
	fn(c.s)
	return catalog.Freshness{}
}

func (c *changing) apply(cmd catalog.Command) {
	c.s.ApplyCommand(c.s.Applied()+1, cmd)
	last := c.next
	c.next = make(chan struct{})
	close(last)
}

// TestStoresFollowTheVersion guards the way back to the release before: stores get a format once the version that it came with is in
// force, never before, and also if it does not work at once.
func TestStoresFollowTheVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &changing{catalog.New(), make(chan struct{})}
		var asked []int
		var room atomic.Bool
		raise := func(format int) error {
			if asked = append(asked, format); format == 2 && !room.Load() {
				return errors.New("no room")
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		go followVersion(ctx, c, raise, slog.New(slog.DiscardHandler))
		synctest.Wait()
		c.apply(catalog.InitCluster{Cluster: catalog.Cluster{ID: storage.ClusterID{1}}})
		synctest.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		c.apply(catalog.RaiseVersion{To: 5})
		synctest.Wait()
		if !slices.Equal(asked, []int{1}) {
			t.Fatalf("before version 6: formats %v", asked)
		}
		c.apply(catalog.RaiseVersion{To: 6})
		time.Sleep(raiseAgain + time.Second)
		synctest.Wait()
		room.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !slices.Equal(asked, []int{1, 2, 2, 2}) {
			t.Errorf("formats %v", asked)
		}
		c.apply(catalog.RaiseVersion{To: 7})
		synctest.Wait()
		if !slices.Equal(asked, []int{1, 2, 2, 2, 3}) {
			t.Errorf("with version 7 formats %v", asked)
		}
		cancel()
	})
}

// TestNewClusterIsOfTheNewestVersion: its stores are of the newest format, too.
func TestNewClusterIsOfTheNewestVersion(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	until(t, "the store has the newest format", func() bool {
		id, err := storedir.ReadIdentity(vfs.Default, n.dir().Store())
		if err != nil {
			t.Fatal(err)
		}
		return id.Format == storedir.NewestFormat
	})
}
