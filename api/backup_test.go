package api_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// slow is a cluster whose catalog is as large as it is said to be, and is copied when the test lets it.
type slow struct {
	api.Cluster
	began chan struct{}
	goOn  chan []byte
}

func (s slow) BackupCatalog(context.Context) ([]byte, error) {
	s.began <- struct{}{}
	return <-s.goOn, nil
}

// TestBackupsAreBounded: a catalog arrives in parts of 256 KiB, and a node holds one copy at a time: another request is told to try again.
// Guards: the chunks, and cluster.backingUp.
func TestBackupsAreBounded(t *testing.T) {
	s := slow{Cluster: apitest.New(time.Now), began: make(chan struct{}), goOn: make(chan []byte)}
	_, conn := serve(t, api.Config{Cluster: s})
	client := pb.NewClusterClient(conn)
	first, err := client.BackupCatalog(t.Context(), &pb.BackupCatalogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-s.began
	second, err := client.BackupCatalog(t.Context(), &pb.BackupCatalogRequest{})
	if err == nil {
		_, err = second.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a second copy at the same time: %v", err)
	}
	const size = 600 << 10
	s.goOn <- make([]byte, size)
	got, parts := 0, 0
	for {
		part, err := first.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := len(part.GetData()); n > 256<<10 {
			t.Errorf("a part has %d bytes", n)
		}
		got, parts = got+len(part.GetData()), parts+1
	}
	if got != size || parts != 3 {
		t.Errorf("%d bytes in %d parts", got, parts)
	}
}

// TestBackupOfANodeThatIsNotReady: it says why, as for every other request. Guard: Config.Ready in interceptStream.
func TestBackupOfANodeThatIsNotReady(t *testing.T) {
	_, conn := serve(t, api.Config{Cluster: apitest.New(time.Now),
		Ready: func() error { return storage.E("ask", storage.KindUnavailable, "node a", errors.New("it is starting")) }})
	stream, err := pb.NewClusterClient(conn).BackupCatalog(t.Context(), &pb.BackupCatalogRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if e := api.ErrorFromStatus(err, "back up", "catalog"); storage.KindOf(e) != storage.KindUnavailable || !api.Answered(err) {
		t.Errorf("it is answered: %v", err)
	}
}
