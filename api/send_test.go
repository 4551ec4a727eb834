package api

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// deaf is a caller that takes so many parts and keeps its connection: sending waits until the stream ends, as gRPC's flow control does.
type deaf struct {
	grpc.ServerStreamingServer[pb.BackupCatalogResponse]
	ctx   context.Context
	takes int
}

func (d *deaf) Context() context.Context { return d.ctx }

func (d *deaf) Send(*pb.BackupCatalogResponse) error {
	if d.takes--; d.takes >= 0 {
		time.Sleep(backupTimeout - time.Second) // slow is not deaf
		return nil
	}
	<-d.ctx.Done()
	return d.ctx.Err()
}

type catalogOf struct {
	Cluster
	bytes int
}

func (c catalogOf) BackupCatalog(context.Context) ([]byte, error) { return make([]byte, c.bytes), nil }

// TestBackupIsReadOrEnds: a caller that reads nothing more does not keep others from a copy; a slow one gets all of it.
// Guard: sendWithin.
func TestBackupIsReadOrEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		s := &cluster{cluster: catalogOf{bytes: 4 * backupPartBytes}}
		if err := s.BackupCatalog(nil, &deaf{ctx: ctx, takes: 4}); err != nil {
			t.Errorf("a slow caller: %v", err)
		}
		if err := s.BackupCatalog(nil, &deaf{ctx: ctx, takes: 2}); storage.KindOf(err) != storage.KindCanceled {
			t.Errorf("a deaf caller: %v", err)
		}
		if err := s.BackupCatalog(nil, &deaf{ctx: ctx, takes: 4}); err != nil {
			t.Errorf("the next one: %v", err)
		}
		end() // as gRPC does when a handler has returned
		synctest.Wait()
	})
}
